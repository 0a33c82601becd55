//! Limits on flows of datagrams, and floods that run into them.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use support::udp::{Asker, MUTE, Server, socket, udp_config};
use support::{Balancer, eventually};

fn web_config(top: &str, keys: &str, server: &Server) -> String {
    udp_config(top, keys, "round-robin", &[server.address])
}

/// Asks; false if the flow is refused for this reason, of which there have been `refused`.
fn is_served(balancer: &Balancer, asker: &Asker, reason: &str, refused: &mut f64) -> bool {
    asker.send(b"hello");
    let mut served = false;
    eventually("it is served or refused", || {
        served = asker.answered(b"hello").is_some();
        served || balancer.count("sheds", reason) > *refused
    });
    *refused += f64::from(u8::from(!served));
    served
}

/// How many of these clients are served.
fn count_served(balancer: &Balancer, askers: &[Asker], reason: &str) -> usize {
    let mut refused = balancer.count("sheds", reason);
    askers.iter().filter(|asker| is_served(balancer, asker, reason, &mut refused)).count()
}

fn askers(ip: &str, listener: SocketAddr, count: usize) -> Vec<Asker> {
    (0..count).map(|_| Asker::new(ip, listener)).collect()
}

#[test]
fn the_most_flows_are_those_of_all_workers() {
    let server = Server::start();
    let balancer = Balancer::start(&web_config("workers = 2", "max_flows = 16", &server));
    let askers = askers("127.0.0.1", balancer.address("web"), 24);
    assert_eq!(count_served(&balancer, &askers, "flows-max"), 16);
    assert_eq!(balancer.web("flows_active"), 16.0);
    assert_eq!(balancer.count("sheds", "flows-max"), 8.0);
    assert_eq!(balancer.sum("pointsman_sheds_total"), 8.0);
    askers[..16].iter().for_each(|asker| _ = asker.ask(b"still here"));
    assert_eq!(balancer.web("flows_total"), 16.0);
    assert_eq!(balancer.sum("pointsman_closes_total"), 0.0);
}

#[test]
fn all_listeners_together_have_no_more_flows_than_they_may() {
    let server = Server::start();
    let balancer = Balancer::start(&web_config("workers = 2\nmax_flows = 10", "", &server));
    let askers = askers("127.0.0.1", balancer.address("web"), 14);
    assert_eq!(count_served(&balancer, &askers, "all-flows-max"), 10);
    askers[..10].iter().for_each(|asker| _ = asker.ask(b"still here"));
    assert_eq!(balancer.web("flows_active"), 10.0);
}

#[test]
fn senders_who_are_never_answered_keep_nobody_from_an_endpoint_that_is_full() {
    let server = Server::start();
    let full = format!("{{ address = \"{}\", max_flows = 4 }}", server.address);
    let text = web_config("workers = 1", "", &server);
    let text = text.replace(&format!("{{ address = \"{}\" }}", server.address), &full);
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let strangers = askers("127.0.0.2", web, 8);
    strangers.iter().for_each(|stranger| stranger.send(MUTE));
    eventually("all have come", || balancer.web("flows_total") == 8.0);
    let clients = askers("127.0.0.1", web, 4);
    clients.iter().for_each(|client| _ = client.ask(b"hello"));
    eventually("each has made way", || balancer.count("closes", "evicted") == 8.0);
    Asker::new("127.0.0.3", web).send(b"hello");
    eventually("who was answered stays", || balancer.count("sheds", "endpoints-full") == 1.0);
    clients.iter().for_each(|client| _ = client.ask(b"still here"));
    assert_eq!(balancer.web("flows_total"), 12.0);
}

#[test]
fn clients_who_may_not_come_get_no_flow_even_where_a_policy_needs_none() {
    let server = Server::start();
    let keys = "deny = [\"127.0.0.2/31\"]";
    let text = udp_config("workers = 2", keys, "maglev", &[server.address]);
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let ips = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"];
    let served = ips.map(|ip| count_served(&balancer, &askers(ip, web, 1), "not-allowed"));
    assert_eq!(served, [1, 0, 0, 1]);
    assert_eq!(server.served(), 2, "no datagram has reached the endpoint without a flow");
}

