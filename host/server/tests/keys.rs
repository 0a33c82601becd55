//! Keys in the first bytes of a flow: those that share one share an endpoint.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use support::raw::{config_with_policy, connect};
use support::udp::{Asker, Server, udp_config};
use support::{Balancer, eventually};

const ENDPOINTS: usize = 8;
const NAMES: usize = 24;

/// Clients that have nothing in common but the key in their datagrams meet the same endpoint.
fn share(key: &str, packet: impl Fn(&str, u8) -> Vec<u8>) -> (Vec<Server>, Balancer) {
    let servers: Vec<_> = (0..ENDPOINTS).map(|_| Server::start()).collect();
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let text = udp_config("workers = 2", &format!("key = {key}"), "maglev", &addresses);
    let balancer = Balancer::start(&text);
    let web = balancer.address("web");
    // Kept, so that no client gets the port of an earlier one, and with it that one's flow.
    let (mut met, mut clients) = (BTreeSet::new(), Vec::new());
    for name in 0..NAMES {
        let name = format!("name{name:04}");
        let mut ask = |last: u8| {
            clients.push(Asker::new(&format!("127.0.9.{last}"), web));
            clients[clients.len() - 1].ask(&packet(&name, last))
        };
        let endpoints: BTreeSet<_> = (1..=5).map(&mut ask).collect();
        assert_eq!(endpoints.len(), 1, "{name} meets {endpoints:?}");
        met.extend(endpoints);
    }
    assert!(met.len() > 1, "all names meet {met:?}");
    assert_eq!(balancer.sum("pointsman_keyless_flows_total"), 0.0);
    assert_eq!(balancer.web("flows_total"), (5 * NAMES) as f64);
    (servers, balancer)
}

/// A datagram without the key is answered as well, and counted.
fn go_on_without(balancer: &Balancer, bytes: &[u8], reason: &str) {
    let keyless = balancer.count("keyless_flows", reason);
    Asker::new("127.0.0.1", balancer.address("web")).ask(bytes);
    assert_eq!(balancer.count("keyless_flows", reason), keyless + 1.0, "{reason}");
}

#[test]
fn clients_with_the_same_bytes_share_an_endpoint() {
    let packet = |name: &str, client: u8| format!("{client:02}{name}{client}").into_bytes();
    let (_servers, balancer) = share("{ kind = \"bytes\", offset = 2, length = 8 }", packet);
    go_on_without(&balancer, b"short", "absent");
    go_on_without(&balancer, b"", "absent");
}

#[test]
fn queries_for_one_name_share_an_endpoint() {
    let packet = |name: &str, client: u8| {
        let header = [0, client, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let name = if client.is_multiple_of(2) { name.to_uppercase() } else { name.to_owned() };
        let mut packet = header.to_vec();
        for label in [name.as_str(), "example", "com", ""] {
            packet.push(label.len() as u8);
            packet.extend(label.bytes());
        }
        packet.extend([0, client, 0, 1]);
        packet
    };
    let (_servers, balancer) = share("{ kind = \"dns-name\" }", packet);
    go_on_without(&balancer, b"no query", "malformed");
    go_on_without(&balancer, &[0; 12], "absent");
}

#[test]
fn requests_of_one_user_share_an_endpoint() {
    let packet = |name: &str, client: u8| {
        let mut attributes = vec![4, 6, 192, 0, 2, client, 1, 2 + name.len() as u8];
        attributes.extend(name.bytes());
        let length = 20 + attributes.len() as u8;
        [&[1, client, 0, length][..], &[client; 16], &attributes].concat()
    };
    let (_servers, balancer) = share("{ kind = \"radius\" }", packet);
    go_on_without(&balancer, b"no packet", "malformed");
    go_on_without(&balancer, &[&[1, 1, 0, 20][..], &[7; 16]].concat(), "absent");
}

#[test]
fn messages_of_one_call_share_an_endpoint() {
    let packet = |name: &str, client: u8| {
        let start = ["INVITE sip:bob@biloxi.com SIP/2.0", "SIP/2.0 200 OK"];
        format!(
            "{}\r\nVia: SIP/2.0/UDP pc33.atlanta.com;branch=z9hG4bK{client}\r\n\
             From: Alice <sip:alice@atlanta.com>;tag={client}\r\n\
             Call-ID: {name}@pc33.atlanta.com\r\nCSeq: {client} INVITE\r\n\
             Content-Length: 0\r\n\r\n",
            start[usize::from(client % 2)]
        )
        .into_bytes()
    };
    let (_servers, balancer) = share("{ kind = \"sip-call-id\" }", packet);
    go_on_without(&balancer, b"no message", "malformed");
    go_on_without(&balancer, b"BYE sip:a@b SIP/2.0\r\n\r\n", "absent");
}

#[test]
fn datagrams_of_one_connection_id_share_an_endpoint() {
    let packet = |name: &str, client: u8| {
        // A short header: one byte, then the id, which is all that stays the same.
        [&[0x40 | client][..], name.as_bytes(), &[client; 30]].concat()
    };
    share("{ kind = \"quic-cid\" }", packet);
}

/// An endpoint of TCP that says its address and then sends back every byte.
fn start_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    // Ends with the process: a test that is over connects to it no more.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream, address));
        }
    });
    address
}

