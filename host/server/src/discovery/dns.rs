//! Asks for one cluster's name, again and again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use pointsman_core::ClusterId;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Found;
use super::answer::{Answer, Candidate, Failure, LeftOut, Outcome, settle};
use super::asker::{Asker, Told};
use super::pace::Pace;
use crate::plan::{DiscoveryPlan, DnsPlan, Source};

/// Asks until nobody hears what is found, or it is dropped.
pub(super) async fn search_for_ever(
    cluster: ClusterId,
    plan: Arc<DiscoveryPlan>,
    asker: Arc<Asker>,
    found: UnboundedSender<Found>,
) {
    let Source::Dns(dns) = &plan.source else { return };
    let mut pace = Pace::new(dns);
    let mut denial = Denial { forget_after: dns.forget_after, since: None };
    let mut targets = Targets::default();
    loop {
        let asked = match dns.port {
            Some(port) => host(&asker, dns, port).await,
            None => targets.services(&asker, dns, plan.endpoints_max).await,
        };
        let (said, wait) = match asked.and_then(|it| it.settle(plan.endpoints_max)) {
            Ok((answer, ttl)) => (Ok(answer), pace.after_answer(ttl)),
            Err(failure) => (Err(failure), pace.after_failure()),
        };
        let said = denial.judge(said, Instant::now());
        if found.send(Found { cluster, plan: Arc::clone(&plan), said }).is_err() {
            return;
        }
        sleep(wait).await;
    }
}

/// What was answered, before it is looked at whether that is of any use.
struct Asked {
    candidates: Vec<Candidate>,
    ttl: Duration,
    left_out: LeftOut,
}

impl Asked {
    fn settle(self, endpoints_max: usize) -> Result<(Answer, Duration), Failure> {
        let answer = settle(self.candidates, endpoints_max, self.left_out)?;
        Ok((answer, self.ttl))
    }
}

/// How long it has been said that there is nobody.
struct Denial {
    forget_after: Option<Duration>,
    since: Option<Instant>,
}

impl Denial {
    /// Silence neither confirms a denial nor takes it back.
    fn judge(&mut self, said: Result<Answer, Failure>, now: Instant) -> Result<Answer, Failure> {
        let failure = match said {
            Ok(answer) => {
                self.since = None;
                return Ok(answer);
            }
            Err(failure) => failure,
        };
        if !failure.outcome.is_denial() {
            return Err(failure);
        }
        let since = *self.since.get_or_insert(now);
        let forgets = self.forget_after.is_some_and(|after| now.duration_since(since) >= after);
        Err(Failure { forgets, ..failure })
    }
}

async fn host(asker: &Asker, dns: &DnsPlan, port: u16) -> Result<Asked, Failure> {
    let Told { records, ttl } = asker.addresses(&dns.name, dns.family).await?;
    let candidate = |ip| Candidate { address: SocketAddr::new(ip, port), weight: 1, priority: 0 };
    let candidates = records.into_iter().map(candidate).collect();
    Ok(Asked { candidates, ttl, left_out: LeftOut::default() })
}

/// The names that services were last found under, with the addresses these last had: one of many that
/// cannot be asked about must neither hold up the others nor lose its endpoint.
#[derive(Default)]
struct Targets {
    known: BTreeMap<Name, Vec<IpAddr>>,
}

impl Targets {
    async fn services(
        &mut self,
        asker: &Arc<Asker>,
        dns: &DnsPlan,
        targets_max: usize,
    ) -> Result<Asked, Failure> {
        let told = asker.ask(&dns.name, RecordType::SRV).await?;
        let (services, mut left_out) = chosen(&told.records, targets_max);
        if services.is_empty() {
            return Err(Failure::new(Outcome::Empty, "the service is said not to be there"));
        }
        let mut ttl = told.ttl;
        let mut first_failure = None;
        let mut known = BTreeMap::new();
        for (target, answered) in addresses_of(asker, dns, &services).await {
            let before = self.known.remove(&target);
            let found = match answered {
                Ok(told) => {
                    ttl = ttl.min(told.ttl);
                    Some(told.records)
                }
                Err(failure) => {
                    let is_denial = failure.outcome.is_denial();
                    first_failure.get_or_insert(failure);
                    // It is asked again as soon as may be.
                    ttl = if is_denial { ttl } else { Duration::ZERO };
                    before.filter(|_| !is_denial)
                }
            };
            match found {
                Some(found) => drop(known.insert(target, found)),
                None => left_out.unusable += 1,
            }
        }
        self.known = known;
        let candidates = self.candidates(&services);
        match first_failure.filter(|_| candidates.is_empty()) {
            Some(failure) => Err(failure),
            None => Ok(Asked { candidates, ttl, left_out }),
        }
    }

