//! What can be read at `/metrics`, in Prometheus' text format.
//!
//! Written by hand: every number already exists as a plain integer of some worker, so a registry of
//! metrics would only be a second copy of them.

mod workers;

use std::fmt::{Display, Write};
use std::time::Duration;

use pointsman_core::boundary::Side;
use pointsman_core::ejection::EjectionReason;
use pointsman_core::eligibility::Footing;
use pointsman_core::growth::STEPS;
use pointsman_core::policy::Source;
use pointsman_core::{
    CloseReason, ClusterStats, DropReason, EndpointState, KeylessReason, ListenerStats, ShedReason,
};
use pointsman_plugin::FaultKind;

use crate::discovery::{self, LeftOut};
use crate::plan::limit_shown;
use crate::reload;
use crate::seat::Outcome;
use crate::view::{ClusterView, PluginView, View};

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders everything.
pub fn render(view: &View) -> String {
    let mut text = Exposition::default();
    listeners(view, &mut text);
    maxima(view, &mut text);
    clusters(view, &mut text);
    endpoints(view, &mut text);
    discoveries(view, &mut text);
    plugins(view, &mut text);
    workers::render(view, &mut text);
    process(view, &mut text);
    text.text
}

fn listeners(view: &View, text: &mut Exposition) {
    let mut each = |name, kind, help, of: &dyn Fn(&ListenerStats) -> u64| {
        text.family(name, kind, help);
        for listener in &view.listeners {
            text.sample(name, &[("listener", &listener.name)], of(&listener.stats));
        }
    };
    each("pointsman_flows_total", "counter", "Flows admitted.", &|s| s.flows_total);
    each("pointsman_flows_active", "gauge", "Flows admitted and not ended.", &|s| s.flows_active);
    each(
        "pointsman_connect_retries_total",
        "counter",
        "Times a flow was decided again because connecting failed.",
        &|s| s.connect_retries_total,
    );
    each(
        "pointsman_reallocations_total",
        "counter",
        "Times a live flow was given another endpoint because its own was gone.",
        &|s| s.reallocations_total,
    );
    each(
        "pointsman_stateless_datagrams_total",
        "counter",
        "Datagrams forwarded by a stateless policy without a flow.",
        &|s| s.stateless_total,
    );
    let family = ("pointsman_bytes_total", "Bytes delivered, by the side they went towards.");
    by_side(view, text, family, |s| &s.bytes_total);
    let family = ("pointsman_datagrams_total", "Datagrams sent, by the side they went towards.");
    by_side(view, text, family, |s| &s.datagrams_total);
    let closes = CloseReason::ALL.map(CloseReason::label);
    by_reason(view, text, ("pointsman_closes_total", "Ended flows."), &closes, |s| &s.closes_total);
    let sheds = ShedReason::ALL.map(ShedReason::label);
    by_reason(view, text, ("pointsman_sheds_total", "Refused flows."), &sheds, |s| &s.sheds_total);
    let drops = DropReason::ALL.map(DropReason::label);
    let family = ("pointsman_drops_total", "Things accepted and lost.");
    by_reason(view, text, family, &drops, |s| &s.drops_total);
    let reasons = KeylessReason::ALL.map(KeylessReason::label);
    let family = ("pointsman_keyless_flows_total", "Flows whose first bytes showed no key.");
    by_reason(view, text, family, &reasons, |s| &s.keyless_total);
}

fn maxima(view: &View, text: &mut Exposition) {
    let name = "pointsman_flows_max";
    text.family(name, "gauge", "Flows the listener may have at a time.");
    for listener in &view.listeners {
        let max = view.setup.plan.listeners[listener.id.index()].flows_max;
        text.sample(name, &[("listener", &listener.name)], max);
    }
}

fn by_side(
    view: &View,
    text: &mut Exposition,
    (name, help): (&str, &str),
    of: impl Fn(&ListenerStats) -> &[u64; 2],
) {
    text.family(name, "counter", help);
    for listener in &view.listeners {
        for (side, label) in [(Side::Upstream, "upstream"), (Side::Downstream, "downstream")] {
            let labels = [("listener", &*listener.name), ("direction", label)];
            text.sample(name, &labels, of(&listener.stats)[side.index()]);
        }
    }
}

