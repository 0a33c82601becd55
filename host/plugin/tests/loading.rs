//! What is refused before it runs, and in which words.

mod common;

use common::{Guest, WIT, assert_well_put, embed, encode, engine, engine_of};
use pointsman_plugin::{EngineLimits, LoadError};

fn refused(bytes: &[u8]) -> LoadError {
    let error = engine().load(bytes).expect_err("it was loaded");
    println!("{error}");
    assert_well_put(&error.to_string());
    error
}

#[test]
fn what_is_no_wasm_is_called_what_it_is() {
    let cases: [(&[u8], &str); 5] = [
        (b"", "empty"),
        (b"hello there\n", "a text"),
        (b" (module)", "its text form"),
        (b"\x7fELF\x02\x01\x01\x00", "a native program"),
        (b"\x89PNG\x0d\x0a\xff\xfe", "something else"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(refused(bytes), LoadError::NotWasm(expected));
    }
}

#[test]
fn a_file_that_ends_early_or_is_damaged_is_refused() {
    for whole in [Guest::default().module(), Guest::default().component()] {
        for cut in [4, 8, 9, whole.len() / 4, whole.len() / 2, whole.len() - 1] {
            refused(&whole[..cut]);
        }
        let mut damaged = whole.clone();
        damaged[4] = 0x77;
        assert!(matches!(refused(&damaged), LoadError::Invalid(_)));
    }
}

#[test]
fn no_damaged_byte_brings_the_host_down() {
    let whole = Guest::default().module();
    let engine = engine();
    for place in (8..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x55;
        if let Err(error) = engine.load(&damaged) {
            assert_well_put(&error.to_string());
        }
    }
}

#[test]
fn a_file_that_is_too_large_is_not_looked_at() {
    let bytes_max = EngineLimits::default().module_bytes_max;
    let hundred_megabytes = vec![0; 100 << 20];
    let bytes = hundred_megabytes.len();
    assert_eq!(refused(&hundred_megabytes), LoadError::TooLarge { bytes, bytes_max });
    let limits =
        EngineLimits { instances_max: 1, module_bytes_max: 100, ..EngineLimits::default() };
    let error = engine_of(limits).load(&[0; 101]).err().unwrap();
    assert_eq!(error, LoadError::TooLarge { bytes: 101, bytes_max: 100 });
}

#[test]
fn a_module_without_an_interface_is_no_plugin() {
    let bare = wat::parse_str(Guest::default().text()).unwrap();
    assert_eq!(refused(&bare), LoadError::NoInterface);
    let empty = wat::parse_str("(module)").unwrap();
    assert_eq!(refused(&empty), LoadError::NoInterface);
}

#[test]
fn an_unknown_import_is_named() {
    let guest = Guest::default();
    let text =
        guest.text().replacen("(module", r#"(module (import "env" "curl_easy_init" (func))"#, 1);
    let expected = LoadError::UnknownImport("env::curl_easy_init".into());
    assert_eq!(refused(&embed(&text, WIT)), expected);
}

#[test]
fn an_unknown_interface_is_named() {
    let wit = WIT.replace("    import host;", "    import host;\n    import clock;")
        + "interface clock { now: func() -> u64; }";
    let text = Guest::default().text().replacen(
        "(module",
        r#"(module (import "pointsman:policy/clock@0.1.1" "now" (func (result i64)))"#,
        1,
    );
    let expected = LoadError::UnknownImport("pointsman:policy/clock@0.1.1".into());
    assert_eq!(refused(&embed(&text, &wit)), expected);
}

#[test]
fn an_unknown_host_function_is_named() {
    let wit = WIT.replace("    load: func", "    sleep: func();\n    load: func");
    let text = Guest::default().text().replacen(
        "(module",
        r#"(module (import "pointsman:policy/host@0.1.1" "sleep" (func))"#,
        1,
    );
    let expected = LoadError::UnknownImport("pointsman:policy/host@0.1.1#sleep".into());
    assert_eq!(refused(&embed(&text, &wit)), expected);
}

#[test]
fn wasi_is_refused_with_what_to_build_for() {
    let text = Guest::default().text().replacen(
        "(module",
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))"#,
        1,
    );
    let error = refused(&embed(&text, WIT));
    assert_eq!(error, LoadError::Wasi("wasi_snapshot_preview1::proc_exit".into()));
    assert!(error.to_string().contains("wasm32-unknown-unknown"));
}

#[test]
fn wasi_in_a_component_is_refused_too() {
    let component = wat::parse_str(
        r#"(component (import "wasi:cli/exit@0.2.0" (instance
             (export "exit" (func (param "status" (result)))))))"#,
    );
    let error = refused(&component.unwrap());
    assert_eq!(error, LoadError::Wasi("wasi:cli/exit@0.2.0".into()));
}

#[test]
fn another_version_of_the_interface_is_refused_with_both() {
    let wit = WIT.replace("@0.1.1", "@0.2.0");
    let text = Guest::default().text().replace("@0.1.1", "@0.2.0");
    let error = refused(&embed(&text, &wit));
    assert_eq!(error, LoadError::Version("0.2.0".into()));
    let text = error.to_string();
    assert!(text.contains("pointsman:policy@0.2.0") && text.contains("pointsman:policy@0.1.1"));
}

#[test]
fn another_version_is_noticed_though_the_guest_calls_nothing() {
    let wit = WIT.replace("@0.1.1", "@0.2.0");
    let text = without_imports(&Guest::default().text());
    assert_eq!(refused(&embed(&text, &wit)), LoadError::Version("0.2.0".into()));
}

#[test]
fn a_guest_that_imports_nothing_is_a_policy() {
    let text = without_imports(&Guest::default().text());
    assert!(engine().load(&embed(&text, WIT)).is_ok());
}

fn without_imports(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("(import"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_missing_export_is_named() {
    let text = Guest::default().text().replace(r#"(export "decide")"#, r#"(export "choose")"#);
    assert_eq!(refused(&embed(&text, WIT)), LoadError::MissingExport("decide"));
    let component = wat::parse_str("(component)").unwrap();
    assert_eq!(refused(&component), LoadError::NoShape);
}

#[test]
fn an_export_of_another_type_is_named() {
    let wit = WIT.replace("tag: u32,", "tag: u64,");
    let component = encode(&embed(&Guest::default().text(), &wit));
    assert!(matches!(refused(&component), LoadError::WrongType { name, .. } if name == "decide"));
}

#[test]
fn a_host_function_of_another_type_is_named() {
    let wit = WIT.replace("load: func(endpoint: u32)", "load: func(endpoint: u64)");
    let text =
        Guest::default().text().replace("(func $load (param i32)", "(func $load (param i64)");
    match refused(&embed(&text, &wit)) {
        LoadError::WrongType { name, reason } => {
            assert_eq!(name, "host");
            assert!(reason.contains("`load`"), "{reason}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_switched_off_is_refused_when_loaded() {
    let engine = engine();
    let fields = [
        "(func (drop (i8x16.splat (i32.const 1))))",
        "(func $tail (return_call $tail))",
        "(memory $second i64 1)",
    ];
    for field in fields {
        let bytes = Guest::default().with_fields(field).module();
        let error = engine.load(&bytes).expect_err(field);
        assert!(matches!(error, LoadError::Invalid(_)), "{field}: {error}");
        assert_well_put(&error.to_string());
    }
}
