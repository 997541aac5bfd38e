//! The chart's webhook configuration, with a URL on loopback in place of the Service.

use anyhow::{Context, Result};
use http_body_util::BodyExt as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::PostParams;
use kube::client::Body;
use kube::{Api, Client};
use serde_json::json;

use crate::chart::WITHOUT_CONTROLLER;
use crate::installation::Installation;

/// What has a controller serve admission on loopback, and tell sidecars a way out of the cluster.
pub const FLAGS: [&str; 6] = [
    "--webhook",
    "127.0.0.1:0",
    "--webhook-host",
    "127.0.0.1",
    "--sidecar-https-proxy",
    EGRESS,
];
/// That way, where nobody is.
pub const EGRESS: &str = "http://egress.test:3128";
/// Name of the configuration.
pub const CONFIGURATION: &str = "llmwarden";
/// Name of the entry for annotated pods: all that is ours of what the API server says when nobody answers.
pub const ANNOTATED: &str = "annotated-pods-wait-for-the-llmwarden-controller.llmwarden.io";
/// Name of the entry for all others.
pub const OTHERS: &str = "pods.llmwarden.io";
/// Name of the entry for accesses.
pub const ACCESSES: &str = "llmaccesses.llmwarden.io";

/// Where the webhook answers reviews.
const PATH: &str = "/inject";

impl Installation {
    /// The chart's configuration of a webhook at this URL, for pods of namespaces with this label.
    pub async fn webhook_configuration(
        &self,
        url: &str,
        label: (&str, &str),
    ) -> Result<MutatingWebhookConfiguration> {
        let url = format!("--set=webhook.url={url}{PATH}");
        let selector = json!({ "matchLabels": { label.0: label.1 } });
        let selector = format!("--set-json=webhook.namespaceSelector={selector}");
        let flags = [WITHOUT_CONTROLLER, &url, &selector];
        let rendered = self.render_chart("templates/webhook.yaml", &flags).await?;
        Ok(serde_json::from_value(rendered)?)
    }

    /// Where the controller answers.
    pub fn webhook_url(&self) -> Result<String> {
        let log = self.controller_log();
        // The last one that served is the one that runs.
        let line = log.lines().rfind(|line| line.contains("serving admission"));
        let address = line
            .and_then(|line| line.rsplit("webhook=").next())
            .context("it serves no admission")?;
        Ok(format!("https://{address}"))
    }

    /// Sends the webhook what the API server would not, and returns the status and the answer.
    pub async fn post_to_webhook(&self, body: String) -> Result<(u16, String)> {
        let mut config = kube::Config::new(self.webhook_url()?.parse()?);
        config.accept_invalid_certs = true;
        let request = http::Request::post(PATH).body(Body::from(body.into_bytes()))?;
        let answer = Client::try_from(config)?.send(request).await?;
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8(text.to_vec())?))
    }

    /// Has the API server call the controller about pods in namespaces with this label, and returns the configuration.
    pub async fn register_webhook(&self, label: (&str, &str)) -> Result<MutatingWebhookConfiguration> {
        let configuration = self.webhook_configuration(&self.webhook_url()?, label).await?;
        let api = Api::<MutatingWebhookConfiguration>::all(self.client());
        Ok(api.create(&PostParams::default(), &configuration).await?)
    }
}
