//! Peers that do not do as they should: slow ones, silent ones, ones that reset a connection at any
//! moment, and ones that are gone without a word. Each costs its own flow, under a name; the others go
//! on, new ones are served, and when it is over so is what it has cost.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;
use support::kernel::{Namespace, may_make_networks, shell};
use support::raw::{Ends, Origin, config, connect, reset, silent};
use support::{Balancer, Client, Endpoint, ask_once, eventually, serve};

const MIB: usize = 1024 * 1024;

/// Who resets a connection.
#[derive(Clone, Copy)]
enum Who {
    Client,
    Endpoint,
}

/// A flow of which one side goes as far as its name says, and then resets it.
struct Stage {
    name: &'static str,
    who: Who,
    /// What comes before the reset, from the side that resets and the other.
    before: fn(&mut TcpStream, &mut TcpStream),
    /// What the other side does then, until it hears of it.
    after: fn(&mut TcpStream) -> std::io::Result<usize>,
}

fn read_on(stream: &mut TcpStream) -> std::io::Result<usize> {
    stream.read_to_end(&mut Vec::new())
}

/// Whoever has read everything hears of a reset when he writes, at the latest by his second segment.
fn write_on(stream: &mut TcpStream) -> std::io::Result<usize> {
    (0..).try_fold(0, |sent, _| Ok(sent + stream.write(&[0; 64])?))
}

fn send(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"hello").expect("it is sent");
    to.read_exact(&mut [0; 5]).expect("it arrives");
}

/// Says that it has nothing more to say, and is heard.
fn end(from: &mut TcpStream, to: &mut TcpStream) {
    from.shutdown(Shutdown::Write).expect("it is shut down");
    assert_eq!(read_on(to).expect("an end"), 0);
}

/// Sends more than the other has read, so that a part is on its way.
fn send_much(from: &mut TcpStream, to: &mut TcpStream) {
    let mut writer = from.try_clone().expect("another handle");
    let sending = thread::spawn(move || writer.write_all(&vec![0; MIB]));
    to.read_exact(&mut vec![0; MIB - MIB / 8]).expect("most of it arrives");
    sending.join().expect("the sender").expect("the kernels keep the rest");
}

/// Gets more than it reads, so that much is on its way to it.
fn stall(reader: &mut TcpStream, writer: &mut TcpStream) {
    writer.set_nonblocking(true).expect("it does not block");
    let mut quiet = 0;
    while quiet < 20 {
        let taken = write_while_it_is_taken(writer);
        quiet = if taken { 0 } else { quiet + 1 };
        thread::sleep(Duration::from_millis(1));
    }
    writer.set_nonblocking(false).expect("it blocks");
    reader.read_exact(&mut [0; 100]).expect("the beginning");
}

/// Whether anything was taken of a socket that does not block.
fn write_while_it_is_taken(writer: &mut TcpStream) -> bool {
    let chunk = [0; 16 * 1024];
    let is_taken = writer.write(&chunk).is_ok();
    while writer.write(&chunk).is_ok() {}
    is_taken
}

const STAGES: [Stage; 12] = {
    use Who::{Client, Endpoint};
    const fn at(
        name: &'static str,
        who: Who,
        before: fn(&mut TcpStream, &mut TcpStream),
        after: fn(&mut TcpStream) -> std::io::Result<usize>,
    ) -> Stage {
        Stage { name, who, before, after }
    }
    [
        at("before the first byte", Client, |_, _| {}, read_on),
        at("with its request under way", Client, send_much, read_on),
        at("after its request", Client, send, read_on),
        at("with the answer under way", Client, stall, write_on),
        at("after its own end", Client, end, write_on),
        at("after the other's end", Client, |from, to| end(to, from), read_on),
        at("before the first byte", Endpoint, |_, _| {}, read_on),
        at("after the request", Endpoint, |from, to| send(to, from), read_on),
        at("with its answer under way", Endpoint, send_much, read_on),
        at("with the request under way", Endpoint, stall, write_on),
        at("after its own end", Endpoint, end, write_on),
        at("after the client's end", Endpoint, |from, to| end(to, from), read_on),
    ]
};

