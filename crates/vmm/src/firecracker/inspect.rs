//! Asks what a state names that was saved elsewhere: loads it paused, reads the machine's
//! configuration, ends the process. The guest never runs, and what the state names is opened and
//! neither read nor written.

use hearth_model::foreign::{Described, DescribedDrive};
use serde_json::{Value, json};

use super::launch::{self, Ready};
use super::load::{COMMAND, explain};
use crate::cgroup::Cgroups;
use crate::ending::{end, give_up, remove_sockets};
use crate::fault::{ControlError, LaunchError};
use crate::spec::{LaunchSpec, SavedState, VSOCK_SOCKET};

/// How Firecracker refuses another socket for a vsock that there is not.
const NO_VSOCK: &str = "Unknown Vsock Device";

/// Leaves no process and no socket.
pub(crate) async fn inspect(cgroups: &Cgroups, spec: &LaunchSpec, from: &SavedState) -> Result<Described, LaunchError> {
    match once(cgroups, spec, from, true).await {
        // A load that is refused ends the process, so there is another one for this.
        Err(LaunchError::Refused { answer, .. }) if answer.contains(NO_VSOCK) => once(cgroups, spec, from, false).await,
        result => result,
    }
}

async fn once(cgroups: &Cgroups, spec: &LaunchSpec, from: &SavedState, vsock: bool) -> Result<Described, LaunchError> {
    let mut ready = launch::start(cgroups, spec)?.ready().await?;
    let described = match ask(&mut ready, from, vsock).await {
        Ok(described) => described,
        Err(error) => {
            let error = explain(&ready, error, spec.dir.join(&from.vmstate)).await;
            return Err(give_up(&ready.process, &spec.dir, error).await);
        }
    };
    end(&ready.process).await.and_then(|()| remove_sockets(&spec.dir)).map_err(LaunchError::Lingers)?;
    Ok(described)
}

async fn ask(ready: &mut Ready, from: &SavedState, vsock: bool) -> Result<Described, ControlError> {
    let mut body = json!({
        "snapshot_path": from.vmstate,
        "mem_backend": { "backend_type": "File", "backend_path": from.memory },
        "resume_vm": false,
    });
    if vsock {
        // The socket that it names may be in use, or somebody's.
        body["vsock_override"] = json!({ "uds_path": VSOCK_SOCKET });
    }
    let Ready { api, process, .. } = ready;
    api.put(process, COMMAND, "/snapshot/load", &body).await?;
    let config = api.get(process, "GET /vm/config", "/vm/config").await?;
    let machine = api.get(process, "GET /machine-config", "/machine-config").await?;
    describe(&config, &machine)
        .ok_or_else(|| ControlError::Garbled { command: "GET /vm/config", line: format!("{config} {machine}") })
}

/// Source: Firecracker's `FullVmConfiguration`, 1.16. What it does not say is not there; what has
/// no place here counts as a device that cannot be replaced.
pub(super) fn describe(config: &Value, machine: &Value) -> Option<Described> {
    let list = |key: &str| config[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let drive = |drive: &Value| {
        Some(DescribedDrive {
            id: text(&drive["drive_id"])?,
            path: text(&drive["path_on_host"]),
            read_only: drive["is_read_only"].as_bool().unwrap_or(false),
        })
    };
    let id = |value: &Value, key: &str| text(&value[key]).unwrap_or_else(|| "without an id".into());
    let mut others: Vec<String> = list("pmem").iter().map(|pmem| format!("pmem {}", id(pmem, "id"))).collect();
    if !config["memory-hotplug"].is_null() {
        others.push("memory-hotplug".into());
    }
    Some(Described {
        vcpus: machine["vcpu_count"].as_u64()?,
        memory_mib: machine["mem_size_mib"].as_u64()?,
        drives: config["drives"].as_array()?.iter().map(drive).collect::<Option<_>>()?,
        vsock: !config["vsock"].is_null(),
        networks: list("network-interfaces").iter().map(|card| id(card, "iface_id")).collect(),
        others,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described_by_what_its_configuration_says() {
        let machine = json!({ "vcpu_count": 2, "mem_size_mib": 256 });
        let config = json!({
            "drives": [
                { "drive_id": "a", "path_on_host": "/a.img", "is_read_only": true },
                { "drive_id": "b", "path_on_host": null, "socket": "/b.sock" },
            ],
            "network-interfaces": [{ "iface_id": "eth0", "host_dev_name": "tap0" }],
            "pmem": [{ "id": "p0" }],
            "vsock": { "guest_cid": 3, "uds_path": "/v.sock" },
        });
        let described = describe(&config, &machine).expect("it is one");
        assert_eq!((described.vcpus, described.memory_mib, described.vsock), (2, 256, true));
        assert_eq!(
            described.drives[0],
            DescribedDrive { id: "a".into(), path: Some("/a.img".into()), read_only: true }
        );
        assert_eq!(described.drives[1], DescribedDrive { id: "b".into(), path: None, read_only: false });
        assert_eq!((described.networks, described.others), (vec!["eth0".to_owned()], vec!["pmem p0".to_owned()]));
        assert_eq!(describe(&json!({}), &machine), None, "no list of drives is not an empty one");
    }
}
