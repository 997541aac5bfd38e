//! What the proxy answers itself: in the form of the provider's own errors, so that its SDKs raise what they would for one
//! of the provider's, and with words that say what to do.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use llmwarden_proto::delivery::ErrorShape;
use serde_json::{Value, json};

use super::caller::Unauthorized;
use super::models::Ambiguous;
use super::target::Tricky;
use crate::idle::Broken;

/// `OpenAI`'s and Anthropic's SDKs do what it says instead of what they would make of the status.
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// How long to wait before another try, in seconds.
const WAIT: HeaderValue = HeaderValue::from_static("1");
/// How much is shown of a name that the caller chose.
const SHOWN: usize = 100;
/// How many models of a list are shown.
const LISTED: usize = 20;

/// Why a request is not answered by the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Another proxy passed it on.
    Forwarded,
    /// Another host was asked for, or none, or two.
    Host,
    /// A browser sent it for a web page.
    Browser,
    /// Its target is not a plain path below an access.
    Target(Tricky),
    /// There is no such access here.
    UnknownAccess,
    /// This pod gets the access's key itself.
    NotProxied,
    /// It came without the placeholder.
    Unauthorized(Unauthorized),
    /// No key has come yet.
    NotThereYet,
    /// The key was withdrawn, and why.
    Withdrawn(String),
    /// The companion does not say where the provider is, or nothing that can be read.
    NoUpstream,
    /// This path is not passed on, and why.
    RouteDenied(String),
    /// It may not use this model.
    ModelNotAllowed {
        /// What it asked for.
        model: String,
        /// What it may use.
        allowed: Vec<String>,
    },
    /// It names no model.
    ModelMissing,
    /// Its model can't be told.
    ModelUnreadable(Ambiguous),
    /// It asks for further models in a place where they are not compared with the list.
    ModelsElsewhere(Ambiguous),
    /// The rest of its body did not come, for so long.
    BodyStalled(Duration),
    /// Its body ended before its end, or is cut into pieces that can't be read.
    BodyIncomplete,
    /// So many requests are on their way that there is no place to hold another one.
    Busy,
    /// The provider refused the key.
    DeadKey {
        /// Whether there is another one by now.
        retry: bool,
    },
    /// The provider can't be reached.
    UpstreamUnreachable,
    /// The provider did not answer in time.
    UpstreamTimeout,
}

impl Refusal {
    /// One of each, for metrics, which show what did not happen, too.
    pub const REASONS: [&str; 23] = [
        "forwarded",
        "host",
        "browser",
        "target",
        "unknown_access",
        "not_proxied",
        "no_placeholder",
        "wrong_placeholder",
        "real_key",
        "not_there_yet",
        "withdrawn",
        "no_upstream",
        "route_denied",
        "model_not_allowed",
        "model_missing",
        "model_unreadable",
        "models_elsewhere",
        "body_stalled",
        "body_incomplete",
        "busy",
        "dead_key",
        "upstream_unreachable",
        "upstream_timeout",
    ];