    fn candidates(&self, services: &[SRV]) -> Vec<Candidate> {
        let each = services.iter().flat_map(|service| {
            let addresses = self.known.get(&service.target).into_iter().flatten();
            addresses.map(|ip| Candidate {
                address: SocketAddr::new(*ip, service.port),
                weight: service.weight.into(),
                priority: service.priority,
            })
        });
        each.collect()
    }
}

/// The services of an answer, the best first and no more than may be. The root as a target says that
/// there is none (RFC 2782).
fn chosen(records: &[RData], max: usize) -> (Vec<SRV>, LeftOut) {
    let of = |record: &RData| match record {
        RData::SRV(service) if !service.target.is_root() => Some(service.clone()),
        _ => None,
    };
    let mut services: Vec<_> = records.iter().filter_map(of).collect();
    services.sort_by(|one, other| {
        let key = |it: &SRV| (it.priority, it.port);
        key(one).cmp(&key(other)).then_with(|| one.target.cmp(&other.target))
    });
    let excess = services.len().saturating_sub(max) as u64;
    services.truncate(max);
    (services, LeftOut { unusable: 0, excess })
}

/// Asks for the addresses of all targets together.
async fn addresses_of(
    asker: &Arc<Asker>,
    dns: &DnsPlan,
    services: &[SRV],
) -> BTreeMap<Name, Result<Told<IpAddr>, Failure>> {
    let mut questions = JoinSet::new();
    let mut names: Vec<_> = services.iter().map(|service| service.target.clone()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let (asker, family) = (Arc::clone(asker), dns.family);
        questions.spawn_local(async move {
            let answered = asker.addresses(&name, family).await;
            (name, answered)
        });
    }
    questions.join_all().await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(priority: u16, port: u16, target: &str) -> RData {
        let target = Name::from_ascii(target).expect("a name");
        RData::SRV(SRV::new(priority, 1, port, target))
    }

    #[test]
    fn the_best_services_are_chosen_whatever_their_order() {
        let all =
            [service(2, 1, "a."), service(1, 2, "b."), service(1, 1, "c."), service(0, 1, ".")];
        let (chosen, left_out) = chosen(&all, 2);
        let told: Vec<_> = chosen.iter().map(|it| (it.priority, it.port)).collect();
        assert_eq!(told, [(1, 1), (1, 2)]);
        assert_eq!(left_out.excess, 1);
    }

    #[test]
    fn endpoints_are_given_up_only_where_that_is_wanted_and_denied_for_long_enough() {
        let start = Instant::now();
        let deny = |denial: &mut Denial, outcome, seconds| {
            let said = Err(Failure::new(outcome, ""));
            let judged = denial.judge(said, start + Duration::from_secs(seconds));
            judged.expect_err("a failure").forgets
        };
        let mut never = Denial { forget_after: None, since: None };
        assert!(!deny(&mut never, Outcome::NxDomain, 0));
        assert!(!deny(&mut never, Outcome::NxDomain, 1_000_000));

        let mut denial = Denial { forget_after: Some(Duration::from_secs(10)), since: None };
        assert!(!deny(&mut denial, Outcome::NxDomain, 0));
        assert!(!deny(&mut denial, Outcome::Timeout, 11), "silence is no denial");
        assert!(deny(&mut denial, Outcome::Empty, 12));
        let answer = Answer { endpoints: Vec::new(), left_out: LeftOut::default() };
        assert!(denial.judge(Ok(answer), start).is_ok());
        assert!(!deny(&mut denial, Outcome::NxDomain, 13), "there was an answer since");
    }
}
