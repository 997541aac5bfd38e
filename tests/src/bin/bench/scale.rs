//! How many accesses the controller carries: until all are Ready, until new master keys have reached all, and until a
//! restart has looked at all. Next to it a raw client that writes the same objects in a plain loop, on a control plane
//! just like it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::names;
use llmwarden_proto::provider::LLMProvider;
use llmwarden_tests::installation::{ACCOUNT, ENABLED_LABEL, SYSTEM};
use llmwarden_tests::{Installation, Signal, try_eventually};
use serde::Serialize;
use serde_json::{Value, json};

use crate::figures::{Weight, median};

const PROVIDERS: usize = 50;
const NAMESPACES: usize = 20;
/// As many as the controller works on at a time.
const CONCURRENCY: usize = 32;
/// Of no more accesses than so many there are so many rounds.
const FEW: usize = 2_000;
const ROUNDS: usize = 3;
/// Between two changes.
const PATIENCE: Duration = Duration::from_mins(2);

/// One number of accesses.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scale {
    accesses: usize,
    provision: Step,
    rotate: Step,
    /// Requests that write, by what they are, for each access: provisioning, and one rotation.
    writes_per_access: [Writes<f64>; 2],
    /// Until a restarted controller has looked at everything, in seconds.
    restart_s: f64,
    /// Writes after that, over the restart.
    restart_writes: u64,
    controller_kib: u64,
}

/// A number for each kind of write: `POST secrets`, `PUT llmaccesses/status`, …
type Writes<N> = BTreeMap<String, N>;

/// The same work, done by the controller and by a raw client.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    controller_s: f64,
    raw_s: f64,
    /// How much of the raw client's rate the controller has.
    ratio: f64,
}

impl Step {
    /// Medians of rounds, each the controller's time and the raw client's.
    fn of(rounds: &[[f64; 2]]) -> Self {
        Self {
            controller_s: median(rounds.iter().map(|[controller, _]| *controller)),
            raw_s: median(rounds.iter().map(|[_, raw]| *raw)),
            ratio: median(rounds.iter().map(|[controller, raw]| raw / controller)),
        }
    }
}

impl Scale {
    /// Of the report.
    pub fn table(&self) -> String {
        let step = |what: &str, step: &Step, writes: &Writes<f64>| {
            let kinds: Vec<_> = writes
                .iter()
                .map(|(kind, each)| format!("{each:.2} {kind}"))
                .collect();
            format!(
                "{what:<40}{:>12.1}{:>12.1}{:>12.2}{:>16.2}\n    {}",
                step.controller_s,
                step.raw_s,
                step.ratio,
                writes.values().sum::<f64>(),
                kinds.join(", ")
            )
        };
        format!(
            "{:<40}{:>12}{:>12}{:>12}{:>16}\n{}\n{}\n{:<40}{:>12.1}\n{:<40}{:>12}\n{:<40}{:>12} KiB",
            format!("{} accesses, {PROVIDERS} providers", self.accesses),
            "controller s",
            "raw s",
            "rate / raw",
            "writes/access",
            step("until all are Ready", &self.provision, &self.writes_per_access[0]),
            step(
                "until new keys have reached all",
                &self.rotate,
                &self.writes_per_access[1]
            ),
            "restart, until everything was looked at",
            self.restart_s,
            "restart, writes",
            self.restart_writes,
            "controller, memory afterwards",
            self.controller_kib
        )
    }
}

/// Measures one number of accesses, on two control planes one after the other, more than once unless that takes long: a machine has
/// its ups and downs.
pub async fn measure(accesses: usize) -> Result<Scale> {
    let rounds = if accesses > FEW { 1 } else { ROUNDS };
    let mut steps: [Vec<[f64; 2]>; 2] = Default::default();
    loop {
        eprintln!("{accesses} accesses: raw");
        let mut field = Field::start(accesses, &[]).await?;
        let raw = [field.write_raw(0).await?, field.write_raw(1).await?];
        drop(field);
        eprintln!("{accesses} accesses: controller");
        let field = Field::start(accesses, &[]).await?;
        let Controlled { times, writes } = field.control().await?;
        for ((steps, controller), raw) in steps.iter_mut().zip(times).zip(raw) {
            steps.push([controller, raw]);
        }
        if steps[0].len() == rounds {
            let [provision, rotate] = steps.map(|rounds| Step::of(&rounds));
            return field.restart(provision, rotate, writes).await;
        }
    }
}

