//! Agents of kagent's shape that are nothing but the providers' own SDKs, behind the proxy: a hundred rotations under load,
//! each with the old key dead before the new one is there, and a hunt for the keys in all that the agent can get at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::config::AuthInfo;
use kube::{Api, Client};
use llmwarden_proto::access::PodCount;
use llmwarden_proto::names::{API_KEY, BASE_URL, INJECT_ANNOTATION, SIDECAR, companion, proxy_url};
use llmwarden_proto::profile::{ProviderKind, base_path};
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::fake_provider::{FakeProvider, Pace};
use llmwarden_tests::image::PROGRAM;
use llmwarden_tests::installation::SYSTEM;
use llmwarden_tests::wait::same;
use llmwarden_tests::{eventually, node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{ACCESS, AgentPod, Cluster, SOON, USERS, container, figure, restrict};
use crate::tenant::{Tenant, create, merge, object, value};

const ROTATIONS: usize = 100;
/// What kagent calls the agent's container.
const KAGENT: &str = "kagent";
/// What applications reference.
const SECRET: &str = "agent-key";
/// Every live key begins with it, and nothing else does.
const LIVE: &str = "sk-live-e2e-";

/// Where a process in the agent's container can look, each with the placeholder in it. What the kernel makes up in /proc and
/// /sys is not files; of the endpoint everything is asked that hands something out.
const HUNTS: [(&str, &str); 3] = [
    (
        "the environments and command lines",
        "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline",
    ),
    (
        "the files, of all mounts too",
        r#"find / \( -path /proc -o -path /sys \) -prune -o -type f -print | while read -r file; do echo "$file"; cat "$file"; done"#,
    ),
    (
        "the sidecar's ports",
        r#"for path in v1/keys v1/keys/agent v1/keys/agent/apiKey; do
            wget -q -O - --header "$(cat /var/run/llmwarden/auth-header)" http://127.0.0.1:9470/$path
        done
        for path in status metrics; do wget -q -O - http://127.0.0.1:9471/$path; done"#,
    ),
];

fn key(sdk: &str, rotation: usize) -> String {
    format!("{LIVE}{sdk}-{rotation:04}")
}

/// A Deployment as kagent makes it for an agent, which is the program here.
fn deployment(sdk: &str, variable: &str) -> Value {
    let labels = json!({ "app": "kagent", "kagent": "reasoning-agent" });
    let mut kagent = container(KAGENT, USERS[0], "");
    let reference = json!({ "name": SECRET, "key": API_KEY });
    let program = json!({
        "image": PROGRAM,
        "command": null,
        "args": [sdk, "load"],
        "env": [{ "name": variable, "valueFrom": { "secretKeyRef": reference } }],
    });
    merge(&mut kagent, program);
    json!({
        "metadata": { "name": "reasoning-agent" },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels, "annotations": { INJECT_ANNOTATION: ACCESS } },
                "spec": {
                    "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
                    "containers": [kagent],
                },
            },
        },
    })
}

/// What a process has written to its memory and not left zero. The machine's root reads it, who may read more than the agent.
fn memory(pid: u32) -> String {
    const PAGE: usize = 4096;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let file = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut written = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw-")) {
        let (start, rest) = line.split_once('-').unwrap();
        let [start, end] =
            [start, rest.split(' ').next().unwrap()].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut region = vec![0; usize::try_from(end - start).unwrap()];
        // It may have been unmapped since.
        if file.read_exact_at(&mut region, start).is_ok() {
            let pages = region.chunks(PAGE).filter(|page| **page != [0; PAGE]);
            written.extend(pages.flatten());
        }
    }
    String::from_utf8_lossy(&written).into_owned()
}

