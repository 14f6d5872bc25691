//! What a refusal must say, asked in one chain.

use std::fmt::Debug;

use hearth_api::client::{ApiError, ClientError};

/// An answer that is an error of the API.
#[derive(Debug)]
pub struct Refusal(pub ApiError);

/// The refusal that a request must have met.
///
/// # Panics
/// If it was granted, or there was no answer.
#[track_caller]
pub fn refused<T: Debug>(result: Result<T, ClientError>) -> Refusal {
    match result {
        Err(ClientError::Api(error)) => Refusal(error),
        Err(error) => panic!("no answer of the API: {error}: {error:?}"),
        Ok(granted) => panic!("this should have been refused: {granted:?}"),
    }
}

impl Refusal {
    /// Its HTTP status and code.
    ///
    /// # Panics
    /// If they are others.
    #[track_caller]
    pub fn is(self, status: u16, code: &str) -> Self {
        assert_eq!((self.0.status, self.0.body.code.as_str()), (status, code), "{:?}", self.0.body);
        self
    }

    /// The message, with its causes, holds this text.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        let body = &self.0.body;
        let all = format!("{} {}", body.message, body.causes.join(": "));
        assert!(all.contains(text), "{text:?} is not in {all:?}\n{body:?}");
        self
    }

    /// It says what to do, and that holds this text.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn advises(self, text: &str) {
        let body = &self.0.body;
        let hint = body.hint.as_deref().unwrap_or_else(|| panic!("there is no hint in {body:?}"));
        assert!(hint.contains(text), "{text:?} is not in the hint {hint:?}");
        assert!(body.left_behind.is_empty(), "left behind: {:?}", body.left_behind);
    }
}
