//! Subscriptions: credit, pauses, starvation, and how they end.

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::net::Shutdown;

use common::{
    adopt, close, collect, link, pattern, quiet, receive, recycle, ring, ring_with, send, submit,
    total, turn,
};
use pointsman_core::boundary::{Buffer, Completion, Goodbye, Link, Op, Pool, ReceiveEnd};
use pointsman_ring::{BufferPool, Ring};

const SMALL: u32 = Pool::Small.buffer_bytes();

/// Collects a subscription up to its end.
fn subscription(ring: &mut Ring) -> (Vec<Buffer>, ReceiveEnd) {
    let mut buffers = Vec::new();
    loop {
        for completion in turn(ring) {
            match completion {
                Completion::Received { buffer, .. } => buffers.push(buffer),
                Completion::ReceiveEnded { end, .. } => return (buffers, end),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_credit_stops_the_subscription_within_a_buffer() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(0));
    peer.write_all(&pattern(64 * 1024)).expect("write");
    for credit in [1, 5000, 3 * SMALL] {
        submit(&mut ring, [Op::Receive { link: link(0), pool: Pool::Small, credit }]);
        let (buffers, end) = subscription(&mut ring);
        assert_eq!(end, ReceiveEnd::Paused);
        assert!((credit..credit + SMALL).contains(&total(&buffers)), "{}", total(&buffers));
        recycle(&mut ring, buffers);
    }
    quiet(&mut ring);
}

#[test]
fn a_pause_ends_an_idle_subscription_and_the_next_one_goes_on() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(0));
    let receive = || Op::Receive { link: link(0), pool: Pool::Small, credit: 1 << 20 };
    submit(&mut ring, [receive()]);
    quiet(&mut ring);
    submit(&mut ring, [Op::Pause { link: link(0) }, Op::Pause { link: link(0) }]);
    let (buffers, end) = subscription(&mut ring);
    assert_eq!((buffers.len(), end), (0, ReceiveEnd::Paused));
    peer.write_all(b"later").expect("write");
    quiet(&mut ring);
    submit(&mut ring, [receive()]);
    let completions = collect(&mut ring, 1);
    assert!(matches!(&completions[0], Completion::Received { buffer, .. } if buffer.len() == 5));
}

#[test]
fn a_pause_after_the_end_is_not_answered() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(0));
    peer.write_all(b"x").expect("write");
    recycle_all(&mut ring);
    submit(&mut ring, [Op::Pause { link: link(0) }]);
    quiet(&mut ring);
}

fn recycle_all(ring: &mut Ring) {
    let buffers = receive(ring, link(0), Pool::Small, 1);
    recycle(ring, buffers);
}

#[test]
fn the_end_of_the_stream_comes_after_its_last_bytes() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(0));
    peer.write_all(b"bye").expect("write");
    peer.shutdown(Shutdown::Write).expect("shutdown");
    submit(&mut ring, [Op::Receive { link: link(0), pool: Pool::Small, credit: 1 << 20 }]);
    let (buffers, end) = subscription(&mut ring);
    assert_eq!((total(&buffers), end), (3, ReceiveEnd::EndOfStream));
}

#[test]
fn a_bulk_subscription_fills_bulk_buffers() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(0));
    let writer = std::thread::spawn(move || peer.write_all(&pattern(1 << 20)).map(|()| peer));
    submit(&mut ring, [Op::Receive { link: link(0), pool: Pool::Bulk, credit: 1 << 20 }]);
    let mut received = 0;
    while received < 1 << 20 {
        for completion in turn(&mut ring) {
            if let Completion::Received { buffer, .. } = completion {
                assert_eq!(buffer.pool(), Pool::Bulk);
                received += buffer.len();
                recycle(&mut ring, vec![buffer]);
            }
        }
    }
    assert_eq!(received, 1 << 20);
    writer.join().expect("writer").expect("write");
}

