//! The PROXY protocol, in and out, over real sockets.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use pointsman_core::proxy::{Header, Identity, Outbound, Reader, Reading, Route, Version};
use serde_json::Value;
use support::raw::{Origin, connect, rest};
use support::{Balancer, eventually, udp};

const TRUSTING: &str = "proxy_protocol = { trusted = [\"127.0.0.0/8\"] }";
const CLIENT: &str = "203.0.113.9:4321";
const LOCAL: &str = "198.51.100.1:443";

/// A balancer with one worker, and keys of its listener and of its cluster.
fn start(listener: &str, cluster: &str, origin: &Origin) -> Balancer {
    Balancer::start(&config(listener, cluster, origin))
}

fn config(listener: &str, cluster: &str, origin: &Origin) -> String {
    let endpoint = origin.address();
    format!(
        "workers = 1\n[[listeners]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
         {listener}\n[[clusters]]\nname = \"web\"\n{cluster}\n\
         endpoints = [{{ address = \"{endpoint}\" }}]\n"
    )
}

fn header_of(version: Version, client: &str) -> Vec<u8> {
    let route = Route {
        client: client.parse().expect("an address"),
        local: LOCAL.parse().expect("an address"),
    };
    let outbound = Outbound { version, ..Outbound::PLAIN };
    Header::of_stream(&outbound, route, Identity::default()).as_bytes().to_vec()
}

/// Takes a header off the start of a stream.
fn take_header(stream: &mut TcpStream) -> (Vec<u8>, Option<Route>) {
    let (mut reader, mut bytes, mut byte) = (Reader::new(), Vec::new(), [0]);
    loop {
        stream.read_exact(&mut byte).expect("a header");
        bytes.push(byte[0]);
        match reader.read(&byte).1 {
            Reading::More => {}
            Reading::Whole(route) => return (bytes, route),
            Reading::Invalid => panic!("{bytes:?}"),
        }
    }
}

/// What comes when the other side of a flow has ended its stream.
fn all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the end");
    bytes
}

fn assert_closed(balancer: &Balancer, mut client: TcpStream, reason: &str) {
    assert!(rest(&mut client).is_err(), "the client is told by a reset");
    eventually(reason, || balancer.count("closes", reason) > 0.0);
}

#[test]
fn a_header_may_be_split_at_any_byte_and_what_follows_is_relayed_untouched() {
    let origin = Origin::start();
    let balancer = start(TRUSTING, "", &origin);
    let web = balancer.address("web");
    for version in [Version::V1, Version::V2] {
        let header = header_of(version, CLIENT);
        let bytes = [&header[..], b"the stream"].concat();
        for cut in 1..=bytes.len() {
            let mut client = connect(web);
            client.set_nodelay(true).expect("no delay");
            client.write_all(&bytes[..cut]).expect("the first part");
            client.write_all(&bytes[cut..]).expect("the second part");
            client.shutdown(Shutdown::Write).expect("an end");
            assert_eq!(all(&mut origin.accept()), b"the stream", "split at {cut}");
        }
    }
    let mut client = connect(web);
    client.set_nodelay(true).expect("no delay");
    for byte in [&header_of(Version::V2, CLIENT)[..], b"byte by byte"].concat() {
        client.write_all(&[byte]).expect("a byte");
    }
    client.shutdown(Shutdown::Write).expect("an end");
    assert_eq!(all(&mut origin.accept()), b"byte by byte");
}

#[test]
fn the_announced_address_is_the_clients_and_the_peers_is_in_the_log() {
    let origin = Origin::start();
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let text = config(TRUSTING, "", &origin);
    let balancer = Balancer::start(&format!("{text}[access_log]\npath = {log:?}\n"));
    let mut client = connect(balancer.address("web"));
    let peer = client.local_addr().expect("its address").to_string();
    client.write_all(&header_of(Version::V2, CLIENT)).expect("a header");
    let server = origin.accept();
    let flows = pointsman::client::get(&balancer.socket(), "/v1/flows").expect("flows");
    let flows: Value = serde_json::from_str(&flows).expect("JSON");
    let flow = &flows["flows"][0];
    assert_eq!((&flow["client"], &flow["local"]), (&CLIENT.into(), &LOCAL.into()), "{flows}");
    drop((client, server));
    let mut line = String::new();
    eventually("the line is written", || {
        line = fs::read_to_string(&log).unwrap_or_default();
        line.ends_with('\n')
    });
    let line: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&line["client"], &line["peer"]), (&CLIENT.into(), &peer.into()));
}

