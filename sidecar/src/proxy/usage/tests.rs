use hyper::header::HeaderValue;
use proptest::prelude::*;

use super::*;

const EVENTS: &str = "text/event-stream; charset=utf-8";

fn observe(content_type: &'static str, answer: &str, size: usize) -> Option<Usage> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
    let mut observer = Observer::of(&headers).expect("something to count");
    for piece in answer.as_bytes().chunks(size) {
        observer.push(piece);
    }
    observer.usage()
}

/// Each provider's answers, and what they took.
fn answers() -> Vec<(&'static str, &'static str, u64, u64)> {
    vec![
        (
            "application/json",
            r#"{"id":"c","choices":[{"message":{"content":"\"usage\":{}"}}],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21,"prompt_tokens_details":{"cached_tokens":3,"input_tokens":5}},"service_tier":null}"#,
            9,
            12,
        ),
        (
            "application/json",
            r#"{"type":"message","content":[{"type":"tool_use","input":{"usage":{"input_tokens":999}}}],"usage":{"input_tokens":5,"cache_creation_input_tokens":100,"cache_read_input_tokens":20,"output_tokens":7}}"#,
            125,
            7,
        ),
        (
            "application/json",
            r#"[{"usageMetadata":{"promptTokenCount":4,"candidatesTokenCount":1}},{"usageMetadata":{"promptTokenCount":4,"candidatesTokenCount":6,"thoughtsTokenCount":10}}]"#,
            4,
            16,
        ),
        (
            EVENTS,
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
            3,
            2,
        ),
        (
            EVENTS,
            "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[],\"usage\":{\"input_tokens\":3,\"input_tokens_details\":{\"cached_tokens\":1},\"output_tokens\":2}}}\n\n",
            3,
            2,
        ),
        (
            EVENTS,
            "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\r\n\r\n: ping\r\n\r\nevent: message_delta\r\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":15}}\r\n\r\n",
            25,
            15,
        ),
        (
            EVENTS,
            "data:{\"usageMetadata\":{\"promptTokenCount\":4}}\n\ndata:{\"usageMetadata\":\ndata:{\"promptTokenCount\":5,\"candidatesTokenCount\":6}}\n\n",
            5,
            6,
        ),
    ]
}

#[test]
fn each_provider_says_it_in_its_own_way() {
    for (content_type, answer, input, output) in answers() {
        for size in [1, 2, 3, 7, answer.len()] {
            let expected = Some(Usage { input, output });
            assert_eq!(observe(content_type, answer, size), expected, "{answer}");
        }
    }
}

