//! Guests that plain Firecracker saved: taken over, forked, restored, and nothing of theirs touched.
//!
//! Each story is told on Firecracker, where it can be had, and on its double. The guest needs no
//! kernel and says on its console what it counts.

pub(crate) mod plain;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hearth_api::instances::{InstanceState, TargetState};
use hearth_api::snapshots::{ForkSnapshot, ImportSnapshot};
use hearth_e2e::{Setup, TestHost, Vm, eventually, refused};
use plain::{Plain, Program};
use serde_json::json;
use sha2::{Digest, Sha256};

macro_rules! on_both {
    ($($story:ident),* $(,)?) => {
        mod simulated {
            $(#[test]
            fn $story() {
                super::tell(super::Program::simulated(), super::$story);
            })*
        }

        mod firecracker {
            $(#[test]
            fn $story() {
                super::tell(super::Program::firecracker(), super::$story);
            })*
        }
    };
}

on_both!(
    a_guest_that_plain_firecracker_saved_is_forked_and_nothing_of_it_is_touched,
    relative_paths_are_replaced_too,
    a_drive_that_is_gone_is_named_and_an_empty_file_in_its_place_will_do,
    what_cannot_be_imported_says_why_and_leaves_nothing,
);

#[test]
fn a_guest_does_not_run_while_one_drive_is_not_its_own() {
    tell(Program::simulated(), async |host, program| {
        host.expect_log("PATCH /drives");
        let plain = Plain::save(program, &host.dir().join("theirs"), &host.dir().join("drives")).await?;
        host.client().import_snapshot(&request(&plain.dir, "theirs")).await?;
        let fork = ForkSnapshot { name: "fork".into(), ..ForkSnapshot::default() };
        for drive in ["data", "root_a"] {
            for when in ["before", "after"] {
                let fault = json!({ "on": format!("PATCH /drives/{drive}"), "when": when, "do": { "error": 400 } });
                program.plan(json!({ "faults": [fault] }))?;
                let refusal = refused(host.client().fork_snapshot("theirs", &fork).await).is(502, "vmm_failed");
                // The guest is loaded paused in this step, and resumed in a later one.
                ensure!(refusal.0.body.step.as_deref() == Some("load snapshot"), "{refusal:?}");
                ensure!(host.traces().processes.is_empty() && host.traces().instances.is_empty(), "{drive} {when}");
            }
        }
        program.plan(json!({}))?;
        ticks_beyond(&host.fork_snapshot("theirs", "fork", 1).await?[0], plain.tick).await
    });
}

#[test]
fn a_guest_with_a_network_card_is_refused() {
    tell(Program::simulated(), async |host, program| {
        let plain = Plain::save_networked(program, &host.dir().join("theirs")).await?;
        refused(host.client().import_snapshot(&request(&plain.dir, "theirs")).await)
            .is(422, "unsupported")
            .says("network interfaces (eth0)")
            .advises("without a network interface");
        ensure!(host.snapshots().await?.is_empty() && host.traces().processes.is_empty(), "{:?}", host.traces());
        Ok(())
    });
}

fn tell(program: Result<Program, String>, story: impl AsyncFnOnce(&TestHost, &Program) -> Result<()>) {
    match program {
        Ok(program) => Setup::default().without_a_kernel(&program.path).story(async |host| story(host, &program).await),
        Err(missing) => {
            assert!(std::env::var_os("HEARTH_TEST_MUST_RUN").is_none(), "cannot run here: {missing}");
            eprintln!("SKIPPED: {missing}");
        }
    }
}

pub(crate) fn request(dir: &Path, name: &str) -> ImportSnapshot {
    ImportSnapshot {
        path: dir.display().to_string(),
        name: name.into(),
        agent: Some(false),
        ..ImportSnapshot::default()
    }
}

