//! Maglev's lookup table.
//!
//! A client keeps its endpoint without anybody remembering it, and few clients move when the
//! endpoints change. The table is that of Envoy's construction and of the balancer's native policy
//! of the same name, so a fleet may mix them. The host asks once for each list of endpoints; a flow
//! costs no call.
#![forbid(unsafe_code)]

use pointsman_sdk::parts::{MAGLEV_SIZE, maglev};
use pointsman_sdk::{Endpoints, Host, TablePolicy, export_table};
use serde::Deserialize;

/// Makes Maglev's table.
#[derive(Debug)]
pub struct Maglev {
    size: u32,
}

/// The policy's config.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How many entries the table has: a prime above the number of endpoints. 65,537 by default,
    /// which keeps shares within a percent for up to some hundred endpoints.
    size: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { size: MAGLEV_SIZE }
    }
}

export_table!(Maglev);

/// The host takes no more entries.
const SIZE_MAX: u32 = 1 << 20;

impl TablePolicy for Maglev {
    type Config = Config;

    fn new(Config { size }: Config) -> Result<Self, String> {
        if size > SIZE_MAX {
            return Err(format!("size: expected a prime up to {SIZE_MAX}, found {size}"));
        }
        // Whether it is a prime is found out where the table is made.
        let probe = Endpoints::from([("[::]:1", 1)]);
        maglev(&probe, size).map_err(|_| format!("size: expected a prime, found {size}"))?;
        Ok(Self { size })
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

    fn instance(config: &str) -> Result<TableInstance<Maglev>, String> {
        TableInstance::configure(config)
    }

    #[test]
    fn shares_of_the_table_follow_the_weights() {
        let endpoints = Endpoints::from([("10.0.0.1:80", 1), ("10.0.0.2:80", 3)]);
        let table = instance("null").unwrap().build(&endpoints, &MockHost::new()).unwrap();
        assert_eq!(table.len(), 65_537);
        let first = table.iter().filter(|&&entry| entry == 0).count();
        assert!(first.abs_diff(65_537 / 4) <= 2, "{first}");
    }

    #[test]
    fn clients_whose_endpoint_stays_mostly_stay_with_it() {
        let service = Distribution::Fixed(100.0);
        let sim = (1..=9_u8).map(|n| format!("10.0.0.{n}:80"));
        let sim = sim.fold(Sim::new(1), |sim, address| sim.endpoint(&address, 1, service));
        let sim = sim.at(5_000, Change::Leaves("10.0.0.5:80"));
        let outcome = sim.run(&mut Tabled::from(instance("null").unwrap()), 20_000);
        assert!(outcome.moved() < 0.05, "{}", outcome.moved());
    }

    #[test]
    fn a_size_that_is_no_prime_is_refused_at_once() {
        for (size, message) in [
            ("65536", "size: expected a prime, found 65536"),
            ("1048583", "size: expected a prime up to 1048576, found 1048583"),
        ] {
            let config = format!(r#"{{ "size": {size} }}"#);
            assert_eq!(instance(&config).unwrap_err(), message);
        }
        assert!(instance(r#"{ "size": 251 }"#).is_ok());
    }

    #[test]
    fn a_table_smaller_than_the_list_is_refused_when_the_list_comes() {
        let mut policy = instance(r#"{ "size": 2 }"#).unwrap();
        let endpoints = Endpoints::from([("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]);
        let error = policy.build(&endpoints, &MockHost::new()).unwrap_err();
        assert_eq!(error, "expected a prime above the 2 endpoints, found 2");
    }
}
