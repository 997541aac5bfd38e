//! Two controllers that both believe they are the only one: one at once with the other, or one that was asleep.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::runtime::{WatchStreamExt, watcher};
use llmwarden_proto::delivery::Delivery;
use llmwarden_proto::names::LIVE_JSON;
use llmwarden_proto::reason::Reason;
use llmwarden_tests::api_proxy::Side;
use llmwarden_tests::installation::SYSTEM;
use llmwarden_tests::{ApiProxy, Process, Signal, eventually};
use serde_json::json;

use crate::conflicts::{create_foreign, delete_secret};
use crate::controller_faults::{Bench, await_key};
use crate::support::{SOON, Tenant, patch};

/// Every content of a companion that was seen, by its version, in the order in which they came.
type Seen = Arc<Mutex<Vec<(u64, BTreeMap<String, Vec<u8>>)>>>;

/// Notes every state of a companion from now on.
fn note_versions(tenant: &Tenant, seen: Seen) -> tokio::task::JoinHandle<()> {
    let config = watcher::Config::default().fields("metadata.name=agent.llmwarden");
    let changes = watcher(tenant.secrets(), config)
        .default_backoff()
        .applied_objects();
    tokio::spawn(async move {
        let mut changes = std::pin::pin!(changes);
        while let Some(Ok(secret)) = changes.next().await {
            let secret: Secret = secret;
            let mut data = secret.data.unwrap_or_default();
            let Some(document) = data
                .remove(LIVE_JSON)
                .and_then(|text| serde_json::from_slice::<Delivery>(&text.0).ok())
            else {
                continue;
            };
            let mut content: BTreeMap<_, _> = data.into_iter().map(|(name, value)| (name, value.0)).collect();
            let upstream = serde_json::to_vec(&(document.state, document.upstream, document.values)).unwrap();
            content.insert(LIVE_JSON.to_owned(), upstream);
            let last = (document.version, content);
            let mut seen = seen.lock().unwrap();
            if seen.last() != Some(&last) {
                seen.push(last);
            }
        }
    })
}

