//! `discovery`: where a cluster's endpoints are found that are not written in the file.

use std::path::PathBuf;

use serde::Deserialize;

/// Who is asked for endpoints, and how often.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// `dns`, `srv` or `file`. Required.
    pub kind: Option<DiscoveryKind>,
    /// `dns` and `srv`: the name that is asked for. Required. One that ends with a dot is asked for as
    /// it is; others with the system's search list too, where the system's resolvers are asked.
    pub name: Option<String>,
    /// `dns`: the port of all endpoints. Required: addresses have none.
    pub port: Option<u16>,
    /// `dns` and `srv`: which addresses of a name count. Default `prefer-ipv4`: a server with two
    /// addresses is one endpoint, and a machine without a route for IPv6 still finds everybody.
    pub family: Option<Family>,
    /// `dns` and `srv`: who is asked, as `address` or `address:port`. Default: those of
    /// `/etc/resolv.conf`, which is read anew when it changes.
    pub resolvers: Option<Vec<String>>,
    /// `dns` and `srv`: how long one question may take, repeats and TCP included. Default 5000, as
    /// resolvers have it.
    pub timeout_ms: Option<u64>,
    /// `dns` and `srv`: the least between two questions, whatever the ttl. Default 1000: a ttl of 0
    /// must not become a flood.
    pub refresh_min_ms: Option<u64>,
    /// `dns` and `srv`: the most, whatever the ttl. Default 60000: somebody who forgets to lower a ttl
    /// of a day before a change waits for a minute.
    pub refresh_max_ms: Option<u64>,
    /// `dns` and `srv`: the most between two questions while there is no answer. The first comes after
    /// `refresh_min_ms`, each next one after twice as long. Default 10000.
    pub retry_max_ms: Option<u64>,
    /// `dns` and `srv`: how long resolvers may say that the name or its addresses do not exist until
    /// the endpoints are removed. Default: for ever, because a mistake in a zone is likelier than a
    /// service that is meant to end.
    pub forget_after_ms: Option<u64>,
    /// `dns` and `srv`: the most endpoints that are taken from one answer. Default 1000: more than most
    /// clusters have, and fewer than an answer has room for.
    pub max_endpoints: Option<u32>,
    /// `file`: what is watched, looked up beside the configuration. Required.
    pub path: Option<PathBuf>,
    /// How long the start waits for the first answer. Default 2000; then the balancer serves, and
    /// this cluster has nobody until there is one. 0 does not wait.
    pub start_timeout_ms: u64,
}

impl Discovery {
    /// The default of `family`.
    pub const FAMILY: Family = Family::PreferIpv4;
    /// The default of `timeout_ms`.
    pub const TIMEOUT_MS: u64 = 5_000;
    /// The default of `refresh_min_ms`.
    pub const REFRESH_MIN_MS: u64 = 1_000;
    /// The default of `refresh_max_ms`.
    pub const REFRESH_MAX_MS: u64 = 60_000;
    /// The default of `retry_max_ms`.
    pub const RETRY_MAX_MS: u64 = 10_000;
    /// The default of `max_endpoints`.
    pub const MAX_ENDPOINTS: u32 = 1_000;
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            kind: None,
            name: None,
            port: None,
            family: None,
            resolvers: None,
            timeout_ms: None,
            refresh_min_ms: None,
            refresh_max_ms: None,
            retry_max_ms: None,
            forget_after_ms: None,
            max_endpoints: None,
            path: None,
            start_timeout_ms: 2_000,
        }
    }
}

/// Where endpoints are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiscoveryKind {
    /// Under a host's name.
    Dns,
    /// Under a service's name.
    Srv,
    /// In a file.
    File,
}

impl DiscoveryKind {
    /// Its name in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Srv => "srv",
            Self::File => "file",
        }
    }
}

/// Which of a name's addresses count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Those of IPv4, or those of IPv6 if there is none.
    PreferIpv4,
    /// Those of IPv6, or those of IPv4 if there is none.
    PreferIpv6,
    /// Those of IPv4.
    Ipv4,
    /// Those of IPv6.
    Ipv6,
    /// All.
    Both,
}

/// What a watched file may say.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointsFile {
    /// Who serves, as in a cluster. At least one is required.
    pub endpoints: Vec<super::Endpoint>,
}
