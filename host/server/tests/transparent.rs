//! Flows that leave from their clients' addresses, between network namespaces: a client's, the
//! balancer's and an endpoint's. A namespace is a thread's, and goes with it.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::kernel::{Namespace, may_make_networks, shell};
use support::{Balancer, GIVE_UP, POINTSMAN, eventually};

/// The balancer's side of both links. What comes from endpoints is taken for ours, whomever it is for.
const ROUTES: &str = "ip link set lo up
ip link add e0 type veth peer name e1 netns $ENDPOINT
ip link add c0 type veth peer name c1 netns $CLIENT
ip addr add 10.77.0.1/24 dev e0; ip addr add fd77::1/64 dev e0 nodad
ip addr add 203.0.113.1/24 dev c0; ip addr add 2001:db8:1::1/64 dev c0 nodad
ip link set e0 up; ip link set c0 up
ip rule add iif e0 lookup 100; ip route add local 0.0.0.0/0 dev lo table 100
ip -6 rule add iif e0 lookup 100; ip -6 route add local ::/0 dev lo table 100";
const ENDPOINT: &str = "ip addr add 10.77.0.2/24 dev e1; ip addr add fd77::2/64 dev e1 nodad
ip link set e1 up
ip route add default via 10.77.0.1; ip -6 route add default via fd77::1";
const CLIENT: &str = "ip addr add 203.0.113.9/24 dev c1; ip addr add 2001:db8:1::9/64 dev c1 nodad
ip link set c1 up";

/// A client's network, an endpoint's, and the balancer's between them.
struct Networks {
    client: Namespace,
    endpoint: Namespace,
    ours: Namespace,
}

impl Networks {
    fn new() -> Self {
        let [client, endpoint, ours] = [0; 3].map(|_| Namespace::new());
        let threads =
            [("CLIENT", client.thread.to_string()), ("ENDPOINT", endpoint.thread.to_string())];
        ours.does(move || shell(ROUTES, &threads));
        endpoint.does(|| shell(ENDPOINT, &[]));
        client.does(|| shell(CLIENT, &[]));
        Self { client, endpoint, ours }
    }

    /// A socket of the client's.
    fn asker(&self, address: impl Into<SocketAddr>) -> UdpSocket {
        let address = address.into();
        let socket = self.client.does(move || UdpSocket::bind(address).expect("a socket"));
        // What is lost is asked again.
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        socket
    }

    /// So many endpoints at one address.
    fn endpoints<const N: usize>(&self, address: IpAddr) -> [SocketAddr; N] {
        [0; N].map(|_| self.endpoint.does(move || answer(SocketAddr::new(address, 0))))
    }

    fn start(&self, config: String) -> Balancer {
        self.ours.does(move || Balancer::start(&config))
    }
}

/// Answers the first line of every connection with where it comes from.
fn serve(address: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(address).expect("a socket");
    let address = listener.local_addr().expect("its address");
    // It is in the namespace of its socket, wherever it runs.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().expect("its peer").ip();
            let mut line = String::new();
            if BufReader::new(&stream).read_line(&mut line).is_ok_and(|count| count > 0) {
                let _ = write!(stream, "{peer} {line}");
            }
        }
    });
    address
}

/// Where an endpoint says that a connection comes from.
fn seen(balancer: SocketAddr) -> IpAddr {
    let mut stream = TcpStream::connect(balancer).expect("a connection");
    stream.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
    stream.write_all(b"who am I\n").expect("a line");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    let (address, echo) = line.split_once(' ').expect("an address");
    assert_eq!(echo, "who am I\n");
    address.parse().expect("an address")
}

fn config(listener: IpAddr, endpoint: SocketAddr, transparent: bool) -> String {
    format!(
        "workers = 2\n[[listeners]]\nname = \"web\"\naddress = \"{}\"\ncluster = \"web\"\n\
         [[clusters]]\nname = \"web\"\ntransparent = {transparent}\n\
         endpoints = [{{ address = \"{endpoint}\" }}]\n",
        SocketAddr::new(listener, 0)
    )
}

#[test]
fn endpoints_see_whom_they_serve_on_connections_that_leave_from_the_clients_address() {
    if !may_make_networks() {
        return;
    }
    let networks = Networks::new();
    let cases = [
        ("203.0.113.1", "10.77.0.2", true, "203.0.113.9"),
        ("2001:db8:1::1", "fd77::2", true, "2001:db8:1::9"),
        // Of two families, or not asked for: from our own address.
        ("203.0.113.1", "fd77::2", true, "fd77::1"),
        ("203.0.113.1", "10.77.0.2", false, "10.77.0.1"),
    ];
    for (listener, served_at, transparent, expected) in cases {
        let [listener, served_at, expected] =
            [listener, served_at, expected].map(|text| text.parse::<IpAddr>().expect("an address"));
        let served_at = networks.endpoint.does(move || serve(SocketAddr::new(served_at, 0)));
        let balancer = networks.start(config(listener, served_at, transparent));
        let web = balancer.address("web");
        for _ in 0..10 {
            assert_eq!(
                networks.client.does(move || seen(web)),
                expected,
                "{listener} to {served_at}"
            );
        }
    }
}

