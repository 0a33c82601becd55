//! What passes between the balancer and a guest that behaves.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{
    Guest, Table, candidates, embed, endpoint_of, engine, engine_with_log, flow, patient,
    round_robin, until,
};
use pointsman_core::policy::{Flow, Method, Policy, Scope, Source, Verdict};
use pointsman_core::{Candidates, EndpointId, Instant};
use pointsman_plugin::{
    Engine, EngineLimits, GuestPolicy, LogLevel, PolicySettings, PolicyStats, Speaker,
};

#[test]
fn a_guest_decides_and_keeps_its_state() {
    let engine = engine();
    let mut table = Table::new(&engine, &round_robin(), patient());
    let chosen: Vec<_> = (0..6).map(|_| endpoint_of(&table.decide(&flow()))).collect();
    assert_eq!(chosen, [1, 2, 0, 1, 2, 0]);
    let counts = table.stats.snapshot();
    assert_eq!((counts.calls(), counts.faults_total(), counts.deferred), (6, 0, 0));
    assert!(counts.decision_nanos > 0);
}

#[test]
fn a_component_serves_as_its_core_module_does() {
    let engine = engine();
    let bytes = round_robin().component();
    let module = engine.load(&bytes).unwrap();
    assert_eq!(module.size_bytes(), bytes.len());
    let among = candidates(1, 2);
    let mut policy = common::policy_of(&module, patient(), &Arc::default(), &among).unwrap();
    assert_eq!(policy.decide(&flow(), &among).source, Source::Plugin);
}

#[test]
fn an_instance_made_on_one_thread_serves_on_another() {
    let engine = engine();
    let mut table = Table::new(&engine, &round_robin(), patient());
    let worker = std::thread::spawn(move || {
        engine.prepare_thread();
        table.decide(&flow())
    });
    assert_eq!(worker.join().unwrap().source, Source::Plugin);
}

#[test]
fn a_guest_sees_every_field_of_the_flow() {
    let tried = [EndpointId(101), EndpointId(102)];
    let v6 = Flow {
        client: "[2001:db8::7]:1234".parse().unwrap(),
        attempt: 2,
        tried: &tried,
        random: 0xffee,
        ..flow()
    };
    let low = |name: &str| format!("(i32.wrap_i64 (local.get ${name}))");
    let high =
        |name: &str| format!("(i32.wrap_i64 (i64.shr_u (local.get ${name}) (i64.const 32)))");
    let whole = |name: &str| format!("(local.get ${name})");
    let cases = [
        (whole("protocol"), flow(), 0),
        (low("client_low"), flow(), 0xc000_0207),
        (high("client_low"), flow(), 0xffff),
        (low("client_high"), flow(), 0),
        (high("client_high"), v6, 0x2001_0db8),
        (low("client_low"), v6, 7),
        (whole("client_port"), flow(), 1234),
        (low("local_low"), flow(), 0xc633_6401),
        (low("local_high"), flow(), 0),
        (whole("local_port"), flow(), 8080),
        (low("key"), flow(), 0),
        (whole("attempt"), v6, 2),
        (whole("avoid"), flow(), u32::MAX),
        (whole("avoid"), v6, 2),
        (low("now"), flow(), 77),
        (low("random"), v6, 0xffee),
    ];
    let engine = engine();
    for (read, flow, expected) in cases {
        let guest = Guest::deciding(&format!("(call $mark {read})"));
        let decided = Table::new(&engine, &guest, patient()).decide(&flow);
        assert_eq!(decided.source, Source::Plugin);
        assert_eq!(decided.decision.method.tag, expected, "{read}");
    }
}

#[test]
fn every_field_of_an_answer_arrives() {
    let guest = Guest::deciding(
        "(i32.store8 (i32.const 1024) (i32.const 0))
         (i32.store   (i32.const 1028) (i32.const 2))
         (i32.store8  (i32.const 1032) (i32.const 1))
         (i32.store   (i32.const 1036) (i32.const 1500))
         (i32.store8  (i32.const 1040) (i32.const 1))
         (i32.store   (i32.const 1044) (i32.const 64))
         (i32.store8  (i32.const 1048) (i32.const 1))
         (i32.store   (i32.const 1052) (i32.const 9000))
         (i32.store   (i32.const 1056) (i32.const 42))
         (i32.const 1024)",
    );
    let decided = Table::new(&engine(), &guest, patient()).decide(&flow());
    let decision = decided.decision;
    assert_eq!(endpoint_of(&decided), 2);
    assert_eq!(decision.scope, Scope::Client);
    assert_eq!((decision.ttl, decision.sliding), (Duration::from_millis(1500), true));
    let method = Method {
        idle_timeout: Some(Duration::from_secs(9)),
        throttle_kib_s: Some(64),
        announce: true,
        tag: 42,
    };
    assert_eq!(decision.method, method);
}

