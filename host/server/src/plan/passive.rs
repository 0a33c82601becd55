//! Looks up which endpoints are ejected.

use pointsman_core::ejection::{EjectionRules, SuccessRateRule};

use super::findings::Findings;
use crate::config::{Passive, SuccessRate};

pub(super) fn resolve(key: &str, passive: &Passive, findings: &mut Findings) -> EjectionRules {
    let mut millis = |name: &str, value| findings.millis(&format!("{key}.{name}"), value);
    let interval = millis("interval_ms", passive.interval_ms);
    let base = millis("base_ejection_ms", passive.base_ejection_ms);
    let longest = millis("ejection_ms_max", passive.ejection_ms_max);
    if longest < base {
        let advice = "is shorter than base_ejection_ms; write at least as much";
        findings
            .add(format!("{key}.ejection_ms_max"), format!("{} {advice}", passive.ejection_ms_max));
    }
    if passive.consecutive_failures == 0 && passive.success_rate.is_none() {
        let advice = "with 0 and no success_rate nobody is ever ejected; write a number, or remove `passive`";
        findings.add(format!("{key}.consecutive_failures"), advice);
    }
    let percent_key = format!("{key}.ejected_percent_max");
    let success_rate = passive.success_rate.as_ref();
    EjectionRules {
        consecutive_failures: passive.consecutive_failures,
        interval,
        base,
        longest,
        percent_max: findings.within(&percent_key, passive.ejected_percent_max, 1..=100),
        success_rate: success_rate.map(|rate| rule(&format!("{key}.success_rate"), rate, findings)),
    }
}

fn rule(key: &str, rate: &SuccessRate, findings: &mut Findings) -> SuccessRateRule {
    let SuccessRate { flows_min, endpoints_min, deviations } = *rate;
    let is_sound = deviations > 0.0 && deviations <= 100.0;
    if !is_sound {
        let advice = "is out of range; write more than 0 and at most 100, such as 1.9";
        findings.add(format!("{key}.deviations"), format!("{deviations} {advice}"));
    }
    SuccessRateRule {
        flows_min: findings.within(&format!("{key}.flows_min"), flows_min, 1..=1_000_000_000),
        endpoints_min: findings.within(&format!("{key}.endpoints_min"), endpoints_min, 2..=65_535),
        deviations,
    }
}