    /// For the metric.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Host => "host",
            Self::Browser => "browser",
            Self::Target(_) => "target",
            Self::UnknownAccess => "unknown_access",
            Self::NotProxied => "not_proxied",
            Self::Unauthorized(Unauthorized::Missing) => "no_placeholder",
            Self::Unauthorized(Unauthorized::Wrong) => "wrong_placeholder",
            Self::Unauthorized(Unauthorized::RealKey) => "real_key",
            Self::NotThereYet => "not_there_yet",
            Self::Withdrawn(_) => "withdrawn",
            Self::NoUpstream => "no_upstream",
            Self::RouteDenied(_) => "route_denied",
            Self::ModelNotAllowed { .. } => "model_not_allowed",
            Self::ModelMissing => "model_missing",
            Self::ModelUnreadable(_) => "model_unreadable",
            Self::ModelsElsewhere(_) => "models_elsewhere",
            Self::BodyStalled(_) => "body_stalled",
            Self::BodyIncomplete => "body_incomplete",
            Self::Busy => "busy",
            Self::DeadKey { .. } => "dead_key",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamTimeout => "upstream_timeout",
        }
    }

    /// The answer's status.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Forwarded
            | Self::Host
            | Self::Target(_)
            | Self::ModelMissing
            | Self::ModelUnreadable(_)
            | Self::BodyIncomplete => StatusCode::BAD_REQUEST,
            Self::BodyStalled(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Unauthorized(_) | Self::DeadKey { .. } => StatusCode::UNAUTHORIZED,
            Self::Browser
            | Self::NotProxied
            | Self::Withdrawn(_)
            | Self::RouteDenied(_)
            | Self::ModelNotAllowed { .. }
            | Self::ModelsElsewhere(_) => StatusCode::FORBIDDEN,
            Self::UnknownAccess => StatusCode::NOT_FOUND,
            Self::NotThereYet | Self::NoUpstream | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamUnreachable => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// What to tell whoever asked for this access: what is wrong, and what to do.
    pub fn message(&self, access: &str) -> String {
        let access = shown(access);
        match self {
            Self::Forwarded => {
                "this proxy is for clients in the pod: send no Forwarded or X-Forwarded-* header".into()
            }
            Self::Host => {
                "send one Host header with 127.0.0.1:9470 or localhost:9470, as the base URL has it".into()
            }
            Self::Browser => {
                "this proxy is not for web pages: send no Origin or Sec-Fetch-Site header".into()
            }
            Self::Target(tricky) => format!("the request's target is refused: {}", tricky.why()),
            Self::UnknownAccess => format!(
                "this pod has no LLMAccess `{access}`: correct the base URL, or name the access in the pod's annotation llmwarden.io/inject"
            ),
            Self::NotProxied => format!(
                "this pod does not use LLMAccess `{access}` through the proxy: set injection.proxy on it and recreate the pod, or call the provider with the key that the pod has"
            ),
            Self::Unauthorized(Unauthorized::Missing) => format!(
                "no API key was sent: use the placeholder of LLMAccess `{access}`, which is in the pod's environment and in the Secret that its secretName names"
            ),
            Self::Unauthorized(Unauthorized::Wrong) => format!(
                "the API key that was sent is not the placeholder of LLMAccess `{access}`: take it from the pod's environment or from the Secret that its secretName names"
            ),
            Self::Unauthorized(Unauthorized::RealKey) => format!(
                "a real API key seems to have been sent. It was not passed on, and is not needed here: use the placeholder of LLMAccess `{access}`, which is in the pod's environment and in the Secret that its secretName names"
            ),
            Self::NotThereYet => format!(
                "the key of LLMAccess `{access}` has not arrived yet: try again; if that lasts, see the conditions of the LLMAccess"
            ),
            Self::Withdrawn(reason) => format!(
                "the key of LLMAccess `{access}` was withdrawn: {reason}. Have the access allowed again: the key then comes back by itself"
            ),
            Self::NoUpstream => format!(
                "it is not known where the provider of LLMAccess `{access}` is: set endpoint.baseURL on its LLMProvider, or upgrade the sidecar if /status names a field that it lacks"
            ),
            Self::RouteDenied(reason) => format!(
                "this path is not passed on: {reason}. What is passed on for LLMAccess `{access}` is in llmwarden's reference"
            ),
            Self::ModelNotAllowed { model, allowed } => format!(
                "LLMAccess `{access}` may not use the model `{}`: ask for one of {}, or have it added to spec.models and to the provider's allowedModels",
                shown(model),
                listed(allowed)
            ),
            Self::ModelMissing => format!(
                "the request names no model, and LLMAccess `{access}` may not use all of them: name one in the field `model` of the body"
            ),
            Self::ModelUnreadable(ambiguous) => format!(
                "the model of the request can't be told: {}. LLMAccess `{access}` may not use all models: name one in the field `model` of a plain JSON body",
                ambiguous.why()
            ),
            Self::ModelsElsewhere(what) => format!(
                "LLMAccess `{access}` may not use all models, and the request asks for others beside its own: {}. Leave that out",
                what.why()
            ),
            Self::BodyStalled(pause) => format!(
                "nothing more of the request's body came for {} s: send all of it without long pauses",
                pause.as_secs()
            ),
            Self::BodyIncomplete => {
                "the request's body broke off, or is in chunks that can't be read: send all of it".into()
            }
            Self::Busy => {
                "too many requests of this pod are on their way: try again, or send fewer at a time".into()
            }
            Self::DeadKey { retry: true } => format!(
                "the provider refused the key of LLMAccess `{access}`, which has been replaced since: try again"
            ),
            Self::DeadKey { retry: false } => format!(
                "the provider refuses the key of LLMAccess `{access}`: have it replaced in the master Secret of its LLMProvider; nothing is to be changed here, the new key comes by itself"
            ),
            Self::UpstreamUnreachable => format!(
                "the provider of LLMAccess `{access}` can't be reached: check the pod's egress, HTTPS_PROXY, and the endpoint of its LLMProvider; the sidecar's log says more"
            ),
            Self::UpstreamTimeout => format!(
                "the provider of LLMAccess `{access}` did not answer in time: try again, or ask for a stream"
            ),
        }
    }

    /// The answer, in this form.
    pub fn response(&self, shape: ErrorShape, access: &str) -> Response<Bytes> {
        let body = self.body(shape, access).to_string();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, WAIT);
        }
        if let Some(retry) = self.should_retry() {
            let value = if retry { "true" } else { "false" };
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static(value));
        }
        response
    }

    /// What SDKs could not tell from the status.
    const fn should_retry(&self) -> Option<bool> {
        match self {
            Self::DeadKey { retry } => Some(*retry),
            Self::Withdrawn(_) => Some(false),
            _ => None,
        }
    }

    fn body(&self, shape: ErrorShape, access: &str) -> Value {
        let status = self.status();
        let message = format!("llmwarden: {}", self.message(access));
        match shape {
            ErrorShape::Openai => json!({
                "error": {
                    "message": message,
                    "type": openai_type(status),
                    "param": null,
                    "code": format!("llmwarden_{}", self.reason()),
                }
            }),
            ErrorShape::Anthropic => json!({
                "type": "error",
                "error": { "type": anthropic_type(status), "message": message },
            }),
            ErrorShape::Gemini => json!({
                "error": {
                    "code": status.as_u16(),
                    "message": message,
                    "status": gemini_status(status),
                    "details": [{
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": self.reason().to_ascii_uppercase(),
                        "domain": "llmwarden.io",
                    }],
                }
            }),
        }
    }
}

