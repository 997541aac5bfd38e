//! What the sidecar holds of each access, and the rule for what replaces it.

mod delivered;
mod live_key;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use llmwarden_proto::delivery::Companion;
use llmwarden_proto::names;
use llmwarden_proto::profile::base_path;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tracing::{info, warn};

use delivered::etag;
pub use delivered::{Delivered, Live};
pub use live_key::LiveKey;

/// Why a key is gone when nobody said why.
const DELETED: &str = "the companion Secret was deleted or emptied";

/// How the pod uses an access. It is fixed when the pod is injected, whatever becomes of the access.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Mode {
    /// The agent gets the key.
    #[default]
    Direct,
    /// The agent gets a placeholder, and the proxy, at this URL, puts the key in its place.
    Proxy(Arc<str>),
}

impl Mode {
    /// Whether requests go through the proxy.
    pub fn is_proxy(&self) -> bool {
        matches!(self, Self::Proxy(_))
    }
}

/// What is held of one access.
#[derive(Debug, Clone, Default)]
pub enum Held {
    /// No key has come yet.
    #[default]
    Pending,
    /// The key to hand out.
    Active(Arc<Delivered>),
    /// The key was dropped.
    Withdrawn(Withdrawn),
}

/// A key that was dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawn {
    /// The version that said so, or the last one there was.
    pub version: u64,
    /// Why, in words for the agent's owner.
    pub reason: String,
    /// Whether the companion went away, instead of saying so. Then the same version may come back.
    pub deleted: bool,
}

impl Withdrawn {
    /// After `version`, the companion went away.
    pub fn deleted(version: u64) -> Self {
        Self {
            version,
            reason: DELETED.to_owned(),
            deleted: true,
        }
    }
}

impl Held {
    /// The newest version that counted.
    pub fn version(&self) -> Option<u64> {
        match self {
            Self::Pending => None,
            Self::Active(delivered) => Some(delivered.version()),
            Self::Withdrawn(withdrawn) => Some(withdrawn.version),
        }
    }

    /// What the files of the last run show, if they are of this mode: those of the other one hold what is not to be handed
    /// out now.
    pub fn restored(companion: Companion, mode: &Mode) -> Self {
        let is_placeholder = |key: &SecretString| key.expose_secret().starts_with(names::PLACEHOLDER_PREFIX);
        match (mode, &companion.api_key) {
            (_, None) => {}
            (Mode::Direct, Some(key)) if !is_placeholder(key) => {}
            (Mode::Proxy(_), Some(key)) if is_placeholder(key) => {}
            _ => return Self::Pending,
        }
        Self::with(companion, mode, |key| Some((key, None))).unwrap_or_default()
    }

    /// What there is when a companion is taken as it is.
    ///
    /// # Errors
    /// In proxy mode, if it has no placeholder: the key is never handed out in its place.
    pub fn of(companion: Companion, mode: &Mode) -> Result<Self, NoPlaceholder> {
        let (placeholder, previous) = (companion.placeholder.clone(), companion.previous_api_key.clone());
        let upstream = companion.delivery.upstream.as_ref();
        let auth = upstream.map(|upstream| upstream.auth.clone());
        let live = |key| LiveKey::new(key, auth.as_ref());
        Self::with(companion, mode, |key| match mode {
            Mode::Direct => Some((key, None)),
            Mode::Proxy(_) => {
                let (key, previous) = (live(key), previous.map(live));
                Some((placeholder?, Some(Live { key, previous })))
            }
        })
        .ok_or(NoPlaceholder)
    }

