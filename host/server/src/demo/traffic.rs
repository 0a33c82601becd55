//! Clients: many addresses, each with several flows, some dozens at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Client addresses: 127.0.0.2 and up.
pub(super) const CLIENTS: u8 = 120;
/// Flows of each.
pub(super) const FLOWS_PER_CLIENT: usize = 25;
/// Flows at a time.
const CONCURRENCY: usize = 48;
/// How long one flow may take.
const FLOW_TIMEOUT: Duration = Duration::from_secs(30);

/// What the clients saw.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// For each client, the endpoints that answered it.
    pub(super) met: BTreeMap<Ipv4Addr, BTreeSet<SocketAddr>>,
    /// Flows that were answered.
    pub(super) answered: usize,
    /// Flows that were not.
    pub(super) failed: usize,
    /// From the first flow to the last.
    pub(super) took: Duration,
}

impl Outcome {
    /// Clients that met one endpoint only.
    pub(super) fn loyal_clients(&self) -> usize {
        self.met.values().filter(|met| met.len() == 1).count()
    }

    fn note(&mut self, client: Ipv4Addr, answer: io::Result<SocketAddr>) {
        match answer {
            Ok(endpoint) => {
                self.answered += 1;
                self.met.entry(client).or_default().insert(endpoint);
            }
            Err(error) => {
                self.failed += 1;
                tracing::error!(%client, %error, "a flow failed");
            }
        }
    }
}

/// Sends all flows of all clients to the balancer.
pub(super) async fn drive(balancer: SocketAddr) -> Outcome {
    let started = Instant::now();
    let places = Arc::new(Semaphore::new(CONCURRENCY));
    let mut flows = JoinSet::new();
    let mut outcome = Outcome::default();
    for _ in 0..FLOWS_PER_CLIENT {
        for last in 2..2 + CLIENTS {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
            let client = Ipv4Addr::new(127, 0, 0, last);
            flows.spawn(async move {
                let answer = timeout(FLOW_TIMEOUT, flow(client, balancer)).await;
                drop(place);
                (client, answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
            });
        }
    }
    for (client, answer) in flows.join_all().await {
        outcome.note(client, answer);
    }
    outcome.took = started.elapsed();
    outcome
}

/// One request; the answer is the endpoint's address.
async fn flow(client: Ipv4Addr, balancer: SocketAddr) -> io::Result<SocketAddr> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((client, 0)))?;
    let mut stream = socket.connect(balancer).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let who = answer.lines().next_back().and_then(|line| line.parse().ok());
    who.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer names no endpoint"))
}

/// Waits until somebody wants the demo to end.
pub(super) async fn await_signal() -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
