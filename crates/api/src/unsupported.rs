//! What Hypeman's clients may send and this server does not do yet: one table, and one check.
//!
//! In: a request's body as JSON, and which request it is. Out: the body without the fields that
//! say nothing (null, an empty list, `enabled: false`, …), or the first field that asks for
//! something which would not happen. Such a request is refused, never half obeyed. Fields that
//! neither Hypeman nor we know are not looked at here: the request types refuse them.

use serde_json::{Map, Value};

/// One field that is not acted on.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Where in the body, with dots between levels.
    pub path: &'static str,
    /// Values that ask for nothing, on top of the empty ones.
    pub also_nothing: Nothing,
    /// What it asks for.
    pub what: &'static str,
}

/// Values that ask for nothing and are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nothing {
    /// Only the empty ones: null, false, 0, "", [], {}, and an object of such.
    Empty,
    /// A duration or size of zero: "0s", "0".
    Zero,
    /// An object with `enabled` false, whatever else it says.
    Disabled,
    /// An object with this member and value, whatever else it says.
    Member(&'static str, &'static str),
    /// This text.
    Text(&'static str),
    /// Any boolean.
    AnyBool,
}

const fn field(path: &'static str, also_nothing: Nothing, what: &'static str) -> Field {
    Field { path, also_nothing, what }
}

/// `POST /instances`.
pub const CREATE_INSTANCE: &[Field] = &[
    field("auto_standby", Nothing::Disabled, "automatic standby"),
    field("credentials", Nothing::Empty, "credential brokering"),
    field("devices", Nothing::Empty, "device passthrough"),
    field("disk_io_bps", Nothing::Zero, "limiting disk I/O"),
    field("expires_at", Nothing::Empty, "automatic expiration"),
    field("gpu", Nothing::Empty, "GPUs"),
    field("health_check", Nothing::Member("type", "none"), "health checking"),
    field("hotplug_size", Nothing::Zero, "hotplug memory"),
    field("network.egress", Nothing::Disabled, "mediating outbound connections"),
    field("platform", Nothing::Text("linux/amd64"), "any platform but linux/amd64"),
    field("skip_kernel_headers", Nothing::AnyBool, "kernel headers"),
    field("snapshot_policy", Nothing::Empty, "snapshot policies"),
    field("ttl", Nothing::Zero, "automatic expiration"),
    field("volumes", Nothing::Empty, "volumes"),
];

/// `PATCH /instances/{id}`.
pub const UPDATE_INSTANCE: &[Field] = &[
    field("auto_standby", Nothing::Disabled, "automatic standby"),
    field("env", Nothing::Empty, "credential rotation"),
    field("expires_at", Nothing::Empty, "automatic expiration"),
    field("health_check", Nothing::Member("type", "none"), "health checking"),
    field("ttl", Nothing::Zero, "automatic expiration"),
];

/// `POST /instances/{id}/start`.
pub const START_INSTANCE: &[Field] = &[
    field("cmd", Nothing::Empty, "changing the command of an instance"),
    field("entrypoint", Nothing::Empty, "changing the entrypoint of an instance"),
];

/// `POST /instances/{id}/standby`.
pub const STANDBY_INSTANCE: &[Field] = &[
    field("compression", Nothing::Disabled, "compressing snapshots"),
    field("compression_delay", Nothing::Zero, "compressing snapshots"),
];

/// `POST /instances/{id}/snapshots`.
pub const CREATE_SNAPSHOT: &[Field] = &[field("compression", Nothing::Disabled, "compressing snapshots")];

/// `POST /images`.
pub const CREATE_IMAGE: &[Field] = &[
    field("credentials", Nothing::Empty, "pulling with credentials"),
    field("platform", Nothing::Text("linux/amd64"), "any platform but linux/amd64"),
];

/// Every table, by the request that it belongs to.
pub const ALL: &[(&str, &[Field])] = &[
    ("POST /instances", CREATE_INSTANCE),
    ("PATCH /instances/{id}", UPDATE_INSTANCE),
    ("POST /instances/{id}/start", START_INSTANCE),
    ("POST /instances/{id}/standby", STANDBY_INSTANCE),
    ("POST /instances/{id}/snapshots", CREATE_SNAPSHOT),
    ("POST /images", CREATE_IMAGE),
];

/// A field asks for what this server does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {path:?} asks for {what}, which this server does not support yet")]
pub struct Unsupported {
    /// Where in the body.
    pub path: &'static str,
    /// What is missing.
    pub what: &'static str,
}

