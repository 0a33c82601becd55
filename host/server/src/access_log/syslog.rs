//! The log of the system, or of another machine: each line is a datagram, as RFC 5424 has it.
//!
//! Datagrams are sent without waiting. A daemon that is away or too slow costs lines, which are
//! counted, and it is looked for again with the next ones.

use std::io;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;

use crate::plan::SyslogAddress;

use super::line::timestamp;

/// Facility `local0`, severity `informational`.
const PRIORITY: u32 = 16 * 8 + 6;

/// A way to a daemon.
#[derive(Debug)]
pub(super) struct Syslog {
    address: SyslogAddress,
    socket: Option<Socket>,
    /// What stands between the time and the line.
    origin: String,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixDatagram),
    Udp(UdpSocket),
}

impl Syslog {
    pub(super) fn new(address: SyslogAddress) -> Self {
        let system = rustix::system::uname();
        let host: String = system.nodename().to_string_lossy().split_whitespace().collect();
        let host = if host.is_empty() { "-" } else { &host };
        let origin = format!("{host} pointsman {} flow -", std::process::id());
        Self { address, socket: None, origin }
    }

    /// Sends a line.
    pub(super) fn send(&mut self, unix_ms: u64, line: &[u8]) -> io::Result<()> {
        let head = format!("<{PRIORITY}>1 {} {} ", timestamp(unix_ms), self.origin);
        let datagram = [head.as_bytes(), line].concat();
        let had_one = self.socket.is_some();
        let sent = self.try_send(&datagram);
        match sent {
            // It may have started anew since the last line, with another socket.
            Err(error) if had_one && error.kind() != io::ErrorKind::WouldBlock => {
                self.socket = None;
                self.try_send(&datagram)
            }
            sent => sent,
        }
    }

    fn try_send(&mut self, datagram: &[u8]) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::connect(&self.address)?,
        };
        let sent = match &socket {
            Socket::Unix(unix) => unix.send(datagram),
            Socket::Udp(udp) => udp.send(datagram),
        };
        self.socket = Some(socket);
        sent.map(drop)
    }

    /// Forgets the way, to look for it again.
    pub(super) fn reopen(&mut self) {
        self.socket = None;
    }
}

impl Socket {
    fn connect(address: &SyslogAddress) -> io::Result<Self> {
        match address {
            SyslogAddress::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Unix(socket))
            }
            SyslogAddress::Udp(address) => {
                let any: std::net::IpAddr = match address.is_ipv4() {
                    true => std::net::Ipv4Addr::UNSPECIFIED.into(),
                    false => std::net::Ipv6Addr::UNSPECIFIED.into(),
                };
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(address)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Udp(socket))
            }
        }
    }
}
