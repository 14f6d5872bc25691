//! A host that has no room for another guest: what is refused, and that what runs goes on.

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use hearth_api::client::Client;
use hearth_api::instances::{ForkInstance, InstanceState, TargetState};
use hearth_api::resources::ResourceStatus;
use hearth_e2e::{Setup, TestHost, refused};

/// With memory for so many guests of the usual size.
fn room_for(guests: u32) -> Setup {
    let capacity = format!("{}MB", 128 * guests);
    Setup::default().env("HEARTH_MEMORY_CAPACITY", &capacity).env("HEARTH_MEMORY_OVERSUBSCRIPTION", "1")
}

async fn memory(client: &Client) -> Result<ResourceStatus> {
    let memory = client.resources().await?.memory;
    ensure!(memory.allocated + memory.available == memory.effective_limit, "{memory:?}");
    Ok(memory)
}

#[test]
fn a_guest_for_which_there_is_no_memory_is_refused_and_what_runs_goes_on() {
    room_for(3).story(async |host| {
        let client = host.client();
        let base = host.boot("base").await?;
        base.count(1).await?;
        let now = memory(&client).await?;
        assert_eq!((now.capacity, now.allocated, now.source.as_deref()), (384 << 20, 128 << 20, Some("configured")));

        // Four do not fit, two do: they are made, and each of the others says why it was not.
        let running = Some(TargetState::Running);
        let request =
            ForkInstance { name: "w".into(), from_running: Some(true), target_state: running, ..Default::default() };
        let forked = client.fork("base", &ForkInstance { count: Some(4), ..request.clone() }).await?;
        assert_eq!((forked.instances.len(), forked.errors.len()), (2, 2), "{forked:?}");
        for failure in &forked.errors {
            assert_eq!(failure.error.code, "exhausted", "{failure:?}");
        }
        assert_eq!(memory(&client).await?.available, 0);
        assert_eq!(host.traces().processes.len(), 3, "{:?}", host.traces());

        let short = "not enough memory: it may take 128 MB, and of 384 MB 0 B are left";
        let boot = client.create_instance(&TestHost::request("more", "counter:1")).await;
        refused(boot).is(507, "exhausted").says("create more").says(short).advises("bring one to standby");
        refused(client.fork("base", &request).await).is(507, "exhausted").says("fork w").says(short);
        assert_eq!(host.instances().await?.len(), 3);
        assert!(host.metrics()?.contains("hearth_capacity_refusals_total{resource=\"memory\"} 4\n"));

        // Who rests gives back, and comes back when there is room.
        base.standby().await?;
        host.boot("more").await?;
        refused(client.restore("base").await).is(507, "exhausted").says("restore base").advises("standby");
        base.is(InstanceState::Standby).await?;
        host.crash_daemon()?;
        host.start_daemon()?;
        assert_eq!(memory(&host.client()).await?.available, 0, "made anew of what runs");
        host.vm("more").stop().await?;
        base.restore().await?;
        assert_eq!(base.count(1).await?.count, 2);
        Ok(())
    });
}

/// A figure of the daemon's own.
fn figure(host: &TestHost, series: &str) -> Result<u64> {
    let text = host.metrics()?;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("{series} is not there"))?.parse()?)
}

/// Descriptors and threads are counted by what an instance is known to need: it needs no more.
#[test]
fn an_instance_holds_no_more_than_is_counted_for_it() {
    Setup::default().story(async |host| {
        const GUESTS: u32 = 4;
        host.boot("base").await?.standby().await?;
        let before = figure(host, "process_open_fds")?;
        let forks = host.fork("base", "w", GUESTS).await?;
        let taken = figure(host, "process_open_fds")? - before;
        let resources = host.client().resources().await?;
        let counted = resources.files.context("descriptors are shown")?.allocated;
        ensure!(taken <= counted, "{GUESTS} instances take {taken} descriptors, {counted} are counted");
        let mut threads = 0;
        for fork in &forks {
            let pid = fork.vmm_pid().await?.context("it has a VMM")?;
            threads += std::fs::read_dir(format!("/proc/{pid}/task"))?.count() as u64;
        }
        let counted = resources.processes.context("processes are shown")?.allocated;
        ensure!(threads <= counted, "{GUESTS} instances have {threads} threads, {counted} are counted");
        println!("{GUESTS} instances: {taken} descriptors of the daemon, {threads} threads");
        Ok(())
    });
}

#[test]
fn of_two_guests_for_the_last_piece_of_memory_one_is_made() {
    room_for(1).story(async |host| {
        host.import_counter().await?;
        let requests = ["a", "b"].map(|name| TestHost::request(name, "counter:1"));
        let client = host.client();
        let made = join_all(requests.iter().map(|request| client.create_instance(request))).await;
        let (made, not): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
        assert_eq!((made.len(), not.len()), (1, 1), "{made:?} {not:?}");
        not.into_iter().for_each(|refusal| drop(refused(refusal).is(507, "exhausted")));
        assert_eq!((host.instances().await?.len(), host.traces().processes.len()), (1, 1));
        Ok(())
    });
}
