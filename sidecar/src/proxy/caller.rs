//! Who may use a proxied access: whoever sends its placeholder where the provider's SDKs put their key. What the caller sent
//! by way of credentials goes no further, so that only our key reaches the provider.

use std::borrow::Cow;

use hyper::header::{COOKIE, Entry, HeaderMap, HeaderName, HeaderValue};
use llmwarden_proto::names;
use llmwarden_proto::profile::AuthHeader;
use secrecy::{ExposeSecret, SecretString};
use subtle::Choice;

use super::query::parameters;
use crate::compare::same;

/// What is shorter, and begins as no key does, was made up to satisfy an SDK.
const SHORTEST_KEY: usize = 20;
/// Parameters of a query that providers take credentials from.
const CREDENTIALS: [&str; 6] = [
    "key",
    "api-key",
    "api_key",
    "subscription-key",
    "access_token",
    "oauth_token",
];

/// Why a caller may not use an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unauthorized {
    /// It sent no credential.
    Missing,
    /// It sent another one: of another access, or a made-up one.
    Wrong,
    /// What it sent looks like a real key.
    RealKey,
}

/// Checks the placeholder, and takes every credential out of the headers, whatever comes of it. Returns what is left of the
/// query without any.
pub fn authenticate<'a>(
    headers: &mut HeaderMap,
    query: Option<&'a str>,
    auth: &AuthHeader,
    placeholder: &SecretString,
) -> Result<Option<Cow<'a, str>>, Unauthorized> {
    let expected = placeholder.expose_secret().as_bytes();
    let mut found = Verdict::new(expected);
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| holds_credential(name, auth))
        .cloned()
        .collect();
    for name in names {
        let Entry::Occupied(entry) = headers.entry(name) else {
            continue;
        };
        let (name, values) = entry.remove_entry_mult();
        // A cookie is not sent as a key.
        for value in values.filter(|_| name != COOKIE) {
            found.consider(credential(&value, auth));
        }
    }
    let mut left = query.map(Cow::Borrowed);
    if let Some(query) = query {
        let mut kept = Vec::new();
        let mut changed = false;
        for (text, name, value) in parameters(query) {
            if CREDENTIALS.iter().any(|other| name.eq_ignore_ascii_case(other)) {
                found.consider(value.as_bytes());
                changed = true;
            } else {
                kept.push(text);
            }
        }
        if changed {
            left = Some(kept.join("&"))
                .filter(|kept| !kept.is_empty())
                .map(Cow::Owned);
        }
    }
    found.verdict()?;
    Ok(left)
}

/// All that was sent, compared without a hint of where it differs.
struct Verdict<'a> {
    expected: &'a [u8],
    matches: Choice,
    worst: Unauthorized,
}

impl<'a> Verdict<'a> {
    fn new(expected: &'a [u8]) -> Self {
        Self {
            expected,
            matches: Choice::from(0),
            worst: Unauthorized::Missing,
        }
    }

    fn consider(&mut self, sent: &[u8]) {
        // An empty placeholder would be everybody's.
        if sent.is_empty() || self.expected.is_empty() {
            return;
        }
        self.matches |= same(sent, self.expected);
        let ours = sent.starts_with(names::PLACEHOLDER_PREFIX.as_bytes());
        let real = !ours && (sent.len() >= SHORTEST_KEY || sent.starts_with(b"sk-"));
        match self.worst {
            Unauthorized::RealKey => {}
            Unauthorized::Missing | Unauthorized::Wrong if real => self.worst = Unauthorized::RealKey,
            Unauthorized::Missing | Unauthorized::Wrong => self.worst = Unauthorized::Wrong,
        }
    }

    fn verdict(&self) -> Result<(), Unauthorized> {
        bool::from(self.matches).then_some(()).ok_or(self.worst)
    }
}

/// Whether a header is one that providers, or gateways before them, take credentials from. Every header is asked about, so
/// that what hardly any has is looked for first.
fn holds_credential(name: &HeaderName, auth: &AuthHeader) -> bool {
    const KEYS: [&str; 2] = ["api-key", "subscription-key"];
    const TOKENS: [&str; 3] = ["auth-token", "access-token", "security-token"];
    let text = name.as_str();
    let ends = |ends: &[&str]| ends.iter().any(|end| text.ends_with(end));
    let by_its_end = match text.as_bytes() {
        [.., b'k', b'e', b'y'] => ends(&KEYS),
        [.., b'k', b'e', b'n'] => ends(&TOKENS),
        _ => false,
    };
    by_its_end
        || text == "cookie"
        // Hardly any other has that letter, and looking for a word takes longer.
        || (text.as_bytes().contains(&b'z') && text.contains("authorization"))
        || text.eq_ignore_ascii_case(&auth.header)
}

