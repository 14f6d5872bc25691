//! What an instance is made of: its request, parsed.

use std::collections::BTreeMap;

use crate::foreign::ForeignDevices;
use crate::image_ref::ImageRef;
use crate::name::InstanceName;
use crate::network::Network;
use crate::restart::RestartPolicy;
use crate::runtime::Backend;
use crate::units::{ByteSize, MemMib};

/// The most vCPUs an instance may have.
pub const MAX_VCPUS: u8 = 32;

/// A parsed instance specification: what was asked for, with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InstanceSpec {
    /// Its name, and the guest's hostname.
    pub name: InstanceName,
    /// The image it was made of.
    pub image: ImageRef,
    /// Which VMM runs it.
    pub backend: Backend,
    /// Guest memory.
    pub memory: MemMib,
    /// Virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Size of the writable layer.
    pub overlay: ByteSize,
    /// The network that its network device leads to, if it has one.
    #[serde(default, serialize_with = "flag_or_network", deserialize_with = "network_or_flag")]
    pub network: Option<Network>,
    /// Whether the guest runs our agent. One without is running when its vCPUs are, and is neither
    /// configured nor told who it is.
    #[serde(default = "with_agent")]
    pub agent: bool,
    /// The user's tags.
    pub tags: BTreeMap<String, String>,
    /// The user's variables, as the API shows them.
    pub env: BTreeMap<String, String>,
    /// What runs in the guest.
    pub program: Program,
    /// Whether it boots again when it has ended by itself.
    #[serde(default, skip_serializing_if = "RestartPolicy::is_never")]
    pub restart: RestartPolicy,
    /// The devices of a guest that was imported with its state. It has no image, and cannot boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign: Option<ForeignDevices>,
}

/// The image's root file system, as seen from an instance's directory and in its bundles.
pub const ROOTFS: &str = "disks/rootfs";
/// The writable layer, as seen from there.
pub const OVERLAY: &str = "disks/overlay.img";

/// A disk of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Where it is, relative to the directory of an instance or of a bundle.
    pub path: String,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

impl InstanceSpec {
    /// Of a fork: with a name of its own, no published ports, these variables over the source's, and
    /// instead of its tags these, if there are any to be had.
    #[must_use]
    pub fn forked(
        self,
        name: InstanceName,
        env: BTreeMap<String, String>,
        tags: Option<BTreeMap<String, String>>,
    ) -> Self {
        let mut program = self.program;
        program.env.retain(|entry| !env.contains_key(key(entry)));
        program.env.extend(env.iter().map(|(name, value)| format!("{name}={value}")));
        let mut all = self.env;
        all.extend(env);
        // A port of the host leads to one guest.
        let network = self.network.map(|network| Network { ports: Vec::new(), ..network });
        Self { name, program, env: all, tags: tags.unwrap_or(self.tags), network, ..self }
    }

    /// Its disks: those of every instance here, or those that it came with.
    #[must_use]
    pub fn disks(&self) -> Vec<Disk> {
        disks(self.foreign.as_ref())
    }
}

/// The disks of a guest with these devices; without any, of one that was made here.
#[must_use]
pub fn disks(foreign: Option<&ForeignDevices>) -> Vec<Disk> {
    let disk = |path: String, read_only| Disk { path, read_only };
    match foreign {
        Some(foreign) => foreign.drives.iter().map(|drive| disk(drive.id.path(), drive.read_only)).collect(),
        None => vec![disk(ROOTFS.into(), true), disk(OVERLAY.into(), false)],
    }
}

/// What says no more than whether there is a network is written as before there was more to say: so
/// an older version reads it too.
fn flag_or_network<S: serde::Serializer>(network: &Option<Network>, serializer: S) -> Result<S::Ok, S::Error> {
    match network {
        None => serializer.serialize_bool(false),
        Some(network) if *network == Network::default() => serializer.serialize_bool(true),
        Some(network) => serde::Serialize::serialize(network, serializer),
    }
}

/// A specification that was stored before there was a choice says whether there is a network.
fn network_or_flag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Network>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Flag(bool),
        Network(Network),
    }
    let stored: Option<Stored> = serde::Deserialize::deserialize(deserializer)?;
    Ok(match stored {
        None | Some(Stored::Flag(false)) => None,
        Some(Stored::Flag(true)) => Some(Network::default()),
        Some(Stored::Network(network)) => Some(network),
    })
}

/// What a specification means that was stored before there were guests without an agent.
const fn with_agent() -> bool {
    true
}

/// The guest's program: the image's configuration with the request's changes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Program {
    /// Command and arguments; empty only of an imported guest, which runs something already.
    pub argv: Vec<String>,
    /// All its variables, as `KEY=value`.
    pub env: Vec<String>,
    /// Where it starts.
    pub workdir: String,
    /// `user[:group]`, names or numbers; empty is root.
    pub user: String,
}

/// Neither the image nor the request says what to run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image {0} names no command")]
pub struct NoCommand(pub ImageRef);

/// An image's configuration, as far as it decides what runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageConfig {
    /// OCI `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// OCI `Cmd`.
    pub cmd: Vec<String>,
    /// OCI `Env`, as `KEY=value`.
    pub env: Vec<String>,
    /// OCI `WorkingDir`; empty is `/`.
    pub workdir: String,
    /// OCI `User`.
    pub user: String,
}

