//! Requests that cannot be granted: what is said, and that nothing comes of them.

use hearth_api::exec::ExecRequest;
use hearth_api::instances::{CreateInstance, ForkInstance, StatQuery};
use hearth_api::snapshots::{CreateSnapshot, SnapshotKind};
use hearth_e2e::{TestHost, TestImage, refused, story};

#[test]
fn names_that_nothing_has() {
    story(async |host| {
        let client = host.client();
        host.import_counter().await?;
        let unknown = TestHost::request("web", "countr:1");
        refused(client.create_instance(&unknown).await).is(404, "not_found").says("countr:1").advises("counter:1");
        let unknown = TestHost::request("web", "something-else:1");
        refused(client.create_instance(&unknown).await)
            .is(404, "not_found")
            .says("something-else:1")
            .advises("hearth image import");
        refused(client.instance("nobody").await).is(404, "not_found").says("nobody");
        refused(client.snapshot("nothing").await).is(404, "not_found").says("nothing");
        refused(client.image("nothing:2").await).is(404, "not_found").says("nothing:2");
        refused(client.standby("nobody").await).is(404, "not_found").says("nobody");
        let exec = client.exec("nobody", &ExecRequest::default()).await;
        refused(exec).is(404, "not_found").says("nobody");
        assert!(host.instances().await?.is_empty() && host.traces().no_instances());
        Ok(())
    });
}

#[test]
fn a_name_that_is_taken() {
    story(async |host| {
        let vm = host.boot("web").await?;
        let again = host.client().create_instance(&TestHost::request("web", "counter:1")).await;
        refused(again).is(409, "already_exists").says("web").advises("");
        let fork = ForkInstance { name: "web".into(), from_running: Some(true), ..ForkInstance::default() };
        refused(host.client().fork("web", &fork).await).is(409, "already_exists").says("web");
        vm.snapshot("one").await?;
        let again = CreateSnapshot { kind: SnapshotKind::Standby, name: Some("one".into()), tags: None };
        refused(host.client().create_snapshot("web", &again).await).is(409, "already_exists").says("one");
        assert_eq!((host.instances().await?.len(), host.snapshots().await?.len()), (1, 1));
        assert_eq!(host.traces().snapshots.len(), 1);
        vm.count(1).await?;
        Ok(())
    });
}

#[test]
fn a_state_from_which_it_does_not_lead_on() {
    story(async |host| {
        let vm = host.boot("web").await?;
        let fork = ForkInstance { name: "fork".into(), ..ForkInstance::default() };
        refused(host.client().fork("web", &fork).await).is(409, "wrong_state").says("web").advises("from_running");
        vm.stop().await?;
        refused(host.client().standby("web").await).is(409, "wrong_state").says("web").advises("start");
        refused(host.client().restore("web").await).is(409, "wrong_state").says("web").advises("start");
        let exec = host.client().exec("web", &ExecRequest::default()).await;
        refused(exec).is(409, "wrong_state").says("web").advises("start");
        let stat = StatQuery { path: "/".into(), follow_links: None };
        refused(host.client().stat("web", &stat).await).is(409, "wrong_state").says("web").advises("start");
        vm.start().await?;
        vm.standby().await?;
        refused(host.client().start("web").await).is(409, "wrong_state").says("web").advises("restore");
        let exec = host.client().exec("web", &ExecRequest::default()).await;
        refused(exec).is(409, "wrong_state").says("web").advises("restore");
        Ok(())
    });
}

#[test]
fn values_that_mean_nothing() {
    story(async |host| {
        host.import_counter().await?;
        let change = |change: fn(&mut CreateInstance)| {
            let mut request = TestHost::request("web", "counter:1");
            change(&mut request);
            request
        };
        for (request, status, says) in [
            (change(|request| request.name = "Not A Name".into()), 400, "Not A Name"),
            (change(|request| request.size = Some("much".into())), 400, "much"),
            (change(|request| request.size = Some("1KB".into())), 400, "1"),
            (change(|request| request.overlay_size = Some("0".into())), 400, "overlay_size"),
            (change(|request| request.vcpus = Some(0)), 400, "vcpus"),
            (change(|request| request.vcpus = Some(1000)), 400, "vcpus"),
            (change(|request| request.hypervisor = Some("hyper-v".into())), 400, "hyper-v"),
            (change(|request| request.hypervisor = Some("vz".into())), 422, "vz"),
            (change(|request| request.image = "UPPER CASE".into()), 400, "UPPER CASE"),
        ] {
            let told = refused(host.client().create_instance(&request).await).says(says);
            assert_eq!(told.0.status, status, "{:?}", told.0.body);
        }
        assert!(host.instances().await?.is_empty() && host.traces().no_instances());
        Ok(())
    });
}

#[test]
fn a_command_that_the_image_does_not_have() {
    story(async |host| {
        host.expect_log("operation failed");
        host.import(&TestImage::busybox()?.entrypoint(&["/no/such/program"]), "wrong:1").await?;
        let refusal = refused(host.create(&TestHost::request("wrong", "wrong:1")).await);
        refusal.is(400, "invalid").says("/no/such/program").says("wrong:1").advises("command");
        host.import(&TestImage::empty().file("note", 0o644, "no program"), "none:1").await?;
        let refusal = refused(host.create(&TestHost::request("none", "none:1")).await);
        refusal.is(400, "invalid").says("none:1").advises("cmd");
        assert!(host.instances().await?.is_empty() && host.traces().no_instances());
        Ok(())
    });
}
