//! Looks up where a cluster's endpoints are found, and reads those that a file names.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hickory_resolver::proto::rr::Name;

use super::clusters::endpoints;
use super::findings::{Distinct, Findings};
use super::{ENDPOINTS_MAX, EndpointPlan, PluginFolders};
use crate::config::{self, Discovery, DiscoveryKind, EndpointsFile, Family};
use crate::problem::Problem;

/// Where resolvers listen unless it is said.
const DNS_PORT: u16 = 53;
/// More servers than a resolver would ever get round to.
const RESOLVERS_MAX: usize = 16;

/// Where a cluster's endpoints are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryPlan {
    /// Who knows them.
    pub source: Source,
    /// The most that are taken from one answer.
    pub endpoints_max: usize,
    /// How long the start waits for the first answer.
    pub start_timeout: Duration,
}

/// Who knows endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Resolvers.
    Dns(DnsPlan),
    /// Whoever writes this file.
    File(PathBuf),
}

/// What resolvers are asked, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsPlan {
    /// The name.
    pub name: Name,
    /// The port of its addresses; `None` asks for services, which have their own.
    pub port: Option<u16>,
    /// Which addresses count.
    pub family: Family,
    /// Who is asked; the system's resolvers if there is none.
    pub resolvers: Vec<SocketAddr>,
    /// How long one question may take.
    pub timeout: Duration,
    /// The least between two questions.
    pub refresh_min: Duration,
    /// The most between two questions.
    pub refresh_max: Duration,
    /// The most while there is no answer.
    pub retry_max: Duration,
    /// How long the name may not exist until its endpoints are removed, if they ever are.
    pub forget_after: Option<Duration>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(DnsPlan { name, port: Some(port), .. }) => write!(f, "dns {name}:{port}"),
            Self::Dns(DnsPlan { name, port: None, .. }) => write!(f, "srv {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

pub(super) fn resolve(
    at: &str,
    discovery: &Discovery,
    folders: &PluginFolders,
    findings: &mut Findings,
) -> Option<DiscoveryPlan> {
    let Some(kind) = discovery.kind else {
        findings.add(format!("{at}.kind"), "is missing; write \"dns\", \"srv\" or \"file\"");
        return None;
    };
    refuse_strangers(at, discovery, kind, findings);
    let source = match kind {
        DiscoveryKind::File => Source::File(path(at, discovery, folders, findings)),
        DiscoveryKind::Dns | DiscoveryKind::Srv => Source::Dns(dns(at, discovery, findings)?),
    };
    let key = format!("{at}.max_endpoints");
    let most = ENDPOINTS_MAX as u32;
    let default = if kind == DiscoveryKind::File { most } else { Discovery::MAX_ENDPOINTS };
    let endpoints_max = discovery.max_endpoints.unwrap_or(default);
    let endpoints_max = findings.within(&key, endpoints_max, 1..=most) as usize;
    let key = format!("{at}.start_timeout_ms");
    let start_timeout_ms = findings.within(&key, discovery.start_timeout_ms, 0..=600_000);
    let start_timeout = Duration::from_millis(start_timeout_ms);
    Some(DiscoveryPlan { source, endpoints_max, start_timeout })
}

/// Refuses settings that this kind does not have.
fn refuse_strangers(at: &str, given: &Discovery, kind: DiscoveryKind, findings: &mut Findings) {
    let is_file = kind == DiscoveryKind::File;
    let settings = [
        ("name", given.name.is_some(), !is_file),
        ("port", given.port.is_some(), kind == DiscoveryKind::Dns),
        ("family", given.family.is_some(), !is_file),
        ("resolvers", given.resolvers.is_some(), !is_file),
        ("timeout_ms", given.timeout_ms.is_some(), !is_file),
        ("refresh_min_ms", given.refresh_min_ms.is_some(), !is_file),
        ("refresh_max_ms", given.refresh_max_ms.is_some(), !is_file),
        ("retry_max_ms", given.retry_max_ms.is_some(), !is_file),
        ("forget_after_ms", given.forget_after_ms.is_some(), !is_file),
        ("max_endpoints", given.max_endpoints.is_some(), !is_file),
        ("path", given.path.is_some(), is_file),
    ];
    for (name, is_given, is_possible) in settings {
        if is_given && !is_possible {
            let kind = kind.name();
            findings.add(format!("{at}.{name}"), format!("kind \"{kind}\" has none; remove it"));
        }
    }
}

fn path(
    at: &str,
    discovery: &Discovery,
    folders: &PluginFolders,
    findings: &mut Findings,
) -> PathBuf {
    let path = discovery.path.as_deref().filter(|path| !path.as_os_str().is_empty());
    let Some(path) = path else {
        findings.add(format!("{at}.path"), "is missing; write the path of a file of endpoints");
        return PathBuf::new();
    };
    let beside = folders.as_slice().first().map_or(Path::new("."), PathBuf::as_path);
    beside.join(path)
}

fn dns(at: &str, discovery: &Discovery, findings: &mut Findings) -> Option<DnsPlan> {
    let name = name(at, discovery, findings);
    let is_service = discovery.kind == Some(DiscoveryKind::Srv);
    let port = if is_service { None } else { Some(port(at, discovery, findings)) };
    let mut millis = |name: &str, value: Option<u64>, default| {
        findings.millis(&format!("{at}.{name}"), value.unwrap_or(default))
    };
    let timeout = millis("timeout_ms", discovery.timeout_ms, Discovery::TIMEOUT_MS);
    let refresh_min = millis("refresh_min_ms", discovery.refresh_min_ms, Discovery::REFRESH_MIN_MS);
    let refresh_max = millis("refresh_max_ms", discovery.refresh_max_ms, Discovery::REFRESH_MAX_MS);
    let retry_max = millis("retry_max_ms", discovery.retry_max_ms, Discovery::RETRY_MAX_MS);
    let forget_after = discovery
        .forget_after_ms
        .map(|value| findings.millis(&format!("{at}.forget_after_ms"), value));
    for (key, most) in [("refresh_max_ms", refresh_max), ("retry_max_ms", retry_max)] {
        if most < refresh_min {
            let least = refresh_min.as_millis();
            let message = format!("is less than refresh_min_ms; write at least {least}");
            findings.add(format!("{at}.{key}"), message);
        }
    }
    let family = discovery.family.unwrap_or(Discovery::FAMILY);
    let resolvers = resolvers(at, discovery, findings);
    Some(DnsPlan {
        name: name?,
        port,
        family,
        resolvers,
        timeout,
        refresh_min,
        refresh_max,
        retry_max,
        forget_after,
    })
}

fn name(at: &str, discovery: &Discovery, findings: &mut Findings) -> Option<Name> {
    let key = format!("{at}.name");
    let advice = "write a name, such as \"web.example.com\"";
    let text = findings.required(&key, discovery.name.as_ref(), advice);
    if text.is_empty() {
        return None;
    }
    if text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
        findings.add(key, format!("\"{text}\" is an address; write it under endpoints instead"));
        return None;
    }
    match Name::from_ascii(text) {
        Ok(name) => Some(name),
        Err(error) => {
            findings.add(key, format!("\"{text}\" is no name ({error}); {advice}"));
            None
        }
    }
}

