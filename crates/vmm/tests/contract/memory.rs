//! Stories that only a real guest can tell: its memory goes on where it stood, forks diverge, and
//! what they start from never changes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use hearth_model::{Backend, MemMib};
use hearth_vmm::{MEMORY, SERIAL_LOG, SaveMemory};

use crate::host::{BOARDS, Host, copy_sparse, log, ready};

#[tokio::test]
async fn a_restored_guest_counts_on_where_it_stood() {
    for backend in BOARDS {
        let Some(host) = Host::real(backend) else { return };
        let vmm = host.boot("web").await;
        let mut guest = ready(&vmm).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = guest.number("count").await;
        assert!(before > 0);
        let bundle = host.standby(vmm, "bundle", None).await;
        // Time passes that the guest must not see.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let vmm = host.fork(&bundle, "again").await;
        let after = ready(&vmm).await.number("count").await;
        assert!((before..before + 100).contains(&after), "{before} before, {after} after");
        assert_eq!(log(&vmm.seat().dir), "", "QEMU has nothing to complain about");
        vmm.kill().await.expect("ends");
    }
}

#[tokio::test]
async fn a_guest_goes_on_after_being_saved_and_its_serial_log_too() {
    let Some(host) = Host::real(Backend::QemuMicrovm) else { return };
    let vmm = host.boot("web").await;
    let mut guest = ready(&vmm).await;
    assert_eq!(guest.ask("put before").await, "put");
    vmm.pause().await.expect("pauses");
    let bundle = host.save(&vmm, "bundle", None).await;
    vmm.resume().await.expect("resumes");
    // The same connection, the same disk.
    assert_eq!(guest.ask("put after").await, "put");
    let count = guest.number("count").await;
    let fork = host.fork(&bundle, "fork").await;
    assert_eq!(ready(&fork).await.ask("get").await, "get before");
    assert_eq!(guest.ask("get").await, "get after");
    assert!(guest.number("count").await >= count);
    vmm.pause().await.expect("pauses");
    host.save(&vmm, "second", None).await;
    vmm.resume().await.expect("resumes");
    assert_eq!(guest.ask("get").await, "get after");
    fork.kill().await.expect("ends");

    // A restore of the instance itself goes on in its log.
    let bundle = host.standby(vmm, "third", None).await;
    let log = bundle.state.memory.with_file_name("serial-before");
    let spec = host.spec("web");
    std::fs::copy(spec.dir.join(SERIAL_LOG), &log).expect("copied");
    let vmm = host.fork(&bundle, "web").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    ready(&vmm).await;
    let before = std::fs::read(&log).expect("read");
    let after = std::fs::read(spec.dir.join(SERIAL_LOG)).expect("read");
    assert!(after.starts_with(&before) && after.len() > before.len());
    vmm.kill().await.expect("ends");
}

#[tokio::test]
async fn two_forks_diverge_and_their_base_stays_as_it_was() {
    for backend in BOARDS {
        let Some(host) = Host::real(backend) else { return };
        let vmm = host.boot("base").await;
        let mut guest = ready(&vmm).await;
        assert_eq!(guest.number("dirty 100").await, 100);
        let bundle = host.standby(vmm, "bundle", None).await;
        let base = bundle.content();

        let (a, b) = (host.fork(&bundle, "a").await, host.fork(&bundle, "b").await);
        let (mut to_a, mut to_b) = (ready(&a).await, ready(&b).await);
        assert_eq!(to_a.ask("zero").await, "zeroed 100");
        assert_eq!((to_a.number("sum").await, to_b.number("sum").await), (0, 5050));
        assert_eq!(to_a.ask("put a").await, "put");
        assert_eq!((to_a.ask("get").await, to_b.ask("get").await), ("get a".into(), "get".into()));
        assert_eq!(to_b.number("dirty 2000").await, 2000);
        for fork in [a, b] {
            fork.kill().await.expect("ends");
        }
        assert!(bundle.content() == base, "a fork has written into its base");
    }
}

