//! Looks up how endpoints are checked.

use hyper::http::uri::Authority;
use hyper::{Method, Uri};
use pointsman_core::health::Thresholds;
use pointsman_core::proxy::Version;
use tokio_rustls::rustls::pki_types::ServerName;

use super::findings::Findings;
use super::{CheckPlan, proxy};
use crate::config::{Health, HealthKind};
use crate::prober::check::{Check, HttpCheck, StatusRange, TlsCheck, UdpCheck};
use crate::prober::tls;

/// Codes that are good where nothing else is said: a redirection is an answer.
const STATUS_DEFAULT: &str = "200-399";

pub(super) fn resolve(key: &str, health: &Health, findings: &mut Findings) -> CheckPlan {
    refuse_what_is_of_no_use(key, health, findings);
    if health.port == Some(0) {
        findings.add(format!("{key}.port"), "port 0 cannot be asked; write 1 to 65535");
    }
    let interval = findings.millis(&format!("{key}.interval_ms"), health.interval_ms);
    let fast = health.fast_interval_ms.unwrap_or((health.interval_ms / 4).max(1));
    let fast_interval = findings.millis(&format!("{key}.fast_interval_ms"), fast);
    CheckPlan {
        check: match health.kind {
            HealthKind::Tcp => Check::Tcp,
            HealthKind::Http => Check::Http(http(key, health, findings)),
            HealthKind::Udp => Check::Udp(udp(key, health, findings)),
            HealthKind::Tls => tls_check(key, health, findings),
        },
        proxy: header(key, health, findings),
        port: health.port,
        interval,
        fast_interval: fast_interval.min(interval),
        timeout: findings.millis(&format!("{key}.timeout_ms"), health.timeout_ms),
        thresholds: Thresholds {
            rise: findings.within(&format!("{key}.rise"), health.rise, 1..=1000),
            fall: findings.within(&format!("{key}.fall"), health.fall, 1..=1000),
        },
    }
}

/// A key of another kind of check would be taken for one that has an effect.
fn refuse_what_is_of_no_use(key: &str, health: &Health, findings: &mut Findings) {
    let of_http = [
        ("method", health.method.is_some()),
        ("path", health.path.is_some()),
        ("host", health.host.is_some()),
        ("status", health.status.is_some()),
        ("body", health.body.is_some()),
    ];
    let of_udp = [("send", health.send.is_some()), ("expect", health.expect.is_some())];
    let of_tls = [("server_name", health.server_name.is_some())];
    let all = of_http.map(|(name, is_set)| (name, is_set, HealthKind::Http, "http")).into_iter();
    let all = all.chain(of_udp.map(|(name, is_set)| (name, is_set, HealthKind::Udp, "udp")));
    let all = all.chain(of_tls.map(|(name, is_set)| (name, is_set, HealthKind::Tls, "tls")));
    for (name, _, _, kind) in all.filter(|(_, is_set, kind, _)| *is_set && *kind != health.kind) {
        let advice =
            format!("has a meaning only for kind = \"{kind}\"; remove it, or change `kind`");
        findings.add(format!("{key}.{name}"), advice);
    }
}

/// A datagram has no header that comes first.
fn header(key: &str, health: &Health, findings: &mut Findings) -> Option<Version> {
    let version = proxy::version(health.proxy_protocol?);
    if health.kind == HealthKind::Udp {
        let advice = "has no meaning for kind = \"udp\"; remove it, or change `kind`";
        findings.add(format!("{key}.proxy_protocol"), advice);
    }
    Some(version)
}

