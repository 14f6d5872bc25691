//! What a guest sent: whether it is a question, and what is to be done about it. Pure.
//!
//! Nothing that is not understood gets an answer longer than itself.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::directory::{Directory, ZONE};
use super::policy::Policy;

/// Of a DNS message's header.
const HEADER: usize = 12;
/// What a guest is told that we take over UDP, and the most that it gets: fits every path unfragmented.
pub(super) const PAYLOAD: u16 = 1232;
/// How long a guest may keep what it was told about an instance, in seconds.
pub(super) const INSTANCE_TTL: u32 = 5;

/// What is to be done about a packet.
#[derive(Debug)]
pub(super) enum Considered {
    /// Nothing.
    Silence,
    /// This is sent.
    Reply(Vec<u8>),
    /// Somebody has to be asked, or an address to be admitted.
    Ask(Box<Question>),
}

/// A question that may be asked.
#[derive(Debug)]
pub(super) struct Question {
    request: Message,
    /// How long it was.
    length: usize,
    /// The instance that it is about, if it is about one.
    instance: Option<Ipv4Addr>,
    /// Whether only records of names on a list may be told.
    pub(super) listed: bool,
}

pub(super) fn consider(packet: &[u8], policy: &Policy, directory: &Directory) -> Considered {
    let Some(header) = packet.first_chunk::<HEADER>() else { return Considered::Silence };
    // An answer to an answer would go on for ever.
    if header[2] & 0x80 != 0 {
        return Considered::Silence;
    }
    let bare = |code| Considered::Reply(bare(*header, code));
    if header[2] >> 3 != u8::from(OpCode::Query) {
        return bare(ResponseCode::NotImp);
    }
    let Ok(request) = Message::from_vec(packet) else { return bare(ResponseCode::FormErr) };
    let plain = request.answers.is_empty() && request.authorities.is_empty();
    let version = request.edns.as_ref().map_or(0, Edns::version);
    let [query] = &request.queries[..] else { return bare(ResponseCode::FormErr) };
    if !plain || version != 0 {
        return bare(ResponseCode::FormErr);
    }
    let (name, kind, class) = (query.name().clone(), query.query_type(), query.query_class());
    let listed = !matches!(policy, Policy::Open);
    let mut question = Question { request, length: packet.len(), instance: None, listed };
    let reply = |question: &Question, code| Considered::Reply(question.without_answer(code));
    if class != DNSClass::IN {
        return reply(&question, ResponseCode::Refused);
    }
    if matches!(kind, RecordType::ANY | RecordType::AXFR | RecordType::IXFR) {
        return reply(&question, ResponseCode::NotImp);
    }
    let text = plain_text(&name);
    let told = text.as_deref().and_then(|text| instance_name(text).map(|label| (text, label)));
    let allowed = match (&text, told) {
        (_, Some((_, label))) => policy.allows(label) || policy.allows(&format!("{label}.{ZONE}")),
        (Some(text), None) => policy.allows(text),
        // A name with other letters cannot be on a list; written out, it might look as if.
        (None, None) => matches!(policy, Policy::Open),
    };
    if !allowed {
        tracing::debug!(%name, %kind, "refuse a name that the guest's egress does not allow");
        return reply(&question, ResponseCode::Refused);
    }
    if let Some((text, label)) = told {
        let in_zone = text != label;
        return match directory.address(label) {
            Some(address) if kind == RecordType::A => {
                question.instance = Some(address);
                Considered::Ask(Box::new(question))
            }
            Some(_) => reply(&question, ResponseCode::NoError),
            None if in_zone || matches!(kind, RecordType::A | RecordType::AAAA) => {
                reply(&question, ResponseCode::NXDomain)
            }
            None => Considered::Ask(Box::new(question)),
        };
    }
    if let Some(address) = asked_back(&name, kind).filter(|address| directory.is_instance_range(*address)) {
        return match directory.name(address).and_then(|label| Name::from_ascii(format!("{label}.{ZONE}.")).ok()) {
            Some(target) => Considered::Reply(question.with_answer(RData::PTR(PTR(target)))),
            None => reply(&question, ResponseCode::NXDomain),
        };
    }
    match kind {
        RecordType::AAAA => reply(&question, ResponseCode::NoError),
        // These carry addresses as hints, which would not be admitted.
        RecordType::HTTPS | RecordType::SVCB if listed => reply(&question, ResponseCode::NoError),
        _ => Considered::Ask(Box::new(question)),
    }
}

