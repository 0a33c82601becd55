//! `policy test`: what a balancer asks of any policy, before it is one's own that it asks.
//!
//! Each check is a story that a policy of whichever shape lives through: lists that grow, shrink and
//! turn around, clients of every kind, endpoints that fail, a hundred thousand questions. It must
//! have an answer each time that holds, and the same one when the story is told again; nothing that
//! it is told comes from a clock or from chance. What an answer costs is counted in the runtime's
//! fuel, about one per instruction, which is the same on every machine and can be held to a limit.

mod cases;
mod subject;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pointsman_plugin::{EngineLimits, LogLine, Module, Profile, Shape};
use serde::Serialize;

use self::cases::Cases;
use self::subject::{Answer, Subject};
use super::inspect::load;
use crate::failure::Failure;
use crate::table::Table;

/// Lengths of lists that every policy must cope with.
const LENGTHS: [usize; 5] = [1, 2, 3, 10, 1_000];
/// The length where nothing else is asked for.
const LENGTH: usize = 10;
/// How much a policy's memory may still grow once it has seen everything: one page, for luck.
const GROWTH_MAX: usize = 64 << 10;

/// What is asked for.
#[derive(Debug)]
pub struct Request<'a> {
    /// The policy.
    pub file: &'a Path,
    /// What it may import beside the interface.
    pub profile: Profile,
    /// Its `config` as JSON; `null` if it has none.
    pub config: &'a str,
    /// The most fuel that an answer may cost, if there is a limit.
    pub fuel_max: Option<u64>,
}

/// What came of a check.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// Whether the policy passed.
    pub passed: bool,
    /// What was seen, or what went wrong.
    pub found: String,
}

/// Everything that came out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// By check.
    pub findings: Vec<Finding>,
    /// What an answer cost at most, with ten endpoints.
    pub fuel: Option<u64>,
    /// What an answer took on this machine, on average. Only for information.
    pub nanoseconds: Option<u64>,
}

impl Report {
    /// Whether every check was passed.
    pub fn passed(&self) -> bool {
        self.findings.iter().all(|finding| finding.passed)
    }

    /// For a person.
    pub fn to_table(&self) -> String {
        let mut table = Table::new(&["CHECK", "VERDICT", "FOUND"]);
        for Finding { check, passed, found } in &self.findings {
            let verdict = if *passed { "ok" } else { "fail" };
            table.row([(*check).to_owned(), verdict.to_owned(), found.clone()]);
        }
        table.to_string()
    }
}

/// Makes all checks. What the policy logs goes to standard error.
///
/// # Errors
/// If the file is no policy for this balancer, or refuses the config.
pub fn examine(request: &Request<'_>) -> Result<Report, Failure> {
    let counting = EngineLimits { counts_fuel: true, instances_max: 8, ..EngineLimits::default() };
    let show = |line: LogLine| eprintln!("{:?}: {}", line.level, line.message);
    let module = load(request.file, request.profile, counting, Arc::new(show))?;
    let suite = Suite { module, config: request.config };
    suite.subject(LENGTH).map_err(Failure::input)?;
    let mut findings = vec![suite.loaded()];
    let mut run = |check, outcome: Result<String, String>| {
        let (passed, found) = match outcome {
            Ok(found) => (true, found),
            Err(found) => (false, found),
        };
        findings.push(Finding { check, passed, found });
    };
    run("any number of endpoints", suite.takes_any_number_of_endpoints());
    run("every kind of flow", suite.takes_every_kind_of_flow());
    run("retries", suite.avoids_what_has_failed());
    run("changes of the list", suite.survives_changes());
    run("feedback and state", suite.hears_and_hands_over());
    run("config schema", suite.tells_its_schema());
    run("same again", suite.answers_the_same_again());
    run("memory", suite.keeps_its_memory());
    let fuel = suite.fuel();
    findings.push(cost(&fuel, request.fuel_max));
    let nanoseconds = nanoseconds(request);
    findings.push(Finding {
        check: "time",
        passed: nanoseconds.is_ok(),
        found: nanoseconds.as_ref().map_or_else(Clone::clone, |it| format!("{it} ns on average")),
    });
    let fuel = fuel.ok();
    Ok(Report { findings, fuel, nanoseconds: nanoseconds.ok() })
}

