//! Who a guest is: a fork shares nothing with its source that says so, from the moment it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use hearth_api::instances::{ForkInstance, InstanceState, TargetState};
use hearth_e2e::{Asked, PROBE, Setup, TestHost, TestImage, Vm, clock, eventually, probe, refused, slowness};

const IMAGE: &str = "keys:1";

/// What the image brings that no two guests may share.
const BROUGHT: &str = "the image's own";

/// Stands in for OpenSSH's: another key in the file after `-f`.
const KEYGEN: &str = r#"#!/bin/sh
while [ "$1" != -f ]; do shift; done
head -c 32 /dev/urandom | md5sum > "$2"
cp "$2" "$2.pub"
"#;

/// Notes that it ran, and who it is; fails in a guest called `unlucky`.
const HOOK: &str = r#"#!/bin/sh
echo "${0##*/} $HEARTH_HOSTNAME $HEARTH_INSTANCE_ID $HEARTH_GENERATION ${ROLE:-none}" | tee -a /root/hooks
case $HEARTH_HOSTNAME in unlucky) echo no luck; exit 3 ;; esac
"#;

/// A host whose guests have time for their hooks, however busy it is.
fn patient_story(tell: impl AsyncFnOnce(&TestHost) -> Result<()>) {
    Setup::default().env("HEARTH_TIMEOUTS_HOOKS_S", "60").story(tell);
}

async fn import(host: &TestHost) -> Result<()> {
    let mut image = TestImage::counter()?.dir("var/lib/systemd", 0o755, 0).file("etc/machine-id", 0o444, "");
    for key in ["etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_ed25519_key.pub", "var/lib/systemd/random-seed"] {
        image = image.file(key, 0o600, format!("{BROUGHT}\n"));
    }
    for hook in ["etc/hearth/on-fork.d/10-first", "etc/hearth/on-fork.d/20-second", "etc/hearth/on-restore.d/30-back"] {
        image = image.file(hook, 0o755, HOOK);
    }
    let image = image.file("bin/ssh-keygen", 0o755, KEYGEN).file(PROBE, 0o755, probe());
    host.import(&image, IMAGE).await?;
    Ok(())
}

async fn boot<'h>(host: &'h TestHost, name: &str) -> Result<Vm<'h>> {
    import(host).await?;
    Ok(host.create(&TestHost::request(name, IMAGE)).await?)
}

/// Everything of a guest that must not be as in another, line by line.
const ITSELF: &str = "hostname
cat /proc/sys/kernel/hostname /etc/hostname | sort -u | sed s/^/files-/
cat /etc/machine-id
cat /etc/ssh/ssh_host_ed25519_key
md5sum < /var/lib/systemd/random-seed
grep -o '\"instance_id\":\"[^\"]*\"' /run/hearth/instance.json
head -c 32 /dev/urandom | md5sum
probe | head -c 32 | md5sum
cat /proc/sys/kernel/random/uuid";

async fn itself(vm: &Vm<'_>) -> Result<Vec<String>> {
    Ok(vm.sh(ITSELF).await?.lines().map(str::to_owned).collect())
}

/// How far the guest's clock is from the host's, at least, and how long it took to ask.
async fn clock_is_off(vm: &Vm<'_>) -> Result<(Duration, Duration)> {
    let (said, asked) = Asked::of(vm.bytes(&["probe"])).await?;
    Ok((asked.off_at_least(clock(&said)?), asked.took()))
}

/// What the timeline says of the guest's last refresh.
async fn refresh_note(host: &TestHost, vm: &Vm<'_>) -> Result<String> {
    let operation = host.client().timeline(&vm.name, Some(1)).await?.operations.remove(0);
    let step = operation.steps.into_iter().find(|step| step.step == "refresh identity");
    let note = step.and_then(|step| step.note).context("a refresh with a note")?;
    eprintln!("{}: {note}", vm.name);
    Ok(note)
}

