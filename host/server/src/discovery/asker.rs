//! Asks resolvers: one question at a time and name, so many at a time in all.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use super::answer::{Failure, Outcome};
use crate::config::Family;
use crate::plan::DnsPlan;
use crate::runtime;

/// Questions under way at a time: thousands of names become a stream and no burst.
const QUESTIONS_MAX: usize = 32;
/// Where the system says who is to be asked.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long that is believed before it is looked at again.
const RESOLV_CONF_AGE_MAX: Duration = Duration::from_secs(5);

/// Who is asked, and for how long.
type Whom = (Vec<SocketAddr>, Duration);

/// All askers that are in use: clusters that ask the same resolvers share one.
#[derive(Default)]
pub(super) struct Askers {
    all: BTreeMap<Whom, Weak<Asker>>,
}

impl Askers {
    pub(super) fn of(&mut self, plan: &DnsPlan) -> Arc<Asker> {
        let whom = (plan.resolvers.clone(), plan.timeout);
        let entry = self.all.entry(whom).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let asker = Arc::new(Asker::new(&plan.resolvers, plan.timeout));
            *entry = Arc::downgrade(&asker);
            asker
        })
    }

    pub(super) fn forget_unused(&mut self) {
        self.all.retain(|_, asker| asker.strong_count() > 0);
    }
}

/// Asks the same resolvers on behalf of many.
pub(super) struct Asker {
    /// None: the system's.
    resolvers: Vec<SocketAddr>,
    timeout: Duration,
    turns: Semaphore,
    line: Mutex<Option<Line>>,
}

/// A way to resolvers.
#[derive(Clone)]
struct Line {
    resolver: TokioResolver,
    /// Where a name is looked for that is not absolute.
    search: Arc<[Name]>,
    /// From so many dots on a name is taken to be absolute first.
    dots_min: usize,
    /// What the system said, and when.
    conf: Vec<u8>,
    read_at: Instant,
}

/// Records, and how long they hold.
pub(super) struct Told<T> {
    pub(super) records: Vec<T>,
    pub(super) ttl: Duration,
}

impl Asker {
    fn new(resolvers: &[SocketAddr], timeout: Duration) -> Self {
        let turns = Semaphore::new(QUESTIONS_MAX);
        Self { resolvers: resolvers.to_owned(), timeout, turns, line: Mutex::default() }
    }

    /// The addresses of a name. With a preference the other family is asked for only if it is certain
    /// that the preferred one has none; otherwise silence would move all flows to other addresses.
    pub(super) async fn addresses(
        &self,
        name: &Name,
        family: Family,
    ) -> Result<Told<IpAddr>, Failure> {
        let (first, second) = match family {
            Family::Ipv4 => (RecordType::A, None),
            Family::Ipv6 => (RecordType::AAAA, None),
            Family::PreferIpv4 | Family::Both => (RecordType::A, Some(RecordType::AAAA)),
            Family::PreferIpv6 => (RecordType::AAAA, Some(RecordType::A)),
        };
        let one = self.ask(name, first).await;
        let is_denied = one.as_ref().is_err_and(|failure| failure.outcome.is_denial());
        let second = second.filter(|_| is_denied || (family == Family::Both && one.is_ok()));
        let Some(second) = second else { return Ok(addresses(&one?)) };
        match (one, self.ask(name, second).await) {
            (Ok(one), Ok(other)) => {
                let ttl = one.ttl.min(other.ttl);
                let records = one.records.into_iter().chain(other.records).collect();
                Ok(addresses(&Told { records, ttl }))
            }
            (Ok(one), Err(failure)) if failure.outcome.is_denial() => Ok(addresses(&one)),
            (Err(_), Ok(other)) => Ok(addresses(&other)),
            (_, Err(failure)) => Err(failure),
        }
    }

    /// The records of a type that a name has.
    ///
    /// A relative name is looked for in one place after another; where it cannot be asked about, the
    /// search ends, because what comes next would be another name.
    pub(super) async fn ask(&self, name: &Name, of: RecordType) -> Result<Told<RData>, Failure> {
        let line = self.line().await?;
        let mut denial = None;
        for name in places(name, &line.search, line.dots_min) {
            match self.ask_one(&line.resolver, name, of).await {
                Err(failure) if failure.outcome.is_denial() => denial = Some(failure),
                told => return told,
            }
        }
        Err(denial.unwrap_or_else(|| Failure::new(Outcome::NxDomain, "there is no such name")))
    }

