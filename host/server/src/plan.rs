//! A configuration with everything looked up: names are places in lists, texts are addresses and
//! durations, plugins are files that exist.
//!
//! [`resolve`] reports all problems of a file at once, each with its key, because whoever mends a
//! configuration wants one list and not one error per attempt.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::boundary::PoolSizes;
use pointsman_core::ejection::EjectionRules;
use pointsman_core::eligibility::Eligibility;
use pointsman_core::growth::STEPS;
use pointsman_core::health::Thresholds;
use pointsman_core::policy::maglev;
use pointsman_core::preread::KeyRule;
use pointsman_core::proxy::{Inbound, Outbound, Version};
use pointsman_core::{
    AccessList, ClusterId, DatagramSettings, OnEndpointDown, PrefixLengths, Protocol, Timeouts,
};
use pointsman_plugin::Profile;

use crate::config::{self, Config, LogFormat, OnSwap};
use crate::privileges::RunAs;
use crate::prober::check::Check;
use crate::problem::Problem;

mod access;
mod admin;
mod checks;
mod clusters;
mod discovery;
mod findings;
mod json;
mod keys;
mod listeners;
mod passive;
mod plugins;
mod process;
mod proxy;

pub use admin::AdminPlan;
pub use discovery::{DiscoveryPlan, DnsPlan, Source, read_endpoints};
pub use plugins::PluginFolders;

use findings::Findings;

/// The most that an endpoint may weigh, as policies see it.
const WEIGHT_MAX: u32 = 65_535;
/// What an endpoint's flows may be limited to.
pub const ENDPOINT_FLOWS: RangeInclusive<u32> = 0..=10_000_000;
/// The most endpoints of a cluster: a lookup table has more entries than that.
pub const ENDPOINTS_MAX: usize = maglev::DEFAULT_SIZE as usize - 1;

/// Everything a balancer is started with, or told to become by a reload.
///
/// Listeners, clusters and plugins are in the file's order at the start. From a reload on those that
/// were there before have the places they had, and what is no longer in the file is `removed`.
#[derive(Debug)]
pub struct Plan {
    /// Threads that carry traffic.
    pub workers: usize,
    /// How long established flows may go on after a signal to end.
    pub drain_timeout: Duration,
    /// How long the new process of an upgrade may take until it has taken over.
    pub upgrade_timeout: Duration,
    /// Kept decisions per worker.
    pub flow_table_entries: u32,
    /// Flows at a time, of all listeners and over all workers; 0 if that is not limited.
    pub flows_max: u32,
    /// How much of each worker's core plugins may take.
    pub plugin_cpu_percent: u32,
    /// Receive buffers per worker.
    pub pools: PoolSizes,
    /// Buffers for datagrams per worker; 0 if no listener receives any.
    pub datagram_buffers: u32,
    /// The Unix socket of the command line.
    pub admin_socket: PathBuf,
    /// Where HTTP is served, if anywhere.
    pub admin_http: Option<SocketAddr>,
    /// Who may ask it, and what of.
    pub admin: AdminPlan,
    /// Whom the process becomes once everything is bound.
    pub run_as: Option<RunAs>,
    /// Where ended flows are logged, if anywhere.
    pub access_log: Option<LogPlan>,
    /// By `ListenerId`.
    pub listeners: Vec<ListenerPlan>,
    /// By `ClusterId`.
    pub clusters: Vec<ClusterPlan>,
    /// The policies that are plugins, by [`PluginId`].
    pub plugins: Vec<PluginPlan>,
}

/// What is logged of ended flows, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct LogPlan {
    /// Where.
    pub target: LogTarget,
    /// How.
    pub format: LogFormat,
    /// The share of those that have not failed, up to 1.
    pub sample: f64,
}

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// The end of this file.
    File(PathBuf),
    /// A syslog daemon.
    Syslog(SyslogAddress),
}

/// Where a syslog daemon takes datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyslogAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A UDP port.
    Udp(SocketAddr),
}

