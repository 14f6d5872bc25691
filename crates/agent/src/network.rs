//! The guest's network devices: loopback, and one with a static address.

use std::fs;
use std::io;

use hearth_agent_proto::NetworkConfig;

use crate::sys::NetDevices;

/// Brings up `lo`.
pub fn loopback() -> io::Result<()> {
    NetDevices::open()?.set_up("lo")
}

/// Gives the first network device its address and brings it up.
pub fn configure(config: &NetworkConfig) -> Result<(), String> {
    let device = first_device().ok_or("the guest has no network device")?;
    let apply = || {
        let devices = NetDevices::open()?;
        if let Some(mtu) = config.mtu {
            devices.set_mtu(&device, mtu)?;
        }
        devices.set_address(&device, config.address, config.prefix)?;
        devices.set_up(&device)?;
        if let Some(gateway) = config.gateway {
            devices.add_default_route(gateway)?;
        }
        Ok(())
    };
    apply().map_err(|error: io::Error| format!("configure {device} as {}/{}: {error}", config.address, config.prefix))
}

fn first_device() -> Option<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        // Not lo, and not what modules make on their own (tunl0, sit0): those have no device.
        .filter(|name| fs::exists(format!("/sys/class/net/{name}/device")).unwrap_or(false))
        .collect();
    names.sort();
    names.into_iter().next()
}
