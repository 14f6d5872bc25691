//! Snapshots: a state that stays, whatever becomes of the instance that it was of.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::ensure;
use hearth_api::Tags;
use hearth_api::instances::InstanceState;
use hearth_api::snapshots::{CreateSnapshot, ForkSnapshot, ListSnapshots, SnapshotKind};
use hearth_e2e::{eventually, refused, story};

#[test]
fn a_snapshot_is_made_listed_and_removed() {
    story(async |host| {
        let vm = host.boot("web").await?;
        let tags: Tags = [("team".to_owned(), "red".to_owned())].into();
        let request =
            CreateSnapshot { kind: SnapshotKind::Standby, name: Some("one".into()), tags: Some(tags.clone()) };
        let made = host.client().create_snapshot("web", &request).await?;
        vm.is(InstanceState::Running).await?;
        assert_eq!(
            (made.name.as_deref(), made.kind, made.source_instance_name.as_str()),
            (Some("one"), SnapshotKind::Standby, "web")
        );
        ensure!(made.size_bytes > 1 << 20, "{made:?}");
        assert_eq!(host.client().snapshot(&made.id).await?.id, made.id);
        assert_eq!(host.client().snapshot("one").await?.id, made.id);

        let other = vm.snapshot("two").await?;
        let list = async |query: ListSnapshots, tags: &Tags| -> anyhow::Result<Vec<String>> {
            Ok(host.client().snapshots(&query, tags).await?.into_iter().map(|snapshot| snapshot.id).collect())
        };
        assert_eq!(list(ListSnapshots::default(), &Tags::new()).await?.len(), 2);
        assert_eq!(list(ListSnapshots::default(), &tags).await?, std::slice::from_ref(&made.id));
        let named = ListSnapshots { name: Some("two".into()), ..ListSnapshots::default() };
        assert_eq!(list(named, &Tags::new()).await?, [other.id]);
        let stopped = ListSnapshots { kind: Some(SnapshotKind::Stopped), ..ListSnapshots::default() };
        assert!(list(stopped, &Tags::new()).await?.is_empty());

        host.client().delete_snapshot("one").await?;
        refused(host.client().snapshot(&made.id).await).is(404, "not_found").says(&made.id);
        ensure!(!host.data().join("snapshots").join(&made.id).exists(), "its bundle is still there");
        Ok(())
    });
}

#[test]
fn an_instance_goes_back_to_its_snapshot() {
    story(async |host| {
        let vm = host.boot("web").await?;
        let then = vm.count(5).await?;
        vm.sh("echo then > /root/file").await?;
        vm.snapshot("then").await?;
        vm.count(5).await?;
        vm.sh("echo later > /root/file; echo new > /root/new").await?;
        refused(host.client().restore_snapshot("web", "then", &Default::default()).await)
            .is(409, "wrong_state")
            .says("web")
            .advises("standby");

        vm.standby().await?;
        vm.revert("then").await?;
        vm.is(InstanceState::Running).await?;
        assert_eq!(vm.count(0).await?, then);
        assert_eq!(vm.sh("cat /root/file; ls /root").await?, "then\nfile");
        // And once more, from stopped: the snapshot is as it was.
        vm.count(1).await?;
        vm.stop().await?;
        vm.revert("then").await?;
        assert_eq!(vm.count(0).await?, then);
        Ok(())
    });
}

#[test]
fn a_snapshot_of_a_stopped_instance_is_its_disk() {
    story(async |host| {
        let vm = host.boot("web").await?;
        vm.sh("echo then > /root/file").await?;
        vm.stop().await?;
        let request = CreateSnapshot { kind: SnapshotKind::Stopped, name: Some("cold".into()), tags: None };
        let cold = host.client().create_snapshot("web", &request).await?;
        vm.start().await?;
        vm.sh("echo later > /root/file").await?;
        vm.stop().await?;
        vm.revert("cold").await?;
        vm.is(InstanceState::Stopped).await?;
        let warm = CreateSnapshot { kind: SnapshotKind::Standby, name: None, tags: None };
        refused(host.client().create_snapshot("web", &warm).await).is(409, "wrong_state").says("web");
        vm.start().await?;
        assert_eq!(vm.sh("cat /root/file").await?, "then");
        assert_eq!(cold.kind, SnapshotKind::Stopped);
        Ok(())
    });
}

