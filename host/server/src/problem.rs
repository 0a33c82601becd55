//! What is wrong with a configuration, in words for the person who wrote it.

use std::fmt;
use std::path::Path;

/// One thing that has to be changed before the configuration can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, such as `clusters[1].policy`; empty if it is the file itself.
    pub key: String,
    /// Line and column, both from 1, if the key stands in the file.
    pub place: Option<(usize, usize)>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Problem {
    /// Makes a problem whose place is not known yet.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), place: None, message: message.into() }
    }

    /// The problem as one line, led by the file's name.
    pub fn in_file(&self, file: &Path) -> String {
        match self.place {
            Some((line, column)) => format!("{}:{line}:{column}: {self}", file.display()),
            None => format!("{}: {self}", file.display()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// `; did you mean "x"?` if one of the names resembles the wrong one, else the names themselves.
pub fn suggestion<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    let nearest = names
        .iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(wrong, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, name)) if likeness >= 0.6 => format!("; did you mean \"{name}\"?"),
        Some(_) if names.len() <= 16 => format!("; known are {}", quoted(&names)),
        _ => String::new(),
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_resembles_a_known_one_is_suggested() {
        assert_eq!(suggestion("wbe", ["api", "web"]), "; did you mean \"web\"?");
    }

    #[test]
    fn a_name_that_resembles_none_is_answered_with_all_of_them() {
        assert_eq!(suggestion("x", ["api", "web"]), "; known are \"api\", \"web\"");
    }

    #[test]
    fn nothing_is_suggested_where_nothing_is_known() {
        assert_eq!(suggestion("x", []), "");
    }
}
