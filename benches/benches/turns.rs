//! How long a worker's turns take in the core with a million flows of datagrams: under traffic,
//! while they are handed over, while all of them expire, and under a flood of senders that come once.
//!
//! Not a criterion bench: what matters is not the mean but the longest turn. What is measured is
//! the thread's own time, so that a turn during which the scheduler ran something else is not longer
//! for it.

use std::time::Duration;

use pointsman_benches::datagrams::{DatagramBench, client, reply, request};
use rustix::time::{ClockId, clock_gettime};

const FLOWS: u32 = 1_000_000;
const IDLE: Duration = Duration::from_secs(60);
/// Completions in a turn, as the worker's.
const TURN: u32 = 128;

/// Flows that are handed over in a turn, as the worker's.
const STEPS: u32 = 2048;

/// Turn times in powers of two of a microsecond.
#[derive(Default)]
struct Histogram {
    buckets: [u64; 24],
    longest: Duration,
}

impl Histogram {
    fn add(&mut self, time: Duration) {
        let micros = time.as_micros() as u64;
        self.buckets[(u64::BITS - micros.leading_zeros()) as usize] += 1;
        self.longest = self.longest.max(time);
    }

    fn print(&self, scene: &str) {
        let beyond: u64 = self.buckets[11..].iter().sum();
        println!("{scene}: longest {:?}, {beyond} turns of 1.024 ms or more", self.longest);
        for (power, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            println!("  below {:>8} µs {count:>10}", 1_u64 << power);
        }
    }
}

fn own_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn main() {
    let mut bench = DatagramBench::new(FLOWS + FLOWS / 4, IDLE, false);
    let ways = bench.open(0..FLOWS);
    println!("{} flows, {} bytes of table", bench.flows(), bench.table_bytes());
    let timed = |bench: &mut DatagramBench, completions: &mut Vec<_>, histogram: &mut Histogram| {
        let before = own_time();
        bench.turn(completions);
        histogram.add(own_time() - before);
        bench.forwarded().for_each(drop);
    };

    let mut traffic = Histogram::default();
    let mut number = 0_u32;
    for turn in 0..20_000 {
        let next = |n: u32| n.wrapping_add(7_919) % FLOWS;
        let mut completions = Vec::with_capacity(TURN as usize);
        for _ in 0..TURN {
            number = next(number);
            let is_reply = turn % 2 == 0;
            let way = ways[number as usize];
            completions.push(if is_reply { reply(way) } else { request(client(number)) });
        }
        timed(&mut bench, &mut completions, &mut traffic);
    }
    traffic.print("traffic");

    let mut handing = Histogram::default();
    bench.stand_still();
    let handed = loop {
        let before = own_time();
        let handed = bench.hand_over(STEPS);
        handing.add(own_time() - before);
        if let Some(handed) = handed {
            break handed;
        }
    };
    handing.print("handing over to another process");
    let before = own_time();
    let taken = bench.take_over(&handed);
    println!("taking over {taken} flows: {:?}", own_time() - before);
    bench.forwarded().for_each(drop);

    let mut flood = Histogram::default();
    for turn in 0..FLOWS / TURN {
        let strangers = (0..TURN).map(|n| request(client(2 * FLOWS + turn * TURN + n)));
        timed(&mut bench, &mut strangers.collect(), &mut flood);
    }
    flood.print("flood of strangers");
    let listener = &bench.stats().listeners[0];
    println!(
        "  {} flows, closes {:?}, sheds {:?}",
        bench.flows(),
        listener.closes_total,
        listener.sheds_total
    );

    let mut expiry = Histogram::default();
    bench.now = bench.now + 2 * IDLE;
    while bench.flows() > 0 {
        timed(&mut bench, &mut Vec::new(), &mut expiry);
    }
    expiry.print("expiry of everything at once");
}