#[test]
fn zeros_in_an_answer_mean_the_default_method() {
    let decided = Table::new(&engine(), &Guest::default(), patient()).decide(&flow());
    assert_eq!(decided.decision.method, Method::DEFAULT);
    assert_eq!(decided.decision.ttl, Duration::ZERO);
}

#[test]
fn every_scope_of_an_answer_is_understood() {
    let engine = engine();
    for (number, scope) in [Scope::Flow, Scope::Client, Scope::Key, Scope::None].iter().enumerate()
    {
        let guest = Guest::deciding(&format!(
            "(i32.store8 (i32.const 1032) (i32.const {number})) (i32.const 1024)"
        ));
        let decided = Table::new(&engine, &guest, patient()).decide(&flow());
        assert_eq!((decided.source, &decided.decision.scope), (Source::Plugin, scope));
    }
}

#[test]
fn a_guest_may_deny_and_may_defer() {
    let engine = engine();
    let answer = |verdict: u32| {
        // The endpoint is out of range and is not looked at.
        let guest = Guest::deciding(&format!(
            "(i32.store8 (i32.const 1024) (i32.const {verdict})) (call $forward (i32.const 99))"
        ));
        let mut table = Table::new(&engine, &guest, patient());
        let decided = table.decide(&flow());
        assert_eq!(table.stats.snapshot().faults_total(), 0);
        (decided.decision.verdict, decided.source, table.stats.snapshot().deferred)
    };
    assert_eq!(answer(1), (Verdict::Reset, Source::Plugin, 0));
    assert_eq!(answer(2), (Verdict::Drop, Source::Plugin, 0));
    let (verdict, source, deferred) = answer(3);
    assert!(matches!(verdict, Verdict::Forward(_)));
    assert_eq!((source, deferred), (Source::Fallback, 1));
}

#[test]
fn an_endpoint_that_just_failed_is_not_tried_again_while_another_is_left() {
    let mut table = Table::new(&engine(), &Guest::default(), patient());
    let some = [EndpointId(100)];
    let decided = table.decide(&Flow { attempt: 1, tried: &some, ..flow() });
    assert_eq!((endpoint_of(&decided), decided.source), (2, Source::Fallback));

    let all = [EndpointId(100), EndpointId(101), EndpointId(102)];
    let decided = table.decide(&Flow { attempt: 3, tried: &all, ..flow() });
    assert_eq!((endpoint_of(&decided), decided.source), (0, Source::Plugin));
    assert_eq!(table.stats.snapshot().faults_total(), 0);
}

#[test]
fn a_guest_is_given_its_configuration() {
    // The length and the first byte of the configuration.
    let guest = Guest {
        configure: "(global.set $turn (i32.add
                      (i32.mul (local.get $length) (i32.const 256))
                      (i32.load8_u (local.get $config))))
                    (i32.const 2048)"
            .into(),
        ..Guest::deciding("(call $mark (global.get $turn))")
    };
    let settings = PolicySettings { config_json: r#"{"choices":2}"#.into(), ..patient() };
    let decided = Table::new(&engine(), &guest, settings).decide(&flow());
    assert_eq!(decided.decision.method.tag, 13 * 256 + u32::from(b'{'));
}

#[test]
fn a_guest_is_told_the_endpoints_and_every_change_before_it_is_asked() {
    // The generation, the number of endpoints, the last one's weight and its address' length.
    let guest = Guest {
        endpoints_changed: "
            (local $last i32)
            (local.set $last (i32.add (local.get $list)
              (i32.mul (i32.const 12) (i32.sub (local.get $length) (i32.const 1)))))
            (global.set $turn (i32.add
              (i32.add (i32.mul (i32.wrap_i64 (local.get $new)) (i32.const 1000000))
                       (i32.mul (local.get $length) (i32.const 10000)))
              (i32.add (i32.mul (i32.load offset=8 (local.get $last)) (i32.const 100))
                       (i32.load offset=4 (local.get $last)))))"
            .into(),
        ..Guest::deciding("(call $mark (global.get $turn))")
    };
    // A local has to be declared first in its function.
    let text = guest.text().replace("(local $last i32)", "").replace(
        "(param $new i64) (param $list i32) (param $length i32)",
        "(param $new i64) (param $list i32) (param $length i32) (local $last i32)",
    );
    let module = engine().load(&embed(&text, common::WIT)).unwrap();
    let among = candidates(7, 3);
    let mut policy = common::policy_of(&module, patient(), &Arc::default(), &among).unwrap();
    let mut told = |among: &Arc<Candidates>| policy.decide(&flow(), among).decision.method.tag;
    assert_eq!(told(&among), 7_030_311);
    assert_eq!(told(&candidates(8, 12)), 8_121_212);
    assert_eq!(told(&candidates(9, 1)), 9_010_111);
}

