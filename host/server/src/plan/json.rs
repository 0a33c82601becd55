//! TOML values as JSON, which is what plugins are configured with.

use serde_json::Value as Json;
use toml::Value as Toml;

/// The value as JSON text. Dates become strings, as TOML writes them.
pub(super) fn from_toml(value: &Toml) -> Result<String, &'static str> {
    convert(value).map(|json| json.to_string())
}

fn convert(value: &Toml) -> Result<Json, &'static str> {
    Ok(match value {
        Toml::String(text) => Json::from(text.as_str()),
        Toml::Integer(number) => Json::from(*number),
        Toml::Float(number) => serde_json::Number::from_f64(*number)
            .map(Json::Number)
            .ok_or("contains a number that JSON cannot express (nan or inf); use another")?,
        Toml::Boolean(truth) => Json::from(*truth),
        Toml::Datetime(date) => Json::from(date.to_string()),
        Toml::Array(items) => Json::Array(items.iter().map(convert).collect::<Result<_, _>>()?),
        Toml::Table(table) => Json::Object(
            table
                .iter()
                .map(|(key, value)| Ok((key.clone(), convert(value)?)))
                .collect::<Result<_, &'static str>>()?,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Result<String, &'static str> {
        from_toml(&Toml::Table(text.parse().expect("the test's TOML")))
    }

    #[test]
    fn every_kind_of_value_is_carried_over() {
        let text = "a = [1, 2.5, true]\nb = { c = \"x\" }\nd = 2024-01-02\n";
        assert_eq!(
            json(text).as_deref(),
            Ok(r#"{"a":[1,2.5,true],"b":{"c":"x"},"d":"2024-01-02"}"#)
        );
    }

    #[test]
    fn what_json_cannot_say_is_refused() {
        assert!(json("a = nan").is_err());
    }
}
