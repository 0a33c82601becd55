//! What a guest that misbehaves can do to the balancer: waste its own decision.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    Guest, Table, bad_flow, both, candidates, endpoint_of, engine, flow, hasty, patient, place,
    until,
};
use pointsman_core::policy::{Policy, Source};
use pointsman_plugin::{
    Engine, FaultKind, GuestFault, GuestPolicy, InstanceError, Module, Place, PolicySettings,
    PolicyStats, Shape, Step, TableGuest, WeightsGuest,
};

const TRAP: &str = "unreachable";
const LOOP: &str = "(loop $for_ever (br $for_ever))";
const DIVE: &str = "(call $dive)";
const DIVE_FIELD: &str = "(func $dive (call $dive) (call $dive))";
/// Takes memory until it is refused, then traps, as an allocator does.
const GORGE: &str = "(loop $more
      (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
      (br $more))";

/// What can be done in every function, and what it is called.
fn misdeeds() -> [(&'static str, PolicySettings, FaultKind); 4] {
    [
        (TRAP, patient(), FaultKind::Trap),
        (LOOP, hasty(), FaultKind::Deadline),
        (DIVE, patient(), FaultKind::Trap),
        (GORGE, patient(), FaultKind::Memory),
    ]
}

/// Has the guest misbehave once, and checks that this costs one decision and no more.
fn costs_its_own_decision(guest: &Guest, settings: &PolicySettings, kind: FaultKind) {
    for module in both(&engine(), guest) {
        costs_one(Table::of(&module, settings.clone()).unwrap(), kind);
    }
}

fn costs_one(mut table: Table, kind: FaultKind) {
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
    costs_its_own_decision(&Guest::bad_at_666(TRAP), &patient(), FaultKind::Trap);
}

#[test]
fn a_division_by_zero_costs_its_own_decision() {
    let guest = Guest::bad_at_666("(drop (i32.div_u (i32.const 1) (i32.const 0)))");
    costs_its_own_decision(&guest, &patient(), FaultKind::Trap);
}

#[test]
fn a_wild_write_costs_its_own_decision() {
    let guest = Guest::bad_at_666("(i32.store (i32.const -8) (i32.const 1))");
    costs_its_own_decision(&guest, &patient(), FaultKind::Trap);
}

#[test]
fn an_endless_loop_costs_its_own_decision() {
    costs_its_own_decision(&Guest::bad_at_666(LOOP), &hasty(), FaultKind::Deadline);
}

#[test]
fn endless_recursion_costs_its_own_decision() {
    let guest = Guest::bad_at_666(DIVE).with_fields(DIVE_FIELD);
    costs_its_own_decision(&guest, &patient(), FaultKind::Trap);
}

#[test]
fn endless_memory_costs_its_own_decision() {
    costs_its_own_decision(&Guest::bad_at_666(GORGE), &patient(), FaultKind::Memory);
}

#[test]
fn an_answer_that_is_none_costs_its_own_decision() {
    // A verdict that does not exist, and an answer outside of memory.
    let discriminant = "(i32.store8 (i32.const 1024) (i32.const 200)) (return (i32.const 1024))";
    costs_its_own_decision(&Guest::bad_at_666(discriminant), &patient(), FaultKind::Answer);
    let nowhere = "(return (i32.const -4))";
    costs_its_own_decision(&Guest::bad_at_666(nowhere), &patient(), FaultKind::Answer);
}

#[test]
fn a_huge_log_line_costs_its_own_decision() {
    let guest = Guest::bad_at_666("(call $log (i32.const 0) (i32.const 0) (i32.const 1000000))");
    costs_its_own_decision(&guest.with_pages(32), &patient(), FaultKind::Trap);
}

#[test]
fn a_log_line_from_nowhere_costs_its_own_decision() {
    let guest = Guest::bad_at_666("(call $log (i32.const 0) (i32.const -10) (i32.const 5))");
    costs_its_own_decision(&guest, &patient(), FaultKind::Trap);
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
    costs_its_own_decision(&guest, &patient(), FaultKind::Trap);
}

#[test]
fn a_fault_on_a_changed_list_is_answered_and_repaired_with_that_list() {
    let engine = engine();
    for (misbehave, settings, kind) in misdeeds() {
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
        assert_fails(&engine, &guest, &settings, (Step::Start, expected));
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

#[test]
fn a_guest_that_fails_to_take_over_makes_no_policy() {
    fails_in(Step::Restore, |body| {
        let mut guest = Guest::remembering();
        guest.beside.restore = Some(format!("{body} (i32.const 2048)"));
        guest
    });
}

fn fails_in(step: Step, guest: impl Fn(&str) -> Guest) {
    let engine = engine();
    for (body, settings, kind) in misdeeds() {
        let guest = guest(body).with_fields(DIVE_FIELD);
        assert_fails(&engine, &guest, &settings, (step, kind));
    }
}

fn assert_fails(
    engine: &Engine,
    guest: &Guest,
    settings: &PolicySettings,
    expected: (Step, FaultKind),
) {
    for module in both(engine, guest) {
        // Who takes no state is not bothered by some.
        let place = Place { state: Some(vec![1]), ..place(&Arc::default()) };
        let settings = Arc::new(settings.clone());
        let made = GuestPolicy::new(&module, settings, place, &candidates(1, 3));
        assert_failed(made.err(), expected);
    }
}

fn assert_failed(error: Option<InstanceError>, expected: (Step, FaultKind)) {
    match error {
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
    assert_fails(&engine(), &guest, &patient(), (Step::Start, FaultKind::Memory));
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

/// Answers that are none, for functions that return text, bytes or a list.
const NONSENSE: [&str; 4] = [
    // From outside of memory, and from a place where it cannot lie.
    "(return (i32.const -4))",
    "(return (i32.const 3073))",
    // A list outside of memory, and one that is too long.
    "(return (call $list (i32.const 65536) (i32.const 64000)))",
    "(return (call $list (i32.const 0) (i32.const 0x7fffffff)))",
];

/// Has a chooser misbehave in a call that no flow waits for.
fn costs_no_flow(
    guest: &Guest,
    settings: &PolicySettings,
    act: impl Fn(&mut Table),
    kind: FaultKind,
) {
    for module in both(&engine(), guest) {
        let mut table = Table::of(&module, settings.clone()).unwrap();
        act(&mut table);
        assert_eq!(table.stats.snapshot().faults_of(kind), 1, "{kind}");
        assert_eq!(table.stats.snapshot().faults_total(), 1);
        assert_eq!(table.decide(&flow()).source, Source::Fallback);
        table.await_guest();
    }
}

#[test]
fn a_guest_that_fails_when_fed_costs_no_flow() {
    for (body, settings, kind) in misdeeds() {
        let mut guest = Guest::default().with_fields(DIVE_FIELD);
        guest.beside.feed = Some(body.into());
        costs_no_flow(&guest, &settings, |it| it.policy.tick(flow().now, &it.among), kind);
    }
}

#[test]
fn a_guest_that_fails_to_hand_over_costs_no_flow() {
    let nonsense = NONSENSE.map(|body| (body, patient(), FaultKind::Answer));
    for (body, settings, kind) in misdeeds().into_iter().chain(nonsense) {
        let mut guest = Guest::remembering().with_fields(DIVE_FIELD);
        guest.beside.snapshot = Some(format!("{body} (i32.const 0)"));
        costs_no_flow(&guest, &settings, |it| assert_eq!(it.policy.state(), None), kind);
    }
}

/// Has a policy of the control side misbehave in its answer.
fn fails_to_answer(
    shape: Shape,
    nonsense: &[&'static str],
    ask: impl Fn(&Module, PolicySettings, &Arc<PolicyStats>) -> Result<(), GuestFault>,
) {
    let nonsense = nonsense.iter().map(|&body| (body, patient(), FaultKind::Answer));
    let engine = engine();
    for (body, settings, kind) in misdeeds().into_iter().chain(nonsense) {
        let guest = Guest::of(shape, &format!("{body} (i32.const 0)")).with_fields(DIVE_FIELD);
        for module in both(&engine, &guest) {
            let stats = Arc::default();
            let fault = ask(&module, settings.clone(), &stats).unwrap_err();
            assert_eq!(fault.kind, kind, "{fault}");
            common::assert_well_put(&fault.to_string());
            assert_eq!(stats.snapshot().faults_of(kind), 1);
        }
    }
}

#[test]
fn a_table_that_is_not_made_is_a_fault_and_no_more() {
    let no_case = "(i32.store8 (i32.const 3068) (i32.const 7)) (return (i32.const 3068))";
    let long = "(return (call $ok_list (i32.const 0) (i32.const 0x7fffffff)))";
    let crooked = "(return (call $ok_list (i32.const 8193) (i32.const 1)))";
    let nowhere = "(return (i32.const -4))";
    let huge_words = "(return (call $refuse (i32.const 0) (i32.const 0x7fffffff)))";
    let nonsense = [no_case, long, crooked, nowhere, huge_words];
    fails_to_answer(Shape::Table, &nonsense, |module, settings, stats| {
        let guest = TableGuest::new(module, Arc::new(settings), Arc::clone(stats), None);
        guest.unwrap().build(pointsman_core::Instant::ZERO, &candidates(1, 3)).map(drop)
    });
}

#[test]
fn weights_that_are_not_set_are_a_fault_and_no_more() {
    fails_to_answer(Shape::Weights, &NONSENSE, |module, settings, stats| {
        let guest = WeightsGuest::new(module, Arc::new(settings), Arc::clone(stats), None);
        guest.unwrap().tick(flow().now, &candidates(1, 3)).map(drop)
    });
}

#[test]
fn a_policy_of_the_control_side_that_cannot_hand_over_hands_nothing_over() {
    let engine = engine();
    for (body, settings, kind) in misdeeds() {
        let mut guest = Guest::of(Shape::Table, "unreachable").with_fields(DIVE_FIELD);
        guest.beside = Guest::remembering().beside;
        guest.beside.snapshot = Some(format!("{body} (i32.const 0)"));
        for module in both(&engine, &guest) {
            let stats = Arc::<PolicyStats>::default();
            let settings = Arc::new(settings.clone());
            let mut guest = TableGuest::new(&module, settings, Arc::clone(&stats), None).unwrap();
            assert_eq!(guest.state().unwrap_err().kind, kind);
            assert_eq!(stats.snapshot().faults_of(kind), 1);
        }
    }
}

#[test]
fn a_schema_that_cannot_be_told_is_an_error() {
    let nonsense = NONSENSE.map(|body| (body, patient(), FaultKind::Answer));
    let engine = engine();
    for (body, _, kind) in misdeeds().into_iter().chain(nonsense) {
        let mut guest = Guest::default().with_fields(DIVE_FIELD);
        guest.beside.config_schema = Some(format!("{body} (i32.const 0)"));
        for module in both(&engine, &guest) {
            assert_failed(module.config_schema().err(), (Step::Schema, kind));
        }
    }
}

#[test]
fn words_that_are_none_are_a_fault_of_whoever_says_them() {
    let engine = engine();
    let no_case = "(i32.store8 (i32.const 2048) (i32.const 9)) (i32.const 2048)";
    let huge = "(call $refuse (i32.const 0) (i32.const 1000000))";
    let no_text = "(i32.store8 (i32.const 200) (i32.const 0xff))
                   (call $refuse (i32.const 200) (i32.const 1))";
    for body in [no_case, huge, no_text, "(i32.const -4)"] {
        let guest = Guest::configuring(body).with_pages(32);
        assert_fails(&engine, &guest, &patient(), (Step::Configure, FaultKind::Answer));
    }
}

#[test]
fn an_allocator_that_gives_what_is_not_there_is_a_fault() {
    let engine = engine();
    for place in ["(i32.const -8)", "(i32.const 65535)", "(i32.const 8193)"] {
        let guest = Guest::default();
        let honest = "(local.get $at))\n  (func (export \"configure\")";
        let crooked = format!("{place})\n  (func (export \"configure\")");
        let text = guest.text();
        assert!(text.contains(honest));
        let module = common::embed(&text.replace(honest, &crooked), common::WIT);
        for bytes in [common::encode(&module), module] {
            let module = engine.load(&bytes).unwrap();
            let error = Table::of(&module, patient()).err();
            let Some(InstanceError::Fault { kind, .. }) = error else { panic!("{error:?}") };
            assert_eq!(kind, FaultKind::Answer, "{place}");
        }
    }
}

#[test]
fn every_host_function_that_is_given_nonsense_costs_one_decision_at_most() {
    let imports = r#"
      (import "pointsman:policy/signals@0.1.1" "read" (func $read (param i32 i32)))
      (import "pointsman:policy/slots@0.1.1" "add" (func $add (param i32 i32 i64) (result i64)))
      (import "pointsman:policy/counters@0.1.1" "count" (func $count_by (param i32 i64)))"#;
    let bad = [
        "(call $read (i32.const 0) (i32.const -4))",
        "(call $read (i32.const 0) (i32.const 65500))",
        "(call $read (i32.const 0) (i32.const 3202))",
        "(call $log (i32.const 4) (i32.const 0) (i32.const 0))",
        "(i32.store8 (i32.const 200) (i32.const 0xff))
         (call $log (i32.const 0) (i32.const 200) (i32.const 1))",
    ];
    for body in bad {
        let mut guest = Guest::bad_at_666(body);
        guest.imports = imports.into();
        costs_its_own_decision(&guest, &patient(), FaultKind::Trap);
    }
    let harmless = "(call $read (i32.const -1) (i32.const 3200))
        (drop (call $load (i32.const -1)))
        (drop (call $add (i32.const -1) (i32.const -1) (i64.const -1)))
        (call $count_by (i32.const -1) (i64.const -1))
        (call $forward (i32.const 0))";
    let mut guest = Guest::deciding(harmless);
    guest.imports = imports.into();
    for module in both(&engine(), &guest) {
        let mut table = Table::of(&module, patient()).unwrap();
        assert_eq!(table.decide(&flow()).source, Source::Plugin);
        assert_eq!(table.stats.snapshot().faults_total(), 0);
    }
}
