//! Forks: new instances from one that was, each itself from its first moment on.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use hearth_api::instances::{ForkInstance, InstanceState, TargetState};
use hearth_e2e::{Vm, story};

#[test]
fn ten_forks_share_a_past_and_no_future() {
    story(async |host| {
        let base = host.boot("base").await?;
        let past = base.count(100).await?;
        base.sh("echo before > /root/file").await?;
        base.standby().await?;
        let forks = host.fork("base", "child", 10).await?;
        assert_eq!(forks.len(), 10);
        for (number, fork) in (1_u64..).zip(&forks) {
            assert_eq!(
                fork.sh("cat /root/file; hostname; echo $(hostname) > /root/file").await?,
                format!("before\n{}", fork.name)
            );
            let count = fork.count(number).await?;
            assert_eq!((count.nonce, count.count), (past.nonce.clone(), 100 + number));
        }
        for (number, fork) in (1_u64..).zip(&forks) {
            assert_eq!(fork.sh("cat /root/file").await?, fork.name);
            assert_eq!(fork.count(0).await?.count, 100 + number);
        }
        base.is(InstanceState::Standby).await?;
        base.restore().await?;
        assert_eq!((base.count(0).await?, base.sh("cat /root/file").await?.as_str()), (past, "before"));
        Ok(())
    });
}

#[test]
fn a_running_instance_is_forked_and_runs_on() {
    story(async |host| {
        let base = host.boot("base").await?;
        let past = base.count(7).await?;
        let fork = base.fork("fork").await?;
        base.is(InstanceState::Running).await?;
        assert_eq!(base.count(1).await?.count, 8);
        let fork_of_fork = fork.fork("fork-of-fork").await?;
        for twin in [&fork, &fork_of_fork] {
            let count = twin.count(10).await?;
            assert_eq!((count.nonce, count.count), (past.nonce.clone(), 17), "{}", twin.name);
        }
        assert_eq!(base.count(0).await?.count, 8);
        Ok(())
    });
}

#[test]
fn a_fork_is_saved_and_forked_again() {
    story(async |host| {
        let first = host.boot("first").await?;
        let nonce = first.count(1).await?.nonce;
        first.sh("echo first > /root/first").await?;
        first.standby().await?;

        let second = first.fork("second").await?;
        second.count(10).await?;
        second.sh("echo second > /root/second; head -c 3000000 /dev/urandom > /dev/shm/ballast").await?;
        let ballast = second.sh("md5sum < /dev/shm/ballast").await?;
        second.standby().await?;

        let third = second.fork("third").await?;
        assert_eq!(third.count(100).await?.count, 111);
        let snapshot = third.snapshot("chained").await?;
        let fourth = host.fork_snapshot(&snapshot.id, "fourth", 1).await?.remove(0);
        for ancestor in [&first, &second, &third] {
            ancestor.delete().await?;
        }
        host.client().delete_snapshot(&snapshot.id).await?;

        fourth.standby().await?;
        fourth.restore().await?;
        let count = fourth.count(1000).await?;
        assert_eq!((count.nonce, count.count), (nonce, 1111));
        assert_eq!(
            fourth.sh("cat /root/first /root/second; md5sum < /dev/shm/ballast").await?,
            format!("first\nsecond\n{ballast}")
        );
        Ok(())
    });
}

/// Everything of a guest that must not be as in its twin.
async fn identity(vm: &Vm<'_>) -> Result<Vec<String>> {
    let script = "hostname; cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | md5sum";
    Ok(vm.sh(script).await?.lines().map(str::to_owned).collect())
}

#[test]
fn forks_are_not_each_other() {
    story(async |host| {
        host.boot("base").await?.standby().await?;
        let forks = host.fork("base", "twin", 2).await?;
        let (a, b) = (identity(&forks[0]).await?, identity(&forks[1]).await?);
        assert_eq!((a.len(), b.len()), (3, 3));
        let all: BTreeSet<&String> = a.iter().chain(&b).collect();
        assert_eq!(all.len(), 6, "{a:?} and {b:?} share something");
        ensure!(forks[0].vmm_pid().await? != forks[1].vmm_pid().await?, "one VMM for two");
        Ok(())
    });
}

#[test]
fn a_fork_rests_where_it_is_told_to() {
    story(async |host| {
        let base = host.boot("base").await?;
        base.count(3).await?;
        base.sh("echo here > /root/file; sync").await?;
        base.standby().await?;
        let fork =
            |name: &str, target_state| ForkInstance { name: name.into(), target_state, ..ForkInstance::default() };
        for (name, target, state) in [
            ("same", None, InstanceState::Standby),
            ("cold", Some(TargetState::Stopped), InstanceState::Stopped),
            ("warm", Some(TargetState::Running), InstanceState::Running),
        ] {
            host.client().fork("base", &fork(name, target)).await?;
            host.vm(name).is(state).await?;
        }
        let (same, cold) = (host.vm("same"), host.vm("cold"));
        same.restore().await?;
        assert_eq!(same.count(0).await?.count, 3);
        cold.start().await?;
        assert_eq!((cold.count(0).await?.count, cold.sh("cat /root/file").await?.as_str()), (0, "here"));
        Ok(())
    });
}

#[test]
fn a_stopped_instance_is_forked_by_its_disk() {
    story(async |host| {
        let base = host.boot("base").await?;
        base.sh("echo here > /root/file; sync").await?;
        base.stop().await?;
        host.client().fork("base", &ForkInstance { name: "copy".into(), ..ForkInstance::default() }).await?;
        let copy = host.vm("copy");
        copy.is(InstanceState::Stopped).await?;
        base.delete().await?;
        copy.start().await?;
        assert_eq!(copy.sh("cat /root/file").await?, "here");
        Ok(())
    });
}
