//! Whole turns: relaying, waking, deadlines, and thousands of connections that leave no trace.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{LISTENER, adopt, alone, link, listening, open_descriptors, pattern, ring, submit};
use pointsman_core::boundary::{Completion, Goodbye, Link, Op, Pool, ReceiveEnd};
use pointsman_ring::{Clock, Ring};

/// Answers every link with what it says, one buffer at a time, until all links are closed.
fn echo(ring: &mut Ring, mut open: u32) {
    let subscribe = |link| Op::Receive { link, pool: Pool::Small, credit: 1 };
    let mut ops = Vec::new();
    while open > 0 {
        ring.submit(ops.drain(..));
        for completion in common::turn(ring) {
            match completion {
                Completion::Received { link, buffer } => {
                    ops.push(Op::Send { link, buffer, more: false });
                }
                Completion::Sent { link, .. } => ops.push(subscribe(link)),
                Completion::ReceiveEnded { end: ReceiveEnd::Paused, .. } => {}
                Completion::ReceiveEnded { link, .. } => {
                    ops.push(Op::Close { link, goodbye: Goodbye::Fin });
                }
                Completion::Closed { .. } => open -= 1,
                other => panic!("{other:?}"),
            }
        }
    }
}

fn speak(mut peer: TcpStream, len: usize) {
    let mut writer = peer.try_clone().expect("clone");
    let writing = std::thread::spawn(move || {
        writer.write_all(&pattern(len)).expect("write");
        writer.shutdown(Shutdown::Write).expect("shutdown");
    });
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).expect("read");
    writing.join().expect("writer");
    assert!(answer == pattern(len), "the echo is not what was said");
}

#[test]
fn an_echo_through_the_ring_is_faithful() {
    let mut ring = ring();
    let speakers: Vec<_> = (0..8)
        .map(|at| {
            let peer = adopt(&mut ring, link(at));
            submit(&mut ring, [Op::Receive { link: link(at), pool: Pool::Small, credit: 1 }]);
            std::thread::spawn(move || speak(peer, 300_000 + at as usize))
        })
        .collect();
    echo(&mut ring, 8);
    for speaker in speakers {
        speaker.join().expect("speaker");
    }
    assert_eq!(ring.free_buffers(Pool::Small), 1024);
}

#[test]
fn another_thread_wakes_the_ring_each_time() {
    let mut ring = ring();
    let (waker, told) = (ring.waker(), Arc::new(AtomicU32::new(0)));
    let teller = std::thread::spawn({
        let told = Arc::clone(&told);
        move || {
            for _ in 0..2000 {
                told.fetch_add(1, Ordering::Relaxed);
                waker.wake();
                if told.load(Ordering::Relaxed).is_multiple_of(64) {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        }
    });
    // Without a deadline: a wake that gets lost would hang the test.
    while told.load(Ordering::Relaxed) < 2000 {
        ring.wait(None).expect("wait");
        assert_eq!(ring.reap(256).count(), 0);
    }
    teller.join().expect("teller");
}

#[test]
fn a_deadline_ends_the_wait_and_not_before() {
    let mut ring = ring();
    let deadline = Clock.now() + Duration::from_millis(30);
    ring.wait(Some(deadline)).expect("wait");
    ring.wait(Some(deadline)).expect("wait");
    assert!(Clock.now() >= deadline);
    assert_eq!(ring.reap(256).count(), 0);
}

#[test]
fn a_deadline_in_the_past_does_not_wait() {
    let mut ring = ring();
    ring.wait(Some(pointsman_core::Instant::ZERO)).expect("wait");
}

/// Serves clients one exchange each until `count` have come and gone.
fn serve_each_once(ring: &mut Ring, links: u32, count: u32) {
    let mut free: Vec<Link> = (0..links).map(link).collect();
    let (mut ops, mut gone) = (Vec::new(), 0);
    while gone < count {
        ring.submit(ops.drain(..));
        for completion in common::turn(ring) {
            match completion {
                Completion::Accepted { socket, .. } => {
                    let link = free.pop().expect("a free link");
                    ops.push(Op::Adopt { link, socket });
                    ops.push(Op::Receive { link, pool: Pool::Small, credit: 1 << 16 });
                }
                Completion::Received { link, buffer } => {
                    ops.push(Op::Send { link, buffer, more: false });
                }
                Completion::Sent { link, .. } => {
                    let goodbye = if gone % 8 == 0 { Goodbye::Fin } else { Goodbye::Reset };
                    ops.push(Op::Close { link, goodbye });
                }
                Completion::Closed { link } => {
                    free.push(link);
                    gone += 1;
                }
                Completion::ReceiveEnded { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn twenty_thousand_connections_leave_no_trace() {
    alone("twenty_thousand_connections_leave_no_trace", || {
        const CONNECTIONS: u32 = 20_000;
        let (listener, address) = listening();
        let mut ring = ring();
        ring.listen(LISTENER, listener).expect("listen");
        let before = open_descriptors();
        let client = std::thread::spawn(move || {
            for _ in 0..CONNECTIONS {
                let mut peer = TcpStream::connect(address).expect("connect");
                peer.write_all(b"hello").expect("write");
                assert_eq!(common::read(&mut peer, 5), b"hello");
                // A reset or the end, as the server likes; both leave the port free.
                let _ = peer.read(&mut [0; 1]);
            }
        });
        serve_each_once(&mut ring, 16, CONNECTIONS);
        client.join().expect("client");
        assert_eq!(open_descriptors(), before);
        assert_eq!(ring.free_buffers(Pool::Small), 1024);
    });
}
