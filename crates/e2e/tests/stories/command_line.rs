//! The command line, as one types it.

use anyhow::{Context, Result, ensure};
use hearth_e2e::{TestHost, TestImage, story};

/// The result of a command that must succeed.
fn ok(host: &TestHost, line: &str) -> Result<String> {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    host.hearth(&arguments)?.ok().with_context(|| format!("hearth {line}"))
}

#[test]
fn a_day_at_the_command_line() {
    story(async |host| {
        let layout = TestImage::counter()?.write_oci(&host.dir().join("layout"))?.display().to_string();
        ok(host, &format!("image import {layout} --name counter:1"))?;
        ensure!(ok(host, "image list")?.contains("counter:1"), "image list");
        let image = host.hearth(&["image", "inspect", "counter:1", "--json"])?.json()?;
        assert_eq!(image["cmd"][0], "/bin/counter");

        ok(host, "run --name web --size 128MB counter:1")?;
        ensure!(ok(host, "ps")?.contains("web"), "ps");
        assert_eq!(ok(host, "exec web -- count 5")?.split_whitespace().nth(1), Some("5"));
        ok(host, "standby web")?;
        ok(host, "fork web child --count 2 --state running")?;
        ok(host, "restore web")?;
        for (name, add, count) in [("web", "1", "6"), ("child-1", "2", "7"), ("child-2", "3", "8")] {
            let line = format!("exec {name} -- count {add}");
            assert_eq!(ok(host, &line)?.split_whitespace().nth(1), Some(count), "{name}");
        }
        ok(host, "snapshot create web --name before")?;
        ensure!(ok(host, "snapshot list")?.contains("before"), "snapshot list");
        ok(host, "snapshot fork before again")?;
        assert_eq!(ok(host, "exec again -- count 1")?.split_whitespace().nth(1), Some("7"));
        ok(host, "snapshot rm before")?;

        ok(host, "stop again")?;
        ok(host, "wait again --state Stopped")?;
        ok(host, "start again")?;
        ensure!(ok(host, "timeline web")?.contains("restore"), "timeline");
        let inspected = host.hearth(&["inspect", "web", "--json"])?.json()?;
        assert_eq!((inspected["name"].as_str(), inspected["state"].as_str()), (Some("web"), Some("Running")));
        ensure!(ok(host, "logs web --tail 200")?.contains("counter ready"), "logs");
        ensure!(ok(host, "logs web --source hearth")?.contains("standby"), "logs --source hearth");
        ok(host, "rm -f web child-1 child-2 again")?;
        ok(host, "image rm counter:1")?;
        assert!(host.hearth(&["ps", "--json"])?.json()?.as_array().is_some_and(Vec::is_empty));
        Ok(())
    });
}

#[test]
fn exec_is_like_running_it_here() {
    story(async |host| {
        host.boot("web").await?;
        let ran = host.hearth(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 3"])?;
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (3, "out\n", "err\n"));
        let ran = host.hearth_with_input(&["exec", "-i", "web", "--", "wc", "-c"], b"12345")?;
        assert_eq!(ran.ok()?.trim(), "5");
        let ran = host.hearth(&["exec", "-e", "A=b", "-w", "/tmp", "web", "--", "sh", "-c", "echo $A $(pwd)"])?;
        assert_eq!(ran.ok()?, "b /tmp\n");
        let ran = host.hearth(&["exec", "web", "--", "no-such-program"])?;
        ensure!(ran.code == 127 && ran.stderr.contains("no-such-program"), "{ran:?}");
        let ran = host.hearth(&["exec", "nobody", "--", "true"])?;
        ensure!(ran.code == 3 && ran.stdout.is_empty() && ran.stderr.contains("nobody"), "{ran:?}");
        Ok(())
    });
}

#[test]
fn a_terminal_here_is_a_terminal_there() {
    story(async |host| {
        host.boot("web").await?;
        let hearth = host.hearth_command(&[]);
        // `script` runs it on a terminal of its own.
        let line = format!(
            "stty rows 33 cols 99; {} exec -it web -- sh -c 'tty; stty size; exit 5'",
            hearth.get_program().display()
        );
        let mut script = std::process::Command::new("script");
        script.args(["-q", "-e", "-c", &line, "/dev/null"]).env("HEARTH_URL", host.client().url());
        let output = script.stdin(std::process::Stdio::null()).output().context("start `script`")?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(told.contains("/dev/pts/") && told.contains("33 99"), "{told}");
        assert_eq!(output.status.code(), Some(5), "{told}");
        Ok(())
    });
}

