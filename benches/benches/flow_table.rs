//! The flow table against `hashbrown::HashMap` with the same hash, at a million entries.

use std::hash::BuildHasher;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hashbrown::HashMap;
use pointsman_core::Instant;
use pointsman_core::kept_table::KeptTable;
use siphasher::sip::SipHasher13;

const ENTRIES: usize = 1_000_000;
/// Operations in one measured step: enough that the clock costs nothing.
const STEP: usize = 10_000;
const NOW: Instant = Instant::from_millis(1);
const LATER: Instant = Instant::from_millis(1_000_000);

/// What a kept decision is found by, in size: an IPv6 address and a cluster.
type Key = ([u64; 2], u16);
/// What is kept, in size.
type Value = [u32; 7];

#[derive(Clone)]
struct Sip;

impl BuildHasher for Sip {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(1, 2)
    }
}

/// The value with its end of life, as every entry of the flow table has one.
type Map = HashMap<Key, (Instant, Value), Sip>;

/// Keys 0 to `ENTRIES` − 1 are in the tables. The order is scattered, as that of clients is.
fn key(number: usize) -> Key {
    let scattered = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ([scattered, number as u64], 1)
}

fn steps(from: usize) -> impl Iterator<Item = Vec<Key>> {
    let mut at = 0_usize;
    std::iter::from_fn(move || {
        at += STEP;
        let number = |n: usize| n.wrapping_mul(2_654_435_761) % ENTRIES + from;
        Some((at..at + STEP).map(|n| key(number(n))).collect())
    })
}

fn full_table() -> KeptTable<Key, Value> {
    let mut table = KeptTable::new(ENTRIES + 2 * STEP, [1, 2]);
    (0..ENTRIES).for_each(|n| table.insert(NOW, key(n), [n as u32; 7], LATER).expect("room"));
    table
}

fn full_map() -> Map {
    let mut map = HashMap::with_capacity_and_hasher(ENTRIES + 2 * STEP, Sip);
    map.extend((0..ENTRIES).map(|n| (key(n), (LATER, [n as u32; 7]))));
    map
}

fn lookups(criterion: &mut Criterion) {
    let (mut table, map) = (full_table(), full_map());
    for (name, from) in [("hit", 0), ("miss", ENTRIES)] {
        let mut group = criterion.benchmark_group(format!("flow_table/{name}"));
        group.throughput(Throughput::Elements(STEP as u64));
        let mut keys = steps(from);
        group.bench_function("ours", |bencher| {
            bencher.iter_batched(
                || keys.next().expect("endless"),
                |keys| keys.iter().filter(|key| table.get(NOW, black_box(key)).is_some()).count(),
                BatchSize::LargeInput,
            );
        });
        let mut keys = steps(from);
        group.bench_function("hashbrown", |bencher| {
            let live = |key: &Key| map.get(key).filter(|(expires, _)| *expires > NOW).is_some();
            bencher.iter_batched(
                || keys.next().expect("endless"),
                |keys| keys.iter().filter(|key| live(black_box(key))).count(),
                BatchSize::LargeInput,
            );
        });
        group.finish();
    }
}

/// A new entry at a million, and the removal that keeps it there: both tables do both.
fn inserts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow_table/insert_remove");
    group.throughput(Throughput::Elements(STEP as u64));
    let mut table = full_table();
    let mut keys = steps(ENTRIES);
    group.bench_function("ours", |bencher| {
        bencher.iter_batched(
            || keys.next().expect("endless"),
            |keys| {
                keys.iter().for_each(|key| table.insert(NOW, *key, [7; 7], LATER).expect("room"));
                keys.iter().filter(|key| table.remove(key).is_some()).count()
            },
            BatchSize::LargeInput,
        );
    });
    let mut map = full_map();
    let mut keys = steps(ENTRIES);
    group.bench_function("hashbrown", |bencher| {
        bencher.iter_batched(
            || keys.next().expect("endless"),
            |keys| {
                map.extend(keys.iter().map(|key| (*key, (LATER, [7; 7]))));
                keys.iter().filter(|key| map.remove(*key).is_some()).count()
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, lookups, inserts);
criterion_main!(benches);
