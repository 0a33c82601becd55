//! What a guest that misbehaves can do to the balancer: waste its own decision.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    Guest, Table, bad_flow, candidates, endpoint_of, engine, flow, hasty, patient, until,
};
use pointsman_core::policy::{Policy, Source};
use pointsman_plugin::{FaultKind, InstanceError, PolicySettings, Step};

const TRAP: &str = "unreachable";
const LOOP: &str = "(loop $for_ever (br $for_ever))";
const DIVE: &str = "(call $dive)";
const DIVE_FIELD: &str = "(func $dive (call $dive) (call $dive))";
/// Takes memory until it is refused, then traps, as an allocator does.
const GORGE: &str = "(loop $more
      (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
      (br $more))";

/// Has the guest misbehave once, and checks that this costs one decision and no more.
fn costs_its_own_decision(guest: &Guest, settings: PolicySettings, kind: FaultKind) {
    let mut table = Table::new(&engine(), guest, settings);
    table.await_guest();
    let before = table.stats.snapshot();
    let decided = table.decide(&bad_flow());
    assert_eq!((endpoint_of(&decided), decided.source), (2, Source::Fallback));
    let after = table.stats.snapshot();
    assert_eq!(after.faults_of(kind), before.faults_of(kind) + 1, "{kind} of {after:?}");

    table.await_guest();
    assert!(table.stats.snapshot().remade >= 1);
}

#[test]
fn a_trap_costs_its_own_decision() {
    costs_its_own_decision(&Guest::bad_at_666(TRAP), patient(), FaultKind::Trap);
}

#[test]
fn a_division_by_zero_costs_its_own_decision() {
    let guest = Guest::bad_at_666("(drop (i32.div_u (i32.const 1) (i32.const 0)))");
    costs_its_own_decision(&guest, patient(), FaultKind::Trap);
}

#[test]
fn a_wild_write_costs_its_own_decision() {
    let guest = Guest::bad_at_666("(i32.store (i32.const -8) (i32.const 1))");
    costs_its_own_decision(&guest, patient(), FaultKind::Trap);
}

#[test]
fn an_endless_loop_costs_its_own_decision() {
    costs_its_own_decision(&Guest::bad_at_666(LOOP), hasty(), FaultKind::Deadline);
}

#[test]
fn endless_recursion_costs_its_own_decision() {
    let guest = Guest::bad_at_666(DIVE).with_fields(DIVE_FIELD);
    costs_its_own_decision(&guest, patient(), FaultKind::Trap);
}

#[test]
fn endless_memory_costs_its_own_decision() {
    costs_its_own_decision(&Guest::bad_at_666(GORGE), patient(), FaultKind::Memory);
}

#[test]
fn an_answer_that_is_none_costs_its_own_decision() {
    // A verdict that does not exist, and an answer outside of memory.
    let discriminant = "(i32.store8 (i32.const 1024) (i32.const 200)) (return (i32.const 1024))";
    costs_its_own_decision(&Guest::bad_at_666(discriminant), patient(), FaultKind::Answer);
    let nowhere = "(return (i32.const -4))";
    costs_its_own_decision(&Guest::bad_at_666(nowhere), patient(), FaultKind::Answer);
}

#[test]
fn a_huge_log_line_costs_its_own_decision() {
    let guest = Guest::bad_at_666("(call $log (i32.const 0) (i32.const 0) (i32.const 1000000))");
    costs_its_own_decision(&guest.with_pages(32), patient(), FaultKind::Trap);
}

#[test]
fn a_log_line_from_nowhere_costs_its_own_decision() {
    let guest = Guest::bad_at_666("(call $log (i32.const 0) (i32.const -10) (i32.const 5))");
    costs_its_own_decision(&guest, patient(), FaultKind::Trap);
}

#[test]
fn an_endpoint_out_of_range_is_the_fallbacks_decision_and_breaks_nothing() {
    let guest = Guest::deciding(
        "(if (i64.eq (local.get $random) (i64.const 666)) (then (return (call $forward (i32.const 3)))))
         (global.set $turn (i32.add (global.get $turn) (i32.const 1)))
         (call $mark (global.get $turn))",
    );
    let mut table = Table::new(&engine(), &guest, patient());
    assert_eq!(table.decide(&flow()).decision.method.tag, 1);
    let decided = table.decide(&bad_flow());
    assert_eq!((endpoint_of(&decided), decided.source), (2, Source::Fallback));
    // The same instance goes on.
    assert_eq!(table.decide(&flow()).decision.method.tag, 2);
    let counts = table.stats.snapshot();
    assert_eq!((counts.faults_of(FaultKind::Answer), counts.remade), (1, 0));
    assert_eq!(counts.faults_total(), 1);
}

#[test]
fn a_refused_growth_that_a_guest_lives_with_is_no_fault() {
    let guest =
        Guest::deciding("(drop (memory.grow (i32.const 30000))) (call $mark (memory.size))");
    let settings = PolicySettings { memory_bytes_max: 1 << 20, ..patient() };
    let mut table = Table::new(&engine(), &guest, settings);
    let decided = table.decide(&flow());
    assert_eq!((decided.source, decided.decision.method.tag), (Source::Plugin, 1));
    assert_eq!(table.stats.snapshot().faults_total(), 0);
}

#[test]
fn a_growth_refused_long_ago_is_not_blamed_for_a_trap() {
    let guest = Guest::deciding(
        "(if (i64.eq (local.get $random) (i64.const 666)) (then unreachable))
         (drop (memory.grow (i32.const 30000)))
         (call $forward (i32.const 0))",
    );
    costs_its_own_decision(&guest, patient(), FaultKind::Trap);
}

