//! Bad days of the API server, and other clients' bad manners: nothing is lost, nothing is deleted, and what should be comes
//! to be.

use std::collections::HashMap;

use futures::future::join_all;
use kube::ResourceExt;
use kube::api::DeleteParams;
use llmwarden_proto::access::Trigger;
use llmwarden_proto::names::API_KEY;
use llmwarden_proto::reason::Reason;
use llmwarden_tests::api_proxy::{Fate, Side};
use llmwarden_tests::installation::{ENABLED_LABEL, Exclusive, SYSTEM};
use llmwarden_tests::wait::same;
use llmwarden_tests::{ApiProxy, Installation, Process, Signal, eventually};
use serde_json::json;

use crate::conflicts::{delete_secret, owner};
use crate::support::{SOON, Tenant, patch, value};

const KEY: &str = "sk-test-faults-1";
const NEW_KEY: &str = "sk-test-faults-2";

/// A control plane, and controllers behind a proxy.
pub struct Bench {
    pub installation: Exclusive,
    pub proxy: ApiProxy,
    pub kubeconfig: std::path::PathBuf,
}

impl Bench {
    pub async fn new() -> Self {
        let installation = Installation::exclusive().await.unwrap();
        let proxy = ApiProxy::start(&installation).await.unwrap();
        let kubeconfig = proxy
            .kubeconfig(&installation, SYSTEM, "controller")
            .await
            .unwrap();
        Self {
            installation,
            proxy,
            kubeconfig,
        }
    }

    /// A controller behind the proxy that reconciles.
    pub async fn controller(&self, flags: &[&str]) -> Process {
        self.installation
            .start_through(&self.kubeconfig, "behind-proxy", flags)
            .await
            .unwrap()
    }

    /// A controller behind the proxy that has only been started.
    fn spawn(&self) -> Process {
        self.installation
            .spawn_through(&self.kubeconfig, "behind-proxy", &["--denial-grace=0"])
            .unwrap()
    }

    /// A tenant with the access `agent`, which is ready.
    pub async fn tenant(&self) -> Tenant {
        let tenant = Tenant::new(&self.installation, KEY).await;
        tenant.create_access("agent", json!({})).await;
        tenant.await_ready("agent").await;
        tenant
    }

    /// The requests of a namespace that came after the first `before` ones and would write.
    fn attempts(&self, tenant: &Tenant, before: usize) -> usize {
        let since = self.proxy.records().split_off(before);
        let of_it = since
            .iter()
            .filter(|record| record.call.is_write() && record.call.namespace == tenant.namespace);
        of_it.count()
    }
}

/// Waits until the history of a tenant's access has its first key and this many new ones.
async fn await_rotations(tenant: &Tenant, count: usize) {
    let mut expected = vec![Trigger::MasterChanged; count];
    expected.push(Trigger::Provisioned);
    eventually(&format!("{count} rotations"), SOON, async || {
        let history = tenant.access("agent").await.status.unwrap().history;
        let triggers: Vec<_> = history.iter().map(|entry| entry.trigger.clone()).collect();
        same(&triggers, &expected)
    })
    .await;
}

