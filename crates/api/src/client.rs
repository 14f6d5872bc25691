//! A typed client over plain HTTP.
//!
//! In: the server's address, a token, and requests of this crate's types. Out: answers of this
//! crate's types, or a [`ClientError`] that keeps "the server said no" apart from "there is no
//! server". Connections are kept and used again. It sends each request once, and sets no time
//! limit on operations: they end when the server says so. There is no TLS here.

mod cp;
mod error;
mod exec;
mod logs;
mod requests;
mod websocket;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use cp::{CpDownload, CpEvent, CpToError};
pub use error::{ApiError, ClientError};
pub use exec::{ExecEvent, ExecInput, ExecOutput, ExecSession};
pub use logs::LogStream;

use crate::error::ErrorBody;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One server, and who asks it. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    /// Without a slash at its end.
    base: String,
    authorization: Option<HeaderValue>,
    http: legacy::Client<HttpConnector, Full<Bytes>>,
}

impl Client {
    /// A client of the server at `url` (`http://host:port`, and a path before the API's if there
    /// is one); nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::Address`] if that is not such a URL, or the token cannot be sent.
    pub fn new(url: &str, token: Option<&str>) -> Result<Self, ClientError> {
        let base = parse_base(url).map_err(|problem| ClientError::Address { url: url.into(), problem })?;
        let authorization = match token.filter(|token| !token.is_empty()) {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                    ClientError::Address { url: url.into(), problem: "cannot be sent a token with line breaks in it" }
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { base, authorization, http })
    }

    /// The server's address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Sends one request and returns the response's head, if it is a success.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        let what = format!("{} {}", request.method(), request.uri());
        let response = self.http.request(request).await.map_err(|source| {
            if source.is_connect() {
                ClientError::NotReachable { url: self.base.clone(), source: source.into() }
            } else {
                ClientError::Lost { what: what.clone(), source: source.into() }
            }
        })?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = read(response, &what).await?;
        Err(ApiError { status: status.as_u16(), body: Box::new(error_body(status, &body)) }.into())
    }

    fn request(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request = request.header(ACCEPT, "application/json");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(body.unwrap_or_default().into()))
            .map_err(|_| ClientError::Address { url: self.base.clone(), problem: "is not a URL" })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.answer(self.request(Method::GET, path, None)?).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: Option<&impl Serialize>) -> Result<T, ClientError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(ClientError::Unwritable)?;
        self.answer(self.request(Method::POST, path, body)?).await
    }

    async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(ClientError::Unwritable)?;
        self.answer(self.request(Method::PATCH, path, Some(body))?).await
    }

    async fn delete(&self, path: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, path, None)?;
        let what = format!("DELETE {}", request.uri());
        read(self.send(request).await?, &what).await.map(drop)
    }

    async fn answer<T: DeserializeOwned>(&self, request: Request<Full<Bytes>>) -> Result<T, ClientError> {
        let what = format!("{} {}", request.method(), request.uri());
        let body = read(self.send(request).await?, &what).await?;
        serde_json::from_slice(&body).map_err(|source| ClientError::Strange { what, source: source.into() })
    }
}

async fn read(response: Response<Incoming>, what: &str) -> Result<Bytes, ClientError> {
    let body = response.into_body().collect().await;
    Ok(body.map_err(|source| ClientError::Lost { what: what.into(), source: source.into() })?.to_bytes())
}

/// The server's words, or what can be said of an answer that is not its own.
fn error_body(status: StatusCode, body: &[u8]) -> ErrorBody {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
        ErrorBody::new(hearth_model::ErrorKind::Internal, format!("the server answered {status}: {}", text.trim()))
    })
}

fn parse_base(url: &str) -> Result<String, &'static str> {
    let url = url.trim();
    if url.starts_with("https://") {
        return Err("is https, which this client does not speak: use http to a local address or through a tunnel");
    }
    let rest = url.strip_prefix("http://").ok_or("must begin with http://")?.trim_end_matches('/');
    let base = format!("http://{rest}");
    let uri: hyper::Uri = base.parse().map_err(|_| "is not a URL")?;
    if uri.host().is_none_or(str::is_empty) || rest.contains(['?', '#', '@']) {
        return Err("must be http://host:port, with no user, query or fragment");
    }
    Ok(base)
}

/// One path segment, with everything but unreserved characters escaped.
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// `path`, and `?query` if the query says anything.
fn with_query(path: &str, query: &impl Serialize, tags: &crate::Tags) -> Result<String, ClientError> {
    let mut text = serde_urlencoded::to_string(query).map_err(ClientError::UnwritableQuery)?;
    for (key, value) in tags {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(&format!("tags[{}]={}", segment(key), segment(value)));
    }
    Ok(if text.is_empty() { path.into() } else { format!("{path}?{text}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["http://127.0.0.1:4973", "http://localhost:4973/", "http://[::1]:1/api"] {
            let client = Client::new(good, None).expect(good);
            assert!(!client.url().ends_with('/'));
        }
        for (bad, says) in [
            ("https://x:1", "https"),
            ("x:1", "must begin with http://"),
            ("http://", "is not a URL"),
            ("http://a b", "is not a URL"),
            ("http://u@h:1", "no user"),
        ] {
            let error = Client::new(bad, None).expect_err(bad).to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
        let error = Client::new("http://x:1", Some("a\nb")).expect_err("a bad token").to_string();
        assert!(error.contains("token") && !error.contains("a\nb"), "{error}");
    }

    #[test]
    fn names_stay_one_segment() {
        assert_eq!(segment("docker.io/library/a:1"), "docker.io%2Flibrary%2Fa%3A1");
        let tags = [("team a".to_owned(), "x&y".to_owned())].into();
        let query = crate::instances::ListInstances { state: Some(crate::instances::InstanceState::Running) };
        let path = with_query("/instances", &query, &tags).expect("a query");
        assert_eq!(path, "/instances?state=Running&tags[team%20a]=x%26y");
        let none = with_query("/instances", &crate::instances::ListInstances::default(), &crate::Tags::new());
        assert_eq!(none.expect("a path"), "/instances");
    }
}