#[test]
fn forks_outlive_all_that_they_came_from() {
    story(async |host| {
        let base = host.boot("base").await?;
        base.count(5).await?;
        let snapshot = base.snapshot("seed").await?;
        let forks = host.fork_snapshot("seed", "fork", 3).await?;
        host.client().delete_snapshot(&snapshot.id).await?;
        host.client().delete_image("counter:1").await?;
        base.delete().await?;
        assert_eq!(host.traces().images, Vec::<String>::new());

        for fork in &forks {
            assert_eq!(fork.count(1).await?.count, 6);
            fork.standby().await?;
        }
        for fork in &forks {
            fork.restore().await?;
            assert_eq!(fork.count(1).await?.count, 7);
            fork.sh("md5sum /bin/busybox").await?;
        }
        forks[0].stop().await?;
        forks[0].start().await?;
        assert_eq!(forks[0].count(1).await?.count, 1);
        Ok(())
    });
}

#[test]
fn a_bundle_that_was_damaged_is_not_loaded() {
    story(async |host| {
        host.expect_log("operation failed");
        let vm = host.boot("web").await?;
        vm.count(5).await?;
        let snapshot = vm.snapshot("one").await?;
        let bundle = host.data().join("snapshots").join(&snapshot.id);
        for file in ["memory", "vmstate"] {
            let path = bundle.join(file);
            let size = std::fs::metadata(&path)?.len();
            let shorter = std::fs::OpenOptions::new().write(true).open(&path)?;
            shorter.set_len(size / 2)?;
            let fork = ForkSnapshot { name: "fork".into(), ..ForkSnapshot::default() };
            refused(host.client().fork_snapshot("one", &fork).await).is(500, "corrupt").says(&snapshot.id).advises("");
            assert_eq!((host.instances().await?.len(), host.traces().processes.len()), (1, 1));
            shorter.set_len(size)?;
        }
        vm.count(1).await?;
        Ok(())
    });
}

#[test]
fn a_flipped_bit_in_memory_is_found_by_verify() {
    story(async |host| {
        host.expect_log("operation failed");
        host.expect_log("request failed");
        let vm = host.boot("web").await?;
        vm.count(5).await?;
        let snapshot = vm.snapshot("one").await?;
        let bundle = host.data().join("snapshots").join(&snapshot.id);
        eventually("the snapshot has its checksums", async || Ok(bundle.join("settled.json").exists())).await?;
        host.client().verify_snapshot("one").await?;

        // In the kernel, which is never a hole; nothing that is checked at a load changes.
        let flip = |path: &Path| -> std::io::Result<()> {
            let memory = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
            let mut byte = [0];
            memory.read_exact_at(&mut byte, 20 << 20)?;
            memory.write_all_at(&[byte[0] ^ 1], 20 << 20)
        };
        flip(&bundle.join("memory"))?;
        let remedy = format!("put memory back from a backup and run `hearth snapshot verify {}`", snapshot.id);
        refused(host.client().verify_snapshot("one").await)
            .is(500, "corrupt")
            .says("memory of snapshot")
            .advises(&remedy);
        let fork = ForkSnapshot { name: "fork".into(), ..ForkSnapshot::default() };
        refused(host.client().fork_snapshot("one", &fork).await)
            .is(500, "corrupt")
            .says("memory of snapshot")
            .advises(&remedy);
        assert_eq!((host.instances().await?.len(), host.traces().processes.len()), (1, 1));

        flip(&bundle.join("memory"))?;
        host.client().verify_snapshot("one").await?;
        let fork = host.fork_snapshot("one", "fork", 1).await?.remove(0);
        assert_eq!((fork.count(1).await?.count, vm.count(1).await?.count), (6, 6));
        Ok(())
    });
}
