//! The way to the provider, and what of the key is seen on the way: nothing.

use llmwarden_proto::delivery::Upstream;
use llmwarden_tests::fake_provider::Fault;
use llmwarden_tests::free_port;
use tokio::io::copy_bidirectional;

use super::*;

/// A fake that speaks TLS and takes [`KEY`], and how it is reached with its authority known.
async fn tls() -> (FakeProvider, Upstream) {
    let provider = FakeProvider::start_tls(ProviderKind::Openai).await.unwrap();
    provider.allow([KEY]);
    let bundle = std::fs::read_to_string(provider.authority().unwrap()).unwrap();
    let upstream = Upstream {
        ca_bundle: Some(bundle),
        ..ProviderKind::Openai.upstream(Some(&provider.base_url()))
    };
    (provider, upstream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_believed_by_its_authority_alone() {
    let (provider, upstream) = tls().await;
    let mut proxied = Proxied::start(upstream.clone()).await;
    let request = proxied.chat(&hello(true));
    assert_words(&proxied.ask(&request).await, 200, &["[DONE]"]);

    let (_other, foreign) = tls().await;
    for (bundle, status, words) in [
        (None, 502, "can't be reached"),
        (foreign.ca_bundle, 502, "can't be reached"),
        (Some("no PEM".to_owned()), 503, "not known where"),
        (upstream.ca_bundle, 200, "[DONE]"),
    ] {
        proxied.upstream.ca_bundle = bundle;
        proxied.rotate(KEY, None).await;
        assert_words(&proxied.ask(&request).await, status, &[words]);
    }
    assert_eq!(provider.seen().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_out_is_the_one_that_the_environment_names() {
    let (provider, upstream) = tls().await;
    let egress = Script::start().await;
    let proxy = format!("http://user:secret@{}", egress.0.local_addr().unwrap());
    let proxied = Proxied::start_with(upstream, |options| {
        options.env.push(("HTTPS_PROXY".to_owned(), proxy));
    })
    .await;
    let relay = async {
        let (mut inbound, head) = egress.accept_request().await;
        let mut outbound = TcpStream::connect(provider.address()).await.unwrap();
        inbound.say("HTTP/1.1 200 Connected\r\n\r\n").await;
        let _ = copy_bidirectional(&mut inbound.stream, &mut outbound).await;
        head
    };
    let request = proxied.chat(&hello(true));
    let asking = async {
        let answer = proxied.ask(&request).await;
        proxied.sidecar.process().kill();
        answer
    };
    let (head, answer) = tokio::join!(relay, asking);
    assert_words(&answer, 200, &["[DONE]"]);
    let port = provider.address().port();
    assert!(
        head.starts_with(&format!("CONNECT localhost:{port} HTTP/1.1\r\n")),
        "{head}"
    );
    assert!(
        head.to_lowercase().contains("proxy-authorization: basic "),
        "{head}"
    );
    assert!(!head.contains(KEY) && !head.contains(PLACEHOLDER), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_not_there_is_told_in_its_own_form() {
    for kind in [
        ProviderKind::Openai,
        ProviderKind::Anthropic,
        ProviderKind::Gemini,
    ] {
        let nowhere = format!("http://localhost:{}", free_port());
        let proxied = Proxied::start(kind.upstream(Some(&nowhere))).await;
        let answer = proxied
            .ask(&proxied.request("GET /proxy/agent/v1/models", &[], b""))
            .await;
        assert_words(&answer, 502, &["can't be reached: check the pod's egress"]);
        let told: Value = serde_json::from_str(&answer.body).unwrap();
        assert!(told["error"].is_object(), "{told}");
        assert_eq!(told["type"] == "error", kind == ProviderKind::Anthropic, "{told}");
        assert_eq!(proxied.refused("upstream_unreachable").await, Some(1.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_in_nothing_that_is_logged_or_told() {
    let (provider, upstream) = tls().await;
    let proxied = Proxied::start_with(upstream, |options| "trace".clone_into(&mut options.log_level)).await;
    let mut told = String::new();
    let query = format!("GET /proxy/agent/v1/models?key={PLACEHOLDER}&private=the-callers-own");
    let real = format!("Authorization: Bearer {KEY}");
    for fault in [None, Some(Fault::Cut), Some(Fault::HangUp)] {
        if let Some(fault) = fault {
            provider.fail_next(fault);
        }
        for request in [
            proxied.chat(&hello(true)),
            proxied.chat(&hello(false)),
            proxied.plain(&query, &[], b""),
            proxied.plain("GET /proxy/agent/v1/models", &[&real], b""),
        ] {
            told += &proxied.send(&request).await.rest().await.0;
        }
    }
    provider.allow([NEXT]);
    for body in [
        hello(true),
        json!({ "model": "gpt-4o", "padding": "x".repeat(2 << 20) }),
    ] {
        told += &proxied.send(&proxied.chat(&body)).await.rest().await.0;
    }
    for path in ["/status", "/metrics", "/healthz", "/readyz"] {
        told += &proxied.sidecar.probe(path).await.unwrap().1;
    }
    let log = proxied.sidecar.process().log();
    assert!(log.contains("TRACE"), "no trace");
    for (where_, text) in [("log", &log), ("answers", &told)] {
        for secret in [KEY, &KEY[8..24], "the-callers-own"] {
            let at = text.find(secret);
            let around =
                at.map(|at| String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(200)..at + 20]));
            assert!(at.is_none(), "{secret} is in the {where_}: {around:?}");
        }
    }
    assert!(!log.contains(PLACEHOLDER), "the placeholder is in the log");
}
