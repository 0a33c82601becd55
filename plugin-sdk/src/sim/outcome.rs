//! What became of a simulation's flows.

use std::collections::HashMap;

use crate::Endpoints;

/// What became of the flows.
#[derive(Debug, Clone, Default)]
pub struct Outcomes {
    /// Flows served, by address.
    served: HashMap<String, u64>,
    /// In order of arrival.
    latencies_us: Vec<u64>,
    denied: u64,
    failed: u64,
    /// The sum over all flows of how far the most loaded endpoint was above the average.
    imbalance_sum: f64,
    /// Counts changes of the list.
    listing: u64,
    listed: Vec<String>,
    /// Where each client was served last, and under which list.
    clients: HashMap<u32, (String, u64)>,
    /// Clients that came back after a change while their endpoint was still there, and those of
    /// them that were sent elsewhere.
    came_back: u64,
    moved: u64,
}

impl Outcomes {
    /// The share of the served flows that this endpoint got.
    #[must_use]
    pub fn share(&self, address: &str) -> f64 {
        let all: u64 = self.served.values().sum();
        self.served(address) as f64 / (all as f64).max(1.0)
    }

    /// How many flows this endpoint got.
    #[must_use]
    pub fn served(&self, address: &str) -> u64 {
        self.served.get(address).copied().unwrap_or(0)
    }

    /// Flows that the policy turned away.
    #[must_use]
    pub const fn denied(&self) -> u64 {
        self.denied
    }

    /// Flows that reached no endpoint in three attempts.
    #[must_use]
    pub const fn failed(&self) -> u64 {
        self.failed
    }

    /// How many flows per weight the most loaded endpoint had, as a multiple of the average of all,
    /// averaged over all flows: 1 is perfect.
    #[must_use]
    pub fn imbalance(&self) -> f64 {
        self.imbalance_sum / (self.latencies_us.len() as f64).max(1.0)
    }

    /// Of the clients that came back after a change of the list, the share that was sent elsewhere
    /// although their endpoint was still there.
    #[must_use]
    pub fn moved(&self) -> f64 {
        self.moved as f64 / (self.came_back as f64).max(1.0)
    }

    /// The time from arrival to answer within which this share of the flows was served: 0.5 for the
    /// median, 0.99 for the slowest of a hundred.
    #[must_use]
    pub fn latency_us(&self, share: f64) -> u64 {
        let mut sorted = self.latencies_us.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).or(sorted.last()).copied().unwrap_or(0)
    }

    pub(super) fn on_relisted(&mut self, endpoints: &Endpoints) {
        self.listing += 1;
        self.listed = endpoints.iter().map(|endpoint| endpoint.address().to_owned()).collect();
    }

    pub(super) fn on_served(&mut self, client: u32, address: &str, took_us: u64) {
        self.latencies_us.push(took_us);
        *self.served.entry(address.to_owned()).or_default() += 1;
        let before = self.clients.insert(client, (address.to_owned(), self.listing));
        let Some((old, listing)) = before else { return };
        if listing != self.listing && self.listed.contains(&old) {
            self.came_back += 1;
            self.moved += u64::from(old != address);
        }
    }

    pub(super) fn on_load(&mut self, loads: impl Iterator<Item = f64>) {
        let loads: Vec<_> = loads.collect();
        let average = loads.iter().sum::<f64>() / loads.len() as f64;
        let most = loads.iter().copied().fold(0.0, f64::max);
        self.imbalance_sum += if average > 0.0 { most / average } else { 1.0 };
    }

    pub(super) const fn on_denied(&mut self) {
        self.denied += 1;
    }

    pub(super) const fn on_failed(&mut self) {
        self.failed += 1;
    }
}