#[test]
fn a_reset_at_any_stage_costs_its_own_flow_and_is_counted_as_who_sent_it() {
    let origin = Origin::start();
    // An endpoint that has had nothing of a flow would be given up for another.
    let text = config("workers = 1", "connect_attempts = 1", &[origin.address()]);
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let mut established = origin.open(web);
    established.exchange().expect("the flow works");
    let descriptors = balancer.settled_descriptors();
    let mut resets = [0.0; 2];
    for Stage { name, who, before, after } in &STAGES {
        let Ends { client, server } = origin.open(web);
        let (place, (mut first, mut other)) = match who {
            Who::Client => (0, (client, server)),
            Who::Endpoint => (1, (server, client)),
        };
        let side = ["client", "endpoint"][place];
        before(&mut first, &mut other);
        reset(first);
        assert!(after(&mut other).is_err(), "{name}: the other side hears of it");
        resets[place] += 1.0;
        let counts =
            || ["downstream-reset", "upstream-reset"].map(|it| balancer.count("closes", it));
        eventually(&format!("{side}, {name}: it is counted"), || counts() == resets);
        established.exchange().expect("established flows go on");
        origin.open(web).exchange().expect("new flows are served");
    }
    eventually("the others have ended", || balancer.web("flows_active") == 1.0);
    let all = balancer.sum("pointsman_closes_total");
    assert_eq!(all, STAGES.len() as f64 * 2.0, "each flow has ended once");
    eventually("all descriptors are closed", || balancer.descriptors() == descriptors);
}

#[test]
fn a_client_that_resets_before_anybody_serves_it_leaves_nothing_behind() {
    let (_socket, _waiting, black_hole) = silent();
    let key = "connect_timeout_ms = 100\nconnect_attempts = 2";
    let endpoint = Endpoint::start();
    let waits = format!(
        "[[listeners]]\nname = \"key\"\naddress = \"127.0.0.1:0\"\ncluster = \"other\"\n\
         key = {{ kind = \"sni\" }}\npreread_timeout_ms = 3600000\n[[listeners]]\nname = \"proxy\"\n\
         address = \"127.0.0.1:0\"\ncluster = \"other\"\nproxy_protocol = {{ trusted = [\"127.0.0.1\"], timeout_ms = 3600000 }}\n\
         [[clusters]]\nname = \"other\"\nendpoints = [{{ address = \"{}\" }}]\n",
        endpoint.address
    );
    let text = config("workers = 1", key, &[black_hole]) + &waits;
    let balancer = Balancer::start(&text);
    let descriptors = balancer.settled_descriptors();
    for (listener, reason) in
        [("web", "connect-timeout"), ("key", "downstream-reset"), ("proxy", "downstream-reset")]
    {
        let mut client = connect(balancer.address(listener));
        if listener == "key" {
            client.write_all(&[22, 3]).expect("the beginning of a hello");
        }
        let active = format!("pointsman_flows_active{{listener=\"{listener}\"}}");
        eventually("it is there", || balancer.metric(&active) == 1.0);
        reset(client);
        let name = format!("pointsman_closes_total{{listener=\"{listener}\",reason=\"{reason}\"}}");
        eventually("its end has a name", || balancer.metric(&name) == 1.0);
    }
    eventually("all descriptors are closed", || balancer.descriptors() == descriptors);
}

/// A configuration with a second listener of the cluster, on which a flow may be idle but shortly.
fn with_brief_listener(listener: &str, endpoints: &[SocketAddr]) -> String {
    let brief = "[[listeners]]\nname = \"brief\"\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
                 idle_timeout_ms = 300\nconnect_timeout_ms = 200\n";
    config("workers = 2", listener, endpoints) + brief
}

fn brief_closes(balancer: &Balancer, reason: &str) -> f64 {
    balancer.metric(&format!("pointsman_closes_total{{listener=\"brief\",reason=\"{reason}\"}}"))
}

