//! The reconciler of `LLMAccess`: one pass of observe, plan, apply.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::runtime::controller::Action;
use kube::{Client, ResourceExt};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::reason::Reason;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, info, warn};

use super::apply::{self, ApplyError};
use super::asked::requested_by;
use super::folding::Folding;
use super::observe::{Observation, rotation_requested};
use super::plan::{EventNote, Plan, Settings, plan, refused};
use super::recorders::Recorders;
use super::superseded::Superseded;
use super::told::Told;
use crate::index::watch::SharedIndex;
use crate::metrics::Metrics;
use crate::pulse::{CATCH_UP, Pulse};

/// How often a plan is made anew in one pass because a Secret appeared: once for each of the two names, and once more.
const PLANS_A_PASS: usize = 3;
/// After how long a pass is tried again that found its observation out of date, if no watch event comes first.
const OUT_OF_DATE_RETRY: Duration = Duration::from_millis(500);
/// How often it is looked whether the watch has brought the master Secret as it is.
const MASTER_RETRY: Duration = Duration::from_millis(50);
/// After how long a pass is tried again that the API server failed.
const FAILED_RETRY: Duration = Duration::from_secs(5);
/// How long a pass may take: it is safe to end anywhere. Less than a pod is given to end in.
const PASS_PATIENCE: Duration = Duration::from_secs(15);
/// How long the status waits for an event that goes before it.
const EVENT_PATIENCE: Duration = Duration::from_secs(5);
/// How often a refused write is tried again: a quota or an admission policy may have changed.
const REFUSED_RETRY: Duration = Duration::from_secs(30);

/// Target of the lines that say that a credential changed: one level of the log filter shows them alone.
const AUDIT: &str = "llmwarden::audit";

/// What the reconciler needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What the watches saw.
    pub index: SharedIndex,
    /// Flags and the instance secret.
    pub settings: Settings,
    /// Where events go.
    pub recorders: Recorders,
    /// What is counted.
    pub metrics: Metrics,
    /// Which of them went there.
    pub told: Told,
    /// Which of them are folded.
    pub folding: Folding,
    /// Which accesses were written since the watch brought them.
    pub superseded: Superseded,
    /// Whether this process has just stood still.
    pub pulse: Pulse,
}

/// One pass over one access, that ends even if the API server is silent: a connection whose other end is gone says nothing.
/// It is a task of its own, as the controller polls all passes under way whenever one of them has something to do.
pub async fn reconcile(access: Arc<LLMAccess>, context: Arc<Context>) -> Result<Action, ApplyError> {
    let pass = tokio::spawn(async move { pass(access, &context).await }.in_current_span());
    match tokio::time::timeout(PASS_PATIENCE, AbortOnDropHandle::new(pass)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        Err(_) => Err(ApplyError::NoAnswer),
    }
}

async fn pass(access: Arc<LLMAccess>, context: &Context) -> Result<Action, ApplyError> {
    if context.pulse.has_stood_still() {
        return Ok(Action::requeue(CATCH_UP));
    }
    let now = Timestamp::now();
    if context.superseded.contains(&access, now) {
        // Not for ever: the watch may hang.
        return Ok(Action::requeue(OUT_OF_DATE_RETRY));
    }
    if rotation_requested(&access) && !master_is_current(&access, context).await? {
        return Ok(Action::requeue(MASTER_RETRY));
    }
    let mut seen = Observation::new(&context.index.read(), access, now);
    read_unread(&mut seen, &context.client).await?;
    for _ in 0..PLANS_A_PASS {
        let Some(plan) = plan(&seen, &context.settings) else {
            return Ok(Action::await_change());
        };
        match apply::write_secrets(&context.client, &seen.access, &plan, &context.metrics).await {
            Ok(()) => return finish(&seen, &plan, context, plan.look_again).await,
            Err(ApplyError::Occupied(secret)) => {
                seen.secrets.insert(secret.name.clone(), secret);
            }
            Err(error @ ApplyError::Refused { .. }) => {
                let plan = refused(&seen, &context.settings, &error.to_string());
                return finish(&seen, &plan, context, Some(REFUSED_RETRY)).await;
            }
            Err(error) => return Err(error),
        }
    }
    Err(ApplyError::OutOfDate(format!(
        "the Secrets of LLMAccess {}",
        seen.name()
    )))
}

