//! The balancer against a simulated kernel and network, a seed at a time.
//!
//! `world` is the kernel and the peers, `workload` decides what they do and when, `oracle` knows
//! what must come of it. A seed is a schedule: sizes of everything, the order of completions, who
//! resets whom, when the world changes. Replay one with `cargo xtask sim --seed N`; see that the
//! oracle can fail with `cargo xtask sim --mutants`.

mod datagrams;
mod mutants;
mod oracle;
mod rng;
mod workload;
mod world;

use std::collections::BTreeSet;
use std::panic::catch_unwind;

use pointsman_core::{CloseReason, DropReason, ShedReason};

/// Seeds of a normal run, unless `POINTSMAN_SIM_SEEDS` names another number.
const SEEDS: u64 = 500;

#[test]
#[ignore = "dev"]
fn dev() {
    let mut failed = Vec::new();
    let from = number("POINTSMAN_SIM_SEED").unwrap_or(0);
    for seed in from..from + number("POINTSMAN_SIM_SEEDS").unwrap_or(1) {
        if catch_unwind(|| datagrams::run(seed)).is_err() {
            failed.push(seed);
        }
    }
    println!("FAILED {} {failed:?}", failed.len());
}

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
    let mut reached = BTreeSet::new();
    for seed in seeds.clone() {
        let run = || (workload::run(seed), datagrams::run(seed));
        match catch_unwind(run) {
            Ok((streams, datagrams)) => reached.extend(streams.into_iter().chain(datagrams)),
            Err(panic) => {
                eprintln!("seed {seed} fails; replay it with: cargo xtask sim --seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    if seeds.end - seeds.start >= SEEDS {
        assert_everything_was_reached(&reached);
    }
}

/// A simulation that never gets somewhere proves nothing about it.
fn assert_everything_was_reached(reached: &BTreeSet<&'static str>) {
    let closes = CloseReason::ALL.map(CloseReason::label);
    let sheds = ShedReason::ALL.map(ShedReason::label);
    let drops = DropReason::ALL.map(DropReason::label);
    let missing: Vec<_> = closes
        .iter()
        .chain(&sheds)
        .chain(&drops)
        .filter(|label| !reached.contains(**label))
        .collect();
    assert!(missing.is_empty(), "no seed led to {missing:?}");
}

#[test]
fn a_seed_is_a_schedule() {
    assert_eq!(workload::trace(7), workload::trace(7));
    assert_ne!(workload::trace(7), workload::trace(8));
}
