//! What clients can't check: the words of refusals as the vendors document them, and what the fake remembers.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::wait::eventually;

const SOON: Duration = Duration::from_secs(10);
const KEYS: [&str; 2] = ["sk-test-0123456789-one", "sk-test-0123456789-two"];

/// A request that every one of these APIs answers, over a connection of its own.
fn request(kind: ProviderKind, key: &str) -> String {
    let (path, header) = match kind {
        ProviderKind::Anthropic => ("/v1/models", "anthropic-version: 2023-06-01\r\nx-api-key: "),
        ProviderKind::AzureOpenai => ("/openai/models?api-version=1", "api-key: "),
        ProviderKind::Gemini => ("/v1beta/models", "x-goog-api-key: "),
        ProviderKind::Openrouter => ("/api/v1/models", "authorization: Bearer "),
        _ => ("/v1/models", "authorization: Bearer "),
    };
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{header}{key}\r\nconnection: close\r\n\r\n")
}

async fn ask(provider: &FakeProvider, request: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(provider.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (
        status.unwrap_or(0),
        serde_json::from_str(body).unwrap_or_default(),
    )
}

#[tokio::test]
async fn a_dead_key_is_refused_at_once_and_in_the_providers_own_words() {
    let cases: [(ProviderKind, u16, &str, Value); 6] = [
        (ProviderKind::Openai, 401, "/error/code", json!("invalid_api_key")),
        (
            ProviderKind::Anthropic,
            401,
            "/error/message",
            json!("invalid x-api-key"),
        ),
        (ProviderKind::AzureOpenai, 401, "/error/code", json!("401")),
        (
            ProviderKind::Gemini,
            400,
            "/error/details/0/reason",
            json!("API_KEY_INVALID"),
        ),
        (ProviderKind::Openrouter, 401, "/error/code", json!(401)),
        (
            ProviderKind::Litellm,
            401,
            "/error/type",
            json!("token_not_found_in_db"),
        ),
    ];
    for (kind, status, pointer, expected) in cases {
        let provider = FakeProvider::start(kind).await.unwrap();
        provider.allow(KEYS);
        for key in KEYS {
            assert_eq!(ask(&provider, &request(kind, key)).await.0, 200, "{kind:?}");
        }
        provider.allow([KEYS[1]]);
        let (seen, body) = ask(&provider, &request(kind, KEYS[0])).await;
        assert_eq!(
            (seen, body.pointer(pointer)),
            (status, Some(&expected)),
            "{kind:?}: {body}"
        );
        assert!(!body.to_string().contains(KEYS[0]), "{body}");
        assert_eq!(ask(&provider, &request(kind, KEYS[1])).await.0, 200);
        let keys: Vec<_> = provider
            .take_seen()
            .iter()
            .map(|seen| (seen.key, seen.status))
            .collect();
        let (one, other) = (Some(0), Some(1));
        let ok = Some(200);
        assert_eq!(keys, [(one, ok), (other, ok), (one, Some(status)), (other, ok)]);
    }
}

#[tokio::test]
async fn requests_and_their_ends_are_remembered() {
    let provider = FakeProvider::start(ProviderKind::Openai).await.unwrap();
    provider.allow(KEYS);
    let body =
        json!({ "model": "m", "stream": true, "messages": [{ "role": "user", "content": "?" }] }).to_string();
    let post = format!(
        "POST /v1/chat/completions?a=b HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        KEYS[0],
        body.len()
    );
    assert_eq!(ask(&provider, &post).await.0, 200);
    provider.fail_next(Fault::HangUp);
    assert_eq!(ask(&provider, &post).await.0, 0);
    provider.fail_next(Fault::Cut);
    assert_eq!(ask(&provider, &post).await.0, 200);
    provider.fail_next(Fault::Hang);
    let mut stream = TcpStream::connect(provider.address()).await.unwrap();
    stream.write_all(post.as_bytes()).await.unwrap();
    eventually("the request", SOON, async || {
        provider.seen().get(3).is_some_and(|seen| seen.model.is_some())
    })
    .await;
    assert_eq!(provider.seen()[3].end, None);
    drop(stream);
    eventually("its end", SOON, async || provider.seen()[3].end).await;

    let seen = provider.take_seen();
    let ends: Vec<_> = seen.iter().filter_map(|seen| seen.end).collect();
    assert_eq!(ends, [End::Complete, End::Cut, End::Cut, End::Abandoned]);
    for seen in &seen {
        assert_eq!(
            (seen.method.as_str(), seen.path.as_str()),
            ("POST", "/v1/chat/completions")
        );
        assert_eq!(
            (seen.query.as_deref(), seen.model.as_deref()),
            (Some("a=b"), Some("m"))
        );
        assert_eq!(seen.body_bytes, body.len() as u64);
        assert_eq!(seen.body_digest, Some(Sha256::digest(&body).into()));
    }
    assert!(provider.seen().is_empty());
}