async fn finish(
    seen: &Observation,
    plan: &Plan,
    context: &Context,
    look_again: Option<Duration>,
) -> Result<Action, ApplyError> {
    let access = seen.access.as_ref();
    let changes_status = access.status.as_ref() != Some(&plan.status);
    // Those that no change of the status goes with come once their cause is dealt with: nothing else tells them apart.
    let (first, last): (Vec<_>, Vec<_>) = plan
        .events
        .iter()
        .partition(|event| changes_status && event.reason != Reason::NothingToRotate);
    for event in first {
        if !context.told.has(access, event, seen.now) && publish(context, access, event).await {
            context.told.remember(access, event, seen.now);
        }
    }
    if apply::write_status(&context.client, access, plan).await? {
        context.superseded.insert(access, seen.now);
    }
    audit(seen, plan);
    context.metrics.passed("settled");
    let first_to_handle =
        plan.rotation_handled && apply::remove_rotation_request(&context.client, access).await?;
    for event in last {
        if event.reason != Reason::NothingToRotate || first_to_handle {
            publish(context, access, event).await;
        }
    }
    Ok(look_again.map_or_else(Action::await_change, Action::requeue))
}

/// One line for each change of a credential, once it is recorded.
fn audit(seen: &Observation, plan: &Plan) {
    let recorded = seen
        .access
        .status
        .as_ref()
        .and_then(|status| status.history.first());
    let Some(change) = plan
        .status
        .history
        .first()
        .filter(|change| Some(*change) != recorded)
    else {
        return;
    };
    info!(
        target: AUDIT,
        namespace = seen.namespace_name(),
        access = seen.name(),
        uid = seen.uid(),
        provider = seen.access.spec.provider_ref.name,
        secret = seen.access.spec.secret_name,
        version = change.version,
        cause = ?change.trigger,
        key = change.key_id,
        requested = plan.rotation_handled,
        requested_by = requested_by(seen, change, plan.rotation_handled),
        "the credential changed"
    );
}

/// Says whether it worked. The status says the same: an event is not worth another pass, nor a long wait.
async fn publish(context: &Context, access: &LLMAccess, event: &EventNote) -> bool {
    let action = context
        .folding
        .action(&access.uid().unwrap_or_default(), event, Timestamp::now());
    let published = context.recorders.publish(access, event, action);
    let outcome = match tokio::time::timeout(EVENT_PATIENCE, published).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    };
    if let Err(error) = &outcome {
        warn!(access = %access.name_any(), error, "an event could not be published");
    }
    outcome.is_ok()
}

/// What can be done with a Secret depends on its type and on whether it is immutable, which metadata do not tell.
async fn read_unread(seen: &mut Observation, client: &Client) -> Result<(), ApplyError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), seen.namespace_name());
    for name in seen.unread() {
        match api.get_opt(&name).await? {
            Some(secret) => seen.secrets.insert(name, Arc::new(secret.into())),
            None => seen.secrets.remove(&name),
        };
    }
    Ok(())
}

/// Whether the index has the master Secret as it is. Who changes it and then asks for a rotation means the new key,
/// whichever watch is faster.
async fn master_is_current(access: &LLMAccess, context: &Context) -> Result<bool, ApplyError> {
    let provider = context.index.read().provider(&access.spec.provider_ref.name);
    let Some(secret_ref) =
        provider.and_then(|p| p.spec.auth.api_key.as_ref().map(|auth| auth.secret_ref.clone()))
    else {
        return Ok(true);
    };
    if !context.settings.trusted.contains(&secret_ref.namespace) {
        return Ok(true);
    }
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &secret_ref.namespace);
    let present = api.get_metadata_opt(&secret_ref.name).await?;
    let indexed = context
        .index
        .read()
        .master(&secret_ref.namespace, &secret_ref.name);
    Ok(present.and_then(|secret| secret.metadata.resource_version)
        == indexed.map(|master| master.resource_version.clone()))
}

/// What follows a pass that failed.
#[expect(clippy::needless_pass_by_value, reason = "the signature is kube's")]
pub fn on_error(access: Arc<LLMAccess>, error: &ApplyError, context: Arc<Context>) -> Action {
    if let ApplyError::OutOfDate(what) = error {
        context.metrics.passed("out of date");
        debug!(access = %access.name_any(), what, "out of date, another pass follows");
        return Action::requeue(OUT_OF_DATE_RETRY);
    }
    context.metrics.passed("failed");
    warn!(access = %access.name_any(), namespace = access.namespace(), %error, "a pass failed and is tried again");
    Action::requeue(FAILED_RETRY)
}
