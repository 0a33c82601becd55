//! What one decision costs, called as the balancer calls it: by plugins, by a lookup table, and by
//! a native policy.
//!
//! Reads `target/plugins/*.wasm`, which `cargo xtask bench` builds first. Nothing is governed here.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use pointsman_benches::{candidates, flow};
use pointsman_core::policy::{
    Decided, Decision, EndpointIndex, Flow, Policy, RoundRobin, Source, TablePolicy, maglev,
};
use pointsman_core::{Candidates, Instant};
use pointsman_plugin::{
    Engine, EngineLimits, Governor, GuestPolicy, Place, PolicySettings, PolicyStats,
};
use wit_component::ComponentEncoder;

/// The size of a Maglev table unless something else is configured.
const TABLE_SIZE: u32 = 65_537;

fn plugin(name: &str) -> Vec<u8> {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/plugins");
    let path = plugins.join(name).with_extension("wasm");
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; run cargo xtask plugins", path.display()))
}

/// The same as a component, which is what other languages make.
fn component(name: &str) -> Vec<u8> {
    let mut encoder = ComponentEncoder::default();
    encoder.module(&plugin(name)).and_then(ComponentEncoder::encode).expect("a policy")
}

fn guest(engine: &Engine, bytes: &[u8], among: &Arc<Candidates>) -> GuestPolicy {
    let module = engine.load(bytes).expect("the plugin loads");
    let settings = Arc::new(PolicySettings::new("measured", "null"));
    let place = Place {
        stats: Arc::<PolicyStats>::default(),
        governor: Arc::new(Governor::new(100)),
        fallback: Box::new(RoundRobin::new()),
        state: None,
        now: Instant::ZERO,
    };
    GuestPolicy::new(&module, settings, place, among).expect("the plugin starts")
}

/// The same endpoints with a lookup table beside them.
fn tabled(among: &Candidates) -> Arc<Candidates> {
    let endpoints = among.endpoints.clone();
    let names: Vec<_> = endpoints.iter().map(|it| (it.address.to_string(), it.weight)).collect();
    let names: Vec<_> = names.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
    let table = maglev::build(&names, TABLE_SIZE);
    Arc::new(Candidates { generation: among.generation, endpoints, table })
}

/// What is in every figure: the flow is changed, the policy called, the answer looked at.
struct NoPolicy;

impl Policy for NoPolicy {
    fn decide(&mut self, _: &Flow<'_>, _: &Arc<Candidates>) -> Decided {
        Decided { decision: Decision::forward(EndpointIndex(0)), source: Source::Native }
    }
}

struct Subject<'a> {
    name: &'a str,
    policy: &'a mut dyn Policy,
    among: &'a Arc<Candidates>,
    /// Who is to have answered.
    source: Source,
}

impl Subject<'_> {
    fn measure(self, group: &mut BenchmarkGroup<'_, WallTime>) {
        let Self { name, policy, among, source } = self;
        let (mut asked, mut answered) = (0_u64, 0_u64);
        // One flow that changes, because making one costs as much as looking into a table.
        let mut flow = flow((Ipv4Addr::UNSPECIFIED, 1).into(), 0);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                flow.random = flow.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                flow.client = (Ipv4Addr::from(flow.random as u32), 1).into();
                let decided = policy.decide(&flow, among);
                asked += 1;
                answered += u64::from(decided.source == source);
                decided.decision.verdict
            });
        });
        let others = asked - answered;
        assert!(others * 1_000 <= asked, "{name}: {others} answers came from someone else");
    }
}

fn decisions(criterion: &mut Criterion) {
    let engine = Engine::new(EngineLimits::default(), Arc::new(|_| {})).expect("an engine");
    engine.prepare_thread();
    let among = &candidates(4);
    let mut group = criterion.benchmark_group("decision");
    let modules = ["p2c", "round-robin", "client-affinity"].map(|name| (name, plugin(name)));
    for (name, bytes) in modules.into_iter().chain([("p2c-component", component("p2c"))]) {
        let policy = &mut guest(&engine, &bytes, among);
        Subject { name, policy, among, source: Source::Plugin }.measure(&mut group);
    }
    let (policy, source) = (&mut TablePolicy::new(), Source::Table);
    Subject { name: "table", policy, among: &tabled(among), source }.measure(&mut group);
    let (policy, source) = (&mut NoPolicy, Source::Native);
    Subject { name: "none", policy, among, source }.measure(&mut group);
    let (policy, source) = (&mut RoundRobin::new(), Source::Native);
    Subject { name: "native-round-robin", policy, among, source }.measure(&mut group);
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