impl Program {
    /// What Docker would run: a given entrypoint drops the image's cmd, a given cmd replaces it.
    ///
    /// # Errors
    /// [`NoCommand`] if nothing is left to run.
    pub fn resolve(
        image: &ImageRef,
        config: &ImageConfig,
        entrypoint: Option<Vec<String>>,
        cmd: Option<Vec<String>>,
        env: &BTreeMap<String, String>,
    ) -> Result<Self, NoCommand> {
        let cmd = cmd.unwrap_or_else(|| if entrypoint.is_some() { Vec::new() } else { config.cmd.clone() });
        let mut argv = entrypoint.unwrap_or_else(|| config.entrypoint.clone());
        argv.extend(cmd);
        if argv.is_empty() {
            return Err(NoCommand(image.clone()));
        }
        let mut all: Vec<String> = config.env.iter().filter(|e| !env.contains_key(key(e))).cloned().collect();
        if !all.iter().any(|e| key(e) == "PATH") && !env.contains_key("PATH") {
            all.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
        }
        all.extend(env.iter().map(|(k, v)| format!("{k}={v}")));
        let workdir = if config.workdir.is_empty() { "/".into() } else { config.workdir.clone() };
        Ok(Self { argv, env: all, workdir, user: config.user.clone() })
    }
}

/// The name in `NAME=value`.
fn key(entry: &str) -> &str {
    entry.split('=').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageRef {
        "app".parse().expect("a reference")
    }

    #[test]
    fn a_network_is_read_as_older_versions_wrote_it() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Stored {
            #[serde(default, serialize_with = "flag_or_network", deserialize_with = "network_or_flag")]
            network: Option<Network>,
        }
        let read = |text: &str| serde_json::from_str::<Stored>(text).expect("readable").network;
        assert_eq!(read(r#"{"network":true}"#), Some(Network::default()));
        assert_eq!(read(r#"{"network":false}"#), None);
        assert_eq!(read(r#"{"network":null}"#), None);
        assert_eq!(read("{}"), None);
        let network = Network { ports: vec!["80:80".parse().expect("ports")], ..Network::default() };
        for network in [None, Some(Network::default()), Some(network)] {
            let text = serde_json::to_string(&Stored { network: network.clone() }).expect("written");
            assert_eq!(read(&text), network, "{text}");
        }
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn what_runs_is_what_docker_would_run() {
        let config = ImageConfig {
            entrypoint: strings(&["/entry"]),
            cmd: strings(&["serve"]),
            env: strings(&["A=1", "B=2"]),
            ..ImageConfig::default()
        };
        let env = BTreeMap::from([("B".to_owned(), "3".to_owned())]);
        let argv = |entrypoint, cmd| {
            Program::resolve(&image(), &config, entrypoint, cmd, &env).expect("something to run").argv
        };
        assert_eq!(argv(None, None), ["/entry", "serve"]);
        assert_eq!(argv(None, Some(strings(&["check"]))), ["/entry", "check"]);
        assert_eq!(argv(Some(strings(&["/bin/sh"])), None), ["/bin/sh"]);
        assert_eq!(argv(Some(vec![]), Some(strings(&["/bin/x"]))), ["/bin/x"]);

        let program = Program::resolve(&image(), &config, None, None, &env).expect("something to run");
        assert!(program.env.contains(&"A=1".to_owned()) && program.env.contains(&"B=3".to_owned()));
        assert!(!program.env.contains(&"B=2".to_owned()));
        assert!(program.env.iter().any(|e| e.starts_with("PATH=")));
        assert_eq!(program.workdir, "/");
    }

    #[test]
    fn a_fork_has_its_own_name_tags_and_variables_over_its_sources() {
        let config = ImageConfig { cmd: strings(&["/x"]), env: strings(&["A=image"]), ..ImageConfig::default() };
        let pairs = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let env: BTreeMap<String, String> = pairs(&[("B", "source"), ("C", "source")]);
        let source = InstanceSpec {
            name: "web".parse().expect("a name"),
            image: image(),
            backend: Backend::QemuMicrovm,
            memory: MemMib::MIN,
            vcpus: 1,
            overlay: ByteSize::mib(64),
            network: Some(Network { ports: vec!["80:80".parse().expect("ports")], ..Network::default() }),
            agent: true,
            tags: pairs(&[("team", "a")]),
            program: Program::resolve(&image(), &config, None, None, &env).expect("something to run"),
            env,
            restart: RestartPolicy::default(),
            foreign: None,
        };
        let name: InstanceName = "try".parse().expect("a name");
        let fork = source.clone().forked(name.clone(), pairs(&[("A", "fork"), ("C", "fork")]), None);
        assert_eq!((&fork.name, &fork.tags), (&name, &source.tags));
        assert_eq!(fork.network, Some(Network::default()), "a port of the host leads to one guest");
        assert_eq!(fork.env, pairs(&[("A", "fork"), ("B", "source"), ("C", "fork")]));
        let mut program = fork.program.env.clone();
        program.retain(|entry| !entry.starts_with("PATH="));
        program.sort();
        assert_eq!(program, ["A=fork", "B=source", "C=fork"]);
        let tagged = source.forked(name, BTreeMap::new(), Some(BTreeMap::new()));
        assert!(tagged.tags.is_empty());
    }

    #[test]
    fn an_image_without_a_command_is_refused() {
        let error = Program::resolve(&image(), &ImageConfig::default(), None, None, &BTreeMap::new());
        assert_eq!(error, Err(NoCommand(image())));
    }
}