/// What the controller took to provision and to rotate all, and what it wrote.
struct Controlled {
    times: [f64; 2],
    writes: [Writes<u64>; 2],
}

/// A control plane with providers, master keys and accesses, and no controller yet.
pub struct Field {
    pub llmwarden: Installation,
    pub client: Client,
    accesses: Vec<LLMAccess>,
}

impl Field {
    /// `flags` are those of the controller that is started on it.
    pub async fn start(accesses: usize, flags: &[&str]) -> Result<Self> {
        let llmwarden = Installation::start_logging(flags, "info").await?;
        llmwarden.stop_controller(Signal::SIGTERM).await?;
        let client = llmwarden.client();
        let namespaces = Api::<Namespace>::all(client.clone());
        for number in 0..NAMESPACES {
            let name = namespace(number);
            let namespace = json!({ "metadata": { "name": name, "labels": { ENABLED_LABEL: "true" } } });
            create(&namespaces, namespace).await?;
        }
        let providers = Api::<LLMProvider>::all(client.clone());
        for number in 0..PROVIDERS {
            llmwarden
                .create_master_key(&provider(number), &key(number, 0))
                .await?;
            create(&providers, provider_object(number)).await?;
        }
        let created = futures::stream::iter(0..accesses).map(|number| {
            let api = Api::<LLMAccess>::namespaced(client.clone(), &namespace(number));
            async move { create(&api, access_object(number)).await }
        });
        let accesses = created.buffer_unordered(CONCURRENCY).try_collect().await?;
        Ok(Self {
            llmwarden,
            client,
            accesses,
        })
    }

    /// Has the controller do it.
    async fn control(&self) -> Result<Controlled> {
        let before = self.writes().await?;
        let begun = Instant::now();
        self.llmwarden.start_controller().await?;
        self.await_delivered(0).await?;
        let provision = begun.elapsed().as_secs_f64();
        let provisioned = self.writes().await?;

        let begun = Instant::now();
        self.set_master_keys(1).await?;
        self.await_delivered(1).await?;
        let rotate = begun.elapsed().as_secs_f64();
        let rotated = self.writes().await?;
        Ok(Controlled {
            times: [provision, rotate],
            writes: [between(&before, &provisioned), between(&provisioned, &rotated)],
        })
    }

    /// Starts the controller once more, and puts everything together.
    async fn restart(&self, provision: Step, rotate: Step, writes: [Writes<u64>; 2]) -> Result<Scale> {
        self.llmwarden.stop_controller(Signal::SIGTERM).await?;
        let settled = self.writes().await?;
        let begun = Instant::now();
        self.llmwarden.start_controller().await?;
        self.await_passes().await?;
        let restart_s = begun.elapsed().as_secs_f64();
        let restart_writes = between(&settled, &self.writes().await?).values().sum();
        let pid = self.llmwarden.controller_pid().context("it runs")?;
        let accesses = self.accesses.len();
        #[expect(clippy::cast_precision_loss, reason = "some ten thousands")]
        let each = |writes: Writes<u64>| {
            let all = writes.into_iter();
            all.map(|(kind, count)| (kind, count as f64 / accesses as f64))
                .collect()
        };
        Ok(Scale {
            accesses,
            provision,
            rotate,
            writes_per_access: writes.map(each),
            restart_s,
            restart_writes,
            controller_kib: Weight::resident("controller", pid)?.kib(),
        })
    }

    /// Writes what the controller would, in the same order (both Secrets, the status, the event), under the same eyes and
    /// as the same service account: what its rights and the policies on it cost the API server is the same.
    async fn write_raw(&mut self, round: usize) -> Result<f64> {
        let client = self.llmwarden.client_for(SYSTEM, ACCOUNT).await?;
        let begun = Instant::now();
        let writes = futures::stream::iter(&self.accesses)
            .map(|access| write_one(&client, access, round))
            .buffer_unordered(CONCURRENCY)
            .try_collect::<Vec<_>>();
        let (written, ()) = tokio::try_join!(writes, self.await_delivered(round))?;
        let took = begun.elapsed().as_secs_f64();
        self.accesses = written;
        Ok(took)
    }

    async fn set_master_keys(&self, round: usize) -> Result<()> {
        for number in 0..PROVIDERS {
            let key = key(number, round);
            self.llmwarden.replace_master_key(&provider(number), &key).await?;
        }
        Ok(())
    }

