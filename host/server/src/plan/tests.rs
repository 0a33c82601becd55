//! One mistake per test, and one file with many.

use std::path::Path;

use super::*;
use crate::config;

const GOOD: &str = r#"
[[listeners]]
name = "web"
address = "127.0.0.1:8080"
cluster = "web"

[[clusters]]
name = "web"
endpoints = [{ address = "127.0.0.1:9001" }]
"#;

fn problems(text: &str) -> Vec<String> {
    let document = config::read(text);
    let folders = PluginFolders::new(Path::new("/nowhere/pointsman.toml"), &[]);
    let later = resolve(&document.config, &folders).err().unwrap_or_default();
    document.into_problems(later).iter().map(ToString::to_string).collect()
}

#[test]
fn a_short_file_is_enough() {
    let folders = PluginFolders::default();
    let plan = resolve(&config::read(GOOD).config, &folders).expect("nothing is wrong with it");
    assert!(plan.workers >= 1);
    assert_eq!(plan.listeners[0].cluster, ClusterId(0));
    assert_eq!(plan.clusters[0].policy, PolicyPlan::Native(Native::RoundRobin));
    assert!(!plan.uses_table(&plan.clusters[0]));
}

#[test]
fn an_empty_file_is_told_what_it_lacks() {
    let found = problems("");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("listeners: there is none")));
    assert!(found.iter().any(|problem| problem.starts_with("clusters: there is none")));
}

#[test]
fn text_that_is_no_toml_is_not_also_told_what_it_lacks() {
    assert_eq!(problems("workers =").len(), 1);
}

#[test]
fn a_cluster_nobody_defines_is_told_with_a_suggestion() {
    let found = problems(&GOOD.replace("cluster = \"web\"", "cluster = \"wbe\""));
    assert_eq!(found, ["listeners[0].cluster: no cluster is named \"wbe\"; did you mean \"web\"?"]);
}

#[test]
fn names_and_addresses_must_differ() {
    let twice = format!("{GOOD}{GOOD}");
    assert_eq!(
        problems(&twice),
        [
            "listeners[1].name: \"web\" is already listeners[0].name; each must be different",
            "listeners[1].address: \"127.0.0.1:8080\" is already listeners[0].address; each must \
             be different",
            "clusters[1].name: \"web\" is already clusters[0].name; each must be different",
        ]
    );
}

#[test]
fn port_0_may_be_listened_on_twice() {
    let text = GOOD.replace("127.0.0.1:8080", "127.0.0.1:0");
    let other = text
        .split("[[clusters]]")
        .next()
        .unwrap_or_default()
        .replace("name = \"web\"", "name = \"other\"");
    assert_eq!(problems(&format!("{text}{other}")), Vec::<String>::new());
}

#[test]
fn udp_is_refused_in_one_clear_line() {
    assert_eq!(
        problems(&GOOD.replace("[[clusters]]", "protocol = \"udp\"\n[[clusters]]")),
        ["listeners[0].protocol: udp listeners are not available in this version; use protocol \
             = \"tcp\""]
    );
}

#[test]
fn an_admin_address_that_others_can_reach_is_refused() {
    for address in ["0.0.0.0:9900", "192.0.2.1:9900", "[::]:9900"] {
        let found = problems(&format!("[admin]\nhttp = \"{address}\"\n{GOOD}"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("admin.http: "), "{found:?}");
    }
    assert!(problems(&format!("[admin]\nhttp = \"[::1]:9900\"\n{GOOD}")).is_empty());
}

#[test]
fn a_missing_plugin_is_told_with_the_places_that_were_searched() {
    let found = problems(&format!(
        "{GOOD}policy = \"p\"\n[[policies]]\nname = \"p\"\nplugin = \"p.wasm\"\n"
    ));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("policies[0].plugin: there is no file \"p.wasm\"; looked in /nowhere")
    );
}

#[test]
fn a_policy_is_a_plugin_or_native_and_not_both() {
    let both =
        format!("{GOOD}[[policies]]\nname = \"p\"\nplugin = \"/p.wasm\"\nnative = \"maglev\"\n");
    assert_eq!(problems(&both), ["policies[0].plugin: both are given; leave one of them out"]);
    let neither = format!("{GOOD}[[policies]]\nname = \"p\"\n");
    assert!(problems(&neither)[0].starts_with("policies[0].plugin: is missing"));
}

#[test]
fn maglev_needs_a_table_wherever_it_is_used() {
    let text = format!("{GOOD}policy = \"maglev\"\n");
    let plan = resolve(&config::read(&text).config, &PluginFolders::default()).expect("a plan");
    assert!(plan.uses_table(&plan.clusters[0]));
}

#[test]
fn all_problems_of_a_file_are_told_at_once() {
    let text = r#"
workers = 0
drain_timeout_ms = 0
nonsense = true
[buffers]
small = 1
[[listeners]]
name = "a"
address = "localhost:80"
cluster = "c"
connect_attempts = 6
client_prefix_v4 = 33
[[clusters]]
name = "b"
policy = "round-robbin"
endpoints = [{ address = "10.0.0.1:80", weight = 0 }, { address = "10.0.0.1:80" }, {}]
health = { kind = "tcp", rise = 0 }
[[policies]]
name = "maglev"
native = "maglew"
"#;
    let keys: Vec<_> = problems(text)
        .iter()
        .filter_map(|problem| problem.split_once(": ").map(|(key, _)| key.to_owned()))
        .collect();
    assert_eq!(
        keys,
        [
            "workers",
            "drain_timeout_ms",
            "nonsense",
            "buffers.small",
            "listeners[0].address",
            "listeners[0].cluster",
            "listeners[0].connect_attempts",
            "listeners[0].client_prefix_v4",
            "clusters[0].policy",
            "clusters[0].endpoints[0].weight",
            "clusters[0].endpoints[1].address",
            "clusters[0].endpoints[2].address",
            "clusters[0].health.rise",
            "policies[0].name",
            "policies[0].native",
        ]
    );
}
