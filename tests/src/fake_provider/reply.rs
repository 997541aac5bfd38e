//! What the fake has to say, whatever the API says it in.

use serde_json::{Value, json};

use super::Script;

/// How many tokens every request counts as. An answer counts one for each piece of its text.
pub const INPUT_TOKENS: u64 = 11;

/// The vector that every text is embedded as, and the same as 32-bit floats in base64.
pub(super) const EMBEDDING: [f64; 3] = [0.5, -0.25, 1.0];
pub(super) const EMBEDDING_BASE64: &str = "AAAAPwAAgL4AAIA/";

/// What a conversation has come to.
#[derive(Debug, Default)]
pub(super) struct Asked<'a> {
    /// The tool that is offered first.
    pub(super) tool: Option<&'a str>,
    /// What a tool returned, if that was said last.
    pub(super) result: Option<String>,
}

/// What comes next: tools are called when there are any, and what they return is repeated.
#[derive(Debug)]
pub(super) enum Reply {
    Text(Vec<String>),
    Tool { name: String, arguments: Value },
}

impl Reply {
    pub(super) fn to(asked: Asked<'_>, script: Script) -> Self {
        match asked {
            Asked {
                result: Some(result), ..
            } => Self::Text(vec!["The tool said: ".to_owned(), result]),
            Asked { tool: Some(name), .. } => Self::Tool {
                name: name.to_owned(),
                arguments: json!({ "city": "Paris" }),
            },
            _ => Self::Text((1..=script.pieces).map(|n| format!("piece {n} ")).collect()),
        }
    }

    pub(super) fn tokens(&self) -> u64 {
        match self {
            Self::Text(pieces) => pieces.len() as u64,
            Self::Tool { .. } => 1,
        }
    }
}

/// An event of a stream whose events have no names.
pub(super) fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// An event that is named as its data's `type` says.
pub(super) fn named_event(data: &Value) -> String {
    format!(
        "event: {}\ndata: {data}\n\n",
        data["type"].as_str().unwrap_or_default()
    )
}

/// Arguments in two fragments, as models write them.
pub(super) fn halves(arguments: &Value) -> [String; 2] {
    let text = arguments.to_string();
    let (one, other) = text.split_at(text.len() / 2);
    [one.to_owned(), other.to_owned()]
}
