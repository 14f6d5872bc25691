//! An instance's network on the wire: what is asked for, and what is shown.

use hearth_api::instances::{InstanceNetwork, NetworkRequest, Outbound};
use hearth_model::Backend;
use hearth_model::network::{Destination, Egress, Network};
use hearth_store::InstanceRecord;

use super::error::Failure;
use super::input::parse_field;
use crate::networks::Networks;

/// Destinations on one list.
const MOST_ALLOWED: usize = 1024;
/// Ports that are published for one instance.
const MOST_PORTS: usize = 256;

/// The network that a request asks for; none if it wants none.
///
/// What is listed becomes rules of the kernel, so a list has an end.
pub(super) fn asked(
    networks: &Networks,
    backend: Backend,
    request: Option<NetworkRequest>,
) -> Result<Option<Network>, Failure> {
    let NetworkRequest { enabled, bandwidth_download, bandwidth_upload, outbound, allow, ports } =
        request.unwrap_or_default();
    let allow = allow.filter(|list| !list.is_empty());
    let longest = |field, length: usize, most: usize| {
        let refused = || Failure::invalid(format!("field {field:?}: a list of {length} is too long: at most {most}"));
        if length <= most { Ok(()) } else { Err(refused()) }
    };
    longest("network.allow", allow.as_ref().map_or(0, Vec::len), MOST_ALLOWED)?;
    longest("network.ports", ports.as_ref().map_or(0, Vec::len), MOST_PORTS)?;
    let speed = |field, text: Option<String>| match text.as_deref() {
        // What a client sends that has nothing to say.
        None | Some("" | "0") => Ok(None),
        Some(text) => parse_field(field, text).map(Some),
    };
    let network = Network {
        egress: match (outbound, allow) {
            (None | Some(Outbound::List), Some(list)) => {
                let destination = |text: &String| parse_field::<Destination>("network.allow", text);
                Egress::Only(list.iter().map(destination).collect::<Result<_, _>>()?)
            }
            (None | Some(Outbound::Open), None) => Egress::Open,
            (Some(Outbound::None), None) => Egress::None,
            (Some(Outbound::List), None) => {
                return Err(Failure::invalid("field \"network.outbound\": \"list\" needs a list in \"network.allow\""));
            }
            (Some(other), Some(_)) => {
                let other = if other == Outbound::None { "none" } else { "open" };
                return Err(Failure::invalid(format!(
                    "field \"network.allow\": a list means nothing with \"network.outbound\": \"{other}\""
                )));
            }
        },
        upload: speed("network.bandwidth_upload", bandwidth_upload)?,
        download: speed("network.bandwidth_download", bandwidth_download)?,
        ports: {
            let ports = ports.unwrap_or_default();
            ports.iter().map(|text| parse_field("network.ports", text)).collect::<Result<Vec<_>, _>>()?
        },
    };
    for (nth, port) in network.ports.iter().enumerate() {
        if network.ports[..nth].iter().any(|other| (other.host, other.protocol) == (port.host, port.protocol)) {
            return Err(Failure::invalid(format!(
                "field \"network.ports\": {port}: that port of the host is given twice"
            )));
        }
    }
    match enabled {
        Some(false) if network == Network::default() => Ok(None),
        Some(false) => Err(Failure::invalid(
            "field \"network.enabled\": an instance without a network can have no settings of one",
        )),
        None if network == Network::default() && networks.refuse(backend, &network).is_err() => Ok(None),
        Some(true) | None => {
            networks.refuse(backend, &network)?;
            Ok(Some(network))
        }
    }
}

/// The network of an instance.
pub(super) fn shown(record: &InstanceRecord) -> InstanceNetwork {
    let Some(network) = &record.spec.network else {
        return InstanceNetwork { enabled: Some(false), ..InstanceNetwork::default() };
    };
    let (outbound, allow) = match &network.egress {
        Egress::Open => (Outbound::Open, None),
        Egress::None => (Outbound::None, None),
        Egress::Only(list) => (Outbound::List, Some(list.iter().map(ToString::to_string).collect())),
    };
    let ports: Vec<String> = network.ports.iter().map(ToString::to_string).collect();
    InstanceNetwork {
        enabled: Some(true),
        // Of QEMU's own network the host sees no address.
        ip: record.address.map(|address| address.to_string()),
        mac: record.mac.clone(),
        name: Some("default".into()),
        bandwidth_download: network.download.map(|speed| speed.to_string()),
        bandwidth_upload: network.upload.map(|speed| speed.to_string()),
        outbound: Some(outbound),
        allow,
        ports: (!ports.is_empty()).then_some(ports),
    }
}
