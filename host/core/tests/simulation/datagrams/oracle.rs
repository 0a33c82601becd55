//! What must come of each event: the model goes through it in its own way and compares.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pointsman_core::boundary::{
    DatagramSocket, ListenerId, LossCause, Op, Path, PortId, Side, Train,
};
use pointsman_core::listing::{Entry, EntryKind};
use pointsman_core::policy::Method;
use pointsman_core::preread::KeyRule;
use pointsman_core::{
    CloseReason, DropReason, EndpointId, KeylessReason, OnEndpointDown, ShedReason,
};
use twox_hash::XxHash64;

use super::admission;
use super::kept::KeptKey;
use super::model::{Flow, Model, Port, Role, Scene, Seen, coarse};
use super::setup::Kind;

/// A client's datagrams.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) listener: usize,
    pub(super) client: SocketAddr,
    pub(super) local: IpAddr,
    pub(super) first: Vec<u8>,
    pub(super) len: u32,
    pub(super) datagrams: u32,
}

/// The one op that all turns on.
enum Fate {
    Forwarded { socket: DatagramSocket, peer: SocketAddr, local: Option<IpAddr> },
    Discarded,
}

impl Fate {
    fn of(op: Option<Op>) -> Self {
        match op {
            Some(Op::Forward { socket, peer, local, .. }) => {
                Self::Forwarded { socket, peer, local }
            }
            Some(Op::Discard { .. }) => Self::Discarded,
            other => panic!("a train leaves: {other:?}"),
        }
    }
}

impl Model {
    /// A client has sent.
    pub(super) fn on_request(&mut self, scene: &Scene<'_>, request: &Request, seen: &mut Seen) {
        let flows = &self.workers[scene.worker].flows;
        let found = flows.iter().position(|flow| {
            let key = (flow.listener, flow.client, flow.local);
            !flow.hidden && key == (request.listener, request.client, request.local)
        });
        let Some(place) = found else { return self.on_miss(scene, request, seen) };
        let flow = &flows[place];
        match flow.target {
            Err(_) => self.lose(scene, request, DropReason::Denied, seen),
            Ok((id, _))
                if scene.serves(flow.listener, id)
                    && !Self::has_failed(self.ports_of(scene), flow, seen) =>
            {
                self.forward(scene, place, request, seen);
            }
            Ok(_) => self.on_request_for_gone(scene, place, request, seen),
        }
    }

    fn on_request_for_gone(
        &mut self,
        scene: &Scene<'_>,
        place: usize,
        request: &Request,
        seen: &mut Seen,
    ) {
        let flow = self.workers[scene.worker].flows[place].clone();
        let has_failed = Self::has_failed(self.ports_of(scene), &flow, seen);
        let acts = scene.listener(request.listener).on_endpoint_down;
        if scene.drain_is_over() || has_failed || acts == OnEndpointDown::Drop {
            let reason = match () {
                () if scene.drain_is_over() => CloseReason::DrainTimeout,
                () if has_failed => CloseReason::Descriptors,
                () => CloseReason::EndpointDown,
            };
            assert_eq!(self.end_this(scene, place, seen).0, reason);
            self.on_miss(scene, request, seen);
        } else if acts == OnEndpointDown::Keep || self.reallocate(scene, place, seen) {
            self.forward(scene, place, request, seen);
        } else {
            self.on_miss(scene, request, seen);
        }
    }

    /// Whether the flow's port could not be opened; of one whose port is not known its end tells.
    fn has_failed(ports: &BTreeMap<PortId, Port>, flow: &Flow, seen: &Seen) -> bool {
        match flow.port {
            Some(port) => ports.get(&port).is_some_and(|port| port.failed),
            None => {
                let next = seen.records.front();
                next.is_some_and(|next| next.reason == CloseReason::Descriptors && flow.is_of(next))
            }
        }
    }

    fn ports_of(&self, scene: &Scene<'_>) -> &BTreeMap<PortId, Port> {
        &self.workers[scene.worker].ports
    }

