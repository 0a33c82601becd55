//! A module is tried beside the one that decides.

mod support;

#[path = "../../plugin/tests/common/mod.rs"]
mod guests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use guests::Guest;
use pointsman::swap::answer::SwapAnswer;
use pointsman::swap::report::TrialReport;
use pointsman_plugin::Shape;
use support::policy::{policy, write};
use support::raw::{config_with_policy, connect_from};
use support::{Balancer, Client, Endpoint, ask_once, eventually};
use tempfile::TempDir;

const PATIENT: &str = "decide_deadline_ms = 5000\nconfigure_deadline_ms = 20000\n";

fn always(endpoint: u32) -> Vec<u8> {
    Guest::deciding(&format!("(call $forward (i32.const {endpoint}))")).component()
}

/// A table of one entry: the `body` leaves the endpoint's index.
fn table(body: &str) -> Vec<u8> {
    let build = format!(
        "(i32.store (i32.const 8192) {body}) (call $ok_list (i32.const 8192) (i32.const 1))"
    );
    Guest::of(Shape::Table, &build).component()
}

struct Scene {
    endpoints: Vec<Endpoint>,
    balancer: Balancer,
    folder: TempDir,
}

impl Scene {
    fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let first = write(folder.path(), "first.wasm", &always(0));
        let endpoints: Vec<_> = (0..2).map(|_| Endpoint::start()).collect();
        let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        let config = config_with_policy("workers = 2", "", "mine", &addresses);
        let more = format!("{PATIENT}{more}");
        let balancer = Balancer::start(&(config + &policy("mine", &first, &more)));
        Self { endpoints, balancer, folder }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        write(self.folder.path(), name, bytes)
    }

    fn endpoint(&self, place: usize) -> SocketAddr {
        self.endpoints[place].address
    }

    fn report(&self) -> TrialReport {
        self.balancer.policy_json(&["trial", "web"])
    }

    /// Begins a shadow without waiting for its end.
    fn shadow(&self, bytes: &[u8], time_ms: u64) {
        let path = format!("/v1/clusters/web/policy?shadow_ms={time_ms}");
        let (code, answer) = self.balancer.post(&path, bytes);
        assert_eq!(code, 200, "{answer}");
    }

    /// The endpoint for each of a hundred clients.
    fn choices(&self) -> BTreeMap<IpAddr, SocketAddr> {
        let web = self.balancer.address("web");
        let client = |last: u8| IpAddr::V4(Ipv4Addr::new(127, 0, 1, last));
        (1..=100).map(client).map(|from| (from, ask_from(from, web))).collect()
    }
}

/// Asks from an address of this machine; all of 127.0.0.0/8 is.
fn ask_from(from: IpAddr, to: SocketAddr) -> SocketAddr {
    Client::of(connect_from(from, to)).ask("who are you").expect("an answer")
}

