//! Faults and delays: each is what a real VMM does when it dies, hangs or is slow at that moment.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hearth_simulated::faults::{Effect, FILE, Fault, Plan, When};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::host::{PATIENCE, Vmm, names};
use crate::{boot, bundle, lab};

const A_WHILE: Duration = Duration::from_millis(300);
const LOAD: &str = "PUT /snapshot/load";

#[tokio::test]
async fn a_socket_comes_late_or_never() {
    let lab = lab();
    let dir = lab.instance("late");
    plan(&dir, vec![fault("start", When::Before, Effect::DelayMs(300))]);
    let begun = Instant::now();
    let mut vmm = lab.launch_in(dir).await;
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(vmm.state().await, "Not started");

    let dir = lab.instance("never");
    for (effect, ended) in
        [(Effect::Exit, Ok(1)), (Effect::ExitWith(3), Ok(3)), (Effect::Abort, Err(6)), (Effect::Kill, Err(9))]
    {
        plan(&dir, vec![fault("start", When::Before, effect)]);
        let mut command = lab.command(&dir, &["--api-sock", "api.sock"]);
        let status = command.stdout(Stdio::null()).status().await.expect("it starts");
        assert_eq!(status.code().ok_or_else(|| status.signal().expect("one of them")), ended);
        assert_eq!(names(&dir), ["disks", FILE]);
    }
}

