use std::collections::HashSet;
use std::fmt;

use proptest::prelude::*;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor as SerdeVisitor};

use super::*;

/// The whole body at once.
fn scan(body: &[u8]) -> Result<Option<String>, Ambiguous> {
    scan_in(body, body.len().max(1))
}

/// In pieces of this size.
fn scan_in(body: &[u8], size: usize) -> Result<Option<String>, Ambiguous> {
    let mut scanner = Scanner::new(&["models".to_owned(), "fallbacks".to_owned()]);
    for piece in body.chunks(size) {
        scanner.push(piece)?;
    }
    scanner.finish()
}

/// What serde makes of it, with our own rules on top.
#[derive(Debug, PartialEq)]
struct Oracle(Option<String>);

impl<'de> Deserialize<'de> for Oracle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> SerdeVisitor<'de> for Fields {
            type Value = Oracle;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Oracle, A::Error> {
                let mut seen = HashSet::new();
                let mut model = None;
                while let Some(key) = map.next_key::<String>()? {
                    match key.to_ascii_lowercase().as_str() {
                        "model" if key == "model" && seen.insert(key.clone()) => {
                            model = map.next_value::<Option<String>>()?;
                        }
                        "model" => return Err(A::Error::custom("model")),
                        "models" | "fallbacks" => {
                            if map.next_value::<Option<IgnoredAny>>()?.is_some() {
                                return Err(A::Error::custom("elsewhere"));
                            }
                        }
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Oracle(model))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

fn oracle(body: &[u8]) -> Option<Oracle> {
    // It does not look at what it skips.
    std::str::from_utf8(body).ok()?;
    serde_json::from_slice(body).ok()
}

#[test]
fn the_model_is_found_wherever_it_stands() {
    for (body, model) in [
        (r#"{"model":"gpt-a","messages":[]}"#, Some("gpt-a")),
        (
            r#" { "messages" : [ { "model" : "x" } ] , "model" : "gpt-a" } "#,
            Some("gpt-a"),
        ),
        (r#"{"m\u006fdel":"gpt\u002da"}"#, Some("gpt-a")),
        (r#"{"model":"\ud83d\ude00\n\"é"}"#, Some("\u{1f600}\n\"é")),
        (r#"{"model":null,"a":[1,-0.5e+3,true,false,null,{}]}"#, None),
        (r#"{"messages":[{"content":"\"model\":\"x\" \\"}]}"#, None),
        (r#"{"models":null,"model":"a"}"#, Some("a")),
        ("{}", None),
    ] {
        for size in 1..=body.len() {
            assert_eq!(
                scan_in(body.as_bytes(), size),
                Ok(model.map(str::to_owned)),
                "{body}"
            );
        }
    }
}

#[test]
fn what_is_ambiguous_names_no_model() {
    let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(MAX_TEXT + 1));
    let deep = format!(r#"{{"a":{}"#, "[".repeat(200));
    let elsewhere = |field: &str| Ambiguous::Elsewhere(field.into());
    for (body, why) in [
        (r#"{"model":"a","model":"b"}"#, Ambiguous::Twice),
        (r#"{"model":"a","\u006dodel":"b"}"#, Ambiguous::Twice),
        (r#"{"model":"a","Model":"b"}"#, Ambiguous::Spelling),
        (r#"{"model":["a"]}"#, Ambiguous::NotString),
        (r#"{"model":{"id":"a"}}"#, Ambiguous::NotString),
        (r#"{"model":7}"#, Ambiguous::NotString),
        (r#"{"model":true}"#, Ambiguous::NotString),
        (r#"{"model":"\ud800"}"#, Ambiguous::NotText),
        (r#"{"model":"\ud800x"}"#, Ambiguous::NotText),
        (r#"{"model":"\ud800\ud800"}"#, Ambiguous::NotText),
        (r#"{"model":"\udc00"}"#, Ambiguous::NotText),
        (&long, Ambiguous::NotText),
        (r#"{"models":["b"],"model":"a"}"#, elsewhere("models")),
        (
            r#"{"model":"a","Fallbacks":[{"model":"b"}]}"#,
            elsewhere("fallbacks"),
        ),
        (r#"{"fallbacks":"b"}"#, elsewhere("fallbacks")),
        (r#"[{"model":"a"}]"#, Ambiguous::NotObject),
        (r#""model""#, Ambiguous::NotObject),
        ("null", Ambiguous::NotObject),
        (&deep, Ambiguous::Depth),
        ("", Ambiguous::Truncated),
        (r#"{"model":"a""#, Ambiguous::Truncated),
        (r#"{"model":"a"}{"model":"b"}"#, Ambiguous::Syntax),
        (r#"{"model":"a"} x"#, Ambiguous::Syntax),
        (r#"{"model":"a",}"#, Ambiguous::Syntax),
        (r"{'model':'a'}", Ambiguous::Syntax),
        (r#"{"a":NaN}"#, Ambiguous::Syntax),
        (r#"{"a":01}"#, Ambiguous::Syntax),
        (r#"{"a":1.}"#, Ambiguous::Syntax),
        (r#"{"a":"\x41"}"#, Ambiguous::Syntax),
        ("{\"a\":\"\n\"}", Ambiguous::Syntax),
        ("\u{feff}{}", Ambiguous::Syntax),
        ("model=a", Ambiguous::Syntax),
        ("--boundary\r\n", Ambiguous::Syntax),
    ] {
        for size in [1, 2, body.len().max(1)] {
            assert_eq!(scan_in(body.as_bytes(), size), Err(why.clone()), "{body}");
        }
    }
    assert_eq!(scan(b"{\"a\":\"\xff\"}"), Err(Ambiguous::Utf8));
    assert_eq!(scan(b"{\"a\":\"\xc3"), Err(Ambiguous::Truncated));
    assert_eq!(scan(b"{\"a\":\"\xc3\"}"), Err(Ambiguous::Utf8));
}

#[test]
fn an_error_is_final() {
    let mut scanner = Scanner::new(&[]);
    assert_eq!(scanner.push(b"{]"), Err(Ambiguous::Syntax));
    assert_eq!(scanner.push(b"{}"), Err(Ambiguous::Syntax));
    assert_eq!(scanner.finish(), Err(Ambiguous::Syntax));
}

/// Bodies that are nearly JSON.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        "[{}\\[\\]:,\" ]",
        prop::sample::select(vec![
            r#""model""#,
            r#""\u006dodel""#,
            r#""Model""#,
            r#""models""#,
            r#""a""#,
            r#""gpt-a""#,
            r#""\ud83d\ude00""#,
            r#""\ud800""#,
            r#"{"model":"x"}"#,
            "null",
            "true",
            "-1.5e3",
            "01",
            "1e",
            "\"é\n\"",
            r#"{"model":"a","#,
        ])
        .prop_map(str::to_owned),
    ];
    let near = prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat().into_bytes());
    let member = (
        prop::sample::select(vec!["model", "Model", "models", "messages", "a"]),
        prop::sample::select(vec![
            r#""x""#,
            "null",
            "[1,{\"model\":2}]",
            "{}",
            "3",
            r#""\u00e9""#,
        ]),
    );
    let object = prop::collection::vec(member, 0..4).prop_map(|members| {
        let members: Vec<_> = members
            .iter()
            .map(|(key, value)| format!("\"{key}\": {value}"))
            .collect();
        format!("{{{}}}", members.join(" ,")).into_bytes()
    });
    prop_oneof![near, object, prop::collection::vec(any::<u8>(), 0..40)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn it_reads_as_serde_does(body in body(), size in 1..8_usize) {
        let scanned = scan(&body);
        prop_assert_eq!(&scan_in(&body, size).ok(), &scanned.clone().ok());
        match (oracle(&body), scanned) {
            (Some(Oracle(expected)), Ok(model)) => prop_assert_eq!(model, expected),
            (None, Err(_)) => {}
            // Keys that are no text serde refuses; they are not called `model` either.
            (None, Ok(_)) => prop_assert!(String::from_utf8_lossy(&body).contains("\\ud8")),
            (Some(expected), Err(why)) => prop_assert!(false, "{:?} {:?}", expected, why),
        }
    }
}
