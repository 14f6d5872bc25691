//! Frames through a stream that loses, repeats and invents bytes.

use hearth_agent_proto::{Decoder, Encoder, ExecStart, MAX_BODY, MAX_DATA, ToGuest, ToHost};
use proptest::prelude::*;

fn frame(epoch: u64, channel: u32, message: &ToGuest, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::default().encode(&mut out, epoch, channel, message, data).expect("small enough");
    out
}

/// Feeds `stream` in pieces of `step`; what came out.
fn received(decoder: &mut Decoder, stream: &[u8], step: usize) -> Vec<(u64, u32, ToGuest, Vec<u8>)> {
    let mut seen = Vec::new();
    for mut piece in stream.chunks(step) {
        while let Some(frame) = decoder.next(&mut piece) {
            if let Ok((message, data)) = frame.message::<ToGuest>() {
                seen.push((frame.epoch, frame.channel, message, data.to_vec()));
            }
        }
    }
    seen
}

#[test]
fn the_tail_of_an_old_frame_does_not_spoil_the_next() {
    let old = frame(1, 5, &ToGuest::Stdin, &[9; 3000]);
    let hello = frame(2, 0, &ToGuest::Hello { version: 1 }, &[]);
    for cut in 0..old.len() {
        for stream in [[&old[cut..], &hello].concat(), [&old[..cut], &hello].concat()] {
            let mut decoder = Decoder::default();
            let last = received(&mut decoder, &stream, 4096).pop().expect("the new frame at least");
            assert_eq!(last, (2, 0, ToGuest::Hello { version: 1 }, vec![]), "cut at {cut}");
        }
    }
}

#[test]
fn a_flipped_bit_costs_one_frame() {
    let good = frame(1, 5, &ToGuest::Stdin, b"some words");
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut decoder = Decoder::default();
        let seen = received(&mut decoder, &[&bad[..], &good].concat(), 7);
        assert!(!seen.is_empty());
        assert!(seen.iter().all(|(_, _, _, data)| data == b"some words"), "bit {bit}");
    }
}

#[test]
fn endless_input_without_a_frame_takes_bounded_memory() {
    let mut decoder = Decoder::default();
    for _ in 0..64 {
        assert!(received(&mut decoder, &[1; MAX_BODY], 65536).is_empty());
        assert!(decoder.capacity() <= 2 * MAX_BODY + 4096);
    }
    let after = [&[0][..], &frame(1, 1, &ToGuest::Ping, &[])].concat();
    assert_eq!(received(&mut decoder, &after, 65536).len(), 1);
    assert_eq!(decoder.counters().bad, 1);
}

#[test]
fn a_message_that_is_too_large_is_not_sent_at_all() {
    let exec = ToGuest::Exec(ExecStart { argv: vec!["x".repeat(MAX_BODY)], ..ExecStart::default() });
    let mut out = vec![1, 2, 3];
    let mut encoder = Encoder::default();
    let error = encoder.encode(&mut out, 1, 1, &exec, &[]).expect_err("too large");
    assert!(error.bytes > MAX_BODY);
    assert_eq!(out, [1, 2, 3]);
    encoder.encode(&mut out, 1, 1, &ToGuest::Data, &[0; MAX_DATA]).expect("the largest piece of data fits");
}

#[test]
fn a_message_of_a_later_version_is_said_to_be_unknown() {
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    Encoder::default().encode(&mut out, 1, 1, &200_u8, &[]).expect("small");
    let mut input = &out[..];
    let frame = decoder.next(&mut input).expect("the frame checks");
    assert!(frame.message::<ToHost>().is_err());
}

proptest! {
    #[test]
    fn what_goes_in_comes_out_in_any_pieces(
        frames in proptest::collection::vec((any::<u64>(), any::<u32>(), proptest::collection::vec(0_u8..4, 0..900)), 1..12),
        step in 1_usize..500,
    ) {
        let stream: Vec<u8> = frames.iter().flat_map(|(e, c, data)| frame(*e, *c, &ToGuest::Stdin, data)).collect();
        let mut decoder = Decoder::default();
        let seen = received(&mut decoder, &stream, step);
        let expected: Vec<_> = frames.into_iter().map(|(e, c, data)| (e, c, ToGuest::Stdin, data)).collect();
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(decoder.counters().bad, 0);
    }

    #[test]
    fn junk_never_panics_and_the_next_frame_is_found(junk in proptest::collection::vec(any::<u8>(), 0..3000), step in 1_usize..700) {
        let mut decoder = Decoder::default();
        let stream = [&junk[..], &frame(3, 4, &ToGuest::Ping, &[])].concat();
        let seen = received(&mut decoder, &stream, step);
        prop_assert_eq!(seen.last(), Some(&(3, 4, ToGuest::Ping, vec![])));
    }
}
