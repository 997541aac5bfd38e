//! Which of several replicas writes: the holder of a Lease. All of them watch, so that the successor can go on at once.
//!
//! The Lease spares work, it protects nothing: a holder may be paused and wake up when another one holds it. What makes
//! that harmless are the preconditions of each write.

use anyhow::Context as _;
use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::index::secret::digest;

/// Name of the Lease, in the controller's own namespace.
pub const NAME: &str = "llmwarden-controller";
/// How long a holder that is gone is waited for, in seconds; a second more may pass until a successor has the Lease.
const DURATION: u64 = 10;
/// How long before its end a holder renews it, in seconds: every three seconds, so that two failures do no harm.
const GRACE: u64 = 7;

/// A running candidacy.
#[derive(Debug)]
pub struct Candidacy {
    /// Whether the Lease is held.
    pub leads: watch::Receiver<bool>,
    campaign: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Candidacy {
    /// Begins to ask for the Lease, as `identity`. Whoever restarts under its old identity has it still.
    pub async fn start(client: Client, namespace: &str, identity: &str) -> anyhow::Result<Self> {
        // The API server takes no longer names of field managers than 128 bytes; pods may have longer ones.
        let [a, b, c, d, ..] = digest(identity.as_bytes());
        let manager = LeaseManagerBuilder::new(client, NAME)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_field_manager(format!("llmwarden-lease-{a:02x}{b:02x}{c:02x}{d:02x}"))
            .with_duration(DURATION)
            .with_grace(GRACE)
            .build()
            .await
            .with_context(|| format!("cannot read or make Lease {namespace}/{NAME}"))?;
        let (leads, campaign) = manager.watch().await;
        Ok(Self { leads, campaign })
    }

    /// Gives the Lease back, so that a successor need not wait for its end.
    pub async fn end(self) -> anyhow::Result<()> {
        drop(self.leads);
        self.campaign.await??;
        Ok(())
    }
}
