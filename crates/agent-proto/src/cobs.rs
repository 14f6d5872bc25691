//! Consistent overhead byte stuffing: any bytes in, bytes without a zero out, and back.

/// Appends `body`, stuffed, to `out`.
pub fn encode(body: &[u8], out: &mut Vec<u8>) {
    out.reserve(body.len() + body.len() / 254 + 1);
    let mut rest = body;
    loop {
        let run = rest.iter().take(254).take_while(|byte| **byte != 0).count();
        // A full run of 254 stands for itself, without a zero after it.
        out.push(u8::try_from(run + 1).unwrap_or(u8::MAX));
        out.extend_from_slice(&rest[..run]);
        if run == rest.len() {
            return;
        }
        rest = &rest[if run == 254 { run } else { run + 1 }..];
    }
}

/// Undoes [`encode`] in place: the body's length, or `None` if these are not stuffed bytes.
pub fn decode_in_place(bytes: &mut [u8]) -> Option<usize> {
    let (mut read, mut write) = (0, 0);
    while read < bytes.len() {
        let code = usize::from(bytes[read]);
        let next = read + code;
        if code == 0 || next > bytes.len() {
            return None;
        }
        bytes.copy_within(read + 1..next, write);
        write += code - 1;
        read = next;
        if code < 255 && read < bytes.len() {
            bytes[write] = 0;
            write += 1;
        }
    }
    Some(write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_of_every_length_around_the_limit_come_back() {
        for len in 0_usize..1030 {
            for zero_at in [None, Some(0), Some(len / 2), Some(len.saturating_sub(1))] {
                let mut body = vec![7_u8; len];
                if let Some(byte) = zero_at.and_then(|at| body.get_mut(at)) {
                    *byte = 0;
                }
                let mut coded = Vec::new();
                encode(&body, &mut coded);
                assert!(!coded.contains(&0));
                assert!(coded.len() <= len + len / 254 + 1);
                let end = decode_in_place(&mut coded);
                assert_eq!(end.map(|end| &coded[..end]), Some(&body[..]));
            }
        }
    }

    proptest! {
        #[test]
        fn anything_comes_back(body in proptest::collection::vec(0_u8..3, 0..2000)) {
            let mut coded = Vec::new();
            encode(&body, &mut coded);
            prop_assert!(!coded.contains(&0));
            let end = decode_in_place(&mut coded);
            prop_assert_eq!(end.map(|end| &coded[..end]), Some(&body[..]));
        }

        #[test]
        fn junk_is_refused_or_decoded_but_never_a_panic(mut junk in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode_in_place(&mut junk);
        }
    }
}
