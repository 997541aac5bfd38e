//! `LLMProvider`: whether its master key is there, and how many accesses use it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::runtime::controller::Action;
use kube::{Client, ResourceExt};
use llmwarden_proto::errors::describe;
use llmwarden_proto::provider::{LLMProvider, LLMProviderStatus};
use llmwarden_proto::reason::{ConditionType, Reason};
use tracing::{debug, warn};

use crate::access::grant::master_key;
use crate::conditions::{Setter, Truth};
use crate::index::Index;
use crate::index::watch::SharedIndex;

const RETRY: Duration = Duration::from_secs(5);
/// How long a write may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the reconciler needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What the watches saw.
    pub index: SharedIndex,
    /// Namespaces that master keys may live in.
    pub trusted: Vec<String>,
}

/// The status a provider should have.
pub fn plan(provider: &LLMProvider, index: &Index, trusted: &[String], now: Timestamp) -> LLMProviderStatus {
    let master = provider
        .spec
        .auth
        .api_key
        .as_ref()
        .and_then(|auth| index.master(&auth.secret_ref.namespace, &auth.secret_ref.name));
    let mut status = provider.status.clone().unwrap_or_default();
    status.observed_generation = provider.metadata.generation;
    status.access_count = i64::try_from(index.access_count(&provider.name_any())).unwrap_or(i64::MAX);
    let mut setter = Setter {
        conditions: &mut status.conditions,
        generation: provider.metadata.generation,
        now,
    };
    match master_key(provider, master.as_deref(), trusted) {
        Ok(_) => {
            setter.set(
                ConditionType::Ready,
                Truth::True,
                Reason::MasterKeyPresent,
                "the master key can be read",
            );
            let text = "llmwarden has not asked the provider whether it takes the key";
            setter.set(
                ConditionType::CredentialValid,
                Truth::Unknown,
                Reason::NotChecked,
                text,
            );
        }
        Err(refusal) => {
            setter.set(
                ConditionType::Ready,
                Truth::False,
                refusal.reason,
                refusal.message.clone(),
            );
            setter.set(
                ConditionType::CredentialValid,
                Truth::False,
                refusal.reason,
                refusal.message,
            );
        }
    }
    status
}

/// One pass over one provider.
pub async fn reconcile(provider: Arc<LLMProvider>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let status = plan(
        &provider,
        &context.index.read(),
        &context.trusted,
        Timestamp::now(),
    );
    if provider.status.as_ref() != Some(&status) {
        let mut object = provider.as_ref().clone();
        object.status = Some(status);
        let api: Api<LLMProvider> = Api::all(context.client.clone());
        let name = provider.name_any();
        let params = PostParams::default();
        let written = api.replace_status(&name, &params, &object);
        let Ok(outcome) = tokio::time::timeout(PATIENCE, written).await else {
            warn!(
                provider = name,
                "the API server did not answer in time, another pass follows"
            );
            return Ok(Action::requeue(RETRY));
        };
        outcome?;
    }
    Ok(Action::await_change())
}

/// What follows a pass that failed.
#[expect(clippy::needless_pass_by_value, reason = "the signature is kube's")]
pub fn on_error(provider: Arc<LLMProvider>, error: &kube::Error, _: Arc<Context>) -> Action {
    match error {
        kube::Error::Api(status) if status.is_conflict() || status.is_not_found() => {
            debug!(provider = %provider.name_any(), "out of date, another pass follows");
        }
        error => {
            warn!(provider = %provider.name_any(), error = describe(error), "a pass failed and is tried again");
        }
    }
    Action::requeue(RETRY)
}
