//! Endpoints that fail the flows they are given, and clusters that are short of endpoints.

mod support;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use support::{Balancer, Client, Endpoint, ask_once, eventually};

/// Accepts every connection and resets it at once.
fn breaking() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let none = Some(std::time::Duration::ZERO);
            let _ = rustix::net::sockopt::set_socket_linger(&stream, none);
        }
    });
    address
}

fn config(endpoints: &str, keys: &str) -> String {
    format!(
        r#"
workers = 2
[[listeners]]
name = "web"
address = "127.0.0.1:0"
cluster = "web"
[[clusters]]
name = "web"
endpoints = [{endpoints}]
{keys}
"#
    )
}

fn endpoint(address: SocketAddr) -> String {
    format!("{{ address = \"{address}\" }},")
}

fn ejected(balancer: &Balancer, address: SocketAddr) -> Option<String> {
    let status = balancer.status();
    let endpoints = status.clusters.iter().flat_map(|cluster| &cluster.endpoints);
    let found = endpoints.into_iter().find(|endpoint| endpoint.address == address.to_string());
    found.expect("an endpoint").ejected.clone()
}

fn who_answers(address: SocketAddr) -> BTreeSet<SocketAddr> {
    (0..10).filter_map(|_| ask_once(address).ok()).collect()
}

#[test]
fn an_endpoint_that_accepts_and_breaks_every_flow_is_ejected_and_returns() {
    let good = Endpoint::start();
    let bad = breaking();
    let passive = "passive = { consecutive_failures = 3, base_ejection_ms = 500 }";
    let text = config(&(endpoint(good.address) + &endpoint(bad)), passive);
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    eventually("it is ejected", || {
        let _ = ask_once(web);
        ejected(&balancer, bad).as_deref() == Some("consecutive-failures")
    });
    assert!(balancer.is_up(bad), "no check has spoken against it");
    eventually("it returns", || ejected(&balancer, bad).is_none());
    eventually("it is ejected again", || {
        let _ = ask_once(web);
        ejected(&balancer, bad).is_some()
    });
    let total = format!("pointsman_endpoint_ejections_total{{cluster=\"web\",endpoint=\"{bad}\"}}");
    assert!(balancer.metric(&total) >= 2.0);
    let log = balancer.log();
    for line in ["endpoint is ejected", "consecutive-failures", "endpoint is no longer ejected"] {
        assert!(log.contains(line), "{line} is not in {log}");
    }
}

#[test]
fn an_ejected_endpoint_gets_no_new_flows_and_keeps_those_it_has() {
    // One of its connections is served, all later ones are reset.
    let (good, other) = (Endpoint::start(), Endpoint::start());
    let bad = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = bad.local_addr().expect("its address");
    std::thread::spawn(move || {
        let mut streams = bad.incoming().flatten();
        let first = streams.next().expect("a connection");
        std::thread::spawn(move || support::serve(first, address));
        for stream in streams {
            let none = Some(std::time::Duration::ZERO);
            let _ = rustix::net::sockopt::set_socket_linger(&stream, none);
        }
    });
    let passive = "passive = { consecutive_failures = 2, base_ejection_ms = 600000, \
                   ejection_ms_max = 600000 }";
    let all: String = [address, good.address, other.address].map(endpoint).concat();
    let balancer = Balancer::start(&config(&all, passive));
    let web = balancer.address("web");
    let mut kept: Vec<Client> = Vec::new();
    eventually("the endpoint has a flow that is served", || {
        let mut client = Client::connect(web).expect("a connection");
        let is_its = client.ask("before").is_ok_and(|by| by == address);
        kept.extend(is_its.then_some(client));
        !kept.is_empty()
    });
    eventually("it is ejected", || {
        let _ = ask_once(web);
        ejected(&balancer, address).is_some()
    });
    assert_eq!(who_answers(web), BTreeSet::from([good.address, other.address]));
    let name = format!("pointsman_endpoint_flows_total{{cluster=\"web\",endpoint=\"{address}\"}}");
    let flows = balancer.metric(&name);
    assert_eq!(who_answers(web).len(), 2);
    assert_eq!(balancer.metric(&name), flows, "it got no new flow");
    assert_eq!(kept[0].ask("after").expect("an answer"), address);
}

#[test]
fn an_endpoint_of_datagrams_that_owes_its_replies_is_ejected() {
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let answers = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let addresses = [&silent, &answers].map(|socket| socket.local_addr().expect("its address"));
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((len, peer)) = answers.recv_from(&mut buffer) {
            let _ = answers.send_to(&buffer[..len], peer);
        }
    });
    let all: String = addresses.map(endpoint).concat();
    let passive = "passive = { consecutive_failures = 2, base_ejection_ms = 600000, \
                   ejection_ms_max = 600000 }";
    let text = config(&all, passive).replace(
        "cluster = \"web\"\n[[",
        "cluster = \"web\"\nprotocol = \"udp\"\nreplies_expected = 1\nidle_timeout_ms = 50\n[[",
    );
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    eventually("the silent one is ejected", || {
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
        client.send_to(b"?", web).expect("a datagram");
        ejected(&balancer, addresses[0]).is_some()
    });
    assert_eq!(ejected(&balancer, addresses[1]), None);
}

#[test]
fn backups_serve_only_while_nobody_else_does() {
    let (own, backup) = (Endpoint::start(), Endpoint::start());
    let all = format!(
        "{{ address = \"{}\" }}, {{ address = \"{}\", backup = true }}",
        own.address, backup.address
    );
    let health = "health = { interval_ms = 50, rise = 2, fall = 2 }";
    let balancer = Balancer::start(&config(&all, health));
    let web = balancer.address("web");
    assert_eq!(who_answers(web), BTreeSet::from([own.address]));
    let address = own.address;
    drop(own);
    eventually("the backup serves", || who_answers(web) == BTreeSet::from([backup.address]));
    assert_eq!(balancer.status().clusters[0].footing, "backup");
    let footing = "pointsman_cluster_footing{cluster=\"web\",footing=\"backup\"}";
    assert_eq!(balancer.metric(footing), 1.0);
    let _back = Endpoint::start_at(address);
    eventually("its own endpoint serves again", || who_answers(web) == BTreeSet::from([address]));
    assert_eq!(balancer.status().clusters[0].footing, "sound");
}

#[test]
fn below_the_threshold_a_cluster_panics_and_uses_all_endpoints() {
    let endpoints = [Endpoint::start(), Endpoint::start(), Endpoint::start()];
    let addresses = endpoints.each_ref().map(|endpoint| endpoint.address);
    let keys = "panic_threshold_percent = 50\nhealth = { interval_ms = 50, rise = 1000, fall = 2 }";
    let balancer = Balancer::start(&config(&addresses.map(endpoint).concat(), keys));
    let web = balancer.address("web");
    let [stays, first, second] = endpoints;
    drop(first);
    eventually("one is down", || !balancer.is_up(addresses[1]));
    assert_eq!(balancer.status().clusters[0].footing, "sound");
    drop(second);
    eventually("it panics", || balancer.status().clusters[0].footing == "panic");
    let _back = [addresses[1], addresses[2]].map(Endpoint::start_at);
    assert_eq!(who_answers(web), BTreeSet::from(addresses), "they are down, and serve");
    assert!(balancer.log().contains("panics"), "{}", balancer.log());
    drop(stays);
}
