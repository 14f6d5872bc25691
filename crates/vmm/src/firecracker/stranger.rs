//! What a VMM may answer whose guest has broken out into it: anything.
//!
//! For fuzzing, and for the replay of what it has found (`fuzz/corpus/firecracker_answer`).

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::control::{LONGEST_ANSWER, exchange, fault_message, greet, run_state_of};
use super::inspect::describe;
use super::probe::{Version, version_in};
use super::vsock::handshake;
use hearth_model::ByteSize;
use hearth_model::foreign::take_over;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
}

/// Takes it for an answer of Firecracker's API, of its vsock socket, and for its version.
///
/// # Panics
/// On an answer that is longer than what it came from, or on one that never comes to an end.
pub fn answer(bytes: &[u8]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(over_http(bytes));
        runtime.block_on(on_vsock(bytes));
    });
    json(bytes);
    if let Some(version) = version_in(&String::from_utf8_lossy(bytes)) {
        assert_eq!(Version::parse(&version.to_string()), Some(version));
    }
}

async fn over_http(bytes: &[u8]) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let asked = async {
        let mut open = greet(ours).await.expect("nothing is said yet");
        let request = Request::builder().uri("/").body(Full::new(Bytes::new())).expect("a request");
        exchange(&mut open, request).await
    };
    if let (Ok((_, text)), ()) = tokio::join!(asked, say(theirs, bytes)) {
        assert!(text.len() <= bytes.len().min(LONGEST_ANSWER));
        assert!(fault_message(&text).len() <= 3 * text.len(), "a bad byte is told with three");
        json(&text);
    }
}

async fn on_vsock(bytes: &[u8]) {
    let (mut ours, theirs) = tokio::io::duplex(64 << 10);
    if let (Ok(()), ()) = tokio::join!(handshake(&mut ours), say(theirs, bytes)) {
        assert!(bytes.starts_with(b"OK "));
    }
}

/// Says it once something was asked, and hangs up.
async fn say(mut stream: DuplexStream, bytes: &[u8]) {
    let mut heard = [0; 1024];
    assert!(stream.read(&mut heard).await.expect("readable") > 0, "it asks");
    // Who has heard enough hangs up: then the rest is not taken.
    drop(stream.write_all(bytes).await);
}

/// As a machine's configuration, and as its state.
fn json(text: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return };
    assert!(run_state_of(&value).is_none() || value["state"].is_string());
    let Some(described) = describe(&value, &value) else { return };
    if let Ok(guest) = take_over(described, ByteSize::mib(256), false) {
        for drive in guest.state.drives {
            let inside = drive.path.split('/').all(|part| !matches!(part, "" | "." | ".."));
            assert!(inside || drive.path.starts_with('/'), "{}", drive.path);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_fuzzing_has_found_is_borne() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/firecracker_answer");
        let mut files = 0;
        for file in std::fs::read_dir(corpus).expect("the corpus") {
            super::answer(&std::fs::read(file.expect("listed").path()).expect("readable"));
            files += 1;
        }
        assert!(files > 5, "{files} files in {corpus}");
    }
}