#[test]
fn a_shadow_is_asked_and_not_obeyed_and_reports() {
    let scene = Scene::start("");
    let web = scene.balancer.address("web");
    // Agrees on every other flow or so: by a bit of the random number.
    let body = "(call $forward (i32.wrap_i64 (i64.and (local.get $random) (i64.const 1))))";
    scene.shadow(&Guest::deciding(body).component(), 600_000);
    for _ in 0..200 {
        assert_eq!(ask_once(web).expect("an answer"), scene.endpoint(0));
    }
    let report = scene.report();
    assert_eq!((&*report.stage, report.asked, report.refused), ("shadow", 200, 0));
    let agreement = report.agreement.expect("flows were compared");
    assert!((0.2..0.8).contains(&agreement), "{agreement}");
    let [first, second] = &report.endpoints[..] else { panic!("two endpoints") };
    assert_eq!((first.live, second.live), (200, 0));
    assert_eq!(first.candidate + second.candidate, 200);
    assert_eq!(report.live.imbalance, Some(2.0));
    assert!(report.candidate.imbalance.expect("flows") < 1.8);
    assert!(report.candidate.p99_ns.expect("it was called") > 0);
    assert_eq!((report.candidate.faults, report.candidate.throttled), (0, 0));
    let text = scene.balancer.policy(&["trial", "web"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in ["shadow for another", "agrees on", "IMBALANCE", "P99 NS"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn a_shadow_ends_by_itself_and_can_be_promoted() {
    let scene = Scene::start("");
    let file = scene.file("second.wasm", &always(1));
    let report = scene.balancer.try_out(&file, &["--shadow", "300ms"]);
    assert_eq!(report.stage, "over", "the command waits for the end");
    let web = scene.balancer.address("web");
    assert_eq!(ask_once(web).expect("an answer"), scene.endpoint(0));
    assert_eq!(scene.report().asked, report.asked, "it is asked nothing any more");
    let (code, line) = scene.balancer.refusal(&["promote", "web"]);
    assert!(line.contains("not answered for a single flow"), "{line}");
    assert_eq!(code, 1);
    let answer: SwapAnswer = scene.balancer.policy_json(&["promote", "web", "--force"]);
    assert_eq!((answer.digest, answer.generation), (report.digest, 2));
    assert_eq!(ask_once(web).expect("an answer"), scene.endpoint(1));
    let (_, line) = scene.balancer.refusal(&["trial", "web"]);
    assert!(line.contains("no policy is on trial"), "{line}");
}

#[test]
fn a_canary_takes_its_share_and_gives_no_client_back_when_it_grows() {
    let scene = Scene::start("");
    let file = scene.file("second.wasm", &always(1));
    let mut taken: Vec<IpAddr> = Vec::new();
    for percent in [5.5, 30.0, 70.0, 100.0] {
        let report = scene.balancer.try_out(&file, &["--canary", &percent.to_string()]);
        assert_eq!(report.canary_percent, Some(percent));
        let choices = scene.choices();
        let canary = |client: &IpAddr| choices[client] == scene.endpoint(1);
        assert!(taken.iter().all(canary), "a client was given back at {percent} %");
        taken = choices.keys().copied().filter(canary).collect();
    }
    assert_eq!(taken.len(), 100);
    assert_eq!(scene.balancer.listed().generation, 1);
    let report: TrialReport = scene.balancer.policy_json(&["abort", "web"]);
    assert!(report.asked >= 100, "the share grew without a new trial: {}", report.asked);
    let choices = scene.choices();
    assert!(choices.values().all(|endpoint| *endpoint == scene.endpoint(0)));
    assert!(scene.balancer.listed().trial.is_none());
}

#[test]
fn a_canary_that_is_promoted_decides_on_everything() {
    let scene = Scene::start("");
    let file = scene.file("second.wasm", &always(1));
    scene.balancer.try_out(&file, &["--canary", "1"]);
    assert_eq!(scene.balancer.listed().trial.expect("a trial").stage, "canary");
    let _: SwapAnswer = scene.balancer.policy_json(&["promote", "web", "--force"]);
    assert!(scene.choices().values().all(|endpoint| *endpoint == scene.endpoint(1)));
    assert!(scene.balancer.listed().trial.is_none());
    let _: SwapAnswer = scene.balancer.policy_json(&["rollback", "web"]);
    assert!(scene.choices().values().all(|endpoint| *endpoint == scene.endpoint(0)));
}

#[test]
fn a_policy_that_fails_on_trial_loses_it_and_stays_out() {
    let scene = Scene::start("rollback_faults = 2\n");
    let body = "(if (i64.eq (i64.and (local.get $client_low) (i64.const 0xff000000))
                  (i64.const 0x7f000000)) (then unreachable))
                (call $forward (i32.const 1))";
    let bytes = Guest::deciding(body).component();
    scene.shadow(&bytes, 600_000);
    let web = scene.balancer.address("web");
    eventually("the trial is aborted", || {
        assert_eq!(ask_once(web).expect("an answer"), scene.endpoint(0));
        scene.balancer.listed().trial.is_none()
    });
    let (code, answer) = scene.balancer.post("/v1/clusters/web/policy?shadow_ms=1000", &bytes);
    assert_eq!(code, 409);
    assert!(answer.contains("--lift-quarantine"), "{answer}");
    assert_eq!(scene.balancer.listed().generation, 1);
}

#[test]
fn a_table_is_tried_with_a_table_of_its_own() {
    let scene = Scene::start("");
    scene.shadow(&table("(i32.const 1)"), 600_000);
    let web = scene.balancer.address("web");
    for _ in 0..10 {
        assert_eq!(ask_once(web).expect("an answer"), scene.endpoint(0));
    }
    let report = scene.report();
    assert_eq!((&*report.shape, report.asked, report.agreed), ("table", 10, 0));
    assert_eq!(report.endpoints[1].candidate, 10);
    let _: SwapAnswer = scene.balancer.policy_json(&["promote", "web"]);
    assert_eq!(ask_once(web).expect("an answer"), scene.endpoint(1));
}
