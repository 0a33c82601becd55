//! Datagrams there and back: every family, every policy, every size.

mod support;

use std::collections::BTreeSet;
use std::env;
use std::net::SocketAddr;
use std::process::Command;

use support::udp::{Asker, LARGEST, Server, socket, udp_config};
use support::{Balancer, plugins};

const INSIDE: &str = "POINTSMAN_TEST_IN_NAMESPACE";

/// A configuration whose listener has this address.
fn listening_at(address: &str, endpoint: SocketAddr) -> String {
    udp_config("workers = 2", "", "round-robin", &[endpoint]).replacen("127.0.0.1:0", address, 1)
}

fn with_plugin(text: &str, plugin: &str) -> String {
    let path = plugins().join(format!("{plugin}.wasm"));
    let policy = "[[policies]]\nname = \"mine\"\ndecide_deadline_ms = 1000";
    format!("{text}{policy}\nplugin = {path:?}\n")
}

fn start_servers(count: usize) -> (Vec<Server>, Vec<SocketAddr>) {
    let servers: Vec<_> = (0..count).map(|_| Server::start()).collect();
    let addresses = servers.iter().map(|server| server.address).collect();
    (servers, addresses)
}

#[test]
fn both_families_reach_endpoints_of_both_families() {
    for client in ["127.0.0.1", "::1"] {
        for endpoint in ["127.0.0.1", "::1"] {
            let server = Server::start_on(endpoint);
            let listener = SocketAddr::new(client.parse().expect("an address"), 0).to_string();
            let balancer = Balancer::start(&listening_at(&listener, server.address));
            let asker = Asker::new(client, balancer.address("web"));
            assert_eq!(asker.ask(b"one"), server.address, "{client} to {endpoint}");
            assert_eq!(asker.ask(b"two"), server.address, "{client} to {endpoint}");
            assert_eq!(balancer.web("flows_total"), 1.0);
        }
    }
}

#[test]
fn a_wildcard_answers_from_the_address_that_was_asked() {
    let server = Server::start();
    for (listener, asked) in [
        ("0.0.0.0:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.2"),
        ("[::]:0", "127.0.0.2"),
        ("[::]:0", "::1"),
    ] {
        let balancer = Balancer::start(&listening_at(listener, server.address));
        let asked = SocketAddr::new(asked.parse().expect("it"), balancer.address("web").port());
        // Not connected, so that it hears whoever answers.
        let client = socket(if asked.is_ipv4() { "127.0.0.1" } else { "::1" });
        client.send_to(b"hello", asked).expect("it is sent");
        let (_, from) = client.recv_from(&mut [0; 100]).expect("an answer");
        assert_eq!(from, asked, "{listener}");
    }
}

#[test]
fn one_client_at_two_addresses_of_a_wildcard_has_two_flows() {
    let server = Server::start();
    let balancer = Balancer::start(&listening_at("0.0.0.0:0", server.address));
    let port = balancer.address("web").port();
    let client = socket("127.0.0.1");
    for address in ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"] {
        let asked = SocketAddr::new(address.parse().expect("an address"), port);
        client.send_to(b"hello", asked).expect("it is sent");
        assert_eq!(client.recv_from(&mut [0; 100]).expect("an answer").1, asked);
    }
    assert_eq!(balancer.web("flows_total"), 2.0);
}

#[test]
fn many_clients_of_two_workers_each_get_their_own_answers() {
    const CLIENTS: usize = 200;
    const ROUNDS: usize = 10;
    let (servers, addresses) = start_servers(3);
    for offload in [true, false] {
        let keys = format!("segmentation_offload = {offload}");
        let text = udp_config("workers = 2", &keys, "round-robin", &addresses);
        let balancer = Balancer::start(&text);
        let web = balancer.address("web");
        let askers: Vec<_> = (0..CLIENTS).map(|_| Asker::new("127.0.0.1", web)).collect();
        let mut met = vec![BTreeSet::new(); CLIENTS];
        for round in 0..ROUNDS {
            for (number, asker) in askers.iter().enumerate() {
                met[number].insert(asker.ask(format!("{number} {round}").as_bytes()));
            }
        }
        assert!(met.iter().all(|endpoints| endpoints.len() == 1), "a flow keeps its endpoint");
        let all: BTreeSet<_> = met.into_iter().flatten().collect();
        assert_eq!(all, addresses.iter().copied().collect());
        assert_eq!(balancer.web("flows_total"), CLIENTS as f64);
        assert_eq!(balancer.decisions("web", "native"), CLIENTS as f64);
        assert_eq!(balancer.datagrams("upstream"), (CLIENTS * ROUNDS) as f64);
        assert_eq!(balancer.datagrams("downstream"), (CLIENTS * ROUNDS) as f64);
        assert_eq!(balancer.sum("pointsman_drops_total"), 0.0);
        assert_eq!(balancer.sum("pointsman_sheds_total"), 0.0);
    }
    let served: usize = servers.iter().map(Server::served).sum();
    assert_eq!(served, 2 * CLIENTS * ROUNDS);
}