impl From<Tricky> for Refusal {
    fn from(tricky: Tricky) -> Self {
        Self::Target(tricky)
    }
}

impl From<Unauthorized> for Refusal {
    fn from(unauthorized: Unauthorized) -> Self {
        Self::Unauthorized(unauthorized)
    }
}

impl From<Broken> for Refusal {
    /// Of a request's body.
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Silent(pause) => Self::BodyStalled(pause),
            Broken::Failed(_) => Self::BodyIncomplete,
        }
    }
}

impl From<Ambiguous> for Refusal {
    fn from(ambiguous: Ambiguous) -> Self {
        if ambiguous.is_elsewhere() {
            Self::ModelsElsewhere(ambiguous)
        } else {
            Self::ModelUnreadable(ambiguous)
        }
    }
}

fn openai_type(status: StatusCode) -> &'static str {
    if status.is_server_error() {
        "server_error"
    } else {
        "invalid_request_error"
    }
}

fn anthropic_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "timeout_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}

fn gemini_status(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "UNAUTHENTICATED",
        StatusCode::FORBIDDEN => "PERMISSION_DENIED",
        StatusCode::NOT_FOUND => "NOT_FOUND",
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "DEADLINE_EXCEEDED",
        status if status.is_server_error() => "UNAVAILABLE",
        _ => "INVALID_ARGUMENT",
    }
}

/// A name that others chose, so that it is short and harmless.
fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if name.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

