//! A delivered version, and what it gives to whom.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hyper::header::HeaderValue;
use jiff::Timestamp;
use llmwarden_proto::delivery::{Delivery, SCHEMA, State, Upstream};
use secrecy::{ExposeSecret, SecretString};

use super::live_key::LiveKey;

/// Features this sidecar knows, as a companion's `requires` names them.
const FEATURES: &[&str] = &["proxy"];

/// A delivered version: the key and everything that goes with it.
#[derive(Debug)]
pub struct Delivered {
    pub(super) delivery: Delivery,
    pub(super) etag: HeaderValue,
    pub(super) document: Vec<u8>,
    pub(super) unreadable: Vec<&'static str>,
    /// What files and endpoint hand out: the key, or the placeholder.
    pub(super) handed_out: HandedOut,
    /// What the proxy puts in place of the placeholder. Absent in direct mode, and after a restart, as no file holds it.
    pub(super) live: Option<Live>,
    /// Whether the key is taken for a good one: until the provider refuses it and no other one comes.
    pub(super) trusted: AtomicBool,
}

/// The keys that stay in the sidecar.
#[derive(Debug)]
pub struct Live {
    /// The key of this version.
    pub key: LiveKey,
    /// The one before, while it is still valid.
    pub previous: Option<LiveKey>,
}

impl Delivered {
    /// Its version.
    pub fn version(&self) -> u64 {
        self.delivery.version
    }

    /// Its version as HTTP has it (RFC 9110, 8.8.3).
    pub fn etag(&self) -> &HeaderValue {
        &self.etag
    }

    /// When it was made.
    pub fn issued_at(&self) -> Timestamp {
        self.delivery.issued_at
    }

    /// What the proxy uses; nothing in direct mode, or before the source was read again after a restart.
    pub fn live(&self) -> Option<&Live> {
        self.live.as_ref()
    }

    /// The provider has taken the key.
    pub fn trust(&self) {
        self.trusted.store(true, Ordering::Relaxed);
    }

    /// The provider has refused the key, and no other one has come.
    pub fn doubt(&self) {
        self.trusted.store(false, Ordering::Relaxed);
    }

    /// Whether the key was a good one when it was last heard of, if it ever was.
    pub fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    /// What stands for the key in a proxied request.
    pub fn placeholder(&self) -> &SecretString {
        &self.handed_out.secret
    }

    /// Where and how the provider is called.
    pub fn upstream(&self) -> Option<&Upstream> {
        self.delivery.upstream.as_ref()
    }

    /// The document as it came with the key. It holds no secret.
    pub fn document(&self) -> &[u8] {
        &self.document
    }

    /// Every name that has a value. Names that could not be files are left out.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let values = self.delivery.values.keys();
        let keys = &self.delivery.keys;
        keys.iter()
            .chain(values.filter(|name| !keys.contains(name)))
            .map(String::as_str)
            .filter(|name| is_data_name(name))
    }

    /// The value under a name: for most names, the key.
    pub fn expose(&self, name: &str) -> Option<&str> {
        match self.value(name)? {
            Value::Key => Some(self.handed_out.secret.expose_secret()),
            Value::Other(text) => Some(text),
        }
    }

    /// The same as the body of an answer. The key is not copied for that.
    pub fn body(&self, name: &str) -> Option<Bytes> {
        match self.value(name)? {
            Value::Key => Some(self.handed_out.bytes.clone()),
            Value::Other(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        }
    }

    fn value(&self, name: &str) -> Option<Value<'_>> {
        if !is_data_name(name) {
            None
        } else if self.delivery.keys.iter().any(|key| key == name) {
            Some(Value::Key)
        } else {
            self.delivery.values.get(name).map(|text| Value::Other(text))
        }
    }

    /// What the companion asks for and this sidecar lacks: features by their names, or what it could not read.
    pub fn lacking(&self) -> Vec<String> {
        let Delivery {
            schema,
            state,
            requires,
            ..
        } = &self.delivery;
        let schema = (*schema > SCHEMA).then(|| format!("schema {schema}"));
        let state = match state {
            State::Other(state) => Some(format!("state {state}")),
            State::Active | State::Withdrawn => None,
        };
        let fields = self.unreadable.iter().map(|field| format!("field {field}"));
        let features = requires
            .iter()
            .filter(|feature| !FEATURES.contains(&feature.as_str()));
        schema
            .into_iter()
            .chain(state)
            .chain(fields)
            .chain(features.cloned())
            .collect()
    }
}

pub(super) fn etag(version: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("digits are a header value")
}

/// A data name of a Secret that is not `.` or hidden from users, as names from `..` on are.
fn is_data_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.len() <= 253 && name != "." && !name.starts_with("..") && name.chars().all(plain)
}

/// What stands under a name.
enum Value<'a> {
    Key,
    /// What goes with it, and is no secret.
    Other(&'a str),
}

/// The key or the placeholder, once for all answers that carry it: it is wiped with the last of them.
pub(super) struct HandedOut {
    secret: Arc<SecretString>,
    bytes: Bytes,
}

impl From<SecretString> for HandedOut {
    fn from(secret: SecretString) -> Self {
        struct Exposed(Arc<SecretString>);

        impl AsRef<[u8]> for Exposed {
            fn as_ref(&self) -> &[u8] {
                self.0.expose_secret().as_bytes()
            }
        }

        let secret = Arc::new(secret);
        let bytes = Bytes::from_owner(Exposed(secret.clone()));
        Self { secret, bytes }
    }
}

/// Bytes show what they hold.
impl fmt::Debug for HandedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.secret.fmt(f)
    }
}