    /// A datagram of a live flow goes to the flow's endpoint, through its port.
    fn forward(&mut self, scene: &Scene<'_>, place: usize, request: &Request, seen: &mut Seen) {
        let worker = self.worker(scene);
        let flow = &mut worker.flows[place];
        if flow.throttle(scene.now, Side::Upstream, request.len) {
            return self.lose(scene, request, DropReason::Throttled, seen);
        }
        if flow.datagrams != [0; 2] && !flow.is_confirmed() {
            flow.resent = true;
        }
        let up = Side::Upstream.index();
        flow.active = scene.now;
        flow.bytes[up] += u64::from(request.len);
        flow.datagrams[up] += u64::from(request.datagrams);
        let (known, address) = (flow.port, flow.address());
        let port = self.expect_forward(scene, request, seen, address.expect("it has an endpoint"));
        assert_eq!(known.unwrap_or(port), port, "a flow keeps its port");
        if known.is_none() {
            self.take_port(scene, place, port);
        }
    }

    /// The flow has this port, which must be fit for it.
    fn take_port(&mut self, scene: &Scene<'_>, place: usize, port: PortId) {
        let worker = self.worker(scene);
        let flow = &worker.flows[place];
        let (listener, address) = (flow.listener, flow.address());
        let known = worker.ports.get(&port).expect("the port is open");
        assert!(known.listener == listener && known.role != Role::Stateless && !known.closing);
        assert_eq!(address.is_some_and(|it| it.is_ipv4()), known.is_v4);
        let clash = |other: &Flow| other.port == Some(port) && other.address() == address;
        assert!(!worker.flows.iter().any(clash), "a port serves an endpoint once");
        let owned = known.role == Role::Owned;
        assert!(!owned || !worker.flows.iter().any(|other| other.port == Some(port)));
        worker.flows[place].port = Some(port);
        if !owned {
            self.assert_rested(scene, place, port);
        }
    }

    /// The shared port of a flow is the one that has been free longest for its endpoint.
    fn assert_rested(&mut self, scene: &Scene<'_>, place: usize, port: PortId) {
        let worker = self.worker(scene);
        let flow = &worker.flows[place];
        let (endpoint, address) = flow.target.expect("it has an endpoint");
        let way = (flow.listener, endpoint);
        let is_at = |other: &&Flow| other.listener == way.0 && other.address() == Some(address);
        let at = || worker.flows.iter().filter(is_at);
        if at().any(|other| other.port.is_none() || other.target != flow.target) {
            worker.rests.obscure(way);
        }
        let pool = worker.ports.iter().filter(|(_, port)| port.is_in(way.0, address));
        let free = pool.map(|(id, _)| *id).filter(|id| !at().any(|it| it.port == Some(*id)));
        worker.rests.assert_rested(way, port, free);
    }

    /// The request must be sent to this endpoint.
    fn expect_forward(
        &mut self,
        scene: &Scene<'_>,
        request: &Request,
        seen: &mut Seen,
        address: SocketAddr,
    ) -> PortId {
        let listener = request.listener;
        let fate = self.fate(scene, request, Role::Shared, seen);
        let Fate::Forwarded { socket: DatagramSocket::Port(port), peer, local: None } = fate else {
            panic!("not forwarded: {request:?}")
        };
        assert_eq!(peer, address, "a datagram goes to its flow's endpoint");
        let stats = &mut self.worker(scene).stats[listener];
        stats.bytes_total[Side::Upstream.index()] += u64::from(request.len);
        stats.datagrams_total[Side::Upstream.index()] += u64::from(request.datagrams);
        port
    }

    fn lose(&mut self, scene: &Scene<'_>, request: &Request, why: DropReason, seen: &mut Seen) {
        let fate = self.fate(scene, request, Role::Shared, seen);
        assert!(matches!(fate, Fate::Discarded), "not dropped, {why:?}: {request:?}");
        let drops = &mut self.worker(scene).stats[request.listener].drops_total;
        drops[why.index()] += u64::from(request.datagrams);
    }

    /// Takes the op that sends or drops the train, and the port that is opened for it.
    fn fate(&mut self, scene: &Scene<'_>, request: &Request, role: Role, seen: &mut Seen) -> Fate {
        while let Some(&Op::OpenPort { port, kind }) = seen.ops.front() {
            let role = if kind.connected { Role::Owned } else { role };
            self.on_open(scene, (request.listener, request.client, role), port, &kind);
            seen.ops.pop_front();
        }
        Fate::of(seen.ops.pop_front())
    }

