//! Who an endpoint is told of: the client of every datagram, and nobody's but that of the next.

use std::collections::VecDeque;
use std::net::SocketAddr;

use pointsman_core::boundary::{DatagramSocket, Op};
use pointsman_core::proxy::Route;

use super::Scene;
use super::oracle::Request;

/// Whom the endpoint of a request is told of.
pub(super) fn expected(scene: &Scene<'_>, request: &Request) -> Option<Route> {
    let listener = scene.listener(request.listener);
    let local = SocketAddr::new(request.local, listener.address.port());
    listener.datagrams.announce.map(|_| Route { client: request.client, local })
}

/// Takes the announcements out of what was decided: each is followed by what it announces, and what goes
/// to an endpoint has one if it should.
pub(super) fn check(ops: &mut VecDeque<Op>, expected: Option<Route>) {
    let mut told = None;
    ops.retain(|op| match op {
        Op::Announce { route, .. } => {
            assert_eq!(told.replace(*route), None, "an announcement is followed by its datagrams");
            false
        }
        Op::Forward { socket: DatagramSocket::Port(_), .. } => {
            assert_eq!(told.take(), expected, "the endpoint is told who has sent this");
            true
        }
        other => {
            assert_eq!(told, None, "not what was announced: {other:?}");
            true
        }
    });
    assert_eq!(told, None, "nothing follows an announcement");
}
