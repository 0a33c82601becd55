//! Plugins at work in the whole balancer: good ones, bad ones, and files that are none.

mod support;

#[path = "../../plugin/tests/common/mod.rs"]
mod guests;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use guests::Guest;
use support::raw::config_with_policy;
use support::{Balancer, Endpoint, POINTSMAN, ask_once, eventually, plugins};

const FAULTS: [&str; 4] = ["trap", "deadline", "memory", "answer"];

fn policy(name: &str, plugin: &Path, more: &str) -> String {
    format!("[[policies]]\nname = \"{name}\"\nplugin = {plugin:?}\n{more}\n")
}

fn faults(balancer: &Balancer, policy: &str, kind: &str) -> f64 {
    let labels = format!("policy=\"{policy}\",kind=\"{kind}\"");
    balancer.metric(&format!("pointsman_plugin_faults_total{{{labels}}}"))
}

/// Serves two clusters by a plugin that misbehaves and by one that does not.
fn misbehaves(body: &str, kind: &str, deadline_ms: u64) {
    const FLOWS: usize = 20;
    let (bad, good) = (Endpoint::start(), Endpoint::start());
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = folder.path().join("hostile.wasm");
    fs::write(&plugin, Guest::deciding(body).component()).expect("the plugin is written");
    let text = config_with_policy("workers = 1", "", "hostile", &[bad.address]);
    let text = format!(
        "{text}[[listeners]]\nname = \"calm\"\naddress = \"127.0.0.1:0\"\ncluster = \"calm\"\n\
         [[clusters]]\nname = \"calm\"\npolicy = \"p2c\"\n\
         endpoints = [{{ address = \"{}\" }}]\n{}{}",
        good.address,
        policy("hostile", &plugin, &format!("decide_deadline_ms = {deadline_ms}")),
        policy("p2c", &plugins().join("p2c.wasm"), "decide_deadline_ms = 1000"),
    );
    let balancer = Balancer::start(&text);
    let (web, calm) = (balancer.address("web"), balancer.address("calm"));
    let mut flows = 0.0;
    eventually("the fault has been met again and again", || {
        for _ in 0..FLOWS {
            assert_eq!(ask_once(web).expect("the fallback serves"), bad.address);
            assert_eq!(ask_once(calm).expect("the other cluster serves"), good.address);
            flows += 1.0;
        }
        faults(&balancer, "hostile", kind) >= 3.0
    });
    for other in FAULTS.into_iter().filter(|other| *other != kind) {
        assert_eq!(faults(&balancer, "hostile", other), 0.0, "{other}");
    }
    assert_eq!(balancer.decisions("web", "fallback"), flows);
    assert_eq!(balancer.decisions("calm", "plugin"), flows);
    for kind in FAULTS {
        assert_eq!(faults(&balancer, "p2c", kind), 0.0, "{kind}");
    }
}

#[test]
fn a_plugin_that_traps_is_answered_for_and_disturbs_nobody() {
    misbehaves("unreachable", "trap", 1000);
}

#[test]
fn a_plugin_that_never_answers_is_answered_for_and_disturbs_nobody() {
    misbehaves("(loop $for_ever (br $for_ever)) unreachable", "deadline", 5);
}

#[test]
fn a_plugin_that_wants_all_memory_is_answered_for_and_disturbs_nobody() {
    let body = "(loop $more
      (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
      (br $more))
     (call $forward (i32.const 0))";
    misbehaves(body, "memory", 1000);
}

#[test]
fn a_plugin_that_names_no_endpoint_is_answered_for_and_disturbs_nobody() {
    misbehaves("(call $forward (i32.const 7))", "answer", 1000);
}

/// Four endpoints behind one of our plugins.
fn serving(plugin: &str) -> (Vec<Endpoint>, Balancer) {
    let endpoints: Vec<_> = (0..4).map(|_| Endpoint::start()).collect();
    let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    let text = config_with_policy("workers = 1", "", "mine", &addresses);
    let path = plugins().join(format!("{plugin}.wasm"));
    let balancer = Balancer::start(&(text + &policy("mine", &path, "decide_deadline_ms = 1000")));
    (endpoints, balancer)
}

#[test]
fn two_choices_spread_flows_and_decide_each_of_them() {
    let (endpoints, balancer) = serving("p2c");
    let web = balancer.address("web");
    let met: BTreeSet<_> = (0..200).map(|_| ask_once(web).expect("an answer")).collect();
    assert_eq!(met, endpoints.iter().map(|endpoint| endpoint.address).collect());
    assert_eq!(balancer.web("flows_total"), 200.0);
    assert_eq!(balancer.decisions("web", "plugin"), 200.0);
    let calls = balancer.metric("pointsman_decision_seconds_count{policy=\"mine\"}");
    assert_eq!(calls, 200.0);
    let given = |endpoint: &Endpoint| {
        let labels = format!("cluster=\"web\",endpoint=\"{}\"", endpoint.address);
        balancer.metric(&format!("pointsman_endpoint_flows_total{{{labels}}}"))
    };
    for endpoint in &endpoints {
        assert_eq!(given(endpoint), endpoint.served() as f64);
    }
}

