//! The sidecar's proxy as programs meet it, over raw sockets, so that nothing corrects what goes over the wire.

mod callers;
mod limits;
mod models;
mod rotation;
mod streams;
mod upstream;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use llmwarden_proto::delivery::{Delivery, Upstream};
use llmwarden_proto::names;
use llmwarden_proto::profile::ProviderKind;
use llmwarden_tests::client::{self, Answer};
use llmwarden_tests::sidecar::Options;
use llmwarden_tests::wait::same;
use llmwarden_tests::{FakeProvider, Sidecar, Volume, eventually, volume};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::SOON;

const KEY: &str = "sk-test-proxy-first-0123456789abcdef";
const NEXT: &str = "sk-test-proxy-next-0123456789abcdef";
const PLACEHOLDER: &str = "sk-llmwarden-0123456789abcdef";
/// Where requests for `agent` to an API like `OpenAI`'s go.
const CHAT: &str = "/proxy/agent/v1/chat/completions";

/// A sidecar that passes the requests for `agent` on.
struct Proxied {
    sidecar: Sidecar,
    volume: Volume,
    upstream: Upstream,
    version: u64,
}

impl Proxied {
    /// To a provider, with [`KEY`].
    async fn start(upstream: Upstream) -> Self {
        Self::start_with(upstream, |_| {}).await
    }

    /// [`start`](Self::start), with other options.
    async fn start_with(upstream: Upstream, change: impl FnOnce(&mut Options)) -> Self {
        let mut volume = Volume::new().unwrap();
        publish(&mut volume, &upstream, 1, KEY, None);
        let mut options = Options::new([volume.source("agent")]);
        options.proxied.push("agent".to_owned());
        change(&mut options);
        let sidecar = Sidecar::start(options).await.unwrap();
        await_version(&sidecar, 1).await;
        Self {
            sidecar,
            volume,
            upstream,
            version: 1,
        }
    }

    /// To a fake of an API like `OpenAI`'s, which takes [`KEY`].
    async fn to_fake() -> (FakeProvider, Self) {
        let (provider, upstream) = fake(ProviderKind::Openai).await;
        (provider, Self::start(upstream).await)
    }

    /// To a provider of which the test says every byte.
    async fn to_script() -> (Script, Self) {
        let script = Script::start().await;
        let upstream = script.upstream();
        (script, Self::start(upstream).await)
    }

    /// Delivers the next version, and waits until it is there.
    async fn rotate(&mut self, key: &str, previous: Option<&str>) {
        self.version += 1;
        publish(&mut self.volume, &self.upstream, self.version, key, previous);
        await_version(&self.sidecar, self.version).await;
    }

    /// A request with the placeholder, and a length if there is a body.
    fn request(&self, line: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
        let authorization = format!("Authorization: Bearer {PLACEHOLDER}");
        let headers = [&[authorization.as_str()], headers].concat();
        self.plain(line, &headers, body)
    }

    /// [`request`](Self::request), without the placeholder.
    fn plain(&self, line: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
        let mut head = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            self.sidecar.endpoint()
        );
        for header in headers {
            head.extend([header, "\r\n"]);
        }
        if !body.is_empty() {
            head.extend([format!("Content-Length: {}\r\n", body.len())]);
        }
        [format!("{head}\r\n").as_bytes(), body].concat()
    }

    /// A request for a chat.
    fn chat(&self, body: &Value) -> Vec<u8> {
        self.request(&format!("POST {CHAT}"), &[], body.to_string().as_bytes())
    }

    async fn send(&self, bytes: &[u8]) -> Peer {
        Peer::new(self.sidecar.send_raw(bytes).await.unwrap())
    }

    /// Sends a request, and reads its answer, which is the last one of its connection.
    async fn ask(&self, bytes: &[u8]) -> Answer {
        self.send(bytes).await.answer().await
    }

    /// Which versions running requests use.
    async fn in_use(&self) -> BTreeMap<u64, u64> {
        self.sidecar.status().await.unwrap().accesses["agent"]
            .in_use
            .clone()
    }

    async fn await_in_use(&self, expected: BTreeMap<u64, u64>) {
        eventually("the versions in use", SOON, async || {
            same(&self.in_use().await, &expected)
        })
        .await;
    }

    /// A sample of the proxy's metrics about `agent`, by its name and its other label.
    async fn sample(&self, name: &str, label: &str) -> Option<f64> {
        let label = format!("{{access=\"agent\",{label}}}");
        let all = self
            .sidecar
            .samples(&format!("llmwarden_sidecar_proxy_{name}"))
            .await
            .unwrap();
        all.get(&label).copied()
    }

    async fn refused(&self, reason: &str) -> Option<f64> {
        self.sample("refusals_total", &format!("reason=\"{reason}\""))
            .await
    }
}

