//! How many tokens an answer says that it took. It is looked for as the answer goes by, whole or as a stream of events, and
//! nothing else of it is kept.

use std::sync::LazyLock;

use hyper::HeaderMap;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use memchr::memmem::Finder;
use memchr::{memchr, memchr2, memrchr};

/// The tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// What went in, cached or not.
    pub input: u64,
    /// What came out.
    pub output: u64,
}

/// Watches an answer.
#[derive(Debug)]
pub struct Observer {
    form: Form,
    /// What is being read.
    document: Document,
    /// Of the documents before it.
    values: Values,
}

#[derive(Debug)]
enum Form {
    Json,
    /// `text/event-stream`, and where in a line it is.
    Events(Line),
}

#[derive(Debug, Clone, Copy)]
enum Line {
    /// So many bytes of [`DATA`] were there.
    Start(usize),
    Data,
    Other,
}

const DATA: &[u8] = b"data:";

impl Observer {
    /// For an answer with these headers, if it can have something to count.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let encoding = headers.get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            return None;
        }
        let media_type = headers.get(CONTENT_TYPE)?.as_bytes();
        let end = memchr(b';', media_type).unwrap_or(media_type.len());
        let form = match media_type[..end].trim_ascii() {
            b"application/json" => Form::Json,
            b"text/event-stream" => Form::Events(Line::Start(0)),
            _ => return None,
        };
        Some(Self {
            form,
            document: Document::default(),
            values: Values::default(),
        })
    }

    /// A piece of the answer.
    pub fn push(&mut self, bytes: &[u8]) {
        match self.form {
            Form::Json => self.document.push(bytes),
            Form::Events(line) => {
                let line = self.events(line, bytes);
                self.form = Form::Events(line);
            }
        }
    }

    /// What it said in all, at its end.
    pub fn usage(&self) -> Option<Usage> {
        let values = self.counted();
        let sum = |names: &[Name]| {
            names
                .iter()
                .filter_map(|name| values[*name as usize])
                .fold(0, u64::saturating_add)
        };
        values.iter().any(Option::is_some).then(|| Usage {
            input: sum(&[Name::Input, Name::CacheRead, Name::CacheWritten, Name::ToolInput]),
            output: sum(&[Name::Output, Name::Thoughts]),
        })
    }

    /// With the document that ends here. Of what is said again, the last counts.
    fn counted(&self) -> Values {
        let mut values = self.values;
        for (value, counted) in values.iter_mut().zip(self.document.counted()) {
            *value = counted.or(*value);
        }
        values
    }

    fn events(&mut self, mut line: Line, mut bytes: &[u8]) -> Line {
        while let Some((&byte, tail)) = bytes.split_first() {
            (line, bytes) = match line {
                // An empty line ends an event.
                Line::Start(0) if byte == b'\n' => {
                    self.values = self.counted();
                    self.document = Document::default();
                    (line, tail)
                }
                Line::Start(0) if byte == b'\r' => (line, tail),
                Line::Start(matched) if byte == DATA[matched] => match matched + 1 {
                    all if all == DATA.len() => (Line::Data, tail),
                    matched => (Line::Start(matched), tail),
                },
                Line::Start(_) => (Line::Other, bytes),
                Line::Data | Line::Other => {
                    let end = memchr(b'\n', bytes);
                    let (text, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
                    if matches!(line, Line::Data) {
                        self.document.push(text);
                    }
                    (if end.is_some() { Line::Start(0) } else { line }, rest)
                }
            };
        }
        line
    }
}

/// What is counted. Anthropic leaves out of its input what was cached, Gemini of its output the thoughts.
#[derive(Debug, Clone, Copy)]
enum Name {
    Input,
    CacheRead,
    CacheWritten,
    ToolInput,
    Output,
    Thoughts,
}

impl Name {
    fn of(key: &[u8]) -> Option<Self> {
        Some(match key {
            b"prompt_tokens" | b"input_tokens" | b"promptTokenCount" => Self::Input,
            b"cache_read_input_tokens" => Self::CacheRead,
            b"cache_creation_input_tokens" => Self::CacheWritten,
            b"toolUsePromptTokenCount" => Self::ToolInput,
            b"completion_tokens" | b"output_tokens" | b"candidatesTokenCount" => Self::Output,
            b"thoughtsTokenCount" => Self::Thoughts,
            _ => return None,
        })
    }
}

