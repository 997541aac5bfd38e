//! The provider that an access is for, and the connections to it.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use llmwarden_proto::delivery::Upstream;
use rustls::RootCertStore;

use super::body::Outbound;
use crate::client::Client;
use crate::client::connect::{connector, trust};

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
    /// It trusts the bundled roots and the provider's own certificates.
    pub client: Client<Outbound>,
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
                let mut roots = webpki_roots::TLS_SERVER_ROOTS
                    .iter()
                    .cloned()
                    .collect::<RootCertStore>();
                if let Some(bundle) = bundle {
                    trust(&mut roots, bundle.as_bytes()).map_err(|_| Unusable::Bundle)?;
                }
                let url = base_url.parse::<Uri>().map_err(|_| Unusable::BaseUrl)?;
                let client = Client::new(&url, connector(roots, Some(self.proxies.clone())));
                let provider = Provider {
                    base_url: base_url.to_owned(),
                    bundle: bundle.map(str::to_owned),
                    client: client.map_err(|_| Unusable::BaseUrl)?,
                };
                Ok(current.insert(Arc::new(provider)).clone())
            }
        }
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
