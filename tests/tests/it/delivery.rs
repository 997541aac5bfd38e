//! From the master Secret to the running agent: controller, API server and sidecar together.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Api;
use kube::api::DeleteParams;
use llmwarden_proto::names::{self, API_KEY};
use llmwarden_proto::status::{AccessStatus, DeliveryState};
use llmwarden_tests::installation::ENABLED_LABEL;
use llmwarden_tests::readers::Readers;
use llmwarden_tests::sidecar::Options;
use llmwarden_tests::{ControlPlane, Installation, Sidecar, Volume, eventually};
use serde_json::{Value, json};

use crate::sidecar::{assert_key, await_key, await_problem, await_withdrawn, start};
use crate::support::{SOON, Tenant, create, object, patch, value};

const KEY: &str = "sk-test-delivery";
/// After an outage both watches pause before they try again, for half a minute at most.
const AFTER_OUTAGE: Duration = Duration::from_mins(2);

/// The manifests of the example, for another access and namespace.
fn example(namespace: &str, access: &str) -> [Value; 2] {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/local/sidecar-role.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let text = text
        .replace("namespace: kagent", &format!("namespace: {namespace}"))
        .replace("agent-anthropic", access);
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    documents.try_into().unwrap()
}

/// Gives the sidecar's service account the rights of the example.
async fn grant(cluster: &ControlPlane, namespace: &str, access: &str) {
    let [role, binding] = example(namespace, access);
    let client = cluster.client();
    create(&Api::<Role>::namespaced(client.clone(), namespace), &object(role)).await;
    create(
        &Api::<RoleBinding>::namespaced(client, namespace),
        &object(binding),
    )
    .await;
}

/// How a sidecar that watches the companion of `access` is started, with the name of the example's service account.
async fn watching(cluster: &ControlPlane, namespace: &str, access: &str) -> Options {
    let account = format!("{access}-sidecar");
    let account = cluster.account(namespace, &account).await.unwrap();
    let companion = names::companion(access);
    Options {
        account: Some(account),
        ..Options::new([format!("{access}=kube:{namespace}/{companion}")])
    }
}

/// A sidecar that watches the companion of `access`, with the rights of the example and no others.
pub async fn start_watching(cluster: &ControlPlane, namespace: &str, access: &str) -> Sidecar {
    grant(cluster, namespace, access).await;
    let options = watching(cluster, namespace, access).await;
    Sidecar::start(options).await.unwrap()
}

async fn status(sidecar: &Sidecar) -> AccessStatus {
    sidecar.status().await.unwrap().accesses.remove("agent").unwrap()
}

fn read(sidecar: &Sidecar, key: &str) -> Readers {
    let url = sidecar.url("/v1/keys/agent/apiKey");
    Readers::start(sidecar.file("agent", API_KEY), &url, &sidecar.auth_header(), key).unwrap()
}

