//! Answers that come piece by piece.

use std::time::Instant;

use llmwarden_tests::fake_provider::{End, Pace};
use tokio::sync::watch;

use super::*;
use crate::endpoint::assert_text;

const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const ONE: &str = "B\r\ndata: one\n\n\r\n";
const TWO: &str = "B\r\ndata: two\n\n\r\n";
const END: &str = "0\r\n\r\n";

/// A stream whose first event the client has.
async fn begun(script: &Script, proxied: &Proxied) -> (Peer, Peer, String) {
    let mut client = proxied.send(&proxied.chat(&hello(true))).await;
    let (mut provider, head) = script.accept_request().await;
    provider.say(SSE).await;
    provider.say(ONE).await;
    let text = client.until("data: one\n\n").await;
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("text/event-stream"),
        "{text}"
    );
    (client, provider, head)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_piece_comes_as_it_is_said() {
    let (script, proxied) = Proxied::to_script().await;
    let (mut client, mut provider, _) = begun(&script, &proxied).await;
    provider.say(TWO).await;
    client.until("data: two\n\n").await;
    provider.say(END).await;
    assert_eq!(client.rest().await, ("\r\n0\r\n\r\n".to_owned(), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_piece_does_not_wait_for_the_one_before() {
    let (script, proxied) = Proxied::to_script().await;
    let request = String::from_utf8(proxied.chat(&hello(true))).unwrap();
    let request = request.replace("Connection: close\r\n", "");
    let mut client = proxied.send(request.as_bytes()).await;
    let (mut provider, _) = script.accept_request().await;
    let begun = Instant::now();
    for _ in 0..50 {
        provider.until("\"stream\":true}").await;
        provider.say(&format!("{SSE}{ONE}")).await;
        client.until("data: one\n\n").await;
        provider.say(&format!("{TWO}{END}")).await;
        client.until(END).await;
        client.say(&request).await;
    }
    // On a connection that goes to and fro, a client confirms what it has got only after 40 ms.
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_ends_its_request() {
    let (script, proxied) = Proxied::to_script().await;
    let (client, mut provider, _) = begun(&script, &proxied).await;
    provider.until("\"stream\":true").await;
    drop(client);
    provider.rest().await;
    proxied.await_in_use(BTreeMap::new()).await;

    // Nor is one waited for whose answer has not begun.
    let client = proxied.send(&proxied.chat(&hello(true))).await;
    let (mut provider, _) = script.accept_request().await;
    drop(client);
    provider.rest().await;
    proxied.await_in_use(BTreeMap::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_at_the_provider_breaks_off_for_the_client() {
    let (script, proxied) = Proxied::to_script().await;
    let length = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n0123456789";
    let half_a_chunk = format!("{SSE}{ONE}FF\r\ndata: tw");
    for said in [format!("{SSE}{ONE}"), half_a_chunk, length.to_owned()] {
        let mut client = proxied.send(&proxied.chat(&hello(true))).await;
        let (mut provider, _) = script.accept_request().await;
        provider.say(&said).await;
        drop(provider);
        let (text, broken) = client.rest().await;
        assert!(broken || text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(!text.ends_with(END), "{said:?} looks complete: {text}");
        assert!(!text.contains("content-length: 10\r\n"), "{text}");
    }
    assert_eq!(
        proxied.sample("endings_total", "ending=\"broken\"").await,
        Some(3.0)
    );

    let mut client = proxied.send(&proxied.chat(&hello(true))).await;
    let (provider, _) = script.accept_request().await;
    drop(provider);
    let (text, _) = client.rest().await;
    assert!(
        text.starts_with("HTTP/1.1 502 ") && text.contains("can't be reached"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_the_provider_back_and_gets_everything() {
    const PIECE: usize = 64 * 1024;
    const PIECES: usize = 512;
    let (script, proxied) = Proxied::to_script().await;
    let mut client = proxied.send(&proxied.chat(&hello(true))).await;
    let (mut provider, _) = script.accept_request().await;
    let before = peak(&proxied);
    let (said, saying) = watch::channel(0);
    let speaker = tokio::spawn(async move {
        provider.say(SSE).await;
        for number in 0..PIECES {
            let piece = format!("{number:032}").repeat(PIECE / 32);
            provider.say(&format!("{PIECE:x}\r\n{piece}\r\n")).await;
            said.send_replace(number);
        }
        provider.say(END).await;
        provider
    });
    let mut last = usize::MAX;
    eventually("a provider that is held back", SOON, async || {
        let said = *saying.borrow();
        tokio::time::sleep(Duration::from_millis(200)).await;
        last == std::mem::replace(&mut last, said) && said > 0
    })
    .await;
    assert!(last < PIECES - 1, "nothing was held back");
    let (text, broken) = client.rest().await;
    assert!(!broken && text.ends_with(END));
    for number in [0, 1, PIECES / 2, PIECES - 1] {
        assert!(text.contains(&format!("{number:032}")), "{number}");
    }
    assert!(text.len() > PIECE * PIECES);
    assert!(peak(&proxied) - before < 24 * 1024, "{before} {}", peak(&proxied));
    drop(speaker.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_on_the_key_that_it_began_with() {
    let (script, mut proxied) = Proxied::to_script().await;
    let (mut old, mut provider, head) = begun(&script, &proxied).await;
    assert!(
        head.contains(&format!("authorization: Bearer {KEY}\r\n")),
        "{head}"
    );
    proxied.rotate(NEXT, Some(KEY)).await;
    assert_eq!(proxied.in_use().await, [(1, 1)].into());

    let (mut new, mut next_provider, head) = begun(&script, &proxied).await;
    assert!(
        head.contains(&format!("authorization: Bearer {NEXT}\r\n")),
        "{head}"
    );
    assert_eq!(proxied.in_use().await, [(1, 1), (2, 1)].into());
    for version in [1, 2] {
        let label = format!("version=\"{version}\"");
        assert_eq!(proxied.sample("in_flight", &label).await, Some(1.0), "{version}");
    }
    provider.say(TWO).await;
    provider.say(END).await;
    assert_eq!(old.rest().await.0, "\r\nB\r\ndata: two\n\n\r\n0\r\n\r\n");
    proxied.await_in_use([(2, 1)].into()).await;
    next_provider.say(END).await;
    new.rest().await;
    proxied.await_in_use(BTreeMap::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_streams_leave_room_for_the_endpoint() {
    let (provider, proxied) = Proxied::to_fake().await;
    provider.set_pace(Pace {
        pieces: 6,
        every: Duration::from_hours(1),
    });
    let streams = (0..200).map(async |_| {
        let mut client = proxied.send(&proxied.chat(&hello(true))).await;
        client.until("data: ").await;
        client
    });
    let streams = futures::future::join_all(streams).await;
    assert_eq!(proxied.in_use().await, [(1, 200)].into());
    assert_text(
        &proxied.sidecar.get("/v1/keys/agent/apiKey").await.unwrap(),
        200,
        &[PLACEHOLDER],
    );
    provider.set_pace(Pace::default());
    let answer = proxied
        .ask(&proxied.request("GET /proxy/agent/v1/models", &[], b""))
        .await;
    assert_words(&answer, 200, &["gpt-4o"]);
    drop(streams);
    eventually("the end of all streams", SOON, async || {
        let ends = provider
            .seen()
            .iter()
            .filter(|seen| seen.end == Some(End::Abandoned))
            .count();
        same(&ends, &200)
    })
    .await;
    proxied.await_in_use(BTreeMap::new()).await;
}
