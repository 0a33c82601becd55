//! Guests written as text, and a little world to ask them in.
//!
//! A guest here is a core module of which a test replaces single bodies; it is told its world the
//! way a toolchain would do it, and goes through the public API like any plugin.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pointsman_core::boundary::ListenerId;
use pointsman_core::policy::{Decided, Decision, EndpointIndex, Flow, Policy, Source, Verdict};
use pointsman_core::{Candidates, Endpoint, EndpointId, Generation, Load, Protocol};
use pointsman_plugin::{
    Engine, EngineLimits, Governor, GuestPolicy, InstanceError, LogLine, Module, Place,
    PolicySettings, PolicyStats, Shape,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The interface as published.
pub const WIT: &str = include_str!("../../../../plugin-sdk/wit/policy.wit");

/// The bodies of a guest's functions. The defaults make a chooser that forwards to endpoint 0.
#[derive(Clone)]
pub struct Guest {
    pub shape: Shape,
    /// Imports beside the usual ones.
    pub imports: String,
    /// Fields of the module beside the usual ones.
    pub fields: String,
    pub pages: u32,
    pub configure: String,
    pub endpoints_changed: String,
    /// The body of `decide`, `build` or `tick`.
    pub answer: String,
    pub beside: Beside,
}

/// The bodies of what a guest exports beside its world; nothing is not exported.
#[derive(Clone, Default)]
pub struct Beside {
    pub feed: Option<String>,
    pub snapshot: Option<String>,
    pub restore: Option<String>,
    pub config_schema: Option<String>,
}

impl Default for Guest {
    fn default() -> Self {
        Self::of(Shape::Chooser, "(call $forward (i32.const 0))")
    }
}

impl Guest {
    pub fn of(shape: Shape, answer: &str) -> Self {
        Self {
            shape,
            imports: String::new(),
            fields: String::new(),
            pages: 1,
            configure: "(i32.const 2048)".into(),
            endpoints_changed: String::new(),
            answer: answer.into(),
            beside: Beside::default(),
        }
    }

    pub fn deciding(body: &str) -> Self {
        Self::of(Shape::Chooser, body)
    }

    /// A guest that misbehaves for the random number 666 and forwards to endpoint 0 otherwise.
    pub fn bad_at_666(body: &str) -> Self {
        Self::deciding(&format!(
            "(if (i64.eq (local.get $random) (i64.const 666)) (then {body}))
             (call $forward (i32.const 0))"
        ))
    }

    pub fn configuring(body: &str) -> Self {
        Self { configure: body.into(), ..Self::default() }
    }

    pub fn hearing(body: &str) -> Self {
        Self { endpoints_changed: body.into(), ..Self::default() }
    }

    /// A guest that hands over eight bytes, and begins with what it is handed.
    pub fn remembering() -> Self {
        let mut guest = Self::deciding(
            "(global.set $turn (i32.add (global.get $turn) (i32.const 1)))
             (call $mark (global.get $turn))",
        );
        guest.beside.snapshot = Some(
            "(i32.store (i32.const 3080) (global.get $turn))
             (call $list (i32.const 3080) (i32.const 8))"
                .into(),
        );
        guest.beside.restore = Some(
            "(global.set $turn (i32.load (local.get $state)))
             (i32.const 2048)"
                .into(),
        );
        guest
    }

    pub fn with_fields(mut self, fields: &str) -> Self {
        self.fields = fields.into();
        self
    }

    pub fn with_pages(mut self, pages: u32) -> Self {
        self.pages = pages;
        self
    }

    pub fn text(&self) -> String {
        let Self { imports, fields, pages, configure, .. } = self;
        let (world, beside) = (self.text_of_world(), self.text_beside());
        format!(
            r#"(module
  {imports}
  (import "pointsman:policy/host@0.1.1" "log" (func $log (param i32 i32 i32)))
  (import "pointsman:policy/host@0.1.1" "load" (func $load (param i32) (result i32)))
  (memory (export "memory") {pages})
  (global $heap (mut i32) (i32.const 4096))
  (global $turn (mut i32) (i32.const 0))
  (global $count (mut i32) (i32.const 0))
  (global $generation (mut i64) (i64.const 0))
  {fields}
  (func $forward (param i32) (result i32)
    (i32.store (i32.const 1028) (local.get 0))
    (i32.const 1024))
  (func $mark (param i32) (result i32)
    (i32.store (i32.const 1056) (local.get 0))
    (call $forward (i32.const 0)))
  (func $list (param i32 i32) (result i32)
    (i32.store (i32.const 3072) (local.get 0))
    (i32.store (i32.const 3076) (local.get 1))
    (i32.const 3072))
  (func $ok_list (param i32 i32) (result i32)
    (i32.store8 (i32.const 3068) (i32.const 0))
    (drop (call $list (local.get 0) (local.get 1)))
    (i32.const 3068))
  (func $refuse (param i32 i32) (result i32)
    (i32.store8 (i32.const 3068) (i32.const 1))
    (drop (call $list (local.get 0) (local.get 1)))
    (i32.const 3068))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at
      (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  (func (export "configure") (param $config i32) (param $length i32) (result i32)
    {configure})
  {world}
  {beside}
)"#
        )
    }

    fn text_of_world(&self) -> String {
        let Self { endpoints_changed, answer, .. } = self;
        let hear = format!(
            r#"(func (export "endpoints-changed")
    (param $new i64) (param $list i32) (param $length i32)
    (global.set $generation (local.get $new))
    (global.set $count (local.get $length))
    (global.set $heap (i32.const 4096))
    {endpoints_changed})"#
        );
        match self.shape {
            Shape::Chooser => format!(
                r#"{hear}
  (func (export "decide")
    (param $protocol i32)
    (param $client_high i64) (param $client_low i64) (param $client_port i32)
    (param $local_high i64) (param $local_low i64) (param $local_port i32)
    (param $key i64) (param $attempt i32) (param $avoid i32)
    (param $now i64) (param $random i64)
    (result i32)
    {answer})"#
            ),
            Shape::Table => format!(
                r#"(func (export "build")
    (param $new i64) (param $list i32) (param $length i32) (result i32)
    (local $at i32)
    (global.set $heap (i32.const 4096))
    {answer})"#
            ),
            Shape::Weights => format!(
                r#"{hear}
  (func (export "tick")
    (param $now i64) (param $samples i32) (param $length i32) (result i32)
    (local $at i32)
    (global.set $heap (i32.const 4096))
    {answer})"#
            ),
        }
    }

    fn text_beside(&self) -> String {
        let feed = r#"feedback@0.1.1#tick")
    (param $now i64) (param $samples i32) (param $samples_length i32)
    (param $ended i32) (param $ended_length i32) (param $missed i32)
    (global.set $heap (i32.const 4096))"#;
        let restore =
            r#"state@0.1.1#restore") (param $state i32) (param $length i32) (result i32)"#;
        let functions = [
            (&self.beside.feed, feed),
            (&self.beside.snapshot, r#"state@0.1.1#snapshot") (result i32)"#),
            (&self.beside.restore, restore),
            (&self.beside.config_schema, r#"schema@0.1.1#config-schema") (result i32)"#),
        ];
        let texts = functions.into_iter().filter_map(|(body, head)| {
            let body = body.as_ref()?;
            Some(format!(r#"(func (export "pointsman:policy/{head} {body})"#))
        });
        texts.collect::<Vec<_>>().join("\n")
    }

    /// The worlds of which it is told that it implements them.
    fn worlds(&self) -> Vec<&'static str> {
        let Beside { feed, snapshot, restore, config_schema } = &self.beside;
        let has_state = snapshot.is_some() || restore.is_some();
        let worlds = [
            (true, self.shape.label()),
            (feed.is_some(), "with-feedback"),
            (has_state, "with-state"),
            (config_schema.is_some(), "with-schema"),
        ];
        worlds.into_iter().filter_map(|(is_one, world)| is_one.then_some(world)).collect()
    }

    /// The core module with its interface.
    pub fn module(&self) -> Vec<u8> {
        embed_worlds(&self.text(), WIT, &self.worlds())
    }

    pub fn component(&self) -> Vec<u8> {
        encode(&self.module())
    }
}

/// Round robin, the way a policy author would write it first.
pub fn round_robin() -> Guest {
    Guest::deciding(
        "(global.set $turn (i32.rem_u
           (i32.add (global.get $turn) (i32.const 1)) (global.get $count)))
         (call $forward (global.get $turn))",
    )
}

