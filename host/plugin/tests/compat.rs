//! Stubs of WASI: what guests that ask for it are told, and that it can do no harm.

mod common;

use std::sync::Arc;

use common::{Guest, WIT, candidates, embed, encode, engine, engine_with_log, flow, patient};
use common::{policy_of, until};
use pointsman_core::policy::{Flow, Policy, Source};
use pointsman_core::{Candidates, Instant};
use pointsman_plugin::{Engine, GuestPolicy, LoadError, PolicyStats, Profile};

/// As much of WASI as the guests here use.
const WASI: &str = "
package wasi:io@0.2.0 {
    interface error { resource error; }
    interface poll {
        resource pollable { ready: func() -> bool; }
        poll: func(in: list<borrow<pollable>>) -> list<u32>;
    }
    interface streams {
        use error.{error};
        use poll.{pollable};
        variant stream-error { last-operation-failed(error), closed }
        resource input-stream {
            read: func(len: u64) -> result<list<u8>, stream-error>;
        }
        resource output-stream {
            check-write: func() -> result<u64, stream-error>;
            write: func(contents: list<u8>) -> result<_, stream-error>;
            subscribe: func() -> pollable;
        }
    }
}
package wasi:cli@0.2.0 {
    interface stdin { use wasi:io/streams@0.2.0.{input-stream}; get-stdin: func() -> input-stream; }
    interface stdout {
        use wasi:io/streams@0.2.0.{output-stream};
        get-stdout: func() -> output-stream;
    }
    interface environment { get-arguments: func() -> list<string>; }
    interface exit { exit: func(status: result); }
}
package wasi:clocks@0.2.0 {
    interface monotonic-clock { now: func() -> u64; resolution: func() -> u64; }
    interface wall-clock {
        record datetime { seconds: u64, nanoseconds: u32 }
        now: func() -> datetime;
    }
}
package wasi:random@0.2.0 {
    interface random {
        get-random-u64: func() -> u64;
        get-random-bytes: func(len: u64) -> list<u8>;
    }
}
package wasi:sockets@0.2.0 {
    interface instance-network { resource network; instance-network: func() -> network; }
}
";

/// Every interface of it.
const INTERFACES: [&str; 11] = [
    "io/poll",
    "io/streams",
    "cli/stdin",
    "cli/stdout",
    "cli/environment",
    "cli/exit",
    "clocks/monotonic-clock",
    "clocks/wall-clock",
    "random/random",
    "sockets/instance-network",
    "io/error",
];

/// What a guest imports: the interface, the function, the name it has in the guest, and its type.
type Import = (&'static str, &'static str, &'static str, &'static str);

const STDOUT: Import = ("cli/stdout", "get-stdout", "$stdout", "(result i32)");
const DROP_STREAM: Import = ("io/streams", "[resource-drop]output-stream", "$drop", "(param i32)");

/// A guest that runs `body` for each decision: its `i32` becomes the decision's tag.
fn wasi_guest(imports: &[Import], body: &str) -> Vec<u8> {
    let wanted: String = INTERFACES.map(|it| format!("    import wasi:{it}@0.2.0;\n")).concat();
    let wit = WIT.replacen("    import host;\n", &format!("    import host;\n{wanted}"), 1) + WASI;
    let import = |&(interface, function, name, ty): &Import| {
        format!("(import \"wasi:{interface}@0.2.0\" \"{function}\" (func {name} {ty}))\n")
    };
    let imports: String = imports.iter().map(import).collect();
    let guest = Guest::deciding(&format!("(call $mark {body})"));
    let text = guest.text().replacen("(module", &format!("(module {imports}"), 1);
    encode(&embed(&text, &wit))
}

fn compat() -> Engine {
    engine().of_profile(Profile::Compat).unwrap()
}

/// A guest that is asked.
struct Asked {
    policy: GuestPolicy,
    among: Arc<Candidates>,
    stats: Arc<PolicyStats>,
}

impl Asked {
    fn new(engine: &Engine, imports: &[Import], body: &str) -> Self {
        let module = engine.load(&wasi_guest(imports, body)).unwrap_or_else(|it| panic!("{it}"));
        let (among, stats) = (candidates(1, 3), Arc::default());
        let policy = policy_of(&module, patient(), &stats, &among).unwrap();
        Self { policy, among, stats }
    }

