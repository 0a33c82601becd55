//! Traffic that never was, to try a policy on in a plain `cargo test`.
//!
//! Each endpoint serves one flow after the other, so flows that a policy sends to the wrong place
//! wait there; time passes as fast as it can be computed, and a seed gives the same run each time.
//! The policy is asked about every flow, as if no decision were ever kept.
//!
//! ```
//! use pointsman_sdk::sim::{Change, Distribution, Sim};
//! use pointsman_sdk::{Decision, Endpoints, Flow, Host, Instance, NoConfig, Policy};
//!
//! struct Random;
//!
//! impl Policy for Random {
//!     type Config = NoConfig;
//!     fn new(_: NoConfig) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//!     fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, _: &dyn Host) -> Decision {
//!         Decision::forward(flow.rng().below(endpoints.len()))
//!     }
//! }
//!
//! let outcome = Sim::new(1)
//!     .endpoint("10.0.0.1:80", 1, Distribution::Exponential { mean: 4_000.0 })
//!     .endpoint("10.0.0.2:80", 1, Distribution::Exponential { mean: 4_000.0 })
//!     .arrivals(Distribution::Exponential { mean: 5_000.0 })
//!     .at(30_000, Change::Leaves("10.0.0.2:80"))
//!     .run(&mut Instance::<Random>::configure("null")?, 10_000);
//! assert!(outcome.share("10.0.0.1:80") > 0.65);
//! assert!(outcome.latency_us(0.99) > outcome.latency_us(0.5));
//! # Ok::<(), String>(())
//! ```

mod distribution;
mod outcome;
mod site;
mod subject;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};

pub use distribution::Distribution;
pub use outcome::Outcomes;
pub use subject::{Hearing, Simulated, Tabled, Weighed};

use self::distribution::Clients;
use self::site::Site;
use crate::parts::SmoothOrder;
use crate::{Ended, Endpoint, Endpoints, Flow, MockHost, Outcome, Report, Rng, Verdict};

/// Between two ticks.
const TICK_MS: u64 = 250;
/// How often an endpoint is looked for.
const ATTEMPTS_MAX: u32 = 3;

