//! What one check does: connect, and what the cluster's kind of check does then.
//!
//! Every kind has the same time for all of its steps, and every way to fail is a line that says what
//! was seen, for whoever wonders why an endpoint is down.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use pointsman_core::proxy::{Header, Version};
use pointsman_ring::has_source_for;
use rustix::io::Errno;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// How much of an answer's body is looked at.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// The largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Where an endpoint is checked, and by which header it is told that nobody's client connects.
pub type Place = (SocketAddr, Option<Version>);

/// What a check does.
#[derive(Debug, Clone)]
pub enum Check {
    /// Connects.
    Tcp,
    /// Asks for a page.
    Http(HttpCheck),
    /// Sends a datagram.
    Udp(UdpCheck),
    /// Connects and shakes hands.
    Tls(TlsCheck),
}

/// A request, and what a good answer is.
#[derive(Debug, Clone)]
pub struct HttpCheck {
    /// Its method.
    pub method: Method,
    /// Its path, with a query if there is one.
    pub path: Uri,
    /// Its `Host`; the endpoint's address if there is none.
    pub host: Option<String>,
    /// Codes that are good.
    pub status: Vec<StatusRange>,
    /// What must be found in the first [`BODY_BYTES_MAX`] bytes of the body.
    pub body: Option<String>,
}

/// Codes from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The lowest.
    pub low: u16,
    /// The highest.
    pub high: u16,
}

impl StatusRange {
    /// Reads `200` or `200-299`.
    pub fn parse(text: &str) -> Option<Self> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let code = |text: &str| text.trim().parse().ok().filter(|code| (100..=599).contains(code));
        let (low, high) = (code(low)?, code(high)?);
        (low <= high).then_some(Self { low, high })
    }

    const fn holds(self, code: u16) -> bool {
        self.low <= code && code <= self.high
    }
}

/// A datagram, and what the answer must contain.
#[derive(Debug, Clone)]
pub struct UdpCheck {
    /// What is sent.
    pub send: Vec<u8>,
    /// What must be found in the answer; any answer will do if it is empty.
    pub expect: Vec<u8>,
}

/// A handshake.
#[derive(Clone)]
pub struct TlsCheck {
    /// Who is asked for; nobody by name if there is none.
    pub server_name: Option<ServerName<'static>>,
    /// What is offered.
    pub config: Arc<tokio_rustls::rustls::ClientConfig>,
}

impl fmt::Debug for TlsCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsCheck").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Why an endpoint did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It did not answer in time.
    #[error("no answer in time")]
    Late,
    /// The system says why it could not be reached.
    #[error("{0}")]
    Unreachable(#[from] io::Error),
    /// It does not speak HTTP.
    #[error("no HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// It answered with another code.
    #[error("status {0}")]
    Status(u16),
    /// The body is not what it should be.
    #[error("the body does not contain what is expected")]
    Body,
    /// The datagram that came back is not what it should be.
    #[error("the answer does not contain what is expected")]
    Answer,
}

impl Failed {
    /// Whether it says nothing of the endpoint at this address: this process has no descriptor for it,
    /// or the system no port or memory. These pass. That no address of ours leads there does not, and
    /// an endpoint that cannot be reached from here cannot serve.
    pub fn is_ours(&self, address: &SocketAddr) -> bool {
        let Self::Unreachable(error) = self else { return false };
        let wants = [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            // A datagram's socket finds no port.
            Errno::AGAIN,
            Errno::ADDRINUSE,
        ];
        match Errno::from_io_error(error) {
            Some(Errno::ADDRNOTAVAIL) => has_source_for(address),
            Some(errno) => wants.contains(&errno),
            None => false,
        }
    }
}

impl Check {
    /// Checks an endpoint once.
    ///
    /// # Errors
    /// It did not pass.
    pub async fn run(&self, place: Place, limit: Duration) -> Result<(), Failed> {
        let checked = async {
            match self {
                Self::Tcp => connect(place).await.map(drop).map_err(Failed::from),
                Self::Http(check) => check.run(place).await,
                Self::Udp(check) => check.run(place.0).await,
                Self::Tls(check) => check.run(place).await,
            }
        };
        timeout(limit, checked).await.unwrap_or(Err(Failed::Late))
    }
}

/// Connects, and says that the connection is nobody's but ours if a header must come first.
async fn connect((address, proxy): Place) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    if let Some(version) = proxy {
        stream.write_all(Header::of_our_own(version).as_bytes()).await?;
    }
    Ok(stream)
}

impl HttpCheck {
    async fn run(&self, place: Place) -> Result<(), Failed> {
        let address = place.0;
        let stream = TokioIo::new(connect(place).await?);
        let (mut sender, connection) = http1::handshake(stream).await?;
        // The connection ends with its sender, or tells the sender that it has ended.
        let asked = async move {
            let answer = sender.send_request(self.request(address)).await?;
            let code = answer.status().as_u16();
            if !self.status.iter().any(|range| range.holds(code)) {
                return Err(Failed::Status(code));
            }
            let Some(wanted) = &self.body else { return Ok(()) };
            let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
            let body = body.map_err(|_| Failed::Body)?.to_bytes();
            if contains(&body, wanted.as_bytes()) { Ok(()) } else { Err(Failed::Body) }
        };
        let (asked, _) = tokio::join!(asked, connection);
        asked
    }

    fn request(&self, address: SocketAddr) -> Request<Empty<Bytes>> {
        let host = self.host.clone().unwrap_or_else(|| address.to_string());
        let request = Request::builder().method(self.method.clone()).uri(self.path.clone());
        let request = request.header(HOST, host).header(CONNECTION, "close");
        let request = request.header(USER_AGENT, concat!("pointsman/", env!("CARGO_PKG_VERSION")));
        // Each part was looked at when the configuration was read.
        request.body(Empty::new()).unwrap_or_default()
    }
}

impl UdpCheck {
    async fn run(&self, address: SocketAddr) -> Result<(), Failed> {
        let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(local).await?;
        // Only the endpoint's own answers arrive, and so do the errors of the way there.
        socket.connect(address).await?;
        socket.send(&self.send).await?;
        let mut answer = vec![0; DATAGRAM_BYTES_MAX];
        let length = socket.recv(&mut answer).await?;
        if contains(&answer[..length], &self.expect) { Ok(()) } else { Err(Failed::Answer) }
    }
}

impl TlsCheck {
    async fn run(&self, place: Place) -> Result<(), Failed> {
        let stream = connect(place).await?;
        let name = self.server_name.clone().unwrap_or_else(|| place.0.ip().into());
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(name, stream).await.map(drop).map_err(Failed::from)
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests;
