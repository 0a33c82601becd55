//! Trains: datagrams that arrive together, leave together, and stay separate datagrams in order.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use common::{LISTENER, came, collect, datagram_ring, pattern, quiet, receive_datagram, submit};
use common::{port_kind, turn, udp_peer};
use pointsman_core::boundary::{
    Completion, DatagramSocket, LossCause, Memory, Op, Path, PortId, PortKind, Train,
};
use pointsman_core::proxy::{Header, Identity, Outbound, Route};
use pointsman_ring::{Ring, bind_udp};

const PORT: PortId = PortId(0);
const FRONT: DatagramSocket = DatagramSocket::Listener(LISTENER);
const BACK: DatagramSocket = DatagramSocket::Port(PORT);

fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) {
    let (pointer, len) = (std::ptr::from_ref(&value).cast(), size_of::<i32>() as u32);
    // SAFETY: the kernel reads four bytes of `value`, which outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, len) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Has a socket cut what it sends into segments.
fn segments(socket: &UdpSocket, bytes: usize) {
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, bytes as i32);
}

/// A socket that receives trains whole, and so tells whether they were sent so.
fn whole_trains(socket: &UdpSocket) {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1);
}

struct Scene {
    ring: Ring,
    client: UdpSocket,
    endpoint: UdpSocket,
    towards: SocketAddr,
}

/// A ring between a client and an endpoint, of which either side may have offload.
fn scene(listener: bool, port: bool) -> Scene {
    let socket = bind_udp("127.0.0.1:0".parse().expect("address")).expect("bind");
    scene_with(socket, listener, port)
}

fn scene_with(listener: OwnedFd, front: bool, back: bool) -> Scene {
    let mut ring = datagram_ring(64);
    let listener = UdpSocket::from(listener);
    let (client, endpoint) = (udp_peer("127.0.0.1:0"), udp_peer("127.0.0.1:0"));
    client.connect(listener.local_addr().expect("address")).expect("connect");
    ring.listen_datagrams(LISTENER, listener.into(), front).expect("listen");
    let towards = endpoint.local_addr().expect("address");
    let kind = PortKind { offload: back, ..port_kind(towards) };
    submit(&mut ring, [Op::OpenPort { port: PORT, kind }]);
    Scene { ring, client, endpoint, towards }
}

fn to_endpoint(scene: &mut Scene, train: Train) {
    let op = Op::Forward { socket: BACK, peer: scene.towards, local: None, train };
    submit(&mut scene.ring, [op]);
}

/// Reads datagrams of `segment` bytes, the last of which may be shorter, until all of `expected`
/// has come.
fn expect_segments(socket: &UdpSocket, expected: &[u8], segment: usize) {
    for chunk in expected.chunks(segment) {
        assert_eq!(receive_datagram(socket).0, chunk);
    }
}

#[test]
fn a_train_is_forwarded_whole_and_arrives_as_its_datagrams() {
    let mut scene = scene(true, true);
    let sent = pattern(1200 * 20 + 77);
    segments(&scene.client, 1200);
    scene.client.send(&sent).expect("send");
    let (socket, _, train) = came(&mut scene.ring);
    assert_eq!(socket, FRONT);
    assert_eq!((train.len() as usize, train.segment(), train.datagrams()), (sent.len(), 1200, 21));
    assert_eq!(scene.ring.first_datagram(&train), &sent[..1200]);
    to_endpoint(&mut scene, train);
    expect_segments(&scene.endpoint, &sent, 1200);
    quiet(&mut scene.ring);
    assert_eq!(scene.ring.free_datagram_buffers(), 64);
}

#[test]
fn a_train_leaves_as_one_message() {
    let mut scene = scene(true, true);
    let sent = pattern(500 * 30);
    segments(&scene.client, 500);
    whole_trains(&scene.endpoint);
    scene.client.send(&sent).expect("send");
    let (_, _, train) = came(&mut scene.ring);
    to_endpoint(&mut scene, train);
    assert_eq!(receive_datagram(&scene.endpoint).0, sent);
}

fn announce_to_endpoint(scene: &mut Scene, train: Train) -> Vec<u8> {
    let client = scene.client.local_addr().expect("address");
    let route = Route { client, local: scene.client.peer_addr().expect("address") };
    let outbound = Outbound { crc32c: true, ..Outbound::PLAIN };
    let forward = Op::Forward { socket: BACK, peer: scene.towards, local: None, train };
    submit(&mut scene.ring, [Op::Announce { route, outbound }, forward]);
    Header::of_datagram(&outbound, route, Identity::default()).as_bytes().to_vec()
}

