//! Health and metrics, on a port of their own. No secrets.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::info;

use crate::metrics::Exposition;

/// Serves `/healthz`, `/readyz` and `/metrics`, to the end of the process. Ready is who waits for nothing any more.
pub async fn serve(
    address: SocketAddr,
    exposition: Exposition,
    waits_for: impl Fn() -> Option<&'static str> + Clone + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("--status {address}: cannot listen there"))?;
    info!(status = %listener.local_addr()?, "listening");
    let exposition = Arc::new(exposition);
    let metrics = move || {
        let text = exposition.text();
        std::future::ready(match text {
            Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        })
    };
    let ready = move || {
        std::future::ready(match waits_for() {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {what}\n")),
        })
    };
    let router = Router::new()
        .route("/healthz", get(|| std::future::ready("ok\n")))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    axum::serve(listener, router).await?;
    anyhow::bail!("health and metrics are not served any more")
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
