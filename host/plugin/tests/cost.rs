//! What a decision costs. Not a test of anything: run it by hand in release mode with
//! `cargo test -p pointsman-plugin --release --test cost -- --ignored --nocapture`.

mod common;

use std::hint::black_box;
use std::time::Instant;

use common::{Guest, Table, candidates, engine, flow, patient, policy_of, round_robin};
use pointsman_core::policy::Policy;

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
        let mut table = Table::new(&engine, &guest, patient());
        let flow = flow();
        let mut best = u128::MAX;
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            for _ in 0..CALLS {
                black_box(table.decide(black_box(&flow)));
            }
            best = best.min(begun.elapsed().as_nanos() / u128::from(CALLS));
        }
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
