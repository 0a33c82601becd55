//! Flows and kept decisions for a person.

use super::{Page, Shown, ShownFlow, ShownKept, Sort};
use crate::table::Table;

impl Page {
    /// One line for each, and how to see more.
    pub fn to_table(&self) -> String {
        let heads = [
            "ID", "KIND", "PROTO", "LISTENER", "CLUSTER", "CLIENT", "ENDPOINT", "STATE", "SOURCE",
            "AGE", "IDLE", "ENDS IN", "UP B", "DOWN B",
        ];
        let mut table = Table::new(&heads);
        for shown in &self.flows {
            table.row(match &shown.sort {
                Sort::Flow(flow) => flow_row(shown, flow),
                Sort::Kept(kept) => kept_row(shown, kept),
            });
        }
        let mut text = table.to_string();
        if let Some(next) = &self.next {
            text.push_str(&format!("\nThere may be more: add --page {next}\n"));
        }
        text
    }
}

fn flow_row(shown: &Shown, flow: &ShownFlow) -> [String; 14] {
    [
        shown.id.clone(),
        "flow".to_owned(),
        flow.protocol.clone(),
        flow.listener.clone(),
        shown.cluster.clone(),
        flow.client.clone(),
        or_dash(shown.endpoint.as_ref()),
        flow.state.clone(),
        or_dash(flow.source.as_ref()),
        seconds(flow.age_ms),
        seconds(flow.idle_ms),
        "-".to_owned(),
        flow.bytes_upstream.to_string(),
        flow.bytes_downstream.to_string(),
    ]
}

fn kept_row(shown: &Shown, kept: &ShownKept) -> [String; 14] {
    let dash = || "-".to_owned();
    [
        shown.id.clone(),
        "kept".to_owned(),
        dash(),
        dash(),
        shown.cluster.clone(),
        whom(kept),
        or_dash(shown.endpoint.as_ref()),
        if kept.denies { "denies" } else { "binds" }.to_owned(),
        dash(),
        dash(),
        dash(),
        seconds(kept.expires_in_ms),
        dash(),
        dash(),
    ]
}

impl Shown {
    /// Everything that is known of it, one line for each fact.
    pub fn to_table(&self) -> String {
        let mut table = Table::new(&["FACT", "VALUE"]);
        let mut fact = |name: &str, value: String| table.row([name.to_owned(), value]);
        fact("id", self.id.clone());
        match &self.sort {
            Sort::Flow(flow) => {
                fact("kind", "flow".to_owned());
                flow_facts(flow, &mut fact);
            }
            Sort::Kept(kept) => {
                fact("kind", "kept decision".to_owned());
                kept_facts(kept, &mut fact);
            }
        }
        fact("cluster", self.cluster.clone());
        fact("endpoint", or_dash(self.endpoint.as_ref()));
        fact("policy", format!("{}, generation {}", self.policy, self.policy_generation));
        fact("tag", self.tag.to_string());
        table.to_string()
    }
}

fn flow_facts(flow: &ShownFlow, fact: &mut impl FnMut(&str, String)) {
    fact("listener", format!("{} ({})", flow.listener, flow.protocol));
    fact("client", flow.client.clone());
    fact("local", flow.local.clone());
    fact("state", flow.state.clone());
    fact("source", or_dash(flow.source.as_ref()));
    fact("age", seconds(flow.age_ms));
    fact("idle", seconds(flow.idle_ms));
    fact("bytes upstream", flow.bytes_upstream.to_string());
    fact("bytes downstream", flow.bytes_downstream.to_string());
    if flow.protocol == "udp" {
        fact("datagrams upstream", flow.datagrams_upstream.to_string());
        fact("datagrams downstream", flow.datagrams_downstream.to_string());
    }
}

fn kept_facts(kept: &ShownKept, fact: &mut impl FnMut(&str, String)) {
    fact("kept for", format!("{} {}", kept.scope, whom(kept).trim_start_matches("key ")));
    fact("verdict", if kept.denies { "denies" } else { "binds" }.to_owned());
    fact("ends in", seconds(kept.expires_in_ms));
    fact(
        "each use",
        if kept.sliding { "starts its life anew" } else { "leaves its end" }.to_owned(),
    );
}

fn whom(kept: &ShownKept) -> String {
    let key = || kept.key.as_ref().map(|key| format!("key {key}"));
    kept.client.clone().or_else(key).unwrap_or_else(|| "-".to_owned())
}

fn or_dash(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".to_owned())
}

fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1000, millis % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(sort: Sort) -> Shown {
        Shown {
            id: "0-0000000000000001".to_owned(),
            cluster: "shop".to_owned(),
            endpoint: Some("127.0.0.1:1".to_owned()),
            policy: "sticky".to_owned(),
            policy_generation: 3,
            tag: 7,
            sort,
        }
    }

    fn flow() -> Shown {
        shown(Sort::Flow(ShownFlow {
            listener: "web".to_owned(),
            protocol: "udp".to_owned(),
            client: "192.0.2.7:4000".to_owned(),
            local: "192.0.2.1:53".to_owned(),
            state: "established".to_owned(),
            source: Some("plugin".to_owned()),
            age_ms: 61_250,
            idle_ms: 99,
            bytes_upstream: 10,
            bytes_downstream: 20,
            datagrams_upstream: 1,
            datagrams_downstream: 2,
        }))
    }

    fn kept() -> Shown {
        shown(Sort::Kept(ShownKept {
            scope: "key".to_owned(),
            client: None,
            key: Some("00c0ffee00c0ffee".to_owned()),
            denies: false,
            expires_in_ms: 5_000,
            sliding: true,
        }))
    }

    #[test]
    fn the_list_shows_both_sorts_and_where_the_next_page_begins() {
        let next = Some("1-0000000000000002".to_owned());
        let text = Page { flows: vec![flow(), kept()], next }.to_table();
        let lines: Vec<_> = text.lines().collect();
        for part in ["0-0000000000000001", "flow", "udp", "192.0.2.7:4000", "61.2 s", "0.0 s"] {
            assert!(lines[1].contains(part), "{part} is not in\n{text}");
        }
        for part in ["kept", "shop", "key 00c0ffee00c0ffee", "binds", "5.0 s"] {
            assert!(lines[2].contains(part), "{part} is not in\n{text}");
        }
        assert!(text.ends_with("add --page 1-0000000000000002\n"), "{text}");
    }

    #[test]
    fn one_flow_shows_its_history() {
        let text = flow().to_table();
        for part in ["sticky, generation 3", "plugin", "61.2 s", "datagrams downstream", "7"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(kept().to_table().contains("key 00c0ffee00c0ffee"));
    }

    #[test]
    fn what_is_shown_survives_its_way_over_the_socket() {
        let page = Page { flows: vec![flow(), kept()], next: None };
        let text = serde_json::to_string(&page).expect("JSON");
        let back: Page = serde_json::from_str(&text).expect("a page");
        assert_eq!(serde_json::to_string(&back).expect("JSON"), text);
        assert!(text.contains("\"kind\":\"flow\""), "{text}");
        assert!(text.contains("\"kind\":\"kept\""), "{text}");
    }
}
