//! Guests on the network: from outside, to each other, out of the host, and not where they must not.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hearth_api::instances::{NetworkRequest, Outbound};
use hearth_e2e::{Asked, Capture, PROBE, Setup, TestHost, TestImage, Vm, clock, eventually, probe, slowness, story};

/// A guest that serves a page about itself on port 80 and its clock on port 13, echoes on port 7, and never
/// stops sending.
const SERVER: &str = "\
mkdir -p /www/cgi-bin
cat > /www/cgi-bin/who <<'END'
#!/bin/sh
printf 'content-type: text/plain\\r\\n\\r\\n'
hostname
cat /etc/machine-id
echo $(cat /run/hearth/generation)
head -c 32 /dev/urandom | md5sum
probe | head -c 32 | md5sum
END
chmod 755 /www/cgi-bin/who
echo page > /www/index.html
httpd -p 80 -h /www
nc -ll -p 7 -e /bin/cat &
nc -ll -p 13 -e /bin/probe &
while true; do ping -c 100000 -i \"$INTERVAL\" \"$GATEWAY\" > /dev/null 2>&1; sleep 0.05; done";

/// Between two packets of a server.
const PING_INTERVAL: Duration = Duration::from_millis(100);

fn server() -> Result<TestImage> {
    let image = TestImage::busybox()?.file(PROBE, 0o755, probe());
    Ok(image.file("etc/machine-id", 0o644, "0123456789abcdef0123456789abcdef\n"))
}

/// Boots a server; `change` its network.
async fn serve<'h>(host: &'h TestHost, name: &str, change: impl FnOnce(&mut NetworkRequest)) -> Result<Vm<'h>> {
    if host.client().image("server:1").await.is_err() {
        host.import(&server()?, "server:1").await?;
    }
    let mut request = TestHost::request(name, "server:1");
    request.cmd = Some(["/bin/sh", "-c", SERVER].map(str::to_owned).into());
    let interval = PING_INTERVAL * slowness();
    let env = [("GATEWAY", gateway(host).await?.to_string()), ("INTERVAL", interval.as_secs_f64().to_string())];
    request.env = Some(env.map(|(name, value)| (name.to_owned(), value)).into());
    let mut network = NetworkRequest::default();
    change(&mut network);
    request.network = Some(network);
    let vm = host.create(&request).await?;
    let address = address(&vm).await?;
    eventually("it serves its page", async || Ok(get(address, "/").is_ok())).await?;
    Ok(vm)
}

/// The host, as its guests see it.
async fn gateway(host: &TestHost) -> Result<Ipv4Addr> {
    let network = host.client().capabilities().await?.network;
    network.gateway.context("guests have no slots here")?.parse().context("the gateway's address")
}

async fn address(vm: &Vm<'_>) -> Result<Ipv4Addr> {
    let network = vm.info().await?.network.context("a network")?;
    network.ip.context("an address")?.parse().context("an address")
}

/// The body of a page.
fn get(address: Ipv4Addr, path: &str) -> Result<String> {
    get_at(SocketAddr::from((address, 80)), path)
}

fn get_at(address: SocketAddr, path: &str) -> Result<String> {
    let limit = Duration::from_secs(10) * slowness();
    let mut stream = TcpStream::connect_timeout(&address, limit).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("read from {address}"))?;
    let (head, body) = text.split_once("\r\n\r\n").context("a head and a body")?;
    ensure!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.to_owned())
}

/// What a server's page says of it.
#[derive(Debug)]
struct Page {
    name: String,
    machine: String,
    generation: u64,
    urandom: String,
    getrandom: String,
}

impl Page {
    fn of(address: Ipv4Addr) -> Result<Self> {
        let text = get(address, "/cgi-bin/who")?;
        let [name, machine, generation, urandom, getrandom] = text.lines().collect::<Vec<_>>()[..] else {
            anyhow::bail!("its page: {text:?}")
        };
        Ok(Self {
            name: name.to_owned(),
            machine: machine.to_owned(),
            generation: generation.parse().with_context(|| format!("its generation: {generation:?}"))?,
            urandom: urandom.to_owned(),
            getrandom: getrandom.to_owned(),
        })
    }
}

/// How far a server's clock is from the host's, at most. On a busy host one look tells little: it looks until
/// that is no more than `good`, or long enough.
async fn clock_is_off(address: Ipv4Addr, good: Duration) -> Result<Duration> {
    let look = async || {
        let limit = Duration::from_secs(10) * slowness();
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, 13)), limit)?;
        stream.set_read_timeout(Some(limit))?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said)?;
        clock(&said)
    };
    let mut off = Duration::MAX;
    for _ in 0..50 {
        let (guest, asked) = Asked::of(look()).await.with_context(|| format!("ask {address} for its clock"))?;
        off = off.min(asked.off_at_most(guest));
        if off <= good {
            break;
        }
    }
    Ok(off)
}

