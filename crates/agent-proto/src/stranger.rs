//! What a stranger may send on a guest's channel: anything, in any pieces.
//!
//! For fuzzing, and for the replay of what it has found (`fuzz/corpus/agent_frames`).

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cobs;
use crate::frame::{Decoder, Encoder, MAX_BODY};
use crate::message::{ToGuest, ToHost};

/// More than a decoder may hold, whatever came in: a frame's coded bytes, as a `Vec` grows to them.
const MOST_MEMORY: usize = 3 * MAX_BODY;

/// Takes it for a stream, and for the inside of a frame that checks.
///
/// # Panics
/// On a decoder that finds other frames in other pieces, grows without bound, or reads a message
/// that it would not write.
pub fn stream(bytes: &[u8]) {
    let whole = frames(bytes, bytes.len().max(1));
    for piece in [1, 7] {
        assert_eq!(frames(bytes, piece), whole, "in pieces of {piece}");
    }
    let mut coded = vec![0];
    cobs::encode(&[bytes, &crc32fast::hash(bytes).to_le_bytes()].concat(), &mut coded);
    coded.push(0);
    let found = frames(&coded, coded.len());
    // A header of twelve bytes, and a message of one at least.
    assert_eq!(found.len(), usize::from(bytes.len() > 12 && bytes.len() + 4 <= MAX_BODY));
}

/// The frames in it: where they belong, and what they say to either side.
fn frames(bytes: &[u8], piece: usize) -> Vec<(u64, u32, String, String)> {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for mut piece in bytes.chunks(piece) {
        while let Some(frame) = decoder.next(&mut piece) {
            let said = (said(frame.message::<ToHost>()), said(frame.message::<ToGuest>()));
            found.push((frame.epoch, frame.channel, said.0, said.1));
        }
        assert!(decoder.capacity() <= MOST_MEMORY, "{} bytes", decoder.capacity());
    }
    assert_eq!(decoder.counters().good, found.len() as u64);
    found
}

/// The message, which comes back when it is sent on.
fn said<M: Serialize + DeserializeOwned + PartialEq + Debug>(read: Result<(M, &[u8]), crate::Malformed>) -> String {
    let Ok((message, data)) = read else { return String::new() };
    let mut again = Vec::new();
    Encoder::default().encode(&mut again, 1, 2, &message, data).expect("it came in a frame");
    let mut rest = &again[..];
    let mut decoder = Decoder::default();
    let frame = decoder.next(&mut rest).expect("it was written");
    assert_eq!(frame.message::<M>(), Ok((message, data)));
    format!("{:?}", frame.message::<M>())
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_fuzzing_has_found_is_borne() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/agent_frames");
        let mut files = 0;
        for file in std::fs::read_dir(corpus).expect("the corpus") {
            super::stream(&std::fs::read(file.expect("listed").path()).expect("readable"));
            files += 1;
        }
        assert!(files > 5, "{files} files in {corpus}");
    }
}
