//! The companion Secret, `<access>.llmwarden`: how a key travels from the controller to the sidecars.
//!
//! Its data are [`names::API_KEY`] (the live key), [`names::PREVIOUS_API_KEY`] (the one before, while both are valid),
//! [`names::PLACEHOLDER`] (a constant that stands for the key in proxy mode) and [`names::LIVE_JSON`], a [`Delivery`]. Pods outlive controllers, so the document is only ever added to: a
//! sidecar ignores fields it does not know, and always takes the key. Only `version`, `state` and the key itself decide;
//! whatever else it can't read it does without, and says so.

use std::collections::BTreeMap;

use jiff::Timestamp;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// The key is to be used.
    Active,
    /// The access is no longer allowed: the key is to be dropped.
    Withdrawn,
    /// What a later version came up with. Whether there is a key decides.
    #[serde(untagged)]
    Other(String),
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
    /// PEM certificates that the provider's own is checked against, besides the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// Models the access may use; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// What may be asked, and where the model stands; the first that matches counts. Without any, nothing may be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Fields of a body, besides `model`, that name further models to use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models_elsewhere: Vec<String>,
    /// Tools of a body, by their `type`, and plugins, by their `id`, that use models which they need not name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub model_tools: Vec<String>,
    /// The form that errors have, so that the provider's SDKs understand ours too.
    #[serde(default, skip_serializing_if = "ErrorShape::is_openai")]
    pub errors: ErrorShape,
    /// Answers that mean that the key is dead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead_key: Vec<DeadKey>,
    /// Requests per minute, where the provider limits them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Tokens per minute, where the provider limits them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
}

/// Requests that are treated alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The method, or `*` for any.
    pub method: String,
    /// Pattern of the path below the provider's scheme and authority. `*` stands for any part of one segment, `{model}` for
    /// the part that names the model, and a segment `**`, the first or the last, for any number of segments.
    pub path: String,
    /// Where the model stands.
    pub model: ModelPlace,
    /// Why it is denied, in words for whoever asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Where a request names its model, and so what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ModelPlace {
    /// In the field `model` of a JSON body.
    Body,
    /// In the path, where its pattern says `{model}`.
    Path,
    /// Nowhere: it uses no model.
    None,
    /// Where it is not read: denied to those who may not use all models.
    Unread,
    /// Denied to all: also what a later version came up with.
    #[serde(other)]
    Denied,
}

/// The form of a provider's error answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorShape {
    /// `{"type": "error", "error": {"type", "message"}}`.
    Anthropic,
    /// `{"error": {"code", "message", "status", "details"}}`.
    Gemini,
    /// `{"error": {"message", "type", "param", "code"}}`: also for what a later version came up with.
    #[default]
    #[serde(other)]
    Openai,
}

impl ErrorShape {
    // As serde calls it.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_openai(&self) -> bool {
        *self == Self::Openai
    }
}

/// An answer by which a provider says that the key is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadKey {
    /// The answer's status.
    pub status: u16,
    /// Texts of which its body has one, in any case of letters; whatever it has, if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub any_of: Vec<String>,
}

/// What a sidecar makes of a companion's data.
#[derive(Debug, Clone)]
pub struct Companion {
    /// The document, as far as this version can read it.
    pub delivery: Delivery,
    /// The document as it came, with all that this version does not know.
    pub document: Vec<u8>,
    /// Fields of the document, and data beside it, that this version knows and can't read in the form they have.
    pub unreadable: Vec<&'static str>,
    /// The live key; absent when it was withdrawn.
    pub api_key: Option<SecretString>,
    /// The key before this one, while both are valid.
    pub previous_api_key: Option<SecretString>,
    /// What stands for the key in proxy mode.
    pub placeholder: Option<SecretString>,
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
    /// There is no key, and the state does not say why in words that this version knows.
    #[error(
        "the companion has no `{}`, and a state that this version does not know",
        names::API_KEY
    )]
    UnknownState,
    /// The key is not text.
    #[error("`{}` is not valid UTF-8", names::API_KEY)]
    KeyNotText,
    /// The key is larger than [`MAX_KEY_BYTES`].
    #[error("`{}` is larger than {MAX_KEY_BYTES} bytes", names::API_KEY)]
    KeyTooLarge,
}

/// The largest key that is delivered, in bytes: far over any provider's, under what a Secret can hold.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

/// The largest version: all numbers up to it are exact for every reader of JSON, and the clock is far from it. What says that it is
/// newer was never written by a controller, and to follow it would leave no versions.
pub const MAX_VERSION: u64 = (1 << 53) - 1;