#[test]
fn files_and_directories_are_copied_both_ways() {
    use std::os::unix::fs::PermissionsExt;
    story(async |host| {
        let vm = host.boot("web").await?;
        let here = host.dir().join("tree");
        std::fs::create_dir_all(here.join("sub/empty"))?;
        let large: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n % 253).unwrap_or_default()).collect();
        std::fs::write(here.join("large"), &large)?;
        std::fs::write(here.join("sub/tool"), "#!/bin/sh\necho runs\n")?;
        std::fs::set_permissions(here.join("sub/tool"), PermissionsExt::from_mode(0o755))?;
        std::os::unix::fs::symlink("sub/tool", here.join("link"))?;

        ok(host, "cp tree web:/root/tree")?;
        assert_eq!(
            vm.sh("/root/tree/link; ls -d /root/tree/sub/empty; wc -c < /root/tree/large").await?,
            "runs\n/root/tree/sub/empty\n3000000"
        );
        ok(host, "cp web:/root/tree back")?;
        let back = host.dir().join("back");
        assert_eq!(std::fs::read(back.join("large"))?, large);
        assert_eq!(std::fs::read_link(back.join("link"))?.to_str(), Some("sub/tool"));
        assert!(back.join("sub/empty").is_dir());
        assert_eq!(std::fs::metadata(back.join("sub/tool"))?.permissions().mode() & 0o777, 0o755);

        std::fs::write(host.dir().join("one"), "one file")?;
        ok(host, "cp one web:/tmp/")?;
        assert_eq!(vm.sh("cat /tmp/one").await?, "one file");
        ok(host, "cp web:/tmp/one two")?;
        assert_eq!(std::fs::read_to_string(host.dir().join("two"))?, "one file");
        let ran = host.hearth(&["cp", "web:/no/such/file", "three"])?;
        ensure!(ran.code == 3 && ran.stderr.contains("/no/such/file"), "{ran:?}");
        assert!(!host.dir().join("three").exists());
        Ok(())
    });
}

#[test]
fn a_run_that_is_not_kept_leaves_nothing() {
    story(async |host| {
        host.import_counter().await?;
        let ran =
            host.hearth(&["run", "--rm", "--size", "128MB", "counter:1", "--", "sh", "-c", "echo hello; exit 4"])?;
        ensure!(ran.code == 4 && ran.stdout.contains("hello"), "{ran:?}");
        assert!(host.instances().await?.is_empty());
        hearth_e2e::eventually("nothing is left", async || Ok(host.traces().no_instances())).await
    });
}

#[test]
fn a_run_that_is_interrupted_while_it_boots_leaves_nothing() {
    story(async |host| {
        host.import_counter().await?;
        let mut run = host.hearth_command(&["run", "--rm", "--name", "early", "--size", "128MB", "counter:1"]);
        let mut run = run.spawn().context("start hearth run")?;
        hearth_e2e::eventually("it is being made", async || Ok(!host.traces().no_instances())).await?;
        rustix::process::kill_process(rustix::process::Pid::from_child(&run), rustix::process::Signal::INT)?;
        let began = std::time::Instant::now();
        assert_eq!(run.wait()?.code(), Some(130));
        ensure!(began.elapsed() < std::time::Duration::from_secs(2), "it took {:?} to take effect", began.elapsed());
        let gone = async || Ok(host.traces().no_instances() && host.instances().await?.is_empty());
        hearth_e2e::eventually("nothing is left", gone).await?;
        Ok(())
    });
}

#[test]
fn errors_say_what_and_what_to_do() {
    story(async |host| {
        for (line, code, says) in [
            ("inspect nobody", 3, "nobody"),
            ("run no-such-image:1", 3, "no-such-image:1"),
            ("image import /no/such/path --name a:1", 3, "/no/such/path"),
            ("snapshot inspect nothing", 3, "nothing"),
            ("no-such-command", 2, "no-such-command"),
        ] {
            let arguments: Vec<&str> = line.split_whitespace().collect();
            let ran = host.hearth(&arguments)?;
            ensure!(ran.code == code && ran.stderr.contains(says) && ran.stdout.is_empty(), "hearth {line}: {ran:?}");
        }
        let mut lost = host.hearth_command(&["ps"]);
        let output = lost.env("HEARTH_URL", "http://127.0.0.1:1").output()?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && told.contains("hearth serve") && told.contains("HEARTH_URL"), "{told}");
        Ok(())
    });
}
