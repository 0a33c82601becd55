//! Proof that the simulation can fail: the core is broken on purpose, one way after another, in a
//! copy, and every break must be caught.

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
        original: "if self.inbound == Inbound::Paused && little_waits {",
        mutated: "if self.inbound == Inbound::Paused {",
    },
    Mutant {
        breaks: "back-pressure: a source of single bytes is never paused",
        file: "relay.rs",
        original: "self.waiting_buffers() >= WAITING_MAX {",
        mutated: "self.waiting_buffers() >= u32::MAX {",
    },
    Mutant {
        breaks: "progress: a paused source is never started again after a send",
        file: "relay.rs",
        original: "            self.send(step);\n        }\n        self.proceed(step);",
        mutated: "            self.send(step);\n        }",
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
        original: "        session.tried.push(session.allocation.endpoint.id);",
        mutated: "",
    },
    Mutant {
        breaks: "load: a failed endpoint keeps the flow it lost",
        file: "balancer.rs",
        original: "        session.allocation.endpoint.load.on_flow_ended();\n        allocation",
        mutated: "        allocation",
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
        original: "        self.progressed = now;\n    }\n\n    /// Passes on",
        mutated: "        let _ = now;\n    }\n\n    /// Passes on",
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
        original: "                ops.push(Op::Connect { link: Link::new(slot, Side::Upstream), address });\n                self.set_timer(slot);",
        mutated: "                ops.push(Op::Connect { link: Link::new(slot, Side::Upstream), address });",
    },
    Mutant {
        breaks: "limits: a denied flow stays counted",
        file: "balancer.rs",
        original: "        ops.push(Op::Refuse { socket, goodbye });\n        listener.flows_active.decrement();",
        mutated: "        ops.push(Op::Refuse { socket, goodbye });",
    },
    Mutant {
        breaks: "drain: what is left at its end is not closed",
        file: "balancer.rs",
        original: "            return Some(CloseReason::DrainTimeout);",
        mutated: "            return None;",
    },
];

#[test]
fn every_mutant_still_applies() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for mutant in MUTANTS {
        let source = fs::read_to_string(sources.join(mutant.file)).expect("a source file");
        let places = source.matches(mutant.original).count();
        assert_eq!(places, 1, "{}: must stand once in {}", mutant.breaks, mutant.file);
    }
}

#[test]
#[ignore = "builds the core once per mutant: run it with cargo xtask sim --mutants"]
fn mutants_are_caught() {
    let copy = Copy::make();
    assert!(copy.simulation_passes(), "the unbroken core must pass");
    let survivors: Vec<_> = MUTANTS.iter().filter(|mutant| !copy.is_caught(mutant)).collect();
    let survivors: Vec<_> = survivors.iter().map(|mutant| mutant.breaks).collect();
    println!("{} of {} mutants caught", MUTANTS.len() - survivors.len(), MUTANTS.len());
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
        cargo(&["test"]).status.success()
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