    /// Waits until every access is Ready and has had `rotations` new keys.
    pub async fn await_delivered(&self, rotations: usize) -> Result<()> {
        let mut waiting: BTreeSet<_> = self.accesses.iter().map(ResourceExt::name_any).collect();
        let api = Api::<LLMAccess>::all(self.client.clone());
        let mut changes = pin!(watcher(api, watcher::Config::default()).applied_objects());
        while !waiting.is_empty() {
            let next = tokio::time::timeout(PATIENCE, changes.try_next()).await;
            let access = next.with_context(|| format!("{} accesses wait", waiting.len()))??;
            let access = access.context("the watch ended")?;
            if has_key(&access, rotations) {
                waiting.remove(&access.name_any());
            }
        }
        Ok(())
    }

    /// Waits until the controller has made a pass over every access.
    async fn await_passes(&self) -> Result<()> {
        try_eventually("a pass over everything", PATIENCE, async || {
            let text = self.llmwarden.controller_metrics().await?;
            let passes = sum(&text, "llmwarden_controller_passes_total");
            anyhow::ensure!(passes >= self.accesses.len() as u64, "{passes} passes");
            Ok(())
        })
        .await
    }

    /// Requests that write what the controller writes, as the API server counts them.
    async fn writes(&self) -> Result<Writes<u64>> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let text = self.client.request_text(request).await?;
        let mut writes = Writes::new();
        for line in text
            .lines()
            .filter(|line| line.starts_with("apiserver_request_total{"))
        {
            let label = |name: &str| {
                let (_, rest) = line.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value)
            };
            let (verb, resource) = (
                label("verb").unwrap_or_default(),
                label(",resource").unwrap_or_default(),
            );
            if ["POST", "PUT", "PATCH", "DELETE"].contains(&verb)
                && ["secrets", "llmaccesses", "llmproviders", "events"].contains(&resource)
            {
                let subresource = label("subresource").filter(|name| !name.is_empty());
                let subresource = subresource.map(|name| format!("/{name}")).unwrap_or_default();
                let count = line.rsplit(' ').next().and_then(|count| count.parse().ok());
                *writes
                    .entry(format!("{verb} {resource}{subresource}"))
                    .or_default() += count.unwrap_or(0);
            }
        }
        Ok(writes)
    }
}

async fn write_one(client: &Client, access: &LLMAccess, round: usize) -> Result<LLMAccess> {
    let namespace = access.namespace().unwrap_or_default();
    let secrets = Api::<Secret>::namespaced(client.clone(), &namespace);
    for name in [access.spec.secret_name.clone(), access.companion_name()] {
        let secret = secret_object(access, &name, round)?;
        if round == 0 {
            secrets.create(&PostParams::default(), &secret).await?;
        } else {
            secrets.replace(&name, &PostParams::default(), &secret).await?;
        }
    }
    let api = Api::<LLMAccess>::namespaced(client.clone(), &namespace);
    let mut changed = access.clone();
    changed.status = Some(serde_json::from_value(status_object(round))?);
    let written = api
        .replace_status(&access.name_any(), &PostParams::default(), &changed)
        .await?;
    let events = Api::<Event>::namespaced(client.clone(), &namespace);
    create(&events, event_object(access, round)).await?;
    Ok(written)
}

/// What was written between two moments.
fn between(before: &Writes<u64>, after: &Writes<u64>) -> Writes<u64> {
    let more = after.iter().map(|(kind, count)| {
        let before = before.get(kind).copied().unwrap_or(0);
        (kind.clone(), count - before)
    });
    more.filter(|(_, count)| *count > 0).collect()
}

