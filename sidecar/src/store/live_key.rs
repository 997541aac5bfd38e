//! A provider's key as it is sent.

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use llmwarden_proto::profile::AuthHeader;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

use crate::compare::same;

/// A key that stays in the sidecar, and the header that carries it: its value is made once for all requests and wiped with the
/// last of them.
#[derive(Debug, Clone)]
pub struct LiveKey(Arc<Sendable>);

#[derive(Debug)]
struct Sendable {
    secret: SecretString,
    /// Its value is sensitive, so that it is shown to nobody. Absent where nothing says how the key is sent, or where it
    /// can't be.
    header: Option<(HeaderName, HeaderValue)>,
}

impl LiveKey {
    /// A key that is sent so.
    pub fn new(secret: SecretString, auth: Option<&AuthHeader>) -> Self {
        let header = auth.and_then(|auth| header(auth, &secret));
        Self(Arc::new(Sendable { secret, header }))
    }

    /// The header that carries it, unless it can't be sent.
    pub fn header(&self) -> Option<&(HeaderName, HeaderValue)> {
        self.0.header.as_ref()
    }

    /// Whether it is the same as another one, compared without a hint of where they differ.
    pub fn is(&self, other: &Self) -> bool {
        let [one, another] = [self, other].map(|key| key.0.secret.expose_secret().as_bytes());
        Arc::ptr_eq(&self.0, &other.0) || same(one, another).into()
    }
}

fn header(auth: &AuthHeader, key: &SecretString) -> Option<(HeaderName, HeaderValue)> {
    let key = key.expose_secret();
    let text = match &auth.scheme {
        Some(scheme) => format!("{scheme} {key}"),
        None => key.to_owned(),
    };
    let text = Bytes::from_owner(Zeroizing::new(text.into_bytes()));
    let mut value = HeaderValue::from_maybe_shared(text).ok()?;
    value.set_sensitive(true);
    Some((HeaderName::try_from(&auth.header).ok()?, value))
}

#[cfg(test)]
mod tests {
    use llmwarden_proto::profile::ProviderKind;

    use super::*;

    fn key(text: &str, provider: ProviderKind) -> LiveKey {
        LiveKey::new(text.into(), Some(&provider.auth_header()))
    }

    #[test]
    fn it_is_sent_as_the_provider_wants_it_and_shown_to_nobody() {
        let bearer = key("sk-test-1", ProviderKind::Openai);
        let (name, value) = bearer.header().expect("a header");
        assert_eq!(
            (name.as_str(), value.as_bytes()),
            ("authorization", b"Bearer sk-test-1".as_slice())
        );
        let plain = key("sk-test-1", ProviderKind::Anthropic);
        let (name, value) = plain.header().expect("a header");
        assert_eq!(
            (name.as_str(), value.as_bytes()),
            ("x-api-key", b"sk-test-1".as_slice())
        );
        assert!(!format!("{bearer:?} {plain:?}").contains("sk-test"));
        assert!(key("a\nb", ProviderKind::Openai).header().is_none());
        assert!(LiveKey::new("sk-test-1".into(), None).header().is_none());
    }

    #[test]
    fn it_is_the_same_wherever_it_came_from() {
        let one = key("sk-test-1", ProviderKind::Openai);
        assert!(one.is(&one.clone()) && one.is(&key("sk-test-1", ProviderKind::Anthropic)));
        assert!(!one.is(&key("sk-test-2", ProviderKind::Openai)));
    }
}