async fn a_guest_that_plain_firecracker_saved_is_forked_and_nothing_of_it_is_touched(
    host: &TestHost,
    program: &Program,
) -> Result<()> {
    let plain = Plain::save(program, &host.dir().join("theirs"), &host.dir().join("drives")).await?;
    let before = fingerprint(&plain.everything())?;

    // As a user types it.
    let dir = plain.dir.display().to_string();
    let made = host.hearth(&["snapshot", "import", &dir, "--name", "theirs", "--no-agent", "--tag", "a=b"])?.ok()?;
    let snapshot = host.client().snapshot(made.trim()).await?;
    ensure!(snapshot.name.as_deref() == Some("theirs") && snapshot.source_hypervisor == "firecracker", "{snapshot:?}");
    ensure!(snapshot.memory_bytes == Some(plain::MEMORY_MIB << 20), "{snapshot:?}");
    ensure!(fs::read_dir(host.data().join("imports"))?.next().is_none(), "where it was looked at is still there");

    let forks = host.fork_snapshot("theirs", "fork", 3).await?;
    for fork in &forks {
        ticks_beyond(fork, plain.tick).await?;
        let notes = notes(host, fork, "fork").await?;
        ensure!(notes["load snapshot"].starts_with("load_patch_resume"), "{notes:?}");
        ensure!(notes.contains_key("resume"), "it was resumed on its own: {notes:?}");
        has_only_its_own_drives(fork, &plain).await?;
        let (own, bundle) = (fork.dir().await?, host.data().join("snapshots").join(&snapshot.id));
        let inode = |path: PathBuf| Ok::<_, anyhow::Error>(fs::metadata(path)?.ino());
        ensure!(inode(own.join("disks/root_a"))? == inode(bundle.join("disks/root_a"))?, "the read-only one is shared");
        ensure!(inode(own.join("disks/data"))? != inode(bundle.join("disks/data"))?, "the writable one is its own");
    }
    ensure!(fingerprint(&plain.everything())? == before, "something of the originals has changed");

    // Stored elsewhere until it is saved here: from then on nothing of theirs is needed.
    fs::remove_dir_all(&plain.dir)?;
    fs::remove_dir_all(plain.drives())?;
    let fork = &forks[0];
    let first = fork.console().await?;
    fork.standby().await?;
    fork.restore().await?;
    let notes = notes(host, fork, "restore").await?;
    ensure!(notes["load snapshot"] == crate::firecracker::plan(), "{notes:?}");
    ticks_beyond(fork, last_tick(&first).unwrap_or_default()).await?;
    let saved = fork.snapshot("own").await?;
    let again = host.fork_snapshot(&saved.id, "again", 2).await?;
    for vm in &again {
        ticks_beyond(vm, plain.tick).await?;
        has_only_its_own_drives(vm, &plain).await?;
    }
    fork.standby().await?;
    fork.revert("own").await?;
    fork.is(InstanceState::Running).await?;
    fork.stop().await?;
    refused(host.client().start(&fork.info().await?.id).await)
        .is(422, "unsupported")
        .says("fork-1")
        .advises("fork its snapshot");

    // The daemon finds them again, without waiting for an agent that is not there.
    host.crash_daemon()?;
    host.start_daemon()?;
    forks[1].is(InstanceState::Running).await?;
    let tick = last_tick(&forks[1].console().await?).unwrap_or_default();
    ticks_beyond(&forks[1], tick).await
}

async fn relative_paths_are_replaced_too(host: &TestHost, program: &Program) -> Result<()> {
    // As Hearth names them, and otherwise.
    for (name, root, data) in [("ours", "disks/root_a", "disks/data"), ("old", "disks/overlay.img", "data.img")] {
        let plain = Plain::save_named(program, &host.dir().join(name), root, data).await?;
        let before = fingerprint(&plain.everything())?;
        let snapshot = host.client().import_snapshot(&request(&plain.dir, name)).await?;
        let vm = &host.fork_snapshot(&snapshot.id, &format!("of-{name}"), 1).await?[0];
        ticks_beyond(vm, plain.tick).await?;
        let notes = notes(host, vm, "fork").await?;
        let said = notes["load snapshot"].contains("named as here");
        ensure!(notes["load snapshot"].starts_with("load_patch_resume") && said == (name == "ours"), "{notes:?}");
        has_only_its_own_drives(vm, &plain).await?;
        ensure!(fingerprint(&plain.everything())? == before, "something of the originals has changed");

        // In standby it is still theirs: it is replaced at the restore.
        let request = ForkSnapshot {
            name: format!("later-{name}"),
            target_state: Some(TargetState::Standby),
            ..ForkSnapshot::default()
        };
        host.client().fork_snapshot(&snapshot.id, &request).await?;
        let later = host.vm(&request.name);
        later.restore().await?;
        let notes = self::notes(host, &later, "restore").await?;
        ensure!(notes["load snapshot"].starts_with("load_patch_resume"), "{notes:?}");
        ticks_beyond(&later, plain.tick).await?;
    }
    Ok(())
}

