//! Another module takes a policy's place while traffic goes on.

mod support;

#[path = "../../plugin/tests/common/mod.rs"]
mod guests;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use guests::Guest;
use pointsman::swap::answer::SwapAnswer;
use support::policy::{Traffic, policy, text, write};
use support::raw::config_with_policy;
use support::{Balancer, Client, Endpoint, ask_once, eventually};
use tempfile::TempDir;

/// Deadlines that no sound guest misses, however busy the machine.
const PATIENT: &str = "decide_deadline_ms = 5000\nconfigure_deadline_ms = 20000\n";

/// A chooser of one endpoint.
fn always(endpoint: u32) -> Vec<u8> {
    Guest::deciding(&format!("(call $forward (i32.const {endpoint}))")).component()
}

/// One that decides like `always(1)` but traps for each flow that comes with traffic, and not in a
/// rehearsal: flows of that come from addresses that are kept for documentation.
fn traps_with_traffic() -> Vec<u8> {
    let body = "(if (i64.eq (i64.and (local.get $client_low) (i64.const 0xff000000))
                  (i64.const 0x7f000000)) (then unreachable))
                (call $forward (i32.const 1))";
    Guest::deciding(body).component()
}

/// Three endpoints behind the policy `mine`, which begins with `always(0)`.
struct Scene {
    endpoints: Vec<Endpoint>,
    balancer: Balancer,
    folder: TempDir,
}

impl Scene {
    fn start(more: &str) -> Self {
        Self::start_with("workers = 2", &always(0), more)
    }

    fn start_with(top: &str, first: &[u8], more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let first = write(folder.path(), "first.wasm", first);
        let endpoints: Vec<_> = (0..3).map(|_| Endpoint::start()).collect();
        let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        let config = config_with_policy(top, "", "mine", &addresses);
        let balancer =
            Balancer::start(&(config + &policy("mine", &first, &format!("{PATIENT}{more}"))));
        Self { endpoints, balancer, folder }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        write(self.folder.path(), name, bytes)
    }

    fn web(&self) -> SocketAddr {
        self.balancer.address("web")
    }

    fn endpoint(&self, place: usize) -> SocketAddr {
        self.endpoints[place].address
    }

    fn assert_decides(&self, place: usize) {
        let web = self.web();
        for _ in 0..4 {
            assert_eq!(ask_once(web).expect("an answer"), self.endpoint(place));
        }
    }

    /// The file is refused with these words, and everything is as before.
    fn assert_refused(&self, file: &Path, parts: &[&str]) {
        let before = self.balancer.listed();
        let refused = self.balancer.swaps("refused");
        let (code, line) = self.balancer.refusal(&["swap", "web", text(file)]);
        assert_eq!(code, 2, "{line}");
        for part in parts {
            assert!(line.contains(part), "{part} is not in: {line}");
        }
        let after = self.balancer.listed();
        assert_eq!((after.generation, &after.digest), (before.generation, &before.digest));
        assert!(self.balancer.swaps("refused") > refused);
        self.assert_decides(0);
    }
}

