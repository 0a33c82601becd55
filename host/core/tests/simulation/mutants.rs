//! Proof that the simulation can fail: the core is broken on purpose, one way after another, in a
//! copy, and every break must be caught.

mod succession;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One deliberate break.
struct Mutant {
    /// What it does to the balancer.
    breaks: &'static str,
    file: &'static str,
    original: &'static str,
    mutated: &'static str,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        breaks: "back-pressure: credit is granted however much waits",
        file: "relay.rs",
        original: "if self.inbound == Inbound::Paused && little_waits && self.outbound",
        mutated: "if self.inbound == Inbound::Paused && self.outbound",
    },
    Mutant {
        breaks: "relief: flows yield that have not stalled",
        file: "balancer/relief.rs",
        original: "now.since(since) >= stall_max",
        mutated: "now.since(since) >= stall_max / 4",
    },
    Mutant {
        breaks: "back-pressure: a source of single bytes is never paused",
        file: "relay.rs",
        original: "{ HELD_MAX } else { WAITING_MAX }",
        mutated: "{ HELD_MAX } else { u32::MAX }",
    },
    Mutant {
        breaks: "progress: a paused source is never started again after a send",
        file: "relay.rs",
        original: "            self.send(step);\n        }\n        self.proceed(step);\n    }\n\n    pub(crate) fn on_shut",
        mutated: "            self.send(step);\n        }\n    }\n\n    pub(crate) fn on_shut",
    },
    Mutant {
        breaks: "order: an end overtakes the bytes before it",
        file: "relay.rs",
        original: "if self.is_drained() && self.outbound == Outbound::Idle {",
        mutated: "if self.has_ended() && self.outbound != Outbound::ShuttingDown {",
    },
    Mutant {
        breaks: "half-close: the end of a stream is not passed on",
        file: "relay.rs",
        original: "step.ops.push(Op::Shutdown { link: self.destination(step) });",
        mutated: "",
    },
    Mutant {
        breaks: "order: of several waiting buffers the second leaves first",
        file: "chain.rs",
        original: "        queue.head = node.next;",
        mutated: "        queue.head = node.next;\n        if queue.buffers == 4 { queue.head = queue.tail; }",
    },
    Mutant {
        breaks: "reset: the other side sees an end in order",
        file: "session.rs",
        original: "            _ => Goodbye::Reset,",
        mutated: "            _ => Goodbye::Fin,",
    },
    Mutant {
        breaks: "reset: taken for a pause",
        file: "balancer.rs",
        original: "if end == ReceiveEnd::Reset {",
        mutated: "if end == ReceiveEnd::Cancelled {",
    },
    Mutant {
        breaks: "lifetime: a session is freed before its last link has closed",
        file: "session.rs",
        original: "(*links_open == 0).then_some(*reason)",
        mutated: "(*links_open <= 1).then_some(*reason)",
    },
    Mutant {
        breaks: "buffers: what arrives while closing is lost",
        file: "balancer.rs",
        original: "            ops.push(Op::Recycle { buffer });\n            return;",
        mutated: "            drop(buffer);\n            return;",
    },
    Mutant {
        breaks: "retry: the attempts are not counted",
        file: "balancer.rs",
        original: "            session.tried.push(allocation.endpoint.id);",
        mutated: "",
    },
    Mutant {
        breaks: "retry: a flow that its endpoint has had nothing of is reset with it",
        file: "balancer/undelivered.rs",
        original: "        session.is_undelivered()\n",
        mutated: "        session.is_undelivered() && attempts > 9\n",
    },
    Mutant {
        breaks: "retry: a flow that has been answered gets another endpoint",
        file: "session.rs",
        original: "            && from_endpoint.is_silent()\n",
        mutated: "            && from_endpoint.delivered() < u64::MAX\n",
    },
    Mutant {
        breaks: "retry: a flow that its endpoint has had bytes of gets another",
        file: "relay.rs",
        original: "            && self.delivered == 0\n",
        mutated: "",
    },
    Mutant {
        breaks: "retry: what comes meanwhile is sent to the endpoint that is gone",
        file: "relay.rs",
        original: "        self.outbound = Outbound::Held;\n        (self.pace",
        mutated: "        (self.pace",
    },
    Mutant {
        breaks: "retry: what came back is sent in another order",
        file: "relay.rs",
        original: "        chains.push_front(&mut self.queue, buffer);\n    }\n\n    /// Nothing of the run",
        mutated: "        chains.push(&mut self.queue, buffer);\n    }\n\n    /// Nothing of the run",
    },
    Mutant {
        breaks: "retry: a header that was not sent goes to the next endpoint too",
        file: "relay.rs",
        original: "if core::mem::take(&mut self.announced) > 0",
        mutated: "if core::mem::take(&mut self.announced) > u32::MAX - 1",
    },
    Mutant {
        breaks: "retry: a flow of which a part was taken gets another endpoint",
        file: "balancer/undelivered.rs",
        original: "if is_lost || !relay.is_undelivered() {",
        mutated: "if is_lost && !relay.is_undelivered() {",
    },
    Mutant {
        breaks: "buffers: what comes back while closing is lost",
        file: "balancer/undelivered.rs",
        original: "            ops.push(Op::Recycle { buffer });\n            return;",
        mutated: "            drop(buffer);\n            let _ = ops;\n            return;",
    },
    Mutant {
        breaks: "load: a failed endpoint keeps the flow it lost",
        file: "balancer.rs",
        original: "            session.tried.push(allocation.endpoint.id);\n        }\n        if let Some(place) = session.take_place() {\n            self.allocator.leave(&self.snapshot, place);\n        }",
        mutated: "            session.tried.push(allocation.endpoint.id);\n        }\n        let _ = session.take_place();",
    },
    Mutant {
        breaks: "places: an endpoint has one flow more than it may",
        file: "load.rs",
        original: "(flows < flows_max).then_some(flows + 1)",
        mutated: "(flows <= flows_max).then_some(flows + 1)",
    },
    Mutant {
        breaks: "places: a decision that was not obeyed is kept",
        file: "allocation.rs",
        original: "            && is_obeyed\n",
        mutated: "",
    },
    Mutant {
        breaks: "places: a table sends datagrams without a flow to a full endpoint",
        file: "allocation.rs",
        original: "among.get(index).filter(|endpoint| !endpoint.is_full());",
        mutated: "among.get(index);",
    },
    Mutant {
        breaks: "places: datagrams that found no port keep their flow's place",
        file: "datagram.rs",
        original: "                    turn.leave((allocation.cluster, &allocation.endpoint));\n                    turn.listener",
        mutated: "                    turn.listener",
    },
    Mutant {
        breaks: "places: a moved flow that found no port keeps its place",
        file: "datagram.rs",
        original: "                turn.leave((allocation.cluster, &allocation.endpoint));\n                return None;",
        mutated: "                return None;",
    },
    Mutant {
        breaks: "queue: the last to come is served first",
        file: "queue.rs",
        original: "match (line.first(), self.rows[cluster.index()].first) {",
        mutated: "match (line.first(), self.rows[cluster.index()].last) {",
    },
    Mutant {
        breaks: "queue: a newcomer overtakes those who wait",
        file: "allocation.rs",
        original: "let is_new = self.attempt() == 0 && !self.in_turn;",
        mutated: "let is_new = self.attempt() == 9;",
    },
    Mutant {
        breaks: "queue: a place that becomes free is not noticed",
        file: "queue.rs",
        original: "        if queue.is_awaited() {\n            self.look_at(cluster);\n        }",
        mutated: "        let _ = (queue, cluster);",
    },
    Mutant {
        breaks: "queue: a flow of another worker is not called",
        file: "queue.rs",
        original: "                    self.calls.push(worker);",
        mutated: "                    let _ = worker;",
    },
    Mutant {
        breaks: "queue: one that is called and leaves does not pass it on",
        file: "queue.rs",
        original: "        // It may have been called, and then the next must be.\n        self.look_at(cluster);",
        mutated: "",
    },
    Mutant {
        breaks: "queue: the lowest ticket of another worker is overtaken",
        file: "queue.rs",
        original: "(Some(worker), Some(slot)) if worker == self.worker => Next::Own(slot),",
        mutated: "(Some(_), Some(slot)) => Next::Own(slot),",
    },
    Mutant {
        breaks: "queue: who has waited keeps its room in the queue",
        file: "queue.rs",
        original: "        queue.line.waiting.decrement();",
        mutated: "",
    },
    Mutant {
        breaks: "queue: a client that goes away while it waits keeps its place in the line",
        file: "balancer.rs",
        original: "        self.timers.cancel(slot);\n        self.stop_waiting(now, slot);",
        mutated: "        self.timers.cancel(slot);",
    },
    Mutant {
        breaks: "affinity: a decision is kept for ever",
        file: "kept_table.rs",
        original: "if self.entries[place].expires <= now {\n            self.remove_at",
        mutated: "if self.entries[place].expires < Instant::ZERO {\n            self.remove_at",
    },
    Mutant {
        breaks: "affinity: a sliding entry does not slide",
        file: "affinity.rs",
        original: "if kept.sliding_ttl_ms != 0 {",
        mutated: "if kept.sliding_ttl_ms == u32::MAX {",
    },
    Mutant {
        breaks: "affinity: an endpoint that is gone is still used",
        file: "affinity.rs",
        original: "KeptVerdict::Forward(id) => among.find(id).is_some(),",
        mutated: "KeptVerdict::Forward(id) => id >= EndpointId(0) || among.find(id).is_some(),",
    },
    Mutant {
        breaks: "timeouts: progress does not put them off",
        file: "session.rs",
        original: "        self.progressed = now;\n    }\n\n    /// Bytes have",
        mutated: "        let _ = now;\n    }\n\n    /// Bytes have",
    },
    Mutant {
        breaks: "throttle: credit is granted before its time",
        file: "pace.rs",
        original: "Some(self.on_schedule).filter(|&at| at > now)",
        mutated: "Some(self.on_schedule).filter(|&at| at < now)",
    },
    Mutant {
        breaks: "throttle: a source whose time has come is not started again",
        file: "relay.rs",
        original: "self.resumes.is_some_and(|at| at <= step.now)",
        mutated: "self.resumes.is_some_and(|at| at < step.now)",
    },
    Mutant {
        breaks: "timeouts: a flow without an answer waits for ever",
        file: "balancer.rs",
        original: "        ops.push(Op::Connect { link: Link::new(slot, Side::Upstream), address, from });\n        self.set_timer(slot);",
        mutated: "        ops.push(Op::Connect { link: Link::new(slot, Side::Upstream), address, from });",
    },
    Mutant {
        breaks: "transparent: connections leave from clients' addresses where nobody wants that",
        file: "snapshot.rs",
        original: "(self.transparent && one_family)",
        mutated: "(self.transparent || one_family)",
    },
    Mutant {
        breaks: "limits: a denied flow stays counted",
        file: "balancer.rs",
        original: "        ops.push(Op::Refuse { socket, goodbye });\n        listener.give_back(client.ip());",
        mutated: "        ops.push(Op::Refuse { socket, goodbye });",
    },
    Mutant {
        breaks: "drain: what is left at its end is not closed",
        file: "balancer.rs",
        original: "            return Some(CloseReason::DrainTimeout);",
        mutated: "            return None;",
    },
    Mutant {
        breaks: "listeners: what is left of one that is closed goes on",
        file: "balancer/renewal.rs",
        original: "            if is_moved || listener.is_closed() && !before.is_some_and(Listener::is_closed) {",
        mutated: "            if is_moved {",
    },
    Mutant {
        breaks: "listeners: one that is removed goes on accepting",
        file: "balancer/renewal.rs",
        original: "(drain_begins || !listener.is_open())",
        mutated: "drain_begins",
    },
    Mutant {
        breaks: "listeners: one that comes is not waited for at the end",
        file: "balancer/renewal.rs",
        original: "                self.listeners_open += 1;",
        mutated: "                self.listeners_open += 2;",
    },
    Mutant {
        breaks: "datagrams: a reply's sender is not looked at",
        file: "datagram/table.rs",
        original: "flow.port == port && endpoint_of(flow.binding) == endpoint",
        mutated: "flow.port == port",
    },
    Mutant {
        breaks: "datagrams: answers leave from the listener's address",
        file: "datagram.rs",
        original: "(DatagramSocket::Listener(flow.listener), Some(key.local));",
        mutated: "(DatagramSocket::Listener(flow.listener), Some(listener.address.ip()));",
    },
    Mutant {
        breaks: "datagrams: an answered flow in use gives its place",
        file: "datagram/table.rs",
        original: "flow.is_confirmed() && silent >= STALE",
        mutated: "flow.is_confirmed() && silent >= Duration::ZERO",
    },
    Mutant {
        breaks: "datagrams: flows without a reply take the whole table",
        file: "datagram/table.rs",
        original: "self.len == self.capacity || (is_half_full && self.unconfirmed >= share)",
        mutated: "self.len == self.capacity",
    },
    Mutant {
        breaks: "datagrams: a flow needs one reply more than it should",
        file: "datagram.rs",
        original: "if expected > 0 && replies >= expected {",
        mutated: "if expected > 0 && replies > expected {",
    },
    Mutant {
        breaks: "datagrams: a flow that is used ends all the same",
        file: "datagram.rs",
        original: "        if due > turn.now {\n            self.table.set_timer",
        mutated: "        if due == Instant::ZERO {\n            self.table.set_timer",
    },
    Mutant {
        breaks: "datagrams: a port is closed while flows use it",
        file: "datagram/ports.rs",
        original: "left > 0 && self.ports[port.index()].flows == 0 {",
        mutated: "left > 0 {",
    },
    Mutant {
        breaks: "datagrams: the port that was left last is used again first",
        file: "datagram/lane.rs",
        original: "while let Some(opened) = self.left.pop_front() {",
        mutated: "while let Some(opened) = self.left.pop_back() {",
    },
    Mutant {
        breaks: "datagrams: a port that was closed is free",
        file: "datagram/ports.rs",
        original: "entry.state == State::Shared && entry.opening == opening",
        mutated: "entry.opening == opening",
    },
    Mutant {
        breaks: "datagrams: an endpoint does not see the ports that others have opened",
        file: "datagram/ports.rs",
        original: "        if lane.knows_all(self.openings) {",
        mutated: "        lane.learn(self.openings);\n        if lane.knows_all(self.openings) {",
    },
    Mutant {
        breaks: "datagrams: a flow's own port stays open",
        file: "datagram/ports.rs",
        original: "            (0, State::Owned) => self.close(port, ops),",
        mutated: "            (0, State::Owned) => {}",
    },
    Mutant {
        breaks: "datagrams: a flow that got no port keeps its place in the counts",
        file: "datagram.rs",
        original: "                    turn.listener(key.listener).give_back(key.client.ip());\n                    let arrival",
        mutated: "                    let arrival",
    },
    Mutant {
        breaks: "datagrams: a client that was turned away stays counted",
        file: "datagram.rs",
        original: "placed.inspect_err(|_| turn.listener(key.listener).dismiss_client(client))",
        mutated: "placed",
    },
    Mutant {
        breaks: "datagrams: the walk over all flows skips every other",
        file: "datagram.rs",
        original: "self.sweep = Some(number + 1).filter",
        mutated: "self.sweep = Some(number + 2).filter",
    },
    Mutant {
        breaks: "datagrams: a policy that is no table is asked without a flow",
        file: "allocation.rs",
        original: "if among.is_empty() || !slot.is_stateless() {",
        mutated: "if among.endpoints.is_empty() {",
    },
    Mutant {
        breaks: "datagrams: a client at its limit is served without a flow",
        file: "stats.rs",
        original: "                | Self::ClientFlowsMax\n",
        mutated: "",
    },
    Mutant {
        breaks: "datagrams: a client that may not come is served without a flow",
        file: "stats.rs",
        original: "            Self::NotAllowed\n                | Self::Draining",
        mutated: "            Self::Draining",
    },
    Mutant {
        breaks: "access: the smallest address of a denied network may come",
        file: "access.rs",
        original: "partition_point(|change| *change <= address)",
        mutated: "partition_point(|change| *change < address)",
    },
    Mutant {
        breaks: "limits: one client's rate is everybody's",
        file: "limits.rs",
        original: "[hash as usize & mask, (hash >> 32) as usize & mask]",
        mutated: "[hash as usize & mask & 0, (hash >> 32) as usize & mask & 0]",
    },
    Mutant {
        breaks: "limits: a client that is too fast stays counted",
        file: "snapshot.rs",
        original: "        self.dismiss_client(client);\n        Err(reason)",
        mutated: "        Err(reason)",
    },
    Mutant {
        breaks: "limits: a flow that ends stays counted among all",
        file: "snapshot.rs",
        original: "        self.all_flows.remove();",
        mutated: "",
    },
    Mutant {
        breaks: "datagrams: a decision for nobody binds the client",
        file: "datagram.rs",
        original: "Flow::new(turn.now, key, allocation.scope == Scope::None)",
        mutated: "Flow::new(turn.now, key, allocation.scope == Scope::None && false)",
    },
    Mutant {
        breaks: "datagrams: a denial is asked for anew",
        file: "datagram.rs",
        original: "        let ttl = if denied.ttl.is_zero() { idle } else { denied.ttl };",
        mutated: "        let ttl = idle.min(Duration::from_millis(1)).max(Duration::from_nanos(denied.tag.into()));",
    },
    Mutant {
        breaks: "datagrams: a flow that goes on uses another's key",
        file: "datagram/keys.rs",
        original: "        if let Some(key) = came_with {",
        mutated: "        if let Some(key) = came_with.map(|key| key + 1) {",
    },
    Mutant {
        breaks: "datagrams: a listener that drains ends while flows are left",
        file: "datagram/listeners.rs",
        original: "(is_over || turn.listener(listener).flows_active.get() == 0)",
        mutated: "(is_over || self.table.len() == 0)",
    },
    Mutant {
        breaks: "datagrams: flows on a port that failed stay",
        file: "datagram.rs",
        original: "        if self.ports.on_failed(port) {\n            self.sweep_all();\n        }",
        mutated: "        self.ports.on_failed(port);",
    },
    Mutant {
        breaks: "datagrams: a moved flow leaves its load behind",
        file: "datagram.rs",
        original: "        turn.leave((*cluster, endpoint));",
        mutated: "        let _ = (cluster, endpoint);",
    },
    Mutant {
        breaks: "datagrams: ports that nobody uses are never closed",
        file: "datagram.rs",
        original: "again |= self.ports.trim(id, (peak, &settings), turn.ops);",
        mutated: "again |= peak > 1_000_000;",
    },
    Mutant {
        breaks: "datagrams: a flow that is denied by what is kept stays so for longer",
        file: "allocation.rs",
        original: "method.tag, expires.since(request.now));",
        mutated: "method.tag, Duration::ZERO);\n        let _ = expires;",
    },
    Mutant {
        breaks: "limits: a rate has no burst",
        file: "limits.rs",
        original: "(Instant::from_nanos(next) <= now + self.burst).then_some(next)",
        mutated: "(Instant::from_nanos(next) <= now + self.burst / 2).then_some(next)",
    },
    Mutant {
        breaks: "board: what has expired lives again",
        file: "board.rs",
        original: "            && shard.get(now, key).is_some()\n",
        mutated: "            && now > Instant::ZERO\n",
    },
    Mutant {
        breaks: "preread: the bytes that were held are lost",
        file: "relay.rs",
        original: "        if self.outbound == Outbound::Idle && !self.queue.is_empty() {\n            self.send(step);\n        }\n        self.proceed(step);\n    }\n\n    /// Puts the header that tells",
        mutated: "        self.discard(step);\n        self.proceed(step);\n    }\n\n    /// Puts the header that tells",
    },
    Mutant {
        breaks: "preread: the client is waited for as long as it likes",
        file: "session.rs",
        original: "            State::Prereading => (timeouts.preread, CloseReason::IdleTimeout),",
        mutated: "            State::Prereading => (timeouts.preread + timeouts.idle, CloseReason::IdleTimeout),",
    },
    Mutant {
        breaks: "preread: a client may send more than is waited for",
        file: "relay.rs",
        original: "self.queue.bytes() >= bytes_max",
        mutated: "self.queue.bytes() > bytes_max",
    },
    Mutant {
        breaks: "preread: an early end is not noticed",
        file: "balancer.rs",
        original: "Preread::More if relay.has_ended() => Err(KeylessReason::Absent),",
        mutated: "Preread::More if relay.has_ended() && now == Instant::ZERO => Err(KeylessReason::Absent),",
    },
    Mutant {
        breaks: "proxy: what follows a header in its segment is lost",
        file: "balancer/introduction.rs",
        original: "                session.relay_from(Side::Downstream).on_received(rest, &mut step);",
        mutated: "                step.ops.push(Op::Recycle { buffer: rest });",
    },
    Mutant {
        breaks: "proxy: the header is taken for a part of the stream",
        file: "boundary.rs",
        original: "start: self.start + bytes as u16,",
        mutated: "start: self.start,",
    },
    Mutant {
        breaks: "proxy: whoever connects is trusted",
        file: "balancer.rs",
        original: "Some(rule) if !rule.trusts(peer) =>",
        mutated: "Some(rule) if !rule.trusts(peer) && rule.timeout.is_zero() =>",
    },
    Mutant {
        breaks: "proxy: announced clients come that may not",
        file: "balancer/introduction.rs",
        original: "let admitted = if listener.allows(client) {",
        mutated: "let admitted = if listener.allows(client) || !client.is_loopback() {",
    },
    Mutant {
        breaks: "proxy: long headers are given up",
        file: "balancer/introduction.rs",
        original: "            relay.hold_more(listener.preread_bytes_max, &mut step);",
        mutated: "            let _ = (relay, listener, &mut step);",
    },
    Mutant {
        breaks: "proxy: a header is waited for as long as it likes",
        file: "session.rs",
        original: "map_or(timeouts.preread, |rule| rule.timeout)",
        mutated: "map_or(timeouts.preread, |rule| rule.timeout + timeouts.idle)",
    },
    Mutant {
        breaks: "proxy: a header that breaks off is waited for",
        file: "balancer/introduction.rs",
        original: "        if relay.has_ended() {",
        mutated: "        if relay.has_ended() && now == Instant::ZERO {",
    },
    Mutant {
        breaks: "proxy: the peer is taken for the client",
        file: "session.rs",
        original: "            self.peer = Some(core::mem::replace(&mut self.client, client));",
        mutated: "            self.peer = Some(client);",
    },
    Mutant {
        breaks: "proxy: the announced client is not counted",
        file: "balancer/introduction.rs",
        original: "        session.is_counted = true;",
        mutated: "",
    },
    Mutant {
        breaks: "proxy: endpoints are not told of their clients",
        file: "balancer/introduction.rs",
        original: "cluster.proxy.or(by_policy)",
        mutated: "by_policy",
    },
    Mutant {
        breaks: "proxy: an announcement counts as bytes of the stream",
        file: "relay.rs",
        original: "self.announced = header.len();",
        mutated: "",
    },
    Mutant {
        breaks: "proxy: the datagrams of flows that are there have no header",
        file: "datagram.rs",
        original: "if turn.announces(flow.listener) {",
        mutated: "if turn.announces(flow.listener) && !flow.is_confirmed() {",
    },
    Mutant {
        breaks: "proxy: datagrams without a flow have no header",
        file: "datagram.rs",
        original: "                turn.announce(&key);\n",
        mutated: "",
    },
    Mutant {
        breaks: "survey: a flow that has ended is taken for the next in its place",
        file: "datagram/survey.rs",
        original: "is_some_and(|flow| u32::from(flow.stamp) == stamp)",
        mutated: "is_some_and(|flow| u32::from(flow.stamp) >= stamp)",
    },
    Mutant {
        breaks: "swap: flushed decisions hold",
        file: "affinity.rs",
        original: "Some(floor) if generation < floor.flushed => Worth::Nothing,",
        mutated: "Some(floor) if generation == floor.flushed.max(u32::MAX) => Worth::Nothing,",
    },
    Mutant {
        breaks: "swap: the new policy is not asked about decisions of the old",
        file: "allocation.rs",
        original: "        if is_stale {\n",
        mutated: "        if is_stale && request.now == Instant::ZERO {\n",
    },
    Mutant {
        breaks: "swap: a flow that is asked about anew is moved",
        file: "allocation.rs",
        original: "with.or_else(|| cluster.candidates.get(index))",
        mutated: "cluster.candidates.get(index).or(with)",
    },
    Mutant {
        breaks: "trial: a shadow decides",
        file: "trial.rs",
        original: "if slots == 0 || slot_of(flow) >= slots {",
        mutated: "if slots != 0 && slot_of(flow) >= slots {",
    },
    Mutant {
        breaks: "trial: both policies are asked about a canary's flow",
        file: "allocation.rs",
        original: "            return decided;\n",
        mutated: "            let _ = decided;\n",
    },
    Mutant {
        breaks: "passive: an endpoint that is ejected is given new flows",
        file: "snapshot.rs",
        original: "self.up && !self.draining && self.ejected.is_none()",
        mutated: "self.up && !self.draining",
    },
    Mutant {
        breaks: "passive: an endpoint that is ejected loses the flows it has",
        file: "snapshot.rs",
        original: "        state.up || self.candidates",
        mutated: "        state.is_available() || self.candidates",
    },
    Mutant {
        breaks: "passive: flows stay with an endpoint that is down once the others suffice again",
        file: "snapshot.rs",
        original: "(state.endpoint.id, cluster.keeps(state));",
        mutated: "(state.endpoint.id, state.up || cluster.candidates.is_empty());",
    },
    Mutant {
        breaks: "passive: one endpoint more is ejected than may be",
        file: "ejection.rs",
        original: "ejected >= allowed",
        mutated: "ejected > allowed",
    },
    Mutant {
        breaks: "passive: a flow that is reset before an answer is no failure",
        file: "session.rs",
        original: "(CloseReason::UpstreamReset, _) => allocation.endpoint.load.on_broken(now),",
        mutated: "(CloseReason::UpstreamReset, _) => {}",
    },
    Mutant {
        breaks: "passive: endpoints that are down are used before backups",
        file: "eligibility.rs",
        original: "if !backups.is_empty() {",
        mutated: "if !backups.is_empty() && !self.fails_open {",
    },
    Mutant {
        breaks: "growth: an endpoint that has come back has all of its weight at once",
        file: "growth.rs",
        original: "*self = Self { tenths: 1, since: None };",
        mutated: "*self = Self { tenths: STEPS, since: None };",
    },
    Mutant {
        breaks: "growth: a weight grows from when its endpoint was first there",
        file: "growth.rs",
        original: "*self = Self { tenths: 1, since: None };",
        mutated: "*self = Self { tenths: 1, since: self.since };",
    },
    Mutant {
        breaks: "signals: a connection that came about is still being made",
        file: "session.rs",
        original: "            && was_connecting\n",
        mutated: "            && was_connecting\n            && state != State::Established\n",
    },
];

