//! What may be asked of each provider through the proxy: the routes of its API that SDKs use, where each names its model,
//! and what is denied. Facts from the vendors' SDKs and API references.
//!
//! Routes that are not listed are allowed to those who may use all models, and to them alone.

use super::ProviderKind;
use crate::delivery::{ModelPlace, Route};
use ModelPlace::{Body, Denied, None as No, Path, Unread};

/// Method, path, where the model stands, and why it is denied.
type Row = (&'static str, &'static str, ModelPlace, &'static str);

/// Routes that belong together.
pub(super) struct Set {
    /// What they are called in the reference.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test compares the reference"))]
    pub name: &'static str,
    /// The first that matches counts.
    pub rows: &'static [Row],
}

const MINTS: &str = "it makes credentials that work past this proxy";
const REALTIME: &str =
    "Realtime and Live sessions are not passed on: their WebSockets and their credentials go past this proxy";
const ADMIN: &str = "it administers the account, not models";
const BATCH: &str = "a batch names its models where they are not read; send the requests one by one";
const FORM: &str = "the model stands in a multipart form, which is not read";

/// Below the base URL of an API like `OpenAI`'s.
const OPENAI: Set = Set {
    name: "OpenAI's",
    rows: &[
        ("POST", "/chat/completions", Body, ""),
        ("GET", "/chat/completions/**", No, ""),
        ("POST", "/chat/completions/*", No, ""),
        ("DELETE", "/chat/completions/*", No, ""),
        ("POST", "/responses", Body, ""),
        ("POST", "/responses/input_tokens", Body, ""),
        ("POST", "/responses/compact", Body, ""),
        ("GET", "/responses/**", No, ""),
        ("POST", "/responses/*/cancel", No, ""),
        ("DELETE", "/responses/*", No, ""),
        ("POST", "/completions", Body, ""),
        ("POST", "/embeddings", Body, ""),
        ("POST", "/moderations", Body, ""),
        ("POST", "/images/generations", Body, ""),
        ("POST", "/images/edits", Unread, FORM),
        ("POST", "/images/variations", Unread, FORM),
        ("POST", "/audio/speech", Body, ""),
        ("POST", "/audio/transcriptions", Unread, FORM),
        ("POST", "/audio/translations", Unread, FORM),
        ("POST", "/videos", Unread, FORM),
        ("GET", "/models", No, ""),
        ("GET", "/models/**", No, ""),
        ("*", "/files/**", No, ""),
        ("*", "/uploads/**", No, ""),
        ("*", "/vector_stores/**", No, ""),
        ("*", "/conversations/**", No, ""),
        ("POST", "/batches", Unread, BATCH),
        ("GET", "/batches/**", No, ""),
        ("POST", "/batches/*/cancel", No, ""),
    ],
};

/// Wherever an API like `OpenAI`'s has it.
const NOT_OPENAI: Set = Set {
    name: "denied beside OpenAI's",
    rows: &[
        ("*", "/**/realtime/client_secrets/**", Denied, MINTS),
        ("*", "/**/realtime/sessions/**", Denied, MINTS),
        ("*", "/**/realtime/transcription_sessions/**", Denied, MINTS),
        ("*", "/**/realtime/**", Denied, REALTIME),
        ("*", "/**/chatkit/sessions/**", Denied, MINTS),
        ("*", "/**/organization/**", Denied, ADMIN),
        ("*", "/**/organizations/**", Denied, ADMIN),
        ("*", "/**/projects/**", Denied, ADMIN),
        ("*", "/**/dashboard/**", Denied, ADMIN),
    ],
};

/// Below the base URL of an API like Anthropic's.
const ANTHROPIC: Set = Set {
    name: "Anthropic's",
    rows: &[
        ("POST", "/v1/messages", Body, ""),
        ("POST", "/v1/messages/count_tokens", Body, ""),
        ("POST", "/v1/messages/batches", Unread, BATCH),
        ("GET", "/v1/messages/batches/**", No, ""),
        ("POST", "/v1/messages/batches/*/cancel", No, ""),
        ("DELETE", "/v1/messages/batches/*", No, ""),
        ("POST", "/v1/complete", Body, ""),
        ("GET", "/v1/models", No, ""),
        ("GET", "/v1/models/**", No, ""),
        ("*", "/v1/files/**", No, ""),
    ],
};

const NOT_ANTHROPIC: Set = Set {
    name: "denied beside Anthropic's",
    rows: &[
        ("*", "/**/oauth/**", Denied, MINTS),
        ("*", "/**/organizations/**", Denied, ADMIN),
    ],
};

/// Below the resource's endpoint. In a deployment's path, its name decides, and no body.
const AZURE: Set = Set {
    name: "Azure's deployments",
    rows: &[
        ("POST", "/openai/deployments/{model}/chat/completions", Path, ""),
        ("POST", "/openai/deployments/{model}/completions", Path, ""),
        ("POST", "/openai/deployments/{model}/embeddings", Path, ""),
        ("POST", "/openai/deployments/{model}/images/*", Path, ""),
        ("POST", "/openai/deployments/{model}/audio/*", Path, ""),
    ],
};

const NOT_AZURE: Set = Set {
    name: "denied beside Azure's",
    rows: &[("*", "/**/realtimeapi/**", Denied, MINTS)],
};

/// Below the base URL of the Gemini API; `v1*` is any of its versions.
const GEMINI: Set = Set {
    name: "Gemini's",
    rows: &[
        ("POST", "/v1*/models/{model}:generateContent", Path, ""),
        ("POST", "/v1*/models/{model}:streamGenerateContent", Path, ""),
        ("POST", "/v1*/models/{model}:countTokens", Path, ""),
        ("POST", "/v1*/models/{model}:embedContent", Path, ""),
        ("POST", "/v1*/models/{model}:batchEmbedContents", Path, ""),
        ("POST", "/v1*/models/{model}:predict", Path, ""),
        ("POST", "/v1*/models/{model}:predictLongRunning", Path, ""),
        ("POST", "/v1*/models/*:batchGenerateContent", Unread, BATCH),
        ("POST", "/v1*/models/*:asyncBatchEmbedContent", Unread, BATCH),
        ("GET", "/v1*/models", No, ""),
        ("GET", "/v1*/models/**", No, ""),
        ("GET", "/v1*/operations/**", No, ""),
        ("*", "/v1*/files/**", No, ""),
        ("*", "/upload/v1*/files/**", No, ""),
        ("POST", "/v1*/interactions", Body, ""),
        ("GET", "/v1*/interactions/**", No, ""),
        ("POST", "/v1*/interactions/*/cancel", No, ""),
        ("DELETE", "/v1*/interactions/*", No, ""),
        ("POST", "/v1*/openai/chat/completions", Body, ""),
        ("POST", "/v1*/openai/embeddings", Body, ""),
        ("POST", "/v1*/openai/images/generations", Body, ""),
        ("GET", "/v1*/openai/models/**", No, ""),
    ],
};

const NOT_GEMINI: Set = Set {
    name: "denied beside Gemini's",
    rows: &[
        ("*", "/**/auth_tokens/**", Denied, MINTS),
        ("*", "/**/authTokens/**", Denied, MINTS),
        ("*", "/**/$rpc/**", Denied, MINTS),
        (
            "*",
            "/**/batch/**",
            Denied,
            "it wraps requests in which neither model nor route is read",
        ),
        ("*", "/**/ws/**", Denied, REALTIME),
        ("*", "/**/*:bidiGenerateContent", Denied, REALTIME),
    ],
};

/// What `OpenRouter` has besides, below its base URL.
const OPENROUTER: Set = Set {
    name: "OpenRouter's",
    rows: &[
        ("POST", "/messages", Body, ""),
        ("POST", "/rerank", Body, ""),
        ("GET", "/key", No, ""),
        ("GET", "/credits", No, ""),
        ("GET", "/generation", No, ""),
        ("GET", "/providers", No, ""),
    ],
};

const NOT_OPENROUTER: Set = Set {
    name: "denied beside OpenRouter's",
    rows: &[
        ("*", "/**/keys/**", Denied, MINTS),
        ("*", "/**/auth/**", Denied, MINTS),
        ("*", "/**/guardrails/**", Denied, ADMIN),
        ("*", "/**/workspaces/**", Denied, ADMIN),
    ],
};

/// What a `LiteLLM` proxy has besides, below its base URL.
const LITELLM: Set = Set {
    name: "LiteLLM's",
    rows: &[
        ("POST", "/messages", Body, ""),
        ("POST", "/messages/count_tokens", Body, ""),
        ("POST", "/rerank", Body, ""),
        ("GET", "/model/info", No, ""),
        ("GET", "/key/info", No, ""),
    ],
};

const NOT_LITELLM: Set = Set {
    name: "denied beside LiteLLM's",
    rows: &[
        ("*", "/**/key/**", Denied, MINTS),
        ("*", "/**/service-account/**", Denied, MINTS),
        ("*", "/**/sso/**", Denied, MINTS),
        ("*", "/**/login/**", Denied, MINTS),
        ("*", "/**/credentials/**", Denied, ADMIN),
        ("*", "/**/user/**", Denied, ADMIN),
        ("*", "/**/team/**", Denied, ADMIN),
        ("*", "/**/customer/**", Denied, ADMIN),
        ("*", "/**/budget/**", Denied, ADMIN),
        ("*", "/**/config/**", Denied, ADMIN),
        ("*", "/**/model/**", Denied, ADMIN),
    ],
};

impl ProviderKind {
    /// The routes of this provider's API at a base URL with this path ([`super::base_path`]); the first that matches counts.
    /// None for those whose SDKs take no proxy.
    pub fn routes(self, base_path: &str) -> Vec<Route> {
        let sets = self.sets(base_path);
        let mut routes: Vec<_> = sets
            .iter()
            .flat_map(|(prefix, set)| set.rows.iter().map(move |row| route(prefix, row)))
            .collect();
        // What lets in segments of any name is not to let in what is denied anywhere.
        let takes_any = |path: &str| path.split('/').any(|segment| matches!(segment, "*" | "**"));
        routes.sort_by_key(|route| route.model != Denied && takes_any(&route.path));
        routes
    }

    /// The same as sets, each with what stands before its paths. What is never allowed comes last, and is looked for anywhere.
    pub(super) fn sets(self, base: &str) -> Vec<(String, Set)> {
        let at = |prefix: &str, set| (prefix.to_owned(), set);
        match self {
            Self::AwsBedrock | Self::GcpVertexai => Vec::new(),
            Self::Openai | Self::Custom => vec![at(base, OPENAI), at("", NOT_OPENAI)],
            Self::Anthropic => vec![at(base, ANTHROPIC), at("", NOT_ANTHROPIC)],
            Self::AzureOpenai => {
                // Both forms of the base URL are in use.
                let end = ["/openai/v1", "/openai"]
                    .iter()
                    .find_map(|end| base.strip_suffix(end));
                let resource = end.unwrap_or(base);
                vec![
                    at(resource, AZURE),
                    (format!("{resource}/openai/v1"), OPENAI),
                    (format!("{resource}/openai"), OPENAI),
                    at("", NOT_OPENAI),
                    at("", NOT_AZURE),
                ]
            }
            Self::Gemini => vec![at(base, GEMINI), at("", NOT_GEMINI)],
            Self::Openrouter => vec![
                at(base, OPENAI),
                at(base, OPENROUTER),
                at("", NOT_OPENAI),
                at("", NOT_OPENROUTER),
            ],
            Self::Litellm => {
                // It serves its API with and without the version, whichever the base URL has.
                let root = base.strip_suffix("/v1").unwrap_or(base);
                let versioned = format!("{root}/v1");
                vec![
                    at(root, OPENAI),
                    at(root, LITELLM),
                    at(&versioned, OPENAI),
                    at(&versioned, LITELLM),
                    at("", NOT_OPENAI),
                    at("", NOT_LITELLM),
                ]
            }
        }
    }

    /// Fields of a body, besides `model`, by which this provider's API takes models to fall back to, or something else that
    /// decides about them.
    pub const fn models_elsewhere(self) -> &'static [&'static str] {
        match self {
            Self::AwsBedrock | Self::GcpVertexai => &[],
            // Not only in the API that a provider has: a base URL may be that of a gateway in front of it.
            _ => &[
                "models",
                "fallbacks",
                "context_window_fallbacks",
                "context_window_fallback_dict",
                "content_policy_fallbacks",
                "default_fallbacks",
                "model_list",
                "user_config",
                "preset",
                "agent",
                "agent_reference",
            ],
        }
    }

    /// Tools that use models which they need not name: by their `type`, plugins by their `id`. Anthropic's advisor always
    /// names its model.
    pub const fn model_tools(self) -> &'static [&'static str] {
        match self {
            Self::AwsBedrock | Self::GcpVertexai => &[],
            _ => &[
                "image_generation",
                "openrouter:image_generation",
                "openrouter:advisor",
                "openrouter:subagent",
                "openrouter:fusion",
                "fusion",
            ],
        }
    }
}

fn route(prefix: &str, (method, path, model, reason): &Row) -> Route {
    Route {
        method: (*method).to_owned(),
        path: format!("{prefix}{path}"),
        model: *model,
        reason: Some(*reason)
            .filter(|reason| !reason.is_empty())
            .map(str::to_owned),
    }
}
