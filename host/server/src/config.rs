//! What a configuration file may say, and nothing more.
//!
//! The structs here are dumb: every key is optional, nothing is resolved, no file is opened and no
//! two values are compared. That is the work of [`plan`](crate::plan). Because nothing is required
//! here, one wrong key never hides the next one: it is noted, taken out, and the rest is read.
//!
//! A key that only one protocol has is an `Option`, so that it can be refused where it means nothing.

use std::path::PathBuf;

use serde::Deserialize;

mod discovery;
mod passive;
mod read;
mod words;

pub use discovery::{Discovery, DiscoveryKind, EndpointsFile, Family};
pub use passive::{Passive, SuccessRate};
pub use read::{Document, read, read_as};

/// A whole file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Threads that carry traffic. Default: one per core this process may use, because a worker is
    /// pinned and two on one core only take turns.
    pub workers: Option<u32>,
    /// How long established flows may go on after a signal to end. Default 30000: longer than most
    /// requests, shorter than what service managers wait before they kill (90 s).
    pub drain_timeout_ms: u64,
    /// How long the new process of an upgrade may take until it has taken over; after that the old one goes
    /// on without it. Default 60000: compiling plugins takes seconds on a busy machine, and whoever
    /// started an upgrade waits for it.
    pub upgrade_timeout_ms: u64,
    /// Kept decisions per worker. Default 65536: one per client of a busy site, in a few megabytes.
    pub flow_table_entries: u32,
    /// Flows at a time, of all listeners and over all workers. Default 0, no limit: each listener has
    /// its own, and descriptors bound them all.
    pub max_flows: u32,
    /// How much of each worker's core plugins may take, in percent; 100 is all of it. Beyond that new
    /// flows go to the fallback. Default 10: a decision costs under 1 % of a new flow, so what comes
    /// near this is a plugin gone wrong, and nine tenths of the core go on serving.
    pub plugin_cpu_percent: u32,
    /// The user that the process becomes once everything is bound. Default: it stays who it is.
    pub user: Option<String>,
    /// The only group of that user. Default: the one it has.
    pub group: Option<String>,
    /// Receive buffers of each worker.
    pub buffers: Buffers,
    /// Where the balancer can be asked how it is.
    pub admin: Admin,
    /// One line per ended flow. Default: off, because it costs disk in proportion to traffic.
    pub access_log: Option<AccessLog>,
    /// Local addresses that accept traffic.
    pub listeners: Vec<Listener>,
    /// Sets of endpoints that serve the same thing.
    pub clusters: Vec<Cluster>,
    /// What allocates new flows.
    pub policies: Vec<Policy>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            drain_timeout_ms: 30_000,
            upgrade_timeout_ms: 60_000,
            flow_table_entries: 65_536,
            max_flows: 0,
            plugin_cpu_percent: 10,
            user: None,
            group: None,
            buffers: Buffers::default(),
            admin: Admin::default(),
            access_log: None,
            listeners: Vec::new(),
            clusters: Vec::new(),
            policies: Vec::new(),
        }
    }
}

/// `[buffers]`: how many of each sort a worker has. Memory is touched only when it is used.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Buffers {
    /// Of 4 KiB each. Default 16384 (64 MiB when all are in use): some thousand busy sessions.
    pub small: u32,
    /// Of 64 KiB each. Default 512 (32 MiB when all are in use): only directions in bulk use them.
    pub bulk: u32,
    /// Of 64 KiB each, for what comes to UDP listeners and ports; not made without a UDP listener.
    /// Default 512 (32 MiB when all are in use): each holds a datagram, or a train of them, from its
    /// receipt until it is sent, so that one turn's worth and the sends under way need them.
    pub datagrams: u32,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { small: 16_384, bulk: 512, datagrams: 512 }
    }
}

/// `[admin]`: where the balancer can be asked how it is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// The Unix socket that the command line talks to. Default `/run/pointsman/admin.sock`: `/run`
    /// is empty after a boot, and the socket's mode (0600) is its access control.
    pub socket: PathBuf,
    /// An address for `/metrics`, `/healthz`, `/readyz` and `/v1`. Default: none. It must be a
    /// loopback address unless it has a `token_file` and `tls`.
    pub http: Option<String>,
    /// The socket's mode, in octal. Default `0600`: its owner's alone, because whoever may write to it
    /// may do everything.
    pub socket_mode: String,
    /// The name of the socket's group, for a mode such as `0660`. Default: the process' own.
    pub socket_group: Option<String>,
    /// A file with the secret that whoever comes to `http` sends as `Authorization: Bearer`. Default:
    /// none, and `http` only shows.
    pub token_file: Option<PathBuf>,
    /// What `http` is encrypted with. Default: nothing.
    pub tls: Option<Tls>,
}