/// Each link of the chain is saved from its own pages over a copy of the one before.
#[tokio::test]
async fn a_chain_of_three_snapshots_keeps_what_each_of_them_added() {
    for backend in BOARDS {
        let Some(host) = Host::real(backend) else { return };
        let vmm = host.boot("first").await;
        ready(&vmm).await.ask("dirty 500").await;
        let first = host.standby(vmm, "1", None).await;
        let base = first.content();

        let vmm = host.fork(&first, "second").await;
        let mut guest = ready(&vmm).await;
        assert_eq!(guest.number("sum").await, 500 * 501 / 2);
        // Pages that end as zeroes must not come back as what they were.
        assert_eq!(guest.ask("zero").await, "zeroed 500");
        let count = guest.number("count").await;
        let second = host.standby(vmm, "2", Some(&first)).await;

        let vmm = host.fork(&second, "third").await;
        let mut guest = ready(&vmm).await;
        assert!(guest.number("count").await >= count);
        assert_eq!(guest.number("sum").await, 0);
        assert_eq!(guest.number("dirty 700").await, 700);
        let third = host.standby(vmm, "3", Some(&second)).await;

        let vmm = host.fork(&third, "fourth").await;
        assert_eq!(ready(&vmm).await.number("sum").await, 700 * 701 / 2);
        vmm.kill().await.expect("ends");
        let vmm = host.fork(&first, "first again").await;
        assert_eq!(ready(&vmm).await.number("sum").await, 500 * 501 / 2);
        vmm.kill().await.expect("ends");
        assert!(first.content() == base, "a descendant has written into the first snapshot");
    }
}

/// A copy of a booted guest's memory that was taken while it ran is torn; brought up to date in
/// the pause, a guest goes on from it as the source does.
#[tokio::test]
async fn a_copy_taken_while_the_guest_ran_is_brought_up_to_date() {
    let Some(host) = Host::real(Backend::QemuMicrovm) else { return };
    let vmm = host.boot("base").await;
    let mut guest = ready(&vmm).await;
    guest.ask("dirty 300").await;
    let dir = vmm.seat().dir.clone();
    let onto = dir.join("copy");
    copy_sparse(&dir.join(MEMORY), &onto);
    guest.ask("dirty 500").await;
    vmm.pause().await.expect("pauses");
    let saved = vmm.save("vmstate".as_ref(), SaveMemory::Onto(&onto)).await.expect("saved");
    let (format, pages) = (saved.format, saved.pages.expect("counted"));
    assert!(pages.changed >= 200, "{pages:?}");
    vmm.resume().await.expect("goes on");
    drop(guest);
    assert_eq!(ready(&vmm).await.number("sum").await, 500 * 501 / 2);

    let state = hearth_vmm::SavedState { vmstate: dir.join("vmstate"), memory: onto, format };
    let bundle = crate::host::Bundle { state, overlay: dir.join(hearth_vmm::OVERLAY) };
    let fork = host.fork(&bundle, "fork").await;
    assert_eq!(ready(&fork).await.number("sum").await, 500 * 501 / 2);
    fork.kill().await.expect("ends");
    vmm.kill().await.expect("ends");
}

