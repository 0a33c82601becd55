//! The interface as it was released, and plugins that were built for it then.

mod built;
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{WIT, candidates, endpoint_of, engine, engine_with_log, flow, patient, policy_of};
use pointsman_core::policy::{Flow, Policy, Scope, Source};
use pointsman_plugin::{InstanceError, LogLevel, LogLine, PolicySettings, Shape};
use wit_component::semver_check;
use wit_parser::{PackageId, Resolve};

/// `plugin-sdk/released`: a folder for each version.
fn released() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugin-sdk/released");
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn push(resolve: &mut Resolve, wit: &str) -> PackageId {
    resolve.push_str("policy.wit", wit).unwrap()
}

/// The first world of `before` whose policies do not fit where those of `now` do.
fn broken_world(before: &str, now: &str) -> Option<String> {
    let mut resolve = Resolve::default();
    let [before, now] = [before, now].map(|wit| push(&mut resolve, wit));
    let worlds: Vec<_> = resolve.packages[before].worlds.keys().cloned().collect();
    worlds.into_iter().find(|world| {
        let find = |package| resolve.select_world(&[package], Some(world)).ok();
        let (Some(before), Some(now)) = (find(before), find(now)) else { return true };
        semver_check(resolve.clone(), before, now).is_err()
    })
}

/// The line of an interface that says which it is.
fn package(wit: &str) -> &str {
    wit.lines().find(|line| line.starts_with("package ")).unwrap()
}

#[test]
fn policies_built_for_a_released_interface_fit_the_one_that_is_here() {
    let released = released();
    assert!(!released.is_empty());
    for version in released {
        let before = fs::read_to_string(version.join("policy.wit")).unwrap();
        if package(&before) == package(WIT) {
            assert_eq!(before, WIT, "a released interface changes only under a new version");
            continue;
        }
        let broken = broken_world(&before, WIT);
        assert_eq!(broken, None, "since {}", version.display());
    }
}

#[test]
fn a_field_more_a_function_less_or_another_type_is_noticed() {
    let now = WIT.replace("policy@0.1", "policy@0.2");
    assert_eq!(broken_world(WIT, &now), None);
    for (from, to) in [
        ("tag: u32,", "tag: u32, note: u32,"),
        ("load: func(endpoint: u32) -> u32;", ""),
        ("load: func(endpoint: u32)", "load: func(endpoint: u64)"),
        ("export decide: func(%flow: flow) -> decision;", "export decide: func(%flow: flow);"),
        ("world chooser {", "world picker {"),
        ("enum verdict {", "enum verdict {\n later,"),
    ] {
        assert!(now.contains(from), "{from}");
        let broken = broken_world(WIT, &now.replacen(from, to, 1));
        assert!(broken.is_some(), "{from} became {to}");
    }
}

#[test]
fn a_policy_of_each_released_interface_is_kept() {
    for version in released() {
        assert!(version.join("guest/src/lib.rs").is_file(), "{}", version.display());
    }
}

#[test]
fn a_policy_built_for_0_1_0_decides_and_is_told_everything() {
    let Some(bytes) = built::plugin("released-0.1.0") else { return };
    let (engine, log) = engine_with_log();
    let module = engine.load(&bytes).unwrap();
    assert_eq!(module.shape(), Shape::Chooser);
    let among = candidates(7, 3);
    let settings = PolicySettings { config_json: r#"{"a":1}"#.into(), ..patient() };
    let mut policy = policy_of(&module, settings, &Arc::default(), &among).unwrap();
    let loads = [2, 0, 1];
    for (endpoint, flows) in among.endpoints.iter().zip(loads) {
        (0..flows).for_each(|_| endpoint.load.on_flow_started());
    }

    let decided = policy.decide(&Flow { key: Some(99), ..flow() }, &among);
    assert_eq!((endpoint_of(&decided), decided.source), (1, Source::Plugin));
    let decision = decided.decision;
    assert_eq!((decision.scope, decision.ttl), (Scope::Client, Duration::from_secs(7)));
    assert!(decision.sliding && decision.method.announce);
    assert_eq!(decision.method.throttle_kib_s, Some(64));
    assert_eq!(decision.method.idle_timeout, Some(Duration::from_secs(9)));
    assert_eq!(decision.method.tag, 7);

    let tried = [among.endpoints[1].id];
    let decided = policy.decide(&Flow { attempt: 1, tried: &tried, ..flow() }, &among);
    assert_eq!((endpoint_of(&decided), decided.source), (2, Source::Plugin));

    let heard = || log.recv_timeout(Duration::from_secs(60)).unwrap();
    expect(&heard(), LogLevel::Info, &[r#"configured with {"a":1}"#]);
    for line in ["10.0.0.1:80 weighs 1", "10.0.0.2:80 weighs 2", "10.0.0.3:80 weighs 3"] {
        expect(&heard(), LogLevel::Warn, &["generation 7: ", line]);
    }
    let client = 0xffff_c000_0207_u64.to_string();
    let facts = ["Protocol::Tcp", &client, "client-port: 1234", "local-port: 8080", "now-ms: 77"];
    expect(
        &heard(),
        LogLevel::Debug,
        &[&facts[..], &["key: 99", "attempt: 0", "random: 1"]].concat(),
    );
    expect(&heard(), LogLevel::Debug, &["attempt: 1", "avoid: 1"]);
}

fn expect(line: &LogLine, level: LogLevel, parts: &[&str]) {
    assert_eq!(line.level, level, "{line:?}");
    assert!(parts.iter().all(|part| line.message.contains(part)), "{line:?} has not {parts:?}");
}

#[test]
fn a_policy_built_for_0_1_0_refuses_a_config_in_its_own_words() {
    let Some(bytes) = built::plugin("released-0.1.0") else { return };
    let module = engine().load(&bytes).unwrap();
    let settings = PolicySettings { config_json: r#""refuse""#.into(), ..patient() };
    let refused = policy_of(&module, settings, &Arc::default(), &candidates(1, 1)).map(drop);
    let expected = InstanceError::Config(r#"refused as asked: "refuse""#.into());
    assert_eq!(refused, Err(expected));
}
