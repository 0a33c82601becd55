//! The balancers that are compared, each as a user would configure it for one core.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The core that every balancer is pinned to.
const CORE: &str = "0";

/// A balancer that is running.
pub(crate) struct Proxy {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    process: Child,
}

impl Proxy {
    /// Starts Pointsman, then its peers.
    pub(crate) fn start_all(folder: &Path, endpoint: SocketAddr) -> Result<Vec<Self>> {
        Ok(vec![
            Self::start("pointsman", &pointsman(folder, endpoint)?)?,
            Self::start("nginx", &nginx(folder, endpoint)?)?,
            Self::start("haproxy", &haproxy(folder, endpoint)?)?,
        ])
    }

    fn start(name: &'static str, plan: &Plan) -> Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["-c", CORE]).args(&plan.command).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::inherit());
        let process = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let proxy = Self { name, address: plan.address, process };
        for _ in 0..200 {
            if TcpStream::connect(plan.address).is_ok() {
                return Ok(proxy);
            }
            sleep(Duration::from_millis(50));
        }
        bail!("{name} does not accept connections at {}", plan.address)
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
        let mut kib = 0;
        for process in self.processes()? {
            let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            let of_lines = |name: &str| -> u64 {
                let lines = rollup.lines().filter(|line| line.starts_with(name));
                lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
            };
            kib += of_lines("Private_Clean:") + of_lines("Private_Dirty:");
        }
        Ok(kib * 1024)
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

/// How to start a balancer, and where it will listen.
struct Plan {
    command: Vec<String>,
    address: SocketAddr,
}

fn pointsman(folder: &Path, endpoint: SocketAddr) -> Result<Plan> {
    let address = free_address()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let binary = std::env::current_exe()?.with_file_name("pointsman");
    let config = folder.join("pointsman.toml");
    let socket = folder.join("admin.sock");
    fs::write(
        &config,
        format!(
            r#"workers = 1
[admin]
socket = "{}"
[[listeners]]
name = "peers"
address = "{address}"
protocol = "tcp"
cluster = "peers"
[[clusters]]
name = "peers"
policy = "p2c"
endpoints = [{{ address = "{endpoint}" }}]
[[policies]]
name = "p2c"
plugin = "p2c.wasm"
"#,
            socket.display()
        ),
    )?;
    let plugins = root.join("target/plugins");
    let words = [binary.as_path(), Path::new("run"), Path::new("--config"), &config];
    let words = words.into_iter().chain([Path::new("--plugins"), &plugins]);
    Ok(Plan { command: words.map(|word| word.display().to_string()).collect(), address })
}

fn nginx(folder: &Path, endpoint: SocketAddr) -> Result<Plan> {
    let address = free_address()?;
    let config = folder.join("nginx-stream.conf");
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load =
        if module.exists() { format!("load_module {};", module.display()) } else { String::new() };
    fs::write(
        &config,
        format!(
            "{load}
worker_processes 1;
daemon off;
pid {folder}/nginx-stream.pid;
error_log {folder}/nginx-stream.log error;
worker_rlimit_nofile 20000;
events {{ worker_connections 18000; }}
stream {{
    upstream peers {{ server {endpoint}; }}
    server {{ listen {address} backlog=4096; proxy_pass peers; tcp_nodelay on; }}
}}
",
            folder = folder.display()
        ),
    )?;
    Ok(Plan { command: words(&["nginx", "-c"], &config), address })
}

fn haproxy(folder: &Path, endpoint: SocketAddr) -> Result<Plan> {
    let address = free_address()?;
    let config = folder.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global
    nbthread 1
    maxconn 6000
    log /dev/null local0
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend peers
    bind {address} backlog 4096
    default_backend peers
backend peers
    server one {endpoint}
"
        ),
    )?;
    Ok(Plan { command: words(&["haproxy", "-db", "-q", "-f"], &config), address })
}

fn words(words: &[&str], config: &Path) -> Vec<String> {
    let config = config.display().to_string();
    words.iter().map(ToString::to_string).chain([config]).collect()
}

/// A loopback address that nobody listens at.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
