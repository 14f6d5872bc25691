//! Commands in a guest.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use hearth_api::client::{ExecEvent, ExecSession};
use hearth_api::exec::ExecRequest;
use hearth_e2e::{Setup, eventually, finish, story};

/// A request for a shell script.
fn script(script: &str) -> ExecRequest {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    ExecRequest { command, ..ExecRequest::default() }
}

/// Reads until the output so far holds a text.
async fn until(session: &mut ExecSession, text: &str) -> Result<()> {
    let mut seen = String::new();
    while !seen.contains(text) {
        match session.output.next().await? {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            ExecEvent::End(end) => bail!("it ended before it said {text:?}: {end:?}, having said {seen:?}"),
        }
    }
    Ok(())
}

#[test]
fn input_goes_in_and_much_output_comes_out() {
    story(async |host| {
        let vm = host.boot("pipes").await?;
        let much: Vec<u8> = (0..1_000_000_u32).flat_map(|n| (n % 251).to_le_bytes().into_iter().take(1)).collect();
        let ran = vm.run_with(&["md5sum"], &much).await?;
        assert_eq!(ran.stdout, vm.run_with(&["sh", "-c", "cat | md5sum"], &much).await?.stdout);
        let back = vm.run_with(&["cat"], b"line\n".repeat(200_000).as_slice()).await?;
        assert_eq!(back.stdout.len(), 1_000_000);
        assert_eq!(vm.sh("head -c 3000000 /dev/zero | wc -c").await?, "3000000");
        let ran = vm.run(&["head", "-c", "3000000", "/dev/zero"]).await?;
        assert_eq!((ran.code, ran.stdout.len()), (0, 3_000_000));
        Ok(())
    });
}

