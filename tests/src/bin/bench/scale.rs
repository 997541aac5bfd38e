//! How many accesses the controller carries: until all are Ready, until new master keys have reached all, and until a
//! restart has looked at all. Next to it a raw client that writes what the controller wrote in a plain loop, on a control
//! plane just like it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use llmwarden_proto::access::{LLMAccess, LLMAccessStatus};
use llmwarden_proto::provider::LLMProvider;
use llmwarden_tests::installation::{ACCOUNT, ENABLED_LABEL, SYSTEM};
use llmwarden_tests::{Installation, Signal, try_eventually};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::figures::{Weight, median};

const PROVIDERS: usize = 50;
const NAMESPACES: usize = 20;
/// As many as the controller works on at a time.
const CONCURRENCY: usize = 32;
/// Of no more accesses than so many there are so many rounds.
const FEW: usize = 2_000;
const ROUNDS: usize = 5;
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
    restart: Restart,
}

/// A restart of the controller with everything in place.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Restart {
    /// Until it has looked at everything.
    seconds: f64,
    /// Writes for that.
    writes: u64,
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
            self.restart.seconds,
            "restart, writes",
            self.restart.writes,
            "controller, memory afterwards",
            self.restart.controller_kib
        )
    }
}

/// Measures one number of accesses, on two control planes one after the other, more than once unless that takes long: a machine has
/// its ups and downs.
pub async fn measure(accesses: usize) -> Result<Scale> {
    let rounds = if accesses > FEW { 1 } else { ROUNDS };
    let mut steps: [Vec<[f64; 2]>; 2] = Default::default();
    loop {
        eprintln!("{accesses} accesses: controller");
        let field = Field::start(accesses, &[]).await?;
        let controlled = field.control().await?;
        let is_last = steps[0].len() + 1 == rounds;
        let restart = if is_last {
            Some(field.restart().await?)
        } else {
            None
        };
        drop(field);
        eprintln!("{accesses} accesses: raw");
        let mut field = Field::start(accesses, &[]).await?;
        let each = controlled.times.iter().zip(&controlled.samples);
        for (step, (controller, sample)) in steps.iter_mut().zip(each) {
            step.push([*controller, field.write_raw(sample).await?]);
        }
        if let Some(restart) = restart {
            let [provision, rotate] = steps.map(|rounds| Step::of(&rounds));
            return Ok(Scale {
                accesses,
                provision,
                rotate,
                writes_per_access: controlled.writes,
                restart,
            });
        }
    }
}

/// What the controller took to provision and to rotate all, and what it wrote for that.
struct Controlled {
    times: [f64; 2],
    writes: [Writes<f64>; 2],
    samples: [Sample; 2],
}

/// What the controller wrote for the first access in one step, as text, and the access's UID in it.
struct Sample {
    text: String,
    uid: String,
}

/// What is written for one access in one step.
#[derive(Serialize, Deserialize)]
struct Written {
    secrets: Vec<Secret>,
    status: LLMAccessStatus,
    event: Event,
}

impl Sample {
    /// The same for another access.
    fn of(&self, access: &LLMAccess) -> Result<Written> {
        let text = self
            .text
            .replace(&name(0), &access.name_any())
            .replace(&namespace(0), &access.namespace().unwrap_or_default())
            .replace(&self.uid, &access.uid().unwrap_or_default());
        Ok(serde_json::from_str(&text)?)
    }
}

/// An access, and its Secrets once there are any.
struct Known {
    access: LLMAccess,
    secrets: Vec<Secret>,
}

/// A control plane with providers, master keys and accesses, and no controller yet.
pub struct Field {
    pub llmwarden: Installation,
    pub client: Client,
    accesses: Vec<Known>,
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
            async move {
                let access = create(&api, access_object(number)).await?;
                let secrets = Vec::new();
                anyhow::Ok(Known { access, secrets })
            }
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
        let first = self.sample().await?;