    fn on_miss(&mut self, scene: &Scene<'_>, request: &Request, seen: &mut Seen) {
        let listener = request.listener;
        let rule = scene.listener(listener).key;
        let key = rule.and_then(|rule| key_of(rule, &request.first));
        match self.admit(scene, request, seen) {
            Ok(()) => {
                let flows = self.workers[scene.worker].stats[listener].flows_total;
                self.start(scene, request, key, seen);
                let stats = &mut self.worker(scene).stats[listener];
                let is_keyless = rule.is_some() && key.is_none() && stats.flows_total > flows;
                stats.keyless_total[KeylessReason::Absent.index()] += u64::from(is_keyless);
            }
            Err(reason) => self.overflow(scene, request, reason, seen),
        }
    }

    fn start(&mut self, scene: &Scene<'_>, request: &Request, key: Option<u64>, seen: &mut Seen) {
        let listener = request.listener;
        if self.all_are_full(scene, listener) && !self.evict_from_endpoint(scene, listener, seen) {
            return self.overflow(scene, request, ShedReason::EndpointsFull, seen);
        }
        let Some(allocated) = self.allocate(scene, (listener, request.client, key), seen) else {
            return self.lose(scene, request, DropReason::NoEndpoint, seen);
        };
        let method = allocated.method;
        let mut flow = Flow {
            listener,
            client: request.client,
            local: request.local,
            hidden: allocated.hidden,
            target: Err(CloseReason::NoEndpoint),
            port: None,
            method,
            key,
            started: scene.now,
            active: scene.now,
            timer: scene.now,
            bytes: [0; 2],
            datagrams: [0; 2],
            paces: [scene.now; 2],
            resent: false,
        };
        match allocated.target {
            Err(_) if allocated.hidden => self.lose(scene, request, DropReason::Denied, seen),
            Err(reason) => {
                flow.target = Err(reason);
                flow.hidden = false;
                flow.method = Method { tag: method.tag, ..Method::DEFAULT };
                flow.timer = scene.now + allocated.ttl;
                self.add(scene, flow);
                self.lose(scene, request, DropReason::Denied, seen);
            }
            Ok(endpoint) => {
                self.start_with(scene, request, (flow, endpoint, allocated.keeps), seen);
            }
        }
    }

    /// Where there is no port for an endpoint, a flow without a reply gives its own. Tells whether one
    /// was given that can be used: not every port could be opened.
    fn take_over_port(
        &mut self,
        scene: &Scene<'_>,
        (listener, client): (usize, SocketAddr),
        seen: &mut Seen,
    ) -> bool {
        let evicted =
            seen.records.front().is_some_and(|first| first.reason == CloseReason::Evicted);
        if evicted {
            let before = self.served_by_ports(scene, (listener, client));
            let more = self.may_open(scene, listener) && !self.is_unsure(scene, listener);
            let flow = self.end(scene, seen).1;
            let address = flow.address().expect("it had an endpoint");
            assert!(flow.listener == listener && !flow.is_confirmed());
            let port = flow.port.and_then(|port| self.workers[scene.worker].ports.get(&port));
            let owned = port.is_some_and(|port| port.role == Role::Owned);
            let needless = if owned { more } else { before.contains(&address) };
            assert!(!needless, "there was a port for its endpoint");
            return port.is_some_and(|port| !port.failed && port.role == Role::Shared);
        }
        false
    }

    /// The endpoints for whose next flow there is certainly a port.
    fn served_by_ports(
        &self,
        scene: &Scene<'_>,
        (listener, client): (usize, SocketAddr),
    ) -> Vec<SocketAddr> {
        let flows = self.workers[scene.worker].flows.iter();
        let addresses = flows.filter_map(Flow::address);
        let has_port = |it: &SocketAddr| self.has_port(scene, listener, (client, *it));
        addresses.filter(|it| has_port(it) == Some(true)).collect()
    }