fn by_reason(
    view: &View,
    text: &mut Exposition,
    (name, help): (&str, &str),
    reasons: &[&str],
    of: impl Fn(&ListenerStats) -> &[u64],
) {
    text.family(name, "counter", help);
    for listener in &view.listeners {
        for (reason, count) in reasons.iter().zip(of(&listener.stats)) {
            text.sample(name, &[("listener", &listener.name), ("reason", reason)], count);
        }
    }
}

fn clusters(view: &View, text: &mut Exposition) {
    let name = "pointsman_decisions_total";
    text.family(name, "counter", "Decisions, by who made them.");
    for cluster in &view.clusters {
        for source in Source::ALL {
            let labels = [("cluster", &*cluster.name), ("source", source.label())];
            text.sample(name, &labels, cluster.stats.decisions_total[source.index()]);
        }
    }
    let name = "pointsman_cluster_footing";
    text.family(name, "gauge", "1 for who gets flows: the available, backups, all, or nobody.");
    for cluster in &view.clusters {
        for footing in Footing::ALL {
            let labels = [("cluster", &*cluster.name), ("footing", footing.label())];
            text.sample(name, &labels, u8::from(cluster.footing == footing));
        }
    }
    let mut each = |name, kind, help, of: &dyn Fn(&ClusterView) -> f64| {
        text.family(name, kind, help);
        for cluster in &view.clusters {
            text.sample(name, &[("cluster", &cluster.name)], of(cluster));
        }
    };
    each(
        "pointsman_cluster_overflows_total",
        "counter",
        "Flows that went elsewhere than was decided, because that endpoint was full.",
        &|cluster| cluster.stats.overflows_total as f64,
    );
    each(
        "pointsman_cluster_queue_flows",
        "gauge",
        "Flows that wait for a place at an endpoint.",
        &|cluster| cluster.queue.flows.into(),
    );
    each(
        "pointsman_cluster_queued_total",
        "counter",
        "Flows that have waited for a place at an endpoint.",
        &|cluster| cluster.stats.queued_total as f64,
    );
    each(
        "pointsman_cluster_queued_seconds_total",
        "counter",
        "How long flows have waited for a place, all together.",
        &|cluster| cluster.stats.queued_time.as_secs_f64(),
    );
    let name = "pointsman_policy_generation";
    text.family(name, "gauge", "1 for a cluster's first policy, one more for each swap.");
    for cluster in &view.clusters {
        let ClusterStats { policy_generation, .. } = cluster.stats;
        text.sample(name, &[("cluster", &cluster.name)], policy_generation);
    }
    let name = "pointsman_swaps_total";
    text.family(name, "counter", "Attempts to put another module in a policy's place.");
    for cluster in &view.clusters {
        for outcome in Outcome::ALL {
            let labels = [("cluster", &*cluster.name), ("outcome", outcome.label())];
            text.sample(name, &labels, cluster.seat.outcomes[outcome as usize]);
        }
    }
    let name = "pointsman_swap_pause_seconds_max";
    text.family(name, "gauge", "The longest that a swap has held up a worker.");
    for cluster in &view.clusters {
        let pause = cluster.seat.pause_max.as_secs_f64();
        text.sample(name, &[("cluster", &cluster.name)], pause);
    }
}