#[test]
fn a_fault_on_a_changed_list_is_answered_and_repaired_with_that_list() {
    let cases = [
        (TRAP, patient(), FaultKind::Trap),
        (DIVE, patient(), FaultKind::Trap),
        (GORGE, patient(), FaultKind::Memory),
        (LOOP, hasty(), FaultKind::Deadline),
    ];
    let engine = engine();
    for (misbehave, settings, kind) in cases {
        // Only an instance that has known another list misbehaves.
        let guest = Guest::hearing(&format!(
            "(if (global.get $turn) (then {misbehave})) (global.set $turn (i32.const 1))"
        ));
        let mut table = Table::new(&engine, &guest.with_fields(DIVE_FIELD), settings);
        table.await_guest();
        table.among = candidates(2, 5);
        let decided = table.decide(&flow());
        assert_eq!((endpoint_of(&decided), decided.source), (4, Source::Fallback));
        assert!(table.stats.snapshot().faults_of(kind) >= 1, "{kind}");
        table.await_guest();
    }
}

#[test]
fn a_guest_that_fails_to_start_makes_no_policy() {
    let cases = [
        (format!("(func $main {TRAP}) (start $main)"), patient(), FaultKind::Trap),
        (format!("{DIVE_FIELD} (start $dive)"), patient(), FaultKind::Trap),
        (format!("(func $main {LOOP}) (start $main)"), hasty(), FaultKind::Deadline),
        (format!("(func $main {GORGE}) (start $main)"), patient(), FaultKind::Memory),
    ];
    let engine = engine();
    for (fields, settings, expected) in cases {
        let guest = Guest::default().with_fields(&fields);
        assert_fails(&engine, &guest, settings, (Step::Start, expected));
    }
}

#[test]
fn a_guest_that_fails_to_configure_makes_no_policy() {
    fails_in(Step::Configure, |body| Guest::configuring(&format!("{body} (i32.const 2048)")));
}

#[test]
fn a_guest_that_fails_to_hear_of_endpoints_makes_no_policy() {
    fails_in(Step::Endpoints, Guest::hearing);
}

fn fails_in(step: Step, guest: impl Fn(&str) -> Guest) {
    let cases = [
        (TRAP, patient(), FaultKind::Trap),
        (LOOP, hasty(), FaultKind::Deadline),
        (DIVE, patient(), FaultKind::Trap),
        (GORGE, patient(), FaultKind::Memory),
    ];
    let engine = engine();
    for (body, settings, kind) in cases {
        let guest = guest(body).with_fields(DIVE_FIELD);
        assert_fails(&engine, &guest, settings, (step, kind));
    }
}

fn assert_fails(
    engine: &pointsman_plugin::Engine,
    guest: &Guest,
    settings: PolicySettings,
    expected: (Step, FaultKind),
) {
    match Table::try_new(engine, guest, settings).err() {
        Some(error @ InstanceError::Fault { step, kind, .. }) => {
            assert_eq!((step, kind), expected, "{error}");
            common::assert_well_put(&error.to_string());
        }
        other => panic!("{other:?} instead of {expected:?}"),
    }
}

#[test]
fn a_configuration_error_is_told_in_the_guests_words_on_one_line() {
    let guest = Guest::configuring(
        "(i32.store8 (i32.const 2048) (i32.const 1))
         (i32.store (i32.const 2052) (i32.const 100))
         (i32.store (i32.const 2056) (i32.const 23))
         (i32.const 2048)",
    )
    .with_fields(r#"(data (i32.const 100) "choices:\0amust not be 0 ")"#);
    let error = Table::try_new(&engine(), &guest, patient()).err().unwrap();
    assert_eq!(error, InstanceError::Config("choices: must not be 0".into()));
    common::assert_well_put(&error.to_string());
}

#[test]
fn a_guest_that_wants_too_much_memory_from_the_start_makes_no_policy() {
    let guest = Guest::default().with_pages(300);
    assert_fails(&engine(), &guest, patient(), (Step::Start, FaultKind::Memory));
}

#[test]
fn other_policies_notice_nothing_of_one_that_fails_all_the_time() {
    let engine = engine();
    let mut bad = Table::new(&engine, &Guest::deciding(TRAP), patient());
    let mut good = Table::new(&engine, &common::round_robin(), patient());
    until("the bad one has failed a few times", || {
        assert_eq!(bad.decide(&flow()).source, Source::Fallback);
        assert_eq!(good.decide(&flow()).source, Source::Plugin);
        bad.stats.snapshot().faults_total() >= 5
    });
    assert_eq!(good.stats.snapshot().faults_total(), 0);
}

#[test]
fn a_guest_that_cannot_be_made_anew_is_stood_in_for_and_tried_again() {
    // It cannot bear the second list, so no instance that is told that one comes about.
    let guest = Guest {
        endpoints_changed: format!("(if (i64.eq (local.get $new) (i64.const 2)) (then {TRAP}))"),
        ..Guest::default()
    };
    let mut table = Table::new(&engine(), &guest, patient());
    let second = candidates(2, 2);
    let begun = Instant::now();
    assert_eq!(table.policy.decide(&flow(), &second).source, Source::Fallback);
    let stats = Arc::clone(&table.stats);
    until("it was tried again a few times", || stats.snapshot().remakes_failed >= 5);
    // 10, 20, 40, 80 and 160 ms.
    assert!(begun.elapsed() >= Duration::from_millis(310));
    let counts = stats.snapshot();
    assert!(counts.faults_of(FaultKind::Trap) >= 3);
    assert_eq!(counts.remade, 0);
    for _ in 0..100 {
        assert_eq!(table.policy.decide(&flow(), &second).source, Source::Fallback);
    }
}
