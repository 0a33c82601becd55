//! Datagrams through listeners and ports: where they come from, where they leave from, and what
//! does not end a socket.

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use common::{
    LISTENER, came, collect, datagram_ring, listen_datagrams, pattern, port_kind, quiet,
    receive_datagram, submit, turn, udp_peer,
};
use pointsman_core::boundary::{
    Completion, DatagramSocket, ListenerId, LossCause, Memory, Op, Path, PortId, PortKind, Train,
};
use pointsman_ring::{Ring, bind_udp};

const FRONT: DatagramSocket = DatagramSocket::Listener(LISTENER);
const PORT: PortId = PortId(7);
const BACK: DatagramSocket = DatagramSocket::Port(PORT);

fn forward(ring: &mut Ring, socket: DatagramSocket, path: Path, train: Train) {
    let Path { peer, local } = path;
    submit(ring, [Op::Forward { socket, peer, local, train }]);
}

/// Through a port, to where it was opened towards.
fn forward_to(ring: &mut Ring, peer: SocketAddr, train: Train) {
    forward(ring, BACK, Path { peer, local: None }, train);
}

/// Whether this machine speaks IPv6 to itself.
fn has_ipv6() -> bool {
    UdpSocket::bind("[::1]:0").is_ok()
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

/// A client, an endpoint, and a ring that is open to both.
fn relay(front: &str, client: &str, back: &str) -> (Ring, UdpSocket, UdpSocket) {
    let mut ring = datagram_ring(8);
    let mut listens = listen_datagrams(&mut ring, front, false);
    let (client, endpoint) = (udp_peer(client), udp_peer(back));
    if listens.ip().is_unspecified() {
        listens.set_ip(client.local_addr().expect("address").ip());
    }
    client.connect(listens).expect("connect");
    let kind = port_kind(endpoint.local_addr().expect("address"));
    submit(&mut ring, [Op::OpenPort { port: PORT, kind }]);
    (ring, client, endpoint)
}

/// One datagram from the client to the endpoint, and one back.
fn round_trip(ring: &mut Ring, client: &UdpSocket, endpoint: &UdpSocket, what: &[u8]) {
    client.send(what).expect("send");
    let (socket, from_client, train) = came(ring);
    assert_eq!((socket, train.len() as usize, train.segment()), (FRONT, what.len(), 0));
    assert_eq!(from_client.peer, client.local_addr().expect("address"));
    assert_eq!(ring.first_datagram(&train), what);
    forward_to(ring, endpoint.local_addr().expect("address"), train);
    let (bytes, port) = receive_datagram(endpoint);
    assert_eq!(bytes, what);
    endpoint.send_to(what, port).expect("send");
    let (socket, from_endpoint, train) = came(ring);
    assert_eq!((socket, from_endpoint.local), (BACK, None));
    assert_eq!(from_endpoint.peer, endpoint.local_addr().expect("address"));
    forward(ring, FRONT, from_client, train);
    assert_eq!(receive_datagram(client).0, what);
}

#[test]
fn a_round_trip_is_faithful_over_either_family() {
    for (front, client, back) in [
        ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"),
        ("0.0.0.0:0", "127.0.0.1:0", "127.0.0.1:0"),
        ("[::1]:0", "[::1]:0", "[::1]:0"),
        ("[::]:0", "[::1]:0", "127.0.0.1:0"),
        ("[::]:0", "127.0.0.1:0", "[::1]:0"),
    ] {
        if [front, client, back].iter().any(|end| end.starts_with('[')) && !has_ipv6() {
            continue;
        }
        let (mut ring, client, endpoint) = relay(front, client, back);
        for round in 0..20u8 {
            round_trip(&mut ring, &client, &endpoint, &[round; 64]);
        }
        assert_eq!(ring.free_datagram_buffers(), 8);
        quiet(&mut ring);
    }
}

#[test]
fn an_answer_leaves_from_the_address_that_the_client_used() {
    for (front, to) in [("0.0.0.0:0", "127.0.0.2"), ("[::]:0", "127.0.0.3")] {
        if front.starts_with('[') && !has_ipv6() {
            continue;
        }
        let mut ring = datagram_ring(4);
        let port = listen_datagrams(&mut ring, front, false).port();
        let (client, to) = (udp_peer("127.0.0.1:0"), to.parse::<IpAddr>().expect("address"));
        client.send_to(b"to this address", (to, port)).expect("send");
        let (_, path, train) = came(&mut ring);
        assert_eq!(path.local, Some(to));
        forward(&mut ring, FRONT, path, train);
        assert_eq!(receive_datagram(&client).1, SocketAddr::new(to, port));
    }
}

#[test]
fn a_listener_with_one_address_tells_none() {
    let mut ring = datagram_ring(4);
    let listens = listen_datagrams(&mut ring, "127.0.0.2:0", false);
    let client = udp_peer("127.0.0.1:0");
    client.send_to(b"x", listens).expect("send");
    let (_, path, train) = came(&mut ring);
    assert_eq!(path, Path { peer: client.local_addr().expect("address"), local: None });
    forward(&mut ring, FRONT, path, train);
    assert_eq!(receive_datagram(&client).1, listens);
}

#[test]
fn empty_datagrams_pass_and_end_nothing() {
    let (mut ring, client, endpoint) = relay("0.0.0.0:0", "127.0.0.1:0", "127.0.0.1:0");
    for _ in 0..5 {
        round_trip(&mut ring, &client, &endpoint, b"");
        round_trip(&mut ring, &client, &endpoint, b"not empty");
    }
    for _ in 0..6 {
        client.send(b"").expect("send");
    }
    for completion in collect(&mut ring, 6) {
        let Completion::Datagrams { train, .. } = completion else { panic!("{completion:?}") };
        assert_eq!((train.len(), train.datagrams()), (0, 1));
        submit(&mut ring, [Op::Discard { train }]);
    }
    assert_eq!(ring.free_datagram_buffers(), 8);
}

#[test]
fn the_largest_datagram_fits() {
    let (mut ring, client, endpoint) = relay("0.0.0.0:0", "127.0.0.1:0", "127.0.0.1:0");
    round_trip(&mut ring, &client, &endpoint, &pattern(65_507));
}

#[test]
fn a_datagram_too_large_for_the_way_is_lost_aloud() {
    if !has_ipv6() {
        return;
    }
    let mut ring = datagram_ring(4);
    let mut listens = listen_datagrams(&mut ring, "[::]:0", false);
    listens.set_ip("::1".parse().expect("address"));
    let client = udp_peer("[::1]:0");
    client.send_to(&pattern(65_527), listens).expect("IPv6 takes twenty bytes more");
    let (_, _, train) = came(&mut ring);
    let kind = port_kind(address("127.0.0.1:9"));
    submit(&mut ring, [Op::OpenPort { port: PORT, kind }]);
    forward_to(&mut ring, address("127.0.0.1:9"), train);
    let lost = Completion::Lost { socket: BACK, datagrams: 1, cause: LossCause::TooLarge };
    assert_eq!(collect(&mut ring, 1), [lost]);
    assert_eq!(ring.free_datagram_buffers(), 4);
}

#[test]
fn an_unconnected_port_hears_everybody_and_says_who_it_was() {
    let mut ring = datagram_ring(4);
    let endpoint = udp_peer("127.0.0.1:0");
    let towards = endpoint.local_addr().expect("address");
    let port = open(&mut ring, port_kind(towards), &endpoint);
    let stranger = udp_peer("127.0.0.4:0");
    stranger.send_to(b"unasked", port).expect("send");
    let (socket, path, train) = came(&mut ring);
    let peer = stranger.local_addr().expect("address");
    assert_eq!((socket, path), (BACK, Path { peer, local: None }));
    submit(&mut ring, [Op::Discard { train }]);
}

#[test]
fn a_connected_port_hears_only_its_peer() {
    let mut ring = datagram_ring(4);
    let endpoint = udp_peer("127.0.0.1:0");
    let towards = endpoint.local_addr().expect("address");
    let kind = PortKind { connected: true, ..port_kind(towards) };
    let port = open(&mut ring, kind, &endpoint);
    udp_peer("127.0.0.1:0").send_to(b"unasked", port).expect("send");
    quiet(&mut ring);
    endpoint.send_to(b"asked", port).expect("send");
    let (_, path, train) = came(&mut ring);
    assert_eq!((path.peer, train.len()), (towards, 5));
}

/// Opens the port, and has it tell the endpoint its address.
fn open(ring: &mut Ring, kind: PortKind, endpoint: &UdpSocket) -> SocketAddr {
    let (towards, port) = (kind.towards, PORT);
    submit(ring, [Op::OpenPort { port, kind }]);
    let train = some_train(ring);
    forward_to(ring, towards, train);
    receive_datagram(endpoint).1
}

/// A datagram to send. It comes in by way of a listener, which is gone afterwards.
fn some_train(ring: &mut Ring) -> Train {
    let listener = ListenerId(1);
    let socket = UdpSocket::from(bind_udp(address("127.0.0.1:0")).expect("bind"));
    let listens = socket.local_addr().expect("address");
    ring.listen_datagrams(listener, socket.into(), false).expect("listen");
    udp_peer("127.0.0.1:0").send_to(b"some datagram", listens).expect("send");
    let (_, _, train) = came(ring);
    submit(ring, [Op::StopAccepting { listener }]);
    assert_eq!(collect(ring, 1), [Completion::AcceptEnded { listener }]);
    train
}

#[test]
fn a_connected_port_reports_an_absent_peer_and_lives_on() {
    let mut ring = datagram_ring(4);
    let endpoint = udp_peer("127.0.0.1:0");
    let towards = endpoint.local_addr().expect("address");
    let kind = PortKind { connected: true, ..port_kind(towards) };
    let port = open(&mut ring, kind, &endpoint);
    drop(endpoint);
    for _ in 0..3 {
        let train = some_train(&mut ring);
        forward_to(&mut ring, towards, train);
        assert_eq!(collect(&mut ring, 1), [Completion::PortUnreachable { port: PORT }]);
    }
    let back = UdpSocket::bind(towards).expect("the address is free");
    back.send_to(b"here again", port).expect("send");
    assert_eq!(came(&mut ring).2.len(), 10);
}

#[test]
fn an_error_of_an_earlier_datagram_does_not_cost_the_next_one() {
    let mut ring = datagram_ring(4);
    let endpoint = udp_peer("127.0.0.1:0");
    let towards = endpoint.local_addr().expect("address");
    let kind = PortKind { connected: true, ..port_kind(towards) };
    open(&mut ring, kind, &endpoint);
    let trains = [(); 3].map(|()| some_train(&mut ring));
    drop(endpoint);
    let [first, second, third] =
        trains.map(|train| Op::Forward { socket: BACK, peer: towards, local: None, train });
    submit(&mut ring, [first]);
    let back = udp_peer(&towards.to_string());
    submit(&mut ring, [second, third]);
    assert_eq!(receive_datagram(&back).0, b"some datagram");
    assert_eq!(receive_datagram(&back).0, b"some datagram");
    assert_eq!(collect(&mut ring, 1), [Completion::PortUnreachable { port: PORT }]);
    quiet(&mut ring);
}

#[test]
fn a_listener_that_stops_says_so_once_and_its_number_is_free() {
    let mut ring = datagram_ring(4);
    let first = listen_datagrams(&mut ring, "127.0.0.1:0", false);
    let another = || bind_udp(address("127.0.0.1:0")).expect("bind");
    ring.listen_datagrams(LISTENER, another(), false).expect_err("taken");
    ring.listen_datagrams(ListenerId(2), another(), false).expect_err("too high");
    ring.listen(LISTENER, common::listening().0).expect_err("taken by datagrams");
    let client = udp_peer("127.0.0.1:0");
    client.send_to(b"before", first).expect("send");
    let (_, path, train) = came(&mut ring);
    let stop = || Op::StopAccepting { listener: LISTENER };
    submit(&mut ring, [stop(), stop()]);
    assert_eq!(collect(&mut ring, 1), [Completion::AcceptEnded { listener: LISTENER }]);
    forward(&mut ring, FRONT, path, train);
    quiet(&mut ring);
    assert_eq!(ring.free_datagram_buffers(), 4);
    let again = listen_datagrams(&mut ring, "127.0.0.1:0", false);
    client.send_to(b"after", again).expect("send");
    assert_eq!(came(&mut ring).2.len(), 5);
    drop(ring);
    UdpSocket::bind(again).expect("a dropped ring closes its sockets");
}

#[test]
fn without_buffers_for_datagrams_nothing_is_opened() {
    let mut ring = datagram_ring(0);
    let socket = bind_udp(address("127.0.0.1:0")).expect("bind");
    ring.listen_datagrams(LISTENER, socket, false).expect_err("no buffers");
    let kind = port_kind(address("127.0.0.1:9"));
    submit(&mut ring, [Op::OpenPort { port: PORT, kind }]);
    assert_eq!(turn(&mut ring), [Completion::PortFailed { port: PORT }]);
}