/// A credential without its scheme.
fn credential<'a>(value: &'a HeaderValue, auth: &AuthHeader) -> &'a [u8] {
    let value = value.as_bytes();
    let schemes = ["Bearer"].into_iter().chain(auth.scheme.as_deref());
    for scheme in schemes {
        if let Some((start, [b' ', rest @ ..])) = value.split_at_checked(scheme.len())
            && start.eq_ignore_ascii_case(scheme.as_bytes())
        {
            return rest.trim_ascii();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use llmwarden_proto::profile::ProviderKind;
    use proptest::prelude::*;

    use super::*;

    const PLACEHOLDER: &str = "sk-llmwarden-0123456789abcdef";
    const REAL: &str = "sk-proj-0123456789abcdef0123";

    fn headers(all: &[(&str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&str, &str)| {
            let name = HeaderName::try_from(*name).expect("a name");
            (name, HeaderValue::try_from(*value).expect("a value"))
        };
        all.iter().map(parse).collect()
    }

    /// What is left of the query.
    fn check<'a>(
        headers: &mut HeaderMap,
        query: Option<&'a str>,
    ) -> Result<Option<Cow<'a, str>>, Unauthorized> {
        authenticate(
            headers,
            query,
            &ProviderKind::Openai.auth_header(),
            &PLACEHOLDER.into(),
        )
    }

    #[test]
    fn the_placeholder_counts_wherever_sdks_put_a_key() {
        let bearer = format!("Bearer {PLACEHOLDER}");
        for header in [
            ("authorization", bearer.as_str()),
            ("authorization", &format!("bearer {PLACEHOLDER}")),
            ("x-api-key", PLACEHOLDER),
            ("api-key", PLACEHOLDER),
            ("x-goog-api-key", PLACEHOLDER),
        ] {
            let mut all = headers(&[header, ("accept", "*/*")]);
            let query = Some("b=%20");
            assert_eq!(check(&mut all, query), Ok(query.map(Cow::Borrowed)), "{header:?}");
            assert_eq!(all.len(), 1, "{header:?}");
        }
        let mut own = headers(&[("x-llm-key", &format!("Key {PLACEHOLDER}"))]);
        let auth = AuthHeader {
            header: "x-llm-key".into(),
            scheme: Some("Key".into()),
        };
        assert_eq!(authenticate(&mut own, None, &auth, &PLACEHOLDER.into()), Ok(None));
        assert!(own.is_empty());
    }

    #[test]
    fn a_key_in_the_query_is_taken_out_of_it() {
        for (query, left) in [
            ("key=@", None),
            ("%6bey=@", None),
            ("KEY=@", None),
            ("alt=sse&key=@&a=%2f", Some("alt=sse&a=%2f")),
            ("key=@&key=other&b", Some("b")),
            ("a=&&key=@&access_token=x", Some("a=&")),
        ] {
            let query = query.replace('@', PLACEHOLDER);
            let checked = check(&mut HeaderMap::new(), Some(&query));
            assert_eq!(checked, Ok(left.map(Cow::Borrowed)), "{query}");
        }
    }

    #[test]
    fn every_other_credential_is_removed_too() {
        let mut all = headers(&[
            ("x-api-key", PLACEHOLDER),
            ("authorization", &format!("Bearer {REAL}")),
            ("proxy-authorization", "Basic secret"),
            ("cookie", "session=secret"),
            ("x-litellm-api-key", "secret"),
            ("ocp-apim-subscription-key", "secret"),
            ("x-goog-iam-authorization-token", "secret"),
            ("x-auth-token", "secret"),
            ("x-access-token", "secret"),
            ("x-amz-security-token", "secret"),
            ("openai-organization", "org-1"),
        ]);
        assert_eq!(
            check(&mut all, Some("api-key=secret&c=1")),
            Ok(Some("c=1".into()))
        );
        assert_eq!(all, headers(&[("openai-organization", "org-1")]));
    }

    #[test]
    fn without_it_the_caller_is_told_apart() {
        let other = "sk-llmwarden-ffffffffffffffff";
        for (sent, expected) in [
            (&[][..], Unauthorized::Missing),
            (&[("authorization", "Bearer ")], Unauthorized::Missing),
            (&[("cookie", PLACEHOLDER)], Unauthorized::Missing),
            (&[("x-api-key", other)], Unauthorized::Wrong),
            (&[("x-api-key", "dummy")], Unauthorized::Wrong),
            (&[("x-api-key", REAL)], Unauthorized::RealKey),
            (
                &[("api-key", "0123456789abcdef0123456789abcdef")],
                Unauthorized::RealKey,
            ),
            (&[("x-api-key", REAL), ("api-key", other)], Unauthorized::RealKey),
        ] {
            let mut all = headers(sent);
            assert_eq!(check(&mut all, None), Err(expected), "{sent:?}");
            assert!(all.is_empty());
        }
        let mut empty = headers(&[("x-api-key", "")]);
        let auth = ProviderKind::Anthropic.auth_header();
        assert!(authenticate(&mut empty, None, &auth, &"".into()).is_err());
    }

    proptest! {
        #[test]
        fn a_query_without_credentials_stays_as_it_is(query in "[b-h&=%0-9.]{0,30}") {
            let mut all = headers(&[("x-api-key", PLACEHOLDER)]);
            prop_assert_eq!(check(&mut all, Some(&query)), Ok(Some(query.as_str().into())));
        }

        #[test]
        fn no_name_of_a_credential_is_missed(
            before in "[a-z-]{0,9}",
            word in "authorization|api-key|subscription-key|(auth|access|security)-token|cookie|[a-z-]{1,14}",
            after in "[a-z-]{0,9}",
        ) {
            const ENDS: [&str; 5] = ["api-key", "subscription-key", "auth-token", "access-token", "security-token"];
            for text in [format!("{before}{word}{after}"), format!("{before}{word}"), word] {
                let plainly = text == "cookie"
                    || text.contains("authorization")
                    || ENDS.iter().any(|end| text.ends_with(end));
                let name = HeaderName::try_from(&text).expect("a name");
                let auth = ProviderKind::Openai.auth_header();
                prop_assert_eq!(holds_credential(&name, &auth), plainly, "{}", text);
            }
        }

        #[test]
        fn nothing_but_the_placeholder_is_accepted(sent in "[!-~]{0,40}") {
            prop_assume!(sent != PLACEHOLDER);
            prop_assert!(check(&mut headers(&[("x-api-key", &sent)]), None).is_err());
        }
    }
}
