//! Endpoints that die and come back: who gets flows then, and who is told.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;

use support::kernel::{Namespace, may_make_networks, shell};
use support::{Balancer, Client, Endpoint, POINTSMAN, ask_once, eventually};

fn config(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<_> =
        endpoints.iter().map(|address| format!("{{ address = \"{address}\" }}")).collect();
    format!(
        r#"
workers = 2
[[listeners]]
name = "web"
address = "127.0.0.1:0"
cluster = "web"
{more}
[[clusters]]
name = "web"
endpoints = [{}]
health = {{ interval_ms = 50, timeout_ms = 1000, rise = 2, fall = 2 }}
"#,
        endpoints.join(", ")
    )
}

fn who_answers(address: SocketAddr) -> BTreeSet<SocketAddr> {
    (0..20).filter_map(|_| ask_once(address).ok()).collect()
}

#[test]
fn flows_avoid_a_dead_endpoint_and_return_to_it_when_it_is_back() {
    let stays = Endpoint::start();
    let dies = Endpoint::start();
    let balancer = Balancer::start(&config(&[stays.address, dies.address], ""));
    let web = balancer.address("web");
    assert_eq!(who_answers(web), BTreeSet::from([stays.address, dies.address]));

    let address = dies.address;
    drop(dies);
    eventually("the dead endpoint is down", || !balancer.is_up(address));
    assert_eq!(who_answers(web), BTreeSet::from([stays.address]));
    let retries = balancer.metric("pointsman_connect_retries_total{listener=\"web\"}");
    assert_eq!(who_answers(web), BTreeSet::from([stays.address]));
    assert_eq!(
        balancer.metric("pointsman_connect_retries_total{listener=\"web\"}"),
        retries,
        "an endpoint that is down is not even tried"
    );
    let up = format!("pointsman_endpoint_up{{cluster=\"web\",endpoint=\"{address}\"}}");
    assert_eq!(balancer.metric(&up), 0.0);

    let _back = Endpoint::start_at(address);
    eventually("the endpoint is up again", || balancer.is_up(address));
    eventually("flows return to it", || who_answers(web).contains(&address));
    assert_eq!(balancer.metric(&up), 1.0);
}

#[test]
fn no_flow_is_lost_while_an_endpoint_is_dead_and_not_yet_known_to_be() {
    let stays = Endpoint::start();
    let dies = Endpoint::start();
    let address = dies.address;
    let text =
        config(&[stays.address, address], "").replace("interval_ms = 50", "interval_ms = 3600000");
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    drop(dies);
    for _ in 0..20 {
        assert_eq!(ask_once(web).expect("an answer"), stays.address);
    }
    eventually("failed connects alone take it down", || !balancer.is_up(address));
    assert!(balancer.metric("pointsman_connect_retries_total{listener=\"web\"}") >= 1.0);
}

#[test]
fn an_endpoint_that_accepts_and_is_ill_gets_no_flows() {
    let (well, ill) = (Endpoint::start(), Endpoint::start());
    let healthy = page("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let busy = page("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let cluster = |name: &str, endpoint: &Endpoint, page: SocketAddr| {
        format!(
            r#"
[[listeners]]
name = "{name}"
address = "127.0.0.1:0"
cluster = "{name}"
[[clusters]]
name = "{name}"
endpoints = [{{ address = "{}" }}]
fail_open = false
health = {{ kind = "http", port = {}, body = "ok", interval_ms = 50, rise = 2, fall = 2 }}
"#,
            endpoint.address,
            page.port()
        )
    };
    let text = cluster("well", &well, healthy) + &cluster("ill", &ill, busy);
    let balancer = Balancer::start(&text);
    eventually("the ill one is down", || !balancer.is_up(ill.address));
    eventually("the log says why", || balancer.log().contains("reason=\"status 503\""));
    assert!(ask_once(balancer.address("ill")).is_err(), "nobody else serves there");
    assert_eq!(ask_once(balancer.address("well")).expect("an answer"), well.address);
}

/// Answers every request with these bytes.
fn page(answer: &'static str) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn a_cluster_whose_endpoints_are_all_down_fails_open() {
    let endpoints = [Endpoint::start(), Endpoint::start()];
    let addresses = [endpoints[0].address, endpoints[1].address];
    let text = config(&addresses, "connect_attempts = 1").replace("rise = 2", "rise = 1000");
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    drop(endpoints);
    eventually("both are down", || addresses.iter().all(|address| !balancer.is_up(*address)));
    assert!(ask_once(web).is_err(), "nobody is there to answer");

    let _back = addresses.map(Endpoint::start_at);
    assert_eq!(who_answers(web), BTreeSet::from(addresses), "they are down, and serve");
    assert!(addresses.iter().all(|address| !balancer.is_up(*address)));
    assert!(balancer.log().contains("fails open"), "{}", balancer.log());
}

#[test]
fn a_cluster_that_may_not_fail_open_refuses() {
    let endpoint = Endpoint::start();
    let address = endpoint.address;
    let text = config(&[address], "")
        .replace("health =", "fail_open = false\nhealth =")
        .replace("rise = 2", "rise = 1000");
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    drop(endpoint);
    eventually("it is down", || !balancer.is_up(address));
    let _back = Endpoint::start_at(address);
    assert!(ask_once(web).is_err());
    let closes = "pointsman_closes_total{listener=\"web\",reason=\"no-endpoint\"}";
    eventually("the refusal is counted", || balancer.metric(closes) >= 1.0);
}

#[test]
fn established_flows_stay_or_go_as_the_listener_says() {
    for (on_endpoint_down, stays) in [("keep", true), ("reset", false)] {
        // The endpoint stops listening and keeps its connection. The cluster must not fail open:
        // an endpoint that may still be given flows keeps those it has.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let more = format!("on_endpoint_down = \"{on_endpoint_down}\"");
        let text = config(&[address], &more).replace("health =", "fail_open = false\nhealth =");
        let balancer = Balancer::start(&text);
        let mut client = Client::connect(balancer.address("web")).expect("a connection");
        let server = std::thread::spawn(move || serve_one_flow(&listener));
        assert_eq!(client.ask("before").expect("an answer"), address);
        eventually("it is down", || !balancer.is_up(address));
        if stays {
            assert_eq!(client.ask("after").expect("an answer"), address);
        } else {
            assert!(client.is_ended());
            let closes = "pointsman_closes_total{listener=\"web\",reason=\"endpoint-down\"}";
            eventually("the reset is counted", || balancer.metric(closes) == 1.0);
        }
        drop(client);
        server.join().expect("the endpoint");
    }
}

/// Serves the first connection that says something, and listens no more from then on.
fn serve_one_flow(listener: &std::net::TcpListener) {
    use std::io::{BufRead, BufReader, Write};

    let address = listener.local_addr().expect("its address");
    for stream in listener.incoming().flatten() {
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            continue;
        }
        // Without `accept` and with a shut-down listener, probes are refused.
        rustix::net::shutdown(listener, rustix::net::Shutdown::Both).expect("it is shut down");
        let mut writer = stream;
        loop {
            if write!(writer, "{address} {line}").is_err() {
                return;
            }
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
        }
    }
}

