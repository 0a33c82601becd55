//! A lookup table by weighted rendezvous hashing.
//!
//! Every endpoint bids for every entry of the table, and the highest bid wins. When the endpoints
//! change, exactly those entries move that must: the ones of an endpoint that leaves, and the share
//! of one that joins. Maglev moves a few more, for shares that are more even; a table of this size
//! is even within a few percent.
#![forbid(unsafe_code)]

use pointsman_sdk::parts::Rendezvous;
use pointsman_sdk::{Endpoints, Host, Rng, TablePolicy, export_table};
use serde::Deserialize;

/// Makes a table of the winners.
#[derive(Debug)]
pub struct Bidding {
    size: u32,
}

/// The policy's config.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How many entries the table has. 4,096 by default: each of them costs a bid of each endpoint
    /// when the list changes.
    size: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { size: 4_096 }
    }
}

export_table!(Bidding);

/// With a hundred endpoints, the bids for so many entries take a tenth of a second.
const SIZE_MAX: u32 = 1 << 16;

impl TablePolicy for Bidding {
    type Config = Config;

    fn new(Config { size }: Config) -> Result<Self, String> {
        if !(1..=SIZE_MAX).contains(&size) {
            return Err(format!("size: expected 1 to {SIZE_MAX}, found {size}"));
        }
        Ok(Self { size })
    }

    fn build(&mut self, endpoints: &Endpoints, _: &dyn Host) -> Result<Vec<u32>, String> {
        let bidders = Rendezvous::new(endpoints);
        let winner_of = |entry: u32| bidders.winner(Rng::new(entry.into()).bits(), None);
        let winners = (0..self.size).map(|entry| u32::try_from(winner_of(entry)?).ok());
        winners.collect::<Option<_>>().ok_or_else(|| "no endpoints".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::{MockHost, TableInstance};

    const A: (&str, u32) = ("10.0.0.1:80", 1);
    const B: (&str, u32) = ("10.0.0.2:80", 1);
    const C: (&str, u32) = ("10.0.0.3:80", 2);

    fn table<const N: usize>(list: [(&str, u32); N]) -> Vec<u32> {
        let mut policy = TableInstance::<Bidding>::configure("null").unwrap();
        policy.build(&Endpoints::from(list), &MockHost::new()).unwrap()
    }

    #[test]
    fn shares_of_the_table_follow_the_weights() {
        let table = table([A, B, C]);
        for (index, expected) in [(0, 1_024_usize), (1, 1_024), (2, 2_048)] {
            let share = table.iter().filter(|&&entry| entry == index).count();
            assert!(share.abs_diff(expected) < 120, "{share} of {expected}");
        }
    }

    #[test]
    fn only_the_entries_of_the_endpoint_that_leaves_move() {
        let (before, after) = (table([A, B, C]), table([A, C]));
        let mut others = before.iter().zip(&after).filter(|(old, _)| **old != 1);
        assert!(others.all(|(old, new)| old / 2 == *new));
    }

    #[test]
    fn a_size_out_of_range_is_refused() {
        for size in [0, 65_537] {
            let config = format!(r#"{{ "size": {size} }}"#);
            let error = TableInstance::<Bidding>::configure(&config).unwrap_err();
            assert_eq!(error, format!("size: expected 1 to 65536, found {size}"));
        }
    }
}
