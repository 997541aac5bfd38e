//! The webhook's side of admission, of pods and of accesses: reviews in, answers out. No request to the API server is made for
//! one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::post;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
use kube::core::admission::{
    AdmissionRequest, AdmissionResponse, AdmissionReview, ConvertAdmissionReviewError, Operation,
};
use kube::{Resource, ResourceExt};
use llmwarden_proto::names;
use rustls::ServerConfig;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::{debug, info, warn};

use super::patch::Draft;
use super::plan::plan;
use super::select::{Scope, select};
use super::sidecar::Template;
use super::{Obstacle, Outcome, SkipReason};
use crate::access::asked;
use crate::index::watch::SharedIndex;
use crate::metrics::Metrics;

/// Where reviews of pods are sent.
pub const PATH: &str = "/inject";
/// Where reviews of accesses are sent.
pub const ACCESS_PATH: &str = "/access";
/// The largest review that is read: objects have 3 MiB at most, and there is one in it.
const MAX_REVIEW: usize = 4 * 1024 * 1024;
/// How much of a larger one is thrown away: a connection that is closed before its request has ended takes the answer with it.
const MAX_REST: usize = 16 * 1024 * 1024;
/// How long a client may take for its TLS handshake, then for its first request, and for each review.
const PATIENCE: Duration = Duration::from_secs(10);

/// What answers are made from.
#[derive(Debug)]
pub struct Webhook {
    /// What the watches saw.
    pub index: SharedIndex,
    /// Where pods are injected.
    pub scope: Scope,
    /// Namespaces that master keys may live in.
    pub trusted: Vec<String>,
    /// The sidecar to inject.
    pub template: Template,
    /// Where answers are counted.
    pub metrics: Metrics,
}

/// Of a review that can't be read, what the answer needs.
#[derive(Default, Deserialize)]
struct Unreadable {
    #[serde(default)]
    request: Identified,
}

#[derive(Default, Deserialize)]
struct Identified {
    #[serde(default)]
    uid: String,
}

impl Webhook {
    /// Answers a review of a pod.
    pub fn review(&self, body: &[u8]) -> AdmissionReview<DynamicObject> {
        self.answered(body, "a pod", |request| self.answer(request))
    }

    /// Answers a review of an access.
    pub fn review_access(&self, body: &[u8]) -> AdmissionReview<DynamicObject> {
        self.answered(body, "an LLMAccess", |request| self.answer_access(request))
    }

    fn answered<K: Resource + DeserializeOwned>(
        &self,
        body: &[u8],
        whose: &str,
        answer: impl FnOnce(&AdmissionRequest<K>) -> AdmissionResponse,
    ) -> AdmissionReview<DynamicObject> {
        let begin = Instant::now();
        let request: Result<AdmissionRequest<K>, String> = serde_json::from_slice::<AdmissionReview<K>>(body)
            .map_err(|error| error.to_string())
            .and_then(|review| {
                let request = review.try_into();
                request.map_err(|error: ConvertAdmissionReviewError| error.to_string())
            });
        let response = match request {
            Ok(request) => answer(&request),
            Err(error) => {
                warn!(error, "a review that can't be read");
                self.metrics.admitted("invalid", "Unreadable");
                let uid = serde_json::from_slice::<Unreadable>(body).unwrap_or_default();
                let mut response =
                    AdmissionResponse::invalid(format!("not the AdmissionReview of {whose}: {error}"));
                response.uid = uid.request.uid;
                response
            }
        };
        self.metrics.admission_took(begin.elapsed());
        response.into_review()
    }

    fn answer(&self, request: &AdmissionRequest<Pod>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        let Some(pod) = request
            .object
            .as_ref()
            .filter(|_| request.operation == Operation::Create)
        else {
            return response;
        };
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let (outcome, reason) = match self.outcome(pod, namespace) {
            Outcome::Patch(injected) => {
                for obstacle in &injected.left_out {
                    self.metrics.admitted("left out", obstacle.reason());
                }
                self.metrics.admitted("injected", "Injected");
                let mut response = response
                    .with_patch(json_patch::Patch(injected.operations))
                    .expect("a patch of JSON values becomes JSON");
                response.warnings = Some(injected.warnings).filter(|all| !all.is_empty());
                return response;
            }
            Outcome::Skip(skipped) => {
                let reason = skipped.reason();
                self.metrics.admitted("skipped", reason);
                let response = match skipped {
                    SkipReason::Obstructed(obstacle) => skip(pod, &obstacle, response),
                    _ => response,
                };
                (response, reason)
            }
            Outcome::Deny(obstacle) => {
                self.metrics.admitted("denied", obstacle.reason());
                (response.deny(&obstacle), obstacle.reason())
            }
        };
        let name = pod.metadata.name.as_ref().or(pod.metadata.generate_name.as_ref());
        debug!(namespace, pod = name, reason, "not injected");
        outcome
    }

