//! Each kind of check, before servers that are well and servers that are not.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::{self, JoinHandle};

use super::*;
use crate::prober::tls;
use crate::runtime;

const PATIENCE: Duration = Duration::from_secs(10);

fn run(check: Check, address: SocketAddr, limit: Duration) -> Result<(), Failed> {
    runtime::start(async move { check.run((address, None), limit).await })
}

fn page(status: &str) -> HttpCheck {
    let status = status.split(',').map(|text| StatusRange::parse(text).expect("codes")).collect();
    HttpCheck { method: Method::GET, path: Uri::from_static("/up"), host: None, status, body: None }
}

/// Answers one request with these bytes, and tells what it was asked.
fn server(answer: &'static [u8]) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = Vec::new();
        let mut bytes = [0; 1024];
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(count) => request.extend_from_slice(&bytes[..count]),
            }
        }
        let _ = stream.write_all(answer);
        String::from_utf8_lossy(&request).into_owned()
    });
    (address, served)
}

#[test]
fn connecting_is_all_that_tcp_asks_for() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    assert!(run(Check::Tcp, address, PATIENCE).is_ok());
    drop(listener);
    assert!(matches!(run(Check::Tcp, address, PATIENCE), Err(Failed::Unreachable(_))));
}

#[test]
fn a_page_is_asked_for_by_its_path_and_host() {
    let (address, served) = server(b"HTTP/1.1 204 No Content\r\n\r\n");
    let check = HttpCheck { host: Some("www.example".to_owned()), ..page("200-299") };
    assert!(run(Check::Http(check), address, PATIENCE).is_ok());
    let request = served.join().expect("a request").to_lowercase();
    assert!(request.starts_with("get /up http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nhost: www.example\r\n"), "{request}");
}

#[test]
fn a_header_that_names_nobody_comes_before_the_request() {
    for (version, header) in
        [(Version::V1, &b"PROXY UNKNOWN\r\n"[..]), (Version::V2, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")]
    {
        let (address, served) = server(b"HTTP/1.1 204 No Content\r\n\r\n");
        let check = Check::Http(page("200-299"));
        let place = (address, Some(version));
        let checked = runtime::start(async move { check.run(place, PATIENCE).await });
        assert!(checked.is_ok());
        let request = served.join().expect("a request");
        let request = request.as_bytes().strip_prefix(header).expect("the header");
        assert!(request.starts_with(b"GET /up HTTP/1.1\r\n"));
    }
}

#[test]
fn another_status_does_not_pass() {
    let (address, _served) = server(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let failed = run(Check::Http(page("200-299,301")), address, PATIENCE);
    assert!(matches!(failed, Err(Failed::Status(503))), "{failed:?}");
}

#[test]
fn a_body_is_read_whatever_its_form() {
    let chunked =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nall \r\n4\r\nwell\r\n0\r\n\r\n";
    let check = |text: &str| HttpCheck { body: Some(text.to_owned()), ..page("200") };
    let (address, _served) = server(chunked);
    assert!(run(Check::Http(check("all well")), address, PATIENCE).is_ok());
    let (address, _served) = server(chunked);
    let failed = run(Check::Http(check("ill")), address, PATIENCE);
    assert!(matches!(failed, Err(Failed::Body)), "{failed:?}");
}

#[test]
fn what_is_no_http_does_not_pass() {
    for answer in [&b"SSH-2.0-OpenSSH\r\n"[..], b""] {
        let (address, _served) = server(answer);
        assert!(run(Check::Http(page("100-599")), address, PATIENCE).is_err());
    }
}

#[test]
fn who_accepts_and_says_nothing_is_late() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let limit = Duration::from_millis(50);
    assert!(matches!(run(Check::Http(page("200")), address, limit), Err(Failed::Late)));
}

#[test]
fn a_datagram_has_to_be_answered_as_expected() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("its address");
    let server = thread::spawn(move || {
        let mut bytes = [0; 64];
        for _ in 0..3 {
            let (length, peer) = socket.recv_from(&mut bytes).expect("a datagram");
            assert_eq!(&bytes[..length], b"ping");
            socket.send_to(b"a pong\0", peer).expect("an answer");
        }
    });
    let check =
        |expect: &[u8]| Check::Udp(UdpCheck { send: b"ping".to_vec(), expect: expect.to_vec() });
    assert!(run(check(b""), address, PATIENCE).is_ok());
    assert!(run(check(b"pong\0"), address, PATIENCE).is_ok());
    assert!(matches!(run(check(b"pang"), address, PATIENCE), Err(Failed::Answer)));
    server.join().expect("it served");
    // Nobody is there any more, and the kernel says so.
    assert!(matches!(run(check(b""), address, PATIENCE), Err(Failed::Unreachable(_))));
}

#[test]
fn a_handshake_needs_somebody_who_speaks_tls() {
    let check = || {
        let config = tls::client_config().expect("a configuration");
        Check::Tls(TlsCheck { server_name: None, config })
    };
    let failed = run(check(), greeter(), PATIENCE);
    assert!(matches!(failed, Err(Failed::Unreachable(_))), "{failed:?}");
    let address = tls_server();
    let passed = run(check(), address, PATIENCE);
    assert!(passed.is_ok(), "{passed:?}");
}

/// Says something of its own to its first client.
fn greeter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let _ = stream.write_all(b"220 mail.example ready\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    address
}

/// Shakes hands once, with a certificate that nobody has signed.
fn tls_server() -> SocketAddr {
    use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio_rustls::rustls::{ServerConfig, ServerConnection, Stream};

    let made = rcgen::generate_simple_self_signed(["endpoint.example".to_owned()]).expect("one");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a certificate");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut tls = ServerConnection::new(Arc::new(config)).expect("a session");
        let _ = Stream::new(&mut tls, &mut stream).read(&mut [0; 16]);
    });
    address
}

#[test]
fn codes_are_read_one_by_one_or_from_one_to_another() {
    assert_eq!(StatusRange::parse("204"), Some(StatusRange { low: 204, high: 204 }));
    assert_eq!(StatusRange::parse("200-399"), Some(StatusRange { low: 200, high: 399 }));
    for bad in ["", "20x", "399-200", "0", "200-", "700"] {
        assert_eq!(StatusRange::parse(bad), None, "{bad:?}");
    }
}
