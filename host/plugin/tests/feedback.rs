//! What a chooser hears of the flows that it has decided on, and how often it is asked.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Guest, candidates, engine, flow, patient, place, until};
use pointsman_core::policy::{EndedFlow, Flow, Policy, Source};
use pointsman_core::{Candidates, CloseReason, EndpointId, Instant};
use pointsman_plugin::{
    Engine, FaultKind, Governor, GuestPolicy, Place, PolicySettings, PolicyStats,
};

/// Tells in its marks what it was fed last, one thing after another with each decision.
fn listening(read: &str) -> Guest {
    let mut guest = Guest::deciding("(call $mark (global.get $turn))");
    guest.beside.feed = Some(format!("(global.set $turn {read})"));
    guest
}

struct World {
    policy: GuestPolicy,
    stats: Arc<PolicyStats>,
    among: Arc<Candidates>,
}

impl World {
    fn new(engine: &Engine, bytes: &[u8], settings: PolicySettings) -> Self {
        let module = engine.load(bytes).unwrap();
        let stats = Arc::<PolicyStats>::default();
        let among = candidates(1, 3);
        let policy = GuestPolicy::new(&module, Arc::new(settings), place(&stats), &among).unwrap();
        Self { policy, stats, among }
    }

    fn both(guest: &Guest) -> [Self; 2] {
        let engine = engine();
        [guest.module(), guest.component()].map(|bytes| Self::new(&engine, &bytes, patient()))
    }

    fn tick(&mut self) {
        self.policy.tick(Instant::from_millis(123), &self.among);
    }

    /// What the guest keeps in its mark.
    fn told(&mut self) -> u32 {
        let decided = self.policy.decide(&flow(), &self.among);
        assert_eq!(decided.source, Source::Plugin);
        decided.decision.method.tag
    }
}

fn ended(endpoint: u32) -> EndedFlow {
    EndedFlow {
        endpoint: EndpointId(endpoint),
        reason: CloseReason::UpstreamReset,
        duration: Duration::from_millis(250),
        bytes: [1_000, 2_000],
        tag: 9,
    }
}

#[test]
fn only_a_guest_that_listens_is_ticked() {
    let engine = engine();
    let deaf = World::new(&engine, &Guest::default().module(), patient());
    assert!(!deaf.policy.wants_ticks());
    let listening = World::new(&engine, &listening("(i32.const 1)").module(), patient());
    assert!(listening.policy.wants_ticks());
}

#[test]
fn every_field_of_a_tick_arrives() {
    let of_sample = |offset: u32| format!("(i32.load offset={offset} (local.get $samples))");
    let of_ended = |offset: u32| format!("(i32.load offset={offset} (local.get $ended))");
    let cases = [
        ("(i32.wrap_i64 (local.get $now))".into(), 123),
        ("(local.get $samples_length)".into(), 3),
        ("(local.get $ended_length)".into(), 1),
        ("(local.get $missed)".into(), 0),
        // The second endpoint's flows, and the first one's times.
        (of_sample(40), 1),
        (of_sample(8), 500),
        (of_sample(12), 500),
        (of_sample(16), 23),
        (of_sample(28), u32::MAX),
        (of_ended(0), 1),
        ("(i32.load8_u offset=4 (local.get $ended))".into(), 2),
        (of_ended(8), 250),
        (of_ended(16), 2_000),
        (of_ended(24), 1_000),
        (of_ended(32), 9),
    ];
    for (read, expected) in cases {
        for mut world in World::both(&listening(&read)) {
            world.among.endpoints[1].load.on_flow_started();
            let connected = Instant::from_millis(100);
            world.among.endpoints[0].load.on_connected(connected, Duration::from_micros(500));
            world.policy.on_flow_ended(&ended(101));
            world.tick();
            assert_eq!(world.told(), expected, "{read}");
        }
    }
}