/// Answers every datagram with who it is, and where the datagram comes from.
fn answer(address: SocketAddr) -> SocketAddr {
    let socket = UdpSocket::bind(address).expect("a socket");
    let address = socket.local_addr().expect("its address");
    thread::spawn(move || {
        let mut bytes = [0; 100];
        while let Ok((count, peer)) = socket.recv_from(&mut bytes) {
            let word = String::from_utf8_lossy(&bytes[..count]);
            let _ = socket.send_to(format!("{address} {peer} {word}").as_bytes(), peer);
        }
    });
    address
}

/// Which endpoint answers, and whom it has seen. The answer comes from the listener that was asked.
fn ask(socket: &UdpSocket, listener: SocketAddr, word: &str) -> (SocketAddr, SocketAddr) {
    let mut answered = None;
    eventually(&format!("{listener} answers {word} of {}", is(socket)), || {
        socket.send_to(word.as_bytes(), listener).expect("it is sent");
        let mut bytes = [0; 200];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..count]);
            let words: Vec<&str> = text.split(' ').collect();
            if let [endpoint, peer, echo] = words[..]
                && echo == word
            {
                assert_eq!(from, listener, "{text}");
                let address = |text: &str| text.parse().expect("an address");
                answered = Some((address(endpoint), address(peer)));
                return true;
            }
        }
        false
    });
    answered.expect("it is there")
}

/// A cluster with a listener of its own for datagrams, both of this name.
fn udp(name: &str, listener: SocketAddr, transparent: bool, endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<_> =
        endpoints.iter().map(|it| format!("{{ address = \"{it}\" }}")).collect();
    let endpoints = endpoints.join(", ");
    format!(
        "[[listeners]]\nname = \"{name}\"\naddress = \"{listener}\"\nprotocol = \"udp\"\n\
         cluster = \"{name}\"\n[[clusters]]\nname = \"{name}\"\ntransparent = {transparent}\n\
         endpoints = [{endpoints}]\n"
    )
}

fn is(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("its address")
}

const FAMILIES: [[&str; 3]; 2] =
    [["203.0.113.1", "10.77.0.2", "203.0.113.9"], ["2001:db8:1::1", "fd77::2", "2001:db8:1::9"]];

#[test]
fn endpoints_see_whom_they_answer_on_datagrams_that_leave_from_the_clients_address_and_port() {
    if !may_make_networks() {
        return;
    }
    let networks = Networks::new();
    for family in FAMILIES {
        let [ours, theirs, client]: [IpAddr; 3] = family.map(|it| it.parse().expect("an address"));
        let [one, other] = networks.endpoints(theirs);
        let listener = SocketAddr::new(ours, 0);
        let balancer = networks.start(
            "workers = 2\n".to_owned()
                + &udp("both", listener, true, &[one, other])
                + &udp("one", listener, true, &[one])
                + &udp("other", listener, true, &[other])
                + &udp("ours", listener, false, &[one]),
        );
        let [both, first, second, plain] =
            ["both", "one", "other", "ours"].map(|name| balancer.address(name));
        let askers: Vec<_> = (0..12).map(|_| networks.asker((client, 0))).collect();
        let mut asked = Vec::new();
        for round in ["a", "b", "c"] {
            for asker in &askers {
                let (endpoint, peer) = ask(asker, both, round);
                assert_eq!(peer, is(asker), "{both} to {endpoint}");
                asked.push(endpoint);
            }
        }
        assert!(asked.contains(&one) && asked.contains(&other), "{asked:?}");
        assert!(asked.chunks(askers.len()).all(|round| round == &asked[..askers.len()]));
        // One client has flows to several endpoints, whose answers come from its listeners.
        let asker = networks.asker((client, 0));
        for round in 0..10 {
            assert_eq!(ask(&asker, first, &format!("one-{round}")), (one, is(&asker)));
            assert_eq!(ask(&asker, second, &format!("other-{round}")), (other, is(&asker)));
            let (endpoint, peer) = ask(&asker, plain, &format!("ours-{round}"));
            assert!(endpoint == one && peer.ip() != client, "{peer}");
        }
    }
}

