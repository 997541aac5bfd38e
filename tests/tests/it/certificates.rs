//! The webhook's certificates, from a Secret of the controller's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::PostParams;
use llmwarden_proto::names::CERTIFICATES_SECRET;
use llmwarden_tests::installation::SYSTEM;
use llmwarden_tests::webhook::CONFIGURATION;
use llmwarden_tests::{Installation, eventually};
use serde_json::json;

use crate::support::{SOON, object, patch, value};

const LABEL: (&str, &str) = ("kubernetes.io/metadata.name", "default");

/// The authorities that the API server trusts in each entry.
async fn bundles(installation: &Installation) -> Vec<String> {
    let api = Api::<MutatingWebhookConfiguration>::all(installation.client());
    let webhooks = api.get(CONFIGURATION).await.unwrap().webhooks.unwrap();
    webhooks
        .into_iter()
        .map(|webhook| {
            let bundle = webhook.client_config.ca_bundle.unwrap_or_default();
            String::from_utf8(bundle.0).unwrap()
        })
        .collect()
}

async fn stored(installation: &Installation) -> Secret {
    let api = Api::<Secret>::namespaced(installation.client(), SYSTEM);
    api.get(CERTIFICATES_SECRET).await.unwrap()
}

/// An annotated pod that the webhook has to answer for: what it names does not exist, which it says.
async fn ask(installation: &Installation) -> String {
    let pod: Pod = object(json!({
        "metadata": { "generateName": "p-", "annotations": { "llmwarden.io/inject": "gone" } },
        "spec": { "containers": [{ "name": "agent", "image": "agent" }] },
    }));
    let api = Api::<Pod>::namespaced(installation.client(), "default");
    let created = api.create(&PostParams::default(), &pod).await;
    created.expect_err("refused").to_string()
}

async fn start() -> Installation {
    let installation = Installation::start_with_webhook(&["--webhook-settle", "1s"])
        .await
        .unwrap();
    installation.register_webhook(LABEL).await.unwrap();
    eventually("an answer of the webhook", SOON, async || {
        let text = ask(&installation).await;
        if text.contains("does not exist") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
    installation
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_goes_on_while_the_authority_is_replaced() {
    let installation = Arc::new(start().await);
    let before = stored(&installation).await;
    let old = value(&before, "ca.crt");
    assert_eq!(bundles(&installation).await, vec![old.clone(); 3]);

    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let asking = tokio::spawn({
        let (installation, done, asked) = (installation.clone(), done.clone(), asked.clone());
        async move {
            let mut wrong = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let text = ask(&installation).await;
                if !text.contains("does not exist") {
                    wrong.push(text);
                }
                asked.fetch_add(1, Ordering::Relaxed);
            }
            wrong
        }
    });
    let secrets = Api::<Secret>::namespaced(installation.client(), SYSTEM);
    let rotate = json!({ "metadata": { "annotations": { "llmwarden.io/rotate": "now" } } });
    patch(&secrets, CERTIFICATES_SECRET, rotate).await;
    let new = eventually("another authority alone", SOON, async || {
        let now = stored(&installation).await;
        let trusted = value(&now, "ca.crt");
        let alone = !trusted.contains(old.trim()) && bundles(&installation).await == vec![trusted; 3];
        alone.then_some(now)
    })
    .await;
    // And some more with what is served now.
    let so_far = asked.load(Ordering::Relaxed);
    eventually("more answers", SOON, async || {
        asked.load(Ordering::Relaxed) > so_far + 10
    })
    .await;
    done.store(true, Ordering::Relaxed);
    assert_eq!(asking.await.unwrap(), [""; 0]);
    assert_ne!(value(&new, "tls.crt"), value(&before, "tls.crt"));
    assert!(new.metadata.annotations.unwrap_or_default().is_empty());
    let steps = ["AddAuthority", "IssueLeaf", "DropOldAuthorities"];
    let log = installation.controller_log();
    for step in steps {
        assert_eq!(log.matches(&format!("step={step}")).count(), 1, "{step}");
    }
}

/// Of several replicas each serves what the Secret holds; and what is deleted or damaged is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_lost_is_made_anew_and_served_by_all() {
    let installation = start().await;
    let second = installation.start_replica("second").unwrap();
    let serves = |line: &str| line.contains("serves the webhook's certificate");
    second.await_log(SOON, serves).await.unwrap();
    let secrets = Api::<Secret>::namespaced(installation.client(), SYSTEM);
    let garbage = json!({ "stringData": { "tls.key": "garbage" } });
    for round in ["deleted", "damaged"] {
        let before = stored(&installation).await;
        let already = second.log().len();
        if round == "deleted" {
            let uid = before.metadata.uid.clone();
            let gone = secrets
                .delete(CERTIFICATES_SECRET, &kube::api::DeleteParams::default())
                .await;
            gone.unwrap();
            eventually("another Secret", SOON, async || {
                let now = secrets.get_opt(CERTIFICATES_SECRET).await.ok().flatten();
                now.is_some_and(|now| now.metadata.uid != uid)
            })
            .await;
        } else {
            patch(&secrets, CERTIFICATES_SECRET, garbage.clone()).await;
        }
        eventually("an answer with what is new", SOON, async || {
            let now = stored(&installation).await;
            if value(&now, "tls.crt") == value(&before, "tls.crt") {
                return Err("the old certificate".to_owned());
            }
            let text = ask(&installation).await;
            if text.contains("does not exist") {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
        second.await_log_from(already, SOON, serves).await.unwrap();
    }
}
