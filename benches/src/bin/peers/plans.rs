//! How the balancers are started: each as its user would configure it for one core, and with what
//! it has for the traffic that it is compared by.

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::Result;
use pointsman_benches::processes::{run_pointsman, target};

use crate::BARE;
use crate::network::Place;
use crate::wire::SEGMENT;

/// What is sent through the balancers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Connections over TCP.
    Connections,
    /// Single datagrams.
    Datagrams,
    /// Trains of datagrams, in segmented sends.
    Trains,
}

impl Traffic {
    fn protocol(self) -> &'static str {
        if self == Self::Connections { "tcp" } else { "udp" }
    }
}

/// How to start a balancer, and where it will listen.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) command: Vec<String>,
}

/// What the balancers are to do, and where.
pub(crate) struct Setting<'a> {
    /// Takes their files.
    pub(crate) folder: PathBuf,
    pub(crate) endpoint: SocketAddr,
    pub(crate) traffic: Traffic,
    pub(crate) place: &'a Place,
}

impl Setting<'_> {
    /// An address at which nobody listens there.
    fn free_address(&self) -> Result<SocketAddr> {
        free_address(self.place, self.traffic)
    }
}

/// An address at which nobody listens in a place.
pub(crate) fn free_address(place: &Place, traffic: Traffic) -> Result<SocketAddr> {
    let wanted = (place.address, 0);
    let address = place.enter(|| match traffic {
        Traffic::Connections => TcpListener::bind(wanted)?.local_addr(),
        Traffic::Datagrams | Traffic::Trains => UdpSocket::bind(wanted)?.local_addr(),
    })?;
    Ok(address?)
}

/// Plans for Pointsman, then for its peers.
pub(crate) fn all(setting: &Setting<'_>) -> Result<Vec<Plan>> {
    fs::create_dir_all(&setting.folder)?;
    let mut plans = vec![pointsman(setting)?, nginx(setting)?];
    match setting.traffic {
        Traffic::Connections => plans.push(haproxy(setting)?),
        Traffic::Datagrams | Traffic::Trains => {
            plans.extend(envoy(setting)?);
            plans.push(bare(setting)?);
        }
    }
    Ok(plans)
}

fn pointsman(setting: &Setting<'_>) -> Result<Plan> {
    let Setting { folder, endpoint, traffic, .. } = setting;
    let address = setting.free_address()?;
    let (config, socket) = (folder.join("pointsman.toml"), folder.join("admin.sock"));
    fs::write(
        &config,
        format!(
            r#"workers = 1
[admin]
socket = "{socket}"
[[listeners]]
name = "peers"
address = "{address}"
protocol = "{protocol}"
cluster = "peers"
idle_timeout_ms = 600000
[[clusters]]
name = "peers"
policy = "p2c"
endpoints = [{{ address = "{endpoint}" }}]
[[policies]]
name = "p2c"
plugin = "p2c.wasm"
"#,
            socket = socket.display(),
            protocol = traffic.protocol(),
        ),
    )?;
    Ok(Plan { name: "pointsman", address, command: run_pointsman(&config)? })
}

/// Who only passes datagrams on.
fn bare(setting: &Setting<'_>) -> Result<Plan> {
    let address = setting.free_address()?;
    let binary = std::env::current_exe()?.with_file_name("bare").display().to_string();
    let mut command = vec![binary, address.to_string(), setting.endpoint.to_string()];
    if setting.traffic == Traffic::Trains {
        command.extend(["--segment".to_owned(), SEGMENT.to_string()]);
    }
    Ok(Plan { name: BARE, address, command })
}

