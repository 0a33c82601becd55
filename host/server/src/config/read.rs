//! Text to [`Config`], with every wrong key noted instead of the first one only.
//!
//! A deserializer stops at its first error. So a key that it refuses is noted, taken out of the
//! document, and the rest is read again, until nothing is refused. Each round takes out a key, so
//! the rounds end; [`PROBLEMS_MAX`] ends them sooner for a file that is no configuration at all.

use serde::Deserialize;
use serde_path_to_error::Segment;
use toml::de::{DeTable, DeValue};

use super::Config;
use crate::problem::{Problem, suggestion};

/// After so many wrong keys the rest is not looked at.
const PROBLEMS_MAX: usize = 100;

/// A file that has been read: what it says, what was wrong, and where each key stands.
#[derive(Debug)]
pub struct Document {
    /// What it says, without the keys that were wrong.
    pub config: Config,
    /// What was wrong so far.
    pub problems: Vec<Problem>,
    text: String,
}

impl Document {
    /// Adds what another stage found, drops what only follows from an earlier problem, and puts all
    /// of it in the order of the file.
    pub fn into_problems(self, later: Vec<Problem>) -> Vec<Problem> {
        let mut problems = self.problems;
        for problem in later {
            if !problems.iter().any(|earlier| covers(&earlier.key, &problem.key)) {
                problems.push(problem);
            }
        }
        let (root, _) = DeTable::parse_recoverable(&self.text);
        for problem in &mut problems {
            problem.place =
                problem.place.or_else(|| place(&self.text, root.get_ref(), &problem.key));
        }
        problems.sort_by_key(|problem| problem.place.unwrap_or((usize::MAX, 0)));
        problems
    }
}

/// Whether a problem at `earlier` explains one at `later`; one of the whole file explains all.
fn covers(earlier: &str, later: &str) -> bool {
    earlier.is_empty()
        || later
            .strip_prefix(earlier)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Reads a file. A file that is no TOML gives an empty [`Config`] and says where it is wrong.
pub fn read(text: &str) -> Document {
    let document = |config, problems| Document { config, problems, text: text.to_owned() };
    let (_, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return document(
            Config::default(),
            errors.iter().map(|error| syntax(text, error)).collect(),
        );
    }
    match text.parse::<toml::Table>() {
        Ok(table) => {
            let (config, problems) = read_table(toml::Value::Table(table));
            document(config, problems)
        }
        Err(error) => document(Config::default(), vec![syntax(text, &error)]),
    }
}

fn read_table(mut root: toml::Value) -> (Config, Vec<Problem>) {
    let mut problems = Vec::new();
    while problems.len() < PROBLEMS_MAX {
        let error = match serde_path_to_error::deserialize::<_, Config>(root.clone()) {
            Ok(config) => return (config, problems),
            Err(error) => error,
        };
        let mut steps = steps(error.path());
        problems.push(Problem::new(render(&steps), explain(error.inner().message())));
        while !take_out(&mut root, &steps) {
            if steps.pop().is_none() {
                return (Config::default(), problems);
            }
        }
    }
    (Config::deserialize(root).unwrap_or_default(), problems)
}

/// One step from a value to a value in it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn render(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.extend([".", key]),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Takes the refused value out so that the places of all others stay: a key is removed, an element
/// of a list becomes an empty table. Tells whether that changed anything.
fn take_out(root: &mut toml::Value, steps: &[Step]) -> bool {
    let Some((last, parents)) = steps.split_last() else { return false };
    let parent = parents.iter().try_fold(root, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    });
    match (parent, last) {
        (Some(toml::Value::Table(table)), Step::Key(key)) => table.remove(key).is_some(),
        (Some(toml::Value::Array(items)), Step::Index(index)) => match items.get_mut(*index) {
            Some(item) if !item.is_table() => {
                *item = toml::Value::Table(toml::Table::new());
                true
            }
            _ => false,
        },
        _ => false,
    }
}

/// The deserializer's words, made ours where it lists names.
fn explain(message: &str) -> String {
    let message = message.trim();
    let names: Vec<_> = message.split('`').skip(1).step_by(2).collect();
    match names.split_first() {
        Some((wrong, known)) if message.starts_with("unknown field") => {
            format!("there is no such key{}", suggestion(wrong, known.iter().copied()))
        }
        Some((wrong, known)) if message.starts_with("unknown variant") => {
            format!("\"{wrong}\" is not possible here{}", suggestion(wrong, known.iter().copied()))
        }
        _ => message.lines().next().unwrap_or("is wrong").to_owned(),
    }
}

