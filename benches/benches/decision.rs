//! What one decision of a plugin costs, called as the balancer calls it.
//!
//! Reads `target/plugins/*.wasm`, which `cargo xtask bench` builds first.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use pointsman_benches::{candidates, flow};
use pointsman_core::policy::{Policy, RoundRobin, Source};
use pointsman_plugin::{
    Engine, EngineLimits, Governor, GuestPolicy, Place, PolicySettings, PolicyStats,
};

fn guest(engine: &Engine, name: &str, among: &Arc<pointsman_core::Candidates>) -> GuestPolicy {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/plugins");
    let path = plugins.join(name).with_extension("wasm");
    let bytes = std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; run cargo xtask plugins", path.display()));
    let module = engine.load(&bytes).expect("the plugin loads");
    let settings = Arc::new(PolicySettings::new(name, "null"));
    let place = Place {
        stats: Arc::<PolicyStats>::default(),
        governor: Arc::new(Governor::new(100)),
        fallback: Box::new(RoundRobin::new()),
        state: None,
    };
    GuestPolicy::new(&module, settings, place, among).expect("the plugin starts")
}

fn decisions(criterion: &mut Criterion) {
    let engine = Engine::new(EngineLimits::default(), Arc::new(|_| {})).expect("an engine");
    engine.prepare_thread();
    let among = candidates(4);
    let mut group = criterion.benchmark_group("decision");
    let mut random = 0_u64;
    let mut measure = |name: &str, policy: &mut dyn Policy, source: Source| {
        let mut answered = 0_u64;
        let mut others = 0_u64;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let client = SocketAddr::from((Ipv4Addr::from(random as u32), 1));
                let decided = policy.decide(&flow(client, random), &among);
                answered += u64::from(decided.source == source);
                others += u64::from(decided.source != source);
                decided
            });
        });
        assert!(others * 1_000 < answered, "{name}: {others} answers came from someone else");
    };
    for name in ["round-robin", "p2c", "client-affinity"] {
        measure(name, &mut guest(&engine, name, &among), Source::Plugin);
    }
    measure("native-round-robin", &mut RoundRobin::new(), Source::Native);
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