/// Looks for live keys in all that the agent can get at, in ways that find the placeholder.
async fn hunt(pod: &AgentPod<'_>, tenant: &Tenant, placeholder: &str) {
    for (place, script) in HUNTS {
        let found = pod.run_in(KAGENT, script).await;
        assert!(found.contains(placeholder), "no placeholder in {place}");
        assert!(!found.contains(LIVE), "a live key in {place}");
    }
    // A live key would be found there: it is in the sidecar's.
    let agent = memory(pod.pid(KAGENT).await);
    assert!(
        agent.contains(placeholder),
        "no placeholder in the agent's memory"
    );
    assert!(!agent.contains(LIVE), "a live key in the agent's memory");
    assert!(
        memory(pod.pid(SIDECAR).await).contains(LIVE),
        "no live key anywhere"
    );

    let token = "cat /var/run/secrets/kubernetes.io/serviceaccount/token";
    let token = pod.run_in(KAGENT, token).await;
    let mut config = pod.cluster.installation.config();
    config.auth_info = AuthInfo {
        token: Some(token.into()),
        ..AuthInfo::default()
    };
    let account = Client::try_from(config).unwrap();
    let review = create(&Api::all(account.clone()), &SelfSubjectReview::default()).await;
    let user = review.status.unwrap().user_info.unwrap().username;
    let namespace = &tenant.namespace;
    assert_eq!(user, Some(format!("system:serviceaccount:{namespace}:default")));
    let (own, pod) = (format!("/api/v1/namespaces/{namespace}"), &pod.name);
    for path in [
        format!("{own}/secrets"),
        format!("{own}/secrets/{SECRET}"),
        format!("{own}/secrets/{}", companion(ACCESS)),
        format!("{own}/pods/{pod}"),
        format!("{own}/pods/{pod}/log?container={SIDECAR}"),
        format!("{own}/pods/{pod}/exec?container={SIDECAR}&command=/llmwarden-sidecar"),
        format!("/api/v1/namespaces/{SYSTEM}/secrets/{}", tenant.master),
    ] {
        let request = http::Request::get(&path).body(Vec::new()).unwrap();
        let answer = account.request_text(request).await;
        let forbidden = matches!(&answer, Err(kube::Error::Api(status)) if status.code == 403);
        assert!(forbidden, "{path}: {answer:?}");
    }
}

/// What the access promises of proxy mode is so: nothing is lacking, and file and endpoint lead to the proxy.
async fn assert_promises(pod: &AgentPod<'_>, tenant: &Tenant, sidecar: &str, provider: &FakeProvider) {
    for (kind, reason) in [
        (ConditionType::LiveRotation, Reason::ThroughProxy),
        (ConditionType::ModelsEnforced, Reason::EnforcedByProxy),
        (ConditionType::InjectionReady, Reason::PodsInjected),
    ] {
        tenant.await_condition(ACCESS, kind, "True", reason).await;
    }
    let told = eventually("what the sidecar said, in the status", SOON, async || {
        let status = tenant.access(ACCESS).await.status.unwrap();
        let pods = status.rotation.as_ref().map(|rotation| rotation.pods);
        let all = PodCount {
            delivered: 1,
            total: 1,
        };
        same(&pods, &Some(all)).map(|()| status)
    })
    .await;
    let outdated = ConditionType::SidecarOutdated.as_str();
    let said = told
        .conditions
        .iter()
        .find(|condition| condition.type_ == outdated);
    assert!(said.is_none(), "{said:?}");
    let own = node::sidecar_status(sidecar).await.unwrap();
    let own = &own.accesses[ACCESS];
    assert!(own.lacking.is_empty() && own.problems.is_empty(), "{own:?}");

    let url = proxy_url(ACCESS, base_path(&provider.base_url()));
    let file = pod.delivery_dir().await.join(ACCESS).join(BASE_URL);
    assert_eq!(fs::read_to_string(file).unwrap(), url);
    let ask = r#"wget -q -O - --header "$(cat /var/run/llmwarden/auth-header)" http://127.0.0.1:9470/v1/keys/agent/baseUrl"#;
    assert_eq!(pod.run_in(KAGENT, ask).await, url);
}

/// A namespace with an access in proxy mode, to this provider.
async fn tenant_of(cluster: &Cluster, provider: &FakeProvider, key: &str, model: &str) -> Tenant {
    let tenant = Tenant::names(&cluster.installation);
    tenant.create_namespace(true).await;
    restrict(&tenant).await;
    tenant.create_master(json!({ "api-key": key })).await;
    let authority = fs::read_to_string(provider.authority().unwrap()).unwrap();
    let endpoint = json!({ "baseURL": provider.base_url(), "caBundle": authority });
    let kind = provider.kind();
    tenant
        .create_provider(json!({ "provider": kind, "allowedModels": [model], "endpoint": endpoint }))
        .await;
    let injection = json!({ "env": null, "proxy": {} });
    tenant
        .create_access(ACCESS, json!({ "models": [model], "injection": injection }))
        .await;
    tenant.await_ready(ACCESS).await;
    tenant
}

/// What the program says of itself at its end, from the file that the kubelet keeps.
fn verdict(log: &str) -> Option<Value> {
    let (_, line) = log.lines().last()?.split_once(" F ")?;
    let said: Value = serde_json::from_str(line).ok()?;
    said["passed"].is_boolean().then_some(said)
}

