//! Hosts on which something is missing or broken: what is said, and that nothing is left.

use std::time::{Duration, Instant};

use hearth_e2e::{Setup, TestHost, refused, story};

#[test]
fn a_kernel_that_is_not_there() {
    Setup::default().kernel("no-kernel").expect_log("operation failed").story(async |host| {
        host.import_counter().await?;
        let refusal = refused(host.create(&TestHost::request("web", "counter:1")).await);
        refusal.is(422, "unsupported").says("no-kernel").advises("hearth doctor");
        assert!(host.instances().await?.is_empty() && host.traces().no_instances());
        Ok(())
    });
}

#[test]
fn a_vmm_that_is_not_there() {
    Setup::default().env("HEARTH_QEMU_PATH", "/no/such/qemu").story(async |host| {
        host.import_counter().await?;
        let refusal = refused(host.create(&TestHost::request("web", "counter:1")).await);
        refusal.is(422, "unsupported").says("/no/such/qemu").advises("hearth doctor");
        assert!(host.traces().no_instances());
        let capabilities = host.client().capabilities().await?;
        assert!(!capabilities.default_runtime.available);
        Ok(())
    });
}

#[test]
fn a_vmm_that_dies_in_boot() {
    let script = r#"case "$*" in
*-version*|*help*) exec $QEMU "$@";;
*-kernel*) echo "qemu: the frobnicator is missing" >&2; exit 1;;
esac
exec $QEMU "$@""#;
    Setup::default().qemu_script(script).expect_log("operation failed").story(async |host| {
        host.import_counter().await?;
        let refusal = refused(host.create(&TestHost::request("web", "counter:1")).await);
        refusal.is(502, "vmm_failed").says("web").advises("the frobnicator is missing");
        assert!(host.instances().await?.is_empty() && host.traces().no_instances());
        Ok(())
    });
}

#[test]
fn a_vmm_that_never_says_a_word() {
    let script = r#"case "$*" in
*-version*|*help*) exec $QEMU "$@";;
*-kernel*) exec sleep 1000;;
esac
exec $QEMU "$@""#;
    Setup::default().qemu_script(script).expect_log("operation failed").story(async |host| {
        host.import_counter().await?;
        let begun = Instant::now();
        let refusal = refused(host.create(&TestHost::request("web", "counter:1")).await);
        refusal.is(502, "vmm_failed").advises("");
        assert!(begun.elapsed() < Duration::from_secs(60), "after {:?}", begun.elapsed());
        assert!(host.instances().await?.is_empty() && host.traces().no_instances());
        Ok(())
    });
}

/// An initrd with one program, as cpio's `newc` has it.
fn initrd(init: &[u8]) -> Vec<u8> {
    let mut cpio = Vec::new();
    for (name, mode, content) in [("init", 0o100_755, init), ("TRAILER!!!", 0, &[][..])] {
        let fields = [0, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        cpio.extend_from_slice(b"070701");
        fields.iter().for_each(|field| cpio.extend_from_slice(format!("{field:08x}").as_bytes()));
        for part in [format!("{name}\0").as_bytes(), content] {
            cpio.extend_from_slice(part);
            cpio.resize(cpio.len().next_multiple_of(4), 0);
        }
    }
    cpio
}

#[test]
fn an_agent_that_never_answers() {
    // The kernel comes up with another's program: busybox, which by this name is an init.
    let script = r#"for argument; do
    shift
    [ "$last" = -initrd ] && argument=$HERE/initrd
    last=$argument
    set -- "$@" "$argument"
done
exec $QEMU "$@""#;
    let busybox = std::fs::read("/bin/busybox").unwrap_or_default();
    let setup = Setup::default().file("initrd", &initrd(&busybox)).qemu_script(script);
    setup.env("HEARTH_TIMEOUTS_BOOT_S", "6").expect_log("operation failed").story(async |host| {
        host.import_counter().await?;
        let refusal = refused(host.create(&TestHost::request("web", "counter:1")).await);
        refusal.is(504, "guest_unresponsive").says("agent").advises("");
        assert!(host.instances().await?.is_empty() && host.traces().no_instances());
        Ok(())
    });
}

#[test]
fn settings_that_mean_nothing() {
    story(async |host| {
        for (key, value, says) in [
            ("HEARTH_DEFAULTS_MEMORY", "lots", "HEARTH_DEFAULTS_MEMORY"),
            ("HEARTH_QEMU_PTAH", "/qemu", "HEARTH_QEMU_PATH"),
            ("HEARTH_LISTEN", "0.0.0.0:4973", "token"),
        ] {
            let data = host.dir().join("other").display().to_string();
            let output = host.hearth_command(&["serve", "--data-dir", &data]).env(key, value).output()?;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{key}: {told}");
            assert!(told.contains(says), "{key}: {told}");
        }
        Ok(())
    });
}
