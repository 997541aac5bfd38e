//! Who asks for an access is known, to the audit log as well, and is told at once what is in the way of it. The webhook answers,
//! and where it does not, a policy sees to it that nobody is named who did not ask.

use kube::api::{Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::names::{REQUESTED_BY_ANNOTATION, ROTATE_ANNOTATION, ROTATE_NOW};
use llmwarden_proto::reason::Reason;
use llmwarden_tests::wait::same;
use llmwarden_tests::{Installation, eventually};
use serde_json::{Value, json};

use crate::injection;
use crate::support::{SOON, Tenant, merge, object};

const ANN: &str = "ann@example.com";
const BOB: &str = "bob@example.com";

/// Somebody with every right.
fn user(installation: &Installation, name: &str) -> Client {
    let mut config = installation.config();
    config.auth_info.impersonate = Some(name.to_owned());
    config.auth_info.impersonate_groups = Some(vec!["system:masters".to_owned()]);
    Client::try_from(config).unwrap()
}

fn named(access: &LLMAccess) -> Option<&str> {
    let name = access.annotations().get(REQUESTED_BY_ANNOTATION);
    name.map(String::as_str)
}

fn naming(name: Option<&str>) -> Value {
    json!({ "metadata": { "annotations": { REQUESTED_BY_ANNOTATION: name } } })
}

fn env(key: &str) -> Value {
    json!({ "spec": { "injection": { "env": [{ "name": "ANTHROPIC_API_KEY", "secretKey": key }] } } })
}

/// Cause and author of each change of a credential, as the audit log has them.
fn audited(installation: &Installation, tenant: &Tenant) -> Vec<(String, Option<String>)> {
    let value = |line: &str, field: &str| {
        let rest = line.split_once(&format!(" {field}="))?.1;
        let word = rest.split(' ').next()?;
        Some(word.trim_matches('"').to_owned())
    };
    let log = installation.controller_log();
    log.lines()
        .filter(|line| line.contains("llmwarden::audit"))
        .filter(|line| value(line, "namespace").as_ref() == Some(&tenant.namespace))
        .map(|line| (value(line, "cause").unwrap(), value(line, "requested_by")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_names_who_asked_and_nobody_can_pose_as_somebody_else() {
    let installation = injection::shared().await;
    let tenant = Tenant::new(&installation, "sk-test-asked-0").await;
    let [ann, bob] = [ANN, BOB].map(|name| tenant.with_client(user(&installation, name)));

    ann.create_access("agent", json!({})).await;
    assert_eq!(named(&tenant.await_ready("agent").await), Some(ANN));
    let mut expected = vec![("Provisioned".to_owned(), Some(ANN.to_owned()))];
    let await_audited = async |expected: &Vec<_>| {
        eventually("the lines of the audit log", SOON, async || {
            same(&audited(&installation, &tenant), expected)
        })
        .await;
    };
    await_audited(&expected).await;

    // Neither with what is asked for, nor by itself.
    let mut posing = env("other");
    posing["metadata"] = naming(Some(ANN))["metadata"].take();
    assert_eq!(named(&bob.patch_access("agent", posing).await), Some(BOB));
    expected.push(("SettingsChanged".to_owned(), Some(BOB.to_owned())));
    await_audited(&expected).await;
    for other in [Some("nobody@example.com"), Some(ANN), None] {
        assert_eq!(
            named(&ann.patch_access("agent", naming(other)).await),
            Some(BOB),
            "{other:?}"
        );
    }

    // Nobody asked through the access.
    tenant.set_master("sk-test-asked-1").await;
    expected.push(("MasterChanged".to_owned(), None));
    await_audited(&expected).await;

    let request = json!({ "metadata": { "annotations": { ROTATE_ANNOTATION: ROTATE_NOW } } });
    assert_eq!(named(&ann.patch_access("agent", request).await), Some(ANN));
    eventually("the request is dealt with", SOON, async || {
        !tenant
            .access("agent")
            .await
            .annotations()
            .contains_key(ROTATE_ANNOTATION)
    })
    .await;
    assert_eq!(named(&tenant.access("agent").await), Some(ANN));
    assert_eq!(audited(&installation, &tenant), expected, "no key changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_webhook_nobody_is_named_who_does_not_ask() {
    // No webhook is registered there.
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-asked").await;
    let [ann, bob] = [ANN, BOB].map(|name| tenant.with_client(user(&installation, name)));
    ann.create_access("agent", json!({})).await;
    let attempt = async |who: &Tenant, change: Value| {
        let patched = who
            .accesses()
            .patch("agent", &PatchParams::default(), &Patch::Merge(change))
            .await;
        patched
            .map(|access| named(&access).map(str::to_owned))
            .map_err(|error| error.to_string())
    };
    let refused = |outcome: Result<Option<String>, String>| {
        let error = outcome.unwrap_err();
        let words = format!("That is {BOB} now, and nobody else. Leave it out");
        assert!(
            error.contains("llmwarden-requested-by") && error.contains(&words),
            "{error}"
        );
    };
    eventually("the enforcement of the policy", SOON, async || {
        attempt(&bob, naming(Some(ANN))).await.err()
    })
    .await;

    refused(attempt(&bob, naming(Some(ANN))).await);
    let mut another = json!({
        "apiVersion": "llmwarden.io/v1alpha1",
        "kind": "LLMAccess",
        "metadata": { "name": "another" },
        "spec": { "providerRef": { "name": tenant.provider }, "secretName": "another-key" },
    });
    another["metadata"]["annotations"] = json!({ REQUESTED_BY_ANNOTATION: ANN });
    let created = bob
        .accesses()
        .create(&PostParams::default(), &object(another))
        .await;
    refused(created.map(|_| None).map_err(|error| error.to_string()));

    assert_eq!(
        attempt(&ann, naming(Some(ANN))).await.unwrap().as_deref(),
        Some(ANN)
    );
    // What Ann asked for is still what she asked for, until somebody asks for something else.
    let label = json!({ "metadata": { "labels": { "touched": "yes" } } });
    assert_eq!(attempt(&bob, label).await.unwrap().as_deref(), Some(ANN));
    refused(attempt(&bob, env("other")).await);
    let rotate = json!({ "metadata": { "annotations": { ROTATE_ANNOTATION: ROTATE_NOW } } });
    refused(attempt(&bob, rotate).await);
    assert_eq!(attempt(&bob, naming(None)).await.unwrap(), None);
    assert_eq!(attempt(&bob, env("other")).await.unwrap(), None);
    let mut own = env("apiKey");
    own["metadata"] = naming(Some(BOB))["metadata"].take();
    assert_eq!(attempt(&bob, own).await.unwrap().as_deref(), Some(BOB));
}

#[tokio::test(flavor = "multi_thread")]
async fn authors_are_warned_of_what_no_schema_can_see() {
    let installation = injection::shared().await;
    let tenant = Tenant::new(&installation, "sk-test-warned").await;
    tenant
        .create_access("rival", json!({ "secretName": "taken" }))
        .await;
    tenant.await_ready("rival").await;
    let outside = Tenant::names(&installation);
    outside.create_namespace(false).await;
    let apply = async |namespace: &str, spec: Value| {
        let mut access = json!({
            "apiVersion": "llmwarden.io/v1alpha1",
            "kind": "LLMAccess",
            "metadata": { "name": "warned", "namespace": namespace },
            "spec": { "providerRef": { "name": tenant.provider }, "secretName": "warned-key" },
        });
        merge(&mut access["spec"], spec);
        let file = installation.work_dir().join("access.json");
        std::fs::write(&file, access.to_string()).unwrap();
        let mut kubectl = installation.kubectl();
        kubectl.args(["create", "--dry-run=server", "-f"]).arg(&file);
        let output = kubectl.output().await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        told
    };
    for (namespace, spec, warning) in [
        (
            &tenant.namespace,
            json!({ "providerRef": { "name": "nobody" } }),
            "LLMProvider nobody does not exist",
        ),
        (
            &tenant.namespace,
            json!({ "models": ["claude-unlisted"] }),
            "spec.models asks for claude-unlisted",
        ),
        (
            &tenant.namespace,
            json!({ "secretName": "taken" }),
            "belongs to LLMAccess rival",
        ),
        (
            &outside.namespace,
            json!({}),
            "is not selected by spec.namespaceSelector",
        ),
    ] {
        eventually(warning, SOON, async || {
            let told = apply(namespace, spec.clone()).await;
            let expected = told.lines().filter(|line| line.starts_with("Warning: ")).count() == 1
                && told.contains(warning);
            if expected { Ok(()) } else { Err(told) }
        })
        .await;
    }
    assert_eq!(apply(&tenant.namespace, json!({})).await, "");
    for tenant in [&tenant, &outside] {
        assert!(tenant.accesses().get_opt("warned").await.unwrap().is_none());
    }

    // Of what it has, too.
    let mut kubectl = installation.kubectl();
    let change = json!({ "spec": { "models": ["claude-unlisted"] } }).to_string();
    kubectl.args([
        "patch",
        "llmaccess",
        "rival",
        "--type=merge",
        "-n",
        &tenant.namespace,
        "-p",
        &change,
    ]);
    let output = kubectl.output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("The key that it has is going to be withdrawn"),
        "{told}"
    );
    tenant.await_refusal("rival", Reason::ModelNotAllowed).await;
}