    fn with(
        companion: Companion,
        mode: &Mode,
        split: impl FnOnce(SecretString) -> Option<(SecretString, Option<Live>)>,
    ) -> Option<Self> {
        let Companion {
            mut delivery,
            document,
            unreadable,
            api_key,
            ..
        } = companion;
        Some(match api_key {
            Some(api_key) => {
                let (handed_out, live) = split(api_key)?;
                // Under this name the key always stands: a companion without names would deliver nothing, and the
                // files are read again after a restart.
                if !delivery.keys.iter().any(|name| name == names::API_KEY) {
                    delivery.keys.push(names::API_KEY.to_owned());
                }
                // Where the placeholder is taken: at the provider it is worth nothing.
                if let (Mode::Proxy(proxy), Some(url)) = (mode, delivery.values.get_mut(names::BASE_URL)) {
                    *url = format!("{proxy}{}", base_path(url));
                }
                Self::Active(Arc::new(Delivered {
                    etag: etag(delivery.version),
                    delivery,
                    document,
                    unreadable,
                    handed_out: handed_out.into(),
                    live,
                    trusted: AtomicBool::new(true),
                }))
            }
            None => Self::Withdrawn(Withdrawn {
                version: delivery.version,
                reason: delivery
                    .reason
                    .unwrap_or_else(|| "no reason was given".to_owned()),
                deleted: false,
            }),
        })
    }
}

/// A companion for a pod in proxy mode lacks the placeholder.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the companion has no `{}`, which this pod hands out in place of the key: is its provider one that can be proxied?",
    names::PLACEHOLDER
)]
pub struct NoPlaceholder;

/// What a source saw.
#[derive(Debug)]
pub enum Seen {
    /// A companion that could be read.
    Companion(Box<Companion>),
    /// There is no companion, or an empty one.
    Nothing,
    /// It could not be seen, in words without any of its content. What is held stays.
    Problem(String),
}

/// What becomes of what is held.
#[derive(Debug)]
enum Decision {
    Keep,
    Refuse(String),
    Hold(Held),
}

/// No version comes back once there was a newer one; only after a deletion, or where the keys are lacking, the same one may.
fn decide(mode: &Mode, held: &Held, companion: Option<Companion>) -> Decision {
    let Some(companion) = companion else {
        return match held {
            Held::Active(delivered) => {
                Decision::Hold(Held::Withdrawn(Withdrawn::deleted(delivered.version())))
            }
            Held::Pending | Held::Withdrawn(_) => Decision::Keep,
        };
    };
    let version = companion.delivery.version;
    let may_return = match held {
        Held::Pending => true,
        Held::Active(delivered) => mode.is_proxy() && delivered.live.is_none(),
        Held::Withdrawn(withdrawn) => withdrawn.deleted,
    };
    match held.version() {
        Some(newest) if version < newest => Decision::Refuse(format!(
            "the source has version {version}, older than the one held: not taken"
        )),
        Some(newest) if version == newest && !may_return => Decision::Keep,
        _ => match Held::of(companion, mode) {
            Ok(held) => Decision::Hold(held),
            Err(error) => Decision::Refuse(error.to_string()),
        },
    }
}

/// What is held of one access, and what hinders it.
#[derive(Debug, Clone, Default)]
pub struct Slot {
    /// How the pod uses it.
    pub mode: Mode,
    /// What is held.
    pub held: Held,
    /// What is wrong with the source.
    pub source_problem: Option<String>,
    /// What is wrong with the files.
    pub file_problem: Option<String>,
    /// The version that the files show.
    pub file_version: Option<u64>,
}

/// An access that the sidecar does not hold.
#[derive(Debug)]
pub struct Unknown;

/// All accesses. Cheap to share; everyone who waits for a change of one is woken.
#[derive(Debug)]
pub struct Store(BTreeMap<String, watch::Sender<Slot>>);

impl Store {
    /// A store of these accesses, with what is held of each from before.
    pub fn new(accesses: impl IntoIterator<Item = (String, Slot)>) -> Self {
        let slots = accesses.into_iter();
        Self(
            slots
                .map(|(access, slot)| (access, watch::Sender::new(slot)))
                .collect(),
        )
    }

