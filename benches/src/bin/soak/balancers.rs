//! The balancers under load: ours as a careful operator would configure it, and HAProxy as much the
//! same as its configuration allows.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pointsman_benches::processes::{ask, memory_bytes, pointsman, run_pointsman};
use serde_json::Value;

use crate::endpoints::{COUNT, free_port};
use crate::interrupt::pause;
use crate::load::Target;

/// After this long without a datagram a flow is over.
pub(crate) const FLOW_IDLE: Duration = Duration::from_secs(5);

/// How long a balancer may take to start.
const START_TRIES: u32 = 200;

/// A balancer that runs, with whoever takes over from it.
pub(crate) struct Balancer {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    config: PathBuf,
    first: Child,
}

impl Balancer {
    fn start(
        name: &'static str,
        (config, command): (&Path, &[String]),
        target: Target,
    ) -> Result<Self> {
        let log = File::create(config.with_extension("log"))?;
        let mut process = Command::new(&command[0]);
        process.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let first = process.spawn().with_context(|| format!("cannot start {name}"))?;
        let balancer = Self { name, target, config: config.to_owned(), first };
        for _ in 0..START_TRIES {
            if TcpStream::connect(target.tcp).is_ok() {
                return Ok(balancer);
            }
            pause(Duration::from_millis(50))?;
        }
        bail!("{name} does not accept connections: {}", balancer.log())
    }

    /// The processes that run with its configuration.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let config = self.config.display().to_string();
        let has_config = |process: &u32| {
            let words = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
            words.split('\0').any(|word| word == config)
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.filter(has_config).collect()
    }

    /// The end of what it has written to standard error.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.config.with_extension("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Takes back the first process when it has ended.
    pub(crate) fn reap(&mut self) {
        let _ = self.first.try_wait();
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // One that is starting has perhaps not got its configuration yet: look until there is none.
        for _ in 0..10 {
            let processes = self.processes();
            if processes.is_empty() {
                break;
            }
            for process in processes {
                let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
            }
            self.reap();
        }
        let _ = self.first.kill();
        let _ = self.first.wait();
    }
}

/// What a process holds.
#[derive(Clone, Copy)]
pub(crate) struct Gauges {
    pub(crate) memory_bytes: u64,
    pub(crate) descriptors: usize,
}

/// Ours.
pub(crate) struct Pointsman {
    pub(crate) balancer: Balancer,
    /// Who serves.
    pub(crate) process: u32,
    pub(crate) access_log: PathBuf,
    socket: PathBuf,
    config: Config,
}

/// What its file says.
struct Config {
    folder: PathBuf,
    target: [SocketAddr; 2],
    spare: SocketAddr,
    endpoints: [SocketAddr; COUNT],
}

impl Pointsman {
    pub(crate) fn start(folder: &Path, endpoints: [SocketAddr; COUNT]) -> Result<Self> {
        let place = [Ipv4Addr::LOCALHOST];
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let port = free_port(&place, 0)?;
        let config = Config {
            folder: folder.to_owned(),
            target: [address(port); 2],
            spare: address(free_port(&place, port)?),
            endpoints,
        };
        let target = Target { tcp: config.target[0], udp: Some(config.target[1]) };
        let file = config.write(false)?;
        let command = run_pointsman(&file)?;
        let balancer = Balancer::start("pointsman", (&file, &command), target)?;
        let (access_log, socket) = (config.access_log(), config.socket());
        let process = balancer.first.id();
        Ok(Self { balancer, process, access_log, socket, config })
    }

    /// Changes an endpoint of both clusters, as in `"draining":true`.
    pub(crate) fn change(&self, endpoint: usize, key: &str) -> Result<()> {
        let address = self.config.endpoints[endpoint];
        let body = format!(r#"{{"addresses":["{address}"],{key}}}"#);
        for cluster in ["web", "echo"] {
            let path = format!("/v1/clusters/{cluster}/endpoints");
            let answer = ask(&self.socket, ("PATCH", &path), body.as_bytes())?;
            ensure!(answer.contains(" 200 "), "a change is refused: {answer}");
        }
        Ok(())
    }

    /// Has it read a file that says something else than the one before.
    pub(crate) fn reload(&self, with_spare: bool) -> Result<()> {
        self.config.write(with_spare)?;
        let answer = ask(&self.socket, ("POST", "/v1/reload"), &[])?;
        ensure!(answer.contains(" 200 "), "a reload is refused: {answer}");
        Ok(())
    }

    /// Has another process take over.
    pub(crate) fn upgrade(&mut self) -> Result<()> {
        let mut command = Command::new(pointsman()?);
        command.arg("upgrade").arg("--admin").arg(&self.socket).arg("--json");
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "an upgrade is refused: {text}{}", self.balancer.log());
        let answer: Value = serde_json::from_str(&text)?;
        let process = answer["pid"].as_u64().context("an upgrade tells no pid")?;
        let process = u32::try_from(process)?;
        ensure!(process != self.process, "the same process serves after an upgrade");
        self.process = process;
        self.balancer.reap();
        Ok(())
    }

