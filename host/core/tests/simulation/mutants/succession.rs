//! Breaks of what happens between two processes, one of which goes on with what the other has.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        breaks: "handing over: what comes of the last datagrams is not waited for",
        file: "balancer/handing.rs",
        original: "            Handing::Holding => {\n                ops.push(Op::Hold);\n                self.handing = Handing::Settling;\n            }\n            Handing::Settling => {",
        mutated: "            Handing::Holding | Handing::Settling => {",
    },
    Mutant {
        breaks: "handing over: time goes on for what is about to leave",
        file: "balancer.rs",
        original: "        if !self.is_handing_over() {",
        mutated: "        if !self.is_giving() || self.is_handing_over() {",
    },
    Mutant {
        breaks: "handing over: an endpoint keeps the load of flows that went",
        file: "datagram/handing.rs",
        original: "            turn.leave((bound.cluster, &bound.endpoint));",
        mutated: "",
    },
    Mutant {
        breaks: "handing over: limits keep counting flows that went",
        file: "datagram/handing.rs",
        original: ".give_back(flow.key(details.as_ref()).client.ip());",
        mutated: ".dismiss_client(flow.key(details.as_ref()).client.ip());",
    },
    Mutant {
        breaks: "handing over: a port stays where its flows were",
        file: "datagram/ports.rs",
        original: "        *flows -= 1;\n        if *flows == 0 {",
        mutated: "        *flows -= 1;\n        if *flows == u32::MAX {",
    },
    Mutant {
        breaks: "handing over: flows whose port could not be opened go over",
        file: "datagram/handing.rs",
        original: "flow.port.0 != NONE && self.ports.has_failed(flow.port)",
        mutated: "flow.port.0 == NONE && self.ports.has_failed(flow.port)",
    },
    Mutant {
        breaks: "handing over: those without a reply come first",
        file: "datagram/table.rs",
        original: "flow.is_live() && flow.is_confirmed() && is_wanted(flow.listener)",
        mutated: "flow.is_live() && is_wanted(flow.listener)",
    },
    Mutant {
        breaks: "handing over: the next slice waits until something happens",
        file: "balancer.rs",
        original: "self.sweep.next.is_some() || self.is_giving()",
        mutated: "self.sweep.next.is_some()",
    },
    Mutant {
        breaks: "handing over: the first slice is taken for all",
        file: "balancer/handing.rs",
        original: "        if steps == 0 {",
        mutated: "        if steps == 0 && giving.handed.ports.is_empty() {",
    },
    Mutant {
        breaks: "handing over: a slice has no end",
        file: "datagram/table.rs",
        original: "            *steps -= 1;\n            let number = walk.entry;",
        mutated: "            let number = walk.entry;",
    },
    Mutant {
        breaks: "handing over: a slice tells again of the decisions of the one before",
        file: "affinity/handing.rs",
        original: "        *place = end;",
        mutated: "        *place = end.min(1);",
    },
    Mutant {
        breaks: "taking over: limits do not count the flows",
        file: "datagram/taking.rs",
        original: "        turn.listener(listener).take_in(client.ip());",
        mutated: "",
    },
    Mutant {
        breaks: "taking over: an endpoint's load does not count the flows",
        file: "datagram/taking.rs",
        original: "        endpoint.load.on_flow_taken_over();",
        mutated: "",
    },
    Mutant {
        breaks: "taking over: a client's flows are counted for nobody",
        file: "snapshot.rs",
        original: "            counts.add(client);",
        mutated: "            let _ = (client, counts);",
    },
    Mutant {
        breaks: "taking over: flows begin anew",
        file: "datagram/taking.rs",
        original: "        flow.set_ages(now, handed.age, handed.silent);",
        mutated: "",
    },
    Mutant {
        breaks: "taking over: a flow with a reply counts as one without",
        file: "datagram/taking.rs",
        original: "                self.table.on_confirmed(number);",
        mutated: "",
    },
    Mutant {
        breaks: "taking over: a hidden flow gets its client's next datagram",
        file: "datagram/taking.rs",
        original: "Flow::new(now, key, handed.hidden)",
        mutated: "Flow::new(now, key, false)",
    },
    Mutant {
        breaks: "taking over: endpoints do not learn of the ports that came",
        file: "datagram/taking.rs",
        original: "        self.ports.on_flow_taken_over(*port, self.bindings.lane(binding));",
        mutated: "",
    },
    Mutant {
        breaks: "taking over: a port that came is free for the endpoint of its flow",
        file: "datagram/lane.rs",
        original: "            if met == opening {",
        mutated: "            if met == opening && opening == u64::MAX {",
    },
    Mutant {
        breaks: "taking over: endpoints learn in any order of the ports that came",
        file: "datagram/taking.rs",
        original: "        self.bindings.settle_lanes();",
        mutated: "",
    },
    Mutant {
        breaks: "taking over: flows of an endpoint that is down stay in any case",
        file: "datagram/taking.rs",
        original: "OnEndpointDown::Drop | OnEndpointDown::Reset if !serves => Err(Untaken::EndpointDown),",
        mutated: "OnEndpointDown::Reset if !serves => Err(Untaken::EndpointDown),",
    },
    Mutant {
        breaks: "taking over: nobody looks for those that have to be given another endpoint",
        file: "datagram/taking.rs",
        original: "        if !self.bindings.of_flow(binding).serves {\n            self.sweep_all();\n        }",
        mutated: "",
    },
    Mutant {
        breaks: "taking over: a kept decision lives as long as any can",
        file: "affinity/handing.rs",
        original: "now + handed.remaining.min(LONGEST)",
        mutated: "now + handed.remaining.max(LONGEST)",
    },
    Mutant {
        breaks: "taking over: other workers are not told of kept decisions",
        file: "affinity/handing.rs",
        original: "            board.put(now, key, kept, expires);",
        mutated: "            let _ = board;",
    },
    Mutant {
        breaks: "taking over: decisions that no longer hold are kept again",
        file: "affinity/handing.rs",
        original: "it.flushed.max(it.stale)",
        mutated: "it.flushed.min(it.stale)",
    },
];
