//! From an image to a program that runs, and back to nothing.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use hearth_api::instances::InstanceState;
use hearth_e2e::{TestHost, TestImage, Vm, eventually, story};

#[test]
fn an_image_boots_answers_and_logs() {
    story(async |host| {
        let vm = host.boot("web").await?;
        let ran = vm.run(&["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]).await?;
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (3, "out\n", "err\n"));
        assert_eq!(vm.sh("hostname").await?, "web");
        eventually("the program's words are in its log", async || Ok(vm.console().await?.contains("counter ready")))
            .await
    });
}

#[test]
fn a_program_runs_as_its_image_says() {
    story(async |host| {
        let report = "echo $(id -un):$(id -gn) $(pwd) $GREETING $NAME $0 > /tmp/report; exec sleep infinity";
        let image = TestImage::busybox()?.user("app").workdir("/home/app").env(&["GREETING=hello", "NAME=nobody"]);
        host.import(&image.entrypoint(&["/bin/sh", "-c", report]).cmd(&["argument"]), "said:1").await?;
        let mut request = TestHost::request("said", "said:1");
        request.env = Some([("NAME".to_owned(), "you".to_owned())].into());
        let vm = host.create(&request).await?;
        eventually("it has reported", async || Ok(vm.run(&["test", "-s", "/tmp/report"]).await?.code == 0)).await?;
        assert_eq!(vm.sh("cat /tmp/report").await?, "app:app /home/app hello you argument");
        assert_eq!(vm.sh("echo $(id -un) $(pwd) $GREETING $NAME").await?, "app /home/app hello you");
        Ok(())
    });
}

#[test]
fn an_image_needs_no_shell() {
    story(async |host| {
        let busybox = std::fs::read("/bin/busybox")?;
        let image = TestImage::empty().file("sleep", 0o755, busybox).entrypoint(&["/sleep", "infinity"]);
        host.import(&image, "bare:1").await?;
        let vm = host.create(&TestHost::request("bare", "bare:1")).await?;
        vm.is(InstanceState::Running).await?;
        assert_eq!(vm.run(&["/sleep", "0"]).await?.code, 0);
        Ok(())
    });
}

#[test]
fn a_program_that_ends_stops_its_instance() {
    story(async |host| {
        for (name, script, code, message) in
            [("exits", "exit 7", 7, "7"), ("killed", "kill -9 $$", 137, "SIGKILL"), ("done", "exit 0", 0, "")]
        {
            let vm =
                host.boot_with_program(name, &["/bin/sh", "-c", &format!("echo bye from {name}; {script}")]).await?;
            vm.wait(InstanceState::Stopped).await?;
            let info = vm.info().await?;
            assert_eq!(info.exit_code, Some(code), "{info:?}");
            let told = info.exit_message.unwrap_or_default();
            ensure!(told.contains(message), "{name}: {told:?}");
            ensure!(vm.vmm_pid().await?.is_none(), "{name} has stopped and has a VMM");
            // Its log is its own: neither the kernel nor the agent says anything in it.
            assert_eq!(vm.console().await?, format!("bye from {name}"));
            let log = host.hearth(&["logs", "--source", "hearth", name])?.ok()?;
            ensure!(log.contains("program exited") || log.contains("program killed"), "{log}");
        }
        Ok(())
    });
}

#[test]
fn files_outlive_stop_and_start() {
    story(async |host| {
        let vm = host.boot("files").await?;
        let first = vm.count(1).await?;
        vm.sh("echo kept > /root/file; mkdir /root/dir; rm /etc/group").await?;
        vm.stop().await?;
        vm.start().await?;
        assert_eq!(vm.sh("cat /root/file; ls -d /root/dir; ls /etc/group 2>&1 || true").await?.lines().count(), 3);
        assert_eq!(vm.sh("cat /root/file").await?, "kept");
        assert_ne!(vm.run(&["test", "-e", "/etc/group"]).await?.code, 0, "what was removed stays so");
        let again = vm.count(1).await?;
        assert_eq!(again.count, 1, "memory is lost");
        assert_ne!(again.nonce, first.nonce);
        Ok(())
    });
}

#[test]
fn the_standard_board_goes_the_same_round() {
    story(async |host| {
        let vm = host.boot_with("board", |request| request.hypervisor = Some("qemu".into())).await?;
        assert_eq!(vm.info().await?.hypervisor.as_deref(), Some("qemu"));
        let before = vm.count(5).await?;
        vm.standby().await?;
        vm.restore().await?;
        let fork = vm.fork("board-fork").await?;
        assert_eq!(fork.info().await?.hypervisor.as_deref(), Some("qemu"));
        for twin in [&vm, &fork] {
            let count = twin.count(1).await?;
            assert_eq!((count.nonce, count.count), (before.nonce.clone(), 6));
        }
        fork.standby().await?;
        fork.restore().await?;
        assert_eq!(fork.count(1).await?.count, 7);
        Ok(())
    });
}

/// A kernel that has a driver for it reseeds when it is told. Debian's cloud kernel has none; what its
/// firmware was given is in its memory.
#[test]
fn the_standard_board_tells_a_guest_that_it_came_back() {
    story(async |host| {
        let vm = host.boot_with("board", |request| request.hypervisor = Some("qemu".into())).await?;
        let booted = generation_ids(host, &[&vm]).await?;
        vm.standby().await?;
        vm.restore().await?;
        let fork = vm.fork("twin").await?;
        let restored = generation_ids(host, &[&vm, &fork]).await?;
        let all: BTreeSet<_> = booted.iter().chain(&restored).collect();
        assert_eq!(all.len(), 3, "two lives have one generation: {all:?}");
        assert_eq!(fork.count(1).await?.nonce, vm.count(1).await?.nonce);
        Ok(())
    });
}

/// What QEMU says is the generation of each guest, and has written to its memory. Its monitor listens to
/// one at a time: the daemon is away meanwhile.
async fn generation_ids(host: &TestHost, vms: &[&Vm<'_>]) -> Result<Vec<[u8; 16]>> {
    let mut places = Vec::new();
    for vm in vms {
        places.push((vm.dir().await?.join("qmp.sock"), vm.vmm_pid().await?.context("a VMM")?));
    }
    host.crash_daemon()?;
    let asked = places.iter().map(|(monitor, pid)| {
        let mut monitor = BufReader::new(UnixStream::connect(monitor)?);
        for command in ["qmp_capabilities", "query-vm-generation-id"] {
            writeln!(monitor.get_mut(), "{{\"execute\":\"{command}\"}}")?;
        }
        let told = monitor.lines().map_while(Result::ok).find_map(|line| {
            let guid = line.split_once("\"guid\": \"")?.1.split_once('"')?.0.replace('-', "");
            u128::from_str_radix(&guid, 16).ok()
        });
        let mut id = told.context("its generation")?.to_be_bytes();
        // Its first three fields are little-endian.
        for field in [0..4, 4..6, 6..8] {
            id[field].reverse();
        }
        ensure!(is_told(*pid, &id)?, "the guest of {pid} was not told of {id:x?}");
        Ok(id)
    });
    let asked = asked.collect();
    host.start_daemon()?;
    asked
}

/// Whether it is where QEMU writes it: 40 bytes into a page that the firmware gave it.
fn is_told(pid: i32, generation: &[u8]) -> Result<bool> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    for line in std::fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let (from, to) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).context("a range")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        // The guest's memory is the one that is large and a file.
        if to - from < 128 << 20 || !line.contains("/memory") {
            continue;
        }
        let mut there = vec![0; usize::try_from(to - from)?];
        memory.read_exact_at(&mut there, from)?;
        return Ok(there.chunks(4096).any(|page| page[40..56] == *generation));
    }
    bail!("process {pid} has no memory of a guest")
}