#[test]
fn a_plugin_is_asked_once_per_flow_and_never_about_a_datagram_that_hits() {
    const FLOWS: usize = 20;
    const ROUNDS: usize = 250;
    let (_servers, addresses) = start_servers(3);
    let text = with_plugin(&udp_config("workers = 2", "", "mine", &addresses), "p2c");
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let askers: Vec<_> = (0..FLOWS).map(|_| Asker::new("127.0.0.1", web)).collect();
    let calls = || balancer.metric("pointsman_decision_seconds_count{policy=\"mine\"}");
    for asker in &askers {
        asker.ask(b"a miss");
    }
    assert_eq!(calls(), FLOWS as f64);
    for _ in 1..ROUNDS {
        askers.iter().for_each(|asker| _ = asker.ask(b"a hit"));
    }
    assert_eq!(calls(), FLOWS as f64, "a hit asks nobody");
    assert_eq!(balancer.decisions("web", "plugin"), FLOWS as f64);
    assert_eq!(balancer.decisions("web", "cache"), 0.0);
    assert_eq!(balancer.web("flows_total"), FLOWS as f64);
    assert_eq!(balancer.datagrams("upstream"), (FLOWS * ROUNDS) as f64);
    assert_eq!(balancer.datagrams("downstream"), (FLOWS * ROUNDS) as f64);
}

#[test]
fn all_ports_of_a_client_follow_one_decision() {
    const PORTS: usize = 50;
    const ROUNDS: usize = 40;
    let (_servers, addresses) = start_servers(4);
    let text = with_plugin(&udp_config("workers = 1", "", "mine", &addresses), "client-affinity");
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    for (clients, ip) in (1..).zip(["127.0.0.1", "127.0.0.2", "127.0.0.3"]) {
        let askers: Vec<_> = (0..PORTS).map(|_| Asker::new(ip, web)).collect();
        let ask_all = |_| askers.iter().map(|asker| asker.ask(b"hello")).collect::<Vec<_>>();
        let met: BTreeSet<_> = (0..ROUNDS).flat_map(ask_all).collect();
        assert_eq!(met.len(), 1, "{ip} met {met:?}");
        assert_eq!(balancer.decisions("web", "plugin"), f64::from(clients));
        let kept = clients * (PORTS as u32 - 1);
        assert_eq!(balancer.decisions("web", "cache"), f64::from(kept));
    }
    assert_eq!(balancer.web("flows_total"), 3.0 * PORTS as f64);
    assert_eq!(balancer.datagrams("upstream"), (3 * PORTS * ROUNDS) as f64);
    assert_eq!(balancer.metric("pointsman_decision_seconds_count{policy=\"mine\"}"), 3.0);
}

/// Sends datagrams of these sizes there and others back, through a balancer with these keys.
fn pass_both_ways(keys: &str, sizes: &[usize]) {
    let origin = socket("127.0.0.1");
    let endpoint = origin.local_addr().expect("its address");
    let balancer = Balancer::start(&udp_config("workers = 1", keys, "round-robin", &[endpoint]));
    let asker = Asker::new("127.0.0.1", balancer.address("web"));
    let mut bytes = vec![0; LARGEST + 1];
    for (round, &size) in sizes.iter().enumerate() {
        let pattern: Vec<u8> = (0..size).map(|place| (place * 7 + round) as u8).collect();
        asker.send(&pattern);
        let (count, port) = origin.recv_from(&mut bytes).expect("it arrives");
        assert!(bytes[..count] == pattern, "{size} bytes upstream became {count}");
        let pattern: Vec<u8> = (0..size).map(|place| (place * 11 + round) as u8).collect();
        origin.send_to(&pattern, port).expect("it is sent");
        assert!(asker.receive() == pattern, "{size} bytes downstream");
    }
    let total = sizes.iter().sum::<usize>() as f64;
    for direction in ["upstream", "downstream"] {
        let labels = format!("listener=\"web\",direction=\"{direction}\"");
        assert_eq!(balancer.metric(&format!("pointsman_bytes_total{{{labels}}}")), total);
        assert_eq!(balancer.datagrams(direction), sizes.len() as f64);
    }
    assert_eq!(balancer.web("flows_total"), 1.0);
    assert_eq!(balancer.sum("pointsman_drops_total"), 0.0);
}

#[test]
fn datagrams_of_every_size_pass_both_ways_unchanged() {
    let sizes = [0, 1, 0, 0, 1_400, 1_500, 9_000, 0, 30_000, 65_000, LARGEST - 1, LARGEST, 0, 5];
    for ports in ["shared", "per-flow"] {
        for offload in [true, false] {
            let keys = format!("upstream_sockets = \"{ports}\"\nsegmentation_offload = {offload}");
            pass_both_ways(&keys, &sizes);
        }
    }
}

/// The loopback interface of a namespace of its own gets a small MTU; this test runs again in there.
#[test]
fn datagrams_larger_than_the_mtu_pass_in_fragments() {
    if env::var_os(INSIDE).is_some() {
        pass_both_ways("", &[1_252, 1_253, 1_500, 4_000, 20_000, LARGEST, 0]);
        return;
    }
    let script = "ip link set lo mtu 1280 up && exec \"$@\"";
    let unshared = |command: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "sh", "-c", script, "sh"]).args(command).env(INSIDE, "1");
        unshare.output()
    };
    if !unshared(&["true"]).is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no network namespace can be made here, which takes root");
        return;
    }
    let this = env::current_exe().expect("this test");
    let name = "datagrams_larger_than_the_mtu_pass_in_fragments";
    let output = unshared(&[this.to_str().expect("text"), "--exact", name]).expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