fn port(at: &str, discovery: &Discovery, findings: &mut Findings) -> u16 {
    let key = format!("{at}.port");
    match discovery.port {
        Some(port) => findings.within(&key, port, 1..=u16::MAX),
        None => {
            findings.add(key, "is missing; write the port of the endpoints");
            0
        }
    }
}

fn resolvers(at: &str, discovery: &Discovery, findings: &mut Findings) -> Vec<SocketAddr> {
    let key = format!("{at}.resolvers");
    let Some(texts) = &discovery.resolvers else { return Vec::new() };
    if texts.is_empty() {
        findings.add(&key, "is empty; name a resolver, or remove it for those of the system");
    }
    if texts.len() > RESOLVERS_MAX {
        findings.add(&key, format!("there are {}; write at most {RESOLVERS_MAX}", texts.len()));
    }
    let mut distinct = Distinct::default();
    let mut resolvers = Vec::with_capacity(texts.len());
    for (place, text) in texts.iter().enumerate() {
        let key = format!("{key}[{place}]");
        let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
        match text.parse().or(plain) {
            Ok(address) if address.port() != 0 => {
                distinct.note(findings, &key, &address.to_string());
                resolvers.push(address);
            }
            _ => findings
                .add(key, format!("\"{text}\" is no address; write one, such as \"127.0.0.1:53\"")),
        }
    }
    resolvers
}

