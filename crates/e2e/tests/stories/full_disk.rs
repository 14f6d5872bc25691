//! A disk that is full: what is said, and that what was there goes on.

use std::collections::BTreeSet;

use anyhow::{bail, ensure};
use hearth_api::client::ClientError;
use hearth_api::images::ImportImage;
use hearth_api::instances::{ForkInstance, InstanceState};
use hearth_api::snapshots::{CreateSnapshot, SnapshotKind};
use hearth_e2e::{Setup, TestHost, TestImage, refused};
use serde_json::json;

use crate::firecracker::{fail, simulated};

#[test]
fn an_image_that_does_not_fit() {
    Setup::default().disk(16).expect_log("request failed").story(async |host| {
        host.fill_disk(1 << 20)?;
        let path = TestImage::busybox()?.write_oci(&host.dir().join("image"))?.display().to_string();
        let request = ImportImage { path, name: "large:1".into(), tags: None };
        let refusal = refused(host.client().import_image(&request).await);
        refusal.is(507, "exhausted").says("large:1").advises("");
        assert!(host.traces().images.is_empty(), "{:?}", host.traces());
        Ok(())
    });
}

#[test]
fn an_instance_that_cannot_be_saved_runs_on() {
    Setup::default().disk(640).expect_log("operation failed").story(async |host| {
        let base = host.boot("base").await?;
        base.count(1).await?;
        base.standby().await?;
        let fork = base.fork("fork").await?;
        fork.sh("head -c 8000000 /dev/urandom > /dev/shm/ballast").await?;
        // Room for records, not for memory: that is seen before the guest is paused.
        host.fill_disk(4 << 20)?;
        refused(host.client().standby("fork").await).is(507, "exhausted").says("fork").advises("remove");
        fork.is(InstanceState::Running).await?;
        assert_eq!(fork.count(1).await?.count, 2);
        let request = ForkInstance { name: "more".into(), from_running: Some(true), ..ForkInstance::default() };
        refused(host.client().fork("fork", &request).await).is(507, "exhausted");
        assert_eq!(host.instances().await?.len(), 2);

        host.free_disk()?;
        fork.standby().await?;
        fork.restore().await?;
        assert_eq!(fork.count(1).await?.count, 3);
        Ok(())
    });
}

/// A twentieth of 640 MiB is the reserve: with less than that left, the disk is not full yet.
#[test]
fn of_a_disk_the_reserve_is_for_what_is_there() {
    Setup::default().disk(640).story(async |host| {
        let (client, base) = (host.client(), host.boot("base").await?);
        base.count(1).await?;
        base.standby().await?;
        let web = base.fork("web").await?;
        host.fill_disk(28 << 20)?;
        assert_eq!(client.resources().await?.disk.available, 0);

        let says = "not enough disk space";
        let create = client.create_instance(&TestHost::request("more", "counter:1")).await;
        refused(create).is(507, "exhausted").says("create more").says(says).advises("remove");
        let fork = ForkInstance { name: "more".into(), ..ForkInstance::default() };
        refused(client.fork("base", &fork).await).is(507, "exhausted").says("fork more").says("with a reserve of");
        let snapshot = CreateSnapshot { kind: SnapshotKind::Standby, name: None, tags: None };
        refused(client.create_snapshot("base", &snapshot).await).is(507, "exhausted").says(says);
        refused(client.standby("web").await).is(507, "exhausted").says("standby web").says(says);
        let path = TestImage::busybox()?.write_oci(&host.dir().join("image"))?.display().to_string();
        let image = ImportImage { path, name: "more:1".into(), tags: None };
        host.expect_log("request failed");
        refused(client.import_image(&image).await).is(507, "exhausted").says(says);
        assert_eq!((host.instances().await?.len(), host.traces().images.len()), (2, 1));
        web.is(InstanceState::Running).await?;

        // What is there is brought back, stopped and removed.
        assert_eq!(web.count(1).await?.count, 2);
        base.restore().await?;
        assert_eq!(base.count(1).await?.count, 2);
        web.stop().await?;
        web.delete().await?;
        host.free_disk()?;
        base.standby().await?;
        base.fork("web").await?;
        Ok(())
    });
}

