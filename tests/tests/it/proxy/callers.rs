//! Who may ask, and what of the caller's reaches the provider.

use std::path::Path;

use llmwarden_proto::names;
use llmwarden_proto::profile::ProviderKind as Kind;
use llmwarden_tests::{Sidecar, Volume};
use serde_json::{Value, json};

use super::*;
use crate::sidecar::await_problem;

/// A request that each provider answers: its line without a key, and its body.
fn questions() -> [(Kind, &'static str, Value); 4] {
    let hi = json!([{ "role": "user", "content": "hi" }]);
    [
        (
            Kind::Openai,
            "/v1/chat/completions",
            json!({ "model": "gpt-4o", "messages": hi }),
        ),
        (
            Kind::Anthropic,
            "/v1/messages",
            json!({ "model": "claude-opus-5", "max_tokens": 9, "messages": hi }),
        ),
        (
            Kind::AzureOpenai,
            "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
            json!({ "messages": hi }),
        ),
        (
            Kind::Gemini,
            "/v1beta/models/gemini-2.5-flash:generateContent",
            json!({ "contents": [{ "parts": [{ "text": "hi" }] }] }),
        ),
    ]
}

/// Every place where some provider's SDK puts a key: a header, or a parameter.
fn places(key: &str) -> Vec<(String, String)> {
    let headers = [
        "Authorization: Bearer ",
        "authorization: bearer ",
        "Authorization: ",
        "x-api-key: ",
        "X-Api-Key: ",
        "api-key: ",
        "x-goog-api-key: ",
    ];
    let headers = headers.map(|header| (format!("{header}{key}"), String::new()));
    let parameters = [
        format!("key={key}"),
        format!("a=b&key={key}&c=d"),
        format!("api_key={key}"),
    ];
    let parameters = parameters.map(|parameter| ("X-Other: 1".to_owned(), parameter));
    headers.into_iter().chain(parameters).collect()
}

fn line(path: &str, parameters: &str) -> String {
    let separator = match (parameters.is_empty(), path.contains('?')) {
        (true, _) => "",
        (_, true) => "&",
        _ => "?",
    };
    format!("POST /proxy/agent{path}{separator}{parameters}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_placeholder_is_taken_wherever_sdks_put_keys_and_nothing_else_of_the_callers_goes_on() {
    for (kind, path, body) in questions() {
        let (provider, upstream) = fake(kind).await;
        let header = upstream.auth.header.clone();
        let proxied = Proxied::start(upstream).await;
        let body = body.to_string();
        for (place, parameters) in places(PLACEHOLDER) {
            let line = line(path, &parameters);
            let headers = [
                place.as_str(),
                "anthropic-version: 2023-06-01",
                "Content-Type: application/json",
                "Cookie: session=the-callers-own",
                "Proxy-Authorization: Basic the-callers-own",
                "X-Amz-Security-Token: the-callers-own",
                "Ocp-Apim-Subscription-Key: the-callers-own",
                "X-Goog-Api-Key: the-callers-own",
                "X-Api-Key: the-callers-own",
            ];
            let answer = proxied
                .ask(&proxied.plain(&line, &headers, body.as_bytes()))
                .await;
            assert_words(&answer, 200, &["piece 1"]);
            assert_eq!(answer.header("via"), Some("1.1 llmwarden"));
            let [seen] = &provider.take_seen()[..] else {
                panic!("not one request");
            };
            assert_eq!(seen.key, Some(0), "{kind:?} {place} {parameters}");
            let all = format!("{seen:?}");
            for gone in [PLACEHOLDER, "the-callers-own", "key="] {
                assert!(!all.contains(gone), "{gone} in {all}");
            }
            assert_eq!(seen.headers.get_all(&header).iter().count(), 1, "{all}");
            let kept = parameters.contains("a=b");
            assert_eq!(
                kept,
                seen.query
                    .as_ref()
                    .is_some_and(|query| query.ends_with("a=b&c=d"))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lacks_the_placeholder_is_told_so_as_the_provider_would() {
    for (kind, path, body) in questions() {
        let (provider, upstream) = fake(kind).await;
        let proxied = Proxied::start(upstream).await;
        let mut refused = BTreeMap::new();
        let sent = [
            ("", "no_placeholder", "no API key was sent"),
            (
                "sk-llmwarden-another",
                "wrong_placeholder",
                "is not the placeholder",
            ),
            (
                &PLACEHOLDER[..PLACEHOLDER.len() - 1],
                "wrong_placeholder",
                "is not the placeholder",
            ),
            ("x", "wrong_placeholder", "is not the placeholder"),
            (KEY, "real_key", "a real API key seems to have been sent"),
        ];
        for (key, reason, words) in sent {
            let places = match key {
                "" => vec![("X-Other: 1".to_owned(), String::new())],
                key => places(key),
            };
            for (place, parameters) in places {
                let request = proxied.plain(&line(path, &parameters), &[&place], body.to_string().as_bytes());
                let answer = proxied.ask(&request).await;
                assert_words(&answer, 401, &["llmwarden: ", words]);
                assert!(key.len() < 2 || !answer.body.contains(key), "{answer:?}");
                let told: Value = serde_json::from_str(&answer.body).unwrap();
                let kind_of_error = match kind {
                    Kind::Anthropic => (&told["error"]["type"], json!("authentication_error")),
                    Kind::Gemini => (&told["error"]["status"], json!("UNAUTHENTICATED")),
                    _ => (&told["error"]["code"], json!(format!("llmwarden_{reason}"))),
                };
                assert_eq!(*kind_of_error.0, kind_of_error.1, "{told}");
                let count: &mut f64 = refused.entry(reason).or_default();
                *count += 1.0;
                assert_eq!(proxied.refused(reason).await, Some(*count));
            }
        }
        assert!(provider.seen().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_program_in_the_pod_sends_is_refused_before_anything_else() {
    let (provider, upstream) = fake(Kind::Openai).await;
    let mut direct = Volume::new().unwrap();
    direct.publish(1, KEY).unwrap();
    let proxied =
        Proxied::start_with(upstream, |options| options.sources.push(direct.source("direct"))).await;
    let body = hello(false).to_string();
    let chat = format!("POST {CHAT}");
    for (line, header, status, words) in [
        (chat.as_str(), "Host: example.com", 400, "one Host header"),
        (&chat, "Origin: https://example.com", 403, "not for web pages"),
        (&chat, "Sec-Fetch-Site: none", 403, "not for web pages"),
        (&chat, "X-Forwarded-For: 10.0.0.1", 400, "X-Forwarded"),
        (&chat, "Forwarded: for=10.0.0.1", 400, "X-Forwarded"),
        (
            "POST /proxy/agent/../agent/v1/chat/completions",
            "X-A: 1",
            400,
            "`..`",
        ),
        (
            "POST /proxy/agent/v1/%2e%2e/chat/completions",
            "X-A: 1",
            400,
            "encoded dot",
        ),
        ("POST /proxy/agent/v1//chat/completions", "X-A: 1", 400, "`//`"),
        (
            "POST http://localhost/proxy/agent/v1/chat/completions",
            "X-A: 1",
            400,
            "scheme",
        ),
        (
            "POST /proxy/other/v1/chat/completions",
            "X-A: 1",
            404,
            "no LLMAccess `other`",
        ),
        (
            "POST /proxy/direct/v1/chat/completions",
            "X-A: 1",
            403,
            "through the proxy",
        ),
        (
            "POST /proxy/agent/v1/realtime/client_secrets",
            "X-A: 1",
            403,
            "makes credentials",
        ),
        (
            "POST /proxy/agent/v1/Realtime/sessions",
            "X-A: 1",
            403,
            "makes credentials",
        ),
        (
            "GET /proxy/agent/v1/organization/admin_api_keys",
            "X-A: 1",
            403,
            "administers",
        ),
        ("TRACE /proxy/agent/v1/models", "X-A: 1", 403, "TRACE"),
    ] {
        let answer = proxied
            .ask(&proxied.request(line, &[header], body.as_bytes()))
            .await;
        assert_words(&answer, status, &["llmwarden: ", words]);
        assert!(
            !answer.body.contains(KEY) && !answer.body.contains(PLACEHOLDER),
            "{answer:?}"
        );
        assert_words(
            &proxied.ask(&proxied.chat(&hello(false))).await,
            200,
            &["piece 1"],
        );
    }
    let seen = provider.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.path == "/v1/chat/completions" && seen.key == Some(0)),
        "{seen:?}"
    );
}

/// Fails where a key lies in a file of what was delivered.
fn assert_no_key(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            assert_no_key(&path);
        } else if let Ok(content) = std::fs::read_to_string(&path) {
            assert!(!content.contains(KEY), "the key is in {}", path.display());
        }
    }
}

async fn assert_placeholder(sidecar: &Sidecar) {
    assert_no_key(&sidecar.dir());
    let file = std::fs::read_to_string(sidecar.file("agent", names::API_KEY)).unwrap();
    assert_eq!(file, PLACEHOLDER);
    for path in ["/v1/keys/agent/apiKey", "/v1/keys/agent", "/v1/keys"] {
        let answer = sidecar.get(path).await.unwrap();
        assert_eq!(
            (answer.status, answer.body.contains(KEY)),
            (200, false),
            "{answer:?}"
        );
        assert_eq!(
            answer.body.contains(PLACEHOLDER),
            path != "/v1/keys",
            "{answer:?}"
        );
    }
    // And where it is taken.
    let url = format!("http://{}/proxy/agent/v1", sidecar.endpoint());
    let answer = sidecar.get("/v1/keys/agent/baseUrl").await.unwrap();
    assert_eq!(answer.body, url);
    eventually("the proxy's URL in the file", SOON, async || {
        let file = std::fs::read_to_string(sidecar.file("agent", names::BASE_URL)).unwrap();
        same(&file, &url)
    })
    .await;
    let status = sidecar.status().await.unwrap();
    assert_eq!(status.accesses["agent"].lacking, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_endpoint_have_the_placeholder_also_after_a_kill() {
    let (_provider, mut proxied) = Proxied::to_fake().await;
    assert_placeholder(&proxied.sidecar).await;

    proxied.volume.unmount().unwrap();
    proxied.sidecar = proxied.sidecar.restart().await.unwrap();
    assert_placeholder(&proxied.sidecar).await;
    let answer = proxied.ask(&proxied.chat(&hello(false))).await;
    assert_words(&answer, 503, &["has not arrived yet"]);
    assert_eq!(answer.header("retry-after"), Some("1"));

    publish(&mut proxied.volume, &proxied.upstream, 1, KEY, None);
    eventually("an answer", SOON, async || {
        proxied.ask(&proxied.chat(&hello(false))).await.status == 200
    })
    .await;
    assert_placeholder(&proxied.sidecar).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_direct_mode_is_no_way_to_the_key() {
    let (_provider, upstream) = fake(Kind::Openai).await;
    let dir = tempfile::tempdir().unwrap();
    let mut volume = Volume::new().unwrap();
    publish(&mut volume, &upstream, 1, KEY, None);
    let mut options = Options::new([volume.source("agent")]);
    options.dir = Some(dir.path().join("run"));
    let direct = Sidecar::start(options.clone()).await.unwrap();
    await_version(&direct, 1).await;
    assert_eq!(
        std::fs::read_to_string(direct.file("agent", names::API_KEY)).unwrap(),
        KEY
    );
    drop(direct);

    volume.unmount().unwrap();
    options.proxied.push("agent".to_owned());
    let sidecar = Sidecar::start(options).await.unwrap();
    for path in ["/v1/keys/agent/apiKey", "/v1/keys/agent"] {
        let answer = sidecar.get(path).await.unwrap();
        assert_eq!(
            (answer.status, answer.body.contains(KEY)),
            (503, false),
            "{answer:?}"
        );
    }
    assert_no_key(&sidecar.dir());
    publish(&mut volume, &upstream, 1, KEY, None);
    await_version(&sidecar, 1).await;
    assert_placeholder(&sidecar).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_placeholder_the_last_good_version_stays() {
    let (_provider, mut proxied) = Proxied::to_fake().await;
    let document = serde_json::to_vec(&document(&proxied.upstream, 2)).unwrap();
    let files = [(names::API_KEY, NEXT.as_bytes()), (names::LIVE_JSON, &document)];
    proxied.volume.write(&files).unwrap();
    let status = await_problem(&proxied.sidecar, "agent", "placeholder").await;
    assert_eq!(status.version, Some(1));
    assert_placeholder(&proxied.sidecar).await;
    assert_words(
        &proxied.ask(&proxied.chat(&hello(false))).await,
        200,
        &["piece 1"],
    );

    proxied.version = 2;
    proxied.rotate(KEY, None).await;
    assert_eq!(
        proxied.sidecar.status().await.unwrap().accesses["agent"].problems,
        [""; 0]
    );
}