#[test]
fn a_client_that_starts_too_many_flows_at_once_is_shed_and_others_are_not() {
    let server = Server::start();
    let keys = "new_flows_per_second_per_client = 1";
    let balancer = Balancer::start(&web_config("workers = 2", keys, &server));
    let web = balancer.address("web");
    let mut greedy = Vec::new();
    eventually("it is shed", || {
        greedy.push(Asker::new("127.0.0.2", web));
        greedy.last().expect("one").send(b"hello");
        balancer.count("sheds", "client-new-flow-rate") >= 3.0
    });
    Asker::new("127.0.0.3", web).ask(b"another client");
}

#[test]
fn a_client_has_as_many_flows_as_it_may_over_all_workers() {
    let server = Server::start();
    let keys = "max_flows_per_client = 3";
    let balancer = Balancer::start(&web_config("workers = 2", keys, &server));
    let web = balancer.address("web");
    let greedy = askers("127.0.0.1", web, 8);
    assert_eq!(count_served(&balancer, &greedy, "client-flows-max"), 3);
    let modest = askers("127.0.0.2", web, 3);
    assert_eq!(count_served(&balancer, &modest, "client-flows-max"), 3);
    assert_eq!(balancer.count("sheds", "client-flows-max"), 5.0);
    assert_eq!(balancer.web("flows_active"), 6.0);
}

#[test]
fn flows_beyond_the_rate_are_shed_under_that_name() {
    const CLIENTS: usize = 100;
    let server = Server::start();
    let keys = "new_flows_per_second = 1";
    let balancer = Balancer::start(&web_config("workers = 2", keys, &server));
    let web = balancer.address("web");
    let askers = askers("127.0.0.1", web, CLIENTS);
    askers.iter().for_each(|asker| asker.send(b"hello"));
    eventually("each is counted", || {
        balancer.web("flows_total") + balancer.count("sheds", "new-flow-rate") == CLIENTS as f64
    });
    assert!(balancer.count("sheds", "new-flow-rate") > 0.0);
    assert!(balancer.web("flows_total") >= 1.0);
    assert_eq!(balancer.datagrams("upstream"), balancer.web("flows_total"));
}

#[test]
fn a_stateless_policy_is_followed_beyond_the_rate() {
    const CLIENTS: u8 = 60;
    const EACH: usize = 5;
    let origins: Vec<_> = (0..3).map(|_| socket("127.0.0.1")).collect();
    let addresses: Vec<_> =
        origins.iter().map(|origin| origin.local_addr().expect("its address")).collect();
    let text = udp_config("workers = 2", "new_flows_per_second = 1", "maglev", &addresses);
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    let clients: Vec<_> =
        (1..=CLIENTS).map(|last| Asker::new(&format!("127.0.7.{last}"), web)).collect();
    for _ in 0..EACH {
        for (number, client) in clients.iter().enumerate() {
            client.send(number.to_string().as_bytes());
        }
    }
    let sent = f64::from(CLIENTS) * EACH as f64;
    eventually("all are forwarded", || balancer.datagrams("upstream") == sent);
    let mut met: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    let mut received = 0;
    for (endpoint, origin) in origins.iter().enumerate() {
        origin.set_nonblocking(true).expect("it does not block");
        let mut bytes = [0; 100];
        while let Ok(count) = origin.recv(&mut bytes) {
            let client = String::from_utf8_lossy(&bytes[..count]).into_owned();
            met.entry(client).or_default().insert(endpoint);
            received += 1;
        }
    }
    assert_eq!(f64::from(received), sent);
    assert!(met.values().all(|endpoints| endpoints.len() == 1), "{met:?}");
    assert_eq!(met.values().flatten().collect::<BTreeSet<_>>().len(), 3, "{met:?}");
    let stateless = balancer.web("stateless_datagrams_total");
    assert!(stateless > 0.0);
    assert_eq!(balancer.sum("pointsman_sheds_total"), 0.0);
    assert_eq!(balancer.sum("pointsman_drops_total"), 0.0);
}

