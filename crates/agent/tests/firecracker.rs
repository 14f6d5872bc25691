//! Real guests in a real Firecracker: a stock kernel with the agent, reached over vsock.
//!
//! Need a KVM that runs Linux guests, Firecracker, mkfs.ext4, a static busybox and a kernel (see
//! `support/kernel.rs`); say so loudly where one is missing. `cargo xtask lab` has them all.

#[path = "support/firecracker.rs"]
mod firecracker;
#[path = "support/kernel.rs"]
mod kernel;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use firecracker::{Boot, Firecracker, PATIENCE};
use hearth_agent_client::{
    Agent, Configured, Entropy, Event, EventReceiver, ExecEvent, ExecRequest, ExitStatus, GuestConfig, Program,
    ProgramState, Refresh, Welcome,
};
use tempfile::TempDir;
use tokio::time::timeout;

/// Makes what the guest boots: `None` after saying what is missing.
fn prepare(dir: &Path) -> Option<Boot> {
    let found = kernel::unpacked()?;
    let Ok(busybox) = fs::read("/bin/busybox") else {
        eprintln!("SKIPPED: there is no /bin/busybox: install the package busybox-static");
        return None;
    };
    let root = dir.join("image");
    fs::create_dir_all(root.join("bin")).expect("made");
    fs::create_dir_all(root.join("etc")).expect("made");
    fs::write(root.join("bin/busybox"), busybox).expect("written");
    fs::set_permissions(root.join("bin/busybox"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    for name in ["sh", "cat", "date", "hostname", "md5sum", "sleep", "yes"] {
        symlink("busybox", root.join("bin").join(name)).expect("made");
    }
    kernel::run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&root).arg(dir.join("rootfs.img")).arg("16M"));
    kernel::run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(dir.join("overlay.img")).arg("64M"));
    kernel::initrd(&found, &dir.join("initrd"));
    let vmlinux = hearth_kernel::ensure_vmlinux(&found, dir).expect("an ELF kernel");
    Some(Boot { vmlinux, initrd: dir.join("initrd") })
}

fn config() -> GuestConfig {
    let script = "echo counting; i=0; while sleep 1; do i=$((i + 1)); echo $i > /tmp/count; done";
    GuestConfig {
        hostname: "first".into(),
        instance_id: "instance-1".into(),
        program: Program {
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".into()],
            ..Program::default()
        },
        dns: Vec::new(),
        network: None,
    }
}

async fn connect(vmm: &Firecracker) -> (Agent, Welcome, EventReceiver) {
    Agent::connect(vmm.agent_port().await, PATIENCE).await.expect("welcomed")
}

fn command(words: &[&str]) -> ExecRequest {
    ExecRequest { argv: words.iter().map(|&s| s.to_owned()).collect(), ..ExecRequest::default() }
}

async fn run(agent: &Agent, words: &[&str]) -> (String, ExitStatus) {
    let mut session = agent.exec(command(words)).await.expect("started");
    let mut out = String::new();
    loop {
        match timeout(PATIENCE, session.next()).await.expect("in time").expect("no error") {
            ExecEvent::Stdout(data) => out += &String::from_utf8_lossy(&data),
            ExecEvent::Stderr(data) => panic!("{words:?}: {}", String::from_utf8_lossy(&data)),
            ExecEvent::Exited(status) => return (out, status),
        }
    }
}

fn refresh(generation: u64, hostname: &str) -> Refresh {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    Refresh {
        generation,
        realtime_ns: u64::try_from(now.as_nanos()).expect("for some centuries"),
        entropy: Entropy::new([7; 64]),
        hostname: hostname.into(),
        instance_id: format!("id-of-{hostname}"),
        env: Vec::new(),
        dns: Vec::new(),
        hooks_ms: Some(5000),
    }
}

