//! How many tokens an answer says that it took. It is read as it goes by, whole or as a stream of events, and never kept.

use hyper::HeaderMap;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use memchr::memchr;

use super::json::{Reader, Scalar, Visitor};

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
    /// Of the document that is being read; `None` once it was none.
    reader: Option<Reader>,
    counts: Counts,
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
        let media_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
        let form = match media_type.split(';').next()?.trim() {
            "application/json" => Form::Json,
            "text/event-stream" => Form::Events(Line::Start(0)),
            _ => return None,
        };
        Some(Self {
            form,
            reader: Some(Reader::default()),
            counts: Counts::default(),
        })
    }

    /// A piece of the answer.
    pub fn push(&mut self, bytes: &[u8]) {
        match self.form {
            Form::Json => self.read(bytes),
            Form::Events(line) => {
                let line = self.events(line, bytes);
                self.form = Form::Events(line);
            }
        }
    }

    /// What it said so far; of what it says again, the last counts.
    pub fn usage(&self) -> Option<Usage> {
        let values = &self.counts.values;
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

    fn read(&mut self, bytes: &[u8]) {
        if let Some(reader) = &mut self.reader
            && reader.push(bytes, &mut self.counts).is_err()
        {
            self.reader = None;
        }
    }

    fn events(&mut self, mut line: Line, mut bytes: &[u8]) -> Line {
        while let Some((&byte, tail)) = bytes.split_first() {
            (line, bytes) = match line {
                // An empty line ends an event.
                Line::Start(0) if byte == b'\n' => {
                    self.reader = Some(Reader::default());
                    self.counts.begin();
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
                        self.read(text);
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
    fn of(key: &str) -> Option<Self> {
        Some(match key {
            "prompt_tokens" | "input_tokens" | "promptTokenCount" => Self::Input,
            "cache_read_input_tokens" => Self::CacheRead,
            "cache_creation_input_tokens" => Self::CacheWritten,
            "toolUsePromptTokenCount" => Self::ToolInput,
            "completion_tokens" | "output_tokens" | "candidatesTokenCount" => Self::Output,
            "thoughtsTokenCount" => Self::Thoughts,
            _ => return None,
        })
    }
}

/// `usage` stands in the outermost object, or in one directly inside (`response`, `message`, a chunk in an array).
const DEEPEST: u32 = 2;

#[derive(Debug, Default)]
struct Counts {
    values: [Option<u64>; 6],
    /// The value that comes is the object with the counts.
    expected: bool,
    /// How deep its members are, inside of it.
    inside: Option<u32>,
    /// What the number that comes counts.
    name: Option<Name>,
}

impl Counts {
    /// A new document begins.
    fn begin(&mut self) {
        *self = Self {
            values: self.values,
            ..Self::default()
        };
    }
}

impl Visitor for Counts {
    fn wants(&self, depth: u32, key: bool) -> bool {
        let inside = self.inside == Some(depth);
        if key {
            depth <= DEEPEST || inside
        } else {
            inside && self.name.is_some()
        }
    }

    fn key(&mut self, depth: u32, key: Option<&str>) {
        let inside = self.inside == Some(depth);
        self.expected = !inside && depth <= DEEPEST && matches!(key, Some("usage" | "usageMetadata"));
        self.name = key.filter(|_| inside).and_then(Name::of);
    }

    fn scalar(&mut self, depth: u32, value: Scalar<'_>) {
        self.expected = false;
        if let (Some(name), Scalar::Number(Some(text))) =
            (self.name.filter(|_| self.inside == Some(depth)), value)
            && let Ok(count) = text.parse()
        {
            self.values[name as usize] = Some(count);
        }
    }

    fn open(&mut self, depth: u32, object: bool) {
        if self.expected && object {
            self.inside = Some(depth);
        }
        self.expected = false;
        self.name = None;
    }

    fn close(&mut self, depth: u32) {
        if self.inside == Some(depth) {
            self.inside = None;
        }
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

    proptest! {
        #[test]
        fn nothing_upsets_it(answer in "[data: {}\\[\\]\"usage,1\r\n]{0,80}", size in 1..9_usize) {
            for content_type in ["application/json", EVENTS] {
                let whole = observe(content_type, &answer, answer.len().max(1));
                prop_assert_eq!(observe(content_type, &answer, size), whole);
            }
        }
    }
}