fn assert_no_bad_read(readers: &Readers) {
    let (file, endpoint) = readers.tallies();
    assert_eq!((file.bad(), endpoint.bad()), (0, 0), "{file:?} {endpoint:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_rotations_reach_running_readers_in_order_and_whole() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, &long(0)).await;
    // Before there is an access: the sidecar of an injected pod may come first.
    let sidecar = start_watching(&installation, &tenant.namespace, "agent").await;
    assert_eq!(status(&sidecar).await.state, DeliveryState::Pending);
    tenant.create_access("agent", json!({})).await;
    await_key(&sidecar, "agent", &long(0)).await;

    let readers = read(&sidecar, &long(0));
    readers.saw(&long(0), SOON).await.unwrap();
    for number in 1..=20 {
        readers.expect(&long(number));
        tenant.set_master(&long(number)).await;
        readers.saw(&long(number), SOON).await.unwrap();
    }
    assert_no_bad_read(&readers);
    let companion = tenant.secret("agent.llmwarden").await;
    let document: Value = serde_json::from_str(&value(&companion, names::LIVE_JSON)).unwrap();
    let status = status(&sidecar).await;
    assert_eq!(json!(status.version), document["version"]);
    assert_eq!(
        (status.file_version, status.problems),
        (status.version, Vec::new())
    );
}

/// A key whose halves can be told from another one's.
fn long(number: u32) -> String {
    format!("{KEY}-{number:02}-{}", format!("{number:02}").repeat(64))
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_api_server_is_down_the_last_good_key_is_served() {
    let installation = Installation::start(&[]).await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    tenant.create_access("agent", json!({})).await;
    let sidecar = start_watching(&installation, &tenant.namespace, "agent").await;
    await_key(&sidecar, "agent", KEY).await;
    let readers = read(&sidecar, KEY);
    readers.saw(KEY, SOON).await.unwrap();
    let options = watching(&installation, &tenant.namespace, "agent").await;
    let crashing = Sidecar::start(options).await.unwrap();
    await_key(&crashing, "agent", KEY).await;

    installation.stop_api_server();
    let crashed = crashing.restart().await.unwrap();
    assert_key(&crashed, "agent", KEY).await;
    await_problem(&crashed, "agent", "the API server can't be reached").await;
    assert_key(&crashed, "agent", KEY).await;
    let status = await_problem(&sidecar, "agent", "the API server can't be reached").await;
    assert_eq!(status.state, DeliveryState::Active);
    assert_key(&sidecar, "agent", KEY).await;
    let (code, _) = sidecar.probe("/readyz").await.unwrap();
    assert_eq!(code, 200);

    installation.start_api_server().await.unwrap();
    let next = format!("{KEY}-after");
    readers.expect(&next);
    tenant.set_master(&next).await;
    readers.saw(&next, AFTER_OUTAGE).await.unwrap();
    assert_no_bad_read(&readers);
    for sidecar in [&sidecar, &crashed] {
        eventually("the new key, and no problem", AFTER_OUTAGE, async || {
            let answer = sidecar.get("/v1/keys/agent/apiKey").await.unwrap();
            answer.body == next && self::status(sidecar).await.problems.is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_deleted_access_the_key_is_dropped() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    tenant.create_access("agent", json!({})).await;
    let sidecar = start_watching(&installation, &tenant.namespace, "agent").await;
    await_key(&sidecar, "agent", KEY).await;
    let before = status(&sidecar).await.version;

    let accesses = tenant.accesses();
    accesses.delete("agent", &DeleteParams::default()).await.unwrap();
    await_withdrawn(&sidecar, "agent", "the companion Secret was deleted").await;
    assert_eq!(tenant.secrets().get_opt("agent.llmwarden").await.unwrap(), None);

    tenant.create_access("agent", json!({})).await;
    await_key(&sidecar, "agent", KEY).await;
    assert!(status(&sidecar).await.version > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_access_that_is_no_longer_allowed_the_key_is_dropped_with_the_reason() {
    let installation = Installation::start(&["--denial-grace=0"]).await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    tenant.create_access("agent", json!({})).await;
    let sidecar = start_watching(&installation, &tenant.namespace, "agent").await;
    await_key(&sidecar, "agent", KEY).await;
    let label = async |value: Value| {
        let labels = json!({ "metadata": { "labels": { ENABLED_LABEL: value } } });
        patch(&tenant.namespaces(), &tenant.namespace, labels).await;
    };

    label(Value::Null).await;
    await_withdrawn(&sidecar, "agent", &tenant.namespace).await;
    let withdrawn = status(&sidecar).await;
    assert_eq!(withdrawn.state, DeliveryState::Withdrawn);
    let reason = withdrawn.reason.unwrap();
    assert!(reason.contains("ask the platform team"), "{reason}");

    label(json!("true")).await;
    await_key(&sidecar, "agent", KEY).await;
    assert!(status(&sidecar).await.version > withdrawn.version);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_companion_delivers_what_a_watched_one_does() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(true).await;
    tenant.create_master(json!({ "api-key": KEY })).await;
    let endpoint = json!({ "baseURL": "https://llm.example.com" });
    tenant.create_provider(json!({ "endpoint": endpoint })).await;
    let env = json!([
        { "name": "ANTHROPIC_API_KEY", "secretKey": "apiKey" },
        { "name": "CLAUDE_API_KEY", "secretKey": "claude-key" },
    ]);
    tenant
        .create_access("agent", json!({ "injection": { "env": env } }))
        .await;
    tenant.await_ready("agent").await;
    let watched = start_watching(&installation, &tenant.namespace, "agent").await;
    let mut volume = Volume::new().unwrap();
    let mounted = start(&[volume.source("agent")]).await;

    for key in [KEY.to_owned(), format!("{KEY}-next")] {
        tenant.set_master(&key).await;
        await_key(&watched, "agent", &key).await;
        mount(&mut volume, &tenant.secret("agent.llmwarden").await);
        await_key(&mounted, "agent", &key).await;

        let application = eventually("the key in the application's Secret", SOON, async || {
            let secret = tenant.secret("agent-key").await;
            (value(&secret, API_KEY) == key).then_some(secret)
        })
        .await;
        let applied = application.data.as_ref().unwrap().keys().map(String::as_str);
        let applied: Vec<_> = applied.collect();
        assert_eq!(applied, ["apiKey", "baseUrl", "claude-key"]);
        for sidecar in [&watched, &mounted] {
            assert_eq!(crate::sidecar::file_names(&sidecar.dir().join("agent")), applied);
            for name in &applied {
                let expected = value(&application, name);
                let file = std::fs::read_to_string(sidecar.file("agent", name)).unwrap();
                let answer = sidecar.get(&format!("/v1/keys/agent/{name}")).await.unwrap();
                assert_eq!((&file, &answer.body), (&expected, &expected), "{name}");
            }
        }
        let [watched, mounted] = [&watched, &mounted].map(async |sidecar| {
            let answer = sidecar.get("/v1/keys/agent").await.unwrap();
            (answer.body, status(sidecar).await)
        });
        assert_eq!(watched.await, mounted.await);
    }
}

/// Brings a Secret into the volume as the kubelet would.
fn mount(volume: &mut Volume, secret: &Secret) {
    let data = secret.data.as_ref().unwrap();
    let files: Vec<_> = data
        .iter()
        .map(|(name, ByteString(content))| (name.as_str(), content.as_slice()))
        .collect();
    volume.write(&files).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_read_the_companion_it_says_so_and_serves_nothing() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    tenant.create_access("agent", json!({})).await;
    tenant.await_ready("agent").await;
    // Rights on another companion are none on this one.
    grant(&installation, &tenant.namespace, "other").await;
    let options = watching(&installation, &tenant.namespace, "agent").await;
    let others = watching(&installation, &tenant.namespace, "other").await;
    for account in [options.account.clone(), others.account] {
        let options = Options {
            account,
            ..options.clone()
        };
        let sidecar = Sidecar::start(options).await.unwrap();
        let status = await_problem(&sidecar, "agent", "forbidden").await;
        assert_eq!((status.state, status.version), (DeliveryState::Pending, None));
        let answer = sidecar.get("/v1/keys/agent/apiKey").await.unwrap();
        assert_eq!(answer.status, 503);
        assert!(!sidecar.dir().join("agent").exists());
        let (code, text) = sidecar.probe("/startupz").await.unwrap();
        assert!(code == 503 && text.contains("forbidden"), "{code} {text}");
    }

    let sidecar = Sidecar::start(options).await.unwrap();
    await_problem(&sidecar, "agent", "forbidden").await;
    grant(&installation, &tenant.namespace, "agent").await;
    await_key(&sidecar, "agent", KEY).await;
    assert_eq!(status(&sidecar).await.problems, [""; 0]);
}