fn cost(fuel: &Result<u64, String>, fuel_max: Option<u64>) -> Finding {
    let passed = fuel.as_ref().is_ok_and(|fuel| fuel_max.is_none_or(|max| *fuel <= max));
    let found = match (fuel, fuel_max) {
        (Err(found), _) => found.clone(),
        (Ok(fuel), Some(max)) => format!("at most {fuel} fuel an answer, {max} are allowed"),
        (Ok(fuel), None) => format!("at most {fuel} fuel an answer"),
    };
    Finding { check: "cost", passed, found }
}

/// How long an answer takes, where nothing is counted.
fn nanoseconds(request: &Request<'_>) -> Result<u64, String> {
    const ANSWERS: usize = 2_000;
    let limits = EngineLimits { instances_max: 2, ..EngineLimits::default() };
    let module = load(request.file, request.profile, limits, Arc::new(|_| {}));
    let module = module.map_err(|it| it.lines().join("; "))?;
    let answers = if module.shape() == Shape::Chooser { ANSWERS } else { ANSWERS / 100 };
    let suite = Suite { module, config: request.config };
    let (mut subject, mut cases) = (suite.subject(LENGTH)?, Cases::new(LENGTH));
    subject.ask(&cases.next())?;
    let begun = Instant::now();
    for _ in 0..answers {
        subject.ask(&cases.next())?;
    }
    let average = begun.elapsed().as_nanos() / answers as u128;
    u64::try_from(average).map_err(|_| "forever".to_owned())
}

/// The checks.
struct Suite<'a> {
    module: Module,
    config: &'a str,
}