    fn start_with(
        &mut self,
        scene: &Scene<'_>,
        request: &Request,
        (mut flow, endpoint, keeps): (Flow, Option<EndpointId>, bool),
        seen: &mut Seen,
    ) {
        let who = (request.listener, request.client);
        let gave_port = self.take_over_port(scene, who, seen);
        let shown = seen.shown.iter().find(|entry| flow.is_in(entry)).cloned();
        let Some(shown) = shown else {
            let among = scene.snapshot.clusters[request.listener].candidates.endpoints.iter();
            let wanted = |id| endpoint.is_none_or(|wanted| wanted == id);
            let lacks = |address| {
                let may_share = gave_port && !scene.owns(who.0, who.1, address);
                !may_share && self.has_port(scene, who.0, (who.1, address)) != Some(true)
            };
            let lacking = among.filter(|it| wanted(it.id) && lacks(it.address)).count();
            assert!(lacking > 0, "there was a port for it");
            if endpoint.is_none() && keeps {
                self.keep_unseen(scene, &flow, seen);
            }
            return self.overflow(scene, request, ShedReason::Ports, seen);
        };
        let id = shown.endpoint.expect("a forwarded flow has an endpoint");
        assert_eq!(endpoint.unwrap_or(id), id, "the decision is followed");
        assert!(!self.is_endpoint_full(scene, request.listener, id), "it has more than it may");
        let address = address_of(scene, request.listener, id);
        assert_ne!(self.has_port(scene, who.0, (who.1, address)), Some(false));
        let from = scene.source(who.0, who.1, address);
        flow.hidden &= from.is_none();
        flow.target = Ok((id, address));
        flow.timer = scene.now + scene.timeout(&flow);
        if endpoint.is_none() && keeps {
            self.keep_related(scene, &flow, id);
        }
        self.add(scene, flow);
        let place = self.workers[scene.worker].flows.len() - 1;
        // Its first datagrams are never too fast.
        self.forward(scene, place, request, seen);
        let worker = &self.workers[scene.worker];
        let port = worker.flows[place].port.map(|port| worker.ports[&port].from);
        assert_eq!(port, Some(from), "where it leaves from");
    }

    fn add(&mut self, scene: &Scene<'_>, flow: Flow) {
        let worker = self.worker(scene);
        let stats = &mut worker.stats[flow.listener];
        stats.flows_total += 1;
        stats.flows_active += 1;
        worker.flows.push(flow);
    }

    /// A datagram for which there can be no flow: shed, or forwarded by a policy that is a table.
    fn overflow(
        &mut self,
        scene: &Scene<'_>,
        request: &Request,
        reason: ShedReason,
        seen: &mut Seen,
    ) {
        let listener = request.listener;
        let among = &scene.snapshot.clusters[listener].candidates;
        let yields = admission::yields(reason);
        let follows = !yields && self.kinds[listener] == Kind::Maglev;
        let unsure = self.is_unsure(scene, listener);
        let may_open = self.may_open(scene, listener);
        let own = |is_v4: bool| {
            let ports = &self.workers[scene.worker].ports;
            ports.iter().find_map(|(id, port)| {
                let own = (port.listener, port.role, port.is_v4);
                let usable = own == (listener, Role::Stateless, is_v4) && !port.failed;
                usable.then_some(*id)
            })
        };
        let known = [own(false), own(true)];
        let is_ours = |peer| scene.source(listener, request.client, peer).is_none();
        let has_way = |v4: bool| may_open || known[usize::from(v4)].is_some();
        let can = |peer: SocketAddr| is_ours(peer) && has_way(peer.is_ipv4());
        let all_can = among.endpoints.iter().all(|endpoint| can(endpoint.address));
        let Fate::Forwarded { socket, peer, local } =
            self.fate(scene, request, Role::Stateless, seen)
        else {
            let somebody = !among.endpoints.is_empty() && !self.all_are_full(scene, listener);
            let must = follows && all_can && somebody;
            assert!(!must || unsure, "a table needs no flow: {reason:?}");
            self.worker(scene).stats[listener].sheds_total[reason.index()] += 1;
            return;
        };
        assert!(follows, "only a table needs no flow: {reason:?}");
        assert!(is_ours(peer), "it would not leave from its client's address");
        let target = among.endpoints.iter().find(|endpoint| endpoint.address == peer);
        let target = target.expect("a candidate").id;
        assert!(!self.is_endpoint_full(scene, listener, target), "it is full");
        let DatagramSocket::Port(port) = socket else { panic!("it goes up") };
        let role = self.workers[scene.worker].ports[&port].role;
        assert_eq!((role, local), (Role::Stateless, None), "it has a port of its own");
        assert_eq!(known[usize::from(peer.is_ipv4())].unwrap_or(port), port);
        let stats = &mut self.worker(scene).stats[listener];
        stats.stateless_total += u64::from(request.datagrams);
        stats.datagrams_total[Side::Upstream.index()] += u64::from(request.datagrams);
        stats.bytes_total[Side::Upstream.index()] += u64::from(request.len);
    }

