//! `/metrics`: what is counted of what happens, and who may read it.

use hearth_api::client::ClientError;
use hearth_api::instances::{ForkInstance, Instance, TargetState};
use hearth_model::{ErrorKind, Kind};

use super::exposition::{self, Exposition};
use super::server::Server;
use crate::ops::faults::{How, When};

/// Restores, and fails at the step of that name.
async fn restore_that_fails_at(server: &Server, name: &str, step: &str) -> Result<Instance, ClientError> {
    let faults = &server.app.host.faults;
    faults.set(None);
    server.client.restore(name).await.expect("restored");
    let nth = faults.calls().iter().position(|call| *call == step).expect("a restore has that step");
    server.client.standby(name).await.expect("standby");
    faults.set(Some((nth, When::Before, How::Error)));
    let failed = server.client.restore(name).await;
    faults.set(None);
    failed
}

/// A little of everything: after it, every series that can be there is.
pub(super) async fn a_day(server: &Server) -> Exposition {
    let client = &server.client;
    server.create("web").await;
    client.standby("web").await.expect("standby");
    for step in ["load snapshot", "refresh identity"] {
        let failed = restore_that_fails_at(server, "web", step).await.expect_err("it must fail");
        assert_eq!(failed.kind(), ErrorKind::HostFailed);
    }
    let request =
        ForkInstance { name: "fork".into(), target_state: Some(TargetState::Running), ..ForkInstance::default() };
    client.fork("web", &request).await.expect("forked");
    server.create("other").await;
    client.stop("other").await.expect("stopped");
    assert_eq!(client.restore("other").await.expect_err("it is stopped").kind(), ErrorKind::WrongState);
    exposition::read(server).await
}

#[tokio::test]
async fn operations_steps_and_restores_are_counted() {
    let server = Server::new().await;
    let before = exposition::read(&server).await;
    assert_eq!(before.sum("hearth_operations_total", &[]), 0.0);
    let figures = a_day(&server).await;

    let operations = |op, result| {
        let labels = [("op", op), ("backend", "qemu-microvm"), ("result", result)];
        figures.sum("hearth_operations_total", &labels)
    };
    for (op, result, count) in [
        ("create", "ok", 2.0),
        ("standby", "ok", 3.0),
        ("restore", "ok", 2.0),
        ("restore", "host_failed", 2.0),
        ("restore", "wrong_state", 0.0), // refused: it never was an operation
        ("fork", "ok", 1.0),
        ("stop", "ok", 1.0),
    ] {
        assert_eq!(operations(op, result), count, "{op} {result}");
    }
    assert_eq!(figures.sum("hearth_operations_total", &[]), 11.0, "and nothing else");
    assert_eq!(figures.sum("hearth_operations_in_progress", &[]), 0.0);

    let timed = |op| figures.sum("hearth_operation_duration_seconds_count", &[("op", op)]);
    assert_eq!((timed("restore"), timed("fork"), timed("create")), (2.0, 1.0, 2.0));
    assert!(figures.sum("hearth_operation_duration_seconds_sum", &[("op", "restore")]) > 0.0);

    let step = |name, op, step| figures.sum(name, &[("op", op), ("step", step)]);
    assert_eq!(step("hearth_step_duration_seconds_count", "restore", "load snapshot"), 3.0);
    assert_eq!(step("hearth_step_failures_total", "restore", "load snapshot"), 1.0);
    assert_eq!(step("hearth_step_failures_total", "restore", "refresh identity"), 1.0);
    assert_eq!(figures.sum("hearth_step_failures_total", &[]), 2.0);

    let restores = |plan, result| {
        let labels = [("backend", "qemu-microvm"), ("plan", plan), ("result", result)];
        figures.sum("hearth_restores_total", &labels)
    };
    assert_eq!((restores("load_resume", "ok"), restores("load_resume", "failed")), (3.0, 2.0), "the fork is one");
    assert_eq!(figures.sum("hearth_restores_total", &[]), 5.0);
    assert_eq!(figures.sum("hearth_restores_not_resumed_on_load_total", &[]), 0.0, "QEMU cannot: it was not asked to");
    assert_eq!(figures.sum("hearth_refresh_failures_total", &[("backend", "qemu-microvm")]), 1.0);
}