#[test]
fn a_swap_under_traffic_loses_no_flow_and_moves_none() {
    let scene = Scene::start("");
    let web = scene.web();
    let mut old: Vec<_> = (0..8).map(|_| Client::connect(web).expect("a connection")).collect();
    for client in &mut old {
        assert_eq!(client.ask("before").expect("an answer"), scene.endpoint(0));
    }
    let traffic = Traffic::start(web, 2);
    let file = scene.file("second.wasm", &always(1));
    let answer = scene.balancer.swap(&file);
    assert_eq!((answer.generation, answer.workers, answer.acknowledged), (2, 2, 2));
    assert_eq!((&*answer.shape, &*answer.outcome), ("chooser", "swapped"));
    assert!(answer.pause_max_ns > 0);
    scene.assert_decides(1);
    assert!(traffic.stop() > 0);
    for client in &mut old {
        assert_eq!(client.ask("after").expect("an answer"), scene.endpoint(0));
    }
    let listed = scene.balancer.listed();
    assert_eq!(listed.digest.as_deref(), Some(&*answer.digest));
    assert_eq!((listed.generation, listed.faults), (2, 0));
    assert_eq!(scene.balancer.swaps("swapped"), 1.0);
    assert_eq!(scene.balancer.metric("pointsman_policy_generation{cluster=\"web\"}"), 2.0);
    assert!(scene.balancer.metric("pointsman_swap_pause_seconds_max{cluster=\"web\"}") > 0.0);
    let table = scene.balancer.policy(&["list"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains(&answer.digest[..12]));
}

#[test]
fn a_file_that_is_no_good_is_refused_and_nothing_changes() {
    let scene = Scene::start("config = \"good\"");
    let cases: [(&str, Vec<u8>, &[&str]); 7] = [
        ("text", b"I am text".to_vec(), &["not a WebAssembly file but a text"]),
        ("empty", Vec::new(), &["not a WebAssembly file but empty"]),
        ("cut", always(1)[..200].to_vec(), &["the file is refused", "not a WebAssembly file"]),
        (
            "trap",
            Guest::deciding("unreachable").component(),
            &["policy \"mine\"", "trapped with recent flow 1 of", "(trap)"],
        ),
        ("nobody", always(9), &["policy \"mine\"", "gave an answer that is none", "(answer)"]),
        (
            "config",
            Guest::configuring(
                "(i32.store8 (i32.const 2048) (i32.const 1))
                 (i32.store (i32.const 2052) (local.get $config))
                 (i32.store (i32.const 2056) (local.get $length))
                 (i32.const 2048)",
            )
            .component(),
            &["policy \"mine\": the policy refuses its configuration", "good"],
        ),
        (
            "deaf",
            Guest::hearing("unreachable").component(),
            &["policy \"mine\"", "in `endpoints-changed` (trap"],
        ),
    ];
    for (name, bytes, parts) in cases {
        let file = scene.file(&format!("{name}.wasm"), &bytes);
        scene.assert_refused(&file, parts);
    }
    let large = scene.folder.path().join("large.wasm");
    fs::File::create(&large).and_then(|file| file.set_len(100 << 20)).expect("a large file");
    let (code, line) = scene.balancer.refusal(&["swap", "web", text(&large)]);
    assert_eq!(code, 2);
    assert!(line.contains("104857600 bytes are more than the 16777216 allowed"), "{line}");
    let (code, line) = scene.balancer.post("/v1/clusters/web/policy", b"I am text");
    assert_eq!(code, 422, "{line}");
}

#[test]
fn what_is_asked_of_the_wrong_cluster_is_told_so() {
    let scene = Scene::start("");
    let file = scene.file("second.wasm", &always(1));
    let (code, line) = scene.balancer.refusal(&["swap", "wbe", text(&file)]);
    assert_eq!((code, &*line), (2, "no cluster is named \"wbe\"; did you mean \"web\"?"));
    let (code, line) = scene.balancer.refusal(&["rollback", "web"]);
    assert!(line.contains("there is nothing to go back to"), "{line}");
    assert_eq!(code, 1);
    let (code, line) = scene.balancer.refusal(&["promote", "web"]);
    assert!(line.contains("no policy is on trial"), "{line}");
    assert_eq!(code, 1);
    let (code, line) = scene.balancer.refusal(&["swap", "web", "/nowhere/x.wasm"]);
    assert!(line.starts_with("/nowhere/x.wasm: cannot be read"), "{line}");
    assert_eq!(code, 2);
}

#[test]
fn a_guest_that_never_returns_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = write(folder.path(), "first.wasm", &always(0));
    let endpoint = Endpoint::start();
    let config = config_with_policy("workers = 1", "", "mine", &[endpoint.address]);
    let hasty = "decide_deadline_ms = 20\nconfigure_deadline_ms = 1000";
    let balancer = Balancer::start(&(config + &policy("mine", &first, hasty)));
    let body = "(loop $for_ever (br $for_ever)) unreachable";
    let file = write(folder.path(), "loop.wasm", &Guest::deciding(body).component());
    let (code, line) = balancer.refusal(&["swap", "web", text(&file)]);
    assert!(line.contains("missed its deadline with recent flow 1"), "{line}");
    assert_eq!(code, 2);
    let file = write(folder.path(), "starts.wasm", &Guest::configuring(body).component());
    let (_, line) = balancer.refusal(&["swap", "web", text(&file)]);
    assert!(line.contains("in `configure` (deadline"), "{line}");
    assert_eq!(ask_once(balancer.address("web")).expect("an answer"), endpoint.address);
}