        let begun = Instant::now();
        self.set_master_keys(1).await?;
        self.await_delivered(1).await?;
        let rotate = begun.elapsed().as_secs_f64();
        let rotated = self.writes().await?;
        let second = self.sample().await?;
        #[expect(clippy::cast_precision_loss, reason = "some ten thousands")]
        let each = |writes: Writes<u64>| {
            let all = writes.into_iter();
            all.map(|(kind, count)| (kind, count as f64 / self.accesses.len() as f64))
                .collect()
        };
        Ok(Controlled {
            times: [provision, rotate],
            writes: [between(&before, &provisioned), between(&provisioned, &rotated)].map(each),
            samples: [first, second],
        })
    }

    /// What was written last for the first access.
    async fn sample(&self) -> Result<Sample> {
        let (client, name, namespace) = (self.client.clone(), name(0), namespace(0));
        let access = Api::<LLMAccess>::namespaced(client.clone(), &namespace)
            .get(&name)
            .await?;
        let api = Api::<Secret>::namespaced(client.clone(), &namespace);
        let mut secrets = Vec::new();
        for name in [access.spec.secret_name.clone(), access.companion_name()] {
            secrets.push(api.get(&name).await?);
        }
        let events = Api::<Event>::namespaced(client, &namespace);
        let events = events.list(&ListParams::default()).await?.items.into_iter();
        let own = events.filter(|event| {
            let about = event.regarding.as_ref();
            about.is_some_and(|about| about.name.as_ref() == Some(&name))
        });
        let mut event = own
            .max_by_key(|event| event.event_time.clone())
            .context("there was no event")?;
        for metadata in secrets
            .iter_mut()
            .map(|secret| &mut secret.metadata)
            .chain([&mut event.metadata])
        {
            (metadata.uid, metadata.resource_version) = (None, None);
            (metadata.creation_timestamp, metadata.managed_fields) = (None, None);
        }
        let uid = access.uid().context("it has a UID")?;
        let written = Written {
            secrets,
            status: access.status.context("it has a status")?,
            event,
        };
        let text = serde_json::to_string(&written)?;
        Ok(Sample { text, uid })
    }

    /// Starts the controller once more.
    async fn restart(&self) -> Result<Restart> {
        self.llmwarden.stop_controller(Signal::SIGTERM).await?;
        let settled = self.writes().await?;
        let begun = Instant::now();
        self.llmwarden.start_controller().await?;
        self.await_passes().await?;
        let seconds = begun.elapsed().as_secs_f64();
        let pid = self.llmwarden.controller_pid().context("it runs")?;
        Ok(Restart {
            seconds,
            writes: between(&settled, &self.writes().await?).values().sum(),
            controller_kib: Weight::resident("controller", pid)?.kib(),
        })
    }

    /// Writes what the controller wrote, in the same order (both Secrets, the event, the status), under the same
    /// preconditions and eyes, and as the same service account: what its rights and the policies on it cost the API server
    /// is the same.
    async fn write_raw(&mut self, sample: &Sample) -> Result<f64> {
        let client = self.llmwarden.client_for(SYSTEM, ACCOUNT).await?;
        let all = self
            .accesses
            .iter()
            .map(|known| Ok((known, sample.of(&known.access)?)))
            .collect::<Result<Vec<_>>>()?;
        let rotations = all
            .first()
            .map_or(0, |(_, written)| written.status.history.len() - 1);
        let begun = Instant::now();
        let writes = futures::stream::iter(all)
            .map(|(known, written)| write_one(&client, known, written))
            .buffer_unordered(CONCURRENCY)
            .try_collect::<Vec<_>>();
        let (written, ()) = tokio::try_join!(writes, self.await_delivered(rotations))?;
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
        let all = self.accesses.iter();
        let mut waiting: BTreeSet<_> = all.map(|known| known.access.name_any()).collect();
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

async fn write_one(client: &Client, known: &Known, written: Written) -> Result<Known> {
    let namespace = known.access.namespace().unwrap_or_default();
    let api = Api::<Secret>::namespaced(client.clone(), &namespace);
    let mut secrets = Vec::new();
    for (index, mut secret) in written.secrets.into_iter().enumerate() {
        secrets.push(match known.secrets.get(index) {
            None => api.create(&PostParams::default(), &secret).await?,
            Some(present) => {
                secret.metadata.uid = present.uid();
                secret.metadata.resource_version = present.resource_version();
                api.replace(&present.name_any(), &PostParams::default(), &secret)
                    .await?
            }
        });
    }
    let events = Api::<Event>::namespaced(client.clone(), &namespace);
    events.create(&PostParams::default(), &written.event).await?;
    let api = Api::<LLMAccess>::namespaced(client.clone(), &namespace);
    let mut changed = known.access.clone();
    changed.status = Some(written.status);
    changed.metadata.managed_fields = None;
    let access = api
        .replace_status(&known.access.name_any(), &PostParams::default(), &changed)
        .await?;
    Ok(Known { access, secrets })
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

fn name(number: usize) -> String {
    format!("agent-{number}")
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
        "metadata": { "name": name(number) },
        "spec": {
            "providerRef": { "name": provider(number) },
            "models": ["claude-sonnet-4-6"],
            "secretName": format!("{}-key", name(number)),
            "workloadSelector": { "matchLabels": { "agent": name(number) } },
            "injection": { "env": [{ "name": "ANTHROPIC_API_KEY", "secretKey": "apiKey" }] },
        },
    })
}
