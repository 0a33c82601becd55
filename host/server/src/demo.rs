//! Shows a balancer at work, on this machine alone.
//!
//! Three small endpoints live in this process, one of them slower than the others. The balancer is
//! a process of its own, this same program, with one listener per policy. Real clients connect from
//! many loopback addresses, and what they and the balancer saw becomes a table.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::client;
use crate::failure::Failure;
use crate::status::Status;

mod endpoints;
mod report;
mod traffic;

use endpoints::Endpoint;
use traffic::Outcome;

/// The policies that are shown, each a plugin and a listener of that name.
const POLICIES: [&str; 2] = ["p2c", "client-affinity"];
/// How long the endpoints take to answer.
const WORK_MILLIS: [u64; 3] = [2, 2, 8];
/// How long the balancer may take to start: a build without optimisations compiles plugins slowly.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs the demo, and with `keep` leaves everything running until a signal.
///
/// # Errors
/// Something cannot be started, or a flow failed.
pub fn run(folders: &[PathBuf], keep: bool) -> Result<ExitCode, Failure> {
    let endpoints = WORK_MILLIS
        .into_iter()
        .map(|millis| Endpoint::start(Duration::from_millis(millis)))
        .collect::<std::io::Result<Vec<_>>>()
        .context("cannot start the endpoints")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut balancer = Balancer::start(&endpoints, folders)?;
    report::introduce(&endpoints);
    let mut failed = 0;
    for policy in POLICIES {
        let address = balancer.address(policy)?;
        let outcome = runtime.block_on(traffic::drive(address));
        report::show(policy, &endpoints, &outcome, &balancer.status()?)?;
        failed += outcome.failed;
    }
    if keep {
        report::invite(&balancer.status()?, &balancer.socket());
        runtime.block_on(traffic::await_signal())?;
    }
    balancer.end()?;
    if failed > 0 {
        return Err(anyhow!("{failed} flow(s) failed; see the lines above").into());
    }
    Ok(ExitCode::SUCCESS)
}

/// The balancer's process, and the folder it lives in.
struct Balancer {
    process: Child,
    folder: PathBuf,
}

impl Balancer {
    fn start(endpoints: &[Endpoint], folders: &[PathBuf]) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("pointsman-demo-{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let config = folder.join("pointsman.toml");
        fs::write(&config, configuration(&folder, endpoints))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg("--config").arg(&config).stdin(Stdio::null());
        for folder in folders {
            command.arg("--plugins").arg(folder);
        }
        // An interrupt from the terminal is this process's to hand on, once.
        command.env("POINTSMAN_LOG", "error").process_group(0);
        let process = command.spawn().context("cannot start the balancer")?;
        let mut balancer = Self { process, folder };
        balancer.await_ready()?;
        Ok(balancer)
    }

    fn await_ready(&mut self) -> anyhow::Result<()> {
        let give_up = Instant::now() + START_TIMEOUT;
        while client::get(&self.socket(), "/readyz").is_err() {
            if let Some(status) = self.process.try_wait()? {
                bail!("the balancer ended at once ({status}); see the lines above");
            }
            if Instant::now() > give_up {
                bail!("the balancer does not become ready");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    fn status(&self) -> anyhow::Result<Status> {
        Ok(serde_json::from_str(&client::get(&self.socket(), "/v1/status")?)?)
    }

    fn address(&self, listener: &str) -> anyhow::Result<SocketAddr> {
        let status = self.status()?;
        let found = status.listeners.iter().find(|found| found.name == listener);
        Ok(found.context("the balancer lacks a listener")?.address.parse()?)
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.signal();
        let status = self.process.wait()?;
        if !status.success() {
            bail!("the balancer ended with {status}");
        }
        Ok(())
    }

    fn signal(&self) {
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn configuration(folder: &Path, endpoints: &[Endpoint]) -> String {
    let addresses =
        endpoints.iter().map(|endpoint| format!("{{ address = \"{}\" }}", endpoint.address));
    let endpoints = addresses.collect::<Vec<_>>().join(", ");
    // All flows come at once, and what is shown is who decides on them.
    let mut text = format!(
        "drain_timeout_ms = 2000\nplugin_cpu_percent = 100\n[admin]\nsocket = {:?}\n",
        folder.join("admin.sock").display().to_string()
    );
    for policy in POLICIES {
        text.push_str(&format!(
            "[[listeners]]\nname = \"{policy}\"\naddress = \"127.0.0.1:0\"\n\
             cluster = \"{policy}\"\nmax_flows = 2000\n\
             [[clusters]]\nname = \"{policy}\"\npolicy = \"{policy}\"\nendpoints = [{endpoints}]\n\
             health = {{ kind = \"tcp\" }}\n\
             [[policies]]\nname = \"{policy}\"\nplugin = \"{policy}.wasm\"\n"
        ));
    }
    text
}
