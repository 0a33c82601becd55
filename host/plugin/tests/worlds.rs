//! What a plugin can be beside a chooser, and what it may export beside its world.

mod common;

use std::sync::Arc;

use common::{
    Guest, WIT, both, candidates, embed, embed_worlds, encode, endpoint_of, engine, engine_of,
    flow, patient, policy_of,
};
use pointsman_core::Instant;
use pointsman_core::policy::{Policy, Source};
use pointsman_plugin::{
    EngineLimits, FaultKind, GuestFault, GuestPolicy, InstanceError, LoadError, Module,
    PolicySettings, PolicyStats, Shape, TableGuest, WeightsGuest,
};

/// The interface as it was released first.
const WIT_0_1_0: &str = include_str!("../../../plugin-sdk/released/0.1.0/policy.wit");

/// Puts every endpoint into the table twice.
const BUILD_TWICE: &str = "
    (loop $more
      (i32.store (i32.add (i32.const 8192) (i32.mul (local.get $at) (i32.const 4)))
        (i32.rem_u (local.get $at) (local.get $length)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $at) (i32.mul (local.get $length) (i32.const 2)))))
    (call $ok_list (i32.const 8192) (i32.mul (local.get $length) (i32.const 2)))";

/// What each endpoint weighs is one more than its flows.
const WEIGH_FLOWS: &str = "
    (loop $more
      (i32.store (i32.add (i32.const 8192) (i32.mul (local.get $at) (i32.const 4)))
        (i32.add (i32.const 1)
          (i32.load (i32.add (local.get $samples) (i32.mul (local.get $at) (i32.const 40))))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $at) (local.get $length))))
    (call $list (i32.const 8192) (local.get $length))";

const SCHEMA: &str = "(call $list (i32.const 100) (i32.const 17))";
const SCHEMA_FIELD: &str = r#"(data (i32.const 100) "{\22type\22:\22object\22}")"#;

fn table_of(module: &Module, state: Option<&[u8]>) -> (TableGuest, Arc<PolicyStats>) {
    let stats = Arc::<PolicyStats>::default();
    let table = TableGuest::new(module, Arc::new(patient()), Arc::clone(&stats), state);
    (table.unwrap(), stats)
}

fn weights_of(module: &Module) -> (WeightsGuest, Arc<PolicyStats>) {
    let stats = Arc::<PolicyStats>::default();
    let weights = WeightsGuest::new(module, Arc::new(patient()), Arc::clone(&stats), None);
    (weights.unwrap(), stats)
}

