//! One method for each route, by resource. Names and ids are as the server resolves them: an id,
//! a name, or an id's unique beginning.

use serde::Serialize;

use super::{Client, ClientError, segment, with_query};
use crate::Tags;
use crate::capabilities::Capabilities;
use crate::health::Health;
use crate::images::{CreateImage, Image, ImportImage};
use crate::instances::{
    CreateInstance, CreateQuery, DeleteInstance, ForkAnswer, ForkInstance, Forked, Instance, InstanceState,
    InstanceStats, ListInstances, PathInfo, StatQuery, UpdateInstance, WaitQuery, Waited,
};
use crate::recovery::Recovery;
use crate::resources::Resources;
use crate::snapshots::{
    CreateSnapshot, ForkSnapshot, ImportSnapshot, ListSnapshots, RestoreSnapshot, Snapshot, VerifiedSnapshot,
};
use crate::timeline::{Timeline, TimelineQuery};

/// Where the body is left out.
const NOTHING: Option<&()> = None;

/// Errors of every method: [`ClientError`], with [`ClientError::Api`] when the server said no.
#[allow(clippy::missing_errors_doc)]
impl Client {
    /// Whether the server answers.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get("/health").await
    }

    /// What the server and its host can do.
    pub async fn capabilities(&self) -> Result<Capabilities, ClientError> {
        self.get("/capabilities").await
    }

    /// What the host has, and who has it.
    pub async fn resources(&self) -> Result<Resources, ClientError> {
        self.get("/resources").await
    }

    /// What the server found when it started, and what it did about it.
    pub async fn recovery(&self) -> Result<Recovery, ClientError> {
        self.get("/recovery").await
    }

    /// All images that have these tags.
    pub async fn images(&self, tags: &Tags) -> Result<Vec<Image>, ClientError> {
        self.get(&with_query("/images", &(), tags)?).await
    }

    /// One image.
    pub async fn image(&self, name: &str) -> Result<Image, ClientError> {
        self.get(&format!("/images/{}", segment(name))).await
    }

    /// Asks for an image by its name; it must have been imported.
    pub async fn create_image(&self, request: &CreateImage) -> Result<Image, ClientError> {
        self.post("/images", Some(request)).await
    }

    /// Makes an image of a path on the server.
    pub async fn import_image(&self, request: &ImportImage) -> Result<Image, ClientError> {
        self.post("/images/import", Some(request)).await
    }

    /// Removes an image that no instance is made of.
    pub async fn delete_image(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/images/{}", segment(name))).await
    }

    /// All instances in that state that have these tags.
    pub async fn instances(&self, state: Option<InstanceState>, tags: &Tags) -> Result<Vec<Instance>, ClientError> {
        self.get(&with_query("/instances", &ListInstances { state }, tags)?).await
    }

    /// One instance.
    pub async fn instance(&self, id: &str) -> Result<Instance, ClientError> {
        self.get(&instance(id, "")).await
    }

    /// Makes an instance; it boots after the answer.
    pub async fn create_instance(&self, request: &CreateInstance) -> Result<Instance, ClientError> {
        self.post("/instances", Some(request)).await
    }

    /// The same; whoever drops this before it is done leaves nothing behind.
    pub async fn create_attached_instance(&self, request: &CreateInstance) -> Result<Instance, ClientError> {
        let query = CreateQuery { attached: Some(true) };
        self.post(&with_query("/instances", &query, &Tags::new())?, Some(request)).await
    }

    /// Changes it; what is left out stays as it is.
    pub async fn update_instance(&self, id: &str, request: &UpdateInstance) -> Result<Instance, ClientError> {
        self.patch(&instance(id, ""), request).await
    }

    /// Removes an instance, whatever its state.
    pub async fn delete_instance(&self, id: &str, request: &DeleteInstance) -> Result<(), ClientError> {
        self.delete(&with_query(&instance(id, ""), request, &Tags::new())?).await
    }

    /// Boots a stopped instance.
    pub async fn start(&self, id: &str) -> Result<Instance, ClientError> {
        self.post(&instance(id, "/start"), NOTHING).await
    }

    /// Shuts it down; memory is lost.
    pub async fn stop(&self, id: &str) -> Result<Instance, ClientError> {
        self.post(&instance(id, "/stop"), NOTHING).await
    }

    /// Saves its memory and ends its VMM.
    pub async fn standby(&self, id: &str) -> Result<Instance, ClientError> {
        self.post(&instance(id, "/standby"), NOTHING).await
    }

    /// Brings it back from standby.
    pub async fn restore(&self, id: &str) -> Result<Instance, ClientError> {
        self.post(&instance(id, "/restore"), NOTHING).await
    }

    /// Makes new instances of this one; with `count` left out, one.
    pub async fn fork(&self, id: &str, request: &ForkInstance) -> Result<Forked, ClientError> {
        self.forked(&instance(id, "/fork"), request).await
    }

    /// Waits until it is in that state, at most `timeout` (as in "90s").
    pub async fn wait(&self, id: &str, request: &WaitQuery) -> Result<Waited, ClientError> {
        self.get(&with_query(&instance(id, "/wait"), request, &Tags::new())?).await
    }

    /// What it uses now.
    pub async fn stats(&self, id: &str) -> Result<InstanceStats, ClientError> {
        self.get(&instance(id, "/stats")).await
    }

    /// What is at a path in the guest.
    pub async fn stat(&self, id: &str, request: &StatQuery) -> Result<PathInfo, ClientError> {
        self.get(&with_query(&instance(id, "/stat"), request, &Tags::new())?).await
    }

    /// Its last operations, at most `limit`.
    pub async fn timeline(&self, id: &str, limit: Option<u32>) -> Result<Timeline, ClientError> {
        self.get(&with_query(&instance(id, "/timeline"), &TimelineQuery { limit }, &Tags::new())?).await
    }

    /// All snapshots that match.
    pub async fn snapshots(&self, request: &ListSnapshots, tags: &Tags) -> Result<Vec<Snapshot>, ClientError> {
        self.get(&with_query("/snapshots", request, tags)?).await
    }

    /// One snapshot.
    pub async fn snapshot(&self, id: &str) -> Result<Snapshot, ClientError> {
        self.get(&format!("/snapshots/{}", segment(id))).await
    }

    /// Saves an instance; it goes on.
    pub async fn create_snapshot(&self, id: &str, request: &CreateSnapshot) -> Result<Snapshot, ClientError> {
        self.post(&instance(id, "/snapshots"), Some(request)).await
    }

    /// Makes a snapshot of a guest that plain Firecracker saved on the server.
    pub async fn import_snapshot(&self, request: &ImportSnapshot) -> Result<Snapshot, ClientError> {
        self.post("/snapshots/import", Some(request)).await
    }

    /// Compares a snapshot with its checksums.
    pub async fn verify_snapshot(&self, id: &str) -> Result<VerifiedSnapshot, ClientError> {
        self.post(&format!("/snapshots/{}/verify", segment(id)), NOTHING).await
    }

    /// Removes a snapshot.
    pub async fn delete_snapshot(&self, id: &str) -> Result<(), ClientError> {
        self.delete(&format!("/snapshots/{}", segment(id))).await
    }

    /// Puts one of an instance's snapshots in its place.
    pub async fn restore_snapshot(
        &self,
        id: &str,
        snapshot: &str,
        request: &RestoreSnapshot,
    ) -> Result<Instance, ClientError> {
        self.post(&instance(id, &format!("/snapshots/{}/restore", segment(snapshot))), Some(request)).await
    }

    /// Makes new instances of a snapshot; with `count` left out, one.
    pub async fn fork_snapshot(&self, id: &str, request: &ForkSnapshot) -> Result<Forked, ClientError> {
        self.forked(&format!("/snapshots/{}/fork", segment(id)), request).await
    }

    async fn forked(&self, path: &str, request: &impl Serialize) -> Result<Forked, ClientError> {
        self.post::<ForkAnswer>(path, Some(request)).await.map(Forked::from)
    }
}

/// `/instances/{id}` and what follows.
pub(super) fn instance(id: &str, rest: &str) -> String {
    format!("/instances/{}{rest}", segment(id))
}