    /// Somebody has sent to a port.
    pub(super) fn on_reply(
        &mut self,
        scene: &Scene<'_>,
        (port, path): (PortId, Path),
        train: (u32, u32),
        seen: &mut Seen,
    ) {
        let (len, datagrams) = train;
        let worker = self.worker(scene);
        let listener = worker.ports[&port].listener;
        let of = |wanted: Option<PortId>| {
            move |flow: &Flow| {
                flow.listener == listener
                    && flow.port == wanted
                    && flow.address() == Some(path.peer)
            }
        };
        let known = worker.flows.iter().position(of(Some(port)));
        // One that was given another endpoint, and by chance this port.
        let unknown = worker.flows.iter().position(of(None));
        let place = match (known, seen.ops.front()) {
            (None, Some(Op::Forward { peer, local, .. })) if unknown.is_some() => {
                let to = |flow: &Flow| flow.client == *peer && Some(flow.local) == *local;
                let of = of(None);
                let fits = |flow: &Flow| of(flow) && to(flow);
                let only = worker.flows.iter().filter(|flow| fits(flow)).count() == 1;
                let counted = |flow: &Flow| only || flow.is_counted_in(&seen.shown);
                let place = worker.flows.iter().position(|flow| fits(flow) && counted(flow));
                self.take_port(scene, place.expect("a reply belongs to a flow"), port);
                place
            }
            _ => known,
        };
        let worker = self.worker(scene);
        let throttled = match place {
            Some(place) => worker.flows[place].throttle(scene.now, Side::Downstream, len),
            None => unknown.is_some() && seen.was_throttled,
        };
        let fate = Fate::of(seen.ops.pop_front());
        let worker = self.worker(scene);
        let Some(place) = place.filter(|_| !throttled) else {
            assert!(matches!(fate, Fate::Discarded), "a reply of no flow is dropped");
            let why = if throttled { DropReason::Throttled } else { DropReason::UnknownSource };
            worker.stats[listener].drops_total[why.index()] += u64::from(datagrams);
            return;
        };
        let before = worker.flows[place].clone();
        self.on_replied(&before);
        let worker = self.worker(scene);
        let flow = &mut worker.flows[place];
        let Fate::Forwarded { socket, peer, local } = fate else { panic!("a reply was dropped") };
        assert_eq!(socket, DatagramSocket::Listener(ListenerId(listener as u16)));
        assert_eq!((peer, local), (flow.client, Some(flow.local)), "a reply goes to its client");
        let down = Side::Downstream.index();
        flow.active = scene.now;
        flow.bytes[down] += u64::from(len);
        flow.datagrams[down] += u64::from(datagrams);
        let [replies, requests] = flow.datagrams;
        worker.stats[listener].bytes_total[down] += u64::from(len);
        worker.stats[listener].datagrams_total[down] += u64::from(datagrams);
        let expected = u64::from(scene.listener(listener).datagrams.replies_expected);
        if expected > 0 && replies >= expected * requests {
            assert_eq!(self.end_this(scene, place, seen).0, CloseReason::Finished);
        }
    }

    pub(super) fn on_lost(
        &mut self,
        scene: &Scene<'_>,
        socket: DatagramSocket,
        datagrams: u32,
        cause: LossCause,
    ) {
        let worker = self.worker(scene);
        let listener = match socket {
            DatagramSocket::Listener(listener) => listener.index(),
            DatagramSocket::Port(port) => worker.ports[&port].listener,
        };
        let reason = match cause {
            LossCause::Truncated => DropReason::Truncated,
            LossCause::Full => DropReason::SendFull,
            LossCause::TooLarge => DropReason::TooLarge,
            LossCause::Unreachable => DropReason::Unreachable,
        };
        worker.stats[listener].drops_total[reason.index()] += u64::from(datagrams);
    }

