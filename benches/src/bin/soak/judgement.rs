//! Whose failure a failed request is.
//!
//! What an endpoint was killed with nobody else can serve: requests that had been relayed to it, and
//! connections and flows that it had answered before. Everything else is the balancer's, and so is what
//! it had connected to an endpoint and sent nothing of. For requests that nobody had answered yet its
//! access log tells who had them; without one (HAProxy) what failed while an endpoint was away is taken
//! to have been there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde_json::Value;

use crate::endpoints::{COUNT, Outages};
use crate::load::{Failure, Kind, Why};

/// How far the log's end of a flow and the client's may lie apart. Ports are used again later.
const APART_MAX: Duration = Duration::from_secs(8);

/// What a flow was to the balancer.
struct Record {
    endpoint: Option<SocketAddr>,
    bytes_upstream: u64,
    reason: String,
    ended: SystemTime,
}

/// Flows of the clients that have failed.
pub(crate) struct Records(HashMap<SocketAddr, Vec<Record>>);

impl Records {
    /// Reads a log from some place on.
    pub(crate) fn read(log: &Path, from: u64, failures: &[Failure]) -> Result<Self> {
        let clients = failures.iter().filter_map(|failure| failure.client);
        let mut records: HashMap<_, Vec<_>> = clients.map(|it| (it, Vec::new())).collect();
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(from))?;
        for line in BufReader::new(file).lines() {
            let line = line?;
            let client =
                line.split_once("\"client\":\"").and_then(|(_, rest)| rest.split_once('"'));
            let client = client.and_then(|(client, _)| client.parse::<SocketAddr>().ok());
            if let Some(known) = client.and_then(|client| records.get_mut(&client)) {
                known.extend(record(&line));
            }
        }
        Ok(Self(records))
    }

    fn find(&self, failure: &Failure) -> Option<&Record> {
        let records = self.0.get(&failure.client?)?.iter();
        let apart = |record: &&Record| {
            let (one, other) = (record.ended, failure.at);
            one.duration_since(other).or_else(|_| other.duration_since(one)).unwrap_or_default()
        };
        records.min_by_key(apart).filter(|record| apart(record) < APART_MAX)
    }
}

fn record(line: &str) -> Option<Record> {
    let value: Value = serde_json::from_str(line).ok()?;
    let started = Duration::from_millis(value["started_unix_ms"].as_u64()?);
    let lasted = Duration::from_micros(value["duration_us"].as_u64()?);
    Some(Record {
        endpoint: value["endpoint"].as_str().and_then(|text| text.parse().ok()),
        bytes_upstream: value["bytes_upstream"].as_u64()?,
        reason: value["reason"].as_str()?.to_owned(),
        ended: UNIX_EPOCH + started + lasted,
    })
}

/// What is known when failures are judged.
pub(crate) struct Judge<'a> {
    pub(crate) outages: &'a Outages,
    pub(crate) endpoints: [SocketAddr; COUNT],
    /// Of a balancer that keeps a log.
    pub(crate) records: Option<Records>,
}

/// A failure that is the balancer's own.
pub(crate) struct Charge {
    pub(crate) kind: Kind,
    pub(crate) breach: Breach,
    /// Who, when and how.
    pub(crate) text: String,
}

/// What was not kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Breach {
    /// What is new is served by an endpoint that is there.
    Service,
    /// The same where one was connected, and killed before it was sent anything.
    Unsent,
    /// What has been answered goes on.
    Establishment,
}

impl Breach {
    /// All of them, and what is claimed where there are none.
    pub(crate) const CLAIMS: [(Self, &'static str); 3] = [
        (Self::Service, "no request fails that a healthy endpoint could have served"),
        (Self::Unsent, "no request fails of which a killed endpoint had been sent nothing"),
        (Self::Establishment, "no established connection or flow is lost"),
    ];
}

/// What came of judging.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) charges: Vec<Charge>,
    /// What went with an endpoint, by kind.
    killed: [u64; Kind::ALL.len()],
}

impl Verdict {
    /// The balancer's own failures.
    pub(crate) fn ours(&self, kind: Kind) -> u64 {
        self.charges.iter().filter(|charge| charge.kind == kind).count() as u64
    }

    /// Those among them of which nothing had been sent.
    pub(crate) fn unsent(&self, kind: Kind) -> u64 {
        let unsent = |charge: &&Charge| charge.kind == kind && charge.breach == Breach::Unsent;
        self.charges.iter().filter(unsent).count() as u64
    }

    pub(crate) fn killed(&self, kind: Kind) -> u64 {
        self.killed[kind as usize]
    }