/// Whether a guest gets another's page, by an address or by a name; a refusal is quick.
async fn fetches(vm: &Vm<'_>, host: &str) -> Result<bool> {
    let address = match host.parse::<SocketAddr>().is_ok() || host.parse::<Ipv4Addr>().is_ok() {
        true => host.to_owned(),
        false => match resolve(vm, host).await? {
            Some(address) => address.to_string(),
            None => return Ok(false),
        },
    };
    let (address, port) = address.split_once(':').unwrap_or((&address, "80"));
    let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} {port}");
    Ok(vm.run(&["/bin/sh", "-c", &get]).await?.stdout.ends_with("\npage\n"))
}

/// What a name stands for in a guest. A busybox that is linked statically asks by no other program.
async fn resolve(vm: &Vm<'_>, name: &str) -> Result<Option<Ipv4Addr>> {
    let said = vm.run(&["nslookup", "-type=a", name]).await?.stdout;
    let answer = said.split_once("Name:").map_or("", |(_, answer)| answer);
    Ok(answer.lines().find_map(|line| line.strip_prefix("Address: ")?.trim().parse().ok()))
}

#[test]
fn a_service_is_forked_and_each_fork_is_reached_as_itself() {
    Setup::default().limit_s(600).story(async |host| {
        let count = 25;
        let web = serve(host, "web", |_| ()).await?;
        // As if the snapshot were an hour old when it is forked.
        web.sh("date -s @$(($(date +%s) - 3600))").await?;
        let source = address(&web).await?;
        let past = Page::of(source)?;
        let good = Duration::from_millis(50) * slowness();
        ensure!(clock_is_off(source, good).await? > Duration::from_secs(3000), "the source's clock is right");
        web.snapshot("warm").await?;
        let capture = Capture::begin()?;
        let forks = host.fork_snapshot("warm", "twin", count).await?;
        let (mut addresses, mut pages) = (BTreeSet::from([source]), vec![past]);
        for fork in &forks {
            let address = address(fork).await?;
            ensure!(addresses.insert(address), "{} has another's address, {address}", fork.name);
            let page = Page::of(address).with_context(|| fork.name.clone())?;
            ensure!(page.name == fork.name, "{address} is {}, not {}", page.name, fork.name);
            let off = clock_is_off(address, good).await?;
            eprintln!("{}: its clock is at most {off:?} off", fork.name);
            ensure!(off <= good, "{}: its clock is up to {off:?} off", fork.name);
            let info = fork.info().await?;
            assert_eq!((info.generation, page.generation), (Some(1), 1), "{}", fork.name);
            pages.push(page);

            // It was sending all the time: nothing of that left before it was itself.
            eventually("it is heard", async || Ok(capture.first_from(address).is_some())).await?;
            let heard = capture.first_from(address).context("it was heard")?;
            let timeline = host.client().timeline(&fork.name, None).await?.operations;
            let run = timeline.iter().find(|run| run.op == "fork").context("the fork's timeline")?;
            let opened = run.steps.iter().find(|step| step.step == "open network").context("its step")?;
            let opened = run.started_at + Duration::from_secs_f64(opened.start_ms / 1000.0);
            ensure!(heard >= opened - Duration::from_millis(2), "{}: heard at {heard}, opened at {opened}", fork.name);
        }
        let owns: [fn(&Page) -> &String; 4] = [|p| &p.name, |p| &p.machine, |p| &p.urandom, |p| &p.getrandom];
        for own in owns {
            let all: BTreeSet<&String> = pages.iter().map(own).collect();
            assert_eq!(all.len(), usize::try_from(count)? + 1, "two have it in common: {all:?}");
        }
        ensure!(!capture.senders().contains(&Ipv4Addr::new(10, 0, 2, 15)), "an inner address was heard");
        assert_eq!(get(source, "/")?, "page\n");
        Ok(())
    });
}