fn echo(mut stream: TcpStream, address: SocketAddr) {
    let mut bytes = [0; 4_096];
    let _ = writeln!(stream, "{address}");
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        let _ = stream.write_all(&bytes[..count]);
    }
}

/// A balancer that looks for server names, before some endpoints.
fn start_sni(keys: &str) -> Balancer {
    let addresses: Vec<_> = (0..ENDPOINTS).map(|_| start_echo()).collect();
    let keys = format!("key = {{ kind = \"sni\" }}\n{keys}");
    Balancer::start(&config_with_policy("workers = 2", &keys, "maglev", &addresses))
}

/// Sends these parts one after another, checks that they come back, and tells who sent them.
fn exchange(listener: SocketAddr, parts: &[&[u8]]) -> String {
    let mut client = connect(listener);
    client.set_nodelay(true).expect("no delay");
    for (number, part) in parts.iter().enumerate() {
        if number > 0 {
            // So that the parts are received apart, mostly.
            thread::sleep(Duration::from_millis(3));
        }
        client.write_all(part).expect("it is sent");
    }
    let whole = parts.concat();
    let mut reader = BufReader::new(client);
    let mut endpoint = String::new();
    reader.read_line(&mut endpoint).expect("the endpoint");
    let mut bytes = vec![0; whole.len()];
    reader.read_exact(&mut bytes).expect("the bytes");
    assert!(bytes == whole, "{parts:x?} came back as {bytes:x?}");
    endpoint
}

fn sized(length_bytes: usize, bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u32).to_be_bytes();
    [&length[4 - length_bytes..], bytes].concat()
}

/// A `ClientHello` (RFC 8446 section 4.1.2) in one record.
fn client_hello(name: &str, random: u8) -> Vec<u8> {
    let host_name = [&[0][..], &sized(2, name.as_bytes())].concat();
    let server_name = [&[0, 0][..], &sized(2, &sized(2, &host_name))].concat();
    let versions = [&[0, 43][..], &sized(2, &sized(1, &[3, 4]))].concat();
    let body = [
        &[3, 3][..],
        &[random; 32],
        &sized(1, &[random; 32]),
        &sized(2, &[0x13, 1, 0x13, 2]),
        &sized(1, &[0]),
        &sized(2, &[versions, server_name].concat()),
    ];
    let message = [&[1][..], &sized(3, &body.concat())].concat();
    [&[22, 3, 1][..], &sized(2, &message)].concat()
}

