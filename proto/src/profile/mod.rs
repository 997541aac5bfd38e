//! What is fixed per provider: header, base URL, and what its SDKs expect. Facts from the vendors' SDKs and API references.

mod routes;

use serde::{Deserialize, Serialize};

use crate::delivery::{DeadKey, ErrorShape, Upstream};

/// A provider kind, as `spec.provider` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    /// `OpenAI`.
    Openai,
    /// Anthropic.
    Anthropic,
    /// Amazon Bedrock.
    AwsBedrock,
    /// Azure `OpenAI`.
    AzureOpenai,
    /// Vertex AI.
    GcpVertexai,
    /// The Gemini API with an API key.
    Gemini,
    /// `OpenRouter`.
    Openrouter,
    /// A `LiteLLM` proxy.
    Litellm,
    /// Any API that is compatible with `OpenAI`'s.
    Custom,
}

/// The header that carries a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthHeader {
    /// Name of the header, in lower case.
    pub header: String,
    /// Scheme before the key, such as `Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
}

/// The environment variables that a provider's SDKs read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SdkEnv {
    /// The key.
    pub key: &'static str,
    /// The base URL: with the proxy, its address and [`base_path`].
    pub base_url: &'static str,
}

/// The path of a base URL, without a slash at its end.
pub fn base_path(base_url: &str) -> &str {
    let below_scheme = base_url.split_once("://").map_or(base_url, |(_, rest)| rest);
    let path = below_scheme.find('/').map_or("", |at| &below_scheme[at..]);
    path.trim_end_matches('/')
}

impl ProviderKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Openai,
        Self::Anthropic,
        Self::AwsBedrock,
        Self::AzureOpenai,
        Self::GcpVertexai,
        Self::Gemini,
        Self::Openrouter,
        Self::Litellm,
        Self::Custom,
    ];

    /// The name that `spec.provider` uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Anthropic => "anthropic",
            Self::AwsBedrock => "aws-bedrock",
            Self::AzureOpenai => "azure-openai",
            Self::GcpVertexai => "gcp-vertexai",
            Self::Gemini => "gemini",
            Self::Openrouter => "openrouter",
            Self::Litellm => "litellm",
            Self::Custom => "custom",
        }
    }

    /// Base URL as the provider's SDKs take it; `None` where every account has its own.
    pub const fn base_url(self) -> Option<&'static str> {
        match self {
            Self::Openai => Some("https://api.openai.com/v1"),
            Self::Anthropic => Some("https://api.anthropic.com"),
            Self::Gemini => Some("https://generativelanguage.googleapis.com"),
            Self::Openrouter => Some("https://openrouter.ai/api/v1"),
            Self::AwsBedrock | Self::AzureOpenai | Self::GcpVertexai | Self::Litellm | Self::Custom => None,
        }
    }

    /// Whether the provider's SDKs can be pointed at an http proxy on localhost. Bedrock's and Vertex AI's insist on https.
    pub const fn supports_proxy(self) -> bool {
        !matches!(self, Self::AwsBedrock | Self::GcpVertexai)
    }

    /// Header that carries the key.
    pub fn auth_header(self) -> AuthHeader {
        let (header, scheme) = match self {
            Self::Anthropic => ("x-api-key", None),
            Self::AzureOpenai => ("api-key", None),
            Self::Gemini => ("x-goog-api-key", None),
            Self::Openai
            | Self::AwsBedrock
            | Self::GcpVertexai
            | Self::Openrouter
            | Self::Litellm
            | Self::Custom => ("authorization", Some("Bearer".to_owned())),
        };
        AuthHeader {
            header: header.to_owned(),
            scheme,
        }
    }

    /// What its SDKs read from the environment. `OpenRouter`, `LiteLLM` and all that is like `OpenAI` are called with
    /// `OpenAI`'s SDKs.
    pub const fn sdk_env(self) -> SdkEnv {
        let (key, base_url) = match self {
            Self::Openai | Self::Openrouter | Self::Litellm | Self::Custom => {
                ("OPENAI_API_KEY", "OPENAI_BASE_URL")
            }
            Self::Anthropic => ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
            Self::AzureOpenai => ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT"),
            Self::Gemini => ("GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL"),
            Self::AwsBedrock => ("AWS_BEARER_TOKEN_BEDROCK", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"),
            Self::GcpVertexai => ("GOOGLE_API_KEY", "GOOGLE_VERTEX_BASE_URL"),
        };
        SdkEnv { key, base_url }
    }

    /// The form of its error answers.
    pub const fn error_shape(self) -> ErrorShape {
        match self {
            Self::Anthropic => ErrorShape::Anthropic,
            Self::Gemini | Self::GcpVertexai => ErrorShape::Gemini,
            Self::Openai
            | Self::AwsBedrock
            | Self::AzureOpenai
            | Self::Openrouter
            | Self::Litellm
            | Self::Custom => ErrorShape::Openai,
        }
    }

    /// The answers by which it says that a key is dead. Others of the same status are about something else.
    pub fn dead_key(self) -> Vec<DeadKey> {
        let all: &[(u16, &[&str])] = match self {
            Self::Openai => &[(401, &["invalid_api_key", "incorrect api key", "expired_api_key"])],
            Self::Anthropic => &[(401, &["authentication_error"])],
            Self::AzureOpenai => &[(401, &["invalid subscription key", "invalid_api_key"])],
            Self::Gemini => &[
                (400, &["API_KEY_INVALID"]),
                (403, &["API key was reported as leaked"]),
            ],
            Self::Litellm => &[
                (401, &["token_not_found_in_db", "expired_key", "auth_error"]),
                (400, &["expired_key"]),
            ],
            Self::AwsBedrock => &[(403, &["make sure your api key is valid"])],
            // We never ask without a key: all that is left is that it is not a good one.
            Self::GcpVertexai | Self::Openrouter | Self::Custom => &[(401, &[])],
        };
        all.iter()
            .map(|(status, any_of)| DeadKey {
                status: *status,
                any_of: any_of.iter().map(|text| (*text).to_owned()).collect(),
            })
            .collect()
    }

    /// How it is reached at this base URL, or at its own: all that is known of the provider, and no limits.
    pub fn upstream(self, base_url: Option<&str>) -> Upstream {
        let base_url = base_url.or(self.base_url());
        let owned = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        Upstream {
            provider: self.as_str().to_owned(),
            base_url: base_url.map(str::to_owned),
            auth: self.auth_header(),
            ca_bundle: None,
            models: Vec::new(),
            routes: self.routes(base_url.map_or("", base_path)),
            models_elsewhere: owned(self.models_elsewhere()),
            model_tools: owned(self.model_tools()),
            errors: self.error_shape(),
            dead_key: self.dead_key(),
            requests_per_minute: None,
            tokens_per_minute: None,
        }
    }
}

#[cfg(test)]
mod tests;