impl Companion {
    /// Reads a companion's data: `get` returns the bytes under a data name.
    pub fn parse<B: AsRef<[u8]>>(get: impl Fn(&str) -> Option<B>) -> Result<Self, ParseError> {
        let document = get(names::LIVE_JSON).ok_or(ParseError::NoDocument)?;
        let (delivery, mut unreadable) = Delivery::read(document.as_ref())?;
        let present = |name| get(name).filter(|bytes| !bytes.as_ref().is_empty());
        let key = present(names::API_KEY);
        let api_key = match (&delivery.state, key) {
            (State::Withdrawn, _) => None,
            (State::Active | State::Other(_), Some(bytes)) => Some(key_of(bytes.as_ref())?),
            (State::Active, None) => return Err(ParseError::NoKey),
            (State::Other(_), None) => return Err(ParseError::UnknownState),
        };
        let mut lenient = |name: &'static str| {
            let read = key_of(present(name)?.as_ref());
            if read.is_err() {
                unreadable.push(name);
            }
            read.ok()
        };
        let placeholder = lenient(names::PLACEHOLDER);
        let previous_api_key = api_key.as_ref().and_then(|_| lenient(names::PREVIOUS_API_KEY));
        Ok(Self {
            delivery,
            document: document.as_ref().to_vec(),
            unreadable,
            api_key,
            previous_api_key,
            placeholder,
        })
    }
}

fn key_of(bytes: &[u8]) -> Result<SecretString, ParseError> {
    if bytes.len() > MAX_KEY_BYTES {
        return Err(ParseError::KeyTooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| ParseError::KeyNotText)?;
    Ok(SecretString::from(text))
}

impl Delivery {
    /// Reads a document, and names the fields that it has to do without.
    pub fn read(document: &[u8]) -> Result<(Self, Vec<&'static str>), ParseError> {
        // Bytes that are no text may stand in what this version does not read.
        let all = serde_json::from_str(&String::from_utf8_lossy(document))
            // The position says where to look; serde's own text may quote the data.
            .map_err(|e| ParseError::Malformed(format!("line {}, column {}", e.line(), e.column())))?;
        let mut fields = Fields {
            all,
            unreadable: Vec::new(),
        };
        let decisive = |name: &str| ParseError::Malformed(format!("`{name}`"));
        let version = fields.take("version").filter(|version| *version <= MAX_VERSION);
        let version = version.ok_or_else(|| decisive("version"))?;
        let delivery = Self {
            version,
            state: fields.take("state").ok_or_else(|| decisive("state"))?,
            schema: fields.take("schema").unwrap_or(SCHEMA),
            reason: fields.take("reason"),
            issued_at: fields.take("issuedAt").unwrap_or_else(|| time_of(version)),
            keys: fields.take("keys").unwrap_or_default(),
            values: fields.take("values").unwrap_or_default(),
            upstream: fields.take("upstream"),
            requires: fields.take("requires").unwrap_or_default(),
        };
        Ok((delivery, fields.unreadable))
    }
}

/// The fields of a document that are still to be read.
struct Fields {
    /// Not parsed before they are asked for: what is in the others does not matter.
    all: BTreeMap<String, Box<RawValue>>,
    unreadable: Vec<&'static str>,
}

impl Fields {
    /// A field, if it is there in a form that can be read.
    fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        let text = self.all.remove(name).filter(|text| text.get() != "null")?;
        let value = serde_json::from_str(text.get());
        if value.is_err() {
            self.unreadable.push(name);
        }
        value.ok()
    }
}