fn all() -> impl Iterator<Item = &'static Mutant> {
    MUTANTS.iter().chain(succession::MUTANTS)
}

/// The one test that may catch a mutant: others in here look at the sources.
const SIMULATION: &str = "every_schedule_keeps_the_contract";

#[test]
fn every_mutant_still_applies() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for mutant in all() {
        let source = fs::read_to_string(sources.join(mutant.file)).expect("a source file");
        let places = source.matches(mutant.original).count();
        assert_eq!(places, 1, "{}: must stand once in {}", mutant.breaks, mutant.file);
    }
}

/// `POINTSMAN_SIM_ONLY` names the beginnings of those to try, with commas between them.
#[test]
#[ignore = "builds the core once per mutant: run it with cargo xtask sim --mutants"]
fn mutants_are_caught() {
    let copy = Copy::make();
    assert!(copy.simulation_passes(), "the unbroken core must pass");
    let named = std::env::var("POINTSMAN_SIM_ONLY").unwrap_or_default();
    let chosen = |mutant: &&Mutant| named.split(',').any(|name| mutant.breaks.starts_with(name));
    let chosen: Vec<_> = all().filter(chosen).collect();
    let survivors: Vec<_> = chosen.iter().filter(|mutant| !copy.is_caught(mutant)).collect();
    let survivors: Vec<_> = survivors.iter().map(|mutant| mutant.breaks).collect();
    println!("{} of {} mutants caught", chosen.len() - survivors.len(), chosen.len());
    assert!(survivors.is_empty(), "not caught: {survivors:#?}");
}

