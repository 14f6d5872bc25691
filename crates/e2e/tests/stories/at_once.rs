//! Many callers, impatient callers: one thing at a time happens to an instance, and wholly.

use std::time::Duration;

use anyhow::ensure;
use futures_util::future::join_all;
use hearth_api::instances::InstanceState;
use hearth_e2e::{TestHost, eventually, refused, story};

#[test]
fn ten_callers_restore_one_instance() {
    story(async |host| {
        let vm = host.boot("web").await?;
        let count = vm.count(5).await?;
        vm.standby().await?;
        let client = host.client();
        let answers = join_all((0..10).map(|_| client.restore("web"))).await;
        let done = answers.iter().filter(|answer| answer.is_ok()).count();
        ensure!(done >= 1, "nobody restored it: {answers:?}");
        for refusal in answers.into_iter().filter(Result::is_err) {
            refused(refusal).is(409, "busy").says("web").advises("wait");
        }
        assert_eq!(host.traces().processes.len(), 1, "{:?}", host.traces());
        assert_eq!(vm.count(0).await?, count);
        Ok(())
    });
}

#[test]
fn a_caller_that_hangs_up_stops_nothing() {
    story(async |host| {
        host.import_counter().await?;
        let (client, request) = (host.client(), TestHost::request("web", "counter:1"));
        let hurried = tokio::time::timeout(Duration::from_millis(300), client.create_instance(&request)).await;
        ensure!(hurried.is_err(), "it booted in no time: {hurried:?}");
        let vm = host.vm("web");
        vm.wait(InstanceState::Running).await?;
        vm.count(1).await?;
        let hurried = tokio::time::timeout(Duration::from_millis(1), host.client().standby("web")).await;
        ensure!(hurried.is_err(), "it slept in no time: {hurried:?}");
        let asleep = async || Ok(vm.info().await?.state != InstanceState::Running || vm.info().await?.busy.is_none());
        eventually("it is done or was never asked", asleep).await?;
        Ok(())
    });
}

#[test]
fn an_instance_that_comes_up_is_busy() {
    story(async |host| {
        host.import_counter().await?;
        let (client, request) = (host.client(), TestHost::request("web", "counter:1"));
        let boot = client.create_instance(&request);
        let meddle = async {
            eventually("it is known", async || Ok(!host.instances().await?.is_empty())).await?;
            let vm = host.vm("web");
            vm.is(InstanceState::Initializing).await?;
            refused(host.client().standby("web").await).is(409, "busy").says("web").advises("create");
            refused(host.client().create_instance(&request).await).is(409, "already_exists").says("web");
            anyhow::Ok(())
        };
        let (booted, meddled) = futures_util::future::join(boot, meddle).await;
        meddled?;
        assert_eq!(booted?.state, InstanceState::Running);
        Ok(())
    });
}
