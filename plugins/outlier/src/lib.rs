//! Avoids endpoints whose flows end badly.
//!
//! Health checks see whether an endpoint answers; this sees what became of real flows. Where most
//! of them end in a reset or never connect, the endpoint gets no new ones for a while, and each time
//! in a row for longer, as in Envoy's outlier detection. Never more than half of the endpoints are
//! avoided: with most of them bad, the fault is likely elsewhere. Among the others, the less loaded
//! of two drawn at random is taken.
//!
//! What it knows of its endpoints survives the swap to another version of it.
#![forbid(unsafe_code)]

use pointsman_sdk::{Decision, Ended, Endpoints, Feedback, Flow, Host, KeepsState, Outcome};
use pointsman_sdk::{Policy, Report, export};
use serde::Deserialize;

/// Remembers who let flows down.
#[derive(Debug)]
pub struct Outlier {
    config: Config,
    /// By endpoint.
    records: Vec<Record>,
    /// When the last tick was.
    ticked_ms: u64,
}

/// The policy's config.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The share of flows that must end badly, in percent. 50 by default.
    bad_percent: u32,
    /// Of fewer flows than this nothing is concluded. 10 by default.
    flows_min: u32,
    /// How long an endpoint is avoided the first time; the second time in a row it is twice as long,
    /// and so on. 30 seconds by default.
    avoid_ms: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { bad_percent: 50, flows_min: 10, avoid_ms: 30_000 }
    }
}

/// What is known of an endpoint.
#[derive(Debug, Clone, Default, PartialEq)]
struct Record {
    address: String,
    /// Flows that ended well and badly of late; these fade.
    good: f64,
    bad: f64,
    /// How often in a row it was avoided.
    times: u32,
    until_ms: u64,
}

export!(Outlier: feedback, state);

/// After this time a flow counts for a third.
const MEMORY_MS: f64 = 10_000.0;
/// An endpoint is not avoided for longer than this many times the first time.
const TIMES_MAX: u32 = 10;
/// What the state begins with.
const VERSION: &[u8] = b"outlier 1\n";

/// What this policy counts, among the balancer's metrics.
const COUNTER_AVOIDED: usize = 0;

impl Policy for Outlier {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if !(1..=100).contains(&config.bad_percent) {
            return Err(format!("bad_percent: expected 1 to 100, found {}", config.bad_percent));
        }
        Ok(Self { config, records: Vec::new(), ticked_ms: 0 })
    }

    fn endpoints_changed(&mut self, endpoints: &Endpoints) {
        let known = std::mem::take(&mut self.records);
        let records = endpoints.iter().map(|endpoint| {
            let found = known.iter().find(|record| record.address == endpoint.address());
            let Record { good, bad, times, until_ms, .. } = *found.unwrap_or(&Record::default());
            Record { address: endpoint.address().to_owned(), good, bad, times, until_ms }
        });
        self.records = records.collect();
    }

    fn decide(&mut self, flow: &Flow, _: &Endpoints, host: &dyn Host) -> Decision {
        let is_sound = |index: usize| self.records[index].until_ms <= flow.now_ms();
        let others = (0..self.records.len()).filter(|&index| flow.avoid() != Some(index));
        let sound = others.clone().filter(|&index| is_sound(index)).count();
        let count = if sound > 0 { sound } else { others.clone().count() };
        if count == 0 {
            // Nothing else is left than what has just failed.
            return flow.avoid().map_or_else(Decision::defer, Decision::forward);
        }
        let mut drawable = others.filter(|&index| sound == 0 || is_sound(index));
        let mut rng = flow.rng();
        let first = rng.below(count);
        let second = (first + 1 + rng.below(count - 1)) % count;
        let [lower, upper] = [first.min(second), first.max(second)];
        let lower_index = drawable.nth(lower).unwrap_or(0);
        let upper_index = if upper > lower { drawable.nth(upper - lower - 1) } else { None }
            .unwrap_or(lower_index);
        let is_upper_idler = host.load(upper_index) < host.load(lower_index);
        Decision::forward(if is_upper_idler { upper_index } else { lower_index })
    }
}

impl Feedback for Outlier {
    fn tick(&mut self, report: &Report<'_>, _: &Endpoints, host: &dyn Host) {
        let gap_ms = report.now_ms.saturating_sub(self.ticked_ms);
        self.ticked_ms = report.now_ms;
        let fade = (-(gap_ms as f64) / MEMORY_MS).exp();
        for record in &mut self.records {
            record.good *= fade;
            record.bad *= fade;
        }
        for ended in report.ended {
            self.note(ended);
        }
        let avoided = self.avoid_the_worst(report.now_ms);
        host.count(COUNTER_AVOIDED, avoided);
    }
}

