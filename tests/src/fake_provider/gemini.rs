//! The Gemini API: the model and what is asked of it in the path, the key in a header or the query.

use serde_json::{Value, json};

use super::reply::{Asked, EMBEDDING, INPUT_TOKENS, Reply};
use super::{Answer, Api, Call, Refusal, Script};

pub(super) struct Gemini;

impl Api for Gemini {
    fn key<'a>(&self, call: &'a Call) -> Option<&'a str> {
        call.header("x-goog-api-key").or_else(|| call.parameter("key"))
    }

    fn model<'a>(&self, call: &'a Call) -> Option<&'a str> {
        let (model, _) = asked_of(call)?;
        Some(model)
    }

    fn answer(&self, call: &Call, script: Script) -> Result<Answer, Refusal> {
        match asked_of(call) {
            Some((name, None)) if !call.post() => Ok(Answer::json(model(name))),
            None if !call.post() && resource(&call.path) == Some("models") => Ok(Answer::json(json!({
                "models": [model("gemini-2.5-flash"), model("gemini-2.5-pro")],
            }))),
            Some((name, Some(method))) if call.post() => generate(call, name, method, script),
            _ => Err(Refusal::UnknownRoute),
        }
    }

    fn refuse(&self, refusal: &Refusal, _: &Call, _: u64) -> Answer {
        let (code, status, message) = match refusal {
            Refusal::NoKey => (
                403,
                "PERMISSION_DENIED",
                "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or \
                 other form of API consumer identity to call this API."
                    .to_owned(),
            ),
            Refusal::DeadKey(_) => (
                400,
                "INVALID_ARGUMENT",
                "API key not valid. Please pass a valid API key.".to_owned(),
            ),
            Refusal::Forbidden(model) => (
                403,
                "PERMISSION_DENIED",
                format!("The caller does not have permission to use models/{model}"),
            ),
            Refusal::UnknownModel(model) => (
                404,
                "NOT_FOUND",
                format!("models/{model} is not found for API version v1beta, or is not supported for generateContent."),
            ),
            Refusal::UnknownRoute => (404, "NOT_FOUND", "Requested entity was not found.".to_owned()),
            Refusal::Missing(field) => (400, "INVALID_ARGUMENT", format!("{field} is not specified")),
            Refusal::RateLimited => (
                429,
                "RESOURCE_EXHAUSTED",
                "You exceeded your current quota, please check your plan and billing details.".to_owned(),
            ),
            Refusal::Overloaded => (
                503,
                "UNAVAILABLE",
                "The model is overloaded. Please try again later.".to_owned(),
            ),
            Refusal::Broken => (500, "INTERNAL", "An internal error has occurred.".to_owned()),
        };
        let mut error = json!({ "code": code, "message": message, "status": status });
        if let Refusal::DeadKey(_) = refusal {
            error["details"] = json!([
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "API_KEY_INVALID",
                    "domain": "googleapis.com",
                    "metadata": { "service": "generativelanguage.googleapis.com" },
                },
                { "@type": "type.googleapis.com/google.rpc.LocalizedMessage", "locale": "en-US", "message": message },
            ]);
        }
        Answer::error(code, json!({ "error": error }))
    }

    fn error_event(&self, _: &Call) -> String {
        event(
            &json!({ "error": { "code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE" } }),
        )
    }
}

/// A path without the API's version.
fn resource(path: &str) -> Option<&str> {
    let (version, resource) = path.strip_prefix('/')?.split_once('/')?;
    matches!(version, "v1" | "v1beta" | "v1alpha").then_some(resource)
}

/// The model of a path, and the method after it.
fn asked_of(call: &Call) -> Option<(&str, Option<&str>)> {
    let rest = resource(&call.path)?.strip_prefix("models/")?;
    Some(match rest.split_once(':') {
        Some((model, method)) => (model, Some(method)),
        None => (rest, None),
    })
}

fn model(name: &str) -> Value {
    json!({
        "name": format!("models/{name}"),
        "version": "001",
        "displayName": name,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    })
}

fn event(data: &Value) -> String {
    format!("data: {data}\r\n\r\n")
}

fn generate(call: &Call, model: &str, method: &str, script: Script) -> Result<Answer, Refusal> {
    let embedding = json!({ "values": EMBEDDING });
    let array = |field: &'static str| call.body[field].as_array().ok_or(Refusal::Missing(field));
    match method {
        "generateContent" | "streamGenerateContent" => {}
        "embedContent" => return Ok(Answer::json(json!({ "embedding": embedding }))),
        "batchEmbedContents" => {
            let embeddings: Vec<_> = array("requests")?.iter().map(|_| embedding.clone()).collect();
            return Ok(Answer::json(json!({ "embeddings": embeddings })));
        }
        "countTokens" => return Ok(Answer::json(json!({ "totalTokens": INPUT_TOKENS }))),
        _ => return Err(Refusal::UnknownRoute),
    }
    let last = array("contents")?.last().ok_or(Refusal::Missing("contents"))?;
    let parts = last["parts"].as_array().into_iter().flatten();
    let result = parts
        .map(|part| &part["functionResponse"])
        .find(|result| !result.is_null());
    let asked = Asked {
        tool: call.body["tools"][0]["functionDeclarations"][0]["name"].as_str(),
        // An object: what a tool returned stands under a name that the program chose.
        result: result.map(|result| {
            let values = result["response"].as_object().into_iter().flatten();
            values.filter_map(|(_, value)| value.as_str()).collect()
        }),
    };
    let reply = Reply::to(asked, script);
    let pieces: Vec<_> = match &reply {
        Reply::Text(pieces) => pieces.iter().map(|piece| json!({ "text": piece })).collect(),
        Reply::Tool { name, arguments } => {
            vec![json!({ "functionCall": { "name": name, "args": arguments } })]
        }
    };
    let chunk = |parts: &[Value], last: bool| {
        let mut candidate = json!({ "content": { "parts": parts, "role": "model" }, "index": 0 });
        let mut usage = json!({
            "promptTokenCount": INPUT_TOKENS,
            "totalTokenCount": INPUT_TOKENS,
            "promptTokensDetails": [{ "modality": "TEXT", "tokenCount": INPUT_TOKENS }],
        });
        if last {
            candidate["finishReason"] = json!("STOP");
            usage["candidatesTokenCount"] = json!(reply.tokens());
            usage["totalTokenCount"] = json!(INPUT_TOKENS + reply.tokens());
        }
        json!({
            "candidates": [candidate],
            "usageMetadata": usage,
            "modelVersion": model,
            "responseId": format!("fake{}", script.number),
        })
    };
    if method == "generateContent" {
        return Ok(Answer::json(chunk(&pieces, true)));
    }
    let chunks = pieces.iter().enumerate();
    let chunks = chunks.map(|(n, piece)| chunk(std::slice::from_ref(piece), n + 1 == pieces.len()));
    Ok(match call.parameter("alt") {
        Some("sse") => Answer::events(chunks.map(|chunk| event(&chunk)).collect()),
        _ => Answer::json(chunks.collect()),
    })
}
