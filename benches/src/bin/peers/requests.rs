//! The load of requests over TCP: an endpoint (nginx) and clients (wrk), both on the core that the
//! balancers are not on.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pointsman_benches::processes::{number_before, socket_errors};

use crate::Load;
use crate::proxies::Proxy;

/// The core of the endpoint and the load.
pub(crate) const CORE: &str = "1";

/// One kind of load.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    connections: usize,
    path: &'static str,
    headers: &'static [&'static str],
    units_per_request: f64,
}

impl Scenario {
    /// A connection for each request.
    pub(crate) const CONNECTIONS: Self = Self {
        name: "connection-close",
        unit: "connection",
        connections: 64,
        path: "/",
        headers: &["-H", "Connection: close"],
        units_per_request: 1.0,
    };

    pub(crate) const ALL: [Self; 4] = [
        Self::requests("keepalive-64", 64),
        Self::requests("keepalive-1000", 1_000),
        Self {
            name: "bulk-1MiB",
            unit: "MiB",
            connections: 16,
            path: "/bulk",
            headers: &[],
            units_per_request: 1.0,
        },
        Self::CONNECTIONS,
    ];

    const fn requests(name: &'static str, connections: usize) -> Self {
        let (unit, path, headers) = ("request", "/", &[]);
        Self { name, unit, connections, path, headers, units_per_request: 1.0 }
    }

    /// Puts the load on a balancer.
    pub(crate) fn run(&self, address: SocketAddr, duration: Duration) -> Result<Load> {
        let mut command = Command::new("taskset");
        command.args(["-c", CORE, "wrk", "--threads", "1", "--connections"]);
        command.arg(self.connections.to_string()).args(["--timeout", "10s"]).args(self.headers);
        command.arg(format!("--duration={}s", duration.as_secs()));
        let output = command.arg(format!("http://{address}{}", self.path)).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "wrk failed: {text}");
        let requests = number_before(&text, " requests in ").context("wrk reports no requests")?;
        let units = requests * self.units_per_request;
        Ok(Load { units, errors: socket_errors(&text), lost: 0 })
    }
}

/// Opens many sessions, sends one request through each, leaves them idle, and tells what each of
/// them costs the balancer beside what it held before.
pub(crate) fn idle_memory(proxy: &Proxy, sessions: usize) -> Result<f64> {
    use std::io::{Read, Write};
    let before = proxy.memory_bytes()?;
    let mut clients = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        let mut client = TcpStream::connect(proxy.address)?;
        client.write_all(b"GET / HTTP/1.1\r\nHost: peers\r\n\r\n")?;
        let mut answer = [0; 1_024];
        ensure!(client.read(&mut answer)? > 0, "{} ended an idle session", proxy.name);
        clients.push(client);
    }
    let after = proxy.memory_bytes()?;
    Ok(after.saturating_sub(before) as f64 / sessions as f64)
}

/// The endpoint: nginx with a short answer and a file of 1 MiB.
pub(crate) struct Endpoint {
    process: Child,
    address: SocketAddr,
}

impl Endpoint {
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let (config, root) = (folder.join("endpoint.conf"), folder.join("root"));
        fs::create_dir_all(&root)?;
        fs::write(root.join("bulk"), vec![b'x'; 1 << 20])?;
        fs::write(&config, endpoint_config(folder, address))?;
        let mut command = Command::new("taskset");
        command.args(["-c", CORE, "nginx", "-c"]).arg(&config).stdin(Stdio::null());
        let process =
            command.spawn().context("cannot start nginx; run cargo xtask setup --peers")?;
        let endpoint = Self { process, address };
        for _ in 0..200 {
            if TcpStream::connect(address).is_ok() {
                return Ok(endpoint);
            }
            sleep(Duration::from_millis(50));
        }
        bail!("the endpoint does not accept connections at {address}")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same server at another address, for whoever wants two endpoints.
    pub(crate) fn second_address(&self) -> SocketAddr {
        second(self.address)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

fn second(address: SocketAddr) -> SocketAddr {
    (Ipv4Addr::new(127, 0, 0, 2), address.port()).into()
}

fn endpoint_config(folder: &Path, address: SocketAddr) -> String {
    format!(
        "worker_processes 1;
daemon off;
pid {folder}/endpoint.pid;
error_log {folder}/endpoint.log error;
worker_rlimit_nofile 20000;
events {{ worker_connections 18000; }}
http {{
    access_log off;
    sendfile on;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{
        listen {address} backlog=4096;
        listen {second} backlog=4096;
        root {folder}/root;
        location = / {{ return 200 'an answer of the usual length, which is to say a short one\\n'; }}
    }}
}}
",
        folder = folder.display(),
        second = second(address),
    )
}