/// `tls`: who a server is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Its certificate, and those that vouch for it, in PEM. Required.
    pub cert_file: Option<PathBuf>,
    /// The certificate's key, in PEM. Required.
    pub key_file: Option<PathBuf>,
}

impl Admin {
    /// Where the command line looks unless told otherwise.
    pub const SOCKET_DEFAULT: &str = "/run/pointsman/admin.sock";
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            socket: PathBuf::from(Self::SOCKET_DEFAULT),
            http: None,
            socket_mode: "0600".to_owned(),
            socket_group: None,
            token_file: None,
            tls: None,
        }
    }
}

/// `[access_log]`: one line per ended flow.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLog {
    /// The file to append to, or `-` for standard output. Either this or `syslog` is required:
    /// whoever wants the log says where. SIGUSR1 has it opened anew.
    pub path: Option<PathBuf>,
    /// Instead of `path`: where a syslog daemon takes datagrams, the path of its socket, such as
    /// `/dev/log`, or `address:port` for UDP.
    pub syslog: Option<String>,
    /// `json` or `text`. Default `json`: programs read logs more often than people do.
    pub format: LogFormat,
    /// The share of flows that are logged, above 0 and up to 1; those that have failed always are.
    /// Default 1, all.
    pub sample: f64,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { path: None, syslog: None, format: LogFormat::Json, sample: 1.0 }
    }
}

/// How a flow is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// As an object with named fields.
    Json,
    /// As words.
    Text,
}

/// `[[listeners]]`: a local address that accepts traffic.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listener {
    /// Its name, in metrics and logs. Required and unique.
    pub name: Option<String>,
    /// `address:port`. Required. Port 0 lets the kernel choose; `pointsman status` shows what it
    /// chose. A TCP and a UDP listener may have the same one.
    pub address: Option<String>,
    /// `tcp`, the default, because it is what most services speak, or `udp`.
    pub protocol: Protocol,
    /// The name of the cluster that serves it. Required.
    pub cluster: Option<String>,
    /// Flows at a time, over all workers. Default 100000: of TCP, some two gigabytes of kernel memory
    /// when all are busy.
    pub max_flows: u32,
    /// Flows of each client at a time, over all workers; a client is whoever has the same
    /// `client_prefix`. Default 0, no limit: behind one address may be a whole office.
    pub max_flows_per_client: u32,
    /// New flows per second, over all workers, and as many at once after a quiet second. Default 0,
    /// no limit: only its owner knows what a service can take.
    pub new_flows_per_second: u32,
    /// The same for each client, over all workers. Default 0, no limit.
    pub new_flows_per_second_per_client: u32,
    /// Networks whose clients may come, such as `10.0.0.0/8`. Default: everybody may. Of all networks
    /// in `allow` and `deny` the most specific one decides about a client; whom none of them names
    /// may come only if `allow` is empty.
    pub allow: Vec<String>,
    /// Networks whose clients may not. Default: none.
    pub deny: Vec<String>,
    /// How long a flow may move no byte. Default 60000, as NGINX and HAProxy guides have it.
    pub idle_timeout_ms: u64,
    /// How long one attempt to connect may take. TCP only. Default 5000: two lost SYNs and their
    /// repeats.
    pub connect_timeout_ms: Option<u64>,
    /// How many endpoints a flow may try, 1 to 5. TCP only. Default 3: after three failures the fault
    /// is seldom one endpoint's.
    pub connect_attempts: Option<u32>,
    /// How long the open half of a half-closed flow may move no byte. TCP only. Default 30000:
    /// clients that half-close on purpose read on, those that vanished do not.
    pub half_closed_timeout_ms: Option<u64>,
    /// Leading bits that make two IPv4 clients the same one for decisions kept per client.
    /// Default 32: every address is a client.
    pub client_prefix_v4: u8,
    /// The same for IPv6. Default 64: one subscriber has that many addresses to rotate through,
    /// which is why rate limiters count by /64 too.
    pub client_prefix_v6: u8,
    /// What happens to established flows of an endpoint that goes down. Default `keep`: a failed
    /// check is no proof that a working connection is broken.
    pub on_endpoint_down: OnEndpointDown,
    /// What flows have in common that are to share an endpoint, read from their first bytes. Default:
    /// none, and nobody waits for first bytes.
    pub key: Option<Key>,
    /// How long a connection's key may take to come. TCP with a key only. Default 3000: one lost
    /// packet and its repeat.
    pub preread_timeout_ms: Option<u64>,
    /// How many bytes may be waited for until the key is found. TCP with a key only. Default 16384:
    /// the most that one TLS record holds, and so nearly every `ClientHello`.
    pub preread_bytes_max: Option<u32>,
    /// Who connects for clients and says so in a PROXY protocol header, version 1 or 2. TCP only.
    /// Default: nobody, and whoever connects is the client.
    pub proxy_protocol: Option<ProxyInbound>,
    /// Replies to each of the client's datagrams, after which a flow has ended. UDP only. Default 0,
    /// any number: most protocols do not say. 1 for DNS frees a query's place as soon as it is
    /// answered.
    pub replies_expected: Option<u32>,
    /// Whether flows share upstream ports or have one each. UDP only. Default `shared`: an endpoint
    /// is told apart by its address, so one port serves a flow of every endpoint.
    pub upstream_sockets: Option<UpstreamSockets>,
    /// Ports that each worker may open towards endpoints, 1 to 65535. UDP only. Default 16384: that
    /// many flows of one endpoint per worker, if the system's range of ephemeral ports has as many
    /// for all workers. With `per-flow` it bounds all flows of a worker.
    pub upstream_ports_max: Option<u32>,
    /// Whether trains of datagrams are received and sent in one piece. UDP only. Default true: it
    /// saves most of the cost of bulk protocols, and costs the others nothing.
    pub segmentation_offload: Option<bool>,
}

