//! `policy new`: a crate that builds and tests at once, wherever it is.
//!
//! The SDK's sources are put beside the policy's, from this very program, so that the crate is
//! complete: it needs no path into a repository, and fits the balancer it was made with. The
//! versions of everything else are those that the SDK was tested with, by its lock file.

use std::fs;
use std::path::Path;

use include_dir::{Dir, include_dir};
use pointsman_plugin::Shape;

use crate::failure::Failure;

/// The SDK.
static SOURCES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../plugin-sdk/src");
static INTERFACE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../plugin-sdk/wit");
const GUIDE: &str = include_str!("../../../../plugin-sdk/GUIDE.md");

const WORKSPACE: &str = include_str!("../../../../Cargo.toml");
const LOCK: &str = include_str!("../../../../Cargo.lock");

/// The names of folders in a crate, and of crates that it depends on.
const NAMES_TAKEN: [&str; 5] = ["sdk", "target", "pointsman-sdk", "serde", "wit-bindgen"];

/// Makes the crate in a new folder, called by its last name.
///
/// # Errors
/// If the name is no name for a crate, or the folder is there already.
pub fn create(folder: &Path, shape: Shape) -> Result<(), Failure> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    check_name(name)?;
    if folder.exists() {
        let message = format!("{} is there already; take another name", folder.display());
        return Err(Failure::input(message));
    }
    let write = |path: &str, text: &str| {
        let file = folder.join(path);
        fs::create_dir_all(file.parent().unwrap_or(folder))?;
        fs::write(file, text)
    };
    write("sdk/Cargo.toml", &sdk_manifest())?;
    write("sdk/GUIDE.md", GUIDE)?;
    for (path, sources) in [("sdk/src", &SOURCES), ("sdk/wit", &INTERFACE)] {
        fs::create_dir_all(folder.join(path))?;
        sources.extract(folder.join(path))?;
    }
    write("src/lib.rs", template(shape))?;
    write("Cargo.toml", &manifest(name))?;
    write("Cargo.lock", LOCK)?;
    write("pointsman.toml", &configuration(name, shape))?;
    write("README.md", &readme(name))?;
    write(".gitignore", "/target\n/*.wasm\n")?;
    Ok(())
}

fn check_name(name: &str) -> Result<(), Failure> {
    let is_letter = |letter: char| letter.is_ascii_lowercase();
    let is_part = |letter: char| is_letter(letter) || letter.is_ascii_digit() || letter == '-';
    if !name.starts_with(is_letter) || !name.chars().all(is_part) {
        let rule = "small letters, digits and hyphens, a letter first";
        return Err(Failure::input(format!("`{name}` is no name for a policy: {rule}")));
    }
    if NAMES_TAKEN.contains(&name) {
        return Err(Failure::input(format!("`{name}` is taken; take another name")));
    }
    Ok(())
}

const fn template(shape: Shape) -> &'static str {
    match shape {
        Shape::Chooser => include_str!("../../../../plugin-sdk/templates/chooser.rs"),
        Shape::Table => include_str!("../../../../plugin-sdk/templates/table.rs"),
        Shape::Weights => include_str!("../../../../plugin-sdk/templates/weights.rs"),
    }
}

fn manifest(name: &str) -> String {
    format!(
        r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"
publish = false

[lib]
# The plugin, and the library that its tests link.
crate-type = ["cdylib", "rlib"]

[dependencies]
pointsman-sdk = {{ path = "sdk" }}
serde = {serde}

# A workspace of its own, wherever this folder is.
[workspace]
"#,
        serde = dependency("serde"),
    )
}

/// The SDK's manifest, without what only its own workspace has.
fn sdk_manifest() -> String {
    format!(
        r#"[package]
name = "pointsman-sdk"
description = "What the author of a Pointsman policy depends on"
version = "{version}"
edition = "2024"
license = "Apache-2.0"
publish = false

[lib]
doctest = false
test = false

[dependencies]
serde = {serde}

[target.'cfg(target_arch = "wasm32")'.dependencies]
wit-bindgen = {bindgen}
"#,
        version = crate::VERSION,
        serde = dependency("serde"),
        bindgen = dependency("wit-bindgen"),
    )
}

/// A dependency of the workspace as its manifest names it.
fn dependency(name: &str) -> String {
    let workspace: toml::Table = WORKSPACE.parse().expect("the workspace's manifest is TOML");
    workspace["workspace"]["dependencies"][name].to_string()
}

fn configuration(name: &str, shape: Shape) -> String {
    let key = match shape {
        Shape::Chooser => "fallback = \"least-flows\"      # decides where the policy does not\n",
        Shape::Table | Shape::Weights => "",
    };
    format!(
        r#"# Serves {name}.wasm: `pointsman run --config pointsman.toml`

[admin]
socket = "pointsman.sock"       # `pointsman status --admin pointsman.sock` asks here

[[listeners]]
name = "web"
address = "127.0.0.1:8090"      # where clients come
cluster = "web"

[[clusters]]
name = "web"
policy = "{name}"
endpoints = [                   # where they are sent
  {{ address = "127.0.0.1:9001" }},
  {{ address = "127.0.0.1:9002" }},
]

[[policies]]
name = "{name}"
plugin = "{name}.wasm"
{key}"#
    )
}

fn readme(name: &str) -> String {
    format!(
        "# {name}\n\n\
         A policy for the Pointsman load balancer; `src/lib.rs` is all of it.\n\n\
         ```sh\n\
         cargo test                                # its own tests, without a balancer\n\
         pointsman policy build                    # makes {name}.wasm\n\
         pointsman policy test {name}.wasm         # what a balancer asks of any policy\n\
         pointsman run --config pointsman.toml     # serves with it\n\
         ```\n\n\
         `sdk/` is the SDK of the balancer that made this folder; `sdk/GUIDE.md` goes through it.\n"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;

    /// The files in a folder and those below, by their paths from there.
    fn files(folder: &Path) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut open = vec![folder.to_owned()];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned());
            }
        }
        found
    }

    #[test]
    fn the_whole_sdk_is_handed_out_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let mine = folder.path().join("mine");
        create(&mine, Shape::Chooser).unwrap();
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugin-sdk");
        for part in ["src", "wit"] {
            let (ours, theirs) = (sdk.join(part), mine.join("sdk").join(part));
            assert_eq!(files(&theirs), files(&ours));
            for file in files(&ours) {
                assert_eq!(
                    fs::read(theirs.join(&file)).unwrap(),
                    fs::read(ours.join(file)).unwrap()
                );
            }
        }
    }

    #[test]
    fn manifests_name_versions() {
        let manifest: toml::Table = sdk_manifest().parse().unwrap();
        let bindgen = &manifest["target"]["cfg(target_arch = \"wasm32\")"]["dependencies"];
        assert!(bindgen["wit-bindgen"]["version"].is_str());
        let manifest: toml::Table = super::manifest("mine").parse().unwrap();
        assert!(manifest["dependencies"]["serde"]["version"].is_str());
    }

    #[test]
    fn a_folder_that_is_there_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mine = folder.path().join("mine");
        create(&mine, Shape::Table).unwrap();
        fs::write(mine.join("src/lib.rs"), "a day's work").unwrap();
        assert!(create(&mine, Shape::Table).is_err());
        assert_eq!(fs::read_to_string(mine.join("src/lib.rs")).unwrap(), "a day's work");
    }

    #[test]
    fn what_cargo_would_refuse_is_refused_at_once() {
        for name in ["", "Mine", "9lives", "a_b", "sdk", "serde", "-x", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("my-policy-2").is_ok());
    }
}