#[test]
fn a_client_stays_where_it_is_for_one_call_of_the_plugin() {
    let (_endpoints, balancer) = serving("client-affinity");
    let web = balancer.address("web");
    let first = ask_once(web).expect("an answer");
    for _ in 1..1_000 {
        assert_eq!(ask_once(web).expect("an answer"), first);
    }
    assert_eq!(balancer.web("flows_total"), 1_000.0);
    assert_eq!(balancer.decisions("web", "plugin"), 1.0);
    assert_eq!(balancer.decisions("web", "cache"), 999.0);
    assert_eq!(balancer.metric("pointsman_decision_seconds_count{policy=\"mine\"}"), 1.0);
}

#[test]
fn round_robin_follows_the_weights_in_the_smooth_order() {
    let [a, b, c] = [Endpoint::start(), Endpoint::start(), Endpoint::start()];
    let text = config_with_policy("workers = 1", "", "turns", &[a.address, b.address, c.address]);
    let heavy = format!("address = \"{}\"", a.address);
    let text = text.replace(&heavy, &format!("{heavy}, weight = 5"));
    let plugin = plugins().join("round-robin.wasm");
    let balancer =
        Balancer::start(&(text + &policy("turns", &plugin, "decide_deadline_ms = 1000")));
    let web = balancer.address("web");
    let met: Vec<SocketAddr> = (0..14).map(|_| ask_once(web).expect("an answer")).collect();
    let order = [&a, &a, &b, &a, &c, &a, &a].map(|endpoint| endpoint.address);
    assert_eq!(met, [order, order].concat());
    assert_eq!(balancer.decisions("web", "plugin"), 14.0);
}

#[test]
fn a_file_that_is_no_whole_plugin_is_refused_in_one_line() {
    let whole = fs::read(plugins().join("p2c.wasm")).expect("a plugin");
    let cases: [(&[u8], &str); 3] = [
        (b"I am text\n", "not a WebAssembly file"),
        (&whole[..whole.len() / 2], "policies[0].plugin"),
        (b"", "policies[0].plugin"),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let (plugin, file) = (folder.path().join("mine.wasm"), folder.path().join("pointsman.toml"));
    let address = "127.0.0.1:1".parse().expect("an address");
    let text = config_with_policy("", "", "mine", &[address]) + &policy("mine", &plugin, "");
    let socket = folder.path().join("admin.sock");
    fs::write(&file, format!("{text}[admin]\nsocket = {socket:?}\n")).expect("it is written");
    for (bytes, part) in cases {
        fs::write(&plugin, bytes).expect("it is written");
        for arguments in [&["check"][..], &["run", "--config"]] {
            let output = Command::new(POINTSMAN).args(arguments).arg(&file).output();
            let output = output.expect("it runs");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{errors}");
            let lines: Vec<_> = errors.lines().filter(|line| line.starts_with("error")).collect();
            assert_eq!(lines.len(), 1, "{errors}");
            assert!(lines[0].contains(part), "{part} is not in {}", lines[0]);
        }
    }
}

#[test]
fn plugins_that_take_more_than_their_share_of_a_core_are_not_asked() {
    let endpoint = Endpoint::start();
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = folder.path().join("slow.wasm");
    // Some milliseconds of nothing.
    let body = "(local $turns i32)
      (loop $more
        (local.set $turns (i32.add (local.get $turns) (i32.const 1)))
        (br_if $more (i32.lt_u (local.get $turns) (i32.const 10000000))))
      (call $forward (i32.const 0))";
    fs::write(&plugin, Guest::deciding(body).component()).expect("the plugin is written");
    let top = "workers = 1\nplugin_cpu_percent = 1";
    let text = config_with_policy(top, "", "slow", &[endpoint.address]);
    let patient = "decide_deadline_ms = 5000";
    let balancer = Balancer::start(&format!("{text}{}", policy("slow", &plugin, patient)));
    let web = balancer.address("web");
    let throttled = || balancer.metric("pointsman_plugin_throttled_total{policy=\"slow\"}");
    eventually("it has had its share", || {
        assert_eq!(ask_once(web).expect("an answer"), endpoint.address);
        throttled() > 10.0
    });
    assert!(balancer.decisions("web", "plugin") > 0.0, "a burst is allowed");
    assert_eq!(balancer.decisions("web", "fallback"), throttled());
}