    async fn ask_one(
        &self,
        resolver: &TokioResolver,
        name: Name,
        of: RecordType,
    ) -> Result<Told<RData>, Failure> {
        let Ok(_turn) = self.turns.acquire().await else {
            return Err(Failure::new(Outcome::Error, "nobody is asked any more"));
        };
        // What it keeps it would answer with, and it is asked only when that is not wanted.
        resolver.clear_cache();
        let answered = timeout(self.timeout, resolver.lookup(name.clone(), of)).await;
        let about =
            |failure: Failure| Failure { why: format!("{name} {of}: {}", failure.why), ..failure };
        let lookup = match answered {
            Ok(Ok(lookup)) => lookup,
            Ok(Err(error)) => return Err(about(failure(&error))),
            Err(_) => return Err(about(failure(&NetError::Timeout))),
        };
        let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
        let wanted = lookup.answers().iter().filter(|record| record.record_type() == of);
        let records: Vec<_> = wanted.map(|record| record.data.clone()).collect();
        if records.is_empty() {
            return Err(about(Failure::new(Outcome::Empty, "there are no such records")));
        }
        Ok(Told { records, ttl: Duration::from_secs(ttl.into()) })
    }

    /// The way to the resolvers, which for those of the system may become another one.
    async fn line(&self) -> Result<Line, Failure> {
        let mut line = self.line.lock().await;
        let known = line.as_ref().filter(|line| {
            !self.resolvers.is_empty() || line.read_at.elapsed() < RESOLV_CONF_AGE_MAX
        });
        if let Some(known) = known {
            return Ok(known.clone());
        }
        let new = if self.resolvers.is_empty() {
            self.line_of_system(line.take()).await?
        } else {
            self.line_to_resolvers()?
        };
        Ok(line.insert(new).clone())
    }

    fn line_to_resolvers(&self) -> Result<Line, Failure> {
        let servers = self.resolvers.iter().map(|address| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections.iter_mut().for_each(|it| it.port = address.port());
            server
        });
        let config = ResolverConfig::from_name_servers(servers.collect());
        self.build(config, ResolverOpts::default(), Vec::new())
    }

    async fn line_of_system(&self, before: Option<Line>) -> Result<Line, Failure> {
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::new(Outcome::Error, format!("{RESOLV_CONF}: {error}"))
        };
        let conf = runtime::read(Path::new(RESOLV_CONF)).await.map_err(|it| cannot(&it))?;
        if let Some(before) = before.filter(|before| before.conf == conf) {
            return Ok(Line { read_at: Instant::now(), ..before });
        }
        let (config, options) = parse_resolv_conf(&conf).map_err(|it| cannot(&it))?;
        self.build(config, options, conf)
    }

    fn build(
        &self,
        config: ResolverConfig,
        mut options: ResolverOpts,
        conf: Vec<u8>,
    ) -> Result<Line, Failure> {
        // Half of the time for each of two tries, so that a lost datagram is no failure.
        options.timeout = self.timeout / 2;
        options.attempts = 1;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let (search, dots_min) = (config.search().into(), options.ndots);
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build();
        let resolver = resolver.map_err(|error| failure(&error))?;
        Ok(Line { resolver, search, dots_min, conf, read_at: Instant::now() })
    }
}

/// The absolute names that a name may stand for, in the order in which they are tried.
fn places(name: &Name, search: &[Name], dots_min: usize) -> Vec<Name> {
    let absolute = |mut name: Name| {
        name.set_fqdn(true);
        name
    };
    if name.is_fqdn() {
        return vec![name.clone()];
    }
    let within = search.iter().filter_map(|at| name.clone().append_domain(at).ok());
    let mut places: Vec<_> = within.map(absolute).collect();
    let dots = usize::from(name.num_labels()).saturating_sub(1);
    let place = if dots >= dots_min { 0 } else { places.len() };
    places.insert(place, absolute(name.clone()));
    places
}

fn addresses(told: &Told<RData>) -> Told<IpAddr> {
    let records = told.records.iter().filter_map(|record| match record {
        RData::A(ip) => Some(IpAddr::V4(ip.0)),
        RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
        _ => None,
    });
    Told { records: records.collect(), ttl: told.ttl }
}

fn failure(error: &NetError) -> Failure {
    let outcome = match error {
        _ if error.is_nx_domain() => Outcome::NxDomain,
        NetError::Dns(DnsError::NoRecordsFound(_)) => Outcome::Empty,
        NetError::Timeout => Outcome::Timeout,
        _ => Outcome::Error,
    };
    let why = match outcome {
        Outcome::NxDomain => "there is no such name".to_owned(),
        Outcome::Empty => "there are no such records".to_owned(),
        _ => error.to_string(),
    };
    Failure::new(outcome, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_name_is_looked_for_where_the_system_says_and_an_absolute_one_is_not() {
        let name = |text| Name::from_ascii(text).expect("a name");
        let search = [name("a.test"), name("b.test.")];
        let of = |text, dots_min| {
            let places = places(&name(text), &search, dots_min);
            assert!(places.iter().all(Name::is_fqdn), "{places:?}");
            places.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("web.", 1), ["web."]);
        assert_eq!(of("web", 1), ["web.a.test.", "web.b.test.", "web."]);
        assert_eq!(of("web.c", 1), ["web.c.", "web.c.a.test.", "web.c.b.test."]);
        assert_eq!(of("web.c", 5), ["web.c.a.test.", "web.c.b.test.", "web.c."]);
    }
}