fn endpoints(view: &View, text: &mut Exposition) {
    let mut each = |name, kind, help, of: &dyn Fn(&EndpointState) -> u64| {
        text.family(name, kind, help);
        for cluster in &view.clusters {
            for state in cluster.endpoints.iter().chain(&cluster.leaving) {
                let address = state.endpoint.address.to_string();
                let labels = [("cluster", &*cluster.name), ("endpoint", &*address)];
                text.sample(name, &labels, of(state));
            }
        }
    };
    each("pointsman_endpoint_flows_total", "counter", "Flows given to the endpoint.", &|state| {
        state.endpoint.load.flows_total()
    });
    each("pointsman_endpoint_flows_active", "gauge", "Flows the endpoint has now.", &|state| {
        state.endpoint.load.flows_active().into()
    });
    each(
        "pointsman_endpoint_flows_max",
        "gauge",
        "Flows the endpoint may have at a time; 0 if that is not limited.",
        &|state| limit_shown(state.endpoint.flows_max).into(),
    );
    each(
        "pointsman_endpoint_up",
        "gauge",
        "Whether the endpoint is believed to serve.",
        &|state| state.up.into(),
    );
    each(
        "pointsman_endpoint_weight_percent",
        "gauge",
        "How much of the endpoint's weight counts: less than 100 while it grows after a return.",
        &|state| u64::from(state.growth.tenths() * 100 / STEPS),
    );
    each(
        "pointsman_endpoint_draining",
        "gauge",
        "Whether the endpoint gets nothing new because an operator says so.",
        &|state| state.draining.into(),
    );
    each(
        "pointsman_endpoint_ejections_total",
        "counter",
        "Times the endpoint was ejected because flows failed on it.",
        &|state| state.ejections_total,
    );
    let name = "pointsman_endpoint_ejected";
    text.family(name, "gauge", "Whether the endpoint is ejected, by the reason.");
    for cluster in &view.clusters {
        for state in &cluster.endpoints {
            let address = state.endpoint.address.to_string();
            for reason in EjectionReason::ALL {
                let labels = [
                    ("cluster", &*cluster.name),
                    ("endpoint", &*address),
                    ("reason", reason.label()),
                ];
                text.sample(name, &labels, u8::from(state.ejected == Some(reason)));
            }
        }
    }
}

fn discoveries(view: &View, text: &mut Exposition) {
    let found = || {
        let clusters = view.clusters.iter();
        clusters.filter_map(|cluster| Some((cluster, &cluster.discovery.as_ref()?.1)))
    };
    let name = "pointsman_discovery_attempts_total";
    text.family(name, "counter", "Attempts to find a cluster's endpoints, by how they ended.");
    for (cluster, standing) in found() {
        for outcome in discovery::Outcome::ALL {
            let labels = [("cluster", &*cluster.name), ("outcome", outcome.label())];
            text.sample(name, &labels, standing.outcomes[outcome as usize]);
        }
    }
    let name = "pointsman_discovery_left_out_total";
    text.family(name, "counter", "Addresses of answers that were not used, by the reason.");
    for (cluster, standing) in found() {
        for (reason, count) in LeftOut::LABELS.iter().zip(standing.left_out.counts()) {
            text.sample(name, &[("cluster", &cluster.name), ("reason", reason)], count);
        }
    }
    let name = "pointsman_discovery_age_seconds";
    text.family(name, "gauge", "Since the last answer; none where there never was one.");
    for (cluster, standing) in found() {
        let Some(answered_at) = standing.answered_at else { continue };
        let age = answered_at.elapsed().as_secs_f64();
        text.sample(name, &[("cluster", &cluster.name)], age);
    }
    let name = "pointsman_discovery_endpoints";
    text.family(name, "gauge", "Endpoints that were found and are there.");
    for (cluster, _) in found() {
        text.sample(name, &[("cluster", &cluster.name)], cluster.endpoints.len());
    }
}