#[test]
fn a_client_keeps_its_port_whoever_else_has_one_of_that_number() {
    if !may_make_networks() {
        return;
    }
    let networks = Networks::new();
    let [endpoint] = networks.endpoints([10, 77, 0, 2].into());
    let anywhere = |port| SocketAddr::from(([0, 0, 0, 0], port));
    let config = "workers = 1\n".to_owned()
        + &udp("web", anywhere(5_300), true, &[endpoint])
        + &udp("ours", anywhere(5_301), false, &[endpoint]);
    let balancer = networks.start(config);
    let [web, ours] = [5_300, 5_301].map(|port| SocketAddr::from(([203, 0, 113, 1], port)));
    let client = |port| networks.asker(([203, 0, 113, 9], port));
    // The number of an upstream port, of the listener itself, and of another listener.
    let (_, upstream) = ask(&client(0), ours, "where");
    for number in [upstream.port(), web.port(), ours.port()] {
        let asker = client(number);
        assert_eq!(ask(&asker, web, "mine"), (endpoint, is(&asker)));
    }
    // Another program has the number for itself.
    let program = networks.ours.does(move || UdpSocket::bind(anywhere(0)).expect("a socket"));
    let asker = client(is(&program).port());
    let ended = "pointsman_closes_total{listener=\"web\",reason=\"descriptors\"}";
    eventually("its flow ends for a reason", || {
        asker.send_to(b"lost", web).expect("it is sent");
        balancer.metric(ended) >= 1.0
    });
    let other = client(0);
    assert_eq!(ask(&other, web, "others"), (endpoint, is(&other)));
    drop(program);
    assert_eq!(ask(&asker, web, "late"), (endpoint, is(&asker)));
}

/// Runs a command that asks the balancer for something.
fn command(balancer: &Balancer, command: &str) -> String {
    let mut asks = Command::new(POINTSMAN);
    let output = asks.arg(command).arg("--admin").arg(balancer.socket()).arg("--json").output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A process that nobody else ends.
struct Successor(Pid);

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
    }
}

#[test]
fn established_flows_keep_the_addresses_they_have_through_reloads_and_upgrades() {
    if !may_make_networks() {
        return;
    }
    let networks = Networks::new();
    let listener = SocketAddr::from(([203, 0, 113, 1], 5_300));
    let [endpoint] = networks.endpoints([10, 77, 0, 2].into());
    let config =
        |transparent| "workers = 2\n".to_owned() + &udp("web", listener, transparent, &[endpoint]);
    let balancer = networks.start(config(false));
    let client = || networks.asker(([203, 0, 113, 9], 0));
    let reload = |transparent| {
        let socket = balancer.socket();
        let text = format!("{}\n[admin]\nsocket = {socket:?}\n", config(transparent));
        fs::write(balancer.path("pointsman.toml"), text).expect("it is written");
        command(&balancer, "reload");
    };
    let [before, between, after] = [client(), client(), client()];
    let (_, ours) = ask(&before, listener, "first");
    assert_ne!(ours.ip(), is(&before).ip());
    reload(true);
    assert_eq!(ask(&between, listener, "first"), (endpoint, is(&between)));
    assert_eq!(ask(&before, listener, "second"), (endpoint, ours));
    let answer: serde_json::Value =
        serde_json::from_str(&command(&balancer, "upgrade")).expect("an answer");
    let pid = answer["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32));
    let _successor = Successor(pid.expect("a process"));
    assert_eq!(ask(&before, listener, "third"), (endpoint, ours));
    assert_eq!(ask(&between, listener, "third"), (endpoint, is(&between)));
    reload(false);
    assert_eq!(ask(&between, listener, "fourth"), (endpoint, is(&between)));
    let (_, peer) = ask(&after, listener, "first");
    assert_ne!(peer.ip(), is(&after).ip());
}

#[test]
fn a_balancer_that_may_not_leave_from_others_addresses_does_not_start() {
    let config = config([127, 0, 0, 1].into(), ([127, 0, 0, 1], 9).into(), true);
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", "--bounding-set=-net_admin,-net_raw", POINTSMAN]);
    if !rustix::process::geteuid().is_root() {
        command = Command::new(POINTSMAN);
    }
    let mut balancer = Balancer::launch_by(command, &config);
    assert_eq!(balancer.await_end().code(), Some(2), "{}", balancer.log());
    let log = balancer.log();
    let told = "clusters[0].transparent: flows may not leave from clients' addresses";
    assert!(log.contains(told) && log.contains("start with CAP_NET_ADMIN"), "{log}");
}