impl Listener {
    /// The default of `connect_timeout_ms`.
    pub const CONNECT_TIMEOUT_MS: u64 = 5_000;
    /// The default of `connect_attempts`.
    pub const CONNECT_ATTEMPTS: u32 = 3;
    /// The default of `half_closed_timeout_ms`.
    pub const HALF_CLOSED_TIMEOUT_MS: u64 = 30_000;
    /// The default of `preread_timeout_ms`.
    pub const PREREAD_TIMEOUT_MS: u64 = 3_000;
    /// The default of `preread_bytes_max`.
    pub const PREREAD_BYTES_MAX: u32 = 16_384;
    /// The default of `replies_expected`.
    pub const REPLIES_EXPECTED: u32 = 0;
    /// The default of `upstream_sockets`.
    pub const UPSTREAM_SOCKETS: UpstreamSockets = UpstreamSockets::Shared;
    /// The default of `upstream_ports_max`.
    pub const UPSTREAM_PORTS_MAX: u32 = 16_384;
    /// The default of `segmentation_offload`.
    pub const SEGMENTATION_OFFLOAD: bool = true;
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            name: None,
            address: None,
            protocol: Protocol::Tcp,
            cluster: None,
            max_flows: 100_000,
            max_flows_per_client: 0,
            new_flows_per_second: 0,
            new_flows_per_second_per_client: 0,
            allow: Vec::new(),
            deny: Vec::new(),
            idle_timeout_ms: 60_000,
            connect_timeout_ms: None,
            connect_attempts: None,
            half_closed_timeout_ms: None,
            client_prefix_v4: 32,
            client_prefix_v6: 64,
            on_endpoint_down: OnEndpointDown::Keep,
            key: None,
            preread_timeout_ms: None,
            preread_bytes_max: None,
            proxy_protocol: None,
            replies_expected: None,
            upstream_sockets: None,
            upstream_ports_max: None,
            segmentation_offload: None,
        }
    }
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// Its name in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What happens to established flows of an endpoint that goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnEndpointDown {
    /// They stay until they end by themselves.
    Keep,
    /// Both sides are reset. TCP only.
    Reset,
    /// They are given another endpoint. UDP only.
    Reallocate,
    /// They end, and the client's next datagram starts another flow. UDP only.
    Drop,
}