fn plugins(view: &View, text: &mut Exposition) {
    let name = "pointsman_plugin_faults_total";
    text.family(name, "counter", "Calls of a plugin that failed; the fallback decided instead.");
    for plugin in &view.plugins {
        for kind in FaultKind::ALL {
            let labels = [("policy", &*plugin.name), ("kind", kind.label())];
            text.sample(name, &labels, plugin.counts.faults_of(kind));
        }
    }
    let name = "pointsman_plugin_throttled_total";
    text.family(name, "counter", "Flows left to the fallback because plugins had had their share.");
    for plugin in &view.plugins {
        text.sample(name, &[("policy", &plugin.name)], plugin.counts.throttled);
    }
    let name = "pointsman_policy_counter_total";
    text.family(name, "counter", "What plugins count for themselves; those at zero are left out.");
    for plugin in &view.plugins {
        for (counter, count) in plugin.counts.own.iter().enumerate().filter(|(_, n)| **n > 0) {
            let labels = [("policy", &*plugin.name), ("counter", &counter.to_string())];
            text.sample(name, &labels, count);
        }
    }
    let name = "pointsman_decision_seconds";
    text.family(name, "histogram", "Time in calls of a plugin.");
    for PluginView { name: policy, counts, .. } in &view.plugins {
        text.histogram(name, ("policy", policy), counts.decision_seconds());
        let seconds = Duration::from_nanos(counts.decision_nanos).as_secs_f64();
        text.sample("pointsman_decision_seconds_sum", &[("policy", policy)], seconds);
        text.sample("pointsman_decision_seconds_count", &[("policy", policy)], counts.calls());
    }
}

fn process(view: &View, text: &mut Exposition) {
    let name = "pointsman_all_flows_max";
    text.family(name, "gauge", "Flows that all listeners together may have at a time.");
    text.sample(name, &[], view.setup.plan.flows_max);
    let name = "pointsman_access_log_dropped_total";
    text.family(name, "counter", "Ended flows that the access log had no room for.");
    text.sample(name, &[], view.access_log_dropped);
    reloads(view, text);
    let name = "pointsman_build_info";
    text.family(name, "gauge", "Always 1; the labels say what is running.");
    text.sample(name, &[("version", crate::VERSION)], 1);
}

fn reloads(view: &View, text: &mut Exposition) {
    let name = "pointsman_reloads_total";
    text.family(name, "counter", "Times the configuration was read again, by what came of it.");
    for outcome in reload::Outcome::ALL {
        let count = view.reloads.outcomes[outcome as usize];
        text.sample(name, &[("outcome", outcome.label())], count);
    }
    let last = view.reloads.last.as_ref();
    let name = "pointsman_last_reload_successful";
    text.family(name, "gauge", "Whether the last reload was applied, or there was none.");
    let is_good = last.is_none_or(|last| last.outcome == reload::Outcome::Applied.label());
    text.sample(name, &[], u8::from(is_good));
    let name = "pointsman_last_reload_timestamp_seconds";
    text.family(
        name,
        "gauge",
        "When the configuration was last read again, since 1970; 0 if never.",
    );
    let at = last.map_or(0.0, |last| Duration::from_millis(last.at_unix_ms).as_secs_f64());
    text.sample(name, &[], at);
}