/// By [`Name`].
type Values = [Option<u64>; 6];

/// `usage` stands in the outermost object, or in one directly inside (`response`, `message`, a chunk in an array). Where there
/// are both, which no provider has, the outer one counts.
const DEEPEST: i32 = 2;

/// What the object with the counts is called: `usage`, or `usageMetadata`. In a text, a backslash stands before the quote.
const WORD: &[u8] = b"\"usage";

/// A JSON document on its way, which may say what was used. It is not checked, as nothing is decided by it: of one that breaks
/// the rules, something else is counted at worst.
#[derive(Debug)]
enum Document {
    /// Most say nothing, and those that do say it near their end: what comes before is only searched for the word.
    Unread {
        /// How much of it the end of what was there may be.
        matched: usize,
        /// Whether that end is a backslash.
        escaped: bool,
    },
    Read(Reader),
}

impl Default for Document {
    fn default() -> Self {
        Self::Unread {
            matched: 0,
            escaped: false,
        }
    }
}

impl Document {
    fn push(&mut self, mut bytes: &[u8]) {
        if let Self::Unread { matched, escaped } = self {
            let Some(rest) = search(bytes, matched, escaped) else {
                return;
            };
            bytes = rest;
            *self = Self::Read(Reader::behind_word());
        }
        if let Self::Read(reader) = self {
            reader.push(bytes);
        }
    }

    /// What it said was used, if this is its end.
    fn counted(&self) -> Values {
        match self {
            // Nothing is open any more: as deep it was before.
            Self::Read(Reader {
                depth,
                found: Some(found),
                ..
            }) if (1..=DEEPEST).contains(&found.depth.saturating_sub(*depth)) => found.values,
            _ => Values::default(),
        }
    }
}

/// What follows the word.
fn search<'b>(bytes: &'b [u8], matched: &mut usize, escaped: &mut bool) -> Option<&'b [u8]> {
    static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(WORD));
    let last = bytes.last()?;
    if *matched > 0 {
        let wanted = &WORD[*matched..];
        if let Some(rest) = bytes.strip_prefix(wanted) {
            return Some(rest);
        }
        if wanted.starts_with(bytes) {
            *matched += bytes.len();
            return None;
        }
    }
    let is_escaped = |at: usize| {
        at.checked_sub(1)
            .map_or(*escaped, |before| bytes[before] == b'\\')
    };
    let found = FINDER.find_iter(bytes).find(|at| !is_escaped(*at));
    if let Some(at) = found {
        return Some(&bytes[at + WORD.len()..]);
    }
    // Its first letter is no other one of it.
    let begun = memrchr(b'"', bytes).filter(|at| WORD.starts_with(&bytes[*at..]) && !is_escaped(*at));
    *matched = begun.map_or(0, |at| bytes.len() - at);
    *escaped = *last == b'\\';
    None
}

/// Reads a document from the word on.
#[derive(Debug, Default)]
struct Reader {
    /// How many more objects and arrays are open than where it began.
    depth: i32,
    place: Place,
    /// What was there of a string that came in pieces.
    text: Text,
    /// What comes behind the string that came last, if that is a key.
    named: Value,
    /// What the value is that comes next.
    value: Value,
    /// How deep the members of the object with the counts are, inside of it.
    inside: Option<i32>,
    found: Option<Found>,
}

/// The counts of the outermost such object.
#[derive(Debug, Default)]
struct Found {
    depth: i32,
    values: Values,
}

#[derive(Debug, Default, Clone, Copy)]
enum Place {
    #[default]
    BetweenStrings,
    InString,
    /// Behind a backslash.
    Escaped,
}

#[derive(Debug, Default, Clone, Copy)]
enum Value {
    #[default]
    Other,
    /// The object with the counts.
    Usage,
    /// A count, and what its digits have been so far; nothing if there was something else.
    Count(Name, Option<u64>),
}

impl Reader {
    fn behind_word() -> Self {
        let mut reader = Self {
            place: Place::InString,
            ..Self::default()
        };
        reader.text.push(&WORD[1..]);
        reader
    }

