//! The load whose every request is accounted for: what was asked, by whom, and what came back.
//!
//! Each client is a thread that waits for its answer before it asks again, so a balancer that is slow
//! is asked less, not flooded. Three kinds of them: connections for one request, connections that
//! stay, and flows of datagrams. wrk runs beside, for pressure; it tells no more than sums.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, anyhow, ensure};
use pointsman_benches::processes::{number_before, socket_errors};

use crate::endpoints::{COUNT, Outages};

/// Clients of each kind.
const SHORT: usize = 8;
const LONG: usize = 32;
const FLOWS: usize = 32;

/// Between two requests of a client.
const SHORT_PAUSE: Duration = Duration::from_millis(2);
const LONG_PAUSE: Duration = Duration::from_millis(8);

/// An answer that takes longer is taken for lost. The machine may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long checks may take to find that an endpoint is away: so long after it was, its flows of
/// datagrams may move.
const DETECTION: Duration = Duration::from_secs(5);

/// Failures that one client keeps; more tell nothing new.
const FAILURES_MAX: usize = 1_000;

/// A window of wrk. One follows another for as long as the load lasts.
const WRK: [&str; 4] = ["--threads=1", "--connections=32", "--timeout=10s", "--duration=2s"];

/// What a client does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Short,
    Long,
    Datagram,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Short, Self::Long, Self::Datagram];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Short => "connections of one request",
            Self::Long => "requests of long connections",
            Self::Datagram => "datagrams of flows",
        }
    }
}

/// How a request failed, as its client saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// The balancer did not take the connection.
    Refused,
    /// The connection ended before the answer did.
    Broken,
    /// There was no answer in time.
    Late,
    /// The answer is not one to this request.
    Garbled,
    /// Another endpoint than before has answered, and that one was there.
    Moved,
    /// It came new to an endpoint that was to get nothing new.
    Unwanted,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) why: Why,
    /// The client's own address, if it got as far as having one.
    pub(crate) client: Option<SocketAddr>,
    /// Who had answered it before.
    pub(crate) home: Option<usize>,
    /// The last time at which all was well with it.
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// When it ended, by the clock that logs are kept by.
    pub(crate) at: SystemTime,
}

/// What came of clients of one kind.
#[derive(Clone, Copy, Default)]
pub(crate) struct Served {
    pub(crate) count: u64,
    pub(crate) slowest: Duration,
}

/// What came of a load.
#[derive(Default)]
pub(crate) struct Tally {
    served: [Served; Kind::ALL.len()],
    pub(crate) failures: Vec<Failure>,
    pub(crate) wrk: Option<Wrk>,
}

/// What wrk has told.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wrk {
    pub(crate) requests: f64,
    pub(crate) errors: u64,
}

impl Tally {
    pub(crate) fn served(&self, kind: Kind) -> Served {
        self.served[kind as usize]
    }

    fn note_served(&mut self, kind: Kind, asked: Instant) {
        let served = &mut self.served[kind as usize];
        served.count += 1;
        served.slowest = served.slowest.max(asked.elapsed());
    }

    fn add(&mut self, other: Self) {
        for (sum, served) in self.served.iter_mut().zip(other.served) {
            sum.count += served.count;
            sum.slowest = sum.slowest.max(served.slowest);
        }
        self.failures.extend(other.failures);
    }
}

/// What clients and whoever watches them share.
pub(crate) struct Watch {
    stop: AtomicBool,
    answers: [AtomicU64; COUNT],
    /// An endpoint that is to get nothing new, or none of them.
    closed: AtomicUsize,
}

impl Watch {
    /// Short connections that each endpoint has answered so far.
    pub(crate) fn answers(&self) -> [u64; COUNT] {
        std::array::from_fn(|endpoint| self.answers[endpoint].load(Relaxed))
    }

    /// From here on a new connection at this endpoint is a failure; at none of them with `None`.
    pub(crate) fn close(&self, endpoint: Option<usize>) {
        self.closed.store(endpoint.unwrap_or(COUNT), Relaxed);
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Relaxed)
    }
}

/// Where a balancer is to be reached.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) tcp: SocketAddr,
    /// Not every balancer speaks it.
    pub(crate) udp: Option<SocketAddr>,
}

/// Clients at work.
pub(crate) struct Load {
    pub(crate) watch: Arc<Watch>,
    clients: Vec<JoinHandle<Tally>>,
    wrk: Option<JoinHandle<Result<Wrk>>>,
}