async fn a_drive_that_is_gone_is_named_and_an_empty_file_in_its_place_will_do(
    host: &TestHost,
    program: &Program,
) -> Result<()> {
    host.expect_log("cannot be opened");
    let plain = Plain::save(program, &host.dir().join("theirs"), &host.dir().join("drives")).await?;
    host.client().import_snapshot(&request(&plain.dir, "theirs")).await?;
    let data = plain.drives().join("data.img");
    fs::remove_file(&data)?;
    let fork = ForkSnapshot { name: "fork".into(), ..ForkSnapshot::default() };
    let refusal = refused(host.client().fork_snapshot("theirs", &fork).await).is(422, "incompatible");
    refusal.says("drive data").says(&data.display().to_string()).advises("touch");
    ensure!(host.traces().processes.is_empty() && host.traces().instances.is_empty(), "{:?}", host.traces());

    fs::write(&data, "")?;
    let vm = &host.fork_snapshot("theirs", "fork", 1).await?[0];
    ticks_beyond(vm, plain.tick).await?;
    has_only_its_own_drives(vm, &plain).await?;
    let own = fs::metadata(vm.dir().await?.join("disks/data"))?.len();
    ensure!(own == plain::DRIVE, "it has the drive that was imported, of {own} bytes");
    ensure!(fs::metadata(&data)?.len() == 0, "nobody wrote to what stands in for it");
    Ok(())
}

async fn what_cannot_be_imported_says_why_and_leaves_nothing(host: &TestHost, program: &Program) -> Result<()> {
    let dir = host.dir().join("theirs");
    let plain = Plain::save(program, &dir, &host.dir().join("drives")).await?;
    let client = host.client();
    let import = async |request: ImportSnapshot| refused(client.import_snapshot(&request).await);
    let good = || request(&dir, "theirs");
    let file = |name: &str| dir.join(name).display().to_string();

    import(ImportSnapshot { path: "theirs".into(), ..good() }).await.is(400, "invalid").says("absolute");
    let nowhere = host.dir().join("nowhere");
    import(request(&nowhere, "x")).await.is(404, "not_found").says("nowhere").advises("slip of the pen");
    import(ImportSnapshot { path: file("state"), ..good() }).await.is(400, "invalid").advises("directory");
    let empty = host.dir().join("empty");
    fs::create_dir(&empty)?;
    import(request(&empty, "x")).await.is(400, "invalid").says("no vmstate file").advises("--vmstate");
    import(ImportSnapshot { name: "No Name".into(), ..good() }).await.is(400, "invalid").says("No Name");
    import(ImportSnapshot { vmstate: Some("nothing".into()), ..good() }).await.is(404, "not_found").says("nothing");

    fs::copy(dir.join("state"), dir.join("state.old"))?;
    import(good()).await.is(400, "invalid").says("state, state.old").advises("--vmstate");
    fs::remove_file(dir.join("state.old"))?;
    fs::copy(dir.join("mem"), dir.join("mem.old"))?;
    import(good()).await.is(400, "invalid").says("mem, mem.old").advises("--memory");
    fs::remove_file(dir.join("mem.old"))?;

    // What Firecracker says is passed on.
    let damaged = |name: &str, change: &dyn Fn(&mut Vec<u8>)| -> Result<()> {
        let mut bytes = fs::read(dir.join("state"))?;
        change(&mut bytes);
        Ok(fs::write(host.dir().join(name), bytes)?)
    };
    damaged("flipped", &|bytes| bytes[200] ^= 1)?;
    let vmstate = |name: &str| Some(host.dir().join(name).display().to_string());
    let flipped = ImportSnapshot { vmstate: vmstate("flipped"), ..good() };
    import(flipped).await.is(422, "incompatible").says("CRC64 validation failed").advises("damaged");
    damaged("short", &|bytes| bytes.truncate(4))?;
    let short = ImportSnapshot { vmstate: vmstate("short"), ..good() };
    import(short).await.is(422, "incompatible").says("too short").advises("copy it again");

    let memory = |name: &str, bytes: u64| -> Result<ImportSnapshot> {
        let path = host.dir().join(name);
        fs::copy(dir.join("mem"), &path)?;
        fs::File::options().write(true).open(&path)?.set_len(bytes)?;
        Ok(ImportSnapshot { memory: Some(path.display().to_string()), ..good() })
    };
    let shorter = memory("shorter", (plain::MEMORY_MIB - 1) << 20)?;
    import(shorter).await.is(422, "incompatible").says("possible file offset").advises("shorter");
    let odd = memory("odd", (plain::MEMORY_MIB << 20) - 5)?;
    import(odd).await.is(400, "invalid").says("not the whole memory").advises("copy it again");
    let longer = memory("longer", 256 << 20)?;
    import(longer).await.is(400, "invalid").says("the memory file has").advises("memory file");

    let with_agent = ImportSnapshot { agent: None, ..request(&dir, "agent") };
    let vsockless = Plain::save_bare(program, &host.dir().join("bare")).await?;
    let bare = ImportSnapshot { path: vsockless.dir.display().to_string(), ..with_agent };
    import(bare).await.is(400, "invalid").says("no vsock").advises("--no-agent");
    // A guest that names nothing at all is one like any other.
    client.import_snapshot(&request(&vsockless.dir, "bare")).await?;
    ticks_beyond(&host.fork_snapshot("bare", "bare", 1).await?[0], vsockless.tick).await?;
    host.vm("bare").delete().await?;

    fs::rename(plain.drives().join("data.img"), host.dir().join("aside"))?;
    import(good()).await.is(422, "incompatible").says("data.img").advises("put it where its path says");
    fs::rename(host.dir().join("aside"), plain.drives().join("data.img"))?;

    ensure!(host.snapshots().await?.len() == 1, "nothing is left but the one that worked");
    ensure!(fs::read_dir(host.data().join("imports"))?.next().is_none(), "where it was looked at is still there");
    ensure!(host.traces().processes.is_empty(), "{:?}", host.traces());
    client.import_snapshot(&good()).await?;
    import(good()).await.is(409, "already_exists").says("theirs").advises("another name");
    Ok(())
}

