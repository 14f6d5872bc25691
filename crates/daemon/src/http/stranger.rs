//! What a stranger may send to the API: anything, as a body, a query, a first frame or a token.
//!
//! For fuzzing, and for the replay of what it has found (`fuzz/corpus/http_request`).

use std::collections::BTreeMap;

use hearth_api::cp::CpRequest;
use hearth_api::exec::{ExecControl, ExecRequest};
use hearth_api::images::{CreateImage, ImportImage};
use hearth_api::instances::{
    CreateInstance, ForkInstance, ListInstances, StandbyInstance, StartInstance, UpdateInstance, WaitQuery,
};
use hearth_api::logs::LogsQuery;
use hearth_api::snapshots::{CreateSnapshot, ForkSnapshot, ImportSnapshot, RestoreSnapshot};
use hearth_model::ErrorKind;
use hearth_model::spec::ImageConfig;
use hearth_store::ImageRecord;
use serde::de::DeserializeOwned;

use super::error::Failure;
use super::input::{parse_body, parse_duration, parse_name, parse_query};
use super::instances::spec;
use super::refuse::Fields;
use super::restart;
use crate::auth::Auth;
use crate::config::{Config, Secret};
use crate::images::parse_ref;
use crate::networks::Networks;

/// Reads it as everything that the API reads.
///
/// # Panics
/// On a refusal that blames somebody else or says nothing, and on a token that is let in.
pub fn request(bytes: &[u8]) {
    if let Some(request) = body::<CreateInstance>(bytes) {
        refusal(create(request));
    }
    if let Some(UpdateInstance { restart_policy }) = body(bytes) {
        refusal(restart::asked(restart_policy).map(drop));
    }
    if let Some(ForkInstance { name, env, .. }) = body(bytes) {
        refusal(parse_name("instance", &name).map(drop));
        refusal(super::instances::check_env(&env.unwrap_or_default()));
    }
    let _ = body::<StartInstance>(bytes);
    let _ = body::<StandbyInstance>(bytes);
    drop(body::<CreateSnapshot>(bytes));
    drop(body::<RestoreSnapshot>(bytes));
    drop(body::<ForkSnapshot>(bytes));
    drop(body::<ImportSnapshot>(bytes));
    drop(body::<CreateImage>(bytes));
    drop(body::<ImportImage>(bytes));
    drop(serde_json::from_slice::<ExecRequest>(bytes));
    drop(serde_json::from_slice::<ExecControl>(bytes));
    drop(serde_json::from_slice::<CpRequest>(bytes));

    let text = String::from_utf8_lossy(bytes);
    refusal(parse_query::<ListInstances>(&text).map(drop));
    refusal(parse_query::<LogsQuery>(&text).map(drop));
    refusal(parse_query::<WaitQuery>(&text).map(drop));
    refusal(parse_duration("timeout", &text).map(drop));
    refusal(parse_ref(&text).map(drop).map_err(Failure::from));

    let secret = Secret::new("a secret that is not in any corpus");
    let header = [b"Bearer ", bytes].concat();
    assert!(Auth::new(Some(&secret)).check(Some(&header), 1_700_000_000).is_err(), "nobody has signed it");
}

fn body<T: DeserializeOwned + Fields>(bytes: &[u8]) -> Option<T> {
    match parse_body(bytes, T::FIELDS) {
        Ok(body) => Some(body),
        Err(failure) => {
            refusal(Err(failure));
            None
        }
    }
}

fn create(request: CreateInstance) -> Result<(), Failure> {
    parse_ref(&request.image)?;
    let image = ImageRecord {
        name: "app".parse().expect("a reference"),
        digest: "sha256:0".into(),
        config: ImageConfig { cmd: vec!["/serve".into()], ..ImageConfig::default() },
        size_bytes: 1,
        platform: "linux/amd64".into(),
        created_at_ms: 0,
        tags: BTreeMap::new(),
    };
    let spec = spec(&Config::default().defaults, &Networks::User("no slots".into()), request, image)?;
    assert!(!spec.program.argv.is_empty() && spec.vcpus > 0);
    Ok(())
}

/// It is the request's fault, and is told.
fn refusal(read: Result<(), Failure>) {
    let Err(Failure { error, .. }) = read else { return };
    assert!(matches!(error.kind, ErrorKind::Invalid | ErrorKind::Unsupported), "{:?}: {}", error.kind, error.message);
    assert!(!error.message.is_empty());
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_fuzzing_has_found_is_borne() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/http_request");
        let mut files = 0;
        for file in std::fs::read_dir(corpus).expect("the corpus") {
            super::request(&std::fs::read(file.expect("listed").path()).expect("readable"));
            files += 1;
        }
        assert!(files > 5, "{files} files in {corpus}");
    }
}
