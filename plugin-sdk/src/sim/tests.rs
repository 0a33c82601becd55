//! The simulator by itself, with policies whose outcome is known.

use super::*;
use crate::parts::maglev;
use crate::{Decision, Host, Instance, NoConfig, Policy, Sample, TableInstance, TablePolicy};
use crate::{WeightsInstance, WeightsPolicy};

const A: &str = "10.0.0.1:80";
const B: &str = "10.0.0.2:80";
const C: &str = "10.0.0.3:80";

/// Takes the endpoint with the fewest flows, but never the one to avoid.
struct Fewest;

impl Policy for Fewest {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, host: &dyn Host) -> Decision {
        let others = (0..endpoints.len()).filter(|&index| flow.avoid() != Some(index));
        others.min_by_key(|&index| host.load(index)).map_or(Decision::reset(), Decision::forward)
    }
}

struct Maglev;

impl TablePolicy for Maglev {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn build(&mut self, endpoints: &Endpoints, _: &dyn Host) -> Result<Vec<u32>, String> {
        maglev(endpoints, 65_537)
    }
}

/// The first endpoint weighs three times as much as each other.
struct ThreeToOne;

impl WeightsPolicy for ThreeToOne {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn tick(
        &mut self,
        _: u64,
        samples: &[Sample],
        _: &Endpoints,
        _: &dyn Host,
    ) -> Option<Vec<u32>> {
        Some((0..samples.len()).map(|index| if index == 0 { 3 } else { 1 }).collect())
    }
}

fn three() -> Sim {
    let service = Distribution::Exponential { mean: 2_000.0 };
    Sim::new(1).endpoint(A, 1, service).endpoint(B, 1, service).endpoint(C, 1, service)
}

fn fewest() -> Instance<Fewest> {
    Instance::configure("null").unwrap()
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    let run = |seed| {
        let sim = Sim { seed, ..three() }.arrivals(Distribution::Exponential { mean: 1_000.0 });
        let outcome = sim.run(&mut fewest(), 5_000);
        (outcome.served(A), outcome.latency_us(0.9))
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn an_endpoint_that_leaves_gets_nothing_more_and_one_that_joins_its_share() {
    let sim = three().at(1_000, Change::Leaves(A)).at(1_000, Change::Joins(C));
    let outcome = sim.run(&mut fewest(), 100_000);
    assert!(outcome.served(A) < 1_000);
    assert!((outcome.share(C) - 0.5).abs() < 0.05, "{}", outcome.share(C));
    assert_eq!((outcome.failed(), outcome.denied()), (0, 0));
}

#[test]
fn what_cannot_be_reached_costs_an_attempt_and_no_flow() {
    let outcome = three().at(500, Change::Fails(B)).run(&mut fewest(), 10_000);
    assert!(outcome.served(B) < 500);
    assert_eq!(outcome.failed(), 0);
    let all = three().at(0, Change::Fails(A)).at(0, Change::Fails(B)).at(0, Change::Fails(C));
    assert_eq!(all.run(&mut fewest(), 100).failed(), 100);
}

#[test]
fn who_serves_slower_makes_flows_wait() {
    let slow = three().at(0, Change::Slows(C, 50.0)).run(&mut fewest(), 10_000);
    let quick = three().run(&mut fewest(), 10_000);
    assert!(slow.latency_us(0.99) > 3 * quick.latency_us(0.99));
    assert!(slow.share(C) < quick.share(C) / 2.0, "the fewest flows are elsewhere");
}

#[test]
fn a_table_moves_few_clients_whose_endpoint_stays() {
    let policy: TableInstance<Maglev> = TableInstance::configure("null").unwrap();
    let sim = three().clients(1_000, 0.5).at(5_000, Change::Leaves(C));
    let outcome = sim.run(&mut Tabled::from(policy), 20_000);
    assert!(outcome.moved() < 0.1, "{}", outcome.moved());
    let outcome = three().at(5_000, Change::Leaves(C)).run(&mut fewest(), 20_000);
    assert!(outcome.moved() > 0.3, "who asks for load does not care for clients");
}

#[test]
fn weights_take_effect_with_the_first_tick() {
    let policy: WeightsInstance<ThreeToOne> = WeightsInstance::configure("null").unwrap();
    let outcome = three().run(&mut Weighed::from(policy), 50_000);
    assert!((outcome.share(A) - 0.6).abs() < 0.01, "{}", outcome.share(A));
}
