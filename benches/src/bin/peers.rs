//! Pointsman beside nginx stream, HAProxy and Envoy, in alternating runs.
//!
//! Each balancer has one worker, pinned to core 0; the load and the endpoint share core 1. What is
//! compared is the CPU time each balancer's own threads took, kernel included, per request, per
//! connection, per round trip or per MiB, as a ratio to the best peer of the same rounds. TCP is
//! compared with nginx and HAProxy, UDP with nginx and Envoy, over loopback and, for small datagrams,
//! over links as well (`network`). Run it with `cargo xtask bench --peers`.

#[path = "peers/datagrams.rs"]
mod datagrams;
#[path = "peers/network.rs"]
mod network;
#[path = "peers/plans.rs"]
mod plans;
#[path = "peers/proxies.rs"]
mod proxies;
#[path = "peers/reflector.rs"]
mod reflector;
#[path = "peers/requests.rs"]
mod requests;
#[path = "peers/scripts.rs"]
mod scripts;
#[path = "peers/storm.rs"]
mod storm;
#[path = "peers/wire.rs"]
mod wire;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

use datagrams::{Across, Clients};
use network::Network;
use plans::{Plan, Setting, Traffic};
use proxies::Proxy;
use reflector::Reflector;
use requests::Endpoint;

/// What is measured against the others; those are its peers.
const OURS: &str = "pointsman";
/// A relay that is nobody's peer: it shows what of the cost is the kernel's.
const BARE: &str = "bare";

#[derive(Parser)]
struct Arguments {
    /// Only scenarios with this in their name.
    filter: Option<String>,

    /// Only these balancers, separated by commas: pointsman, nginx, haproxy, envoy, bare.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,

    /// Rounds; each runs every balancer once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Seconds of load in each run.
    #[arg(long, default_value_t = 4)]
    seconds: u64,

    /// Swaps under load.
    #[arg(long, default_value_t = 1_000)]
    swaps: usize,

    /// Connections or flows that are opened and left idle, to see what each costs in memory.
    #[arg(long, default_value_t = 5_000)]
    idle: usize,
}

impl Arguments {
    fn want(&self, scenario: &str) -> bool {
        self.filter.as_ref().is_none_or(|part| scenario.contains(part))
    }

    /// Those of these balancers that are wanted.
    fn wanted(&self, mut plans: Vec<Plan>) -> Vec<Plan> {
        plans.retain(|plan| self.only.is_empty() || self.only.iter().any(|it| it == plan.name));
        plans
    }
}