impl Outlier {
    fn note(&mut self, ended: &Ended) {
        let Some(record) = self.records.get_mut(ended.endpoint) else { return };
        match ended.outcome {
            Outcome::Finished => record.good += 1.0,
            Outcome::EndpointReset | Outcome::ConnectFailed => record.bad += 1.0,
            // The endpoint is not to blame, or it is not known who is.
            Outcome::ClientReset | Outcome::Timeout | Outcome::Other => {}
        }
    }

    /// Returns how many are avoided from now on that were not before.
    fn avoid_the_worst(&mut self, now_ms: u64) -> u64 {
        let half = self.records.len() / 2;
        let mut avoided = self.records.iter().filter(|record| record.until_ms > now_ms).count();
        let mut fresh = 0;
        for record in &mut self.records {
            if record.until_ms > now_ms {
                continue;
            }
            if record.is_bad(&self.config) && avoided < half {
                record.avoid(&self.config, now_ms);
                avoided += 1;
                fresh += 1;
            } else if record.has_proved_itself(&self.config) {
                record.times = 0;
            }
        }
        fresh
    }
}

impl Record {
    fn is_bad(&self, config: &Config) -> bool {
        let all = self.good + self.bad;
        all >= f64::from(config.flows_min)
            && self.bad * 100.0 >= all * f64::from(config.bad_percent)
    }

    fn has_proved_itself(&self, config: &Config) -> bool {
        self.good >= f64::from(config.flows_min) && !self.is_bad(config)
    }

    fn avoid(&mut self, config: &Config, now_ms: u64) {
        self.times = (self.times + 1).min(TIMES_MAX);
        self.until_ms = now_ms + u64::from(config.avoid_ms) * u64::from(self.times);
        // It is judged anew by what comes after.
        (self.good, self.bad) = (0.0, 0.0);
    }
}

/// After the version, for each endpoint that was avoided: how often, until when, and its address
/// after its length. Numbers are in little-endian bytes.
impl KeepsState for Outlier {
    fn snapshot(&self) -> Vec<u8> {
        let mut state = VERSION.to_vec();
        for Record { address, times, until_ms, .. } in &self.records {
            if let (1.., Ok(length)) = (*times, u8::try_from(address.len())) {
                state.extend_from_slice(&times.to_le_bytes());
                state.extend_from_slice(&until_ms.to_le_bytes());
                state.push(length);
                state.extend_from_slice(address.as_bytes());
            }
        }
        state
    }

    /// What another policy has left, or another version, says nothing to this one: it starts anew.
    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let mut rest = state.strip_prefix(VERSION).unwrap_or_default();
        self.records = std::iter::from_fn(|| Record::read(&mut rest)).collect();
        Ok(())
    }
}

