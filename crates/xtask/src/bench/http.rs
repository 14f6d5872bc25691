//! The smallest HTTP client that measures: one connection, one request at a time, JSON bodies.
//!
//! In: a path and perhaps a body. Out: the answer, and the time from the request's first byte
//! written to the answer's last byte read, and when it was written. Not here: anything that the daemon under test does not
//! do, such as chunked answers, redirects or TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A connection to a daemon, kept open.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
    host: String,
}

/// An answer that was a success.
#[derive(Debug)]
pub struct Answer {
    /// `null` if there was none.
    pub body: Value,
    pub took: Duration,
    /// When the request's first byte was written, by the clock that logs have.
    pub sent: SystemTime,
}

impl Client {
    /// Connects to `http://host:port`.
    pub fn connect(url: &str) -> Result<Self> {
        let host = url.strip_prefix("http://").with_context(|| format!("{url} does not begin with http://"))?;
        let stream = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
        stream.set_nodelay(true).context("turn off delays")?;
        Ok(Self { stream: BufReader::new(stream), host: host.to_owned() })
    }

    pub fn get(&mut self, path: &str) -> Result<Answer> {
        self.ask("GET", path, None)
    }

    pub fn post(&mut self, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.ask("POST", path, body)
    }

    pub fn delete(&mut self, path: &str) -> Result<Answer> {
        self.ask("DELETE", path, None)
    }

    fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        let (began, sent) = (Instant::now(), SystemTime::now());
        let answer = self.exchange(request.as_bytes()).with_context(|| format!("{method} {path}"));
        let took = began.elapsed();
        let (status, bytes) = answer?;
        if !(200..300).contains(&status) {
            bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&bytes));
        }
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).with_context(|| format!("read the answer to {method} {path}"))?
        };
        Ok(Answer { body, took, sent })
    }

    fn exchange(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>)> {
        self.stream.get_mut().write_all(request).context("send")?;
        let status = self.line()?;
        let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.with_context(|| format!("no status line: {status:?}"))?;
        let mut length = 0;
        loop {
            let header = self.line()?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().with_context(|| format!("read {header:?}"))?;
            }
            ensure!(!header.starts_with("transfer-encoding:"), "the answer comes in chunks");
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).context("receive")?;
        Ok((code, body))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line).context("receive")? > 0, "the daemon hung up");
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn answers_are_read_to_their_end_and_refusals_are_errors() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut stream = BufReader::new(stream);
            for answer in [
                "200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
                "204 No Content\r\n\r\n",
                "409 No\r\nContent-Length: 2\r\n\r\n{}",
            ] {
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    stream.read_line(&mut line).expect("a request");
                }
                stream.get_mut().write_all(format!("HTTP/1.1 {answer}").as_bytes()).expect("sent");
            }
        });
        let mut client = Client::connect(&url).expect("connected");
        assert_eq!(client.get("/x").expect("an answer").body["a"], 1);
        assert_eq!(client.delete("/x").expect("an answer").body, Value::Null);
        let error = client.post("/x", None).expect_err("refused");
        assert!(error.to_string().contains("POST /x: 409"), "{error}");
        server.join().expect("ended");
    }
}