#[test]
fn a_datagram_that_is_shed_is_no_keyless_flow() {
    let server = Server::start();
    let keys = "max_flows = 16\nkey = { kind = \"dns-name\" }";
    let balancer = Balancer::start(&web_config("workers = 2", keys, &server));
    let askers = askers("127.0.0.1", balancer.address("web"), 24);
    assert_eq!(count_served(&balancer, &askers, "flows-max"), 16);
    assert_eq!(balancer.count("sheds", "flows-max"), 8.0);
    assert_eq!(balancer.count("keyless_flows", "malformed"), 16.0);
}

#[test]
fn an_endpoint_has_as_many_flows_as_there_are_ports() {
    for (endpoints, ports, expected) in [(1, "shared", 2), (2, "shared", 4), (2, "per-flow", 2)] {
        let servers: Vec<_> = (0..endpoints).map(|_| Server::start()).collect();
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let keys = format!("upstream_ports_max = 2\nupstream_sockets = \"{ports}\"");
        let text = udp_config("workers = 1", &keys, "least-flows", &addresses);
        let balancer = Balancer::start(&text);
        let askers = askers("127.0.0.1", balancer.address("web"), 7);
        assert_eq!(count_served(&balancer, &askers, "ports"), expected, "{endpoints} {ports}");
        assert_eq!(balancer.count("sheds", "ports"), (7 - expected) as f64);
        assert_eq!(balancer.web("flows_active"), expected as f64);
        assert_eq!(balancer.sum("pointsman_upstream_ports"), 2.0);
    }
}

/// One datagram each from this many addresses; every now and then the one client asks.
fn flood(balancer: &Balancer, sources: u32, client: &Asker, server: &Server) {
    let web = balancer.address("web");
    for source in 0..sources {
        let [_, high, middle, low] = source.to_be_bytes();
        let address = Ipv4Addr::new(127, 32 + high, middle, low);
        let socket = UdpSocket::bind((address, 0)).expect("a port");
        socket.send_to(MUTE, web).expect("it is sent");
        if source % 100 == 0 {
            while client.answered(b"hello").is_some() {}
            assert_eq!(client.insist(b"hello"), server.address);
        }
    }
}

#[test]
fn a_flood_of_senders_disturbs_no_flow_that_is_answered_and_takes_no_memory() {
    const SOURCES: u32 = 50_000;
    let server = Server::start();
    let keys = "max_flows = 2000\nidle_timeout_ms = 600000";
    let balancer = Balancer::start(&web_config("workers = 2", keys, &server));
    let client = Asker::new("127.0.0.1", balancer.address("web"));
    client.ask(b"hello");
    let resident: Vec<_> = (0..3)
        .map(|_| {
            flood(&balancer, SOURCES, &client, &server);
            balancer.resident_kib()
        })
        .collect();
    assert!(resident[2] <= resident[0] + 2_048, "{resident:?} KiB");
    let listing = std::process::Command::new(support::POINTSMAN)
        .args(["flows", "--state", "established", "--json", "--admin"])
        .arg(balancer.socket())
        .output()
        .expect("it runs");
    let page: serde_json::Value = serde_json::from_slice(&listing.stdout).expect("JSON");
    let flows = page["flows"].as_array().expect("a list");
    assert_eq!(flows.len(), 1, "{page}");
    let asked = flows[0]["datagrams_downstream"].as_u64().expect("a number");
    assert!(asked > u64::from(3 * SOURCES / 100), "it is the first flow still: {page}");
    assert!(balancer.count("closes", "evicted") > f64::from(SOURCES));
    assert_eq!(balancer.sum("pointsman_closes_total"), balancer.count("closes", "evicted"));
    assert!(balancer.web("flows_active") <= 2_000.0);
    balancer.assert_flows_add_up();
}