impl Load {
    pub(crate) fn start(target: Target, outages: &Outages, with_wrk: bool) -> Self {
        let watch = Arc::new(Watch {
            stop: AtomicBool::new(false),
            answers: Default::default(),
            closed: AtomicUsize::new(COUNT),
        });
        let short = (0..SHORT).map(|_| (Kind::Short, target.tcp));
        let long = (0..LONG).map(|_| (Kind::Long, target.tcp));
        let flows = target.udp.into_iter().flat_map(|udp| [(Kind::Datagram, udp); FLOWS]);
        let clients = short.chain(long).chain(flows).map(|(kind, balancer)| {
            let (watch, outages, tally) = (Arc::clone(&watch), outages.clone(), Tally::default());
            let client = Client { kind, balancer, watch, outages, tally, number: 0 };
            thread::spawn(|| client.run())
        });
        let clients = clients.collect();
        let beside = Arc::clone(&watch);
        let wrk = with_wrk.then(|| thread::spawn(move || run_wrk(target.tcp, &beside)));
        Self { watch, clients, wrk }
    }

    /// Lets every client have its last answer, and tells what came of all.
    pub(crate) fn finish(mut self) -> Result<Tally> {
        self.watch.stop.store(true, Relaxed);
        let mut all = Tally::default();
        for client in self.clients.drain(..) {
            all.add(client.join().map_err(|_| anyhow!("a client panicked"))?);
        }
        if let Some(wrk) = self.wrk.take() {
            all.wrk = Some(wrk.join().map_err(|_| anyhow!("whoever runs wrk panicked"))??);
        }
        Ok(all)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.watch.stop.store(true, Relaxed);
    }
}

/// Opens more flows of datagrams at a time than a load does, so that whatever a balancer keeps for them
/// is there before it is measured.
pub(crate) fn warm(balancer: SocketAddr) -> Result<()> {
    let mut flows = Vec::new();
    for _ in 0..8 * FLOWS {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&[0; 8], balancer)?;
        flows.push(socket);
    }
    // Who gets no answer is missed later, if it was the balancer's fault.
    flows.iter().for_each(|socket| drop(socket.recv(&mut [0; 64])));
    Ok(())
}

fn run_wrk(balancer: SocketAddr, watch: &Watch) -> Result<Wrk> {
    let mut sum = Wrk::default();
    while watch.goes_on() {
        let output = Command::new("wrk").args(WRK).arg(format!("http://{balancer}/")).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "wrk failed: {text}");
        sum.requests += number_before(&text, " requests in ").unwrap_or_default();
        sum.errors += socket_errors(&text);
    }
    Ok(sum)
}

/// One client, and what came of it.
struct Client {
    kind: Kind,
    balancer: SocketAddr,
    watch: Arc<Watch>,
    outages: Outages,
    tally: Tally,
    number: u64,
}

impl Client {
    fn run(mut self) -> Tally {
        while self.watch.goes_on() {
            match self.kind {
                Kind::Short => self.ask_once(),
                Kind::Long => self.stay(),
                Kind::Datagram => self.flow(),
            }
        }
        self.tally
    }

    fn fail(
        &mut self,
        why: Why,
        began: Instant,
        (client, home): (Option<SocketAddr>, Option<usize>),
    ) {
        let (kind, ended, at) = (self.kind, Instant::now(), SystemTime::now());
        if self.tally.failures.len() < FAILURES_MAX {
            self.tally.failures.push(Failure { kind, why, client, home, began, ended, at });
        }
    }

    fn connect(&mut self) -> Option<TcpStream> {
        let begun = Instant::now();
        let connected = TcpStream::connect_timeout(&self.balancer, PATIENCE).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        if let Err(error) = &connected {
            self.fail(why_of(error), begun, (None, None));
            sleep(SHORT_PAUSE);
        }
        connected.ok()
    }

    /// A connection for one request.
    fn ask_once(&mut self) {
        let begun = Instant::now();
        let closed = self.watch.closed.load(Relaxed);
        let Some(mut stream) = self.connect() else { return };
        let client = stream.local_addr().ok();
        match self.exchange(&mut stream, "Connection: close\r\n") {
            Ok(endpoint) if endpoint == closed && closed == self.watch.closed.load(Relaxed) => {
                self.fail(Why::Unwanted, begun, (client, Some(endpoint)));
            }
            Ok(endpoint) => {
                self.watch.answers[endpoint].fetch_add(1, Relaxed);
                self.tally.note_served(self.kind, begun);
            }
            Err(why) => self.fail(why, begun, (client, None)),
        }
        sleep(SHORT_PAUSE);
    }

