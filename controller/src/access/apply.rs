//! Carries a plan out: a thin shell around the API server.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::errors::describe;
use llmwarden_proto::names;
use tracing::info;

use super::desired::DesiredSecret;
use super::plan::{Plan, Write};
use crate::index::secret::ObservedSecret;
use crate::metrics::Metrics;

/// Why a plan was not carried out to its end.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another Secret has the name. The plan has to be made anew with it.
    #[error("Secret {} appeared meanwhile", .0.name)]
    Occupied(Arc<ObservedSecret>),
    /// The observation was out of date: what is newer is on its way.
    #[error("{0} changed meanwhile")]
    OutOfDate(String),
    /// The API server does not take the write, and would not take it again.
    #[error("the API server refused to write Secret {name}: {why}")]
    Refused {
        /// Name of the Secret.
        name: String,
        /// Why, without any of what was written.
        why: String,
    },
    /// The API server did not answer.
    #[error("the API server did not answer in time")]
    NoAnswer,
    /// Anything else.
    #[error("{}", describe(.0))]
    Api(#[from] kube::Error),
}

/// Writes the Secrets of a plan, in order. One that the API server refuses does not keep the others from being written. What
/// is to be deleted but gone already is out of date like any other surprise: a pass that goes on from it would tell a second
/// time what another one has told.
pub async fn write_secrets(
    client: &Client,
    access: &LLMAccess,
    plan: &Plan,
    metrics: &Metrics,
) -> Result<(), ApplyError> {
    let namespace = access.namespace().unwrap_or_default();
    let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let mut outcome = Ok(());
    for write in &plan.writes {
        let written = match write {
            Write::Create(desired) => create(&api, access, desired, metrics).await,
            Write::Replace(desired, present) => replace(&api, access, desired, present, metrics).await,
            Write::Recreate(desired, present) => match delete(&api, present, metrics).await {
                Ok(()) => create(&api, access, desired, metrics).await,
                refused => refused,
            },
            Write::Delete(present) => delete(&api, present, metrics).await,
        };
        match written {
            Err(refused @ ApplyError::Refused { .. }) => outcome = outcome.and(Err(refused)),
            written => written?,
        }
    }
    outcome
}

async fn replace(
    api: &Api<Secret>,
    access: &LLMAccess,
    desired: &DesiredSecret,
    present: &ObservedSecret,
    metrics: &Metrics,
) -> Result<(), ApplyError> {
    let mut object = desired.object(access);
    object.metadata.uid = Some(present.uid.clone());
    object.metadata.resource_version = Some(present.resource_version.clone());
    // Left out, they would be removed, and with them what somebody else still has to do.
    object.metadata.finalizers = Some(present.finalizers.clone());
    if let Some(content) = &present.content {
        object.type_ = Some(content.kind.clone());
    }
    let outcome = api.replace(&desired.name, &PostParams::default(), &object).await;
    outcome.map_err(|error| classify(error, &desired.name))?;
    metrics.wrote("replace");
    info!(access = %access.name_any(), namespace = access.namespace(), secret = desired.name, "Secret replaced");
    Ok(())
}

async fn create(
    api: &Api<Secret>,
    access: &LLMAccess,
    desired: &DesiredSecret,
    metrics: &Metrics,
) -> Result<(), ApplyError> {
    match api.create(&PostParams::default(), &desired.object(access)).await {
        Ok(_) => {
            metrics.wrote("create");
            info!(access = %access.name_any(), secret = desired.name, "Secret created");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let secret = api.get_opt(&desired.name).await?;
            let secret = secret.map(|secret| Arc::new(ObservedSecret::from(secret)));
            let own = access.uid().unwrap_or_default();
            Err(match secret {
                // Of somebody who knows more than this plan: its precondition would make an old plan look like a new one.
                Some(secret) if !secret.is_owned_by(&own) => ApplyError::Occupied(secret),
                _ => ApplyError::OutOfDate(desired.name.clone()),
            })
        }
        Err(error) => Err(classify(error, &desired.name)),
    }
}

async fn delete(api: &Api<Secret>, present: &ObservedSecret, metrics: &Metrics) -> Result<(), ApplyError> {
    // The resource version too: whoever wants to keep the Secret may have made it their own meanwhile.
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(present.uid.clone()),
            resource_version: Some(present.resource_version.clone()),
        }),
        ..DeleteParams::default()
    };
    match api.delete(&present.name, &params).await {
        Ok(_) => {
            metrics.wrote("delete");
            info!(secret = present.name, "Secret deleted");
            Ok(())
        }
        Err(error) => Err(classify(error, &present.name)),
    }
}

fn classify(error: kube::Error, name: &str) -> ApplyError {
    match error {
        kube::Error::Api(status) if status.is_conflict() || status.is_not_found() => {
            ApplyError::OutOfDate(name.to_owned())
        }
        // Whose right, quota or policy it is stands in the message.
        kube::Error::Api(status) if status.code == 403 => ApplyError::Refused {
            name: name.to_owned(),
            why: status.message.clone(),
        },
        // These messages are about the content, and may quote it.
        kube::Error::Api(status) if matches!(status.code, 400 | 413 | 422) => ApplyError::Refused {
            name: name.to_owned(),
            why: format!("{} {}", status.code, status.reason),
        },
        error => ApplyError::Api(error),
    }
}

/// Writes the status of a plan. False: that changed nothing, so no watch will tell of it.
pub async fn write_status(client: &Client, access: &LLMAccess, plan: &Plan) -> Result<bool, ApplyError> {
    if access.status.as_ref() == Some(&plan.status) {
        return Ok(false);
    }
    let api: Api<LLMAccess> = Api::namespaced(client.clone(), &access.namespace().unwrap_or_default());
    let mut object = access.clone();
    object.status = Some(plan.status.clone());
    let name = access.name_any();
    // Carries the resource version, so that no newer status is overwritten.
    let written = api
        .replace_status(&name, &PostParams::default(), &object)
        .await
        .map_err(|error| match error {
            kube::Error::Api(status) if status.is_conflict() || status.is_not_found() => {
                ApplyError::OutOfDate(format!("LLMAccess {name}"))
            }
            error => error.into(),
        })?;
    Ok(written.resource_version() != access.resource_version())
}

/// Removes the request to rotate that has been dealt with. False: it was gone, so another pass had dealt with it.
pub async fn remove_rotation_request(client: &Client, access: &LLMAccess) -> Result<bool, ApplyError> {
    let api: Api<LLMAccess> = Api::namespaced(client.clone(), &access.namespace().unwrap_or_default());
    let annotation = format!(
        "/metadata/annotations/{}",
        names::ROTATE_ANNOTATION.replace('/', "~1")
    );
    let operations = serde_json::json!([
        { "op": "test", "path": annotation, "value": names::ROTATE_NOW },
        { "op": "remove", "path": annotation },
    ]);
    let patch = serde_json::from_value(operations).map_err(kube::Error::SerdeError)?;
    match api
        .patch(
            &access.name_any(),
            &PatchParams::default(),
            &Patch::<()>::Json(patch),
        )
        .await
    {
        Ok(_) => Ok(true),
        // That is how the API server says that the test failed.
        Err(kube::Error::Api(status)) if status.code == 422 || status.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}
