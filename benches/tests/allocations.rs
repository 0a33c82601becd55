//! Nothing is allocated once a flow's decision is kept, nor while bytes are relayed.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use pointsman_benches::Bench;
use pointsman_benches::datagrams::{DatagramBench, client, reply, request};
use pointsman_core::boundary::Side;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

fn allocations(act: impl FnOnce()) -> u64 {
    let before = dhat::HeapStats::get().total_blocks;
    act();
    dhat::HeapStats::get().total_blocks - before
}

#[test]
fn the_hit_paths_and_a_steady_relay_allocate_nothing() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let visitor = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 1));
    let mut bench = Bench::new();
    let slot = bench.open(visitor);
    bench.close(slot);

    let hits = allocations(|| {
        for _ in 0..1_000 {
            let slot = bench.open(visitor);
            bench.close(slot);
        }
    });
    assert_eq!(bench.cache_hits(), 1_000);
    assert_eq!(hits, 0, "allocations on the hit path");

    let slot = bench.open(visitor);
    let relayed = allocations(|| {
        for round in 0..1_000 {
            bench.relay(slot, Side::Downstream, 200);
            bench.relay(slot, Side::Upstream, 4_096);
            bench.renew_credit(slot, Side::BOTH[round % 2]);
            bench.pass_time(Duration::from_millis(700));
        }
    });
    assert_eq!(relayed, 0, "allocations of a steady relay");

    let mut bench = DatagramBench::new(1_000, Duration::from_secs(60), false);
    let ways = bench.open(0..500);
    let mut completions = Vec::with_capacity(2);
    let datagrams = allocations(|| {
        for (number, way) in (0..).zip(&ways) {
            completions.extend([request(client(number)), reply(*way)]);
            bench.turn(&mut completions);
            bench.forwarded().for_each(drop);
        }
        for number in 500..600 {
            completions.push(request(client(number)));
            bench.turn(&mut completions);
            assert_eq!(bench.forwarded().count(), 1, "a new flow");
        }
    });
    assert_eq!(datagrams, 0, "allocations of flows of datagrams, old and new");
    assert_ne!(allocations(|| drop(Vec::<u8>::with_capacity(1))), 0, "the allocator counts");
}
