//! A data directory where clones share their blocks: forks and their snapshots take next to none.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use hearth_e2e::{Setup, TestHost};

/// What is used of the data directory's disk, in MiB.
fn used_mib(host: &TestHost) -> Result<u64> {
    ensure!(Command::new("sync").status()?.success(), "sync");
    let output = Command::new("df").args(["--output=used", "-BM"]).arg(host.data()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let number = text.lines().nth(1).context("df's second line")?.trim().trim_end_matches('M');
    Ok(number.parse()?)
}

#[test]
fn forks_and_their_snapshots_share_blocks() {
    Setup::default().reflink_disk(600).story(async |host| {
        let base = host.boot("base").await?;
        base.sh("head -c 30000000 /dev/urandom > /dev/shm/ballast; head -c 30000000 /dev/urandom > /root/ballast")
            .await?;
        let count = base.count(5).await?;
        base.standby().await?;
        let before = used_mib(host)?;
        let forks = host.fork("base", "fork", 4).await?;
        for fork in &forks {
            assert_eq!(fork.count(1).await?.nonce, count.nonce);
            fork.standby().await?;
        }
        let grown = used_mib(host)?.saturating_sub(before);
        // Copied, it would be 4 × 60 MB and more.
        ensure!(grown < 100, "{grown} MiB for four forks in standby");
        for fork in &forks {
            fork.restore().await?;
            assert_eq!(fork.count(1).await?.count, 7);
        }
        Ok(())
    });
}