async fn second(bench: &Bench, proxy: &ApiProxy, name: &str) -> Process {
    let kubeconfig = proxy
        .kubeconfig(&bench.installation, SYSTEM, "controller")
        .await
        .unwrap();
    bench
        .installation
        .start_through(&kubeconfig, name, &[])
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_controllers_at_once_never_give_two_contents_one_version() {
    let bench = Bench::new().await;
    let other_way = ApiProxy::start(&bench.installation).await.unwrap();
    let _first = bench.controller(&[]).await;
    let _second = second(&bench, &other_way, "second").await;
    let tenant = bench.tenant().await;
    let seen = Seen::default();
    let watch = note_versions(&tenant, seen.clone());
    for number in 0..60 {
        tenant.set_master(&format!("sk-test-two-{number}")).await;
        match number % 4 {
            1 => {
                let url = format!("https://gateway-{number}.example/v1");
                let spec = json!({ "spec": { "endpoint": { "baseURL": url } } });
                patch(&tenant.providers(), &tenant.provider, spec).await;
            }
            2 => delete_secret(&tenant, "agent.llmwarden").await,
            3 => {
                let last = format!("sk-test-two-{number}");
                await_key(&tenant, &last).await;
            }
            _ => {}
        }
    }
    await_key(&tenant, "sk-test-two-59").await;
    tenant.await_ready("agent").await;
    let settled = eventually("the last version in the notes", SOON, async || {
        let version = tenant.access("agent").await.status.unwrap().credential_version;
        let noted = seen
            .lock()
            .unwrap()
            .last()
            .map(|(version, _)| i64::try_from(*version).unwrap());
        if noted == version {
            Ok(version)
        } else {
            Err(format!("{noted:?} {version:?}"))
        }
    })
    .await;
    watch.abort();
    let seen = seen.lock().unwrap();
    for pair in seen.windows(2) {
        assert!(pair[0].0 < pair[1].0, "{} then {}", pair[0].0, pair[1].0);
    }
    let conflicts = |proxy: &ApiProxy| proxy.records().iter().filter(|r| r.status == Some(409)).count();
    let refused = conflicts(&bench.proxy) + conflicts(&other_way);
    eprintln!(
        "{} versions, the last {settled:?}; {refused} writes refused by a precondition",
        seen.len()
    );
    assert!(refused > 0, "they never met");
}

/// What a controller was about to do when it fell asleep.
#[derive(Debug, Clone, Copy)]
enum Asleep {
    Replacing,
    Creating,
    Deleting,
    Recording,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_was_asleep_in_the_middle_of_a_write_does_no_harm() {
    let bench = Bench::new().await;
    let other_way = ApiProxy::start(&bench.installation).await.unwrap();
    for asleep in [
        Asleep::Replacing,
        Asleep::Creating,
        Asleep::Deleting,
        Asleep::Recording,
    ] {
        let first = bench.controller(&[]).await;
        let tenant = match asleep {
            Asleep::Creating => Tenant::new(&bench.installation, "sk-test-asleep-0").await,
            _ => bench.tenant().await,
        };
        let namespace = tenant.namespace.clone();
        let (verb, resource) = match asleep {
            Asleep::Replacing => ("update", "secrets"),
            Asleep::Creating => ("create", "secrets"),
            Asleep::Deleting => ("delete", "secrets"),
            Asleep::Recording => ("update", "llmaccesses/status"),
        };
        // The n-th write counts those of other kinds, so the kind is part of the scope.
        let mut stop = bench.proxy.stop_at(1, Side::Before, move |call| {
            call.namespace == namespace && call.verb == verb && call.resource == resource
        });
        match asleep {
            Asleep::Creating => drop(tenant.create_access("agent", json!({})).await),
            Asleep::Deleting => {
                let renamed = json!({ "spec": { "secretName": "renamed" } });
                tenant.patch_access("agent", renamed).await;
            }
            Asleep::Replacing | Asleep::Recording => tenant.set_master("sk-test-asleep-1").await,
        }
        stop.reached().await.unwrap();
        first.signal(Signal::SIGSTOP).unwrap();

        // Meanwhile the world goes on.
        let awake = second(&bench, &other_way, "awake").await;
        if let Asleep::Deleting = asleep {
            tenant.await_ready("agent").await;
            eventually("the end of the old name", SOON, async || {
                tenant.secret_names().await == ["agent.llmwarden", "renamed"]
            })
            .await;
            create_foreign(&tenant, "agent-key").await;
        } else {
            tenant.set_master("sk-test-asleep-2").await;
            await_key(&tenant, "sk-test-asleep-2").await;
            eventually("the new key in the status", SOON, async || {
                let status = tenant.access("agent").await.status.unwrap_or_default();
                status.credential_version == version(&tenant).await
            })
            .await;
        }
        let before = world(&tenant).await;
        let companion = tenant.secret("agent.llmwarden").await.resource_version();
        let sleeper = bench.proxy.records().len();

        stop.release();
        eventually("the answer to what was held", SOON, async || {
            bench
                .proxy
                .records()
                .iter()
                .all(|record| !record.call.is_write() || record.status.is_some())
        })
        .await;
        let held = bench.proxy.records().into_iter().take(sleeper).rfind(|record| {
            record.call.verb == verb
                && record.call.resource == resource
                && record.call.namespace == tenant.namespace
        });
        let status = held.unwrap().status;
        assert!(matches!(status, Some(404 | 409)), "{asleep:?}: {status:?}");
        awake.kill();
        first.signal(Signal::SIGCONT).unwrap();
        // It finds its way: it is the only one now.
        tenant.touch("agent").await;
        // Its watches catch up one by one, so for a moment it may know the Secret and not yet the master key. Sidecars see
        // nothing of that.
        eventually("the Secrets as before", SOON, async || {
            world(&tenant).await == before
        })
        .await;
        let after = tenant.secret("agent.llmwarden").await.resource_version();
        assert_eq!(after, companion, "{asleep:?}");
        if !matches!(asleep, Asleep::Deleting) {
            tenant.set_master("sk-test-asleep-3").await;
            await_key(&tenant, "sk-test-asleep-3").await;
        }
        assert_eq!(tenant.occurrences("agent", Reason::WriteRefused).await, 0);
        eprintln!("{asleep:?}: answered {status:?}");
    }
}

async fn version(tenant: &Tenant) -> Option<i64> {
    let companion = tenant.secret("agent.llmwarden").await;
    let text = &companion.data.as_ref()?.get(LIVE_JSON)?.0;
    let document: Delivery = serde_json::from_slice(text).ok()?;
    i64::try_from(document.version).ok()
}

/// Every Secret of a tenant, with what it holds.
async fn world(tenant: &Tenant) -> Vec<(String, Option<String>, Option<BTreeMap<String, ByteString>>)> {
    let all = tenant
        .secrets()
        .list(&kube::api::ListParams::default())
        .await
        .unwrap();
    all.into_iter()
        .map(|secret| (secret.name_any(), secret.uid(), secret.data))
        .collect()
}
