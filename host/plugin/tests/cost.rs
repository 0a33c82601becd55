//! What a decision costs. Not a test of anything: run it by hand in release mode with
//! `cargo test -p pointsman-plugin --release --test cost -- --ignored --nocapture`.

mod common;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use common::{
    Guest, Table, candidates, engine, engine_with_log, flow, patient, policy_of, round_robin,
};
use pointsman_core::Candidates;
use pointsman_core::policy::Policy;
use pointsman_plugin::{GuestPolicy, PolicySettings, PolicyStats};

/// Few calls in each of many rounds: on a busy machine the fastest round is the undisturbed one.
const ROUNDS: u32 = 2000;
const CALLS: u32 = 1000;

#[test]
#[ignore = "measures, and takes seconds"]
fn nanoseconds_of_a_decision() {
    let engine = engine();
    engine.prepare_thread();
    let p2c = Guest::deciding(
        "(call $forward (i32.gt_u (call $load (i32.const 0)) (call $load (i32.const 1))))",
    );
    for (name, guest) in [("round robin", round_robin()), ("two loads", p2c)] {
        let Table { mut policy, among, .. } = Table::new(&engine, &guest, patient());
        let best = best_of(&mut policy, &among);
        println!("{name}: {best} ns");
    }
}

#[test]
#[ignore = "measures, and takes seconds"]
fn microseconds_of_an_instance() {
    let engine = engine();
    let begun = Instant::now();
    let module = engine.load(&round_robin().module()).unwrap();
    println!("load: {} us", begun.elapsed().as_micros());
    let among = candidates(1, 3);
    let begun = Instant::now();
    for _ in 0..1000 {
        let mut policy = policy_of(&module, patient(), &Default::default(), &among).unwrap();
        black_box(policy.decide(&flow(), &among));
    }
    println!("make, ask once, drop: {} us", begun.elapsed().as_micros() / 1000);
}

/// Measures a plugin as built: `POLICY=path/to/policy.wasm`, and `CONFIG` for its configuration.
#[test]
#[ignore = "measures, and needs a plugin"]
fn nanoseconds_of_a_plugin() {
    let Ok(path) = std::env::var("POLICY") else { return };
    let config = std::env::var("CONFIG").unwrap_or("null".into());
    let (engine, log) = engine_with_log();
    let module = engine.load(&std::fs::read(&path).unwrap()).unwrap_or_else(|e| panic!("{e}"));
    let settings = PolicySettings { config_json: config, ..patient() };
    let among = candidates(1, 3);
    let stats = Arc::<PolicyStats>::default();
    let mut policy = policy_of(&module, settings, &stats, &among).unwrap_or_else(|e| panic!("{e}"));
    let best = best_of(&mut policy, &among);
    for line in log.try_iter().take(10) {
        println!("{:?} {:?}: {}", line.speaker, line.level, line.message);
    }
    println!("{path}: {best} ns, {} faults", stats.snapshot().faults_total());
}

/// Nanoseconds per call in the fastest round.
fn best_of(policy: &mut GuestPolicy, among: &Arc<Candidates>) -> u128 {
    let flow = flow();
    let round = |_| {
        let begun = Instant::now();
        for _ in 0..CALLS {
            black_box(policy.decide(black_box(&flow), among));
        }
        begun.elapsed().as_nanos() / u128::from(CALLS)
    };
    (0..ROUNDS).map(round).min().unwrap_or_default()
}
