//! What the demo prints.

use std::path::Path;

use anyhow::Context;

use super::endpoints::Endpoint;
use super::traffic::{CLIENTS, FLOWS_PER_CLIENT};
use super::{Outcome, POLICIES};
use crate::status::{Cluster, Status};
use crate::table::Table;

/// Columns of the longest bar.
const BAR_WIDTH: u64 = 30;

/// Says what is about to be seen.
pub(super) fn introduce(endpoints: &[Endpoint]) {
    println!(
        "{} endpoints and a balancer are running on this machine. For each policy, {CLIENTS} \
         clients\nsend {FLOWS_PER_CLIENT} requests each through the balancer, one connection per \
         request.\n",
        endpoints.len(),
    );
}

/// Shows what happened under one policy.
pub(super) fn show(
    policy: &str,
    endpoints: &[Endpoint],
    outcome: &Outcome,
    status: &Status,
) -> anyhow::Result<()> {
    let cluster = status.clusters.iter().find(|cluster| cluster.name == policy);
    let cluster = cluster.context("the status lacks a cluster")?;
    let flows: u64 = cluster.endpoints.iter().map(|endpoint| endpoint.flows_total).sum();
    println!("Policy {policy}: {} flows in {:.1} s", outcome.answered, outcome.took.as_secs_f64());
    let mut table = Table::new(&["  ENDPOINT", "ANSWERS IN", "FLOWS", "SHARE", ""]);
    for (endpoint, seen) in endpoints.iter().zip(&cluster.endpoints) {
        let bar = seen.flows_total * BAR_WIDTH / flows.max(1);
        table.row([
            format!("  {}", seen.address),
            format!("{} ms", endpoint.work.as_millis()),
            seen.flows_total.to_string(),
            format!("{} %", seen.flows_total * 100 / flows.max(1)),
            "█".repeat(usize::try_from(bar).unwrap_or_default()),
        ]);
    }
    print!("{table}");
    calls(cluster, flows, status);
    println!(
        "  {} of {CLIENTS} clients met the same endpoint every time\n",
        outcome.loyal_clients()
    );
    Ok(())
}

fn calls(cluster: &Cluster, flows: u64, status: &Status) {
    let Some(plugin) = status.policies.iter().find(|plugin| plugin.name == cluster.policy) else {
        return;
    };
    let nanos = plugin.decision_ns / plugin.calls.max(1);
    let faults: u64 = plugin.faults.values().sum();
    println!(
        "  {} Wasm calls for {flows} flows ({} %), {nanos} ns each, {faults} fault(s); kept \
         decisions\n  answered {} flows",
        plugin.calls,
        plugin.calls * 100 / flows.max(1),
        cluster.decisions.get("cache").copied().unwrap_or_default(),
    );
}

/// Says what can be tried while everything is left running.
pub(super) fn invite(status: &Status, socket: &Path) {
    println!("Everything is left running; an interrupt (Ctrl-C) ends it. Try:");
    for listener in status.listeners.iter().filter(|l| POLICIES.contains(&l.name.as_str())) {
        println!("  curl http://{}/    # {}", listener.address, listener.name);
    }
    println!("  pointsman status --admin {}", socket.display());
}
