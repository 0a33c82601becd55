//! Whether this machine can run a balancer, and what to do where it cannot.

use std::path::PathBuf;

use pointsman_ring::{Probe, probe};
use serde::Serialize;

use crate::cores::Core;
use crate::plan::PluginFolders;
use crate::table::Table;

/// Fewer descriptors than this are fewer than 4,000 flows.
const DESCRIPTORS_WANTED: u64 = 8_192;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, at a cost.
    Warn,
    /// A balancer does not start.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What.
    pub check: &'static str,
    /// How it is to be taken.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do, unless all is well.
    pub remedy: Option<&'static str>,
}

/// Looks at everything.
pub fn examine(folders: &[PathBuf]) -> Vec<Finding> {
    let probe = probe();
    vec![
        kernel(&probe),
        ring(&probe),
        credit(&probe),
        descriptors(&probe),
        cores(),
        plugins(folders),
    ]
}

/// The worst of the findings.
pub fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
}

/// The findings for a person.
pub fn to_table(findings: &[Finding]) -> String {
    let mut table = Table::new(&["CHECK", "VERDICT", "FOUND", "REMEDY"]);
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let remedy = finding.remedy.unwrap_or("-");
        table.row([finding.check, verdict, &finding.found, remedy].map(str::to_owned));
    }
    table.to_string()
}

fn finding(check: &'static str, verdict: Verdict, found: String, remedy: &'static str) -> Finding {
    let remedy = (verdict != Verdict::Ok).then_some(remedy);
    Finding { check, verdict, found, remedy }
}

fn kernel(probe: &Probe) -> Finding {
    let verdict = match version(&probe.kernel) {
        Some(version) if version >= (6, 1) => Verdict::Ok,
        Some(_) => Verdict::Fail,
        None => Verdict::Warn,
    };
    finding("kernel", verdict, probe.kernel.clone(), "run Linux 6.1 or newer")
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn ring(probe: &Probe) -> Finding {
    match &probe.ring {
        Ok(_) => finding("io_uring", Verdict::Ok, "can be used".to_owned(), ""),
        Err(error) => finding("io_uring", Verdict::Fail, error.to_string(), "see what was found"),
    }
}

fn credit(probe: &Probe) -> Finding {
    let (verdict, found) = match (&probe.ring, probe.credit_works) {
        (_, true) => (Verdict::Ok, "receives stop when their credit is used up"),
        (Ok(_), false) => (Verdict::Warn, "receives must be paused one by one"),
        (Err(_), false) => (Verdict::Fail, "not tried, for want of io_uring"),
    };
    let remedy = "run Linux 6.17 or newer for back-pressure without extra calls";
    finding("credit", verdict, found.to_owned(), remedy)
}

fn descriptors(probe: &Probe) -> Finding {
    let (verdict, found) = match &probe.descriptors {
        Ok(limit) => {
            let verdict =
                if limit.hard >= DESCRIPTORS_WANTED { Verdict::Ok } else { Verdict::Warn };
            (verdict, format!("{}, can be raised to {}", limit.soft, limit.hard))
        }
        Err(error) => (Verdict::Warn, format!("unknown: {error}")),
    };
    let remedy = "raise the hard limit of open files (ulimit -Hn, LimitNOFILE=); a flow takes two";
    finding("descriptors", verdict, found, remedy)
}

fn cores() -> Finding {
    let count = Core::allowed().len();
    let verdict = if count == 0 { Verdict::Warn } else { Verdict::Ok };
    let found = format!("{count} for this process");
    finding("cores", verdict, found, "allow sched_getaffinity; workers are not pinned without it")
}

fn plugins(folders: &[PathBuf]) -> Finding {
    let folders = folders.iter().cloned().chain(PluginFolders::in_system());
    let found: Vec<_> = folders
        .filter_map(|folder| {
            let files = std::fs::read_dir(&folder).ok()?.flatten();
            let wasm = |entry: &std::fs::DirEntry| {
                entry.path().extension().is_some_and(|extension| extension == "wasm")
            };
            Some(format!("{} in {}", files.filter(wasm).count(), folder.display()))
        })
        .collect();
    let remedy = "build some with `pointsman policy build`, or give a folder with --plugins DIR";
    if found.is_empty() {
        let found = "no plugin folder: only native policies can be used".to_owned();
        return finding("plugins", Verdict::Warn, found, remedy);
    }
    finding("plugins", Verdict::Ok, found.join(", "), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_understood() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("6.1.0"), Some((6, 1)));
        assert_eq!(version("5.15-generic"), Some((5, 15)));
        assert_eq!(version("strange"), None);
    }

    #[test]
    fn the_worst_finding_decides() {
        let of = |verdict| finding("x", verdict, String::new(), "do something");
        assert_eq!(worst(&[of(Verdict::Ok), of(Verdict::Fail), of(Verdict::Warn)]), Verdict::Fail);
        assert_eq!(worst(&[]), Verdict::Ok);
    }

    #[test]
    fn this_machine_can_run_the_tests_that_need_it() {
        let findings = examine(&[]);
        assert!(findings.iter().any(|finding| finding.check == "io_uring"));
        assert!(to_table(&findings).lines().count() > findings.len());
    }
}
