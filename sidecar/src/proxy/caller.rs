//! Who may use a proxied access: whoever sends its placeholder where the provider's SDKs put their key. What the caller sent
//! by way of credentials goes no further, so that only our key reaches the provider.

use hyper::Uri;
use hyper::header::{COOKIE, HeaderName, HeaderValue, PROXY_AUTHORIZATION};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use llmwarden_proto::names;
use llmwarden_proto::profile::AuthHeader;
use secrecy::{ExposeSecret, SecretString};
use subtle::{Choice, ConstantTimeEq};

use super::query::parameters;

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

/// Checks the placeholder, and takes every credential out of the request, whatever comes of it.
pub fn authenticate(
    request: &mut Parts,
    auth: &AuthHeader,
    placeholder: &SecretString,
) -> Result<(), Unauthorized> {
    let expected = placeholder.expose_secret().as_bytes();
    let mut found = Verdict::new(expected);
    let names: Vec<HeaderName> = request
        .headers
        .keys()
        .filter(|name| holds_credential(name, auth))
        .cloned()
        .collect();
    for name in names {
        for value in request.headers.get_all(&name) {
            // A cookie is not sent as a key.
            if name != COOKIE {
                found.consider(credential(value, auth));
            }
        }
        request.headers.remove(name);
    }
    if let Some(query) = request.uri.query() {
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
            request.uri = with_query(&request.uri, &kept.join("&"));
        }
    }
    found.verdict()
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
        self.matches |= sent.ct_eq(self.expected);
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

/// Whether a header is one that providers, or gateways before them, take credentials from.
fn holds_credential(name: &HeaderName, auth: &AuthHeader) -> bool {
    const ENDS: [&str; 5] = [
        "api-key",
        "subscription-key",
        "auth-token",
        "access-token",
        "security-token",
    ];
    let text = name.as_str();
    name == COOKIE
        || name == PROXY_AUTHORIZATION
        || text.contains("authorization")
        || ENDS.iter().any(|end| text.ends_with(end))
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

fn with_query(uri: &Uri, query: &str) -> Uri {
    let path = uri.path();
    let text = if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    };
    // Parts of what was a path and a query are one.
    let target = PathAndQuery::try_from(text).unwrap_or_else(|_| PathAndQuery::from_static("/"));
    Uri::from(target)
}

#[cfg(test)]
mod tests {
    use hyper::Request;
    use llmwarden_proto::profile::ProviderKind;
    use proptest::prelude::*;

    use super::*;

    const PLACEHOLDER: &str = "sk-llmwarden-0123456789abcdef";
    const REAL: &str = "sk-proj-0123456789abcdef0123";

    fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn check(request: &mut Parts) -> Result<(), Unauthorized> {
        let auth = ProviderKind::Openai.auth_header();
        authenticate(request, &auth, &PLACEHOLDER.into())
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
            let mut request = request("/proxy/a/v1?b=%20", &[header, ("accept", "*/*")]);
            assert_eq!(check(&mut request), Ok(()), "{header:?}");
            assert_eq!(request.headers.len(), 1, "{header:?}");
            assert_eq!(request.uri, "/proxy/a/v1?b=%20");
        }
        let mut own = request("/proxy/a/v1", &[("x-llm-key", &format!("Key {PLACEHOLDER}"))]);
        let auth = AuthHeader {
            header: "x-llm-key".into(),
            scheme: Some("Key".into()),
        };
        assert_eq!(authenticate(&mut own, &auth, &PLACEHOLDER.into()), Ok(()));
        assert!(own.headers.is_empty());
    }

    #[test]
    fn a_key_in_the_query_is_taken_out_of_it() {
        for (query, left) in [
            ("?key=@", ""),
            ("?%6bey=@", ""),
            ("?KEY=@", ""),
            ("?alt=sse&key=@&a=%2f", "?alt=sse&a=%2f"),
            ("?key=@&key=other&b", "?b"),
            ("?a=&&key=@&access_token=x", "?a=&"),
        ] {
            let query = query.replace('@', PLACEHOLDER);
            let mut request = request(&format!("/proxy/a/v1beta/x{query}"), &[]);
            assert_eq!(check(&mut request), Ok(()), "{query}");
            assert_eq!(
                request.uri.to_string(),
                format!("/proxy/a/v1beta/x{left}"),
                "{query}"
            );
        }
    }

    #[test]
    fn every_other_credential_is_removed_too() {
        let mut request = request(
            "/proxy/a/v1?api-key=secret&c=1",
            &[
                ("x-api-key", PLACEHOLDER),
                ("authorization", &format!("Bearer {REAL}")),
                ("proxy-authorization", "Basic secret"),
                ("cookie", "session=secret"),
                ("x-litellm-api-key", "secret"),
                ("ocp-apim-subscription-key", "secret"),
                ("x-goog-iam-authorization-token", "secret"),
                ("openai-organization", "org-1"),
            ],
        );
        assert_eq!(check(&mut request), Ok(()));
        assert_eq!(request.headers.len(), 1);
        assert_eq!(request.headers["openai-organization"], "org-1");
        assert_eq!(request.uri, "/proxy/a/v1?c=1");
    }

    #[test]
    fn without_it_the_caller_is_told_apart() {
        let other = "sk-llmwarden-ffffffffffffffff";
        for (headers, expected) in [
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
            let mut request = request("/proxy/a/v1", headers);
            assert_eq!(check(&mut request), Err(expected), "{headers:?}");
            assert!(request.headers.is_empty());
        }
        let mut empty = request("/proxy/a/v1", &[("x-api-key", "")]);
        let auth = ProviderKind::Anthropic.auth_header();
        assert!(authenticate(&mut empty, &auth, &"".into()).is_err());
    }

    proptest! {
        #[test]
        fn a_query_without_credentials_stays_as_it_is(query in "[b-h&=%0-9.]{0,30}") {
            let uri = format!("/proxy/a/v1?{query}");
            let mut request = request(&uri, &[("x-api-key", PLACEHOLDER)]);
            prop_assert_eq!(check(&mut request), Ok(()));
            prop_assert_eq!(request.uri.to_string(), uri);
        }

        #[test]
        fn nothing_but_the_placeholder_is_accepted(sent in "[!-~]{0,40}") {
            prop_assume!(sent != PLACEHOLDER);
            let mut request = request("/proxy/a/v1", &[("x-api-key", &sent)]);
            prop_assert!(check(&mut request).is_err());
        }
    }
}
