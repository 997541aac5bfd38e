use std::collections::{BTreeSet, HashSet};
use std::fmt;

use llmwarden_proto::profile::ProviderKind;
use proptest::prelude::*;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor as SerdeVisitor};
use serde_json::Value;

use super::*;

/// The model of a body that is read at once.
fn scan(body: &[u8]) -> Result<Option<String>, Ambiguous> {
    scan_in(body, body.len().max(1))
}

/// In pieces of this size.
fn scan_in(body: &[u8], size: usize) -> Result<Option<String>, Ambiguous> {
    named(ProviderKind::Openai, body, size).map(|named| named.model)
}

/// All that a body for this provider names, read in pieces of this size.
fn named(kind: ProviderKind, body: &[u8], size: usize) -> Result<Named, Ambiguous> {
    let mut scanner = Scanner::new(&kind.upstream(None));
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
fn tools_that_bring_models_are_found_wherever_they_stand() {
    use ProviderKind::{Anthropic, Openai, Openrouter};
    for (kind, body, models) in [
        (
            Anthropic,
            r#"{"tools":[{"type":"advisor_20260301","name":"advisor","model":"b"},{"Model":"b"}],"model":"a"}"#,
            &["b"][..],
        ),
        (
            Openrouter,
            r#"{"tools":[{"type":"openrouter:new","parameters":{"model":"b","tools":[{"model":"c"}]}}]}"#,
            &["b", "c"],
        ),
        (
            Openai,
            r#"{"input":[{"type":"additional_tools","tools":[{"type":"new","svg":{"model":"b"}}]}]}"#,
            &["b"],
        ),
        (Openrouter, r#"{"plugins":[{"id":"new","model":"b"}]}"#, &["b"]),
        (
            Openai,
            r#"{"\u0074ools":[{"model":null},[{"model":"x"}],{"m\u006fdel":"b"}]}"#,
            &["b"],
        ),
        // What is no tool, a schema, an example, what a tool was called with.
        (
            Openai,
            r#"{"tools":[{"type":"function","function":{"name":"buy","parameters":{"type":"object",
                "properties":{"model":{"type":"string"}},"default":{"model":"T"},"examples":[{"model":"T"}]}}}],
                "messages":[{"role":"assistant","model":"x","tool_calls":[{"type":"image_generation"}]}],
                "tool_choice":{"type":"image_generation"},"metadata":{"model":"x"}}"#,
            &[],
        ),
        (
            Openai,
            r#"{"tools":{"model":"x"},"a":{"tools":"model","b":[{"model":"x"}]}}"#,
            &[],
        ),
    ] {
        for size in [1, 3, body.len()] {
            let found = named(kind, body.as_bytes(), size).map(|named| named.in_tools);
            assert_eq!(
                found,
                Ok(models.iter().map(|model| (*model).to_owned()).collect()),
                "{body}"
            );
        }
    }
    let tool = |tool: &str| Ambiguous::Tool(tool.into());
    for (kind, body, why) in [
        (
            Openai,
            r#"{"tools":[{"type":"image_generation"}]}"#,
            tool("image_generation"),
        ),
        (
            Openai,
            r#"{"tools":[{"model":"a","Type":"image_generation"}],"model":"a"}"#,
            tool("image_generation"),
        ),
        (
            Openai,
            r#"{"input":[{"type":"additional_tools","tools":[{"type":"image_generation"}]}]}"#,
            tool("image_generation"),
        ),
        (
            Openrouter,
            r#"{"tools":[{"type":"openrouter:fusion","parameters":{"analysis_models":["b"]}}]}"#,
            tool("openrouter:fusion"),
        ),
        (Openrouter, r#"{"plugins":[{"id":"fusion"}]}"#, tool("fusion")),
        (Anthropic, r#"{"tools":[{"model":"\ud800"}]}"#, Ambiguous::NotText),
    ] {
        for size in [1, 3, body.len()] {
            assert_eq!(named(kind, body.as_bytes(), size), Err(why.clone()), "{body}");
        }
    }
    // What a model called a tool with is its own text, and comes again with every turn; its end is found.
    let call = r#"{"model":"a","messages":[{"content":[{"type":"tool_use","input":{"tools":[{"model":"b","type":"image_generation"}],"a":[{}]}}],"tools":[{"model":"c"}]}]}"#;
    for size in [1, 3, call.len()] {
        let in_tools = named(Anthropic, call.as_bytes(), size).map(|named| named.in_tools);
        assert_eq!(in_tools, Ok(vec!["c".to_owned()]));
    }
    let many = |count: usize| {
        let tools: Vec<_> = (0..count)
            .map(|number| format!(r#"{{"model":"{number}"}}"#))
            .collect();
        let body = format!(r#"{{"tools":[{0},{0}]}}"#, tools.join(","));
        named(Openai, body.as_bytes(), body.len()).map(|named| named.in_tools.len())
    };
    assert_eq!(many(MAX_IN_TOOLS), Ok(MAX_IN_TOOLS));
    assert_eq!(many(MAX_IN_TOOLS + 1), Err(Ambiguous::InTools));
}

#[test]
fn an_error_is_final() {
    let mut scanner = Scanner::new(&ProviderKind::Openai.upstream(None));
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

/// Bodies with tools in all kinds of places.
fn with_tools() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec!["a", "b", "c"]).prop_map(Value::from);
    let leaf = prop_oneof![text, Just(Value::Null), Just(Value::from(7))];
    let key = prop::sample::select(vec!["tools", "plugins", "parameters", "model", "type", "x"]);
    leaf.prop_recursive(6, 64, 6, move |value| {
        let object = prop::collection::btree_map(key.clone().prop_map(str::to_owned), value.clone(), 0..5);
        prop_oneof![
            prop::collection::vec(value, 0..4).prop_map(Value::from),
            object.prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
    .prop_map(|value| serde_json::json!({ "a": value.clone(), "tools": value }))
}

/// The models that the tools in a value name.
fn tools_models(value: &Value, found: &mut BTreeSet<String>) {
    let own = |value: &Value| value["model"].as_str().map(str::to_owned);
    let children: Vec<_> = match value {
        Value::Array(all) => all.iter().collect(),
        Value::Object(members) => {
            let lists = ["tools", "plugins"]
                .iter()
                .filter_map(|name| members.get(*name)?.as_array());
            for tool in lists.flatten().filter_map(Value::as_object) {
                found.extend(tool.get("model").and_then(Value::as_str).map(str::to_owned));
                found.extend(tool.values().filter(|value| value.is_object()).filter_map(own));
            }
            members.values().collect()
        }
        _ => Vec::new(),
    };
    for child in children {
        tools_models(child, found);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn it_finds_the_tools_that_serde_does(body in with_tools(), size in 1..8_usize) {
        let found = named(ProviderKind::Openai, body.to_string().as_bytes(), size).map(|named| named.in_tools);
        let mut expected = BTreeSet::new();
        tools_models(&body, &mut expected);
        prop_assert_eq!(found.map(BTreeSet::from_iter), Ok(expected));
    }

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
