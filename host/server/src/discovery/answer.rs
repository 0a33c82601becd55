//! What comes of an attempt to find endpoints: what of it can be used, or why nothing can.
//!
//! Whoever answers is not trusted to name addresses that mean anything, nor few of them.

use std::net::SocketAddr;

use crate::plan::{EndpointPlan, endpoint_problem};

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There are endpoints.
    Answered,
    /// There is no such name.
    NxDomain,
    /// There is the name, but nothing that can be used.
    Empty,
    /// Nobody answered in time.
    Timeout,
    /// Nobody could be asked, or whoever was asked could not answer.
    Error,
    /// The file is there, and wrong.
    Invalid,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Answered, Self::NxDomain, Self::Empty, Self::Timeout, Self::Error, Self::Invalid];

    /// Its name in metrics and status.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NxDomain => "nxdomain",
            Self::Empty => "empty",
            Self::Timeout => "timeout",
            Self::Error => "error",
            Self::Invalid => "invalid",
        }
    }

    /// Whether somebody who should know says that there is nobody.
    pub const fn is_denial(self) -> bool {
        matches!(self, Self::NxDomain | Self::Empty)
    }
}

/// Endpoints that were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// In order of their addresses, each once; at least one.
    pub endpoints: Vec<EndpointPlan>,
    /// What else there was.
    pub left_out: LeftOut,
}

/// How much of an answer is not used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Addresses that cannot be connected to, and names without any.
    pub unusable: u64,
    /// Those beyond the most that are taken.
    pub excess: u64,
}

impl LeftOut {
    /// The names of [`Self::counts`] in metrics and status.
    pub const LABELS: [&'static str; 2] = ["unusable", "excess"];

    /// How much for each reason.
    pub const fn counts(self) -> [u64; 2] {
        [self.unusable, self.excess]
    }
}

/// Why an attempt found nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// How it ended.
    pub outcome: Outcome,
    /// The same for a person.
    pub why: String,
    /// Whether those who were found before are given up.
    pub forgets: bool,
}

impl Failure {
    /// One that leaves everything as it is.
    pub fn new(outcome: Outcome, why: impl Into<String>) -> Self {
        Self { outcome, why: why.into(), forgets: false }
    }
}

/// One address of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) address: SocketAddr,
    /// Its share relative to the others of its priority; 0 is the least there is.
    pub(super) weight: u32,
    /// The lower serve before the higher.
    pub(super) priority: u16,
}

/// Makes endpoints of what was answered. The lowest priority serves and all others are backups. What is
/// cut off depends on addresses and not on the answer's order, which resolvers like to rotate.
pub(super) fn settle(
    mut candidates: Vec<Candidate>,
    endpoints_max: usize,
    mut left_out: LeftOut,
) -> Result<Answer, Failure> {
    let before = candidates.len();
    for candidate in &mut candidates {
        candidate.address.set_ip(candidate.address.ip().to_canonical());
    }
    candidates.retain(|candidate| is_usable(candidate.address));
    left_out.unusable += (before - candidates.len()) as u64;
    candidates.sort_by_key(|it| (it.address, it.priority, u32::MAX - it.weight));
    candidates.dedup_by_key(|it| it.address);
    candidates.sort_by_key(|it| it.priority);
    left_out.excess += candidates.len().saturating_sub(endpoints_max) as u64;
    candidates.truncate(endpoints_max);
    let Some(Candidate { priority: first, .. }) = candidates.first().copied() else {
        let why = "the answer has no address that can be connected to";
        return Err(Failure::new(Outcome::Empty, why));
    };
    candidates.sort_by_key(|it| it.address);
    let endpoints = candidates.iter().map(|it| EndpointPlan {
        address: it.address,
        weight: it.weight.max(1),
        backup: it.priority > first,
        flows_max: u32::MAX,
    });
    Ok(Answer { endpoints: endpoints.collect(), left_out })
}

/// Whether a connection to it could mean anything.
fn is_usable(address: SocketAddr) -> bool {
    // Which link is meant is not part of an answer.
    let needs_link = matches!(address, SocketAddr::V6(it) if it.ip().is_unicast_link_local());
    endpoint_problem(address).is_none() && !needs_link
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(address: &str, weight: u32, priority: u16) -> Candidate {
        Candidate { address: address.parse().expect("an address"), weight, priority }
    }

    fn settled(of: &[(&str, u32, u16)], max: usize) -> Result<Answer, Failure> {
        let all = of.iter().map(|it| candidate(it.0, it.1, it.2)).collect();
        settle(all, max, LeftOut::default())
    }

    fn told(answer: &Answer) -> Vec<(String, u32, bool)> {
        let each = answer.endpoints.iter();
        each.map(|it| (it.address.to_string(), it.weight, it.backup)).collect()
    }

    #[test]
    fn the_order_of_an_answer_means_nothing() {
        let (a, b, c) = (("10.0.0.1:1", 1, 0), ("10.0.0.2:1", 1, 0), ("10.0.0.3:1", 1, 0));
        for max in [2, 3] {
            assert_eq!(settled(&[a, b, c], max), settled(&[c, a, b], max));
        }
    }

    #[test]
    fn the_lowest_priority_serves_and_the_others_are_backups() {
        let found =
            settled(&[("10.0.0.3:1", 5, 20), ("10.0.0.1:1", 0, 10), ("10.0.0.2:1", 7, 30)], 9);
        let expected = [("10.0.0.1:1", 1, false), ("10.0.0.2:1", 7, true), ("10.0.0.3:1", 5, true)];
        let expected =
            expected.map(|(address, weight, backup)| (address.to_owned(), weight, backup));
        assert_eq!(told(&found.expect("an answer")), expected);
    }

    #[test]
    fn an_address_that_is_named_twice_is_one_endpoint_of_its_best_name() {
        let found = settled(&[("10.0.0.1:1", 2, 1), ("10.0.0.1:1", 3, 0), ("10.0.0.1:2", 4, 1)], 9);
        let found = found.expect("an answer");
        let expected = [("10.0.0.1:1".to_owned(), 3, false), ("10.0.0.1:2".to_owned(), 4, true)];
        assert_eq!(told(&found), expected);
        assert_eq!(found.left_out, LeftOut::default());
    }

    #[test]
    fn what_is_too_much_is_cut_off_at_the_higher_priorities_and_counted() {
        let found = settled(&[("10.0.0.1:1", 1, 9), ("10.0.0.2:1", 1, 1), ("10.0.0.3:1", 1, 1)], 2);
        let found = found.expect("an answer");
        assert!(found.endpoints.iter().all(|endpoint| !endpoint.backup));
        assert_eq!(found.left_out, LeftOut { unusable: 0, excess: 1 });
    }

    #[test]
    fn addresses_that_mean_nothing_are_left_out_and_counted() {
        let useless = [
            "0.0.0.0:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "10.0.0.1:0",
            "[::]:1",
            "[ff02::1]:1",
            "[fe80::1]:1",
            "[::ffff:0.0.0.0]:1",
        ];
        let mut all: Vec<_> = useless.iter().map(|it| (*it, 1, 0)).collect();
        let failure = settled(&all, 9).expect_err("nothing is left");
        assert_eq!(failure.outcome, Outcome::Empty);
        all.push(("[::ffff:10.0.0.1]:1", 1, 0));
        let found = settled(&all, 9).expect("one is left");
        assert_eq!(told(&found), [("10.0.0.1:1".to_owned(), 1, false)]);
        assert_eq!(found.left_out.unusable, 8);
    }
}
