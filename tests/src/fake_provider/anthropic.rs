//! Anthropic's Messages API.

use serde_json::{Value, json};

use super::chat::text_of;
use super::reply::{Asked, INPUT_TOKENS, Reply, halves, named_event};
use super::{Answer, Api, Call, Refusal, Script};

pub(super) struct Anthropic;

impl Api for Anthropic {
    fn key<'a>(&self, call: &'a Call) -> Option<&'a str> {
        // The newest clients send it as the latter.
        call.header("x-api-key").or_else(|| call.bearer())
    }

    fn answer(&self, call: &Call, script: Script) -> Result<Answer, Refusal> {
        if call.header("anthropic-version").is_none() {
            return Err(Refusal::Missing("anthropic-version"));
        }
        match call.path.as_str() {
            "/v1/messages" if call.post() => {
                if call.body["max_tokens"].is_null() {
                    return Err(Refusal::Missing("max_tokens"));
                }
                message(call, script)
            }
            "/v1/messages/count_tokens" if call.post() => {
                call.text("model")?;
                Ok(Answer::json(json!({ "input_tokens": INPUT_TOKENS })))
            }
            "/v1/models" if !call.post() => Ok(Answer::json(json!({
                "data": [model("claude-opus-5"), model("claude-haiku-5-5")],
                "has_more": false,
                "first_id": "claude-opus-5",
                "last_id": "claude-haiku-5-5",
            }))),
            path => match path.strip_prefix("/v1/models/") {
                Some(id) if !call.post() => Ok(Answer::json(model(id))),
                _ => Err(Refusal::UnknownRoute),
            },
        }
        .map(|answer| answer.with("request-id", format!("req_fake{}", script.number)))
    }

    fn refuse(&self, refusal: &Refusal, _: &Call, number: u64) -> Answer {
        let (status, kind, message) = match refusal {
            Refusal::NoKey => (
                401,
                "authentication_error",
                "x-api-key header is required".to_owned(),
            ),
            Refusal::DeadKey(_) => (401, "authentication_error", "invalid x-api-key".to_owned()),
            Refusal::Forbidden(model) => (
                403,
                "permission_error",
                format!("Your API key does not have permission to use the model {model}."),
            ),
            Refusal::UnknownModel(model) => (404, "not_found_error", format!("model: {model}")),
            Refusal::UnknownRoute => (404, "not_found_error", "Not Found".to_owned()),
            Refusal::Missing("anthropic-version") => (
                400,
                "invalid_request_error",
                "anthropic-version: header is required".to_owned(),
            ),
            Refusal::Missing(field) => (400, "invalid_request_error", format!("{field}: Field required")),
            Refusal::RateLimited => (
                429,
                "rate_limit_error",
                "This request would exceed your account's rate limit. Please try again later.".to_owned(),
            ),
            Refusal::Overloaded => (529, "overloaded_error", "Overloaded".to_owned()),
            Refusal::Broken => (500, "api_error", "Internal server error".to_owned()),
        };
        let id = format!("req_fake{number}");
        let mut error = error(kind, &message);
        error["request_id"] = json!(id);
        let answer = Answer::error(status, error).with("request-id", id);
        if *refusal == Refusal::RateLimited {
            return answer.with("retry-after", "1").with("x-should-retry", "true");
        }
        answer
    }

    fn error_event(&self, _: &Call) -> String {
        named_event(&error("overloaded_error", "Overloaded"))
    }
}

fn error(kind: &str, message: &str) -> Value {
    json!({ "type": "error", "error": { "type": kind, "message": message } })
}

fn model(id: &str) -> Value {
    json!({ "type": "model", "id": id, "display_name": id, "created_at": "2026-09-01T00:00:00Z" })
}

fn message(call: &Call, script: Script) -> Result<Answer, Refusal> {
    let model = call.text("model")?;
    let messages = call.body["messages"]
        .as_array()
        .ok_or(Refusal::Missing("messages"))?;
    let last = messages.last().ok_or(Refusal::Missing("messages"))?;
    let mut blocks = last["content"].as_array().into_iter().flatten();
    let result = blocks.rfind(|block| block["type"] == "tool_result");
    let asked = Asked {
        tool: call.body["tools"][0]["name"].as_str(),
        result: result.map(|block| text_of(&block["content"])),
    };
    let reply = Reply::to(asked, script);
    let (block, reason) = match &reply {
        Reply::Text(pieces) => (json!({ "type": "text", "text": pieces.concat() }), "end_turn"),
        Reply::Tool { name, arguments } => {
            let id = format!("toolu_fake{}", script.number);
            (
                json!({ "type": "tool_use", "id": id, "name": name, "input": arguments }),
                "tool_use",
            )
        }
    };
    let message = json!({
        "id": format!("msg_fake{}", script.number),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block],
        "stop_reason": reason,
        "stop_sequence": null,
        "usage": {
            "input_tokens": INPUT_TOKENS,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": reply.tokens(),
            "service_tier": "standard",
        },
    });
    if call.wants_stream() {
        return Ok(Answer::events(stream(&reply, &message)));
    }
    Ok(Answer::json(message))
}

fn stream(reply: &Reply, message: &Value) -> Vec<String> {
    let mut begun = message.clone();
    begun["content"] = json!([]);
    begun["stop_reason"] = Value::Null;
    begun["usage"]["output_tokens"] = json!(1);
    let mut block = message["content"][0].clone();
    let deltas: Vec<_> = match reply {
        Reply::Text(pieces) => {
            block["text"] = json!("");
            let delta = |piece| json!({ "type": "text_delta", "text": piece });
            pieces.iter().map(delta).collect()
        }
        Reply::Tool { arguments, .. } => {
            block["input"] = json!({});
            let delta = |half| json!({ "type": "input_json_delta", "partial_json": half });
            halves(arguments).map(delta).into()
        }
    };
    let mut events = vec![
        json!({ "type": "message_start", "message": begun }),
        json!({ "type": "content_block_start", "index": 0, "content_block": block }),
        json!({ "type": "ping" }),
    ];
    let delta = |delta| json!({ "type": "content_block_delta", "index": 0, "delta": delta });
    events.extend(deltas.into_iter().map(delta));
    events.extend([
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({
            "type": "message_delta",
            "delta": { "stop_reason": message["stop_reason"], "stop_sequence": null },
            "usage": { "output_tokens": reply.tokens() },
        }),
        json!({ "type": "message_stop" }),
    ]);
    events.iter().map(named_event).collect()
}
