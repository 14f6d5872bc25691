//! What commands print, and where; and what they say when something is wrong.

#[path = "support/daemon.rs"]
mod daemon;

use std::net::TcpListener;
use std::process::Stdio;

use daemon::{Daemon, Ran, hearth};
use serde_json::json;

#[test]
fn instances_are_listed_for_people_and_for_programs() {
    let daemon = Daemon::start();
    let ran = daemon.run(&["ps"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("NAME  STATE             IMAGE"), "{ran:?}");
    assert!(lines[1].starts_with("web   Running           docker.io/library/web:latest  256 MB  2"), "{ran:?}");
    assert!(lines[2].starts_with("job   Stopped (exit 3)  "), "{ran:?}");

    assert_eq!(daemon.run(&["ps", "-q"]).stdout, "web\njob\n");
    let ran = daemon.run(&["ps", "--state", "running", "--tag", "a=b", "--json"]);
    assert_eq!(ran.json()[0]["name"], "web");
    daemon.body_of("/instances?state=Running&tags[a]=b");
}

#[test]
fn an_error_says_what_it_is_about_and_what_to_do() {
    let daemon = Daemon::start();
    let ran = daemon.run(&["inspect", "wep"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""));
    assert_eq!(ran.stderr, "error: no instance is named \"wep\"\nhint: did you mean web?\n");

    let ran = daemon.run(&["inspect", "wep", "--json"]);
    let body: serde_json::Value = serde_json::from_str(&ran.stderr).expect("an error body");
    assert_eq!((body["code"].as_str(), body["name"].as_str()), (Some("not_found"), Some("wep")));
}

#[test]
fn a_daemon_that_is_not_there_is_said_so() {
    let home = tempfile::tempdir().expect("a directory");
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let url = format!("http://127.0.0.1:{port}");
    let ran = Ran::of(hearth(&["ps", "--url", &url], home.path()).output().expect("runs"));
    assert_eq!(ran.code, Some(12));
    assert!(ran.stderr.starts_with(&format!("error: no daemon answers at {url}\n")), "{ran:?}");
    let rest = "  because: Connection refused (os error 111)\nhint: start it with `hearth serve`";
    assert!(ran.stderr.contains(rest), "{ran:?}");

    for (url, says) in [("https://x", "https"), ("nonsense", "must begin with http://")] {
        let ran = Ran::of(hearth(&["ps"], home.path()).env("HYPEMAN_BASE_URL", url).output().expect("runs"));
        assert_eq!(ran.code, Some(2));
        assert!(ran.stderr.contains(says), "{ran:?}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_before_the_daemon_is_asked() {
    let daemon = Daemon::start();
    for (arguments, says) in [
        (&["stanby"][..], "'standby'"),
        (&["run"], "<IMAGE>"),
        (&["exec", "-e", "=1", "web"], "must be KEY=VALUE or KEY"),
        (&["exec", "web"], "hearth exec -it web"),
        (&["wait", "web", "--timeout", "5x"], "not a length of time"),
        (&["wait", "web", "--state", "asleep"], "running"),
        (&["fork", "web", "copy", "--count", "0"], "--count"),
        (&["cp", "a", "b"], "neither SRC nor DST is in an instance"),
        (&["cp", "a:/b", "c:/d"], "both SRC and DST"),
        (&["cp", "a", "web:tmp"], "write web:/tmp"),
        (&["token", "create"], "--secret-file"),
    ] {
        let ran = daemon.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(says), "{arguments:?}: {ran:?}");
    }
    assert!(daemon.shared.seen.lock().expect("no panic").is_empty());
}

#[test]
fn the_token_is_sent_and_its_refusal_has_its_own_code() {
    let daemon = Daemon::start();
    let ran = Ran::of(daemon.hearth(&["ps"]).env("HYPEMAN_API_KEY", "expired").output().expect("runs"));
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(15), "error: the token has expired\n"));
    let both = daemon.hearth(&["ps"]).env("HYPEMAN_API_KEY", "expired").env("HEARTH_TOKEN", "ours").output();
    assert_eq!(Ran::of(both.expect("runs")).code, Some(0));
    assert_eq!(*daemon.shared.tokens.lock().expect("no panic"), ["Bearer expired", "Bearer ours"]);
}

