//! Archives that cannot be trusted: what is said, and that nothing of them stays.

use std::path::Path;

use anyhow::Result;
use hearth_api::images::ImportImage;
use hearth_e2e::{Refusal, TestHost, TestImage, Traces, refused, story};
use tar::{EntryType, Header};

/// Imports what must be refused, and finds nothing of it.
async fn import(host: &TestHost, path: &Path) -> Result<Refusal> {
    let request = ImportImage { path: path.display().to_string(), name: "bad:1".into(), tags: None };
    let refusal = refused(host.client().import_image(&request).await);
    assert!(host.client().images(&Default::default()).await?.is_empty());
    assert_eq!(host.traces(), Traces::default(), "{:?}", refusal.0.body);
    Ok(refusal)
}

/// An archive of entries that no honest tool would write.
fn evil_tar(entries: &[(&str, EntryType, &str)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, kind, target) in entries {
        let mut header = Header::new_gnu();
        // Written as they are: the builder would refuse them.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        let content: &[u8] = if kind.is_file() { b"evil" } else { b"" };
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content)?;
    }
    Ok(tar.into_inner()?)
}

#[test]
fn an_archive_that_is_none_or_not_whole() {
    story(async |host| {
        let path = host.dir().join("image.tar");
        let missing = import(host, &path).await?;
        assert!((400..500).contains(&missing.0.status), "{:?}", missing.0.body);
        missing.says("image.tar").advises("");

        std::fs::write(&path, b"this is no archive at all".repeat(100))?;
        import(host, &path).await?.is(400, "invalid").says("image.tar").advises("OCI");

        let whole = TestImage::busybox()?.tar()?;
        std::fs::write(&path, &whole[..whole.len() / 2])?;
        import(host, &path).await?.is(400, "invalid").says("image.tar").advises("");
        Ok(())
    });
}

#[test]
fn a_layout_that_does_not_hold_what_it_says() {
    story(async |host| {
        let layout = host.dir().join("layout");
        TestImage::busybox()?.write_oci(&layout)?;
        let blobs = layout.join("blobs/sha256");
        let layer = std::fs::read_dir(&blobs)?
            .filter_map(Result::ok)
            .max_by_key(|entry| entry.metadata().map_or(0, |metadata| metadata.len()))
            .expect("a layer");
        let whole = std::fs::read(layer.path())?;
        let digest = layer.file_name().to_string_lossy().into_owned();

        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(layer.path(), flipped)?;
        import(host, &layout).await?.is(400, "invalid").says(&digest).advises("");
        std::fs::write(layer.path(), &whole[..whole.len() / 2])?;
        import(host, &layout).await?.is(400, "invalid").says(&digest).advises("");
        std::fs::remove_file(layer.path())?;
        import(host, &layout).await?.is(400, "invalid").says(&digest).advises("");
        Ok(())
    });
}

#[test]
fn a_layer_that_reaches_out_of_its_root() {
    story(async |host| {
        let outside = host.dir().join("outside");
        std::fs::create_dir(&outside)?;
        let outside = outside.display().to_string();
        let file = EntryType::Regular;
        let path = host.dir().join("evil.tar");
        for entries in [
            vec![("../../escaped", file, "")],
            vec![("dir/../../../escaped", file, "")],
            vec![("shortcut", EntryType::Symlink, outside.as_str()), ("shortcut/escaped", file, "")],
            vec![("stolen", EntryType::Link, "../../../../etc/shadow")],
        ] {
            let tar = evil_tar(&entries)?;
            std::fs::write(&path, &tar)?;
            let request = ImportImage { path: path.display().to_string(), name: "evil:1".into(), tags: None };
            match host.client().import_image(&request).await {
                // Inside the image `/…` is the image's own root: then the path is just not there.
                Ok(_) => host.client().delete_image("evil:1").await?,
                Err(error) => refused(Err::<(), _>(error)).is(400, "invalid").says("evil.tar").advises(""),
            }
            assert_eq!(std::fs::read_dir(&outside)?.count(), 0, "{entries:?}");
            for escaped in ["escaped", "../escaped", "data/escaped", "data/images/escaped"] {
                assert!(!host.dir().join(escaped).exists(), "{entries:?}: {escaped}");
            }
            assert_eq!(host.traces(), Traces::default(), "{entries:?}");
        }
        // A path with dots is never obeyed in part.
        std::fs::write(&path, evil_tar(&[("../../escaped", file, "")])?)?;
        import(host, &path).await?.is(400, "invalid").says("../../escaped").advises("");
        Ok(())
    });
}
