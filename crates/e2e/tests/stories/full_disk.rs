//! A disk that is full: what is said, and that what was there goes on.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use hearth_api::images::ImportImage;
use hearth_api::instances::{ForkInstance, InstanceState};
use hearth_e2e::{Setup, TestHost, TestImage, refused};

/// Writes until nothing more goes in, but for `left` bytes.
fn fill(host: &TestHost, left: u64) -> Result<PathBuf> {
    let path = host.data().join("ballast");
    let mut file = File::create(&path)?;
    let chunk = vec![0x55; 1 << 16];
    let mut size = 0_u64;
    while file.write_all(&chunk).is_ok() {
        size += chunk.len() as u64;
    }
    file.set_len(size.saturating_sub(left))?;
    file.sync_all()?;
    Ok(path)
}

#[test]
fn an_image_that_does_not_fit() {
    Setup::default().disk(16).expect_log("request failed").story(async |host| {
        fill(host, 1 << 20)?;
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
        // Room for records, not for memory.
        let ballast = fill(host, 4 << 20)?;
        refused(host.client().standby("fork").await).is(507, "exhausted").says("fork").advises("");
        fork.is(InstanceState::Running).await?;
        assert_eq!(fork.count(1).await?.count, 2);
        let request = ForkInstance { name: "more".into(), from_running: Some(true), ..ForkInstance::default() };
        refused(host.client().fork("fork", &request).await).is(507, "exhausted");
        assert_eq!(host.instances().await?.len(), 2);

        std::fs::remove_file(ballast)?;
        fork.standby().await?;
        fork.restore().await?;
        assert_eq!(fork.count(1).await?.count, 3);
        Ok(())
    });
}