#[test]
fn a_sender_without_a_client_is_its_own() {
    let origin = Origin::start();
    let balancer = start(TRUSTING, "proxy_protocol = {}", &origin);
    for version in [Version::V1, Version::V2] {
        let mut client = connect(balancer.address("web"));
        client.write_all(Header::of_our_own(version).as_bytes()).expect("a header");
        let (_, route) = take_header(&mut origin.accept());
        assert_eq!(route.map(|route| route.client), client.local_addr().ok());
    }
}

#[test]
fn whoever_is_not_trusted_is_shed_whatever_it_says() {
    let origin = Origin::start();
    let listener = "proxy_protocol = { trusted = [\"192.0.2.0/24\", \"2001:db8::1\"] }";
    let balancer = start(listener, "", &origin);
    let mut client = connect(balancer.address("web"));
    // Whichever comes first is told of the reset.
    let written = client.write_all(&header_of(Version::V2, CLIENT));
    assert!(written.is_err() || rest(&mut client).is_err());
    eventually("it is shed", || balancer.count("sheds", "untrusted-peer") == 1.0);
    assert_eq!(balancer.web("flows_total"), 0.0);
}

#[test]
fn a_connection_without_a_header_in_time_is_closed() {
    let origin = Origin::start();
    let listener = "proxy_protocol = { trusted = [\"127.0.0.1\"], timeout_ms = 50 }";
    let balancer = start(listener, "", &origin);
    let mut client = connect(balancer.address("web"));
    client.write_all(b"PROXY TCP4 ").expect("a beginning");
    assert_closed(&balancer, client, "proxy-timeout");
}

#[test]
fn what_is_no_header_or_breaks_off_is_closed() {
    let origin = Origin::start();
    let balancer = start(TRUSTING, "", &origin);
    let mut client = connect(balancer.address("web"));
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("a request");
    assert_closed(&balancer, client, "proxy-invalid");
    let mut client = connect(balancer.address("web"));
    client.write_all(&header_of(Version::V2, CLIENT)[..20]).expect("a beginning");
    client.shutdown(Shutdown::Write).expect("an end");
    assert!(rest(&mut client).is_err());
    eventually("both are closed", || balancer.count("closes", "proxy-invalid") == 2.0);
}

#[test]
fn the_longest_values_are_skipped_even_where_little_is_waited_for() {
    let origin = Origin::start();
    let listener =
        format!("{TRUSTING}\npreread_bytes_max = 64\nkey = {{ kind = \"bytes\", length = 10 }}");
    let balancer = start(&listener, "", &origin);
    let mut header = header_of(Version::V2, CLIENT);
    let value = [&[0xee, 0xff, 0xf0][..], &[7; 0xfff0]].concat();
    header[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    header.extend(value);
    assert_eq!(header.len(), 16 + usize::from(u16::MAX));
    let mut client = connect(balancer.address("web"));
    client.write_all(&[&header[..], b"the stream"].concat()).expect("a header");
    client.shutdown(Shutdown::Write).expect("an end");
    assert_eq!(all(&mut origin.accept()), b"the stream");
    assert_eq!(balancer.sum("pointsman_keyless_flows_total"), 0.0);
}

#[test]
fn limits_are_the_announced_clients() {
    let origin = Origin::start();
    let balancer = start(&format!("{TRUSTING}\nmax_flows_per_client = 1"), "", &origin);
    let open = |client: &str| {
        let mut stream = connect(balancer.address("web"));
        stream.write_all(&header_of(Version::V1, client)).expect("a header");
        stream
    };
    let first = open("203.0.113.1:1");
    let served = origin.accept();
    let _another = open("203.0.113.2:1");
    let _served_too = origin.accept();
    let mut second = open("203.0.113.1:2");
    assert!(rest(&mut second).is_err());
    eventually("it is shed", || balancer.count("sheds", "client-flows-max") == 1.0);
    assert_eq!(balancer.count("closes", "shed"), 1.0);
    drop((first, served));
    eventually("the first has ended", || balancer.web("flows_active") == 1.0);
    let _third = open("203.0.113.1:3");
    let _serves = origin.accept();
}

#[test]
fn lists_are_asked_about_the_announced_client() {
    let origin = Origin::start();
    let listed = format!("{TRUSTING}\nallow = [\"203.0.113.0/24\"]");
    let balancer = start(&listed, "", &origin);
    let open = |client: &str| {
        let mut stream = connect(balancer.address("web"));
        stream.write_all(&header_of(Version::V2, client)).expect("a header");
        stream
    };
    let _allowed = open("203.0.113.1:1");
    let _served = origin.accept();
    let mut other = open("198.51.100.1:1");
    assert!(rest(&mut other).is_err());
    eventually("it is shed", || balancer.count("sheds", "not-allowed") == 1.0);
    eventually("it is closed", || balancer.count("closes", "shed") == 1.0);
}

/// The handshake message that a TLS client begins with, naming a server.
fn client_hello(name: &str) -> Vec<u8> {
    let vector =
        |width: usize, body: &[u8]| [&body.len().to_be_bytes()[8 - width..], body].concat();
    let names = vector(2, &[&[0][..], &vector(2, name.as_bytes())].concat());
    let extensions = vector(2, &[&[0, 0][..], &vector(2, &names)].concat());
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &extensions].concat();
    let message = [&[1][..], &vector(3, &body)].concat();
    [&[22, 3, 1][..], &vector(2, &message)].concat()
}

