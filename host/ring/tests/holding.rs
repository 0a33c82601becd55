//! A ring stands still, and its sockets go to another: nothing that is sent meanwhile is lost.

mod common;

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;

use common::{
    LISTENER, came, collect, datagram_ring, datagram_ring_with, link, listen_datagrams, listening,
    port_kind, quiet, receive_datagram, ring, submit, turn, udp_peer,
};
use pointsman_core::boundary::{
    Completion, DatagramSocket, Goodbye, Link, Op, PortId, PortKind, Train,
};
use pointsman_ring::{GivenListener, Ring};

const PORT: PortId = PortId(0);

/// Lets a ring stand still; what it tells until then.
fn hold(ring: &mut Ring) -> Vec<Completion> {
    submit(ring, [Op::Hold]);
    let mut before = Vec::new();
    loop {
        before.extend(turn(ring));
        if before.last() == Some(&Completion::Held) {
            before.pop();
            return before;
        }
        assert!(!before.contains(&Completion::Held), "it is the last that is said");
    }
}

/// The numbers that datagrams carry.
fn numbers(ring: &mut Ring, completions: Vec<Completion>) -> Vec<u32> {
    let number = |completion| match completion {
        Completion::Datagrams { train, .. } => {
            let bytes = pointsman_core::boundary::Memory::first_datagram(ring, &train);
            let number = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
            submit(ring, [Op::Discard { train }]);
            number
        }
        other => panic!("{other:?}"),
    };
    completions.into_iter().map(number).collect()
}

fn given(ring: &mut Ring) -> OwnedFd {
    let GivenListener { socket, .. } = ring.give_listener(LISTENER).expect("a socket");
    submit(ring, [Op::Resume]);
    socket
}

fn forward(port: PortId, peer: SocketAddr, train: Train) -> Op {
    Op::Forward { socket: DatagramSocket::Port(port), peer, local: None, train }
}

#[test]
fn a_listener_s_datagrams_all_come_once_whoever_has_the_socket() {
    const COUNT: u32 = 4_000;
    let mut rings = [datagram_ring(64), datagram_ring(64)];
    let listens = listen_datagrams(&mut rings[0], "127.0.0.1:0", false);
    let peer = udp_peer("127.0.0.1:0");
    let (mut got, mut holder, mut sent) = (Vec::new(), 0, 0_u32);
    while got.len() < COUNT as usize {
        while sent < COUNT && sent - (got.len() as u32) < 100 {
            peer.send_to(&sent.to_ne_bytes(), listens).expect("send");
            sent += 1;
        }
        let [one, other] = &mut rings;
        let (from, to) = if holder == 0 { (one, other) } else { (other, one) };
        let before = hold(from);
        got.extend(numbers(from, before));
        peer.send_to(&sent.to_ne_bytes(), listens).expect("send");
        sent += 1;
        quiet_once(from);
        let socket = given(from);
        to.listen_datagrams(LISTENER, socket, false).expect("listen");
        let completions = turn(to);
        got.extend(numbers(to, completions));
        holder = 1 - holder;
    }
    assert_eq!(got, (0..got.len() as u32).collect::<Vec<_>>());
    assert!(rings.iter().all(|ring| ring.free_datagram_buffers() == 64));
}

/// One turn of a ring that stands still, without a wait.
fn quiet_once(ring: &mut Ring) {
    ring.wait(Some(pointsman_core::Instant::ZERO)).expect("wait");
    assert_eq!(ring.reap(256).next(), None);
}

