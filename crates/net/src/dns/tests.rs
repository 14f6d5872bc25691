//! The forwarder between a guest and name servers on loopback, and in a slot.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hearth_model::network::{Destination, Egress, inner};
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::{any, prop_assert, proptest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::consider::{Considered, consider};
use super::policy::Admit;
use super::*;
use crate::nft::{Nft, NftError};
use crate::ruleset;
use crate::testbed::{FAR, OTHER, World, at, is_refused, possible, reaches, rules};

const WEB: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 7);

/// What a name server says to a question; over TCP or not.
type Says = dyn Fn(&Message, bool) -> Vec<Vec<u8>> + Send + Sync;

/// A name server on loopback.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn new(says: impl Fn(&Message, bool) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let says: Arc<Says> = Arc::new(says);
        let asked = Arc::new(AtomicUsize::new(0));
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = tcp.local_addr().expect("bound");
        let udp = UdpSocket::bind(address).await.expect("bind the same port");
        let mut tasks = JoinSet::new();
        let (by_udp, by_tcp, count) = (Arc::clone(&says), says, Arc::clone(&asked));
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.expect("receive");
                count.fetch_add(1, Ordering::SeqCst);
                for answer in by_udp(&Message::from_vec(&buffer[..length]).expect("a question"), false) {
                    udp.send_to(&answer, from).await.expect("answer");
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.expect("accept");
                let mut packet = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
                stream.read_exact(&mut packet).await.expect("a question");
                for answer in by_tcp(&Message::from_vec(&packet).expect("a question"), true) {
                    stream.write_u16(u16::try_from(answer.len()).expect("short")).await.expect("answer");
                    stream.write_all(&answer).await.expect("answer");
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn a(owner: &str, ttl: u32, address: Ipv4Addr) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A(address)))
}

fn cname(owner: &str, target: &str) -> Record {
    Record::from_rdata(name(owner), 300, RData::CNAME(CNAME(name(target))))
}

/// An answer with these records.
fn answer(question: &Message, records: Vec<Record>) -> Message {
    let mut message = Message::response(question.id, OpCode::Query);
    message.add_query(question.queries[0].clone());
    message.add_answers(records);
    message
}

fn says(question: &Message, records: Vec<Record>) -> Vec<Vec<u8>> {
    vec![answer(question, records).to_vec().expect("an answer")]
}

/// Everything is at one address.
async fn server_of(address: Ipv4Addr) -> Server {
    Server::new(move |question, _| {
        let owner = question.queries[0].name().to_ascii();
        says(question, vec![a(&owner, 300, address)])
    })
    .await
}

fn directory() -> Directory {
    let directory = Directory::new("10.100.0.0/16".parse().expect("a network"));
    directory.insert(&"web".parse().expect("a name"), WEB);
    directory
}

/// A slot's guest.
struct Guest {
    udp: UdpSocket,
    at: SocketAddr,
    served: Served,
}

impl Guest {
    async fn new(forwarder: &Forwarder, policy: Policy) -> Self {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let at = tcp.local_addr().expect("bound");
        let udp = std::net::UdpSocket::bind(at).expect("bind the same port");
        let served = forwarder.serve(Sockets { udp, tcp }, policy).expect("served");
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        udp.connect(at).await.expect("connect");
        Self { udp, at, served }
    }

    async fn of(servers: &[&Server], policy: Policy) -> Self {
        let servers = servers.iter().map(|server| server.address).collect();
        Self::new(&Forwarder::new(servers, directory()), policy).await
    }

    async fn send(&self, question: &Message) {
        self.udp.send(&question.to_vec().expect("a question")).await.expect("send");
    }

    async fn receive(&self) -> Message {
        let mut buffer = [0; 4096];
        let length =
            timeout(Duration::from_secs(8), self.udp.recv(&mut buffer)).await.expect("in time").expect("received");
        Message::from_vec(&buffer[..length]).expect("an answer")
    }

    async fn ask(&self, owner: &str, kind: RecordType) -> Message {
        let question = question(owner, kind);
        self.send(&question).await;
        let answer = self.receive().await;
        assert_eq!((answer.id, &answer.queries), (question.id, &question.queries), "the answer is to the question");
        assert!(answer.recursion_available);
        answer
    }

    async fn code(&self, owner: &str, kind: RecordType) -> ResponseCode {
        let answer = self.ask(owner, kind).await;
        assert!(answer.answers.is_empty(), "{answer}");
        answer.response_code
    }