fn syntax(text: &str, error: &toml::de::Error) -> Problem {
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    let place = error.span().map(|span| line_and_column(text, span.start));
    Problem { key: String::new(), place, message }
}

/// Where a key stands in the text, or the nearest thing around it that does.
fn place(text: &str, root: &DeTable<'_>, key: &str) -> Option<(usize, usize)> {
    let mut offset = None;
    let mut here: Option<&DeValue<'_>> = None;
    for step in parse(key) {
        let found = match (&step, here) {
            (Step::Key(key), None) => root.get_key_value(key.as_str()),
            (Step::Key(key), Some(DeValue::Table(table))) => table.get_key_value(key.as_str()),
            (Step::Index(index), Some(DeValue::Array(items))) => {
                let Some(item) = items.get(*index) else { break };
                offset = Some(item.span().start);
                here = Some(item.get_ref());
                continue;
            }
            _ => None,
        };
        let Some((key, value)) = found else { break };
        offset = Some(key.span().start);
        here = Some(value.get_ref());
    }
    offset.map(|offset| line_and_column(text, offset))
}

fn parse(key: &str) -> Vec<Step> {
    key.split(['.', '['])
        .filter(|part| !part.is_empty())
        .map(|part| match part.strip_suffix(']').and_then(|index| index.parse().ok()) {
            Some(index) => Step::Index(index),
            None => Step::Key(part.to_owned()),
        })
        .collect()
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let problems = read(text).into_problems(Vec::new());
        problems
            .iter()
            .map(|problem| {
                let (line, column) = problem.place.unwrap_or_default();
                format!("{line}:{column} {problem}")
            })
            .collect()
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        let document = read("");
        assert_eq!(document.config.drain_timeout_ms, 30_000);
        assert!(document.problems.is_empty());
    }

    #[test]
    fn one_wrong_key_does_not_hide_the_next() {
        let text = r#"
wokers = 2
drain_timeout_ms = "long"
[[listeners]]
name = "web"
adress = "127.0.0.1:1"
max_flows = -1
protocol = "tpc"
"#;
        assert_eq!(
            problems(text),
            [
                "2:1 wokers: there is no such key; did you mean \"workers\"?",
                "3:1 drain_timeout_ms: invalid type: string \"long\", expected u64",
                "6:1 listeners[0].adress: there is no such key; did you mean \"address\"?",
                "7:1 listeners[0].max_flows: invalid value: integer `-1`, expected u32",
                "8:1 listeners[0].protocol: \"tpc\" is not possible here; did you mean \"tcp\"?",
            ]
        );
    }

    #[test]
    fn an_element_of_the_wrong_type_does_not_move_the_others() {
        let text = "[[clusters]]\nname = \"a\"\nendpoints = [\"x\", { adress = \"y\" }]\n";
        let document = read(text);
        assert_eq!(document.config.clusters[0].endpoints.len(), 2);
        let keys: Vec<_> = document.problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["clusters[0].endpoints[0]", "clusters[0].endpoints[1].adress"]);
    }

    #[test]
    fn a_later_problem_that_follows_from_an_earlier_one_is_not_told() {
        let document = read("[[listeners]]\nname = 5\n");
        let later = vec![
            Problem::new("listeners[0].name", "is missing"),
            Problem::new("listeners[0].name_more", "is its own"),
        ];
        let keys: Vec<_> = document.into_problems(later).into_iter().map(|p| p.key).collect();
        assert_eq!(keys, ["listeners[0].name_more", "listeners[0].name"]);
    }

    #[test]
    fn text_that_is_no_toml_is_refused_with_its_place() {
        let found = problems("workers = \n[[listeners]\n");
        assert!(found[0].starts_with("1:"), "{found:?}");
    }

    #[test]
    fn a_file_of_nothing_but_mistakes_ends() {
        let text: String = (0..500).map(|key| format!("wrong{key} = 1\n")).collect();
        assert_eq!(read(&text).problems.len(), PROBLEMS_MAX);
    }
}
