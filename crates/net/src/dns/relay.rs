//! What a name server said, as the guest gets it. Pure.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::consider::{INSTANCE_TTL, Question};
use super::policy::MAX_TTL;

/// An answer to a guest.
#[derive(Debug)]
pub(super) struct Reply(Message);

impl Reply {
    /// An instance's address.
    pub(super) fn instance(question: &Question, address: Ipv4Addr) -> Self {
        let mut message = question.reply(ResponseCode::NoError);
        let name = question.query().name().clone();
        message.add_answer(Record::from_rdata(name, INSTANCE_TTL, RData::A(A(address))));
        Self(message)
    }

    pub(super) fn servfail(question: &Question) -> Self {
        Self(question.reply(ResponseCode::ServFail))
    }

    /// What was asked for, and who says that there is none; nothing that was not asked for.
    pub(super) fn relayed(question: &Question, answer: Message) -> Self {
        let mut message = question.reply(answer.response_code);
        message.metadata.authentic_data = answer.authentic_data;
        let chain = chain(question.query().name(), &answer.answers);
        for mut record in answer.answers {
            // Names that the chain does not lead through are not what was asked for.
            if record.dns_class != DNSClass::IN || !chain.contains(&record.name.to_lowercase()) {
                continue;
            }
            if question.listed {
                record.ttl = record.ttl.min(MAX_TTL);
            }
            message.add_answer(record);
        }
        let wanted = |record: &Record| question.dnssec_ok() || record.record_type() == RecordType::SOA;
        message.add_authorities(answer.authorities.into_iter().filter(wanted));
        Self(message)
    }

    /// The addresses in it that a guest may want to reach, and how long it may keep them.
    pub(super) fn addresses(&self, question: &Question) -> impl Iterator<Item = (Ipv4Addr, Duration)> {
        let asked = question.query().query_type() == RecordType::A;
        self.0.answers.iter().filter(move |_| asked).filter_map(|record| match &record.data {
            RData::A(A(address)) if is_somewhere(*address) => Some((*address, Duration::from_secs(record.ttl.into()))),
            _ => None,
        })
    }

    /// Cut to "ask again by TCP" when it is too long.
    pub(super) fn for_udp(&self, question: &Question) -> Vec<u8> {
        self.within(question.payload(), question)
    }

    pub(super) fn for_tcp(&self, question: &Question) -> Vec<u8> {
        self.within(usize::from(u16::MAX), question)
    }

    fn within(&self, limit: usize, question: &Question) -> Vec<u8> {
        let whole = self.0.to_vec().ok();
        match whole {
            Some(whole) if whole.len() <= limit && !self.0.truncation => whole,
            Some(_) => self.0.truncate().to_vec().unwrap_or_else(|_| question.servfail()),
            None => question.servfail(),
        }
    }
}

/// The names that the one asked for leads through, in lower case.
fn chain(asked: &Name, answers: &[Record]) -> HashSet<Name> {
    // Looked up rather than searched: an answer has thousands of aliases if somebody likes it so.
    let mut aliases = HashMap::new();
    for record in answers {
        if let RData::CNAME(target) = &record.data {
            aliases.entry(record.name.to_lowercase()).or_insert(target);
        }
    }
    let mut last = asked.to_lowercase();
    let mut chain = HashSet::from([last.clone()]);
    while let Some(target) = aliases.get(&last) {
        last = target.to_lowercase();
        // A circle.
        if !chain.insert(last.clone()) {
            break;
        }
    }
    chain
}

/// Not everywhere, nowhere, or the asker's own host. Link-local addresses are refused by the slot's
/// rules, whatever is in the set.
fn is_somewhere(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_link_local())
}
