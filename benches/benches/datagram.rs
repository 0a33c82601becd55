//! The flow table of datagrams at a million flows.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pointsman_core::Instant;
use pointsman_core::boundary::ListenerId;
use pointsman_core::datagram::{Flow, FlowKey, FlowTable};

const FLOWS: u32 = 1_000_000;
const STEP: u32 = 10_000;
const NOW: Instant = Instant::from_millis(1);

fn key(number: u32) -> FlowKey {
    let scattered = number.wrapping_mul(2_654_435_761);
    let client = Ipv4Addr::from_bits(127 << 24 | scattered >> 8);
    let client = SocketAddr::from((client, 1024 + (scattered & 0xff) as u16));
    FlowKey { listener: ListenerId(0), client, local: IpAddr::V4(Ipv4Addr::LOCALHOST) }
}

fn steps(from: u32) -> impl Iterator<Item = Vec<FlowKey>> {
    let mut at = 0_u32;
    std::iter::from_fn(move || {
        at = at.wrapping_add(STEP);
        let number = |n: u32| (n as u64 * 2_654_435_761 % u64::from(FLOWS)) as u32 + from;
        Some((at..at + STEP).map(|n| key(number(n))).collect())
    })
}

fn lookups(criterion: &mut Criterion) {
    let mut table = FlowTable::new(FLOWS, [1, 2]);
    for n in 0..FLOWS {
        table.insert(Flow::new(NOW, &key(n), false), None, Instant::from_millis(1 << 30));
    }
    eprintln!("{} bytes per flow", table.memory_bytes() as f64 / f64::from(FLOWS));
    for (name, from) in [("hit", 0), ("miss", FLOWS)] {
        let mut group = criterion.benchmark_group(format!("datagram_table/{name}"));
        group.throughput(Throughput::Elements(STEP.into()));
        let mut keys = steps(from);
        group.bench_function("ours", |bencher| {
            bencher.iter_batched(
                || keys.next().expect("endless"),
                |keys| keys.iter().filter(|key| table.find_by_client(black_box(key)).is_some()).count(),
                BatchSize::LargeInput,
            );
        });
        let mut keys = steps(from);
        group.bench_function("batch", |bencher| {
            bencher.iter_batched(
                || keys.next().expect("endless"),
                |keys| {
                    let mut found = [None; FlowTable::BATCH];
                    let mut count = 0;
                    for keys in keys.chunks(FlowTable::BATCH) {
                        table.find_batch(black_box(keys), &mut found);
                        count += found[..keys.len()].iter().flatten().count();
                    }
                    count
                },
                BatchSize::LargeInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, lookups);
criterion_main!(benches);
