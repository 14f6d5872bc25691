//! A guest's way out: through its VMM, as a user's process.

use std::io::Write as _;
use std::net::TcpListener;

use anyhow::{Result, ensure};
use hearth_api::instances::NetworkRequest;
use hearth_e2e::{Vm, story};

/// Something on this host that greets whoever comes; its port.
fn greeter() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        listener.incoming().flatten().try_for_each(|mut guest| guest.write_all(b"hello guest\n"))
    });
    Ok(port)
}

/// Whether a guest reaches the host, which to it is the network's gateway.
async fn reaches(vm: &Vm<'_>, port: u16) -> Result<bool> {
    let ran = vm.run(&["nc", "-w", "10", "10.0.2.2", &port.to_string()]).await?;
    Ok(ran.stdout == "hello guest\n")
}

#[test]
fn guests_reach_out_before_and_after_a_restore() {
    story(async |host| {
        let (port, vm) = (greeter()?, host.boot("web").await?);
        ensure!(reaches(&vm, port).await?, "{} reaches nothing after its boot", vm.name);
        vm.standby().await?;
        let forks = host.fork("web", "fork", 2).await?;
        vm.restore().await?;
        for guest in forks.iter().chain([&vm]) {
            ensure!(reaches(guest, port).await?, "{} reaches nothing after it was loaded", guest.name);
        }
        Ok(())
    });
}

#[test]
fn a_guest_without_a_network_reaches_nobody() {
    story(async |host| {
        let none = Some(NetworkRequest { enabled: Some(false), ..NetworkRequest::default() });
        let vm = host.boot_with("alone", |request| request.network = none).await?;
        assert_eq!(vm.sh("ls /sys/class/net").await?, "lo");
        ensure!(!reaches(&vm, greeter()?).await?, "it reaches the host");
        Ok(())
    });
}
