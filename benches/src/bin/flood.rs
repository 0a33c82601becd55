//! A flood of senders that come once, and what becomes of a flow that is there meanwhile.
//!
//! The strangers are addresses of 127.0.0.0/8, one datagram each, which the endpoint does not answer.
//! One client keeps asking, which the endpoint answers: a datagram of it that gets no answer was lost
//! in the flood. Start a balancer with an endpoint at
//! `--endpoint`, and perhaps others that are silent, then:
//! `cargo run --release -p pointsman-benches --bin flood -- --to 127.0.0.1:5300 --endpoint 127.0.0.1:5301`

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};

#[derive(Parser)]
struct Arguments {
    /// Where the balancer listens: on loopback, and nowhere else.
    #[arg(long)]
    to: SocketAddrV4,

    /// Where it expects its endpoint.
    #[arg(long)]
    endpoint: SocketAddr,

    /// New sources a second, one rate after another.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "20000,40000,60000,80000,100000,150000,200000"
    )]
    rates: Vec<u32>,

    /// Seconds of each rate.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

/// The client asks so often.
const INTERVAL: Duration = Duration::from_millis(1);
/// An answer that takes longer is taken for lost.
const PATIENCE: Duration = Duration::from_millis(500);
/// Sockets that the strangers share; each stands for as many addresses as there are.
const SOCKETS: usize = 8;
/// What distinguishes the client's datagrams from the strangers'.
const CLIENT_BYTES: usize = 16;
const STRANGER_BYTES: usize = 64;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.to.ip().is_loopback(), "a flood stays on loopback");
    let mut scene = Scene::new(&arguments)?;
    for rate in &arguments.rates {
        let outcome = scene.run(*rate, Duration::from_secs(arguments.seconds))?;
        outcome.print(*rate);
        // What is queued still is not the next rate's.
        sleep(Duration::from_secs(1));
    }
    Ok(())
}

struct Scene {
    to: SocketAddrV4,
    strangers: Vec<UdpSocket>,
    client: UdpSocket,
    endpoint: UdpSocket,
    /// Strangers so far.
    number: u32,
}

#[derive(Default)]
struct Outcome {
    strangers: u64,
    asked: usize,
    answers: Vec<Duration>,
}

impl Scene {
    fn new(arguments: &Arguments) -> Result<Self> {
        let bind = |address: SocketAddr| -> Result<UdpSocket> {
            let socket = UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let strangers = (0..SOCKETS).map(|_| bind(anywhere)).collect::<Result<_>>()?;
        let client = || -> Result<UdpSocket> {
            let client = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            client.connect(arguments.to)?;
            Ok(client)
        };
        let (to, endpoint) = (arguments.to, bind(arguments.endpoint)?);
        let mut scene = Self { to, strangers, client: client()?, endpoint, number: 0 };
        // Others may be given other endpoints, which do not answer.
        for _ in 0..64 {
            if scene.is_answered() {
                return Ok(scene);
            }
            scene.client = client()?;
        }
        bail!("no client is answered: is the endpoint of {to} at {}?", arguments.endpoint)
    }

    /// Whether the client's flow goes to our endpoint: from then on it is confirmed.
    fn is_answered(&self) -> bool {
        let (mut outcome, begun) = (Outcome::default(), Instant::now());
        self.ask(begun, &mut outcome);
        while outcome.answers.is_empty() && begun.elapsed() < PATIENCE {
            self.answer_client();
            self.take_answers(begun, &mut outcome);
        }
        !outcome.answers.is_empty()
    }

    fn run(&mut self, rate: u32, duration: Duration) -> Result<Outcome> {
        let (mut outcome, begun) = (Outcome::default(), Instant::now());
        while begun.elapsed() < duration + PATIENCE {
            let lived = begun.elapsed();
            let floods = lived < duration;
            let due = (lived.as_secs_f64() * f64::from(rate)) as u64;
            // No more than a burst: what the machine held up is not made up for.
            for _ in 0..due.saturating_sub(outcome.strangers).min(64 * u64::from(floods)) {
                self.send_stranger()?;
                outcome.strangers += 1;
            }
            if floods && lived > INTERVAL * outcome.asked as u32 {
                self.ask(begun, &mut outcome);
            }
            self.answer_client();
            self.take_answers(begun, &mut outcome);
        }
        Ok(outcome)
    }

    fn send_stranger(&mut self) -> Result<()> {
        self.number = self.number.wrapping_add(1);
        let socket = &self.strangers[self.number as usize % SOCKETS];
        let source = Ipv4Addr::from_bits((127 << 24) + (1 << 16) + self.number % 0x00f0_0000);
        let info = nix::libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: nix::libc::in_addr { s_addr: source.to_bits().to_be() },
            ipi_addr: nix::libc::in_addr { s_addr: 0 },
        };
        let (control, bytes) = ([ControlMessage::Ipv4PacketInfo(&info)], [0; STRANGER_BYTES]);
        let to = SockaddrIn::from(self.to);
        let payload = [IoSlice::new(&bytes)];
        match sendmsg(socket.as_raw_fd(), &payload, &control, MsgFlags::MSG_DONTWAIT, Some(&to)) {
            Ok(_) | Err(Errno::EAGAIN | Errno::ECONNREFUSED | Errno::ENOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks, with the time in it.
    fn ask(&self, begun: Instant, outcome: &mut Outcome) {
        outcome.asked += 1;
        let mut bytes = [0; CLIENT_BYTES];
        bytes[..8].copy_from_slice(&(begun.elapsed().as_nanos() as u64).to_le_bytes());
        let _ = self.client.send(&bytes);
    }

    fn answer_client(&self) {
        let mut bytes = [0; 128];
        while let Ok((len, peer)) = self.endpoint.recv_from(&mut bytes) {
            if len == CLIENT_BYTES {
                let _ = self.endpoint.send_to(&bytes[..len], peer);
            }
        }
    }

    fn take_answers(&self, begun: Instant, outcome: &mut Outcome) {
        let mut bytes = [0; CLIENT_BYTES];
        while self.client.recv(&mut bytes).is_ok() {
            let asked = bytes.first_chunk().map_or(0, |time| u64::from_le_bytes(*time));
            let taken = begun.elapsed().checked_sub(Duration::from_nanos(asked));
            outcome.answers.extend(taken.filter(|taken| *taken < PATIENCE));
        }
    }
}

impl Outcome {
    fn print(mut self, rate: u32) {
        self.answers.sort();
        let lost = self.asked.saturating_sub(self.answers.len());
        let part = |part: usize| self.answers.get(self.answers.len() * part / 100).copied();
        println!(
            "{rate:>8} strangers a second: {} sent; the client lost {lost} of {}, median {:?}, p99 {:?}",
            self.strangers,
            self.asked,
            part(50).unwrap_or_default(),
            part(99).unwrap_or_default(),
        );
    }
}
