//! Lives of images, instances and snapshots, through the client.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hearth_api::Tags;
use hearth_api::client::ClientError;
use hearth_api::cp::CpRequest;
use hearth_api::images::{CreateImage, ImageStatus};
use hearth_api::instances::{
    CreateInstance, DeleteInstance, ForkInstance, InstanceState, NetworkRequest, StatQuery, TargetState,
    UpdateInstance, WaitQuery,
};
use hearth_api::restart::{BlockedReason, Ended, RestartMode, RestartPolicy, RestartStatus};
use hearth_api::snapshots::{CreateSnapshot, ForkSnapshot, ListSnapshots, RestoreSnapshot, SnapshotKind};
use hearth_model::{ErrorKind, Kind};

use super::server::{IMAGE, Server};
use crate::handle::InstanceView;

fn tags(pairs: &[(&str, &str)]) -> Tags {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn kind<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ErrorKind {
    result.expect_err("it must fail").kind()
}

#[tokio::test]
async fn an_image_from_import_to_removal() {
    let server = Server::new().await;
    let client = &server.client;
    let image = client.image(IMAGE).await.expect("found");
    assert_eq!(image.name, "docker.io/library/app:latest");
    assert_eq!(image.status, ImageStatus::Ready);
    assert_eq!(client.image(&image.name).await.expect("its full name has slashes"), image);
    assert_eq!(client.image(&format!("app@{}", image.digest)).await.expect("by digest").digest, image.digest);

    let request = CreateImage { name: IMAGE.into(), tags: Some(tags(&[("team", "a")])) };
    let asked = client.create_image(&request).await.expect("an imported image is answered with");
    assert_eq!(asked.tags, Some(tags(&[("team", "a")])));
    assert_eq!(client.images(&tags(&[("team", "a")])).await.expect("listed").len(), 1);
    assert_eq!(client.images(&tags(&[("team", "b")])).await.expect("listed").len(), 0);

    let missing = CreateImage { name: "nginx".into(), tags: None };
    assert_eq!(kind(client.create_image(&missing).await), ErrorKind::NotFound);
    client.delete_image(IMAGE).await.expect("removed");
    assert_eq!(kind(client.image(IMAGE).await), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_instance_from_creation_to_removal() {
    let server = Server::new().await;
    let client = &server.client;
    let wanted = hearth_api::instances::CreateInstance {
        tags: Some(tags(&[("team", "a")])),
        env: Some(tags(&[("A", "1")])),
        size: Some("512 MB".into()),
        vcpus: Some(2),
        network: Some(NetworkRequest { enabled: Some(false), ..NetworkRequest::default() }),
        ..Server::wanted("web")
    };
    let web = client.create_instance(&wanted).await.expect("created");
    assert_eq!(web.state, InstanceState::Running);
    assert_eq!((web.size.as_deref(), web.vcpus), (Some("512 MB"), Some(2)));
    assert_eq!(web.overlay_size.as_deref(), Some("64 MB"));
    assert_eq!(web.hypervisor.as_deref(), Some("qemu-microvm"));
    assert_eq!(web.tags, Some(tags(&[("team", "a")])));

    for name in ["web", &web.id, &web.id[..8]] {
        assert_eq!(client.instance(name).await.expect(name).id, web.id);
    }
    let listed = client.instances(Some(InstanceState::Running), &tags(&[("team", "a")])).await.expect("listed");
    assert_eq!(listed.len(), 1);
    assert_eq!(client.instances(Some(InstanceState::Standby), &Tags::new()).await.expect("listed").len(), 0);
    let stats = client.stats("web").await.expect("stats");
    assert_eq!(stats.allocated_memory_bytes, 512 << 20);

    let asleep = client.standby("web").await.expect("standby");
    assert_eq!((asleep.state, asleep.has_snapshot), (InstanceState::Standby, Some(true)));
    let awake = client.restore("web").await.expect("restored");
    assert_eq!(awake.state, InstanceState::Running);
    assert!(awake.generation > web.generation);
    assert_eq!(client.stop("web").await.expect("stopped").state, InstanceState::Stopped);
    assert_eq!(client.start("web").await.expect("started").state, InstanceState::Running);
    assert!(client.instance("web").await.expect("there").phase_durations_ms.expect("a clock").contains_key("standby"));

    let timeline = client.timeline("web", Some(3)).await.expect("a timeline");
    let ops: Vec<&str> = timeline.operations.iter().map(|operation| operation.op.as_str()).collect();
    assert_eq!(ops, ["start", "stop", "restore"]);
    assert!(timeline.operations.iter().all(|operation| !operation.steps.is_empty() && operation.error.is_none()));

    client.delete_instance("web", &DeleteInstance::default()).await.expect("deleted");
    assert_eq!(kind(client.instance("web").await), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_restart_policy_is_given_shown_changed_and_carried_out() {
    let server = Server::new().await;
    let client = &server.client;
    let policy = |policy, backoff: &str, max_attempts| RestartPolicy {
        policy: Some(policy),
        backoff: Some(backoff.into()),
        max_attempts: Some(max_attempts),
        stable_after: None,
    };
    let wanted =
        CreateInstance { restart_policy: Some(policy(RestartMode::OnFailure, "20ms", 1)), ..Server::wanted("web") };
    let web = client.create_instance(&wanted).await.expect("created");
    let shown = RestartPolicy { stable_after: Some("10m0s".into()), ..policy(RestartMode::OnFailure, "20ms", 1) };
    assert_eq!(web.restart_policy, Some(shown));
    assert_eq!(web.restart_status, Some(RestartStatus { attempts: Some(0), ..RestartStatus::default() }));
    assert_eq!(web.end, None);

    let dir = server.app.registry.resolve("web").expect("it is there").dir();
    let crash = || server.world.fake().end(dir.path(), hearth_vmm::Ended::Signal(6));
    let runs =
        |attempts| move |view: &InstanceView| view.busy_since_ms.is_none() && view.record.restart.attempts == attempts;
    crash();
    becomes(&server, "web", runs(1)).await;
    crash();
    becomes(&server, "web", |view| view.record.restart.blocked.is_some()).await;
    let web = client.instance("web").await.expect("there");
    let status = web.restart_status.expect("a status");
    assert_eq!((status.attempts, status.blocked_reason), (Some(1), Some(BlockedReason::MaxAttemptsExceeded)));
    let end = web.end.expect("it has ended");
    assert_eq!((end.of, end.signal, web.exit_code), (Ended::Vmm, Some(6), Some(-1)));

    let change = |restart_policy| UpdateInstance { restart_policy };
    let same = client.update_instance("web", &change(None)).await.expect("nothing to do");
    assert_eq!(same.restart_policy.expect("as it was").max_attempts, Some(1));
    let never = RestartPolicy { policy: Some(RestartMode::Never), ..RestartPolicy::default() };
    let web = client.update_instance("web", &change(Some(never))).await.expect("changed");
    assert_eq!((web.restart_policy, web.restart_status), (None, None));
    let always = policy(RestartMode::Always, "1h", 0);
    let web = client.update_instance("web", &change(Some(always))).await.expect("changed");
    assert_eq!(web.restart_policy.expect("a policy").backoff.as_deref(), Some("1h0m0s"));
    assert_eq!(web.state, InstanceState::Stopped, "a policy boots nothing");

    let wrong = client.update_instance("web", &change(Some(policy(RestartMode::Always, "soon", 0)))).await;
    assert_eq!(kind(wrong), ErrorKind::Invalid);
    for body in [r#"{"restart_policy":{"policy":"sometimes"}}"#, r#"{"restart_policy":{"max_attempts":-1}}"#] {
        assert_eq!(server.send("PATCH /instances/web", body).await.status, 400, "{body}");
    }
    client.start("web").await.expect("started");
    crash();
    becomes(&server, "web", |view| view.record.restart.next_attempt_at_ms.is_some()).await;
    let web = client.stop("web").await.expect("stopped while it waits");
    assert_eq!(web.restart_status.expect("a status").blocked_reason, Some(BlockedReason::ManualStop));
}

/// Resolves when the view says so.
async fn becomes(server: &Server, name: &str, wanted: impl Fn(&InstanceView) -> bool) {
    let mut view = server.app.registry.resolve(name).expect("it is there").watch();
    let seen = tokio::time::timeout(Duration::from_secs(20), view.wait_for(|view| wanted(view))).await;
    seen.expect("in time").expect("its driver lives");
}

async fn appears(server: &Server, name: &str) {
    while server.app.registry.resolve(name).is_err() {
        tokio::task::yield_now().await;
    }
}

/// Its guest never answers: without being cut short, the boot would take its two minutes.
#[tokio::test]
async fn an_instance_that_boots_can_be_deleted() {
    let server = Server::new().await;
    let before = server.world.picture();
    server.world.mute.store(true, Ordering::Relaxed);
    let wanted = Server::wanted("web");
    let delete = async {
        appears(&server, "web").await;
        assert_eq!(kind(server.client.stop("web").await), ErrorKind::Busy);
        server.client.delete_instance("web", &DeleteInstance::default()).await.expect("deleted");
    };
    let (made, ()) = tokio::join!(server.client.create_instance(&wanted), delete);
    let error = made.expect_err("deleted meanwhile");
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.to_string().contains("cut short"), "{error}");
    assert_eq!(server.world.at_rest().await, before);

    // One that was there before is ended first, and then removed.
    server.world.mute.store(false, Ordering::Relaxed);
    server.create("web").await;
    server.client.stop("web").await.expect("stopped");
    server.world.mute.store(true, Ordering::Relaxed);
    let delete = async {
        becomes(&server, "web", |view| view.busy_since_ms.is_some()).await;
        server.client.delete_instance("web", &DeleteInstance::default()).await.expect("deleted");
    };
    let (started, ()) = tokio::join!(server.client.start("web"), delete);
    assert_eq!(kind(started), ErrorKind::Cancelled);
    assert_eq!(server.world.at_rest().await, before);
}

#[tokio::test]
async fn a_client_that_hangs_up_takes_with_it_only_what_is_attached() {
    let server = Server::new().await;
    let before = server.world.picture();
    server.world.mute.store(true, Ordering::Relaxed);
    let made_and_left = async |name: &'static str, attached: bool| {
        let client = server.client.clone();
        let request = tokio::spawn(async move {
            let wanted = Server::wanted(name);
            if attached {
                client.create_attached_instance(&wanted).await
            } else {
                client.create_instance(&wanted).await
            }
        });
        appears(&server, name).await;
        let view = server.app.registry.resolve(name).expect("it is there").watch();
        request.abort();
        view
    };

    let mut view = made_and_left("attached", true).await;
    let gone = tokio::time::timeout(Duration::from_secs(20), view.wait_for(|view| view.gone)).await;
    gone.expect("in time").expect("it is told");
    assert_eq!(server.world.at_rest().await, before);

    let mut view = made_and_left("free", false).await;
    let ends = view.wait_for(|view| view.cut_short || view.busy_since_ms.is_none());
    assert!(tokio::time::timeout(Duration::from_millis(300), ends).await.is_err(), "it boots on");
    server.client.delete_instance("free", &DeleteInstance::default()).await.expect("deleted");
    assert_eq!(server.world.at_rest().await, before);
}

#[tokio::test]
async fn forks_of_one_and_of_many() {
    let server = Server::new().await;
    let client = &server.client;
    let web = server.create("web").await;
    let fork = |name: &str, count| ForkInstance { name: name.into(), count, ..ForkInstance::default() };
    assert_eq!(kind(client.fork("web", &fork("a", None)).await), ErrorKind::WrongState, "it runs");

    let running = ForkInstance { from_running: Some(true), ..fork("a", None) };
    let one = client.fork("web", &running).await.expect("forked").instances;
    assert_eq!((one[0].name.as_str(), one[0].state), ("a", InstanceState::Running));
    assert_eq!(one[0].forked_from.as_ref().and_then(|from| from.instance_id.as_deref()), Some(web.id.as_str()));

    client.standby("web").await.expect("standby");
    server.create("many-2").await;
    let request = ForkInstance { target_state: Some(TargetState::Running), ..fork("many", Some(3)) };
    let many = client.fork("web", &request).await.expect("forked, most of them");
    let names: Vec<&str> = many.instances.iter().map(|made| made.name.as_str()).collect();
    assert_eq!(names, ["many-1", "many-3"]);
    assert_eq!((many.errors[0].name.as_str(), many.errors[0].error.kind()), ("many-2", ErrorKind::AlreadyExists));

    let pairs = |name: &str, value: &str| Some([(name.to_owned(), value.to_owned())].into());
    let own = ForkInstance { env: pairs("A", "1"), tags: pairs("of", "web"), ..request };
    let own = ForkInstance { name: "own".into(), count: Some(2), ..own };
    let made = client.fork("web", &own).await.expect("forked").instances;
    assert_eq!(made.len(), 2);
    for fork in made {
        assert_eq!((fork.env, fork.tags), (pairs("A", "1"), pairs("of", "web")), "{}", fork.name);
    }
    assert_eq!(client.instance("web").await.expect("there").tags, None, "the source is as it was");
    let odd = ForkInstance { env: pairs("A=B", "1"), ..fork("odd", None) };
    assert_eq!(kind(client.fork("web", &odd).await), ErrorKind::Invalid);

    assert_eq!(kind(client.fork("web", &fork("x", Some(0))).await), ErrorKind::Invalid);
    assert_eq!(kind(client.fork("web", &fork("many-1", None)).await), ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn snapshots_are_taken_listed_restored_forked_and_removed() {
    let server = Server::new().await;
    let client = &server.client;
    let web = server.create("web").await;
    let wanted = |kind, name: &str| CreateSnapshot { kind, name: Some(name.into()), tags: Some(tags(&[("k", name)])) };
    let base = client.create_snapshot("web", &wanted(SnapshotKind::Standby, "base")).await.expect("saved");
    assert_eq!((base.name.as_deref(), base.source_instance_name.as_str()), (Some("base"), "web"));
    assert_eq!(client.instance("web").await.expect("there").state, InstanceState::Running, "it goes on");
    assert_eq!(
        kind(client.create_snapshot("web", &wanted(SnapshotKind::Standby, "base")).await),
        ErrorKind::AlreadyExists
    );
    assert_eq!(kind(client.create_snapshot("web", &wanted(SnapshotKind::Stopped, "x")).await), ErrorKind::WrongState);

    for (query, tags, found) in [
        (ListSnapshots::default(), Tags::new(), 1),
        (ListSnapshots { name: Some("base".into()), ..ListSnapshots::default() }, tags(&[("k", "base")]), 1),
        (ListSnapshots { source_instance_id: Some(web.id.clone()), ..ListSnapshots::default() }, Tags::new(), 1),
        (ListSnapshots { kind: Some(SnapshotKind::Stopped), ..ListSnapshots::default() }, Tags::new(), 0),
        (ListSnapshots::default(), tags(&[("k", "other")]), 0),
    ] {
        assert_eq!(client.snapshots(&query, &tags).await.expect("listed").len(), found, "{query:?}");
    }
    assert_eq!(client.snapshot("base").await.expect("by name").id, base.id);

    client.stop("web").await.expect("stopped");
    let back = client.restore_snapshot("web", "base", &RestoreSnapshot::default()).await.expect("restored");
    assert_eq!(back.state, InstanceState::Running);

    let fork = |name: &str| ForkSnapshot { name: name.into(), ..ForkSnapshot::default() };
    let made = client.fork_snapshot("base", &fork("child")).await.expect("forked").instances;
    assert_eq!(made[0].forked_from.as_ref().and_then(|from| from.snapshot_id.as_deref()), Some(base.id.as_str()));
    let variables = Some([("A".to_owned(), "1".to_owned())].into());
    let given = ForkSnapshot { env: variables.clone(), tags: variables.clone(), ..fork("given") };
    let given = client.fork_snapshot("base", &given).await.expect("forked").instances.remove(0);
    assert_eq!((&given.env, &given.tags), (&variables, &variables));
    let other = ForkSnapshot { target_hypervisor: Some("qemu".into()), ..fork("other") };
    assert_eq!(kind(client.fork_snapshot("base", &other).await), ErrorKind::Unsupported);
    let same = ForkSnapshot { target_hypervisor: Some("qemu-microvm".into()), ..fork("same") };
    client.fork_snapshot("base", &same).await.expect("its own");

    assert_eq!(
        kind(client.restore_snapshot("child", "base", &RestoreSnapshot::default()).await),
        ErrorKind::Invalid,
        "it is not the child's"
    );
    client.delete_snapshot("base").await.expect("removed");
    assert_eq!(kind(client.snapshot("base").await), ErrorKind::NotFound);
    assert_eq!(client.instance("child").await.expect("there").state, InstanceState::Running, "forks stay");
}

#[tokio::test]
async fn waiting_ends_with_the_state_with_time_or_with_the_instance() {
    let server = Server::new().await;
    let client = &server.client;
    server.create("web").await;
    let wait = |state, timeout: &str| WaitQuery { state, timeout: Some(timeout.into()) };

    let there = client.wait("web", &wait(InstanceState::Running, "1s")).await.expect("waited");
    assert!(!there.timed_out);
    let never = client.wait("web", &wait(InstanceState::Stopped, "50ms")).await.expect("waited");
    assert!(never.timed_out && never.state == InstanceState::Running);

    let patient = tokio::spawn({
        let client = client.clone();
        let query = wait(InstanceState::Standby, "1m");
        async move { client.wait("web", &query).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.standby("web").await.expect("standby");
    let seen = patient.await.expect("no panic").expect("waited");
    assert_eq!((seen.state, seen.timed_out), (InstanceState::Standby, false));

    let forlorn = tokio::spawn({
        let client = client.clone();
        let query = wait(InstanceState::Running, "1m");
        async move { client.wait("web", &query).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.delete_instance("web", &DeleteInstance::default()).await.expect("deleted");
    assert_eq!(kind(forlorn.await.expect("no panic")), ErrorKind::NotFound);
}

#[tokio::test]
async fn paths_in_a_guest_are_looked_at() {
    let server = Server::new().await;
    server.create("web").await;
    let copied = server.client.cp_to("web", &CpRequest::to("/etc/motd"), &b"hello"[..]).await;
    assert_eq!(copied.expect("copied"), 5);
    let stat = |path: &str| StatQuery { path: path.into(), follow_links: None };
    let file = server.client.stat("web", &stat("/etc/motd")).await.expect("looked");
    assert!(file.exists && file.is_file == Some(true) && file.size == Some(5));
    let nothing = server.client.stat("web", &stat("/no/such")).await.expect("looked");
    assert!(!nothing.exists && nothing.error.is_none());

    server.client.standby("web").await.expect("standby");
    assert_eq!(kind(server.client.stat("web", &stat("/etc/motd")).await), ErrorKind::WrongState);
}

#[tokio::test]
async fn what_the_host_can_do_and_has() {
    let server = Server::new().await;
    server.client.health().await.expect("healthy");
    let capabilities = server.client.capabilities().await.expect("capabilities");
    assert_eq!(capabilities.default_runtime.name, "qemu-microvm");
    let names: Vec<&str> = capabilities.runtimes.iter().map(|runtime| runtime.name.as_str()).collect();
    assert_eq!(names, ["firecracker", "qemu", "qemu-microvm"]);

    server.create("web").await;
    let resources = server.client.resources().await.expect("resources");
    assert_eq!((resources.cpu.allocated, resources.memory.allocated), (1, 256 << 20));
    assert_eq!(resources.allocations[0].instance_name, "web");
    assert!(resources.disk_breakdown.as_ref().expect("it is known").images_bytes > Some(0));
    // What is said of each resource is what requests are held to.
    let limits = server.world.host.room.figures().limits;
    assert_eq!((resources.memory.effective_limit, resources.memory.oversub_ratio), (limits.most.memory, 4.0));
    assert_eq!((resources.memory.capacity * 4, resources.cpu.capacity * 128), (limits.most.memory, limits.most.vcpus));
    assert_eq!(resources.disk.effective_limit, resources.disk.capacity - limits.disk_reserve);
    let tables = [resources.files.clone().expect("shown"), resources.processes.clone().expect("shown")];
    for resource in [&resources.cpu, &resources.memory, &resources.disk, &tables[0], &tables[1]] {
        assert_eq!(resource.allocated + resource.available, resource.effective_limit, "{resource:?}");
        assert!(resource.allocated > 0, "{resource:?}");
    }
    server.client.standby("web").await.expect("standby");
    let resources = server.client.resources().await.expect("resources");
    assert_eq!((resources.cpu.allocated, resources.memory.allocated, resources.allocations[0].memory_bytes), (0, 0, 0));
}

#[tokio::test]
async fn a_client_that_hangs_up_stops_nothing() {
    let server = Server::new().await;
    let client = server.client.clone();
    let creation = tokio::spawn(async move { client.create_instance(&Server::wanted("web")).await });
    // Hung up as soon as it is known to have begun.
    while server.client.instance("web").await.is_err() {
        tokio::task::yield_now().await;
    }
    creation.abort();
    let query = WaitQuery { state: InstanceState::Running, timeout: Some("10s".into()) };
    let seen = server.client.wait("web", &query).await.expect("waited");
    assert_eq!((seen.state, seen.timed_out), (InstanceState::Running, false));
}
