//! An operation's error as a response.
//!
//! Handlers return a [`Failure`]; it travels inside the response to `observe`, which knows the
//! request's id, and becomes the body there. So every error response is made, and logged, in one
//! place.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hearth_api::{ErrorBody, headers};
use hearth_model::ErrorKind;
use tracing::{debug, error, warn};

use crate::error::OpError;

/// Why a request has no answer.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(super) error: Box<OpError>,
    /// Where HTTP has a more exact word than the error's kind.
    status: Option<StatusCode>,
}

impl Failure {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        OpError::new(ErrorKind::Invalid, message).into()
    }

    pub(super) fn unsupported(message: impl Into<String>, hint: impl Into<String>) -> Self {
        OpError::new(ErrorKind::Unsupported, message).hinted(hint).into()
    }

    pub(super) fn with_status(error: OpError, status: StatusCode) -> Self {
        Self { status: Some(status), ..error.into() }
    }
}

impl From<OpError> for Failure {
    fn from(error: OpError) -> Self {
        Self { error: Box::new(error), status: None }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The response that a handler's failure becomes.
pub(super) fn answer(failure: &Failure, request_id: &str) -> Response {
    log(&failure.error);
    let kind = failure.error.kind;
    let status = failure.status.or_else(|| StatusCode::from_u16(kind.http_status()).ok());
    let body = ErrorBody { request_id: Some(request_id.to_owned()), ..body(&failure.error) };
    let mut response = (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), axum::Json(body)).into_response();
    // Hypeman's clients would send again on every 409 and 5xx: a second fork, or a second wait.
    let retry = HeaderValue::from_static(if kind == ErrorKind::Busy { "true" } else { "false" });
    response.headers_mut().insert(headers::SHOULD_RETRY, retry);
    if kind == ErrorKind::Unauthorized {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The body, but for the request's id.
pub(super) fn body(error: &OpError) -> ErrorBody {
    ErrorBody {
        code: error.kind.as_str().into(),
        message: error.message.clone(),
        hint: error.hint.clone(),
        resource: error.resource.map(Into::into),
        name: error.name.clone(),
        op: error.op.map(|op| op.to_string()),
        step: error.step.map(Into::into),
        causes: error.causes.clone(),
        left_behind: error.left_behind.clone(),
        request_id: None,
    }
}

fn log(error: &OpError) {
    // The driver has logged what failed in an operation, with or without a step.
    if error.op.is_some() {
        return debug!(%error, "request failed");
    }
    match error.kind {
        ErrorKind::Internal | ErrorKind::HostFailed | ErrorKind::Corrupt => error!(%error, "request failed"),
        ErrorKind::VmmFailed | ErrorKind::GuestUnresponsive | ErrorKind::GuestFailed | ErrorKind::Exhausted => {
            warn!(%error, "request failed");
        }
        _ => debug!(%error, "request refused"),
    }
}
