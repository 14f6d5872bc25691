//! Who is let in.
//!
//! With a secret: whoever shows a token signed with it. Without one only this host's processes
//! reach the API, and the danger is a web page in a browser on this host, which can send requests
//! to loopback addresses in its visitor's place; so what bears the marks of one is refused.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hearth_model::ErrorKind;
use tracing::debug;

use super::error::Failure;
use crate::auth::{Auth, Caller};
use crate::error::OpError;
use crate::serve::App;

/// Answered without a token.
const OPEN: [&str; 3] = ["/health", "/spec.json", "/spec.yaml"];

/// The same, if the configuration says so: a token would let a collector do anything.
const METRICS: &str = "/metrics";

/// Lets a request through, or answers it.
pub(super) async fn gate(State((app, auth)): State<(Arc<App>, Auth)>, request: Request, next: Next) -> Response {
    if app.config.metrics.public && request.uri().path() == METRICS {
        return next.run(request).await;
    }
    match admit(&auth, request.uri().path(), request.headers()) {
        Ok(Caller::Anyone) => {}
        Ok(Caller::Subject(subject)) => debug!(subject, "caller"),
        Err(failure) => return failure.into_response(),
    }
    next.run(request).await
}

fn admit(auth: &Auth, path: &str, headers: &HeaderMap) -> Result<Caller, Failure> {
    if OPEN.contains(&path) {
        return Ok(Caller::Anyone);
    }
    if !auth.is_required() {
        from_this_host(headers)?;
    }
    let token = headers.get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
    auth.check(token, crate::clock::now_ms() / 1000).map_err(|refused| {
        OpError::new(ErrorKind::Unauthorized, refused.to_string())
            .hinted("send \"Authorization: Bearer <token>\" (HEARTH_TOKEN for the command line)")
            .into()
    })
}

/// Refuses what a browser sends for a page of somewhere else: a foreign `Origin`, or a `Host` that
/// is a name which its owner lets lead here.
fn from_this_host(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    let refuse = |what: String| {
        OpError::new(ErrorKind::Unauthorized, what)
            .hinted("address the daemon as 127.0.0.1 or localhost, or configure auth.token_secret")
            .into()
    };
    let host = text(header::HOST).unwrap_or_default();
    if !host.is_empty() && !is_local(host) {
        return Err(refuse(format!("without a token, requests to host {host:?} are refused")));
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.split_once("://").is_none_or(|(_, from)| from != host) => {
            Err(refuse(format!("without a token, requests of web pages from {origin:?} are refused")))
        }
        _ => Ok(()),
    }
}

/// `localhost` or an address, with or without a port.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| ((*name).parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn web_pages_of_others_are_kept_out_of_a_daemon_without_tokens() {
        let open = Auth::new(None);
        for (list, allowed) in [
            (vec![("host", "127.0.0.1:4973")], true),
            (vec![("host", "localhost:4973")], true),
            (vec![("host", "[::1]:4973")], true),
            (vec![], true),
            (vec![("host", "localhost:4973"), ("origin", "http://localhost:4973")], true),
            (vec![("host", "evil.example:4973")], false),
            (vec![("host", "localhost.evil.example")], false),
            (vec![("host", "127.0.0.1:4973"), ("origin", "https://evil.example")], false),
            (vec![("host", "127.0.0.1:4973"), ("origin", "null")], false),
        ] {
            assert_eq!(admit(&open, "/instances", &headers(&list)).is_ok(), allowed, "{list:?}");
        }
    }

    #[test]
    fn health_and_the_specification_are_open_and_nothing_else_is() {
        let closed = Auth::new(Some(&Secret::new("s")));
        for path in OPEN {
            assert!(admit(&closed, path, &headers(&[("host", "anything")])).is_ok(), "{path}");
        }
        for path in ["/instances", "/", "/health/x", "/healthy"] {
            let failure = admit(&closed, path, &HeaderMap::new()).expect_err(path);
            assert_eq!(failure.error.kind, ErrorKind::Unauthorized);
        }
        let token = format!("Bearer {}", crate::auth::sign("s", r#"{"alg":"HS256"}"#, r#"{"sub":"me"}"#));
        let list = [("host", "far.example"), ("authorization", token.as_str())];
        assert_eq!(admit(&closed, "/instances", &headers(&list)).expect("let in"), Caller::Subject("me".into()));
    }
}
