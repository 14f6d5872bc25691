//! The daemon goes and comes; instances do not notice.

use anyhow::{Context, ensure};
use hearth_api::instances::InstanceState;
use hearth_api::recovery::{Recovery, RecoveryOutcome, VmmSeen};
use hearth_e2e::{Cli, story};

#[test]
fn instances_outlive_a_daemon_that_crashes() {
    story(async |host| {
        let booted = host.boot("booted").await?;
        let count = booted.count(5).await?;
        let fork = booted.fork("forked").await?;
        let asleep = host.boot("asleep").await?;
        asleep.count(9).await?;
        asleep.standby().await?;
        let stopped = booted.fork("stopped").await?;
        stopped.stop().await?;
        let pids = (booted.vmm_pid().await?, fork.vmm_pid().await?);

        host.crash_daemon()?;
        host.start_daemon()?;
        assert_eq!((booted.vmm_pid().await?, fork.vmm_pid().await?), pids, "the same VMMs");
        for twin in [&booted, &fork] {
            twin.is(InstanceState::Running).await?;
            let now = twin.count(1).await?;
            assert_eq!((now.nonce, now.count), (count.nonce.clone(), 6));
            twin.standby().await?;
            twin.restore().await?;
            assert_eq!(twin.count(1).await?.count, 7);
        }
        asleep.is(InstanceState::Standby).await?;
        asleep.restore().await?;
        assert_eq!(asleep.count(1).await?.count, 10);
        stopped.is(InstanceState::Stopped).await?;
        stopped.start().await
    });
}

#[test]
fn an_end_that_nobody_saw_is_found_afterwards() {
    story(async |host| {
        let vm = host.boot("victim").await?;
        let pid = vm.vmm_pid().await?.context("a VMM")?;
        host.crash_daemon()?;
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(killed.success(), "kill {pid}");
        host.start_daemon()?;
        vm.is(InstanceState::Stopped).await?;
        vm.start().await?;
        vm.count(1).await?;
        Ok(())
    });
}

#[test]
fn a_vmm_that_is_killed_stops_its_instance() {
    story(async |host| {
        let vm = host.boot("victim").await?;
        let pid = vm.vmm_pid().await?.context("a VMM")?;
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(killed.success(), "kill {pid}");
        vm.wait(InstanceState::Stopped).await?;
        let told = vm.info().await?.exit_message.unwrap_or_default();
        ensure!(told.contains("VMM"), "{told:?}");
        vm.start().await?;
        vm.count(1).await?;
        Ok(())
    });
}

#[test]
fn a_daemon_that_is_asked_to_end_drains() {
    story(async |host| {
        let vm = host.boot("worker").await?;
        let count = vm.count(5).await?;
        // A boot that is under way when the signal comes is carried out, and its caller told.
        let run = host.hearth_command(&["run", "--name", "late", "--size", "128MB", "counter:1"]).spawn()?;
        hearth_e2e::eventually("a boot is under way", async || Ok(host.traces().processes.len() == 2)).await?;
        host.end_daemon()?;
        let output = run.wait_with_output()?;
        ensure!(output.status.success(), "run ended with {}", output.status);
        assert_eq!(host.traces().processes.len(), 2, "instances outlive it");
        host.start_daemon()?;
        assert_eq!(vm.count(0).await?, count);
        assert_eq!(host.vm("late").count(1).await?.count, 1);
        Ok(())
    });
}

#[test]
fn what_a_crash_cuts_off_leaves_nothing() {
    story(async |host| {
        host.import_counter().await?;
        let mut run = host.hearth_command(&["run", "--name", "late", "--size", "128MB", "counter:1"]).spawn()?;
        hearth_e2e::eventually("a boot is under way", async || Ok(!host.traces().processes.is_empty())).await?;
        host.crash_daemon()?;
        ensure!(!run.wait()?.success(), "the caller is told");
        host.start_daemon()?;
        assert!(host.instances().await?.is_empty() && host.traces().no_instances(), "{:?}", host.traces());
        host.boot("late").await?.count(1).await?;
        Ok(())
    });
}

#[test]
fn what_a_start_did_about_each_instance_is_told() {
    story(async |host| {
        let vm = host.boot("goes-on").await?;
        host.boot("rests").await?.standby().await?;
        let victim = host.boot("victim").await?;
        let pid = victim.vmm_pid().await?.context("a VMM")?;
        // A boot that is cut off, and half an image.
        let mut run = host.hearth_command(&["run", "--name", "late", "--size", "128MB", "counter:1"]).spawn()?;
        hearth_e2e::eventually("a boot is under way", async || Ok(host.traces().processes.len() == 3)).await?;
        host.crash_daemon()?;
        ensure!(!run.wait()?.success(), "the caller is told");
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(killed.success(), "kill {pid}");
        let half = host.data().join("images/.import-half");
        std::fs::create_dir(&half)?;
        let nobody = host.hearth(&["doctor", "--recovery"])?;
        ensure!(nobody.code == 12 && nobody.stderr.contains("hint: start it"), "{nobody:?}");
        host.start_daemon()?;

        let told: Recovery = serde_json::from_value(host.hearth(&["doctor", "--recovery", "--json"])?.json()?)?;
        let done: Vec<_> = told.instances.iter().map(|one| (one.name.as_str(), one.vmm, one.outcome)).collect();
        let expected = [
            ("late", VmmSeen::Gone, RecoveryOutcome::Removed),
            ("victim", VmmSeen::Gone, RecoveryOutcome::ExitNoted),
            ("goes-on", VmmSeen::Alive, RecoveryOutcome::Adopted),
            ("rests", VmmSeen::Gone, RecoveryOutcome::Rests),
        ];
        assert_eq!(done, expected, "{told:#?}");
        assert_eq!(told.instances[0].cut_off.as_deref(), Some("create"));
        ensure!(told.swept.images == 1 && told.swept.failed.is_empty() && !half.exists(), "{:?}", told.swept);
        let words = host.hearth(&["doctor", "--recovery"])?.stdout;
        ensure!(words.contains("adopted 1, exit_noted 1, removed 1, rests 1\n"), "{words}");
        vm.count(1).await?;
        Ok(())
    });
}

#[test]
fn one_daemon_to_a_data_directory() {
    story(async |host| {
        let data = host.data().display().to_string();
        let Cli { code, stderr, .. } = host.hearth(&["serve", "--data-dir", &data, "--listen", "127.0.0.1:0"])?;
        ensure!(code != 0 && stderr.contains(&data), "{code}: {stderr}");
        Ok(())
    });
}
