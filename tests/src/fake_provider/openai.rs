//! `OpenAI`: models and embeddings, errors, and the way to the other parts of its API.

use serde_json::{Value, json};

use super::reply::{EMBEDDING, EMBEDDING_BASE64, INPUT_TOKENS, event};
use super::{Answer, Api, Call, Refusal, Script, chat, responses};

pub(super) struct OpenAi;

impl Api for OpenAi {
    fn key<'a>(&self, call: &'a Call) -> Option<&'a str> {
        call.bearer()
    }

    fn answer(&self, call: &Call, script: Script) -> Result<Answer, Refusal> {
        answer(call, call.path.strip_prefix("/v1").unwrap_or_default(), script)
    }

    fn refuse(&self, refusal: &Refusal, call: &Call, number: u64) -> Answer {
        let (status, error) = error_of(refusal, call);
        let answer = Answer::error(status, json!({ "error": error }))
            .with("x-request-id", format!("req_fake{number}"));
        if *refusal == Refusal::RateLimited {
            return answer
                .with("retry-after-ms", "20")
                .with("x-ratelimit-remaining-requests", "0");
        }
        answer
    }

    fn error_event(&self, call: &Call) -> String {
        let (_, mut error) = error_of(&Refusal::Broken, call);
        if call.path.ends_with("/responses") {
            error["type"] = json!("error");
            error["sequence_number"] = json!(99);
            return super::reply::named_event(&error);
        }
        event(&json!({ "error": error }))
    }
}

/// The answer to a request for what follows the base URL.
pub(super) fn answer(call: &Call, path: &str, script: Script) -> Result<Answer, Refusal> {
    match path {
        "/chat/completions" if call.post() => chat::answer(call, call.text("model")?, script),
        "/responses" if call.post() => responses::answer(call, script),
        "/embeddings" if call.post() => embeddings(call, call.text("model")?),
        "/models" if !call.post() => Ok(Answer::json(json!({
            "object": "list",
            "data": [model("gpt-4o"), model("gpt-4o-mini")],
        }))),
        _ => match path.strip_prefix("/models/") {
            Some(id) if !call.post() => Ok(Answer::json(model(id))),
            _ => Err(Refusal::UnknownRoute),
        },
    }
}

fn model(id: &str) -> Value {
    json!({ "id": id, "object": "model", "created": 1_715_367_049, "owned_by": "system" })
}

/// One vector for each text. Python's client asks for base64 unless told otherwise.
pub(super) fn embeddings(call: &Call, model: &str) -> Result<Answer, Refusal> {
    let texts = match &call.body["input"] {
        Value::Null => return Err(Refusal::Missing("input")),
        Value::Array(texts) => texts.len(),
        _ => 1,
    };
    let vector = match call.body["encoding_format"].as_str() {
        Some("base64") => json!(EMBEDDING_BASE64),
        _ => json!(EMBEDDING),
    };
    let data: Vec<_> = (0..texts)
        .map(|index| json!({ "object": "embedding", "index": index, "embedding": vector }))
        .collect();
    Ok(Answer::json(json!({
        "object": "list",
        "data": data,
        "model": model,
        "usage": { "prompt_tokens": INPUT_TOKENS, "total_tokens": INPUT_TOKENS },
    })))
}

/// The status of a refusal, and what stands under `error`.
pub(super) fn error_of(refusal: &Refusal, call: &Call) -> (u16, Value) {
    let error = |message: &str, kind: &str, param: Option<&str>, code: Option<&str>| json!({ "message": message, "type": kind, "param": param, "code": code });
    let invalid = "invalid_request_error";
    match refusal {
        Refusal::NoKey => {
            let message = "You didn't provide an API key. You need to provide your API key in an Authorization header using \
                           Bearer auth (i.e. Authorization: Bearer YOUR_KEY).";
            (401, error(message, invalid, None, None))
        }
        Refusal::DeadKey(key) => {
            let message = format!(
                "Incorrect API key provided: {}. You can find your API key at https://platform.openai.com/account/api-keys.",
                masked(key)
            );
            (401, error(&message, invalid, None, Some("invalid_api_key")))
        }
        Refusal::Forbidden(model) => {
            let message = format!("Project `proj_fake` does not have access to model `{model}`");
            (403, error(&message, invalid, None, Some("model_not_found")))
        }
        Refusal::UnknownModel(model) => {
            let message = format!("The model `{model}` does not exist or you do not have access to it.");
            (404, error(&message, invalid, None, Some("model_not_found")))
        }
        Refusal::UnknownRoute => {
            let message = format!("Invalid URL ({} {})", call.method, call.path);
            (404, error(&message, invalid, None, None))
        }
        Refusal::Missing(field) => {
            let message = format!("Missing required parameter: '{field}'.");
            (
                400,
                error(&message, invalid, Some(field), Some("missing_required_parameter")),
            )
        }
        Refusal::RateLimited => {
            let message = "Rate limit reached for requests. Please try again in 20ms.";
            (429, error(message, "requests", None, Some("rate_limit_exceeded")))
        }
        Refusal::Overloaded => {
            let message = "The engine is currently overloaded, please try again later";
            (503, error(message, "server_error", None, None))
        }
        Refusal::Broken => {
            let message = "The server had an error while processing your request. Sorry about that!";
            (500, error(message, "server_error", None, None))
        }
    }
}

/// A key as the provider quotes it: the ends of it.
pub(super) fn masked(key: &str) -> String {
    match (key.get(..8), key.get(key.len().saturating_sub(4)..)) {
        (Some(begin), Some(end)) if key.len() > 12 => format!("{begin}{}{end}", "*".repeat(key.len() - 12)),
        _ => key.to_owned(),
    }
}
