//! Answers by which a provider says that a key is dead.

use hyper::StatusCode;
use llmwarden_proto::delivery::Upstream;

/// Whether an answer of this status may say so: its body decides.
pub fn may_be_dead_key(upstream: &Upstream, status: StatusCode) -> bool {
    upstream
        .dead_key
        .iter()
        .any(|dead| dead.status == status.as_u16())
}

/// Whether this answer says so.
pub fn is_dead_key(upstream: &Upstream, status: StatusCode, body: &[u8]) -> bool {
    upstream.dead_key.iter().any(|dead| {
        let said = |text: &String| contains(body, text.as_bytes());
        dead.status == status.as_u16() && (dead.any_of.is_empty() || dead.any_of.iter().any(said))
    })
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    // `windows` takes no size of zero.
    text.is_empty()
        || body
            .windows(text.len())
            .any(|part| part.eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    use llmwarden_proto::delivery::DeadKey;
    use llmwarden_proto::profile::ProviderKind as Kind;

    use super::*;

    #[test]
    fn each_provider_says_it_in_its_own_way() {
        let openai = r#"{"error":{"message":"Incorrect API key provided: sk-pr***34.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#;
        let quota = r#"{"error":{"message":"You must be a member of an organization","type":"invalid_request_error","code":"invalid_organization"}}"#;
        let anthropic =
            r#"{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}"#;
        let azure = r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#;
        let gemini =
            r#"{"error":{"code":400,"status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}"#;
        let gemini_other = r#"{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"unknown field"}}"#;
        let litellm =
            r#"{"error":{"message":"m","type":"token_not_found_in_db","param":"key","code":"401"}}"#;
        let passed_on = r#"{"error":{"message":"OpenAIException","type":null,"param":null,"code":"401"}}"#;
        for (kind, status, body, dead) in [
            (Kind::Openai, 401, openai, true),
            (Kind::Openai, 401, quota, false),
            (Kind::Openai, 403, openai, false),
            (Kind::Openai, 429, openai, false),
            (Kind::Anthropic, 401, anthropic, true),
            (Kind::Anthropic, 403, anthropic, false),
            (Kind::AzureOpenai, 401, azure, true),
            (Kind::Gemini, 400, gemini, true),
            (Kind::Gemini, 400, gemini_other, false),
            (Kind::Litellm, 401, litellm, true),
            (Kind::Litellm, 401, passed_on, false),
            (
                Kind::Openrouter,
                401,
                r#"{"error":{"code":401,"message":"User not found."}}"#,
                true,
            ),
            (Kind::Custom, 401, "", true),
            (Kind::Custom, 403, "", false),
        ] {
            let upstream = kind.upstream(None);
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(
                is_dead_key(&upstream, status, body.as_bytes()),
                dead,
                "{kind:?} {body}"
            );
            assert!(!dead || may_be_dead_key(&upstream, status));
        }
        assert!(!may_be_dead_key(&Kind::Openai.upstream(None), StatusCode::OK));
    }

    #[test]
    fn an_empty_text_is_in_every_answer() {
        let mut upstream = Kind::Openai.upstream(None);
        upstream.dead_key = vec![DeadKey {
            status: 401,
            any_of: vec![String::new()],
        }];
        assert!(is_dead_key(&upstream, StatusCode::UNAUTHORIZED, b""));
    }
}
