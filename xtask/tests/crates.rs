//! Holds the crates to the arrows that the architecture draws between them.
//!
//! Only normal dependencies count: what a test uses is its own affair, but what a crate links
//! decides what it can know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// What each crate may depend on, at most. The server is not listed: it may depend on anything.
const ALLOWED: [(&str, &[&str]); 4] = [
    // No files, sockets, clocks, threads, wasm or serde: small crates without std.
    ("pointsman-core", &["hashbrown", "siphasher", "spin", "twox-hash"]),
    // The core's boundary and the kernel; no clusters and no policies.
    ("pointsman-ring", &["pointsman-core", "io-uring", "libc"]),
    // The core's policy trait and a guest; no ring and no sockets.
    (
        "pointsman-plugin",
        &["pointsman-core", "quanta", "sha2", "thiserror", "wasmtime", "wit-component"],
    ),
    // The interface, and configs; nothing of the host.
    ("pointsman-sdk", &["wit-bindgen", "serde", "serde_json"]),
];

/// What every policy in `plugins/` may depend on.
const ALLOWED_IN_PLUGINS: &[&str] = &["pointsman-sdk", "serde"];

#[test]
fn a_crate_links_what_its_layer_allows_and_nothing_else() {
    let packages = packages();
    let listed = ALLOWED.map(|(name, allowed)| (name.to_owned(), allowed));
    let plugins = packages.values().filter(|package| is_plugin(package));
    let plugins = plugins.map(|package| (package.name.to_string(), ALLOWED_IN_PLUGINS));
    for (name, allowed) in listed.into_iter().chain(plugins) {
        let package = packages.get(&name).unwrap_or_else(|| panic!("no crate {name}"));
        let links = links(package);
        let strangers: Vec<_> = links.iter().filter(|it| !allowed.contains(&&***it)).collect();
        assert!(strangers.is_empty(), "{name} must not depend on {strangers:?}");
    }
}

#[test]
fn nothing_depends_on_the_server() {
    for (name, package) in packages() {
        assert!(!links(&package).contains("pointsman"), "{name} depends on the server");
    }
}

#[test]
fn ring_and_plugin_do_not_know_each_other_even_through_others() {
    let packages = packages();
    for (one, other) in
        [("pointsman-ring", "pointsman-plugin"), ("pointsman-plugin", "pointsman-ring")]
    {
        assert!(!reachable(&packages, one).contains(other), "{one} reaches {other}");
    }
}

/// The crates of the workspace, by name.
fn packages() -> BTreeMap<String, Package> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let metadata = MetadataCommand::new().current_dir(root).no_deps().exec().unwrap();
    metadata.packages.into_iter().map(|package| (package.name.to_string(), package)).collect()
}

fn is_plugin(package: &Package) -> bool {
    package.manifest_path.components().rev().nth(2).is_some_and(|dir| dir.as_str() == "plugins")
}

/// The names of a crate's normal dependencies.
fn links(package: &Package) -> BTreeSet<String> {
    let dependencies = package.dependencies.iter();
    let normal = dependencies.filter(|dependency| dependency.kind == DependencyKind::Normal);
    normal.map(|dependency| dependency.name.clone()).collect()
}

/// The crates of the workspace that one links, directly or not.
fn reachable(packages: &BTreeMap<String, Package>, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(name) = open.pop() {
        let Some(package) = packages.get(&name) else { continue };
        let fresh = links(package).into_iter().filter(|name| reached.insert(name.clone()));
        open.extend(fresh);
    }
    reached
}