#[test]
fn only_what_the_provider_says_itself_counts() {
    let tool = r#"[{"input":{"usage":{"input_tokens":999,"output_tokens":999}}}]"#;
    let usage = r#"{"input_tokens":5}"#;
    for (answer, expected) in [
        (format!(r#"{{"content":{tool},"usage":{usage}}}"#), Some(5)),
        (format!(r#"{{"usage":{usage},"content":{tool}}}"#), Some(5)),
        (
            format!(r#"{{"a":"usage","message":{{"usage":{usage}}}}}"#),
            Some(5),
        ),
        (format!(r#"{{"content":{tool}}}"#), None),
        (
            r#"{"content":"\\\"usage\":{\"input_tokens\":9}"}"#.to_owned(),
            None,
        ),
        // It breaks off.
        (format!(r#"{{"usage":{usage}"#), None),
    ] {
        let expected = expected.map(|input| Usage { input, output: 0 });
        for size in [1, 2, 3, 7, answer.len()] {
            assert_eq!(observe("application/json", &answer, size), expected, "{answer}");
        }
    }
}

#[test]
fn it_stands_in_the_outermost_object_or_one_in_it() {
    for around in 0..5 {
        for (open, close) in [("{\"a\":[1],\"b\":", "}"), ("[[],", "]")] {
            let (open, close) = (open.repeat(around), close.repeat(around));
            let answer = format!(r#"{open}{{"usage":{{"input_tokens":5}}}}{close}"#);
            let expected = (around < 2).then_some(Usage { input: 5, output: 0 });
            assert_eq!(observe("application/json", &answer, 7), expected, "{answer}");
        }
    }
}

#[test]
fn what_says_nothing_counts_nothing() {
    assert_eq!(observe("application/json", r#"{"usage":null}"#, 3), None);
    assert_eq!(
        observe("application/json", r#"{"usage":{"input_tokens":-1}}"#, 3),
        None
    );
    assert_eq!(observe("application/json", "not JSON", 3), None);
    assert_eq!(
        observe(
            EVENTS,
            "data: broken\nda: {\"usage\":{\"input_tokens\":1}}\n\n",
            3
        ),
        None
    );
    let broken_then_good = "data: {]\n\ndata: {\"usage\":{\"input_tokens\":1}}\n\n";
    assert_eq!(
        observe(EVENTS, broken_then_good, 3),
        Some(Usage { input: 1, output: 0 })
    );
    for (name, value) in [(CONTENT_TYPE, "audio/mpeg"), (CONTENT_ENCODING, "gzip")] {
        let mut headers =
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        headers.insert(name, HeaderValue::from_static(value));
        assert!(Observer::of(&headers).is_none());
    }
    assert!(Observer::of(&HeaderMap::new()).is_none());
}

/// Objects and arrays in one another, some of which say what was used.
fn documents() -> impl Strategy<Value = serde_json::Value> {
    let used = (0..9_u64).prop_map(|input| serde_json::json!({ "input_tokens": input }));
    let leaf = prop_oneof![
        used.clone(),
        any::<i8>().prop_map(Into::into),
        "[a-z\\\\\"{}\\[\\]:,]{0,40}".prop_map(Into::into),
        Just(serde_json::Value::Null),
    ];
    let nested = leaf.prop_recursive(4, 24, 4, move |inner| {
        let names = "usage|usage|usageMetadata|input_tokens|\"usage|[a-z\"\\\\]{0,40}";
        let values = prop_oneof![inner.clone(), used.clone()];
        let object = |members| serde_json::Value::Object(serde_json::Map::from_iter(members));
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Into::into),
            prop::collection::vec((names, values), 0..4).prop_map(object),
        ]
    });
    // Most would say it in their outermost object.
    (0..4_usize, nested).prop_map(|(around, nested)| {
        (0..around).fold(nested, |inner, depth| match depth % 2 {
            0 => serde_json::json!({ "a": inner }),
            _ => serde_json::json!([[], inner]),
        })
    })
}

/// What a document says, in the words of a parser that keeps all of it.
fn expected(document: &serde_json::Value) -> Option<u64> {
    let children = |value: &serde_json::Value| match value {
        serde_json::Value::Array(items) => items.clone(),
        serde_json::Value::Object(members) => members.values().cloned().collect(),
        _ => Vec::new(),
    };
    let mut level = vec![document.clone()];
    for _ in 0..DEEPEST {
        let objects = level.iter().filter_map(serde_json::Value::as_object);
        let usages: Vec<_> = objects
            .flat_map(|object| object.iter())
            .filter(|(name, value)| matches!(name.as_str(), "usage" | "usageMetadata") && value.is_object())
            .collect();
        if !usages.is_empty() {
            let counts = usages.iter().map(|(_, usage)| usage["input_tokens"].as_u64());
            return counts.flatten().last();
        }
        level = level.iter().flat_map(children).collect();
    }
    None
}

proptest! {
    #[test]
    fn it_finds_what_a_parser_finds(document in documents(), size in 1..40_usize) {
        let counted = observe("application/json", &document.to_string(), size);
        prop_assert_eq!(counted.map(|usage| usage.input), expected(&document), "{}", document);
    }

    #[test]
    fn nothing_upsets_it(answer in "[data: {}\\[\\]\"usage,1\r\n]{0,80}", size in 1..9_usize) {
        for content_type in ["application/json", EVENTS] {
            let whole = observe(content_type, &answer, answer.len().max(1));
            prop_assert_eq!(observe(content_type, &answer, size), whole);
        }
    }
}
