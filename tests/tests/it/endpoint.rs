//! The sidecar's endpoint as clients meet it: what it answers, and whom it refuses.

use llmwarden_proto::delivery::Delivery;
use llmwarden_proto::names;
use llmwarden_tests::client::Answer;
use llmwarden_tests::{Sidecar, Volume, eventually, volume};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::sidecar::{KEY, await_key, start};
use crate::support::SOON;

pub const TEXT: &str = "/v1/keys/agent/apiKey";
const JSON: &str = "/v1/keys/agent";

/// A sidecar that serves [`KEY`] as version 1 of `agent`.
pub async fn serve() -> (Volume, Sidecar) {
    let mut volume = Volume::new().unwrap();
    volume.publish(1, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    (volume, sidecar)
}

pub fn assert_text(answer: &Answer, status: u16, words: &[&str]) {
    assert_eq!(answer.status, status, "{answer:?}");
    for word in words {
        assert!(answer.body.contains(word), "no {word:?} in {answer:?}");
    }
}

pub async fn assert_honest_requests_work(sidecar: &Sidecar) {
    assert_text(&sidecar.get(TEXT).await.unwrap(), 200, &[KEY]);
}

/// Runs a command line in a shell, and returns what it printed.
async fn shell(line: &str) -> String {
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", line]).kill_on_drop(true);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_served_one_by_one_and_all_at_once() {
    let mut volume = Volume::new().unwrap();
    let document = Delivery {
        keys: vec!["apiKey".into(), "ANTHROPIC_API_KEY".into()],
        values: [("baseUrl".to_owned(), "https://llm.example.com/v1".to_owned())].into(),
        issued_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        ..volume::document(7)
    };
    volume.publish_document(&document, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;

    let values = json!({ "apiKey": KEY, "ANTHROPIC_API_KEY": KEY, "baseUrl": "https://llm.example.com/v1" });
    for (name, value) in values.as_object().unwrap() {
        let answer = sidecar.get(&format!("{JSON}/{name}")).await.unwrap();
        assert_eq!((answer.status, Some(answer.body.as_str())), (200, value.as_str()));
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("etag"), Some("\"7\""));
        let file = std::fs::read_to_string(sidecar.file("agent", name)).unwrap();
        assert_eq!(Some(file.as_str()), value.as_str());
    }

    let answer = sidecar.get(JSON).await.unwrap();
    let whole: Value = serde_json::from_str(&answer.body).unwrap();
    let expected =
        json!({ "access": "agent", "version": 7, "issuedAt": "2026-01-02T03:04:05Z", "values": values });
    assert_eq!(whole, expected);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("etag"), Some("\"7\""));

    let answer = sidecar.get("/v1/keys").await.unwrap();
    assert!(!answer.body.contains(KEY) && !answer.body.contains("llm.example.com"));
    let list: Value = serde_json::from_str(&answer.body).unwrap();
    let [listed] = list["accesses"].as_array().unwrap().as_slice() else {
        panic!("not one access: {list}");
    };
    assert!(listed["ageSeconds"].as_i64().unwrap() > 0);
    assert_eq!(
        (
            &listed["access"],
            &listed["state"],
            &listed["version"],
            &listed["keys"]
        ),
        (
            &json!("agent"),
            &json!("active"),
            &json!(7),
            &json!(["apiKey", "ANTHROPIC_API_KEY", "baseUrl"])
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_the_client_has_is_not_sent_again() {
    let (mut volume, sidecar) = serve().await;
    for path in [TEXT, JSON] {
        let answer = sidecar.get_with(path, &["If-None-Match: \"1\""]).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (304, ""));
        assert_eq!(answer.header("etag"), Some("\"1\""));
        for other in ["If-None-Match: \"0\"", "If-None-Match: 1"] {
            let answer = sidecar.get_with(path, &[other]).await.unwrap();
            assert_text(&answer, 200, &[KEY]);
        }
    }
    volume.publish(2, "sk-test-second").unwrap();
    await_key(&sidecar, "agent", "sk-test-second").await;
    let answer = sidecar.get_with(TEXT, &["If-None-Match: \"1\""]).await.unwrap();
    assert_text(&answer, 200, &["sk-test-second"]);
    assert_eq!(answer.header("etag"), Some("\"2\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_is_answered_by_the_next_version() {
    let (mut volume, sidecar) = serve().await;
    // Far longer than the test's patience: only news ends these.
    let wait = |version: u64| {
        [
            "Prefer: wait=300".to_owned(),
            format!("If-None-Match: \"{version}\""),
        ]
    };
    for path in [TEXT, JSON] {
        let version = sidecar.status().await.unwrap().accesses["agent"].version.unwrap();
        let headers = wait(version);
        let headers = headers.each_ref().map(String::as_str);
        let waiting = sidecar.begin(path, &headers).await.unwrap();
        let another = sidecar.begin(path, &headers).await.unwrap();
        waiting.taken().await.unwrap();
        another.taken().await.unwrap();
        let next = format!("sk-test-next-{version}");
        volume.publish(version + 1, &next).unwrap();
        for request in [waiting, another] {
            let answer = request.answer().await.unwrap();
            assert_text(&answer, 200, &[&next]);
            assert_eq!(
                answer.header("etag"),
                Some(format!("\"{}\"", version + 1).as_str())
            );
        }
    }

    let headers = wait(3);
    let headers = headers.each_ref().map(String::as_str);
    let waiting = sidecar.begin(TEXT, &headers).await.unwrap();
    waiting.taken().await.unwrap();
    volume.withdraw(4, "the label is gone").unwrap();
    assert_text(&waiting.answer().await.unwrap(), 410, &["the label is gone"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_without_news_ends_with_not_modified() {
    let (_volume, sidecar) = serve().await;
    let headers = ["Prefer: wait=1", "If-None-Match: \"1\""];
    let answer = sidecar.get_with(TEXT, &headers).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (304, ""));
    assert_eq!(answer.header("etag"), Some("\"1\""));
    // Who has nothing, or something else, has nothing to wait for.
    for headers in [
        &["Prefer: wait=300"][..],
        &["Prefer: wait=300", "If-None-Match: \"0\""],
    ] {
        assert_text(&sidecar.get_with(TEXT, headers).await.unwrap(), 200, &[KEY]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told_apart() {
    let mut volume = Volume::new().unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    for path in [TEXT, JSON] {
        let answer = sidecar.get(path).await.unwrap();
        assert_text(&answer, 503, &["no key for agent yet", "try again"]);
        assert_eq!(answer.header("retry-after"), Some("1"));
    }

    volume.publish(1, KEY).unwrap();
    await_key(&sidecar, "agent", KEY).await;
    for (path, words) in [
        ("/v1/keys/other/apiKey", ["no such access", "agent"]),
        ("/v1/keys/other", ["no such access", "agent"]),
        ("/v1/keys/agent/baseUrl", ["no such key", "apiKey"]),
        ("/v1/keys/agent/..live.json", ["no such key", "apiKey"]),
        ("/v1/keys/agent/apiKey/more", ["/v1/keys", "<access>"]),
        ("/v1", ["/v1/keys", "<access>"]),
        ("/", ["/v1/keys", "<access>"]),
    ] {
        let answer = sidecar.get(path).await.unwrap();
        assert_text(&answer, 404, &words);
        assert!(!answer.body.contains(KEY), "{path}: {answer:?}");
    }

    let reason = "namespace team-a lacks the label";
    volume.withdraw(2, reason).unwrap();
    eventually("the end of the files", SOON, async || {
        !sidecar.file("agent", names::API_KEY).exists()
    })
    .await;
    for path in [TEXT, JSON, "/v1/keys/agent/baseUrl"] {
        let headers = ["Prefer: wait=300", "If-None-Match: \"2\""];
        let answer = sidecar.get_with(path, &headers).await.unwrap();
        assert_text(&answer, 410, &["withdrawn", reason]);
        assert_eq!(answer.header("etag"), None);
    }
    let list: Value = serde_json::from_str(&sidecar.get("/v1/keys").await.unwrap().body).unwrap();
    let listed = &list["accesses"][0];
    assert_eq!(
        (&listed["state"], &listed["version"], &listed["keys"]),
        (&json!("withdrawn"), &json!(2), &json!([]))
    );

    volume.publish(3, KEY).unwrap();
    await_key(&sidecar, "agent", KEY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_token_the_answer_is_the_line_that_works() {
    let (_volume, sidecar) = serve().await;
    let [host, authorization] = sidecar.headers().unwrap();
    let token = std::fs::read_to_string(sidecar.dir().join(names::TOKEN_FILE)).unwrap();
    assert_eq!(authorization, format!("Authorization: Bearer {token}"));
    let line = format!(
        "curl -H @{} {}",
        sidecar.auth_header().display(),
        sidecar.url(TEXT)
    );

    let wrong = [
        vec![],
        vec!["Authorization:".to_owned()],
        vec![format!("Authorization: Basic {token}")],
        vec![format!("Authorization: {token}")],
        vec![format!("Authorization: Bearer {}", &token[1..])],
        vec![format!("Authorization: Bearer {token}0")],
        vec![format!("Authorization: Bearer {}", "0".repeat(token.len()))],
        vec![authorization.clone(), authorization.clone()],
        vec![format!("Cookie: token={token}")],
    ];
    for headers in wrong {
        let mut headers: Vec<_> = headers.iter().map(String::as_str).collect();
        headers.push(&host);
        let request = sidecar.send(&format!("GET {TEXT}"), &headers).await.unwrap();
        let answer = request.answer().await.unwrap();
        assert_text(&answer, 401, &[&line]);
        assert!(!answer.body.contains(KEY) && !answer.body.contains(&token));
        assert_eq!(
            answer.header("www-authenticate"),
            Some("Bearer realm=\"llmwarden\"")
        );
        assert_honest_requests_work(&sidecar).await;
    }

    let told = shell(&format!("curl -sS {}", sidecar.url(TEXT))).await;
    let line = told.lines().map(str::trim).find(|line| line.starts_with("curl "));
    assert_eq!(shell(line.expect("a curl line")).await, KEY);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_honest_clients_send_differently_is_taken() {
    let (_volume, sidecar) = serve().await;
    let [host, token] = sidecar.headers().unwrap();
    let (host, token) = (host.as_str(), token.as_str());
    let get = format!("GET {TEXT}");
    let by_address = format!("Host: {}", sidecar.endpoint());
    let lower_case = token.replace("Bearer", "bearer");
    // Node's fetch always sends Sec-Fetch-Mode.
    for headers in [
        &[token, &by_address][..],
        &[&lower_case, host],
        &[token, host, "Sec-Fetch-Mode: cors"],
        &[token, host, "Content-Length: 0"],
    ] {
        let request = sidecar.send(&get, headers).await.unwrap();
        assert_text(&request.answer().await.unwrap(), 200, &[KEY]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unix_socket_asks_for_no_token() {
    let (_volume, sidecar) = serve().await;
    let socket = sidecar.dir().join(names::SOCKET_FILE);
    let line = format!(
        "curl -sS --unix-socket {} http://localhost{TEXT}",
        socket.display()
    );
    assert_eq!(shell(&line).await, KEY);

    let get = format!("GET {TEXT}");
    for (headers, status) in [
        (&["Host: localhost", "Origin: null"][..], 403),
        (&["Host: localhost", "X-Forwarded-For: 10.0.0.1"], 400),
        (&[], 400),
    ] {
        let answer = sidecar.send_unix(&get, headers).await.unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
        let answer = sidecar.send_unix(&get, &["Host: localhost"]).await.unwrap();
        assert_text(&answer, 200, &[KEY]);
    }
    let answer = sidecar
        .send_unix(&get.replace("GET", "PUT"), &["Host: localhost"])
        .await;
    assert_eq!(answer.unwrap().status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_are_turned_away_until_one_ends() {
    let (_volume, sidecar) = serve().await;
    let mut idle = Vec::new();
    let turned_away = eventually("a connection that is turned away", SOON, async || {
        idle.push(TcpStream::connect(sidecar.endpoint()).await.unwrap());
        let answer = sidecar.get(TEXT).await.map_err(|error| error.to_string())?;
        if answer.status == 200 {
            Err("still served".to_owned())
        } else {
            Ok(answer)
        }
    })
    .await;
    assert_text(&turned_away, 503, &["too many connections"]);
    assert!(idle.len() > 32, "{}", idle.len());
    let answer = sidecar
        .send_unix(&format!("GET {TEXT}"), &["Host: localhost"])
        .await;
    assert_text(&answer.unwrap(), 200, &[KEY]);

    drop(idle);
    eventually("a place", SOON, async || {
        sidecar.get(TEXT).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_take_no_place_from_others() {
    let (mut volume, sidecar) = serve().await;
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let headers = ["Prefer: wait=300", "If-None-Match: \"1\""];
        let request = sidecar.begin(TEXT, &headers).await.unwrap();
        request.taken().await.unwrap();
        waiting.push(request);
    }
    assert_honest_requests_work(&sidecar).await;
    volume.publish(2, "sk-test-second").unwrap();
    for request in waiting {
        assert_text(&request.answer().await.unwrap(), 200, &["sk-test-second"]);
    }
}