/// A fake that takes [`KEY`], and how it is reached.
async fn fake(kind: ProviderKind) -> (FakeProvider, Upstream) {
    let provider = FakeProvider::start(kind).await.unwrap();
    provider.allow([KEY]);
    let upstream = kind.upstream(Some(&provider.base_url()));
    (provider, upstream)
}

fn publish(volume: &mut Volume, upstream: &Upstream, version: u64, key: &str, previous: Option<&str>) {
    let document = serde_json::to_vec(&document(upstream, version)).unwrap();
    let mut files = vec![
        (names::API_KEY, key.as_bytes()),
        (names::PLACEHOLDER, PLACEHOLDER.as_bytes()),
        (names::LIVE_JSON, &document),
    ];
    files.extend(previous.map(|previous| (names::PREVIOUS_API_KEY, previous.as_bytes())));
    volume.write(&files).unwrap();
}

/// As the controller writes it for a provider that overrides its base URL.
fn document(upstream: &Upstream, version: u64) -> Delivery {
    let base_url = upstream.base_url.iter();
    Delivery {
        values: base_url
            .map(|url| (names::BASE_URL.to_owned(), url.clone()))
            .collect(),
        upstream: Some(upstream.clone()),
        requires: vec!["proxy".to_owned()],
        ..volume::document(version)
    }
}

/// Waits until a version is delivered, to the files as well.
async fn await_version(sidecar: &Sidecar, version: u64) {
    eventually(&format!("version {version}"), SOON, async || {
        let status = sidecar.status().await.map_err(|error| error.to_string())?;
        let agent = &status.accesses["agent"];
        same(&agent.problems, &Vec::new())?;
        same(
            &(agent.version, agent.file_version),
            &(Some(version), Some(version)),
        )
    })
    .await;
}

/// What a chat says that any provider like `OpenAI` understands.
fn hello(stream: bool) -> Value {
    json!({ "model": "gpt-4o", "stream": stream, "messages": [{ "role": "user", "content": "hello" }] })
}

/// A provider of which the test says every byte.
struct Script(TcpListener);

impl Script {
    async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn upstream(&self) -> Upstream {
        let base_url = format!("http://{}/v1", self.0.local_addr().unwrap());
        ProviderKind::Openai.upstream(Some(&base_url))
    }

    /// The next connection.
    async fn accept(&self) -> Peer {
        let accepted = timeout(SOON, self.0.accept()).await.expect("a connection");
        Peer::new(accepted.unwrap().0)
    }

    /// The next connection, and the head of its first request.
    async fn accept_request(&self) -> (Peer, String) {
        let mut peer = self.accept().await;
        let head = peer.until("\r\n\r\n").await;
        (peer, head)
    }
}

/// What is at the other end of a connection.
struct Peer {
    stream: TcpStream,
    /// What has come and was not asked for yet.
    ahead: Vec<u8>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        // What is said goes out at once.
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            ahead: Vec::new(),
        }
    }

    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// All that comes up to these words.
    async fn until(&mut self, words: &str) -> String {
        let mut from = 0;
        loop {
            let found = self.ahead[from..]
                .windows(words.len())
                .position(|part| part == words.as_bytes());
            if let Some(at) = found {
                let rest = self.ahead.split_off(from + at + words.len());
                let text = std::mem::replace(&mut self.ahead, rest);
                return String::from_utf8_lossy(&text).into_owned();
            }
            from = self.ahead.len().saturating_sub(words.len());
            let read = timeout(SOON, self.stream.read_buf(&mut self.ahead)).await;
            let so_far = || String::from_utf8_lossy(&self.ahead[self.ahead.len().saturating_sub(2000)..]);
            match read {
                Ok(Ok(read)) if read > 0 => {}
                other => panic!("{other:?} instead of {words:?} after: {}", so_far()),
            }
        }
    }

    /// All that comes until the connection ends, and whether that was broken off.
    async fn rest(&mut self) -> (String, bool) {
        let mut all = std::mem::take(&mut self.ahead);
        let end = timeout(SOON, self.stream.read_to_end(&mut all))
            .await
            .expect("an end");
        (String::from_utf8_lossy(&all).into_owned(), end.is_err())
    }

    async fn answer(self) -> Answer {
        assert!(self.ahead.is_empty());
        client::read(self.stream).await.unwrap()
    }
}

fn assert_words(answer: &Answer, status: u16, words: &[&str]) {
    assert_eq!(answer.status, status, "{answer:?}");
    for word in words {
        assert!(answer.body.contains(word), "no {word:?} in {answer:?}");
    }
}

/// The most memory that the sidecar ever had, in KiB.
fn peak(proxied: &Proxied) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", proxied.sidecar.process().pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}