/// From which ports flows of datagrams reach their endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamSockets {
    /// From ports that flows of different endpoints share.
    Shared,
    /// Each from a connected port of its own: the kernel then reports an endpoint's ICMP errors.
    PerFlow,
}

/// `proxy_protocol` of a listener: who connects for clients, and says so.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyInbound {
    /// Networks (`10.0.0.0/8`) and addresses from which connections are taken. Required: whoever may
    /// send a header may be any client, so the others are refused. All of these must send one.
    pub trusted: Option<Vec<String>>,
    /// How long a header may take to come whole. Default 1000: it is in the first packet, and that
    /// may be lost once.
    pub timeout_ms: Option<u64>,
}

impl ProxyInbound {
    /// The default of `timeout_ms`.
    pub const TIMEOUT_MS: u64 = 1_000;
}

/// `proxy_protocol` of a cluster: how its endpoints are told of their clients.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyOutbound {
    /// `v1` (TCP) or `v2`. Default `v2`: it is read faster, and has room for more than addresses.
    pub version: Option<ProxyVersion>,
    /// `v2`: what is told besides the addresses: `unique-id` and `authority` (TCP), `crc32c`. Default:
    /// nothing.
    pub tlvs: Vec<ProxyValue>,
}

/// Which header of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Bytes.
    V2,
}

/// What a header of version 2 tells besides the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyValue {
    /// A random id of the flow, which is in the access log too.
    UniqueId,
    /// The server name that a TLS client asked for. Needs a listener with `key = { kind = "sni" }`.
    Authority,
    /// A checksum of the header.
    Crc32c,
}

/// `key`: where a flow's application key stands.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Key {
    /// What is read. Required.
    pub kind: Option<KeyKind>,
    /// `bytes`: how many come before it, 0 to 65535. Default 0: the beginning.
    pub offset: Option<u32>,
    /// `bytes`: how many it has, 1 to 65535. `quic-cid`: how many leading ones of a connection id
    /// count, 1 to 20. Default 8: what fits the hash it becomes, and the usual length of an id.
    pub length: Option<u32>,
    /// `radius`: the type of the attribute, 1 to 255. Default 1: the user's name.
    pub attribute: Option<u32>,
}

impl Key {
    /// The default of `offset`.
    pub const OFFSET: u32 = 0;
    /// The default of `length`.
    pub const LENGTH: u32 = 8;
    /// The default of `attribute`.
    pub const ATTRIBUTE: u32 = 1;
}

/// What is read as a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// A range of bytes.
    Bytes,
    /// The server name of a TLS `ClientHello`. TCP only.
    Sni,
    /// The destination connection id of a QUIC packet. UDP only.
    QuicCid,
    /// The name asked for in a DNS query. UDP only.
    DnsName,
    /// An attribute of a RADIUS packet. UDP only.
    Radius,
    /// The Call-ID of a SIP message. UDP only.
    SipCallId,
}

impl KeyKind {
    /// Its name in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Sni => "sni",
            Self::QuicCid => "quic-cid",
            Self::DnsName => "dns-name",
            Self::Radius => "radius",
            Self::SipCallId => "sip-call-id",
        }
    }

    /// The only protocol it can be read from, if there is only one.
    pub const fn protocol(self) -> Option<Protocol> {
        match self {
            Self::Bytes => None,
            Self::Sni => Some(Protocol::Tcp),
            Self::QuicCid | Self::DnsName | Self::Radius | Self::SipCallId => Some(Protocol::Udp),
        }
    }
}

