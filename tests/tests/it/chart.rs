//! The chart as it is installed where its controller runs, on a real API server. (That it runs, `make e2e` shows.)

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use llmwarden_tests::installation::{ACCOUNT, SYSTEM};
use llmwarden_tests::webhook::{ACCESSES, ANNOTATED, CONFIGURATION, OTHERS};
use llmwarden_tests::{ControlPlane, chart, eventually};
use serde_json::json;

use crate::support::{SOON, create, object};

/// What the API server trusts in each entry, and where it finds who answers.
async fn entries(cluster: &ControlPlane) -> Vec<(String, Option<Vec<u8>>, Option<String>)> {
    let api = Api::<MutatingWebhookConfiguration>::all(cluster.client());
    let webhooks = api.get(CONFIGURATION).await.unwrap().webhooks.unwrap();
    let entry = webhooks.into_iter().map(|webhook| {
        let config = webhook.client_config;
        assert!(config.url.is_some() != config.service.is_some());
        (webhook.name, config.ca_bundle.map(|bundle| bundle.0), config.url)
    });
    entry.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_controller_is_restricted_and_an_upgrade_leaves_its_bundle_alone() {
    let cluster = ControlPlane::start().await.unwrap();
    let client = cluster.client();
    let restricted = object(json!({ "metadata": {
        "name": SYSTEM, "labels": { "pod-security.kubernetes.io/enforce": "restricted" },
    } }));
    create(&Api::<Namespace>::all(client.clone()), &restricted).await;
    let chart = chart::dir().display().to_string();
    cluster
        .run_helm(["install", chart::RELEASE, &chart])
        .await
        .unwrap();

    // The webhook fails closed, and nobody answers: their own pods have to come without it.
    let pods = Api::<Pod>::namespaced(client.clone(), SYSTEM);
    eventually("two pods of the controller", SOON, async || {
        pods.list(&ListParams::default()).await.unwrap().items.len() == 2
    })
    .await;
    let budgets = Api::<PodDisruptionBudget>::namespaced(client.clone(), SYSTEM);
    assert!(budgets.get_opt("llmwarden-controller").await.unwrap().is_some());
    let names = entries(&cluster).await.into_iter().map(|(name, ..)| name);
    assert_eq!(names.collect::<Vec<_>>(), [ANNOTATED, OTHERS, ACCESSES]);

    // As the controller does it.
    let bundle = ByteString(std::fs::read(cluster.authority()).unwrap());
    let all = [ANNOTATED, OTHERS, ACCESSES]
        .map(|name| json!({ "name": name, "clientConfig": { "caBundle": bundle } }));
    let controller = cluster.client_for(SYSTEM, ACCOUNT).await.unwrap();
    Api::<MutatingWebhookConfiguration>::all(controller)
        .patch(
            CONFIGURATION,
            &PatchParams::default(),
            &Patch::Strategic(json!({ "webhooks": all })),
        )
        .await
        .unwrap();
    let url = "https://127.0.0.1:9443/inject";
    for (flags, expected) in [
        (vec!["--set=controller.replicas=1".to_owned()], None),
        (
            vec![
                chart::WITHOUT_CONTROLLER.to_owned(),
                format!("--set=webhook.url={url}"),
            ],
            Some(url.to_owned()),
        ),
        (
            vec!["--set=webhook.namespaceSelector.matchLabels.agents=yes".to_owned()],
            None,
        ),
    ] {
        let upgrade = ["upgrade", chart::RELEASE, &chart];
        let flags = flags.iter().map(String::as_str);
        cluster.run_helm(upgrade.into_iter().chain(flags)).await.unwrap();
        for (name, trusted, url) in entries(&cluster).await {
            assert_eq!(trusted.as_ref(), Some(&bundle.0), "{name}");
            let path = if name == ACCESSES { "access" } else { "inject" };
            let expected = expected.as_ref().map(|url| url.replace("inject", path));
            assert_eq!(url, expected, "{name}");
        }
        let outside = expected.is_some();
        let services = Api::<Service>::namespaced(client.clone(), SYSTEM);
        let deployments = Api::<Deployment>::namespaced(client.clone(), SYSTEM);
        assert_eq!(
            services.get_opt("llmwarden-webhook").await.unwrap().is_none(),
            outside
        );
        assert_eq!(
            deployments
                .get_opt("llmwarden-controller")
                .await
                .unwrap()
                .is_none(),
            outside
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_finds_nothing_wrong_and_refuses_what_makes_no_sense() {
    let cluster = ControlPlane::shared().await.unwrap();
    let chart = chart::dir().display().to_string();
    for flags in [
        vec![],
        vec!["--set=accessNamespaces={a,b}", "--set=trustedNamespaces={c}"],
        vec![
            "--set=metrics.serviceMonitor.enabled=true",
            "--set=controller.replicas=1",
        ],
        vec![
            "--set=guard.enabled=false",
            "--set=guard.repositories={mirror/llmwarden-sidecar}",
        ],
        vec![
            "--set=sidecar.httpsProxy=http://egress.test:3128",
            "--set=sidecar.noProxy={.svc,10.0.0.0/8}",
        ],
        vec![chart::WITHOUT_CONTROLLER],
    ] {
        let lint = ["lint", "--strict", &chart];
        cluster.run_helm(lint.into_iter().chain(flags)).await.unwrap();
    }
    for (flag, field) in [
        ("--set=controller.replicas=0", "controller.replicas"),
        ("--set=controller.image.digest=latest", "controller.image.digest"),
        ("--set=webhook.url=http://127.0.0.1/inject", "webhook.url"),
        ("--set=guard.repositories={a'b}", "guard.repositories.0"),
        ("--set=sidecar.httpsProxy=egress.test:3128", "sidecar.httpsProxy"),
        ("--set=sidecar.noProxy=.svc", "sidecar.noProxy"),
        ("--set=replicas=3", "replicas"),
    ] {
        let error = cluster.run_helm(["template", &chart, flag]).await.unwrap_err();
        let text = error.to_string().replace('/', ".");
        assert!(text.contains(field), "{error}");
    }
}
