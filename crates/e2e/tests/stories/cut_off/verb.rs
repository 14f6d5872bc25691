//! The verbs, the state in which each begins, and what is asked for.

use anyhow::{Context, Result};
use hearth_api::client::ClientError;
use hearth_api::instances::{CreateInstance, DeleteInstance, ForkInstance, TargetState};
use hearth_api::snapshots::{CreateSnapshot, ForkSnapshot, ImportSnapshot, RestoreSnapshot, SnapshotKind};
use hearth_e2e::TestHost;

use super::guests::{Guests, Known};
use super::{Stage, fork};
use crate::import::plain::Plain;

/// A verb, and the state of the instance `web` in which it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Create,
    Start,
    Stop,
    StopStandby,
    Standby,
    StandbyOfRestored,
    Restore,
    Revert,
    Snapshot,
    SnapshotOfRestored,
    SnapshotStandby,
    SnapshotStopped,
    ForkRunning,
    ForkStandby,
    ForkToStandby,
    ForkStopped,
    Delete,
    DeleteStandby,
    DeleteSnapshot,
    ImportImage,
    DeleteImage,
    Import,
    ForkImported,
    RestoreImported,
}

/// What guests know before a verb.
#[derive(Debug, Clone)]
pub(crate) struct Before {
    /// The instance `web`, or what it will be forked from.
    pub(crate) web: Known,
    /// Its snapshot, where it was taken earlier.
    pub(crate) older: Known,
}

impl Verb {
    /// Brings `web` to where the verb begins.
    pub(crate) async fn prepare(self, stage: &Stage<'_>, mark: &str) -> Result<Before> {
        let (host, guests) = (stage.host, stage.guests);
        let nothing = Before { web: stage.cold.clone(), older: stage.cold.clone() };
        let theirs = || stage.theirs.as_ref().context("something was saved elsewhere");
        let web = match self {
            Self::Create | Self::ImportImage => return Ok(nothing),
            Self::DeleteImage => {
                host.client().import_image(&stage.image()).await?;
                return Ok(nothing);
            }
            Self::Start | Self::SnapshotStopped | Self::ForkStopped => {
                fork(host, "cold", "web", None).await?;
                return Ok(nothing);
            }
            Self::Import => {
                return Ok(Before { web: Known::ticks(theirs()?.tick), older: Known::ticks(theirs()?.tick) });
            }
            Self::ForkImported | Self::RestoreImported => {
                host.client().import_snapshot(&request(theirs()?)).await?;
                if self == Self::RestoreImported {
                    fork(host, "theirs", "web", Some(TargetState::Standby)).await?;
                }
                return Ok(Before { web: Known::ticks(theirs()?.tick), older: Known::ticks(theirs()?.tick) });
            }
            Self::Standby | Self::Snapshot => guests.boot(host, "web").await?,
            Self::Stop | Self::StopStandby | Self::StandbyOfRestored | Self::Restore | Self::Revert => {
                fork(host, "warm", "web", Some(TargetState::Running)).await?
            }
            Self::SnapshotOfRestored | Self::SnapshotStandby | Self::ForkRunning | Self::ForkStandby => {
                fork(host, "warm", "web", Some(TargetState::Running)).await?
            }
            Self::ForkToStandby | Self::Delete | Self::DeleteStandby | Self::DeleteSnapshot => {
                fork(host, "warm", "web", Some(TargetState::Running)).await?
            }
        };
        let older = guests.learn(&web, &format!("older-{mark}")).await?;
        if self == Self::Revert {
            web.snapshot("older").await?;
        }
        let mut known = guests.learn(&web, mark).await?;
        match self {
            Self::DeleteSnapshot => drop(web.snapshot("kept").await?),
            Self::StopStandby | Self::Restore | Self::Revert | Self::SnapshotStandby => web.standby().await?,
            Self::ForkStandby | Self::ForkToStandby | Self::DeleteStandby => web.standby().await?,
            _ => {}
        }
        known.said = guests.said(&web).await?;
        let older = Known { said: known.said, ..older };
        Ok(Before { web: known, older })
    }

    /// Asks for it, once.
    pub(crate) async fn act(self, stage: &Stage<'_>) -> Result<(), ClientError> {
        let client = stage.host.client();
        match self {
            Self::Create => {
                let request = TestHost::request("web", "counter:1");
                let request = match stage.guests {
                    Guests::Linux => request,
                    Guests::Bare => CreateInstance { skip_guest_agent: Some(true), network: None, ..request },
                };
                client.create_instance(&request).await.map(drop)
            }
            Self::Start => client.start("web").await.map(drop),
            Self::Stop | Self::StopStandby => client.stop("web").await.map(drop),
            Self::Standby | Self::StandbyOfRestored => client.standby("web").await.map(drop),
            Self::Restore | Self::RestoreImported => client.restore("web").await.map(drop),
            Self::Revert => client.restore_snapshot("web", "older", &RestoreSnapshot::default()).await.map(drop),
            Self::Snapshot | Self::SnapshotOfRestored | Self::SnapshotStandby | Self::SnapshotStopped => {
                let kind = match self {
                    Self::SnapshotStopped => SnapshotKind::Stopped,
                    _ => SnapshotKind::Standby,
                };
                let request = CreateSnapshot { kind, name: Some("kept".into()), tags: None };
                client.create_snapshot("web", &request).await.map(drop)
            }
            Self::ForkRunning | Self::ForkStandby | Self::ForkToStandby | Self::ForkStopped => {
                let target_state = match self {
                    Self::ForkStopped => None,
                    Self::ForkToStandby => Some(TargetState::Standby),
                    _ => Some(TargetState::Running),
                };
                let request = ForkInstance {
                    name: "child".into(),
                    from_running: Some(true),
                    target_state,
                    ..ForkInstance::default()
                };
                client.fork("web", &request).await.map(drop)
            }
            Self::Delete | Self::DeleteStandby => {
                client.delete_instance("web", &DeleteInstance { graceful_shutdown: Some(true) }).await
            }
            Self::DeleteSnapshot => client.delete_snapshot("kept").await,
            Self::ImportImage => client.import_image(&stage.image()).await.map(drop),
            Self::DeleteImage => client.delete_image("other:1").await,
            Self::Import => match &stage.theirs {
                Some(theirs) => client.import_snapshot(&request(theirs)).await.map(drop),
                None => Ok(()),
            },
            Self::ForkImported => {
                let request = ForkSnapshot { name: "child".into(), ..ForkSnapshot::default() };
                client.fork_snapshot("theirs", &request).await.map(drop)
            }
        }
    }

    /// Whether `web` was booted by it: what was in its memory is lost.
    pub(crate) fn boots(self) -> bool {
        matches!(self, Self::Create | Self::Start)
    }

    /// Whether the guest is asked to end, and may do so after the daemon's death.
    pub(crate) fn asks_the_guest_to_end(self) -> bool {
        matches!(self, Self::Stop | Self::Delete)
    }
}

/// What is asked of [`Verb::Import`].
fn request(theirs: &Plain) -> ImportSnapshot {
    crate::import::request(&theirs.dir, "theirs")
}