#[test]
fn a_name_after_the_header_is_read_and_told_on_with_an_id_and_a_checksum() {
    let origin = Origin::start();
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let text = config(
        &format!("{TRUSTING}\nkey = {{ kind = \"sni\" }}"),
        "proxy_protocol = { tlvs = [\"authority\", \"unique-id\", \"crc32c\"] }",
        &origin,
    );
    let balancer = Balancer::start(&format!("{text}[access_log]\npath = {log:?}\n"));
    let hello = client_hello("www.Example.com");
    let mut client = connect(balancer.address("web"));
    client
        .write_all(&[&header_of(Version::V1, CLIENT)[..], &hello].concat())
        .expect("a header and a hello");
    client.shutdown(Shutdown::Write).expect("an end");
    let mut server = origin.accept();
    let (header, route) = take_header(&mut server);
    let route = route.expect("a route");
    assert_eq!(route.client.to_string(), CLIENT);
    assert_eq!(route.local.to_string(), LOCAL);
    assert_eq!(&header[28..46], b"\x02\0\x0fwww.example.com");
    assert_eq!(&header[46..49], &[5, 0, 16]);
    assert_eq!(&header[65..68], &[3, 0, 4]);
    assert_eq!(all(&mut server), hello, "the hello is relayed as it came");
    drop((client, server));
    let mut line = String::new();
    eventually("the line is written", || {
        line = fs::read_to_string(&log).unwrap_or_default();
        line.ends_with('\n')
    });
    let line: Value = serde_json::from_str(&line).expect("JSON");
    let id: String = header[49..65].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(line["unique_id"], id, "the log names the flow as the endpoint knows it");
    assert_eq!(line["bytes_upstream"], hello.len(), "the header is not the stream's");
}

#[test]
fn every_endpoint_is_told_by_the_header_of_its_cluster() {
    let origin = Origin::start();
    for (version, begins) in
        [("v1", &b"PROXY TCP4 127.0.0.1 127.0.0.1 "[..]), ("v2", b"\r\n\r\n\0")]
    {
        let balancer =
            start("", &format!("proxy_protocol = {{ version = \"{version}\" }}"), &origin);
        let web = balancer.address("web");
        let client = connect(web);
        let (header, route) = take_header(&mut origin.accept());
        assert!(header.starts_with(begins), "{header:?}");
        let route = route.expect("a route");
        let known: [SocketAddr; 2] = [route.client, route.local];
        assert_eq!(known, [client.local_addr().expect("its address"), web]);
    }
}

#[test]
fn every_datagram_of_a_client_has_a_header_and_replies_have_none() {
    let endpoint = udp::socket("127.0.0.1");
    let address = endpoint.local_addr().expect("its address");
    let outbound = "proxy_protocol = { tlvs = [\"crc32c\"] }";
    let text = udp::udp_config("workers = 1", "", "round-robin", &[address]);
    let balancer = Balancer::start(&text.replace("policy =", &format!("{outbound}\npolicy =")));
    let web = balancer.address("web");
    let client = udp::socket("127.0.0.1");
    client.connect(web).expect("it is connected");
    let known = client.local_addr().expect("its address");
    for payload in [&b"first"[..], b"", b"third"] {
        client.send(payload).expect("a datagram");
        let mut bytes = [0; 2_000];
        let (length, balancer) = endpoint.recv_from(&mut bytes).expect("a datagram");
        let header = Header::of_datagram(
            &Outbound { crc32c: true, ..Outbound::PLAIN },
            Route { client: known, local: web },
            Identity::default(),
        );
        assert_eq!(&bytes[..length], [header.as_bytes(), payload].concat());
        endpoint.send_to(b"reply", balancer).expect("a reply");
        let length = client.recv(&mut bytes).expect("a reply");
        assert_eq!(&bytes[..length], b"reply");
    }
    assert_eq!(balancer.datagrams("upstream"), 3.0);
}
