//! What a flow costs the core: born from a kept decision, and relaying.

use std::net::{Ipv4Addr, SocketAddr};

use criterion::{Criterion, criterion_group, criterion_main};
use pointsman_benches::Bench;
use pointsman_core::boundary::Side;

fn hit_path(criterion: &mut Criterion) {
    let client = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 1));
    let mut bench = Bench::new();
    let slot = bench.open(client);
    bench.close(slot);
    criterion.bench_function("affinity_hit/open_and_close", |bencher| {
        bencher.iter(|| {
            let slot = bench.open(client);
            bench.close(slot);
        });
    });
    assert!(bench.cache_hits() > 0, "the decision is kept");

    let slot = bench.open(client);
    criterion.bench_function("relay/request_and_answer", |bencher| {
        bencher.iter(|| {
            bench.relay(slot, Side::Downstream, 200);
            bench.relay(slot, Side::Upstream, 800);
        });
    });
}

criterion_group!(benches, hit_path);
criterion_main!(benches);