#[test]
fn a_flow_is_told_once_and_those_of_a_lost_endpoint_not_at_all() {
    for mut world in World::both(&listening("(local.get $ended_length)")) {
        world.policy.on_flow_ended(&ended(100));
        world.policy.on_flow_ended(&ended(7));
        world.tick();
        assert_eq!(world.told(), 1);
        world.tick();
        assert_eq!(world.told(), 0);
    }
}

#[test]
fn what_has_no_room_is_counted() {
    let both =
        "(i32.add (i32.mul (local.get $ended_length) (i32.const 10000)) (local.get $missed))";
    for mut world in World::both(&listening(both)) {
        for _ in 0..1_100 {
            world.policy.on_flow_ended(&ended(100));
        }
        world.tick();
        assert_eq!(world.told(), 1024 * 10_000 + 76);
        world.tick();
        assert_eq!(world.told(), 0);
    }
}

#[test]
fn a_guest_hears_of_a_new_list_before_it_is_fed() {
    let mut guest = listening("(i32.wrap_i64 (global.get $generation))");
    guest.endpoints_changed = String::new();
    for mut world in World::both(&guest) {
        world.among = candidates(5, 2);
        world.tick();
        assert_eq!(world.told(), 5);
    }
}

#[test]
fn a_list_of_nobody_is_not_told() {
    for mut world in World::both(&listening("unreachable")) {
        let nobody = candidates(2, 0);
        world.policy.tick(Instant::from_millis(1), &nobody);
        assert_eq!(world.stats.snapshot().faults_total(), 0);
    }
}

#[test]
fn a_guest_that_fails_when_fed_is_made_anew_and_flows_go_on() {
    for mut world in World::both(&listening("unreachable")) {
        world.tick();
        assert_eq!(world.stats.snapshot().faults_of(FaultKind::Trap), 1);
        assert_eq!(world.policy.decide(&flow(), &world.among).source, Source::Fallback);
        let World { policy, among, .. } = &mut world;
        until("the guest decides", || policy.decide(&flow(), among).source == Source::Plugin);
    }
}

/// A worker on which plugins have used up what they have.
fn in_debt(engine: &Engine, guest: &Guest) -> (GuestPolicy, Arc<PolicyStats>, Arc<Candidates>) {
    let module = engine.load(&guest.module()).unwrap();
    let stats = Arc::<PolicyStats>::default();
    let among = candidates(1, 3);
    let governor = Arc::new(Governor::new(1));
    let place = Place { governor, ..place(&stats) };
    let policy = GuestPolicy::new(&module, Arc::new(patient()), place, &among).unwrap();
    (policy, stats, among)
}

#[test]
fn a_guest_that_takes_its_share_is_not_asked_until_it_has_more() {
    // A loop of some milliseconds: longer than the burst, however fast the machine.
    let slow = "(global.set $turn (i32.const 0))
        (loop $more
          (global.set $turn (i32.add (global.get $turn) (i32.const 1)))
          (br_if $more (i32.lt_u (global.get $turn) (i32.const 100000000))))
        (call $forward (i32.const 0))";
    let (mut policy, stats, among) = in_debt(&engine(), &Guest::deciding(slow));
    assert_eq!(policy.decide(&flow(), &among).source, Source::Plugin);
    assert_eq!(policy.decide(&flow(), &among).source, Source::Fallback);
    let counts = stats.snapshot();
    assert_eq!((counts.calls(), counts.throttled, counts.faults_total()), (1, 1, 0));
    let an_hour_later = Flow { now: Instant::from_millis(3_600_000), ..flow() };
    assert_eq!(policy.decide(&an_hour_later, &among).source, Source::Plugin);
}

#[test]
fn what_a_tick_takes_counts_too() {
    let slow = "(i32.const 0) (loop $more
          (global.set $count (i32.add (global.get $count) (i32.const 1)))
          (br_if $more (i32.lt_u (global.get $count) (i32.const 100000000))))";
    let (mut policy, stats, among) = in_debt(&engine(), &listening(slow));
    policy.tick(flow().now, &among);
    assert_eq!(policy.decide(&flow(), &among).source, Source::Fallback);
    assert_eq!(stats.snapshot().throttled, 1);
}
