//! What goes over the wire on both sides, byte by byte.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_and_its_answer_are_what_they_were_but_for_the_key_and_the_connection() {
    let (script, proxied) = Proxied::to_script().await;
    let headers = [
        "X-Kept: one",
        "X-Kept: two",
        "User-Agent: test",
        "Accept-Encoding: gzip",
        "X-Named: gone",
        "Connection: X-Named",
        "Keep-Alive: timeout=5",
        "X-HTTP-Method-Override: DELETE",
    ];
    let line = "POST /proxy/agent/v1/chat/completions/?a=%2F&b=c%20d&a=e";
    let mut client = proxied.send(&proxied.request(line, &headers, b"{}")).await;
    let (mut provider, head) = script.accept_request().await;
    assert!(
        head.starts_with("POST /v1/chat/completions/?a=%2F&b=c%20d&a=e HTTP/1.1\r\n"),
        "{head}"
    );
    let host = format!("host: {}\r\n", script.0.local_addr().unwrap());
    let authorization = format!("authorization: Bearer {KEY}\r\n");
    let kept = [
        "x-kept: one\r\n",
        "x-kept: two\r\n",
        "user-agent: test\r\n",
        "content-length: 2\r\n",
    ];
    for line in kept
        .into_iter()
        .chain([host.as_str(), &authorization, "accept-encoding: identity\r\n"])
    {
        assert_eq!(head.matches(line).count(), 1, "{line:?} in {head}");
    }
    for gone in [
        PLACEHOLDER,
        "x-named",
        "keep-alive",
        "override",
        "gzip",
        "forwarded",
        "via",
    ] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    assert_eq!(provider.until("{}").await, "{}");
    provider
        .say(
            "HTTP/1.1 201 Made\r\nx-ratelimit-remaining: 3\r\nset-cookie: a=b\r\nset-cookie: c=d\r\nconnection: x-theirs\r\n\
             x-theirs: gone\r\nkeep-alive: timeout=9\r\ncontent-length: 2\r\nvia: 1.1 cdn\r\n\r\nok",
        )
        .await;
    let (answer, broken) = client.rest().await;
    assert!(
        !broken && answer.starts_with("HTTP/1.1 201 ") && answer.ends_with("\r\n\r\nok"),
        "{answer}"
    );
    for line in [
        "x-ratelimit-remaining: 3\r\n",
        "set-cookie: a=b\r\n",
        "set-cookie: c=d\r\n",
        "via: 1.1 cdn\r\n",
        "via: 1.1 llmwarden\r\n",
        "content-length: 2\r\n",
    ] {
        assert_eq!(answer.matches(line).count(), 1, "{line:?} in {answer}");
    }
    assert!(
        !answer.contains("x-theirs") && !answer.contains("keep-alive"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_stay_without_one() {
    let (script, proxied) = Proxied::to_script().await;
    for (line, said, kept) in [
        ("GET", "404 Not Found\r\ncontent-length: 0", "content-length: 0"),
        ("GET", "400 Bad Request\r\ncontent-length: 0", "content-length: 0"),
        ("POST", "431 Too Large\r\ncontent-length: 0", "content-length: 0"),
        (
            "GET",
            "429 Slow Down\r\nretry-after: 7\r\ncontent-length: 0",
            "retry-after: 7",
        ),
        (
            "GET",
            "401 Unauthorized\r\ncontent-length: 0",
            "content-length: 0",
        ),
        ("DELETE", "204 No Content", "via: 1.1 llmwarden"),
        ("GET", "304 Not Modified\r\netag: \"a\"", "etag: \"a\""),
        ("HEAD", "200 OK\r\ncontent-length: 1000", "content-length: 1000"),
        ("HEAD", "404 Not Found\r\ncontent-length: 9", "content-length: 9"),
        (
            "GET",
            "302 Found\r\nlocation: https://example.com/\r\ncontent-length: 0",
            "location: https://example.com/",
        ),
    ] {
        let mut client = proxied
            .send(&proxied.request(&format!("{line} /proxy/agent/v1/models"), &[], b""))
            .await;
        let (mut provider, head) = script.accept_request().await;
        assert!(head.starts_with(line), "{head}");
        assert!(
            !head.contains("transfer-encoding") && (line == "POST" || !head.contains("content-length")),
            "{head}"
        );
        provider.say(&format!("HTTP/1.1 {said}\r\n\r\n")).await;
        let (answer, broken) = client.rest().await;
        assert!(
            !broken && answer.starts_with(&format!("HTTP/1.1 {}", &said[..3])),
            "{said}: {answer:?}"
        );
        assert!(
            answer.ends_with("\r\n\r\n") && answer.contains(kept),
            "{said}: {answer:?}"
        );
        assert!(answer.contains("via: 1.1 llmwarden\r\n"), "{said}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_expects_a_continue_gets_one_and_who_is_refused_gets_that() {
    let (script, proxied) = Proxied::to_script().await;
    let expecting = ["Content-Length: 2", "Expect: 100-continue"];
    let line = format!("POST {CHAT}");
    let mut client = proxied.send(&proxied.request(&line, &expecting, b"")).await;
    assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.say("{}").await;
    let (mut provider, head) = script.accept_request().await;
    assert!(!head.contains("expect"), "{head}");
    provider.until("{}").await;
    provider
        .say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    assert_words(&client.answer().await, 200, &["ok"]);

    let answer = proxied.ask(&proxied.plain(&line, &expecting, b"")).await;
    assert_words(&answer, 401, &["no API key"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_in_both_directions() {
    let (script, proxied) = Proxied::to_script().await;
    let headers = ["Transfer-Encoding: chunked", "Trailer: X-Sum", "TE: trailers"];
    // One that is held, and one that passes.
    for size in [2, 2 << 20] {
        let body = format!("{{{}}}", " ".repeat(size - 2));
        let mut request = proxied.request(&format!("POST {CHAT}"), &headers, b"");
        request.extend(format!("{size:x}\r\n{body}\r\n0\r\nX-Sum: mine\r\n\r\n").into_bytes());
        let (mut client, (mut provider, head)) =
            tokio::join!(proxied.send(&request), script.accept_request());
        let sent = provider.until("\r\n\r\n").await;
        assert!(
            sent.ends_with("}\r\n0\r\nx-sum: mine\r\n\r\n"),
            "{}",
            &sent[sent.len() - 40..]
        );
        assert!(
            head.contains("te: trailers\r\n") && head.contains("trailer: X-Sum\r\n"),
            "{head}"
        );
        let said = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: theirs\r\n\r\n";
        provider.say(said).await;
        let (answer, broken) = client.rest().await;
        assert!(
            !broken && answer.ends_with("0\r\nx-sum: theirs\r\n\r\n"),
            "{answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_share_connections_on_both_sides() {
    let (script, proxied) = Proxied::to_script().await;
    let request = String::from_utf8(proxied.request("GET /proxy/agent/v1/models", &[], b"")).unwrap();
    let request = request.replace("Connection: close\r\n", "");
    let mut client = proxied.send(request.as_bytes()).await;
    let (mut provider, _) = script.accept_request().await;
    for number in 1..=5 {
        provider
            .say(&format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n:{number}"))
            .await;
        client.until(&format!(":{number}")).await;
        client.say(&request).await;
        provider.until("\r\n\r\n").await;
    }
    // A connection that the provider closed meanwhile is not held against the caller.
    provider
        .say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    client.until("ok").await;
    drop(provider);
    client.say(&request).await;
    let (mut provider, _) = script.accept_request().await;
    provider
        .say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    client.until("ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_request_has_ended_is_passed_on() {
    const SIZE: usize = 64 << 20;
    let (script, proxied) = Proxied::to_script().await;
    let length = format!("Content-Length: {SIZE}");
    for attempt in 0..5 {
        let mut client = proxied
            .send(&proxied.request(&format!("POST {CHAT}"), &[&length], b""))
            .await;
        client.say("{").await;
        let (mut provider, _) = script.accept_request().await;
        provider.until("{").await;
        provider
            .say("HTTP/1.1 413 Too Large\r\ncontent-length: 7\r\nconnection: close\r\n\r\ntoo big")
            .await;
        if attempt > 0 {
            drop(provider);
        }
        let answer = client.until("too big").await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
    proxied.await_in_use(BTreeMap::new()).await;
}