#[test]
fn a_hello_in_two_pieces_shares_the_endpoint_of_the_whole_one_wherever_it_is_cut() {
    let balancer = start_sni("");
    let web = balancer.address("web");
    let hello = client_hello("www.example.com", 7);
    let whole = exchange(web, &[&hello]);
    for cut in 1..hello.len() {
        let (first, second) = hello.split_at(cut);
        assert_eq!(exchange(web, &[first, second]), whole, "cut at {cut}");
    }
    assert_eq!(balancer.web("flows_total"), hello.len() as f64);
    assert_eq!(balancer.sum("pointsman_keyless_flows_total"), 0.0);
    assert_eq!(balancer.decisions("web", "table"), hello.len() as f64);
}

#[test]
fn hellos_to_one_name_share_an_endpoint_and_names_are_spread() {
    let balancer = start_sni("");
    let web = balancer.address("web");
    let mut met = BTreeSet::new();
    for name in 0..NAMES {
        let name = format!("host{name}.example.com");
        let ask = |random| exchange(web, &[&client_hello(&name, random), b"and more"]);
        let endpoints: BTreeSet<_> = (0..3).map(ask).collect();
        assert_eq!(endpoints.len(), 1, "{name} meets {endpoints:?}");
        met.extend(endpoints);
    }
    assert!(met.len() > 1, "all names meet {met:?}");
    assert_eq!(balancer.sum("pointsman_keyless_flows_total"), 0.0);
}

#[test]
fn who_speaks_no_tls_goes_on_without_a_key() {
    let balancer = start_sni("");
    exchange(balancer.address("web"), &[b"GET / HTTP/1.1\r\n\r\n", b"more"]);
    assert_eq!(balancer.count("keyless_flows", "malformed"), 1.0);
    assert_eq!(balancer.sum("pointsman_keyless_flows_total"), 1.0);
}

#[test]
fn a_client_that_keeps_its_key_waiting_goes_on_without() {
    let balancer = start_sni("preread_timeout_ms = 100");
    let hello = client_hello("www.example.com", 7);
    let mut client = connect(balancer.address("web"));
    client.write_all(&hello[..50]).expect("it is sent");
    eventually("it is counted", || balancer.count("keyless_flows", "timeout") == 1.0);
    client.write_all(&hello[50..]).expect("it is sent");
    let mut reader = BufReader::new(client);
    reader.read_line(&mut String::new()).expect("the endpoint");
    let mut bytes = vec![0; hello.len()];
    reader.read_exact(&mut bytes).expect("the bytes");
    assert!(bytes == hello);
}

#[test]
fn a_client_that_says_nothing_hears_the_endpoint_in_the_end() {
    let balancer = start_sni("preread_timeout_ms = 100");
    let mut reader = BufReader::new(connect(balancer.address("web")));
    let mut endpoint = String::new();
    reader.read_line(&mut endpoint).expect("the endpoint");
    assert!(endpoint.starts_with("127.0.0.1:"), "{endpoint}");
    assert_eq!(balancer.count("keyless_flows", "timeout"), 1.0);
}

#[test]
fn a_hello_that_is_too_long_goes_on_without_a_key() {
    let balancer = start_sni("preread_bytes_max = 64");
    let web = balancer.address("web");
    let hello = client_hello("www.example.com", 7);
    let mut client = connect(web);
    client.write_all(&hello[..64]).expect("it is sent");
    eventually("it is counted", || balancer.count("keyless_flows", "too-long") == 1.0);
    client.write_all(&hello[64..]).expect("it is sent");
    let mut reader = BufReader::new(client);
    reader.read_line(&mut String::new()).expect("the endpoint");
    let mut bytes = vec![0; hello.len()];
    reader.read_exact(&mut bytes).expect("the bytes");
    assert!(bytes == hello);
    exchange(web, &[&hello[..63], &hello[63..]]);
    assert_eq!(balancer.sum("pointsman_keyless_flows_total"), 1.0, "what has come is looked at");
}
