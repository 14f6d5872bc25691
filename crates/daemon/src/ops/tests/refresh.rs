//! The refresh fails closed: a guest that is not known to be itself does not run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hearth_agent_client::fake::AtRefresh;
use hearth_agent_client::{ExecEvent, ExecRequest, RefreshPart};
use hearth_model::{Backend, ErrorKind, InstanceState};
use hearth_vmm::Ended;

use super::{Target, fork};
use crate::error::OpError;
use crate::handle::InstanceHandle;
use crate::registry::{ForkRequest, ForkSource};
use crate::world::{Manners, World};

/// With agents that have a second to answer.
async fn hurried(backend: Backend) -> World {
    World::configured(backend, |config| config.timeouts.agent_s = 1).await
}

fn at_refresh(at_refresh: AtRefresh) -> Manners {
    Manners { at_refresh, ..Manners::default() }
}

/// What an agent does, and what the error tells of it.
fn misdeeds() -> [(AtRefresh, ErrorKind, &'static str); 6] {
    let silent = "did not answer within 1s; it had come to its clock, randomness, names or files";
    let slow = AtRefresh::IsSlow(Duration::from_secs(8));
    let stuck = AtRefresh::IsStuckAt(Some(RefreshPart::SshHostKeys));
    let failing = AtRefresh::Fails("run hook /etc/hearth/on-fork.d/10-own: exited with code 3".into());
    [
        (AtRefresh::IsStuckAt(None), ErrorKind::GuestUnresponsive, silent),
        (slow, ErrorKind::GuestUnresponsive, silent),
        (stuck, ErrorKind::GuestUnresponsive, "did not answer within 2s; it had come to SSH host keys"),
        (AtRefresh::Lies, ErrorKind::GuestUnresponsive, "acknowledges generation 0, not 1"),
        (AtRefresh::Dies, ErrorKind::GuestUnresponsive, "the connection to the guest's agent is lost"),
        (failing, ErrorKind::GuestFailed, "run hook /etc/hearth/on-fork.d/10-own: exited with code 3"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_acknowledge_is_ended_and_rests_where_it_came_from() {
    for backend in [Backend::QemuMicrovm, Backend::Firecracker] {
        let world = World::configured(backend, |config| {
            config.timeouts.agent_s = 1;
            config.timeouts.hooks_s = 1;
        })
        .await;
        let web = world.create("web").await.expect("created");
        web.standby().await.expect("standby");
        let before = world.at_rest().await;
        for (misdeed, kind, told) in misdeeds() {
            world.set_manners(at_refresh(misdeed.clone()));
            for is_fork in [false, true] {
                let failed = match is_fork {
                    true => fork(&world, Some(Target::Running)).await,
                    false => web.restore().await.map(drop),
                };
                let error = failed.expect_err("it is not itself");
                let story = format!("{backend} {misdeed:?}, fork {is_fork}: {}", error.chain());
                assert_eq!((error.kind, error.step), (kind, Some("refresh identity")), "{story}");
                assert!(error.chain().contains(told) && error.left_behind.is_empty(), "{story}");
                // Who reads it wants to know whether the guest stands still as a whole.
                let looked = error.chain().contains("another connection");
                assert_eq!(looked, kind == ErrorKind::GuestUnresponsive, "{story}");
                assert_eq!(world.settles_to(&[&before]).await, before, "{story}");
                assert!(world.fake().alive().is_empty(), "{story}");
            }
        }
        world.set_manners(Manners::default());
        fork(&world, Some(Target::Running)).await.expect("nothing was spoilt");
        web.restore().await.expect("nothing was spoilt");
    }
}

/// A guest that breaks as soon as it runs takes its VMM along: that is said, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_ends_while_its_guest_becomes_itself_is_the_reason() {
    let world = World::configured(Backend::Firecracker, |config| config.timeouts.agent_s = 60).await;
    let web = world.create("web").await.expect("created");
    web.standby().await.expect("standby");
    world.set_manners(at_refresh(AtRefresh::IsStuckAt(None)));
    let end = async {
        let seat = loop {
            match world.fake().alive().pop() {
                Some(seat) => break seat,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.fake().end(&seat.dir, Ended::Signal(6));
        std::future::pending::<()>().await;
    };
    let asked = Instant::now();
    let error = tokio::select! {
        restored = web.restore() => restored.expect_err("its VMM has ended"),
        () = end => unreachable!("it waits for ever"),
    };
    assert_eq!((error.kind, error.step), (ErrorKind::VmmFailed, Some("refresh identity")), "{}", error.chain());
    assert!(error.chain().contains("the VMM ended: signal 6"), "{}", error.chain());
    assert!(asked.elapsed() < Duration::from_secs(30), "nobody waited for an answer: {:?}", asked.elapsed());
}

/// A guest that was saved with the agent of an older hearth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_agent_brings_its_own_guest_back_and_makes_no_fork() {
    let world = hurried(Backend::QemuMicrovm).await;
    world.set_manners(Manners { version: Some(1), ..Manners::default() });
    let web = world.create("web").await.expect("created");
    web.standby().await.expect("standby");
    let before = world.at_rest().await;

    let refused = fork(&world, Some(Target::Running)).await.expect_err("it would be half itself");
    assert_eq!(refused.kind, ErrorKind::Incompatible);
    assert!(refused.chain().contains("older hearth") && refused.hint.is_some(), "{refused:?}");
    assert_eq!(world.settles_to(&[&before]).await, before);

    web.restore().await.expect("it is who it was");
    assert_eq!(*web.view().state(), InstanceState::Running);
    assert_eq!(web.view().record.generation, 1);
}

/// The variables that a guest's commands have.
async fn variables(of: &InstanceHandle) -> Vec<String> {
    let agent = of.agent(Duration::from_secs(5)).await.expect("an agent");
    let mut session =
        agent.exec(ExecRequest { argv: vec!["env".into()], ..ExecRequest::default() }).await.expect("started");
    let mut told = String::new();
    while let ExecEvent::Stdout(text) = session.next().await.expect("no error") {
        told += &String::from_utf8_lossy(&text);
    }
    told.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_has_its_own_variables_and_tags_whenever_it_runs() {
    let world = World::new().await;
    world.create("web").await.expect("created").standby().await.expect("standby");
    let pairs = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let made = async |name: &str, source: &str, target| -> Result<InstanceHandle, OpError> {
        let request = ForkRequest {
            target: Some(target),
            env: pairs(&name.to_uppercase(), "1"),
            tags: Some(pairs("of", name)),
            ..ForkRequest::one(name.parse().expect("a name"))
        };
        world.registry.fork(ForkSource::Instance(world.get(source)), request).await
    };
    let now = made("now", "web", Target::Running).await.expect("forked");
    assert_eq!(variables(&now).await, ["NOW=1"]);
    let later = made("later", "web", Target::Standby).await.expect("forked");
    later.restore().await.expect("restored");
    assert_eq!(variables(&later).await, ["LATER=1"]);
    later.standby().await.expect("standby");
    let child = made("child", "later", Target::Running).await.expect("forked");
    assert_eq!(variables(&child).await, ["CHILD=1", "LATER=1"]);
    let record = child.view().record;
    assert_eq!(record.spec.tags, pairs("of", "child"));
    assert_eq!(record.spec.program.env, ["LATER=1", "CHILD=1"]);

    let steps = child.timeline(1).expect("told").remove(0).steps;
    let refresh = steps.iter().find(|step| step.name == "refresh identity").expect("a step");
    let note = refresh.note.as_deref().expect("a note");
    assert!(note.starts_with("generation 1, 0 page faults, 0.0 ms in the guest, clock within"), "{note}");
}