fn listed(models: &[String]) -> String {
    let mut all: Vec<_> = models
        .iter()
        .take(LISTED)
        .map(|model| format!("`{}`", shown(model)))
        .collect();
    if models.len() > LISTED {
        all.push(format!("{} more", models.len() - LISTED));
    }
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn every() -> Vec<Refusal> {
        vec![
            Refusal::Forwarded,
            Refusal::Host,
            Refusal::Browser,
            Refusal::Target(Tricky::DotSegment),
            Refusal::UnknownAccess,
            Refusal::NotProxied,
            Refusal::Unauthorized(Unauthorized::Missing),
            Refusal::Unauthorized(Unauthorized::Wrong),
            Refusal::Unauthorized(Unauthorized::RealKey),
            Refusal::NotThereYet,
            Refusal::Withdrawn("no label".into()),
            Refusal::NoUpstream,
            Refusal::RouteDenied("it mints".into()),
            Refusal::ModelNotAllowed {
                model: "gpt-b".into(),
                allowed: vec!["gpt-a".into()],
            },
            Refusal::ModelMissing,
            Refusal::ModelUnreadable(Ambiguous::Twice),
            Refusal::ModelsElsewhere(Ambiguous::InTools),
            Refusal::BodyStalled(Duration::from_secs(7)),
            Refusal::BodyIncomplete,
            Refusal::Busy,
            Refusal::DeadKey { retry: true },
            Refusal::UpstreamUnreachable,
            Refusal::UpstreamTimeout,
        ]
    }

    fn body(refusal: &Refusal, shape: ErrorShape) -> Value {
        let response = refusal.response(shape, "agent");
        serde_json::from_slice(response.body()).expect("JSON")
    }

    #[test]
    fn every_reason_is_counted() {
        let reasons: Vec<_> = every().iter().map(Refusal::reason).collect();
        assert_eq!(reasons, Refusal::REASONS);
        assert_eq!(BTreeSet::from(Refusal::REASONS).len(), Refusal::REASONS.len());
    }

    #[test]
    fn each_provider_has_its_own_form() {
        let refusal = Refusal::ModelNotAllowed {
            model: "gpt-b".into(),
            allowed: vec!["gpt-a".into(), "o*".into()],
        };
        let message = "llmwarden: LLMAccess `agent` may not use the model `gpt-b`: ask for one of `gpt-a`, `o*`, or have it added to spec.models and to the provider's allowedModels";
        assert_eq!(
            body(&refusal, ErrorShape::Openai),
            json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": "llmwarden_model_not_allowed"}})
        );
        assert_eq!(
            body(&refusal, ErrorShape::Anthropic),
            json!({"type": "error", "error": {"type": "permission_error", "message": message}})
        );
        assert_eq!(
            body(&refusal, ErrorShape::Gemini),
            json!({"error": {"code": 403, "message": message, "status": "PERMISSION_DENIED", "details": [{
                "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "MODEL_NOT_ALLOWED", "domain": "llmwarden.io",
            }]}})
        );
    }

    #[test]
    fn what_passes_may_be_tried_again_and_what_does_not_may_not() {
        for refusal in every() {
            let response = refusal.response(ErrorShape::Openai, "agent");
            let retries = response.headers().get(X_SHOULD_RETRY).map(HeaderValue::as_bytes);
            let waits = response.headers().contains_key(RETRY_AFTER);
            match refusal {
                Refusal::DeadKey { retry: true } => assert_eq!(retries, Some(&b"true"[..])),
                Refusal::Withdrawn(_) => assert_eq!(retries, Some(&b"false"[..])),
                Refusal::NotThereYet | Refusal::NoUpstream | Refusal::Busy => assert!(waits),
                // 408, 409, 429 and 5xx are what SDKs try again by themselves.
                Refusal::UpstreamUnreachable | Refusal::UpstreamTimeout => {
                    assert!(response.status().is_server_error());
                }
                Refusal::BodyStalled(_) => assert_eq!(response.status(), 408),
                _ => assert!(response.status().is_client_error() && retries.is_none() && !waits),
            }
        }
    }

    #[test]
    fn names_that_others_chose_are_short_and_harmless() {
        let refusal = Refusal::ModelNotAllowed {
            model: format!("a\u{1b}[31m\n\u{202e}{}", "x".repeat(5000)),
            allowed: (0..1000).map(|n| format!("model-{n}")).collect(),
        };
        let message = refusal.message(&"y".repeat(5000));
        assert!(message.len() < 1500 && message.contains("980 more"), "{message}");
        assert!(!message.contains(['\u{1b}', '\n', '\u{202e}']));
    }
}