/// A workspace of its own with the core alone in it.
struct Copy {
    root: PathBuf,
}

impl Copy {
    fn make() -> Self {
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
        let manifest = fs::read_to_string(original.join("Cargo.toml")).expect("a manifest");
        let (before, rest) = manifest.split_once("members = [").expect("a list of members");
        let (_, after) = rest.split_once(']').expect("its end");
        copy_dir(&original.join("host/core"), &root.join("host/core"));
        let manifest = format!("{before}members = [\"host/core\"]{after}");
        fs::write(root.join("Cargo.toml"), manifest).expect("a manifest is written");
        fs::copy(original.join("Cargo.lock"), root.join("Cargo.lock")).expect("a lock file");
        Self { root }
    }

    fn is_caught(&self, mutant: &Mutant) -> bool {
        let path = self.root.join("host/core/src").join(mutant.file);
        let source = fs::read_to_string(&path).expect("a source file");
        fs::write(&path, source.replace(mutant.original, mutant.mutated)).expect("it is written");
        let caught = !self.simulation_passes();
        fs::write(&path, source).expect("it is restored");
        println!("{} {}", if caught { "caught  " } else { "SURVIVED" }, mutant.breaks);
        caught
    }

    fn simulation_passes(&self) -> bool {
        let cargo = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO"));
            command.args(arguments).args(["--package", "pointsman-core", "--test", "simulation"]);
            command.current_dir(&self.root).env("CARGO_TARGET_DIR", self.root.join("target"));
            command.env_remove("POINTSMAN_SIM_SEED").output().expect("cargo runs")
        };
        let built = cargo(&["test", "--no-run"]);
        let errors = String::from_utf8_lossy(&built.stderr).into_owned();
        assert!(built.status.success(), "a mutant must compile: {errors}");
        cargo(&["test", SIMULATION]).status.success()
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a file is copied");
        }
    }
}