/// A listener with everything looked up.
#[derive(Debug, Clone)]
pub struct ListenerPlan {
    /// Its name.
    pub name: String,
    /// Where it listens; port 0 is the kernel's choice.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// Who serves its flows.
    pub cluster: ClusterId,
    /// Flows at a time, over all workers.
    pub flows_max: u32,
    /// Flows of each client at a time, over all workers; 0 if that is not limited.
    pub flows_per_client_max: u32,
    /// New flows per second, over all workers; 0 if that is not limited.
    pub new_flows_per_second: u32,
    /// New flows of each client per second, over all workers; 0 if that is not limited.
    pub new_flows_per_second_per_client: u32,
    /// Who may come, if not everybody.
    pub access: Option<Arc<AccessList>>,
    /// Which clients count as one.
    pub client_prefix: PrefixLengths,
    /// How often a flow may try to connect.
    pub connect_attempts: u32,
    /// What happens to flows of an endpoint that is gone.
    pub on_endpoint_down: OnEndpointDown,
    /// How long each state may last.
    pub timeouts: Timeouts,
    /// What related flows have in common, if that is looked for.
    pub key: Option<KeyRule>,
    /// Bytes that may be waited for until the key is found.
    pub preread_bytes_max: u32,
    /// Who must say for whom it connects, if anybody.
    pub proxy: Option<Arc<Inbound>>,
    /// What only datagrams need.
    pub datagrams: DatagramSettings,
    /// Whether it is no longer in the file, and only keeps its place.
    pub removed: bool,
}

impl ListenerPlan {
    /// Whether it receives datagrams, not connections.
    pub fn is_datagrams(&self) -> bool {
        self.protocol == Protocol::Udp
    }
}

/// A cluster with everything looked up.
#[derive(Debug, Clone)]
pub struct ClusterPlan {
    /// Its name.
    pub name: String,
    /// What its policy is called in the file.
    pub policy_name: String,
    /// What allocates its flows.
    pub policy: PolicyPlan,
    /// Who serves, in the file's order; nobody where they are found.
    pub endpoints: Vec<EndpointPlan>,
    /// Where those who serve are found, if they are not written.
    pub discovery: Option<Arc<DiscoveryPlan>>,
    /// How the endpoints are checked, if at all.
    pub check: Option<Arc<CheckPlan>>,
    /// Which endpoints are ejected because flows fail on them, if any are.
    pub passive: Option<EjectionRules>,
    /// What is done when endpoints are missing.
    pub eligibility: Eligibility,
    /// Whether flows wait while endpoints are full.
    pub queue: QueuePlan,
    /// How long an endpoint that has come back takes to have its whole weight; zero if it has it at
    /// once.
    pub slow_start: Duration,
    /// How endpoints are told of their clients, if they always are.
    pub proxy: Option<Outbound>,
    /// Whether flows to endpoints leave from their clients' addresses.
    pub transparent: bool,
    /// Whether it is no longer in the file, and only keeps its place.
    pub removed: bool,
}

/// Whether and how long flows wait for a place at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlan {
    /// How many may wait; 0 if none may.
    pub flows_max: u32,
    /// How long each may wait.
    pub timeout: Duration,
}

/// One address in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointPlan {
    /// Where it serves.
    pub address: SocketAddr,
    /// Its share relative to the others.
    pub weight: u32,
    /// Whether it is to be used only where no other is available.
    pub backup: bool,
    /// Flows at a time; [`u32::MAX`] if that is not limited.
    pub flows_max: u32,
}

/// How endpoints are checked.
#[derive(Debug, Clone)]
pub struct CheckPlan {
    /// What a check does.
    pub check: Check,
    /// The header that comes first, if one does.
    pub proxy: Option<Version>,
    /// The port that is asked, if it is not the endpoint's own.
    pub port: Option<u16>,
    /// Between the starts of two checks.
    pub interval: Duration,
    /// The same while it is not certain whether the endpoint goes up or down.
    pub fast_interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// How many observations change a verdict.
    pub thresholds: Thresholds,
    /// As it stands in the file, which tells whether it has changed.
    pub written: config::Health,
}

/// What allocates a cluster's flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyPlan {
    /// One of ours.
    Native(Native),
    /// A plugin.
    Plugin(PluginId),
}

/// Names a policy that is a plugin; an index into the plan's plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluginId(pub usize);

/// The policies that are built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Native {
    /// Smooth weighted round robin.
    RoundRobin,
    /// The fewest flows per weight.
    LeastFlows,
    /// Consistent hashing by Maglev's table.
    Maglev,
}

impl Native {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::RoundRobin, Self::LeastFlows, Self::Maglev];

    /// Its name in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastFlows => "least-flows",
            Self::Maglev => "maglev",
        }
    }

    /// The one of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|native| native.name() == name)
    }
}

