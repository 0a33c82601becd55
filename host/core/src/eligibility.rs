//! Who among a cluster's endpoints may be given new flows.
//!
//! ```text
//!   enough of them available ──▶ those                                        sound
//!   fewer than the threshold ──▶ all of them: the verdicts are the likelier   panic
//!                                fault, and those left would be overrun
//!   none, but a backup       ──▶ the backups                                  backup
//!   nobody at all            ──▶ all of them, or nobody, as configured        fail-open, none
//! ```
//!
//! An endpoint that drains is left out throughout: that is the operator's word.

use alloc::vec::Vec;

use crate::snapshot::EndpointState;

/// What a cluster does when endpoints are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eligibility {
    /// Whether all endpoints are used where none is available.
    pub fails_open: bool,
    /// The share of available endpoints, in percent, below which all are used; 0 if only where there
    /// is none at all.
    pub panic_threshold_percent: u32,
}

/// How well a cluster can do what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Footing {
    /// On the endpoints that are available.
    #[default]
    Sound,
    /// On its backups, for want of others.
    Backup,
    /// On all endpoints, because too few are available.
    Panic,
    /// On all endpoints, because none is available.
    FailOpen,
    /// Not at all.
    Nobody,
}

impl Footing {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Sound, Self::Backup, Self::Panic, Self::FailOpen, Self::Nobody];

    /// Its name in metrics, status and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Backup => "backup",
            Self::Panic => "panic",
            Self::FailOpen => "fail-open",
            Self::Nobody => "none",
        }
    }
}

impl Eligibility {
    /// The places of those who may be given new flows, in order.
    #[must_use]
    pub fn choose(self, states: &[EndpointState]) -> (Footing, Vec<usize>) {
        let places = |backup: bool, may: fn(&EndpointState) -> bool| -> Vec<usize> {
            let found = states.iter().enumerate();
            let found = found.filter(|(_, state)| state.backup == backup && may(state));
            found.map(|(place, _)| place).collect()
        };
        let is_meant = |state: &EndpointState| !state.draining;
        let (meant, available) =
            (places(false, is_meant), places(false, EndpointState::is_available));
        let threshold = self.panic_threshold_percent as usize;
        if !available.is_empty() {
            let too_few = available.len() * 100 < meant.len() * threshold;
            return if too_few { (Footing::Panic, meant) } else { (Footing::Sound, available) };
        }
        let backups = places(true, EndpointState::is_available);
        if !backups.is_empty() {
            return (Footing::Backup, backups);
        }
        let all = if meant.is_empty() { places(true, is_meant) } else { meant };
        if self.fails_open && !all.is_empty() {
            return (Footing::FailOpen, all);
        }
        (Footing::Nobody, Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::candidates;

    const RULES: Eligibility = Eligibility { fails_open: true, panic_threshold_percent: 0 };

    /// Endpoints by a letter each: up, down, draining, and the same in capitals for backups.
    fn states(letters: &str) -> Vec<EndpointState> {
        let weights: Vec<u32> = letters.chars().map(|_| 1).collect();
        let endpoints = candidates(1, &weights).endpoints.clone();
        let state = |(endpoint, letter): (_, char)| EndpointState {
            up: !letter.eq_ignore_ascii_case(&'d'),
            draining: letter.eq_ignore_ascii_case(&'x'),
            backup: letter.is_ascii_uppercase(),
            ..EndpointState::sound(endpoint)
        };
        endpoints.into_iter().zip(letters.chars()).map(state).collect()
    }

    fn chosen(rules: Eligibility, letters: &str) -> (Footing, Vec<usize>) {
        rules.choose(&states(letters))
    }

    #[test]
    fn those_serve_that_are_available_and_no_backups() {
        assert_eq!(chosen(RULES, "udxU"), (Footing::Sound, Vec::from([0])));
    }

    #[test]
    fn all_backups_serve_where_nobody_else_is_available() {
        assert_eq!(chosen(RULES, "dxUUD"), (Footing::Backup, Vec::from([2, 3])));
    }

    #[test]
    fn without_anybody_all_but_backups_serve_or_nobody() {
        assert_eq!(chosen(RULES, "ddxD"), (Footing::FailOpen, Vec::from([0, 1])));
        let closed = Eligibility { fails_open: false, ..RULES };
        assert_eq!(chosen(closed, "ddxD"), (Footing::Nobody, Vec::new()));
        assert_eq!(chosen(RULES, "xX"), (Footing::Nobody, Vec::new()));
        assert_eq!(chosen(RULES, "xD"), (Footing::FailOpen, Vec::from([1])));
    }

    #[test]
    fn below_the_threshold_all_serve_that_do_not_drain() {
        let panics = Eligibility { panic_threshold_percent: 50, ..RULES };
        assert_eq!(chosen(panics, "uudd"), (Footing::Sound, Vec::from([0, 1])));
        assert_eq!(chosen(panics, "uuddd"), (Footing::Panic, Vec::from([0, 1, 2, 3, 4])));
        assert_eq!(
            chosen(panics, "udxx"),
            (Footing::Sound, Vec::from([0])),
            "those that drain are not missing"
        );
    }
}
