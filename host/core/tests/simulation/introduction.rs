//! The PROXY headers of a schedule: sound ones of every sort, and what is none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::proxy::{Header, Identity, Inbound, Outbound, Reader, Reading, Route, Version};
use pointsman_core::{AccessList, Network};

use crate::rng::Rng;

/// What the header at the start of a connection comes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// Bytes until it is known what it is.
    pub(crate) left: u32,
    /// Whom it names, if anybody; nothing if it is no header.
    pub(crate) route: Option<Option<Route>>,
}

impl Head {
    /// Reads a header in one piece, as the balancer never may.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let (used, reading) = Reader::new().read(bytes);
        let route = match reading {
            Reading::Whole(route) => Some(route),
            Reading::Invalid | Reading::More => None,
        };
        Self { left: used as u32, route }
    }
}

/// Whom a sound header names.
pub(crate) fn read(header: &[u8]) -> Route {
    match Reader::new().read(header) {
        (used, Reading::Whole(Some(route))) if used == header.len() => route,
        other => panic!("{other:?}: {header:?}"),
    }
}

/// What somebody sends who connects for this client.
pub(crate) fn head(rng: &mut Rng, client: SocketAddr) -> Vec<u8> {
    let version = rng.pick(&[Version::V1, Version::V2, Version::V2]);
    if rng.chance(50) {
        return b"GET / HTTP/1.1\r\n".to_vec();
    }
    if rng.chance(100) {
        return Header::of_our_own(version).as_bytes().to_vec();
    }
    let route = Route { client, local: SocketAddr::from(([10, 7, 0, 1], 8443)) };
    let outbound = Outbound { version, ..Outbound::PLAIN };
    let mut header = Header::of_stream(&outbound, route, Identity::default()).as_bytes().to_vec();
    if version == Version::V2 && rng.chance(500) {
        let bytes = rng.pick(&[0, 1, 700, 20_000]);
        let value = [&[0xee][..], &(bytes as u16).to_be_bytes(), &vec![7; bytes]].concat();
        header[14..16].copy_from_slice(&(12 + value.len() as u16).to_be_bytes());
        header.extend(value);
    }
    header
}

/// Whether a listener wants to be told, and by whom.
pub(crate) fn inbound(rng: &mut Rng) -> Option<Arc<Inbound>> {
    let proxies = Network { address: [10, 9, 0, 0].into(), length: 24 };
    let trusted = AccessList::new(&[proxies], &[]);
    let timeout = Duration::from_millis(rng.pick(&[40, 5_000]));
    rng.chance(300).then(|| Arc::new(Inbound { trusted, timeout }))
}

/// Whether a cluster's endpoints are told, and how.
pub(crate) fn outbound(rng: &mut Rng) -> Option<Outbound> {
    let version = rng.pick(&[Version::V1, Version::V2]);
    let (unique_id, crc32c) = (version == Version::V2 && rng.chance(500), rng.chance(500));
    let outbound = Outbound { version, unique_id, crc32c, authority: true };
    rng.chance(250).then_some(outbound)
}