    /// The tag of its decision.
    fn answer(&mut self) -> u32 {
        let decided = self.policy.decide(&flow(), &self.among);
        assert_eq!(decided.source, Source::Plugin);
        decided.decision.method.tag
    }

    /// Whether the decision was the fallback's, since the guest trapped.
    fn traps(&mut self) -> bool {
        let decided = self.policy.decide(&flow(), &self.among);
        decided.source == Source::Fallback && self.stats.snapshot().faults_total() == 1
    }
}

fn answer(imports: &[Import], body: &str) -> u32 {
    Asked::new(&compat(), imports, body).answer()
}

#[test]
fn without_the_profile_wasi_is_refused_and_the_profile_named() {
    let bytes = wasi_guest(&[STDOUT], "(call $stdout)");
    let error = engine().load(&bytes).unwrap_err();
    assert!(matches!(&error, LoadError::Wasi(import) if import.starts_with("wasi:")), "{error}");
    assert!(error.to_string().contains("profile = \"compat\""));
    common::assert_well_put(&error.to_string());
}

#[test]
fn what_is_imported_is_listed() {
    let module = compat().load(&wasi_guest(&[STDOUT], "(call $stdout)")).unwrap();
    let import = "wasi:cli/stdout@0.2.0#get-stdout".to_owned();
    assert!(module.imports().contains(&import), "{:?}", module.imports());
}

#[test]
fn clocks_show_the_time_of_the_call() {
    let now = ("clocks/monotonic-clock", "now", "$now", "(result i64)");
    let mut asked = Asked::new(&compat(), &[now], "(i32.wrap_i64 (call $now))");
    for millis in [77, 78, 4000] {
        let flow = Flow { now: Instant::from_millis(millis), ..flow() };
        let decided = asked.policy.decide(&flow, &asked.among);
        assert_eq!(u64::from(decided.decision.method.tag), millis * 1_000_000);
    }
    let now = ("clocks/wall-clock", "now", "$now", "(param i32)");
    let body = |place: u32| {
        format!("(block (result i32) (call $now (i32.const 512)) (i32.load (i32.const {place})))")
    };
    assert_eq!(answer(&[now], &body(512)), 0);
    assert_eq!(answer(&[now], &body(520)), 77_000_000);
}

#[test]
fn random_numbers_follow_each_other_the_same_way_in_each_instance() {
    let random = ("random/random", "get-random-u64", "$random_bits", "(result i64)");
    let engine = compat();
    let mut asked =
        [(); 2].map(|()| Asked::new(&engine, &[random], "(i32.wrap_i64 (call $random_bits))"));
    let [one, other] = asked.each_mut().map(|it| [it.answer(), it.answer(), it.answer()]);
    assert_eq!(one, other);
    assert!(one[0] != one[1] && one[1] != one[2]);
}

#[test]
fn random_bytes_are_as_many_as_asked_for_within_reason() {
    let bytes = ("random/random", "get-random-bytes", "$bytes", "(param i64 i32)");
    let body = |count: u64| {
        format!(
            "(block (result i32) (call $bytes (i64.const {count}) (i32.const 512))
               (i32.load (i32.const 516)))"
        )
    };
    assert_eq!(answer(&[bytes], &body(0)), 0);
    assert_eq!(answer(&[bytes], &body(256)), 256);
    assert!(Asked::new(&compat(), &[bytes], &body(1 << 40)).traps());
}

#[test]
fn output_is_taken_and_forgotten() {
    let check = ("io/streams", "[method]output-stream.check-write", "$check", "(param i32 i32)");
    let room = "(block (result i32) (call $check (call $stdout) (i32.const 512))
                  (i32.load (i32.const 520)))";
    assert_eq!(answer(&[STDOUT, check], room), 4096);

    let write = ("io/streams", "[method]output-stream.write", "$write", "(param i32 i32 i32 i32)");
    let body = "(block (result i32)
        (call $write (call $stdout) (i32.const 0) (i32.const 4096) (i32.const 512))
        (i32.load8_u (i32.const 512)))";
    assert_eq!(answer(&[STDOUT, write], body), 0);
}