/// Gives a module in text form the world `chooser` of `wit`.
pub fn embed(text: &str, wit: &str) -> Vec<u8> {
    embed_worlds(text, wit, &["chooser"])
}

/// Gives a module in text form several worlds of `wit`, as several `generate!`s do.
pub fn embed_worlds(text: &str, wit: &str, worlds: &[&str]) -> Vec<u8> {
    let mut module = wat::parse_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut resolve = Resolve::default();
    let package = resolve.push_str("policy.wit", wit).unwrap();
    for world in worlds {
        let world = resolve.select_world(&[package], Some(world)).unwrap();
        let encoding = StringEncoding::UTF8;
        embed_component_metadata(&mut module, &resolve, world, encoding, false).unwrap();
    }
    module
}

/// The guest as a core module and as a component, which are called in different ways.
pub fn both(engine: &Engine, guest: &Guest) -> [Module; 2] {
    [guest.module(), guest.component()].map(|bytes| engine.load(&bytes).unwrap())
}

pub fn encode(module: &[u8]) -> Vec<u8> {
    ComponentEncoder::default().module(module).unwrap().encode().unwrap()
}

pub fn engine() -> Engine {
    engine_of(EngineLimits { instances_max: 8, ..EngineLimits::default() })
}

pub fn engine_of(limits: EngineLimits) -> Engine {
    Engine::new(limits, Arc::new(|_| {})).unwrap()
}

