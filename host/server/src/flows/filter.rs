//! Which entries are looked for, with everything looked up: workers only compare numbers.

use std::net::{IpAddr, SocketAddr};

use pointsman_core::boundary::ListenerId;
use pointsman_core::listing::{Entry, EntryId, EntryKind, FlowEntry, FlowState, KeptEntry};
use pointsman_core::{ClusterId, EndpointId, Protocol, Snapshot};

use super::{PageToken, Query};
use crate::problem::suggestion;

/// The most that one page of the admin interface holds.
const LIMIT_MAX: usize = 10_000;

/// A [`Query`] with everything looked up.
#[derive(Debug)]
pub struct Search {
    /// What to look for.
    pub filter: Filter,
    /// How many at most.
    pub limit: usize,
    /// Where to begin.
    pub from: PageToken,
}

impl Search {
    /// How many are shown unless somebody says how many.
    pub const LIMIT_DEFAULT: usize = 100;

    /// Looks everything up.
    ///
    /// # Errors
    /// One line that says what is wrong with the query.
    pub fn new(query: &Query, snapshot: &Snapshot) -> Result<Self, String> {
        let limit = query.limit.as_ref().map(|text| limit(text)).transpose()?;
        Ok(Self {
            filter: Filter::new(query, snapshot)?,
            limit: limit.unwrap_or(Self::LIMIT_DEFAULT).min(LIMIT_MAX),
            from: query.page.as_ref().map_or_else(|| Ok(PageToken::default()), |t| t.parse())?,
        })
    }
}

/// Reads a limit.
fn limit(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|limit| *limit > 0);
    number.ok_or_else(|| format!("limit \"{text}\" is no number above 0; write such as 100"))
}

/// What an entry must be like; what is `None` may be anything.
#[derive(Debug, Default)]
pub struct Filter {
    id: Option<EntryId>,
    /// All that have the name: one that was removed may have flows yet.
    listeners: Option<Vec<ListenerId>>,
    clusters: Option<Vec<ClusterId>>,
    endpoint: Option<EndpointFilter>,
    client: Option<ClientFilter>,
    protocol: Option<Protocol>,
    kind: Option<Kind>,
    state: Option<FlowState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flow,
    Kept,
}

#[derive(Debug)]
struct EndpointFilter {
    ip: IpAddr,
    port: Option<u16>,
    /// Those of that address: kept decisions name endpoints by number.
    ids: Vec<(ClusterId, EndpointId)>,
}

#[derive(Debug)]
struct ClientFilter {
    network: u128,
    mask: u128,
    /// What the network is masked to by the listeners of each cluster: a decision that is kept for
    /// a larger network is kept for this one too.
    within: Vec<(ClusterId, u128)>,
}

impl Filter {
    /// Lets only this entry through.
    pub fn by_id(id: EntryId) -> Self {
        Self { id: Some(id), ..Self::default() }
    }

    fn new(query: &Query, snapshot: &Snapshot) -> Result<Self, String> {
        let listeners: Vec<_> = snapshot.listeners.iter().map(|found| &*found.name).collect();
        let clusters: Vec<_> = snapshot.clusters.iter().map(|found| &*found.name).collect();
        let listeners = places("listener", query.listener.as_ref(), &listeners)?;
        let clusters = places("cluster", query.cluster.as_ref(), &clusters)?;
        let protocols = [Protocol::Tcp, Protocol::Udp];
        let states = [
            FlowState::Prereading,
            FlowState::Queued,
            FlowState::Unconfirmed,
            FlowState::Established,
            FlowState::Denied,
            FlowState::Closing,
        ];
        let names = protocols.map(crate::plan::protocol_name);
        let protocol = place("protocol", query.protocol.as_ref(), &names)?;
        let kind = place("kind", query.kind.as_ref(), &["flow", "kept"])?;
        let state = place("state", query.state.as_ref(), &states.map(FlowState::label))?;
        let endpoint = query.endpoint.as_ref().map(|text| EndpointFilter::new(text, snapshot));
        let client = query.client.as_ref().map(|text| ClientFilter::new(text, snapshot));
        let filter = Self {
            id: None,
            listeners: listeners.map(|all| all.into_iter().map(ListenerId).collect()),
            clusters: clusters.map(|all| all.into_iter().map(ClusterId).collect()),
            endpoint: endpoint.transpose()?,
            client: client.transpose()?,
            protocol: protocol.map(|place| protocols[place]),
            kind: kind.map(|place| [Kind::Flow, Kind::Kept][place]),
            state: state.map(|place| states[place]),
        };
        if filter.kind == Some(Kind::Kept) && filter.is_for_flows() {
            return Err(
                "listener, protocol and state are of flows, and kept decisions have none; \
                        leave out the kind or the others"
                    .to_owned(),
            );
        }
        Ok(filter)
    }

