//! Frames: how messages find their way through a stream that may be cut anywhere.
//!
//! In: messages → bytes ([`Encoder`]); bytes in any pieces → frames ([`Decoder`]). A frame that
//! does not check is skipped and counted, the next one is found again; memory stays bounded
//! whatever comes in.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cobs;

/// The most data one frame carries, in bytes.
pub const MAX_DATA: usize = 64 * 1024;

/// The most a frame's body may have, in bytes: a message with long lists, or data.
pub const MAX_BODY: usize = 256 * 1024;

const MAX_CODED: usize = MAX_BODY + MAX_BODY / 254 + 1;
const HEADER: usize = 12;
const CRC: usize = 4;

/// A message is larger than a frame may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message of {bytes} bytes is larger than a frame may be ({MAX_BODY})")]
pub struct TooLarge {
    /// Its size, coded.
    pub bytes: usize,
}

/// A frame checks, but what it carries is no message of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame carries no message that this version knows")]
pub struct Malformed;

/// Makes frames; keeps its scratch memory between them.
#[derive(Debug, Default)]
pub struct Encoder {
    body: Vec<u8>,
}

impl Encoder {
    /// Appends one frame to `out`.
    ///
    /// # Errors
    /// [`TooLarge`]; then `out` is unchanged.
    pub fn encode<M: Serialize>(
        &mut self,
        out: &mut Vec<u8>,
        epoch: u64,
        channel: u32,
        message: &M,
        data: &[u8],
    ) -> Result<(), TooLarge> {
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        body.extend_from_slice(&epoch.to_le_bytes());
        body.extend_from_slice(&channel.to_le_bytes());
        let mut body = postcard::to_extend(message, body).expect("writing to a Vec does not fail");
        body.extend_from_slice(data);
        let crc = crc32fast::hash(&body);
        body.extend_from_slice(&crc.to_le_bytes());
        let bytes = body.len();
        if bytes <= MAX_BODY {
            out.push(0);
            cobs::encode(&body, out);
            out.push(0);
            self.body = body;
            Ok(())
        } else {
            Err(TooLarge { bytes })
        }
    }
}

/// A frame that checked, still in the decoder's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// To which conversation it belongs.
    pub epoch: u64,
    /// To which request of it.
    pub channel: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The message, and the data that came with it.
    ///
    /// # Errors
    /// [`Malformed`] if it is none of this version.
    pub fn message<M: DeserializeOwned>(&self) -> Result<(M, &'a [u8]), Malformed> {
        postcard::take_from_bytes(self.payload).map_err(|_| Malformed)
    }
}

/// What a decoder has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that checked.
    pub good: u64,
    /// Pieces between delimiters that were no frame: cut, damaged or too long.
    pub bad: u64,
}

/// Finds frames in a stream.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Coded bytes since the last delimiter; after a frame was given out, its body.
    buffer: Vec<u8>,
    given_out: bool,
    skipping: bool,
    counters: Counters,
}

impl Decoder {
    /// Takes bytes from `input` up to the end of the next frame that checks, and gives that out;
    /// `None` when the input is used up. Call it until then.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Frame<'_>> {
        let body = loop {
            if std::mem::take(&mut self.given_out) {
                self.reset();
            }
            let Some(end) = input.iter().position(|byte| *byte == 0) else {
                self.keep(input);
                *input = &[];
                return None;
            };
            self.keep(&input[..end]);
            *input = &input[end + 1..];
            self.given_out = true;
            if self.skipping {
                self.counters.bad += 1;
            } else if !self.buffer.is_empty() {
                match self.check() {
                    Some(body) => break body,
                    None => self.counters.bad += 1,
                }
            }
        };
        self.counters.good += 1;
        let (header, payload) = self.buffer[..body].split_at(HEADER);
        let (epoch, channel) = header.split_at(8);
        Some(Frame {
            epoch: u64::from_le_bytes(epoch.try_into().expect("eight bytes")),
            channel: u32::from_le_bytes(channel.try_into().expect("four bytes")),
            payload,
        })
    }

    /// What it has seen so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Memory it holds, in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.skipping {
            return;
        }
        if self.buffer.len() + bytes.len() > MAX_CODED {
            self.buffer = Vec::new();
            self.skipping = true;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
    }

    fn reset(&mut self) {
        self.skipping = false;
        if self.buffer.capacity() > 2 * MAX_DATA {
            self.buffer = Vec::new();
        } else {
            self.buffer.clear();
        }
    }

    /// Decodes the buffer in place: where header and payload end.
    fn check(&mut self) -> Option<usize> {
        let len = cobs::decode_in_place(&mut self.buffer)?;
        let end = len.checked_sub(CRC).filter(|end| *end > HEADER)?;
        let (body, crc) = self.buffer[..len].split_at(end);
        (crc == crc32fast::hash(body).to_le_bytes()).then_some(end)
    }
}
