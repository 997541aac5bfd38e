//! The sidecar under attack, through a raw socket: every attempt is refused in words, counted by its reason, and leaves the
//! next honest client alone.

use std::collections::BTreeMap;

use llmwarden_tests::client::{read, read_text};
use llmwarden_tests::{Sidecar, eventually};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

use crate::endpoint::{TEXT, assert_honest_requests_work, assert_text, serve};
use crate::sidecar::{KEY, await_key};
use crate::support::SOON;

/// What is sent, and what has to come of it.
struct Attack {
    name: &'static str,
    bytes: Vec<u8>,
    /// Whether the attacker's side is closed after that.
    half_closed: bool,
    status: u16,
    words: &'static str,
    reason: &'static str,
}

/// Requests in the form that this sidecar takes, to be spoilt.
struct Forge {
    host: String,
    token: String,
    port: u16,
}

impl Forge {
    fn new(sidecar: &Sidecar) -> Self {
        let [host, token] = sidecar.headers().unwrap();
        Self {
            host,
            token,
            port: sidecar.endpoint().port(),
        }
    }

    /// A request line and headers, as they are.
    fn request(line: &str, headers: &[&str]) -> Vec<u8> {
        format!("{line}\r\n{}\r\n\r\n", headers.join("\r\n")).into_bytes()
    }

    /// A GET with headers instead of the honest ones.
    fn headers(headers: &[&str]) -> Vec<u8> {
        Self::request(&format!("GET {TEXT} HTTP/1.1"), headers)
    }

    /// An honest GET with more headers.
    fn more(&self, headers: &[&str]) -> Vec<u8> {
        let honest = [self.host.as_str(), &self.token];
        Self::headers(&[&honest, headers].concat())
    }

    /// An honest request with another line.
    fn line(&self, line: &str) -> Vec<u8> {
        Self::request(line, &[&self.host, &self.token])
    }

    /// An honest GET of another target.
    fn target(&self, target: &str) -> Vec<u8> {
        self.line(&format!("GET {target} HTTP/1.1"))
    }
}

