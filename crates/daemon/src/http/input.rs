//! What comes in with a request: path, query and body, parsed or refused with the place named.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use hearth_api::Tags;
use hearth_api::unsupported::{Field, strip};
use hearth_model::{ErrorKind, InstanceName};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::Failure;
use super::refuse::Fields;
use crate::error::OpError;

/// The path's parameters.
#[derive(Debug)]
pub(super) struct Named<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(error) => Err(Failure::invalid(format!("the path cannot be read: {error}"))),
        }
    }
}

/// The query, its `tags[key]=value` apart.
#[derive(Debug)]
pub(super) struct Query<T> {
    pub(super) query: T,
    pub(super) tags: Tags,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        parse_query(parts.uri.query().unwrap_or_default())
    }
}

pub(super) fn parse_query<T: DeserializeOwned>(text: &str) -> Result<Query<T>, Failure> {
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(text).map_err(|error| Failure::invalid(format!("the query: {error}")))?;
    let mut tags = Tags::new();
    let mut rest = Vec::new();
    for (name, value) in pairs {
        match name.strip_prefix("tags[").and_then(|key| key.strip_suffix(']')) {
            Some(key) => {
                tags.insert(key.to_owned(), value);
            }
            None => rest.push((name, value)),
        }
    }
    let rest = serde_urlencoded::to_string(rest).unwrap_or_default();
    let fields = serde_urlencoded::Deserializer::new(form_urlencoded::parse(rest.as_bytes()));
    let query = serde_path_to_error::deserialize(fields).map_err(|error| refused("query parameter", &error))?;
    Ok(Query { query, tags })
}

/// A JSON body; none at all is an empty object.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned + Fields, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| {
            if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
                let error = OpError::new(ErrorKind::Invalid, "the body is larger than this server takes")
                    .hinted("limits.body in its configuration says how much");
                return Failure::with_status(error, StatusCode::PAYLOAD_TOO_LARGE);
            }
            Failure::invalid(format!("the body cannot be read: {error}"))
        })?;
        parse_body(&bytes, T::FIELDS).map(Self)
    }
}

pub(super) fn parse_body<T: DeserializeOwned>(bytes: &[u8], fields: &[Field]) -> Result<T, Failure> {
    let bytes: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    let mut value: Value =
        serde_json::from_slice(bytes).map_err(|error| Failure::invalid(format!("the body is not JSON: {error}")))?;
    if !value.is_object() {
        return Err(Failure::invalid("the body is not a JSON object"));
    }
    strip(&mut value, fields).map_err(|refused| Failure::unsupported(refused.to_string(), refused.hint()))?;
    serde_path_to_error::deserialize(value).map_err(|error| refused("field", &error))
}

/// Says which field or parameter; at the top level serde names it itself.
fn refused(what: &str, error: &serde_path_to_error::Error<impl std::fmt::Display>) -> Failure {
    let path = error.path().to_string();
    Failure::invalid(if path == "." {
        error.inner().to_string()
    } else {
        format!("{what} {path:?}: {}", error.inner())
    })
}

/// A name of a new instance or snapshot.
pub(super) fn parse_name(resource: &'static str, text: &str) -> Result<InstanceName, Failure> {
    text.parse().map_err(|error: hearth_model::name::NameError| {
        OpError::new(ErrorKind::Invalid, error.to_string()).about(resource, text).into()
    })
}

/// A field that is parsed as what it stands for, with its name in the error.
pub(super) fn parse_field<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error| Failure::invalid(format!("field {name:?}: {error}")))
}

/// A duration as Go writes it: "30s", "1h30m", "1.5s", "250ms".
pub(super) fn parse_duration(name: &str, text: &str) -> Result<Duration, Failure> {
    go_duration(text).ok_or_else(|| {
        Failure::invalid(format!("{name} {text:?} is not a duration such as \"30s\", \"2m\" or \"1h30m\""))
    })
}

fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_ends);
        let unit_ends = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_ends);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_api::instances::{CreateInstance, InstanceState, ListInstances, WaitQuery};
    use hearth_api::logs::LogsQuery;
    use hearth_api::unsupported::CREATE_INSTANCE;

    fn body(text: &str) -> Result<CreateInstance, Failure> {
        parse_body(text.as_bytes(), CREATE_INSTANCE)
    }

    #[test]
    fn a_bad_body_is_refused_with_the_place_named() {
        for (text, kind, says) in [
            ("{", ErrorKind::Invalid, "not JSON"),
            ("[]", ErrorKind::Invalid, "not a JSON object"),
            ("", ErrorKind::Invalid, "missing field `image`"),
            (r#"{"image":"a"}"#, ErrorKind::Invalid, "missing field `name`"),
            (r#"{"image":"a","name":"b","nmae":1}"#, ErrorKind::Invalid, "nmae"),
            (r#"{"image":"a","name":"b","vcpus":"2"}"#, ErrorKind::Invalid, "\"vcpus\""),
            (r#"{"image":"a","name":"b","network":{"enabled":1}}"#, ErrorKind::Invalid, "network.enabled"),
            (r#"{"image":"a","name":"b","network":{"x":1}}"#, ErrorKind::Invalid, "`x`"),
            (r#"{"image":"a","name":"b","ttl":"5m"}"#, ErrorKind::Unsupported, "\"ttl\""),
        ] {
            let failure = body(text).expect_err(text);
            assert_eq!(failure.error.kind, kind, "{text}");
            assert!(failure.error.message.contains(says), "{text}: {}", failure.error.message);
        }
        assert!(body(r#"{"image":"a","name":"b","ttl":"0s","volumes":[]}"#).is_ok());
    }

    #[test]
    fn queries_as_hypemans_clients_write_them() {
        let list: Query<ListInstances> = parse_query("state=Running&tags%5Bteam%5D=a%20b&tags[x]=y").expect("theirs");
        assert_eq!(list.query.state, Some(InstanceState::Running));
        assert_eq!(list.tags, [("team".into(), "a b".into()), ("x".into(), "y".into())].into());
        let logs: Query<LogsQuery> = parse_query("follow=true&tail=5&source=hypeman").expect("theirs");
        assert_eq!(logs.query.source, Some(hearth_api::logs::LogSource::Hearth));

        for (text, says) in
            [("state=running", "running"), ("stat=Running", "stat"), ("state=Running&state=Stopped", "state")]
        {
            let message = parse_query::<ListInstances>(text).expect_err(text).error.message;
            assert!(message.contains(says), "{text}: {message}");
        }
        assert!(parse_query::<WaitQuery>("timeout=1s").expect_err("no state").error.message.contains("state"));
        assert!(parse_query::<LogsQuery>("tail=-1").expect_err("negative").error.message.contains("tail"));
    }

    /// Whatever comes in, it is read or refused as what it is: never a panic, and no fault of ours.
    fn read_or_refused(bytes: &[u8]) {
        for failure in [
            parse_body::<CreateInstance>(bytes, CREATE_INSTANCE).err(),
            parse_body::<hearth_api::instances::ForkInstance>(bytes, &[]).err(),
            parse_body::<hearth_api::snapshots::CreateSnapshot>(bytes, &[]).err(),
            parse_body::<hearth_api::snapshots::ImportSnapshot>(bytes, &[]).err(),
        ]
        .into_iter()
        .flatten()
        {
            let kind = failure.error.kind;
            assert!(matches!(kind, ErrorKind::Invalid | ErrorKind::Unsupported), "{kind:?}: {}", failure.error.message);
            assert!(!failure.error.message.is_empty());
        }
        let text = String::from_utf8_lossy(bytes);
        for refused in [
            parse_query::<ListInstances>(&text).err(),
            parse_query::<LogsQuery>(&text).err(),
            parse_query::<WaitQuery>(&text).err(),
        ]
        .into_iter()
        .flatten()
        {
            assert_eq!(refused.error.kind, ErrorKind::Invalid, "{}", refused.error.message);
        }
        drop(parse_duration("timeout", &text));
        drop(parse_name("instance", &text));
    }

    #[test]
    fn a_body_that_nests_for_ever_is_refused() {
        for nest in ["[", "{\"env\":", "{\"network\":"] {
            read_or_refused(nest.repeat(100_000).as_bytes());
        }
        read_or_refused(format!("{{\"vcpus\":1e{}}}", "9".repeat(1000)).as_bytes());
    }

    const WHOLE: &str = r#"{"image":"a","name":"b","vcpus":2,"size":"1GB","env":{"A":"1"},"cmd":["/bin/x"],
        "network":{"enabled":true,"ports":[]},"tags":{"k":"v"},"kind":"Standby","path":"/p","count":3,"agent":false}"#;

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
            read_or_refused(&bytes);
        }

        #[test]
        fn a_body_that_was_changed_is_read_or_refused(
            changes in proptest::collection::vec((0..WHOLE.len(), proptest::prelude::any::<u8>()), 1..8),
            cut in 0..WHOLE.len(),
            twice in 0..WHOLE.len(),
        ) {
            let mut bytes = WHOLE.as_bytes().to_vec();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            read_or_refused(&bytes);
            read_or_refused(&bytes[..cut]);
            read_or_refused(&[&bytes[..cut], &bytes[twice..]].concat());
        }

        #[test]
        fn a_query_of_any_words_is_read_or_refused(words in "[a-z%=&+\\[\\]0-9;._-]{0,80}") {
            read_or_refused(words.as_bytes());
        }

        #[test]
        fn no_duration_is_too_long_to_be_one_or_to_be_refused(text in "[0-9.]{0,30}(h|m|s|ms|us|ns|d|)[0-9.hms]{0,8}") {
            // To refuse it is as good as to read it; to panic is not.
            if let Some(duration) = go_duration(&text) {
                proptest::prop_assert!(duration < Duration::MAX);
            }
        }
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (text, millis) in
            [("30s", 30_000), ("2m", 120_000), ("1h30m", 5_400_000), ("1.5s", 1500), ("250ms", 250), ("0", 0)]
        {
            assert_eq!(go_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "5", "s", "-1s", "1 s", "1d", "1e300h", "..s", "999999999999999999999h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}