/// A plugin with everything looked up.
#[derive(Debug, Clone)]
pub struct PluginPlan {
    /// The policy's name.
    pub name: String,
    /// Its key in the file, for problems that show only when it is loaded.
    pub key: String,
    /// Where its module is.
    pub file: PathBuf,
    /// What it is given beside the interface of policies.
    pub profile: Profile,
    /// What it is configured with: JSON.
    pub config: String,
    /// Who answers when it cannot.
    pub fallback: Native,
    /// What becomes of kept decisions when it is swapped.
    pub on_swap: OnSwap,
    /// Whether its file is watched.
    pub watch: bool,
    /// More faults than this soon after a swap undo it.
    pub rollback_faults: u32,
    /// How long after a swap that is so.
    pub rollback_window: Duration,
    /// How often it is asked, if it is one of weights.
    pub tick: Duration,
    /// How long one decision may take.
    pub decide_deadline: Duration,
    /// How long configuring may take.
    pub configure_deadline: Duration,
    /// The most memory one instance may have.
    pub memory_max_bytes: usize,
    /// Whether it is no longer in the file, and only keeps its place.
    pub removed: bool,
}

/// A limit as users write it, where 0 is none, as workers know it.
pub const fn limit(max: u32) -> u32 {
    if max == 0 { u32::MAX } else { max }
}

/// The same the other way round.
pub const fn limit_shown(max: u32) -> u32 {
    if max == u32::MAX { 0 } else { max }
}

/// Why there can be no endpoint at this address, if so.
pub fn endpoint_problem(address: SocketAddr) -> Option<String> {
    let ip = address.ip();
    if address.port() == 0 {
        Some("port 0 cannot be connected to; write the endpoint's port".to_owned())
    } else if ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST {
        Some(format!("{ip} is no machine's address; write the endpoint's"))
    } else {
        None
    }
}

/// What an endpoint may weigh. Where weights grow, policies see a multiple.
pub const fn weights(slow_start: Duration) -> RangeInclusive<u32> {
    if slow_start.is_zero() { 1..=WEIGHT_MAX } else { 1..=WEIGHT_MAX / STEPS }
}

/// The word for a protocol, in configuration, status and logs.
pub const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => config::Protocol::Tcp.name(),
        Protocol::Udp => config::Protocol::Udp.name(),
    }
}

impl Plan {
    /// The plugin of this name in the plan.
    pub fn plugin(&self, id: PluginId) -> &PluginPlan {
        &self.plugins[id.0]
    }

    /// Whether a cluster ever looks into a Maglev table.
    pub fn uses_table(&self, cluster: &ClusterPlan) -> bool {
        let native = match cluster.policy {
            PolicyPlan::Native(native) => native,
            PolicyPlan::Plugin(id) => self.plugin(id).fallback,
        };
        native == Native::Maglev
    }
}

/// Looks everything up.
///
/// # Errors
/// All problems, in no particular order.
pub fn resolve(config: &Config, folders: &PluginFolders) -> Result<Plan, Vec<Problem>> {
    let (plan, problems) = resolve_what_can_be(config, folders);
    if problems.is_empty() { Ok(plan) } else { Err(problems) }
}

/// Looks up what can be looked up. The plan is whole only if there are no problems; otherwise it is
/// good for finding more of them.
pub fn resolve_what_can_be(config: &Config, folders: &PluginFolders) -> (Plan, Vec<Problem>) {
    let mut findings = Findings::default();
    let process = process::resolve(config, &mut findings);
    let policies = plugins::resolve(&config.policies, folders, &mut findings);
    let clusters = clusters::resolve(&config.clusters, &policies, folders, &mut findings);
    let mut listeners = listeners::resolve(&config.listeners, &config.clusters, &mut findings);
    proxy::tell_endpoints(&mut listeners, &clusters, &mut findings);
    clusters::check_queues(&config.clusters, &listeners, &mut findings);
    let receives_datagrams = listeners.iter().any(ListenerPlan::is_datagrams);
    let plan = Plan {
        workers: process.workers,
        drain_timeout: process.drain_timeout,
        upgrade_timeout: process.upgrade_timeout,
        flow_table_entries: process.flow_table_entries,
        flows_max: process.flows_max,
        plugin_cpu_percent: process.plugin_cpu_percent,
        pools: process.pools,
        datagram_buffers: if receives_datagrams { process.datagram_buffers } else { 0 },
        admin_socket: process.admin_socket,
        admin_http: process.admin_http,
        admin: process.admin,
        run_as: process.run_as,
        access_log: process.access_log,
        listeners,
        clusters,
        plugins: policies.plugins,
    };
    (plan, findings.into_problems())
}

#[cfg(test)]
mod tests;