#[test]
fn eight_forks_at_once_are_each_themselves() {
    patient_story(async |host| {
        let base = boot(host, "base").await?;
        let past = itself(&base).await?;
        assert!(past.contains(&BROUGHT.to_owned()), "the image's key is its own, until it is forked: {past:?}");
        // As if the snapshot were an hour old when it is forked.
        base.sh("date -s @$(($(date +%s) - 3600))").await?;
        base.standby().await?;

        let request = ForkInstance {
            name: "child".into(),
            target_state: Some(TargetState::Running),
            count: Some(8),
            env: Some([("ROLE".to_owned(), "worker".to_owned())].into()),
            tags: Some([("of".to_owned(), "base".to_owned())].into()),
            ..ForkInstance::default()
        };
        let made = host.client().fork("base", &request).await?;
        ensure!(made.errors.is_empty(), "{:?}", made.errors);
        let forks: Vec<Vm<'_>> = made.instances.iter().map(|fork| host.vm(&fork.name)).collect();
        assert_eq!(forks.len(), 8);

        let seen = try_join_all(forks.iter().map(itself)).await?;
        for line in 0..past.len() {
            let all: BTreeSet<&String> = seen.iter().chain([&past]).map(|guest| &guest[line]).collect();
            assert_eq!(all.len(), 9, "two share line {line}: {all:?}");
        }
        for fork in &forks {
            let (off, asked) = clock_is_off(fork).await?;
            ensure!(off <= Duration::from_millis(50) * slowness(), "{}: the clock is {off:?} off", fork.name);
            ensure!(asked < Duration::from_secs(60), "{}: asked for {asked:?}", fork.name);
            let info = fork.info().await?;
            assert_eq!(info.tags.and_then(|tags| tags.get("of").cloned()).as_deref(), Some("base"));
            assert_eq!((info.generation, fork.sh("cat /run/hearth/generation").await?.trim()), (Some(1), "1"));
            let ran = |hook: &str| format!("{hook} {} {} 1 worker", fork.name, info.id);
            let hooks = ["10-first", "20-second", "30-back"].map(ran).join("\n");
            assert_eq!(fork.sh("cat /root/hooks").await?, hooks, "each hook ran once");
            assert_eq!(fork.sh(". /run/hearth/env; echo $ROLE; stat -c %a /run/hearth/env").await?, "worker\n600");
            assert_eq!(fork.sh("env | grep ^ROLE").await?, "ROLE=worker");
            let note = refresh_note(host, fork).await?;
            ensure!(note.starts_with("generation 1, ") && note.ends_with(", a fork, 3 hooks"), "{note}");
            let said = format!("[on-fork.d/10-first] {}", ran("10-first"));
            eventually("the hook's words are in the log", async || Ok(fork.console().await?.contains(&said))).await?;
        }

        // Coming back as itself, the source keeps its keys, and only what is for restores runs.
        base.restore().await?;
        let now = itself(&base).await?;
        assert_eq!(past[..6], now[..6]);
        let hooks = base.sh("cat /root/hooks").await?;
        assert_eq!(hooks, format!("30-back base {} 1 none", base.info().await?.id));
        let note = refresh_note(host, &base).await?;
        ensure!(note.contains(" page faults, ") && note.ends_with(", 1 hook"), "{note}");
        let (off, _) = clock_is_off(&base).await?;
        ensure!(off <= Duration::from_millis(50) * slowness(), "the source's clock is {off:?} off");
        Ok(())
    });
}

#[test]
fn a_fork_whose_hook_fails_is_not_made_and_the_hook_is_named() {
    patient_story(async |host| {
        host.expect_log("operation failed");
        boot(host, "base").await?.standby().await?;
        let running = Some(TargetState::Running);
        let fork = |name: &str| ForkInstance { name: name.into(), target_state: running, ..ForkInstance::default() };
        let refusal = refused(host.client().fork("base", &fork("unlucky")).await).is(502, "guest_failed");
        assert_eq!(refusal.0.body.step.as_deref(), Some("refresh identity"));
        refusal.says("run hook /etc/hearth/on-fork.d/10-first: exited with code 3; it said: no luck");
        assert_eq!((host.instances().await?.len(), host.traces().processes.len()), (1, 0), "nothing of it is left");
        // The image's mistake costs nobody else anything.
        host.client().fork("base", &fork("lucky")).await?;
        host.vm("lucky").is(InstanceState::Running).await
    });
}

#[test]
fn a_stopped_fork_boots_as_itself() {
    patient_story(async |host| {
        let base = boot(host, "base").await?;
        base.sh("sync").await?;
        base.stop().await?;
        let copy = ForkInstance {
            name: "copy".into(),
            env: Some([("ROLE".to_owned(), "copy".to_owned())].into()),
            ..ForkInstance::default()
        };
        host.client().fork("base", &copy).await?;
        let copy = host.vm("copy");
        copy.start().await?;
        base.start().await?;
        let (own, other) = (itself(&copy).await?, itself(&base).await?);
        for (own, other) in own.iter().zip(&other) {
            assert_ne!(own, other);
        }
        let hooks = copy.sh("cat /root/hooks; tr '\\0' '\\n' < /proc/$(pidof counter)/environ | grep ROLE").await?;
        let id = copy.info().await?.id;
        assert_eq!(hooks, format!("10-first copy {id} 0 copy\n20-second copy {id} 0 copy\nROLE=copy"));
        assert_eq!(base.sh("cat /root/hooks 2>/dev/null; echo none").await?, "none");
        Ok(())
    });
}
