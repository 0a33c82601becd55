//! Holds SECURITY.md to the tests that it names: a defence whose test is gone is a claim.

use std::fs;
use std::path::{Path, PathBuf};

/// Names of tests are sentences; shorter words in backticks are keys and files.
const WORDS_MIN: usize = 4;

#[test]
fn every_test_that_the_security_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let code: String = ["host", "xtask/tests", "plugin-sdk/src"]
        .iter()
        .flat_map(|folder| sources(&root.join(folder)))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let named: Vec<_> = page.split('`').skip(1).step_by(2).filter(|it| is_sentence(it)).collect();
    assert!(named.len() > 30, "only {} tests are named", named.len());
    for name in named {
        assert!(code.contains(&format!("fn {name}()")), "there is no test {name}");
    }
}

fn is_sentence(text: &str) -> bool {
    let is_name = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_name && text.split('_').count() >= WORDS_MIN
}

/// All sources in a folder and those below.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
