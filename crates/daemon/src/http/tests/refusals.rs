//! What is refused: status, code, and words that help.

use hearth_api::headers::{REQUEST_ID, SHOULD_RETRY};
use hearth_api::instances::DeleteInstance;
use hearth_api::unsupported::{self, Field, Nothing};
use serde_json::json;

use super::server::Server;

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let server = Server::new().await;
    server.create("web").await;
    server.create("web-2").await;
    let big = format!(r#"{{"image":"{}"}}"#, "x".repeat(2 << 20));
    for (head, body, status, code, says) in [
        ("GET /instances/nope", "", 404, "not_found", "nope"),
        ("GET /instances/wbe", "", 404, "not_found", "wbe"),
        ("GET /nope", "", 404, "not_found", "/nope"),
        ("PUT /instances", "", 405, "invalid", "PUT"),
        ("GET /instances?state=running", "", 400, "invalid", "running"),
        ("GET /instances?stat=Running", "", 400, "invalid", "stat"),
        ("GET /instances/web/wait", "", 400, "invalid", "state"),
        ("GET /instances/web/wait?state=Running&timeout=soon", "", 400, "invalid", "soon"),
        ("GET /instances/web/logs?source=kernel", "", 400, "invalid", "kernel"),
        ("GET /instances/web/stat?path=x", "", 400, "invalid", "absolute"),
        ("GET /instances/web/exec", "", 400, "invalid", "WebSocket"),
        ("GET /instances/%ff", "", 400, "invalid", "path"),
        ("POST /instances", "{", 400, "invalid", "not JSON"),
        ("POST /instances", "", 400, "invalid", "image"),
        ("POST /instances", &big, 413, "invalid", "larger"),
        ("POST /instances", r#"{"image":"app","name":"x","nmae":1}"#, 400, "invalid", "nmae"),
        ("POST /instances", r#"{"image":"UPPER","name":"x"}"#, 400, "invalid", "UPPER"),
        ("POST /instances", r#"{"image":"nginx","name":"x"}"#, 404, "not_found", "nginx"),
        ("POST /instances", r#"{"image":"app","name":"x"}"#, 400, "invalid", "names no command"),
        ("POST /instances", r#"{"image":"app","name":"Bad Name","cmd":["/bin/app"]}"#, 400, "invalid", "Bad Name"),
        ("POST /instances", r#"{"image":"app","name":"web","cmd":["/bin/app"]}"#, 409, "already_exists", "web"),
        ("POST /instances", r#"{"image":"app","name":"x","cmd":["a"],"size":"256"}"#, 400, "invalid", "256MB"),
        (
            "POST /instances",
            r#"{"image":"app","name":"x","cmd":["a"],"size":"1TB"}"#,
            507,
            "exhausted",
            "this host has",
        ),
        ("POST /instances/web/restore", "", 200, "", ""),
        ("POST /instances/web/fork", r#"{"name":"y"}"#, 409, "wrong_state", "running"),
        ("POST /instances/web/fork", r#"{"name":"y","count":100000}"#, 400, "invalid", "count"),
        ("POST /instances/web/start", r#"{"cmd":["x"]}"#, 422, "unsupported", "cmd"),
        ("POST /instances/web/snapshots", r#"{"kind":"Hibernate"}"#, 400, "invalid", "Hibernate"),
        ("POST /instances/web/snapshots/nope/restore", "", 404, "not_found", "nope"),
        ("POST /snapshots/nope/fork", r#"{"name":"y"}"#, 404, "not_found", "nope"),
        ("POST /images/import", r#"{"path":"relative","name":"x"}"#, 400, "invalid", "absolute"),
        ("POST /images/import", r#"{"path":"/no/such/file","name":"x"}"#, 404, "not_found", "/no/such/file"),
        ("GET /volumes", "", 422, "unsupported", "volumes"),
        ("POST /instances/web/auto-standby/hold", "", 422, "unsupported", "automatic standby"),
        ("POST /images/app/tag", "", 422, "unsupported", "tagging"),
    ] {
        let answer = server.send(head, body).await;
        assert_eq!(answer.status, status, "{head} {:.80}: {}", body, answer.body);
        assert_eq!(answer.headers[REQUEST_ID].len(), 16, "{head}");
        if status == 200 {
            continue;
        }
        let error = answer.error();
        assert_eq!(error.code, code, "{head}: {error:?}");
        assert!(error.message.contains(says), "{head}: {says:?} is not in {:?}", error.message);
        assert_eq!(error.request_id.as_ref(), Some(&answer.headers[REQUEST_ID]), "{head}");
        assert_eq!(answer.headers[SHOULD_RETRY], "false", "{head}");
    }
    let similar = server.send("GET /instances/wep", "").await.error().hint.expect("a hint");
    assert!(similar.contains("web"), "{similar}");
}

#[tokio::test]
async fn an_ambiguous_beginning_names_the_candidates() {
    let server = Server::new().await;
    // Ids begin with a letter: with 27 instances two begin alike.
    let mut ids = Vec::new();
    for number in 0..27 {
        ids.push(server.create(&format!("n{number}")).await.id);
    }
    let shared = ids.iter().find(|id| ids.iter().filter(|other| other[..1] == id[..1]).count() > 1).expect("two");
    let answer = server.send(&format!("GET /instances/{}", &shared[..1]), "").await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.error().message.contains("several"), "{}", answer.body);
}

/// A value that asks for something.
fn something(field: &Field) -> serde_json::Value {
    match field.also_nothing {
        Nothing::Empty => json!("x"),
        Nothing::Zero => json!("10MB"),
        Nothing::Disabled => json!({"enabled": true}),
        Nothing::Member(name, _) => json!({name: "always"}),
        Nothing::Text(_) => json!("linux/arm64"),
        Nothing::AnyBool => json!("x"),
    }
}

#[tokio::test]
async fn fields_that_are_not_acted_on_are_refused_and_change_nothing() {
    let server = Server::new().await;
    server.create("web").await;
    for (route, fields) in unsupported::ALL {
        let head = route.replace("{id}", "web");
        for field in *fields {
            let mut body = json!({"image": "app", "name": "app", "kind": "Standby", "cmd": ["/bin/app"]});
            let keys: &[&str] = match *route {
                "POST /instances" => &["image", "name", "cmd"],
                "POST /images" => &["name"],
                "POST /instances/{id}/snapshots" => &["kind"],
                _ => &[],
            };
            body.as_object_mut().expect("an object").retain(|key, _| keys.contains(&key.as_str()));
            let value = something(field);
            match field.path.split_once('.') {
                Some((outer, inner)) => body[outer] = json!({inner: value}),
                None => body[field.path] = value,
            }
            let answer = server.send(&head, &body.to_string()).await;
            assert_eq!(answer.status, 422, "{head} {body}: {}", answer.body);
            let error = answer.error();
            assert_eq!(error.code, "unsupported");
            assert!(error.message.contains(field.path), "{}", error.message);
            assert!(error.hint.expect("a hint").contains(field.path));
        }
    }
    assert_eq!(server.client.instances(None, &hearth_api::Tags::new()).await.expect("listed").len(), 1);
    assert_eq!(
        server.client.instance("web").await.expect("there").state,
        hearth_api::instances::InstanceState::Running
    );
}

#[tokio::test]
async fn a_snapshot_of_no_instance_says_so_and_what_to_do() {
    let server = Server::new().await;
    let imported = server.world.import("theirs").await.expect("imported");
    let web = server.create("web").await;
    let answer = server.send("POST /instances/web/snapshots", r#"{"kind":"Standby","name":"warm"}"#).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    server.client.delete_instance("web", &DeleteInstance::default()).await.expect("removed");
    for (instance, snapshot, says) in [
        (imported.source_instance.as_str(), "theirs", "was imported"),
        (&web.id, "warm", "instance web, which snapshot warm was taken of, is no more"),
    ] {
        let answer = server.send(&format!("POST /instances/{instance}/snapshots/{snapshot}/restore"), "{}").await;
        assert_eq!(answer.status, 404, "{}", answer.body);
        let error = answer.error();
        assert!(error.message.contains(says), "{}", error.message);
        assert!(error.hint.expect("a hint").contains(&format!("hearth snapshot fork {snapshot}")));
    }
    let error = server.send("POST /instances/nope/snapshots/nope/restore", "{}").await.error();
    assert!(error.message.contains("no instance \"nope\""), "{}", error.message);
}

#[tokio::test]
async fn a_request_of_an_sdk_with_everything_off_is_taken() {
    let server = Server::new().await;
    let body = json!({
        "image": "app", "name": "web", "cmd": ["/bin/app"], "overlay_size": "64MB",
        "auto_standby": {"enabled": false}, "credentials": {}, "devices": [], "disk_io_bps": "",
        "expires_at": null, "gpu": {"profile": ""}, "health_check": {"type": "none"}, "hotplug_size": "0",
        "network": {"enabled": false, "bandwidth_download": "", "egress": {"enabled": false}},
        "platform": "linux/amd64", "restart_policy": {"policy": "never"}, "skip_guest_agent": false,
        "skip_kernel_headers": true, "snapshot_policy": {"compression": {"enabled": false}}, "ttl": "0s",
        "volumes": [],
    });
    let answer = server.send("POST /instances", &body.to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    for (head, body) in [
        ("PATCH /instances/web", json!({"ttl": "0s"})),
        ("POST /instances/web/standby", json!({"compression": {"enabled": false, "level": 3}})),
        ("POST /instances/web/restore", json!({})),
        ("POST /instances/web/stop", json!({})),
        ("POST /instances/web/start", json!({})),
    ] {
        let answer = server.send(head, &body.to_string()).await;
        assert_eq!(answer.status, 200, "{head}: {}", answer.body);
    }
}

#[tokio::test]
async fn with_a_secret_only_who_has_a_token_is_let_in() {
    let server = Server::empty(Some("hush")).await;
    server.client.images(&hearth_api::Tags::new()).await.expect("the client has a token");
    for (headers, says) in [
        (vec![], "token is required"),
        (vec![("authorization", "Bearer nonsense")], "not a JWT"),
        (vec![("authorization", "Basic abc")], "Bearer"),
    ] {
        let answer = server.raw("GET /images", &headers, "").await;
        assert_eq!(answer.status, 401, "{}", answer.body);
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        let error = answer.error();
        assert_eq!(error.code, "unauthorized");
        assert!(error.message.contains(says), "{}", error.message);
        assert!(!answer.body.contains("hush"));
    }
    for open in ["GET /health", "GET /spec.json", "GET /spec.yaml"] {
        assert_eq!(server.raw(open, &[], "").await.status, 200, "{open}");
    }
}

#[tokio::test]
async fn without_a_secret_tokens_are_ignored_and_web_pages_are_kept_out() {
    let server = Server::new().await;
    for (headers, status) in [
        (vec![("authorization", "Bearer whatever")], 200),
        (vec![("origin", "https://evil.example")], 401),
        (vec![("host", "evil.example")], 401),
        (vec![("host", "localhost")], 200),
    ] {
        assert_eq!(server.raw("GET /images", &headers, "").await.status, status, "{headers:?}");
    }
}

#[tokio::test]
async fn the_specification_names_every_route() {
    let server = Server::empty(None).await;
    let json = server.raw("GET /spec.json", &[], "").await;
    let document: serde_json::Value = serde_json::from_str(&json.body).expect("JSON");
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
    assert!(document["paths"]["/instances/{id}/fork"]["post"]["responses"]["201"].is_object());
    assert!(server.raw("GET /spec.yaml", &[], "").await.body.contains("/instances/{id}/fork:"));
}