    /// Whether the next step looks at all flows, for the world has changed.
    pub(super) fn is_swept(&self, scene: &Scene<'_>) -> bool {
        let worker = &self.workers[scene.worker];
        let failed = worker.ports.values().any(|port| port.failed);
        failed || scene.drain_is_over() || worker.flows.iter().any(|flow| scene.is_lost(flow))
    }

    /// Time passed. `order` says how the flows lie in the table, where that matters.
    pub(super) fn on_timeout(&mut self, scene: &Scene<'_>, order: &[Entry], seen: &mut Seen) {
        self.expire(scene, seen);
        self.take_closed_and_stopped(scene, seen);
        for entry in order {
            let flows = &self.workers[scene.worker].flows;
            let place = flows.iter().position(|flow| flow.is_in(entry));
            if let Some(place) = place {
                self.sweep(scene, place, seen);
            }
        }
        for flow in &self.workers[scene.worker].flows {
            assert!(
                !scene.is_lost(flow) && !Self::has_failed(self.ports_of(scene), flow, seen),
                "overlooked: {flow:?}"
            );
            let slack = Duration::from_millis(18);
            let overdue = flow.active + scene.timeout(flow) + slack < scene.now;
            assert!(!overdue || flow.target.is_err(), "overdue: {flow:?}");
        }
        self.worker(scene).ports.retain(|_, port| !port.failed);
    }

    /// Flows whose time is over end; the timers of the others are set again.
    fn expire(&mut self, scene: &Scene<'_>, seen: &mut Seen) {
        let ends = |reason| {
            use CloseReason::{DeniedDrop, DeniedReset, IdleTimeout};
            matches!(reason, IdleTimeout | DeniedDrop | DeniedReset)
        };
        let is_over = |flow: &Flow| {
            let end = coarse(flow.active) + scene.timeout(flow);
            flow.is_due(scene.now) && (flow.target.is_err() || end <= scene.now)
        };
        let over = self.workers[scene.worker].flows.iter().filter(|flow| is_over(flow)).count();
        for _ in 0..over {
            let ended = seen.records.front().is_some_and(|next| ends(next.reason));
            let flows = self.workers[scene.worker].flows.iter();
            assert!(
                ended,
                "a flow is overdue: {:?}",
                flows.filter(|flow| is_over(flow)).collect::<Vec<_>>()
            );
            let (reason, flow) = self.end(scene, seen);
            assert!(is_over(&flow), "too early: {flow:?}");
            let silent = flow.active + scene.timeout(&flow) <= scene.now;
            assert!(silent || flow.target.is_err(), "too early: {flow:?}");
            assert_eq!(reason, flow.target.err().unwrap_or(CloseReason::IdleTimeout));
            self.on_idle(scene, &flow);
        }
        let due = |flow: &&mut Flow| flow.is_due(scene.now);
        let mut used = Vec::new();
        for flow in self.worker(scene).flows.iter_mut().filter(due) {
            flow.timer = coarse(flow.active) + scene.timeout(flow);
            used.push(flow.clone());
        }
        used.iter().for_each(|flow| self.use_key(scene, flow));
    }

    /// Takes the ports that are closed because few flows need them, and the listeners that end.
    fn take_closed_and_stopped(&mut self, scene: &Scene<'_>, seen: &mut Seen) {
        for op in std::mem::take(&mut seen.ops) {
            match op {
                Op::StopAccepting { listener } => {
                    let left = self.active(listener.index());
                    let drains = scene.snapshot.drain_until.is_some();
                    assert!(drains && (left == 0 || scene.drain_is_over()), "flows are left");
                    self.worker(scene).stopped[listener.index()] = true;
                }
                Op::ClosePort { port } if self.is_unused(scene, port) => {
                    let worker = self.worker(scene);
                    let closed = worker.ports.get_mut(&port).expect("an open port");
                    assert!(!closed.failed && !closed.closing);
                    closed.closing = true;
                    let (listener, is_v4) = (closed.listener, closed.is_v4);
                    let left = worker.ports.values().filter(|port| {
                        (port.listener, port.is_v4, port.closing) == (listener, is_v4, false)
                    });
                    let least = scene.listener(listener).datagrams.ports_min as usize;
                    assert!(left.count() >= least, "some ports are kept");
                }
                other => seen.ops.push_back(other),
            }
        }
    }

