//! Sockets that a service manager opens in the balancer's place and hands over.

mod support;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use pointsman_ring::bind_udp;
use rustix::process::Signal;
use support::udp::{Asker, Server, socket};
use support::{Balancer, Client, Endpoint, ask_once};

/// Two workers, a TCP listener `web` and a UDP listener `dns`.
fn config(web: (SocketAddr, &Endpoint), dns: (SocketAddr, &Server)) -> String {
    let listener = |name: &str, protocol: &str, address: SocketAddr, endpoint: SocketAddr| {
        format!(
            "[[listeners]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n\
             cluster = \"{name}\"\n[[clusters]]\nname = \"{name}\"\n\
             endpoints = [{{ address = \"{endpoint}\" }}]\n"
        )
    };
    let web = listener("web", "tcp", web.0, web.1.address);
    format!(
        "workers = 2\ndrain_timeout_ms = 100\n{web}{}",
        listener("dns", "udp", dns.0, dns.1.address)
    )
}

/// The port is the kernel's choice.
fn any() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn copy(socket: impl Into<OwnedFd>) -> OwnedFd {
    socket.into()
}

#[test]
fn sockets_that_are_handed_over_serve_those_too_who_came_before_there_was_a_balancer() {
    let (endpoint, server) = (Endpoint::start(), Server::start());
    let web = TcpListener::bind(any()).expect("a socket");
    let web_at = web.local_addr().expect("its address");
    let dns = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let dns_at = SocketAddr::new(web_at.ip(), dns.local_addr().expect("its address").port());
    let folder = tempfile::tempdir().expect("a folder");
    let admin_path = folder.path().join("admin.sock");
    let admin = UnixListener::bind(&admin_path).expect("a socket");

    let mut early = Client::connect(web_at).expect("the kernel takes it");
    let query = socket("127.0.0.1");
    query.send_to(b"first", dns_at).expect("it is sent");

    // By its address, and two by their names.
    let config = config((web_at, &endpoint), (any(), &server));
    let sockets = vec![copy(web), copy(dns), copy(admin.try_clone().expect("a descriptor"))];
    let mut balancer =
        Balancer::launch_with_sockets(&config, sockets, "pointsman.socket:dns:admin");
    assert_eq!(early.ask("early").expect("an answer"), endpoint.address);
    let mut reply = [0; 100];
    for text in ["first", "second"] {
        let (count, from) = query.recv_from(&mut reply).expect("a reply");
        assert_eq!(from, dns_at, "it comes from where the query went");
        assert!(reply[..count].ends_with(text.as_bytes()));
        query.send_to(b"second", dns_at).expect("it is sent");
    }
    for _ in 0..20 {
        assert_eq!(ask_once(web_at).expect("an answer"), endpoint.address);
    }
    let get = |path| pointsman::client::get(&admin_path, path).expect("an answer");
    let metrics = get("/metrics");
    assert!(metrics.contains("pointsman_flows_total{listener=\"web\"} 21\n"), "{metrics}");
    assert!(metrics.contains("pointsman_flows_total{listener=\"dns\"} 1\n"), "one flow: {metrics}");
    assert!(get("/v1/status").contains(&web_at.to_string()));

    balancer.signal(Signal::TERM);
    assert_eq!(balancer.await_end().code(), Some(0));
    assert!(admin_path.exists(), "whoever has made the admin socket removes it");
}

#[test]
fn who_comes_between_two_balancers_is_served_by_the_next() {
    let (endpoint, server) = (Endpoint::start(), Server::start());
    let web = TcpListener::bind(any()).expect("a socket");
    let web_at = web.local_addr().expect("its address");
    let config = config((web_at, &endpoint), (any(), &server));
    let start = || {
        let sockets = vec![copy(web.try_clone().expect("a descriptor"))];
        Balancer::start_with_sockets(&config, sockets, "web")
    };
    let mut first = start();
    ask_once(web_at).expect("an answer");
    first.signal(Signal::TERM);
    assert_eq!(first.await_end().code(), Some(0));
    let mut between = Client::connect(web_at).expect("the kernel takes it");
    let second = start();
    assert_eq!(between.ask("hello").expect("an answer"), endpoint.address);
    drop(second);
}

#[test]
fn a_flow_of_datagrams_stays_with_its_worker_however_many_sockets_there_are() {
    const CLIENTS: usize = 20;
    let (endpoint, server) = (Endpoint::start(), Server::start());
    for count in [1, 2] {
        let first = UdpSocket::from(bind_udp(any()).expect("a socket"));
        let dns_at = first.local_addr().expect("its address");
        let mut sockets = vec![copy(first)];
        sockets.extend((1..count).map(|_| bind_udp(dns_at).expect("another")));
        let names = vec!["pointsman.socket"; count].join(":");
        let config = config((any(), &endpoint), (dns_at, &server));
        let balancer = Balancer::start_with_sockets(&config, sockets, &names);
        let askers: Vec<_> = (0..CLIENTS).map(|_| Asker::new("127.0.0.1", dns_at)).collect();
        for _ in 0..3 {
            askers.iter().for_each(|asker| assert_eq!(asker.ask(b"hello"), server.address));
        }
        assert_eq!(balancer.metric("pointsman_flows_total{listener=\"dns\"}"), CLIENTS as f64);
        let log = balancer.log();
        assert_eq!(log.contains("not all workers receive datagrams"), count == 1, "{log}");
    }
}

#[test]
fn a_socket_that_is_nobodys_starts_nothing() {
    let (endpoint, server) = (Endpoint::start(), Server::start());
    let stray = TcpListener::bind(any()).expect("a socket");
    let address = stray.local_addr().expect("its address");
    let config = config((any(), &endpoint), (any(), &server));
    let mut balancer = Balancer::launch_with_sockets(&config, vec![copy(stray)], "other");
    assert_eq!(balancer.await_end().code(), Some(2));
    let told = format!("descriptor 3 (tcp {address}, named \"other\") is nobody's");
    assert!(balancer.log().contains(&told), "{}", balancer.log());
}
