//! What is fixed per provider: header, base URL, and what its SDKs expect. Facts from the vendors' SDKs and API references.

use serde::{Deserialize, Serialize};

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

impl ProviderKind {
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
}
