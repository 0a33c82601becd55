//! A hundred thousand queries to real name servers: none is lost on its way, and no flow is left.
//!
//! Needs `dnsmasq`, which `cargo xtask setup` installs; without it the test says so and passes.

mod support;

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::raw::config;
use support::{Balancer, GIVE_UP, eventually};

/// How often a name server is started before something else must be wrong than its port.
const STARTS: usize = 10;
const QUERIES: usize = 100_000;
/// Queries that a client asks before it takes another port.
const PER_PORT: usize = 16;
/// As many as a name server's receive buffer surely holds, since what it loses is not ours.
const OUTSTANDING: usize = 64;
const HEADER_BYTES: usize = 12;
/// What an answer has behind the question: a pointer, type, class, time, length and address.
const ANSWER_BYTES: usize = 16;
const ANSWER: [u8; 4] = [192, 0, 2, 1];

/// A name server that knows one domain; it is killed when this is dropped.
struct NameServer {
    process: Child,
    address: SocketAddr,
}

impl NameServer {
    /// Starts one, if it is installed.
    fn start() -> Option<Self> {
        for _ in 0..STARTS {
            let mut server = Self::start_on(free_address())?;
            let mut ended = false;
            eventually("the name server answers or ends", || {
                ended = server.process.try_wait().expect("its state").is_some();
                ended || server.answers()
            });
            if !ended {
                return Some(server);
            }
        }
        panic!("no name server could stay on the port that was free for it");
    }

    fn start_on(address: SocketAddr) -> Option<Self> {
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        let process = Command::new("dnsmasq")
            .env("PATH", path)
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
            .args(["--pid-file=", "--listen-address=127.0.0.1", "--bind-interfaces"])
            .args(["--address=/example.com/192.0.2.1", &format!("--port={}", address.port())])
            .arg("--log-facility=/dev/null")
            .stdin(Stdio::null())
            .spawn();
        match process {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            process => Some(Self { process: process.expect("it starts"), address }),
        }
    }

    fn answers(&self) -> bool {
        let client = Client::new(self.address);
        let itself = client.socket.local_addr().expect("an address") == self.address;
        client.socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        !itself && client.ask(0).is_ok() && client.hear().is_ok()
    }
}

/// An address that is free for datagrams and connections both, as a name server needs it: one
/// that only datagrams leave free may be that of connections that are just over.
fn free_address() -> SocketAddr {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("an address");
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One port of a resolver.
struct Client {
    socket: UdpSocket,
}

impl Client {
    fn new(to: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.connect(to).expect("an address");
        socket.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
        Self { socket }
    }

    fn ask(&self, number: usize) -> io::Result<()> {
        self.socket.send(&query(number)).map(drop)
    }

    /// The id of the next answer, which must be right.
    fn hear(&self) -> io::Result<u16> {
        let mut answer = [0; 512];
        let length = self.socket.recv(&mut answer)?;
        let answer = &answer[..length];
        assert_eq!(answer[2..4], [0x85, 0x80], "an authoritative answer without an error");
        assert_eq!(answer[HEADER_BYTES - 6..HEADER_BYTES - 4], [0, 1], "one answer: {answer:x?}");
        assert_eq!(answer[length - ANSWER.len()..], ANSWER);
        assert!(length > HEADER_BYTES + ANSWER_BYTES);
        Ok(u16::from_be_bytes([answer[0], answer[1]]))
    }
}

/// Asks for the address of a name that nobody has asked for before (RFC 1035 section 4.1).
fn query(number: usize) -> Vec<u8> {
    let host = format!("host-{number}");
    let mut query = (number as u16).to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [host.as_str(), "example", "com"] {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// Asks all queries, some at a time, and hears every answer; returns how many there were.
fn ask_all(to: SocketAddr) -> usize {
    let mut number = 0;
    while number < QUERIES {
        let clients: Vec<_> = (0..OUTSTANDING).map(|_| Client::new(to)).collect();
        for _ in 0..PER_PORT {
            for (place, client) in clients.iter().enumerate() {
                client.ask(number + place).expect("it is asked");
            }
            for (place, client) in clients.iter().enumerate() {
                let heard = client.hear().expect("an answer to every query");
                assert_eq!(heard, (number + place) as u16, "its own");
            }
            number += OUTSTANDING;
        }
    }
    number
}

#[test]
fn every_query_is_answered_and_every_flow_ends_with_its_answer() {
    let (Some(first), Some(second)) = (NameServer::start(), NameServer::start()) else {
        eprintln!("skipped: there is no dnsmasq; run `cargo xtask setup`");
        return;
    };
    for sockets in ["shared", "per-flow"] {
        let listener = format!(
            "protocol = \"udp\"\nreplies_expected = 1\nupstream_sockets = \"{sockets}\"\n\
             segmentation_offload = false"
        );
        let balancer =
            Balancer::start(&config("workers = 2", &listener, &[first.address, second.address]));
        let asked = ask_all(balancer.address("web"));
        assert_eq!(balancer.web("flows_active"), 0.0);
        assert_eq!(balancer.web("flows_total"), asked as f64, "each query is a flow of its own");
        assert_eq!(balancer.count("closes", "finished"), asked as f64);
        let metrics = balancer.metrics();
        let mut losses = metrics.lines().filter(|line| {
            line.starts_with("pointsman_drops_total") || line.starts_with("pointsman_sheds_total")
        });
        assert!(losses.all(|line| line.ends_with(" 0")), "{metrics}");
    }
}