    pub(crate) fn gauges(&self) -> Result<Gauges> {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.process))?.count();
        Ok(Gauges { memory_bytes: memory_bytes(self.process)?, descriptors })
    }
}

impl Config {
    fn access_log(&self) -> PathBuf {
        self.folder.join("access.log")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    /// Writes the file anew, and whole at any time. With the spare listener other shares come too.
    fn write(&self, with_spare: bool) -> Result<PathBuf> {
        let Self { target: [tcp, udp], endpoints, spare, .. } = self;
        let (socket, log) = (self.socket(), self.access_log());
        let (socket, log) = (socket.display(), log.display());
        let (weight, spare) = match with_spare {
            true => (
                2,
                format!(
                    "[[listeners]]\nname = \"spare\"\naddress = \"{spare}\"\ncluster = \"web\"\n"
                ),
            ),
            false => (1, String::new()),
        };
        let endpoint = |(number, address): (usize, &SocketAddr)| {
            let weight = if number + 1 == COUNT { weight } else { 1 };
            format!("{{ address = \"{address}\", weight = {weight} }}")
        };
        let endpoints: Vec<_> = endpoints.iter().enumerate().map(endpoint).collect();
        let endpoints = endpoints.join(", ");
        let idle_ms = FLOW_IDLE.as_millis();
        let text = format!(
            r#"drain_timeout_ms = 600000
[admin]
socket = "{socket}"
[access_log]
path = "{log}"
[[listeners]]
name = "web"
address = "{tcp}"
cluster = "web"
idle_timeout_ms = 600000
connect_attempts = 4
[[listeners]]
name = "echo"
address = "{udp}"
protocol = "udp"
cluster = "echo"
idle_timeout_ms = {idle_ms}
on_endpoint_down = "reallocate"
{spare}
[[clusters]]
name = "web"
endpoints = [{endpoints}]
health = {{ kind = "tcp", interval_ms = 500, fast_interval_ms = 250, timeout_ms = 1000, rise = 2, fall = 3 }}
passive = {{ consecutive_failures = 5, interval_ms = 1000, base_ejection_ms = 1000, ejection_ms_max = 5000, ejected_percent_max = 50 }}
[[clusters]]
name = "echo"
policy = "p2c"
endpoints = [{endpoints}]
health = {{ kind = "udp", send = "check", interval_ms = 500, fast_interval_ms = 250, timeout_ms = 1000, rise = 2, fall = 3 }}
[[policies]]
name = "p2c"
plugin = "p2c.wasm"
"#
        );
        let (file, draft) = (self.folder.join("pointsman.toml"), self.folder.join("draft"));
        fs::write(&draft, text)?;
        fs::rename(draft, &file)?;
        Ok(file)
    }
}

/// HAProxy with retries and redispatch, and with checks in the same intervals.
pub(crate) fn start_haproxy(folder: &Path, endpoints: [SocketAddr; COUNT]) -> Result<Balancer> {
    let host = Ipv4Addr::LOCALHOST;
    let address = SocketAddr::from((host, free_port(&[host], 0)?));
    let server = |(number, address)| format!("    server e{number} {address}\n");
    let servers: String = endpoints.iter().enumerate().map(server).collect();
    let threads = std::thread::available_parallelism()?;
    let config = folder.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global
    nbthread {threads}
    maxconn 6000
    log /dev/null local0
defaults
    mode tcp
    retries 3
    option redispatch
    timeout connect 5s
    timeout client 600s
    timeout server 600s
frontend soak
    bind {address} backlog 4096
    default_backend soak
backend soak
    balance roundrobin
    timeout check 1s
    default-server check inter 500 fastinter 250 rise 2 fall 3
{servers}"
        ),
    )?;
    let command = ["haproxy", "-db", "-q", "-f"].map(str::to_owned).into_iter();
    let command: Vec<_> = command.chain([config.display().to_string()]).collect();
    Balancer::start("haproxy", (&config, &command), Target { tcp: address, udp: None })
}