#[test]
fn a_plugin_is_known_by_what_it_exports() {
    let engine = engine();
    for shape in Shape::ALL {
        for module in both(&engine, &Guest::of(shape, "unreachable")) {
            assert_eq!(module.shape(), shape);
            assert!(!module.has_feedback() && !module.has_state() && !module.has_schema());
            assert_eq!(module.config_schema(), Ok(None));
        }
    }
    let mut guest = Guest::remembering().with_fields(SCHEMA_FIELD);
    guest.beside.feed = Some(String::new());
    guest.beside.config_schema = Some(SCHEMA.into());
    for module in both(&engine, &guest) {
        assert!(module.has_feedback() && module.has_state() && module.has_schema());
        assert_eq!(module.config_schema(), Ok(Some(r#"{"type":"object"}"#.into())));
    }
}

#[test]
fn a_plugin_is_named_by_its_bytes() {
    let bytes = Guest::default().module();
    let module = engine().load(&bytes).unwrap();
    assert_eq!(module.size_bytes(), bytes.len());
    assert_eq!(module.digest().len(), 64);
    let other = engine().load(&Guest::default().component()).unwrap();
    assert_ne!(module.digest(), other.digest());
}

#[test]
fn imports_are_told_by_interface_and_function() {
    let import = r#"(import "pointsman:policy/slots@0.1.1" "get"
        (func $get (param i32 i32) (result i64)))"#;
    let guest = Guest { imports: import.into(), ..Guest::default() };
    for module in both(&engine(), &guest) {
        let mut imports = module.imports().to_vec();
        imports.sort();
        let ours = ["host@0.1.1#load", "host@0.1.1#log", "slots@0.1.1#get"];
        assert_eq!(imports, ours.map(|name| format!("pointsman:policy/{name}")));
    }
}

#[test]
fn a_guest_of_the_first_release_serves() {
    let text = Guest::default().text().replace("@0.1.1", "@0.1.0");
    let module = embed(&text, WIT_0_1_0);
    let engine = engine();
    let among = candidates(1, 2);
    for bytes in [encode(&module), module] {
        let module = engine.load(&bytes).unwrap();
        assert_eq!(module.shape(), Shape::Chooser);
        let mut policy = policy_of(&module, patient(), &Arc::default(), &among).unwrap();
        assert_eq!(policy.decide(&flow(), &among).source, Source::Plugin);
    }
}

fn refused(bytes: &[u8]) -> LoadError {
    let error = engine().load(bytes).expect_err("it was loaded");
    println!("{error}");
    common::assert_well_put(&error.to_string());
    error
}

#[test]
fn a_plugin_of_two_worlds_is_refused() {
    let guest = Guest::default()
        .with_fields(r#"(func (export "build") (param i64 i32 i32) (result i32) unreachable)"#);
    let both = embed_worlds(&guest.text(), WIT, &["chooser", "table"]);
    assert_eq!(refused(&both), LoadError::SeveralShapes(Shape::Chooser, Shape::Table));
    assert_eq!(refused(&encode(&both)), LoadError::SeveralShapes(Shape::Chooser, Shape::Table));
}

#[test]
fn a_plugin_of_no_world_is_refused() {
    let text = r#"(module (memory (export "memory") 1)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
        (func (export "pointsman:policy/schema@0.1.1#config-schema") (result i32) unreachable))"#;
    assert_eq!(refused(&embed_worlds(text, WIT, &["with-schema"])), LoadError::NoShape);
}

#[test]
fn a_world_with_a_function_missing_is_refused_with_its_name() {
    let wit = WIT.replacen("export endpoints-changed: func", "export endpoints-altered: func", 1);
    let text = Guest::default().text().replace("endpoints-changed", "endpoints-altered");
    assert_eq!(refused(&embed(&text, &wit)), LoadError::MissingExport("endpoints-changed"));
}

#[test]
fn half_of_what_hands_over_state_is_refused_with_what_is_missing() {
    let mut guest = Guest::remembering();
    guest.beside.restore = None;
    assert_eq!(refused(&guest.module()), LoadError::MissingExport("restore"));
}

#[test]
fn feedback_is_for_choosers() {
    let mut guest = Guest::of(Shape::Table, "unreachable");
    guest.beside.feed = Some(String::new());
    assert_eq!(refused(&guest.module()), LoadError::NoFeedback(Shape::Table));
}

#[test]
fn a_plugin_is_not_used_as_what_it_is_not() {
    let engine = engine();
    let settings = Arc::new(patient());
    let expect = |error: InstanceError, wanted, found| {
        assert_eq!(error, InstanceError::Shape { wanted, found });
        common::assert_well_put(&error.to_string());
    };
    let table = engine.load(&Guest::of(Shape::Table, "unreachable").module()).unwrap();
    let error = policy_of(&table, patient(), &Arc::default(), &candidates(1, 1)).unwrap_err();
    expect(error, Shape::Chooser, Shape::Table);
    let error = WeightsGuest::new(&table, Arc::clone(&settings), Arc::default(), None).unwrap_err();
    expect(error, Shape::Weights, Shape::Table);
    let chooser = engine.load(&Guest::default().module()).unwrap();
    let error = TableGuest::new(&chooser, settings, Arc::default(), None).unwrap_err();
    expect(error, Shape::Table, Shape::Chooser);
}

#[test]
fn a_table_is_built_for_each_list_it_is_given() {
    let engine = engine();
    for module in both(&engine, &Guest::of(Shape::Table, BUILD_TWICE)) {
        let (mut guest, stats) = table_of(&module, None);
        let table = guest.build(Instant::ZERO, &candidates(1, 3)).unwrap();
        assert_eq!(table.slots(), [0, 1, 2, 0, 1, 2]);
        assert_eq!(guest.build(Instant::ZERO, &candidates(2, 1)).unwrap().slots(), [0, 0]);
        assert_eq!(stats.snapshot().faults_total(), 0);
    }
}

#[test]
fn the_largest_table_is_taken_and_a_larger_one_is_not() {
    let engine = engine();
    let sized = |entries: u32| {
        let body = format!("(call $ok_list (i32.const 65536) (i32.const {entries}))");
        Guest::of(Shape::Table, &body).with_pages(80)
    };
    for module in both(&engine, &sized(1 << 20)) {
        let (mut guest, _) = table_of(&module, None);
        assert_eq!(guest.build(Instant::ZERO, &candidates(1, 1)).unwrap().slots().len(), 1 << 20);
    }
    for module in both(&engine, &sized((1 << 20) + 1)) {
        let (mut guest, stats) = table_of(&module, None);
        let fault = guest.build(Instant::ZERO, &candidates(1, 1)).unwrap_err();
        let reason = "a table of 1048577 entries; it must have 1 to 1048576";
        assert_eq!(fault, GuestFault { kind: FaultKind::Answer, reason: reason.into() });
        assert_eq!(stats.snapshot().faults_of(FaultKind::Answer), 1);
    }
}

#[test]
fn what_is_no_table_is_said_to_be_none() {
    let engine = engine();
    let third_of_three = "(i32.store (i32.const 8200) (i32.const 3))
                          (call $ok_list (i32.const 8192) (i32.const 3))";
    let cases = [
        ("(call $ok_list (i32.const 8192) (i32.const 0))", "a table of 0 entries"),
        (third_of_three, "entry 2 of the table is endpoint 3 of 3"),
        ("(call $refuse (i32.const 100) (i32.const 8))", "it made no table: too many"),
    ];
    for (body, expected) in cases {
        let guest = Guest::of(Shape::Table, body);
        let guest = guest.with_fields(r#"(data (i32.const 100) "too many")"#);
        for module in both(&engine, &guest) {
            let (mut guest, stats) = table_of(&module, None);
            let fault = guest.build(Instant::ZERO, &candidates(1, 3)).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Answer);
            assert!(fault.reason.contains(expected), "{fault}");
            common::assert_well_put(&fault.to_string());
            assert_eq!(stats.snapshot().faults_total(), 1);
        }
    }
}

#[test]
fn weights_follow_what_is_measured() {
    let engine = engine();
    for module in both(&engine, &Guest::of(Shape::Weights, WEIGH_FLOWS)) {
        let (mut guest, stats) = weights_of(&module);
        let among = candidates(1, 3);
        for _ in 0..4 {
            among.endpoints[1].load.on_flow_started();
        }
        assert_eq!(guest.tick(Instant::from_millis(100), &among), Ok(Some(vec![1, 5, 1])));
        let fewer = candidates(2, 1);
        assert_eq!(guest.tick(Instant::from_millis(200), &fewer), Ok(Some(vec![1])));
        assert_eq!(stats.snapshot().faults_total(), 0);
    }
}

#[test]
fn no_weights_leave_everything_as_it_is() {
    let guest = Guest::of(Shape::Weights, "(call $list (i32.const 0) (i32.const 0))");
    for module in both(&engine(), &guest) {
        let (mut guest, _) = weights_of(&module);
        assert_eq!(guest.tick(Instant::from_millis(100), &candidates(1, 3)), Ok(None));
    }
}

#[test]
fn what_are_no_weights_is_said_to_be_none() {
    let engine = engine();
    let cases = [
        ("1, 2", "2 weights for 3 endpoints"),
        ("1, 2, 3, 4", "4 weights for 3 endpoints"),
        ("1, 0, 3", "endpoint 1 is to weigh 0; it must be 1 to 65535"),
        ("1, 2, 65536", "endpoint 2 is to weigh 65536; it must be 1 to 65535"),
    ];
    for (weights, expected) in cases {
        let weights: Vec<u32> = weights.split(", ").map(|it| it.parse().unwrap()).collect();
        let stores = weights.iter().enumerate().map(|(place, weight)| {
            format!("(i32.store (i32.const {}) (i32.const {weight}))", 8192 + place * 4)
        });
        let body = format!(
            "{} (call $list (i32.const 8192) (i32.const {}))",
            stores.collect::<String>(),
            weights.len()
        );
        for module in both(&engine, &Guest::of(Shape::Weights, &body)) {
            let (mut guest, stats) = weights_of(&module);
            let fault = guest.tick(Instant::from_millis(100), &candidates(1, 3)).unwrap_err();
            assert_eq!((fault.kind, fault.reason.as_str()), (FaultKind::Answer, expected));
            assert_eq!(stats.snapshot().faults_total(), 1);
        }
    }
}

fn with_state(module: &Module, state: Option<Vec<u8>>) -> Result<GuestPolicy, InstanceError> {
    let place = pointsman_plugin::Place { state, ..common::place(&Arc::default()) };
    GuestPolicy::new(module, Arc::new(patient()), place, &candidates(1, 3))
}

#[test]
fn a_successor_begins_with_what_it_is_handed() {
    let engine = engine();
    let among = candidates(1, 3);
    for module in both(&engine, &Guest::remembering()) {
        let mut first = with_state(&module, None).unwrap();
        for tag in 1..=3 {
            assert_eq!(first.decide(&flow(), &among).decision.method.tag, tag);
        }
        let state = first.state().unwrap();
        assert_eq!(state, [3, 0, 0, 0, 0, 0, 0, 0]);
        let mut second = with_state(&module, Some(state)).unwrap();
        assert_eq!(second.decide(&flow(), &among).decision.method.tag, 4);
        // The first goes on until it is dropped.
        assert_eq!(first.decide(&flow(), &among).decision.method.tag, 4);
    }
}

#[test]
fn a_guest_that_hands_nothing_over_takes_nothing_either() {
    for module in both(&engine(), &Guest::default()) {
        let mut policy = with_state(&module, Some(vec![1, 2, 3])).unwrap();
        assert_eq!(policy.state(), None);
        assert_eq!(endpoint_of(&policy.decide(&flow(), &candidates(1, 3))), 0);
    }
}

#[test]
fn a_state_that_cannot_be_used_is_refused_in_the_guests_words() {
    let mut guest = Guest::remembering().with_fields(r#"(data (i32.const 100) "too\0aold")"#);
    guest.beside.restore = Some("(call $refuse (i32.const 100) (i32.const 7))".into());
    for module in both(&engine(), &guest) {
        let error = with_state(&module, Some(vec![])).unwrap_err();
        assert_eq!(error, InstanceError::State("too old".into()));
        common::assert_well_put(&error.to_string());
    }
}

#[test]
fn tables_and_weights_hand_over_state_too() {
    let engine = engine();
    let mut guest = Guest::of(Shape::Table, BUILD_TWICE);
    guest.beside = Guest::remembering().beside;
    for module in both(&engine, &guest) {
        let (mut first, _) = table_of(&module, Some(&[7, 0, 0, 0]));
        assert_eq!(first.state(), Ok(Some(vec![7, 0, 0, 0, 0, 0, 0, 0])));
    }
    let mut guest = Guest::of(Shape::Weights, WEIGH_FLOWS);
    guest.beside = Guest::remembering().beside;
    for module in both(&engine, &guest) {
        assert_eq!(weights_of(&module).0.state(), Ok(Some(vec![0; 8])));
    }
}

#[test]
fn a_state_of_the_full_size_is_handed_over_and_a_larger_one_costs_the_instance() {
    let sized = |bytes: u32| {
        let mut guest = Guest::remembering().with_pages(4);
        let body = format!("(call $list (i32.const 65536) (i32.const {bytes}))");
        guest.beside.snapshot = Some(body);
        guest
    };
    let engine = engine();
    for (bytes, expected) in [(65_536, Some(65_536)), (65_537, None)] {
        for module in both(&engine, &sized(bytes)) {
            let mut policy = with_state(&module, None).unwrap();
            assert_eq!(policy.state().map(|state| state.len()), expected);
        }
    }
}

#[test]
fn a_schema_can_be_asked_for_before_anything_is_configured() {
    let mut guest = Guest::configuring("unreachable").with_fields(SCHEMA_FIELD);
    guest.beside.config_schema = Some(SCHEMA.into());
    for module in both(&engine(), &guest) {
        assert_eq!(module.config_schema(), Ok(Some(r#"{"type":"object"}"#.into())));
        let error = policy_of(
            &module,
            PolicySettings::new("test", "null"),
            &Arc::default(),
            &candidates(1, 1),
        );
        assert!(matches!(error, Err(InstanceError::Fault { .. })));
    }
}

#[test]
fn what_a_call_executes_is_counted_exactly_where_that_is_wanted() {
    let limits = EngineLimits { instances_max: 4, counts_fuel: true, ..EngineLimits::default() };
    let counting = engine_of(limits);
    let guest = common::round_robin();
    let among = candidates(1, 3);
    let used = both(&counting, &guest).map(|module| {
        let mut policy = policy_of(&module, patient(), &Arc::default(), &among).unwrap();
        let mut use_one = || {
            assert_eq!(policy.decide(&flow(), &among).source, Source::Plugin);
            policy.fuel_used().unwrap()
        };
        let first = use_one();
        assert_eq!(use_one(), first);
        first
    });
    assert!((1..100).contains(&used[0]), "{used:?}");
    assert_eq!(used[0], used[1]);
    let module = engine().load(&guest.module()).unwrap();
    let policy = policy_of(&module, patient(), &Arc::default(), &among).unwrap();
    assert_eq!(policy.fuel_used(), None);
}