fn attack(
    reason: &'static str,
    status: u16,
    words: &'static str,
) -> impl Fn((&'static str, Vec<u8>)) -> Attack {
    move |(name, bytes)| Attack {
        name,
        bytes,
        half_closed: false,
        status,
        words,
        reason,
    }
}

/// Who asks, and for whom.
fn callers(forge: &Forge) -> Vec<Attack> {
    let (host, token) = (forge.host.as_str(), forge.token.as_str());
    let wrong_port = format!("Host: localhost:{}", forge.port ^ 1);
    let suffixed = format!("Host: localhost:{}.example.com", forge.port);
    let prefixed = format!("Host: user@localhost:{}", forge.port);
    let short = &token[..token.len() - 1];
    let zeros = format!("Authorization: Bearer {}", "0".repeat(64));
    let tokens = [
        ("no token", Forge::headers(&[host])),
        ("an empty token", Forge::headers(&[host, "Authorization:"])),
        ("a token cut short", Forge::headers(&[host, short])),
        ("a wrong token", Forge::headers(&[host, &zeros])),
        ("the token twice", Forge::headers(&[host, token, token])),
        (
            "a right and a wrong token",
            Forge::headers(&[host, token, &zeros]),
        ),
        (
            "another scheme",
            Forge::headers(&[host, &token.replace("Bearer", "Basic")]),
        ),
        (
            "the token as a cookie",
            Forge::headers(&[host, &token.replace("Authorization: Bearer ", "Cookie: token=")]),
        ),
    ];
    let hosts = [
        ("no Host", Forge::headers(&[token])),
        ("an empty Host", Forge::headers(&[token, "Host:"])),
        ("another Host", Forge::headers(&[token, "Host: example.com"])),
        (
            "a Host without the port",
            Forge::headers(&[token, "Host: localhost"]),
        ),
        ("a Host with another port", Forge::headers(&[token, &wrong_port])),
        ("a Host with a suffix", Forge::headers(&[token, &suffixed])),
        ("a Host with a user", Forge::headers(&[token, &prefixed])),
        ("Host twice", Forge::headers(&[token, host, host])),
        ("two Hosts", Forge::headers(&[token, host, "Host: example.com"])),
        (
            "HTTP/1.0 without Host",
            Forge::request(&format!("GET {TEXT} HTTP/1.0"), &[token]),
        ),
    ];
    let browsers = [
        ("Origin", forge.more(&["Origin: https://example.com"])),
        ("Origin null", forge.more(&["Origin: null"])),
        ("Sec-Fetch-Site", forge.more(&["Sec-Fetch-Site: cross-site"])),
        ("Sec-Fetch-Site none", forge.more(&["Sec-Fetch-Site: none"])),
        (
            "a preflight",
            Forge::request(&format!("OPTIONS {TEXT} HTTP/1.1"), &[host, "Origin: null"]),
        ),
    ];
    let proxies = [
        ("X-Forwarded-For", forge.more(&["X-Forwarded-For: 10.0.0.1"])),
        ("x-forwarded-host", forge.more(&["x-forwarded-host: a"])),
        ("any X-Forwarded-", forge.more(&["X-Forwarded-Anything:"])),
        ("Forwarded", forge.more(&["Forwarded: for=10.0.0.1"])),
    ];
    let methods = [
        ("POST", forge.line(&format!("POST {TEXT} HTTP/1.1"))),
        ("PUT", forge.line(&format!("PUT {TEXT} HTTP/1.1"))),
        ("DELETE", forge.line("DELETE /v1/keys/agent HTTP/1.1")),
        ("TRACE", forge.line(&format!("TRACE {TEXT} HTTP/1.1"))),
        ("a made-up method", forge.line(&format!("STEAL {TEXT} HTTP/1.1"))),
        ("POST with a body", {
            let host_token = [host, token, "Content-Length: 5"];
            [
                Forge::request(&format!("POST {TEXT} HTTP/1.1"), &host_token),
                b"a=b&c".to_vec(),
            ]
            .concat()
        }),
    ];
    let head = [("HEAD", forge.line(&format!("HEAD {TEXT} HTTP/1.1")))];
    (tokens
        .into_iter()
        .map(attack("token", 401, "the token is missing or wrong")))
    .chain(hosts.into_iter().map(attack("host", 400, "one Host header")))
    .chain(
        browsers
            .into_iter()
            .map(attack("browser", 403, "no Origin or Sec-Fetch-Site")),
    )
    .chain(
        proxies
            .into_iter()
            .map(attack("forwarded", 400, "no Forwarded or X-Forwarded-*")),
    )
    .chain(methods.into_iter().map(attack("method", 405, "only GET")))
    // An answer to HEAD never has a body.
    .chain(head.into_iter().map(attack("method", 405, "")))
    .collect()
}

/// Ways to write a target, and ways out of HTTP/1.1.
fn targets(forge: &Forge) -> Vec<Attack> {
    let absolute = format!("http://localhost:{}{TEXT}", forge.port);
    let authority = format!("CONNECT localhost:{} HTTP/1.1", forge.port);
    let targets = [
        ("absolute-form", forge.target(&absolute)),
        (
            "absolute-form of another host",
            forge.target("http://example.com/v1/keys"),
        ),
        ("authority-form", forge.line(&authority)),
        ("asterisk-form", forge.line("OPTIONS * HTTP/1.1")),
        ("a query", forge.target(&format!("{TEXT}?token=1"))),
        ("an empty query", forge.target(&format!("{TEXT}?"))),
        ("..", forge.target("/v1/keys/agent/../agent/apiKey")),
        (
            ".. to the root",
            forge.target("/v1/keys/agent/../../../../etc/passwd"),
        ),
        (".", forge.target("/v1/keys/./agent/apiKey")),
        ("%2e%2e", forge.target("/v1/keys/agent/%2e%2e/agent/apiKey")),
        ("%2E", forge.target("/v1/keys/%2E/agent")),
        ("%2F", forge.target("/v1/keys/agent%2FapiKey")),
        ("%00", forge.target("/v1/keys/agent/apiKey%00")),
        ("an encoded letter", forge.target("/v1/keys/%61gent/apiKey")),
        ("//", forge.target("//v1/keys/agent/apiKey")),
        ("// inside", forge.target("/v1/keys//agent/apiKey")),
        ("a / at the end", forge.target(&format!("{TEXT}/"))),
        (";", forge.target(&format!("{TEXT};a=b"))),
    ];
    let host_token = [forge.host.as_str(), &forge.token];
    let h2c = [
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
    ];
    let websocket = ["Connection: Upgrade", "Upgrade: websocket"];
    let upgrades = [("h2c", forge.more(&h2c)), ("websocket", forge.more(&websocket))];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let versions = [("the preface of HTTP/2", preface)];
    let chunked = "Transfer-Encoding: chunked";
    let bodies = [
        (
            "a body",
            [forge.more(&["Content-Length: 5"]), b"hello".to_vec()].concat(),
        ),
        (
            "a body that never comes",
            forge.more(&["Content-Length: 1000000"]),
        ),
        (
            "a body in chunks",
            [forge.more(&[chunked]), b"0\r\n\r\n".to_vec()].concat(),
        ),
        ("a request in a body", {
            let length = ["Content-Length: 300", chunked];
            [
                Forge::headers(&[&host_token[..], &length].concat()),
                b"0\r\n\r\n".to_vec(),
                forge.more(&[]),
            ]
            .concat()
        }),
        (
            "a body that is expected",
            forge.more(&["Content-Length: 5", "Expect: 100-continue"]),
        ),
    ];
    (targets
        .into_iter()
        .map(attack("target", 400, "the path alone and plainly")))
    .chain(upgrades.into_iter().map(attack("upgrade", 400, "only HTTP/1.1")))
    .chain(versions.into_iter().map(attack("version", 505, "only HTTP/1.1")))
    .chain(bodies.into_iter().map(attack("body", 400, "send no body")))
    .collect()
}

/// What is no head of a request, or none that ends.
fn heads(forge: &Forge) -> Vec<Attack> {
    let length = |value: &str| format!("Content-Length: {value}");
    let malformed = [
        ("NUL in the target", forge.target("/v1/keys/agent\0/apiKey")),
        ("a space in the target", forge.target("/v1/keys/agent /apiKey")),
        ("a relative target", forge.target("v1/keys/agent/apiKey")),
        ("NUL in a header", forge.more(&["X-Nul: a\0b"])),
        ("a header without a colon", forge.more(&["X-Colon"])),
        ("a space before the colon", forge.more(&["X-Space : a"])),
        ("an empty header name", forge.more(&[": a"])),
        ("a folded header", forge.more(&["X-Folded: a", " b"])),
        (
            "a folded Host",
            Forge::headers(&["Host:", &format!(" localhost:{}", forge.port), &forge.token]),
        ),
        ("a bare CR", forge.more(&["X-Cr: a\rb"])),
        ("HTTP/0.9", format!("GET {TEXT}\r\n\r\n").into_bytes()),
        ("HTTP/3.0", forge.line(&format!("GET {TEXT} HTTP/3.0"))),
        ("two lengths", forge.more(&[&length("1"), &length("2")])),
        ("a negative length", forge.more(&[&length("-1")])),
        ("an unknown coding", forge.more(&["Transfer-Encoding: gzip"])),
        (
            "chunks in HTTP/1.0",
            Forge::request(
                &format!("GET {TEXT} HTTP/1.0"),
                &[&forge.host, &forge.token, "Transfer-Encoding: chunked"],
            ),
        ),
        ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec()),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()),
        ("noise", (0..=255).rev().collect()),
    ];
    let long = format!("X-Long: {}", "x".repeat(64 * 1024));
    let many: Vec<_> = (0..200).map(|number| format!("X-{number}: a")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let endless = forge.more(&[&long[..17 * 1024]]);
    let large = [
        ("a long header", forge.more(&[&long])),
        ("200 headers", forge.more(&many)),
        ("a head without an end", endless[..endless.len() - 2].to_vec()),
        ("a long target", forge.target(&format!("/{}", "x".repeat(20_000)))),
        ("a long method", vec![b'A'; 20_000]),
    ];
    let whole = forge.more(&[]);
    let incomplete = [
        ("half a head", whole[..whole.len() / 2].to_vec()),
        ("a head without its last byte", whole[..whole.len() - 1].to_vec()),
        ("one letter", b"G".to_vec()),
    ];
    let incomplete = incomplete
        .into_iter()
        .map(attack("incomplete", 400, "ended before its empty line"));
    (malformed
        .into_iter()
        .map(attack("malformed", 400, "no request of HTTP/1.1")))
    .chain(
        large
            .into_iter()
            .map(attack("large", 431, "16384 bytes and 100 headers at most")),
    )
    .chain(incomplete.map(|attack| Attack {
        half_closed: true,
        ..attack
    }))
    .collect()
}