/// The sum of all series of a counter.
fn sum(text: &str, counter: &str) -> u64 {
    let values = text
        .lines()
        .filter(|line| line.starts_with(counter))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

fn has_key(access: &LLMAccess, rotations: usize) -> bool {
    access.status.as_ref().is_some_and(|status| {
        let mut conditions = status.conditions.iter();
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
            && status.history.len() > rotations
    })
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<K>
where
    K: Clone + std::fmt::Debug + Serialize + serde::de::DeserializeOwned,
{
    Ok(api
        .create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?)
}

/// Where an access is.
pub fn namespace(number: usize) -> String {
    format!("team-{}", number % NAMESPACES)
}

fn provider(number: usize) -> String {
    format!("provider-{}", number % PROVIDERS)
}

fn key(provider: usize, round: usize) -> String {
    format!("sk-ant-bench-{provider}-{round}-{}", "0123456789abcdef".repeat(6))
}

fn provider_object(number: usize) -> Value {
    let name = provider(number);
    json!({
        "apiVersion": "llmwarden.io/v1alpha1",
        "kind": "LLMProvider",
        "metadata": { "name": name },
        "spec": {
            "provider": "anthropic",
            "auth": {
                "type": "apiKey",
                "apiKey": {
                    "secretRef": { "name": name, "namespace": SYSTEM, "key": "api-key" },
                    "rotation": { "enabled": true, "interval": "30d" },
                },
            },
            "allowedModels": ["claude-opus-4-6", "claude-sonnet-4-6"],
            "namespaceSelector": { "matchLabels": { ENABLED_LABEL: "true" } },
        },
    })
}

fn access_object(number: usize) -> Value {
    json!({
        "apiVersion": "llmwarden.io/v1alpha1",
        "kind": "LLMAccess",
        "metadata": { "name": format!("agent-{number}") },
        "spec": {
            "providerRef": { "name": provider(number) },
            "models": ["claude-sonnet-4-6"],
            "secretName": format!("agent-{number}-key"),
            "workloadSelector": { "matchLabels": { "agent": format!("agent-{number}") } },
            "injection": { "env": [{ "name": "ANTHROPIC_API_KEY", "secretKey": "apiKey" }] },
        },
    })
}

/// As large as what the controller writes.
fn secret_object(access: &LLMAccess, name: &str, round: usize) -> Result<Secret> {
    let mut data = BTreeMap::from([(names::API_KEY, key(0, round))]);
    if name == access.companion_name() {
        data.insert(
            names::PLACEHOLDER,
            format!("sk-llmwarden-{}", "0123456789abcdef".repeat(2)),
        );
        let document = json!({
            "schema": 1, "version": 1_700_000_000_000_u64 + round as u64, "state": "active",
            "issuedAt": "2026-01-01T00:00:00.000Z", "keys": ["apiKey"],
            "upstream": {
                "provider": "anthropic", "baseUrl": "https://api.anthropic.com",
                "auth": { "header": "x-api-key" }, "models": ["claude-sonnet-4-6"],
            },
        });
        data.insert(names::LIVE_JSON, document.to_string());
    }
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": { names::MANAGED_BY_LABEL: names::MANAGED_BY },
            "ownerReferences": [{
                "apiVersion": "llmwarden.io/v1alpha1", "kind": "LLMAccess", "controller": true,
                "blockOwnerDeletion": true, "name": access.name_any(), "uid": access.uid(),
            }],
        },
        "type": "Opaque",
        "stringData": data,
    }))?)
}

fn status_object(round: usize) -> Value {
    let time = "2026-01-01T00:00:00Z";
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": time, "observedGeneration": 1,
        })
    };
    let holds = "Secret agent-0000-key and its companion hold version 1700000000000";
    let entry = |version: usize| json!({ "version": version, "time": time, "trigger": "MasterChanged", "keyId": "0123456789ab" });
    json!({
        "conditions": [
            condition("Ready", "True", "Provisioned", holds),
            condition("CredentialProvisioned", "True", "Provisioned", holds),
            condition("RotationOverdue", "False", "RotationScheduled", "a new master key is due at 2026-02-01T00:00:00Z"),
        ],
        "secretRef": { "name": "agent-0000-key" },
        "credentialVersion": 1_700_000_000_000_u64,
        "lastRotation": time,
        "nextRotation": time,
        "provisionedModels": ["claude-sonnet-4-6"],
        "observedGeneration": 1,
        "history": (0..=round).map(entry).collect::<Vec<_>>(),
    })
}

fn event_object(access: &LLMAccess, round: usize) -> Value {
    json!({
        "metadata": { "name": format!("{}.{round}", access.name_any()) },
        "action": "Reconcile-01020304",
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "note": "the master key changed: Secret agent-0000-key and its companion hold the new key",
        "reason": "Rotated",
        "type": "Normal",
        "regarding": {
            "apiVersion": "llmwarden.io/v1alpha1", "kind": "LLMAccess", "name": access.name_any(),
            "namespace": access.namespace(), "uid": access.uid(), "resourceVersion": access.resource_version(),
        },
        "reportingController": "llmwarden-controller",
        "reportingInstance": "llmwarden-controller",
    })
}