/// By file: the sum of what it holds, and when it was written last.
type Fingerprint = BTreeMap<PathBuf, (Vec<u8>, i64, i64)>;

fn fingerprint(files: &[PathBuf]) -> Result<Fingerprint> {
    let one = |path: &PathBuf| {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let meta = fs::metadata(path)?;
        Ok((path.clone(), (Sha256::digest(bytes).to_vec(), meta.mtime(), meta.mtime_nsec())))
    };
    files.iter().map(one).collect()
}

/// What its VMM has open: its own drives, and nothing of where it came from but the shared memory.
async fn has_only_its_own_drives(vm: &Vm<'_>, plain: &Plain) -> Result<()> {
    let pid = vm.vmm_pid().await?.context("it has a VMM")?;
    let open: Vec<PathBuf> =
        fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).collect();
    let own = vm.dir().await?;
    for drive in ["disks/root_a", "disks/data"] {
        ensure!(open.contains(&own.join(drive)), "{drive} of its own is not open: {open:?}");
    }
    let theirs = [plain.dir.clone(), plain.drives()];
    ensure!(!open.iter().any(|path| theirs.iter().any(|dir| path.starts_with(dir))), "it has theirs open: {open:?}");
    Ok(())
}

async fn ticks_beyond(vm: &Vm<'_>, tick: u64) -> Result<()> {
    let serial = vm.dir().await?.join("serial.log");
    eventually("its guest goes on", async || {
        Ok(last_tick(&fs::read_to_string(&serial).unwrap_or_default()).is_some_and(|now| now > tick + 1))
    })
    .await?;
    let text = fs::read_to_string(&serial)?;
    ensure!(!text.contains("tick 1\n"), "it went on, and did not begin anew: {text}");
    Ok(())
}

fn last_tick(text: &str) -> Option<u64> {
    text.lines().rev().find_map(|line| line.trim().strip_prefix("tick ")?.parse().ok())
}

/// The notes of an operation's steps; a step without one has an empty note.
async fn notes(host: &TestHost, vm: &Vm<'_>, op: &str) -> Result<BTreeMap<String, String>> {
    let timeline = host.client().timeline(&vm.info().await?.id, None).await?;
    let last = timeline.operations.into_iter().find(|timeline| timeline.op == op).context("it has a timeline")?;
    Ok(last.steps.into_iter().map(|step| (step.step, step.note.unwrap_or_default())).collect())
}
