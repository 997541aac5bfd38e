//! The Responses API.

use serde_json::{Value, json};

use super::chat::text_of;
use super::reply::{Asked, INPUT_TOKENS, Reply, halves, named_event};
use super::{Answer, Call, Refusal, Script};

pub(super) fn answer(call: &Call, script: Script) -> Result<Answer, Refusal> {
    let model = call.text("model")?;
    let input = &call.body["input"];
    if input.is_null() {
        return Err(Refusal::Missing("input"));
    }
    let last = input.as_array().and_then(|items| items.last());
    let result = last.filter(|item| item["type"] == "function_call_output");
    let asked = Asked {
        tool: call.body["tools"][0]["name"].as_str(),
        result: result.map(|item| text_of(&item["output"])),
    };
    let reply = Reply::to(asked, script);
    let item = match &reply {
        Reply::Text(pieces) => json!({
            "id": format!("msg_fake{}", script.number),
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [output_text(&pieces.concat())],
        }),
        Reply::Tool { name, arguments } => json!({
            "id": format!("fc_fake{}", script.number),
            "type": "function_call",
            "status": "completed",
            "call_id": format!("call_fake{}", script.number),
            "name": name,
            "arguments": arguments.to_string(),
        }),
    };
    let response = response(call, model, script.number, &item, reply.tokens());
    if call.wants_stream() {
        return Ok(Answer::events(stream(&reply, &item, &response)));
    }
    Ok(Answer::json(response))
}

fn output_text(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn response(call: &Call, model: &str, number: u64, item: &Value, output_tokens: u64) -> Value {
    let asked_for = |field: &str, default: Value| match &call.body[field] {
        Value::Null => default,
        value => value.clone(),
    };
    json!({
        "id": format!("resp_fake{number}"),
        "object": "response",
        "created_at": jiff::Timestamp::now().as_second(),
        "status": "completed",
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": call.body["instructions"],
        "max_output_tokens": null,
        "metadata": {},
        "model": model,
        "output": [item],
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "reasoning": { "effort": null, "summary": null },
        "store": true,
        "temperature": 1.0,
        "text": { "format": { "type": "text" } },
        "tool_choice": asked_for("tool_choice", json!("auto")),
        "tools": asked_for("tools", json!([])),
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": INPUT_TOKENS,
            "input_tokens_details": { "cached_tokens": 0 },
            "output_tokens": output_tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": INPUT_TOKENS + output_tokens,
        },
        "user": null,
    })
}

fn stream(reply: &Reply, item: &Value, response: &Value) -> Vec<String> {
    let mut begun = response.clone();
    begun["status"] = json!("in_progress");
    begun["output"] = json!([]);
    begun["usage"] = Value::Null;
    let mut begun_item = item.clone();
    begun_item["status"] = json!("in_progress");
    let place = |kind: &str| json!({ "type": kind, "item_id": item["id"], "output_index": 0 });
    let with = |mut event: Value, fields: Value| {
        for (name, value) in fields.as_object().into_iter().flatten() {
            event[name] = value.clone();
        }
        event
    };

    let mut events = vec![
        json!({ "type": "response.created", "response": begun }),
        json!({ "type": "response.in_progress", "response": begun }),
    ];
    let added =
        |item: &Value| json!({ "type": "response.output_item.added", "output_index": 0, "item": item });
    match reply {
        Reply::Text(pieces) => {
            begun_item["content"] = json!([]);
            let text = pieces.concat();
            let part = |kind: &str, text: &str| {
                with(
                    place(kind),
                    json!({ "content_index": 0, "part": output_text(text) }),
                )
            };
            events.push(added(&begun_item));
            events.push(part("response.content_part.added", ""));
            for piece in pieces {
                let fields = json!({ "content_index": 0, "delta": piece, "logprobs": [] });
                events.push(with(place("response.output_text.delta"), fields));
            }
            let fields = json!({ "content_index": 0, "text": text, "logprobs": [] });
            events.push(with(place("response.output_text.done"), fields));
            events.push(part("response.content_part.done", &text));
        }
        Reply::Tool { name, arguments } => {
            begun_item["arguments"] = json!("");
            events.push(added(&begun_item));
            for half in halves(arguments) {
                events.push(with(
                    place("response.function_call_arguments.delta"),
                    json!({ "delta": half }),
                ));
            }
            let fields = json!({ "name": name, "arguments": arguments.to_string() });
            events.push(with(place("response.function_call_arguments.done"), fields));
        }
    }
    events.push(json!({ "type": "response.output_item.done", "output_index": 0, "item": item }));
    events.push(json!({ "type": "response.completed", "response": response }));
    let numbered = events.into_iter().enumerate();
    numbered
        .map(|(number, event)| named_event(&with(event, json!({ "sequence_number": number }))))
        .collect()
}