#[test]
fn a_port_goes_on_in_another_ring_and_so_does_what_has_come_to_it() {
    for connected in [false, true] {
        let (mut from, mut to) = (datagram_ring(16), datagram_ring(16));
        let listens = listen_datagrams(&mut from, "127.0.0.1:0", false);
        let endpoint = udp_peer("127.0.0.1:0");
        let towards = endpoint.local_addr().expect("address");
        let kind = PortKind { connected, ..port_kind(towards) };
        endpoint.send_to(b"request", listens).expect("send");
        let train = came(&mut from).2;
        submit(&mut from, [Op::OpenPort { port: PORT, kind }, forward(PORT, towards, train)]);
        let (_, port_address) = receive_datagram(&endpoint);
        assert_eq!(hold(&mut from), []);
        endpoint.send_to(b"reply", port_address).expect("send");
        quiet_once(&mut from);
        let socket = from.give_port(PORT).expect("a socket");
        submit(&mut from, [Op::Resume]);
        let port = PortId(7);
        to.take_port(port, &kind, socket);
        let (socket, path, train) = came(&mut to);
        assert_eq!((socket, path.peer), (DatagramSocket::Port(port), towards));
        submit(&mut to, [forward(port, towards, train)]);
        let (bytes, again) = receive_datagram(&endpoint);
        assert_eq!((&*bytes, again), (&b"reply"[..], port_address), "its address is the same");
        submit(&mut from, [Op::OpenPort { port: PORT, kind }]);
        quiet(&mut from);
    }
}

#[test]
fn clients_that_connect_while_nobody_accepts_are_accepted_by_the_next() {
    const CLIENTS: usize = 300;
    let (listener, address) = listening();
    let mut rings = [ring(), ring()];
    rings[0].listen(LISTENER, listener).expect("listen");
    let clients = thread::spawn(move || {
        let connect = |_| TcpStream::connect(address).expect("nobody is refused");
        (0..CLIENTS).map(connect).collect::<Vec<_>>()
    });
    let (mut accepted, mut holder) = (Vec::new(), 0);
    while accepted.len() < CLIENTS {
        let [one, other] = &mut rings;
        let (from, to) = if holder == 0 { (one, other) } else { (other, one) };
        accepted.extend(turn(from));
        accepted.extend(hold(from));
        if accepted.len() < CLIENTS {
            to.listen(LISTENER, given(from)).expect("listen");
            holder = 1 - holder;
        }
    }
    assert_eq!((clients.join().expect("clients").len(), accepted.len()), (CLIENTS, CLIENTS));
    for completion in accepted {
        let Completion::Accepted { socket, .. } = completion else { panic!("{completion:?}") };
        submit(&mut rings[0], [Op::Refuse { socket, goodbye: Goodbye::Reset }]);
    }
}

#[test]
fn what_is_not_given_away_goes_on_when_the_ring_does() {
    let mut ring = datagram_ring(16);
    let listens = listen_datagrams(&mut ring, "127.0.0.1:0", false);
    let endpoint = udp_peer("127.0.0.1:0");
    let towards = endpoint.local_addr().expect("address");
    endpoint.send_to(b"one", listens).expect("send");
    let train = came(&mut ring).2;
    hold(&mut ring);
    let kind = port_kind(towards);
    submit(&mut ring, [Op::OpenPort { port: PORT, kind }, forward(PORT, towards, train)]);
    let (_, port_address) = receive_datagram(&endpoint);
    endpoint.send_to(b"two", listens).expect("send");
    endpoint.send_to(b"three", port_address).expect("send");
    quiet(&mut ring);
    assert_eq!(hold(&mut ring), [], "it holds already, and says so again");
    submit(&mut ring, [Op::Resume]);
    assert_eq!(collect(&mut ring, 2).len(), 2);
    assert!(ring.give_listener(LISTENER).is_none(), "it does not hold any more");
    assert!(ring.give_port(PORT).is_none());
    submit(&mut ring, [Op::StopAccepting { listener: LISTENER }, Op::ClosePort { port: PORT }]);
    collect(&mut ring, 2);
}

