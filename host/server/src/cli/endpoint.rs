//! `pointsman endpoint`: who serves in a cluster, and changes to that while it serves.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::policy::{ask, path_of, show};
use super::{Asking, read};
use crate::endpoints::Request;
use crate::failure::Failure;
use crate::problem::Problem;
use crate::status::{self, Endpoint as Shown};

/// The subcommands. Each that changes something is carried out for all the endpoints it names, or
/// for none.
#[derive(Debug, Subcommand)]
pub(super) enum Endpoint {
    /// Show the endpoints of a cluster; those that were removed are shown while they have flows.
    List {
        /// The cluster.
        cluster: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Let endpoints serve that did not; where there are health checks, once they have passed one.
    Add {
        #[command(flatten)]
        which: Which,
        /// Their share relative to the others.
        #[arg(long, default_value_t = 1)]
        weight: u32,
        /// Use them only where no other is available.
        #[arg(long)]
        backup: bool,
        /// Flows each may have at a time; 0 is no limit.
        #[arg(long, value_name = "N", default_value_t = 0)]
        max_flows: u32,
    },
    /// Give endpoints nothing new and forget them; their flows do what `on_endpoint_down` says.
    Remove {
        #[command(flatten)]
        which: Which,
    },
    /// Give endpoints another share.
    Weight {
        #[command(flatten)]
        which: Which,
        /// Their share relative to the others, 1 to 65535.
        weight: u32,
    },
    /// Give endpoints another limit of flows; those they have go on.
    MaxFlows {
        #[command(flatten)]
        which: Which,
        /// Flows each may have at a time, 0 to 10000000; 0 is no limit.
        max_flows: u32,
    },
    /// Give endpoints nothing new; their flows go on.
    Drain {
        #[command(flatten)]
        which: Which,
    },
    /// Give endpoints that drain new flows again.
    Undrain {
        #[command(flatten)]
        which: Which,
    },
}

/// Endpoints, and whom to ask.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The cluster.
    cluster: String,
    /// The endpoints, each as address:port.
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<String>,
    #[command(flatten)]
    asking: Asking,
}

impl Endpoint {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let none = Request::default();
        match self {
            Self::List { cluster, asking } => tell(&asking, "GET", &cluster, &[]),
            Self::Add { which, weight, backup, max_flows } => {
                let (weight, backup) = (Some(weight), Some(backup));
                let keys = Request { weight, backup, max_flows: Some(max_flows), ..none };
                which.change("POST", &keys)
            }
            Self::Remove { which } => which.change("DELETE", &none),
            Self::Weight { which, weight } => {
                which.change("PATCH", &Request { weight: Some(weight), ..none })
            }
            Self::MaxFlows { which, max_flows } => {
                which.change("PATCH", &Request { max_flows: Some(max_flows), ..none })
            }
            Self::Drain { which } => {
                which.change("PATCH", &Request { draining: Some(true), ..none })
            }
            Self::Undrain { which } => {
                which.change("PATCH", &Request { draining: Some(false), ..none })
            }
        }
    }
}

impl Which {
    fn change(self, method: &str, keys: &Request) -> Result<ExitCode, Failure> {
        let request = Request { addresses: self.addresses, ..keys.clone() };
        let body = serde_json::to_vec(&request).map_err(anyhow::Error::from)?;
        tell(&self.asking, method, &self.cluster, &body)
    }
}

/// Asks, and prints the endpoints as they are afterwards.
fn tell(asking: &Asking, method: &str, cluster: &str, body: &[u8]) -> Result<ExitCode, Failure> {
    let path = format!("{}/endpoints", path_of(cluster));
    let answer = ask(asking, method, &path, body).map_err(each_line)?;
    let endpoints: Vec<Shown> = read(&answer)?;
    show(asking, &endpoints, |endpoints| status::endpoints_table(endpoints))
}

/// One mistake in a line of its own each.
fn each_line(failure: Failure) -> Failure {
    match failure {
        Failure::Input(problems) => {
            let lines = problems.iter().flat_map(|problem| problem.message.lines());
            Failure::Input(lines.map(|line| Problem::new("", line)).collect())
        }
        fault @ Failure::Fault(_) => fault,
    }
}
