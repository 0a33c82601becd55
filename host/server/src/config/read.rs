//! Text to [`Config`], or to another table, with every wrong key noted instead of the first one only.
//!
//! A deserializer stops at its first error. So a key that it refuses is noted, taken out of the
//! document, and the rest is read again, until nothing is refused. Each round takes out a key, so
//! the rounds end; [`PROBLEMS_MAX`] ends them sooner for a file that is no configuration at all.

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::de::{DeTable, DeValue};

use super::{Config, words};
use crate::problem::Problem;

/// After so many wrong keys the rest is not looked at.
const PROBLEMS_MAX: usize = 100;

/// A file that has been read: what it says, what was wrong, and where each key stands.
#[derive(Debug)]
pub struct Document<T = Config> {
    /// What it says, without the keys that were wrong.
    pub config: T,
    /// What was wrong so far.
    pub problems: Vec<Problem>,
    text: String,
}

impl<T> Document<T> {
    /// Adds what another stage found, drops what only follows from an earlier problem, and puts all
    /// of it in the order of the file.
    pub fn into_problems(self, later: Vec<Problem>) -> Vec<Problem> {
        let mut problems = self.problems;
        for problem in later {
            let follows = |earlier: &Problem| {
                covers(&earlier.key, &problem.key) || misspells(earlier, &problem)
            };
            if !problems.iter().any(follows) {
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

/// Whether `later` misses what stands at `earlier` under a wrong name.
fn misspells(earlier: &Problem, later: &Problem) -> bool {
    let Some((table, name)) = later.key.rsplit_once('.') else { return false };
    later.message.starts_with("is missing")
        && earlier.key.rsplit_once('.').is_some_and(|(of, _)| of == table)
        && earlier.message.ends_with(&format!("did you mean \"{name}\"?"))
}

/// Reads a file. A file that is no TOML gives an empty [`Config`] and says where it is wrong.
pub fn read(text: &str) -> Document {
    read_as(text)
}

/// The same for a file that says something else.
pub fn read_as<T: DeserializeOwned + Default>(text: &str) -> Document<T> {
    let document = |config, problems| Document { config, problems, text: text.to_owned() };
    let (_, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return document(T::default(), errors.iter().map(|error| syntax(text, error)).collect());
    }
    match text.parse::<toml::Table>() {
        Ok(table) => {
            let (config, problems) = read_table(toml::Value::Table(table));
            document(config, problems)
        }
        Err(error) => document(T::default(), vec![syntax(text, &error)]),
    }
}

fn read_table<T: DeserializeOwned + Default>(mut root: toml::Value) -> (T, Vec<Problem>) {
    let mut problems = Vec::new();
    while problems.len() < PROBLEMS_MAX {
        let error = match serde_path_to_error::deserialize::<_, T>(root.clone()) {
            Ok(config) => return (config, problems),
            Err(error) => error,
        };
        let mut steps = steps(error.path());
        let key = render(&steps);
        // What has been put in an element's place may be refused in its turn, which is nobody's
        // mistake.
        if !problems.iter().any(|problem: &Problem| problem.key == key) {
            let message =
                words::explain(error.inner().message(), find(&mut root, &steps).as_deref());
            problems.push(Problem::new(key, message));
        }
        while !take_out(&mut root, &steps) {
            if steps.pop().is_none() {
                return (T::default(), problems);
            }
        }
    }
    (T::deserialize(root).unwrap_or_default(), problems)
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

fn find<'a>(root: &'a mut toml::Value, steps: &[Step]) -> Option<&'a mut toml::Value> {
    steps.iter().try_fold(root, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    })
}

/// Takes the refused value out so that the places of all others stay: a key is removed, an element
/// of a list becomes an empty table, or an empty text if that is refused too. Tells whether that
/// changed anything.
fn take_out(root: &mut toml::Value, steps: &[Step]) -> bool {
    let Some((last, parents)) = steps.split_last() else { return false };
    match (find(root, parents), last) {
        (Some(toml::Value::Table(table)), Step::Key(key)) => table.remove(key).is_some(),
        (Some(toml::Value::Array(items)), Step::Index(index)) => {
            items.get_mut(*index).is_some_and(stand_in)
        }
        _ => false,
    }
}

fn stand_in(element: &mut toml::Value) -> bool {
    *element = match element {
        toml::Value::Table(_) => toml::Value::String(String::new()),
        toml::Value::String(text) if text.is_empty() => return false,
        _ => toml::Value::Table(toml::Table::new()),
    };
    true
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
                "3:1 drain_timeout_ms: is the text \"long\"; write a whole number that is not \
                 negative, without quotes",
                "6:1 listeners[0].adress: there is no such key; did you mean \"address\"?",
                "7:1 listeners[0].max_flows: is the number -1; write a whole number from 0 to \
                 4294967295, without quotes",
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
    fn each_element_of_a_list_of_texts_is_told_once() {
        let text = "[[clusters]]\nhealth = { kind = \"http\", status = [200, \"2xx\", 404] }\n";
        let document = read(text);
        let keys: Vec<_> = document.problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["clusters[0].health.status[0]", "clusters[0].health.status[2]"]);
        let health = document.config.clusters[0].health.as_ref().expect("the rest is read");
        assert_eq!(health.status.as_ref().expect("a list")[1], "2xx");
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
    fn what_is_misspelt_is_not_also_missing() {
        let document = read("[[listeners]]\nadress = \"127.0.0.1:1\"\n");
        let later = ["address", "name"]
            .map(|name| Problem::new(format!("listeners[0].{name}"), "is missing"));
        let problems = document.into_problems(later.into());
        let keys: Vec<_> = problems.iter().map(|problem| &*problem.key).collect();
        assert_eq!(keys, ["listeners[0].name", "listeners[0].adress"]);
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
