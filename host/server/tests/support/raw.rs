//! Bare connections: a test holds both ends of a flow and does with them what it likes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use super::{Balancer, GIVE_UP, eventually};

/// Of prime length, so that a byte that went missing anywhere shifts everything after it.
const PATTERN_BYTES: usize = 250_007;
const CHUNK_BYTES: usize = 128 * 1024;

/// A configuration with one listener and one cluster, both named `web`.
///
/// `top` are keys of the whole file, `listener` of the listener.
pub fn config(top: &str, listener: &str, endpoints: &[SocketAddr]) -> String {
    config_with_policy(top, listener, "round-robin", endpoints)
}

/// The same, with a policy that the test adds at the end if it is no native one.
pub fn config_with_policy(
    top: &str,
    listener: &str,
    policy: &str,
    endpoints: &[SocketAddr],
) -> String {
    // On a busy machine a plugin is charged for time that others had, so only a test of the budget
    // has one.
    let budget = if top.contains("plugin_cpu_percent") { "" } else { "plugin_cpu_percent = 100\n" };
    let mut text = format!(
        "{budget}{top}\n[[listeners]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
         {listener}\n[[clusters]]\nname = \"web\"\npolicy = \"{policy}\"\nendpoints = ["
    );
    for address in endpoints {
        let _ = write!(text, "{{ address = \"{address}\" }}, ");
    }
    text + "]\n"
}

/// Both ends of one flow.
pub struct Ends {
    /// The client's connection to the balancer.
    pub client: TcpStream,
    /// The balancer's connection, as the endpoint has it.
    pub server: TcpStream,
}

/// An endpoint whose connections the test takes itself.
pub struct Origin {
    listener: TcpListener,
}

impl Origin {
    /// Listens on a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("it does not block");
        Self { listener }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("its address")
    }

    /// Takes the next connection.
    pub fn accept(&self) -> TcpStream {
        let mut taken = None;
        eventually("the endpoint is connected to", || {
            taken = self.listener.accept().ok();
            taken.is_some()
        });
        let (stream, _) = taken.expect("a connection");
        stream.set_nonblocking(false).expect("it blocks");
        patient(stream)
    }

    /// Opens a flow.
    pub fn open(&self, listener: SocketAddr) -> Ends {
        let client = connect(listener);
        Ends { client, server: self.accept() }
    }
}

impl Ends {
    /// Sends a byte each way.
    pub fn exchange(&mut self) -> io::Result<()> {
        pass(&mut self.client, &mut self.server)?;
        pass(&mut self.server, &mut self.client)
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    from.write_all(b"x")?;
    to.read_exact(&mut byte)?;
    assert_eq!(&byte, b"x");
    Ok(())
}

/// Connects to a balancer.
pub fn connect(listener: SocketAddr) -> TcpStream {
    patient(TcpStream::connect(listener).expect("a connection"))
}

/// Connects from an address of this machine; all of 127.0.0.0/8 is.
pub fn connect_from(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        // A balancer that another test starts meanwhile must not inherit it.
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.expect("a socket");
    rustix::net::bind(&socket, &SocketAddr::new(from, 0)).expect("an address");
    rustix::net::connect(&socket, &to).expect("a connection");
    patient(socket.into())
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
    stream.set_write_timeout(Some(GIVE_UP)).expect("a timeout");
    stream
}

/// Ends a connection by a reset.
pub fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("it does not linger");
    drop(stream);
}

/// What the other end of a connection did: an error, or how many bytes were still to come.
pub fn rest(stream: &mut TcpStream) -> Result<usize, io::ErrorKind> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(|error| error.kind())
}

/// Sends this many bytes of a pattern that [`expect_pattern`] knows.
pub fn send_pattern(stream: &mut TcpStream, bytes: u64, sent: &AtomicU64) {
    let pattern = pattern();
    let mut offset = 0;
    while offset < bytes {
        let part = part(&pattern, offset, bytes);
        let count = stream.write(part).expect("it is sent") as u64;
        offset += count;
        sent.store(offset, SeqCst);
    }
}

/// Receives this many bytes and checks each.
pub fn expect_pattern(stream: &mut TcpStream, bytes: u64) {
    let pattern = pattern();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    while offset < bytes {
        let expected = part(&pattern, offset, bytes);
        let count = stream.read(&mut chunk[..expected.len()]).expect("it is received");
        assert_ne!(count, 0, "the stream ends at {offset} of {bytes}");
        assert!(chunk[..count] == expected[..count], "wrong bytes after {offset}");
        offset += count as u64;
    }
}

fn part(pattern: &[u8], offset: u64, end: u64) -> &[u8] {
    let begin = (offset % PATTERN_BYTES as u64) as usize;
    let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
    &pattern[begin..][..left.min(CHUNK_BYTES).min(PATTERN_BYTES - begin)]
}

fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8
    };
    (0..PATTERN_BYTES).map(|_| next()).collect()
}

/// A port that is taken and refuses every connection, as long as this is kept.
pub fn refusing() -> (OwnedFd, SocketAddr) {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        // A balancer that another test starts meanwhile must not inherit it.
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.expect("a socket");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    rustix::net::bind(&socket, &any).expect("a port");
    let address = rustix::net::getsockname(&socket).expect("its address");
    (socket, address.try_into().expect("an address of IPv4"))
}

/// A port that answers no connection, as long as this is kept: its backlog is full.
pub fn silent() -> (OwnedFd, Vec<TcpStream>, SocketAddr) {
    let (socket, address) = refusing();
    rustix::net::listen(&socket, 0).expect("it listens");
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        waiting.push(stream);
    }
    (socket, waiting, address)
}

impl Balancer {
    /// Its open descriptors.
    pub fn descriptors(&self) -> BTreeSet<u64> {
        let folder = format!("/proc/{}/fd", self.pid().as_raw_nonzero());
        let entries = fs::read_dir(folder).expect("its descriptors").flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Its descriptors once they do not change any more.
    pub fn settled_descriptors(&self) -> BTreeSet<u64> {
        let (mut last, mut same) = (self.descriptors(), 0);
        eventually("its descriptors stay the same", || {
            let found = self.descriptors();
            same = if found == last { same + 1 } else { 0 };
            last = found;
            same == 20
        });
        last
    }

    /// How many descriptors it may have from here on; those that it has it keeps.
    pub fn limit_descriptors(&self, most: Option<u64>) {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: most.or(maximum), maximum };
        prlimit(Some(self.pid()), Resource::Nofile, limit).expect("a limit");
    }

    /// Its memory, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let file = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = fs::read_to_string(file).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// A count of the listener `web` by reason, such as `closes`.
    pub fn count(&self, what: &str, reason: &str) -> f64 {
        self.metric(&format!("pointsman_{what}_total{{listener=\"web\",reason=\"{reason}\"}}"))
    }

    /// One of the listener `web`'s metrics, such as `flows_active`.
    pub fn web(&self, what: &str) -> f64 {
        self.metric(&format!("pointsman_{what}{{listener=\"web\"}}"))
    }

    /// A cluster's decisions by source.
    pub fn decisions(&self, cluster: &str, source: &str) -> f64 {
        let labels = format!("cluster=\"{cluster}\",source=\"{source}\"");
        self.metric(&format!("pointsman_decisions_total{{{labels}}}"))
    }
}