/// `[[clusters]]`: endpoints that serve the same thing.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// Its name. Required and unique.
    pub name: Option<String>,
    /// The name of a policy, or of a native one (`round-robin`, `least-flows`, `maglev`). Default
    /// `round-robin`: it needs no explanation.
    pub policy: String,
    /// Who serves. At least one is required, unless there is `discovery`.
    pub endpoints: Vec<Endpoint>,
    /// Where those who serve are found instead. Default: nowhere.
    pub discovery: Option<Discovery>,
    /// How endpoints are checked. Default: not at all, and every endpoint counts as up.
    pub health: Option<Health>,
    /// Which endpoints are left alone for a time because flows fail on them. Default: none.
    pub passive: Option<Passive>,
    /// How long an endpoint that comes back, or is added, takes until it has all of its weight: it
    /// begins with a tenth. At the start of the process all have theirs. Default 0: at once.
    pub slow_start_ms: u64,
    /// Whether flows wait while every endpoint has as many as its `max_flows`. Default: they do not,
    /// and are refused.
    pub queue: Option<Queue>,
    /// Whether flows are spread over all endpoints when none is available. Default true: when
    /// everything seems down the checks are the likelier fault, and refusing all is the worst outcome.
    pub fail_open: bool,
    /// The share of available endpoints, in percent, below which flows are spread over all of them, 0
    /// to 100. Default 0, only where there is none: with connects that are retried, half of the
    /// endpoints serve all flows, and most clusters are too small for a share to mean anything.
    pub panic_threshold_percent: u32,
    /// How endpoints are told of their clients: by a PROXY protocol header before the first byte, or
    /// before each datagram. Default: only where the policy says so, by the plainest header of version 2.
    pub proxy_protocol: Option<ProxyOutbound>,
    /// Whether flows to endpoints leave from their clients' addresses, and those of UDP from their ports
    /// too, so that endpoints see those without a header. Default false: it takes a privilege, and routes
    /// by which endpoints' answers come back to this machine.
    pub transparent: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            name: None,
            policy: "round-robin".to_owned(),
            endpoints: Vec::new(),
            discovery: None,
            health: None,
            passive: None,
            slow_start_ms: 0,
            queue: None,
            fail_open: true,
            panic_threshold_percent: 0,
            proxy_protocol: None,
            transparent: false,
        }
    }
}

/// One address in a cluster.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Endpoint {
    /// `address:port`. Required and unique in its cluster.
    pub address: Option<String>,
    /// Its share of flows relative to the others, 1 to 65535. Default 1: equals.
    pub weight: u32,
    /// Whether it gets flows only where no other endpoint of its cluster is available; all backups
    /// do then. Default false.
    pub backup: bool,
    /// Flows it may have at a time, over all workers, 0 to 10000000; a flow that it has no place for
    /// goes to another. Default 0: no limit.
    pub max_flows: u32,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self { address: None, weight: 1, backup: false, max_flows: 0 }
    }
}

/// `queue`: flows that wait for a place at an endpoint.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// How many may wait at a time, over all workers, 1 to 10000000; they count for the `max_flows` of
    /// their listener too. Default 1000: a queue longer than that is seldom served in time.
    pub max_flows: u32,
    /// How long each may wait. Default 5000: whoever has waited longer has mostly gone.
    pub timeout_ms: u64,
}

impl Default for Queue {
    fn default() -> Self {
        Self { max_flows: 1_000, timeout_ms: 5_000 }
    }
}

/// How a cluster's endpoints are checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// `tcp`, `http`, `udp` or `tls`. Default `tcp`: an endpoint passes when it accepts a connection,
    /// which is as much as can be asked of an unknown protocol.
    pub kind: HealthKind,
    /// The port that is asked. Default: the endpoint's own.
    pub port: Option<u16>,
    /// Between the starts of two checks, give or take a tenth. Default 2000: with `fall` an endpoint
    /// is down within some seconds, and a thousand endpoints cost 500 connections a second.
    pub interval_ms: u64,
    /// The same after a check that speaks against what is believed of the endpoint, until it is
    /// certain. Default: a quarter of `interval_ms`, so that an endpoint that dies is left alone
    /// sooner, and one that lives costs no more.
    pub fast_interval_ms: Option<u64>,
    /// How long a check may take. Default 1000: one lost SYN is repeated after a second, and a
    /// check that needs the repeat has failed.
    pub timeout_ms: u64,
    /// Passed checks in a row that bring an endpoint up. Default 2: one may be luck.
    pub rise: u32,
    /// Failures in a row, of checks or of flows' connects, that take it down. Default 3: one lost
    /// packet must not.
    pub fall: u32,
    /// `http`: the request's method. Default `GET`: not every server answers `HEAD` alike.
    pub method: Option<String>,
    /// `http`: its path, with a query if there is one. Default `/`.
    pub path: Option<String>,
    /// `http`: its `Host`. Default: the endpoint's address.
    pub host: Option<String>,
    /// `http`: codes that are good, each one code or two with a dash between. Default `["200-399"]`:
    /// a redirection is an answer.
    pub status: Option<Vec<String>>,
    /// `http`: a text that must be found in the first 64 KiB of the body. Default: none.
    pub body: Option<String>,
    /// `udp`: what is sent; `\xNN` is the byte with this number. Required for `udp`: there is no
    /// datagram that every service answers.
    pub send: Option<String>,
    /// `udp`: what must be found in the answer, written like `send`. Default: any answer will do.
    pub expect: Option<String>,
    /// `tls`: the name that is asked for. Default: none.
    pub server_name: Option<String>,
    /// `tcp`, `http` and `tls`: the PROXY protocol header, `v1` or `v2`, that comes first and says that
    /// the connection is the balancer's own. Default: none. Endpoints that ask every connection for a
    /// header ask checks too.
    pub proxy_protocol: Option<ProxyVersion>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            kind: HealthKind::Tcp,
            port: None,
            interval_ms: 2_000,
            fast_interval_ms: None,
            timeout_ms: 1_000,
            rise: 2,
            fall: 3,
            method: None,
            path: None,
            host: None,
            status: None,
            body: None,
            send: None,
            expect: None,
            server_name: None,
            proxy_protocol: None,
        }
    }
}

