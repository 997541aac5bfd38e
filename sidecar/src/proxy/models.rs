//! Which model a JSON body asks for: its field `model`, read as the body goes by. Where two readers could find two models,
//! none is found.

use super::json::{MAX_DEPTH, MAX_TEXT, Malformed, Reader, Scalar, Visitor};

/// Why the model of a body can't be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ambiguous {
    /// Not JSON.
    Syntax,
    /// Not UTF-8.
    Utf8,
    /// Too many objects and arrays inside one another.
    Depth,
    /// It ended too early.
    Truncated,
    /// Something else than an object.
    NotObject,
    /// `model` is there twice.
    Twice,
    /// A field is spelled like `model`, but not exactly so: some readers take it for it.
    Spelling,
    /// `model` is no string.
    NotString,
    /// `model` is not a text of a sane length.
    NotText,
    /// Another field names further models.
    Elsewhere(String),
}

impl Ambiguous {
    /// What is wrong with the body, for whoever sent it.
    pub fn why(&self) -> String {
        match self {
            Self::Syntax => "the body is not JSON".into(),
            Self::Utf8 => "the body is not UTF-8".into(),
            Self::Depth => {
                format!("in the body, more than {MAX_DEPTH} objects and arrays are inside one another")
            }
            Self::Truncated => "the body is not complete".into(),
            Self::NotObject => "the body is not a JSON object".into(),
            Self::Twice => "`model` is in the body twice".into(),
            Self::Spelling => "a field of the body is spelled like `model`, but with other letters".into(),
            Self::NotString => "`model` is not a string".into(),
            Self::NotText => format!("`model` is not a text of at most {MAX_TEXT} bytes"),
            Self::Elsewhere(field) => {
                format!("the field `{field}` names further models, which is not allowed here")
            }
        }
    }
}

impl From<Malformed> for Ambiguous {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Syntax => Self::Syntax,
            Malformed::Utf8 => Self::Utf8,
            Malformed::Depth => Self::Depth,
        }
    }
}

/// Reads a body, in pieces of any size.
#[derive(Debug, Default)]
pub struct Scanner {
    reader: Reader,
    found: Found,
    failed: Option<Ambiguous>,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Found {
    elsewhere: Vec<String>,
    /// The field whose value comes next.
    field: Field,
    seen: bool,
    model: Option<String>,
    problem: Option<Ambiguous>,
}

#[derive(Debug, Default)]
enum Field {
    #[default]
    Other,
    Model,
    Elsewhere(String),
}

impl Scanner {
    /// For bodies that may have none of these fields with something in them, besides `model`.
    pub fn new(elsewhere: &[String]) -> Self {
        let found = Found {
            elsewhere: elsewhere.to_vec(),
            ..Found::default()
        };
        Self {
            found,
            ..Self::default()
        }
    }

    /// Reads on; an error is final.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Ambiguous> {
        if self.failed.is_none() {
            let read = self.reader.push(bytes, &mut self.found);
            self.failed = self.found.problem.take().or(read.err().map(Ambiguous::from));
        }
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// At the end of the body: the model, if it names one.
    pub fn finish(self) -> Result<Option<String>, Ambiguous> {
        match self.failed {
            Some(ambiguous) => Err(ambiguous),
            None if self.reader.is_complete() => Ok(self.found.model),
            None => Err(Ambiguous::Truncated),
        }
    }
}

impl Found {
    fn problem(&mut self, problem: Ambiguous) {
        self.problem.get_or_insert(problem);
    }

    /// Something stands in a field that should not have it.
    fn value_of_field(&mut self) {
        match std::mem::take(&mut self.field) {
            Field::Other => {}
            Field::Model => self.problem(Ambiguous::NotString),
            Field::Elsewhere(field) => self.problem(Ambiguous::Elsewhere(field)),
        }
    }
}

impl Visitor for Found {
    fn wants(&self, depth: u32, key: bool) -> bool {
        depth == 1 && (key || matches!(self.field, Field::Model))
    }

    fn key(&mut self, depth: u32, key: Option<&str>) {
        // Keys that are too long to be kept are not called `model`.
        let Some(key) = key.filter(|_| depth == 1) else {
            return;
        };
        if key == "model" {
            self.field = Field::Model;
            if self.seen {
                self.problem(Ambiguous::Twice);
            }
            self.seen = true;
        } else if key.eq_ignore_ascii_case("model") {
            self.problem(Ambiguous::Spelling);
        } else if let Some(field) = self
            .elsewhere
            .iter()
            .find(|field| key.eq_ignore_ascii_case(field))
        {
            self.field = Field::Elsewhere(field.clone());
        }
    }

    fn scalar(&mut self, depth: u32, value: Scalar<'_>) {
        match (depth, value) {
            (0, _) => self.problem(Ambiguous::NotObject),
            (1, Scalar::Null) => self.field = Field::Other,
            (1, Scalar::String(text)) if matches!(self.field, Field::Model) => {
                self.field = Field::Other;
                match text {
                    Some(text) => self.model = Some(text.to_owned()),
                    None => self.problem(Ambiguous::NotText),
                }
            }
            (1, _) => self.value_of_field(),
            _ => {}
        }
    }

    fn open(&mut self, depth: u32, object: bool) {
        match depth {
            1 if !object => self.problem(Ambiguous::NotObject),
            2 => self.value_of_field(),
            _ => {}
        }
    }

    fn close(&mut self, _: u32) {}
}

#[cfg(test)]
mod tests;