    /// A connection that goes on until it breaks, or the load ends.
    fn stay(&mut self) {
        let Some(mut stream) = self.connect() else { return };
        let (client, mut home, mut well) = (stream.local_addr().ok(), None, Instant::now());
        while self.watch.goes_on() {
            let asked = Instant::now();
            match self.exchange(&mut stream, "") {
                Ok(endpoint) if home.is_none_or(|home| home == endpoint) => {
                    self.tally.note_served(self.kind, asked);
                    (home, well) = (Some(endpoint), Instant::now());
                }
                Ok(_) => return self.fail(Why::Moved, well, (client, home)),
                Err(why) => return self.fail(why, well, (client, home)),
            }
            sleep(LONG_PAUSE);
        }
    }

    /// One request and its answer; tells who gave it.
    fn exchange(&mut self, stream: &mut TcpStream, header: &str) -> Result<usize, Why> {
        self.number += 1;
        let path = format!("/{}", self.number);
        let request = format!("GET {path} HTTP/1.1\r\nHost: soak\r\n{header}\r\n");
        let sent = stream.write_all(request.as_bytes());
        let body = sent.and_then(|()| read_body(stream)).map_err(|error| why_of(&error))?;
        let number = body.strip_suffix(&path).and_then(|number| number.parse().ok());
        number.filter(|number| *number < COUNT).ok_or(Why::Garbled)
    }

    /// A flow of datagrams that goes on until the load ends.
    fn flow(&mut self) {
        let opened = UdpSocket::bind("127.0.0.1:0").and_then(|socket| {
            socket.connect(self.balancer)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        });
        let Ok(socket) = opened else { return sleep(LONG_PAUSE) };
        let (client, mut home, mut well) = (socket.local_addr().ok(), None, Instant::now());
        while self.watch.goes_on() {
            let asked = Instant::now();
            match self.echo(&socket) {
                Ok(endpoint) => {
                    let moved = home.filter(|home| *home != endpoint);
                    if moved.is_some_and(|home| !self.may_leave(home, well)) {
                        self.fail(Why::Moved, well, (client, home));
                    }
                    self.tally.note_served(self.kind, asked);
                    (home, well) = (Some(endpoint), Instant::now());
                }
                Err(why) => self.fail(why, well, (client, home)),
            }
            sleep(LONG_PAUSE);
        }
    }

    /// Whether an endpoint was away since it last answered, or so shortly before that checks found it
    /// later: then a flow of datagrams may move.
    fn may_leave(&self, home: usize, well: Instant) -> bool {
        let from = well.checked_sub(DETECTION).unwrap_or(well);
        self.outages.touch(home, from, Instant::now())
    }

    /// One datagram and its answer; tells who gave it.
    fn echo(&mut self, socket: &UdpSocket) -> Result<usize, Why> {
        self.number += 1;
        let number = self.number.to_le_bytes();
        let deadline = Instant::now() + PATIENCE;
        socket.send(&number).map_err(|error| why_of(&error))?;
        let mut answer = [0; 64];
        while Instant::now() < deadline {
            let length = socket.recv(&mut answer).map_err(|error| why_of(&error))?;
            // What is late is no answer to this one.
            if answer[1..length.max(1)] == number {
                let endpoint = usize::from(answer[0]);
                return if endpoint < COUNT { Ok(endpoint) } else { Err(Why::Garbled) };
            }
        }
        Err(Why::Late)
    }
}

fn why_of(error: &Error) -> Why {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Why::Late,
        ErrorKind::ConnectionRefused => Why::Refused,
        ErrorKind::InvalidData => Why::Garbled,
        _ => Why::Broken,
    }
}

/// Reads an answer to its end; gives back what follows its head.
fn read_body(stream: &mut impl Read) -> std::io::Result<String> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 512]);
    loop {
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&chunk[..length]);
        let text = std::str::from_utf8(&bytes).map_err(|_| ErrorKind::InvalidData)?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let expected = head.rsplit_once("Content-Length: ").and_then(|(_, it)| it.parse().ok());
        let expected: usize = expected.ok_or(ErrorKind::InvalidData)?;
        if body.len() >= expected {
            return Ok(body.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_ends_too_early_is_none() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n2/17";
        assert_eq!(read_body(&mut &whole[..]).unwrap(), "2/17");
        for end in 0..whole.len() {
            let error = read_body(&mut &whole[..end]).unwrap_err();
            assert_eq!(why_of(&error), Why::Broken, "after {end} bytes");
        }
        let error = read_body(&mut &b"nonsense\r\n\r\n"[..]).unwrap_err();
        assert_eq!(why_of(&error), Why::Garbled);
    }
}