/// An engine whose log can be read.
pub fn engine_with_log() -> (Engine, Receiver<LogLine>) {
    let (lines, log) = channel();
    let lines = Mutex::new(lines);
    let sink = move |line| drop(lines.lock().unwrap().send(line));
    let limits = EngineLimits { instances_max: 8, ..EngineLimits::default() };
    (Engine::new(limits, Arc::new(sink)).unwrap(), log)
}

/// Deadlines that no sound guest misses, however busy the machine.
pub fn patient() -> PolicySettings {
    PolicySettings {
        decide_deadline: Duration::from_secs(20),
        configure_deadline: Duration::from_secs(20),
        ..PolicySettings::new("patient", "null")
    }
}

/// Deadlines for guests that will miss any.
pub fn hasty() -> PolicySettings {
    PolicySettings {
        decide_deadline: Duration::from_millis(30),
        configure_deadline: Duration::from_millis(300),
        ..PolicySettings::new("hasty", "null")
    }
}

/// Endpoints `10.0.0.1:80`, `10.0.0.2:80`, … of weights 1, 2, … with the ids 100, 101, …
pub fn candidates(generation: u64, count: u32) -> Arc<Candidates> {
    let endpoint = |number: u32| Endpoint {
        id: EndpointId(99 + number),
        address: format!("10.0.0.{number}:80").parse().unwrap(),
        weight: number,
        flows_max: u32::MAX,
        load: Arc::new(Load::default()),
    };
    Arc::new(Candidates {
        generation: Generation(generation),
        endpoints: (1..=count).map(endpoint).collect(),
        table: None,
    })
}

/// The fallback: always the last endpoint, so that its decisions can be told from a guest's.
pub struct Last;

impl Policy for Last {
    fn decide(&mut self, _flow: &Flow<'_>, among: &Arc<Candidates>) -> Decided {
        let last = u32::try_from(among.endpoints.len() - 1).unwrap();
        Decided { decision: Decision::forward(EndpointIndex(last)), source: Source::Native }
    }
}

pub fn flow() -> Flow<'static> {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    Flow {
        protocol: Protocol::Tcp,
        key: None,
        client: address("192.0.2.7:1234"),
        local: address("198.51.100.1:8080"),
        listener: ListenerId(0),
        attempt: 0,
        tried: &[],
        now: pointsman_core::Instant::from_millis(77),
        random: 1,
    }
}

/// A flow for which a guest of [`Guest::bad_at_666`] misbehaves.
pub fn bad_flow() -> Flow<'static> {
    Flow { random: 666, ..flow() }
}

/// A loaded guest and the endpoints it is asked about.
pub struct Table {
    pub policy: GuestPolicy,
    pub stats: Arc<PolicyStats>,
    pub among: Arc<Candidates>,
}

impl Table {
    pub fn new(engine: &Engine, guest: &Guest, settings: PolicySettings) -> Self {
        Self::try_new(engine, guest, settings).unwrap()
    }

    pub fn try_new(
        engine: &Engine,
        guest: &Guest,
        settings: PolicySettings,
    ) -> Result<Self, InstanceError> {
        Self::of(&engine.load(&guest.module()).unwrap(), settings)
    }

    pub fn of(module: &Module, settings: PolicySettings) -> Result<Self, InstanceError> {
        let stats = Arc::new(PolicyStats::default());
        let among = candidates(1, 3);
        let policy = policy_of(module, settings, &stats, &among)?;
        Ok(Self { policy, stats, among })
    }

    pub fn decide(&mut self, flow: &Flow<'_>) -> Decided {
        self.policy.decide(flow, &self.among)
    }

    /// Asks until the guest decides again.
    pub fn await_guest(&mut self) {
        until("the guest decides", || self.decide(&flow()).source == Source::Plugin);
    }
}

pub fn policy_of(
    module: &Module,
    settings: PolicySettings,
    stats: &Arc<PolicyStats>,
    among: &Arc<Candidates>,
) -> Result<GuestPolicy, InstanceError> {
    GuestPolicy::new(module, Arc::new(settings), place(stats), among)
}

/// A place on a worker that asks as much as it likes.
pub fn place(stats: &Arc<PolicyStats>) -> Place {
    Place {
        stats: Arc::clone(stats),
        governor: Arc::new(Governor::new(100)),
        fallback: Box::new(Last),
        state: None,
        now: pointsman_core::Instant::ZERO,
    }
}

pub fn endpoint_of(decided: &Decided) -> u32 {
    match decided.decision.verdict {
        Verdict::Forward(EndpointIndex(index)) => index,
        other => panic!("{other:?}"),
    }
}

/// Waits for something that happens on another thread.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What an error's text must be: one line, lower case, no full stop.
pub fn assert_well_put(text: &str) {
    let mut problems = String::new();
    if text.lines().count() != 1 {
        let _ = write!(problems, "not one line; ");
    }
    if text.starts_with(char::is_uppercase) {
        let _ = write!(problems, "begins in upper case; ");
    }
    if text.ends_with('.') {
        let _ = write!(problems, "ends with a full stop; ");
    }
    assert!(problems.is_empty(), "{problems}{text}");
}