#[test]
fn many_ports_are_held_a_few_in_each_turn_and_all_of_them_go_on() {
    const PORTS: u32 = 600;
    let mut ring = datagram_ring_with(1_024, PORTS);
    let endpoint = udp_peer("127.0.0.1:0");
    let towards = endpoint.local_addr().expect("address");
    let listens = listen_datagrams(&mut ring, "127.0.0.1:0", false);
    let kind = PortKind { connected: true, ..port_kind(towards) };
    let mut ports = Vec::new();
    for port in (0..PORTS).map(PortId) {
        endpoint.send_to(b"hello", listens).expect("send");
        let train = came(&mut ring).2;
        submit(&mut ring, [Op::OpenPort { port, kind }, forward(port, towards, train)]);
        ports.push(receive_datagram(&endpoint).1);
    }
    submit(&mut ring, [Op::Hold]);
    for _ in 0..2 {
        ring.wait(Some(pointsman_core::Instant::ZERO)).expect("wait");
        assert_eq!(ring.reap(4_096).next(), None, "some have not been held yet");
    }
    assert_eq!(turn(&mut ring), [Completion::Held]);
    for (number, port) in (0..).zip(&ports) {
        endpoint.send_to(&u32::to_ne_bytes(number), port).expect("send");
    }
    quiet_once(&mut ring);
    submit(&mut ring, [Op::Resume]);
    let replies = collect(&mut ring, ports.len());
    let mut got = numbers(&mut ring, replies);
    got.sort_unstable();
    assert_eq!(got, (0..PORTS).collect::<Vec<_>>());
}

#[test]
fn what_has_come_of_the_last_datagrams_is_told_before_the_ring_says_that_it_holds() {
    let mut ring = datagram_ring(16);
    let listens = listen_datagrams(&mut ring, "127.0.0.1:0", false);
    let peer = udp_peer("127.0.0.1:0");
    peer.send_to(b"request", listens).expect("send");
    let train = came(&mut ring).2;
    hold(&mut ring);
    let nowhere = "[::1]:9".parse().expect("address");
    let kind = port_kind(peer.local_addr().expect("address"));
    submit(&mut ring, [Op::OpenPort { port: PORT, kind }, forward(PORT, nowhere, train)]);
    let before = hold(&mut ring);
    assert!(matches!(before[..], [Completion::Lost { datagrams: 1, .. }]), "{before:?}");
    assert!(ring.give_port(PORT).is_some());
}

#[test]
fn a_stopping_listener_is_not_given_away() {
    let (listener, address) = listening();
    let mut ring = ring();
    ring.listen(LISTENER, listener).expect("listen");
    let _client = TcpStream::connect(address).expect("connect");
    submit(&mut ring, [Op::StopAccepting { listener: LISTENER }, Op::Hold]);
    assert!(ring.give_listener(LISTENER).is_none());
    let mut told = collect(&mut ring, 3);
    assert!(told.contains(&Completion::Held), "{told:?}");
    assert!(told.contains(&Completion::AcceptEnded { listener: LISTENER }), "{told:?}");
    let accepted = told.iter().position(|it| matches!(it, Completion::Accepted { .. }));
    let Completion::Accepted { socket, .. } = told.remove(accepted.expect("who was there")) else {
        unreachable!()
    };
    let link: Link = link(0);
    submit(&mut ring, [Op::Adopt { link, socket }, Op::Resume]);
    common::close(&mut ring, link, Goodbye::Fin);
}

#[test]
fn a_socket_that_cannot_be_the_port_it_is_said_to_be_is_told_of_as_one_that_failed() {
    let mut ring = datagram_ring(16);
    let v4: SocketAddr = "127.0.0.1:53".parse().expect("address");
    let stream = listening().0;
    let unconnected: OwnedFd = UdpSocket::bind("127.0.0.1:0").expect("bind").into();
    let elsewhere = UdpSocket::bind("127.0.0.1:0").expect("bind");
    elsewhere.connect("127.0.0.1:54").expect("connect");
    let other_family: OwnedFd = UdpSocket::bind("[::1]:0").expect("bind").into();
    let connected = PortKind { connected: true, ..port_kind(v4) };
    for (socket, kind) in [
        (stream, port_kind(v4)),
        (unconnected, connected),
        (elsewhere.try_clone().expect("a descriptor").into(), connected),
        (elsewhere.into(), port_kind(v4)),
        (other_family, port_kind(v4)),
    ] {
        ring.take_port(PORT, &kind, socket);
        assert_eq!(collect(&mut ring, 1), [Completion::PortFailed { port: PORT }]);
    }
}
