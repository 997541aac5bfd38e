//! Ways to a server: TCP, TLS over it where its URL says so, and the proxy that `HTTPS_PROXY` names where the cluster lets
//! nothing out otherwise.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::http::uri::Scheme;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::server::BoxError;

/// Connects to a server.
pub type Connector = HttpsConnector<Egress>;

/// A file or a text that should hold certificates in PEM form has none that can be used.
#[derive(Debug, thiserror::Error)]
#[error("there is no usable certificate in PEM form")]
pub struct NoCertificate;

/// A connector that trusts these roots, and goes out through these proxies where there are any for a server.
pub fn connector(roots: RootCertStore, proxies: Option<Arc<Matcher>>) -> Connector {
    let tls = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    direct.set_nodelay(true);
    HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Egress { direct, proxies })
}

/// Adds the certificates of a text in PEM form to the roots: at least one.
pub fn trust(roots: &mut RootCertStore, bundle: &[u8]) -> Result<(), NoCertificate> {
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|_| NoCertificate)?;
        roots.add(certificate).map_err(|_| NoCertificate)?;
    }
    if roots.len() == before {
        return Err(NoCertificate);
    }
    Ok(())
}

/// The way out: directly, or through a proxy by CONNECT. Plain http goes directly: such a provider is in the cluster.
#[derive(Debug, Clone)]
pub struct Egress {
    direct: HttpConnector,
    proxies: Option<Arc<Matcher>>,
}

impl Service<Uri> for Egress {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let proxy = match (destination.scheme(), &self.proxies) {
            (Some(scheme), Some(proxies)) if *scheme == Scheme::HTTPS => proxies.intercept(&destination),
            _ => None,
        };
        let mut direct = self.direct.clone();
        Box::pin(async move {
            let Some(proxy) = proxy else {
                return Ok(direct.call(destination).await?);
            };
            if proxy.uri().scheme() != Some(&Scheme::HTTP) {
                return Err("HTTPS_PROXY: only a proxy at an http:// URL can be used".into());
            }
            let mut tunnel = Tunnel::new(proxy.uri().clone(), direct);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            Ok(tunnel.call(destination).await?)
        })
    }
}