/// What happens to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// It is on the list from now on; it must be one of the [`Sim::endpoint`]s.
    Joins(&'static str),
    /// It is taken off the list.
    Leaves(&'static str),
    /// It can no longer be reached, though it stays on the list.
    Fails(&'static str),
    /// It can be reached again.
    Recovers(&'static str),
    /// It takes this many times as long as it would.
    Slows(&'static str, f64),
}

impl Change {
    const fn address(self) -> &'static str {
        match self {
            Self::Joins(address)
            | Self::Leaves(address)
            | Self::Fails(address)
            | Self::Recovers(address)
            | Self::Slows(address, _) => address,
        }
    }
}

/// A simulation to be run. Times without a unit in their name are microseconds.
#[derive(Debug, Clone)]
pub struct Sim {
    seed: u64,
    sites: Vec<Site>,
    arrivals: Distribution,
    clients: Clients,
    /// By time in milliseconds.
    changes: Vec<(u64, Change)>,
}

impl Sim {
    /// A simulation with this seed: a thousand clients, equally busy, a flow each millisecond, and
    /// no endpoints.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            sites: Vec::new(),
            arrivals: Distribution::Fixed(1_000.0),
            clients: Clients::new(1_000, 0.0),
            changes: Vec::new(),
        }
    }

    /// One more endpoint, with its weight and how long it serves a flow.
    #[must_use]
    pub fn endpoint(mut self, address: &str, weight: u32, service: Distribution) -> Self {
        self.sites.push(Site::new(address, weight, service));
        self
    }

    /// The time between two flows.
    #[must_use]
    pub fn arrivals(self, arrivals: Distribution) -> Self {
        Self { arrivals, ..self }
    }

    /// This many clients, the nth of them as busy as 1/n to this power (Zipf's law): 0 for all
    /// alike, 1 for a few that do most.
    #[must_use]
    pub fn clients(self, count: usize, exponent: f64) -> Self {
        Self { clients: Clients::new(count, exponent), ..self }
    }

    /// Something happens this many milliseconds after the start. What [`Joins`](Change::Joins) later
    /// is not on the list before.
    #[must_use]
    pub fn at(mut self, ms: u64, change: Change) -> Self {
        if let Change::Joins(address) = change
            && let Some(site) = self.sites.iter_mut().find(|site| site.address() == address)
        {
            site.is_listed = false;
        }
        self.changes.push((ms, change));
        self.changes.sort_by_key(|(ms, _)| *ms);
        self
    }

    /// Asks a policy about this many flows, and says what became of them.
    ///
    /// # Panics
    ///
    /// If there is no endpoint on the list at some time, or if the policy names one that does not
    /// exist: that is the test's failure.
    pub fn run(self, policy: &mut impl Simulated, flows: usize) -> Outcomes {
        let mut run = Run::new(self, policy);
        for _ in 0..flows {
            run.step(policy);
        }
        run.outcomes
    }
}

/// A simulation that runs.
struct Run {
    sim: Sim,
    rng: Rng,
    host: MockHost,
    /// By index of the list: which site it is.
    listed: Vec<usize>,
    now_us: f64,
    next_tick_ms: u64,
    /// Flows under way: when they end, and at which site.
    under_way: BinaryHeap<Reverse<(u64, usize, u64)>>,
    /// Ended flows, by site, that no tick has told of.
    ended: Vec<(usize, Ended)>,
    generation: u64,
    /// Decides where the policy defers.
    fallback: SmoothOrder,
    outcomes: Outcomes,
}

impl Run {
    fn new(sim: Sim, policy: &mut impl Simulated) -> Self {
        let mut run = Self {
            rng: Rng::new(sim.seed),
            sim,
            host: MockHost::new(),
            listed: Vec::new(),
            now_us: 0.0,
            next_tick_ms: TICK_MS,
            under_way: BinaryHeap::new(),
            ended: Vec::new(),
            generation: 0,
            fallback: SmoothOrder::default(),
            outcomes: Outcomes::default(),
        };
        run.relist(policy);
        run
    }

    const fn now_ms(&self) -> u64 {
        (self.now_us / 1_000.0) as u64
    }

    /// One flow, and everything that happens until it comes.
    fn step(&mut self, policy: &mut impl Simulated) {
        self.now_us += self.sim.arrivals.draw(&mut self.rng);
        self.apply_changes(policy);
        self.end_flows();
        while self.next_tick_ms <= self.now_ms() {
            self.tick(policy);
        }
        let client = self.sim.clients.draw(&mut self.rng);
        let address = Ipv4Addr::from_bits(0x0a00_0000 + client);
        let mut flow = Flow::new(SocketAddr::new(address.into(), 5_000)).with_now_ms(self.now_ms());
        for _ in 0..ATTEMPTS_MAX {
            flow = flow.with_random(self.rng.bits());
            self.measure();
            let Some(index) = self.choose(policy, &flow) else {
                self.outcomes.on_denied();
                return;
            };
            let site = self.listed[index];
            if self.connects(site) {
                self.serve(client, site);
                return;
            }
            flow = flow.retried_after(index);
        }
        self.outcomes.on_failed();
    }

    fn choose(&mut self, policy: &mut impl Simulated, flow: &Flow) -> Option<usize> {
        let index = match policy.decide(flow, &self.host).verdict {
            Verdict::Forward(index) => index,
            Verdict::Defer => self.fallback.next(|index| flow.avoid() != Some(index)).unwrap_or(0),
            Verdict::Reset | Verdict::Drop => return None,
        };
        assert!(index < self.listed.len(), "endpoint {index} of {}", self.listed.len());
        Some(index)
    }

    fn connects(&mut self, site: usize) -> bool {
        let now_ms = self.now_ms();
        let it = &mut self.sim.sites[site];
        if it.is_reachable {
            return true;
        }
        it.on_failed(now_ms);
        self.ended.push((site, ended(Outcome::ConnectFailed, 0)));
        false
    }

    fn serve(&mut self, client: u32, site: usize) {
        let it = &mut self.sim.sites[site];
        let end_us = it.serve(self.now_us, &mut self.rng);
        let took_us = end_us - self.now_us;
        self.under_way.push(Reverse((end_us as u64, site, took_us as u64)));
        it.active += 1;
        self.outcomes.on_served(client, it.address(), took_us as u64);
        self.outcomes.on_load(self.listed.iter().map(|&site| self.sim.sites[site].per_weight()));
    }

    /// Ends what has ended by now.
    fn end_flows(&mut self) {
        while let Some(&Reverse((end_us, site, took_us))) = self.under_way.peek() {
            if end_us as f64 > self.now_us {
                return;
            }
            self.under_way.pop();
            let it = &mut self.sim.sites[site];
            it.active -= 1;
            it.on_answered(end_us / 1_000, took_us as f64);
            let duration_ms = u32::try_from(took_us / 1_000).unwrap_or(u32::MAX);
            self.ended.push((site, ended(Outcome::Finished, duration_ms)));
        }
    }

    /// Shows the host what has been measured.
    fn measure(&self) {
        for (index, &site) in self.listed.iter().enumerate() {
            self.host.set_sample(index, self.sim.sites[site].sample(self.now_ms()));
        }
    }

    fn tick(&mut self, policy: &mut impl Simulated) {
        self.measure();
        let samples: Vec<_> =
            self.listed.iter().map(|&site| self.sim.sites[site].sample(self.now_ms())).collect();
        let ended = self.ended.drain(..).filter_map(|(site, ended)| {
            let endpoint = self.listed.iter().position(|&listed| listed == site)?;
            Some(Ended { endpoint, ..ended })
        });
        let ended: Vec<_> = ended.collect();
        let report =
            Report { now_ms: self.next_tick_ms, samples: &samples, ended: &ended, missed: 0 };
        policy.tick(&report, &self.host);
        self.next_tick_ms += TICK_MS;
    }

    fn apply_changes(&mut self, policy: &mut impl Simulated) {
        let due = self.sim.changes.iter().take_while(|(ms, _)| *ms <= self.now_ms()).count();
        let due: Vec<_> = self.sim.changes.drain(..due).map(|(_, change)| change).collect();
        for change in &due {
            let mut sites = self.sim.sites.iter_mut();
            let site = sites.find(|site| site.address() == change.address());
            site.expect("a change is of an endpoint of the simulation").apply(*change);
        }
        let is_list_changed =
            due.iter().any(|change| matches!(change, Change::Joins(_) | Change::Leaves(_)));
        if is_list_changed {
            self.relist(policy);
        }
    }

    /// Gives the policy the list as it is.
    fn relist(&mut self, policy: &mut impl Simulated) {
        let sites = &self.sim.sites;
        let listed: Vec<_> = (0..sites.len()).filter(|&site| sites[site].is_listed).collect();
        assert!(!listed.is_empty(), "the simulation has no endpoint at {} ms", self.now_ms());
        let place_before = |site: &usize| self.listed.iter().position(|before| before == site);
        self.host.rearrange(&listed.iter().map(place_before).collect::<Vec<_>>());
        let list =
            listed.iter().map(|&site| Endpoint::new(sites[site].address(), sites[site].weight));
        self.generation += 1;
        let endpoints = Endpoints::new(self.generation, list.collect());
        self.listed = listed;
        self.fallback.follow(&endpoints);
        self.outcomes.on_relisted(&endpoints);
        self.measure();
        policy.endpoints_changed(&endpoints, &self.host);
    }
}

fn ended(outcome: Outcome, duration_ms: u32) -> Ended {
    Ended { endpoint: 0, outcome, duration_ms, bytes_to_endpoint: 0, bytes_to_client: 0, tag: 0 }
}

#[cfg(test)]
mod tests;
