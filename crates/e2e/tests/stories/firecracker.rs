//! Firecracker on this very host: on the real one, with a guest that needs no kernel and so boots
//! on any KVM; and on the simulated one, whose guests have an agent and which fails on request.
//!
//! Linux guests on real Firecracker are the lab's: see `docs/testing.md`.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use hearth_api::instances::{CreateInstance, InstanceState};
use hearth_e2e::{Setup, TestHost, Vm, eventually};
use hearth_simulated::guest::{self, Params};
use serde_json::{Value, json};

/// A host that runs everything on this Firecracker.
fn on(program: &Path, kernel: &Path, setup: Setup) -> Setup {
    setup
        .env("HEARTH_DEFAULTS_HYPERVISOR", "firecracker")
        .env("HEARTH_FIRECRACKER_PATH", &program.display().to_string())
        .env("HEARTH_FIRECRACKER_KVM", "trust")
        .env("HEARTH_KERNEL_IMAGE", &kernel.display().to_string())
        .env("HEARTH_KERNEL_INITRD", "none")
}

/// The real one; `None`, loudly, where it cannot be used.
pub(crate) fn real() -> Option<Setup> {
    let program = std::env::var_os("HEARTH_FIRECRACKER").map_or_else(|| "firecracker".into(), PathBuf::from);
    let setup = Setup::default();
    let usable = || -> Result<PathBuf, String> {
        let found = std::process::Command::new(&program).arg("--version").output();
        found.map_err(|_| "there is no Firecracker, neither on PATH nor in HEARTH_FIRECRACKER".to_owned())?;
        let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        kvm.map_err(|error| format!("/dev/kvm does not open: {error}"))?;
        guest::assemble(setup.dir(), &Params { hz: 20, ..Params::default() }).map_err(|error| error.to_string())
    };
    match usable() {
        Ok(kernel) => Some(on(&program, &kernel, setup)),
        Err(why) => {
            eprintln!("SKIPPED: stories on real Firecracker: {why}");
            None
        }
    }
}

/// The simulated one; faults are asked for in the file beside its program.
pub(crate) fn simulated() -> Setup {
    let setup = Setup::default();
    let program = setup.dir().join("firecracker");
    symlink(hearth_simulated::program().expect("it is built"), &program).expect("a link is made");
    let kernel = setup.dir().join("vmlinux");
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(4096, 0);
    std::fs::write(&kernel, elf).expect("a kernel is written");
    on(&program, &kernel, setup)
}

/// From now on VMMs fail like this.
pub(crate) fn fail(host: &TestHost, faults: &Value) -> Result<()> {
    let file = host.dir().join("firecracker.json");
    std::fs::write(file, json!({ "faults": faults }).to_string()).context("ask for faults")
}

pub(crate) async fn boot_without_agent<'h>(host: &'h TestHost, name: &str) -> Result<Vm<'h>> {
    host.import_counter().await?;
    let request = TestHost::request(name, "counter:1");
    let request = CreateInstance { skip_guest_agent: Some(true), network: None, ..request };
    Ok(host.create(&request).await?)
}