/// How often, or how much: less in CI than in the long form, which a variable asks for.
fn long_or(variable: &str, short: usize) -> usize {
    std::env::var(variable).map_or(short, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// `HEARTH_EXECS=300` is the long form. Side by side, too: sessions share one stream to the guest.
#[test]
fn commands_in_a_row_all_end_as_they_should() {
    let execs = long_or("HEARTH_EXECS", 30);
    Setup::default().limit_s(120 + execs as u64).story(async |host| {
        let vm = host.boot("row").await?;
        // The kernel's own come and go: they are children of 2.
        let processes = r#"n=0; for s in /proc/[0-9]*/status; do
            grep -qE '^PPid:\s*([13-9]|[1-9][0-9]+)$' $s && n=$((n+1)); done; echo $n"#;
        let before: usize = vm.sh(processes).await?.parse()?;
        for number in 0..execs {
            let ran = vm.run(&["sh", "-c", &format!("echo {number}; exit {}", number % 200)]).await?;
            let wanted = (i32::try_from(number % 200)?, format!("{number}\n"));
            ensure!((ran.code, ran.stdout.clone()) == wanted, "the command {number}: {ran:?}");
        }
        for _ in 0..execs / 10 {
            let side_by_side = (0..10).map(async |number| vm.sh(&format!("echo {number}")).await);
            let said = futures_util::future::try_join_all(side_by_side).await?;
            assert_eq!(said, (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
        }
        let after: usize = vm.sh(processes).await?.parse()?;
        ensure!(before > 0 && after <= before, "{after} processes in the guest, {before} before");
        Ok(())
    });
}

/// `HEARTH_STREAM_MB=50` is the long form.
#[test]
fn streams_are_whole_both_ways() {
    let bytes = long_or("HEARTH_STREAM_MB", 8) << 20;
    Setup::default().limit_s(120 + (bytes >> 18) as u64).story(async |host| {
        let vm = host.boot("streams").await?;
        // No two pieces alike: a lost or doubled one is seen.
        let much: Vec<u8> = (0..u32::try_from(bytes / 4)?).flat_map(u32::to_le_bytes).collect();
        assert_eq!(vm.run_with(&["wc", "-c"], &much).await?.stdout.trim(), bytes.to_string());
        let sum = vm.run_with(&["md5sum"], &much).await?.stdout;

        // Through the command line, and its own copy of the bytes.
        let there = host.hearth_with_input(&["exec", "-i", "streams", "--", "md5sum"], &much)?;
        assert_eq!(there.ok()?, sum);
        let back = host.hearth_bytes(&["exec", "-i", "streams", "--", "cat"], &much)?;
        ensure!(back == much, "{} of {bytes} bytes came back, or others", back.len());
        let zeroes =
            host.hearth_bytes(&["exec", "streams", "--", "head", "-c", &bytes.to_string(), "/dev/zero"], b"")?;
        ensure!(zeroes.len() == bytes && zeroes.iter().all(|byte| *byte == 0), "{} bytes came", zeroes.len());

        // A reader that stops reading ends the writer, not the guest.
        let ran = vm.run(&["sh", "-c", "yes | head -n 1"]).await?;
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "y\n"));
        assert_eq!(vm.sh("echo on").await?, "on");
        Ok(())
    });
}

/// What `sleep` does not read waits; what it is told does not.
#[test]
fn a_signal_passes_input_that_nobody_reads() {
    story(async |host| {
        let vm = host.boot("deaf").await?;
        let mut session = vm.exec(&script("exec sleep 4321")).await?;
        let much = vec![b'x'; 16 << 20];
        let blocked = tokio::time::timeout(Duration::from_secs(2), session.input.write(&much)).await;
        ensure!(blocked.is_err(), "all was taken");
        session.input.signal("TERM").await?;
        assert_eq!(finish(session).await?.code, 128 + 15);
        Ok(())
    });
}

#[test]
fn a_terminal_has_a_size_that_changes() {
    story(async |host| {
        let vm = host.boot("tty").await?;
        let request = ExecRequest {
            tty: true,
            rows: Some(24),
            cols: Some(80),
            ..script("test -t 0 && stty size; read line; stty size; read line; exit 4")
        };
        let mut session = vm.exec(&request).await?;
        until(&mut session, "24 80").await?;
        session.input.resize(50, 132).await?;
        session.input.write(b"\r").await?;
        until(&mut session, "50 132").await?;
        session.input.write(b"\r").await?;
        assert_eq!(finish(session).await?.code, 4);

        let mut session = vm.exec(&ExecRequest { tty: true, ..script("echo ready; sleep 100") }).await?;
        until(&mut session, "ready").await?;
        session.input.write(b"\x03").await?;
        assert_eq!(finish(session).await?.code, 130, "control-C interrupts");
        Ok(())
    });
}

#[test]
fn signals_reach_the_command() {
    story(async |host| {
        let vm = host.boot("signals").await?;
        let trap = script("trap 'echo heard; exit 5' TERM; echo up; while :; do sleep 0.1; done");
        let mut session = vm.exec(&trap).await?;
        until(&mut session, "up").await?;
        session.input.signal("TERM").await?;
        let ran = finish(session).await?;
        assert_eq!((ran.code, ran.stdout.as_str()), (5, "heard\n"));

        let mut session = vm.exec(&script("echo up; exec sleep 100")).await?;
        until(&mut session, "up").await?;
        session.input.signal("KILL").await?;
        assert_eq!(finish(session).await?.code, 137);
        Ok(())
    });
}

#[test]
fn a_command_ends_with_its_caller_or_its_time() {
    story(async |host| {
        let vm = host.boot("leaver").await?;
        let mut session = vm.exec(&script("echo up; sleep 4321")).await?;
        until(&mut session, "up").await?;
        drop(session);
        let gone = async || Ok(vm.sh("ps | grep -c 'sleep 432[1]' || true").await? == "0");
        eventually("what nobody listens to has ended", gone).await?;

        let timed = std::time::Instant::now();
        let ran = finish(vm.exec(&ExecRequest { timeout: Some(1), ..script("sleep 4321") }).await?).await?;
        assert_ne!(ran.code, 0);
        ensure!(timed.elapsed() < Duration::from_secs(20), "it ran for {:?}", timed.elapsed());
        Ok(())
    });
}

#[test]
fn a_command_runs_where_and_as_whom_it_is_told() {
    story(async |host| {
        let vm = host.boot("told").await?;
        let request = ExecRequest {
            cwd: Some("/home/app".into()),
            user: Some("app".into()),
            env: Some([("GREETING".to_owned(), "hello".to_owned())].into()),
            ..script("echo $(id -u):$(id -g) $(pwd) $GREETING")
        };
        assert_eq!(finish(vm.exec(&request).await?).await?.stdout, "1000:1000 /home/app hello\n");

        let ran = vm.run(&["no-such-program"]).await?;
        assert_eq!(ran.code, 127);
        ensure!(ran.error.as_deref().is_some_and(|error| error.contains("no-such-program")), "{ran:?}");
        let ran = finish(vm.exec(&ExecRequest { cwd: Some("/nowhere".into()), ..script("true") }).await?).await?;
        ensure!(ran.code != 0 && ran.error.as_deref().is_some_and(|error| error.contains("/nowhere")), "{ran:?}");
        Ok(())
    });
}
