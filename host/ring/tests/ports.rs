//! Ports: how they end, what becomes of those that cannot be had, and too few buffers for many.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use common::{
    LISTENER, alone, came, collect, datagram_ring, leave_descriptors, listen_datagrams,
    open_descriptors, port_kind, quiet, receive_datagram, submit, turn, udp_peer,
};
use pointsman_core::boundary::{
    Completion, DatagramSocket, LossCause, Op, PortId, PortKind, Train,
};
use pointsman_ring::{Clock, Ring};

fn forward(port: PortId, peer: SocketAddr, train: Train) -> Op {
    Op::Forward { socket: DatagramSocket::Port(port), peer, local: None, train }
}

/// A ring with a listener that has received `count` datagrams, and an endpoint for them.
fn with_trains<const N: usize>() -> (Ring, [Train; N], UdpSocket, SocketAddr) {
    let mut ring = datagram_ring(16);
    let listens = listen_datagrams(&mut ring, "127.0.0.1:0", false);
    let endpoint = udp_peer("127.0.0.1:0");
    let trains = std::array::from_fn(|at| {
        endpoint.send_to(&[at as u8], listens).expect("send");
        came(&mut ring).2
    });
    let towards = endpoint.local_addr().expect("address");
    (ring, trains, endpoint, towards)
}

#[test]
fn a_port_is_closed_once_and_what_it_was_given_has_left() {
    let (mut ring, trains, endpoint, towards) = with_trains::<8>();
    let (port, kind) = (PortId(0), port_kind(towards));
    for train in trains {
        submit(
            &mut ring,
            [
                Op::OpenPort { port, kind },
                forward(port, towards, train),
                Op::ClosePort { port },
                Op::ClosePort { port },
            ],
        );
        assert_eq!(collect(&mut ring, 1), [Completion::PortClosed { port }]);
    }
    for at in 0..8 {
        assert_eq!(receive_datagram(&endpoint).0, [at]);
    }
    quiet(&mut ring);
    assert_eq!(ring.free_datagram_buffers(), 16);
}

#[test]
fn what_has_come_to_a_closing_port_is_told_before_its_end() {
    let (mut ring, [train], endpoint, towards) = with_trains::<1>();
    let (port, kind) = (PortId(3), port_kind(towards));
    submit(&mut ring, [Op::OpenPort { port, kind }, forward(port, towards, train)]);
    let (_, from) = receive_datagram(&endpoint);
    quiet(&mut ring);
    for _ in 0..5 {
        endpoint.send_to(b"answer", from).expect("send");
    }
    ring.wait(Some(Clock.now() + Duration::from_secs(20))).expect("wait");
    submit(&mut ring, [Op::ClosePort { port }]);
    let completions = collect(&mut ring, 6);
    let came = |one: &Completion| matches!(one, Completion::Datagrams { .. });
    assert!(completions[..5].iter().all(came), "{completions:?}");
    assert_eq!(completions[5], Completion::PortClosed { port });
}

#[test]
fn a_port_that_cannot_be_opened_says_that_last() {
    alone("a_port_that_cannot_be_opened_says_that_last", || {
        let (mut ring, [one, two, three], endpoint, towards) = with_trains::<3>();
        let (port, kind) = (PortId(1), port_kind(towards));
        leave_descriptors(0);
        submit(
            &mut ring,
            [
                Op::OpenPort { port, kind },
                forward(port, towards, one),
                forward(port, towards, two),
                Op::ClosePort { port },
            ],
        );
        let lost = || Completion::Lost {
            socket: DatagramSocket::Port(port),
            datagrams: 1,
            cause: LossCause::Full,
        };
        assert_eq!(collect(&mut ring, 3), [lost(), lost(), Completion::PortFailed { port }]);
        submit(&mut ring, [Op::StopAccepting { listener: LISTENER }]);
        collect(&mut ring, 1);
        submit(&mut ring, [Op::OpenPort { port, kind }, forward(port, towards, three)]);
        assert_eq!(receive_datagram(&endpoint).0, [2]);
        assert_eq!(ring.free_datagram_buffers(), 16);
    });
}