    async fn addresses(&self, owner: &str) -> Vec<Ipv4Addr> {
        addresses(&self.ask(owner, RecordType::A).await)
    }
}

fn question(owner: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(owner), kind));
    message
}

fn addresses(answer: &Message) -> Vec<Ipv4Addr> {
    assert_eq!(answer.response_code, ResponseCode::NoError);
    let address = |record: &Record| match &record.data {
        RData::A(A(address)) => Some(*address),
        _ => None,
    };
    answer.answers.iter().filter_map(address).collect()
}

type Admitted = Arc<Mutex<Vec<(Ipv4Addr, Duration)>>>;

/// A list, and what was admitted.
fn only(names: &[&str]) -> (Policy, Admitted) {
    let admitted = Arc::new(Mutex::new(Vec::new()));
    let list = names.iter().map(|text| text.parse().expect("a pattern")).collect();
    let note = Arc::clone(&admitted);
    let admit: Admit = Arc::new(move |addresses| {
        // Slow enough that an answer before it would be noticed.
        std::thread::sleep(Duration::from_millis(50));
        note.lock().expect("no panic").extend_from_slice(addresses);
        Ok(())
    });
    (Policy::only(list, admit), admitted)
}

#[tokio::test]
async fn names_are_asked_of_the_host_s_name_servers() {
    let server = server_of(FAR).await;
    let guest = Guest::of(&[&server], Policy::Open).await;
    assert_eq!(guest.addresses("Example.COM.").await, [FAR]);
    assert_eq!(server.asked(), 1);
    // A guest has no IPv6, and is told so without asking anybody.
    assert_eq!(guest.code("example.com.", RecordType::AAAA).await, ResponseCode::NoError);
    assert_eq!(guest.code("example.com.", RecordType::ANY).await, ResponseCode::NotImp);
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn what_the_name_server_denies_is_denied_with_its_reason() {
    let server = Server::new(|question, _| {
        let mut message = answer(question, Vec::new());
        message.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(name("ns.example.com."), name("root.example.com."), 1, 2, 3, 4, 5);
        message.add_authority(Record::from_rdata(name("example.com."), 60, RData::SOA(soa)));
        vec![message.to_vec().expect("an answer")]
    })
    .await;
    let guest = Guest::of(&[&server], Policy::Open).await;
    let denied = guest.ask("missing.example.com.", RecordType::A).await;
    assert_eq!(denied.response_code, ResponseCode::NXDomain);
    assert_eq!(denied.authorities.len(), 1, "how long it may be kept");
}

#[tokio::test]
async fn instances_are_known_by_name_and_by_address_and_nobody_is_asked() {
    let server = server_of(FAR).await;
    let forwarder = Forwarder::new(vec![server.address], directory());
    let guest = Guest::new(&forwarder, Policy::Open).await;
    for owner in ["web.", "WEB.", "web.hearth.internal.", "Web.Hearth.Internal."] {
        assert_eq!(guest.addresses(owner).await, [WEB], "{owner}");
        assert_eq!(guest.code(owner, RecordType::AAAA).await, ResponseCode::NoError);
        assert_eq!(guest.code(owner, RecordType::MX).await, ResponseCode::NoError);
    }
    for owner in ["db.", "db.hearth.internal."] {
        assert_eq!(guest.code(owner, RecordType::A).await, ResponseCode::NXDomain);
        assert_eq!(guest.code(owner, RecordType::AAAA).await, ResponseCode::NXDomain);
    }
    let back = guest.ask("7.0.100.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(back.answers[0].data.to_string(), "web.hearth.internal.");
    assert_eq!(guest.code("8.0.100.10.in-addr.arpa.", RecordType::PTR).await, ResponseCode::NXDomain);
    // Known from the moment in which they are, and not longer.
    forwarder.directory.insert(&"db".parse().expect("a name"), OTHER);
    assert_eq!(guest.addresses("db.").await, [OTHER]);
    forwarder.directory.remove(&"db".parse().expect("a name"), WEB);
    assert_eq!(guest.addresses("db.").await, [OTHER], "the name is another's by now");
    forwarder.directory.remove(&"db".parse().expect("a name"), OTHER);
    assert_eq!(guest.code("db.", RecordType::A).await, ResponseCode::NXDomain);
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn what_egress_does_not_allow_is_refused_and_nobody_is_asked() {
    let server = server_of(FAR).await;
    let guest = Guest::of(&[&server], Policy::None).await;
    for owner in ["example.com.", "web.", "web.hearth.internal.", "7.0.100.10.in-addr.arpa."] {
        assert_eq!(guest.code(owner, RecordType::A).await, ResponseCode::Refused, "{owner}");
    }
    let (policy, admitted) = only(&["example.com", "*.example.org"]);
    let guest = Guest::of(&[&server], policy).await;
    let other = ["www.example.com.", "example.org.", "evil.com.", "example.com.evil.com.", "web.", "com."];
    // One label that looks like three when it is written out.
    for owner in other.into_iter().chain(["evil\\.example.org."]) {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
            assert_eq!(guest.code(owner, kind).await, ResponseCode::Refused, "{owner}");
        }
    }
    assert_eq!((server.asked(), admitted.lock().expect("no panic").len()), (0, 0));
    assert_eq!(guest.addresses("www.example.org.").await, [FAR]);
    assert_eq!(guest.code("example.com.", RecordType::HTTPS).await, ResponseCode::NoError, "no hints");
    // An instance is on a list by either of its names.
    for list in ["web", "web.hearth.internal", "*.hearth.internal"] {
        let (policy, admitted) = only(&[list]);
        let guest = Guest::of(&[&server], policy).await;
        for owner in ["web.", "web.hearth.internal."] {
            assert_eq!(guest.addresses(owner).await, [WEB], "{owner} by {list}");
        }
        assert_eq!(admitted.lock().expect("no panic")[0].0, WEB);
    }
}

#[tokio::test]
async fn addresses_are_admitted_before_the_guest_knows_them() {
    let server = Server::new(|question, _| {
        let owner = question.queries[0].name().to_ascii();
        says(question, vec![a(&owner, 3600, FAR), a(&owner, 0, OTHER), a(&owner, 999_999, WEB)])
    })
    .await;
    let (policy, admitted) = only(&["example.com", "again.com"]);
    let guest = Guest::of(&[&server], policy).await;
    let told = guest.ask("example.com.", RecordType::A).await;
    // What others say about the instances' range is not believed; time to live has a floor and a roof.
    let expected = [(FAR, Duration::from_secs(3630)), (OTHER, Duration::from_secs(90))];
    assert_eq!(*admitted.lock().expect("no panic"), expected);
    assert_eq!(told.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [3600, 0, 86_400]);
    // What is admitted for long enough is not admitted again.
    guest.addresses("again.com.").await;
    assert_eq!(admitted.lock().expect("no panic").len(), 2);
}

#[tokio::test]
async fn an_address_that_cannot_be_admitted_is_not_told() {
    let server = server_of(FAR).await;
    let fail: Admit =
        Arc::new(|_| Err(NftError::Refused { commands: String::new(), problem: "as a test demanded".into() }));
    let policy = Policy::only(vec!["example.com".parse().expect("a pattern")], fail);
    let guest = Guest::of(&[&server], policy).await;
    assert_eq!(guest.code("example.com.", RecordType::A).await, ResponseCode::ServFail);
}

#[tokio::test]
async fn only_what_the_name_leads_to_is_told_and_admitted() {
    let server = Server::new(|question, _| {
        let metadata = Ipv4Addr::new(169, 254, 169, 254);
        says(
            question,
            vec![
                a("cdn.net.", 60, FAR),
                cname("WWW.example.com.", "edge.cdn.net."),
                cname("edge.cdn.net.", "cdn.net."),
                cname("cdn.net.", "edge.cdn.net."),
                a("bank.com.", 60, OTHER),
                a("cdn.net.", 60, metadata),
                a("cdn.net.", 60, Ipv4Addr::LOCALHOST),
            ],
        )
    })
    .await;
    let (policy, admitted) = only(&["www.example.com"]);
    let guest = Guest::of(&[&server], policy).await;
    let told = guest.addresses("www.example.com.").await;
    assert!(told.contains(&FAR) && !told.contains(&OTHER), "{told:?}");
    let admitted: Vec<_> = admitted.lock().expect("no panic").iter().map(|(address, _)| *address).collect();
    assert_eq!(admitted, [FAR]);
}

#[tokio::test]
async fn a_long_answer_comes_whole_over_tcp() {
    let server = Server::new(|question, tcp| {
        let owner = question.queries[0].name().to_ascii();
        if tcp {
            return says(question, (0..200).map(|n| a(&owner, 60, Ipv4Addr::new(198, 51, 100, n))).collect());
        }
        let mut short = answer(question, Vec::new());
        short.metadata.truncation = true;
        vec![short.to_vec().expect("an answer")]
    })
    .await;
    let guest = Guest::of(&[&server], Policy::Open).await;
    let mut large = question("example.com.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(65_000);
    large.set_edns(edns);
    for question in [question("example.com.", RecordType::A), large.clone()] {
        guest.send(&question).await;
        let told = guest.receive().await;
        assert!(told.truncation && told.answers.is_empty(), "not more than fits a packet");
    }
    let mut stream = TcpStream::connect(guest.at).await.expect("connect");
    for _ in 0..2 {
        let packet = large.to_vec().expect("a question");
        stream.write_u16(u16::try_from(packet.len()).expect("short")).await.expect("ask");
        stream.write_all(&packet).await.expect("ask");
        let mut told = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
        stream.read_exact(&mut told).await.expect("an answer");
        assert_eq!(addresses(&Message::from_vec(&told).expect("an answer")).len(), 200);
    }
    // Nobody asks something that long.
    stream.write_u16(60_000).await.expect("written");
    assert_eq!(stream.read(&mut [0; 8]).await.expect("closed"), 0);
}

#[tokio::test]
async fn the_next_name_server_is_asked_when_one_fails() {
    let silent = Server::new(|_, _| Vec::new()).await;
    let refusing = Server::new(|question, _| {
        let mut message = answer(question, Vec::new());
        message.metadata.response_code = ResponseCode::Refused;
        vec![message.to_vec().expect("an answer")]
    })
    .await;
    let good = server_of(FAR).await;
    let guest = Guest::of(&[&refusing, &silent, &good], Policy::Open).await;
    let began = Instant::now();
    assert_eq!(guest.addresses("example.com.").await, [FAR]);
    assert!((1900..6000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(guest.addresses("example.com.").await, [FAR]);
    assert_eq!((refusing.asked(), silent.asked(), good.asked()), (1, 1, 2), "the good one is remembered");
    // Nobody listens there: that is known at once.
    let nobody = UdpSocket::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("bound");
    let guest = Guest::new(&Forwarder::new(vec![nobody], directory()), Policy::Open).await;
    let began = Instant::now();
    assert_eq!(guest.code("example.com.", RecordType::A).await, ResponseCode::ServFail);
    assert!(began.elapsed() < Duration::from_millis(1900), "not after the patience with one that is silent");
    let guest = Guest::of(&[&silent], Policy::Open).await;
    assert_eq!(guest.code("example.com.", RecordType::A).await, ResponseCode::ServFail, "rather than silence");
    let guest = Guest::of(&[&refusing], Policy::Open).await;
    assert_eq!(guest.code("example.com.", RecordType::A).await, ResponseCode::Refused, "the only word there is");
}

#[tokio::test]
async fn forged_answers_are_not_believed() {
    let server = Server::new(|question, _| {
        let forge = |change: &dyn Fn(&mut Message)| {
            let mut message = answer(question, vec![a("example.com.", 60, OTHER)]);
            change(&mut message);
            message.to_vec().expect("an answer")
        };
        let mut other_type = question.queries[0].clone();
        other_type.set_query_type(RecordType::TXT);
        vec![
            forge(&|message| message.metadata.id = message.id.wrapping_add(1)),
            forge(&|message| message.queries = vec![Query::query(name("example.org."), RecordType::A)]),
            forge(&|message| message.queries = vec![other_type.clone()]),
            forge(&|message| message.queries.clear()),
            question.to_vec().expect("the question itself"),
            b"garbage".to_vec(),
            answer(question, vec![a("example.com.", 60, FAR)]).to_vec().expect("an answer"),
        ]
    })
    .await;
    let guest = Guest::of(&[&server], Policy::Open).await;
    assert_eq!(guest.addresses("example.com.").await, [FAR]);
}

#[tokio::test]
async fn questions_go_out_with_ids_of_their_own() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let server = Server::new(move |question, _| {
        note.lock().expect("no panic").push(question.id);
        says(question, vec![a("example.com.", 60, FAR)])
    })
    .await;
    let guest = Guest::of(&[&server], Policy::Open).await;
    let mut question = question("example.com.", RecordType::A);
    question.metadata.id = 7;
    for _ in 0..8 {
        guest.send(&question).await;
        assert_eq!(guest.receive().await.id, 7);
    }
    let seen = seen.lock().expect("no panic");
    let distinct: std::collections::HashSet<_> = seen.iter().collect();
    assert!(distinct.len() > 6, "{seen:?}");
}

#[tokio::test]
async fn a_guest_that_floods_hurts_itself_only() {
    let server = Server::new(|question, _| {
        let owner = question.queries[0].name().to_ascii();
        if owner.starts_with("slow") { Vec::new() } else { says(question, vec![a(&owner, 60, FAR)]) }
    })
    .await;
    let forwarder = Forwarder::new(vec![server.address], directory());
    let flooding = Guest::new(&forwarder, Policy::Open).await;
    let other = Guest::new(&forwarder, Policy::Open).await;
    for n in 0..QUESTIONS_PER_SLOT + 10 {
        flooding.send(&question(&format!("slow{n}.example.com."), RecordType::A)).await;
    }
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(flooding.receive().await.response_code, ResponseCode::ServFail);
    }
    assert!(began.elapsed() < Duration::from_millis(1900), "those that are too many are told at once");
    assert_eq!(other.addresses("example.com.").await, [FAR]);
    assert!(began.elapsed() < Duration::from_millis(1900), "while the others wait");
    // Those that wait get their answer too, and then there is room again.
    for _ in 0..QUESTIONS_PER_SLOT {
        assert_eq!(flooding.receive().await.response_code, ResponseCode::ServFail);
    }
    assert_eq!(flooding.addresses("example.com.").await, [FAR]);
}

#[tokio::test]
async fn connections_that_say_nothing_keep_only_their_own_slot_waiting() {
    let server = server_of(FAR).await;
    let forwarder = Forwarder::new(vec![server.address], directory());
    let (greedy, other) = (Guest::new(&forwarder, Policy::Open).await, Guest::new(&forwarder, Policy::Open).await);
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_PER_SLOT + 2 {
        idle.push(TcpStream::connect(greedy.at).await.expect("connect"));
    }
    let packet = question("web.", RecordType::A).to_vec().expect("a question");
    let framed = [&u16::try_from(packet.len()).expect("short").to_be_bytes()[..], &packet].concat();
    let answered = async |at, patience_ms| {
        let mut stream = TcpStream::connect(at).await.expect("connect");
        stream.write_all(&framed).await.expect("ask");
        timeout(Duration::from_millis(patience_ms), stream.read_u16()).await.is_ok()
    };
    assert!(!answered(greedy.at, 300).await, "no room");
    assert!(answered(other.at, 5000).await);
    assert_eq!(greedy.addresses("web.").await, [WEB], "and UDP is not concerned");
}

#[tokio::test]
async fn nobody_answers_for_a_slot_that_is_gone() {
    let server = server_of(FAR).await;
    let Guest { udp, at, served } = Guest::of(&[&server], Policy::Open).await;
    drop(served);
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(at).await.is_ok() {
        assert!(Instant::now() < deadline, "it is still listening");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = udp.send(&question("web.", RecordType::A).to_vec().expect("a question")).await;
    assert!(udp.recv(&mut [0; 512]).await.is_err(), "nobody is there");
}

#[test]
fn a_guest_reaches_what_it_was_told_and_not_before() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[]));
    let far = w.world.tcp_listener(at(FAR, 80));
    let list: Vec<Destination> = vec!["example.com".parse().expect("a destination")];
    w.a.netns.nft(&ruleset::egress(&Egress::Only(list)));
    let session = w.a.netns.enter(|| Nft::load().expect("libnftables").session()).expect("a session");
    let session = Mutex::new(session);
    let admit: Admit =
        Arc::new(move |addresses| session.lock().expect("no panic").run(&ruleset::admit(addresses)).map(drop));
    let sockets = Sockets { udp: w.a.netns.udp(at(inner::DNS, 53)), tcp: w.a.netns.tcp_listener(at(inner::DNS, 53)) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let _entered = runtime.enter();
    // On this test's loopback: the runtime's threads are in no slot.
    let server = runtime.block_on(server_of(FAR));
    let forwarder = Forwarder::new(vec![server.address], directory());
    let policy = Policy::only(vec!["example.com".parse().expect("a pattern")], admit);
    let _served = forwarder.serve(sockets, policy).expect("served");

    is_refused(&w.a.guest, at(FAR, 80), &far);
    let asks = w.a.guest.udp(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    asks.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let ask = |owner: &str| {
        let question = question(owner, RecordType::A).to_vec().expect("a question");
        asks.send_to(&question, at(inner::DNS, 53)).expect("ask");
        let mut buffer = [0; 512];
        let (length, from) = asks.recv_from(&mut buffer).expect("an answer");
        assert_eq!(from, SocketAddr::V4(at(inner::DNS, 53)));
        Message::from_vec(&buffer[..length]).expect("an answer")
    };
    assert_eq!(ask("evil.com.").response_code, ResponseCode::Refused);
    is_refused(&w.a.guest, at(FAR, 80), &far);
    assert_eq!(addresses(&ask("example.com.")), [FAR]);
    reaches(&w.a.guest, at(FAR, 80), &far);
}

/// Questions as they are, for a fuzzer to spoil.
fn samples() -> Vec<Vec<u8>> {
    let mut samples: Vec<Message> = vec![
        question("example.com.", RecordType::A),
        question("web.", RecordType::A),
        question("7.0.100.10.in-addr.arpa.", RecordType::PTR),
        question(&format!("{}.com.", ["a".repeat(60).as_str(); 3].join(".")), RecordType::TXT),
    ];
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    samples[0].set_edns(edns);
    samples.iter().map(|sample| sample.to_vec().expect("a question")).collect()
}

/// Nothing panics, and what is sent without asking anybody is no longer than what came, but for
/// what we know ourselves.
fn is_considered_safely(packet: &[u8]) -> Result<(), proptest::test_runner::TestCaseError> {
    let listed = Policy::only(
        vec!["*.com".parse().expect("a pattern")],
        Arc::new(|_| unreachable!("nothing is admitted without an answer")),
    );
    for policy in [Policy::Open, Policy::None, listed] {
        match consider(packet, &policy, &directory()) {
            Considered::Silence => {}
            Considered::Reply(reply) => {
                let known = Message::from_vec(&reply).is_ok_and(|message| !message.answers.is_empty());
                prop_assert!(known || reply.len() <= packet.len(), "{} for {}", reply.len(), packet.len());
                prop_assert!(reply.len() <= 512 && reply[2] & 0x80 != 0 && reply[..2] == packet[..2]);
            }
            Considered::Ask(question) => {
                prop_assert!(question.servfail().len() <= packet.len());
                prop_assert!(question.payload() <= 1232);
            }
        }
    }
    Ok(())
}

#[test]
fn a_name_that_is_longer_than_it_is_written_makes_no_longer_reply() {
    // The name is a pointer back into the header, which reads as two labels there.
    let packet = *b"\x01a\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x00\x00\x01\x00\x01";
    let written = Message::from_vec(&packet).expect("it is one").to_vec().expect("written out");
    assert!(written.len() > packet.len());
    let Considered::Reply(reply) = consider(&packet, &Policy::None, &directory()) else { panic!("a reply") };
    assert!(reply.len() <= packet.len(), "{} for {}", reply.len(), packet.len());
}

/// A real answer, for a fuzzer to spoil.
fn answer_sample() -> Vec<u8> {
    let mut records = vec![cname("example.com.", "cdn.net."), a("cdn.net.", 60, FAR)];
    records.push(Record::from_rdata(name("cdn.net."), 60, RData::TXT(TXT::new(vec!["x".repeat(200); 9]))));
    let mut question = question("example.com.", RecordType::A);
    question.metadata.id = 7;
    answer(&question, records).to_vec().expect("an answer")
}

proptest! {
    #[test]
    fn any_packet_is_considered(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
        is_considered_safely(&packet)?;
    }

    #[test]
    fn spoiled_questions_are_considered(
        which in 0..4_usize,
        spoil in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<proptest::sample::Index>(),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut packet = samples().swap_remove(which);
        for (index, byte) in spoil {
            let at = index.index(packet.len());
            packet[at] = byte;
        }
        is_considered_safely(&packet)?;
        is_considered_safely(&packet[..cut.index(packet.len() + 1)])?;
        packet.extend(tail);
        is_considered_safely(&packet)?;
    }

    #[test]
    fn spoiled_answers_are_relayed_within_bounds(
        spoil in proptest::collection::vec((12..usize::MAX, any::<u8>()), 0..4),
    ) {
        let asked = question("example.com.", RecordType::A).to_vec().expect("a question");
        let Considered::Ask(question) = consider(&asked, &Policy::Open, &directory()) else {
            panic!("a question");
        };
        let mut packet = answer_sample();
        for (at, byte) in spoil {
            let at = 12 + at % (packet.len() - 12);
            packet[at] = byte;
        }
        if let Some(message) = upstream::believe(&packet, 7, &question) {
            let reply = relay::Reply::relayed(&question, message);
            prop_assert!(reply.for_udp(&question).len() <= 512);
            prop_assert!(reply.for_tcp(&question).len() <= usize::from(u16::MAX));
            reply.addresses(&question).for_each(drop);
        }
    }
}
