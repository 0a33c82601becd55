//! Datagrams: endpoints that answer them, clients that ask, and bare sockets.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::raw::config_with_policy;
use super::{Balancer, GIVE_UP, eventually};

/// Datagrams that begin so are never answered.
pub const MUTE: &[u8] = b"mute";
/// The largest datagram of IPv4.
pub const LARGEST: usize = 65_507;
/// How often threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(20);

/// A configuration with one listener of UDP and one cluster, both named `web`.
pub fn udp_config(top: &str, listener: &str, policy: &str, endpoints: &[SocketAddr]) -> String {
    config_with_policy(top, &format!("protocol = \"udp\"\n{listener}"), policy, endpoints)
}

/// A socket of the test on a free port of this address, for whoever waits long.
pub fn socket(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).expect("a port");
    socket.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
    socket
}

/// A port that is taken and at which nobody receives, as long as this is kept.
pub fn unreachable() -> (UdpSocket, SocketAddr) {
    let socket = socket("127.0.0.1");
    let address = socket.local_addr().expect("its address");
    socket.connect("127.0.0.1:9").expect("it hears nobody else");
    (socket, address)
}

/// A server that answers every datagram with its address, a space, and the datagram. It accepts
/// connections at the same port for as long as it is to be found healthy.
pub struct Server {
    /// Where it serves.
    pub address: SocketAddr,
    served: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    healthy: Option<TcpListener>,
}

impl Server {
    /// Starts one on a free port.
    pub fn start() -> Self {
        Self::start_on("127.0.0.1")
    }

    /// Starts one on a free port of this address.
    pub fn start_on(ip: &str) -> Self {
        loop {
            let healthy = TcpListener::bind((ip, 0)).expect("a port");
            let address = healthy.local_addr().expect("its address");
            if let Ok(socket) = UdpSocket::bind(address) {
                return Self::serve(socket, healthy);
            }
        }
    }

    /// Starts one at an address that must be free, or become so.
    pub fn start_at(address: SocketAddr) -> Self {
        let mut found = None;
        eventually("the endpoint's port is free", || {
            let bound = TcpListener::bind(address).ok().zip(UdpSocket::bind(address).ok());
            found = bound;
            found.is_some()
        });
        let (healthy, socket) = found.expect("two sockets");
        Self::serve(socket, healthy)
    }

    fn serve(socket: UdpSocket, healthy: TcpListener) -> Self {
        let address = socket.local_addr().expect("its address");
        let (served, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let counts = (Arc::clone(&served), Arc::clone(&ended));
        socket.set_read_timeout(Some(LOOK)).expect("a timeout");
        let thread = thread::spawn(move || answer(&socket, address, &counts));
        Self { address, served, ended, thread: Some(thread), healthy: Some(healthy) }
    }

    /// Datagrams received so far.
    pub fn served(&self) -> usize {
        self.served.load(SeqCst)
    }

    /// Fails every check from here on, and serves on.
    pub fn look_dead(&mut self) {
        self.healthy = None;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(
    socket: &UdpSocket,
    address: SocketAddr,
    (served, ended): &(Arc<AtomicUsize>, Arc<AtomicBool>),
) {
    let mut bytes = vec![0; LARGEST];
    while !ended.load(SeqCst) {
        let Ok((count, peer)) = socket.recv_from(&mut bytes) else { continue };
        served.fetch_add(1, SeqCst);
        if !bytes.starts_with(MUTE) {
            let reply = [format!("{address} ").as_bytes(), &bytes[..count]].concat();
            let _ = socket.send_to(&reply, peer);
        }
    }
}

/// A client with one socket.
pub struct Asker {
    /// Connected to the balancer.
    pub socket: UdpSocket,
}

impl Asker {
    /// A client of this address.
    pub fn new(ip: &str, listener: SocketAddr) -> Self {
        let socket = socket(ip);
        socket.connect(listener).expect("an address");
        Self { socket }
    }

    /// Sends something.
    pub fn send(&self, bytes: &[u8]) {
        assert_eq!(self.socket.send(bytes).expect("it is sent"), bytes.len());
    }

    /// Receives something.
    pub fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; LARGEST + 1];
        let count = self.socket.recv(&mut bytes).expect("an answer");
        bytes.truncate(count);
        bytes
    }

    /// Sends something and returns the endpoint that answered it.
    pub fn ask(&self, bytes: &[u8]) -> SocketAddr {
        self.send(bytes);
        endpoint_of(&self.receive(), bytes)
    }

    /// The endpoint that has answered, if one has.
    pub fn answered(&self, bytes: &[u8]) -> Option<SocketAddr> {
        let mut answer = vec![0; LARGEST];
        self.socket.set_nonblocking(true).expect("it does not block");
        let received = self.socket.recv(&mut answer);
        self.socket.set_nonblocking(false).expect("it blocks");
        match received {
            Ok(count) => Some(endpoint_of(&answer[..count], bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Asks until there is an answer, for whoever may lose some. Old answers are as good.
    pub fn insist(&self, bytes: &[u8]) -> SocketAddr {
        let mut endpoint = None;
        eventually("there is an answer", || {
            self.send(bytes);
            thread::sleep(Duration::from_millis(10));
            endpoint = self.answered(bytes);
            endpoint.is_some()
        });
        endpoint.expect("an answer")
    }
}

/// Who has answered this.
fn endpoint_of(answer: &[u8], question: &[u8]) -> SocketAddr {
    let space = answer.iter().position(|&byte| byte == b' ').expect("an address");
    assert_eq!(&answer[space + 1..], question, "the datagram came back changed");
    str::from_utf8(&answer[..space]).expect("text").parse().expect("an address")
}

impl Balancer {
    /// Datagrams of the listener `web` that were sent this way.
    pub fn datagrams(&self, direction: &str) -> f64 {
        let labels = format!("listener=\"web\",direction=\"{direction}\"");
        self.metric(&format!("pointsman_datagrams_total{{{labels}}}"))
    }

    /// The sum of all metrics of this name, whatever their labels.
    pub fn sum(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let samples = metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        samples
            .map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number"))
            .sum()
    }

    /// Asserts that every flow of the listener `web` has ended under one name, or lives.
    pub fn assert_flows_add_up(&self) {
        let ended = self.sum("pointsman_closes_total");
        let metrics = (self.web("flows_total"), self.web("flows_active"));
        assert_eq!(metrics.0, ended + metrics.1, "{}", self.metrics());
    }
}

/// An endpoint of datagrams that answers with the address that it was asked from.
pub struct Mirror {
    pub address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mirror {
    pub fn start() -> Self {
        let socket = socket("127.0.0.1");
        let address = socket.local_addr().expect("its address");
        let ended = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            let mut bytes = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut bytes) {
                if is_over.load(SeqCst) {
                    return;
                }
                let _ = socket.send_to(format!("{address} {peer}").as_bytes(), peer);
            }
        });
        Self { address, ended, thread: Some(thread) }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        let _ = UdpSocket::bind("127.0.0.1:0").map(|it| it.send_to(b"end", self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
