//! Unpacks what kernels are packed with: gzip, xz, zstd, and lz4's legacy frame.
//!
//! In: bytes. Out: the unpacked bytes; the packing is told from the first bytes, so a wrong file
//! name does no harm. Bytes that start with none of the known marks are not touched.

use std::io::{self, Read};

/// How something is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Xz,
    Zstd,
    /// What `lz4 -l` writes; the kernel's build uses nothing else.
    Lz4Legacy,
}

impl Packing {
    /// `None` for anything else, packed or not.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Self::Lz4Legacy),
            _ => None,
        }
    }

    /// Unpacks the first stream in `bytes`; what follows it is not looked at.
    pub(crate) fn unpack(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        match self {
            Self::Gzip => {
                flate2::bufread::GzDecoder::new(bytes).read_to_end(&mut out)?;
            }
            Self::Xz => {
                lzma_rust2::XzReader::new(bytes, false).read_to_end(&mut out)?;
            }
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(bytes)?.single_frame();
                // Kernels are packed with the largest windows there are.
                decoder.window_log_max(31)?;
                decoder.read_to_end(&mut out)?;
            }
            Self::Lz4Legacy => unpack_lz4_legacy(&bytes[4..], &mut out)?,
        }
        Ok(out)
    }
}

/// A block of the legacy frame never unpacks to more than this.
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 << 20;

/// Blocks, each with its packed length before it, until the input ends.
fn unpack_lz4_legacy(mut bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut block = vec![0; LZ4_LEGACY_BLOCK_BYTES];
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(io::Error::other)?;
        let Some((packed, rest)) = rest.split_at_checked(length) else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "an lz4 block is cut short"));
        };
        let unpacked = lz4_flex::block::decompress_into(packed, &mut block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        out.extend_from_slice(&block[..unpacked]);
        bytes = rest;
    }
    if bytes.is_empty() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::UnexpectedEof, "half a block length")) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    pub(crate) fn pack(packing: Packing, plain: &[u8]) -> Vec<u8> {
        match packing {
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(plain).expect("gzip");
                encoder.finish().expect("gzip")
            }
            Packing::Xz => {
                let options = lzma_rust2::XzOptions::with_preset(1);
                let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).expect("xz");
                encoder.write_all(plain).expect("xz");
                encoder.finish().expect("xz")
            }
            Packing::Zstd => zstd::encode_all(plain, 1).expect("zstd"),
            Packing::Lz4Legacy => {
                let mut out = vec![0x02, 0x21, 0x4c, 0x18];
                for chunk in plain.chunks(LZ4_LEGACY_BLOCK_BYTES) {
                    let packed = lz4_flex::block::compress(chunk);
                    out.extend_from_slice(&u32::try_from(packed.len()).expect("small").to_le_bytes());
                    out.extend_from_slice(&packed);
                }
                out
            }
        }
    }

    pub(crate) const ALL: [Packing; 4] = [Packing::Gzip, Packing::Xz, Packing::Zstd, Packing::Lz4Legacy];

    #[test]
    fn every_packing_is_recognised_and_undone() {
        // More than one lz4 block.
        let plain: Vec<u8> = (0..=255_u8).cycle().take(LZ4_LEGACY_BLOCK_BYTES + 100_000).collect();
        for packing in ALL {
            let packed = pack(packing, &plain);
            assert_eq!(Packing::of(&packed), Some(packing));
            assert!(packing.unpack(&packed).expect("unpacks") == plain, "{packing:?}");
        }
        assert_eq!(Packing::of(b"\x7fELF"), None);
        assert_eq!(Packing::of(b""), None);
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        let plain = vec![7; 100_000];
        for packing in ALL {
            let packed = pack(packing, &plain);
            assert!(packing.unpack(&packed[..packed.len() - 3]).is_err(), "{packing:?}");
        }
    }
}
