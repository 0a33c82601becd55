//! Looks up what concerns the process as a whole.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use pointsman_core::boundary::PoolSizes;

use super::findings::Findings;
use super::listeners::FLOWS_MAX;
use super::{AdminPlan, LogPlan, LogTarget, SyslogAddress, admin};
use crate::config::{AccessLog, Config};
use crate::privileges::RunAs;

/// More threads than any machine of today has cores.
const WORKERS_MAX: u32 = 1024;

/// Whoever asks for an upgrade waits for no more than its end.
const UPGRADE_TIMEOUT_MS: RangeInclusive<u64> = 1..=600_000;

pub(super) struct Process {
    pub(super) workers: usize,
    pub(super) drain_timeout: Duration,
    pub(super) upgrade_timeout: Duration,
    pub(super) flow_table_entries: u32,
    pub(super) flows_max: u32,
    pub(super) plugin_cpu_percent: u32,
    pub(super) pools: PoolSizes,
    pub(super) datagram_buffers: u32,
    pub(super) admin_socket: PathBuf,
    pub(super) admin_http: Option<SocketAddr>,
    pub(super) admin: AdminPlan,
    pub(super) run_as: Option<RunAs>,
    pub(super) access_log: Option<LogPlan>,
}

pub(super) fn resolve(config: &Config, findings: &mut Findings) -> Process {
    let http = config.admin.http.as_ref();
    Process {
        workers: workers(config.workers, findings),
        drain_timeout: findings.millis("drain_timeout_ms", config.drain_timeout_ms),
        upgrade_timeout: Duration::from_millis(findings.within(
            "upgrade_timeout_ms",
            config.upgrade_timeout_ms,
            UPGRADE_TIMEOUT_MS,
        )),
        flow_table_entries: findings.within(
            "flow_table_entries",
            config.flow_table_entries,
            1..=16_777_216,
        ),
        flows_max: findings.within("max_flows", config.max_flows, 0..=FLOWS_MAX),
        plugin_cpu_percent: findings.within(
            "plugin_cpu_percent",
            config.plugin_cpu_percent,
            1..=100,
        ),
        pools: PoolSizes {
            small: findings.within("buffers.small", config.buffers.small, 64..=65_536),
            bulk: findings.within("buffers.bulk", config.buffers.bulk, 4..=65_536),
        },
        datagram_buffers: findings.within(
            "buffers.datagrams",
            config.buffers.datagrams,
            16..=65_536,
        ),
        admin_socket: admin::socket(&config.admin.socket, findings),
        admin_http: http.map(|text| admin::http(text, &config.admin, findings)),
        admin: admin::resolve(&config.admin, findings),
        run_as: admin::run_as(config, findings),
        access_log: config.access_log.as_ref().map(|log| access_log(log, findings)),
    }
}

fn workers(configured: Option<u32>, findings: &mut Findings) -> usize {
    match configured {
        Some(count) => findings.within("workers", count, 1..=WORKERS_MAX) as usize,
        None => available_parallelism().map_or(1, usize::from),
    }
}

fn access_log(log: &AccessLog, findings: &mut Findings) -> LogPlan {
    if !(log.sample > 0.0 && log.sample <= 1.0) {
        let message = format!("{} is no share; write one above 0 and up to 1", log.sample);
        findings.add("access_log.sample", message);
    }
    LogPlan { target: log_target(log, findings), format: log.format, sample: log.sample }
}

fn log_target(log: &AccessLog, findings: &mut Findings) -> LogTarget {
    match (log.path.as_deref(), log.syslog.as_deref()) {
        (Some(_), Some(_)) => {
            let message = "is given beside `path`; leave one of them out";
            findings.add("access_log.syslog", message);
            LogTarget::Stdout
        }
        (None, Some(text)) => LogTarget::Syslog(syslog(text, findings)),
        (Some(path), None) if path == Path::new("-") => LogTarget::Stdout,
        (Some(path), None) if !path.as_os_str().is_empty() => LogTarget::File(path.to_owned()),
        _ => {
            let message = "is missing; write a file, or \"-\" for standard output, or syslog = \
                           \"/dev/log\"";
            findings.add("access_log.path", message);
            LogTarget::Stdout
        }
    }
}

fn syslog(text: &str, findings: &mut Findings) -> SyslogAddress {
    if text.starts_with('/') {
        return SyslogAddress::Unix(text.into());
    }
    SyslogAddress::Udp(text.parse().unwrap_or_else(|_| {
        let advice = "write the path of a socket, such as \"/dev/log\", or address:port";
        findings.add("access_log.syslog", format!("\"{text}\" is no address; {advice}"));
        SocketAddr::from(([0; 4], 0))
    }))
}