#[test]
fn slow_readers_that_hold_all_buffers_yield_them_and_others_go_on() {
    let (origin, endpoint) = (Origin::start(), Endpoint::start());
    let top = "workers = 1\nbuffers = { small = 64, bulk = 4 }";
    let text = config(top, "", &[origin.address()]);
    let text = format!(
        "{text}[[listeners]]\nname = \"other\"\naddress = \"127.0.0.1:0\"\ncluster = \"other\"\n\
         [[clusters]]\nname = \"other\"\nendpoints = [{{ address = \"{}\" }}]\n",
        endpoint.address
    );
    let balancer = Balancer::start(&text);
    let (web, other) = (balancer.address("web"), balancer.address("other"));
    let mut established = Client::connect(other).expect("a connection");
    established.ask("before").expect("the flow works");
    // More than there are buffers, and all are there before any of them is slow.
    let mut slow: Vec<_> = (0..100).map(|_| origin.open(web)).collect();
    for Ends { client, server } in &mut slow {
        sockopt::set_socket_recv_buffer_size(client, 4096).expect("it takes little");
        server.set_nonblocking(true).expect("it does not block");
    }
    eventually("a new flow is shed, because all buffers are held", || {
        for Ends { server, .. } in &mut slow {
            write_while_it_is_taken(server);
        }
        ask_once(other).is_err()
    });
    let sheds = "pointsman_sheds_total{listener=\"other\",reason=\"buffers\"}";
    assert!(balancer.metric(sheds) >= 1.0);
    established.ask("during").expect("the flow that was there goes on");
    eventually("slow ones have yielded", || balancer.count("closes", "shed") >= 1.0);
    eventually("new flows are served", || ask_once(other).is_ok());
    established.ask("after").expect("the flow that was there goes on");
    drop(slow);
    eventually("the slow ones have ended", || balancer.web("flows_active") == 0.0);
}

/// Whether a line comes within the read timeout.
fn is_answered(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    while byte != *b"\n" {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return false;
        }
    }
    true
}

#[test]
fn an_endpoint_that_accepts_and_never_answers_costs_its_flows_their_idle_time_and_no_more() {
    let good = Endpoint::start();
    let mute = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = mute.local_addr().expect("its address");
    let balancer = Balancer::start(&with_brief_listener("", &[good.address, silent]));
    let (web, brief) = (balancer.address("web"), balancer.address("brief"));
    let mut established = loop {
        // The kernel accepts for an endpoint that does nothing.
        let mut client = TcpStream::connect(web).expect("a connection");
        client.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        client.write_all(b"who\n").expect("it is sent");
        if is_answered(&mut client) {
            break Client::of(client);
        }
    };
    let mut unanswered = 0.0;
    eventually("some are served and some are not", || {
        let is_served = ask_once(brief).is_ok();
        unanswered += f64::from(u8::from(!is_served));
        established.ask("meanwhile").expect("established flows go on");
        is_served && unanswered >= 3.0
    });
    eventually("that has a name", || brief_closes(&balancer, "idle-timeout") >= unanswered);
    // It answers again, those too whom it has not.
    thread::spawn(move || {
        for stream in mute.incoming().flatten() {
            thread::spawn(move || serve(stream, silent));
        }
    });
    eventually("it serves again", || ask_once(brief).is_ok_and(|who| who == silent));
    established.ask("after").expect("the flow that was there goes on");
}

#[test]
fn an_endpoint_that_accepts_nobody_any_more_is_passed_over_until_it_does() {
    let good = Endpoint::start();
    let (socket, waiting, silent) = silent();
    let listener = "connect_timeout_ms = 200";
    let health = "health = { interval_ms = 50, timeout_ms = 200, rise = 1, fall = 2 }\n";
    let text = config("workers = 2", listener, &[good.address, silent]) + health;
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let mut established = Client::connect(web).expect("a connection");
    assert_eq!(established.ask("before").expect("it is served"), good.address);
    for _ in 0..10 {
        assert_eq!(ask_once(web).expect("new flows are served"), good.address);
        established.ask("during").expect("established flows go on");
    }
    eventually("it is down", || !balancer.is_up(silent));
    // Whoever waits there is served, and whoever comes.
    let listener = TcpListener::from(socket);
    thread::spawn(move || {
        drop(waiting);
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream, silent));
        }
    });
    eventually("it is up", || balancer.is_up(silent));
    eventually("it serves", || ask_once(web).is_ok_and(|who| who == silent));
    established.ask("after").expect("the flow that was there goes on");
}

/// Our side of a link to clients and of one to endpoints.
const LINKS: &str = "ip link set lo up
ip link add e0 type veth peer name e1 netns $ENDPOINT
ip link add c0 type veth peer name c1 netns $CLIENT
ip addr add 10.77.0.1/24 dev e0; ip addr add 203.0.113.1/24 dev c0
ip link set e0 up; ip link set c0 up";
const ENDPOINT: &str = "ip addr add 10.77.0.2/24 dev e1; ip link set e1 up";
const CLIENT: &str = "ip addr add 203.0.113.9/24 dev c1; ip link set c1 up";

