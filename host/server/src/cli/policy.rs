//! `pointsman policy`: who decides, and another in his place; and the author's commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pointsman_plugin::{EngineLimits, LoadError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::author::Author;
use super::{Asking, print, print_json, read};
use crate::client;
use crate::failure::Failure;
use crate::swap::answer::SwapAnswer;
use crate::swap::list::PolicyList;
use crate::swap::report::TrialReport;

/// How long a balancer may take over a file: as long as it lets the file be compiled, and more.
const PATIENCE: Duration = Duration::from_secs(240);
/// Between two looks at a shadow.
const LOOK: Duration = Duration::from_millis(200);

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Show every cluster and who decides for it.
    List(Asking),
    /// Put a file in place of what decides for a cluster, or on trial beside it.
    Swap(Swap),
    /// Bring back the file that decided before.
    Rollback(OfCluster),
    /// Show what the file on trial has shown so far.
    Trial(OfCluster),
    /// Let the file that is on trial decide.
    Promote(Promote),
    /// End a trial and forget its file.
    Abort(OfCluster),
    #[command(flatten)]
    Author(Author),
}

/// A cluster, and whom to ask.
#[derive(Debug, Args)]
pub(super) struct OfCluster {
    /// The cluster.
    cluster: String,
    #[command(flatten)]
    asking: Asking,
}

/// A cluster whose file on trial is to decide.
#[derive(Debug, Args)]
pub(super) struct Promote {
    #[command(flatten)]
    of: OfCluster,
    /// Even if it has not answered for any flow yet.
    #[arg(long)]
    force: bool,
}

/// A file for a cluster.
#[derive(Debug, Args)]
pub(super) struct Swap {
    /// The cluster.
    cluster: String,
    /// The plugin: a `.wasm` file.
    file: PathBuf,
    /// Do not let it decide: ask it beside the live policy for so long (such as 30s, 500ms or 5m),
    /// wait, and report.
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "canary")]
    shadow: Option<Duration>,
    /// Let it decide on a share of the flows only; once more with the same file changes the share.
    #[arg(long, value_name = "PERCENT")]
    canary: Option<f64>,
    /// Take it although it was rolled back before because of its faults.
    #[arg(long)]
    lift_quarantine: bool,
    #[command(flatten)]
    asking: Asking,
}

impl Policy {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Author(author) => author.run(),
            Self::List(asking) => list(&asking),
            Self::Swap(swap) => swap.run(),
            Self::Rollback(of) => of.change("rollback", SwapAnswer::to_line),
            Self::Trial(of) => of.show_trial(),
            Self::Promote(Promote { of, force }) => {
                of.change(&format!("promote?force={force}"), SwapAnswer::to_line)
            }
            Self::Abort(of) => of.change("abort", TrialReport::to_text),
        }
    }
}

fn list(asking: &Asking) -> Result<ExitCode, Failure> {
    let answer = ask(asking, "GET", "/v1/policies", &[])?;
    show(asking, &read(&answer)?, PolicyList::to_table)
}

impl OfCluster {
    fn change<T: Serialize + DeserializeOwned>(
        &self,
        what: &str,
        to_text: fn(&T) -> String,
    ) -> Result<ExitCode, Failure> {
        let path = format!("{}/policy/{what}", path_of(&self.cluster));
        show(&self.asking, &read(&ask(&self.asking, "POST", &path, &[])?)?, to_text)
    }

    fn show_trial(&self) -> Result<ExitCode, Failure> {
        show(&self.asking, &trial(&self.asking, &self.cluster)?, TrialReport::to_text)
    }
}

impl Swap {
    fn run(self) -> Result<ExitCode, Failure> {
        let bytes = read_plugin(&self.file)?;
        let mut path =
            format!("{}/policy?lift_quarantine={}", path_of(&self.cluster), self.lift_quarantine);
        if let Some(time) = self.shadow {
            path.push_str(&format!("&shadow_ms={}", time.as_millis()));
        }
        if let Some(percent) = self.canary {
            path.push_str(&format!("&canary={percent}"));
        }
        let answer = ask(&self.asking, "POST", &path, &bytes)?;
        if self.shadow.is_none() && self.canary.is_none() {
            let answers: Vec<SwapAnswer> = read(&answer)?;
            return show(&self.asking, &answers, |answers| {
                answers.iter().map(SwapAnswer::to_line).collect()
            });
        }
        let mut report: TrialReport = read(&answer)?;
        if let Some(time) = self.shadow {
            report = self.await_end(report, time)?;
        }
        show(&self.asking, &report, TrialReport::to_text)
    }

    /// Waits until the shadow is over; one that ends sooner has ended because of its faults, or
    /// because somebody else has ended it.
    fn await_end(&self, begun: TrialReport, time: Duration) -> Result<TrialReport, Failure> {
        let give_up = Instant::now() + time + client::TIMEOUT;
        let mut report = begun;
        while report.stage == "shadow" && Instant::now() < give_up {
            thread::sleep(LOOK);
            let digest = std::mem::take(&mut report.digest);
            report = trial(&self.asking, &self.cluster)?;
            if report.digest != digest {
                return Err(anyhow!("another file is on trial in its place").into());
            }
        }
        Ok(report)
    }
}

/// Says at once what the balancer would say of a file that is too large to be sent.
fn read_plugin(file: &Path) -> Result<Vec<u8>, Failure> {
    let input = |error: String| Failure::input(format!("{}: {error}", file.display()));
    let cannot = |error: std::io::Error| input(format!("cannot be read: {error}"));
    let bytes = fs::metadata(file).map_err(cannot)?.len();
    let (bytes, bytes_max) =
        (usize::try_from(bytes).unwrap_or(usize::MAX), EngineLimits::default().module_bytes_max);
    if bytes > bytes_max {
        return Err(input(LoadError::TooLarge { bytes, bytes_max }.to_string()));
    }
    fs::read(file).map_err(cannot)
}

pub(super) fn path_of(cluster: &str) -> String {
    format!("/v1/clusters/{}", utf8_percent_encode(cluster, NON_ALPHANUMERIC))
}

fn trial(asking: &Asking, cluster: &str) -> Result<TrialReport, Failure> {
    Ok(read(&ask(asking, "GET", &format!("{}/trial", path_of(cluster)), &[])?)?)
}

/// The answer's body. A file or a name that is no good is wrong input; what cannot be done just now
/// is a failure.
pub(super) fn ask(
    asking: &Asking,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<String, Failure> {
    let (code, answer) = asking.send((method, path), body, PATIENCE)?;
    match code {
        200 => Ok(answer),
        400 | 404 | 422 => Err(Failure::input(answer.trim().to_owned())),
        _ => Err(anyhow!("{}", answer.trim()).into()),
    }
}

pub(super) fn show<T: Serialize>(
    asking: &Asking,
    answer: &T,
    to_text: impl FnOnce(&T) -> String,
) -> Result<ExitCode, Failure> {
    if asking.json {
        print_json(answer)?;
    } else {
        print(&to_text(answer));
    }
    Ok(ExitCode::SUCCESS)
}

/// A number with its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis));
    let is_some = millis.filter(|millis| *millis > 0);
    is_some.map(Duration::from_millis).ok_or_else(|| "write such as 30s, 500ms or 5m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_number_and_a_unit() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "30", "s", "0s", "-1s", "1.5s", "1 s", "99999999999999999999s", "1d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
