//! Chat completions, the API that most others imitate.

use serde_json::{Value, json};

use super::reply::{Asked, INPUT_TOKENS, Reply, event, halves};
use super::{Answer, Call, Refusal, Script};

pub(super) fn answer(call: &Call, model: &str, script: Script) -> Result<Answer, Refusal> {
    let messages = call.body["messages"]
        .as_array()
        .ok_or(Refusal::Missing("messages"))?;
    let last = messages.last().ok_or(Refusal::Missing("messages"))?;
    let asked = Asked {
        tool: call.body["tools"][0]["function"]["name"].as_str(),
        result: (last["role"] == "tool").then(|| text_of(&last["content"])),
    };
    let reply = Reply::to(asked, script);
    let usage = json!({
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": reply.tokens(),
        "total_tokens": INPUT_TOKENS + reply.tokens(),
        "prompt_tokens_details": { "cached_tokens": 0, "audio_tokens": 0 },
        "completion_tokens_details": {
            "reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    });
    let id = format!("chatcmpl-fake{}", script.number);
    let tool_id = format!("call_fake{}", script.number);
    if call.wants_stream() {
        let with_usage = call.body["stream_options"]["include_usage"] == true;
        return Ok(Answer::events(stream(
            &reply,
            &id,
            &tool_id,
            model,
            with_usage.then_some(&usage),
        )));
    }
    let (message, reason) = match &reply {
        Reply::Text(pieces) => (
            json!({ "role": "assistant", "content": pieces.concat(), "refusal": null, "annotations": [] }),
            "stop",
        ),
        Reply::Tool { name, arguments } => {
            let function = json!({ "name": name, "arguments": arguments.to_string() });
            let call = json!({ "id": tool_id, "type": "function", "function": function });
            let message = json!({ "role": "assistant", "content": null, "refusal": null, "annotations": [], "tool_calls": [call] });
            (message, "tool_calls")
        }
    };
    let mut completion = envelope(&id, "chat.completion", model);
    completion["choices"] =
        json!([{ "index": 0, "message": message, "logprobs": null, "finish_reason": reason }]);
    completion["usage"] = usage;
    Ok(Answer::json(completion))
}

fn envelope(id: &str, object: &str, model: &str) -> Value {
    json!({
        "id": id,
        "object": object,
        "created": jiff::Timestamp::now().as_second(),
        "model": model,
        "service_tier": "default",
        "system_fingerprint": "fp_fake",
    })
}

fn stream(reply: &Reply, id: &str, tool_id: &str, model: &str, usage: Option<&Value>) -> Vec<String> {
    let chunk = |choices: Value| {
        let mut chunk = envelope(id, "chat.completion.chunk", model);
        chunk["choices"] = choices;
        // Asked for it, every chunk has the field, and only the last a value in it.
        if usage.is_some() {
            chunk["usage"] = Value::Null;
        }
        chunk
    };
    let delta = |delta: Value, reason: Option<&str>| {
        event(&chunk(
            json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason }]),
        ))
    };
    let mut events = Vec::new();
    match reply {
        Reply::Text(pieces) => {
            events.push(delta(
                json!({ "role": "assistant", "content": "", "refusal": null }),
                None,
            ));
            events.extend(
                pieces
                    .iter()
                    .map(|piece| delta(json!({ "content": piece }), None)),
            );
            events.push(delta(json!({}), Some("stop")));
        }
        Reply::Tool { name, arguments } => {
            let function = json!({ "name": name, "arguments": "" });
            let call = json!({ "index": 0, "id": tool_id, "type": "function", "function": function });
            events.push(delta(
                json!({ "role": "assistant", "content": null, "tool_calls": [call] }),
                None,
            ));
            for half in halves(arguments) {
                let call = json!({ "index": 0, "function": { "arguments": half } });
                events.push(delta(json!({ "tool_calls": [call] }), None));
            }
            events.push(delta(json!({}), Some("tool_calls")));
        }
    }
    if let Some(usage) = usage {
        let mut last = chunk(json!([]));
        last["usage"] = usage.clone();
        events.push(event(&last));
    }
    events.push("data: [DONE]\n\n".to_owned());
    events
}

/// The text of a message's content, which is a string or a list of parts.
pub(super) fn text_of(content: &Value) -> String {
    let parts = content.as_array().into_iter().flatten();
    let texts = parts.filter_map(|part| part["text"].as_str());
    content.as_str().map_or_else(|| texts.collect(), str::to_owned)
}