#[test]
fn an_instance_keeps_its_address_and_its_old_connections_end() {
    story(async |host| {
        let web = serve(host, "web", |_| ()).await?;
        let address = address(&web).await?;
        let echo = || TcpStream::connect_timeout(&SocketAddr::from((address, 7)), Duration::from_secs(5));
        eventually("it echoes", async || Ok(echo().is_ok())).await?;
        let mut old = echo()?;
        old.set_read_timeout(Some(Duration::from_secs(10) * slowness()))?;
        let mut answer = [0; 3];
        old.write_all(b"one")?;
        old.read_exact(&mut answer)?;

        // A snapshot closes the gate for a moment; connections outlive that.
        web.snapshot("moment").await?;
        old.write_all(b"two")?;
        old.read_exact(&mut answer).context("after a snapshot")?;
        assert_eq!(&answer, b"two");

        web.standby().await?;
        ensure!(get(address, "/").is_err(), "something answers for an instance in standby");
        web.restore().await?;
        assert_eq!(self::address(&web).await?, address);
        assert_eq!(get(address, "/")?, "page\n");
        old.write_all(b"end").ok();
        let ended = old.read_exact(&mut answer).expect_err("its connection is not of this life");
        ensure!(matches!(ended.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{ended}");
        Ok(())
    });
}

#[test]
fn connections_outlive_a_daemon_that_crashes() {
    story(async |host| {
        let web = serve(host, "web", |_| ()).await?;
        let address = address(&web).await?;
        let echo = || TcpStream::connect_timeout(&SocketAddr::from((address, 7)), Duration::from_secs(5));
        eventually("it echoes", async || Ok(echo().is_ok())).await?;
        let mut stream = echo()?;
        stream.set_read_timeout(Some(Duration::from_secs(10) * slowness()))?;
        host.crash_daemon()?;
        let mut answer = [0; 4];
        for word in [b"dead", b"back"] {
            stream.write_all(word)?;
            stream.read_exact(&mut answer)?;
            assert_eq!(&answer, word);
            if word == b"dead" {
                host.start_daemon()?;
            }
        }
        assert_eq!(self::address(&web).await?, address);
        // What is taken from the pool afterwards meets nothing of before.
        let fork = web.fork("fork").await?;
        assert_eq!(get(self::address(&fork).await?, "/")?, "page\n");
        Ok(())
    });
}

#[test]
fn guests_are_kept_from_each_other_and_from_the_host() {
    story(async |host| {
        let one = serve(host, "one", |_| ()).await?;
        let two = one.fork("two").await?;
        let (here, there) = (address(&one).await?, address(&two).await?);
        ensure!(!fetches(&one, &there.to_string()).await?, "one reaches two");
        ensure!(fetches(&one, "127.0.0.1").await?, "one does not reach itself");
        ensure!(!fetches(&one, "two").await?, "one finds two");

        let listener = TcpListener::bind("0.0.0.0:0")?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let gateway = gateway(host).await?;
        ensure!(!fetches(&one, &format!("{gateway}:{port}")).await?, "one reaches the host");
        ensure!(listener.accept().is_err(), "a connection of a guest's arrived at the host");
        assert_eq!(get(here, "/")?, "page\n");
        Ok(())
    });
}

#[test]
fn guests_find_each_other_by_name_where_they_may() {
    Setup::default().env("HEARTH_NETWORK_ISOLATED", "false").story(async |host| {
        let one = serve(host, "one", |_| ()).await?;
        let two = one.fork("two").await?;
        ensure!(fetches(&one, &address(&two).await?.to_string()).await?, "one does not reach two");
        ensure!(fetches(&one, "two").await?, "one does not find two");
        ensure!(fetches(&two, "one.hearth.internal").await?, "two does not find one");
        two.standby().await?;
        ensure!(!fetches(&one, "two").await?, "one reaches what sleeps");
        Ok(())
    });
}

#[test]
fn a_published_port_leads_to_its_instance_and_to_no_other() {
    story(async |host| {
        let port = free_port()?;
        let web = serve(host, "web", |network| network.ports = Some(vec![format!("{port}:80")])).await?;
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        assert_eq!(get_at(here, "/")?, "page\n");
        assert_eq!(web.info().await?.network.and_then(|n| n.ports), Some(vec![format!("{port}:80/tcp")]));

        // Not inherited, and not given twice.
        let fork = web.fork("fork").await?;
        assert_eq!(fork.info().await?.network.and_then(|n| n.ports), None);
        let mut request = TestHost::request("second", "server:1");
        request.cmd = Some(vec!["/bin/sleep".into(), "1000".into()]);
        request.network = Some(NetworkRequest { ports: Some(vec![format!("{port}:80")]), ..NetworkRequest::default() });
        let refused = host.client().create_instance(&request).await.expect_err("the port is taken").to_string();
        ensure!(refused.contains(&port.to_string()), "{refused}");

        let who = |here| get_at(here, "/cgi-bin/who");
        ensure!(who(here)?.starts_with("web\n"), "{}", who(here)?);
        web.standby().await?;
        ensure!(get_at(here, "/").is_err(), "something answers for an instance in standby");
        web.restore().await?;
        assert_eq!(get_at(here, "/")?, "page\n");
        host.crash_daemon()?;
        host.start_daemon()?;
        assert_eq!(get_at(here, "/")?, "page\n");
        web.delete().await?;
        ensure!(TcpListener::bind(here).is_ok(), "the port is not free again");
        Ok(())
    });
}

#[test]
fn what_may_leave_is_what_was_asked_for() {
    let setup = Setup::default().env("HEARTH_NETWORK_ISOLATED", "false");
    setup.story(async |host| {
        let server = serve(host, "server", |_| ()).await?;
        let there = address(&server).await?;
        let by_address = there.to_string();
        let closed = serve(host, "closed", |network| network.outbound = Some(Outbound::None)).await?;
        let listed =
            serve(host, "listed", |network| network.allow = Some(vec!["server.hearth.internal".into()])).await?;
        let other = serve(host, "other", |network| network.allow = Some(vec!["192.0.2.0/24".into()])).await?;
        for (vm, to, may) in [
            (&closed, by_address.as_str(), false),
            (&closed, "server.hearth.internal", false),
            // An address that no name stood for yet.
            (&listed, by_address.as_str(), false),
            (&listed, "server.hearth.internal", true),
            (&other, by_address.as_str(), false),
            (&other, "server.hearth.internal", false),
        ] {
            ensure!(fetches(vm, to).await? == may, "{} to {to}: expected {may}", vm.name);
        }
        // Who reaches them is answered all the same.
        for vm in [&closed, &listed, &other] {
            assert_eq!(get(address(vm).await?, "/")?, "page\n", "{}", vm.name);
        }
        // A fork may do what its source may.
        let fork = closed.fork("closed-fork").await?;
        ensure!(!fetches(&fork, &by_address).await?, "a fork of a closed guest reaches out");
        Ok(())
    });
}

/// A port that nobody listens on now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Something on this host that greets whoever comes; its port.
fn greeter() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        listener.incoming().flatten().try_for_each(|mut guest| guest.write_all(b"hello guest\n"))
    });
    Ok(port)
}