/// Waits until both Secrets hold a key.
pub async fn await_key(tenant: &Tenant, key: &str) {
    eventually(&format!("{key} in {}", tenant.namespace), SOON, async || {
        for name in ["agent-key", "agent.llmwarden"] {
            let secret = tenant
                .secrets()
                .get(name)
                .await
                .map_err(|error| error.to_string())?;
            let data = secret.data.unwrap_or_default();
            if data.get(API_KEY).is_none_or(|value| value.0 != key.as_bytes()) {
                return Err(format!("another key in {name}"));
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn until_everything_is_listed_nothing_is_written() {
    let bench = Bench::new().await;
    let controller = bench.controller(&["--denial-grace=0"]).await;
    let (rotated, renamed, denied) = (bench.tenant().await, bench.tenant().await, bench.tenant().await);
    controller.kill();
    // All that makes a controller write, delete and withdraw.
    rotated.set_master(NEW_KEY).await;
    renamed
        .patch_access("agent", json!({ "spec": { "secretName": "renamed" } }))
        .await;
    let unlabelled = json!({ "metadata": { "labels": { ENABLED_LABEL: null } } });
    patch(&denied.namespaces(), &denied.namespace, unlabelled).await;

    let mut attempts = 0;
    for (resource, code) in [
        ("llmproviders", 500),
        ("namespaces", 403),
        ("llmaccesses", 503),
        ("secrets", 500),
    ] {
        let before = bench.proxy.records().len();
        bench.proxy.rule(move |call| {
            if call.verb == "list" && call.resource == resource {
                Fate::Refuse(code)
            } else {
                Fate::Forward
            }
        });
        let controller = bench.spawn();
        eventually(&format!("attempts to list {resource}"), SOON, async || {
            let since = bench.proxy.records().split_off(before);
            let refused = since.iter().filter(|record| record.status == Some(code));
            refused.count() >= 3
        })
        .await;
        assert!(controller.exited().is_none(), "{resource}");
        let since = bench.proxy.records().split_off(before);
        let written: Vec<_> = since.iter().filter(|record| record.call.is_write()).collect();
        assert!(written.is_empty(), "{resource}: {written:?}");
        attempts += since.len();
        controller.kill();
    }
    eprintln!("{attempts} requests while lists failed, no write");
    bench.proxy.no_rule();
    let _controller = bench.controller(&["--denial-grace=0"]).await;
    await_key(&rotated, NEW_KEY).await;
    denied.await_refusal("agent", Reason::NamespaceNotAllowed).await;
    eventually("the end of the old name", SOON, async || {
        renamed.secret_names().await == ["agent.llmwarden", "renamed"]
            && denied.secret_names().await == ["agent.llmwarden"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_fail_are_made_again_and_not_too_often() {
    let bench = Bench::new().await;
    let _controller = bench.controller(&[]).await;
    let fates = [
        Fate::Refuse(409),
        Fate::Refuse(500),
        Fate::Refuse(503),
        Fate::RefuseFor(429, 1),
        Fate::HangUp,
        Fate::Refuse(403),
    ];
    let tenants = join_all(fates.iter().map(|_| bench.tenant())).await;
    // The first two writes of each Secret, and of each status.
    let mut left: HashMap<(String, String), usize> = HashMap::new();
    let by_namespace: HashMap<_, _> = tenants
        .iter()
        .map(|tenant| tenant.namespace.clone())
        .zip(fates.clone())
        .collect();
    bench.proxy.rule(move |call| {
        let Some(fate) = by_namespace.get(&call.namespace) else {
            return Fate::Forward;
        };
        if let Fate::Refuse(403) = fate {
            return if call.resource == "secrets" {
                fate.clone()
            } else {
                Fate::Forward
            };
        }
        let counted = call.resource != "events" && call.is_write();
        let count = left
            .entry((call.namespace.clone(), call.resource.clone() + &call.name))
            .or_insert(2);
        if !counted || *count == 0 {
            return Fate::Forward;
        }
        *count -= 1;
        fate.clone()
    });
    let before = bench.proxy.records().len();
    join_all(tenants.iter().map(|tenant| tenant.set_master(NEW_KEY))).await;
    for (tenant, fate) in tenants.iter().zip(&fates) {
        if let Fate::Refuse(403) = fate {
            // What the API server does not take now, it may take later: it is said, and tried again when something changes.
            tenant.await_refusal("agent", Reason::WriteRefused).await;
            tenant.touch("agent").await;
            assert_eq!(tenant.occurrences("agent", Reason::WriteRefused).await, 1);
            assert_eq!(value(&tenant.secret("agent-key").await, API_KEY), KEY);
            bench.proxy.no_rule();
            tenant.touch("agent").await;
        }
        await_key(tenant, NEW_KEY).await;
        tenant.await_ready("agent").await;
        eprintln!("{fate:?}: {} write requests", bench.attempts(tenant, before));
        // Three writes and an event; two failures of each; and what other passes tried meanwhile, where a refusal of one
        // Secret does not keep the other from being tried.
        assert!(bench.attempts(tenant, before) <= 40, "{fate:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_restarts_or_throttles_only_delays() {
    let bench = Bench::new().await;
    let _controller = bench.controller(&[]).await;
    let tenants = join_all((0..30).map(|_| bench.tenant())).await;
    let mut stop = bench
        .proxy
        .stop_at(40, Side::After, |call| call.resource == "secrets");
    join_all(tenants.iter().map(|tenant| tenant.set_master(NEW_KEY))).await;
    stop.reached().await.unwrap();
    bench.installation.stop_api_server();
    drop(stop);
    bench.installation.start_api_server().await.unwrap();
    for tenant in &tenants {
        await_rotations(tenant, 1).await;
        await_key(tenant, NEW_KEY).await;
    }

    let mut number = 0;
    let before = bench.proxy.records().len();
    bench.proxy.rule(move |_| {
        number += 1;
        if number % 3 == 0 {
            Fate::Forward
        } else {
            Fate::RefuseFor(429, 1)
        }
    });
    join_all(tenants.iter().map(|tenant| tenant.set_master(KEY))).await;
    for tenant in &tenants {
        await_key(tenant, KEY).await;
    }
    bench.proxy.no_rule();
    for tenant in &tenants {
        await_rotations(tenant, 2).await;
    }
    let requests = bench.proxy.records().len() - before;
    eprintln!("{requests} requests for {} accesses", tenants.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_no_watch_is_open_is_seen_afterwards() {
    let bench = Bench::new().await;
    let _controller = bench.controller(&["--denial-grace=0"]).await;
    for gap in [
        Fate::HangUp,
        Fate::Refuse(410),
        Fate::WatchError(410),
        Fate::Refuse(500),
    ] {
        let (rotated, renamed, deleted, edited) = (
            bench.tenant().await,
            bench.tenant().await,
            bench.tenant().await,
            bench.tenant().await,
        );
        let fate = gap.clone();
        // Lists too: otherwise an expired watch would be made good by them.
        bench.proxy.rule(move |call| match call.verb {
            "watch" => fate.clone(),
            "list" => Fate::Refuse(503),
            _ => Fate::Forward,
        });
        bench.proxy.cut_watches();
        rotated.set_master(NEW_KEY).await;
        renamed
            .patch_access("agent", json!({ "spec": { "secretName": "renamed" } }))
            .await;
        delete_secret(&edited, "agent.llmwarden").await;
        patch(&edited.secrets(), "agent-key", json!({ "data": null })).await;
        deleted
            .accesses()
            .delete("agent", &DeleteParams::default())
            .await
            .unwrap();
        deleted
            .create_access("agent", json!({ "secretName": "again" }))
            .await;
        bench.proxy.no_rule();

        await_key(&rotated, NEW_KEY).await;
        await_key(&edited, KEY).await;
        for (tenant, name) in [(&renamed, "renamed"), (&deleted, "again")] {
            eventually(&format!("{name} alone, after {gap:?}"), SOON, async || {
                let mut names = tenant.secret_names().await;
                names.retain(|name| name != "agent.llmwarden");
                same(&names.as_slice(), &[name.to_owned()].as_slice())
            })
            .await;
            tenant.await_ready("agent").await;
            assert_eq!(owner(&tenant.secret(name).await), Some("agent"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_never_comes_holds_nobody_up_for_ever() {
    let bench = Bench::new().await;
    let controller = bench.controller(&[]).await;
    let (held, other) = (bench.tenant().await, bench.tenant().await);
    let namespace = held.namespace.clone();
    let mut stop = bench
        .proxy
        .stop_at(1, Side::Before, move |call| call.namespace == namespace);
    held.set_master(NEW_KEY).await;
    stop.reached().await.unwrap();
    other.set_master(NEW_KEY).await;
    await_key(&other, NEW_KEY).await;
    await_key(&held, NEW_KEY).await;
    await_rotations(&held, 1).await;

    // Told to stop in the middle of one, it ends in time.
    let namespace = held.namespace.clone();
    let mut stop = bench
        .proxy
        .stop_at(1, Side::Before, move |call| call.namespace == namespace);
    held.set_master(KEY).await;
    stop.reached().await.unwrap();
    controller.signal(Signal::SIGTERM).unwrap();
    assert!(controller.wait(SOON).await.unwrap().success());
    let _controller = bench.controller(&[]).await;
    await_key(&held, KEY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_client_that_edits_all_the_time_is_outlasted() {
    let bench = Bench::new().await;
    let _controller = bench.controller(&[]).await;
    let tenant = bench.tenant().await;
    let good = [
        tenant.secret("agent-key").await,
        tenant.secret("agent.llmwarden").await,
    ];
    let before = bench.proxy.records().len();
    // Two hundred edits each of a Secret, of the companion and of the access, and new keys meanwhile.
    let edits = 200;
    let storm = async |secret: &str, change: fn(u32) -> serde_json::Value| {
        for number in 0..edits {
            // It may be deleted and made again meanwhile.
            let _ = tenant
                .secrets()
                .patch(
                    secret,
                    &kube::api::PatchParams::default(),
                    &kube::api::Patch::Merge(change(number)),
                )
                .await;
        }
    };
    let keys = async {
        for number in 0..20 {
            tenant.set_master(&format!("sk-test-storm-{number}")).await;
        }
    };
    let accesses = async {
        for number in 0..edits {
            let note = json!({ "metadata": { "annotations": { "note": number.to_string() } } });
            tenant.patch_access("agent", note).await;
        }
    };
    tokio::join!(
        storm(
            "agent-key",
            |n| json!({ "stringData": { "apiKey": format!("theirs-{n}") } })
        ),
        storm(
            "agent.llmwarden",
            |n| json!({ "metadata": { "annotations": { "note": n.to_string() } } })
        ),
        keys,
        accesses
    );
    tenant.set_master(KEY).await;
    await_key(&tenant, KEY).await;
    tenant.await_ready("agent").await;
    let after = [
        tenant.secret("agent-key").await,
        tenant.secret("agent.llmwarden").await,
    ];
    for (good, after) in good.iter().zip(&after) {
        assert_eq!(good.uid(), after.uid());
        assert_eq!(good.labels(), after.labels());
    }
    let attempts = bench.attempts(&tenant, before);
    eprintln!("{attempts} write requests against {} edits", 3 * edits + 21);
    // A restored Secret, a status and an event for each edit would be bad manners, but bounded.
    assert!(attempts < 3 * 3 * usize::try_from(edits).unwrap(), "{attempts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_an_access_that_goes_to_and_fro_are_few_objects() {
    let bench = Bench::new().await;
    let _controller = bench.controller(&[]).await;
    let tenant = bench.tenant().await;
    let before = bench.proxy.records().len();
    let told = || {
        let since = bench.proxy.records().split_off(before);
        since
            .iter()
            .filter(|record| {
                record.wrote()
                    && record.call.resource == "events"
                    && record.call.namespace == tenant.namespace
            })
            .count()
    };
    let mut number = 0;
    while told() < 300 {
        for allowed in [None, Some("true")] {
            let labels = json!({ "metadata": { "labels": { ENABLED_LABEL: allowed } } });
            patch(&tenant.namespaces(), &tenant.namespace, labels).await;
            number += 1;
            tenant.set_master(&format!("sk-test-{number}")).await;
        }
    }
    let events = kube::Api::<k8s_openapi::api::events::v1::Event>::namespaced(
        bench.installation.client(),
        &tenant.namespace,
    );
    let events = events.list(&kube::api::ListParams::default()).await.unwrap();
    eprintln!(
        "{number} changes, {} events told in {} objects",
        told(),
        events.items.len()
    );
    // Six for each reason: five that differ in their words, and one for the rest.
    assert!(events.items.len() <= 6 * 3, "{}", events.items.len());
}