#[test]
fn forks_that_were_made_are_printed_and_those_that_were_not_are_the_error() {
    let daemon = Daemon::start();
    let ran = daemon.run(&["fork", "web", "copy", "--count", "3"]);
    assert_eq!(ran.stdout, "copy-1\ncopy-2\n");
    assert_eq!(ran.stderr, "error: copy-3 was not made: no memory is left\nhint: stop another instance\n");
    assert_eq!(ran.code, Some(9));
    assert_eq!(daemon.body_of("/instances/web/fork"), json!({"name": "copy", "count": 3, "from_running": true}));
    assert_eq!(daemon.run(&["fork", "web", "one", "--state", "standby"]).stdout, "one\n");
    assert_eq!(daemon.body_of("/instances/web/fork")["target_state"], "Standby");
}

#[test]
fn a_new_instance_is_printed_when_it_runs() {
    let daemon = Daemon::start();
    let ran = daemon.run(&["run", "--name", "new", "-e", "A=1", "--size", "1GB", "web", "--", "/bin/x", "--flag"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "new\n", ""));
    assert_eq!(
        daemon.body_of("/instances"),
        json!({"name": "new", "image": "web", "env": {"A": "1"}, "size": "1GB", "cmd": ["/bin/x", "--flag"]})
    );
    daemon.body_of("/instances/newaaaaaaaaaaaaaaaaaaaaa/wait?state=Running&timeout=300s");
}

#[test]
fn a_job_is_followed_to_its_end_and_removed() {
    let daemon = Daemon::start();
    let ran = daemon.run(&["run", "--rm", "--name", "job", "web"]);
    assert_eq!(ran.stdout, "one\ntwo \"2\"\n");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(7), "exited with code 7\n"));
    let seen = daemon.shared.seen.lock().expect("no panic");
    assert!(seen.iter().any(|(method, path, _)| method == "DELETE" && path.starts_with("/instances/job")), "{seen:?}");
}

#[test]
fn running_instances_are_removed_only_by_force() {
    let daemon = Daemon::start();
    let ran = daemon.run(&["rm", "web"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(5), ""));
    assert!(ran.stderr.contains("hearth rm -f web"), "{ran:?}");
    assert_eq!(daemon.run(&["rm", "-f", "web"]).stdout, "web\n");
    assert_eq!(daemon.run(&["rm", "job"]).stdout, "job\n");
}

#[test]
fn a_wait_that_ran_out_of_time_is_an_error() {
    let daemon = Daemon::start();
    assert_eq!(daemon.run(&["wait", "web"]).stdout, "Running\n");
    let ran = daemon.run(&["wait", "web", "--state", "standby", "--timeout", "2s"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(10), ""));
    assert!(ran.stderr.starts_with("error: instance web is still running after 2 s, not standby\n"), "{ran:?}");
}

#[test]
fn logs_and_timelines() {
    let daemon = Daemon::start();
    assert_eq!(daemon.run(&["logs", "web"]).stdout, "one\ntwo \"2\"\n");
    assert_eq!(daemon.run(&["logs", "web", "--json"]).stdout, "{\"line\":\"one\"}\n{\"line\":\"two \\\"2\\\"\"}\n");
    daemon.body_of("/instances/web/logs?tail=100&follow=false&source=app");
    let ran = daemon.run(&["timeline", "web"]);
    assert!(ran.stdout.contains("  +     0.0 ms      70.0 ms  load snapshot  (resume on load)\n"), "{ran:?}");
}

