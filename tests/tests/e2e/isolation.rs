//! Who in a pod gets at the key, and at the Secret that only the sidecar mounts.

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use llmwarden_proto::names;
use llmwarden_tests::eventually;
use serde_json::json;

use crate::support::{ACCESS, AGENT, AgentPod, Cluster, SOON, USERS, agent, container, tenant};

const KEY: &str = "sk-ant-test-e2e-isolation";

/// What [`LOOK`] says when it has read the companion.
const COMPANION: &str = "found the companion";
/// Looks for the key everywhere a process can look, over and over, and says when it is through.
const LOOK: &str = r#"
exec 2>&1
echo "as $(id -u)"
ls /var/run/llmwarden /var/run/secrets/llmwarden
for port in 9470 9471; do
    for path in v1/keys/agent/apiKey v1/keys/agent status metrics; do
        wget -q -O - "http://127.0.0.1:$port/$path"
    done
done
for process in /proc/[0-9]*; do
    cat $process/cmdline $process/environ | tr '\0' '\n'
    for start in root cwd; do
        cat $process/$start/var/run/llmwarden/agent/*
        cat $process/$start/var/run/secrets/llmwarden/agent/* && echo "found the" companion
    done
    ls -l $process/fd
done
echo "looked"
exec sleep 100000
"#;

/// Processes see each other; the stranger is not a target of the injection, and each user is once the sidecar's.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_in_the_pod_gets_the_key_and_nobody_the_companion() {
    let cluster = Cluster::shared().await;
    let tenant = tenant(&cluster, KEY).await;
    // A variable would be one more way to see it.
    tenant
        .patch_access(ACCESS, json!({ "spec": { "injection": null } }))
        .await;
    let [sidecars, agents] = USERS;
    let mut pod = agent(AGENT, LOOK);
    let look = |name: &str, user: u32, own: i64| {
        let mut container = container(name, user, LOOK);
        container["securityContext"]["runAsUser"] = own.into();
        container
    };
    pod["spec"]["containers"] = json!([
        container(AGENT, agents, LOOK),
        look("twin", sidecars, sidecars.into()),
        look("other", agents, 2000),
    ]);
    pod["spec"]["shareProcessNamespace"] = true.into();
    pod["metadata"]["annotations"][names::CONTAINERS_ANNOTATION] = AGENT.into();
    let pod = AgentPod::create(&cluster, &tenant, pod).await;
    pod.await_ready().await;
    let looked = async |container: &str| {
        eventually("the end of the search", SOON, async || {
            let log = pod.log_of(container).await;
            if log.ends_with("looked\n") {
                Ok(log)
            } else {
                Err(log)
            }
        })
        .await
    };
    // The search finds what there is to find: the agent has the key from its own directory.
    let log = looked(AGENT).await;
    assert!(
        log.starts_with(&format!("as {agents}\n")) && log.contains(KEY),
        "{log}"
    );
    assert!(!log.contains(COMPANION), "{log}");
    // It looks at the right place: the machine's root reads it there.
    let root = format!("/proc/{}/root", pod.pid(names::SIDECAR).await);
    let companion = format!("{root}{}/{ACCESS}/{}", names::COMPANIONS_DIR, names::API_KEY);
    assert_eq!(std::fs::read_to_string(companion).unwrap(), KEY);
    for (container, user) in [("twin", sidecars), ("other", 2000)] {
        let log = looked(container).await;
        assert!(log.starts_with(&format!("as {user}\n")), "{log}");
        assert!(log.contains("/llmwarden-sidecar"), "it sees no sidecar: {log}");
        assert!(log.contains("401"), "{log}");
        assert!(!log.contains(KEY) && !log.contains(COMPANION), "{log}");
    }

    // Nor does the agent get it from the API server, as whom it is there.
    let account = cluster
        .installation
        .client_for(&tenant.namespace, "default")
        .await
        .unwrap();
    let secrets = Api::<Secret>::namespaced(account, &tenant.namespace);
    let error = secrets.get(&names::companion(ACCESS)).await.unwrap_err();
    assert!(
        matches!(&error, kube::Error::Api(status) if status.code == 403),
        "{error}"
    );
}
