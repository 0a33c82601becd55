//! Who may ask and change a running balancer, and as whom it runs.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use support::raw::config;
use support::{Balancer, Endpoint, POINTSMAN, ask_once, eventually};
use tempfile::TempDir;

const TOKEN: &str = "correct-horse-battery-staple";

/// DER as PEM.
fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        let digit = |place: usize| DIGITS[(bits >> (18 - 6 * place)) as usize & 63] as char;
        text.extend((0..4).map(|place| if place <= chunk.len() { digit(place) } else { '=' }));
    }
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// What `openssl req -x509` makes.
fn own_ca() -> IsCa {
    IsCa::Ca(BasicConstraints::Unconstrained)
}

/// The files of a token and of certificates.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().expect("a folder") };
        for (name, is_ca) in [("", IsCa::NoCa), ("openssl-", own_ca()), ("other-", IsCa::NoCa)] {
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let mut params = CertificateParams::new(names).expect("names");
            params.is_ca = is_ca;
            let key = KeyPair::generate().expect("a key");
            let cert = params.self_signed(&key).expect("a certificate");
            files.write(&format!("{name}cert.pem"), &pem("CERTIFICATE", cert.der()));
            files.write(&format!("{name}key.pem"), &pem("PRIVATE KEY", &key.serialize_der()));
        }
        files.write("token", &format!("{TOKEN}\n"));
        files.write("wrong", "incorrect-horse-battery-staple");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("text").to_owned()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).expect("its mode");
    }

    /// The keys of an address that others could reach.
    fn admin(&self, address: SocketAddr) -> String {
        format!(
            "http = \"{address}\"\ntoken_file = {:?}\ntls = {{ cert_file = {:?}, key_file = {:?} }}\n",
            self.path("token"),
            self.path("cert.pem"),
            self.path("key.pem")
        )
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port")
}

/// The admin section is the last one of what `Balancer::start` is given.
fn start(endpoint: &Endpoint, top: &str, admin: &str) -> Balancer {
    let text = config(&format!("workers = 1\n{top}"), "", &[endpoint.address]);
    Balancer::start_with_admin(&text, admin)
}

