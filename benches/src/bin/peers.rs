//! Pointsman beside nginx stream and HAProxy, over loopback, in alternating runs.
//!
//! Each balancer has one worker, pinned to core 0; the load and the endpoint share core 1. What is
//! compared is the CPU time each balancer's own threads took, kernel included, per request, per
//! connection or per MiB, as a ratio to the better peer of the same rounds. Run it with
//! `cargo xtask bench --peers`.

#[path = "peers/load.rs"]
mod load;
#[path = "peers/proxies.rs"]
mod proxies;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

use load::{Endpoint, Scenario};
use proxies::Proxy;

#[derive(Parser)]
struct Arguments {
    /// Only scenarios with this in their name.
    filter: Option<String>,

    /// Rounds; each runs every balancer once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Seconds of load in each run.
    #[arg(long, default_value_t = 4)]
    seconds: u64,

    /// Connections that are opened and left idle, to see what each costs in memory.
    #[arg(long, default_value_t = 5_000)]
    idle: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = std::env::temp_dir().join(format!("pointsman-peers-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let outcome = compare(&arguments, &folder);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

fn compare(arguments: &Arguments, folder: &std::path::Path) -> Result<()> {
    let endpoint = Endpoint::start(folder)?;
    let proxies = Proxy::start_all(folder, endpoint.address())?;
    let wanted = |name: &str| arguments.filter.as_ref().is_none_or(|part| name.contains(part));
    for scenario in Scenario::ALL.iter().filter(|scenario| wanted(scenario.name)) {
        measure(scenario, &proxies, arguments)?;
    }
    if wanted("idle-memory") {
        for proxy in &proxies {
            let per_session = load::idle_memory(proxy, arguments.idle)?;
            println!("idle-memory      {:10} {per_session:8.0} bytes a session", proxy.name);
        }
    }
    Ok(())
}

/// One scenario: every balancer in every round, then the medians.
fn measure(scenario: &Scenario, proxies: &[Proxy], arguments: &Arguments) -> Result<()> {
    let duration = Duration::from_secs(arguments.seconds);
    let mut costs: Vec<Vec<f64>> = vec![Vec::new(); proxies.len()];
    for round in 0..arguments.rounds {
        for turn in 0..proxies.len() {
            let which = (round + turn) % proxies.len();
            let proxy = &proxies[which];
            let before = proxy.cpu_time()?;
            let load = scenario.run(proxy.address, duration)?;
            let spent = proxy.cpu_time()? - before;
            ensure!(load.errors == 0, "{}: {} socket errors", proxy.name, load.errors);
            costs[which].push(spent.as_secs_f64() * 1e6 / load.units);
        }
    }
    let medians: Vec<f64> = costs.iter_mut().map(|costs| median(costs)).collect();
    let best_peer = medians.iter().skip(1).copied().fold(f64::INFINITY, f64::min);
    for ((proxy, median), costs) in proxies.iter().zip(&medians).zip(&costs) {
        let (low, high) = (costs[0], costs[costs.len() - 1]);
        let ratio = median / best_peer;
        println!(
            "{:16} {:10} {median:8.2} µs per {} (of {low:.2} to {high:.2})  {ratio:.2} of the better peer",
            scenario.name, proxy.name, scenario.unit,
        );
    }
    Ok(())
}

/// Sorts, and takes the middle.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
