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

/// What is held against the balancer where it had connected, and sent nothing.
const UNSENT: &str = "its endpoint was killed before it was sent anything";

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

/// What came of judging.
#[derive(Default)]
pub(crate) struct Verdict {
    /// The balancer's own failures, described.
    pub(crate) ours: Vec<(Kind, String)>,
    /// Those among them of which an endpoint was connected, and killed before it was sent anything.
    pub(crate) unsent: u64,
    /// What went with an endpoint, by kind.
    killed: [u64; Kind::ALL.len()],
}

impl Verdict {
    pub(crate) fn ours(&self, kind: Kind) -> u64 {
        self.ours.iter().filter(|(of, _)| *of == kind).count() as u64
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
                Some(how) => {
                    verdict.unsent += u64::from(how == UNSENT);
                    verdict.ours.push((failure.kind, describe(failure, &how)));
                }
                None => verdict.killed[failure.kind as usize] += 1,
            }
        }
        verdict
    }

    /// What the balancer has done wrong, if it has.
    fn accuse(&self, failure: &Failure) -> Option<String> {
        let Failure { kind, why, home, began, ended, .. } = *failure;
        if !matches!(why, Why::Broken | Why::Late) && kind != Kind::Datagram
            || matches!(why, Why::Moved | Why::Garbled)
        {
            return Some("no endpoint does that".to_owned());
        }
        let was_away = match (home, &self.records) {
            (Some(home), _) => self.outages.touch(home, began, ended),
            (None, Some(records)) if kind != Kind::Datagram => {
                return self.accuse_by_log(failure, records);
            }
            (None, _) => self.outages.touch_any(began, ended),
        };
        (!was_away).then(|| "no endpoint of it was away".to_owned())
    }

    fn accuse_by_log(&self, failure: &Failure, records: &Records) -> Option<String> {
        let Some(record) = records.find(failure) else {
            return Some("the access log has no such flow".to_owned());
        };
        let had = record.endpoint.and_then(|had| self.endpoints.iter().position(|it| *it == had));
        let was_away = had.is_some_and(|it| self.outages.touch(it, failure.began, failure.ended));
        match (was_away, record.bytes_upstream) {
            (true, 0) => Some(UNSENT.to_owned()),
            (true, _) => None,
            (false, bytes) => {
                let Record { endpoint, reason, .. } = record;
                Some(format!("logged as {reason} at {endpoint:?}, {bytes} bytes sent"))
            }
        }
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
    fn accusation(bytes: u64, is_away: bool) -> Option<String> {
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
        Judge { outages: &outages, endpoints, records: Some(records) }.accuse(&failure)
    }

    #[test]
    fn only_what_was_relayed_to_an_endpoint_that_was_killed_is_excused() {
        assert_eq!(accusation(40, true), None);
        assert_eq!(accusation(0, true).as_deref(), Some(UNSENT), "another could have served it");
        assert!(accusation(40, false).is_some(), "its endpoint was there");
    }
}