impl Record {
    fn read(rest: &mut &[u8]) -> Option<Self> {
        let (times, after) = rest.split_first_chunk()?;
        let (until_ms, after) = after.split_first_chunk()?;
        let (length, after) = after.split_first()?;
        let (address, after) = after.split_at_checked(usize::from(*length))?;
        *rest = after;
        Some(Self {
            address: String::from_utf8(address.to_vec()).ok()?,
            times: u32::from_le_bytes(*times),
            until_ms: u64::from_le_bytes(*until_ms),
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::sim::{Change, Distribution, Hearing, Sim};
    use pointsman_sdk::{Instance, MockHost, Rng};

    const LIST: [(&str, u32); 4] =
        [("10.0.0.1:80", 1), ("10.0.0.2:80", 1), ("10.0.0.3:80", 1), ("10.0.0.4:80", 1)];

    fn instance() -> Instance<Outlier> {
        let mut policy = Instance::configure("null").unwrap();
        policy.endpoints_changed(Endpoints::from(LIST));
        policy
    }

    /// Flows of these endpoints end like this.
    fn tell(policy: &mut Instance<Outlier>, now_ms: u64, endpoints: &[usize], outcome: Outcome) {
        let ended = |&endpoint| Ended {
            endpoint,
            outcome,
            duration_ms: 1,
            bytes_to_endpoint: 0,
            bytes_to_client: 0,
            tag: 0,
        };
        let ended: Vec<_> = endpoints.iter().flat_map(|it| [ended(it); 20]).collect();
        let report = Report { now_ms, samples: &[], ended: &ended, missed: 0 };
        policy.tick(&report, &MockHost::new());
    }

    fn chosen(policy: &mut Instance<Outlier>, now_ms: u64) -> Vec<usize> {
        let mut rng = Rng::new(1);
        let flow = Flow::new("192.0.2.1:5000".parse().unwrap()).with_now_ms(now_ms);
        let flows = (0..200).map(|_| flow.with_random(rng.bits()));
        let mut chosen: Vec<_> =
            flows.map(|flow| policy.decide(&flow, &MockHost::new()).endpoint().unwrap()).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    #[test]
    fn whose_flows_are_reset_gets_no_more_until_the_time_is_up() {
        let mut policy = instance();
        tell(&mut policy, 1_000, &[2], Outcome::EndpointReset);
        assert_eq!(chosen(&mut policy, 1_001), [0, 1, 3]);
        assert_eq!(chosen(&mut policy, 31_000), [0, 1, 2, 3]);
    }

    #[test]
    fn the_second_time_it_is_avoided_for_longer() {
        let mut policy = instance();
        tell(&mut policy, 0, &[2], Outcome::ConnectFailed);
        tell(&mut policy, 40_000, &[2], Outcome::ConnectFailed);
        assert_eq!(chosen(&mut policy, 99_999), [0, 1, 3]);
        assert_eq!(chosen(&mut policy, 100_000), [0, 1, 2, 3]);
    }

    #[test]
    fn an_endpoint_that_does_well_again_begins_anew() {
        let mut policy = instance();
        tell(&mut policy, 0, &[2], Outcome::ConnectFailed);
        tell(&mut policy, 100_000, &[2], Outcome::Finished);
        assert_eq!(policy.policy().records[2].times, 0);
    }

    #[test]
    fn never_more_than_half_are_avoided() {
        let mut policy = instance();
        tell(&mut policy, 0, &[0, 1, 2, 3], Outcome::EndpointReset);
        assert_eq!(chosen(&mut policy, 1).len(), 2);
    }

    #[test]
    fn what_clients_do_is_not_held_against_endpoints() {
        let mut policy = instance();
        tell(&mut policy, 0, &[1], Outcome::ClientReset);
        tell(&mut policy, 0, &[1], Outcome::Timeout);
        assert_eq!(chosen(&mut policy, 1), [0, 1, 2, 3]);
    }

    #[test]
    fn a_successor_knows_what_was_avoided() {
        let mut old = instance();
        tell(&mut old, 1_000, &[2], Outcome::EndpointReset);
        let mut new = Instance::<Outlier>::configure("null").unwrap();
        new.restore(&old.snapshot()).unwrap();
        new.endpoints_changed(Endpoints::from(LIST));
        assert_eq!(chosen(&mut new, 1_001), [0, 1, 3]);
    }

    #[test]
    fn a_state_of_somebody_else_is_no_reason_to_fail() {
        let mut policy = Instance::<Outlier>::configure("null").unwrap();
        for state in [
            &b""[..],
            b"\xff\xfe",
            b"other 7\n10.0.0.1:80 1 9",
            b"outlier 1\nnonsense",
            b"outlier 1\n\x01\0\0\0",
        ] {
            assert_eq!(policy.restore(state), Ok(()));
        }
        assert!(policy.policy().records.is_empty());
    }

    #[test]
    fn a_retry_goes_elsewhere_even_to_one_that_is_avoided() {
        let mut policy = Instance::<Outlier>::configure("null").unwrap();
        policy.endpoints_changed(Endpoints::from([LIST[0], LIST[1]]));
        tell(&mut policy, 0, &[1], Outcome::EndpointReset);
        let flow = Flow::new("192.0.2.1:5000".parse().unwrap()).with_now_ms(1);
        let decide = |policy: &mut Instance<Outlier>, flow| policy.decide(&flow, &MockHost::new());
        assert_eq!(decide(&mut policy, flow.retried_after(0)), Decision::forward(1));
        policy.endpoints_changed(Endpoints::from([LIST[0]]));
        assert_eq!(decide(&mut policy, flow.retried_after(0)), Decision::forward(0));
    }

    #[test]
    fn flows_stop_going_to_an_endpoint_that_cannot_be_reached() {
        let service = Distribution::Exponential { mean: 1_000.0 };
        let sim = LIST.iter().fold(Sim::new(1), |sim, it| sim.endpoint(it.0, 1, service));
        let sim = sim.at(1_000, Change::Fails(LIST[3].0));
        let outcome = sim.run(&mut Hearing(instance()), 20_000);
        assert_eq!(outcome.failed(), 0);
        assert!(outcome.served(LIST[3].0) < 1_000);
    }

    #[test]
    fn a_share_out_of_range_is_refused() {
        let error = Instance::<Outlier>::configure(r#"{ "bad_percent": 101 }"#).unwrap_err();
        assert_eq!(error, "bad_percent: expected 1 to 100, found 101");
    }
}
