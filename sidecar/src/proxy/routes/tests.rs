use llmwarden_proto::profile::ProviderKind as Kind;
use proptest::prelude::*;

use super::*;

/// What becomes of it without a list, and with one.
fn both<'a>(free: &'a Upstream, limited: &'a Upstream, line: &'a str) -> (Decision<'a>, Decision<'a>) {
    let (method, target) = line.split_once(' ').expect("a method and a path");
    let method = method.parse().expect("a method");
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    (
        decide(free, &method, path, query),
        decide(limited, &method, path, query),
    )
}

fn limited(mut upstream: Upstream) -> Upstream {
    upstream.models = vec!["a".into()];
    upstream
}

/// Where the model stands, as a list makes it be read.
enum Expected {
    Body,
    Model(&'static str),
    Free,
    /// Denied only with a list.
    Listed,
    Denied,
}

fn assert_all(kind: Kind, base_url: Option<&str>, cases: &[(&str, Expected)]) {
    let free = kind.upstream(base_url);
    let listed = limited(free.clone());
    for (line, expected) in cases {
        let (without, with) = both(&free, &listed, line);
        match expected {
            Expected::Denied => assert!(matches!(without, Decision::Denied(_)), "{line}: {without:?}"),
            _ => assert_eq!(without, Decision::Allow, "{line}"),
        }
        match expected {
            Expected::Body => assert_eq!(with, Decision::ModelInBody, "{line}"),
            Expected::Model(model) => assert_eq!(with, Decision::Model((*model).to_owned()), "{line}"),
            Expected::Free => assert_eq!(with, Decision::Allow, "{line}"),
            Expected::Listed | Expected::Denied => {
                assert!(matches!(with, Decision::Denied(_)), "{line}: {with:?}");
            }
        }
    }
}

use Expected::{Body, Denied, Free, Listed, Model};

#[test]
fn openai_and_what_is_like_it() {
    assert_all(
        Kind::Openai,
        None,
        &[
            ("POST /v1/chat/completions", Body),
            ("POST /v1/chat/completions/", Body),
            ("POST /v1/chat/completions?beta=1", Body),
            ("POST /v1/chat/completions?model=b", Listed),
            ("POST /v1/chat/completions?%6dodel=b", Listed),
            ("POST /v1/chat/completions?fallbacks=b", Listed),
            ("GET /v1/chat/completions/c-1/messages", Free),
            ("PUT /v1/chat/completions", Listed),
            ("POST /v1/Chat/Completions", Listed),
            ("POST /v1/chat%20/completions", Listed),
            ("POST /v1/ch%61t/completions", Body),
            ("POST /v1/responses", Body),
            ("POST /v1/responses/r-1/cancel", Free),
            ("POST /v1/responses/compact", Body),
            ("POST /v1/embeddings", Body),
            ("GET /v1/models", Free),
            ("GET /v1/models/gpt-a", Free),
            ("DELETE /v1/models/gpt-a", Listed),
            ("POST /v1/audio/transcriptions", Listed),
            ("POST /v1/audio/speech", Body),
            ("POST /v1/batches", Listed),
            ("GET /v1/batches/b-1", Free),
            ("POST /v1/fine_tuning/jobs", Listed),
            ("POST /chat/completions", Listed),
            ("POST /v1/realtime/client_secrets", Denied),
            ("POST /v1/realtime/sessions", Denied),
            ("POST /v1/REALTIME/sessions", Denied),
            ("POST /v1/re%61ltime/sessions", Denied),
            ("POST /v1/realtime/sessions/", Denied),
            ("POST /other/v1/realtime/client_secrets", Denied),
            ("GET /v1/realtime?model=a", Denied),
            ("POST /v1/chatkit/sessions", Denied),
            ("GET /v1/organization/admin_api_keys", Denied),
            ("POST /v1/dashboard/user/api_keys", Denied),
            ("TRACE /v1/models", Denied),
        ],
    );
    assert_all(
        Kind::Custom,
        Some("https://gateway.example/llm/v1/"),
        &[
            ("POST /llm/v1/chat/completions", Body),
            ("POST /v1/chat/completions", Listed),
            ("POST /llm/v1/realtime/client_secrets", Denied),
            ("POST /v1/realtime/client_secrets", Denied),
        ],
    );
    assert_all(
        Kind::Openrouter,
        None,
        &[
            ("POST /api/v1/chat/completions", Body),
            ("POST /api/v1/messages", Body),
            ("GET /api/v1/models", Free),
            ("GET /api/v1/key", Free),
            ("POST /api/v1/keys", Denied),
            ("POST /api/v1/auth/keys/code", Denied),
        ],
    );
    assert_all(
        Kind::Litellm,
        Some("http://litellm:4000"),
        &[
            ("POST /chat/completions", Body),
            ("POST /v1/chat/completions", Body),
            ("POST /v1/messages", Body),
            ("GET /key/info", Free),
            ("POST /key/generate", Denied),
            ("POST /model/new", Denied),
            ("POST /openai/deployments/a/chat/completions", Listed),
        ],
    );
}

#[test]
fn anthropic() {
    assert_all(
        Kind::Anthropic,
        None,
        &[
            ("POST /v1/messages", Body),
            ("POST /v1/messages?beta=true", Body),
            ("POST /v1/messages/count_tokens", Body),
            ("POST /v1/messages/batches", Listed),
            ("GET /v1/messages/batches/b-1/results", Free),
            ("GET /v1/models", Free),
            ("POST /v1/files", Free),
            ("GET /v1/organizations/api_keys", Denied),
            ("POST /v1/oauth/token", Denied),
        ],
    );
}

#[test]
fn azure_decides_by_the_deployment() {
    let cases = || {
        [
            (
                "POST /openai/deployments/a/chat/completions?api-version=2024-10-21",
                Model("a"),
            ),
            ("POST /openai/deployments/a%20b/embeddings", Model("a b")),
            ("POST /openai/deployments/a/audio/transcriptions", Model("a")),
            ("POST /openai/deployments/a/extensions/chat/completions", Listed),
            ("POST /openai/v1/chat/completions", Body),
            ("POST /openai/responses?api-version=preview", Body),
            ("GET /openai/models", Free),
            ("POST /openai/realtimeapi/sessions", Denied),
            ("POST /OpenAI/RealtimeAPI/Sessions", Denied),
            ("GET /openai/realtime?deployment=a", Denied),
        ]
    };
    for base in [
        "https://r.openai.azure.com",
        "https://r.openai.azure.com/openai/v1/",
    ] {
        assert_all(Kind::AzureOpenai, Some(base), &cases());
    }
}

#[test]
fn gemini_decides_by_the_path() {
    assert_all(
        Kind::Gemini,
        None,
        &[
            ("POST /v1beta/models/gemini-a:generateContent", Model("gemini-a")),
            (
                "POST /v1/models/gemini-a:streamGenerateContent?alt=sse",
                Model("gemini-a"),
            ),
            (
                "POST /v1beta/models/a:generateContent:generateContent",
                Model("a:generateContent"),
            ),
            ("POST /v1beta/models/a%3AgenerateContent", Model("a")),
            ("POST /v1beta/models/:generateContent", Listed),
            ("POST /v1beta/tunedModels/a:generateContent", Listed),
            ("POST /v1beta/models/a:batchGenerateContent", Listed),
            ("POST /v1beta/openai/chat/completions", Body),
            ("GET /v1beta/models", Free),
            ("GET /v1beta/models/a", Free),
            ("POST /upload/v1beta/files", Free),
            ("POST /v1alpha/auth_tokens", Denied),
            ("POST /v1alpha/AUTH_TOKENS", Denied),
            ("POST /v1beta/files/a/auth_tokens", Denied),
            ("POST /v1beta/interactions/auth_tokens/cancel", Denied),
            (
                "POST /$rpc/google.ai.generativelanguage.v1alpha.AuthTokenService/CreateToken",
                Denied,
            ),
            (
                "GET /ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent",
                Denied,
            ),
            ("POST /v1beta/models/a:bidiGenerateContent", Denied),
            ("POST /batch", Denied),
        ],
    );
}

#[test]
fn where_nothing_is_known_nothing_is_allowed() {
    let mut upstream = Kind::Openai.upstream(None);
    upstream.routes.clear();
    let decision = decide(&upstream, &Method::POST, "/v1/chat/completions", None);
    assert_eq!(decision, Decision::Denied(NOTHING_KNOWN));
    let bedrock = Kind::AwsBedrock.upstream(None);
    assert!(matches!(
        decide(&bedrock, &Method::GET, "/", None),
        Decision::Denied(_)
    ));
}

#[test]
fn models_are_in_the_list_exactly_or_by_a_prefix() {
    let list: Vec<String> = ["gpt-a", "claude-*"].map(str::to_owned).into();
    for (model, allowed) in [
        ("gpt-a", true),
        ("gpt-a2", false),
        ("GPT-A", false),
        ("claude-", true),
        ("claude-b", true),
        ("claude", false),
        ("", false),
    ] {
        assert_eq!(is_model_allowed(&list, model), allowed, "{model}");
    }
    assert!(is_model_allowed(&[], "anything"));
    assert!(is_model_allowed(&["*".into()], "anything"));
}

proptest! {
    #[test]
    fn a_credential_is_minted_under_no_spelling(
        prefix in "(/[a-z0-9%]{1,4}){0,3}",
        word in prop::sample::select(vec!["/realtime/sessions", "/realtime/client_secrets", "/chatkit/sessions"]),
        how in prop::collection::vec(0..3_u8, 26),
        rest in "(/[a-z]{0,3})?",
    ) {
        let word: String = word
            .chars()
            .zip(how)
            .map(|(c, how)| match how {
                _ if c == '/' => c.to_string(),
                0 => c.to_ascii_uppercase().to_string(),
                1 => format!("%{:02x}", u32::from(c)),
                _ => c.to_string(),
            })
            .collect();
        let path = format!("{prefix}{word}{rest}");
        let upstream = Kind::Openai.upstream(None);
        prop_assert!(matches!(decide(&upstream, &Method::POST, &path, None), Decision::Denied(_)));
    }
}