#[test]
fn each_datagram_of_a_train_has_the_header_and_the_train_stays_whole() {
    for whole in [true, false] {
        let mut scene = scene(true, whole);
        let sent = pattern(900 * 40 + 13);
        segments(&scene.client, 900);
        whole_trains(&scene.endpoint);
        scene.client.send(&sent).expect("send");
        let (_, _, train) = came(&mut scene.ring);
        let header = announce_to_endpoint(&mut scene, train);
        let expected: Vec<_> =
            sent.chunks(900).map(|chunk| [&header[..], chunk].concat()).collect();
        if whole {
            assert_eq!(receive_datagram(&scene.endpoint).0, expected.concat());
        } else {
            for datagram in expected {
                assert_eq!(receive_datagram(&scene.endpoint).0, datagram);
            }
        }
        scene.client.send(&pattern(3)).expect("send");
        let (_, _, train) = came(&mut scene.ring);
        to_endpoint(&mut scene, train);
        assert_eq!(receive_datagram(&scene.endpoint).0, pattern(3), "the next has none");
        assert_eq!(scene.ring.free_datagram_buffers(), 64);
    }
}

#[test]
fn without_offload_datagrams_come_and_leave_one_by_one() {
    let mut scene = scene(false, true);
    let sent = pattern(100 * 12);
    segments(&scene.client, 100);
    whole_trains(&scene.endpoint);
    scene.client.send(&sent).expect("send");
    for completion in collect(&mut scene.ring, 12) {
        let Completion::Datagrams { train, .. } = completion else { panic!("{completion:?}") };
        assert_eq!((train.len(), train.segment()), (100, 0));
        to_endpoint(&mut scene, train);
    }
    expect_segments(&scene.endpoint, &sent, 100);
}

#[test]
fn a_port_without_offload_sends_the_datagrams_of_a_train_one_by_one() {
    let mut scene = scene(true, false);
    let sent = pattern(100 * 12 + 1);
    segments(&scene.client, 100);
    whole_trains(&scene.endpoint);
    scene.client.send(&sent).expect("send");
    let (_, _, train) = came(&mut scene.ring);
    to_endpoint(&mut scene, train);
    expect_segments(&scene.endpoint, &sent, 100);
}

#[test]
fn a_train_of_more_segments_than_a_message_may_have_is_split() {
    let mut scene = scene(true, true);
    let sent = pattern(9 * 100 + 5);
    segments(&scene.client, 9);
    if scene.client.send(&sent).is_err() {
        return; // This kernel does not make trains of more than 64.
    }
    let (_, _, train) = came(&mut scene.ring);
    assert_eq!(train.datagrams(), 101);
    to_endpoint(&mut scene, train);
    expect_segments(&scene.endpoint, &sent, 9);
}

/// Forwards trains and single datagrams from the endpoint to the client, through a listener that
/// refuses to send trains, and expects them in order.
#[test]
fn where_trains_are_refused_their_datagrams_leave_one_by_one_in_order() {
    let listener = bind_udp("0.0.0.0:0".parse().expect("address")).expect("bind");
    // The kernel cannot segment what it must not add checksums to.
    set_option(&listener, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
    let mut scene = scene_with(listener, true, true);
    scene.client.send(b"hello").expect("send");
    let (_, client, train) = came(&mut scene.ring);
    to_endpoint(&mut scene, train);
    let (_, port) = receive_datagram(&scene.endpoint);
    whole_trains(&scene.client);
    let mut expected = Vec::new();
    for round in 0..5u8 {
        let sent = vec![round; 300 * 12 + usize::from(round)];
        segments(&scene.endpoint, 300);
        scene.endpoint.send_to(&sent, port).expect("send");
        segments(&scene.endpoint, 0);
        scene.endpoint.send_to(&[100 + round], port).expect("send");
        expected.extend(sent.chunks(300).map(<[u8]>::to_vec));
        expected.push(vec![100 + round]);
    }
    answer_all(&mut scene.ring, client, 10);
    for datagram in expected {
        assert_eq!(receive_datagram(&scene.client).0, datagram);
    }
    quiet(&mut scene.ring);
    assert_eq!(scene.ring.free_datagram_buffers(), 64);
}

/// Forwards what comes to the port to a client, until `count` trains have.
fn answer_all(ring: &mut Ring, client: Path, count: usize) {
    let mut answered = 0;
    while answered < count {
        for completion in turn(ring) {
            let Completion::Datagrams { train, .. } = completion else { panic!("{completion:?}") };
            let Path { peer, local } = client;
            submit(ring, [Op::Forward { socket: FRONT, peer, local, train }]);
            answered += 1;
        }
    }
}

#[test]
fn the_loss_of_a_train_counts_its_datagrams() {
    let mut scene = scene(true, true);
    segments(&scene.client, 10);
    scene.client.send(&pattern(55)).expect("send");
    let (_, _, train) = came(&mut scene.ring);
    // The kernel sends nothing to everybody that has not asked for permission.
    scene.towards = "255.255.255.255:9".parse().expect("address");
    to_endpoint(&mut scene, train);
    let completions = collect(&mut scene.ring, 1);
    let lost = Completion::Lost { socket: BACK, datagrams: 6, cause: LossCause::Unreachable };
    assert_eq!(completions, [lost]);
    assert_eq!(scene.ring.free_datagram_buffers(), 64);
}
