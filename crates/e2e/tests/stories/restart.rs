//! An instance that ends by itself boots again, as its policy says.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hearth_api::instances::InstanceState;
use hearth_api::restart::{BlockedReason, Ended, RestartMode, RestartPolicy};
use hearth_e2e::{TestHost, eventually, story};

/// Fails so often, then stays: what it has written is on its disk, which it keeps.
fn fails(times: u32) -> Vec<String> {
    let script = format!(
        "echo x >> /tries; if [ $(wc -l < /tries) -le {times} ]; then echo not yet; exit 1; fi; echo stays; exec sleep infinity"
    );
    ["/bin/sh", "-c", &script].map(ToOwned::to_owned).into()
}

#[test]
fn a_program_that_fails_twice_is_booted_until_it_stays() {
    story(async |host| {
        host.import_counter().await?;
        let mut request = TestHost::request("stubborn", "counter:1");
        request.cmd = Some(fails(2));
        request.restart_policy = Some(RestartPolicy {
            policy: Some(RestartMode::OnFailure),
            backoff: Some("200ms".into()),
            max_attempts: Some(3),
            ..RestartPolicy::default()
        });
        let vm = host.create(&request).await?;
        eventually("it is in its third run", async || {
            let status = vm.info().await?.restart_status.unwrap_or_default();
            Ok(status.attempts == Some(2) && vm.info().await?.state == InstanceState::Running)
        })
        .await?;
        // Its VMM is about to be killed: what is only in the guest's memory would be lost.
        eventually("it has counted its third try", async || Ok(vm.sh("sync; wc -l < /tries").await? == "3")).await?;
        let shown = host.hearth(&["inspect", "stubborn"])?.ok()?;
        ensure!(shown.contains("on_failure, at most 3 times, after 200ms"), "{shown}");

        // It goes on from there under another daemon, which counts on.
        let pid = vm.vmm_pid().await?.context("a VMM")?;
        host.end_daemon()?;
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(killed.success(), "kill {pid}");
        host.start_daemon()?;
        eventually("it runs again", async || {
            let info = vm.info().await?;
            Ok(info.state == InstanceState::Running && info.restart_status.unwrap_or_default().attempts == Some(3))
        })
        .await?;
        // The program has been started, and counts its tries then.
        eventually("it has counted its fourth try", async || Ok(vm.sh("wc -l < /tries").await? == "4")).await?;

        vm.stop().await?;
        let status = vm.info().await?.restart_status.context("a status")?;
        assert_eq!(status.blocked_reason, Some(BlockedReason::ManualStop));
        Ok(())
    });
}

#[test]
fn a_vmm_s_end_is_noticed_at_once_with_what_was_last_on_the_console() {
    story(async |host| {
        let vm = host.boot("victim").await?;
        eventually("it has said something", async || Ok(vm.console().await?.contains("counter ready"))).await?;
        let pid = vm.vmm_pid().await?.context("a VMM")?;
        let began = Instant::now();
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(killed.success(), "kill {pid}");
        vm.wait(InstanceState::Stopped).await?;
        // The machine that runs stories may have much else to do; 100 ms are measured in the daemon's
        // own tests.
        ensure!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let end = vm.info().await?.end.context("how it ended")?;
        assert_eq!((end.of, end.signal, end.out_of_memory), (Ended::Vmm, Some(9), false));
        ensure!(end.console.iter().any(|line| line.contains("counter ready")), "{end:?}");
        Ok(())
    });
}

#[test]
fn a_daemon_that_is_told_to_stops_its_instances_at_its_end() {
    story(async |host| {
        let vm = host
            .boot_with("web", |request| {
                let always = RestartPolicy { policy: Some(RestartMode::Always), ..RestartPolicy::default() };
                request.restart_policy = Some(always);
            })
            .await?;
        let asleep = host.boot("asleep").await?;
        let count = asleep.count(3).await?;
        asleep.standby().await?;
        host.end_daemon()?;
        assert_eq!(host.traces().processes.len(), 1, "it runs on");

        let data = host.data().display().to_string();
        let serve = ["serve", "--data-dir", &data, "--listen", "127.0.0.1:0", "--stop-instances"];
        let mut daemon = host.hearth_command(&serve).envs(host.settings()).stderr(Stdio::piped()).spawn()?;
        let mut told = BufReader::new(daemon.stderr.take().context("its stderr")?).lines();
        let mut before = Vec::new();
        while !before.last().is_some_and(|line: &String| line.contains("ready on")) {
            before.push(told.next().with_context(|| format!("it ended: {before:#?}"))??);
        }
        let asked = std::process::Command::new("kill").args(["-TERM", &daemon.id().to_string()]).status()?;
        ensure!(asked.success(), "kill {}", daemon.id());
        let told: Vec<_> = told.collect::<Result<_, _>>()?;
        ensure!(daemon.wait()?.success(), "{told:#?}");
        assert_eq!(host.traces().processes.len(), 0, "{told:#?}");

        host.start_daemon()?;
        vm.is(InstanceState::Stopped).await?;
        let status = vm.info().await?.restart_status.context("a status")?;
        assert_eq!(status.blocked_reason, Some(BlockedReason::ManualStop));
        asleep.restore().await?;
        assert_eq!(asleep.count(0).await?, count);
        Ok(())
    });
}
