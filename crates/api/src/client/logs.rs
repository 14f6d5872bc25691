//! Log lines as they come.

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderValue};

use super::requests::instance;
use super::{Client, ClientError, with_query};
use crate::Tags;
use crate::logs::LogsQuery;

/// Lines of a log, read as server-sent events. Dropping it ends the request.
#[derive(Debug)]
pub struct LogStream {
    what: String,
    body: Incoming,
    /// What was received and not yet handed out.
    buffer: BytesMut,
}

impl Client {
    /// Opens an instance's log.
    ///
    /// # Errors
    /// As of any request.
    pub async fn logs(&self, id: &str, query: &LogsQuery) -> Result<LogStream, ClientError> {
        let path = with_query(&instance(id, "/logs"), query, &Tags::new())?;
        let mut request = self.request(hyper::Method::GET, &path, None)?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let what = format!("GET {}", request.uri());
        let response = self.send(request).await?;
        Ok(LogStream { what, body: response.into_body(), buffer: BytesMut::new() })
    }
}

impl LogStream {
    /// The next line, without its end; `None` when there are no more.
    ///
    /// Cancel safe: what was received is kept.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection broke, [`ClientError::Strange`] if an event is not a
    /// JSON string.
    pub async fn next_line(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(data) = next_data(&mut self.buffer) {
                let line = serde_json::from_slice(&data)
                    .map_err(|source| ClientError::Strange { what: self.what.clone(), source: source.into() })?;
                return Ok(Some(line));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(source)) => {
                    return Err(ClientError::Lost { what: self.what.clone(), source: source.into() });
                }
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

/// The payload of the next event's one `data:` line. Blank lines, comments and other fields are
/// passed over: the server never splits a payload.
fn next_data(buffer: &mut BytesMut) -> Option<BytesMut> {
    loop {
        let end = buffer.iter().position(|byte| *byte == b'\n')?;
        let mut line = buffer.split_to(end);
        buffer.advance(1);
        if line.ends_with(b"\r") {
            line.truncate(line.len() - 1);
        }
        if line.starts_with(b"data:") {
            line.advance(5);
            if line.starts_with(b" ") {
                line.advance(1);
            }
            return Some(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_in_any_pieces() {
        let stream = b": hello\n\ndata: \"one\"\n\nevent: x\r\ndata:\"two\"\r\n\r\ndata: \"thr";
        for split in 0..stream.len() {
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            for piece in [&stream[..split], &stream[split..]] {
                buffer.extend_from_slice(piece);
                while let Some(data) = next_data(&mut buffer) {
                    seen.push(data);
                }
            }
            assert_eq!(seen, ["\"one\"", "\"two\""], "split at {split}");
            assert_eq!(buffer, "data: \"thr");
        }
    }
}
