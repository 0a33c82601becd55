//! The PROXY protocol with HAProxy and nginx at either side: what they send is understood, and they
//! understand what they are sent.
//!
//! Needs both, which `cargo xtask setup` installs. Without them a test says so and passes, except
//! where `CI=true` says that they must be there.

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use support::{Balancer, GIVE_UP, eventually};
use tempfile::TempDir;

/// Where clients come from, which no proxy does.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77));
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Another proxy; it is killed when this is dropped.
struct Proxy {
    process: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Proxy {
    /// HAProxy with a frontend and what it does.
    fn haproxy(address: SocketAddr, rest: &str) -> Option<Self> {
        let text = format!(
            "defaults\n  timeout connect 30s\n  timeout client 30s\n  timeout server 30s\n\
             frontend test\n  bind {address} {rest}\n"
        );
        Self::start(address, |folder| {
            let file = folder.join("haproxy.cfg");
            fs::write(&file, &text).expect("a configuration");
            let mut command = Command::new("haproxy");
            command.args(["-db", "-q", "-f"]).arg(file);
            command
        })
    }

    /// nginx with an `http` or a `stream` section.
    fn nginx(address: SocketAddr, section: &str) -> Option<Self> {
        Self::start(address, |folder| {
            let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|name| format!("{name}_temp_path {}/{name};\n", folder.display()))
                .concat();
            let section = section.replace("{paths}", &paths);
            let text = format!(
                "daemon off;\nmaster_process off;\npid {}/pid;\nerror_log stderr;\n{section}",
                folder.display()
            );
            let file = folder.join("nginx.conf");
            fs::write(
                &file,
                if text.contains("stream {") {
                    format!("load_module {STREAM_MODULE};\n{text}")
                } else {
                    text
                },
            )
            .expect("a configuration");
            let mut command = Command::new("nginx");
            command.args(["-e", "stderr", "-c"]).arg(file).arg("-p").arg(folder);
            command
        })
    }

    fn start(address: SocketAddr, command: impl FnOnce(&Path) -> Command) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        let mut command = command(folder.path());
        command.env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null());
        let process = match command.spawn() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let program = command.get_program().display().to_string();
                skip(&format!("{program} is not installed"));
                return None;
            }
            process => process.expect("it starts"),
        };
        let mut proxy = Self { process, address, _folder: folder };
        eventually("the proxy listens", || {
            let ended = proxy.process.try_wait().expect("its state");
            assert!(ended.is_none(), "it ended: {ended:?}");
            TcpStream::connect(address).is_ok()
        });
        Some(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says why a test proves nothing here.
fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}: run `cargo xtask setup`");
    eprintln!("skipped: {why}; `cargo xtask setup` installs it");
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address")
}

/// A server that demands a header and answers with the address in it.
fn demanding(name: &str) -> Option<Proxy> {
    let address = free();
    match name {
        "nginx" => Proxy::nginx(
            address,
            &format!(
                "events {{}}\nhttp {{\n{{paths}}access_log off;\nserver {{ listen {address} \
                 proxy_protocol; return 200 $proxy_protocol_addr:$proxy_protocol_port; }} }}\n"
            ),
        ),
        _ => Proxy::haproxy(
            address,
            "accept-proxy\n  mode http\n  http-request return status 200 content-type text/plain \
             lf-string %[src]:%[src_port]",
        ),
    }
}

fn config(listener: &str, cluster: &str, endpoint: SocketAddr) -> String {
    format!(
        "workers = 1\n[[listeners]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
         {listener}\n[[clusters]]\nname = \"web\"\n{cluster}\n\
         endpoints = [{{ address = \"{endpoint}\" }}]\n"
    )
}

/// Asks as a client of its own address; returns that, and what the last server took it for.
fn ask(proxy: SocketAddr) -> (String, String) {
    let stream = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&stream, &SocketAddr::new(CLIENT, 0)).expect("an address");
    connect(&stream, &proxy).expect("a connection");
    let mut stream = TcpStream::from(stream);
    stream.set_read_timeout(Some(GIVE_UP)).expect("a timeout");
    let client = stream.local_addr().expect("its address").to_string();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    (client, body.trim_end().to_owned())
}

/// The client is known at the end of a chain: a proxy that sends a header, the balancer, a server
/// that demands one.
fn follow(sender: impl Fn(SocketAddr) -> Option<Proxy>) {
    for server in ["nginx", "haproxy"] {
        for version in ["v1", "v2"] {
            let Some(server) = demanding(server) else { return };
            let tlvs = if version == "v2" { ", tlvs = [\"unique-id\", \"crc32c\"]" } else { "" };
            let outbound = format!("proxy_protocol = {{ version = \"{version}\"{tlvs} }}");
            let inbound = "proxy_protocol = { trusted = [\"127.0.0.1\"] }";
            let balancer = Balancer::start(&config(inbound, &outbound, server.address));
            let Some(proxy) = sender(balancer.address("web")) else { return };
            for _ in 0..3 {
                let (client, taken_for) = ask(proxy.address);
                assert_eq!(taken_for, client);
            }
        }
    }
}

#[test]
fn the_client_of_haproxy_is_known_at_the_end_by_either_version() {
    for option in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c"] {
        follow(|balancer| {
            let rest = format!(
                "\n  mode tcp\n  default_backend next\nbackend next\n  mode tcp\n  server next \
                 {balancer} {option}"
            );
            Proxy::haproxy(free(), &rest)
        });
    }
}

#[test]
fn the_client_of_nginx_is_known_at_the_end() {
    if !Path::new(STREAM_MODULE).exists() {
        return skip("nginx has no stream module");
    }
    follow(|balancer| {
        let address = free();
        let server = format!("listen {address}; proxy_pass {balancer}; proxy_protocol on;");
        let section = format!("events {{}}\nstream {{ server {{ {server} }} }}\n");
        Proxy::nginx(address, &section)
    });
}

#[test]
fn checks_of_a_server_that_demands_a_header_pass_with_one_and_fail_without() {
    for name in ["nginx", "haproxy"] {
        let Some(server) = demanding(name) else { return };
        let health = |header: &str| {
            format!(
                "health = {{ kind = \"http\", interval_ms = 20, timeout_ms = 30000, rise = 1, fall \
                 = 1{header} }}\nproxy_protocol = {{}}"
            )
        };
        let without = Balancer::start(&config("", &health(""), server.address));
        eventually("it is down", || !without.is_up(server.address));
        for version in ["v1", "v2"] {
            let header = format!(", proxy_protocol = \"{version}\"");
            let gone = free();
            let text = config("", &health(&header), server.address);
            let text = text
                .replace("endpoints = [", &format!("endpoints = [{{ address = \"{gone}\" }}, "));
            let with = Balancer::start(&text);
            // Whoever is down was checked, so that the others have had the time to fail.
            eventually("who is gone is down", || !with.is_up(gone));
            for _ in 0..3 {
                assert!(with.is_up(server.address), "{name} {version}");
                let (client, taken_for) = ask(with.address("web"));
                assert_eq!(taken_for, client);
            }
        }
    }
}
