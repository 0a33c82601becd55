//! Places in the pool: taken, given back, never lost.

mod common;

use std::sync::Arc;

use common::{
    Guest, Table, bad_flow, candidates, engine_of, flow, patient, policy_of, round_robin,
};
use pointsman_core::policy::{Policy, Source};
use pointsman_plugin::{EngineLimits, InstanceError};

const PLACES: u32 = 4;

fn small_engine() -> pointsman_plugin::Engine {
    engine_of(EngineLimits { instances_max: PLACES, ..EngineLimits::default() })
}

#[test]
fn a_thousand_dropped_policies_give_their_places_back() {
    let engine = small_engine();
    let module = engine.load(&round_robin().module()).unwrap();
    let among = candidates(1, 3);
    let stats = Arc::default();
    for _ in 0..1000 {
        let mut policy = policy_of(&module, patient(), &stats, &among).unwrap();
        assert_eq!(policy.decide(&flow(), &among).source, Source::Plugin);
    }
}

#[test]
fn a_full_pool_says_so_and_has_room_again_once_one_is_dropped() {
    let engine = small_engine();
    let module = engine.load(&round_robin().module()).unwrap();
    let among = candidates(1, 3);
    let stats = Arc::default();
    let make = || policy_of(&module, patient(), &stats, &among);
    let mut policies: Vec<_> = (0..PLACES).map(|_| make().unwrap()).collect();
    let error = make().err().unwrap();
    assert_eq!(error, InstanceError::Full);
    common::assert_well_put(&error.to_string());
    policies.pop();
    policies.push(make().unwrap());
}

#[test]
fn a_broken_instance_gives_its_place_back() {
    let engine = small_engine();
    let mut table = Table::new(&engine, &Guest::bad_at_666("unreachable"), patient());
    for _ in 0..2 * PLACES {
        table.await_guest();
        assert_eq!(table.decide(&bad_flow()).source, Source::Fallback);
    }
}

#[test]
fn a_policy_dropped_while_it_is_made_anew_leaves_nothing_behind() {
    let engine = small_engine();
    let module = engine.load(&Guest::bad_at_666("unreachable").module()).unwrap();
    let among = candidates(1, 3);
    let stats = Arc::default();
    for _ in 0..8 * PLACES {
        let mut policy = policy_of(&module, patient(), &stats, &among).unwrap();
        assert_eq!(policy.decide(&bad_flow(), &among).source, Source::Fallback);
    }
    let make = || policy_of(&module, patient(), &stats, &among).unwrap();
    let all: Vec<_> = (0..PLACES).map(|_| make()).collect();
    assert_eq!(all.len(), PLACES as usize);
}

#[test]
fn a_policy_dropped_with_its_replacement_unclaimed_leaves_nothing_behind() {
    let engine = small_engine();
    let module = engine.load(&Guest::bad_at_666("unreachable").module()).unwrap();
    let among = candidates(1, 3);
    for _ in 0..2 * PLACES {
        let stats = Arc::default();
        let mut policy = policy_of(&module, patient(), &stats, &among).unwrap();
        policy.decide(&bad_flow(), &among);
        common::until("the replacement is made", || stats.snapshot().remade == 1);
    }
}

#[test]
fn a_large_pool_takes_no_memory_until_it_is_used() {
    let before = resident_kib();
    let engine = engine_of(EngineLimits { instances_max: 1024, ..EngineLimits::default() });
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB for a pool of which nothing is used");
    drop(engine);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
