//! Collects problems, and stands in with something harmless so that resolving can go on.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::problem::Problem;

/// What stands in for an address that could not be read; a plan with one is never used.
const NOWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// The problems found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    problems: Vec<Problem>,
}

impl Findings {
    pub(super) fn add(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::new(key, message));
    }

    /// How many there are, to see whether the next step adds one.
    pub(super) fn count(&self) -> usize {
        self.problems.len()
    }

    /// A required text; `advice` says what to write.
    pub(super) fn required<'a>(
        &mut self,
        key: &str,
        value: Option<&'a String>,
        advice: &str,
    ) -> &'a str {
        match value.map(String::as_str) {
            Some("") => self.add(key, format!("is empty; {advice}")),
            Some(text) => return text,
            None => self.add(key, format!("is missing; {advice}")),
        }
        ""
    }

    /// A required `address:port`.
    pub(super) fn address(&mut self, key: &str, value: Option<&String>) -> SocketAddr {
        let text = self.required(key, value, "write address:port, such as \"127.0.0.1:8080\"");
        if text.is_empty() {
            return NOWHERE;
        }
        text.parse().unwrap_or_else(|_| {
            let advice = if text.parse::<std::net::IpAddr>().is_ok() {
                "add a port, such as \":8080\", and put an IPv6 address in brackets"
            } else {
                "write address:port, such as \"127.0.0.1:8080\" (names are not resolved)"
            };
            self.add(key, format!("\"{text}\" is no address; {advice}"));
            NOWHERE
        })
    }

    /// A number within bounds.
    pub(super) fn within<N: PartialOrd + Copy + Display>(
        &mut self,
        key: &str,
        value: N,
        bounds: RangeInclusive<N>,
    ) -> N {
        if !bounds.contains(&value) {
            let (least, most) = bounds.into_inner();
            self.add(key, format!("{value} is out of range; write {least} to {most}"));
        }
        value
    }

    /// Milliseconds, at least one and at most a week.
    pub(super) fn millis(&mut self, key: &str, value: u64) -> Duration {
        Duration::from_millis(self.within(key, value, 1..=7 * 24 * 3_600_000))
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}

/// Things that must differ from each other, with the key at which each was seen first.
#[derive(Debug, Default)]
pub(super) struct Distinct {
    seen: HashMap<String, String>,
}

impl Distinct {
    /// Notes `value`; if it was seen before, that is a problem. Empty ones are missing, not equal.
    pub(super) fn note(&mut self, findings: &mut Findings, key: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        if let Some(first) = self.seen.get(value) {
            findings.add(key, format!("\"{value}\" is already {first}; each must be different"));
        } else {
            self.seen.insert(value.to_owned(), key.to_owned());
        }
    }
}
