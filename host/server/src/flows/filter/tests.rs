//! What each filter lets through.

use pointsman_core::Instant;
use pointsman_core::policy::{Scope, Source};

use super::*;
use crate::plan::{PluginFolders, resolve};
use crate::world::World;

const TEXT: &str = r#"
[[listeners]]
name = "web"
address = "127.0.0.1:8080"
cluster = "web"
client_prefix_v4 = 24
[[listeners]]
name = "dns"
address = "127.0.0.1:53"
protocol = "udp"
cluster = "dns"
[[clusters]]
name = "web"
endpoints = [{ address = "127.0.0.1:1" }, { address = "127.0.0.1:2" }]
[[clusters]]
name = "dns"
endpoints = [{ address = "127.0.0.1:3" }]
"#;

fn search(text: &str) -> Result<Search, String> {
    let config = crate::config::read(TEXT).config;
    let plan = resolve(&config, &PluginFolders::default()).expect("the test's plan");
    let addresses: Vec<_> = plan.listeners.iter().map(|listener| listener.address).collect();
    let snapshot = World::new(&plan, &addresses, [0; 2]).snapshot();
    Search::new(&Query::from_text(text)?, &snapshot)
}

fn lets(text: &str, entry: &Entry) -> bool {
    search(text).expect("a good query").filter.matches(entry)
}

/// Of 192.0.2.7 at the web's second endpoint.
fn flow() -> Entry {
    Entry {
        id: EntryId(5),
        cluster: ClusterId(0),
        endpoint: Some(EndpointId(1)),
        policy_generation: 1,
        kind: EntryKind::Flow(FlowEntry {
            listener: ListenerId(0),
            protocol: Protocol::Tcp,
            client: "192.0.2.7:4000".parse().expect("an address"),
            local: "127.0.0.1:8080".parse().expect("an address"),
            endpoint_address: Some("127.0.0.1:2".parse().expect("an address")),
            state: FlowState::Established,
            source: Some(Source::Native),
            tag: 0,
            started: Instant::ZERO,
            last_active: Instant::ZERO,
            bytes: [0; 2],
            datagrams: [0; 2],
        }),
    }
}

/// For 192.0.2.0/24 at the web's second endpoint.
fn kept() -> Entry {
    let kind = EntryKind::Kept(KeptEntry {
        scope: Scope::Client,
        client: Some("192.0.2.0".parse().expect("an address")),
        key: None,
        denies: false,
        expires: Instant::ZERO,
        sliding: true,
        tag: 0,
    });
    Entry { id: EntryId(6), kind, ..flow() }
}

#[test]
fn without_a_filter_everything_is_let_through() {
    assert!(lets("", &flow()));
    assert!(lets("", &kept()));
}

#[test]
fn each_filter_lets_through_its_own_and_nothing_else() {
    for (yes, no) in [
        ("listener=web", "listener=dns"),
        ("cluster=web", "cluster=dns"),
        ("endpoint=127.0.0.1:2", "endpoint=127.0.0.1:1"),
        ("endpoint=127.0.0.1", "endpoint=127.0.0.2"),
        ("client=192.0.2.7", "client=192.0.2.8"),
        ("client=192.0.2.0/24", "client=192.0.3.0/24"),
        ("client=0.0.0.0/0", "client=2001:db8::1"),
        ("protocol=tcp", "protocol=udp"),
        ("kind=flow", "kind=kept"),
        ("state=established", "state=closing"),
        ("client=192.0.2.7&listener=web", "client=192.0.2.7&listener=dns"),
    ] {
        assert!(lets(yes, &flow()), "{yes}");
        assert!(!lets(no, &flow()), "{no}");
    }
}

#[test]
fn kept_decisions_are_found_by_endpoint_and_by_any_client_they_are_for() {
    for text in [
        "kind=kept",
        "endpoint=127.0.0.1:2",
        "client=192.0.2.7",
        "client=192.0.2.0/24",
        "client=192.0.0.0/16",
    ] {
        assert!(lets(text, &kept()), "{text}");
    }
    for text in
        ["kind=flow", "endpoint=127.0.0.1:1", "client=192.0.3.7", "protocol=tcp", "listener=web"]
    {
        assert!(!lets(text, &kept()), "{text}");
    }
}

#[test]
fn an_entry_is_found_by_its_id() {
    assert!(Filter::by_id(EntryId(5)).matches(&flow()));
    assert!(!Filter::by_id(EntryId(5)).matches(&kept()));
}

#[test]
fn what_cannot_be_looked_for_is_refused() {
    for (text, part) in [
        ("listener=wbe", "there is no listener \"wbe\"; did you mean \"web\"?"),
        ("protocol=sctp", "there is no protocol \"sctp\"; known are \"tcp\", \"udp\""),
        ("state=established1", "did you mean \"established\"?"),
        ("kind=kpet", "did you mean \"kept\"?"),
        ("client=web", "client \"web\" is no address"),
        ("client=10.0.0.0/33", "more than 32 bits"),
        ("endpoint=localhost:1", "endpoint \"localhost:1\" is no address"),
        ("limit=0", "limit \"0\" is no number above 0"),
        ("page=x", "\"x\" names no page"),
        ("kind=kept&state=closing", "kept decisions have none"),
    ] {
        let error = search(text).expect_err(text);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_page_has_a_hundred_unless_somebody_says_how_many() {
    assert_eq!(search("").expect("good").limit, 100);
    assert_eq!(search("limit=7").expect("good").limit, 7);
    assert_eq!(search("limit=99999999").expect("good").limit, LIMIT_MAX);
}
