//! Once everything is as it should be, nothing is written: not over a restart, nor when every watch starts over.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::names::REFRESH_ANNOTATION;
use llmwarden_proto::reason::Reason;
use llmwarden_tests::api_proxy::{Call, Fate};
use llmwarden_tests::installation::SYSTEM;
use llmwarden_tests::sidecar::Options;
use llmwarden_tests::wait::same;
use llmwarden_tests::{ApiProxy, Installation, Process, Sidecar, Signal, eventually};
use serde_json::json;

use crate::conflicts::create_foreign;
use crate::refresh::injected;
use crate::support::{SOON, Tenant, create};

/// Requests of a user that would change something, as the API server itself counts them; without Leases.
async fn writes_counted(client: &Client) -> BTreeMap<String, u64> {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = client.request_text(request).await.unwrap();
    text.lines()
        .filter(|line| line.starts_with("apiserver_request_total{"))
        .filter(|line| {
            ["POST", "PUT", "PATCH", "DELETE", "APPLY"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
        })
        // What the controller could write; others, such as the garbage collector, go on with theirs.
        .filter(|line| {
            ["llmaccesses", "llmproviders", "secrets", "events", "pods"]
                .iter()
                .any(|kind| line.contains(&format!("resource=\"{kind}\"")))
        })
        .filter_map(|line| {
            let (series, count) = line.rsplit_once(' ')?;
            Some((series.to_owned(), count.parse().ok()?))
        })
        .collect()
}

/// One access in each state that a controller can leave it in.
async fn settle(installation: &Installation) -> Vec<Tenant> {
    let tenant = async || Tenant::new(installation, "sk-test-settled").await;
    let ready = tenant().await;
    for number in 0..10 {
        ready.create_access(&format!("agent-{number}"), json!({})).await;
    }
    let proxied = tenant().await;
    let proxy = json!({ "injection": { "proxy": {} }, "rotation": { "interval": "12h" } });
    proxied.create_access("agent", proxy).await;
    let conflict = tenant().await;
    create_foreign(&conflict, "agent-key").await;
    conflict.create_access("agent", json!({})).await;
    let denied = tenant().await;
    denied
        .create_access("agent", json!({ "models": ["claude-unlisted"] }))
        .await;
    let missing = tenant().await;
    missing
        .create_access("agent", json!({ "providerRef": { "name": "nobody" } }))
        .await;

    for number in 0..10 {
        ready.await_ready(&format!("agent-{number}")).await;
    }
    let pods: Api<Pod> = Api::namespaced(installation.client(), &ready.namespace);
    create(&pods, &injected("pod", &["agent-1", "agent-2"])).await;
    eventually("a pod that is refreshed", SOON, async || {
        let pod = pods.get("pod").await.unwrap();
        pod.annotations().contains_key(REFRESH_ANNOTATION)
    })
    .await;
    eventually("the counts of pods", SOON, async || {
        let status = |access: LLMAccess| access.status.unwrap_or_default().rotation.is_some();
        status(ready.access("agent-1").await) && status(ready.access("agent-2").await)
    })
    .await;
    proxied.await_ready("agent").await;
    conflict.await_refusal("agent", Reason::SecretConflict).await;
    denied.await_refusal("agent", Reason::ModelNotAllowed).await;
    missing.await_refusal("agent", Reason::ProviderMissing).await;
    let all = vec![ready, proxied, conflict, denied, missing];
    for tenant in &all {
        await_provider(tenant).await;
    }
    all
}

/// Waits until a provider's status counts its accesses.
async fn await_provider(tenant: &Tenant) {
    let named = |access: &LLMAccess| access.spec.provider_ref.name == tenant.provider;
    eventually("the provider's count", SOON, async || {
        let accesses = tenant
            .accesses()
            .list(&kube::api::ListParams::default())
            .await
            .unwrap();
        let expected = accesses.iter().filter(|access| named(access)).count();
        let status = tenant.providers().get(&tenant.provider).await.unwrap().status;
        let status = status.unwrap_or_default();
        status.access_count == i64::try_from(expected).unwrap() && !status.conditions.is_empty()
    })
    .await;
}

/// How many watches a controller has that serves no pods.
const WATCHES: usize = 7;

/// Makes every watch of the controller behind the proxy list anew, and go on from there.
async fn relist(proxy: &ApiProxy) {
    let before = proxy.records().len();
    proxy.rule(|call| match call.verb {
        "watch" => Fate::WatchError(410),
        _ => Fate::Forward,
    });
    proxy.cut_watches();
    await_lists(proxy, before, "list").await;
    let before = proxy.records().len();
    proxy.no_rule();
    await_lists(proxy, before, "watch").await;
}

/// Waits until there were as many lists, or watches, as a controller needs.
async fn await_lists(proxy: &ApiProxy, before: usize, verb: &str) {
    eventually(&format!("each {verb}"), SOON, async || {
        let since = proxy.records().split_off(before);
        let done = since
            .iter()
            .filter(|record| record.call.verb == verb && record.status == Some(200));
        let count = done.count();
        if count >= WATCHES {
            Ok(())
        } else {
            Err(format!("{count} of {WATCHES}"))
        }
    })
    .await;
}

type Rule = fn(&Call) -> Fate;

async fn start(installation: &Installation, proxy: &ApiProxy, account: &str) -> Process {
    let kubeconfig = proxy.kubeconfig(installation, SYSTEM, account).await.unwrap();
    installation
        .start_through(&kubeconfig, "settled", &["--denial-grace=0"])
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_when_nothing_changes() {
    let installation = Installation::start(&["--denial-grace=0"]).await.unwrap();
    let tenants = settle(&installation).await;
    installation.stop_controller(Signal::SIGTERM).await.unwrap();
    let counted = writes_counted(&installation.client()).await;
    assert!(!counted.is_empty());

    let proxy = ApiProxy::start(&installation).await.unwrap();
    let mut touches = 0;
    for _ in 0..3 {
        let seen = proxy.records().len();
        let controller = start(&installation, &proxy, "settled").await;
        await_lists(&proxy, seen, "watch").await;
        relist(&proxy).await;
        // Passes begin in the order of their causes: when this one's is over, those of the lists are too.
        tenants[0].touch("agent-0").await;
        touches += 2;
        let touch = format!(
            "update llmaccesses/status {}/agent-0: Some(200)",
            tenants[0].namespace
        );
        // The test may see a write before the proxy has noted the answer to it.
        eventually("the writes, and no others", SOON, async || {
            let writes: Vec<_> = proxy.writes().iter().map(ToString::to_string).collect();
            same(&writes, &vec![touch.clone(); touches])
        })
        .await;
        controller.signal(Signal::SIGTERM).unwrap();
        assert!(controller.wait(SOON).await.unwrap().success());
    }
    let after = writes_counted(&installation.client()).await;
    let grown = after
        .iter()
        .filter(|(series, count)| counted.get(*series) != Some(count));
    let grown: Vec<_> = grown
        .map(|(series, count)| (series, count - counted.get(series).unwrap_or(&0)))
        .collect();
    // The test's patches, and the status that follows each.
    assert_eq!(grown.iter().map(|(_, by)| by).sum::<u64>(), 4 * 3, "{grown:?}");
    assert!(
        grown
            .iter()
            .all(|(series, _)| series.contains("resource=\"llmaccesses\"")),
        "{grown:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_never_writes_and_takes_up_a_watch_that_is_gone() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-gone-0").await;
    tenant.create_access("agent", json!({})).await;
    tenant.await_ready("agent").await;
    let proxy = ApiProxy::start(&installation).await.unwrap();
    let source = format!("agent=kube:{}/agent.llmwarden", tenant.namespace);
    let sidecar = Sidecar::start(Options {
        account: Some(proxy.account(&installation, SYSTEM, "sidecar").await.unwrap()),
        ..Options::new([source])
    })
    .await
    .unwrap();
    let key = async || std::fs::read_to_string(sidecar.file("agent", "apiKey")).unwrap_or_default();
    let await_key = async |wanted: &str| {
        eventually(&format!("{wanted} in the file"), SOON, async || {
            let key = key().await;
            if key == wanted { Ok(()) } else { Err(key) }
        })
        .await;
    };
    await_key("sk-test-gone-0").await;

    let rules: [(&str, Rule); 5] = [
        ("a list and a watch that expired", |call| match call.verb {
            "watch" => Fate::WatchError(410),
            _ => Fate::Forward,
        }),
        ("a watch that is refused as expired", |call| match call.verb {
            "watch" => Fate::Refuse(410),
            _ => Fate::Forward,
        }),
        ("a list that is refused", |call| match call.verb {
            "list" => Fate::Refuse(410),
            _ => Fate::WatchError(410),
        }),
        ("an API server that is too busy", |_| Fate::RefuseFor(429, 1)),
        ("connections that end", |_| Fate::HangUp),
    ];
    for (number, (what, rule)) in rules.into_iter().enumerate() {
        let before = proxy.records().len();
        proxy.rule(rule);
        proxy.cut_watches();
        eventually(&format!("{what}: three requests"), SOON, async || {
            proxy.records().len() >= before + 3
        })
        .await;
        // The last good key, while nobody can say whether there is a newer one.
        assert_eq!(sidecar.probe("/readyz").await.unwrap().0, 200, "{what}");
        let next = format!("sk-test-gone-{}", number + 1);
        tenant.set_master(&next).await;
        proxy.no_rule();
        await_key(&next).await;
    }
    assert!(proxy.records().iter().all(|record| !record.call.is_write()));
}
