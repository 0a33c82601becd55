//! A guest answers the same whether it is called as a core module or as a component.
//!
//! The guest mixes everything that it is given, in its order, into one number, and answers with
//! parts of that: a field that came in a wrong place or form changes every answer after it.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Guest, both, candidates, engine, flow, patient, place};
use pointsman_core::policy::{Decided, EndedFlow, Flow, Policy};
use pointsman_core::{Candidates, CloseReason, EndpointId, Instant, Protocol};
use pointsman_plugin::{
    GuestPolicy, InstanceError, Module, Place, PolicyCounts, PolicySettings, PolicyStats, Shape,
    TableGuest, WeightsGuest,
};

const IMPORTS: &str = r#"
  (import "pointsman:policy/signals@0.1.1" "read" (func $read (param i32 i32)))
  (import "pointsman:policy/slots@0.1.1" "get" (func $get (param i32 i32) (result i64)))
  (import "pointsman:policy/slots@0.1.1" "set" (func $set (param i32 i32 i64)))
  (import "pointsman:policy/slots@0.1.1" "add" (func $add (param i32 i32 i64) (result i64)))
  (import "pointsman:policy/counters@0.1.1" "count" (func $count_by (param i32 i64)))"#;

const MIXING: &str = "
  (global $mixed (mut i64) (i64.const 0x243f6a8885a308d3))
  (func $mix (param $value i64)
    (global.set $mixed
      (i64.mul (i64.xor (i64.rotl (global.get $mixed) (i64.const 23)) (local.get $value))
               (i64.const 0x9e3779b97f4a7c15))))
  (func $mix_word (param $value i32) (call $mix (i64.extend_i32_u (local.get $value))))
  (func $mix_words (param $at i32) (param $words i32)
    (loop $more
      (if (local.get $words) (then
        (call $mix_word (i32.load (local.get $at)))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (local.set $words (i32.sub (local.get $words) (i32.const 1)))
        (br $more)))))
  (func $mix_bytes (param $at i32) (param $bytes i32)
    (call $mix_word (local.get $bytes))
    (loop $more
      (if (local.get $bytes) (then
        (call $mix_word (i32.load8_u (local.get $at)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (local.set $bytes (i32.sub (local.get $bytes) (i32.const 1)))
        (br $more)))))
  (func $mix_endpoints (param $at i32) (param $left i32)
    (loop $more
      (if (local.get $left) (then
        (call $mix_bytes (i32.load (local.get $at)) (i32.load offset=4 (local.get $at)))
        (call $mix_word (i32.load offset=8 (local.get $at)))
        (local.set $at (i32.add (local.get $at) (i32.const 12)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $more)))))
  (func $mix_ended (param $at i32) (param $left i32)
    (loop $more
      (if (local.get $left) (then
        (call $mix_word (i32.load (local.get $at)))
        (call $mix_word (i32.load8_u offset=4 (local.get $at)))
        (call $mix_word (i32.load offset=8 (local.get $at)))
        (call $mix (i64.load offset=16 (local.get $at)))
        (call $mix (i64.load offset=24 (local.get $at)))
        (call $mix_word (i32.load offset=32 (local.get $at)))
        (local.set $at (i32.add (local.get $at) (i32.const 40)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $more)))))
  ;; Fresh bits for the next part of an answer.
  (func $part (param $below i32) (result i32)
    (call $mix (i64.const 1))
    (i32.rem_u (i32.wrap_i64 (i64.shr_u (global.get $mixed) (i64.const 33))) (local.get $below)))";

const CONFIGURE: &str = "
    (call $mix_bytes (local.get $config) (local.get $length))
    (i32.const 2048)";

const HEAR: &str = "
    (call $mix (local.get $new))
    (call $mix_endpoints (local.get $list) (local.get $length))";

/// Looks at everything, and then answers with whatever comes of it. Every answer is valid.
const DECIDE: &str = "
    (call $mix_word (local.get $protocol))
    (call $mix (local.get $client_high)) (call $mix (local.get $client_low))
    (call $mix_word (local.get $client_port))
    (call $mix (local.get $local_high)) (call $mix (local.get $local_low))
    (call $mix_word (local.get $local_port))
    (call $mix (local.get $key))
    (call $mix_word (local.get $attempt)) (call $mix_word (local.get $avoid))
    (call $mix (local.get $now)) (call $mix (local.get $random))
    ;; Some of these are out of range.
    (call $mix_word (call $load (call $part (i32.const 5))))
    (call $read (call $part (i32.const 5)) (i32.const 3200))
    (call $mix_words (i32.const 3200) (i32.const 10))
    (call $set (call $part (i32.const 5)) (call $part (i32.const 10)) (global.get $mixed))
    (call $mix (call $get (call $part (i32.const 5)) (call $part (i32.const 10))))
    (call $mix (call $add (call $part (i32.const 5)) (call $part (i32.const 10))
      (global.get $mixed)))
    (call $count_by (call $part (i32.const 20)) (i64.extend_i32_u (call $part (i32.const 9))))
    (call $log (call $part (i32.const 4)) (i32.const 100) (i32.const 5))
    (i32.store8 (i32.const 1024) (call $part (i32.const 4)))
    (i32.store  (i32.const 1028) (call $part (i32.const 4)))
    (i32.store8 (i32.const 1032) (call $part (i32.const 4)))
    (i32.store  (i32.const 1036) (call $part (i32.const -1)))
    ;; Any number but 0 is true.
    (i32.store8 (i32.const 1040) (call $part (i32.const 3)))
    (i32.store  (i32.const 1044) (call $part (i32.const -1)))
    (i32.store8 (i32.const 1048) (call $part (i32.const 3)))
    (i32.store  (i32.const 1052) (call $part (i32.const -1)))
    (i32.store  (i32.const 1056) (call $part (i32.const -1)))
    (i32.const 1024)";

const FEED: &str = "
    (call $mix (local.get $now))
    (call $mix_words (local.get $samples)
      (i32.mul (local.get $samples_length) (i32.const 10)))
    (call $mix_ended (local.get $ended) (local.get $ended_length))
    (call $mix_word (local.get $missed))";

const SNAPSHOT: &str = "
    (i64.store (i32.const 3080) (global.get $mixed))
    (call $list (i32.const 3080) (call $part (i32.const 9)))";

const RESTORE: &str = "
    (call $mix_bytes (local.get $state) (local.get $length))
    (i32.const 2048)";

const SCHEMA: &str = "(call $list (i32.const 100) (i32.const 6))";

/// A list as long as there are endpoints, of numbers from 1 to that.
const ANSWER: &str = "
    (loop $more
      (i32.store (i32.add (i32.const 8192) (i32.mul (local.get $at) (i32.const 4)))
        (i32.add (call $part (local.get $length)) (i32.const OFFSET)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $at) (local.get $length))))
    (call LIST (i32.const 8192) (local.get $length))";

fn guest(shape: Shape, answer: &str) -> Guest {
    let mut guest = Guest::of(shape, answer).with_pages(4);
    guest.imports = IMPORTS.into();
    guest.fields = format!(r#"{MIXING} (data (i32.const 100) "h\c3\a4llo")"#);
    guest.configure = CONFIGURE.into();
    guest.endpoints_changed = HEAR.into();
    guest.beside.snapshot = Some(SNAPSHOT.into());
    guest.beside.restore = Some(RESTORE.into());
    guest.beside.config_schema = Some(SCHEMA.into());
    guest
}

fn settings() -> Arc<PolicySettings> {
    Arc::new(PolicySettings { config_json: r#"{"häuser":"多"}"#.into(), ..patient() })
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ (self.0 >> 29)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 20) % bound
    }
}

/// A list of endpoints of both families with something to tell about each.
fn world(numbers: &mut Numbers, generation: u64) -> Arc<Candidates> {
    let among = candidates(generation, 1 + numbers.below(4) as u32);
    for endpoint in &among.endpoints {
        for _ in 0..numbers.below(3) {
            let now = Instant::from_millis(numbers.below(50));
            let took = Duration::from_micros(numbers.below(5_000));
            endpoint.load.on_flow_started();
            endpoint.load.on_connecting();
            endpoint.load.on_connected(now, took);
            endpoint.load.on_first_byte(now, took);
            endpoint.load.on_broken(now);
        }
    }
    among
}

fn decide(policy: &mut GuestPolicy, among: &Arc<Candidates>, numbers: &mut Numbers) -> Decided {
    let client = match numbers.below(2) {
        0 => format!("192.0.2.{}:{}", numbers.below(256), numbers.below(65_536)),
        _ => format!("[2001:db8:{:x}::1]:{}", numbers.below(65_536), numbers.below(65_536)),
    };
    let tried = [EndpointId(100 + numbers.below(3) as u32)];
    let is_retry = numbers.below(2) == 0;
    let flow = Flow {
        protocol: if numbers.below(2) == 0 { Protocol::Tcp } else { Protocol::Udp },
        client: client.parse().unwrap(),
        key: (numbers.below(2) == 0).then(|| numbers.next()),
        attempt: u32::from(is_retry),
        tried: if is_retry { &tried } else { &[] },
        now: Instant::from_nanos(numbers.next() >> 8),
        random: numbers.next(),
        ..flow()
    };
    policy.decide(&flow, among)
}

fn end_flows(policy: &mut GuestPolicy, numbers: &mut Numbers) {
    for _ in 0..numbers.below(1_200) {
        let reason = CloseReason::ALL[numbers.below(CloseReason::ALL.len() as u64) as usize];
        policy.on_flow_ended(&EndedFlow {
            endpoint: EndpointId(100 + numbers.below(4) as u32),
            reason,
            duration: Duration::from_nanos(numbers.next() >> 4),
            bytes: [numbers.next(), numbers.next()],
            tag: numbers.next() as u32,
        });
    }
}

/// Everything that comes out of a chooser in some time.
fn life(
    module: &Module,
    seed: u64,
) -> Result<(Vec<Decided>, Vec<u8>, PolicyCounts), InstanceError> {
    let mut numbers = Numbers(seed);
    let stats = Arc::<PolicyStats>::default();
    let state = (0..numbers.below(64)).map(|_| numbers.next() as u8).collect();
    let place = Place { state: Some(state), ..place(&stats) };
    let mut among = world(&mut numbers, 1);
    let mut policy = GuestPolicy::new(module, settings(), place, &among)?;
    let mut decided = Vec::new();
    for generation in 2..6 {
        for _ in 0..500 {
            decided.push(decide(&mut policy, &among, &mut numbers));
        }
        end_flows(&mut policy, &mut numbers);
        policy.tick(Instant::from_nanos(numbers.next() >> 8), &among);
        among = world(&mut numbers, generation);
    }
    let state = policy.state().expect("a state");
    // How long calls took is not the guest's doing, and lines are not counted one by one.
    let counts = stats.snapshot();
    let counts = PolicyCounts { decision_nanos: 0, decisions: [0; 16], lines_dropped: 0, ..counts };
    Ok((decided, state, counts))
}

#[test]
fn a_chooser_lives_the_same_life_both_ways() {
    let mut guest = guest(Shape::Chooser, DECIDE);
    guest.beside.feed = Some(FEED.into());
    let [module, component] = both(&engine(), &guest);
    assert_eq!(module.config_schema(), Ok(Some("hällo".into())));
    assert_eq!(component.config_schema(), module.config_schema());
    for seed in 0..8 {
        let one = life(&module, seed).unwrap();
        let other = life(&component, seed).unwrap();
        let differs = one.0.iter().zip(&other.0).position(|(one, other)| one != other);
        assert_eq!(differs, None, "decision of seed {seed}");
        assert_eq!((&one.1, one.2), (&other.1, other.2), "seed {seed}");
        assert!(one.2.own.iter().all(|&count| count > 0) && one.2.deferred > 0);
        assert_eq!(one.2.faults_total() - one.2.faults_of(pointsman_plugin::FaultKind::Answer), 0);
    }
}

#[test]
fn a_table_is_the_same_both_ways() {
    let answer = format!("{HEAR} {}", ANSWER.replace("OFFSET", "0").replace("LIST", "$ok_list"));
    let tables = both(&engine(), &guest(Shape::Table, &answer)).map(|module| {
        let mut guest = TableGuest::new(&module, settings(), Arc::default(), Some(b"x")).unwrap();
        let mut numbers = Numbers(3);
        let mut tables = Vec::new();
        for generation in 0..50 {
            let table = guest.build(Instant::ZERO, &world(&mut numbers, generation)).unwrap();
            tables.push(table.slots().to_vec());
        }
        (tables, guest.state())
    });
    assert_eq!(tables[0], tables[1]);
}

#[test]
fn weights_are_the_same_both_ways() {
    let mix = "(call $mix (local.get $now))
        (call $mix_words (local.get $samples) (i32.mul (local.get $length) (i32.const 10)))";
    let answer = format!("{mix} {}", ANSWER.replace("OFFSET", "1").replace("LIST", "$list"));
    let weights = both(&engine(), &guest(Shape::Weights, &answer)).map(|module| {
        let mut guest = WeightsGuest::new(&module, settings(), Arc::default(), None).unwrap();
        let mut numbers = Numbers(5);
        let mut weights = Vec::new();
        for generation in 0..50 {
            let now = Instant::from_millis(100 + generation * 100);
            let among = world(&mut numbers, generation);
            weights.push(guest.tick(now, &among).unwrap().unwrap());
        }
        (weights, guest.state())
    });
    assert_eq!(weights[0], weights[1]);
}
