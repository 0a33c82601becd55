//! Maglev hashing: a lookup table that changes little when the endpoints do.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016),
//! section 3.4, in the construction of Envoy (`maglev_lb.cc`), so that a fleet that runs both agrees
//! on every client, and so does the balancer's own Maglev policy.

use super::xxh64;
use crate::Endpoints;

const VACANT: u32 = u32::MAX;

/// The size to use where nothing speaks for another: a prime, and Envoy's default.
pub const MAGLEV_SIZE: u32 = 65_537;

/// Builds the table: for each hash modulo `size`, the index of an endpoint. Takes time in proportion
/// to `size` and to the number of endpoints.
///
/// # Errors
///
/// If `size` is no prime above the number of endpoints, or if there are none.
pub fn maglev(endpoints: &Endpoints, size: u32) -> Result<Vec<u32>, String> {
    if endpoints.is_empty() {
        return Err("no endpoints".into());
    }
    if endpoints.len() >= size as usize || !is_prime(size) {
        return Err(format!(
            "expected a prime above the {} endpoints, found {size}",
            endpoints.len()
        ));
    }
    let mut walks: Vec<Walk> = (0..)
        .zip(endpoints.iter())
        .map(|(index, endpoint)| Walk::new(index, endpoint.address(), endpoint.weight(), size))
        .collect();
    walks.sort_unstable_by_key(|walk| endpoints[walk.endpoint as usize].address());
    Ok(fill(&mut walks, size))
}

/// One endpoint's way through the table: every place once, in an order of its own.
struct Walk {
    endpoint: u32,
    weight: f64,
    target: f64,
    next: u64,
    skip: u64,
}

impl Walk {
    fn new(endpoint: u32, address: &str, weight: u32, size: u32) -> Self {
        let size = u64::from(size);
        Self {
            endpoint,
            weight: f64::from(weight),
            target: 0.0,
            next: xxh64(address.as_bytes(), 0) % size,
            skip: xxh64(address.as_bytes(), 1) % (size - 1) + 1,
        }
    }

    /// Takes the next place that is vacant.
    fn take(&mut self, table: &mut [u32]) {
        let size = table.len() as u64;
        while table[self.next as usize] != VACANT {
            self.next = (self.next + self.skip) % size;
        }
        table[self.next as usize] = self.endpoint;
        self.next = (self.next + self.skip) % size;
    }
}

/// Lets the endpoints take places in turn. In one round an endpoint takes one if its share of the
/// weight has earned it.
fn fill(walks: &mut [Walk], size: u32) -> Vec<u32> {
    let mut table = vec![VACANT; size as usize];
    let weight_max = walks.iter().map(|walk| walk.weight).fold(0.0, f64::max);
    let mut left = size;
    for round in 1_u32.. {
        for walk in &mut *walks {
            if left == 0 {
                return table;
            }
            if f64::from(round) * walk.weight >= walk.target {
                walk.target += weight_max;
                walk.take(&mut table);
                left -= 1;
            }
        }
    }
    table
}

fn is_prime(number: u32) -> bool {
    let number = u64::from(number);
    let mut divisors = (2..).take_while(|divisor| divisor * divisor <= number);
    number >= 2 && divisors.all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Endpoint;

    fn endpoints(weights: &[u32]) -> Endpoints {
        let list = weights.iter().enumerate();
        Endpoints::new(
            0,
            list.map(|(n, &weight)| Endpoint::new(format!("10.0.0.{n}:80"), weight)).collect(),
        )
    }

    #[test]
    fn a_table_once_built_never_changes() {
        assert_eq!(maglev(&endpoints(&[1, 1, 1]), 7).unwrap(), [0, 2, 1, 0, 0, 2, 1]);
    }

    #[test]
    fn tables_are_those_of_the_balancers_own_policy() {
        for weights in [&[1, 1, 1, 1, 1][..], &[1, 2, 5], &[7], &[3, 3, 1, 65_535]] {
            for size in [11, 251, MAGLEV_SIZE] {
                let list = endpoints(weights);
                let pairs: Vec<_> = list.iter().map(|it| (it.address(), it.weight())).collect();
                let theirs = pointsman_core::policy::maglev::build(&pairs, size).unwrap();
                assert_eq!(maglev(&list, size).unwrap(), theirs.slots(), "{weights:?} in {size}");
            }
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let forwards = [("10.0.0.1:80", 1), ("10.0.0.2:80", 2)];
        let backwards = [forwards[1], forwards[0]];
        let forwards = maglev(&Endpoints::from(forwards), 251).unwrap();
        let backwards = maglev(&Endpoints::from(backwards), 251).unwrap();
        assert!(forwards.iter().zip(backwards).all(|(one, other)| one + other == 1));
    }

    #[test]
    fn a_size_that_is_no_prime_above_the_endpoints_is_refused() {
        for size in [0, 1, 3, 4, 9, 65_536] {
            assert!(maglev(&endpoints(&[1; 3]), size).is_err(), "{size}");
        }
        assert!(maglev(&Endpoints::default(), 7).is_err());
        let error = maglev(&endpoints(&[1; 3]), 4).unwrap_err();
        assert_eq!(error, "expected a prime above the 3 endpoints, found 4");
    }
}
