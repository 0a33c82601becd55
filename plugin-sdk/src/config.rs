//! A policy's config.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::json;

/// The config of a policy that has nothing to set: every key is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct NoConfig {}

/// Reads a config from JSON; `null` is the default.
pub(crate) fn parse<C: DeserializeOwned + Default>(text: &str) -> Result<C, String> {
    let config: Result<Option<C>, _> = json::from_str(text);
    config.map(Option::unwrap_or_default).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Two {
        choices: u32,
        #[serde(alias = "old")]
        name: String,
    }

    #[test]
    fn null_is_the_default() {
        assert_eq!(parse::<Two>("null"), Ok(Two::default()));
        assert_eq!(parse::<NoConfig>(" null\n"), Ok(NoConfig {}));
    }

    #[test]
    fn missing_keys_take_their_default() {
        assert_eq!(parse(r#"{ "choices": 3 }"#), Ok(Two { choices: 3, name: String::new() }));
        assert_eq!(parse("{}"), Ok(NoConfig {}));
    }

    #[test]
    fn a_misspelt_key_is_refused_though_the_type_would_ignore_it() {
        let error = parse::<Two>(r#"{ "choises": 3 }"#).unwrap_err();
        assert_eq!(error, "unknown key `choises`, expected `choices` or `name` or `old`");
        let error = parse::<NoConfig>(r#"{ "a": {"b": [1]} }"#).unwrap_err();
        assert_eq!(error, "unknown key `a`, none are taken");
    }

    #[test]
    fn an_alias_is_a_known_key() {
        assert_eq!(parse(r#"{ "old": "x" }"#), Ok(Two { choices: 0, name: "x".into() }));
    }

    #[test]
    fn what_is_no_table_is_refused() {
        assert!(parse::<Two>("7").is_err());
        assert!(parse::<NoConfig>("").is_err());
    }
}
