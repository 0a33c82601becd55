//! A balancer as a process: its start, its end, and what it takes in between.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pointsman_benches::processes::memory_bytes;

use crate::plans::Plan;

/// The core that every balancer is pinned to.
const CORE: &str = "0";

/// A balancer that is running.
pub(crate) struct Proxy {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    process: Child,
}

impl Proxy {
    /// Starts a balancer, and waits until it accepts connections.
    pub(crate) fn start_tcp(plan: &Plan) -> Result<Self> {
        Self::start_udp(plan)?.accepting()
    }

    /// Waits until it accepts connections.
    fn accepting(self) -> Result<Self> {
        for _ in 0..200 {
            if TcpStream::connect(self.address).is_ok() {
                return Ok(self);
            }
            sleep(Duration::from_millis(50));
        }
        bail!("{} does not accept connections at {}", self.name, self.address)
    }

    /// Starts a balancer that accepts connections and may use every core.
    pub(crate) fn start_unpinned(plan: &Plan) -> Result<Self> {
        Self::spawn(plan, Command::new(&plan.command[0]).args(&plan.command[1..]))?.accepting()
    }

    /// Starts a balancer. Only an answer tells that one for datagrams is ready.
    pub(crate) fn start_udp(plan: &Plan) -> Result<Self> {
        let mut command = Command::new("taskset");
        Self::spawn(plan, command.args(["-c", CORE]).args(&plan.command))
    }

    fn spawn(plan: &Plan, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::inherit());
        let name = plan.name;
        let process = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, address: plan.address, process })
    }

    /// CPU time of all threads of the balancer and of its children, from the scheduler's own books.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let mut nanos = 0;
        for process in self.processes()? {
            for task in fs::read_dir(format!("/proc/{process}/task"))? {
                let books = fs::read_to_string(task?.path().join("schedstat"))?;
                let on_cpu = books.split_whitespace().next().context("an empty schedstat")?;
                nanos += on_cpu.parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Memory that is the balancer's own: resident and not shared.
    pub(crate) fn memory_bytes(&self) -> Result<u64> {
        self.processes()?.into_iter().map(memory_bytes).sum()
    }

    fn processes(&self) -> Result<Vec<u32>> {
        let root = self.process.id();
        let children = fs::read_to_string(format!("/proc/{root}/task/{root}/children"))?;
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        Ok(std::iter::once(root).chain(children).collect())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let processes = self.processes().unwrap_or_default();
        for process in processes.iter().skip(1) {
            let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
