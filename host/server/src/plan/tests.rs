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
fn an_endpoint_is_somewhere() {
    for (address, problem) in [
        ("127.0.0.1:0", "port 0 cannot be connected to; write the endpoint's port"),
        ("0.0.0.0:80", "0.0.0.0 is no machine's address; write the endpoint's"),
        ("[::]:80", ":: is no machine's address; write the endpoint's"),
    ] {
        let text = GOOD.replace("127.0.0.1:9001", address);
        assert_eq!(problems(&text), [format!("clusters[0].endpoints[0].address: {problem}")]);
    }
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

/// The good file with these keys added to its listener.
fn with(keys: &str) -> String {
    GOOD.replace("\n[[clusters]]", &format!("{keys}\n[[clusters]]"))
}

fn listener(keys: &str) -> ListenerPlan {
    let config = config::read(&with(keys)).config;
    resolve(&config, &PluginFolders::default()).expect("a plan").listeners.remove(0)
}

#[test]
fn tcp_and_udp_may_have_the_same_address() {
    let udp =
        with("protocol = \"udp\"\n").replace("name = \"web\"\naddress", "name = \"u\"\naddress");
    let udp = udp.split("[[clusters]]").next().unwrap_or_default();
    assert_eq!(problems(&format!("{GOOD}{udp}")), Vec::<String>::new());
    let twice = format!("{udp}{GOOD}{}", udp.replace("name = \"u\"", "name = \"v\""));
    assert_eq!(
        problems(&twice),
        ["listeners[2].address: \"127.0.0.1:8080\" is already listeners[0].address; each must be \
          different"]
    );
}

#[test]
fn a_udp_listener_has_its_defaults_and_its_keys() {
    let plan = listener("protocol = \"udp\"\n");
    assert_eq!((plan.protocol, plan.datagrams), (Protocol::Udp, DatagramSettings::DEFAULT));
    assert_eq!(plan.timeouts.idle, Duration::from_secs(60));
    let plan = listener(
        "protocol = \"udp\"\nreplies_expected = 1\nupstream_sockets = \"per-flow\"\n\
         upstream_ports_max = 100\nsegmentation_offload = false\n\
         on_endpoint_down = \"reallocate\"\n",
    );
    let datagrams = DatagramSettings {
        replies_expected: 1,
        ports_max: 100,
        port_per_flow: true,
        offload: false,
        ..DatagramSettings::DEFAULT
    };
    assert_eq!(plan.datagrams, datagrams);
    assert_eq!(plan.on_endpoint_down, OnEndpointDown::Reallocate);
}

#[test]
fn buffers_for_datagrams_are_made_only_where_there_are_any() {
    let buffers = |text: &str| {
        let config = config::read(text).config;
        resolve(&config, &PluginFolders::default()).expect("a plan").datagram_buffers
    };
    assert_eq!(buffers(GOOD), 0);
    assert_eq!(buffers(&with("protocol = \"udp\"\n")), 512);
}

#[test]
fn keys_of_the_other_protocol_are_refused() {
    for (keys, name, only) in [
        ("replies_expected = 1\n", "replies_expected", "udp"),
        ("upstream_sockets = \"shared\"\n", "upstream_sockets", "udp"),
        ("upstream_ports_max = 5\n", "upstream_ports_max", "udp"),
        ("segmentation_offload = true\n", "segmentation_offload", "udp"),
        ("protocol = \"udp\"\nconnect_timeout_ms = 5\n", "connect_timeout_ms", "tcp"),
        ("protocol = \"udp\"\nconnect_attempts = 2\n", "connect_attempts", "tcp"),
        ("protocol = \"udp\"\nhalf_closed_timeout_ms = 5\n", "half_closed_timeout_ms", "tcp"),
        ("protocol = \"udp\"\npreread_timeout_ms = 5\n", "preread_timeout_ms", "tcp"),
        ("protocol = \"udp\"\npreread_bytes_max = 500\n", "preread_bytes_max", "tcp"),
    ] {
        let expected = format!(
            "listeners[0].{name}: is for {only} listeners; leave it out, or write protocol = \
             \"{only}\""
        );
        assert_eq!(problems(&with(keys)), [expected]);
    }
}

#[test]
fn what_becomes_of_flows_without_an_endpoint_fits_the_protocol() {
    assert_eq!(
        problems(&with("on_endpoint_down = \"drop\"\n")),
        [
            "listeners[0].on_endpoint_down: \"drop\" is for udp listeners; write \"keep\" or \"reset\""
        ]
    );
    assert_eq!(
        problems(&with("protocol = \"udp\"\non_endpoint_down = \"reset\"\n")),
        ["listeners[0].on_endpoint_down: \"reset\" is for tcp listeners; write \"keep\", \
          \"reallocate\" or \"drop\""]
    );
}

#[test]
fn every_kind_of_key_becomes_a_rule() {
    let rule = |protocol: &str, key: &str| {
        listener(&format!("protocol = \"{protocol}\"\nkey = {key}\n")).key.expect("a rule")
    };
    let bytes = KeyRule::Bytes { offset: 0, length: 8 };
    assert_eq!(rule("tcp", "{ kind = \"bytes\" }"), bytes);
    assert_eq!(rule("tcp", "{ kind = \"sni\" }"), KeyRule::ServerName);
    let bytes = KeyRule::Bytes { offset: 4, length: 2 };
    assert_eq!(rule("udp", "{ kind = \"bytes\", offset = 4, length = 2 }"), bytes);
    let quic = KeyRule::QuicConnectionId { length: 8 };
    assert_eq!(rule("udp", "{ kind = \"quic-cid\" }"), quic);
    assert_eq!(rule("udp", "{ kind = \"dns-name\" }"), KeyRule::DnsName);
    assert_eq!(rule("udp", "{ kind = \"radius\" }"), KeyRule::RadiusAttribute(1));
    assert_eq!(rule("udp", "{ kind = \"sip-call-id\" }"), KeyRule::SipCallId);
}

#[test]
fn a_key_that_cannot_be_is_refused_with_its_place() {
    for (keys, expected) in [
        ("key = {}", "kind: is missing; write what is read, such as kind = \"bytes\""),
        ("key = { kind = \"snl\" }", "kind: \"snl\" is not possible here; did you mean \"sni\"?"),
        (
            "key = { kind = \"sni\", lenght = 5 }",
            "lenght: there is no such key; did you mean \"length\"?",
        ),
        ("key = { kind = \"sni\", length = 5 }", "length: a \"sni\" key has none; leave it out"),
        (
            "key = { kind = \"radius\", attribute = 256 }",
            "attribute: 256 is out of range; write 1 to 255",
        ),
        ("key = { kind = \"quic-cid\", length = 21 }", "length: 21 is out of range; write 1 to 20"),
        ("key = { kind = \"bytes\", length = 0 }", "length: 0 is out of range; write 1 to 65535"),
        (
            "key = { kind = \"bytes\", offset = 65500 }",
            "length: ends at byte 65508, beyond what a datagram can carry (65507); lower it",
        ),
    ] {
        let tcp = keys.contains("sn");
        let protocol = if tcp { "" } else { "protocol = \"udp\"\n" };
        let found = problems(&with(&format!("{protocol}{keys}\n")));
        assert_eq!(found, [format!("listeners[0].key.{expected}")]);
    }
    assert_eq!(
        problems(&with("key = { kind = \"dns-name\" }\n")),
        ["listeners[0].key.kind: \"dns-name\" is for udp listeners; possible here are \"bytes\", \
          \"sni\""]
    );
    assert_eq!(
        problems(&with("key = { kind = \"bytes\", offset = 100 }\npreread_bytes_max = 64\n")),
        ["listeners[0].key.length: ends at byte 108, beyond preread_bytes_max (64); lower it"]
    );
}

#[test]
fn waiting_for_a_key_that_is_not_looked_for_is_refused() {
    let found = problems(&with("preread_timeout_ms = 5\n"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("listeners[0].preread_timeout_ms: is for listeners with a key"));
    assert!(problems(&with("key = { kind = \"sni\" }\npreread_timeout_ms = 5\n")).is_empty());
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
fn an_admin_address_that_others_can_reach_needs_a_token_and_tls() {
    let admin = |keys: &str| problems(&format!("[admin]\n{keys}\n{GOOD}"));
    let open = admin("http = \"0.0.0.0:9900\"\ntoken_file = \"/no/token\"");
    assert!(
        open[0].starts_with("admin.http: 0.0.0.0:9900 can be reached from outside"),
        "{open:?}"
    );
    for (keys, expected) in [
        ("http = \"127.0.0.1:1\"\ntoken_file = \"/no/token\"", "admin.token_file: cannot be read"),
        (
            "http = \"127.0.0.1:1\"\ntoken_file = \"/etc/passwd\"",
            "admin.token_file: can be read by",
        ),
        ("token_file = \"/dev/null\"", "admin.token_file: is for admin.http"),
        ("http = \"127.0.0.1:1\"\ntls = {}", "admin.tls.cert_file: is missing"),
        (
            "http = \"127.0.0.1:1\"\ntls = { cert_file = \"/dev/null\", key_file = \"/no\" }",
            "admin.tls.cert_file: holds no certificate",
        ),
        ("socket_mode = \"0666\"", "admin.socket_mode: \"0666\" lets everybody change"),
        ("socket_mode = \"rw\"", "admin.socket_mode: \"rw\" is no mode"),
        ("socket_group = \"nobody-at-all\"", "admin.socket_group: there is no group"),
    ] {
        let found = admin(keys);
        assert!(found.iter().any(|found| found.starts_with(expected)), "{keys}: {found:?}");
    }
    let found = problems(&format!("user = \"nobody-at-all\"\n{GOOD}"));
    assert_eq!(found, ["user: there is no user \"nobody-at-all\"; make one, or name another"]);
    let found = problems(&format!("group = \"root\"\n{GOOD}"));
    assert_eq!(found, ["group: is for a user; write `user` too, or leave this out"]);
}

#[test]
fn a_missing_plugin_is_told_with_the_places_that_were_searched() {
    let found = problems(&format!(
        "{GOOD}policy = \"p\"\n[[policies]]\nname = \"p\"\nplugin = \"p.wasm\"\n"
    ));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("policies[0].plugin: there is no file \"p.wasm\" in /nowhere"));
}

#[test]
fn the_folder_of_a_file_that_is_named_alone_has_a_name() {
    let folders = PluginFolders::new(Path::new("pointsman.toml"), &[]);
    assert_eq!(folders.as_slice()[0], Path::new("."));
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
fn networks_are_read_and_no_two_are_the_same() {
    assert!(listener("").access.is_none(), "everybody may come");
    let access = listener("allow = [\"10.0.0.0/8\", \"::1\"]\ndeny = [\"10.1.0.0/16\"]\n").access;
    let access = access.expect("a list");
    let allowed = ["10.0.0.1", "10.1.0.1", "::1", "::2"]
        .map(|client| access.allows(client.parse().expect("an address")));
    assert_eq!(allowed, [true, false, true, false]);
    let twice = "allow = [\"10.0.0.0/8\", \"10.0.0.1/8\"]\ndeny = [\"10.0.0.0/8\"]\n";
    assert_eq!(
        problems(&with(twice)),
        [
            "listeners[0].allow[1]: \"10.0.0.1/8\" has bits beyond its length; write \
             \"10.0.0.0/8\", or \"10.0.0.1\"",
            "listeners[0].deny[0]: \"10.0.0.0/8\" is already listeners[0].allow[0]; remove one",
        ]
    );
    assert_eq!(
        problems(&format!("max_flows = 10000001\n{GOOD}")),
        ["max_flows: 10000001 is out of range; write 0 to 10000000"]
    );
}

#[test]
fn a_log_goes_to_one_place_that_can_be() {
    let log = |keys: &str| problems(&format!("[access_log]\n{keys}\n{GOOD}"));
    for good in ["path = \"-\"", "syslog = \"/dev/log\"", "syslog = \"[::1]:514\"\nsample = 0.5"] {
        assert_eq!(log(good), Vec::<String>::new());
    }
    for (keys, expected) in [
        ("", "access_log.path: is missing"),
        ("path = \"-\"\nsyslog = \"/dev/log\"", "access_log.syslog: is given beside `path`"),
        ("syslog = \"localhost\"", "access_log.syslog: \"localhost\" is no address"),
        ("path = \"-\"\nsample = 0.0", "access_log.sample: 0 is no share"),
        ("path = \"-\"\nsample = 1.5", "access_log.sample: 1.5 is no share"),
        ("path = \"-\"\nformat = \"tekst\"", "access_log.format: \"tekst\" is not possible here"),
    ] {
        let found = log(keys);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{keys}: {found:?}");
    }
}

#[test]
fn what_bounds_a_plugin_is_bounded_itself() {
    let text = format!(
        "plugin_cpu_percent = 0\n{GOOD}policy = \"p\"\n[[policies]]\nname = \"p\"\n\
         plugin = \"/dev/null\"\nrollback_faults = 0\nrollback_window_ms = 0\ntick_ms = 99\n"
    );
    let found = problems(&text);
    let expected = [
        "plugin_cpu_percent: 0 is out of range; write 1 to 100",
        "policies[0].plugin: there is no file",
        "policies[0].rollback_faults: 0 is out of range; write 1 to 1000000",
        "policies[0].rollback_window_ms: 0 is out of range; write 1 to 604800000",
        "policies[0].tick_ms: 99 is out of range; write 100 to 3600000",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn a_native_policy_has_nothing_to_watch() {
    let text = format!("{GOOD}[[policies]]\nname = \"p\"\nnative = \"maglev\"\nwatch = true\n");
    let expected = ["policies[0].watch: a native policy has no file to watch; leave it out"];
    assert_eq!(problems(&text), expected);
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
upgrade_timeout_ms = 600001
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
            "upgrade_timeout_ms",
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

#[test]
fn every_mistake_in_a_check_is_told() {
    let with = |health: &str| {
        problems(&GOOD.replace("[[clusters]]", &format!("[[clusters]]\nhealth = {{ {health} }}")))
    };
    let cases = [
        ("path = \"/up\"", "clusters[0].health.path: has a meaning only for kind = \"http\""),
        ("kind = \"http\", path = \"up\"", "clusters[0].health.path: \"up\" is no path"),
        ("kind = \"http\", method = \"G T\"", "clusters[0].health.method: \"G T\" is no method"),
        (
            "kind = \"http\", status = [\"200\", \"2xx\"]",
            "clusters[0].health.status[1]: \"2xx\" is",
        ),
        ("kind = \"http\", status = []", "clusters[0].health.status: holds no code"),
        ("kind = \"http\", host = \"a\\nb\"", "clusters[0].health.host: \"a\\nb\" is no host"),
        ("kind = \"http\", host = \"a b\"", "clusters[0].health.host: \"a b\" is no host"),
        ("kind = \"http\", host = \"me@b\"", "clusters[0].health.host: \"me@b\" is no host"),
        (
            "kind = \"udp\"",
            "clusters[0].health.send: is missing; write a datagram that the service answers, such \
             as send = 'ping', or for DNS send = '\\x00\\x01",
        ),
        ("kind = \"udp\", send = \"\\\\q\"", "clusters[0].health.send: a backslash begins"),
        ("kind = \"tls\", server_name = \"a b\"", "clusters[0].health.server_name: \"a b\" is no"),
        ("port = 0", "clusters[0].health.port: port 0 cannot be asked"),
    ];
    for (health, expected) in cases {
        let found = with(health);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{health}: {found:?}");
    }
    let good = "kind = \"http\", host = \"[::1]:80\", port = 8081, path = \"/a?b\", status = [\"200-204\"], body = \"ok\"";
    assert_eq!(with(good), Vec::<String>::new());
}

#[test]
fn mistakes_about_the_proxy_protocol_are_told_together() {
    let listener = "cluster = \"web\"\nproxy_protocol = { trusted = [\"10.0.0.0/33\", \"here\"], \
                    timeout_ms = 0 }";
    let cluster = "[[clusters]]\nproxy_protocol = { version = \"v1\", tlvs = [\"authority\"] }\n\
                   health = { kind = \"udp\", send = \"x\", proxy_protocol = \"v2\" }";
    let text = GOOD.replace("cluster = \"web\"", listener).replace("[[clusters]]", cluster);
    assert_eq!(
        problems(&text),
        [
            "listeners[0].proxy_protocol.trusted[0]: \"10.0.0.0/33\" has more than 32 bits; write a \
             length from 0 to 32",
            "listeners[0].proxy_protocol.trusted[1]: \"here\" is no network; write one such as \
             \"10.0.0.0/8\", or an address",
            "listeners[0].proxy_protocol.timeout_ms: 0 is out of range; write 1 to 604800000",
            "clusters[0].proxy_protocol.tlvs: version 1 has none; leave them out, or write version = \
             \"v2\"",
            "clusters[0].health.proxy_protocol: has no meaning for kind = \"udp\"; remove it, or \
             change `kind`",
        ]
    );
}

#[test]
fn a_header_that_can_never_be_sent_is_refused() {
    let cluster = "[[clusters]]\nproxy_protocol = { tlvs = [\"authority\", \"unique-id\"] }";
    let udp = "cluster = \"web\"\nprotocol = \"udp\"\nproxy_protocol = {}";
    let text = GOOD.replace("cluster = \"web\"", udp).replace("[[clusters]]", cluster);
    assert_eq!(
        problems(&text),
        [
            "listeners[0].proxy_protocol: is for tcp listeners; leave it out, or write protocol = \
             \"tcp\"",
            "clusters[0].proxy_protocol: \"unique-id\" is for connections; leave it out of tlvs, or use \
             another cluster for the udp listeners",
            "clusters[0].proxy_protocol.tlvs: \"authority\" needs a listener of this cluster with key \
             = { kind = \"sni\" }; add one, or leave it out",
        ]
    );
}

#[test]
fn a_listener_that_trusts_nobody_is_told_to_name_somebody() {
    let listener = "cluster = \"web\"\nproxy_protocol = {}";
    let found = problems(&GOOD.replace("cluster = \"web\"", listener));
    let advice = "write who may say for whom it connects, such as [\"10.0.0.0/8\"]";
    assert_eq!(found, [format!("listeners[0].proxy_protocol.trusted: names nobody; {advice}")]);
}

#[test]
fn every_mistake_about_endpoints_that_are_missing_is_told() {
    let with =
        |keys: &str| problems(&GOOD.replace("[[clusters]]", &format!("[[clusters]]\n{keys}")));
    let cases = [
        (
            "passive = { consecutive_failures = 0 }",
            "clusters[0].passive.consecutive_failures: with 0 and no success_rate nobody is",
        ),
        (
            "passive = { base_ejection_ms = 9000, ejection_ms_max = 8999 }",
            "clusters[0].passive.ejection_ms_max: 8999 is shorter than base_ejection_ms",
        ),
        (
            "passive = { ejected_percent_max = 0 }",
            "clusters[0].passive.ejected_percent_max: 0 is out of range; write 1 to 100",
        ),
        (
            "passive = { success_rate = { deviations = 0.0 } }",
            "clusters[0].passive.success_rate.deviations: 0 is out of range",
        ),
        (
            "passive = { success_rate = { endpoints_min = 1 } }",
            "clusters[0].passive.success_rate.endpoints_min: 1 is out of range",
        ),
        (
            "passive = { sucess_rate = {} }",
            "clusters[0].passive.sucess_rate: there is no such key; did you mean \"success_rate\"?",
        ),
        (
            "panic_threshold_percent = 101",
            "clusters[0].panic_threshold_percent: 101 is out of range; write 0 to 100",
        ),
        (
            "panic_threshold_percent = 50\nfail_open = false",
            "clusters[0].panic_threshold_percent: uses all endpoints where few are available",
        ),
    ];
    for (keys, expected) in cases {
        let found = with(keys);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{keys}: {found:?}");
    }
    let found = problems(&GOOD.replace("9001\"", "9001\", backup = true"));
    let expected = "clusters[0].endpoints: all of them are backups, of nobody";
    assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
}

#[test]
fn every_mistake_about_places_queues_and_shares_is_told() {
    let limited = GOOD.replace("9001\"", "9001\", max_flows = 5");
    let queued = |text: &str, keys: &str| {
        problems(&text.replace("[[clusters]]", &format!("[[clusters]]\nqueue = {{ {keys} }}")))
    };
    for (found, expected) in [
        (
            problems(&GOOD.replace("9001\"", "9001\", max_flows = 10000001")),
            "clusters[0].endpoints[0].max_flows: 10000001 is out of range; write 0 to 10000000",
        ),
        (
            problems(&GOOD.replace("endpoints", "slow_start_ms = 604800001\nendpoints")),
            "clusters[0].slow_start_ms: 604800001 is out of range; write 1 to 604800000",
        ),
        (
            problems(
                &GOOD
                    .replace("endpoints", "slow_start_ms = 1\nendpoints")
                    .replace("9001\"", "9001\", weight = 6554"),
            ),
            "clusters[0].endpoints[0].weight: 6554 is out of range; write 1 to 6553",
        ),
        (queued(GOOD, ""), "clusters[0].queue: nobody ever waits, because an endpoint without"),
        (
            queued(&limited, "max_flows = 0"),
            "clusters[0].queue.max_flows: 0 is out of range; write 1 to 10000000",
        ),
        (queued(&limited, "timeout_ms = 0"), "clusters[0].queue.timeout_ms: 0 is out of range"),
        (queued(&limited, "size = 3"), "clusters[0].queue.size: there is no such key; known are"),
        (
            queued(&limited.replacen("cluster", "protocol = \"udp\"\ncluster", 1), ""),
            "clusters[0].queue: no flow of UDP ever waits",
        ),
    ] {
        assert!(found.len() == 1 && found[0].starts_with(expected), "{expected}: {found:?}");
    }
    assert_eq!(queued(&limited, ""), Vec::<String>::new());
}