#[test]
fn load_is_what_all_workers_count_at_this_moment() {
    let guest = Guest::deciding("(call $mark (call $load (i32.const 1)))");
    let mut table = Table::new(&engine(), &guest, patient());
    let tag = |table: &mut Table| table.decide(&flow()).decision.method.tag;
    assert_eq!(tag(&mut table), 0);
    table.among.endpoints[1].load.on_flow_started();
    table.among.endpoints[1].load.on_flow_started();
    assert_eq!(tag(&mut table), 2);
    table.among.endpoints[1].load.on_flow_ended();
    assert_eq!(tag(&mut table), 1);
    // A changed list brings its own counters.
    table.among = candidates(2, 2);
    assert_eq!(tag(&mut table), 0);
    table.among.endpoints[1].load.on_flow_started();
    assert_eq!(tag(&mut table), 1);
}

#[test]
fn load_of_an_endpoint_that_is_none_is_zero() {
    let guest = Guest::deciding("(call $mark (call $load (i32.const -1)))");
    let decided = Table::new(&engine(), &guest, patient()).decide(&flow());
    assert_eq!((decided.source, decided.decision.method.tag), (Source::Plugin, 0));
}

#[test]
fn a_guest_writes_to_the_log_in_lines_that_are_lines() {
    let (engine, log) = engine_with_log();
    let guest = Guest::deciding(
        "(call $log (i32.const 1) (i32.const 100) (i32.const 5)) (call $forward (i32.const 0))",
    )
    .with_fields(r#"(data (i32.const 100) "hi\0ayo")"#);
    let mut table = Table::new(&engine, &guest, patient());
    table.decide(&flow());
    let line = log.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(
        (&*line.policy, line.speaker, line.level),
        ("patient", Speaker::Guest, LogLevel::Warn)
    );
    assert_eq!(line.message, "hi yo");
}

#[test]
fn a_guest_that_talks_too_much_is_cut_short() {
    let (engine, log) = engine_with_log();
    // 10,000 lines of 2,000 zero bytes, which are valid characters.
    let guest = Guest::deciding(
        "(loop $again
           (call $log (i32.const 2) (i32.const 8192) (i32.const 2000))
           (global.set $turn (i32.add (global.get $turn) (i32.const 1)))
           (br_if $again (i32.lt_u (global.get $turn) (i32.const 10000))))
         (call $forward (i32.const 0))",
    );
    let mut table = Table::new(&engine, &guest, patient());
    assert_eq!(table.decide(&flow()).source, Source::Plugin);
    let dropped = table.stats.snapshot().lines_dropped;
    assert!(dropped > 0, "no line was dropped");
    let mut lines = 0;
    until("all lines that were kept have come", || {
        lines += log.try_iter().inspect(|line| assert!(line.message.len() <= 1027)).count();
        lines as u64 + dropped == 10_000
    });
}

#[test]
fn a_full_sink_does_not_hold_up_a_decision() {
    // Each may write a hundred lines per second, and together more than the queue holds.
    const POLICIES: usize = 16;
    let limits = EngineLimits { instances_max: 16, ..EngineLimits::default() };
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let sink = move |_| {
        let _ = held.lock().unwrap().recv();
    };
    let engine = Engine::new(limits, Arc::new(sink)).unwrap();
    let guest = Guest::deciding(
        "(call $log (i32.const 0) (i32.const 0) (i32.const 1)) (call $forward (i32.const 0))",
    );
    let mut tables: Vec<_> =
        (0..POLICIES).map(|_| Table::new(&engine, &guest, patient())).collect();
    for table in &mut tables {
        for _ in 0..150 {
            assert_eq!(table.decide(&flow()).source, Source::Plugin);
        }
    }
    drop(release);
}

#[test]
fn a_policy_outlives_the_engines_handle() {
    let engine = engine();
    let module = engine.load(&round_robin().module()).unwrap();
    drop(engine);
    let among = candidates(1, 2);
    let settings = Arc::new(patient());
    let stats = Arc::new(PolicyStats::default());
    let mut policy = GuestPolicy::new(&module, settings, common::place(&stats), &among).unwrap();
    drop(module);
    let later = Flow { now: Instant::from_millis(1000), ..flow() };
    assert_eq!(policy.decide(&later, &among).source, Source::Plugin);
}