#[test]
fn compiling_may_not_take_for_ever() {
    let scene = Scene::start("");
    // One enormous function, whose values all live to its end.
    let mut bomb = String::from("(func $bomb (param i64) (result i64)\n");
    const LOCALS: usize = 2_000;
    for _ in 0..LOCALS {
        bomb.push_str("(local i64)\n");
    }
    for turn in 0..40 {
        for local in 0..LOCALS {
            let (a, b) = ((local * 7 + turn) % LOCALS, (local * 13 + turn * 31) % LOCALS);
            let _ = writeln!(
                bomb,
                "(if (i64.eqz (local.get {a})) (then (local.set {local} (i64.mul (i64.add \
                 (local.get {a}) (local.get {b})) (local.get 0)))))"
            );
        }
    }
    bomb.push_str("(local.get 1))");
    let file = scene.file("bomb.wasm", &Guest::default().with_fields(&bomb).component());
    let traffic = Traffic::start(scene.web(), 1);
    scene.assert_refused(&file, &["the file is refused: compiling it takes more than"]);
    assert!(traffic.stop() > 0);
}

#[test]
fn a_rollback_brings_back_what_was_and_so_does_another() {
    let scene = Scene::start("");
    scene.balancer.swap(&scene.file("second.wasm", &always(1)));
    let answer: SwapAnswer = scene.balancer.policy_json(&["rollback", "web"]);
    assert_eq!((&*answer.outcome, answer.generation), ("rolled-back", 3));
    scene.assert_decides(0);
    let answer: SwapAnswer = scene.balancer.policy_json(&["rollback", "web"]);
    assert_eq!(answer.generation, 4);
    scene.assert_decides(1);
    assert_eq!(scene.balancer.swaps("rolled-back"), 2.0);
}

/// Goes on to the next endpoint with each flow, from where its predecessor was.
fn remembering() -> Guest {
    let mut guest = Guest::remembering();
    guest.answer = "(global.set $turn (i32.add (global.get $turn) (i32.const 1)))
        (call $forward (i32.rem_u (global.get $turn) (i32.const 3)))"
        .into();
    guest
}

#[test]
fn a_successor_goes_on_where_its_predecessor_was() {
    let scene = Scene::start_with("workers = 1", &remembering().component(), "");
    let web = scene.web();
    let next = || ask_once(web).expect("an answer");
    assert_eq!([next(), next()], [scene.endpoint(1), scene.endpoint(2)]);
    scene
        .balancer
        .swap(&scene.file("second.wasm", &remembering().with_fields("(func)").component()));
    assert_eq!([next(), next()], [scene.endpoint(0), scene.endpoint(1)]);
}

#[test]
fn a_rollback_to_one_that_does_not_understand_its_successor_begins_anew() {
    let mut first = remembering().with_fields("(data (i32.const 100) \"new\")");
    first.beside.restore = Some("(call $refuse (i32.const 100) (i32.const 3))".into());
    let first = first.component();
    let scene = Scene::start_with("workers = 1", &first, "");
    let web = scene.web();
    let next = || ask_once(web).expect("an answer");
    assert_eq!(next(), scene.endpoint(1));
    scene.balancer.swap(&scene.file("second.wasm", &remembering().component()));
    assert_eq!(next(), scene.endpoint(2));
    // A swap to it is refused, and nothing has changed.
    let file = scene.file("again.wasm", &first);
    let (_, line) = scene.balancer.refusal(&["swap", "web", text(&file)]);
    assert!(line.contains("the policy refuses its predecessor's state: new"), "{line}");
    assert_eq!(next(), scene.endpoint(0));
    let _: SwapAnswer = scene.balancer.policy_json(&["rollback", "web"]);
    assert_eq!(next(), scene.endpoint(1));
}

