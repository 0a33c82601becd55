//! The deserializer's messages in the words of whoever wrote the file.
//!
//! It names types of the program (`expected u32`) and its own kinds of values (`floating point`).
//! What stands in the file and what is to be written instead is all that helps.

use toml::Value;

use crate::problem::suggestion;

/// Longer texts are not repeated.
const SHOWN_MAX: usize = 40;

/// Says what is wrong with `found`, the value that was refused with `message`.
pub(super) fn explain(message: &str, found: Option<&Value>) -> String {
    let message = message.trim();
    let names: Vec<_> = message.split('`').skip(1).step_by(2).collect();
    match (names.split_first(), message.split_once(", expected ")) {
        (Some((wrong, known)), _) if message.starts_with("unknown field") => {
            format!("there is no such key{}", suggestion(wrong, known.iter().copied()))
        }
        (Some((wrong, known)), _) if message.starts_with("unknown variant") => {
            format!("\"{wrong}\" is not possible here{}", suggestion(wrong, known.iter().copied()))
        }
        (_, Some((_, wanted))) => {
            let is = found.map_or_else(|| "is of the wrong kind".to_owned(), describe);
            format!("{is}; write {}", demand(wanted, found))
        }
        _ => message.lines().next().unwrap_or("is wrong").to_owned(),
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() <= SHOWN_MAX => format!("is the text {text:?}"),
        Value::String(_) => "is a text".to_owned(),
        Value::Integer(number) => format!("is the number {number}"),
        Value::Float(number) => format!("is the number {number}"),
        Value::Boolean(truth) => format!("is {truth}"),
        Value::Datetime(date) => format!("is the date {date}"),
        Value::Array(_) => "is a list".to_owned(),
        Value::Table(_) => "is a table".to_owned(),
    }
}

/// What is to be written where the deserializer wants this.
fn demand(wanted: &str, found: Option<&Value>) -> String {
    let whole = |most: u64| format!("a whole number from 0 to {most}, without quotes");
    match wanted {
        "u8" => whole(u64::from(u8::MAX)),
        "u16" => whole(u64::from(u16::MAX)),
        "u32" => whole(u64::from(u32::MAX)),
        "u64" | "usize" => "a whole number that is not negative, without quotes".to_owned(),
        "f32" | "f64" => "a number, without quotes".to_owned(),
        "a boolean" => "true or false, without quotes".to_owned(),
        "a sequence" => "a list in brackets, as in [ … ]".to_owned(),
        "a map" => "a table, as in { key = … }".to_owned(),
        _ if wanted.starts_with("struct") => "a table, as in { key = … }".to_owned(),
        _ if wanted.contains("string") => text_of(found),
        _ => wanted.to_owned(),
    }
}

/// A number that is to be a text only lacks its quotes.
fn text_of(found: Option<&Value>) -> String {
    match found {
        Some(Value::Integer(number)) => format!("text in quotes, such as \"{number}\""),
        Some(Value::Float(number)) => format!("text in quotes, such as \"{number}\""),
        _ => "text in quotes, as in \"…\"".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_the_wrong_kind_is_told_in_words_of_the_file() {
        for (message, found, expected) in [
            (
                "invalid type: string \"x\", expected u16",
                Value::from("x"),
                "is the text \"x\"; write a whole number from 0 to 65535, without quotes",
            ),
            (
                "invalid value: integer `-1`, expected u64",
                Value::from(-1),
                "is the number -1; write a whole number that is not negative, without quotes",
            ),
            (
                "invalid type: integer `200`, expected a string",
                Value::from(200),
                "is the number 200; write text in quotes, such as \"200\"",
            ),
            (
                "invalid type: string \"yes\", expected a boolean",
                Value::from("yes"),
                "is the text \"yes\"; write true or false, without quotes",
            ),
            (
                "invalid type: boolean `true`, expected struct Health",
                Value::from(true),
                "is true; write a table, as in { key = … }",
            ),
            (
                "invalid type: map, expected a sequence",
                Value::Table(toml::Table::new()),
                "is a table; write a list in brackets, as in [ … ]",
            ),
        ] {
            assert_eq!(explain(message, Some(&found)), expected);
        }
    }
}
