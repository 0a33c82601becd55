//! Looks up application keys.

use pointsman_core::preread::KeyRule;

use super::findings::Findings;
use crate::config::{Key, KeyKind, Protocol};

/// The most that a datagram can carry over IPv4.
const DATAGRAM_BYTES_MAX: u32 = 65_507;

/// What a key is read from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) protocol: Protocol,
    /// Bytes of a connection that are waited for.
    pub(super) preread_bytes_max: u32,
}

pub(super) fn resolve(
    at: &str,
    key: &Key,
    source: Source,
    findings: &mut Findings,
) -> Option<KeyRule> {
    let Some(kind) = key.kind else {
        let advice = "write what is read, such as kind = \"bytes\"";
        findings.add(format!("{at}.kind"), format!("is missing; {advice}"));
        return None;
    };
    if let Some(only) = kind.protocol().filter(|only| *only != source.protocol) {
        let possible: Vec<_> = kinds(source.protocol).map(KeyKind::name).collect();
        let message = format!(
            "\"{}\" is for {} listeners; possible here are \"{}\"",
            kind.name(),
            only.name(),
            possible.join("\", \"")
        );
        findings.add(format!("{at}.kind"), message);
    }
    refuse_strangers(at, key, kind, findings);
    let mut number = |name: &str, value, bounds| {
        let value = findings.within(&format!("{at}.{name}"), value, bounds);
        u16::try_from(value).unwrap_or(u16::MAX)
    };
    let length = key.length.unwrap_or(Key::LENGTH);
    Some(match kind {
        KeyKind::Bytes => {
            let offset = number("offset", key.offset.unwrap_or(Key::OFFSET), 0..=65_535);
            let length = number("length", length, 1..=65_535);
            refuse_beyond(at, u32::from(offset) + u32::from(length), source, findings);
            KeyRule::Bytes { offset, length }
        }
        KeyKind::Sni => KeyRule::ServerName,
        KeyKind::QuicCid => KeyRule::QuicConnectionId {
            length: u8::try_from(number("length", length, 1..=20)).unwrap_or(u8::MAX),
        },
        KeyKind::DnsName => KeyRule::DnsName,
        KeyKind::Radius => {
            let attribute = key.attribute.unwrap_or(Key::ATTRIBUTE);
            let attribute = number("attribute", attribute, 1..=255);
            KeyRule::RadiusAttribute(u8::try_from(attribute).unwrap_or(u8::MAX))
        }
        KeyKind::SipCallId => KeyRule::SipCallId,
    })
}

fn kinds(protocol: Protocol) -> impl Iterator<Item = KeyKind> {
    use KeyKind::{Bytes, DnsName, QuicCid, Radius, SipCallId, Sni};

    let all = [Bytes, Sni, QuicCid, DnsName, Radius, SipCallId];
    all.into_iter().filter(move |kind| kind.protocol().is_none_or(|only| only == protocol))
}

/// Refuses settings that this kind does not have.
fn refuse_strangers(at: &str, key: &Key, kind: KeyKind, findings: &mut Findings) {
    let has_length = matches!(kind, KeyKind::Bytes | KeyKind::QuicCid);
    let settings = [
        ("offset", key.offset.is_some(), kind == KeyKind::Bytes),
        ("length", key.length.is_some(), has_length),
        ("attribute", key.attribute.is_some(), kind == KeyKind::Radius),
    ];
    for (name, given, possible) in settings {
        if given && !possible {
            let message = format!("a \"{}\" key has none; leave it out", kind.name());
            findings.add(format!("{at}.{name}"), message);
        }
    }
}

/// Refuses a key that can never come.
fn refuse_beyond(at: &str, end: u32, source: Source, findings: &mut Findings) {
    let (most, what) = match source.protocol {
        Protocol::Tcp => (source.preread_bytes_max, "preread_bytes_max"),
        Protocol::Udp => (DATAGRAM_BYTES_MAX, "what a datagram can carry"),
    };
    if end > most {
        let message = format!("ends at byte {end}, beyond {what} ({most}); lower it");
        findings.add(format!("{at}.length"), message);
    }
}
