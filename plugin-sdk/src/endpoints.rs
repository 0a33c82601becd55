//! The endpoints that may be given a new flow.

use std::ops::Deref;

/// One address that serves the cluster, with its weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    address: String,
    weight: u32,
}

impl Endpoint {
    /// An endpoint; a weight of 0 is taken as 1.
    #[must_use]
    pub fn new(address: impl Into<String>, weight: u32) -> Self {
        Self { address: address.into(), weight: weight.max(1) }
    }

    /// `address:port`, an IPv6 address in brackets. What an endpoint is recognised by when the list
    /// changes.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its share relative to the others, at least 1.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        self.weight
    }
}

/// The list of endpoints that may be given a new flow: healthy, and not draining.
///
/// A slice of [`Endpoint`]; a decision names an index into it. The host never gives an empty list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    generation: u64,
    list: Vec<Endpoint>,
}

impl Endpoints {
    /// The list of one generation.
    #[must_use]
    pub const fn new(generation: u64, list: Vec<Endpoint>) -> Self {
        Self { generation, list }
    }

    /// Counts up whenever the list changes.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }
}

impl Deref for Endpoints {
    type Target = [Endpoint];

    fn deref(&self) -> &[Endpoint] {
        &self.list
    }
}

/// A list for a test: addresses and weights.
impl<const N: usize> From<[(&str, u32); N]> for Endpoints {
    fn from(list: [(&str, u32); N]) -> Self {
        let endpoints = list.map(|(address, weight)| Endpoint::new(address, weight));
        Self::new(0, endpoints.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_as_a_slice() {
        let endpoints = Endpoints::from([("10.0.0.1:80", 2), ("[::1]:80", 0)]);
        assert_eq!(endpoints.len(), 2);
        assert_eq!(endpoints[1].address(), "[::1]:80");
        assert_eq!(endpoints.iter().map(Endpoint::weight).collect::<Vec<_>>(), [2, 1]);
    }
}
