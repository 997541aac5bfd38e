//! Connections to providers: HTTP/1.1, kept for the next request, over TLS with the bundled roots and the provider's own
//! authority, and through the proxy that `HTTPS_PROXY` names where the cluster lets nothing out otherwise.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::Scheme;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

use super::body::Outbound;
use crate::server::BoxError;

/// How long a connection may take, TLS and an egress proxy included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept for the next request: less than the load balancers of providers keep theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// How many idle connections are kept.
const MAX_IDLE: usize = 64;

/// Sends requests to a provider.
pub type Client = legacy::Client<TimeoutConnector<HttpsConnector<Egress>>, Outbound>;

/// The clients of one access: there is one at a time, and another one only when the provider's authority changes.
#[derive(Debug)]
pub struct Clients {
    proxies: Arc<Matcher>,
    current: Mutex<Option<(Option<String>, Client)>>,
}

/// The provider's authority can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the provider's caBundle holds no usable certificate in PEM form")]
pub struct BadBundle;

impl Clients {
    /// With the proxies that the environment names.
    pub fn new(proxies: Arc<Matcher>) -> Self {
        Self {
            proxies,
            current: Mutex::default(),
        }
    }

    /// The client that trusts the bundled roots and these certificates (PEM).
    pub fn trusting(&self, bundle: Option<&str>) -> Result<Client, BadBundle> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((known, client)) if known.as_deref() == bundle => Ok(client.clone()),
            _ => {
                let client = connect(self.proxies.clone(), bundle)?;
                Ok(current.insert((bundle.map(str::to_owned), client)).1.clone())
            }
        }
    }
}

fn connect(proxies: Arc<Matcher>, bundle: Option<&str>) -> Result<Client, BadBundle> {
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    direct.set_nodelay(true);
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls(bundle)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Egress { direct, proxies });
    let mut connector = TimeoutConnector::new(https);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    Ok(legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE)
        .build(connector))
}

fn tls(bundle: Option<&str>) -> Result<ClientConfig, BadBundle> {
    let mut roots = webpki_roots::TLS_SERVER_ROOTS
        .iter()
        .cloned()
        .collect::<RootCertStore>();
    if let Some(bundle) = bundle {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots
                .add(certificate.map_err(|_| BadBundle)?)
                .map_err(|_| BadBundle)?;
        }
        if roots.len() == before {
            return Err(BadBundle);
        }
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The way out: directly, or through a proxy by CONNECT. Plain http goes directly: such a provider is in the cluster.
#[derive(Debug, Clone)]
pub struct Egress {
    direct: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Service<Uri> for Egress {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let proxy = match destination.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => self.proxies.intercept(&destination),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_has_to_hold_certificates() {
        let clients = Clients::new(Arc::new(Matcher::builder().build()));
        for bundle in [
            "",
            "no PEM",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(clients.trusting(Some(bundle)).is_err(), "{bundle}");
        }
        assert!(clients.trusting(None).is_ok());
    }
}
