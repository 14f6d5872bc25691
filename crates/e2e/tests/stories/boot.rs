//! From an image to a program that runs, and back to nothing.

use anyhow::ensure;
use hearth_api::instances::InstanceState;
use hearth_e2e::{TestHost, TestImage, eventually, story};

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