/// Whether a guest on QEMU's own network reaches the host, which to it is the network's gateway.
async fn reaches(vm: &Vm<'_>, port: u16) -> Result<bool> {
    let ran = vm.run(&["nc", "-w", "10", "10.0.2.2", &port.to_string()]).await?;
    Ok(ran.stdout == "hello guest\n")
}

#[test]
fn without_privileges_guests_reach_out_by_qemu_s_own_network() {
    Setup::default().env("HEARTH_NETWORK_MODE", "user").story(async |host| {
        let (port, published) = (greeter()?, free_port()?);
        let network = NetworkRequest { ports: Some(vec![format!("{published}:80")]), ..NetworkRequest::default() };
        let vm = host.boot_with("web", |request| request.network = Some(network)).await?;
        ensure!(reaches(&vm, port).await?, "{} reaches nothing after its boot", vm.name);
        vm.run(&["/bin/sh", "-c", "mkdir /www; echo page > /www/index.html; httpd -p 80 -h /www"]).await?;
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, published));
        assert_eq!(get_at(here, "/")?, "page\n");
        vm.standby().await?;
        let forks = host.fork("web", "fork", 2).await?;
        vm.restore().await?;
        for guest in forks.iter().chain([&vm]) {
            ensure!(reaches(guest, port).await?, "{} reaches nothing after it was loaded", guest.name);
        }
        assert_eq!(get_at(here, "/")?, "page\n");

        let closed = NetworkRequest { outbound: Some(Outbound::None), ..NetworkRequest::default() };
        let closed = host.boot_with("closed", |request| request.network = Some(closed)).await?;
        ensure!(!reaches(&closed, port).await?, "a closed guest reaches out");
        let limited = NetworkRequest { bandwidth_upload: Some("1Mbps".into()), ..NetworkRequest::default() };
        let mut request = TestHost::request("limited", "counter:1");
        request.network = Some(limited);
        let refused = host.client().create_instance(&request).await.expect_err("nobody limits here").to_string();
        ensure!(refused.contains("bandwidth") && refused.contains("network.mode"), "{refused}");
        Ok(())
    });
}

#[test]
fn a_guest_without_a_network_reaches_nobody() {
    story(async |host| {
        let none = Some(NetworkRequest { enabled: Some(false), ..NetworkRequest::default() });
        let vm = host.boot_with("alone", |request| request.network = none).await?;
        assert_eq!(vm.sh("ls /sys/class/net").await?, "lo");
        ensure!(!reaches(&vm, greeter()?).await?, "it reaches the host");
        Ok(())
    });
}
