//! The path of a policy's author, with the commands that the README shows.
//!
//! It builds real crates, so it needs what `cargo xtask setup` installs, and the crates that the SDK
//! depends on in cargo's cache: building the plugins of this repository puts them there.

mod support;

#[path = "../../plugin/tests/common/mod.rs"]
mod guests;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use guests::Guest;
use support::{Balancer, Endpoint, POINTSMAN, ask_once, plugins};

/// A command in a folder; cargo is not to reach for the network.
fn pointsman(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(POINTSMAN);
    command.args(arguments).current_dir(folder).env("CARGO_NET_OFFLINE", "true");
    command.output().expect("the binary runs")
}

fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = pointsman(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("text")
}

fn error_of(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = pointsman(folder, arguments);
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

fn plugin(name: &str) -> PathBuf {
    plugins().join(name).with_extension("wasm")
}

#[test]
fn from_an_empty_folder_to_traffic_in_four_commands() {
    let folder = tempfile::tempdir().expect("a folder");
    succeeds(folder.path(), &["policy", "new", "mine"]);
    let mine = folder.path().join("mine");
    succeeds(&mine, &["policy", "build"]);
    let report = succeeds(&mine, &["policy", "test", "mine.wasm"]);
    assert!(report.contains("same again"), "{report}");

    // Ports that are free here take the place of those in the file.
    let [one, two] = [Endpoint::start(), Endpoint::start()];
    let file = mine.join("pointsman.toml");
    let text = fs::read_to_string(&file).expect("a configuration");
    let socket = folder.path().join("admin.sock");
    let text = text.replace("pointsman.sock\"  ", &format!("{}\"", socket.display()));
    let text = text.replace("127.0.0.1:8090", "127.0.0.1:0");
    let text = text.replace("127.0.0.1:9001", &one.address.to_string());
    let text = text.replace("127.0.0.1:9002", &two.address.to_string());
    fs::write(&file, text).expect("the configuration is written");
    let balancer = Balancer::start_with_file(folder, &file);
    let web = balancer.address("web");
    for _ in 0..3 {
        assert_eq!(ask_once(web).expect("it serves"), one.address, "the first is filled first");
    }
    assert_eq!(balancer.decisions("web", "plugin"), 3.0);
}

#[test]
fn the_crate_of_a_new_policy_passes_its_own_tests() {
    let folder = tempfile::tempdir().expect("a folder");
    succeeds(folder.path(), &["policy", "new", "mine", "--shape", "weights"]);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let tests =
        cargo.args(["test", "--quiet", "--offline"]).current_dir(folder.path().join("mine"));
    let output = tests.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_policy_of_this_repository_conforms() {
    for file in fs::read_dir(plugins()).expect("`cargo xtask plugins` has built them") {
        let file = file.expect("an entry").path();
        let file = file.to_str().expect("a path");
        // The only one that has a language's runtime in it.
        let profile = if file.ends_with("p2c-javascript.wasm") { "compat" } else { "strict" };
        let report = succeeds(Path::new("/"), &["policy", "test", "--profile", profile, file]);
        assert!(!report.contains("fail"), "{file}: {report}");
    }
}

#[test]
fn a_bad_policy_fails_the_check_that_is_about_it() {
    let turn = "(global.set $turn (i32.add (global.get $turn) (i32.const 1)))";
    let after = |turns: u32, bad: &str| {
        format!(
            "{turn} (if (i32.gt_u (global.get $turn) (i32.const {turns})) (then {bad}))
             (call $forward (i32.const 0))"
        )
    };
    let cases = [
        ("any number of endpoints", "(call $forward (i32.const 1000000))".to_owned()),
        ("any number of endpoints", "unreachable".to_owned()),
        ("retries", "(call $forward (i32.const 0))".to_owned()),
        ("memory", after(20_000, "(drop (memory.grow (i32.const 1)))")),
        ("memory", after(50_000, "unreachable")),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bad.wasm");
    for (check, body) in cases {
        fs::write(&file, Guest::deciding(&body).module()).expect("a file");
        let output = pointsman(folder.path(), &["policy", "test", "bad.wasm", "--json"]);
        assert_eq!(output.status.code(), Some(1), "{body}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = report["findings"].as_array().expect("findings");
        let failed = |finding: &&serde_json::Value| finding["passed"] == false;
        let failed: Vec<_> = findings.iter().filter(failed).map(|it| &it["check"]).collect();
        assert!(failed.iter().any(|it| *it == check), "{body}: {failed:?}");
    }
}

#[test]
fn a_file_tells_its_shape_and_what_it_may_be_configured_with() {
    let shapes = [("p2c", "chooser"), ("maglev", "table"), ("latency-weights", "weights")];
    for (name, shape) in shapes {
        let file = plugin(name);
        let text =
            succeeds(Path::new("/"), &["policy", "inspect", "--json", file.to_str().unwrap()]);
        let told: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(told["shape"], shape);
        assert!(told["also"].as_array().unwrap().contains(&"schema".into()), "{told}");
        assert_eq!(told["digest"].as_str().unwrap().len(), 64);
        assert!(!told["config_schema"]["properties"].as_object().unwrap().is_empty(), "{told}");
    }
    let file = plugin("outlier");
    let text = succeeds(Path::new("/"), &["policy", "inspect", file.to_str().unwrap()]);
    assert!(text.contains("feedback, state, schema"), "{text}");
}

#[test]
fn the_cost_is_the_same_each_time_and_can_be_held_to_a_limit() {
    let file = plugin("p2c");
    let file = file.to_str().unwrap();
    let fuel = || {
        let text = succeeds(Path::new("/"), &["policy", "test", "--json", file]);
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        report["fuel"].as_u64().expect("a number")
    };
    let (once, again) = (fuel(), fuel());
    assert_eq!(once, again);
    let limit = (once - 1).to_string();
    let output = pointsman(Path::new("/"), &["policy", "test", "--fuel-max", &limit, file]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(
        text.contains(&format!("at most {once} fuel an answer, {limit} are allowed")),
        "{text}"
    );
}

#[test]
fn what_is_no_policy_or_no_name_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let (code, error) = error_of(folder.path(), &["policy", "build"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("`pointsman policy new NAME` makes a crate"), "{error}");
    let (code, error) = error_of(folder.path(), &["policy", "new", "My Policy"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("small letters"), "{error}");
    fs::write(folder.path().join("no.wasm"), "no").expect("a file");
    let (code, error) = error_of(folder.path(), &["policy", "inspect", "no.wasm"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("no.wasm"), "{error}");
}
