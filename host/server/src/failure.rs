//! How the program fails: by its input, or by the world around it.

use std::process::ExitCode;

use crate::problem::Problem;

/// Why a command could not be carried out.
#[derive(Debug)]
pub enum Failure {
    /// What it was given is wrong; exit code 2.
    Input(Vec<Problem>),
    /// Something else went wrong; exit code 1.
    Fault(anyhow::Error),
}

impl Failure {
    /// One thing that is wrong with the input.
    pub fn input(problem: impl Into<Problem>) -> Self {
        Self::Input(vec![problem.into()])
    }

    /// The process' exit code.
    pub fn code(&self) -> ExitCode {
        match self {
            Self::Input(_) => ExitCode::from(2),
            Self::Fault(_) => ExitCode::FAILURE,
        }
    }

    /// One line per thing that went wrong.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Input(problems) => problems.iter().map(ToString::to_string).collect(),
            Self::Fault(error) => vec![format!("{error:#}")],
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Fault(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Fault(error.into())
    }
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Self::new("", message)
    }
}
