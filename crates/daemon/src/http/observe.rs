//! Around every request: its id, its line in the log, its error's body, and a net under its handler.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use hearth_api::headers;
use hearth_model::ErrorKind;
use tracing::{Instrument, debug, debug_span};

use super::error::{Failure, answer};
use crate::error::OpError;

/// Runs the rest of the stack.
pub(super) async fn observe(request: Request, next: Next) -> Response {
    let id = request_id();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    let span = debug_span!("request", id);

    let outcome = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let _in_span = span.enter();
    let mut response = outcome.unwrap_or_else(|panic| panicked(&*panic).into_response());
    if let Some(failure) = response.extensions_mut().remove::<Failure>() {
        let allow = response.headers_mut().remove(axum::http::header::ALLOW);
        response = answer(&failure, &id);
        if let Some(allow) = allow {
            response.headers_mut().insert(axum::http::header::ALLOW, allow);
        }
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(headers::REQUEST_ID, id);
    }
    debug!(%method, path, status = response.status().as_u16(), ms = began.elapsed().as_secs_f64() * 1e3, "answered");
    response
}

/// Runs `work` to its end even if the client hangs up meanwhile.
pub(super) async fn to_the_end<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, Failure>
where
    T: Send + 'static,
    E: Into<Failure> + Send + 'static,
{
    match tokio::spawn(work.in_current_span()).await {
        Ok(result) => result.map_err(Into::into),
        Err(ended) => Err(match ended.try_into_panic() {
            Ok(panic) => panicked(&*panic),
            Err(_) => OpError::new(ErrorKind::Cancelled, "the daemon is shutting down").into(),
        }),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let what = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    OpError::new(ErrorKind::Internal, format!("a bug in the daemon: {what}"))
        .hinted("please report it, with the daemon's log around this request's id")
        .into()
}

fn request_id() -> String {
    match crate::registry::random::<8>() {
        Ok(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        Err(_) => "unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;
    use axum::routing::get;
    use tower::ServiceExt;

    async fn bug() -> &'static str {
        panic!("the shelf fell down")
    }

    async fn bug_in_a_task() -> Result<(), Failure> {
        to_the_end::<(), Failure>(async { panic!("the shelf fell down") }).await
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_the_next_request_is_served() {
        let router = axum::Router::new()
            .route("/bug", get(bug))
            .route("/task", get(bug_in_a_task))
            .route("/fine", get(async || "fine"))
            .layer(axum::middleware::from_fn(observe));
        for path in ["/bug", "/task"] {
            let request = Request::builder().uri(path).body(axum::body::Body::empty()).expect("a request");
            let response = router.clone().oneshot(request).await.expect("an answer");
            assert_eq!(response.status().as_u16(), 500);
            let id = response.headers()[headers::REQUEST_ID].to_str().expect("text").to_owned();
            let body = to_bytes(response.into_body(), 10_000).await.expect("a body");
            let body: hearth_api::ErrorBody = serde_json::from_slice(&body).expect("an error body");
            assert_eq!((body.code.as_str(), body.request_id), ("internal", Some(id)));
            assert!(body.message.contains("the shelf fell down"), "{}", body.message);
        }
        let request = Request::builder().uri("/fine").body(axum::body::Body::empty()).expect("a request");
        assert_eq!(router.oneshot(request).await.expect("an answer").status().as_u16(), 200);
    }
}