    fn push(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, tail)) = bytes.split_first() {
            bytes = match self.place {
                Place::BetweenStrings if byte == b'"' => {
                    self.text.clear();
                    self.string(tail)
                }
                Place::BetweenStrings => {
                    self.between(byte);
                    tail
                }
                Place::InString => self.string(bytes),
                Place::Escaped => {
                    self.place = Place::InString;
                    tail
                }
            };
        }
    }

    /// What is left of a string, as far as it is there. Returns what comes after it.
    fn string<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let end = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
        let (run, rest) = bytes.split_at(end);
        match rest.split_first() {
            Some((b'"', rest)) => {
                // Most are whole.
                self.named = if self.text.is_empty() {
                    self.named(run)
                } else {
                    self.text.push(run);
                    self.named(self.text.get())
                };
                self.value = Value::Other;
                self.place = Place::BetweenStrings;
                rest
            }
            Some((_, rest)) => {
                // No name that is looked for has any.
                self.text.spoil();
                self.place = Place::Escaped;
                rest
            }
            None => {
                self.text.push(run);
                self.place = Place::InString;
                rest
            }
        }
    }

    /// What a key says about its value.
    fn named(&self, key: &[u8]) -> Value {
        if self.inside == Some(self.depth) {
            Name::of(key).map_or(Value::Other, |name| Value::Count(name, Some(0)))
        } else if matches!(key, b"usage" | b"usageMetadata") {
            Value::Usage
        } else {
            Value::Other
        }
    }

    fn between(&mut self, byte: u8) {
        match byte {
            b':' => self.value = self.named,
            b'{' | b'[' => {
                if byte == b'{' && matches!(self.value, Value::Usage) {
                    self.enter();
                }
                self.depth = self.depth.saturating_add(1);
                self.value = Value::Other;
            }
            b',' | b'}' | b']' => {
                if let (Value::Count(name, Some(count)), Some(found)) = (self.value, &mut self.found) {
                    found.values[name as usize] = Some(count);
                }
                self.value = Value::Other;
                if byte != b',' {
                    self.inside = self.inside.filter(|inside| *inside != self.depth);
                    self.depth = self.depth.saturating_sub(1);
                }
            }
            b' ' | b'\t' | b'\n' | b'\r' => {}
            _ => {
                if let Value::Count(_, count) = &mut self.value {
                    *count = count.and_then(|count| with_digit(count, byte));
                }
            }
        }
    }

    /// An object that is called so begins: what a tool was called with may have one too, but deeper.
    fn enter(&mut self) {
        let depth = self.depth;
        if self.found.as_ref().is_none_or(|found| depth < found.depth) {
            self.found = Some(Found {
                depth,
                ..Found::default()
            });
        }
        if self.found.as_ref().is_some_and(|found| depth == found.depth) {
            self.inside = Some(depth.saturating_add(1));
        }
    }
}

fn with_digit(count: u64, digit: u8) -> Option<u64> {
    let digit = char::from(digit).to_digit(10)?;
    count.checked_mul(10)?.checked_add(digit.into())
}

/// A short text; of one that is too long to be a name, nothing.
#[derive(Debug, Default)]
struct Text {
    bytes: [u8; Self::MAX],
    length: usize,
}

impl Text {
    /// The longest name that is looked for has 27 bytes.
    const MAX: usize = 32;

    fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn push(&mut self, bytes: &[u8]) {
        let end = self.length.saturating_add(bytes.len());
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
        }
        self.length = end;
    }

    fn clear(&mut self) {
        self.length = 0;
    }

    fn spoil(&mut self) {
        self.length = usize::MAX;
    }

    fn get(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
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
        leaf.prop_recursive(4, 24, 4, move |inner| {
            let name = "usage|usageMetadata|input_tokens|\"usage|[a-z\"\\\\]{0,40}";
            let member = prop_oneof![
                (name.prop_map(String::from), inner.clone()),
                (Just("usage".to_owned()), used.clone())
            ];
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Into::into),
                prop::collection::btree_map(
                    prop_oneof![
                        member.clone().prop_map(|(name, _)| name),
                        Just("usage".to_owned())
                    ],
                    member.prop_map(|(_, value)| value),
                    0..4
                )
                .prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
        .prop_flat_map(|inner| {
            // Most would say it in their outermost object.
            (0..4_usize, Just(inner)).prop_map(|(around, inner)| {
                (0..around).fold(inner, |inner, depth| match depth % 2 {
                    0 => serde_json::json!({ "a": inner }),
                    _ => serde_json::json!([[], inner]),
                })
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
                .filter(|(name, value)| {
                    matches!(name.as_str(), "usage" | "usageMetadata") && value.is_object()
                })
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
}
