//! Listeners: clients come in, wait when descriptors are short, and are handed over at the end.

mod common;

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use common::{LISTENER, alone, listening, quiet, ring, ring_with, submit, turn};
use pointsman_core::boundary::{Accepted, Completion, Goodbye, Op};
use pointsman_ring::{Clock, Ring};

/// Accepts until `count` clients have come or the listener has ended.
fn accept(ring: &mut Ring, count: usize) -> (Vec<(Accepted, SocketAddr)>, bool) {
    let mut clients = Vec::new();
    let mut ended = false;
    while clients.len() < count && !ended {
        for completion in turn(ring) {
            match completion {
                Completion::Accepted { socket, client, .. } => clients.push((socket, client)),
                Completion::AcceptEnded { .. } => ended = true,
                other => panic!("{other:?}"),
            }
        }
    }
    (clients, ended)
}

fn refuse(ring: &mut Ring, socket: Accepted) {
    submit(ring, [Op::Refuse { socket, goodbye: Goodbye::Reset }]);
}

#[test]
fn clients_arrive_with_their_addresses() {
    let (listener, address) = listening();
    let mut ring = ring();
    ring.listen(LISTENER, listener).expect("listen");
    let peers: Vec<_> = (0..50).map(|_| TcpStream::connect(address).expect("connect")).collect();
    let (clients, _) = accept(&mut ring, 50);
    let mut names: Vec<_> = clients.iter().map(|(_, client)| *client).collect();
    let mut expected: Vec<_> = peers.iter().map(|peer| peer.local_addr().expect("name")).collect();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    clients.into_iter().for_each(|(socket, _)| refuse(&mut ring, socket));
}

#[test]
fn a_client_that_has_left_already_is_not_reported() {
    let (listener, address) = listening();
    let mut ring = ring();
    let gone = TcpStream::connect(address).expect("connect");
    common::reset(&mut ring, gone);
    let peer = TcpStream::connect(address).expect("connect");
    ring.listen(LISTENER, listener).expect("listen");
    let (clients, _) = accept(&mut ring, 1);
    assert_eq!(clients[0].1, peer.local_addr().expect("name"));
    clients.into_iter().for_each(|(socket, _)| refuse(&mut ring, socket));
    quiet(&mut ring);
}

#[test]
fn a_listener_that_stops_hands_its_backlog_over() {
    let (listener, address) = listening();
    let mut ring = ring();
    ring.listen(LISTENER, listener).expect("listen");
    let _peers: Vec<_> = (0..30).map(|_| TcpStream::connect(address).expect("connect")).collect();
    submit(&mut ring, [Op::StopAccepting { listener: LISTENER }]);
    let (clients, ended) = accept(&mut ring, usize::MAX);
    assert_eq!((clients.len(), ended), (30, true));
    TcpStream::connect(address).expect_err("nobody listens any more");
    clients.into_iter().for_each(|(socket, _)| refuse(&mut ring, socket));
    quiet(&mut ring);
    let (again, address) = listening();
    ring.listen(LISTENER, again).expect("the number is free again");
    let _peer = TcpStream::connect(address).expect("connect");
    let (clients, _) = accept(&mut ring, 1);
    clients.into_iter().for_each(|(socket, _)| refuse(&mut ring, socket));
}

#[test]
fn an_unknown_or_taken_listener_is_told_so() {
    let mut ring = ring();
    ring.listen(LISTENER, listening().0).expect("listen");
    ring.listen(LISTENER, listening().0).expect_err("taken");
    ring.listen(pointsman_core::boundary::ListenerId(2), listening().0).expect_err("too high");
}

/// Two rings that accept from the same socket, and a descriptor of it.
fn sharing() -> ([Ring; 2], OwnedFd, SocketAddr) {
    let (listener, address) = listening();
    let sockets = [0, 1].map(|_| listener.try_clone().expect("a descriptor"));
    let rings = sockets.map(|socket| {
        let mut ring = ring();
        ring.listen_shared(LISTENER, socket).expect("listen");
        quiet(&mut ring);
        ring
    });
    (rings, listener, address)
}

/// Whether whoever accepts from this socket is made to wait: a property of the socket, not of the
/// descriptor.
fn blocks(socket: &OwnedFd) -> bool {
    const NONBLOCK: u32 = 0o4000;
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", socket.as_raw_fd()));
    let told = told.expect("what the kernel says of a descriptor");
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).expect("its flags");
    u32::from_str_radix(flags.trim(), 8).expect("an octal number") & NONBLOCK == 0
}