    fn answer_access(&self, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let mut response = AdmissionResponse::from(request);
        let Some(access) = &request.object else {
            return response;
        };
        let user = request.user_info.username.as_deref().unwrap_or_default();
        let operations = asked::sign(access, request.old_object.as_ref(), user);
        if !operations.is_empty() {
            response = response
                .with_patch(json_patch::Patch(operations))
                .expect("a patch of JSON values becomes JSON");
        }
        let warnings = asked::warnings(
            access,
            request.namespace.as_deref().unwrap_or_default(),
            &self.index.read(),
            &self.trusted,
            &self.scope.served,
            Timestamp::now(),
        );
        let outcome = if warnings.is_empty() { "taken" } else { "warned" };
        self.metrics.admitted(outcome, "LLMAccess");
        response.warnings = Some(warnings).filter(|all| !all.is_empty());
        response
    }

    fn outcome(&self, pod: &Pod, namespace: &str) -> Outcome {
        let selection = select(pod, namespace, &self.scope, &self.index.read());
        selection.map_or_else(
            |outcome| outcome,
            |selection| plan(pod, selection, &self.template),
        )
    }
}

/// Leaves a selected pod without the sidecar. Why stands on the pod, where the holder of the Lease finds it, who tells of it:
/// a review has no other effects than its answer.
fn skip(pod: &Pod, obstacle: &Obstacle, response: AdmissionResponse) -> AdmissionResponse {
    let why = obstacle.to_string();
    let mut draft = Draft::default();
    let annotations = pod.annotations();
    if annotations.is_empty() {
        draft.set(
            &["metadata", "annotations"],
            json!({ names::SKIPPED_ANNOTATION: why }),
        );
    } else if annotations.get(names::SKIPPED_ANNOTATION) != Some(&why) {
        draft.set(
            &["metadata", "annotations", names::SKIPPED_ANNOTATION],
            json!(why),
        );
    }
    let mut response = response
        .with_patch(json_patch::Patch(draft.0))
        .expect("a patch of JSON values becomes JSON");
    response.warnings = Some(vec![format!("not injected: {why}")]);
    response
}

/// Serves reviews, to the end of the process or of `handle`.
pub async fn serve(
    address: SocketAddr,
    webhook: Webhook,
    tls: Arc<ServerConfig>,
    handle: Handle<SocketAddr>,
) -> anyhow::Result<()> {
    let failed = || format!("--webhook {address}: cannot listen there");
    let listener = std::net::TcpListener::bind(address).with_context(failed)?;
    listener.set_nonblocking(true)?;
    info!(webhook = %listener.local_addr()?, "serving admission");
    let router = Router::new()
        .route(PATH, post(admit))
        .route(ACCESS_PATH, post(admit_access))
        .with_state(Arc::new(webhook));
    axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(tls))
        .with_context(failed)?
        .map(|acceptor| acceptor.handshake_timeout(PATIENCE))
        .first_request_timeout(PATIENCE)
        .handle(handle)
        .serve(router.into_make_service())
        .await?;
    anyhow::bail!("admission is not served any more")
}

async fn admit(State(webhook): State<Arc<Webhook>>, body: Body) -> Result<impl IntoResponse, Refusal> {
    Ok(answer(&webhook.review(&read(body, PATIENCE).await?)))
}

async fn admit_access(State(webhook): State<Arc<Webhook>>, body: Body) -> Result<impl IntoResponse, Refusal> {
    Ok(answer(&webhook.review_access(&read(body, PATIENCE).await?)))
}

type Refusal = (StatusCode, String);

async fn read(mut body: Body, patience: Duration) -> Result<Bytes, Refusal> {
    let reading = async {
        match Limited::new(&mut body, MAX_REVIEW).collect().await {
            Ok(review) => return Ok(review.to_bytes()),
            Err(error) if !error.is::<LengthLimitError>() => {
                return Err((StatusCode::BAD_REQUEST, error.to_string()));
            }
            Err(_) => {}
        }
        let mut rest = Limited::new(body, MAX_REST);
        while let Some(Ok(_)) = rest.frame().await {}
        let why = format!("a review has {MAX_REVIEW} bytes at most");
        Err((StatusCode::PAYLOAD_TOO_LARGE, why))
    };
    tokio::time::timeout(patience, reading).await.unwrap_or_else(|_| {
        let why = format!("the review took longer than {} s", patience.as_secs());
        Err((StatusCode::REQUEST_TIMEOUT, why))
    })
}

fn answer(review: &AdmissionReview<DynamicObject>) -> impl IntoResponse + use<> {
    let text = serde_json::to_vec(review).expect("an answer has string keys and no failing values");
    ([(header::CONTENT_TYPE, "application/json")], text)
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn a_review_that_does_not_come_or_breaks_off_is_told_apart_from_a_large_one() {
        let waiting = Body::from_stream(stream::pending::<io::Result<Bytes>>());
        let broken = Body::from_stream(stream::iter([Err::<Bytes, _>(io::Error::other("gone"))]));
        let large = Body::from(vec![b'x'; MAX_REVIEW + 1]);
        for (body, patience, status) in [
            (waiting, Duration::ZERO, StatusCode::REQUEST_TIMEOUT),
            (broken, PATIENCE, StatusCode::BAD_REQUEST),
            (large, PATIENCE, StatusCode::PAYLOAD_TOO_LARGE),
        ] {
            let read = read(body, patience).await;
            assert_eq!(read.map_err(|(status, _)| status), Err(status));
        }
        let whole = read(Body::from(vec![b'x'; MAX_REVIEW]), PATIENCE).await;
        assert_eq!(whole.map(|review| review.len()), Ok(MAX_REVIEW));
    }
}
