//! Breaks of where datagrams leave from towards endpoints.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        breaks: "sources: flows share a port of ours where each has its client's address",
        file: "datagram/ports.rs",
        original: "self.settings.port_per_flow || self.from.is_some()",
        mutated: "self.settings.port_per_flow",
    },
    Mutant {
        breaks: "sources: a flow's own port has an address of ours",
        file: "datagram/ports.rs",
        original: "let from = wish.from.filter(|_| connected);",
        mutated: "let from = wish.from.filter(|_| !connected);",
    },
    Mutant {
        breaks: "sources: a client's address that cannot be had keeps others from their ports",
        file: "datagram/ports.rs",
        original: "        if !is_lent {",
        mutated: "        if !is_lent || true {",
    },
    Mutant {
        breaks: "sources: a client has several flows that only its address names",
        file: "datagram.rs",
        original: "allocation.scope == Scope::None && from.is_none()",
        mutated: "allocation.scope == Scope::None",
    },
    Mutant {
        breaks: "sources: datagrams without a flow leave from our address",
        file: "datagram/sources.rs",
        original: "from.is_none().then(|| self.wish(",
        mutated: "from.is_none_or(|_| true).then(|| self.wish(",
    },
    Mutant {
        breaks: "sources: a flow that moves leaves from our address",
        file: "datagram/sources.rs",
        original: "        Wish { from, flows, ..self.wish(",
        mutated: "        Wish { from: from.filter(|_| flows % 2 == 0), flows, ..self.wish(",
    },
    Mutant {
        breaks: "sources: a flow whose port could not be opened waits for the walk",
        file: "datagram.rs",
        original: "(true, Some(number)) => self.end(turn, number, CloseReason::Descriptors),",
        mutated: "(true, Some(_)) => self.sweep_all(),",
    },
    Mutant {
        breaks: "sources: clients' addresses find their numbers taken",
        file: "datagram/ports.rs",
        original: "makes_way: self.makes_way && !connected",
        mutated: "makes_way: false && !connected",
    },
];
