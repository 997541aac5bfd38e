//! What every replica does with the certificates: it serves the newest that the Secret holds, without a restart.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use llmwarden_proto::{errors, names};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tracing::{info, warn};

use super::Stored;
use crate::metrics::Metrics;

/// The Secret as it was seen last: `None` before the first look, `Some(None)` when there is none.
pub type SeenSecret = Option<Option<Arc<Secret>>>;

/// The certificate that is served.
#[derive(Debug, Default)]
pub struct Serving(ArcSwapOption<CertifiedKey>);

impl Serving {
    /// Whether there is one.
    pub fn is_loaded(&self) -> bool {
        self.0.load().is_some()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// TLS with the certificate that is served at the time of each handshake.
pub fn tls(serving: Arc<Serving>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(serving);
    Ok(Arc::new(config))
}

/// Watches the Secret, serves what it holds, and passes it on.
pub async fn follow(
    client: Client,
    namespace: String,
    serving: Arc<Serving>,
    metrics: Metrics,
    seen: watch::Sender<SeenSecret>,
) -> anyhow::Result<()> {
    let api = Api::<Secret>::namespaced(client, &namespace);
    let mut changes = std::pin::pin!(watch_object(api, names::CERTIFICATES_SECRET).default_backoff());
    while let Some(change) = changes.next().await {
        match change {
            Ok(secret) => {
                if let Some(secret) = &secret {
                    load(secret, &serving, &metrics);
                }
                seen.send_replace(Some(secret.map(Arc::new)));
            }
            Err(error) => {
                let error = errors::describe_watch(&error);
                warn!(
                    error,
                    "the watch of the webhook's certificates failed and is tried again"
                );
            }
        }
    }
    anyhow::bail!("the watch of the webhook's certificates ended")
}

/// What can't be used changes nothing.
fn load(secret: &Secret, serving: &Serving, metrics: &Metrics) {
    let loaded = Stored::parse(secret).and_then(|stored| Ok((stored.certified_key()?, stored.leaf)));
    match loaded {
        Ok((key, leaf)) => {
            info!(expires = %leaf.expires, "serves the webhook's certificate");
            metrics.certificate_expires(leaf.expires);
            serving.0.store(Some(Arc::new(key)));
        }
        Err(error) => warn!(%error, "goes on with the certificate it has"),
    }
}