    /// The names of all accesses.
    pub fn accesses(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// One access as it is now.
    pub fn get(&self, access: &str) -> Option<Slot> {
        self.0.get(access).map(|slot| slot.borrow().clone())
    }

    /// What is held of one access.
    pub fn held(&self, access: &str) -> Option<Held> {
        self.0.get(access).map(|slot| slot.borrow().held.clone())
    }

    /// One access as it is now and as it becomes.
    pub fn subscribe(&self, access: &str) -> Option<watch::Receiver<Slot>> {
        self.0.get(access).map(watch::Sender::subscribe)
    }

    /// Takes in what a source saw. True if what is held changed.
    pub fn observe(&self, access: &str, seen: Seen) -> bool {
        let Some(slot) = self.0.get(access) else {
            return false;
        };
        let decide = |companion| {
            let slot = slot.borrow();
            decide(&slot.mode, &slot.held, companion)
        };
        let decision = match seen {
            Seen::Problem(problem) => Decision::Refuse(problem),
            Seen::Nothing => decide(None),
            Seen::Companion(companion) => decide(Some(*companion)),
        };
        let (held, problem) = match decision {
            Decision::Keep => (None, None),
            Decision::Refuse(problem) => (None, Some(problem)),
            Decision::Hold(held) => (Some(held), None),
        };
        let changed = held.is_some();
        slot.send_if_modified(|slot| {
            let news = slot.source_problem != problem;
            if news {
                if let Some(problem) = &problem {
                    warn!(access, problem, "the source fails; what is held stays");
                } else {
                    info!(access, "the source works again");
                }
            }
            slot.source_problem = problem;
            if let Some(held) = held {
                info!(access, held = %held, "changed");
                slot.held = held;
            }
            news || changed
        });
        changed
    }

    /// Notes how the files of an access are.
    pub fn note_files(&self, access: &str, version: Option<u64>, problem: Option<String>) {
        let Some(slot) = self.0.get(access) else { return };
        slot.send_if_modified(|slot| {
            if (&slot.file_version, &slot.file_problem) == (&version, &problem) {
                return false;
            }
            if let (true, Some(problem)) = (slot.file_problem != problem, &problem) {
                warn!(access, problem, "the files can't be written; trying again");
            }
            slot.file_version = version;
            slot.file_problem = problem;
            true
        });
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("nothing"),
            Self::Active(delivered) => write!(f, "version {}", delivered.version()),
            Self::Withdrawn(Withdrawn { version, reason, .. }) => {
                write!(f, "withdrawn with version {version}: {reason}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESS: &str = "agent";

    fn active(version: u64) -> Box<Companion> {
        let document = format!(
            r#"{{"schema":1,"version":{version},"state":"active","issuedAt":"2026-01-01T00:00:00Z",
                "keys":["apiKey","..","OPENAI","a/b"],"values":{{"baseUrl":"https://example.com","apiKey":"x"}}}}"#
        );
        companion(&document)
    }

    fn withdrawn(version: u64) -> Box<Companion> {
        companion(&format!(
            r#"{{"schema":1,"version":{version},"state":"withdrawn","reason":"no label","issuedAt":"2026-01-01T00:00:00Z"}}"#
        ))
    }

    fn companion(document: &str) -> Box<Companion> {
        companion_of(document, "sk-1")
    }

    fn companion_of(document: &str, key: &str) -> Box<Companion> {
        let parsed = Companion::parse(|name| match name {
            names::LIVE_JSON => Some(document.as_bytes()),
            names::PLACEHOLDER => Some(b"sk-llmwarden-1".as_slice()),
            names::API_KEY => Some(key.as_bytes()),
            _ => None,
        });
        Box::new(parsed.expect("valid"))
    }

    fn held_after(all: Vec<Seen>) -> String {
        let store = Store::new([(ACCESS.to_owned(), Slot::default())]);
        for seen in all {
            store.observe(ACCESS, seen);
        }
        store.get(ACCESS).expect("known").held.to_string()
    }

    #[test]
    fn what_is_held_follows_what_is_seen() {
        use Seen::{Companion as C, Nothing, Problem};
        let problem = || Problem("down".into());
        let deleted = |version| format!("withdrawn with version {version}: {DELETED}");
        let cases = [
            (vec![], "nothing".to_owned()),
            (vec![Nothing], "nothing".to_owned()),
            (vec![problem()], "nothing".to_owned()),
            (vec![C(active(2))], "version 2".to_owned()),
            (vec![C(active(2)), C(active(3))], "version 3".to_owned()),
            (vec![C(active(2)), C(active(1))], "version 2".to_owned()),
            (vec![C(active(2)), problem()], "version 2".to_owned()),
            (vec![C(active(2)), Nothing], deleted(2)),
            (vec![C(active(2)), Nothing, Nothing, problem()], deleted(2)),
            (vec![C(active(2)), Nothing, C(active(1))], deleted(2)),
            (vec![C(active(2)), Nothing, C(active(2))], "version 2".to_owned()),
            (
                vec![C(active(2)), C(withdrawn(3))],
                "withdrawn with version 3: no label".to_owned(),
            ),
            (
                vec![C(active(2)), C(withdrawn(3)), C(active(2))],
                "withdrawn with version 3: no label".to_owned(),
            ),
            (
                vec![C(active(2)), C(withdrawn(3)), C(active(3)), Nothing],
                "withdrawn with version 3: no label".to_owned(),
            ),
            (vec![C(withdrawn(3)), C(active(4))], "version 4".to_owned()),
            (vec![C(active(4)), C(withdrawn(3))], "version 4".to_owned()),
        ];
        for (number, (seen, expected)) in cases.into_iter().enumerate() {
            assert_eq!(held_after(seen), expected, "case {number}");
        }
    }

    #[test]
    fn a_problem_is_noted_until_the_source_works_again() {
        let store = Store::new([(ACCESS.to_owned(), Slot::default())]);
        let problem = || store.get(ACCESS).expect("known").source_problem;
        store.observe(ACCESS, Seen::Companion(active(2)));
        store.observe(ACCESS, Seen::Problem("down".into()));
        assert_eq!(problem().as_deref(), Some("down"));
        store.observe(ACCESS, Seen::Companion(active(1)));
        assert!(problem().expect("stale").contains("version 1"));
        store.observe(ACCESS, Seen::Companion(active(2)));
        assert_eq!(problem(), None);
    }

    #[test]
    fn only_names_that_can_be_files_are_handed_out() {
        let Ok(Held::Active(delivered)) = Held::of(*active(1), &Mode::Direct) else {
            panic!("active")
        };
        let names: Vec<_> = delivered.names().collect();
        assert_eq!(names, ["apiKey", "OPENAI", "baseUrl"]);
        assert_eq!(delivered.expose("OPENAI"), Some("sk-1"));
        assert_eq!(delivered.expose("apiKey"), Some("sk-1"));
        assert_eq!(delivered.expose("baseUrl"), Some("https://example.com"));
        assert_eq!(delivered.expose(".."), None);
        assert_eq!(delivered.expose("absent"), None);
    }

    #[test]
    fn in_proxy_mode_the_base_url_is_the_proxys() {
        let mode = Mode::Proxy("http://127.0.0.1:9470/proxy/agent".into());
        let text = r#"{"schema":1,"version":1,"state":"active","issuedAt":"2026-01-01T00:00:00Z","values":{"baseUrl":"https://a.example/v1/"}}"#;
        for held in [
            Held::of(*companion(text), &mode).expect("a placeholder"),
            Held::restored(*companion_of(text, "sk-llmwarden-1"), &mode),
        ] {
            let Held::Active(delivered) = held else {
                panic!("{held}")
            };
            assert_eq!(delivered.expose("apiKey"), Some("sk-llmwarden-1"));
            let url = delivered.expose("baseUrl");
            assert_eq!(url, Some("http://127.0.0.1:9470/proxy/agent/v1"));
        }
    }

    #[test]
    fn no_debug_text_holds_the_key() {
        let text = format!("{:?}", Held::of(*active(1), &Mode::Direct));
        assert!(text.contains("version: 1") && !text.contains("sk-1"), "{text}");
    }
}