/// Lets both rings have turns, one at least, until so many clients have come; tells how many each has
/// got, and how often one was short of descriptors.
fn share(rings: &mut [Ring; 2], clients: usize) -> ([usize; 2], usize) {
    let (mut served, mut stalls) = ([0, 0], 0);
    loop {
        for (ring, served) in rings.iter_mut().zip(&mut served) {
            ring.wait(Some(Clock.now())).expect("wait");
            let completions: Vec<_> = ring.reap(256).collect();
            for completion in completions {
                match completion {
                    Completion::Accepted { socket, .. } => {
                        *served += 1;
                        refuse(ring, socket);
                    }
                    Completion::AcceptStalled { .. } => stalls += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        if served[0] + served[1] >= clients {
            return (served, stalls);
        }
    }
}

#[test]
fn rings_that_share_a_socket_get_a_share_of_the_clients_each() {
    let (mut rings, _socket, address) = sharing();
    let mut served = [0, 0];
    for _ in 0..40 {
        let _peer = TcpStream::connect(address).expect("connect");
        let ([first, second], _) = share(&mut rings, 1);
        // Whoever has taken it waits again.
        assert_eq!(share(&mut rings, 0).0, [0, 0]);
        served = [served[0] + first, served[1] + second];
    }
    assert_eq!(served, [20, 20]);
}

#[test]
fn a_socket_that_is_shared_stops_no_ring_when_descriptors_run_out() {
    alone("a_socket_that_is_shared_stops_no_ring_when_descriptors_run_out", || {
        const CLIENTS: usize = 60;
        let (mut rings, socket, address) = sharing();
        let peers: Vec<_> =
            (0..CLIENTS).map(|_| TcpStream::connect(address).expect("connect")).collect();
        common::leave_descriptors(3);
        let last = [0; 3].map(|_| File::open("/dev/null").expect("the last"));
        let mut stalls = 0;
        while stalls < rings.len() {
            stalls += share(&mut rings, 0).1;
        }
        drop(last);
        share(&mut rings, CLIENTS);
        drop(peers);
        // They accept as usual again.
        rings.iter_mut().for_each(quiet);
        assert!(!blocks(&socket), "one ring could stop another in the middle of a turn");
        drop(socket);
        let [stops, goes_on] = &mut rings;
        submit(stops, [Op::StopAccepting { listener: LISTENER }]);
        assert!(accept(stops, usize::MAX).1);
        let _peer = TcpStream::connect(address).expect("the other listens yet");
        let (clients, _) = accept(goes_on, 1);
        clients.into_iter().for_each(|(socket, _)| refuse(goes_on, socket));
    });
}

#[test]
fn running_out_of_descriptors_loses_no_client() {
    alone("running_out_of_descriptors_loses_no_client", || {
        const CLIENTS: usize = 40;
        let (listener, address) = listening();
        let mut ring = ring();
        ring.listen(LISTENER, listener).expect("listen");
        let peers: Vec<_> =
            (0..CLIENTS).map(|_| TcpStream::connect(address).expect("connect")).collect();
        common::leave_descriptors(3);
        let (mut served, mut stalls) = (0, 0);
        while served < CLIENTS {
            for completion in turn(&mut ring) {
                match completion {
                    Completion::Accepted { socket, .. } => {
                        served += 1;
                        refuse(&mut ring, socket);
                    }
                    Completion::AcceptStalled { .. } => stalls += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(stalls > 0, "the limit was not reached");
        drop(peers);
    });
}

#[test]
fn a_listener_that_stays_stalled_says_so_once() {
    alone("a_listener_that_stays_stalled_says_so_once", || {
        let (listener, address) = listening();
        let mut ring = ring();
        ring.listen(LISTENER, listener).expect("listen");
        let _peer = TcpStream::connect(address).expect("connect");
        common::leave_descriptors(0);
        assert_eq!(turn(&mut ring), [Completion::AcceptStalled { listener: LISTENER }]);
        quiet(&mut ring);
    });
}

#[test]
fn a_backlog_is_handed_over_even_without_descriptors() {
    alone("a_backlog_is_handed_over_even_without_descriptors", || {
        let (listener, address) = listening();
        let mut ring = ring();
        ring.listen(LISTENER, listener).expect("listen");
        let _peers: Vec<_> =
            (0..20).map(|_| TcpStream::connect(address).expect("connect")).collect();
        common::leave_descriptors(2);
        submit(&mut ring, [Op::StopAccepting { listener: LISTENER }]);
        let (mut served, mut ended) = (0, false);
        while !ended {
            for completion in turn(&mut ring) {
                match completion {
                    Completion::Accepted { socket, .. } => {
                        served += 1;
                        refuse(&mut ring, socket);
                    }
                    Completion::AcceptEnded { .. } => ended = true,
                    Completion::AcceptStalled { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(served, 20);
    });
}

#[test]
fn a_reap_keeps_to_its_limit_and_loses_nothing() {
    let (listener, address) = listening();
    let mut ring = ring_with(2, 4, 1);
    ring.listen(LISTENER, listener).expect("listen");
    let _peers: Vec<_> = (0..10).map(|_| TcpStream::connect(address).expect("connect")).collect();
    let mut clients = 0;
    while clients < 10 {
        ring.wait(None).expect("wait");
        let some: Vec<_> = ring.reap(3).collect();
        assert!(some.len() <= 3);
        for completion in some {
            let Completion::Accepted { socket, .. } = completion else { panic!("{completion:?}") };
            refuse(&mut ring, socket);
            clients += 1;
        }
    }
}

#[test]
fn a_full_completion_queue_loses_no_client() {
    const CLIENTS: usize = 700;
    pointsman_ring::raise_descriptor_limit().expect("limit");
    let (listener, address) = listening();
    let mut ring = ring();
    ring.listen(LISTENER, listener).expect("listen");
    let peers: Vec<_> =
        (0..CLIENTS).map(|_| TcpStream::connect(address).expect("connect")).collect();
    let (clients, _) = accept(&mut ring, CLIENTS);
    assert_eq!(clients.len(), CLIENTS);
    clients.into_iter().for_each(|(socket, _)| refuse(&mut ring, socket));
    quiet(&mut ring);
    drop(peers);
}
