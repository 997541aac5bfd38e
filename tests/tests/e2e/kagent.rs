//! kagent's own Deployments, as its controller made them (they are not part of the repository), with nothing changed but
//! the agents' image, which can't be pulled, and with that its command.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::Api;
use kube::api::ListParams;
use llmwarden_proto::names::INJECT_ANNOTATION;
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::{eventually, shared_dir};
use serde_json::{Value, json};

use crate::support::{AgentPod, Cluster, SOON, USERS};
use crate::tenant::{Tenant, create, object};

const KEY: &str = "sk-ant-test-e2e-kagent";

/// How an agent is selected.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Annotation,
    Selector,
}

/// What the agent does in place of kagent's: it says what it has at first, and answers kagent's readiness probe.
fn script(access: &str, variable: &str) -> String {
    format!(
        r#"
dir=/var/run/llmwarden
file=$(cat $dir/{access}/apiKey)
endpoint=$(wget -q -O - --header "$(cat $dir/auth-header)" http://127.0.0.1:9470/v1/keys/{access}/apiKey)
echo "first: file=$file endpoint=$endpoint env=${variable}"
exec httpd -f -p 8080 -h /www
"#
    )
}

/// Runs a Deployment of kagent's with this access, and sees that its agent has the key at once.
async fn runs(deployment: &str, access: &str, secret: &str, variable: &str, user: u32, by: By) {
    let Some(dir) = shared_dir() else { return };
    let cluster = Cluster::shared().await;
    let client = cluster.installation.client();
    let text =
        std::fs::read_to_string(dir.join(format!("kagent-pods/deployment-{deployment}.yaml"))).unwrap();
    let theirs: Value = serde_saphyr::from_str(&text).unwrap();
    let tenant = Tenant::new(&cluster.installation, KEY).await;
    let selector = match by {
        By::Selector => json!({ "matchLabels": { "kagent.dev/agent": deployment } }),
        By::Annotation => Value::Null,
    };
    let env = json!([{ "name": variable, "secretKey": "apiKey" }]);
    let spec = json!({ "secretName": secret, "workloadSelector": selector, "injection": { "env": env } });
    tenant.create_access(access, spec).await;
    tenant.await_ready(access).await;

    // What kagent makes beside it.
    let account = json!({ "metadata": { "name": deployment } });
    create(
        &Api::<ServiceAccount>::namespaced(client.clone(), &tenant.namespace),
        &object(account),
    )
    .await;
    for name in [deployment, "kagent-openai-embed"] {
        let secret = json!({ "metadata": { "name": name }, "stringData": { "apiKey": "sk-test-other" } });
        create(&tenant.secrets(), &object(secret)).await;
    }
    let map = json!({ "metadata": { "name": format!("{deployment}-skills-init") } });
    create(
        &Api::<ConfigMap>::namespaced(client.clone(), &tenant.namespace),
        &object(map),
    )
    .await;

    let mut template = theirs["spec"]["template"].clone();
    let image = format!("localhost/agent-{user}:test");
    for list in ["initContainers", "containers"] {
        for container in template["spec"][list].as_array_mut().into_iter().flatten() {
            container["image"] = image.clone().into();
            let command = match container["name"].as_str().unwrap() {
                "kagent" => script(access, variable),
                "skills-init" => "exit".to_owned(),
                _ => "exec sleep 86400".to_owned(),
            };
            container["command"] = json!(["/bin/busybox", "sh", "-c", command]);
        }
    }
    let annotations = template["metadata"]["annotations"].as_object_mut().unwrap();
    if by == By::Annotation {
        assert_eq!(annotations[INJECT_ANNOTATION], access);
    } else {
        annotations.remove(INJECT_ANNOTATION);
    }
    let spec = json!({ "selector": theirs["spec"]["selector"], "template": template });
    let ours = json!({ "metadata": { "name": deployment }, "spec": spec });
    let deployments = Api::<Deployment>::namespaced(client.clone(), &tenant.namespace);
    create(&deployments, &object(ours)).await;

    let pods = Api::<Pod>::namespaced(client, &tenant.namespace);
    let pod = eventually("a pod of the agent's", SOON, async || {
        pods.list(&ListParams::default())
            .await
            .unwrap()
            .items
            .into_iter()
            .next()
    })
    .await;
    let pod = AgentPod::of(&cluster, &tenant, &pod);
    let first = format!("first: file={KEY} endpoint={KEY} env={KEY}\n");
    eventually("the agent's first words", SOON, async || {
        let log = pod.log_of("kagent").await;
        if log == first {
            Ok(())
        } else {
            Err(format!("{log:?} {:?}", pod.get().await.status))
        }
    })
    .await;
    pod.await_ready().await;
    // Neither is promised of an agent of kagent's that holds the key.
    for (kind, reason) in [
        (ConditionType::LiveRotation, Reason::KagentHashesSecret),
        (ConditionType::ModelsEnforced, Reason::NotEnforced),
    ] {
        tenant.await_condition(access, kind, "False", reason).await;
    }
    let changed = format!("{KEY}-2");
    tenant.set_master(&changed).await;
    let file = pod.delivery_dir().await.join(access).join("apiKey");
    eventually("the next key", SOON, async || {
        std::fs::read_to_string(&file).unwrap() == changed
    })
    .await;
    assert_eq!(pod.container("kagent").await.restart_count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotated_agent_has_the_key() {
    runs(
        "reasoning-agent",
        "agent-anthropic",
        "kagent-anthropic",
        "ANTHROPIC_API_KEY",
        USERS[0],
        By::Annotation,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_the_guides_selector_selects_has_the_key() {
    runs(
        "code-review-agent",
        "agent-openai",
        "kagent-openai",
        "OPENAI_API_KEY",
        USERS[1],
        By::Selector,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_skills_has_the_key() {
    runs(
        "featureful-agent",
        "agent-anthropic",
        "kagent-anthropic",
        "ANTHROPIC_API_KEY",
        USERS[1],
        By::Annotation,
    )
    .await;
}