/// One endpoint beside the balancer and one beyond a link, and a client beyond another.
struct Networks {
    client: Namespace,
    endpoint: Namespace,
    ours: Namespace,
    near: SocketAddr,
    far: SocketAddr,
    /// They serve as long as they are kept.
    _endpoints: [Endpoint; 2],
    balancer: Balancer,
}

impl Networks {
    fn new() -> Self {
        let [client, endpoint, ours] = [0; 3].map(|_| Namespace::new());
        let threads =
            [("CLIENT", client.thread.to_string()), ("ENDPOINT", endpoint.thread.to_string())];
        ours.does(move || shell(LINKS, &threads));
        endpoint.does(|| shell(ENDPOINT, &[]));
        client.does(|| shell(CLIENT, &[]));
        let near = ours.does(Endpoint::start);
        let far = SocketAddr::from(([10, 77, 0, 2], 0));
        let far = endpoint.does(move || Endpoint::start_at(far));
        let health = "health = { interval_ms = 50, timeout_ms = 200, rise = 1, fall = 2 }\n";
        let text = config("workers = 2", "", &[near.address]);
        let text = format!(
            "{text}\n[[listeners]]\nname = \"brief\"\naddress = \"203.0.113.1:0\"\ncluster = \"far\"\n\
             idle_timeout_ms = 500\nconnect_timeout_ms = 200\n[[clusters]]\nname = \"far\"\n{health}\
             endpoints = [{{ address = \"{}\" }}, {{ address = \"{}\" }}]\n",
            near.address, far.address
        );
        let balancer = ours.does(move || Balancer::start(&text));
        let (near, far, _endpoints) = (near.address, far.address, [near, far]);
        Self { client, endpoint, ours, near, far, _endpoints, balancer }
    }

    /// A flow of this endpoint, by a client of that network, which is answered.
    fn flow(&self, of: &Namespace, endpoint: SocketAddr) -> (Client, f64) {
        let brief = self.balancer.address("brief");
        let mut found = None;
        eventually("the endpoint has a flow", || {
            let ended = brief_closes(&self.balancer, "idle-timeout");
            found = of.does(move || {
                let mut client = Client::connect(brief).ok()?;
                client.ask("before").is_ok_and(|who| who == endpoint).then_some((client, ended))
            });
            found.is_some()
        });
        found.expect("a flow")
    }

    /// Whom a client of that network meets, if anybody.
    fn meets(&self, of: &Namespace) -> Option<SocketAddr> {
        let brief = self.balancer.address("brief");
        of.does(move || ask_once(brief).ok())
    }
}

#[test]
fn peers_that_are_gone_without_a_word_cost_their_own_flows_and_serve_when_they_are_back() {
    if !may_make_networks() {
        return;
    }
    let networks = Networks::new();
    let Networks { client, endpoint, ours, near, far, balancer, .. } = &networks;
    let web = balancer.address("web");
    let mut established = ours.does(move || Client::connect(web).expect("a connection"));
    let mut goes_on = || established.ask("hello").expect("established flows go on");
    goes_on();
    let ended = || brief_closes(balancer, "idle-timeout");

    let (_gone, before) = networks.flow(client, *near);
    client.does(|| shell("ip link set c1 down", &[]));
    eventually("the flow of the client that is gone ends", || ended() > before);
    goes_on();
    assert!(networks.meets(ours).is_some(), "another client is served");
    client.does(|| shell("ip link set c1 up", &[]));
    eventually("the client that is back is served", || networks.meets(client).is_some());

    let (mut lost, before) = networks.flow(ours, *far);
    endpoint.does(|| shell("ip link set e1 down", &[]));
    let _ = lost.ask("is anybody there");
    eventually("the flow of the endpoint that is gone ends", || ended() > before);
    goes_on();
    eventually("it is down", || !balancer.is_up(*far));
    for _ in 0..10 {
        assert_eq!(networks.meets(client), Some(*near), "new flows go elsewhere");
        goes_on();
    }
    endpoint.does(|| shell("ip link set e1 up", &[]));
    eventually("it is up", || balancer.is_up(*far));
    eventually("it serves", || networks.meets(client) == Some(*far));
    goes_on();
}