#[tokio::test]
async fn instances_are_counted_by_state_as_they_are_now() {
    let server = Server::new().await;
    let figures = a_day(&server).await;
    let count = |state| figures.sum("hearth_instances", &[("state", state)]);
    assert_eq!(["running", "standby", "stopped", "failed"].map(count), [1.0, 1.0, 1.0, 0.0]);
    assert_eq!(figures.sum("hearth_instances", &[("backend", "qemu")]), 0.0);

    server.client.delete_instance("fork", &hearth_api::instances::DeleteInstance::default()).await.expect("deleted");
    let figures = exposition::read(&server).await;
    assert_eq!(figures.sum("hearth_instances", &[("state", "running")]), 0.0);
}

#[tokio::test]
async fn an_operation_that_runs_is_seen_while_it_runs() {
    let server = Server::new().await;
    server.create("web").await;
    let faults = &server.app.host.faults;
    faults.set(Some((0, When::Before, How::Death)));
    let stuck = tokio::spawn({
        let client = server.client.clone();
        async move { client.standby("web").await }
    });
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while !faults.dead() {
        assert!(tokio::time::Instant::now() < deadline, "the operation never began");
        tokio::task::yield_now().await;
    }
    let figures = exposition::read(&server).await;
    let labels = [("op", "standby"), ("backend", "qemu-microvm")];
    assert_eq!(figures.sum("hearth_operations_in_progress", &labels), 1.0);
    assert_eq!(figures.sum("hearth_operations_in_progress", &[]), 1.0);
    assert_eq!(figures.sum("hearth_instances", &[("state", "running")]), 1.0, "it counts as where it came from");
    stuck.abort();
}

/// Names of instances, images and snapshots are without end, and nobody else's business.
#[tokio::test]
async fn series_do_not_grow_with_instances_and_name_none() {
    let server = Server::new().await;
    let before = a_day(&server).await;
    for name in ["apple", "banana"] {
        server.create(name).await;
        server.client.standby(name).await.expect("standby");
    }
    let after = exposition::read(&server).await;
    assert_eq!(after.samples.len(), before.samples.len());
    for name in ["apple", "banana", "docker.io", "app:"] {
        assert!(!after.text.contains(name), "{name}");
    }
}

#[tokio::test]
async fn prometheus_is_answered_in_the_format_that_it_asks_for() {
    let server = Server::new().await;
    let plain = exposition::get(&server, &[]).await;
    assert_eq!(plain.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(plain.body.contains("# TYPE hearth_operations_total counter\n") && !plain.body.contains("# EOF"));

    let accept = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                  text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let open = exposition::get(&server, &[("accept", accept)]).await;
    assert_eq!(open.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.body.contains("# TYPE hearth_operations counter\n") && open.body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn metrics_need_a_token_like_everything_else_unless_they_are_made_public() {
    let bearer = |secret| format!("Bearer {}", crate::auth::sign(secret, r#"{"alg":"HS256"}"#, r#"{"sub":"p"}"#));
    for (public, token, status) in [
        (false, None, 401),
        (false, Some(bearer("other")), 401),
        (false, Some(bearer("hush")), 200),
        (true, None, 200),
        (true, Some(bearer("other")), 200),
    ] {
        let server = Server::configured(Some("hush"), |config| config.metrics.public = public).await;
        let headers: Vec<(&str, &str)> = token.iter().map(|token| ("authorization", token.as_str())).collect();
        assert_eq!(exposition::get(&server, &headers).await.status, status, "{public} {token:?}");
        assert_eq!(server.raw("GET /images", &[], "").await.status, 401, "and nothing else becomes public");
    }
    let open = Server::empty(None).await;
    assert_eq!(exposition::get(&open, &[]).await.status, 200);
    assert_eq!(exposition::get(&open, &[("origin", "https://evil.example")]).await.status, 401);
}