    fn is_unused(&self, scene: &Scene<'_>, port: PortId) -> bool {
        let worker = &self.workers[scene.worker];
        let is_shared = worker.ports.get(&port).is_some_and(|port| port.role == Role::Shared);
        is_shared && !worker.flows.iter().any(|flow| flow.port == Some(port))
    }

    /// Does with a flow what the changed world calls for.
    fn sweep(&mut self, scene: &Scene<'_>, place: usize, seen: &mut Seen) {
        let flow = self.workers[scene.worker].flows[place].clone();
        let next = seen.records.front().map(|record| record.reason);
        let is_next = seen.records.front().is_some_and(|record| flow.is_of(record));
        let may_have_failed =
            flow.port.is_none() && is_next && next == Some(CloseReason::Descriptors);
        if scene.drain_is_over() {
            if next == Some(CloseReason::DrainTimeout) {
                self.end_this(scene, place, seen);
            }
        } else if flow.target.is_ok()
            && (Self::has_failed(self.ports_of(scene), &flow, seen) || may_have_failed)
        {
            assert_eq!(self.end_this(scene, place, seen).0, CloseReason::Descriptors);
        } else if scene.is_lost(&flow) {
            if scene.listener(flow.listener).on_endpoint_down == OnEndpointDown::Reallocate {
                self.reallocate(scene, place, seen);
            } else {
                assert_eq!(self.end_this(scene, place, seen).0, CloseReason::EndpointDown);
            }
        }
    }

    /// A flow is given another endpoint; tells whether there was one.
    fn reallocate(&mut self, scene: &Scene<'_>, place: usize, seen: &mut Seen) -> bool {
        let flow = self.workers[scene.worker].flows[place].clone();
        let who = (flow.listener, flow.client, flow.key);
        let allocated = self.allocate(scene, who, seen);
        let shown = seen.shown.iter().find(|entry| flow.is_in(entry));
        let moved = shown.and_then(|entry| entry.endpoint).filter(|_| {
            let ended = seen.records.front();
            ended.is_none_or(|next| next.reason != CloseReason::EndpointDown || !flow.is_of(next))
        });
        let Some(id) = moved else {
            let (reason, ended) = self.end_this(scene, place, seen);
            assert_eq!((reason, ended.client), (CloseReason::EndpointDown, flow.client));
            let target = allocated.and_then(|allocated| allocated.target.ok().flatten());
            if let Some(target) = target {
                let address = address_of(scene, flow.listener, target);
                let has_port = self.has_port(scene, flow.listener, (flow.client, address));
                let unsure = self.is_unsure(scene, flow.listener);
                assert!(has_port != Some(true) || unsure, "there was another endpoint");
            } else if allocated.is_some_and(|it| it.target == Ok(None) && it.keeps) {
                self.keep_unseen(scene, &flow, seen);
            }
            return false;
        };
        let allocated = allocated.expect("somebody decides");
        let target = allocated.target.expect("it is not denied");
        assert!(!self.is_endpoint_full(scene, flow.listener, id), "it has more than it may");
        assert_eq!(target.unwrap_or(id), id, "the decision is followed");
        let worker = self.worker(scene);
        worker.flows[place].port = None;
        worker.flows[place].target = Ok((id, address_of(scene, flow.listener, id)));
        worker.stats[flow.listener].reallocations_total += 1;
        self.leave(scene, &flow, seen);
        self.take_opened(scene, place, seen);
        let flow = self.workers[scene.worker].flows[place].clone();
        if target.is_none() && allocated.keeps {
            self.keep_related(scene, &flow, id);
        }
        self.use_key(scene, &flow);
        true
    }

    /// A flow that moves has a port opened if it needs one of its own, and may otherwise.
    fn take_opened(&mut self, scene: &Scene<'_>, place: usize, seen: &mut Seen) {
        let flow = self.workers[scene.worker].flows[place].clone();
        let address = flow.address().expect("it has an endpoint");
        let per_flow = scene.owns(flow.listener, flow.client, address);
        let Some(Op::OpenPort { port, kind }) = seen.ops.front() else {
            assert!(!per_flow, "a flow has a port of its own");
            return;
        };
        let (port, kind) = (*port, *kind);
        let own = kind.towards == address && kind.connected == per_flow;
        if own && (per_flow || self.grows(scene, &flow)) {
            seen.ops.pop_front();
            let role = if per_flow { Role::Owned } else { Role::Shared };
            self.on_open(scene, (flow.listener, flow.client, role), port, &kind);
            // A shared one may have been opened for the next flow that moves there.
            if per_flow {
                self.take_port(scene, place, port);
            }
        }
    }