/// Not a block is free. Records have room of their own: what is answered is there after a kill.
#[test]
fn what_is_answered_on_a_full_disk_is_there_after_a_kill() {
    // The instances' own logs have no room.
    simulated().disk(256).expect_log("log could not be").expect_log("operation failed").story(async |host| {
        let names = ["starts", "stops", "pauses", "goes", "sleeps"];
        let mut guests = Vec::new();
        for name in names {
            let vm = host.boot_with(name, |request| request.network = None).await?;
            vm.run(&["write", "/file", name]).await?;
            guests.push(vm);
        }
        let [starts, stops, pauses, goes, sleeps] = &guests[..] else { bail!("five") };
        starts.stop().await?;
        sleeps.standby().await?;
        let killed = || {
            host.crash_daemon()?;
            host.fill_disk(0)?;
            host.start_daemon()
        };
        host.fill_disk(0)?;
        for _ in 0..3 {
            starts.start().await?;
            stops.stop().await?;
            killed()?;
            starts.is(InstanceState::Running).await?;
            stops.is(InstanceState::Stopped).await?;
            starts.stop().await?;
            stops.start().await?;
            killed()?;
            starts.is(InstanceState::Stopped).await?;
            stops.is(InstanceState::Running).await?;
        }
        // Its overlay would have to be copied. That it rests again is answered, too.
        refused(host.client().restore("sleeps").await).is(507, "exhausted").says("sleeps").says("overlay");
        pauses.standby().await.expect_err("its memory has no room");
        goes.delete().await?;
        killed()?;
        sleeps.is(InstanceState::Standby).await?;
        pauses.is(InstanceState::Running).await?;
        ensure!(pauses.run(&["cat", "/file"]).await?.stdout.trim() == "pauses", "it has forgotten");
        ensure!(host.instances().await?.len() == 4, "what was removed is there again");
        // A daemon that ends keeps the room for the next one.
        host.end_daemon()?;
        host.fill_disk(0)?;
        host.start_daemon()?;
        stops.stop().await?;
        host.free_disk()?;
        sleeps.restore().await?;
        ensure!(sleeps.run(&["cat", "/file"]).await?.stdout.trim() == "sleeps", "it has forgotten");
        Ok(())
    });
}

/// However little room there is, and whatever finds none, a clone or the VMM's sockets: it is the disk that is
/// blamed, and no snapshot.
#[test]
fn no_snapshot_is_blamed_for_a_full_disk() {
    // With so few files that can be made, each that a restore makes is the first for which there is no room.
    simulated().disk(400).expect_log("").story(async |host| {
        let base = host.boot_with("base", |request| request.network = None).await?;
        base.run(&["write", "/file", "known"]).await?;
        base.standby().await?;
        let ballast = host.data().join("ballast");
        std::fs::create_dir(&ballast)?;
        let mut made = 0..;
        let mut fill = || made.by_ref().find(|nth| std::fs::write(ballast.join(nth.to_string()), "").is_err());
        let (mut last, mut restored, mut steps) = (0, 0, BTreeSet::new());
        for left in 0..8 {
            fill();
            for _ in 0..left {
                while std::fs::remove_file(ballast.join(last.to_string())).is_err() {
                    last += 1;
                }
            }
            match host.client().restore("base").await {
                Ok(_) => {
                    restored += 1;
                    base.stop().await?;
                    break;
                }
                Err(error) => {
                    if let ClientError::Api(error) = &error {
                        steps.insert(error.body.step.clone());
                    }
                    refused(Err::<(), _>(error)).is(507, "exhausted").says("base").advises("free space");
                    base.is(InstanceState::Standby).await?;
                }
            }
        }
        eprintln!("no room in {steps:?}");
        ensure!(!steps.is_empty() && restored == 1, "restored {restored} times");
        std::fs::remove_dir_all(ballast)?;

        // One that ends without a word.
        let mute = json!([{ "on": "listen", "do": "exit" }]);
        fail(host, &mute)?;
        refused(host.client().start("base").await).is(502, "vmm_failed");
        host.fill_disk(0)?;
        refused(host.client().start("base").await).is(507, "exhausted").says("full").advises("free space");
        host.free_disk()?;
        fail(host, &json!([]))?;
        base.start().await
    });
}