#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (place, (label, of)) in labels.iter().enumerate() {
            self.text.push(if place == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{label}=\"{}\"", escaped(of));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }

    /// The buckets of a histogram: upper bounds in seconds, and how many were not above them.
    fn histogram(
        &mut self,
        name: &str,
        of: (&str, &str),
        buckets: impl IntoIterator<Item = (f64, impl Display)>,
    ) {
        let name = format!("{name}_bucket");
        for (bound, count) in buckets {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            self.sample(&name, &[of, ("le", &bound)], count);
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::view;

    #[test]
    fn every_fixed_name_is_there_with_help_and_type() {
        let text = render(&view());
        for name in [
            "flows_total",
            "flows_active",
            "bytes_total",
            "datagrams_total",
            "stateless_datagrams_total",
            "reallocations_total",
            "keyless_flows_total",
            "upstream_ports",
            "decisions_total",
            "decision_seconds",
            "plugin_faults_total",
            "policy_generation",
            "swaps_total",
            "swap_pause_seconds_max",
            "plugin_throttled_total",
            "policy_counter_total",
            "endpoint_flows_total",
            "endpoint_flows_active",
            "endpoint_flows_max",
            "endpoint_up",
            "endpoint_draining",
            "endpoint_weight_percent",
            "endpoint_ejected",
            "endpoint_ejections_total",
            "cluster_footing",
            "discovery_attempts_total",
            "discovery_left_out_total",
            "discovery_age_seconds",
            "discovery_endpoints",
            "cluster_overflows_total",
            "cluster_queue_flows",
            "cluster_queued_total",
            "cluster_queued_seconds_total",
            "closes_total",
            "sheds_total",
            "drops_total",
            "connect_retries_total",
            "flow_table_entries",
            "upstream_ports",
            "flows_max",
            "all_flows_max",
            "sessions",
            "completions_total",
            "turn_seconds",
            "ring_enters_total",
            "ring_overflows_total",
            "ring_requests",
            "buffers",
            "buffers_free",
            "buffers_starved_total",
            "access_log_dropped_total",
            "reloads_total",
            "last_reload_successful",
            "last_reload_timestamp_seconds",
            "build_info",
        ] {
            assert!(text.contains(&format!("# HELP pointsman_{name} ")), "{name}");
            assert!(text.contains(&format!("# TYPE pointsman_{name} ")), "{name}");
        }
    }

    #[test]
    fn samples_carry_their_labels_and_the_sum_of_all_workers() {
        let text = render(&view());
        for line in [
            "pointsman_flows_total{listener=\"web\"} 6",
            "pointsman_bytes_total{listener=\"web\",direction=\"upstream\"} 20",
            "pointsman_bytes_total{listener=\"web\",direction=\"downstream\"} 40",
            "pointsman_datagrams_total{listener=\"web\",direction=\"upstream\"} 6",
            "pointsman_stateless_datagrams_total{listener=\"web\"} 4",
            "pointsman_reallocations_total{listener=\"web\"} 2",
            "pointsman_keyless_flows_total{listener=\"web\",reason=\"absent\"} 2",
            "pointsman_upstream_ports{worker=\"0\"} 5",
            "pointsman_decisions_total{cluster=\"web\",source=\"native\"} 6",
            "pointsman_endpoint_up{cluster=\"web\",endpoint=\"127.0.0.1:1\"} 1",
            "pointsman_endpoint_ejected{cluster=\"web\",endpoint=\"127.0.0.1:1\",reason=\"success-rate\"} 0",
            "pointsman_cluster_footing{cluster=\"web\",footing=\"sound\"} 1",
            "pointsman_cluster_overflows_total{cluster=\"web\"} 2",
            "pointsman_cluster_queued_total{cluster=\"web\"} 4",
            "pointsman_cluster_queued_seconds_total{cluster=\"web\"} 1.5",
            "pointsman_endpoint_flows_max{cluster=\"web\",endpoint=\"127.0.0.1:1\"} 0",
            "pointsman_policy_generation{cluster=\"web\"} 1",
            "pointsman_swaps_total{cluster=\"web\",outcome=\"rolled-back\"} 0",
            "pointsman_policy_counter_total{policy=\"p2c\",counter=\"3\"} 7",
            "pointsman_flow_table_entries{worker=\"1\"} 4",
            "pointsman_turn_seconds_bucket{worker=\"0\",le=\"0.000016384\"} 0",
            "pointsman_turn_seconds_bucket{worker=\"0\",le=\"+Inf\"} 1",
            "pointsman_turn_seconds_sum{worker=\"1\"} 0.00002",
            "pointsman_turn_seconds_count{worker=\"1\"} 1",
            "pointsman_completions_total{worker=\"0\"} 3",
            "pointsman_ring_enters_total{worker=\"1\"} 6",
            "pointsman_buffers{worker=\"0\",pool=\"datagrams\"} 512",
            "pointsman_buffers_free{worker=\"0\",pool=\"datagrams\"} 500",
            "pointsman_buffers_starved_total{worker=\"0\",pool=\"datagrams\"} 2",
            "pointsman_reloads_total{outcome=\"refused\"} 0",
            "pointsman_last_reload_successful 1",
            "pointsman_closes_total{listener=\"web\",reason=\"idle-timeout\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_name_cannot_break_out_of_its_label() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
