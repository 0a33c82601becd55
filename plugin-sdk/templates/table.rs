//! A policy that decides on all flows in advance, by a lookup table.
//!
//! Maglev's table, with some entries of each endpoint: the same client goes to the same endpoint on
//! every worker and every balancer. Make it your own: whatever table you return is what decides.
#![forbid(unsafe_code)]

use pointsman_sdk::parts::maglev;
use pointsman_sdk::{Endpoints, Host, TablePolicy, export_table};
use serde::Deserialize;

/// Makes the table.
pub struct Hashed {
    size: u32,
}

/// What the operator may set; `config = { size = 1009 }` in the balancer's configuration.
#[derive(Deserialize)]
#[serde(default)]
pub struct Config {
    /// How many entries the table has: a prime.
    size: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { size: 4_099 }
    }
}

export_table!(Hashed);

impl TablePolicy for Hashed {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self { size: config.size })
    }

    fn build(&mut self, endpoints: &Endpoints, _: &dyn Host) -> Result<Vec<u32>, String> {
        maglev(endpoints, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::sim::{Change, Distribution, Sim, Tabled};
    use pointsman_sdk::{MockHost, TableInstance};

    const A: &str = "10.0.0.1:80";
    const B: &str = "10.0.0.2:80";
    const C: &str = "10.0.0.3:80";

    #[test]
    fn shares_of_the_table_follow_the_weights() {
        let mut policy = TableInstance::<Hashed>::configure("null").unwrap();
        let endpoints = Endpoints::from([(A, 1), (B, 3)]);
        let table = policy.build(&endpoints, &MockHost::new()).unwrap();
        let first = table.iter().filter(|&&entry| entry == 0).count();
        assert!(first.abs_diff(table.len() / 4) <= 2);
    }

    #[test]
    fn clients_mostly_stay_where_they_are_when_an_endpoint_leaves() {
        let service = Distribution::Fixed(100.0);
        let sim = Sim::new(1).endpoint(A, 1, service).endpoint(B, 1, service);
        let sim = sim.endpoint(C, 1, service).at(5_000, Change::Leaves(C));
        let policy = TableInstance::<Hashed>::configure("null").unwrap();
        let outcome = sim.run(&mut Tabled::from(policy), 20_000);
        assert!(outcome.moved() < 0.1, "{} moved", outcome.moved());
    }
}