#[test]
fn an_instance_gets_the_memory_and_processors_it_asks_for() {
    story(async |host| {
        let vm = host
            .boot_with("big", |request| {
                request.vcpus = Some(2);
                request.size = Some("192MB".into());
                request.overlay_size = Some("64MB".into());
            })
            .await?;
        assert_eq!(vm.sh("nproc").await?, "2");
        let kib: u64 = vm.sh("sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo").await?.parse()?;
        ensure!((120 << 10..=192 << 10).contains(&kib), "{kib} KiB of memory");
        let kib: u64 = vm.sh("df -k / | awk 'END { print $(NF - 4) }'").await?.parse()?;
        ensure!((32 << 10..=64 << 10).contains(&kib), "{kib} KiB of disk");
        let info = vm.info().await?;
        assert_eq!(
            (info.vcpus, info.size.as_deref(), info.overlay_size.as_deref()),
            (Some(2), Some("192 MB"), Some("64 MB"))
        );
        Ok(())
    });
}

#[test]
fn boots_in_a_row() {
    let boots: u32 = std::env::var("HEARTH_BOOTS").map_or(5, |text| text.parse().expect("HEARTH_BOOTS is a number"));
    hearth_e2e::Setup::default().limit_s(60 + 20 * u64::from(boots)).story(async |host| {
        for boot in 1..=boots {
            let vm = host.boot(&format!("boot-{boot}")).await?;
            vm.is(InstanceState::Running).await?;
            vm.delete().await?;
        }
        Ok(())
    });
}