#[test]
fn a_module_that_fails_with_traffic_rolls_back_by_itself_and_stays_out() {
    let scene = Scene::start("rollback_faults = 3\nrollback_window_ms = 600000\n");
    let file = scene.file("bad.wasm", &traps_with_traffic());
    let bad = scene.balancer.swap(&file);
    let web = scene.web();
    eventually("the module before decides again", || {
        ask_once(web).expect("every flow is served");
        scene.balancer.listed().generation == 3
    });
    scene.assert_decides(0);
    assert_eq!(scene.balancer.swaps("rolled-back-by-itself"), 1.0);
    let (code, line) = scene.balancer.refusal(&["swap", "web", text(&file)]);
    assert!(line.starts_with(&bad.digest[..12]) && line.contains("--lift-quarantine"), "{line}");
    assert_eq!(code, 1);
    let (_, line) = scene.balancer.refusal(&["rollback", "web"]);
    assert!(line.contains("--lift-quarantine"), "{line}");
    // With another chance it is rehearsed, on the very flows that it has failed.
    let (_, line) = scene.balancer.refusal(&["swap", "web", text(&file), "--lift-quarantine"]);
    assert!(line.contains("trapped with recent flow"), "{line}");
}

#[test]
fn a_bad_module_that_was_swapped_in_twice_gives_way_to_the_one_before_it() {
    let scene = Scene::start("rollback_faults = 3\nrollback_window_ms = 600000\n");
    let file = scene.file("bad.wasm", &traps_with_traffic());
    let first = scene.balancer.listed().digest;
    (0..2).for_each(|_| drop(scene.balancer.swap(&file)));
    assert_eq!(scene.balancer.listed().previous, first);
    let web = scene.web();
    eventually("the module before decides again", || {
        ask_once(web).expect("every flow is served");
        scene.balancer.listed().digest == first
    });
    scene.assert_decides(0);
}

#[test]
fn faults_that_come_late_are_none_of_the_swap() {
    let scene = Scene::start("rollback_faults = 1\nrollback_window_ms = 1\n");
    scene.balancer.swap(&scene.file("bad.wasm", &traps_with_traffic()));
    eventually("its probation is over", || !scene.balancer.listed().on_probation);
    let web = scene.web();
    eventually("it has failed again and again", || {
        ask_once(web).expect("every flow is served");
        scene.balancer.listed().faults > 5
    });
    assert_eq!(scene.balancer.listed().generation, 2);
}

#[test]
fn a_watched_file_is_swapped_in_when_it_has_changed() {
    let scene = Scene::start("watch = true");
    let file = scene.folder.path().join("first.wasm");
    let put = |bytes: &[u8]| {
        let new = scene.file("new", bytes);
        fs::rename(new, &file).expect("the file is replaced");
    };
    put(b"I am text");
    eventually("it is refused", || scene.balancer.log().contains("is not swapped in"));
    assert_eq!(scene.balancer.listed().generation, 1);
    put(&always(2));
    eventually("it is swapped in", || scene.balancer.listed().generation == 2);
    scene.assert_decides(2);
    assert_eq!(scene.balancer.swaps("refused"), 1.0, "what is refused is not tried again");
    fs::remove_file(&file).expect("the file is removed");
    eventually("it is missed", || scene.balancer.log().contains("the watched file is gone"));
    scene.assert_decides(2);
}

#[test]
fn a_file_that_breaks_off_on_the_way_is_not_called_too_large() {
    let scene = Scene::start("");
    let mut stream = UnixStream::connect(scene.balancer.socket()).expect("a connection");
    let head = "POST /v1/clusters/web/policy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\n\r\nno length\r\n";
    stream.write_all(head.as_bytes()).expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("did not come whole"), "{answer}");
}

