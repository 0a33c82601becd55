//! Policies that decide on no flow themselves: tables and weights.

mod support;

#[path = "../../plugin/tests/common/mod.rs"]
mod guests;

use std::net::SocketAddr;
use std::path::PathBuf;

use guests::Guest;
use pointsman_plugin::Shape;
use support::policy::{Traffic, policy, write};
use support::raw::config_with_policy;
use support::{Balancer, Endpoint, ask_once, eventually};
use tempfile::TempDir;

const PATIENT: &str = "decide_deadline_ms = 5000\nconfigure_deadline_ms = 20000\n";
const HEALTH: &str =
    "health = { kind = \"tcp\", interval_ms = 50, timeout_ms = 2000, rise = 1, fall = 1 }\n";
/// Calls of `decide`.
const CALLS: &str = "pointsman_decision_seconds_count{policy=\"mine\"}";

struct Scene {
    endpoints: Vec<Endpoint>,
    balancer: Balancer,
    folder: TempDir,
}

impl Scene {
    fn start(first: &[u8], more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let first = write(folder.path(), "first.wasm", first);
        let endpoints: Vec<_> = (0..2).map(|_| Endpoint::start()).collect();
        let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        let config = config_with_policy("workers = 2", "", "mine", &addresses);
        let policy = policy("mine", &first, &format!("{PATIENT}{more}"));
        let balancer = Balancer::start(&format!("{config}{HEALTH}{policy}"));
        Self { endpoints, balancer, folder }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        write(self.folder.path(), name, bytes)
    }

    fn endpoint(&self, place: usize) -> SocketAddr {
        self.endpoints[place].address
    }

    fn ask(&self) -> SocketAddr {
        ask_once(self.balancer.address("web")).expect("an answer")
    }
}

/// A table of one entry: the `body` leaves the endpoint's index.
fn table(body: &str) -> Vec<u8> {
    let build = format!(
        "(i32.store (i32.const 8192) {body}) (call $ok_list (i32.const 8192) (i32.const 1))"
    );
    Guest::of(Shape::Table, &build).component()
}

/// Weights for two endpoints.
fn weights(first: u32, second: u32) -> Vec<u8> {
    let weigh = format!(
        "(i32.store (i32.const 8192) (i32.const {first}))
         (i32.store (i32.const 8196) (i32.const {second}))
         (call $list (i32.const 8192) (local.get $length))"
    );
    Guest::of(Shape::Weights, &weigh).component()
}

/// The last endpoint of the list.
fn last() -> Vec<u8> {
    table("(i32.sub (local.get $length) (i32.const 1))")
}

#[test]
fn a_table_answers_without_a_call_for_any_flow() {
    let scene = Scene::start(&last(), "");
    for _ in 0..50 {
        assert_eq!(scene.ask(), scene.endpoint(1));
    }
    assert_eq!(scene.balancer.decisions("web", "table"), 50.0);
    assert_eq!(scene.balancer.decisions("web", "plugin"), 0.0);
    assert_eq!(scene.balancer.metric(CALLS), 0.0);
    let listed = scene.balancer.listed();
    assert_eq!((&*listed.shape, listed.faults), ("table", 0));
}

#[test]
fn a_table_is_built_anew_when_the_endpoints_change() {
    let mut scene = Scene::start(&last(), "");
    assert_eq!(scene.ask(), scene.endpoint(1));
    let gone = scene.endpoints.pop().expect("an endpoint");
    let address = gone.address;
    drop(gone);
    eventually("the endpoint is down", || !scene.balancer.is_up(address));
    eventually("the table of the endpoint that is left decides", || {
        let before = scene.balancer.decisions("web", "table");
        assert_eq!(scene.ask(), scene.endpoint(0));
        scene.balancer.decisions("web", "table") > before
    });
    scene.endpoints.push(Endpoint::start_at(address));
    eventually("the endpoint is up", || scene.balancer.is_up(address));
    eventually("the table knows it again", || scene.ask() == address);
    assert_eq!(scene.balancer.metric(CALLS), 0.0);
}

#[test]
fn maglev_stands_in_for_a_table_that_cannot_be_built() {
    // Builds for two endpoints, and traps for one.
    let body = "(i32.const 1) (if (i32.eq (local.get $length) (i32.const 1)) (then unreachable))";
    let mut scene = Scene::start(&table(body), "");
    assert_eq!(scene.ask(), scene.endpoint(1));
    let gone = scene.endpoints.pop().expect("an endpoint");
    let address = gone.address;
    drop(gone);
    eventually("the endpoint is down", || !scene.balancer.is_up(address));
    eventually("the guest has failed and been made anew and failed", || {
        assert_eq!(scene.ask(), scene.endpoint(0));
        scene.balancer.listed().faults >= 2
    });
    assert!(scene.balancer.decisions("web", "fallback") > 0.0);
    scene.endpoints.push(Endpoint::start_at(address));
    eventually("the guest builds again", || {
        let before = scene.balancer.decisions("web", "table");
        scene.ask() == address && scene.balancer.decisions("web", "table") > before
    });
}

#[test]
fn a_table_that_names_nobody_is_refused_and_nothing_changes() {
    let scene = Scene::start(&last(), "");
    let file = scene.file("bad.wasm", &table("(i32.const 2)"));
    let (code, line) = scene.balancer.refusal(&["swap", "web", file.to_str().expect("text")]);
    assert_eq!(code, 2);
    assert!(line.contains("failed to make a table (answer fault"), "{line}");
    assert_eq!(scene.ask(), scene.endpoint(1));
    assert_eq!(scene.balancer.listed().generation, 1);
}

#[test]
fn weights_steer_the_native_policy_without_a_call_for_any_flow() {
    let scene = Scene::start(&weights(1, 9), "tick_ms = 100");
    let served = || scene.endpoints.iter().map(Endpoint::served).collect::<Vec<_>>();
    eventually("nine of ten go to the second endpoint", || {
        let before = served();
        for _ in 0..100 {
            scene.ask();
        }
        let after = served();
        let second = after[1] - before[1];
        // Two workers, each in its own order.
        (86..=94).contains(&second)
    });
    assert_eq!(scene.balancer.decisions("web", "plugin"), 0.0);
    assert!(scene.balancer.decisions("web", "native") > 0.0);
    assert_eq!(scene.balancer.metric(CALLS), 0.0);
    assert_eq!(scene.balancer.listed().shape, "weights");
}

#[test]
fn a_cluster_goes_from_any_shape_to_any_other_under_traffic() {
    let scene = Scene::start(&last(), "tick_ms = 100");
    let chooser = Guest::deciding("(call $forward (i32.const 0))").component();
    let traffic = Traffic::start(scene.balancer.address("web"), 2);
    for (shape, bytes) in [
        ("chooser", &chooser),
        ("weights", &weights(1, 65_535)),
        ("table", &table("(i32.const 0)")),
        ("weights", &weights(65_535, 1)),
        ("chooser", &chooser),
        ("table", &last()),
    ] {
        let answer = scene.balancer.swap(&scene.file("next.wasm", bytes));
        assert_eq!((&*answer.shape, answer.acknowledged), (shape, 2));
    }
    assert!(traffic.stop() > 0);
    assert_eq!(scene.ask(), scene.endpoint(1));
    assert_eq!(scene.balancer.swaps("swapped"), 6.0);
}
