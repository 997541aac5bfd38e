//! Connections to providers: HTTP/1.1, kept for the next request, over TLS with the bundled roots and the provider's own
//! authority, and through the proxy that `HTTPS_PROXY` names where the cluster lets nothing out otherwise.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::{self, PathAndQuery, Scheme};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use llmwarden_proto::delivery::Upstream;
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
type Client = legacy::Client<TimeoutConnector<HttpsConnector<Egress>>, Outbound>;

/// The clients of one access: there is one at a time, and another one only when the provider is another, or its authority.
#[derive(Debug)]
pub struct Clients {
    proxies: Arc<Matcher>,
    current: Mutex<Option<Arc<Provider>>>,
}

/// A provider, and what it is called with.
#[derive(Debug)]
pub struct Provider {
    base_url: String,
    bundle: Option<String>,
    /// The scheme and the authority.
    base: uri::Parts,
    /// It trusts the bundled roots and the provider's own certificates.
    pub client: Client,
}

/// Why a provider can't be called.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Nothing says where it is.
    #[error("it has no base URL, or none that can be read")]
    BaseUrl,
    /// Its authority can't be used.
    #[error("its caBundle holds no usable certificate in PEM form")]
    Bundle,
}

impl Clients {
    /// With the proxies that the environment names.
    pub fn new(proxies: Arc<Matcher>) -> Self {
        Self {
            proxies,
            current: Mutex::default(),
        }
    }

    /// The provider that is called so.
    pub fn provider(&self, upstream: &Upstream) -> Result<Arc<Provider>, Unusable> {
        let base_url = upstream.base_url.as_deref().ok_or(Unusable::BaseUrl)?;
        let bundle = upstream.ca_bundle.as_deref();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(known) if known.base_url == base_url && known.bundle.as_deref() == bundle => {
                Ok(known.clone())
            }
            _ => {
                let base = base_url.parse::<Uri>().map_err(|_| Unusable::BaseUrl)?;
                let provider = Provider {
                    base_url: base_url.to_owned(),
                    bundle: bundle.map(str::to_owned),
                    base: base.into_parts(),
                    client: connect(self.proxies.clone(), bundle)?,
                };
                Ok(current.insert(Arc::new(provider)).clone())
            }
        }
    }
}

impl Provider {
    /// The URL of a path and a query there.
    pub fn uri(&self, path: &str, query: Option<&str>) -> Option<Uri> {
        let target = match query {
            Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
            None => PathAndQuery::try_from(path),
        };
        let mut parts = uri::Parts::default();
        parts.scheme.clone_from(&self.base.scheme);
        parts.authority.clone_from(&self.base.authority);
        parts.path_and_query = Some(target.ok()?);
        Uri::from_parts(parts).ok()
    }
}

fn connect(proxies: Arc<Matcher>, bundle: Option<&str>) -> Result<Client, Unusable> {
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

fn tls(bundle: Option<&str>) -> Result<ClientConfig, Unusable> {
    let mut roots = webpki_roots::TLS_SERVER_ROOTS
        .iter()
        .cloned()
        .collect::<RootCertStore>();
    if let Some(bundle) = bundle {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots
                .add(certificate.map_err(|_| Unusable::Bundle)?)
                .map_err(|_| Unusable::Bundle)?;
        }
        if roots.len() == before {
            return Err(Unusable::Bundle);
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
    use llmwarden_proto::profile::ProviderKind;

    use super::*;

    #[test]
    fn a_bundle_has_to_hold_certificates() {
        let clients = Clients::new(Arc::new(Matcher::builder().build()));
        let mut upstream = ProviderKind::Openai.upstream(None);
        for bundle in [
            "",
            "no PEM",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            upstream.ca_bundle = Some(bundle.to_owned());
            assert!(clients.provider(&upstream).is_err(), "{bundle}");
        }
        upstream.ca_bundle = None;
        assert!(clients.provider(&upstream).is_ok());
    }
}