#[test]
fn a_policy_is_swapped_in_all_clusters_that_use_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = write(folder.path(), "first.wasm", &always(0));
    let endpoint = Endpoint::start();
    let config = config_with_policy("workers = 1", "", "mine", &[endpoint.address]);
    let other = format!(
        "[[clusters]]\nname = \"other\"\npolicy = \"mine\"\nendpoints = [{{ address = \"{}\" }}]\n",
        endpoint.address
    );
    let policy = policy("mine", &first, PATIENT);
    let balancer = Balancer::start(&format!("{config}{other}{policy}"));
    // Forwards to endpoint 0 too, by other means.
    let second = Guest::deciding("nop (call $forward (i32.const 0))").component();
    let (code, answer) = balancer.post("/v1/policies/mine", &second);
    assert_eq!(code, 200, "{answer}");
    let answers: Vec<SwapAnswer> = serde_json::from_str(&answer).expect("answers");
    let clusters: Vec<_> = answers.iter().map(|answer| &*answer.cluster).collect();
    assert_eq!(clusters, ["web", "other"]);
    assert!(answers.iter().all(|answer| answer.generation == 2));
    let (code, answer) = balancer.post("/v1/policies/mien", &second);
    assert_eq!(code, 404);
    assert!(answer.contains("did you mean \"mine\"?"), "{answer}");
}

/// Keeps each client's decision; says on which endpoint two clients' decisions are kept before and
/// after a swap to another endpoint.
fn kept_over_a_swap(on_swap: &str) -> (Scene, [SocketAddr; 2]) {
    let scene = Scene::start(&format!("on_swap = \"{on_swap}\"\n"));
    let keeping = |endpoint: u32| {
        // Scope `client` is the second; the record's fields follow the endpoint.
        Guest::deciding(&format!(
            "(i32.store8 (i32.const 1032) (i32.const 1)) (call $forward (i32.const {endpoint}))"
        ))
        .component()
    };
    scene.balancer.swap(&scene.file("one.wasm", &keeping(1)));
    let web = scene.web();
    let before = ask_once(web).expect("an answer");
    scene.balancer.swap(&scene.file("two.wasm", &keeping(2)));
    let after = ask_once(web).expect("an answer");
    (scene, [before, after])
}

#[test]
fn kept_decisions_hold_over_a_swap_that_keeps_them() {
    let (scene, met) = kept_over_a_swap("keep");
    assert_eq!(met, [scene.endpoint(1), scene.endpoint(1)]);
    assert!(scene.balancer.decisions("web", "cache") >= 1.0);
}

#[test]
fn kept_decisions_are_asked_about_again_where_a_swap_revalidates_them() {
    let (scene, met) = kept_over_a_swap("revalidate");
    assert_eq!(met, [scene.endpoint(1), scene.endpoint(1)]);
    assert_eq!(scene.balancer.decisions("web", "cache"), 0.0);
}

#[test]
fn kept_decisions_are_forgotten_where_a_swap_flushes_them() {
    let (scene, met) = kept_over_a_swap("flush");
    assert_eq!(met, [scene.endpoint(1), scene.endpoint(2)]);
}

#[test]
fn a_storm_of_swaps_leaves_places_and_memory_as_they_were() {
    let scene = Scene::start("");
    let files = [scene.file("one.wasm", &always(1)), scene.file("two.wasm", &always(2))];
    let bytes = files.map(|file| fs::read(file).expect("a plugin"));
    let web = scene.web();
    let traffic = Traffic::start(web, 1);
    let storm = |swaps: usize| {
        for turn in 0..swaps {
            let (code, answer) = scene.balancer.post("/v1/clusters/web/policy", &bytes[turn % 2]);
            assert_eq!(code, 200, "{answer}");
        }
    };
    storm(50);
    let before = scene.balancer.resident_kib();
    storm(200);
    let after = scene.balancer.resident_kib();
    assert!(traffic.stop() > 0);
    assert_eq!(scene.balancer.swaps("swapped"), 250.0);
    assert_eq!(scene.balancer.swaps("refused"), 0.0);
    assert!(after < before + before / 10 + 4096, "{before} KiB before, {after} KiB after");
    scene.assert_decides(2);
}
