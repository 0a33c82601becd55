//! Keeps each client on one endpoint.
//!
//! Weighted rendezvous hashing: every endpoint bids for the client, and the highest bid wins, so that
//! shares follow the weights. An endpoint that leaves hands over its own clients and no others; one
//! that joins takes its share from everybody. All workers, and all balancers with the same endpoints,
//! agree without talking.
//!
//! The decision is kept for the client, so the bidding takes place once per client and ttl, and
//! within that time not even a change of the endpoints moves a client whose endpoint stays.
#![forbid(unsafe_code)]

use std::time::Duration;

use pointsman_sdk::parts::{Rendezvous, hash_address};
use pointsman_sdk::{Decision, Endpoints, Flow, Host, Policy, export};
use serde::Deserialize;

/// Gives each client address an endpoint of its own choosing.
#[derive(Debug)]
pub struct ClientAffinity {
    config: Config,
    bidders: Rendezvous,
}

/// The policy's config.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How long a client keeps its endpoint; 0 is the listener's idle timeout. Ten minutes by
    /// default: longer than most pauses, shorter than most sessions are worth.
    ttl_ms: u64,
    /// Whether each new flow of the client starts the ttl anew. True by default, so that only a
    /// client that stays away is forgotten.
    sliding: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { ttl_ms: 600_000, sliding: true }
    }
}

export!(ClientAffinity);

impl Policy for ClientAffinity {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self { config, bidders: Rendezvous::default() })
    }

    fn endpoints_changed(&mut self, endpoints: &Endpoints) {
        self.bidders = Rendezvous::new(endpoints);
    }

    fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, _: &dyn Host) -> Decision {
        let avoid = flow.avoid().filter(|_| endpoints.len() > 1);
        let winner = self.bidders.winner(hash_address(flow.client().ip()), avoid);
        let Some(index) = winner else { return Decision::defer() };
        let decision =
            Decision::forward(index).for_client(Duration::from_millis(self.config.ttl_ms));
        if self.config.sliding { decision.sliding() } else { decision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::{Instance, MockHost, Scope};
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    const A: (&str, u32) = ("10.0.0.1:80", 1);
    const B: (&str, u32) = ("10.0.0.2:80", 1);
    const C: (&str, u32) = ("10.0.0.3:80", 1);

    fn affinity<const N: usize>(endpoints: [(&str, u32); N]) -> Instance<ClientAffinity> {
        let mut policy = Instance::configure("null").unwrap();
        policy.endpoints_changed(Endpoints::from(endpoints));
        policy
    }

    fn flow(client: u32) -> Flow {
        Flow::new(SocketAddr::new(Ipv4Addr::from_bits(0x0a01_0000 + client).into(), 5000))
    }

    fn pick(policy: &mut Instance<ClientAffinity>, flow: &Flow) -> usize {
        policy.decide(flow, &MockHost::new()).endpoint().unwrap()
    }

    /// The endpoints of the first ten thousand clients.
    fn picks(policy: &mut Instance<ClientAffinity>) -> Vec<usize> {
        (0..10_000).map(|client| pick(policy, &flow(client))).collect()
    }

    fn share(picks: &[usize], index: usize) -> usize {
        picks.iter().filter(|&&pick| pick == index).count()
    }

    #[test]
    fn a_client_keeps_its_endpoint_whatever_its_port_and_the_chance_of_the_moment() {
        let mut policy = affinity([A, B, C]);
        for client in 0..100 {
            let other_port = SocketAddr::new(flow(client).client().ip(), 6000);
            let other = Flow::new(other_port).with_random(9).with_now_ms(1_000_000);
            assert_eq!(pick(&mut policy, &flow(client)), pick(&mut policy, &other));
        }
    }

    #[test]
    fn neighbouring_clients_spread_evenly() {
        let picks = picks(&mut affinity([A, B, C]));
        assert!((0..3).all(|index| share(&picks, index).abs_diff(3_333) < 150));
    }

    #[test]
    fn clients_with_ipv6_addresses_of_one_prefix_spread_evenly() {
        let mut policy = affinity([A, B, C]);
        let bits = |client: u128| 0x2001_0db8 << 96 | client << 64 | 1;
        let client = |n| SocketAddr::new(Ipv6Addr::from_bits(bits(n)).into(), 5000);
        let picks: Vec<_> = (0..10_000).map(|n| pick(&mut policy, &Flow::new(client(n)))).collect();
        assert!((0..3).all(|index| share(&picks, index).abs_diff(3_333) < 150));
    }

    #[test]
    fn shares_follow_the_weights() {
        let picks = picks(&mut affinity([(A.0, 5), (B.0, 3), (C.0, 2)]));
        assert!(share(&picks, 0).abs_diff(5_000) < 150);
        assert!(share(&picks, 1).abs_diff(3_000) < 150);
        assert!(share(&picks, 2).abs_diff(2_000) < 150);
    }

    #[test]
    fn an_endpoint_that_leaves_moves_its_own_clients_and_no_others() {
        let before = picks(&mut affinity([A, B, C]));
        let after = picks(&mut affinity([A, C]));
        let mut moved = std::iter::zip(before, after).filter(|&(old, _)| old != 1);
        assert!(moved.all(|(old, new)| (old == 0) == (new == 0)));
    }

    #[test]
    fn a_weight_that_grows_only_attracts() {
        let before = picks(&mut affinity([A, B, C]));
        let after = picks(&mut affinity([A, (B.0, 2), C]));
        assert!(share(&after, 1).abs_diff(5_000) < 150);
        assert!(std::iter::zip(before, after).all(|(old, new)| old == new || new == 1));
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let before = picks(&mut affinity([A, B, C]));
        let after = picks(&mut affinity([C, B, A]));
        assert!(std::iter::zip(before, after).all(|(old, new)| old == 2 - new));
    }

    #[test]
    fn a_retry_goes_where_the_client_would_go_if_the_endpoint_were_gone() {
        let mut policy = affinity([A, B, C]);
        let mut without_b = affinity([A, C]);
        for client in (0..1_000).map(flow) {
            let elsewhere = pick(&mut policy, &client.retried_after(1));
            assert_ne!(elsewhere, 1);
            assert_eq!(elsewhere == 0, pick(&mut without_b, &client) == 0);
        }
    }

    #[test]
    fn a_lone_endpoint_is_tried_again() {
        assert_eq!(pick(&mut affinity([A]), &flow(1).retried_after(0)), 0);
    }

    #[test]
    fn the_decision_is_kept_for_the_client_as_configured() {
        let decide = |config| {
            let mut policy = Instance::<ClientAffinity>::configure(config).unwrap();
            policy.endpoints_changed(Endpoints::from([A, B]));
            policy.decide(&flow(1), &MockHost::new())
        };
        let by_default = decide("null");
        assert_eq!(by_default.scope, Scope::Client);
        assert_eq!((by_default.ttl_ms, by_default.sliding), (600_000, true));
        let configured = decide(r#"{ "ttl_ms": 5000, "sliding": false }"#);
        assert_eq!((configured.ttl_ms, configured.sliding), (5_000, false));
    }
}