/// The file made of a base and a fork's own pages is the fork's memory, byte for byte: QEMU itself
/// dumps what the guest sees, and both must agree (but for the pages of its own firmware).
#[tokio::test]
async fn a_fork_s_own_pages_over_its_base_are_its_memory() {
    let Some(host) = Host::real(Backend::QemuMicrovm) else { return };
    let vmm = host.boot("base").await;
    ready(&vmm).await.ask("dirty 300").await;
    let bundle = host.standby(vmm, "bundle", None).await;
    let vmm = host.fork(&bundle, "fork").await;
    ready(&vmm).await.ask("zero").await;
    vmm.pause().await.expect("pauses");
    let onto = bundle.state.memory.with_file_name("onto");
    copy_sparse(&bundle.state.memory, &onto);
    let saved = vmm.save("vmstate".as_ref(), SaveMemory::Onto(&onto)).await.expect("written");
    let pages = saved.pages.expect("counted");
    assert!(pages.changed > 300 && pages.changed < 5000 && pages.zero >= 300, "{pages:?}");

    let dir = vmm.seat().dir.clone();
    let size = host.machine.memory.size().bytes();
    qmp(&dir, &format!(r#"{{"execute":"pmemsave","arguments":{{"val":0,"size":{size},"filename":"dump"}}}}"#));
    let (ours, theirs) = (File::open(onto).expect("there"), File::open(dir.join("dump")).expect("there"));
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    for at in (0..size).step_by(4096).filter(|at| !(0xe_0000..0x10_0000).contains(at)) {
        ours.read_exact_at(&mut a, at).expect("read");
        theirs.read_exact_at(&mut b, at).expect("read");
        assert!(a == b, "the page at {at:#x} differs");
    }
    vmm.kill().await.expect("ends");
}

/// Above 3 GiB (2 GiB on q35) a guest's physical addresses have a hole; its file has none.
#[tokio::test]
async fn a_guest_with_memory_above_the_hole_is_saved_and_restored() {
    for backend in BOARDS {
        let Some(mut host) = Host::real(backend) else { return };
        host.machine.memory = MemMib::new(4096).expect("in range");
        host.machine.vcpus = 2;
        let vmm = host.boot("base").await;
        ready(&vmm).await.ask("dirty 1000").await;
        vmm.pause().await.expect("pauses");
        // The file itself: copying 4 GiB of holes is not what this is about.
        let format = vmm.save("vmstate".as_ref(), SaveMemory::Leave).await.expect("saved").format;
        let dir = vmm.seat().dir.clone();
        vmm.kill().await.expect("ends");
        let state =
            |memory: &str| hearth_vmm::SavedState { vmstate: dir.join("vmstate"), memory: dir.join(memory), format };
        let bundle = crate::host::Bundle { state: state(MEMORY), overlay: dir.join(hearth_vmm::OVERLAY) };
        let fork = host.fork(&bundle, "fork").await;
        let mut guest = ready(&fork).await;
        assert_eq!(guest.number("sum").await, 1000 * 1001 / 2);
        assert_eq!(guest.number("dirty 3000").await, 3000);
        fork.pause().await.expect("pauses");
        let (from, to) = (dir.join(MEMORY), dir.join("second"));
        let cp = std::process::Command::new("cp").arg("--sparse=always").args([from, to]).status();
        assert!(cp.expect("cp is there").success());
        let (vmstate, second) = (dir.join("vmstate"), dir.join("second"));
        let saved = fork.save(&vmstate, SaveMemory::Onto(&second)).await.expect("written");
        assert_eq!(saved.format, bundle.state.format);
        fork.kill().await.expect("ends");
        let bundle = crate::host::Bundle { state: state("second"), ..bundle };
        let fork = host.fork(&bundle, "grandchild").await;
        assert_eq!(ready(&fork).await.number("sum").await, 3000 * 3001 / 2);
        fork.kill().await.expect("ends");
    }
}

/// One command to QEMU, past our handle.
fn qmp(dir: &std::path::Path, command: &str) {
    use std::io::{BufRead, BufReader, Write};
    let stream = std::os::unix::net::UnixStream::connect(dir.join(hearth_vmm::QMP_SOCKET)).expect("QMP");
    let mut lines = BufReader::new(stream.try_clone().expect("a clone")).lines().map_while(Result::ok);
    for line in [r#"{"execute":"qmp_capabilities"}"#, command] {
        writeln!(&stream, "{line}").expect("sent");
        let answer = lines.find(|line| line.contains("\"return\"") || line.contains("\"error\"")).expect("an answer");
        assert!(answer.contains("\"return\""), "{answer}");
    }
}