/// What a check does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthKind {
    /// Connects.
    Tcp,
    /// Asks for a page.
    Http,
    /// Sends a datagram and waits for the answer.
    Udp,
    /// Connects and shakes hands.
    Tls,
}

/// `[[policies]]`: what allocates new flows.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Its name. Required, unique, and none of the native ones.
    pub name: Option<String>,
    /// A `.wasm` file, looked up beside the configuration and then in the plugin folders. Either
    /// this or `native` is required.
    pub plugin: Option<PathBuf>,
    /// What the plugin is given beside the interface of policies. Default `strict`, nothing: a
    /// decision then depends on the flow and on what the host tells, and on nothing else.
    pub profile: Profile,
    /// `round-robin`, `least-flows` or `maglev`.
    pub native: Option<String>,
    /// What the plugin is configured with; it gets it as JSON. Default: `null`.
    pub config: Option<toml::Value>,
    /// The native policy that answers when the plugin fails or defers, and that a plugin of weights
    /// steers. Default `round-robin`: it cannot make a bad situation worse.
    pub fallback: String,
    /// What becomes of kept decisions when the plugin is swapped. Default `keep`: clients stay where
    /// they are.
    pub on_swap: OnSwap,
    /// Whether the file is watched, and swapped in when it has changed. Default false: a file that
    /// is still being written, or copied to the wrong place, is then nobody's policy.
    pub watch: bool,
    /// More faults than this soon after a swap bring the module before back. Default 10: one flow
    /// that no policy understands is no reason, and the fallback has answered all of them.
    pub rollback_faults: u32,
    /// How long after a swap faults are held against it. Default 10000: a module that is broken shows
    /// it with the first flows, and a later fault is none of the swap.
    pub rollback_window_ms: u64,
    /// How often a plugin of weights is asked. Default 1000: loads are averages over ten seconds.
    pub tick_ms: u64,
    /// How long one decision may take. Default 2: a decision takes well under a microsecond, and
    /// the worker serves nobody else meanwhile.
    pub decide_deadline_ms: u64,
    /// How long each step of starting an instance may take: loading, configuring, and hearing of the
    /// first endpoints. Default 200: it happens seldom, off the data path, and may build tables.
    pub configure_deadline_ms: u64,
    /// The most memory one instance may have. Default 16: a table of 65537 slots fits many times.
    pub memory_max_mib: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            name: None,
            plugin: None,
            profile: Profile::Strict,
            native: None,
            config: None,
            fallback: "round-robin".to_owned(),
            on_swap: OnSwap::Keep,
            watch: false,
            rollback_faults: 10,
            rollback_window_ms: 10_000,
            tick_ms: 1_000,
            decide_deadline_ms: 2,
            configure_deadline_ms: 200,
            memory_max_mib: 16,
        }
    }
}

/// What a plugin is given beside the interface of policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Nothing.
    Strict,
    /// Stubs of WASI, for languages that come with a runtime.
    Compat,
}

/// What becomes of kept decisions when a plugin is swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnSwap {
    /// They stay.
    Keep,
    /// They are asked about again when next used.
    Revalidate,
    /// They go.
    Flush,
}