#[test]
fn input_is_at_its_end() {
    let stdin = ("cli/stdin", "get-stdin", "$stdin", "(result i32)");
    let read = ("io/streams", "[method]input-stream.read", "$read", "(param i32 i64 i32)");
    let body = "(block (result i32)
        (call $read (call $stdin) (i64.const 10) (i32.const 512))
        (i32.add
          (i32.mul (i32.load8_u (i32.const 512)) (i32.const 10))
          (i32.load8_u (i32.const 516))))";
    // An error, and of its cases the second.
    assert_eq!(answer(&[stdin, read], body), 11);
}

#[test]
fn whoever_waits_is_ready() {
    let subscribe =
        ("io/streams", "[method]output-stream.subscribe", "$subscribe", "(param i32) (result i32)");
    let ready = ("io/poll", "[method]pollable.ready", "$ready", "(param i32) (result i32)");
    let poll = ("io/poll", "poll", "$poll", "(param i32 i32 i32)");
    let is_ready = "(call $ready (call $subscribe (call $stdout)))";
    assert_eq!(answer(&[STDOUT, subscribe, ready], is_ready), 1);
    let both = "(block (result i32)
        (i32.store (i32.const 600) (call $subscribe (call $stdout)))
        (i32.store (i32.const 604) (call $subscribe (call $stdout)))
        (call $poll (i32.const 600) (i32.const 2) (i32.const 512))
        (i32.add
          (i32.mul (i32.load (i32.const 516)) (i32.const 10))
          (i32.load offset=4 (i32.load (i32.const 512)))))";
    assert_eq!(answer(&[STDOUT, subscribe, poll], both), 21);
}

#[test]
fn there_are_no_arguments() {
    let arguments = ("cli/environment", "get-arguments", "$arguments", "(param i32)");
    let body = "(block (result i32)
        (call $arguments (i32.const 512)) (i32.load (i32.const 516)))";
    assert_eq!(answer(&[arguments], body), 0);
}

#[test]
fn handles_may_be_had_often_but_not_hoarded() {
    let take = |and_then: &str| {
        format!(
            "(block (result i32)
               (loop $again
                 (call $stdout) {and_then}
                 (global.set $turn (i32.add (global.get $turn) (i32.const 1)))
                 (br_if $again (i32.lt_u (global.get $turn) (i32.const 2000))))
               (global.get $turn))"
        )
    };
    assert_eq!(answer(&[STDOUT, DROP_STREAM], &take("(call $drop)")), 2000);
    assert!(Asked::new(&compat(), &[STDOUT], &take("(drop)")).traps());
}

#[test]
fn an_exit_and_what_has_no_harmless_answer_are_traps_with_a_name() {
    let exit = ("cli/exit", "exit", "$exit", "(param i32)");
    let network = ("sockets/instance-network", "instance-network", "$network", "(result i32)");
    let exits = "(block (result i32) (call $exit (i32.const 0)) (i32.const 0))";
    for (import, body, name) in [
        (exit, exits, "wasi:cli/exit@0.2.0#exit"),
        (network, "(call $network)", "wasi:sockets/instance-network@0.2.0#instance-network"),
    ] {
        let (engine, log) = engine_with_log();
        let engine = engine.of_profile(Profile::Compat).unwrap();
        assert!(Asked::new(&engine, &[import], body).traps());
        let mut told = String::new();
        until("it is told of", || {
            told.extend(log.try_iter().map(|line| line.message));
            told.contains(name)
        });
    }
}

#[test]
fn an_engine_has_one_engine_for_each_profile() {
    let strict = engine();
    let compat = strict.of_profile(Profile::Compat).unwrap();
    assert!(compat.load(&wasi_guest(&[STDOUT], "(call $stdout)")).is_ok());
    assert!(strict.of_profile(Profile::Strict).unwrap().load(&Guest::default().module()).is_ok());
    assert!(strict.load(&wasi_guest(&[STDOUT], "(call $stdout)")).is_err());
}