/// When a version was made, from the version itself.
fn time_of(version: u64) -> Timestamp {
    let time = i64::try_from(version).ok().map(Timestamp::from_millisecond);
    time.and_then(Result::ok).unwrap_or(Timestamp::UNIX_EPOCH)
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
    fn what_decides_has_to_be_readable_and_nothing_else() {
        let read = |document: &str| parse(&[("live.json", document.as_bytes()), ("apiKey", b"sk-1")]);
        let least = read(r#"{"version":1767225600000,"state":"active"}"#).expect("parses");
        assert_eq!(least.delivery.issued_at.to_string(), "2026-01-01T00:00:00Z");
        assert!(least.unreadable.is_empty() && least.delivery.keys.is_empty());
        for field in [
            "schema", "reason", "issuedAt", "keys", "values", "upstream", "requires",
        ] {
            for form in [r#"{"form":"new"}"#, "[[0]]", "-1", "true", "\"\\u0000\""] {
                let document = format!(r#"{{"version":7,"state":"active","{field}":{form}}}"#);
                let companion = read(&document).expect("parses");
                assert_eq!(companion.delivery.version, 7);
                assert!(companion.api_key.is_some(), "{document}");
                assert!(
                    companion.unreadable.iter().all(|name| *name == field),
                    "{document}"
                );
            }
        }
        for (field, others) in [("version", r#""state":"active""#), ("state", r#""version":7"#)] {
            for form in ["null", "-1", "1.5", "[]", "{}"] {
                let document = format!(r#"{{{others},"{field}":{form}}}"#);
                let error = read(&document).expect_err("refused");
                assert_eq!(error, ParseError::Malformed(format!("`{field}`")), "{document}");
            }
        }
    }

    #[test]
    fn what_is_not_read_does_not_matter() {
        let mut deep = "[".repeat(1000);
        deep.push_str(&"]".repeat(1000));
        for value in ["1e999", r#""\ud800""#, &deep] {
            let document = format!(r#"{{"version":7,"state":"active","new":{value},"upstream":{value}}}"#);
            let companion =
                parse(&[("live.json", document.as_bytes()), ("apiKey", b"sk-1")]).expect("parses");
            assert_eq!(companion.unreadable, ["upstream"], "{document}");
        }
        let no_text: &[u8] = b"{\"version\":7,\"state\":\"active\",\"ne\xff\":\"\xff\"}";
        assert!(parse(&[("live.json", no_text), ("apiKey", b"sk-1")]).is_ok());
    }

    #[test]
    fn of_an_unknown_state_the_key_is_taken_if_there_is_one() {
        let paused: &[u8] = br#"{"schema":1,"version":8,"state":"paused","issuedAt":"2026-01-01T00:00:00Z"}"#;
        let companion = parse(&[("live.json", paused), ("apiKey", b"sk-1")]).expect("parses");
        assert_eq!(companion.delivery.state, State::Other("paused".into()));
        assert!(companion.api_key.is_some());
        let without = parse(&[("live.json", paused)]).expect_err("refused");
        assert_eq!(without, ParseError::UnknownState);
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
    fn of_what_a_later_version_came_up_with_nothing_is_allowed() {
        let upstream = r#"{"provider":"p","auth":{"header":"authorization"},"errors":"xml",
            "routes":[{"method":"POST","path":"/v1/chat","model":"body"},
                      {"method":"POST","path":"/v1/scent","model":"in the air","reason":"r","weight":3}]}"#;
        let document = format!(r#"{{"version":7,"state":"active","upstream":{upstream}}}"#);
        let companion = parse(&[("live.json", document.as_bytes()), ("apiKey", b"sk-1")]).expect("parses");
        assert!(companion.unreadable.is_empty());
        let upstream = companion.delivery.upstream.expect("readable");
        let places: Vec<_> = upstream.routes.iter().map(|route| route.model).collect();
        assert_eq!(places, [ModelPlace::Body, ModelPlace::Denied]);
        assert_eq!(upstream.errors, ErrorShape::Openai);
    }

    #[test]
    fn the_previous_key_and_the_placeholder_are_done_without() {
        let read = |previous: &[u8], placeholder: &[u8]| {
            let companion = parse(&[
                ("live.json", ACTIVE),
                ("apiKey", b"sk-2"),
                ("previousApiKey", previous),
                ("placeholder", placeholder),
            ])
            .expect("parses");
            let text = |value: Option<SecretString>| value.map(|value| value.expose_secret().to_owned());
            assert_eq!(text(companion.api_key).as_deref(), Some("sk-2"));
            (
                text(companion.previous_api_key),
                text(companion.placeholder),
                companion.unreadable,
            )
        };
        let both = (Some("sk-1".to_owned()), Some("sk-llmwarden-1".to_owned()), vec![]);
        assert_eq!(read(b"sk-1", b"sk-llmwarden-1"), both);
        assert_eq!(read(b"", b""), (None, None, vec![]));
        let names = vec!["placeholder", "previousApiKey"];
        assert_eq!(read(b"\xff", b"\xff"), (None, None, names.clone()));
        let large = vec![b'k'; MAX_KEY_BYTES + 1];
        assert_eq!(read(&large, &large), (None, None, names));
    }

    #[test]
    fn a_withdrawn_companion_needs_no_key() {
        let gone =
            br#"{"schema":1,"version":8,"state":"withdrawn","reason":"r","issuedAt":"2026-01-01T00:00:00Z"}"#;
        let companion = parse(&[
            ("live.json", gone),
            ("apiKey", b"sk-2"),
            ("previousApiKey", b"sk-1"),
        ])
        .expect("parses");
        assert!(companion.api_key.is_none() && companion.previous_api_key.is_none());
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
