//! What a guest may send to its name server, and a name server may answer: anything.
//!
//! For fuzzing, and for the replay of what it has found (`fuzz/corpus/dns_packet`).

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::Message;

use super::consider::{Considered, PAYLOAD, Question, consider};
use super::directory::Directory;
use super::policy::Policy;
use super::relay::Reply;

/// A reply has a header, the question, and a name at most.
const LONGEST_REPLY: usize = 12 + 2 * (255 + 10) + 11;

/// The first byte says which policy, the next two how long the guest's question is; what follows that
/// is a name server's answer.
///
/// # Panics
/// On a reply that is longer than what it goes by may carry.
pub fn packet(bytes: &[u8]) {
    let [which, low, high, rest @ ..] = bytes else { return };
    let (asked, answered) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
    let directory = Directory::new("10.100.0.0/16".parse().expect("a range"));
    directory.insert(&"web".parse().expect("a name"), Ipv4Addr::new(10, 100, 0, 7));
    let policy = match which % 3 {
        0 => Policy::Open,
        1 => Policy::None,
        _ => Policy::only(vec!["*.example.com".parse().expect("a pattern")], Arc::new(|_| Ok(()))),
    };
    match consider(asked, &policy, &directory) {
        Considered::Silence => {}
        Considered::Reply(reply) => fits(&reply, LONGEST_REPLY),
        Considered::Ask(question) => {
            fits(&question.servfail(), LONGEST_REPLY);
            if let Some(address) = question.instance() {
                told(&Reply::instance(&question, address), &question);
            }
            if let Ok(message) = Message::from_vec(answered) {
                told(&Reply::relayed(&question, message), &question);
            }
        }
    }
}

fn told(reply: &Reply, question: &Question) {
    fits(&reply.for_udp(question), question.payload().min(usize::from(PAYLOAD)));
    fits(&reply.for_tcp(question), usize::from(u16::MAX));
    assert!(reply.addresses(question).all(|(address, _)| !address.is_loopback()));
}

/// It is a reply, and not too long.
fn fits(reply: &[u8], most: usize) {
    assert!((12..=most).contains(&reply.len()), "{} bytes", reply.len());
    assert!(reply[2] & 0x80 != 0, "it would be taken for a question");
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_fuzzing_has_found_is_borne() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/dns_packet");
        let mut files = 0;
        for file in std::fs::read_dir(corpus).expect("the corpus") {
            super::packet(&std::fs::read(file.expect("listed").path()).expect("readable"));
            files += 1;
        }
        assert!(files > 5, "{files} files in {corpus}");
    }
}
