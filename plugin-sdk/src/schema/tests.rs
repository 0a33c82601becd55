//! The schema of types of every kind.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::Deserialize;
use serde_json::{Value, json};

use super::of;
use crate::NoConfig;

/// The schema, without what is the same in all of them.
fn schema<C: serde::de::DeserializeOwned>() -> Value {
    let mut schema: Value = serde_json::from_str(&of::<C>()).unwrap();
    let members = schema.as_object_mut().unwrap();
    assert!(members.remove("$schema").is_some());
    schema
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only its shape matters")]
struct Everything {
    whole: u16,
    below_zero: i8,
    #[serde(default)]
    fraction: f64,
    flag: bool,
    #[serde(alias = "label", default)]
    name: String,
    maybe: Option<char>,
    pair: (u8, bool),
    list: Vec<Inner>,
    table: BTreeMap<String, f32>,
    shape: Shape,
    at_least_one: NonZeroU32,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only its shape matters")]
struct Inner {
    weight: u64,
    #[serde(default)]
    more: Vec<Inner>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(dead_code, reason = "only its shape matters")]
enum Shape {
    Plain,
    One(u8),
    Named { size: u8 },
}

#[test]
fn every_kind_of_value_is_told() {
    let schema = schema::<Everything>();
    let of = |key: &str| schema["properties"][key].clone();
    assert_eq!(of("whole"), json!({ "type": "integer", "minimum": 0, "maximum": 65_535 }));
    assert_eq!(of("below_zero"), json!({ "type": "integer", "minimum": -128, "maximum": 127 }));
    assert_eq!(of("fraction"), json!({ "type": "number" }));
    assert_eq!(of("flag"), json!({ "type": "boolean" }));
    assert_eq!(of("name"), json!({ "type": "string" }));
    assert_eq!(of("maybe"), json!({ "type": ["string", "null"] }));
    assert_eq!(of("pair")["prefixItems"][1], json!({ "type": "boolean" }));
    assert_eq!(of("list")["items"]["properties"]["weight"]["maximum"], json!(u64::MAX));
    assert_eq!(of("table")["additionalProperties"], json!({ "type": "number" }));
    assert_eq!(of("at_least_one")["type"], json!("integer"));
}

#[test]
fn what_cannot_be_left_out_is_required_and_nothing_else() {
    let schema = schema::<Everything>();
    let required =
        ["whole", "below_zero", "flag", "pair", "list", "table", "shape", "at_least_one"];
    assert_eq!(schema["required"], json!(required));
    assert_eq!(schema["additionalProperties"], json!(false));
    assert_eq!(schema["properties"]["list"]["items"]["properties"]["more"]["type"], json!("array"));
}

#[test]
fn another_name_of_a_key_is_no_key_of_its_own() {
    assert!(schema::<Everything>()["properties"].get("label").is_none());
}

#[test]
fn every_variant_is_told_with_what_it_holds() {
    let byte = json!({ "type": "integer", "minimum": 0, "maximum": 255 });
    let choices = schema::<Shape>()["anyOf"].clone();
    assert_eq!(choices[0], json!({ "const": "plain" }));
    assert_eq!(choices[1]["properties"]["one"], byte);
    assert_eq!(choices[2]["properties"]["named"]["properties"]["size"], byte);
}

#[test]
fn a_config_without_keys_takes_none() {
    let expected = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    assert_eq!(schema::<NoConfig>(), expected);
}

#[test]
fn a_type_without_an_end_has_a_schema_with_one() {
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Endless {
        next: Box<Endless>,
        nexts: Vec<Endless>,
    }
    assert!(of::<Endless>().len() < 100_000);
}
