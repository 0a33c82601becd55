//! `pointsman policy new|build|test|inspect`: the path of a policy's author.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use pointsman_plugin::{Profile, Shape};

use super::{print, print_json};
use crate::author::conformance::{self, Request};
use crate::author::{build, inspect, scaffold};
use crate::failure::Failure;

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(super) enum Author {
    /// Make the crate of a new policy, with an example in it and the SDK beside it.
    New {
        /// The folder to make; its last name is the policy's.
        #[arg(value_name = "NAME")]
        folder: PathBuf,
        /// What the policy is asked for: each flow, a table for each list of endpoints, or weights.
        #[arg(long, value_enum, default_value_t = ShapeName::Chooser)]
        shape: ShapeName,
    },
    /// Build a policy's crate to a `.wasm` file.
    Build {
        /// The folder of the crate.
        #[arg(value_name = "DIR", default_value = ".")]
        dir: PathBuf,
        /// Where to leave it; beside the manifest by default.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Hold a policy against everything that a balancer asks of one.
    Test {
        /// The `.wasm` file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Its config.
        #[arg(long, value_name = "JSON", default_value = "null")]
        config: String,
        /// The `profile` that it will have.
        #[arg(long, value_enum, default_value_t = ProfileName::Strict)]
        profile: ProfileName,
        /// Fail if an answer costs more fuel than this; it is the same on every machine.
        #[arg(long, value_name = "N")]
        fuel_max: Option<u64>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tell what a `.wasm` file is: shape, imports, size, digest, config.
    Inspect {
        /// The `.wasm` file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The `profile` that it will have.
        #[arg(long, value_enum, default_value_t = ProfileName::Strict)]
        profile: ProfileName,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// A profile as one types it.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ProfileName {
    Strict,
    Compat,
}

impl From<ProfileName> for Profile {
    fn from(name: ProfileName) -> Self {
        match name {
            ProfileName::Strict => Self::Strict,
            ProfileName::Compat => Self::Compat,
        }
    }
}

/// A shape as one types it.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ShapeName {
    Chooser,
    Table,
    Weights,
}

impl From<ShapeName> for Shape {
    fn from(name: ShapeName) -> Self {
        match name {
            ShapeName::Chooser => Self::Chooser,
            ShapeName::Table => Self::Table,
            ShapeName::Weights => Self::Weights,
        }
    }
}

impl Author {
    /// Does what is asked for.
    pub(super) fn run(&self) -> Result<ExitCode, Failure> {
        match self {
            Self::New { folder, shape } => {
                scaffold::create(folder, (*shape).into())?;
                let folder = folder.display();
                print(&format!("made {folder}; next: cd {folder} && pointsman policy build\n"));
            }
            Self::Build { dir, out } => {
                let built = build::build(dir, out.as_deref())?;
                let kibibytes = built.bytes as f64 / 1024.0;
                print(&format!("{} {kibibytes:.1} KiB\n", built.file.display()));
            }
            Self::Test { file, config, profile, fuel_max, json } => {
                let profile = (*profile).into();
                let request = Request { file, profile, config, fuel_max: *fuel_max };
                return test(&request, *json);
            }
            Self::Inspect { file, profile, json } => {
                let inspection = inspect::inspect(file, (*profile).into())?;
                if *json {
                    print_json(&inspection)?;
                } else {
                    print(&inspection.to_text());
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn test(request: &Request<'_>, json: bool) -> Result<ExitCode, Failure> {
    if let Err(error) = serde_json::from_str::<serde_json::Value>(request.config) {
        return Err(Failure::input(format!("--config is no JSON: {error}")));
    }
    let report = conformance::examine(request)?;
    if json {
        print_json(&report)?;
    } else {
        print(&report.to_table());
    }
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
