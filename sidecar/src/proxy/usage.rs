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
mod tests;