/// Reads what a watched file says.
///
/// # Errors
/// All problems of the file, with their places in it.
pub fn read_endpoints(text: &str) -> Result<Vec<EndpointPlan>, Vec<Problem>> {
    let document = config::read_as::<EndpointsFile>(text);
    let mut findings = Findings::default();
    let plans = endpoints("endpoints", &document.config.endpoints, &mut findings);
    let problems = document.into_problems(findings.into_problems());
    if problems.is_empty() { Ok(plans) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::super::resolve;
    use super::*;

    fn cluster(more: &str) -> String {
        format!(
            "[[listeners]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
             [[clusters]]\nname = \"web\"\n{more}\n"
        )
    }

    fn found(discovery: &str) -> DiscoveryPlan {
        let text = cluster(&format!("discovery = {{ {discovery} }}"));
        let folders = PluginFolders::new(Path::new("/etc/pointsman/x.toml"), &[]);
        let plan = resolve(&config::read(&text).config, &folders).expect("a plan");
        plan.clusters[0].discovery.as_deref().expect("a discovery").clone()
    }

    fn problems(more: &str) -> Vec<String> {
        let document = config::read(&cluster(more));
        let later = resolve(&document.config, &PluginFolders::default()).err().unwrap_or_default();
        document.into_problems(later).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_and_a_port_or_a_path_is_enough() {
        let host = found("kind = \"dns\", name = \"web.test\", port = 80, resolvers = [\"::1\"]");
        assert_eq!(host.source.to_string(), "dns web.test:80");
        let Source::Dns(dns) = &host.source else { panic!("{host:?}") };
        assert_eq!(dns.resolvers, ["[::1]:53".parse().expect("an address")]);
        assert_eq!((dns.refresh_min, dns.forget_after), (Duration::from_secs(1), None));
        let service = found("kind = \"srv\", name = \"_web._tcp.test.\"");
        assert_eq!(service.source.to_string(), "srv _web._tcp.test.");
        let file = found("kind = \"file\", path = \"web.toml\"");
        assert_eq!(file.source, Source::File("/etc/pointsman/web.toml".into()));
    }

    #[test]
    fn every_mistake_about_discovery_is_told_with_its_key() {
        let dns = "kind = \"dns\", name = \"web.test\", port = 80";
        for (keys, expected) in [
            ("", "kind: is missing; write \"dns\", \"srv\" or \"file\""),
            ("kind = \"dsn\"", "kind: \"dsn\" is not possible here; did you mean \"dns\"?"),
            ("kind = \"dns\", port = 80", "name: is missing; write a name"),
            ("kind = \"dns\", name = \"a\"", "port: is missing; write the port of the endpoints"),
            ("kind = \"dns\", name = \"a\", port = 0", "port: 0 is out of range"),
            (
                "kind = \"dns\", name = \"10.0.0.1\", port = 1",
                "name: \"10.0.0.1\" is an address; write it under endpoints",
            ),
            ("kind = \"dns\", name = \"a..b\", port = 1", "name: \"a..b\" is no name"),
            ("kind = \"srv\", name = \"a\", port = 1", "port: kind \"srv\" has none; remove it"),
            ("kind = \"file\"", "path: is missing; write the path of a file"),
            (
                "kind = \"file\", path = \"x\", timeout_ms = 5",
                "timeout_ms: kind \"file\" has none; remove it",
            ),
            ("DNS, family = \"ipv5\"", "family: \"ipv5\" is not possible here; did you mean"),
            ("DNS, resolvers = []", "resolvers: is empty; name a resolver, or remove it"),
            ("DNS, resolvers = [\"ns.test\"]", "resolvers[0]: \"ns.test\" is no address"),
            ("DNS, refresh_min_ms = 0", "refresh_min_ms: 0 is out of range"),
            ("DNS, refresh_max_ms = 5", "refresh_max_ms: is less than refresh_min_ms"),
            (
                "DNS, retry_max_ms = 999",
                "retry_max_ms: is less than refresh_min_ms; write at least",
            ),
            ("DNS, max_endpoints = 0", "max_endpoints: 0 is out of range; write 1 to 65536"),
            ("DNS, start_timeout_ms = 600001", "start_timeout_ms: 600001 is out of range"),
            ("DNS, refresh_ms = 5", "refresh_ms: there is no such key"),
        ] {
            let keys = keys.replace("DNS", dns);
            let told = problems(&format!("discovery = {{ {keys} }}"));
            assert_eq!(told.len(), 1, "{keys}: {told:?}");
            let expected = format!("clusters[0].discovery.{expected}");
            assert!(told[0].starts_with(&expected), "{keys}: {told:?}");
        }
    }

    #[test]
    fn endpoints_are_written_or_found_and_not_both() {
        let told = problems(
            "endpoints = [{ address = \"10.0.0.1:1\" }]\n\
             discovery = { kind = \"file\", path = \"x\" }",
        );
        let expected = "clusters[0].endpoints: they are found by discovery already; remove one of \
                        the two";
        assert_eq!(told, [expected]);
    }

    #[test]
    fn a_file_of_endpoints_has_the_keys_of_a_cluster() {
        let text = "endpoints = [{ address = \"10.0.0.1:80\", weight = 2 },\n\
                    { address = \"[::1]:80\", backup = true }]\n";
        let found = read_endpoints(text).expect("endpoints");
        assert_eq!((found[0].weight, found[0].backup), (2, false));
        assert_eq!((found[1].weight, found[1].backup), (1, true));
        let tables = "[[endpoints]]\naddress = \"10.0.0.1:80\"\n";
        assert_eq!(read_endpoints(tables).expect("endpoints").len(), 1);
    }

    #[test]
    fn every_mistake_of_a_file_of_endpoints_is_told_with_its_place() {
        let text = "endpoints = [{ address = \"10.0.0.1\" },\n\
                    { adress = \"10.0.0.1:80\" },\n\
                    { address = \"10.0.0.3:80\", weight = 0 }]\n";
        let problems = read_endpoints(text).expect_err("mistakes");
        let told: Vec<_> = problems.iter().map(|it| (it.place, it.to_string())).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(told[0].0, Some((1, 16)));
        assert!(told[0].1.contains("add a port"), "{told:?}");
        assert_eq!(told[1].0, Some((2, 3)));
        assert!(told[1].1.contains("did you mean \"address\"?"), "{told:?}");
        assert!(told[2].1.starts_with("endpoints[2].weight: 0 is out of range"), "{told:?}");
    }

    #[test]
    fn an_empty_file_of_endpoints_is_a_mistake() {
        for text in ["", "endpoints = []"] {
            let problems = read_endpoints(text).expect_err("a mistake");
            assert!(problems[0].to_string().starts_with("endpoints: there is none"), "{text}");
        }
    }
}
