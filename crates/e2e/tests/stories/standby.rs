//! Standby and restore: the same instance, as if nothing had been.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use hearth_api::instances::InstanceState;
use hearth_e2e::{Count, Vm, slowness, story};

#[test]
fn a_program_goes_on_counting_where_it_stood() {
    story(async |host| {
        let vm = host.boot("counter").await?;
        let first = vm.count(5).await?;
        // The second time its memory is mapped from a bundle, which is another way to save it.
        for round in 1..=3 {
            vm.standby().await?;
            vm.restore().await?;
            assert_eq!(vm.count(1).await?, Count { count: 5 + round, nonce: first.nonce.clone() });
            assert_eq!(vm.info().await?.generation, Some(round));
        }
        Ok(())
    });
}

#[test]
fn files_are_as_they_were_left() {
    story(async |host| {
        let vm = host.boot("files").await?;
        vm.sh("echo on disk > /root/file; echo in memory > /dev/shm/file").await?;
        vm.standby().await?;
        vm.restore().await?;
        assert_eq!(vm.sh("cat /root/file /dev/shm/file").await?, "on disk\nin memory");
        vm.sh("echo later > /root/file; sync").await?;
        vm.standby().await?;
        vm.stop().await?;
        vm.start().await?;
        assert_eq!(vm.sh("cat /root/file").await?, "later", "memory is dropped, disks are not");
        Ok(())
    });
}

/// Fails unless the guest's clock is the host's, give or take the second in which it is asked, and
/// runs.
async fn clock_is_right(vm: &Vm<'_>) -> Result<()> {
    let guest: u64 = vm.sh("sleep 0.1; date +%s").await?.parse()?;
    let host = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    ensure!(
        guest.abs_diff(host) <= u64::from(slowness()),
        "{}: the guest's clock is {guest}, the host's {host}",
        vm.name
    );
    Ok(())
}

#[test]
fn the_clock_is_right_after_a_long_sleep() {
    story(async |host| {
        let vm = host.boot("sleeper").await?;
        clock_is_right(&vm).await?;
        let snapshot = vm.snapshot("old").await?;
        vm.standby().await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        vm.restore().await?;
        clock_is_right(&vm).await?;
        let forks = host.fork_snapshot(&snapshot.id, "late", 1).await?;
        clock_is_right(&forks[0]).await
    });
}

#[test]
fn what_is_so_already_is_no_error() {
    story(async |host| {
        let vm = host.boot("twice").await?;
        host.client().start("twice").await?;
        host.client().restore("twice").await?;
        vm.standby().await?;
        host.client().standby("twice").await?;
        vm.is(InstanceState::Standby).await?;
        vm.stop().await?;
        host.client().stop("twice").await?;
        vm.is(InstanceState::Stopped).await
    });
}