impl Question {
    pub(super) fn query(&self) -> &Query {
        &self.request.queries[0]
    }

    pub(super) fn instance(&self) -> Option<Ipv4Addr> {
        self.instance
    }

    pub(super) fn dnssec_ok(&self) -> bool {
        self.request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }

    pub(super) fn checking_disabled(&self) -> bool {
        self.request.checking_disabled
    }

    /// The most bytes that the guest takes over UDP.
    pub(super) fn payload(&self) -> usize {
        let payload = self.request.edns.as_ref().map_or(512, Edns::max_payload);
        usize::from(payload.clamp(512, PAYLOAD))
    }

    /// A reply without records.
    pub(super) fn reply(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.request.id, OpCode::Query);
        message.metadata.recursion_desired = self.request.recursion_desired;
        message.metadata.checking_disabled = self.request.checking_disabled;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query().clone());
        if self.request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD).set_dnssec_ok(self.dnssec_ok());
            message.set_edns(edns);
        }
        message
    }

    /// The guest is told that it did not work out.
    pub(super) fn servfail(&self) -> Vec<u8> {
        self.without_answer(ResponseCode::ServFail)
    }

    fn without_answer(&self, code: ResponseCode) -> Vec<u8> {
        match self.reply(code).to_vec() {
            // A name that was written by pointing back is longer when it is written out.
            Ok(reply) if reply.len() <= self.length => reply,
            _ => {
                let mut message = self.reply(code);
                message.queries.clear();
                message.edns = None;
                message.to_vec().expect("a header")
            }
        }
    }

    fn with_answer(&self, data: RData) -> Vec<u8> {
        let mut message = self.reply(ResponseCode::NoError);
        message.add_answer(Record::from_rdata(self.query().name().clone(), INSTANCE_TTL, data));
        message.to_vec().unwrap_or_else(|_| self.servfail())
    }
}

/// A reply that is a header and nothing else.
fn bare(header: [u8; HEADER], code: ResponseCode) -> Vec<u8> {
    let [id_high, id_low, flags, ..] = header;
    // The operation and "recursion desired" as they were; this is an answer, recursion is available.
    vec![id_high, id_low, (flags & 0x79) | 0x80, 0x80 | code.low(), 0, 0, 0, 0, 0, 0, 0, 0]
}

/// A name of letters, digits, dashes and underscores: in lower case, without a final dot.
fn plain_text(name: &Name) -> Option<String> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !name.iter().flatten().all(is_plain) {
        return None;
    }
    let labels: Vec<&str> = name.iter().map(str::from_utf8).collect::<Result<_, _>>().ok()?;
    Some(labels.join(".").to_ascii_lowercase())
}

/// The label of what can only be an instance: `web` or `web.hearth.internal`.
fn instance_name(name: &str) -> Option<&str> {
    let label = name.strip_suffix(ZONE).and_then(|rest| rest.strip_suffix('.')).unwrap_or(name);
    (!label.is_empty() && !label.contains('.')).then_some(label)
}

/// The address whose name is asked for.
fn asked_back(name: &Name, kind: RecordType) -> Option<Ipv4Addr> {
    let net = (kind == RecordType::PTR).then(|| name.parse_arpa_name().ok()).flatten()?;
    match net.addr() {
        IpAddr::V4(address) if net.prefix_len() == 32 => Some(address),
        _ => None,
    }
}

/// Whether a message answers a question that was sent with this id.
pub(super) fn answers(message: &Message, id: u16, asked: &Query) -> bool {
    let [query] = &message.queries[..] else { return false };
    message.message_type == MessageType::Response
        && message.id == id
        && message.op_code == OpCode::Query
        && query.query_type() == asked.query_type()
        && query.query_class() == asked.query_class()
        && query.name() == asked.name()
}
