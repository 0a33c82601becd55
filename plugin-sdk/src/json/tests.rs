//! The reader beside `serde_json`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::IgnoredAny;

use super::*;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Everything {
    whole: u32,
    below_zero: i8,
    fraction: f64,
    flag: bool,
    name: String,
    letter: char,
    maybe: Option<u16>,
    pair: (u8, u8),
    list: Vec<Inner>,
    table: BTreeMap<String, Vec<f32>>,
    shape: Shape,
    shapes: Vec<Shape>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Inner {
    weight: Wrapped,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Wrapped(u64);

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Shape {
    #[default]
    Plain,
    One(u8),
    Two(u8, u8),
    Named {
        size: u8,
    },
}

#[test]
fn everything_that_serde_json_writes_is_read_back() {
    let everything = Everything {
        whole: u32::MAX,
        below_zero: -128,
        fraction: -1.5e-7,
        flag: true,
        name: "tab\t quote\" back\\ nul\u{0} é 🚂 \u{7f}".into(),
        letter: 'ß',
        maybe: Some(7),
        pair: (1, 2),
        list: vec![Inner { weight: Wrapped(u64::MAX) }, Inner::default()],
        table: BTreeMap::from([("a b".into(), vec![0.25, 3.0]), (String::new(), vec![])]),
        shape: Shape::Named { size: 3 },
        shapes: vec![Shape::Plain, Shape::One(1), Shape::Two(1, 2)],
    };
    let tight = serde_json::to_string(&everything).unwrap();
    let spaced = serde_json::to_string_pretty(&everything).unwrap();
    assert_eq!(from_str::<Everything>(&tight), Ok(everything));
    assert_eq!(from_str::<Everything>(&spaced), from_str(&tight));
    assert_eq!(from_str::<Everything>("{}"), Ok(Everything::default()));
}

/// `deserialize_any` is what untagged and flattened types use; a `Value` is such a type.
#[test]
fn a_type_that_takes_anything_sees_what_serde_json_sees() {
    for text in [
        "null",
        " [ ] ",
        r#"{"a":[1,-2,3.5,1e3,true,false,null,"x"],"b":{}}"#,
        r#""\u00e9\ud83d\ude82\/\b\f\n\r\t\"""#,
        "18446744073709551615",
    ] {
        let expected: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(from_str(text), Ok(expected), "{text}");
    }
    assert!(from_str::<IgnoredAny>(r#"{"a":[1,2.5e-3,{"b":"]"}]}"#).is_ok());
}

#[test]
fn broken_texts_are_refused() {
    for text in [
        "",
        "{",
        "[1,]",
        "[1 2]",
        r#"{"a" 1}"#,
        r#"{"a":1,}"#,
        r#"{a:1}"#,
        r#""open"#,
        r#""\x""#,
        r#""\u12""#,
        r#""\ud83d""#,
        r#""\udc00""#,
        r#""\u+123""#,
        "nul",
        "truth",
        "1 2",
        "--",
        "é",
    ] {
        assert!(from_str::<serde_json::Value>(text).is_err(), "{text}");
    }
}

#[test]
fn a_key_that_nothing_reads_is_refused_at_any_depth() {
    let unknown = |text| from_str::<Everything>(text).unwrap_err().to_string();
    assert!(unknown(r#"{"hole":1}"#).starts_with("unknown key `hole`, expected `whole` or "));
    assert_eq!(
        unknown(r#"{"list":[{"weight":1,"wait":2}]}"#),
        "list: unknown key `wait`, expected `weight`"
    );
    assert_eq!(
        unknown(r#"{"shape":{"named":{"sise":2}}}"#),
        "shape: unknown key `sise`, expected `size`"
    );
}

#[test]
fn an_error_names_the_key_and_what_belongs_there() {
    let error = |text| from_str::<Everything>(text).unwrap_err().to_string();
    assert_eq!(error(r#"{"whole":"many"}"#), "whole: expected a number, found `\"`");
    assert_eq!(error(r#"{"whole":-1}"#), "whole: expected u32, found -1");
    assert_eq!(error(r#"{"whole":1.5}"#), "whole: expected u32, found 1.5");
    assert_eq!(error(r#"{"whole":4294967296}"#), "whole: expected u32, found 4294967296");
    assert_eq!(error(r#"{"flag":1}"#), "flag: expected true or false, found `1`");
    assert_eq!(error(r#"{"letter":"ab"}"#), "letter: expected a character, found `ab`");
    assert_eq!(error(r#"{"list":[{}]}"#), "list: missing field `weight`");
    assert!(error(r#"{"shape":"round"}"#).contains("unknown variant `round`"));
}
