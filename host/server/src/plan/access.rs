//! Looks up who may come to a listener.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use pointsman_core::{AccessList, Network};

use super::findings::Findings;
use crate::config::Listener;

/// The listener's list, if it has one.
pub(super) fn resolve(
    key: &str,
    listener: &Listener,
    findings: &mut Findings,
) -> Option<Arc<AccessList>> {
    if listener.allow.is_empty() && listener.deny.is_empty() {
        return None;
    }
    let mut seen = HashMap::new();
    let allow = networks(&format!("{key}.allow"), &listener.allow, &mut seen, findings);
    let deny = networks(&format!("{key}.deny"), &listener.deny, &mut seen, findings);
    Some(Arc::new(AccessList::new(&allow, &deny)))
}

/// Networks as one writes them, each once, by where it was written first.
pub(super) fn networks(
    key: &str,
    texts: &[String],
    seen: &mut HashMap<Network, String>,
    findings: &mut Findings,
) -> Vec<Network> {
    let mut networks = Vec::with_capacity(texts.len());
    for (place, text) in texts.iter().enumerate() {
        let key = format!("{key}[{place}]");
        match network(text) {
            Ok(network) => {
                if let Some(first) = seen.insert(network, key.clone()) {
                    findings.add(key, format!("\"{text}\" is already {first}; remove one"));
                }
                networks.push(network);
            }
            Err(advice) => findings.add(key, format!("\"{text}\" {advice}")),
        }
    }
    networks
}

/// A network as one writes it; an address alone is a network of one.
fn network(text: &str) -> Result<Network, String> {
    let wrong = "is no network; write one such as \"10.0.0.0/8\", or an address";
    let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
    let address: IpAddr = address.parse().map_err(|_| wrong.to_owned())?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Ok(bits), str::parse::<u8>).map_err(|_| wrong.to_owned())?;
    if length > bits {
        return Err(format!("has more than {bits} bits; write a length from 0 to {bits}"));
    }
    Network::new(address, length).ok_or_else(|| {
        let first = first_address(address, length);
        format!("has bits beyond its length; write \"{first}/{length}\", or \"{address}\"")
    })
}

fn first_address(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_and_what_is_none_is_told_what_to_write() {
        let read =
            network("10.0.0.0/8").map(|network| (network.address.to_string(), network.length));
        assert_eq!(read, Ok(("10.0.0.0".to_owned(), 8)));
        assert_eq!(network("2001:db8::1").map(|network| network.length), Ok(128));
        for (text, expected) in [
            ("10.0.0.0/33", "has more than 32 bits"),
            ("10.0.0.1/8", "write \"10.0.0.0/8\", or \"10.0.0.1\""),
            ("2001:db8::1/32", "write \"2001:db8::/32\""),
            ("localhost", "is no network"),
            ("10.0.0.0/x", "is no network"),
            ("10.0.0.0/", "is no network"),
        ] {
            let told = network(text).expect_err(text);
            assert!(told.contains(expected), "{text}: {told}");
        }
    }
}