/// The newest timeline of that operation: its steps and their notes.
fn steps(host: &TestHost, name: &str, op: &str) -> Result<Vec<(String, String)>> {
    let timelines = host.hearth(&["--json", "timeline", name])?.json()?;
    let list = timelines["operations"].as_array().context("a list of operations")?;
    let newest =
        list.iter().find(|timeline| timeline["op"] == op).with_context(|| format!("no {op} in {timelines}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let steps = newest["steps"].as_array().context("steps")?;
    Ok(steps.iter().map(|step| (text(&step["step"]), text(&step["note"]))).collect())
}

/// How guests are brought back: the escape hatch may be closed for all stories.
pub(crate) fn plan() -> &'static str {
    let hatch = std::env::var("HEARTH_FIRECRACKER_RESUME_ON_LOAD").unwrap_or_default();
    if matches!(&*hatch, "0" | "off" | "false") { TWO_STEPS } else { RESUME_ON_LOAD }
}

const RESUME_ON_LOAD: &str = "resume_on_load";
const TWO_STEPS: &str = "load_resume";

/// Fails unless the guest was brought back as planned: with one resume of its own, or with none.
fn brought_back(host: &TestHost, name: &str, op: &str, plan: &str) -> Result<()> {
    let steps = steps(host, name, op)?;
    let load = steps.iter().find(|(step, _)| step == "load snapshot").context("it was loaded")?;
    ensure!(load.1 == plan, "{name}: {load:?}, not {plan}");
    let resumes = steps.iter().filter(|(step, _)| step == "resume").count();
    ensure!(resumes == usize::from(plan != RESUME_ON_LOAD), "{name}: {resumes} resumes in {steps:?}");
    Ok(())
}

/// How many were brought back as planned.
fn restored(host: &TestHost) -> Result<u64> {
    metric(host, &format!(r#"hearth_restores_total{{backend="firecracker",plan="{}",result="ok"}}"#, plan()))
}

/// The last tick on the console.
pub(crate) async fn tick(vm: &Vm<'_>) -> Result<u64> {
    let console = vm.console().await?;
    let mut ticks = console.lines().filter_map(|line| line.strip_prefix("tick ")?.trim().parse().ok());
    Ok(ticks.next_back().unwrap_or(0))
}

pub(crate) async fn goes_on(vm: &Vm<'_>, from: u64) -> Result<()> {
    eventually("the guest counts on", async || Ok(tick(vm).await? > from)).await
}

fn metric(host: &TestHost, line: &str) -> Result<u64> {
    let text = host.metrics()?;
    let value = text.lines().find_map(|found| found.strip_prefix(line)).with_context(|| format!("{line} is shown"))?;
    value.trim().parse().with_context(|| format!("{line}{value}"))
}

#[test]
fn a_restored_guest_runs_when_its_load_returns() {
    let Some(setup) = real() else { return };
    setup.story(async |host| {
        let vm = boot_without_agent(host, "web").await?;
        goes_on(&vm, 2).await?;
        for _ in 0..3 {
            vm.standby().await?;
            let stood = tick(&vm).await?;
            vm.restore().await?;
            brought_back(host, "web", "restore", plan())?;
            goes_on(&vm, stood).await?;
            ensure!(vm.console().await?.contains("tick 1\n"), "what the console said before is still there");
        }
        let told = if plan() == RESUME_ON_LOAD { 3 } else { 0 };
        ensure!(host.log_lines("VM was resumed during snapshot load") == told, "one line for each");
        ensure!(restored(host)? == 3);
        ensure!(metric(host, r#"hearth_restores_not_resumed_on_load_total{backend="firecracker"}"#)? == 0);
        Ok(())
    });
}

#[test]
fn with_the_hatch_closed_it_is_loaded_and_then_resumed() {
    let Some(setup) = real() else { return };
    setup.env("HEARTH_FIRECRACKER_RESUME_ON_LOAD", "off").story(async |host| {
        let vm = boot_without_agent(host, "web").await?;
        goes_on(&vm, 2).await?;
        vm.standby().await?;
        let stood = tick(&vm).await?;
        vm.restore().await?;
        brought_back(host, "web", "restore", TWO_STEPS)?;
        goes_on(&vm, stood).await?;
        vm.fork("fork").await?;
        brought_back(host, "fork", "fork", TWO_STEPS)?;
        ensure!(host.log_lines("VM was resumed during snapshot load") == 0);
        ensure!(metric(host, r#"hearth_restores_not_resumed_on_load_total{backend="firecracker"}"#)? == 0);
        Ok(())
    });
}

/// 20 of each; `HEARTH_TEST_RESTORES` for more.
#[test]
fn many_restores_and_forks_leave_nothing_and_send_no_second_resume() {
    let Some(setup) = real() else { return };
    let times: u32 = std::env::var("HEARTH_TEST_RESTORES").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    setup.limit_s(150 + u64::from(times)).story(async |host| {
        let vm = boot_without_agent(host, "web").await?;
        goes_on(&vm, 2).await?;
        for _ in 0..times {
            vm.standby().await?;
            vm.restore().await?;
            brought_back(host, "web", "restore", plan())?;
        }
        let snapshot = vm.snapshot("warm").await?;
        for round in 0..times.div_ceil(10) {
            let forks = host.fork_snapshot(&snapshot.id, &format!("fork-{round}"), 10).await?;
            for fork in &forks {
                brought_back(host, &fork.name, "fork", plan())?;
            }
            // As new as they are, each counts on by itself.
            let stood = tick(&forks[9]).await?;
            goes_on(&forks[9], stood).await?;
            for fork in &forks {
                fork.delete().await?;
            }
        }
        let counted = restored(host)?;
        ensure!(counted == u64::from(times + times.div_ceil(10) * 10), "{counted} restores and forks");
        Ok(())
    });
}

#[test]
fn of_fifty_forks_at_once_no_two_have_one_name_or_address_at_any_moment() {
    let Some(setup) = real() else { return };
    setup.limit_s(300).story(async |host| {
        let web = boot_without_agent(host, "web").await?;
        web.snapshot("warm").await?;
        let looks = Cell::new(0);
        for round in 0..2 {
            let name = format!("twin-{round}");
            let looking = async {
                while nothing_is_there_twice(host).await? > 0 {
                    looks.set(looks.get() + 1);
                }
                anyhow::bail!("web has no address")
            };
            let forks = tokio::select! {
                forks = host.fork_snapshot("warm", &name, 50) => forks?,
                wrong = looking => return wrong,
            };
            let with_address = nothing_is_there_twice(host).await?;
            ensure!(with_address == 1 + 25 * round + 50, "{with_address} instances have an address");
            // Half of them make room for others.
            try_join_all(forks.iter().skip(25).map(Vm::delete)).await?;
        }
        eprintln!("looked at {} times", looks.get());
        ensure!(looks.get() >= 10, "hardly looked at");
        Ok(())
    });
}

/// How many have an address.
async fn nothing_is_there_twice(host: &TestHost) -> Result<usize> {
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for instance in host.instances().await? {
        let address = instance.network.and_then(|network| network.ip);
        ensure!(names.insert(instance.name.clone()), "{} is there twice", instance.name);
        ensure!(address.is_none_or(|address| addresses.insert(address)), "{} has another's address", instance.name);
    }
    Ok(addresses.len())
}

/// 24 rounds; `HEARTH_TEST_CYCLES` for more. The daemon is killed in between.
#[test]
fn rounds_from_fork_to_removal_leave_nothing_on_the_network() {
    let Some(setup) = real() else { return };
    let rounds: u32 = std::env::var("HEARTH_TEST_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    setup.limit_s(150 + 2 * u64::from(rounds)).story(async |host| {
        let web = boot_without_agent(host, "web").await?;
        ensure!(web.info().await?.network.and_then(|network| network.ip).is_some(), "it has no address");
        let snapshot = web.snapshot("warm").await?;
        let ready = async || Ok(host.slots().len() == SLOTS_OF_A_POOL + SLOT);
        hearth_e2e::eventually("the pool is full", ready).await?;
        let before = on_the_network(host).await?;
        for round in 0..rounds {
            let name = format!("round-{round}");
            // One in eight boots, the others are forks.
            let vm = match round % 8 {
                0 => boot_without_agent(host, &name).await?,
                _ => host.fork_snapshot(&snapshot.id, &name, 1).await?.remove(0),
            };
            if round % 12 == 5 {
                host.crash_daemon()?;
                host.start_daemon()?;
                vm.is(InstanceState::Running).await?;
            }
            vm.standby().await?;
            vm.restore().await?;
            if round % 12 == 11 {
                // In the middle of one: it is carried out or undone, and removed all the same.
                let standby = host.hearth_command(&["standby", &vm.name]).spawn()?;
                std::thread::sleep(Duration::from_millis(u64::from(round % 7) * 3));
                host.crash_daemon()?;
                host.start_daemon()?;
                standby.wait_with_output()?;
            }
            vm.delete().await?;
        }
        let mut after = String::new();
        let same = eventually("the network is as before", async || {
            after = on_the_network(host).await?;
            Ok(before == after)
        });
        same.await.with_context(|| format!("before:\n{before}\nafter:\n{after}"))?;
        Ok(())
    });
}

/// What is in a pool here, and what a slot that is taken shows: a namespace and a link.
pub(crate) const SLOT: usize = 2;
pub(crate) const SLOTS_OF_A_POOL: usize = 2 * SLOT;

/// How much of the host's devices, addresses, routes, namespaces and rules bears this daemon's names or
/// has to do with its range. Others' stories come and go beside it.
pub(crate) async fn on_the_network(host: &TestHost) -> Result<String> {
    let range = host.client().capabilities().await?.network.subnet.context("a range")?;
    let range = range.trim_end_matches("0/24").to_owned();
    let tag = host.slots().first().and_then(|name| Some(name.split('-').nth(1)?.to_owned())).context("a slot")?;
    let names = [format!("hv{tag}"), format!("hearth-{tag}-"), format!("hearth_{tag}"), range];
    let mut text = String::new();
    for command in [
        ["ip", "-brief", "link"].as_slice(),
        &["ip", "-brief", "address"],
        &["ip", "route"],
        &["ip", "netns"],
        &["nft", "-s", "list", "ruleset"],
    ] {
        let output = std::process::Command::new(command[0]).args(&command[1..]).output();
        let output = output.with_context(|| format!("run {}: install iproute2 and nftables", command[0]))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout)?;
        let its = lines.lines().filter(|line| names.iter().any(|name| line.contains(name.as_str()))).count();
        text += &format!("{command:?}: {its} lines\n");
    }
    Ok(text)
}

#[test]
fn a_fork_of_a_running_guest_costs_it_nothing() {
    let Some(setup) = real() else { return };
    setup.story(async |host| {
        let vm = boot_without_agent(host, "web").await?;
        goes_on(&vm, 2).await?;
        for round in 0..3 {
            let fork = vm.fork(&format!("fork-{round}")).await?;
            let (source, child) = (tick(&vm).await?, tick(&fork).await?);
            goes_on(&vm, source).await?;
            goes_on(&fork, child).await?;
        }
        // The same of one that was restored itself, again and again: each saves what changed since.
        let restored = host.vm("fork-1");
        for round in 0..3 {
            let fork = restored.fork(&format!("grandchild-{round}")).await?;
            let (source, child) = (tick(&restored).await?, tick(&fork).await?);
            goes_on(&restored, source).await?;
            goes_on(&fork, child).await?;
        }
        Ok(())
    });
}

#[test]
fn the_daemon_is_killed_and_finds_its_guests_again() {
    let Some(setup) = real() else { return };
    setup.story(async |host| {
        let vm = boot_without_agent(host, "web").await?;
        goes_on(&vm, 2).await?;
        let fork = vm.fork("fork").await?;
        let pids = (vm.vmm_pid().await?, fork.vmm_pid().await?);
        host.crash_daemon()?;
        host.start_daemon()?;
        ensure!(pids == (vm.vmm_pid().await?, fork.vmm_pid().await?), "the same VMMs");
        for vm in [&vm, &fork] {
            vm.is(InstanceState::Running).await?;
            let stood = tick(vm).await?;
            goes_on(vm, stood).await?;
            vm.standby().await?;
            vm.restore().await?;
            goes_on(vm, stood).await?;
        }
        Ok(())
    });
}

#[test]
fn a_vmm_that_is_killed_is_noticed_and_its_instance_boots_again() {
    let Some(setup) = real() else { return };
    setup.story(async |host| {
        let vm = boot_without_agent(host, "web").await?;
        let refused = host.hearth(&["exec", "web", "--", "true"])?;
        ensure!(refused.code != 0 && refused.stderr.contains("runs no agent"), "{}", refused.stderr);
        let pid = vm.vmm_pid().await?.context("it has a VMM")?;
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(killed.success());
        vm.wait(InstanceState::Stopped).await?;
        ensure!(vm.info().await?.exit_message.is_some_and(|why| why.contains("signal 9")));
        vm.start().await?;
        goes_on(&vm, 2).await
    });
}

#[test]
fn a_guest_with_an_agent_is_itself_after_a_restore_and_so_are_its_forks() {
    simulated().story(async |host| {
        let vm = host.boot_with("web", |request| request.network = None).await?;
        ensure!(vm.run(&["echo", "hello"]).await?.stdout == "hello\n");
        vm.run(&["write", "/file", "before"]).await?;
        vm.standby().await?;
        vm.restore().await?;
        brought_back(host, "web", "restore", plan())?;
        ensure!(vm.run(&["cat", "/file"]).await?.stdout.contains("before"));
        // From a running guest: it goes on, reached anew.
        let forks = host.fork("web", "fork", 10).await?;
        vm.run(&["write", "/file", "source"]).await?;
        for (number, fork) in forks.iter().enumerate() {
            ensure!(fork.run(&["cat", "/file"]).await?.stdout.contains("before"));
            fork.run(&["write", "/file", &format!("fork {number}")]).await?;
        }
        for (number, fork) in forks.iter().enumerate() {
            ensure!(fork.run(&["cat", "/file"]).await?.stdout.contains(&format!("fork {number}")));
        }
        ensure!(vm.run(&["cat", "/file"]).await?.stdout.contains("source"));
        host.crash_daemon()?;
        host.start_daemon()?;
        ensure!(vm.run(&["cat", "/file"]).await?.stdout.contains("source"));
        Ok(())
    });
}

/// Whatever a VMM does in a restore: an error that names the step, nothing left, and the instance
/// is restored when it is tried again.
#[test]
fn a_restore_that_fails_anywhere_can_be_tried_again() {
    let setup = simulated().env("HEARTH_TIMEOUTS_AGENT_S", "5").expect_log("operation failed");
    setup.limit_s(400).story(async |host| {
        let vm = host.boot_with("web", |request| request.network = None).await?;
        vm.run(&["write", "/file", "kept"]).await?;
        vm.standby().await?;
        for (fault, step) in [
            (json!({ "on": "start", "do": "exit" }), "await vmm"),
            (json!({ "on": "listen", "do": "exit" }), "the VMM"),
            (json!({ "on": "PUT /snapshot/load", "do": "exit" }), "load snapshot"),
            (json!({ "on": "PUT /snapshot/load", "when": "after", "do": "exit" }), "load snapshot"),
            (json!({ "on": "PUT /snapshot/load", "do": { "error": 400 } }), "load snapshot"),
            (json!({ "on": "PUT /snapshot/load", "when": "after", "do": { "error": 500 } }), "load snapshot"),
            (json!({ "on": "vsock", "do": "kill" }), "reach agent"),
            (json!({ "on": "vsock", "do": "hang" }), "reach agent"),
        ] {
            fail(host, &json!([fault]))?;
            let failed = host.hearth(&["restore", "web"])?;
            ensure!(failed.code != 0, "{fault}: it succeeded");
            ensure!(failed.stderr.contains(step), "{fault}: {}", failed.stderr);
            ensure!(host.traces().processes.is_empty(), "{fault}: {:?}", host.traces());
            vm.is(InstanceState::Standby).await?;
        }
        fail(host, &json!([]))?;
        vm.restore().await?;
        ensure!(vm.run(&["cat", "/file"]).await?.stdout.contains("kept"));
        Ok(())
    });
}

/// The source of a snapshot that fails goes on, and is reached.
#[test]
fn a_snapshot_that_fails_costs_its_source_nothing() {
    simulated().expect_log("operation failed").story(async |host| {
        let vm = host.boot_with("web", |request| request.network = None).await?;
        vm.standby().await?;
        vm.restore().await?;
        for fault in [
            json!({ "on": "PUT /snapshot/create", "with": "/snapshots/", "do": { "error": 400 } }),
            json!({ "on": "PUT /snapshot/create", "with": "/snapshots/", "when": "after", "do": { "error": 500 } }),
        ] {
            fail(host, &json!([fault]))?;
            let failed = host.hearth(&["snapshot", "create", "web"])?;
            ensure!(failed.code != 0 && failed.stderr.contains("save guest"), "{fault}: {}", failed.stderr);
            vm.is(InstanceState::Running).await?;
            tokio::time::timeout(Duration::from_secs(20), vm.run(&["echo", "here"])).await.context("it answers")??;
        }
        fail(host, &json!([]))?;
        // Nobody knows what changed since when: the next one holds all of it.
        vm.run(&["write", "/file", "whole"]).await?;
        vm.standby().await?;
        vm.restore().await?;
        ensure!(vm.run(&["cat", "/file"]).await?.stdout.contains("whole"));
        Ok(())
    });
}