fn pointsman(arguments: &[&str]) -> Output {
    Command::new(POINTSMAN).args(arguments).output().expect("the binary runs")
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn whoever_comes_from_elsewhere_must_know_the_token_and_learns_it_from_nowhere() {
    let (files, endpoint, address) = (Files::new(), Endpoint::start(), free_address());
    let balancer = start(&endpoint, "", &files.admin(address));
    let url = format!("https://localhost:{}", address.port());
    let ca = files.text("cert.pem");
    let ask = |what: &[&str], token: Option<&str>| {
        let token = token.map(|name| files.text(name));
        let mut arguments = [what, &["--admin", &url, "--ca-file", &ca]].concat();
        arguments.extend(token.iter().flat_map(|file| ["--token-file", file]));
        pointsman(&arguments)
    };
    let status = ask(&["status"], Some("token"));
    assert!(status.status.success() && said(&status).contains("serving"), "{}", said(&status));
    for (token, remedy) in [(None, "send the token"), (Some("wrong"), "this is not the token")] {
        let refused = ask(&["status"], token);
        assert_eq!(refused.status.code(), Some(1));
        assert!(said(&refused).contains(remedy), "{}", said(&refused));
    }
    // Who knows it may change things too: here something that is not there.
    let flow = balancer.status().listeners.len().to_string();
    let forgotten = ask(&["flows", "forget", &flow], Some("token"));
    assert!(!said(&forgotten).contains("send the token"), "{}", said(&forgotten));
    for (file, words) in [("other-cert.pem", "certificate"), ("token", "holds no certificate")] {
        let token = files.text("token");
        let trust = ["--token-file", &token, "--ca-file", &files.text(file)];
        let stranger = pointsman(&[&["status", "--admin", &url][..], &trust].concat());
        assert_eq!(stranger.status.code(), Some(1), "nobody vouches for it");
        assert!(said(&stranger).contains(words), "{}", said(&stranger));
    }
    let clear = url.replace("https", "http");
    let clear = pointsman(&["status", "--admin", &clear, "--token-file", &files.text("token")]);
    assert_eq!(clear.status.code(), Some(1), "it does not answer in the clear");
    assert!(!balancer.log().contains(TOKEN));
    assert!(!balancer.metrics().contains(TOKEN));
}

#[test]
fn a_balancer_may_show_a_certificate_of_its_own_making() {
    let (files, endpoint, address) = (Files::new(), Endpoint::start(), free_address());
    let keys = files.admin(address).replace("cert.pem", "openssl-cert.pem");
    let _balancer = start(&endpoint, "", &keys.replace("key.pem", "openssl-key.pem"));
    let url = format!("https://127.0.0.1:{}", address.port());
    let (token, ca) = (files.text("token"), files.text("openssl-cert.pem"));
    let trust = ["--token-file", &token, "--ca-file", &ca];
    let status = pointsman(&[&["status", "--admin", &url][..], &trust].concat());
    assert!(status.status.success(), "{}", said(&status));
}

fn http_get(address: SocketAddr, path: &str, more: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    write!(stream, "GET {path} HTTP/1.0\r\n{more}\r\n").expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn a_token_guards_an_address_of_this_machine_too_but_for_whether_it_lives() {
    let (files, endpoint, address) = (Files::new(), Endpoint::start(), free_address());
    let admin = format!("http = \"{address}\"\ntoken_file = {:?}\n", files.path("token"));
    let _balancer = start(&endpoint, "", &admin);
    for path in ["/healthz", "/readyz"] {
        assert!(http_get(address, path, "").starts_with("HTTP/1.0 200"), "{path}");
    }
    for path in ["/metrics", "/v1/status", "/v1/flows", "/v1/policies", "/v1/clusters/web/trial"] {
        for head in ["", "Authorization: Bearer \r\n", "Authorization: Basic x\r\n"] {
            let answer = http_get(address, path, head);
            assert!(answer.starts_with("HTTP/1.0 401"), "{path}: {answer}");
        }
    }
    let head = format!("Authorization: Bearer {TOKEN}\r\n");
    assert!(http_get(address, "/metrics", &head).contains("pointsman_build_info"));
}

#[test]
fn connections_that_never_shake_hands_take_few_descriptors() {
    let (files, endpoint, address) = (Files::new(), Endpoint::start(), free_address());
    let balancer = start(&endpoint, "", &files.admin(address));
    let before = balancer.settled_descriptors().len();
    let idle: Vec<_> = (0..200).filter_map(|_| TcpStream::connect(address).ok()).collect();
    assert_eq!(idle.len(), 200, "the kernel keeps those that wait");
    eventually("some are taken in", || balancer.descriptors().len() > before + 32);
    for _ in 0..20 {
        ask_once(balancer.address("web")).expect("traffic goes on");
        let more = balancer.descriptors().len() - before;
        assert!(more <= 80, "{more} descriptors went to strangers");
    }
}

#[test]
fn the_socket_has_the_mode_that_was_asked_for() {
    let endpoint = Endpoint::start();
    let balancer = start(&endpoint, "", "socket_mode = \"0660\"\nsocket_group = \"root\"\n");
    let found = fs::metadata(balancer.socket()).expect("the socket");
    assert_eq!((found.permissions().mode() & 0o777, found.gid()), (0o660, 0));
}

/// The users, and the groups, of all threads of a process.
fn identities(process: &Path) -> Vec<(String, String)> {
    let threads = fs::read_dir(process.join("task")).expect("its threads");
    let of = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let statuses = threads.filter_map(|thread| {
        fs::read_to_string(thread.expect("a thread").path().join("status")).ok()
    });
    statuses.map(|status| (of(&status, "Uid:"), of(&status, "Groups:"))).collect()
}

#[test]
fn privileges_are_given_up_by_every_thread_once_everything_is_bound() {
    let endpoint = Endpoint::start();
    let text = config("workers = 2\nuser = \"nobody\"", "", &[endpoint.address]);
    if !rustix::process::geteuid().is_root() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pointsman.toml");
        let socket = folder.path().join("admin.sock");
        fs::write(&file, format!("{text}[admin]\nsocket = {socket:?}\n")).expect("a file");
        let output = pointsman(&["run", "--config", file.to_str().expect("text")]);
        assert!(said(&output).contains("start as root"), "{}", said(&output));
        return;
    }
    let balancer = Balancer::start(&text);
    let pid = balancer.pid().as_raw_nonzero();
    let identities = identities(Path::new(&format!("/proc/{pid}")));
    assert!(identities.len() >= 3, "workers and the control thread");
    for (user, groups) in &identities {
        assert_eq!(user, "65534 65534 65534 65534");
        assert_eq!(groups.split(' ').count(), 1, "{groups}");
        assert_ne!(groups, "0");
    }
    assert_eq!(fs::metadata(balancer.socket()).expect("the socket").uid(), 65534);
    for _ in 0..20 {
        ask_once(balancer.address("web")).expect("it serves");
    }
}
