//! Keys that die while they are in use.

use std::sync::atomic::{AtomicBool, Ordering};

use hyper::header::AUTHORIZATION;
use llmwarden_tests::fake_provider::{End, Pace, Seen};
use tokio::time::sleep;

use super::*;

/// How many programs ask at a time.
const ASKERS: usize = 8;

/// Sends requests one after another until told to stop: how many were answered, and what went wrong.
async fn keep_asking(proxied: &Proxied, stream: bool, stop: &AtomicBool) -> (u32, Vec<String>) {
    let (mut answered, mut failures) = (0, Vec::new());
    let end = if stream { "data: [DONE]\n\n" } else { "piece 6" };
    while !stop.load(Ordering::Relaxed) {
        let mut peer = proxied.send(&proxied.chat(&hello(stream))).await;
        let (text, broken) = peer.rest().await;
        let complete = text.contains(end) && (!stream || text.ends_with("0\r\n\r\n"));
        if text.starts_with("HTTP/1.1 200 ") && complete && !broken {
            answered += 1;
        } else {
            failures.push(text);
        }
    }
    (answered, failures)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_rotations_under_load_are_not_noticed_though_old_keys_die_first() {
    let (provider, mut proxied) = Proxied::to_fake().await;
    provider.set_pace(Pace {
        pieces: 6,
        every: Duration::from_millis(5),
    });
    let stop = AtomicBool::new(false);
    let mut volume = std::mem::replace(&mut proxied.volume, Volume::new().unwrap());
    let asking = (0..ASKERS).map(|number| keep_asking(&proxied, number % 2 == 1, &stop));
    let rotating = async {
        let mut old = KEY.to_owned();
        for version in 2..=51 {
            let key_number = usize::try_from(version).unwrap() - 1;
            let key = format!("sk-test-proxy-{version}-0123456789abcdef");
            provider.allow([key.as_str()]);
            // As long as the kubelet and an annotation take.
            sleep(Duration::from_millis(100 + version % 3 * 100)).await;
            let previous = (version % 2 == 0).then_some(old.as_str());
            publish(&mut volume, &proxied.upstream, version, &key, previous);
            await_version(&proxied.sidecar, version).await;
            // Rotations are slower than requests.
            eventually("requests with the new key", SOON, async || {
                let with_it = |seen: &&Seen| seen.key == Some(key_number) && seen.end == Some(End::Complete);
                provider.seen().iter().filter(with_it).count() >= ASKERS
            })
            .await;
            provider.take_seen();
            old = key;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (all, ()) = tokio::join!(futures::future::join_all(asking.collect::<Vec<_>>()), rotating);
    let answered: u32 = all.iter().map(|(answered, _)| answered).sum();
    let failures: Vec<_> = all.iter().flat_map(|(_, failures)| failures).collect();
    assert!(
        failures.is_empty(),
        "{} of {answered}: {:#?}",
        failures.len(),
        failures.first()
    );
    assert!(answered > 500, "{answered}");
    let retries = proxied
        .sidecar
        .samples("llmwarden_sidecar_proxy_retries_total")
        .await
        .unwrap();
    assert!(retries["{access=\"agent\"}"] >= 50.0, "{retries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_before_is_taken_when_the_new_one_is_dead() {
    let (provider, mut proxied) = Proxied::to_fake().await;
    proxied.rotate(NEXT, Some(KEY)).await;
    let answer = proxied.ask(&proxied.chat(&hello(false))).await;
    assert_words(&answer, 200, &["piece 1"]);
    let seen = provider.seen();
    let keys: Vec<_> = seen.iter().map(|seen| (seen.key, seen.status)).collect();
    assert_eq!(keys, [(None, Some(401)), (Some(0), Some(200))]);
    // But for the key, it is asked the same.
    let asked = seen.iter().map(|seen| {
        let mut headers = seen.headers.clone();
        assert!(headers.remove(AUTHORIZATION).is_some());
        (
            &seen.method,
            &seen.path,
            &seen.query,
            seen.body_bytes,
            &seen.model,
            headers,
        )
    });
    let asked: Vec<_> = asked.collect();
    assert_eq!(asked[0], asked[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_key_without_another_is_told_in_our_words() {
    for (kind, line, body) in [
        (
            ProviderKind::Openai,
            format!("POST {CHAT}"),
            hello(false).to_string(),
        ),
        (
            ProviderKind::Anthropic,
            "GET /proxy/agent/v1/models".to_owned(),
            String::new(),
        ),
        (
            ProviderKind::Gemini,
            "GET /proxy/agent/v1beta/models".to_owned(),
            String::new(),
        ),
        (
            ProviderKind::AzureOpenai,
            "GET /proxy/agent/openai/models?api-version=1".to_owned(),
            String::new(),
        ),
    ] {
        let (provider, upstream) = fake(kind).await;
        let proxied = Proxied::start(upstream).await;
        provider.allow([NEXT]);
        let begun = std::time::Instant::now();
        for attempt in 1..=5 {
            let answer = proxied.ask(&proxied.request(&line, &[], body.as_bytes())).await;
            let words = ["llmwarden: the provider refuses the key of LLMAccess `agent`"];
            assert_words(&answer, 401, &words);
            assert_eq!(answer.header("x-should-retry"), Some("false"));
            for theirs in [
                KEY,
                "sk-test",
                "cdef",
                "Incorrect",
                "invalid",
                "API key not valid",
            ] {
                let ours = answer.body.replace("invalid_request_error", "");
                assert!(!ours.contains(theirs), "{kind:?} {theirs}: {answer:?}");
            }
            assert_eq!(provider.seen().len(), attempt);
        }
        // The first one waited for another key in vain, and the others did not.
        assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
        assert_eq!(proxied.refused("dead_key").await, Some(5.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sent_a_large_body_is_told_to_send_it_again() {
    let (provider, mut proxied) = Proxied::to_fake().await;
    let mut body = hello(false);
    body["padding"] = "x".repeat(2 << 20).into();
    let request = proxied.chat(&body);
    assert_words(&proxied.ask(&request).await, 200, &["piece 1"]);
    provider.allow([NEXT]);
    let asking = proxied.send(&request).await;
    eventually("the refusal of the old key", SOON, async || {
        provider
            .seen()
            .get(1)
            .is_some_and(|seen| seen.status == Some(401))
    })
    .await;
    proxied.rotate(NEXT, None).await;
    let answer = asking.answer().await;
    assert_words(&answer, 401, &["which has been replaced since: try again"]);
    assert_eq!(answer.header("x-should-retry"), Some("true"));
    assert_words(&proxied.ask(&request).await, 200, &["piece 1"]);

    provider.allow([KEY]);
    let answer = proxied.ask(&request).await;
    assert_words(&answer, 401, &["have it replaced in the master Secret"]);
    assert_eq!(answer.header("x-should-retry"), Some("false"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_another_place_does_not_go_to_the_old_one() {
    let (old, mut proxied) = Proxied::to_fake().await;
    let (new, upstream) = fake(ProviderKind::Openai).await;
    old.allow(["nobody's"]);
    new.allow([NEXT]);
    let request = proxied.chat(&hello(false));
    let asking = proxied.send(&request).await;
    eventually("the refusal of the old key", SOON, async || {
        same(&old.seen().len(), &1)
    })
    .await;
    proxied.upstream = upstream;
    proxied.rotate(NEXT, Some(KEY)).await;
    let answer = asking.answer().await;
    assert_words(&answer, 401, &["which has been replaced since: try again"]);
    assert_eq!(answer.header("x-should-retry"), Some("true"));
    assert_words(&proxied.ask(&request).await, 200, &["piece 1"]);
    assert_eq!((old.seen().len(), new.seen().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_wait_for_the_next_key_whatever_the_length_they_announce() {
    let (provider, mut proxied) = Proxied::to_fake().await;
    provider.allow([NEXT]);
    let body = hello(false).to_string();
    let head = proxied.request(&format!("POST {CHAT}"), &["Transfer-Encoding: chunked"], b"");
    let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes();
    let request = [head, chunk].concat();
    let mut asking = Vec::new();
    for _ in 0..40 {
        asking.push(proxied.send(&request).await);
    }
    eventually("the refusals of the old key", SOON, async || {
        same(&provider.seen().len(), &asking.len())
    })
    .await;
    proxied.rotate(NEXT, None).await;
    for peer in asking {
        assert_words(&peer.answer().await, 200, &["piece 1"]);
    }
}