    /// Whether the pool is small for the flows of the endpoint that this one has just moved to.
    fn grows(&self, scene: &Scene<'_>, flow: &Flow) -> bool {
        let worker = &self.workers[scene.worker];
        let Some(address) = flow.address() else { return false };
        let pool = worker.ports.values().filter(|port| port.is_in(flow.listener, address));
        let bound = worker
            .flows
            .iter()
            .filter(|other| other.listener == flow.listener && other.target == flow.target);
        let pool = pool.count();
        let at = worker.flows.iter().filter(|other| other.address() == flow.address());
        let taken = at.filter(|other| other.listener == flow.listener).count() - 1;
        let least = scene.listener(flow.listener).datagrams.ports_min as usize;
        pool < (2 * bound.count()).max(least) || taken >= pool
    }

    /// The operator has ended a flow.
    pub(super) fn on_forgotten(&mut self, scene: &Scene<'_>, entry: &Entry, seen: &mut Seen) {
        let flows = &self.workers[scene.worker].flows;
        let place = flows.iter().position(|flow| flow.is_in(entry));
        let (reason, _) = self.end_this(scene, place.expect("it was there"), seen);
        assert_eq!(reason, CloseReason::Forgotten, "{entry:?}");
    }

    /// The survey shows what is there, all of it and nothing else.
    pub(super) fn assert_survey(&self, scene: &Scene<'_>, entries: &[Entry]) {
        let flows = &self.workers[scene.worker].flows;
        let kept = self.shelf.live(scene.now, scene.worker);
        let kept: BTreeMap<_, _> = kept.collect();
        let keys = entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::Kept(shown) => Some(KeptKey::of(entry.cluster.0, shown)),
            EntryKind::Flow(_) => None,
        });
        assert_eq!(keys.collect::<BTreeSet<_>>(), kept.keys().copied().collect());
        assert_eq!(entries.len(), flows.len() + kept.len());
        for entry in entries {
            match &entry.kind {
                EntryKind::Flow(shown) => {
                    let flow = flows.iter().find(|flow| flow.is_in(entry));
                    flow.expect("a flow that is shown is there").assert_shown_by(entry, shown);
                }
                EntryKind::Kept(shown) => {
                    let kept = kept[&KeptKey::of(entry.cluster.0, shown)];
                    assert_eq!(entry.endpoint, kept.verdict.ok(), "{shown:?}");
                    assert_eq!(shown.denies, kept.verdict.is_err());
                    assert_eq!(shown.sliding, kept.slides.is_some(), "{shown:?} {kept:?}");
                    assert_eq!((shown.expires, shown.tag), (kept.expires, kept.method.tag));
                }
            }
        }
    }
}

fn address_of(scene: &Scene<'_>, cluster: usize, id: EndpointId) -> SocketAddr {
    let endpoint = scene.snapshot.clusters[cluster].candidates.find(id);
    endpoint.expect("a flow is given to a candidate").address
}

/// The key in a datagram, if it is long enough.
pub(super) fn key_of(rule: KeyRule, datagram: &[u8]) -> Option<u64> {
    let KeyRule::Bytes { offset, length } = rule else { panic!("{rule:?}") };
    let (start, length) = (usize::from(offset), usize::from(length));
    let key = datagram.get(start..start + length)?;
    Some(XxHash64::oneshot(0, key).max(1))
}

/// The request that a train stands for.
pub(super) fn request(
    scene: &Scene<'_>,
    at: (usize, Path),
    train: &Train,
    first: &[u8],
) -> Request {
    let (listener, path) = at;
    Request {
        listener,
        client: path.peer,
        local: path.local.unwrap_or_else(|| scene.listener(listener).address.ip()),
        first: first.to_vec(),
        len: train.len(),
        datagrams: train.datagrams(),
    }
}
