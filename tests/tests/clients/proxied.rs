//! Through the sidecar: the same programs, with a placeholder for a key, can't tell it from the provider.

use anyhow::Result;
use llmwarden_proto::delivery::Delivery;
use llmwarden_proto::names;
use llmwarden_proto::profile::{ProviderKind, base_path};
use llmwarden_tests::fake_provider::Seen;
use llmwarden_tests::{FakeProvider, Sidecar, Volume, eventually, sidecar, volume};

use crate::SOON;
use crate::program::{Outcome, Program, report};
use crate::subjects::{Subject, environment};

/// What the programs hold.
const PLACEHOLDER: &str = "sk-llmwarden-0123456789abcdef";
/// What they ask for but `fake-forbidden`, which the provider would refuse as well.
const MODELS: [&str; 11] = [
    "gpt-4o",
    "text-embedding-3-small",
    "claude-opus-5",
    "gemini-*",
    "fake-unknown",
    "fake-rate-limited",
    "fake-overloaded",
    "fake-broken",
    "fake-flaky",
    "fake-cut",
    "fake-error-in-stream",
];
/// Where a key can stand.
const CREDENTIALS: [&str; 4] = ["authorization", "x-api-key", "api-key", "x-goog-api-key"];

/// A provider, and a sidecar in front of it.
pub struct Proxied {
    pub provider: FakeProvider,
    sidecar: Sidecar,
    volume: Volume,
    version: u64,
}

impl Proxied {
    /// One in front of a provider for which the first key is valid.
    pub async fn start(kind: ProviderKind) -> Result<Self> {
        let provider = FakeProvider::start_tls(kind).await?;
        let mut volume = Volume::new()?;
        provider.allow([key(1).as_str()]);
        publish(&mut volume, &provider, 1)?;
        let options = sidecar::Options {
            proxied: vec!["a".to_owned()],
            ..sidecar::Options::new([volume.source("a")])
        };
        let proxied = Self {
            provider,
            sidecar: Sidecar::start(options).await?,
            volume,
            version: 1,
        };
        proxied.delivered().await;
        Ok(proxied)
    }

    /// Another key, which is made, delivered, and from then on the only valid one.
    pub async fn rotate(&mut self) -> Result<()> {
        let old = key(self.version);
        self.version += 1;
        let new = key(self.version);
        self.provider.allow([old.as_str(), new.as_str()]);
        publish(&mut self.volume, &self.provider, self.version)?;
        self.delivered().await;
        self.provider.allow([new.as_str()]);
        Ok(())
    }

    async fn delivered(&self) {
        eventually("the delivery", SOON, async || {
            let status = self.sidecar.status().await?;
            let delivered = status.accesses.get("a").and_then(|access| access.version);
            anyhow::ensure!(delivered == Some(self.version), "{delivered:?}");
            Ok(())
        })
        .await;
    }

    /// What a program is given to talk to the provider through the sidecar.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let base_url = self.provider.base_url();
        let port = self.sidecar.endpoint().port();
        let url = format!("http://127.0.0.1:{port}/proxy/a{}", base_path(&base_url));
        environment(self.provider.kind(), url, PLACEHOLDER)
    }
}

fn key(version: u64) -> String {
    format!("sk-test-{version:04}-0123456789abcdef")
}

fn publish(volume: &mut Volume, provider: &FakeProvider, version: u64) -> Result<()> {
    let mut upstream = provider.kind().upstream(Some(&provider.base_url()));
    upstream.models = MODELS.map(str::to_owned).to_vec();
    upstream.ca_bundle = provider.authority().map(std::fs::read_to_string).transpose()?;
    let document = Delivery {
        upstream: Some(upstream),
        ..volume::document(version)
    };
    volume.write(&[
        (names::API_KEY, key(version).as_bytes()),
        (names::PLACEHOLDER, PLACEHOLDER.as_bytes()),
        (names::LIVE_JSON, &serde_json::to_vec(&document)?),
    ])
}

/// What a request that reaches the provider looks like.
fn check(seen: &Seen) {
    assert_eq!(seen.key, Some(0), "{seen:?}");
    assert_ne!(seen.model.as_deref(), Some("fake-forbidden"), "{seen:?}");
    let credentials = CREDENTIALS
        .iter()
        .filter(|name| seen.headers.contains_key(**name));
    assert_eq!(credentials.count(), 1, "{seen:?}");
    // Neither the placeholder nor the wrong key, wherever they stood.
    let text = format!("{seen:?}");
    assert!(
        !text.contains("sk-llmwarden-") && !text.contains("sk-wrong-"),
        "{text}"
    );
}

/// A model that may not be used is refused by name, and with those that may be.
fn check_refusals(program: Program, outcomes: &[Outcome]) {
    // The Go program does not tell.
    let told = outcomes.iter().filter(|outcome| {
        !matches!(program, Program::Go | Program::GoNewest) && outcome.scenario == "forbidden"
    });
    for outcome in told {
        for named in ["fake-forbidden", MODELS[0]] {
            assert!(outcome.said.contains(named), "no {named} in: {}", outcome.said);
        }
    }
}

async fn proxied(program: Program) {
    for subject in Subject::of(program) {
        let proxied = Proxied::start(subject.provider).await.unwrap();
        let outcomes = program
            .run(subject.sdk, &subject.scenarios(program), &proxied.environment())
            .await;
        report("proxied", program, &subject.name(), &outcomes);
        check_refusals(program, &outcomes);
        let seen = proxied.provider.seen();
        assert!(!seen.is_empty());
        seen.iter().for_each(check);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdks_that_kagent_locks() {
    proxied(Program::Locked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_python_sdks() {
    proxied(Program::Newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_node_sdks() {
    proxied(Program::Node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_sdks_of_kagent() {
    proxied(Program::Go).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_go_sdks() {
    proxied(Program::GoNewest).await;
}
