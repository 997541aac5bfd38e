//! Health, metrics and status, on a port of their own: for the kubelet, Prometheus and the controller. Never a value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, StatusCode};
use llmwarden_proto::status::{AccessStatus, DeliveryState, SCHEMA, Status};
use tracing::warn;

use crate::endpoint::answer;
use crate::endpoint::guard::Refusal;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::server::{Answer, Answering, Place, Site, at_once};
use crate::store::{Held, Slot, Store};

/// In the delivery directory, which lives as long as the pod: every access had a key.
const STARTED_FILE: &str = "..started";

/// What the answers are made from.
#[derive(Debug)]
pub struct StatusPage {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    proxy: Arc<Proxy>,
    /// Once started, a sidecar stays so: a startup probe is about the first key.
    started: AtomicBool,
    /// Says so to the sidecar's next run, whose key may have been withdrawn.
    marker: PathBuf,
}

impl Site for StatusPage {
    fn answer(self: &Arc<Self>, request: Request<Incoming>, _: &Arc<Place>) -> Answering {
        at_once(self.respond(&request))
    }
}

impl StatusPage {
    /// About this store, of a sidecar that delivers to `dir`.
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>, proxy: Arc<Proxy>, dir: &Path) -> Self {
        let marker = dir.join(STARTED_FILE);
        Self {
            store,
            metrics,
            proxy,
            started: AtomicBool::new(marker.exists()),
            marker,
        }
    }

    fn respond<B>(&self, request: &Request<B>) -> Answer {
        if request.method() != Method::GET {
            self.metrics.refused(Refusal::Method.reason());
            return answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET");
        }
        match request.uri().path() {
            "/healthz" => answer::text(StatusCode::OK, "ok"),
            "/readyz" => probe(&self.waiting(|slot| {
                !matches!(slot.held, Held::Pending) && slot.file_version == slot.held.version()
            })),
            "/startupz" => self.startup(),
            "/metrics" => {
                self.proxy.show();
                let mut answer = answer::text(StatusCode::OK, &self.metrics.text(&self.store));
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                answer
                    .headers_mut()
                    .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
                answer
            }
            "/status" => answer::json(StatusCode::OK, &self.status()),
            _ => answer::text(
                StatusCode::NOT_FOUND,
                "there are /healthz, /readyz, /startupz, /metrics and /status",
            ),
        }
    }

    fn startup(&self) -> Answer {
        let waiting = self.waiting(
            |slot| matches!(&slot.held, Held::Active(key) if slot.file_version == Some(key.version())),
        );
        if waiting.is_empty() {
            self.started.store(true, Ordering::Relaxed);
        }
        // Again at the next look if it could not be written.
        if waiting.is_empty()
            && !self.marker.exists()
            && let Err(error) = std::fs::write(&self.marker, "")
        {
            warn!(%error, file = %self.marker.display(), "the next run will not know that this one had every key");
        }
        if self.started.load(Ordering::Relaxed) {
            answer::text(StatusCode::OK, "ok")
        } else {
            probe(&waiting)
        }
    }

    /// Every access that is not as it should be, with what is known about why.
    fn waiting(&self, good: impl Fn(&Slot) -> bool) -> Vec<String> {
        let slots = self
            .store
            .accesses()
            .filter_map(|access| Some((access, self.store.get(access)?)));
        slots
            .filter(|(_, slot)| !good(slot))
            .map(|(access, slot)| {
                let problem = slot.source_problem.or(slot.file_problem);
                let why = problem.unwrap_or_else(|| format!("holds {}", slot.held));
                format!("{access}: {why}")
            })
            .collect()
    }

    fn status(&self) -> Status {
        let accesses = self.store.accesses();
        Status {
            schema: SCHEMA,
            sidecar: env!("CARGO_PKG_VERSION").to_owned(),
            accesses: accesses
                .filter_map(|access| {
                    let in_use = self.proxy.in_use(access);
                    Some((access.to_owned(), status_of(self.store.get(access)?, in_use)))
                })
                .collect(),
        }
    }
}

fn probe(waiting: &[String]) -> Answer {
    if waiting.is_empty() {
        answer::text(StatusCode::OK, "ok")
    } else {
        let text = format!("waiting for {}", waiting.join("; "));
        answer::text(StatusCode::SERVICE_UNAVAILABLE, &text)
    }
}

fn status_of(slot: Slot, in_use: BTreeMap<u64, u64>) -> AccessStatus {
    let version = slot.held.version();
    let (state, issued_at, reason, lacking) = match slot.held {
        Held::Pending => (DeliveryState::Pending, None, None, Vec::new()),
        Held::Active(delivered) => (
            DeliveryState::Active,
            Some(delivered.issued_at()),
            None,
            delivered.lacking(),
        ),
        Held::Withdrawn(withdrawn) => (DeliveryState::Withdrawn, None, Some(withdrawn.reason), Vec::new()),
    };
    AccessStatus {
        state,
        version,
        file_version: slot.file_version,
        issued_at,
        reason,
        problems: slot.source_problem.into_iter().chain(slot.file_problem).collect(),
        lacking,
        in_use,
    }
}