#[test]
fn what_a_start_did_is_asked_of_the_daemon() {
    let daemon = Daemon::start();
    let ran = daemon.run(&["doctor", "--recovery"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("the daemon started ") && lines[0].ends_with(" took 12.0 ms: adopted 1"), "{ran:?}");
    assert_eq!(lines[2..], ["web   Running (standby)  alive  adopted  Running", "swept: 1 bundle"], "{ran:?}");
    let ran = daemon.run(&["doctor", "--recovery", "--json"]);
    assert_eq!(ran.json()["instances"][0]["cut_off"], "standby");

    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let url = format!("http://127.0.0.1:{nobody}");
    let ran = daemon.run(&["doctor", "--recovery", "--url", &url]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(12), ""));
    assert!(ran.stderr.starts_with(&format!("error: no daemon answers at {url}\n")), "{ran:?}");
    assert!(ran.stderr.contains("hint: start it with `hearth serve`"), "{ran:?}");
    assert_eq!(daemon.run(&["doctor", "--recovery", "--fix"]).code, Some(2), "one or the other");
}

#[test]
fn a_reader_that_goes_away_is_no_error_to_speak_of() {
    let daemon = Daemon::start();
    let mut child = daemon.hearth(&["ps"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    drop(child.stdout.take());
    let ran = Ran::of(child.wait_with_output().expect("ends"));
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(141), ""));
}

#[test]
fn a_damaged_snapshot_is_an_error_and_the_others_are_verified_all_the_same() {
    let daemon = Daemon::start();
    let ran = daemon.run(&["snapshot", "verify"]);
    let [rotten, new, well] = ["rotten", "new", "well"].map(|name| format!("{name:s<24}"));
    assert_eq!((ran.code, ran.stdout), (Some(13), format!("{well}  well  ok  256 MB\n")), "{}", ran.stderr);
    assert_eq!(
        ran.stderr,
        format!(
            "{rotten}  memory of snapshot {rotten} has changed\n{new}  snapshot new has no checksums yet\n\
             error: memory of snapshot {rotten} has changed\nhint: put memory back\n"
        )
    );

    let ran = daemon.run(&["--json", "snapshot", "verify", "well", "rotten"]);
    let verdicts = ran.json();
    assert_eq!(
        (ran.code, &verdicts[0]["bytes"], &verdicts[1]["error"]["code"]),
        (Some(13), &json!(268_435_456), &json!("corrupt")),
        "{ran:?}"
    );

    assert_eq!(daemon.run(&["snapshot", "verify", "well"]).code, Some(0));
    assert_eq!(daemon.run(&["snapshot", "verify", "new"]).code, Some(5), "who names it wants to know");
}

#[test]
fn tokens_and_completions_need_no_daemon() {
    let home = tempfile::tempdir().expect("a directory");
    std::fs::write(home.path().join("secret"), "hush\n").expect("writes");
    let arguments = ["token", "create", "--secret-file", "secret", "--subject", "me", "--ttl", "1h"];
    let ran = Ran::of(hearth(&arguments, home.path()).output().expect("runs"));
    assert_eq!((ran.code, ran.stdout.trim().split('.').count()), (Some(0), 3), "{ran:?}");

    for shell in ["bash", "zsh", "fish"] {
        let ran = Ran::of(hearth(&["completion", shell], home.path()).output().expect("runs"));
        assert!(ran.code == Some(0) && ran.stdout.contains("standby"), "{shell}: {}", ran.stderr);
    }
}

#[test]
fn the_help_names_every_command() {
    let home = tempfile::tempdir().expect("a directory");
    let ran = Ran::of(hearth(&["--help"], home.path()).output().expect("runs"));
    for command in [
        "serve",
        "doctor",
        "image",
        "run",
        "ps",
        "inspect",
        "exec",
        "cp",
        "logs",
        "start",
        "stop",
        "standby",
        "restore",
        "fork",
        "rm",
        "wait",
        "timeline",
        "snapshot",
        "token",
        "completion",
    ] {
        assert!(ran.stdout.contains(&format!("\n  {command} ")), "{command}: {}", ran.stdout);
    }
    assert!(ran.stdout.contains("HEARTH_TOKEN"));
}
