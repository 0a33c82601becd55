//! QUIC through the balancer: clients whose address changes stay with the server that has their keys.
//!
//! Both sides are a real implementation's. A server answers every stream with its number and what
//! it got.

mod support;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    Incoming, RecvStream, SendStream, ServerConfig, TokioRuntime,
};
use support::raw::config;
use support::{Balancer, GIVE_UP};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

const MIB: usize = 1 << 20;
const LOOPBACK: &str = "127.0.0.1:0";
/// How many bytes of an id tell which server gave it out, if ids are made so.
const PREFIX_BYTES: usize = 4;

/// Servers that may take each other's place, behind a balancer.
struct Site {
    servers: Vec<Endpoint>,
    balancer: Balancer,
    clients: ClientConfig,
}

impl Site {
    /// Starts two servers with ids that this makes from the server's number, and a balancer that
    /// goes by that many bytes of them.
    fn start(workers: u32, length: usize, ids: impl Fn(u8) -> EndpointConfig) -> Self {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("one");
        let certificate = own.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
        let server = ServerConfig::with_single_cert(vec![certificate.clone()], key.into());
        let server = server.expect("a certificate");
        let servers = [0, 1].map(|number| serve(number, ids(number), server.clone()));
        let addresses = servers.each_ref().map(|server| server.local_addr().expect("its address"));
        let listener =
            format!("protocol = \"udp\"\nkey = {{ kind = \"quic-cid\", length = {length} }}");
        let config = config(&format!("workers = {workers}"), &listener, &addresses);
        Self {
            servers: servers.into(),
            balancer: Balancer::start(&config),
            clients: trusting(certificate),
        }
    }

    fn address(&self) -> SocketAddr {
        self.balancer.address("web")
    }

    /// A client with a port of its own, connected to this address.
    async fn connect(&self, to: SocketAddr) -> Client {
        let endpoint = Endpoint::client(LOOPBACK.parse().expect("an address")).expect("a port");
        let connecting = endpoint.connect_with(self.clients.clone(), to, "localhost");
        let connection = in_time(connecting.expect("a client")).await.expect("a handshake");
        Client { endpoint, connection }
    }

    fn connections(&self) -> Vec<u64> {
        self.servers.iter().map(|server| server.stats().accepted_handshakes).collect()
    }

    fn decisions(&self, source: &str) -> f64 {
        self.balancer.decisions("web", source)
    }
}

struct Client {
    endpoint: Endpoint,
    connection: Connection,
}

impl Client {
    /// As [`exchange`](Self::exchange), with nothing meanwhile.
    async fn exchange_alone(self, bytes: usize) -> u8 {
        self.exchange(bytes, std::future::ready(())).await
    }

    /// Sends this many bytes on a stream and gets them back. Half of them are sent after
    /// `meanwhile`. Returns the server's number.
    async fn exchange(&self, bytes: usize, meanwhile: impl Future<Output = ()>) -> u8 {
        let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        let (first, second) = sent.split_at(bytes / 2);
        let (mut to, mut from) = self.connection.open_bi().await.expect("a stream");
        let send = async {
            to.write_all(first).await.expect("it is sent");
            meanwhile.await;
            to.write_all(second).await.expect("it is sent");
            to.finish().expect("it is open");
        };
        let receive = from.read_to_end(bytes + 1);
        let ((), answer) = in_time(async { tokio::join!(send, receive) }).await;
        let answer = answer.expect("an answer");
        let (number, echo) = answer.split_first().expect("an answer");
        assert!(echo == sent, "the bytes came back changed");
        *number
    }
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(GIVE_UP, what).await.expect("it happens in time")
}

fn trusting(certificate: CertificateDer<'static>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a certificate");
    ClientConfig::with_root_certificates(Arc::new(roots)).expect("a configuration")
}

fn serve(number: u8, ids: EndpointConfig, config: ServerConfig) -> Endpoint {
    let socket = std::net::UdpSocket::bind(LOOPBACK).expect("a port");
    let endpoint = Endpoint::new(ids, Some(config), socket, Arc::new(TokioRuntime));
    let endpoint = endpoint.expect("a server");
    let server = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            tokio::spawn(answer(number, incoming));
        }
    });
    endpoint
}

async fn answer(number: u8, incoming: Incoming) {
    let Ok(connection) = incoming.await else { return };
    while let Ok((to, from)) = connection.accept_bi().await {
        tokio::spawn(echo(number, to, from));
    }
}

async fn echo(number: u8, mut to: SendStream, mut from: RecvStream) {
    let _ = to.write_all(&[number]).await;
    while let Ok(Some(chunk)) = from.read_chunk(usize::MAX, true).await {
        if to.write_chunk(chunk.bytes).await.is_err() {
            return;
        }
    }
    let _ = to.finish();
}