/// What came of a load.
struct Load {
    units: f64,
    errors: u64,
    /// What was lost on the way, and counts as part of the load as long as it is rare.
    lost: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = std::env::temp_dir().join(format!("pointsman-peers-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let outcome = run(&arguments, &folder);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

fn run(arguments: &Arguments, folder: &Path) -> Result<()> {
    compare_tcp(arguments, folder)?;
    compare_scripts(arguments, folder)?;
    if arguments.want("swaps") {
        storm::run(folder, arguments.seconds, arguments.swaps)?;
    }
    compare_udp(arguments, folder)
}

/// What the operator's own choice adds to a connection.
fn compare_scripts(arguments: &Arguments, folder: &Path) -> Result<()> {
    const NAME: &str = "scripts";
    if !arguments.want(NAME) {
        return Ok(());
    }
    let folder = folder.join(NAME);
    std::fs::create_dir_all(&folder)?;
    let endpoint = Endpoint::start(&folder)?;
    let endpoints = [endpoint.address(), endpoint.second_address()];
    let plans = arguments.wanted(scripts::plans(&folder, endpoints)?);
    let proxies: Vec<_> = plans.iter().map(Proxy::start_tcp).collect::<Result<_>>()?;
    let scenario = &requests::Scenario::CONNECTIONS;
    let contest = Contest { name: NAME, unit: scenario.unit, proxies: &proxies };
    let medians = contest
        .hold(arguments, |which, duration| scenario.run(proxies[which].address, duration))?;
    let median_of = |name: &str| {
        let place = proxies.iter().position(|proxy| proxy.name == name)?;
        Some(medians[place])
    };
    for [plain, scripted] in scripts::PAIRS {
        if let (Some(plain), Some(with)) = (median_of(plain), median_of(scripted)) {
            println!("{NAME:16} {scripted:14} adds {:+.2} µs per connection", with - plain);
        }
    }
    Ok(())
}

fn compare_tcp(arguments: &Arguments, folder: &Path) -> Result<()> {
    let idle = arguments.want("idle-memory");
    let all = requests::Scenario::ALL.iter();
    let scenarios: Vec<_> = all.filter(|scenario| arguments.want(scenario.name)).collect();
    if scenarios.is_empty() && !idle {
        return Ok(());
    }
    let endpoint = Endpoint::start(folder)?;
    let setting = Setting {
        folder: folder.join("tcp"),
        endpoint: endpoint.address(),
        traffic: Traffic::Connections,
        place: &Network::loopback().balancers,
    };
    let plans = arguments.wanted(plans::all(&setting)?);
    let proxies: Vec<_> = plans.iter().map(Proxy::start_tcp).collect::<Result<_>>()?;
    for scenario in scenarios {
        let contest = Contest { name: scenario.name, unit: scenario.unit, proxies: &proxies };
        contest
            .hold(arguments, |which, duration| scenario.run(proxies[which].address, duration))?;
    }
    for proxy in proxies.iter().filter(|_| idle) {
        let per_session = requests::idle_memory(proxy, arguments.idle)?;
        println!("{:16} {:10} {per_session:8.0} bytes a session", "idle-memory", proxy.name);
    }
    Ok(())
}

/// Each traffic has balancers of its own, so that each peer runs with what suits it best.
fn compare_udp(arguments: &Arguments, folder: &Path) -> Result<()> {
    let stages = [
        (Traffic::Datagrams, Across::Loopback),
        (Traffic::Trains, Across::Loopback),
        (Traffic::Datagrams, Across::Links),
    ];
    for (number, (traffic, across)) in stages.into_iter().enumerate() {
        let all = datagrams::Scenario::ALL.iter();
        let own = all.filter(|scenario| (scenario.traffic(), scenario.across) == (traffic, across));
        let scenarios: Vec<_> = own.filter(|scenario| arguments.want(scenario.name)).collect();
        let idle = number == 0 && arguments.want("udp-idle-memory");
        if scenarios.is_empty() && !idle {
            continue;
        }
        if let Some(obstacle) = Network::obstacle().filter(|_| across == Across::Links) {
            eprintln!("scenarios over links are skipped: {obstacle}");
            continue;
        }
        let network = across.network()?;
        let folder = folder.join(format!("udp-{number}"));
        hold_udp(arguments, (&network, traffic), &folder, (&scenarios, idle))?;
    }
    Ok(())
}

fn hold_udp(
    arguments: &Arguments,
    (network, traffic): (&Network, Traffic),
    folder: &Path,
    (scenarios, idle): (&[&datagrams::Scenario], bool),
) -> Result<()> {
    datagrams::pin_to_core()?;
    let mut reflector = Reflector::start(&network.endpoint)?;
    let (endpoint, place) = (reflector.address(), &network.balancers);
    let setting = Setting { folder: folder.to_owned(), endpoint, traffic, place };
    let plans = arguments.wanted(plans::all(&setting)?);
    let start = |plan: &Plan| {
        let proxy = place.enter(|| Proxy::start_udp(plan))??;
        datagrams::await_ready(&proxy, &network.clients, &mut reflector)?;
        Ok(proxy)
    };
    let proxies: Vec<_> = plans.iter().map(start).collect::<Result<_>>()?;
    for scenario in scenarios {
        let open = |proxy: &Proxy| {
            Clients::open(scenario, (&network.clients, proxy.address), &mut reflector)
        };
        let clients: Vec<_> = proxies.iter().map(open).collect::<Result<_>>()?;
        exchange_datagrams(scenario, &proxies, (clients, &mut reflector), arguments)?;
    }
    for proxy in proxies.iter().filter(|_| idle) {
        let clients = &network.clients;
        let per_flow = datagrams::idle_memory(proxy, clients, &mut reflector, arguments.idle)?;
        println!("{:16} {:10} {per_flow:8.0} bytes a flow", "udp-idle-memory", proxy.name);
    }
    Ok(())
}

/// The flows stay the same in all rounds: what is measured is the datagrams, not the first of each.
fn exchange_datagrams(
    scenario: &datagrams::Scenario,
    proxies: &[Proxy],
    (mut clients, reflector): (Vec<Clients>, &mut Reflector),
    arguments: &Arguments,
) -> Result<()> {
    let contest = Contest { name: scenario.name, unit: scenario.unit, proxies };
    contest.hold(arguments, |which, duration| clients[which].run(reflector, duration)).map(drop)
}

/// One scenario, and who takes part.
struct Contest<'a> {
    name: &'a str,
    unit: &'a str,
    proxies: &'a [Proxy],
}

impl Contest<'_> {
    /// Every balancer in every round, then the medians.
    fn hold(
        &self,
        arguments: &Arguments,
        mut load: impl FnMut(usize, Duration) -> Result<Load>,
    ) -> Result<Vec<f64>> {
        let duration = Duration::from_secs(arguments.seconds);
        let mut results = vec![(Vec::new(), 0); self.proxies.len()];
        for round in 0..arguments.rounds {
            for turn in 0..self.proxies.len() {
                let which = (round + turn) % self.proxies.len();
                let proxy = &self.proxies[which];
                let before = proxy.cpu_time()?;
                let load = load(which, duration)?;
                let spent = proxy.cpu_time()? - before;
                ensure!(load.errors == 0, "{}: {} socket errors", proxy.name, load.errors);
                results[which].0.push(spent.as_secs_f64() * 1e6 / load.units);
                results[which].1 += load.lost;
            }
        }
        Ok(self.print(&mut results))
    }

    /// Prints what each has cost; tells the medians.
    fn print(&self, results: &mut [(Vec<f64>, u64)]) -> Vec<f64> {
        let medians: Vec<f64> = results.iter_mut().map(|(costs, _)| median(costs)).collect();
        let of_peers = self
            .proxies
            .iter()
            .zip(&medians)
            .filter(|(proxy, _)| ![OURS, BARE].contains(&proxy.name));
        let best_peer = of_peers.map(|(_, median)| *median).reduce(f64::min);
        for ((proxy, median), (costs, lost)) in self.proxies.iter().zip(&medians).zip(&*results) {
            let (low, high) = (costs[0], costs[costs.len() - 1]);
            print!("{:16} {:10} {median:8.2} µs per {}", self.name, proxy.name, self.unit);
            print!(" (of {low:.2} to {high:.2})");
            if let Some(best) = best_peer {
                print!("  {:.2} of the best peer", median / best);
            }
            println!("{}", if *lost > 0 { format!(", {lost} lost") } else { String::new() });
        }
        medians
    }
}

/// Sorts, and takes the middle.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
