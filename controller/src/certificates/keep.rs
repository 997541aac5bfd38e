//! Keeps the Secret and the webhook configuration's `caBundle` as they should be: what the holder of the Lease does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Client, ResourceExt};
use llmwarden_proto::{errors, names};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::make::{self, MakeError};
use super::plan::{Lifetimes, Seen, Step, plan};
use super::serving::SeenSecret;
use super::stored::Stored;

/// How soon a look that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often it is looked at the latest.
const LOOK: Duration = Duration::from_hours(1);

/// What it takes to keep them.
pub struct Keeper {
    /// The API server.
    pub client: Client,
    /// The controller's own namespace.
    pub namespace: String,
    /// Name of the webhook configuration.
    pub configuration: String,
    /// The names and addresses that the webhook is called by.
    pub names: BTreeSet<String>,
    /// How long things last.
    pub lifetimes: Lifetimes,
    /// The Secret, as every replica watches it.
    pub seen: watch::Receiver<SeenSecret>,
}

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Make(#[from] MakeError),
    #[error("{}", errors::describe(.0))]
    Api(#[from] kube::Error),
}

impl Keeper {
    /// Keeps them until the end of the tenure.
    pub async fn keep(&self, tenure: &CancellationToken) {
        let api = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        let changes = watch_object(api, &self.configuration).default_backoff();
        let mut changes = std::pin::pin!(changes);
        let mut seen = self.seen.clone();
        let mut configuration: Option<Option<MutatingWebhookConfiguration>> = None;
        let mut trusted_since = None;
        loop {
            let secret = seen.borrow_and_update().clone();
            let pause = match (secret, &configuration) {
                (Some(secret), Some(configuration)) => {
                    let looked = self
                        .look(secret, configuration.as_ref(), &mut trusted_since)
                        .await;
                    looked.unwrap_or_else(|error| {
                        warn!(%error, "cannot keep the webhook's certificates, trying again");
                        RETRY
                    })
                }
                // Nothing is concluded from what was not seen.
                _ => LOOK,
            };
            tokio::select! {
                secret = seen.changed() => if secret.is_err() { return },
                change = changes.next() => match change {
                    Some(Ok(found)) => configuration = Some(found),
                    Some(Err(error)) => {
                        let error = errors::describe_watch(&error);
                        warn!(error, "the watch of the webhook configuration failed and is tried again");
                    }
                    None => return,
                },
                () = tokio::time::sleep(pause) => {}
                () = tenure.cancelled() => return,
            }
        }
    }

    /// Takes the next step, if there is one, and says when to look again.
    async fn look(
        &self,
        secret: Option<Arc<Secret>>,
        configuration: Option<&MutatingWebhookConfiguration>,
        trusted_since: &mut Option<Timestamp>,
    ) -> Result<Duration, KeepError> {
        let now = Timestamp::now();
        let stored = secret.as_deref().and_then(|secret| match Stored::parse(secret) {
            Ok(stored) => Some(stored),
            Err(error) => {
                warn!(%error, "making new ones");
                None
            }
        });
        // Where nobody calls the webhook, nobody mistrusts it.
        let trusted = stored
            .as_ref()
            .is_some_and(|stored| configuration.is_none_or(|configuration| trusts(configuration, stored)));
        *trusted_since = trusted_since.filter(|_| trusted).or(trusted.then_some(now));
        let asked = secret.as_ref().is_some_and(|secret| {
            let annotation = secret.annotations().get(names::ROTATE_ANNOTATION);
            annotation.is_some_and(|value| value == names::ROTATE_NOW)
        });
        let (step, next) = plan(
            &Seen {
                now,
                stored: stored.as_ref(),
                trusted_since: *trusted_since,
                asked,
                names: &self.names,
            },
            &self.lifetimes,
        );
        if step != Step::Nothing {
            let stored = make::take(step, stored, &self.names, &self.lifetimes, now)?;
            if let Some(stored) = stored {
                self.write(&stored, secret.as_deref()).await?;
                info!(?step, expires = %stored.leaf.expires, "changed the webhook's certificates");
            }
            // What was written is seen again.
            return Ok(LOOK);
        }
        if let (Some(stored), Some(configuration)) = (&stored, configuration)
            && !trusts(configuration, stored)
        {
            self.trust(configuration, stored).await?;
        }
        let wait = Duration::try_from(next.duration_since(now)).unwrap_or_default();
        Ok(wait.clamp(Duration::from_millis(10), LOOK))
    }

    /// Makes or replaces the Secret: what somebody else has changed meanwhile is looked at again.
    async fn write(&self, stored: &Stored, present: Option<&Secret>) -> Result<(), KeepError> {
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let mut secret = stored.secret(&self.namespace);
        let written = if let Some(present) = present {
            secret.metadata.resource_version = present.resource_version();
            secret.metadata.uid = present.uid();
            // The type can't be changed.
            secret.type_.clone_from(&present.type_);
            let mut annotations = present.annotations().clone();
            annotations.remove(names::ROTATE_ANNOTATION);
            secret.metadata.annotations = Some(annotations);
            api.replace(names::CERTIFICATES_SECRET, &PostParams::default(), &secret)
                .await
        } else {
            api.create(&PostParams::default(), &secret).await
        };
        match written {
            Err(kube::Error::Api(status)) if status.code == 409 || status.is_not_found() => {
                debug!("the Secret with the webhook's certificates changed meanwhile");
                Ok(())
            }
            written => Ok(written.map(drop)?),
        }
    }

    /// Has the API server trust the stored authorities.
    async fn trust(
        &self,
        configuration: &MutatingWebhookConfiguration,
        stored: &Stored,
    ) -> Result<(), KeepError> {
        let api = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        let bundle = ByteString(stored.bundle().into_bytes());
        let entries: Vec<_> = all(configuration)
            .map(|webhook| json!({ "name": webhook.name, "clientConfig": { "caBundle": bundle } }))
            .collect();
        let patch = json!({
            "metadata": { "resourceVersion": configuration.resource_version() },
            "webhooks": entries,
        });
        let patched = api
            .patch(
                &self.configuration,
                &PatchParams::default(),
                &Patch::Strategic(patch),
            )
            .await;
        match patched {
            Err(kube::Error::Api(status)) if status.code == 409 || status.is_not_found() => {
                debug!("the webhook configuration changed meanwhile");
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(_) => {
                info!(
                    configuration = self.configuration,
                    authorities = stored.authorities.len(),
                    "wrote caBundle"
                );
                Ok(())
            }
        }
    }
}

fn trusts(configuration: &MutatingWebhookConfiguration, stored: &Stored) -> bool {
    let bundle = stored.bundle();
    all(configuration).all(|webhook| {
        let present = webhook.client_config.ca_bundle.as_ref();
        present.is_some_and(|present| present.0 == bundle.as_bytes())
    })
}

fn all(configuration: &MutatingWebhookConfiguration) -> impl Iterator<Item = &MutatingWebhook> {
    configuration.webhooks.as_deref().unwrap_or_default().iter()
}
