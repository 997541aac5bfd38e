//! Azure `OpenAI`: the deployment in the path, or `/openai/v1`, where it is the model.

use serde_json::{Value, json};

use super::openai::{self, error_of};
use super::reply::event;
use super::{Answer, Api, Call, Content, Refusal, Script, chat};

pub(super) struct Azure;

impl Azure {
    /// The deployment of a path, and what follows it.
    fn deployment(path: &str) -> Option<(&str, &str)> {
        let rest = path.strip_prefix("/openai/deployments/")?;
        Some(rest.split_at(rest.find('/')?))
    }
}

impl Api for Azure {
    fn key<'a>(&self, call: &'a Call) -> Option<&'a str> {
        call.header("api-key").or_else(|| call.bearer())
    }

    fn model<'a>(&self, call: &'a Call) -> Option<&'a str> {
        let deployment = Self::deployment(&call.path).map(|(name, _)| name);
        deployment.or_else(|| call.body["model"].as_str())
    }

    fn answer(&self, call: &Call, script: Script) -> Result<Answer, Refusal> {
        if let Some(path) = call.path.strip_prefix("/openai/v1") {
            return openai::answer(call, path, script);
        }
        if call.parameter("api-version").is_none() {
            return Err(Refusal::UnknownRoute);
        }
        let (deployment, path) = match Self::deployment(&call.path) {
            Some(found) => found,
            None if call.path == "/openai/models" => return openai::answer(call, "/models", script),
            None => return Err(Refusal::UnknownRoute),
        };
        match path {
            "/chat/completions" if call.post() => {
                let mut answer = chat::answer(call, deployment, script)?;
                filtered(&mut answer.content);
                Ok(answer)
            }
            "/embeddings" if call.post() => openai::embeddings(call, deployment),
            _ => Err(Refusal::UnknownRoute),
        }
    }

    fn refuse(&self, refusal: &Refusal, call: &Call, number: u64) -> Answer {
        let (status, error) = error_of(refusal, call);
        let short = |code: &str, message: &str| json!({ "code": code, "message": message });
        let error = match refusal {
            Refusal::NoKey | Refusal::DeadKey(_) => short(
                "401",
                "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an \
                 active subscription and use a correct regional API endpoint for your resource.",
            ),
            Refusal::UnknownModel(_) => short(
                "DeploymentNotFound",
                "The API deployment for this resource does not exist. If you created the deployment within the last 5 minutes, \
                 please wait a moment and try again.",
            ),
            Refusal::UnknownRoute => short("404", "Resource not found"),
            Refusal::RateLimited => short(
                "429",
                "Requests to the ChatCompletions_Create Operation have exceeded call rate limit of your current pricing tier. \
                 Please retry after 1 second.",
            ),
            _ => error,
        };
        let answer = Answer::error(status, json!({ "error": error }))
            .with("apim-request-id", format!("fake-{number}"));
        if *refusal == Refusal::RateLimited {
            return answer.with("retry-after-ms", "20");
        }
        answer
    }

    fn error_event(&self, call: &Call) -> String {
        openai::OpenAi.error_event(call)
    }
}

/// What Azure adds: the verdict of its content filter, in a stream as a first event without choices.
fn filtered(content: &mut Content) {
    let safe = json!({ "filtered": false, "severity": "safe" });
    let results = json!({ "hate": safe, "self_harm": safe, "sexual": safe, "violence": safe });
    let prompt = json!([{ "prompt_index": 0, "content_filter_results": results }]);
    match content {
        Content::Json(completion) => {
            completion["choices"][0]["content_filter_results"] = results;
            completion["prompt_filter_results"] = prompt;
        }
        Content::Events(events) => {
            let first = json!({
                "id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": prompt,
                "usage": Value::Null,
            });
            events.insert(0, event(&first));
        }
    }
}
