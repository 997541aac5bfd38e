//! Which models a JSON body asks for: its field `model`, and those of its tools, read as the body goes by. Where two
//! readers could find two models, none is found.

use llmwarden_proto::delivery::Upstream;

use super::json::{MAX_DEPTH, MAX_TEXT, Malformed, Reader, Scalar, Visitor};

/// How many models the tools of one body may name.
const MAX_IN_TOOLS: usize = 16;
/// The fields that hold tools, at any depth: some stand in what was said before. Not in what a tool was called with, which
/// is a model's own text.
const TOOLS: [&str; 2] = ["tools", "plugins"];
/// In what was said before, what a tool was called with.
const CALLED_WITH: &str = "input";
/// What tells one kind of them from another.
const KINDS: [&str; 2] = ["type", "id"];

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
    /// Tools name too many of them.
    InTools,
    /// A tool uses models that it need not name.
    Tool(String),
}

impl Ambiguous {
    /// Whether its model can be told, and others are asked for beside it.
    pub const fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Elsewhere(_) | Self::InTools | Self::Tool(_))
    }

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
                format!("its field `{field}` stands for further ones")
            }
            Self::InTools => format!("its tools name more than {MAX_IN_TOOLS}"),
            Self::Tool(tool) => {
                format!("its tool `{tool}` uses models of its own")
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

/// The models that a body names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// That of the field `model`.
    pub model: Option<String>,
    /// Those of its tools, each once.
    pub in_tools: Vec<String>,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Found {
    elsewhere: Vec<String>,
    model_tools: Vec<String>,
    /// What the value stands for that comes next.
    field: Field,
    /// Which of what is open is a list of tools, and which is a tool.
    lists: Depths,
    tools: Depths,
    /// Since which depth everything is what a tool was called with.
    called_with: Option<u32>,
    seen: bool,
    named: Named,
    problem: Option<Ambiguous>,
}

#[derive(Debug, Default)]
enum Field {
    #[default]
    Other,
    Model,
    Elsewhere(String),
    Tools,
    CalledWith,
    /// In a tool.
    ToolsModel,
    ToolsKind,
}

/// A bit for each depth.
#[derive(Debug, Clone, Copy, Default)]
struct Depths(u128);

impl Depths {
    fn has(self, depth: u32) -> bool {
        depth > 0 && self.0 >> (depth - 1) & 1 == 1
    }

    fn set(&mut self, depth: u32, to: bool) {
        let bit = 1 << (depth - 1);
        self.0 = if to { self.0 | bit } else { self.0 & !bit };
    }
}

impl Scanner {
    /// For bodies of requests to this provider.
    pub fn new(upstream: &Upstream) -> Self {
        let found = Found {
            elsewhere: upstream.models_elsewhere.clone(),
            model_tools: upstream.model_tools.clone(),
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

    /// At the end of the body: what it names.
    pub fn finish(self) -> Result<Named, Ambiguous> {
        match self.failed {
            Some(ambiguous) => Err(ambiguous),
            None if self.reader.is_complete() => Ok(self.found.named),
            None => Err(Ambiguous::Truncated),
        }
    }
}

impl Found {
    fn problem(&mut self, problem: Ambiguous) {
        self.problem.get_or_insert(problem);
    }

    /// What a field of this name, in what is open at this depth, stands for.
    fn field(&mut self, depth: u32, key: &str) -> Field {
        let is = |name: &str| key.eq_ignore_ascii_case(name);
        if depth == 1 {
            if key == "model" {
                if std::mem::replace(&mut self.seen, true) {
                    self.problem(Ambiguous::Twice);
                }
                return Field::Model;
            }
            if is("model") {
                self.problem(Ambiguous::Spelling);
            }
            if let Some(field) = self.elsewhere.iter().find(|field| is(field)) {
                return Field::Elsewhere(field.clone());
            }
        }
        if self.called_with.is_some() {
            Field::Other
        } else if depth > 1 && key == CALLED_WITH && !self.tools.has(depth) {
            Field::CalledWith
        } else if TOOLS.into_iter().any(is) {
            Field::Tools
        } else if is("model") && (self.tools.has(depth) || self.tools.has(depth - 1)) {
            // Also in its settings. Deeper there are schemas and examples.
            Field::ToolsModel
        } else if KINDS.into_iter().any(is) && self.tools.has(depth) {
            Field::ToolsKind
        } else {
            Field::Other
        }
    }

    fn text(&mut self, field: Field, text: Option<&str>) {
        match (field, text) {
            (Field::Model, Some(text)) => self.named.model = Some(text.to_owned()),
            (Field::Model | Field::ToolsModel, None) => self.problem(Ambiguous::NotText),
            (Field::ToolsModel, Some(text)) => {
                let named = &mut self.named.in_tools;
                let is_new = !named.iter().any(|named| named == text);
                if is_new && named.len() == MAX_IN_TOOLS {
                    self.problem(Ambiguous::InTools);
                } else if is_new {
                    named.push(text.to_owned());
                }
            }
            (Field::ToolsKind, Some(text)) => {
                if self.model_tools.iter().any(|tool| tool == text) {
                    self.problem(Ambiguous::Tool(text.to_owned()));
                }
            }
            (field, _) => self.other_value(field),
        }
    }

    /// No text.
    fn other_value(&mut self, field: Field) {
        match field {
            Field::Model => self.problem(Ambiguous::NotString),
            Field::Elsewhere(field) => self.problem(Ambiguous::Elsewhere(field)),
            Field::Other | Field::Tools | Field::CalledWith | Field::ToolsModel | Field::ToolsKind => {}
        }
    }
}

impl Visitor for Found {
    fn wants(&self, _: u32, key: bool) -> bool {
        key || matches!(self.field, Field::Model | Field::ToolsModel | Field::ToolsKind)
    }

    fn key(&mut self, depth: u32, key: Option<&str>) {
        // Keys that are too long to be kept are not called so.
        self.field = key.map_or(Field::Other, |key| self.field(depth, key));
    }

    fn scalar(&mut self, depth: u32, value: Scalar<'_>) {
        let field = std::mem::take(&mut self.field);
        match value {
            _ if depth == 0 => self.problem(Ambiguous::NotObject),
            Scalar::Null => {}
            Scalar::String(text) => self.text(field, text),
            Scalar::Number | Scalar::Bool => self.other_value(field),
        }
    }

    fn open(&mut self, depth: u32, object: bool) {
        if depth == 1 && !object {
            self.problem(Ambiguous::NotObject);
        }
        let field = std::mem::take(&mut self.field);
        self.tools.set(depth, object && self.lists.has(depth - 1));
        self.lists.set(depth, !object && matches!(field, Field::Tools));
        if matches!(field, Field::CalledWith) {
            self.called_with = Some(depth);
        }
        self.other_value(field);
    }

    fn close(&mut self, depth: u32) {
        if self.called_with == Some(depth) {
            self.called_with = None;
        }
    }
}

#[cfg(test)]
mod tests;
