//! The endpoints that are killed and started again, and when each was away.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::endpoint::READY;

/// How many there are.
pub(crate) const COUNT: usize = 4;

/// Ports below those that the kernel gives to clients: an endpoint that is away must find its own free.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A time in which an endpoint was away.
struct Outage {
    endpoint: usize,
    begun: Instant,
    ended: Option<Instant>,
}

/// When endpoints were away, for all who ask whether one could have answered.
#[derive(Clone, Default)]
pub(crate) struct Outages(Arc<Mutex<Vec<Outage>>>);

impl Outages {
    /// Whether an endpoint was away at any time between these.
    pub(crate) fn touch(&self, endpoint: usize, from: Instant, until: Instant) -> bool {
        let outages = self.0.lock().expect("nobody panics with this lock");
        // From the latest, because that is what somebody with a failure asks about.
        outages.iter().rev().any(|outage| {
            let has_ended = outage.ended.is_some_and(|ended| ended < from);
            outage.endpoint == endpoint && outage.begun <= until && !has_ended
        })
    }

    /// Whether any was.
    pub(crate) fn touch_any(&self, from: Instant, until: Instant) -> bool {
        (0..COUNT).any(|endpoint| self.touch(endpoint, from, until))
    }

    pub(crate) fn begin(&self, endpoint: usize) {
        let outage = Outage { endpoint, begun: Instant::now(), ended: None };
        self.0.lock().expect("nobody panics with this lock").push(outage);
    }

    fn end(&self, endpoint: usize) {
        let mut outages = self.0.lock().expect("nobody panics with this lock");
        let last = outages.iter_mut().rev().find(|outage| outage.endpoint == endpoint);
        if let Some(outage) = last {
            outage.ended = Some(Instant::now());
        }
    }
}

/// All endpoints, as processes.
pub(crate) struct Endpoints {
    pub(crate) addresses: [SocketAddr; COUNT],
    pub(crate) outages: Outages,
    processes: [Option<Child>; COUNT],
}

impl Endpoints {
    /// Starts all of them, each on an address of its own and all on one port.
    pub(crate) fn start() -> Result<Self> {
        let hosts: [_; COUNT] = std::array::from_fn(|n| Ipv4Addr::new(127, 0, 1, 1 + n as u8));
        let port = free_port(&hosts, 0)?;
        let addresses = hosts.map(|host| SocketAddr::from((host, port)));
        let processes = [const { None }; COUNT];
        let mut endpoints = Self { addresses, outages: Outages::default(), processes };
        for endpoint in 0..COUNT {
            endpoints.restart(endpoint)?;
        }
        Ok(endpoints)
    }

    /// Ends one as `kill -9` does.
    pub(crate) fn kill(&mut self, endpoint: usize) -> Result<()> {
        self.outages.begin(endpoint);
        let process = self.processes[endpoint].take();
        let mut process = process.context("an endpoint is killed that is not there")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Starts one, and waits until it can be reached.
    pub(crate) fn restart(&mut self, endpoint: usize) -> Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        let address = self.addresses[endpoint].to_string();
        command.args(["endpoint", &endpoint.to_string(), &address]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = self.processes[endpoint].insert(command.spawn()?);
        let output = process.stdout.take().context("an endpoint has no standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.trim() == READY, "endpoint {endpoint} does not start at {address}");
        self.outages.end(endpoint);
        Ok(())
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A port that is free for both protocols on all of these, that the kernel gives to nobody, and that is
/// not the one that is spoken for.
pub(crate) fn free_port(hosts: &[Ipv4Addr], taken: u16) -> Result<u16> {
    // Two runs at a time begin at different places.
    let offset = (std::process::id() as u16 % 97) * 200;
    let ports = PORTS.skip(usize::from(offset)).chain(PORTS);
    let is_free = |host: &Ipv4Addr, port| {
        let tcp = TcpListener::bind((*host, port));
        tcp.is_ok() && UdpSocket::bind((*host, port)).is_ok()
    };
    let mut free =
        ports.filter(|port| *port != taken && hosts.iter().all(|host| is_free(host, *port)));
    free.next().context("no port is free")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_was_away_for_part_of_a_time_was_away_in_it() {
        let outages = Outages::default();
        let before = Instant::now();
        outages.begin(1);
        let during = Instant::now();
        assert!(outages.touch(1, before, during));
        assert!(!outages.touch(0, before, during), "another was away");
        outages.end(1);
        let after = Instant::now() + Duration::from_millis(1);
        assert!(outages.touch(1, during, after));
        assert!(!outages.touch(1, after, after), "it has come back");
        assert!(outages.touch_any(during, after));
    }
}
