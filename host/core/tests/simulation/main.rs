//! The balancer against a simulated kernel and network, a seed at a time.
//!
//! `world` is the kernel and the peers, `workload` decides what they do and when, `oracle` knows
//! what must come of it. A seed is a schedule: sizes of everything, the order of completions, who
//! resets whom, when the world changes. `introduction` has the headers by which clients are named.
//! `datagrams` has the same three for flows of datagrams, in one or two workers of one process, which
//! other processes take over from (`succession`);
//! `crowds` has two workers whose flows wait for each other. Replay one with `cargo xtask sim --seed N`; see that the
//! oracle can fail with `cargo xtask sim --mutants`.

mod crowds;
mod datagrams;
mod fared;
mod introduction;
mod mutants;
mod oracle;
mod passive;
mod rng;
mod workload;
mod world;

use std::collections::BTreeSet;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::ScopedJoinHandle;

use pointsman_core::{CloseReason, DropReason, KeylessReason, ShedReason};

/// Seeds of a normal run, unless `POINTSMAN_SIM_SEEDS` names another number.
const SEEDS: u64 = 500;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}

#[test]
fn every_schedule_keeps_the_contract() {
    let seeds = match number("POINTSMAN_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("POINTSMAN_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let all = seeds.end - seeds.start >= SEEDS;
    let next = AtomicU64::new(seeds.start);
    let reached = std::thread::scope(|scope| {
        let runners = [(); 2].map(|()| scope.spawn(|| run_some(&next, seeds.end)));
        runners.into_iter().flat_map(join).collect()
    });
    if all {
        assert_everything_was_reached(&reached);
    }
}

/// Runs seeds until there are no more; tells which named reasons they led to.
fn run_some(next: &AtomicU64, end: u64) -> BTreeSet<&'static str> {
    let mut reached = BTreeSet::new();
    loop {
        let seed = next.fetch_add(1, Relaxed);
        if seed >= end {
            return reached;
        }
        let run = || (workload::run(seed), datagrams::run(seed), crowds::run(seed));
        match catch_unwind(run) {
            Ok((streams, datagrams, crowds)) => {
                reached.extend(streams.into_iter().chain(datagrams).chain(crowds));
            }
            Err(panic) => {
                eprintln!("seed {seed} fails; replay it with: cargo xtask sim --seed {seed}");
                next.store(end, Relaxed);
                resume_unwind(panic);
            }
        }
    }
}

fn join(runner: ScopedJoinHandle<'_, BTreeSet<&'static str>>) -> BTreeSet<&'static str> {
    runner.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// A simulation that never gets somewhere proves nothing about it.
fn assert_everything_was_reached(reached: &BTreeSet<&'static str>) {
    let closes = CloseReason::ALL.map(CloseReason::label);
    let sheds = ShedReason::ALL.map(ShedReason::label);
    let drops = DropReason::ALL.map(DropReason::label);
    let keyless = KeylessReason::ALL.map(KeylessReason::label);
    let missing: Vec<_> = closes
        .iter()
        .chain(&sheds)
        .chain(&drops)
        .chain(&keyless)
        .chain(&[workload::TAKEN_OVER])
        .filter(|label| !reached.contains(**label))
        .collect();
    assert!(missing.is_empty(), "no seed led to {missing:?}");
}

#[test]
fn a_swap_moves_no_flow_that_was_there() {
    let mut flows = 0;
    for seed in 0..20 {
        let without = workload::endpoints_across_a_swap(seed, false);
        assert_eq!(without, workload::endpoints_across_a_swap(seed, true), "seed {seed}");
        flows += without.len();
    }
    assert!(flows > 40, "flows were there");
}

#[test]
fn a_seed_is_a_schedule() {
    assert_eq!(workload::trace(7), workload::trace(7));
    assert_ne!(workload::trace(7), workload::trace(8));
    assert_eq!(datagrams::trace(7), datagrams::trace(7));
}