#[test]
fn one_buffer_is_enough_for_everybody_in_turn() {
    const PORTS: u32 = 20;
    let mut ring = datagram_ring(1);
    let listens = listen_datagrams(&mut ring, "127.0.0.1:0", false);
    let endpoint = udp_peer("127.0.0.1:0");
    let towards = endpoint.local_addr().expect("address");
    let mut addresses = Vec::new();
    for port in (0..PORTS).map(PortId) {
        let kind = PortKind { connected: port.0 % 2 == 0, ..port_kind(towards) };
        submit(&mut ring, [Op::OpenPort { port, kind }]);
        endpoint.send_to(b"x", listens).expect("send");
        let (_, _, train) = came(&mut ring);
        submit(&mut ring, [forward(port, towards, train)]);
        addresses.push(receive_datagram(&endpoint).1);
    }
    for _ in 0..5 {
        for address in &addresses {
            endpoint.send_to(b"answer", address).expect("send");
        }
        endpoint.send_to(b"question", listens).expect("send");
    }
    let mut came = [0; PORTS as usize + 1];
    while came.iter().sum::<u32>() < 5 * (PORTS + 1) {
        for completion in turn(&mut ring) {
            let Completion::Datagrams { socket, train, .. } = completion else {
                panic!("{completion:?}")
            };
            came[match socket {
                DatagramSocket::Port(port) => port.index(),
                DatagramSocket::Listener(_) => PORTS as usize,
            }] += 1;
            submit(&mut ring, [Op::Discard { train }]);
        }
    }
    assert_eq!(came, [5; PORTS as usize + 1]);
    assert_eq!(ring.free_datagram_buffers(), 1);
}

#[test]
fn a_starved_port_can_be_closed_and_opened_again() {
    let mut ring = datagram_ring(1);
    let listens = listen_datagrams(&mut ring, "127.0.0.1:0", false);
    let endpoint = udp_peer("127.0.0.1:0");
    let (port, kind) = (PortId(5), port_kind(endpoint.local_addr().expect("address")));
    endpoint.send_to(b"held", listens).expect("send");
    let (_, _, held) = came(&mut ring);
    for _ in 0..3 {
        submit(&mut ring, [Op::OpenPort { port, kind }]);
        quiet(&mut ring);
        submit(&mut ring, [Op::ClosePort { port }]);
        assert_eq!(collect(&mut ring, 1), [Completion::PortClosed { port }]);
    }
    submit(&mut ring, [Op::OpenPort { port, kind }, forward(port, kind.towards, held)]);
    let (_, from) = receive_datagram(&endpoint);
    endpoint.send_to(b"answer", from).expect("send");
    assert_eq!(came(&mut ring).0, DatagramSocket::Port(port));
}

#[test]
fn more_datagrams_can_be_held_than_the_kernel_sees_buffers() {
    const DATAGRAMS: usize = 3_000;
    let mut ring = datagram_ring(4096);
    let listens = listen_datagrams(&mut ring, "127.0.0.1:0", false);
    let client = udp_peer("127.0.0.1:0");
    let mut held = Vec::new();
    while held.len() < DATAGRAMS {
        for at in 0..100u32 {
            client.send_to(&at.to_ne_bytes(), listens).expect("send");
        }
        held.extend(collect(&mut ring, 100));
    }
    assert_eq!(ring.free_datagram_buffers() as usize, 4096 - held.len());
}

#[test]
fn a_ring_with_everything_open_is_dropped_in_peace() {
    alone("a_ring_with_everything_open_is_dropped_in_peace", || {
        let before = open_descriptors();
        let (mut ring, [train], endpoint, towards) = with_trains::<1>();
        for port in (0..64).map(PortId) {
            let kind = PortKind { connected: port.0 % 2 == 0, ..port_kind(towards) };
            submit(&mut ring, [Op::OpenPort { port, kind }]);
        }
        submit(&mut ring, [forward(PortId(0), towards, train)]);
        quiet(&mut ring);
        let (_, from) = receive_datagram(&endpoint);
        endpoint.send_to(b"too late", from).expect("send");
        drop((ring, endpoint));
        assert_eq!(open_descriptors(), before);
    });
}
