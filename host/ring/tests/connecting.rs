//! Connects: made, refused, overtaken, and impossible.

mod common;

use std::net::TcpListener;

use common::{black_hole, close, collect, link, listening, quiet, ring, submit, turn};
use pointsman_core::boundary::{Completion, ConnectFailure, Goodbye, Op, Pool};

#[test]
fn a_connect_reaches_the_endpoint() {
    let (listener, address) = listening();
    let mut ring = ring();
    submit(&mut ring, [Op::Connect { link: link(3), address, from: None }]);
    assert_eq!(collect(&mut ring, 1), [Completion::Connected { link: link(3) }]);
    let (accepted, _) = TcpListener::from(listener).accept().expect("accept");
    std::io::Write::write_all(&mut &accepted, b"hello").expect("write");
    common::receive(&mut ring, link(3), Pool::Small, 5);
}

#[test]
fn many_connects_in_one_turn_keep_their_addresses_apart() {
    let mut ring = common::ring_with(700, 16, 1);
    let listeners: Vec<_> = (0..7).map(|_| listening()).collect();
    for at in 0..700 {
        let (_, address) = listeners[at as usize % 7];
        submit(&mut ring, [Op::Connect { link: link(at), address, from: None }]);
    }
    let mut connected = 0;
    while connected < 700 {
        for completion in turn(&mut ring) {
            assert!(matches!(completion, Completion::Connected { .. }), "{completion:?}");
            connected += 1;
        }
    }
    for (listener, _) in listeners {
        let listener = TcpListener::from(listener);
        (0..100).for_each(|_| drop(listener.accept().expect("accept")));
    }
}

#[test]
fn a_refused_connect_leaves_the_link_free() {
    let (listener, address) = listening();
    drop(listener);
    let mut ring = ring();
    for _ in 0..3 {
        submit(&mut ring, [Op::Connect { link: link(0), address, from: None }]);
        let cause = ConnectFailure::Unreachable;
        assert_eq!(collect(&mut ring, 1), [Completion::ConnectFailed { link: link(0), cause }]);
    }
    let _peer = common::adopt(&mut ring, link(0));
}

#[test]
fn a_close_overtakes_a_connect_to_a_black_hole() {
    let mut ring = ring();
    let (_hole, _only, address) = black_hole();
    submit(&mut ring, [Op::Connect { link: link(0), address, from: None }]);
    ring.wait(Some(pointsman_ring::Clock.now())).expect("wait");
    let before = close(&mut ring, link(0), Goodbye::Reset);
    let cause = ConnectFailure::Cancelled;
    assert_eq!(before, [Completion::ConnectFailed { link: link(0), cause }]);
    quiet(&mut ring);
}

#[test]
fn a_close_overtakes_a_connect_in_the_same_turn() {
    let (_listener, address) = listening();
    let mut ring = ring();
    submit(&mut ring, [Op::Connect { link: link(0), address, from: None }]);
    let before = close(&mut ring, link(0), Goodbye::Fin);
    let cause = ConnectFailure::Cancelled;
    assert_eq!(before, [Completion::ConnectFailed { link: link(0), cause }]);
    quiet(&mut ring);
}

#[test]
fn without_descriptors_a_connect_fails_and_the_endpoint_is_not_blamed() {
    common::alone("without_descriptors_a_connect_fails_and_the_endpoint_is_not_blamed", || {
        let (_listener, address) = listening();
        let mut ring = ring();
        common::leave_descriptors(0);
        submit(&mut ring, [Op::Connect { link: link(0), address, from: None }]);
        let cause = ConnectFailure::Descriptors;
        assert_eq!(collect(&mut ring, 1), [Completion::ConnectFailed { link: link(0), cause }]);
        submit(&mut ring, [Op::Connect { link: link(0), address, from: None }]);
        let before = close(&mut ring, link(0), Goodbye::Fin);
        let cause = ConnectFailure::Cancelled;
        assert_eq!(before, [Completion::ConnectFailed { link: link(0), cause }]);
    });
}