/// Counts what every link receives, and gives each buffer back one turn later.
fn drink(ring: &mut Ring, goal: u32) -> HashMap<Link, u32> {
    let (mut counts, mut held) = (HashMap::new(), Vec::new());
    while counts.values().sum::<u32>() < goal {
        let done = std::mem::take(&mut held);
        recycle(ring, done);
        for completion in turn(ring) {
            match completion {
                Completion::Received { link, buffer } => {
                    *counts.entry(link).or_default() += buffer.len();
                    held.push(buffer);
                }
                other => panic!("a starved subscription must not end: {other:?}"),
            }
        }
    }
    recycle(ring, held);
    counts
}

#[test]
fn starved_links_get_all_their_bytes_in_the_end() {
    const LINKS: u32 = 40;
    const EACH: u32 = 5 * SMALL;
    let mut ring = ring_with(LINKS, 3, 1);
    let mut peers: Vec<_> = (0..LINKS).map(|at| adopt(&mut ring, link(at))).collect();
    for peer in &mut peers {
        peer.write_all(&pattern(EACH as usize)).expect("write");
    }
    for at in 0..LINKS {
        submit(&mut ring, [Op::Receive { link: link(at), pool: Pool::Small, credit: 2 * EACH }]);
    }
    let counts = drink(&mut ring, LINKS * EACH);
    assert!((0..LINKS).all(|at| counts[&link(at)] == EACH), "{counts:?}");
    ring.wait(Some(pointsman_ring::Clock.now())).expect("wait");
    let stats = ring.stats();
    let small = stats.buffers[BufferPool::Small.index()];
    assert_eq!((small.count, small.free), (3, 3));
    assert!(small.starved_total >= u64::from(LINKS - 3), "{small:?}");
    assert!(stats.enters_total > 0);
}

#[test]
fn a_starved_subscription_can_be_paused_and_closed() {
    let mut ring = ring_with(4, 1, 1);
    let mut peer = adopt(&mut ring, link(0));
    let _other = adopt(&mut ring, link(1));
    let _third = adopt(&mut ring, link(2));
    peer.write_all(b"x").expect("write");
    let held = receive(&mut ring, link(0), Pool::Small, 1);
    for at in [1, 2] {
        submit(&mut ring, [Op::Receive { link: link(at), pool: Pool::Small, credit: 9 }]);
    }
    quiet(&mut ring);
    submit(&mut ring, [Op::Pause { link: link(1) }]);
    let ended = Completion::ReceiveEnded { link: link(1), end: ReceiveEnd::Paused };
    assert_eq!(collect(&mut ring, 1), [ended]);
    let before = close(&mut ring, link(2), Goodbye::Fin);
    assert_eq!(before, [Completion::ReceiveEnded { link: link(2), end: ReceiveEnd::Cancelled }]);
    recycle(&mut ring, held);
    quiet(&mut ring);
}

#[test]
fn an_idle_link_does_not_keep_a_buffer_from_one_that_has_bytes() {
    let mut ring = ring_with(8, 1, 1);
    let mut peers: Vec<_> = (0..8).map(|at| adopt(&mut ring, link(at))).collect();
    peers[0].write_all(b"x").expect("write");
    let held = receive(&mut ring, link(0), Pool::Small, 1);
    peers[1].write_all(b"x").expect("write");
    let _held_for_good = receive(&mut ring, link(1), Pool::Bulk, 1);
    for at in 2..8 {
        submit(&mut ring, [Op::Receive { link: link(at), pool: Pool::Small, credit: 9 }]);
    }
    peers[7].write_all(b"last in line").expect("write");
    quiet(&mut ring);
    recycle(&mut ring, held);
    let completions = turn(&mut ring);
    assert!(matches!(&completions[0], Completion::Received { link: to, .. } if *to == link(7)));
}

#[test]
fn buffers_come_back_from_a_send() {
    let mut ring = ring_with(2, 2, 1);
    let mut peer = adopt(&mut ring, link(0));
    for _ in 0..100 {
        peer.write_all(b"ping").expect("write");
        let buffers = receive(&mut ring, link(0), Pool::Small, 4);
        send(&mut ring, link(0), buffers);
        collect(&mut ring, 1);
        assert_eq!(common::read(&mut peer, 4), b"ping");
    }
    assert_eq!(ring.free_buffers(Pool::Small), 2);
}