async fn rotate_under(kind: ProviderKind, sdk: &str, model: &str) {
    let cluster = Cluster::shared().await;
    // Where pods reach the node.
    let address = node::address().unwrap();
    let name = address.to_string();
    let provider = FakeProvider::listen(kind, (address, 0).into(), Some(&[name.as_str()]))
        .await
        .unwrap();
    // Long enough for streams to be running whenever a key dies.
    provider.set_pace(Pace {
        every: Duration::from_millis(50),
        ..Pace::default()
    });
    provider.allow([key(sdk, 0).as_str()]);

    let tenant = tenant_of(&cluster, &provider, &key(sdk, 0), model).await;
    let first = tenant.secret(SECRET).await;
    let placeholder = value(&first, API_KEY);

    let client = cluster.installation.client();
    let deployments = Api::<Deployment>::namespaced(client.clone(), &tenant.namespace);
    let made = create(&deployments, &object(deployment(sdk, kind.sdk_env().key))).await;
    let pods = Api::<Pod>::namespaced(client, &tenant.namespace);
    let all = async || pods.list(&ListParams::default()).await.unwrap().items;
    let pod = eventually("a pod of the agent's", SOON, async || all().await.pop()).await;
    let pod = AgentPod::of(&cluster, &tenant, &pod);
    pod.await_ready().await;
    let before = pod.get().await;
    let sidecar = before.status.as_ref().unwrap().pod_ip.clone().unwrap();

    let mut version = 0;
    let mut times = Vec::new();
    for rotation in 0..=ROTATIONS {
        let key = |rotation| key(sdk, rotation);
        let begun = Instant::now();
        if rotation > 0 {
            // The one before is dead from here on: until this one comes, requests wait in the proxy.
            provider.allow([key(rotation).as_str()]);
            tenant.set_master(&key(rotation)).await;
        }
        version = eventually("the new version in the sidecar", SOON, async || {
            let delivered = node::sidecar_status(&sidecar).await?.accesses.remove(ACCESS);
            let delivered = delivered.and_then(|access| access.version);
            delivered
                .filter(|delivered| *delivered > version)
                .ok_or_else(|| anyhow::anyhow!("{delivered:?}"))
        })
        .await;
        times.push(begun.elapsed());
        eventually("an answer to the new key", SOON, async || {
            provider.has_seen(|seen| seen.key == Some(rotation) && seen.status == Some(200))
        })
        .await;
        let now = tenant.secret(SECRET).await;
        assert_eq!((&now.data, &now.metadata), (&first.data, &first.metadata));
    }
    assert_promises(&pod, &tenant, &sidecar, &provider).await;
    hunt(&pod, &tenant, &placeholder).await;

    // It is still the same pod, and nothing in it was restarted.
    let after = all().await;
    assert_eq!(after.len(), 1);
    assert_eq!(
        (&after[0].spec, &after[0].metadata.uid),
        (&before.spec, &before.metadata.uid)
    );
    assert_eq!(deployments.get("reasoning-agent").await.unwrap().spec, made.spec);
    for container in [SIDECAR, KAGENT] {
        assert_eq!(pod.container(container).await.restart_count, 0, "{container}");
    }
    let agent = Pid::from_raw(pod.pid(KAGENT).await.cast_signed());
    let log = node::logs(&before, KAGENT).join("0.log");
    kill(agent, Signal::SIGTERM).unwrap();
    let said = eventually("the agent's verdict", SOON, async || {
        let log = fs::read_to_string(&log)?;
        verdict(&log).ok_or_else(|| anyhow::anyhow!(log))
    })
    .await;
    deployments
        .delete("reasoning-agent", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(
        said["passed"],
        true,
        "{}",
        fs::read_to_string(&log).unwrap_or_default()
    );

    let mut answers = BTreeMap::<_, usize>::new();
    for seen in provider.seen() {
        *answers.entry(seen.status.unwrap_or_default()).or_default() += 1;
    }
    let times = &mut times[1..];
    times.sort();
    figure(&format!(
        "{sdk} behind the proxy: {ROTATIONS} rotations ({:.2?} to a sidecar in the median, {:.2?} at most), {}, 0 failed; \
         the provider's answers by status: {answers:?}",
        times[times.len() / 2],
        times[times.len() - 1],
        said["said"].as_str().unwrap(),
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_on_openais_sdk_never_notices_a_rotation_and_never_has_the_key() {
    rotate_under(ProviderKind::Openai, "openai", "gpt-4o").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_on_anthropics_sdk_never_notices_a_rotation_and_never_has_the_key() {
    rotate_under(ProviderKind::Anthropic, "anthropic", "claude-opus-5").await;
}
