//! `OpenRouter` and `LiteLLM`: `OpenAI`'s API, with errors of their own.

use serde_json::{Value, json};

use super::openai::{self, OpenAi, error_of};
use super::reply::event;
use super::{Answer, Api, Call, Content, Refusal, Script};

pub(super) struct OpenRouter;

impl Api for OpenRouter {
    fn key<'a>(&self, call: &'a Call) -> Option<&'a str> {
        call.bearer()
    }

    fn answer(&self, call: &Call, script: Script) -> Result<Answer, Refusal> {
        let path = call.path.strip_prefix("/api/v1").unwrap_or_default();
        let mut answer = openai::answer(call, path, script)?;
        // What it keeps connections alive with while a model thinks.
        if let Content::Events(events) = &mut answer.content {
            events.insert(0, ": OPENROUTER PROCESSING\n\n".to_owned());
        }
        Ok(answer)
    }

    fn refuse(&self, refusal: &Refusal, call: &Call, _: u64) -> Answer {
        let (status, error) = error_of(refusal, call);
        let message = match refusal {
            Refusal::NoKey => json!("No auth credentials found"),
            Refusal::DeadKey(_) => json!("User not found."),
            _ => error["message"].clone(),
        };
        Answer::error(status, json!({ "error": { "code": status, "message": message } }))
    }

    fn error_event(&self, call: &Call) -> String {
        let choice = json!({ "index": 0, "delta": { "content": "" }, "finish_reason": "error" });
        event(&json!({
            "id": "gen-fake",
            "object": "chat.completion.chunk",
            "created": jiff::Timestamp::now().as_second(),
            "model": call.body["model"],
            "provider": "Fake",
            "error": { "code": 502, "message": "Provider disconnected unexpectedly" },
            "choices": [choice],
        }))
    }
}

pub(super) struct LiteLlm;

impl Api for LiteLlm {
    fn key<'a>(&self, call: &'a Call) -> Option<&'a str> {
        call.bearer()
    }

    fn answer(&self, call: &Call, script: Script) -> Result<Answer, Refusal> {
        // Both are served.
        let path = call.path.strip_prefix("/v1").unwrap_or(&call.path);
        openai::answer(call, path, script)
    }

    fn refuse(&self, refusal: &Refusal, call: &Call, _: u64) -> Answer {
        let (status, mut error) = error_of(refusal, call);
        let mut refuse = |message: String, kind: &str, param: Value| {
            error["message"] = json!(message);
            error["type"] = json!(kind);
            error["param"] = param;
        };
        match refusal {
            Refusal::NoKey => refuse(
                "Authentication Error, No api key passed in.".to_owned(),
                "auth_error",
                json!("None"),
            ),
            Refusal::DeadKey(key) => refuse(
                format!(
                    "Authentication Error, Invalid proxy server token passed. Received API Key = {}, Key Hash (Token) =fake. \
                     Unable to find token in cache or `LiteLLM_VerificationTable`",
                    openai::masked(key)
                ),
                "token_not_found_in_db",
                json!("key"),
            ),
            Refusal::Forbidden(model) => refuse(
                format!(
                    "key not allowed to access model. This key can only access models=[]. Tried to access {model}"
                ),
                "key_model_access_denied",
                json!("model"),
            ),
            _ => {}
        }
        error["code"] = json!(status.to_string());
        Answer::error(status, json!({ "error": error }))
    }

    fn error_event(&self, call: &Call) -> String {
        OpenAi.error_event(call)
    }
}