/// A directory with the disks of `from`, as a restored guest finds them: under the same names.
fn fork_of(from: &Path) -> TempDir {
    let own = TempDir::new().expect("a directory");
    fs::hard_link(from.join("rootfs.img"), own.path().join("rootfs.img")).expect("linked");
    fs::copy(from.join("overlay.img"), own.path().join("overlay.img")).expect("copied");
    own
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_reached_over_vsock_from_boot_to_end() {
    let Some(program) = firecracker::program() else { return };
    let dir = TempDir::new().expect("a directory");
    let Some(boot) = prepare(dir.path()) else { return };
    let begun = Instant::now();
    let mut vmm = Firecracker::start(&program, dir.path()).await;
    vmm.boot(&boot).await;
    let (agent, welcome, mut events) = connect(&vmm).await;
    eprintln!("booted in {:?}", begun.elapsed());
    assert_eq!((welcome.boot_failure, welcome.configured), (None, false));
    assert_eq!(agent.configure(&config()).await.expect("taken"), Configured::Now);
    assert!(matches!(events.next().await, Some(Event::ProgramStarted { .. })));
    assert_eq!(run(&agent, &["hostname"]).await, ("first\n".into(), ExitStatus::Code(0)));

    // Much, both ways.
    let (input, mut output) = agent.exec(command(&["cat"])).await.expect("started").split();
    input.write(&[b'y'; 300_000]).await.expect("sent");
    input.eof().expect("sent");
    let mut echoed = 0;
    while let ExecEvent::Stdout(data) = output.next().await.expect("no error") {
        echoed += data.len();
    }
    assert_eq!(echoed, 300_000);

    // Hosts come and go, also with a flood under way.
    for _ in 0..5 {
        let (agent, ..) = connect(&vmm).await;
        let mut flood = agent.exec(command(&["yes"])).await.expect("started");
        flood.next().await.expect("output");
        agent.close();
    }
    let (agent, welcome, mut events) = connect(&vmm).await;
    assert!(welcome.configured && matches!(welcome.program, ProgramState::Running { .. }), "{welcome:?}");
    agent.refresh(&refresh(1, "second"), PATIENCE).await.expect("refreshed");
    assert_eq!(run(&agent, &["hostname"]).await.0, "second\n");

    agent.shutdown(Duration::from_secs(5)).await.expect("begun");
    let Some(Event::ProgramExited(exit)) = timeout(PATIENCE, events.next()).await.expect("in time") else {
        panic!("no exit")
    };
    assert_eq!(exit.code, 143);
    assert!(vmm.ended().await, "the guest's reset ends Firecracker");
    assert!(vmm.serial().contains("counting\n") && !vmm.serial().contains("panic"), "{}", vmm.serial());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_is_saved_and_goes_on_is_reached_again() {
    let Some(program) = firecracker::program() else { return };
    let dir = TempDir::new().expect("a directory");
    let Some(boot) = prepare(dir.path()) else { return };
    let vmm = Firecracker::start(&program, dir.path()).await;
    vmm.boot(&boot).await;
    let (mut agent, welcome, mut events) = connect(&vmm).await;
    agent.configure(&config()).await.expect("taken");
    events.next().await.expect("started");
    for round in 1..=5 {
        let flood = agent.exec(command(&["yes"])).await.expect("started");
        vmm.save().await;
        let begun = Instant::now();
        vmm.resume().await;
        // What was saved has no connections, and neither has what goes on. Nobody tells the host,
        // until it says something: whoever saves a guest has to dial it anew.
        agent.ping(PATIENCE).await.expect_err("the old connection is gone");
        drop(flood);
        let port = timeout(PATIENCE, vmm.dial()).await.expect("in time").expect("the agent listens");
        let (again, there, _) = Agent::connect(port, PATIENCE).await.expect("welcomed");
        eprintln!("{round}: welcomed {:?} after it went on", begun.elapsed());
        assert_eq!(there.boot_id, welcome.boot_id);
        assert_eq!(run(&again, &["hostname"]).await.0, "first\n");
        agent = again;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_guest_answers_a_new_host_over_vsock() {
    let Some(program) = firecracker::program() else { return };
    let dir = TempDir::new().expect("a directory");
    let Some(boot) = prepare(dir.path()) else { return };
    // The connection is idle when the state is saved; then, a command floods it.
    for under_way in [false, true] {
        for left in ["api.sock", "vsock.sock", "vmstate", "memory"] {
            let _ = fs::remove_file(dir.path().join(left));
        }
        let vmm = Firecracker::start(&program, dir.path()).await;
        vmm.boot(&boot).await;
        let (agent, welcome, mut events) = connect(&vmm).await;
        agent.configure(&config()).await.expect("taken");
        events.next().await.expect("started");
        let mut flood = None;
        if under_way {
            let session = flood.insert(agent.exec(command(&["yes"])).await.expect("started"));
            for _ in 0..20 {
                session.next().await.expect("output");
            }
        }
        vmm.save().await;
        drop((flood, agent, vmm));
        let (mut loads, mut welcomes, mut refreshes) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=10_u64 {
            let own = fork_of(dir.path());
            let fork = Firecracker::start(&program, own.path()).await;
            let begun = Instant::now();
            fork.load(dir.path()).await;
            loads.push(begun.elapsed());
            // The first try must do: nobody has to wait and ask again.
            let port = timeout(PATIENCE, fork.dial()).await.expect("in time").expect("the agent listens");
            let (agent, restored, _events) = Agent::connect(port, PATIENCE).await.expect("welcomed");
            welcomes.push(begun.elapsed());
            assert_eq!(restored.boot_id, welcome.boot_id, "it has booted anew");
            assert!(matches!(restored.program, ProgramState::Running { .. }), "{restored:?}");
            let name = format!("fork-{round}");
            agent.refresh(&refresh(round, &name), PATIENCE).await.expect("refreshed");
            refreshes.push(begun.elapsed());
            assert_eq!(run(&agent, &["hostname"]).await.0, format!("{name}\n"));
            // The host goes and comes: also after a restore.
            agent.close();
            let (agent, ..) = connect(&fork).await;
            agent.ping(PATIENCE).await.expect("an answer");
        }
        for times in [&mut loads, &mut welcomes, &mut refreshes] {
            times.sort();
        }
        eprintln!(
            "under way: {under_way}: loaded in {:?}, welcomed in {:?}, refreshed in {:?} (medians)",
            loads[5], welcomes[5], refreshes[5]
        );
    }
}

/// Forks of one snapshot, in turns refreshed and asked for nothing but an answer: from the load's end, each
/// over a connection of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_is_refreshed_in_hardly_more_than_a_bare_answer_takes() {
    const ROUNDS: u64 = 15;
    let Some(program) = firecracker::program() else { return };
    let dir = TempDir::new().expect("a directory");
    let Some(boot) = prepare(dir.path()) else { return };
    let vmm = Firecracker::start(&program, dir.path()).await;
    vmm.boot(&boot).await;
    let (agent, _, mut events) = connect(&vmm).await;
    agent.configure(&config()).await.expect("taken");
    events.next().await.expect("started");
    vmm.save().await;
    drop((agent, vmm));

    let (mut answered, mut refreshed) = (Vec::new(), Vec::new());
    for round in 1..=2 * ROUNDS {
        let own = fork_of(dir.path());
        let fork = Firecracker::start(&program, own.path()).await;
        fork.load(dir.path()).await;
        let begun = Instant::now();
        let port = timeout(PATIENCE, fork.dial()).await.expect("in time").expect("the agent listens");
        let (agent, ..) = Agent::connect(port, PATIENCE).await.expect("welcomed");
        if round % 2 == 0 {
            agent.ping(PATIENCE).await.expect("an answer");
            answered.push(begun.elapsed());
        } else {
            agent.refresh(&refresh(round, &format!("fork-{round}")), PATIENCE).await.expect("refreshed");
            refreshed.push(begun.elapsed());
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (answered, refreshed) = (median(answered), median(refreshed));
    let ratio = refreshed.as_secs_f64() / answered.as_secs_f64();
    eprintln!("refreshed in {refreshed:?}, answered in {answered:?} (medians of {ROUNDS} each): {ratio:.2} times");
    assert!(ratio <= 1.5, "a refresh takes {ratio:.2} times what a bare answer does");
}
