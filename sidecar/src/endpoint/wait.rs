//! What a request says about the version it has: `If-None-Match` (RFC 9110) and `Prefer: wait` (RFC 7240).

use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};

use crate::store::Held;

const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Longer waits are cut: a client asks again.
const MAX_WAIT: Duration = Duration::from_mins(5);

/// The conditions of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conditions {
    tags: Vec<String>,
    /// How long the request may wait for something newer.
    pub(super) wait: Option<Duration>,
}

impl Conditions {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let (mut tags, mut wait) = (Vec::new(), None);
        for (name, value) in headers {
            if *name == IF_NONE_MATCH {
                tags.extend(items(value).map(|tag| tag.strip_prefix("W/").unwrap_or(tag).to_owned()));
            } else if *name == PREFER {
                wait = items(value).filter_map(limit).last().or(wait);
            }
        }
        Self { tags, wait }
    }

    /// Whether the client has what is held.
    pub(super) fn match_held(&self, held: &Held) -> bool {
        matches!(held, Held::Active(delivered) if self.match_version(delivered.version()))
    }

    fn match_version(&self, version: u64) -> bool {
        let is_known = |tag: &String| tag == "*" || *tag == format!("\"{version}\"");
        self.tags.iter().any(is_known)
    }
}

/// The members of a comma-separated header. Our tags hold no commas, so others' may be cut in two: they match nothing.
fn items(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim)
}

/// How long a preference has the request wait.
fn limit(preference: &str) -> Option<Duration> {
    let (name, value) = preference.split_once('=')?;
    let seconds = value.trim().trim_matches('"').parse().ok()?;
    name.trim()
        .eq_ignore_ascii_case("wait")
        .then(|| Duration::from_secs(seconds).min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(headers: &[(&HeaderName, &str)]) -> Conditions {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).clone(), value.parse().expect("a value")));
        Conditions::of(&headers.collect())
    }

    #[test]
    fn tags_match_as_the_standard_says() {
        for (value, expected) in [
            ("\"7\"", true),
            ("W/\"7\"", true),
            ("\"6\", \"7\"", true),
            ("*", true),
            ("\"70\"", false),
            ("7", false),
            ("", false),
        ] {
            assert_eq!(
                conditions(&[(&IF_NONE_MATCH, value)]).match_version(7),
                expected,
                "{value}"
            );
        }
        assert!(!conditions(&[]).match_version(7));
        assert!(conditions(&[(&IF_NONE_MATCH, "\"7\""), (&IF_NONE_MATCH, "\"6\"")]).match_version(7));
    }

    #[test]
    fn waits_are_read_and_cut() {
        for (value, expected) in [
            ("wait=30", Some(30)),
            ("respond-async, wait=5", Some(5)),
            ("Wait = \"2\"", Some(2)),
            ("wait=86400", Some(300)),
            ("wait=-1", None),
            ("wait", None),
            ("waiting=3", None),
        ] {
            let wait = conditions(&[(&PREFER, value)]).wait;
            assert_eq!(wait, expected.map(Duration::from_secs), "{value}");
        }
        let lines = [
            (&PREFER, "wait=1"),
            (&PREFER, "wait=2"),
            (&PREFER, "respond-async"),
        ];
        assert_eq!(conditions(&lines).wait, Some(Duration::from_secs(2)));
    }
}
