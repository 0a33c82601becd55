//! Connections that leave from their clients' addresses, between network namespaces: a client's, the
//! balancer's and an endpoint's. A namespace is a thread's, and goes with it.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use support::kernel::{Namespace, may_make_networks, shell};
use support::{Balancer, GIVE_UP};

/// The balancer's side of both links. What comes from endpoints is taken for ours, whomever it is for.
const ROUTES: &str = "ip link set lo up
ip link add e0 type veth peer name e1 netns $ENDPOINT
ip link add c0 type veth peer name c1 netns $CLIENT
ip addr add 10.77.0.1/24 dev e0; ip addr add fd77::1/64 dev e0 nodad
ip addr add 203.0.113.1/24 dev c0; ip addr add 2001:db8:1::1/64 dev c0 nodad
ip link set e0 up; ip link set c0 up
ip rule add iif e0 lookup 100; ip route add local 0.0.0.0/0 dev lo table 100
ip -6 rule add iif e0 lookup 100; ip -6 route add local ::/0 dev lo table 100";
const ENDPOINT: &str = "ip addr add 10.77.0.2/24 dev e1; ip addr add fd77::2/64 dev e1 nodad
ip link set e1 up
ip route add default via 10.77.0.1; ip -6 route add default via fd77::1";
const CLIENT: &str = "ip addr add 203.0.113.9/24 dev c1; ip addr add 2001:db8:1::9/64 dev c1 nodad
ip link set c1 up";

/// Answers the first line of every connection with where it comes from.
fn serve(address: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(address).expect("a socket");
    let address = listener.local_addr().expect("its address");
    // It is in the namespace of its socket, wherever it runs.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().expect("its peer").ip();
            let mut line = String::new();
            if BufReader::new(&stream).read_line(&mut line).is_ok_and(|count| count > 0) {
                let _ = write!(stream, "{peer} {line}");
            }
        }
    });
    address
}

/// Where an endpoint says that a connection comes from.
fn seen(balancer: SocketAddr) -> IpAddr {
    let mut stream = TcpStream::connect(balancer).expect("a connection");
    stream.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
    stream.write_all(b"who am I\n").expect("a line");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    let (address, echo) = line.split_once(' ').expect("an address");
    assert_eq!(echo, "who am I\n");
    address.parse().expect("an address")
}

fn config(listener: IpAddr, endpoint: SocketAddr, transparent: bool) -> String {
    format!(
        "workers = 2\n[[listeners]]\nname = \"web\"\naddress = \"{}\"\ncluster = \"web\"\n\
         [[clusters]]\nname = \"web\"\ntransparent = {transparent}\n\
         endpoints = [{{ address = \"{endpoint}\" }}]\n",
        SocketAddr::new(listener, 0)
    )
}

#[test]
fn endpoints_see_whom_they_serve_on_connections_that_leave_from_the_clients_address() {
    if !may_make_networks() {
        return;
    }
    let [client, endpoint, ours] = [0; 3].map(|_| Namespace::new());
    let threads =
        [("CLIENT", client.thread.to_string()), ("ENDPOINT", endpoint.thread.to_string())];
    ours.does(move || shell(ROUTES, &threads));
    endpoint.does(|| shell(ENDPOINT, &[]));
    client.does(|| shell(CLIENT, &[]));
    let cases = [
        ("203.0.113.1", "10.77.0.2", true, "203.0.113.9"),
        ("2001:db8:1::1", "fd77::2", true, "2001:db8:1::9"),
        // Of two families, or not asked for: from our own address.
        ("203.0.113.1", "fd77::2", true, "fd77::1"),
        ("203.0.113.1", "10.77.0.2", false, "10.77.0.1"),
    ];
    for (listener, served_at, transparent, expected) in cases {
        let [listener, served_at, expected] =
            [listener, served_at, expected].map(|text| text.parse::<IpAddr>().expect("an address"));
        let served_at = endpoint.does(move || serve(SocketAddr::new(served_at, 0)));
        let config = config(listener, served_at, transparent);
        let balancer = ours.does(move || Balancer::start(&config));
        let web = balancer.address("web");
        for _ in 0..10 {
            assert_eq!(client.does(move || seen(web)), expected, "{listener} to {served_at}");
        }
    }
}

#[test]
fn a_balancer_that_may_not_leave_from_others_addresses_does_not_start() {
    let config = config([127, 0, 0, 1].into(), ([127, 0, 0, 1], 9).into(), true);
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", "--bounding-set=-net_admin,-net_raw", support::POINTSMAN]);
    if !rustix::process::geteuid().is_root() {
        command = Command::new(support::POINTSMAN);
    }
    let mut balancer = Balancer::launch_by(command, &config);
    assert_eq!(balancer.await_end().code(), Some(2), "{}", balancer.log());
    let log = balancer.log();
    let told = "clusters[0].transparent: connections may not leave from clients' addresses";
    assert!(log.contains(told) && log.contains("start with CAP_NET_ADMIN"), "{log}");
}
