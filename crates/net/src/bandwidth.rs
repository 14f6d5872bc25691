//! How fast a guest may send and receive: token buckets on its slot's devices.
//!
//! The kernel's `tbf`, as netlink wants it; pure, so that it can be looked at.

use hearth_model::network::Bandwidth;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::tc::{TcAttribute, TcMessage, TcOption};

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// So that the kernel does not want a table of times by packet size.
const LINKLAYER_ETHERNET: u8 = 1;

/// At least ten full frames, so that slow links are not slower than asked for.
const MIN_BURST: u64 = 16 * 1024;
/// At least what a connection sends at once.
const MIN_QUEUE: u64 = 32 * 1024;
const MAX_QUEUE: u64 = 16 * 1024 * 1024;

/// A bucket that lets through this much. It holds 20 ms of traffic, and up to 200 ms wait for it;
/// more is lost, which is how the sender learns of the limit.
pub(crate) fn token_bucket(speed: Bandwidth) -> TcMessage {
    let rate = speed.bytes_per_s();
    let burst = (rate / 50).max(MIN_BURST);
    let queue = (rate / 5).clamp(MIN_QUEUE, MAX_QUEUE) + burst;
    let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);

    // struct tc_tbf_qopt: two struct tc_ratespec, then limit, buffer and mtu.
    let mut parameters = Vec::with_capacity(36);
    parameters.extend_from_slice(&[0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
    parameters.extend_from_slice(&number(rate).to_ne_bytes());
    parameters.extend_from_slice(&[0; 12]);
    parameters.extend_from_slice(&number(queue).to_ne_bytes());
    // The buffer in ticks and the mtu: the burst below says it in bytes.
    parameters.extend_from_slice(&[0; 8]);

    let mut options = vec![
        TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters)),
        TcOption::Other(DefaultNla::new(TCA_TBF_BURST, number(burst).to_ne_bytes().to_vec())),
    ];
    if u32::try_from(rate).is_err() {
        options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, rate.to_ne_bytes().to_vec())));
    }
    let mut message = TcMessage::default();
    message.attributes = vec![TcAttribute::Kind("tbf".into()), TcAttribute::Options(options)];
    message
}
