//! A small world for unit tests.

use alloc::sync::Arc;
use core::net::Ipv4Addr;
use core::time::Duration;

use crate::eligibility::Footing;
use crate::limits::AllFlows;
use crate::policy::maglev;
use crate::queue::Queue;
use crate::snapshot::{
    Candidates, Cluster, ClusterId, DatagramSettings, Endpoint, EndpointId, EndpointState,
    Generation, Listener, OnEndpointDown, Openness, PrefixLengths, Protocol, Snapshot, Timeouts,
};

/// One listener of datagrams with so many ports, and one cluster of three endpoints.
pub(crate) fn snapshot(ports_max: u32) -> Snapshot {
    let endpoint = |n: u32| Endpoint {
        id: EndpointId(n),
        address: (Ipv4Addr::new(10, 0, 0, 1 + n as u8), 53).into(),
        weight: 1,
        flows_max: u32::MAX,
        load: Arc::default(),
    };
    let endpoints: alloc::boxed::Box<[Endpoint]> = (0..3).map(endpoint).collect();
    let keys = [("10.0.0.1:53", 1), ("10.0.0.2:53", 1), ("10.0.0.3:53", 1)];
    let state = |endpoint: &Endpoint| EndpointState::sound(endpoint.clone());
    let cluster = Cluster {
        name: "dns".into(),
        endpoints: endpoints.iter().map(state).collect(),
        candidates: Arc::new(Candidates {
            generation: Generation(1),
            endpoints,
            table: maglev::build(&keys, 251),
        }),
        footing: Footing::Sound,
        proxy: None,
        transparent: false,
        trial: None,
        queue: Queue::none(1),
    };
    Snapshot {
        generation: Generation(1),
        listeners: [listener(ports_max)].into(),
        clusters: [cluster].into(),
        drain_until: None,
    }
}

/// A listener of datagrams that may have a thousand flows.
pub(crate) fn listener(ports_max: u32) -> Listener {
    Listener {
        name: "dns".into(),
        address: (Ipv4Addr::UNSPECIFIED, 53).into(),
        protocol: Protocol::Udp,
        openness: Openness::Open,
        cluster: ClusterId(0),
        flows_max: 1_000,
        flows_active: Arc::default(),
        sockets_open: Arc::default(),
        all_flows: AllFlows::unlimited(),
        access: None,
        client_prefix: PrefixLengths { v4: 32, v6: 64 },
        connect_attempts: 1,
        on_endpoint_down: OnEndpointDown::Keep,
        timeouts: Timeouts {
            preread: Duration::from_secs(3),
            connect: Duration::from_secs(1),
            idle: Duration::from_secs(60),
            half_closed: Duration::from_secs(30),
        },
        key: None,
        preread_bytes_max: 16_384,
        new_flow_rate: None,
        new_flow_rate_per_client: None,
        flows_per_client: None,
        proxy: None,
        datagrams: DatagramSettings { ports_max, ..DatagramSettings::DEFAULT },
    }
}