async fn refusals(sidecar: &Sidecar) -> BTreeMap<String, f64> {
    sidecar.samples("llmwarden_sidecar_refusals_total").await.unwrap()
}

async fn refused(sidecar: &Sidecar, reason: &str) -> f64 {
    let label = format!("{{reason=\"{reason}\"}}");
    refusals(sidecar).await.get(&label).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_is_refused_in_words_counted_and_forgotten() {
    let (_volume, sidecar) = serve().await;
    let forge = Forge::new(&sidecar);
    let mut expected = refusals(&sidecar).await;
    for attack in [callers(&forge), targets(&forge), heads(&forge)]
        .into_iter()
        .flatten()
    {
        let mut stream = sidecar.send_raw(&attack.bytes).await.unwrap();
        if attack.half_closed {
            stream.shutdown().await.unwrap();
        }
        // Read to the end: the connection is closed as well.
        let answer = match read(stream).await {
            Ok(answer) => answer,
            Err(error) => panic!("{}: {error:#}", attack.name),
        };
        assert_eq!(answer.status, attack.status, "{}: {answer:?}", attack.name);
        assert!(answer.body.contains(attack.words), "{}: {answer:?}", attack.name);
        assert!(
            attack.words.is_empty() || answer.body.starts_with("llmwarden: "),
            "{}",
            attack.name
        );
        assert!(!answer.body.contains(KEY), "{}", attack.name);
        assert_eq!(
            answer.header("access-control-allow-origin"),
            None,
            "{}",
            attack.name
        );
        assert_eq!(
            answer.header("connection"),
            Some("close"),
            "{}: {answer:?}",
            attack.name
        );

        *expected
            .entry(format!("{{reason=\"{}\"}}", attack.reason))
            .or_default() += 1.0;
        assert_eq!(refusals(&sidecar).await, expected, "{}", attack.name);
        assert_honest_requests_work(&sidecar).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_pipelined_requests_none_is_answered_after_a_refusal() {
    let (_volume, sidecar) = serve().await;
    let forge = Forge::new(&sidecar);
    let good = forge.more(&[]);
    let last = forge.more(&["Connection: close"]);
    let statuses = async |requests: &[&[u8]]| {
        let stream = sidecar.send_raw(&requests.concat()).await.unwrap();
        let text = read_text(stream).await.unwrap();
        let answers = text.split("HTTP/1.1 ").skip(1);
        let statuses: Vec<_> = answers.map(|answer| answer[..3].to_owned()).collect();
        (statuses, text.matches(KEY).count())
    };
    for (requests, expected, keys) in [
        (&[&good[..], &good, &last][..], &["200", "200", "200"][..], 3),
        (
            &[&good, &Forge::headers(&[&forge.host]), &good],
            &["200", "401"],
            1,
        ),
        (&[&forge.target("/v1/keys/%61gent"), &good], &["400"], 0),
        (
            &[&forge.more(&["Content-Length: 5"]), b"hello", &good],
            &["400"],
            0,
        ),
        (&[&good, b"nonsense\r\n\r\n", &good], &["200", "400"], 1),
        (&[&good, &good, &vec![b'A'; 20_000]], &["200", "200", "431"], 2),
    ] {
        let (seen, seen_keys) = statuses(requests).await;
        assert_eq!(
            (seen.as_slice(), seen_keys),
            (
                &expected
                    .iter()
                    .map(|status| (*status).to_owned())
                    .collect::<Vec<_>>()[..],
                keys
            )
        );
        assert_honest_requests_work(&sidecar).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_socket_gets_its_answer_and_waits_for_none() {
    let (_volume, sidecar) = serve().await;
    let forge = Forge::new(&sidecar);
    // Whichever the sidecar sees first, the request or the end.
    for _ in 0..50 {
        let mut stream = sidecar.send_raw(&forge.more(&[])).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_text(&read(stream).await.unwrap(), 200, &[KEY]);
    }

    // Far longer than the test's patience: the end of the client's side ends the wait.
    let waiting = forge.more(&["Prefer: wait=300", "If-None-Match: \"1\""]);
    let mut stream = sidecar.send_raw(&waiting).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_text(stream).await.unwrap(), "");
    assert_honest_requests_work(&sidecar).await;
    assert_eq!(refusals(&sidecar).await, BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_hold_their_places_for_a_moment_only() {
    let (_volume, sidecar) = serve().await;
    let forge = Forge::new(&sidecar);
    let whole = forge.more(&[]);
    let mut slow = Vec::new();
    for end in 1..=64 {
        slow.push(
            sidecar
                .send_raw(&whole[..end.min(whole.len() - 1)])
                .await
                .unwrap(),
        );
    }
    // All places are taken, of this listener.
    eventually("a connection that is turned away", SOON, async || {
        sidecar.get(TEXT).await.is_ok_and(|answer| answer.status == 503)
    })
    .await;
    let unix = sidecar
        .send_unix(&format!("GET {TEXT}"), &["Host: localhost"])
        .await;
    assert_text(&unix.unwrap(), 200, &[KEY]);

    // More of a head, however often, buys no time.
    let last = slow.last_mut().unwrap();
    eventually("the end of patience", SOON, async || {
        last.write_all(b"x").await.map_err(|error| error.to_string())?;
        let refused = refused(&sidecar, "slow").await;
        if refused >= 64.0 {
            Ok(())
        } else {
            Err(format!("{refused} refused"))
        }
    })
    .await;
    for stream in slow {
        assert_text(&read(stream).await.unwrap(), 408, &["took longer than 10 s"]);
    }
    assert_honest_requests_work(&sidecar).await;
    assert!(refused(&sidecar, "connections").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_the_answers_loses_the_connection() {
    let (mut volume, sidecar) = serve().await;
    // Some of these fill every buffer between the two.
    let large = "k".repeat(60_000);
    volume.publish(2, &large).unwrap();
    await_key(&sidecar, "agent", &large).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(sidecar.endpoint()).await.unwrap();
    let forge = Forge::new(&sidecar);
    stream.write_all(&forge.more(&[]).repeat(200)).await.unwrap();
    eventually("the end of patience", SOON, async || {
        refused(&sidecar, "unread").await > 0.0
    })
    .await;
    let answer = sidecar.get(TEXT).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, large.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_waits_than_the_limit_are_refused_and_the_others_are_answered() {
    let (mut volume, sidecar) = serve().await;
    let headers = ["Prefer: wait=300", "If-None-Match: \"1\""];
    let mut waiting = Vec::new();
    for _ in 0..256 {
        let request = sidecar.begin(TEXT, &headers).await.unwrap();
        request.taken().await.unwrap();
        waiting.push(request);
    }
    let answer = sidecar.get_with(TEXT, &headers).await.unwrap();
    assert_text(&answer, 503, &["too many requests wait"]);
    assert_honest_requests_work(&sidecar).await;
    let reason = "{reason=\"waiting\"}".to_owned();
    assert_eq!(refusals(&sidecar).await, BTreeMap::from([(reason, 1.0)]));
    volume.publish(2, "sk-test-second").unwrap();
    for request in waiting {
        assert_text(&request.answer().await.unwrap(), 200, &["sk-test-second"]);
    }
}