fn nginx(setting: &Setting<'_>) -> Result<Plan> {
    let Setting { folder, endpoint, traffic, .. } = setting;
    let address = setting.free_address()?;
    let config = folder.join("nginx-stream.conf");
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load =
        if module.exists() { format!("load_module {};", module.display()) } else { String::new() };
    let (listen, events) = match traffic {
        Traffic::Connections => ("backlog=4096; tcp_nodelay on", ""),
        // For datagrams this means: read more than one at a time.
        Traffic::Datagrams | Traffic::Trains => ("udp rcvbuf=4m sndbuf=4m", "multi_accept on;"),
    };
    fs::write(
        &config,
        format!(
            "{load}
worker_processes 1;
daemon off;
pid {folder}/nginx-stream.pid;
error_log {folder}/nginx-stream.log error;
worker_rlimit_nofile 20000;
events {{ worker_connections 18000; {events} }}
stream {{
    upstream peers {{ server {endpoint}; }}
    server {{ listen {address} {listen}; proxy_pass peers; proxy_timeout 600s; }}
}}
",
            folder = folder.display()
        ),
    )?;
    Ok(Plan { name: "nginx", address, command: words(&["nginx", "-c"], &config) })
}

fn haproxy(setting: &Setting<'_>) -> Result<Plan> {
    let Setting { folder, endpoint, .. } = setting;
    let address = setting.free_address()?;
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
    Ok(Plan { name: "haproxy", address, command: words(&["haproxy", "-db", "-q", "-f"], &config) })
}

/// Envoy, unless it could not be installed.
fn envoy(setting: &Setting<'_>) -> Result<Option<Plan>> {
    let Setting { folder, endpoint, traffic, .. } = setting;
    let binary = target().join("peers/envoy/_bin/envoy");
    if !binary.exists() {
        eprintln!("envoy is not installed and left out; cargo xtask setup --peers tells why");
        return Ok(None);
    }
    let address = setting.free_address()?;
    let config = folder.join("envoy.yaml");
    let EnvoyOffload { gro, writer, upstream } = EnvoyOffload::of(*traffic);
    fs::write(
        &config,
        format!(
            r#"static_resources:
  listeners:
  - name: peers
    address: {{ socket_address: {{ protocol: UDP, address: {ip}, port_value: {port} }} }}
    socket_options:
    # SO_RCVBUF and SO_SNDBUF.
    - {{ level: 1, name: 8, int_value: 4194304, state: STATE_PREBIND }}
    - {{ level: 1, name: 7, int_value: 4194304, state: STATE_PREBIND }}
    udp_listener_config:
      downstream_socket_config: {{ prefer_gro: {gro} }}
      {writer}
    listener_filters:
    - name: envoy.filters.udp_listener.udp_proxy
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig
        stat_prefix: peers
        idle_timeout: 600s
        matcher:
          on_no_match:
            action:
              name: route
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route
                cluster: peers
  clusters:
  - name: peers
    type: STATIC
    lb_policy: LEAST_REQUEST
    {upstream}
    circuit_breakers: {{ thresholds: [{{ max_connections: 100000 }}] }}
    load_assignment:
      cluster_name: peers
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ protocol: UDP, address: {to_ip}, port_value: {to_port} }} }} }}
"#,
            ip = address.ip(),
            port = address.port(),
            to_ip = endpoint.ip(),
            to_port = endpoint.port(),
        ),
    )?;
    let options = ["--concurrency", "1", "--log-level", "error", "--disable-hot-restart", "-c"];
    let mut command = words(&options, &config);
    command.insert(0, binary.display().to_string());
    Ok(Some(Plan { name: "envoy", address, command }))
}

/// What a user of Envoy who has trains would set, and one who has none would not: whole trains are
/// received only where that is asked for, and sent only by a writer of their own.
struct EnvoyOffload {
    gro: bool,
    writer: &'static str,
    upstream: &'static str,
}

impl EnvoyOffload {
    fn of(traffic: Traffic) -> Self {
        if traffic != Traffic::Trains {
            return Self { gro: false, writer: "", upstream: "" };
        }
        let writer = r#"udp_packet_packet_writer_config:
        name: gso
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.udp_packet_writer.v3.UdpGsoBatchWriterFactory"#;
        // UDP_GRO: reading trains is the default upstream, but the sockets are not told.
        let upstream = "upstream_bind_config:
      source_address: { address: 127.0.0.1, port_value: 0 }
      socket_options: [{ level: 17, name: 104, int_value: 1, state: STATE_PREBIND }]";
        Self { gro: true, writer, upstream }
    }
}

pub(crate) fn words(words: &[&str], config: &Path) -> Vec<String> {
    let config = config.display().to_string();
    words.iter().map(ToString::to_string).chain([config]).collect()
}
