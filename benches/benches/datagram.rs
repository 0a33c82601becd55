//! The flow table of datagrams at a million flows: one lookup at a time and a turn's together,
//! beside `hashbrown::HashMap` with the same hash; and whole turns of the core.

use std::hash::BuildHasher;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hashbrown::HashMap;
use pointsman_benches::datagrams::{DatagramBench, client, request};
use pointsman_core::Instant;
use pointsman_core::boundary::{Completion, ListenerId};
use pointsman_core::datagram::{Flow, FlowKey, FlowTable};
use pointsman_ring::prefer_large_pages;
use siphasher::sip::SipHasher13;

const FLOWS: u32 = 1_000_000;
/// Lookups in one measured step: enough that the clock costs nothing.
const STEP: u32 = 10_000;
/// Datagrams in a turn, as the worker's.
const TURN: u32 = 128;
const NOW: Instant = Instant::from_millis(1);

#[derive(Clone)]
struct Sip;

impl BuildHasher for Sip {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(1, 2)
    }
}

/// A key and a flow of the same sizes.
type Map = HashMap<[u32; 3], [u64; 6], Sip>;

fn key(number: u32) -> FlowKey {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    FlowKey { listener: ListenerId(0), client: client(number), local }
}

fn plain(key: &FlowKey) -> [u32; 3] {
    let bits = |address| match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(_) => 0,
    };
    [bits(key.client.ip()), bits(key.local), u32::from(key.client.port())]
}

/// Numbers from `from` on, `count` at a time and in no order.
fn scattered(from: u32, count: u32) -> impl Iterator<Item = Vec<u32>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        at += u64::from(count);
        let number = |n: u64| (n * 2_654_435_761 % u64::from(FLOWS)) as u32 + from;
        Some((at..at + u64::from(count)).map(number).collect())
    })
}

fn full_table() -> FlowTable {
    let mut table = FlowTable::new(FLOWS, 1, [1, 2]);
    table.addresses().for_each(prefer_large_pages);
    for number in 0..FLOWS {
        table.insert(Flow::new(NOW, &key(number), false), None, Instant::from_millis(1 << 30));
    }
    table
}

fn full_map() -> Map {
    let mut map = HashMap::with_capacity_and_hasher(FLOWS as usize, Sip);
    map.extend((0..FLOWS).map(|number| (plain(&key(number)), [u64::from(number); 6])));
    map
}

fn found_together(table: &FlowTable, keys: &[FlowKey]) -> usize {
    let mut found = [None; FlowTable::BATCH];
    let mut count = 0;
    for keys in keys.chunks(FlowTable::BATCH) {
        table.find_batch(black_box(keys), &mut found);
        count += found[..keys.len()].iter().flatten().count();
    }
    count
}

fn lookups(criterion: &mut Criterion) {
    let (table, map) = (full_table(), full_map());
    println!("{:.1} bytes per flow", table.memory_bytes() as f64 / f64::from(FLOWS));
    for (name, from) in [("hit", 0), ("miss", FLOWS)] {
        let mut group = criterion.benchmark_group(format!("datagram_table/{name}"));
        group.throughput(Throughput::Elements(STEP.into()));
        let mut keys = scattered(from, STEP).map(|step| step.into_iter().map(key).collect());
        let mut next = || -> Vec<FlowKey> { keys.next().expect("endless") };
        let size = BatchSize::LargeInput;
        group.bench_function("together", |bencher| {
            bencher.iter_batched(&mut next, |keys| found_together(&table, &keys), size);
        });
        group.bench_function("one by one", |bencher| {
            let is_in = |key: &&FlowKey| table.find_by_client(black_box(key)).is_some();
            bencher.iter_batched(&mut next, |keys| keys.iter().filter(is_in).count(), size);
        });
        group.bench_function("hashbrown", |bencher| {
            let is_in = |key: &&FlowKey| map.contains_key(black_box(&plain(key)));
            bencher.iter_batched(&mut next, |keys| keys.iter().filter(is_in).count(), size);
        });
        group.finish();
    }
}

fn turns(criterion: &mut Criterion) {
    let mut bench = DatagramBench::new(FLOWS, Duration::from_secs(60), false);
    bench.open(0..FLOWS);
    let mut group = criterion.benchmark_group("datagram_turn");
    group.throughput(Throughput::Elements(TURN.into()));
    for (name, looks_ahead) in [("with a look ahead", true), ("without", false)] {
        let of_clients = |step: Vec<u32>| step.into_iter().map(|n| request(client(n))).collect();
        let mut completions = scattered(0, TURN).map(of_clients);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || -> Vec<Completion> { completions.next().expect("endless") },
                |mut completions| {
                    if looks_ahead {
                        bench.turn(&mut completions);
                    } else {
                        bench.handle(&mut completions);
                    }
                    bench.forwarded().count()
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, lookups, turns);
criterion_main!(benches);
