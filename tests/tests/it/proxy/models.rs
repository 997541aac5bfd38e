//! The list of models: what is on it passes, of anything else the provider never sees a whole request.

use llmwarden_proto::delivery::Upstream;
use sha2::{Digest as _, Sha256};

use super::*;

const MODELS: [&str; 2] = ["gpt-4o", "o4-*"];

fn limited(upstream: Upstream) -> Upstream {
    Upstream {
        models: MODELS.map(str::to_owned).into(),
        ..upstream
    }
}

/// The body of a request in one piece of a chunked coding.
fn chunked(proxied: &Proxied, headers: &[&str], body: &str) -> Vec<u8> {
    let headers = [headers, &["Transfer-Encoding: chunked"]].concat();
    let head = proxied.request(&format!("POST {CHAT}"), &headers, b"");
    [
        head,
        format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes(),
    ]
    .concat()
}

/// A body of this many bytes and a few, with the model at its end.
fn large(model: &str, size: usize) -> String {
    format!(
        r#"{{"messages":[{{"role":"user","content":"{}"}}],"model":"{model}"}}"#,
        "x".repeat(size)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_listed_passes_and_what_is_not_is_told_with_the_list() {
    let (provider, upstream) = fake(ProviderKind::Openai).await;
    let proxied = Proxied::start(limited(upstream)).await;
    let nested = format!(
        r#"{{"model":"gpt-4o","a":{}1{}}}"#,
        "[".repeat(2000),
        "]".repeat(2000)
    );
    let denied: &[&str] = &["may not use the model", "`gpt-4o`, `o4-*`", "allowedModels"];
    let unread: &[&str] = &["can't be told"];
    for (body, status, words) in [
        (
            r#"{"model":"gpt-4o","messages":[{"role":"user","content":"a"}]}"#,
            200,
            &[][..],
        ),
        (
            r#"{"messages":[{"role":"user","content":"a"}],"model":"o4-mini"}"#,
            200,
            &[],
        ),
        (
            r#"{"messages":[{"role":"user","content":"a","model":"gpt-5"}],"model":"gpt-4\u006f"}"#,
            200,
            &[],
        ),
        (
            r#"{"model":"gpt-5","messages":[{"role":"user","content":"a"}]}"#,
            403,
            denied,
        ),
        (
            r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"a"}]}"#,
            403,
            denied,
        ),
        (
            r#"{"model":"GPT-4o","messages":[{"role":"user","content":"a"}]}"#,
            403,
            denied,
        ),
        (
            r#"{"model":"gpt-4o ","messages":[{"role":"user","content":"a"}]}"#,
            403,
            denied,
        ),
        (
            r#"{"model":"o4-*x\u0000","messages":[{"role":"user","content":"a"}]}"#,
            200,
            &[],
        ),
        (r#"{"model":"gpt-5","model":"gpt-4o"}"#, 400, unread),
        (r#"{"model":"gpt-4o","m\u006fdel":"gpt-4o"}"#, 400, unread),
        (r#"{"model":"gpt-4o","Model":"gpt-5"}"#, 400, unread),
        (r#"{"model":["gpt-4o"]}"#, 400, unread),
        (r#"[{"model":"gpt-4o"}]"#, 400, unread),
        (r#"{"model":"gpt-4o"} {"model":"gpt-5"}"#, 400, unread),
        (r#"{"model":"gpt-4o""#, 400, unread),
        ("model=gpt-4o", 400, unread),
        ("\u{feff}{\"model\":\"gpt-4o\"}", 400, unread),
        (
            r#"{"messages":[{"role":"user","content":"a"}]}"#,
            400,
            &["names no model"],
        ),
        (&nested, 400, unread),
    ] {
        let length = proxied.request(&format!("POST {CHAT}"), &[], body.as_bytes());
        for request in [length, chunked(&proxied, &[], body)] {
            let answer = proxied.ask(&request).await;
            assert_words(&answer, status, words);
            assert_eq!(provider.take_seen().len(), usize::from(status == 200), "{body}");
        }
    }
    for (line, status, words) in [
        (format!("POST {CHAT}?model=gpt-5"), 403, "a model in the query"),
        ("POST /proxy/agent/v1/batches".to_owned(), 403, "batch"),
        (
            "POST /proxy/agent/v1/audio/transcriptions".to_owned(),
            403,
            "multipart",
        ),
        ("POST /proxy/agent/v1/new/thing".to_owned(), 403, "not known"),
        ("GET /proxy/agent/v1/models".to_owned(), 200, ""),
    ] {
        let answer = proxied
            .ask(&proxied.request(&line, &[], b"{\"model\":\"gpt-4o\"}"))
            .await;
        assert_words(&answer, status, &[words]);
    }
    let encoded = proxied.request(&format!("POST {CHAT}"), &["Content-Encoding: gzip"], b"\x1f\x8b");
    assert_words(&proxied.ask(&encoded).await, 400, unread);
    assert_words(&proxied.ask(&chunked(&proxied, &[], "")).await, 400, unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_models_of_tools_have_to_be_listed_too() {
    let (provider, upstream) = fake(ProviderKind::Openai).await;
    let proxied = Proxied::start(limited(upstream)).await;
    for (tool, status, words) in [
        (r#"{"type":"new","model":"o4-mini"}"#, 200, ""),
        (
            r#"{"type":"new","model":"gpt-5"}"#,
            403,
            "may not use the model `gpt-5`",
        ),
        (
            r#"{"type":"new","settings":{"model":"gpt-5"}}"#,
            403,
            "may not use the model `gpt-5`",
        ),
        (
            r#"{"type":"image_generation"}"#,
            403,
            "its tool `image_generation` uses models of its own",
        ),
    ] {
        let body =
            format!(r#"{{"tools":[{tool}],"model":"gpt-4o","messages":[{{"role":"user","content":"a"}}]}}"#);
        let answer = proxied.ask(&chunked(&proxied, &[], &body)).await;
        assert_words(&answer, status, &[words]);
        assert_eq!(provider.take_seen().len(), usize::from(status == 200), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_request_that_is_denied_the_end_never_arrives() {
    const SIZE: usize = 3 << 20;
    let script = Script::start().await;
    let proxied = Proxied::start(limited(script.upstream())).await;
    for (model, status, words) in [
        ("gpt-5", 403, "`gpt-4o`, `o4-*`"),
        (r#"gpt-4o","model":"gpt-4o"#, 400, "twice"),
    ] {
        let body = large(model, SIZE);
        let length = proxied.request(&format!("POST {CHAT}"), &[], body.as_bytes());
        for request in [length, chunked(&proxied, &[], &body)] {
            let (answer, mut provider) = tokio::join!(proxied.ask(&request), async {
                let (mut provider, head) = script.accept_request().await;
                let (text, _) = provider.rest().await;
                (head, text)
            });
            assert_words(&answer, status, &[words]);
            let (head, text) = &mut provider;
            if head.contains("content-length") {
                assert!(text.len() < body.len(), "all of it");
            } else {
                assert!(!text.ends_with("0\r\n\r\n") && !text.contains(model), "all of it");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_arrive_as_they_were_sent() {
    let (provider, upstream) = fake(ProviderKind::Openai).await;
    let proxied = Proxied::start(limited(upstream)).await;
    for size in [1000, (1 << 20) - 100, 1 << 20, (1 << 20) + 1, 3 << 20] {
        let body = large("gpt-4o", size);
        let length = proxied.request(&format!("POST {CHAT}"), &[], body.as_bytes());
        for request in [length, chunked(&proxied, &[], &body)] {
            assert_words(&proxied.ask(&request).await, 200, &["piece 1"]);
            let seen = provider.take_seen();
            let digest: [u8; 32] = Sha256::digest(&body).into();
            assert_eq!(seen[0].body_digest, Some(digest), "{size}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_take_no_memory() {
    const PIECE: usize = 1 << 20;
    let script = Script::start().await;
    let proxied = Proxied::start(limited(script.upstream())).await;
    let body = large("gpt-4o", 0);
    let (begin, end) = body.split_at(body.find("\"}],").unwrap());
    let length = format!("Content-Length: {}", body.len() + 100 * PIECE);
    let before = peak(&proxied);
    let head = proxied.request(&format!("POST {CHAT}"), &[&length], b"");
    let mut client = proxied.send(&head).await;
    let receiving = async {
        let (mut provider, head) = script.accept_request().await;
        assert!(head.contains(&length.to_lowercase()), "{head}");
        let mut left = body.len() + 100 * PIECE - provider.ahead.len();
        let mut buffer = vec![0; PIECE];
        while left > 0 {
            let read = provider.stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "{left} are missing");
            left -= read;
        }
        provider
            .say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        provider
    };
    let sending = async {
        client.say(begin).await;
        let piece = "x".repeat(PIECE);
        for _ in 0..100 {
            client.say(&piece).await;
        }
        client.say(end).await;
        client.answer().await
    };
    let (_, answer) = timeout(SOON, async { tokio::join!(receiving, sending) })
        .await
        .unwrap();
    assert_words(&answer, 200, &["ok"]);
    let grown = peak(&proxied) - before;
    assert!(grown < 24 * 1024, "{grown} KiB more");
}