    /// All that failed over TCP, whosever it is.
    pub(crate) fn failed_tcp(&self) -> u64 {
        [Kind::Short, Kind::Long].map(|kind| self.ours(kind) + self.killed(kind)).iter().sum()
    }
}

impl Judge<'_> {
    pub(crate) fn judge(&self, failures: &[Failure]) -> Verdict {
        let mut verdict = Verdict::default();
        for failure in failures {
            match self.accuse(failure) {
                Some((breach, how)) => {
                    let (kind, text) = (failure.kind, describe(failure, &how));
                    verdict.charges.push(Charge { kind, breach, text });
                }
                None => verdict.killed[failure.kind as usize] += 1,
            }
        }
        verdict
    }

    /// What the balancer has done wrong, if it has.
    fn accuse(&self, failure: &Failure) -> Option<(Breach, String)> {
        let Failure { kind, why, home, began, ended, .. } = *failure;
        let breach = if home.is_some() { Breach::Establishment } else { Breach::Service };
        match why {
            Why::Broken | Why::Late => {}
            // Its port is closed: an endpoint that is away may be behind that.
            Why::Refused if kind == Kind::Datagram => {}
            Why::Unwanted => return Some((Breach::Service, "it drained".to_owned())),
            Why::Refused | Why::Garbled | Why::Moved => {
                return Some((breach, "no endpoint does that".to_owned()));
            }
        }
        let was_away = match (home, &self.records) {
            (Some(home), _) => self.outages.touch(home, began, ended),
            (None, Some(records)) if kind != Kind::Datagram => {
                return self.accuse_by_log(failure, records);
            }
            (None, _) => self.outages.touch_any(began, ended),
        };
        (!was_away).then(|| (breach, "no endpoint of it was away".to_owned()))
    }

    fn accuse_by_log(&self, failure: &Failure, records: &Records) -> Option<(Breach, String)> {
        let Failure { client, began, ended, .. } = *failure;
        if client.is_none() && self.outages.touch_any(began, ended) {
            let how = "it was reset before the client had its connection";
            return Some((Breach::Unsent, how.to_owned()));
        }
        let Some(record) = records.find(failure) else {
            return Some((Breach::Service, "the access log has no such flow".to_owned()));
        };
        let had = record.endpoint.and_then(|had| self.endpoints.iter().position(|it| *it == had));
        let was_away = had.is_some_and(|it| self.outages.touch(it, began, ended));
        let breach = match (was_away, record.bytes_upstream) {
            (true, 0) => Breach::Unsent,
            (true, _) => return None,
            (false, _) => Breach::Service,
        };
        let Record { endpoint, reason, bytes_upstream, .. } = record;
        Some((breach, format!("logged as {reason} at {endpoint:?}, {bytes_upstream} bytes sent")))
    }
}

fn describe(failure: &Failure, how: &str) -> String {
    let Failure { kind, why, client, home, began, ended, .. } = failure;
    let took = ended.duration_since(*began);
    let client = client.map_or_else(|| "unconnected".to_owned(), |client| client.to_string());
    let home = home.map_or_else(String::new, |home| format!(" of endpoint {home}"));
    format!("{}, {client}{home}: {why:?} after {took:.1?}; {how}", kind.label())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const ENDPOINT: &str = "127.0.1.1:80";

    /// A request that broke, of a client that the log knows with this many bytes relayed.
    fn accusation(bytes: u64, is_away: bool) -> Option<Breach> {
        let client = "127.0.0.1:1234".parse().unwrap();
        let (outages, now, at) = (Outages::default(), Instant::now(), SystemTime::now());
        if is_away {
            outages.begin(0);
        }
        let line = format!(
            r#"{{"started_unix_ms":{},"client":"{client}","endpoint":"{ENDPOINT}","bytes_upstream":{bytes},"duration_us":10,"reason":"upstream-reset"}}"#,
            at.duration_since(UNIX_EPOCH).unwrap().as_millis()
        );
        let records = Records([(client, record(&line).into_iter().collect())].into());
        let failure = Failure {
            kind: Kind::Short,
            why: Why::Broken,
            client: Some(client),
            home: None,
            began: now,
            ended: Instant::now(),
            at,
        };
        let endpoints = [ENDPOINT.parse().unwrap(); COUNT];
        let judge = Judge { outages: &outages, endpoints, records: Some(records) };
        judge.accuse(&failure).map(|(breach, _)| breach)
    }

    #[test]
    fn only_what_was_relayed_to_an_endpoint_that_was_killed_is_excused() {
        assert_eq!(accusation(40, true), None);
        assert_eq!(accusation(0, true), Some(Breach::Unsent), "another could have served it");
        assert_eq!(accusation(40, false), Some(Breach::Service), "its endpoint was there");
    }
}