    /// Whether the entry is looked for.
    pub fn matches(&self, entry: &Entry) -> bool {
        let matches = self.id.is_none_or(|id| id == entry.id)
            && self.clusters.as_ref().is_none_or(|all| all.contains(&entry.cluster));
        matches
            && match &entry.kind {
                EntryKind::Flow(flow) => self.matches_flow(flow),
                EntryKind::Kept(kept) => self.matches_kept(entry, kept),
            }
    }

    fn matches_flow(&self, flow: &FlowEntry) -> bool {
        self.kind.is_none_or(|kind| kind == Kind::Flow)
            && self.listeners.as_ref().is_none_or(|all| all.contains(&flow.listener))
            && self.protocol.is_none_or(|protocol| protocol == flow.protocol)
            && self.state.is_none_or(|state| state == flow.state)
            && self.client.as_ref().is_none_or(|client| client.contains(flow.client.ip()))
            && self.endpoint.as_ref().is_none_or(|endpoint| {
                flow.endpoint_address.is_some_and(|address| endpoint.is(address))
            })
    }

    fn matches_kept(&self, entry: &Entry, kept: &KeptEntry) -> bool {
        self.kind.is_none_or(|kind| kind == Kind::Kept)
            && !self.is_for_flows()
            && self.client.as_ref().is_none_or(|client| {
                kept.client.is_some_and(|ip| client.is_kept(entry.cluster, ip))
            })
            && self.endpoint.as_ref().is_none_or(|endpoint| {
                entry.endpoint.is_some_and(|id| endpoint.ids.contains(&(entry.cluster, id)))
            })
    }

    /// Whether it asks for what only flows have.
    fn is_for_flows(&self) -> bool {
        self.listeners.is_some() || self.protocol.is_some() || self.state.is_some()
    }
}

impl EndpointFilter {
    fn new(text: &str, snapshot: &Snapshot) -> Result<Self, String> {
        let (ip, port) = match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
            (Ok(address), _) => (address.ip(), Some(address.port())),
            (_, Ok(ip)) => (ip, None),
            _ => return Err(format!("endpoint \"{text}\" is no address; write address:port")),
        };
        let mut filter = Self { ip, port, ids: Vec::new() };
        for (cluster, state) in (0..).map(ClusterId).zip(&snapshot.clusters) {
            let endpoints = state.endpoints.iter().map(|state| &state.endpoint);
            let wanted = endpoints.filter(|endpoint| filter.is(endpoint.address));
            let ids: Vec<_> = wanted.map(|endpoint| (cluster, endpoint.id)).collect();
            filter.ids.extend(ids);
        }
        Ok(filter)
    }

    fn is(&self, address: SocketAddr) -> bool {
        address.ip() == self.ip && self.port.is_none_or(|port| port == address.port())
    }
}

impl ClientFilter {
    fn new(text: &str, snapshot: &Snapshot) -> Result<Self, String> {
        let wrong =
            || format!("client \"{text}\" is no address; write an address or address/length");
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let ip: IpAddr = address.parse().map_err(|_| wrong())?;
        let (before, bits) = if ip.is_ipv4() { (96, 32) } else { (0, 128) };
        let length = length.map_or(Ok(bits), str::parse::<u32>).map_err(|_| wrong())?;
        if length > bits {
            return Err(format!("client \"{text}\" has more than {bits} bits; write 0 to {bits}"));
        }
        let mask = u128::MAX.checked_shl(128 - before - length).unwrap_or(0);
        let network = mapped(ip) & mask;
        let larger = snapshot.listeners.iter().filter(|listener| {
            let prefix = listener.client_prefix;
            length >= u32::from(if ip.is_ipv4() { prefix.v4 } else { prefix.v6 })
        });
        let within = larger.map(|found| (found.cluster, found.client_prefix.mask(ip).to_bits()));
        Ok(Self { network, mask, within: within.collect() })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        mapped(ip) & self.mask == self.network
    }

    fn is_kept(&self, cluster: ClusterId, ip: IpAddr) -> bool {
        self.contains(ip) || self.within.contains(&(cluster, mapped(ip)))
    }
}

/// An address's bits, IPv4 mapped into IPv6.
fn mapped(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Where a name stands among those there are.
fn place(what: &str, name: Option<&String>, known: &[&str]) -> Result<Option<usize>, String> {
    let Some(name) = name else { return Ok(None) };
    let place = known.iter().position(|known| known == name);
    place.map(Some).ok_or_else(|| {
        let hint = suggestion(name, known.iter().copied());
        format!("there is no {what} \"{name}\"{hint}")
    })
}

/// Everywhere that a name stands among those there are.
fn places(what: &str, name: Option<&String>, known: &[&str]) -> Result<Option<Vec<u16>>, String> {
    let Some(first) = place(what, name, known)? else { return Ok(None) };
    let all = (0..).zip(known).filter(|(_, name)| **name == known[first]);
    Ok(Some(all.map(|(place, _)| place).collect()))
}

#[cfg(test)]
mod tests;
