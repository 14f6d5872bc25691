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

/// A frame that checks, with anything in the place of its message.
fn framed(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // The unit has no bytes: what follows is all there is.
    Encoder::default().encode(&mut out, 1, 1, &(), payload).expect("small enough");
    out
}

/// Messages that have lists, options and texts in them.
fn samples() -> Vec<Vec<u8>> {
    let exec = ExecStart {
        argv: vec!["/bin/sh".into(), "-c".into(), "exit 7".into()],
        env: vec!["A=1".into()],
        ..ExecStart::default()
    };
    [ToGuest::Hello { version: 3 }, ToGuest::Exec(exec), ToGuest::Stdin, ToGuest::Ping]
        .iter()
        .map(|message| {
            let stream = frame(1, 1, message, b"data");
            let mut decoder = Decoder::default();
            let mut input = &stream[..];
            let frame = decoder.next(&mut input).expect("a frame");
            frame.message::<()>().expect("has no bytes").1.to_vec()
        })
        .collect()
}

/// Decodes both ways; whatever came of it, the decoder holds no more than a frame may have.
fn read(payload: &[u8]) {
    let stream = framed(payload);
    let mut decoder = Decoder::default();
    let mut input = &stream[..];
    let Some(frame) = decoder.next(&mut input) else {
        assert!(payload.is_empty(), "it checks");
        return;
    };
    for rest in [frame.message::<ToGuest>().map(|(_, rest)| rest), frame.message::<ToHost>().map(|(_, rest)| rest)] {
        assert!(rest.is_err() || payload.ends_with(rest.expect("not an error")), "data is what follows the message");
    }
    assert!(decoder.capacity() <= 2 * MAX_BODY + 4096);
}

#[test]
fn a_list_that_claims_to_be_longer_than_its_frame_takes_no_memory_for_it() {
    for sample in samples() {
        for at in 0..sample.len() {
            // The largest number that a varint can say, where a length may stand.
            let claim = [&sample[..at], &[0xff; 9], &[1], &sample[at..]].concat();
            read(&claim);
        }
    }
}

proptest! {
    #[test]
    fn any_payload_of_a_frame_that_checks_is_a_message_or_an_error(payload in proptest::collection::vec(any::<u8>(), 0..2000)) {
        read(&payload);
    }

    #[test]
    fn a_message_that_was_changed_is_a_message_or_an_error(
        which in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<proptest::sample::Index>(),
    ) {
        let samples = samples();
        let mut payload = which.get(&samples).clone();
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        read(&payload);
        read(&payload[..cut.index(payload.len())]);
    }
}
