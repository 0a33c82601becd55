//! `pointsman flows`: what the workers keep, one of them, or one fewer.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, Subcommand};

use super::{Asking, print, print_json, read};
use crate::client;
use crate::failure::Failure;
use crate::flows::{FlowId, Page, Query, Search, Shown};

/// The arguments.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Flows {
    #[command(flatten)]
    asking: Asking,
    #[command(flatten)]
    query: Query,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all that is known of one.
    Show {
        /// Its ID, as the list shows it.
        id: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// End a flow, or give up a kept decision.
    Forget {
        /// Its ID, as the list shows it.
        id: String,
        #[command(flatten)]
        asking: Asking,
    },
}

impl Flows {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        match self.action {
            None => list(&self.asking, self.query),
            Some(Action::Show { id, asking }) => show(&asking, parse(&id)?),
            Some(Action::Forget { id, asking }) => forget(&asking, parse(&id)?),
        }
    }
}

fn parse(id: &str) -> Result<FlowId, Failure> {
    id.parse().map_err(|problem: String| Failure::input(problem))
}

/// A page of the balancer may end before it is full, so it is asked on.
fn list(asking: &Asking, mut query: Query) -> Result<ExitCode, Failure> {
    let mut all = Page { flows: Vec::new(), next: None };
    let limit = query.limit.as_ref().and_then(|limit| limit.parse().ok());
    let limit = limit.unwrap_or(Search::LIMIT_DEFAULT);
    loop {
        let path = format!("/v1/flows?{}", query.to_text());
        let page: Page = read(&ask(asking, "GET", &path)?)?;
        all.flows.extend(page.flows);
        all.next = page.next;
        if all.flows.len() >= limit || all.next.is_none() {
            break;
        }
        query.page.clone_from(&all.next);
        query.limit = Some((limit - all.flows.len()).to_string());
    }
    if asking.json {
        print_json(&all)?;
    } else {
        print(&all.to_table());
    }
    Ok(ExitCode::SUCCESS)
}

fn show(asking: &Asking, id: FlowId) -> Result<ExitCode, Failure> {
    let shown: Shown = read(&ask(asking, "GET", &format!("/v1/flows/{id}"))?)?;
    if asking.json {
        print_json(&shown)?;
    } else {
        print(&shown.to_table());
    }
    Ok(ExitCode::SUCCESS)
}

fn forget(asking: &Asking, id: FlowId) -> Result<ExitCode, Failure> {
    let answer = ask(asking, "DELETE", &format!("/v1/flows/{id}"))?;
    if asking.json {
        print_json(&serde_json::json!({ "forgotten": id.to_string() }))?;
    } else {
        print(&answer);
    }
    Ok(ExitCode::SUCCESS)
}

/// The answer's body. What the balancer calls a bad request is wrong input.
fn ask(asking: &Asking, method: &str, path: &str) -> Result<String, Failure> {
    let (code, body) = asking.send((method, path), &[], client::TIMEOUT)?;
    match code {
        200 => Ok(body),
        400 => Err(Failure::input(body.trim().to_owned())),
        _ => Err(anyhow!("{}", body.trim()).into()),
    }
}
