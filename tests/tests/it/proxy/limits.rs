//! What callers may not do for ever, and not too often at a time.

use std::time::Instant;

use llmwarden_proto::status::DeliveryState;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;

/// How many requests are passed on at a time.
const PLACES: usize = 1_024;
/// How long a body may pause.
const PAUSE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_is_waited_for_but_not_for_ever() {
    let (script, proxied) = Proxied::to_script().await;
    let line = format!("POST {CHAT}");
    // One that is held, and one that is on its way already.
    let held = proxied.request(&line, &["Content-Length: 100"], b"");
    let passing = proxied.request(&line, &["Content-Length: 2000000"], b"");
    let begun = Instant::now();
    let mut clients = [proxied.send(&held).await, proxied.send(&passing).await];
    for client in &mut clients {
        client.say("{\"model\":").await;
    }
    let (mut provider, _) = script.accept_request().await;
    provider.until("\"model\":").await;
    for client in clients {
        let answer = client.answer().await;
        assert_words(
            &answer,
            408,
            &["nothing more of the request's body came for 30 s"],
        );
        let error: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(error["error"]["code"], "llmwarden_body_stalled");
    }
    assert!(begun.elapsed() >= PAUSE, "{:?}", begun.elapsed());
    assert_eq!(provider.rest().await.0, "", "what was never sent");
    assert_eq!(proxied.refused("body_stalled").await, Some(2.0));
    proxied.await_in_use(BTreeMap::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_ends_too_early_is_the_callers_mistake() {
    let (script, proxied) = Proxied::to_script().await;
    let line = format!("POST {CHAT}");
    let half = proxied.request(&line, &["Content-Length: 100"], b"");
    let half = [half, b"{".to_vec()].concat();
    let garbled = proxied.request(&line, &["Transfer-Encoding: chunked"], b"");
    let garbled = [garbled, b"1\r\n{\r\nxyz\r\n".to_vec()].concat();
    for request in [half, garbled] {
        let mut client = proxied.send(&request).await;
        // It reads on all the same.
        client.stream.shutdown().await.unwrap();
        assert_words(&client.answer().await, 400, &["the request's body broke off"]);
    }
    assert_eq!(proxied.refused("body_incomplete").await, Some(2.0));

    // What the provider has begun to read is broken off there too.
    let begun = proxied.request(&line, &["Content-Length: 2000000"], b"");
    let mut client = proxied.send(&begun).await;
    client.say("{").await;
    let (mut provider, _) = script.accept_request().await;
    provider.until("{").await;
    client.stream.shutdown().await.unwrap();
    assert_words(&client.answer().await, 400, &["the request's body broke off"]);
    assert_eq!(provider.rest().await.0, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_closes_its_side_is_taken_for_gone() {
    let (script, proxied) = Proxied::to_script().await;
    let mut client = proxied.send(&proxied.chat(&hello(false))).await;
    let (mut provider, _) = script.accept_request().await;
    provider.until("\"stream\":false").await;
    client.stream.shutdown().await.unwrap();
    provider.rest().await;
    assert_eq!(client.rest().await.0, "");
    proxied.await_in_use(BTreeMap::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_closes_its_side_hears_all_the_same_why_it_is_refused() {
    let (_script, proxied) = Proxied::to_script().await;
    let body = hello(false).to_string();
    let line = "POST /proxy/agent/v1/realtime/client_secrets";
    let minted = proxied.request(line, &[], body.as_bytes());
    // Whichever the sidecar sees first, the request or the end.
    for _ in 0..50 {
        let mut client = proxied.send(&minted).await;
        client.stream.shutdown().await.unwrap();
        assert_words(&client.answer().await, 403, &["it makes credentials"]);
    }
    assert_eq!(proxied.refused("route_denied").await, Some(50.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_and_no_more_are_passed_on_at_a_time() {
    // Each has two connections, and this process the other end of both.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(65_536), most).unwrap();
    let (script, proxied) = Proxied::to_script().await;
    let request = proxied.chat(&hello(false));
    let mut running = Vec::new();
    for _ in 0..PLACES {
        let client = proxied.send(&request).await;
        running.push((client, script.accept_request().await.0));
    }
    proxied.await_in_use(BTreeMap::from([(1, PLACES as u64)])).await;

    let answer = proxied.ask(&request).await;
    assert_words(&answer, 503, &["too many requests of this pod", "llmwarden_busy"]);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(proxied.refused("busy").await, Some(1.0));
    // The endpoint has places of its own.
    assert_eq!(proxied.sidecar.get("/v1/keys").await.unwrap().status, 200);

    // One ends, and the next has its place.
    let ok = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
    let (client, mut provider) = running.pop().unwrap();
    provider.say(ok).await;
    assert_words(&client.answer().await, 200, &["ok"]);
    let client = proxied.send(&request).await;
    script.accept_request().await.0.say(ok).await;
    assert_words(&client.answer().await, 200, &["ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_slowly_goes_out_with_what_holds_at_its_end() {
    let (script, mut proxied) = Proxied::to_script().await;
    let body = hello(false).to_string();
    let (begin, end) = body.split_at(body.len() / 2);
    let head = proxied.request(
        &format!("POST {CHAT}"),
        &[&format!("Content-Length: {}", body.len())],
        b"",
    );
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = proxied.send(&head).await;
        client.say(begin).await;
        clients.push(client);
    }
    proxied.await_in_use(BTreeMap::from([(1, 3)])).await;

    proxied.rotate("sk-rotated", None).await;
    let mut first = clients.remove(0);
    first.say(end).await;
    let (mut provider, request) = script.accept_request().await;
    assert!(request.contains("Bearer sk-rotated"), "{request}");
    proxied.await_in_use(BTreeMap::from([(1, 2), (2, 1)])).await;
    provider
        .say("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
        .await;
    assert_words(&first.answer().await, 200, &["ok"]);

    proxied.upstream.models = vec!["another".to_owned()];
    proxied.rotate("sk-rotated-2", None).await;
    let mut second = clients.remove(0);
    second.say(end).await;
    assert_words(&second.answer().await, 403, &["ask for one of `another`"]);

    proxied.volume.withdraw(4, "no label").unwrap();
    eventually("the withdrawal", SOON, async || {
        let status = proxied
            .sidecar
            .status()
            .await
            .map_err(|error| error.to_string())?;
        same(&status.accesses["agent"].state, &DeliveryState::Withdrawn)
    })
    .await;
    let mut third = clients.remove(0);
    third.say(end).await;
    assert_words(&third.answer().await, 403, &["was withdrawn: no label"]);
    proxied.await_in_use(BTreeMap::new()).await;
}
