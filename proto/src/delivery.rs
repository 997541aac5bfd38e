//! The companion Secret, `<access>.llmwarden`: how a key travels from the controller to the sidecars.
//!
//! Its data are [`names::API_KEY`] (the live key), [`names::PLACEHOLDER`] (a constant that stands for the key in proxy
//! mode) and [`names::LIVE_JSON`], a [`Delivery`]. Pods outlive controllers, so the document is only ever added to: a
//! sidecar ignores fields it does not know, and always takes the key.

use std::collections::BTreeMap;

use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::names;
use crate::profile::AuthHeader;

/// The `schema` that this version writes.
pub const SCHEMA: u32 = 1;

/// `live.json`: everything about a delivered key but the key itself. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Format of this document, [`SCHEMA`].
    pub schema: u32,
    /// Grows with every change of key or settings; at least Unix time in milliseconds when it was made.
    pub version: u64,
    /// Whether there is a key to use.
    pub state: State,
    /// Why the key was withdrawn, in words for the agent's owner; only with [`State::Withdrawn`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When this version was made.
    pub issued_at: Timestamp,
    /// Data names that the key is delivered under: `apiKey`, and those that `injection.env[].secretKey` names.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Further values delivered next to the key, none of them secret: `baseUrl` when the provider overrides it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, String>,
    /// Where and how the provider is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Upstream>,
    /// Features a sidecar must know to take the settings of this version; the key it takes always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
}

/// Whether a companion holds a usable key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// The key is to be used.
    Active,
    /// The access is no longer allowed: the key is to be dropped.
    Withdrawn,
}

/// How requests reach the provider, as data, so that a new provider needs no new sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// The provider's kind as `spec.provider` names it.
    pub provider: String,
    /// Base URL, as the provider's SDKs take it. Absent for providers that have no fixed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Header that carries the key.
    pub auth: AuthHeader,
    /// Models the access may use; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Requests per minute, where the provider limits them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Tokens per minute, where the provider limits them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
}

/// What a sidecar makes of a companion's data.
#[derive(Debug, Clone)]
pub struct Companion {
    /// The document.
    pub delivery: Delivery,
    /// The live key; always there when the state is [`State::Active`].
    pub api_key: Option<SecretString>,
}

/// Why a companion's data cannot be used. The last good key stays in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There is no `live.json`.
    #[error("the companion has no `{}`", names::LIVE_JSON)]
    NoDocument,
    /// `live.json` is not what [`Delivery`] describes. The text never quotes the data.
    #[error("`{LIVE_JSON}` is malformed: {0}", LIVE_JSON = names::LIVE_JSON)]
    Malformed(String),
    /// The state is active, but there is no key.
    #[error("the companion is active but has no `{}`", names::API_KEY)]
    NoKey,
    /// The key is not text.
    #[error("`{}` is not valid UTF-8", names::API_KEY)]
    KeyNotText,
    /// The key is larger than [`MAX_KEY_BYTES`].
    #[error("`{}` is larger than {MAX_KEY_BYTES} bytes", names::API_KEY)]
    KeyTooLarge,
}

/// The largest key that is delivered, in bytes: far over any provider's, under what a Secret can hold.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

impl Companion {
    /// Reads a companion's data: `get` returns the bytes under a data name.
    pub fn parse<B: AsRef<[u8]>>(get: impl Fn(&str) -> Option<B>) -> Result<Self, ParseError> {
        let document = get(names::LIVE_JSON).ok_or(ParseError::NoDocument)?;
        let delivery: Delivery = serde_json::from_slice(document.as_ref())
            // The position says where to look; serde's own text may quote the data.
            .map_err(|e| ParseError::Malformed(format!("line {}, column {}", e.line(), e.column())))?;
        let api_key = match delivery.state {
            State::Withdrawn => None,
            State::Active => {
                let bytes = get(names::API_KEY)
                    .filter(|b| !b.as_ref().is_empty())
                    .ok_or(ParseError::NoKey)?;
                if bytes.as_ref().len() > MAX_KEY_BYTES {
                    return Err(ParseError::KeyTooLarge);
                }
                let text = std::str::from_utf8(bytes.as_ref()).map_err(|_| ParseError::KeyNotText)?;
                Some(SecretString::from(text))
            }
        };
        Ok(Self { delivery, api_key })
    }
}

/// The version that follows `previous`, the largest one known: it grows through recreation, restore and loss of both
/// Secrets, even when the clock went back.
pub fn next_version(previous: Option<u64>, now: Timestamp) -> u64 {
    let clock = u64::try_from(now.as_millisecond()).unwrap_or(0);
    previous.map_or(clock, |previous| clock.max(previous.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;

    type Entries<'a> = &'a [(&'a str, &'a [u8])];

    fn parse(entries: Entries) -> Result<Companion, ParseError> {
        Companion::parse(|name| entries.iter().find(|(n, _)| *n == name).map(|(_, v)| *v))
    }

    const ACTIVE: &[u8] =
        br#"{"schema":1,"version":7,"state":"active","issuedAt":"2026-01-01T00:00:00Z","keys":["apiKey"]}"#;

    #[test]
    fn takes_the_key_of_a_document_with_unknown_fields() {
        let future =
            br#"{"schema":9,"version":7,"state":"active","issuedAt":"2026-01-01T00:00:00Z","keys":["apiKey"],
            "colour":"blue","requires":["time-travel"]}"#;
        let companion = parse(&[("live.json", future), ("apiKey", b"sk-1")]).expect("parses");
        assert_eq!(companion.api_key.expect("active").expose_secret(), "sk-1");
        assert_eq!(companion.delivery.requires, ["time-travel"]);
    }

    #[test]
    fn refuses_what_holds_no_usable_key() {
        let cases: [(Entries, ParseError); 5] = [
            (&[("apiKey", b"sk-1")], ParseError::NoDocument),
            (
                &[("live.json", b"{"), ("apiKey", b"sk-1")],
                ParseError::Malformed("line 1, column 1".into()),
            ),
            (&[("live.json", ACTIVE)], ParseError::NoKey),
            (&[("live.json", ACTIVE), ("apiKey", b"")], ParseError::NoKey),
            (
                &[("live.json", ACTIVE), ("apiKey", b"\xff\xfe")],
                ParseError::KeyNotText,
            ),
        ];
        for (entries, expected) in cases {
            assert_eq!(parse(entries).expect_err("refused"), expected);
        }
    }

    #[test]
    fn a_withdrawn_companion_needs_no_key() {
        let gone =
            br#"{"schema":1,"version":8,"state":"withdrawn","reason":"r","issuedAt":"2026-01-01T00:00:00Z"}"#;
        assert!(
            parse(&[("live.json", gone), ("apiKey", b"sk-1")])
                .expect("parses")
                .api_key
                .is_none()
        );
    }

    proptest! {
        #[test]
        fn versions_grow_whatever_the_clock_says(previous in 0..u64::MAX, ms in -1_000_000_i64..4_000_000_000_000) {
            let now = Timestamp::from_millisecond(ms).expect("in range");
            let next = next_version(Some(previous), now);
            prop_assert!(next > previous);
            prop_assert!(i64::try_from(next).map_or(true, |next| next >= ms));
        }
    }
}