impl Unsupported {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        format!("leave {:?} out of the request", self.path)
    }
}

/// Takes fields that ask for nothing out of `body`.
///
/// # Errors
/// The first field that asks for something.
pub fn strip(body: &mut Value, fields: &[Field]) -> Result<(), Unsupported> {
    for field in fields {
        let (parents, name) = match field.path.rsplit_once('.') {
            Some((parents, name)) => (Some(parents), name),
            None => (None, field.path),
        };
        let parent =
            parents.into_iter().flat_map(|path| path.split('.')).try_fold(&mut *body, |at, key| at.get_mut(key));
        let Some(parent) = parent.and_then(Value::as_object_mut) else { continue };
        match parent.get(name) {
            None => {}
            Some(value) if asks_for_nothing(value, field.also_nothing) => {
                parent.remove(name);
            }
            Some(_) => return Err(Unsupported { path: field.path, what: field.what }),
        }
    }
    Ok(())
}

fn asks_for_nothing(value: &Value, also: Nothing) -> bool {
    if is_empty(value) {
        return true;
    }
    match also {
        Nothing::Empty => false,
        Nothing::Zero => value.as_str().is_some_and(is_zero),
        Nothing::Disabled => member(value, "enabled").is_some_and(|enabled| enabled == &Value::Bool(false)),
        Nothing::Member(name, text) => member(value, name).is_some_and(|member| member == text),
        Nothing::Text(text) => value == text,
        Nothing::AnyBool => value.is_boolean(),
    }
}

fn member<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.as_object().and_then(|members: &Map<String, Value>| members.get(name))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        // A compression that is off says nothing, whatever its level.
        Value::Object(members) => members.get("enabled") == Some(&Value::Bool(false)) || members.values().all(is_empty),
    }
}

/// "0", "0s", "0h0m0s", "0 MB", "0bps".
fn is_zero(text: &str) -> bool {
    text.contains('0') && !text.contains(|c: char| matches!(c, '1'..='9'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A value that asks for something, and all that ask for nothing.
    fn samples(field: &Field) -> (Value, Vec<Value>) {
        let mut nothing = vec![Value::Null];
        let something = match field.also_nothing {
            Nothing::Empty => {
                nothing.extend([json!([]), json!({}), json!(""), json!(false), json!({"a": {"enabled": false}})]);
                json!([{"volume_id": "v"}])
            }
            Nothing::Zero => {
                nothing.extend([json!("0s"), json!("0 MB"), json!("0")]);
                json!("10s")
            }
            Nothing::Disabled => {
                nothing.extend([json!({"enabled": false, "level": 3}), json!({})]);
                json!({"enabled": true})
            }
            Nothing::Member(name, text) => {
                nothing.push(json!({name: text, "interval": "5s"}));
                json!({name: "other"})
            }
            Nothing::Text(text) => {
                nothing.push(json!(text));
                json!("linux/arm64")
            }
            Nothing::AnyBool => {
                nothing.extend([json!(true), json!(false)]);
                json!("yes")
            }
        };
        (something, nothing)
    }

    fn body(path: &str, value: Value) -> Value {
        path.rsplit('.').fold(value, |inner, key| json!({key: inner}))
    }

    #[test]
    fn each_field_is_refused_by_name_and_taken_when_it_says_nothing() {
        for (request, fields) in ALL {
            for field in *fields {
                let (something, nothing) = samples(field);
                let error = strip(&mut body(field.path, something), fields).expect_err(field.path);
                assert!(error.to_string().contains(field.path), "{request}: {error}");
                assert!(error.hint().contains(field.path));
                for value in nothing {
                    let mut body = body(field.path, value.clone());
                    assert_eq!(strip(&mut body, fields), Ok(()), "{request}: {} = {value}", field.path);
                    assert!(!body.to_string().contains(field.path.rsplit('.').next().expect("a name")), "{body}");
                }
            }
        }
    }

    #[test]
    fn other_fields_stay() {
        let mut body = json!({"name": "a", "network": {"enabled": true, "egress": {"enabled": false}}, "ttl": "0s"});
        assert_eq!(strip(&mut body, CREATE_INSTANCE), Ok(()));
        assert_eq!(body, json!({"name": "a", "network": {"enabled": true}}));
        for not_an_object in [json!(3), json!([]), json!({"network": 3})] {
            assert_eq!(strip(&mut not_an_object.clone(), CREATE_INSTANCE), Ok(()));
        }
    }
}
