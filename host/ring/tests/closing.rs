//! Ends of connections: what the peer sees, and that nothing comes after `Closed`.

mod common;

use std::io::{ErrorKind, Read, Write};

use common::{
    adopt, close, collect, link, open_descriptors, quiet, receive, ring, ring_with, send, submit,
};
use pointsman_core::boundary::{Completion, Goodbye, Op, Pool, ReceiveEnd, SendEnd};

fn subscribe(at: u32) -> Op {
    Op::Receive { link: link(at), pool: Pool::Small, credit: 1 << 20 }
}

#[test]
fn closing_an_armed_link_cancels_its_subscription_first() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(0));
    submit(&mut ring, [subscribe(0)]);
    quiet(&mut ring);
    let before = close(&mut ring, link(0), Goodbye::Fin);
    assert_eq!(before, [Completion::ReceiveEnded { link: link(0), end: ReceiveEnd::Cancelled }]);
    quiet(&mut ring);
    assert_eq!(peer.read(&mut [0; 8]).expect("the end of the stream"), 0);
}

#[test]
fn closing_in_the_same_turn_as_subscribing_is_in_order() {
    let mut ring = ring();
    let _peer = adopt(&mut ring, link(0));
    submit(&mut ring, [subscribe(0)]);
    let before = close(&mut ring, link(0), Goodbye::Fin);
    assert_eq!(before, [Completion::ReceiveEnded { link: link(0), end: ReceiveEnd::Cancelled }]);
}

#[test]
fn closing_a_link_whose_peer_reads_nothing_breaks_its_send() {
    let mut ring = ring_with(4, 16, 400);
    let mut source = adopt(&mut ring, link(0));
    let len = 16 << 20;
    let writer = std::thread::spawn(move || source.write_all(&vec![7; len]).map(|()| source));
    let buffers = receive(&mut ring, link(0), Pool::Bulk, len as u32);
    writer.join().expect("writer").expect("write");
    let _stalled = adopt(&mut ring, link(1));
    send(&mut ring, link(1), buffers);
    submit(&mut ring, [subscribe(1)]);
    quiet(&mut ring);
    let mut before = close(&mut ring, link(1), Goodbye::Reset);
    before.sort_by_key(|completion| matches!(completion, Completion::Sent { .. }));
    let [ended, sent] = &before[..] else { panic!("{before:?}") };
    assert!(matches!(ended, Completion::ReceiveEnded { end: ReceiveEnd::Cancelled, .. }));
    assert!(matches!(sent, Completion::Sent { end: SendEnd::Broken, .. }), "{sent:?}");
    quiet(&mut ring);
    assert_eq!(ring.free_buffers(Pool::Bulk), 400);
}

#[test]
fn a_reset_reaches_the_peer_as_one() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(0));
    close(&mut ring, link(0), Goodbye::Reset);
    let error = peer.read(&mut [0; 8]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn what_was_sent_before_a_fin_arrives() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(0));
    peer.write_all(b"echo").expect("write");
    let buffers = receive(&mut ring, link(0), Pool::Small, 4);
    send(&mut ring, link(0), buffers);
    collect(&mut ring, 1);
    close(&mut ring, link(0), Goodbye::Fin);
    let mut all = Vec::new();
    peer.read_to_end(&mut all).expect("read");
    assert_eq!(all, b"echo");
}

#[test]
fn a_shutdown_ends_one_half() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(0));
    submit(&mut ring, [Op::Shutdown { link: link(0) }]);
    assert_eq!(collect(&mut ring, 1), [Completion::ShutDown { link: link(0) }]);
    assert_eq!(peer.read(&mut [0; 8]).expect("the end of the stream"), 0);
    peer.write_all(b"still").expect("write");
    assert_eq!(common::total(&receive(&mut ring, link(0), Pool::Small, 5)), 5);
}

#[test]
fn a_refused_client_sees_a_fin_or_a_reset() {
    let mut ring = ring();
    let (socket, mut peer) = common::pair();
    submit(&mut ring, [Op::Refuse { socket, goodbye: Goodbye::Fin }]);
    assert_eq!(peer.read(&mut [0; 8]).expect("the end of the stream"), 0);
    let (socket, mut peer) = common::pair();
    submit(&mut ring, [Op::Refuse { socket, goodbye: Goodbye::Reset }]);
    let error = peer.read(&mut [0; 8]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_peers_reset_ends_the_subscription() {
    let mut ring = ring();
    let peer = adopt(&mut ring, link(0));
    submit(&mut ring, [subscribe(0)]);
    quiet(&mut ring);
    common::reset(&mut ring, peer);
    let reset = Completion::ReceiveEnded { link: link(0), end: ReceiveEnd::Reset };
    assert_eq!(collect(&mut ring, 1), [reset]);
    assert!(close(&mut ring, link(0), Goodbye::Fin).is_empty());
}

#[test]
fn dropping_a_ring_with_everything_in_flight_gives_everything_back() {
    // In a thread of its own, so that nothing keeps the ring alive but the ring.
    std::thread::spawn(|| {
        let mut ring = ring_with(64, 64, 400);
        let (listener, address) = common::listening();
        ring.listen(common::LISTENER, listener).expect("listen");
        let mut source = adopt(&mut ring, link(0));
        let writer =
            std::thread::spawn(move || source.write_all(&vec![7; 16 << 20]).map(|()| source));
        let buffers = receive(&mut ring, link(0), Pool::Bulk, 16 << 20);
        let _source = writer.join().expect("writer").expect("write");
        let mut stalled = adopt(&mut ring, link(1));
        send(&mut ring, link(1), buffers);
        submit(&mut ring, [subscribe(0), subscribe(1)]);
        let (_hole, _only, nowhere) = common::black_hole();
        submit(&mut ring, [Op::Connect { link: link(2), address: nowhere, from: None }]);
        let mut client = std::net::TcpStream::connect(address).expect("connect");
        ring.wait(Some(pointsman_ring::Clock.now())).expect("wait");
        drop(ring);
        stalled.read_to_end(&mut Vec::new()).expect("the rest and the end");
        assert_eq!(client.read(&mut [0; 8]).expect("an accepted client is let go"), 0);
    })
    .join()
    .expect("the scenario");
}

#[test]
fn a_ring_leaves_no_descriptor_behind() {
    common::alone("a_ring_leaves_no_descriptor_behind", || {
        let before = open_descriptors();
        for _ in 0..20 {
            let mut ring = ring();
            let _peer = adopt(&mut ring, link(0));
            submit(&mut ring, [subscribe(0)]);
            ring.wait(Some(pointsman_ring::Clock.now())).expect("wait");
        }
        assert_eq!(open_descriptors(), before);
    });
}