#[tokio::test]
async fn a_socket_is_there_and_nobody_answers_yet() {
    let lab = lab();
    let dir = lab.instance("slow");
    plan(&dir, vec![fault("listen", When::Before, Effect::DelayMs(300))]);
    let mut vmm = lab.launch_in(dir).await;
    let begun = Instant::now();
    assert_eq!(vmm.state().await, "Not started");
    assert!(begun.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn it_dies_in_a_load_before_or_after_its_effect() {
    let lab = lab();
    let bundle = bundle(&lab).await;
    for (name, when, effect) in [("before", When::Before, false), ("after", When::After, true)] {
        plan(&lab.instance(name), vec![fault(LOAD, when, Effect::Kill)]);
        let mut vmm = lab.launch(name).await;
        let body = bundle.body(json!({ "resume_vm": true })).to_string();
        assert!(vmm.try_request("PUT", "/snapshot/load", body).await.is_err(), "no answer");
        assert_eq!(vmm.exit().await.signal(), Some(9));
        assert_eq!(vmm.dir.join("vsock.sock").exists(), effect, "{name}");
    }
    let fork = lab.restore("fork", &bundle).await;
    drop(fork);
}

#[tokio::test]
async fn it_answers_an_error_with_or_without_effect() {
    let lab = lab();
    let mut vmm = boot(&lab, "web").await;
    plan(&vmm.dir, vec![with(fault("PATCH /vm", When::Before, Effect::Error(400)), "Paused")]);
    assert_eq!((vmm.pause().await.status, vmm.state().await.as_str()), (400, "Running"));
    plan(&vmm.dir, vec![with(fault("PATCH /vm", When::After, Effect::Error(500)), "Paused")]);
    let answer = vmm.pause().await;
    assert_eq!(answer.json(), json!({ "fault_message": "a fault that was asked for" }));
    assert_eq!((answer.status, vmm.state().await.as_str()), (500, "Paused"));
    vmm.resume().await.done();
    // The file is read again each time: without it nothing goes wrong.
    fs::remove_file(vmm.dir.join(FILE)).expect("removed");
    vmm.pause().await.done();
}

#[tokio::test]
async fn it_hangs_is_slow_or_closes_the_connection() {
    let lab = lab();
    let mut vmm = boot(&lab, "web").await;
    plan(&vmm.dir, vec![fault("PATCH /vm", When::Before, Effect::DelayMs(300))]);
    let begun = Instant::now();
    vmm.pause().await.done();
    assert!(begun.elapsed() >= Duration::from_millis(300));

    plan(&vmm.dir, vec![nth(fault("GET /version", When::Before, Effect::Drop), 2)]);
    assert_eq!(vmm.get("/version").await.status, 200);
    assert!(vmm.try_request("GET", "/version", String::new()).await.is_err());
    vmm.lives();

    let mut vmm = boot(&lab, "other").await;
    plan(&vmm.dir, vec![fault("PUT /snapshot/*", When::After, Effect::Hang)]);
    vmm.pause().await.done();
    let (vmstate, memory) = (vmm.dir.join("vmstate"), vmm.dir.join("memory"));
    let saved = tokio::time::timeout(A_WHILE, vmm.save("Diff", &vmstate, &memory)).await;
    assert!(saved.is_err() && memory.exists(), "done, and never answered");
    let mut again = UnixStream::connect(vmm.dir.join("api.sock")).await.expect("connects");
    again.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("taken");
    assert!(tokio::time::timeout(A_WHILE, again.read_u8()).await.is_err(), "there is one thread for all requests");
}

#[tokio::test]
async fn the_nth_of_its_kind_is_meant() {
    let lab = lab();
    let dir = lab.instance("web");
    plan(&dir, vec![nth(fault("PUT /drives/*", When::Before, Effect::Error(500)), 2)]);
    let mut vmm = lab.launch_in(dir).await;
    let drive = |id: &str| json!({ "drive_id": id, "is_root_device": false, "path_on_host": "disks/rootfs" });
    let mut statuses = Vec::new();
    for id in ["a", "b", "c"] {
        statuses.push(vmm.put(&format!("/drives/{id}"), drive(id)).await.status);
    }
    assert_eq!(statuses, [204, 500, 204]);
    assert_eq!(vmm.get("/vm/config").await.json()["drives"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn the_plan_may_lie_beside_the_executable() {
    let lab = lab();
    let program = lab.path("firecracker");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hearth-simulated-vmm"), &program).expect("linked");
    let plan = Plan { faults: vec![fault("start", When::Before, Effect::ExitWith(9))], ..Plan::default() };
    fs::write(lab.path("firecracker.json"), serde_json::to_vec(&plan).expect("JSON")).expect("written");
    let dir = lab.instance("web");
    let start = async || {
        let mut command = tokio::process::Command::new(&program);
        let status = command.args(["--api-sock", "no/where"]).current_dir(&dir).stdout(Stdio::null()).status();
        tokio::time::timeout(PATIENCE, status).await.expect("it ends").expect("it starts").code()
    };
    assert_eq!(start().await, Some(9));
    crate::faults::plan(&dir, Vec::new());
    assert_eq!(start().await, Some(1), "its directory's plan goes before");
}

#[tokio::test]
async fn a_plan_that_is_none_is_not_passed_over() {
    let lab = lab();
    let mut vmm = boot(&lab, "web").await;
    fs::write(vmm.dir.join(FILE), r#"{ "faults": [{ "on": "vsock", "do": "explode" }] }"#).expect("written");
    let answer = vmm.pause().await;
    assert_eq!(answer.status, 501);
    assert!(answer.body.contains("simulated.json") && answer.body.contains("explode"), "{}", answer.body);
}

#[tokio::test]
async fn the_guest_s_door_fails_too() {
    let lab = lab();
    let vmm = boot(&lab, "web").await;
    plan(&vmm.dir, vec![fault("vsock", When::Before, Effect::Drop)]);
    assert_eq!(knock(&vmm).await.read(&mut [0; 1]).await.expect("an end"), 0);
    plan(&vmm.dir, vec![fault("vsock", When::Before, Effect::Hang)]);
    assert!(tokio::time::timeout(A_WHILE, knock(&vmm).await.read_u8()).await.is_err());
    plan(&vmm.dir, Vec::new());
    assert_eq!(knock(&vmm).await.read_u8().await.expect("answered"), b'O');
}

#[tokio::test]
async fn a_guest_that_boots_slowly_lets_callers_wait_then_turns_them_away_then_answers() {
    let lab = lab();
    let dir = lab.instance("web");
    let slow = Plan { boot_ms: 800, ..Plan::default() };
    fs::write(dir.join(FILE), serde_json::to_vec(&slow).expect("JSON")).expect("written");
    let vmm = boot(&lab, "web").await;
    let begun = Instant::now();
    let mut turned_away = 0;
    while knock(&vmm).await.read_u8().await.is_err() {
        turned_away += 1;
        assert!(begun.elapsed() >= Duration::from_millis(300), "the first one waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(turned_away > 0 && begun.elapsed() >= Duration::from_millis(700));
}

async fn knock(vmm: &Vmm) -> UnixStream {
    let mut stream = UnixStream::connect(vmm.dir.join("vsock.sock")).await.expect("the door is there");
    stream.write_all(b"CONNECT 52\n").await.expect("taken");
    stream
}

fn plan(dir: &Path, faults: Vec<Fault>) {
    let plan = Plan { faults, ..Plan::default() };
    // Read for every request: it must never be there in part.
    fs::write(dir.join("plan.new"), serde_json::to_vec(&plan).expect("JSON")).expect("written");
    fs::rename(dir.join("plan.new"), dir.join(FILE)).expect("renamed");
}

fn fault(on: &str, when: When, effect: Effect) -> Fault {
    Fault { on: on.to_owned(), with: None, nth: None, when, effect }
}

fn with(fault: Fault, text: &str) -> Fault {
    Fault { with: Some(text.to_owned()), ..fault }
}

fn nth(fault: Fault, nth: u32) -> Fault {
    Fault { nth: Some(nth), ..fault }
}