fn http(key: &str, health: &Health, findings: &mut Findings) -> HttpCheck {
    let method = health.method.as_deref().unwrap_or("GET");
    let path = health.path.as_deref().unwrap_or("/");
    HttpCheck {
        method: Method::from_bytes(method.as_bytes()).unwrap_or_else(|_| {
            let advice = "is no method; write one such as \"GET\" or \"HEAD\"";
            findings.add(format!("{key}.method"), format!("\"{method}\" {advice}"));
            Method::GET
        }),
        path: path_of(path).unwrap_or_else(|| {
            let advice = "is no path; write one that begins with a slash, such as \"/healthz\"";
            findings.add(format!("{key}.path"), format!("\"{path}\" {advice}"));
            Uri::default()
        }),
        host: health.host.clone().inspect(|host| {
            if !is_host(host) {
                let advice = "is no host; write a name such as \"www.example.com\", with :port if \
                              it has one";
                findings.add(format!("{key}.host"), format!("{host:?} {advice}"));
            }
        }),
        status: status(key, health.status.as_deref(), findings),
        body: health.body.clone(),
    }
}

fn path_of(path: &str) -> Option<Uri> {
    path.starts_with('/').then(|| path.parse().ok()).flatten()
}

/// Whether a server would take it for the host of a URL.
fn is_host(text: &str) -> bool {
    !text.contains('@') && text.parse::<Authority>().is_ok()
}

fn status(key: &str, texts: Option<&[String]>, findings: &mut Findings) -> Vec<StatusRange> {
    let default = [STATUS_DEFAULT.to_owned()];
    let texts = texts.unwrap_or(&default);
    if texts.is_empty() {
        findings.add(format!("{key}.status"), "holds no code, so nobody passes; write some");
    }
    let mut ranges = Vec::with_capacity(texts.len());
    for (place, text) in texts.iter().enumerate() {
        match StatusRange::parse(text) {
            Some(range) => ranges.push(range),
            None => {
                let advice = "is no code; write one such as \"204\", or two as in \"200-299\"";
                findings.add(format!("{key}.status[{place}]"), format!("\"{text}\" {advice}"));
            }
        }
    }
    ranges
}

fn udp(key: &str, health: &Health, findings: &mut Findings) -> UdpCheck {
    let advice = "write a datagram that the service answers, such as send = 'ping', or for DNS \
                  send = '\\x00\\x01\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\x01'";
    let send = findings.required(&format!("{key}.send"), health.send.as_ref(), advice).to_owned();
    let mut bytes = |name: &str, text: &str| {
        bytes_of(text).unwrap_or_else(|problem| {
            findings.add(format!("{key}.{name}"), problem);
            Vec::new()
        })
    };
    let send = bytes("send", &send);
    UdpCheck { send, expect: bytes("expect", health.expect.as_deref().unwrap_or_default()) }
}

/// The bytes of a text in which `\xNN` is the byte with this number, and `\\` a backslash.
fn bytes_of(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        let digits = escaped.strip_prefix('x').and_then(|escaped| escaped.get(..2));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        rest = match byte {
            Some(byte) => {
                bytes.push(byte);
                &escaped[3..]
            }
            None if escaped.starts_with('\\') => {
                bytes.push(b'\\');
                &escaped[1..]
            }
            None => return Err("a backslash begins \\xNN or \\\\; write it twice".to_owned()),
        };
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

fn tls_check(key: &str, health: &Health, findings: &mut Findings) -> Check {
    let server_name = health.server_name.clone().and_then(|name| {
        let advice = "is no name of a server; write one such as \"www.example.com\"";
        let problem = format!("{name:?} {advice}");
        let read = ServerName::try_from(name);
        read.inspect_err(|_| findings.add(format!("{key}.server_name"), problem)).ok()
    });
    match tls::client_config() {
        Ok(config) => Check::Tls(TlsCheck { server_name, config }),
        Err(error) => {
            findings.add(format!("{key}.kind"), format!("cannot be used here: {error}"));
            Check::Tcp
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_byte_can_be_written() {
        assert_eq!(bytes_of(r"ping\x00\xFF\\x"), Ok(b"ping\0\xff\\x".to_vec()));
        assert_eq!(bytes_of("é"), Ok("é".as_bytes().to_vec()));
        for bad in [r"\", r"\n", r"\x", r"\x1", r"\xzz", r"\xé"] {
            assert!(bytes_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_begins_with_a_slash() {
        assert!(path_of("/healthz?full=1").is_some());
        assert!(path_of("healthz").is_none() && path_of("/a b").is_none());
    }
}