/// Ids that begin with their server's number, so that a balancer knows those too that it has never
/// seen.
struct PrefixedIds {
    prefix: [u8; PREFIX_BYTES],
    given_out: u32,
}

impl PrefixedIds {
    fn of(number: u8) -> EndpointConfig {
        let prefix = [0xa0 + number; PREFIX_BYTES];
        let mut config = EndpointConfig::default();
        config.cid_generator(move || Box::new(Self { prefix, given_out: 0 }));
        config
    }
}

impl ConnectionIdGenerator for PrefixedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.given_out += 1;
        ConnectionId::new(&[self.prefix, self.given_out.to_be_bytes()].concat())
    }

    fn cid_len(&self) -> usize {
        PREFIX_BYTES + size_of::<u32>()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Between a client and the balancer: translates the client's address to a port of its own.
struct Nat {
    address: SocketAddr,
    forget: mpsc::Sender<()>,
}

impl Nat {
    async fn start(listener: SocketAddr) -> Self {
        let inside = UdpSocket::bind(LOOPBACK).await.expect("a port");
        let address = inside.local_addr().expect("its address");
        let (forget, forgets) = mpsc::channel(1);
        tokio::spawn(translate(inside, listener, forgets));
        Self { address, forget }
    }

    /// Gives the client another port, and whatever comes to the old one is lost.
    async fn forget(&self) {
        self.forget.send(()).await.expect("it translates");
    }
}

async fn translate(inside: UdpSocket, listener: SocketAddr, mut forgets: mpsc::Receiver<()>) {
    let mut outside = UdpSocket::bind(LOOPBACK).await.expect("a port");
    let mut client = None;
    let (mut request, mut reply) = ([0; 2048], [0; 2048]);
    loop {
        tokio::select! {
            Ok((length, from)) = inside.recv_from(&mut request) => {
                client = Some(from);
                let _ = outside.send_to(&request[..length], listener).await;
            }
            Ok(length) = outside.recv(&mut reply) => {
                let _ = inside.send_to(&reply[..length], client.expect("who asked")).await;
            }
            forgotten = forgets.recv() => {
                if forgotten.is_none() {
                    return;
                }
                outside = UdpSocket::bind(LOOPBACK).await.expect("a port");
            }
        }
    }
}

#[tokio::test]
async fn every_connection_stays_on_one_server() {
    for workers in [1, 2] {
        let site = Site::start(workers, 8, |_| EndpointConfig::default());
        let address = site.address();
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(site.connect(address).await);
        }
        let connections = site.connections();
        assert_eq!(connections.iter().sum::<u64>(), 10, "{connections:?}");
        let mut transfers = JoinSet::new();
        for client in clients {
            transfers.spawn(client.exchange_alone(2 * MIB));
        }
        let mut served = [0; 2];
        for server in in_time(transfers.join_all()).await {
            served[usize::from(server)] += 1;
        }
        assert_eq!(connections, served);
        assert_eq!(site.connections(), connections);
        assert_eq!(site.decisions("native"), 10.0);
    }
}

#[tokio::test]
async fn a_client_whose_nat_forgets_it_keeps_its_server() {
    for workers in [1, 2] {
        let site = Site::start(workers, 8, |_| EndpointConfig::default());
        let nat = Nat::start(site.address()).await;
        let client = site.connect(nat.address).await;
        let server = client.exchange(MIB, async {}).await;
        for times in 1..=6 {
            assert_eq!(client.exchange(MIB, nat.forget()).await, server);
            assert_eq!(site.decisions("cache"), f64::from(times));
        }
        assert_eq!(site.decisions("native"), 1.0);
        assert_eq!(site.connections().iter().sum::<u64>(), 1);
    }
}

#[tokio::test]
async fn a_client_that_migrates_under_a_fresh_id_keeps_its_server_if_ids_tell_it() {
    for workers in [1, 2] {
        let site = Site::start(workers, PREFIX_BYTES, PrefixedIds::of);
        let client = site.connect(site.address()).await;
        let server = client.exchange(MIB, async {}).await;
        for times in 1..=6 {
            let migrate = async {
                let socket = std::net::UdpSocket::bind(LOOPBACK).expect("a port");
                client.endpoint.rebind(socket).expect("it migrates");
            };
            assert_eq!(client.exchange(MIB, migrate).await, server);
            assert_eq!(site.decisions("cache"), f64::from(times));
        }
        assert_eq!(site.decisions("native"), 1.0);
        assert_eq!(site.connections().iter().sum::<u64>(), 1);
    }
}