impl Suite<'_> {
    fn subject(&self, length: usize) -> Result<Subject, String> {
        Subject::new(&self.module, self.config, None, &Cases::new(length).list())
    }

    /// A table is made once for each list and costs as much as thousands of decisions.
    fn times(&self, decisions: usize) -> usize {
        match self.module.shape() {
            Shape::Chooser => decisions,
            Shape::Weights => decisions / 10,
            Shape::Table => decisions / 200,
        }
        .max(2)
    }

    fn loaded(&self) -> Finding {
        let kibibytes = self.module.size_bytes() as f64 / 1024.0;
        let found = format!("a {} of {kibibytes:.1} KiB, configured", self.module.shape());
        Finding { check: "loading", passed: true, found }
    }

    fn takes_any_number_of_endpoints(&self) -> Result<String, String> {
        for length in LENGTHS {
            let (mut subject, mut cases) = (self.subject(length)?, Cases::new(length));
            for _ in 0..self.times(1_000) {
                let answer = subject.ask(&cases.next());
                answer.map_err(|error| format!("with {length} endpoints: {error}"))?;
            }
        }
        Ok("1, 2, 3, 10 and 1000".into())
    }

    fn takes_every_kind_of_flow(&self) -> Result<String, String> {
        let (mut subject, mut cases) = (self.subject(LENGTH)?, Cases::new(LENGTH));
        let kinds = cases.of_every_kind();
        for (kind, case) in &kinds {
            subject.ask(case).map_err(|error| format!("{kind}: {error}"))?;
        }
        Ok(format!("{} of them", kinds.len()))
    }

    fn avoids_what_has_failed(&self) -> Result<String, String> {
        if self.module.shape() != Shape::Chooser {
            return Ok("the balancer's own work in this shape".into());
        }
        for length in [1, 2, 3, LENGTH] {
            let (mut subject, mut cases) = (self.subject(length)?, Cases::new(length));
            for _ in 0..200 {
                fail_again_and_again(&mut subject, &mut cases, length.min(4))?;
            }
        }
        Ok("to others while there are others".into())
    }

    fn survives_changes(&self) -> Result<String, String> {
        let (mut subject, mut cases) = (self.subject(LENGTH)?, Cases::new(LENGTH));
        let changes = self.times(10_000);
        for change in 0..changes {
            cases.change();
            // Some changes come so fast that no flow is between them.
            if change % 3 != 0 {
                let answer = subject.ask(&cases.next());
                answer.map_err(|error| format!("after {change} changes: {error}"))?;
            }
        }
        Ok(format!("{changes} of them"))
    }

    fn hears_and_hands_over(&self) -> Result<String, String> {
        let (mut subject, mut cases) = (self.subject(LENGTH)?, Cases::new(LENGTH));
        for _ in 0..self.times(1_000) {
            let case = cases.next();
            let answer = subject.ask(&case)?;
            subject.end_flow(&case, &answer);
            subject.tick(&case)?;
        }
        if !self.module.has_state() {
            let heard = if self.module.has_feedback() { "hears of ends; " } else { "" };
            return Ok(format!("{heard}hands nothing over"));
        }
        let state = subject.state()?.ok_or("it hands nothing over, though it says that it does")?;
        let list = cases.list();
        let mut successor = Subject::new(&self.module, self.config, Some(&state), &list)
            .map_err(|error| format!("it refuses its own state: {error}"))?;
        for _ in 0..self.times(1_000) {
            successor.ask(&cases.next())?;
        }
        Ok(format!("hands over {} bytes", state.len()))
    }

    fn tells_its_schema(&self) -> Result<String, String> {
        let schema = self.module.config_schema().map_err(|error| error.to_string())?;
        let Some(schema) = schema else { return Ok("not told".into()) };
        let schema: serde_json::Value =
            serde_json::from_str(&schema).map_err(|error| format!("is no JSON: {error}"))?;
        if !schema.is_object() {
            return Err("is no JSON object".into());
        }
        let keys = schema["properties"].as_object().map_or(0, serde_json::Map::len);
        Ok(format!("{keys} keys"))
    }

    /// Two instances live through the same story, and must answer alike.
    fn answers_the_same_again(&self) -> Result<String, String> {
        let story = || -> Result<Vec<Answer>, String> {
            let (mut subject, mut cases) = (self.subject(LENGTH)?, Cases::new(LENGTH));
            let mut answers = Vec::new();
            for step in 0..self.times(3_000) {
                if step % 100 == 99 {
                    cases.change();
                }
                let case = cases.next();
                let answer = subject.ask(&case)?;
                subject.end_flow(&case, &answer);
                subject.tick(&case)?;
                answers.push(answer);
            }
            Ok(answers)
        };
        let (once, again) = (story()?, story()?);
        match once.iter().zip(&again).position(|(one, other)| one != other) {
            Some(step) => Err(format!("answer {step} is another the second time")),
            None => Ok(format!("{} answers", once.len())),
        }
    }

    fn keeps_its_memory(&self) -> Result<String, String> {
        let (mut subject, mut cases) = (self.subject(LENGTH)?, Cases::new(LENGTH));
        let answers = self.times(100_000);
        let mut settled = 0;
        for step in 0..answers {
            if step == answers / 5 {
                settled = subject.memory_bytes();
            }
            let case = cases.next();
            let answer = subject.ask(&case)?;
            subject.end_flow(&case, &answer);
            if step % 100 == 0 {
                subject.tick(&case)?;
            }
        }
        let end = subject.memory_bytes();
        if end > settled + GROWTH_MAX {
            let grown = (end - settled) >> 10;
            return Err(format!(
                "grew by {grown} KiB in the last four fifths of {answers} answers"
            ));
        }
        Ok(format!("{} KiB after {answers} answers", end >> 10))
    }

    /// The most that an answer costs. The first one is not counted: it also hears of the list.
    fn fuel(&self) -> Result<u64, String> {
        let (mut subject, mut cases) = (self.subject(LENGTH)?, Cases::new(LENGTH));
        subject.ask(&cases.next())?;
        let mut most = 0;
        for _ in 0..self.times(1_000) {
            subject.ask(&cases.next())?;
            most = most.max(subject.fuel_used().ok_or("the runtime counts nothing")?);
        }
        Ok(most)
    }
}

/// A flow that reaches nobody.
fn fail_again_and_again(
    subject: &mut Subject,
    cases: &mut Cases,
    attempts: usize,
) -> Result<(), String> {
    let mut case = cases.next();
    for _ in 0..attempts {
        let Answer::Decided { endpoint: Some(endpoint), .. } = subject.ask(&case)? else {
            return Ok(());
        };
        cases.retry(&mut case, endpoint);
    }
    subject.ask(&case).map(drop)
}