#[test]
fn an_endpoint_that_no_address_of_ours_leads_to_is_down() {
    if !may_make_networks() {
        return;
    }
    // Without a single address, where every connect over IPv6 fails as if there were no port.
    let nowhere = Namespace::new();
    let check = |kind: &str| {
        let text = config(&["[::1]:9".parse().expect("an address")], "");
        text.replace("health = {", &format!("health = {{ {kind},"))
    };
    for kind in ["kind = \"tcp\"", "kind = \"udp\", send = \"ping\""] {
        let text = check(kind);
        let balancer = nowhere.does(move || Balancer::start(&text));
        let endpoint = "[::1]:9".parse().expect("an address");
        eventually("it is down", || !balancer.is_up(endpoint));
    }
}

#[test]
fn an_endpoint_is_not_blamed_while_there_is_no_port_to_check_it_from() {
    if !may_make_networks() {
        return;
    }
    let few_ports = Namespace::new();
    let endpoint = few_ports.does(|| {
        shell("ip link set lo up; echo 40000 40015 > /proc/sys/net/ipv4/ip_local_port_range", &[]);
        Endpoint::start_at("127.0.0.1:9000".parse().expect("an address"))
    });
    let address = endpoint.address;
    let text = config(&[address], "").replace("fall = 2", "fall = 1");
    let mut told = Command::new("env");
    told.args(["POINTSMAN_LOG=pointsman=debug", POINTSMAN]);
    let balancer = few_ports.does(move || Balancer::launch_by(told, &text));
    eventually("it has its own port", || balancer.log().contains("accepts"));
    // Each check leaves its port in TIME_WAIT, so some may still come by one that is free again.
    let connect = move || Client::connect(address).ok();
    let held: Vec<_> = few_ports.does(move || std::iter::from_fn(connect).take(100).collect());
    let failed = || balancer.log().matches("check failed").count();
    eventually("checks have found no port", || failed() >= 5);
    assert!(balancer.is_up(address), "{}", balancer.log());
    drop(held);
}

#[test]
fn a_flow_gets_another_endpoint_where_there_is_no_way_to_the_first() {
    if !may_make_networks() {
        return;
    }
    let without_ipv6 = Namespace::new();
    let endpoint = without_ipv6.does(|| {
        shell("ip link set lo up; ip -6 addr flush dev lo", &[]);
        Endpoint::start()
    });
    let text = config(&["[::1]:9".parse().expect("an address"), endpoint.address], "");
    let (unchecked, _) = text.split_once("health").expect("checks");
    let unchecked = unchecked.to_owned();
    let balancer = without_ipv6.does(move || Balancer::start(&unchecked));
    let web = balancer.address("web");
    let answers: Vec<_> = without_ipv6.does(move || (0..20).map(|_| ask_once(web)).collect());
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(balancer.metric("pointsman_connect_retries_total{listener=\"web\"}") >= 1.0);
}
