//! `/proxy/<access>/<rest>`: which access is asked for, and what of it. Whatever two servers may read in two ways is
//! refused, since the provider is to see the path that was decided about.

use hyper::Uri;
use memchr::memchr;

use super::query::octet;

/// What the paths of the proxy begin with.
pub const PREFIX: &str = "/proxy/";

/// A request's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The access.
    pub access: &'a str,
    /// The path at the provider, as it was written.
    pub path: &'a str,
    /// The query, as it was written.
    pub query: Option<&'a str>,
}

/// Why a target is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tricky {
    /// A URL with its scheme and host.
    AbsoluteForm,
    /// A host alone, as for CONNECT.
    AuthorityForm,
    /// It does not name an access.
    NoAccess,
    /// A segment `.` or `..`.
    DotSegment,
    /// An encoded dot, slash, backslash, percent sign or semicolon, a control character, or half of a code.
    Encoded,
    /// A backslash.
    Backslash,
    /// An empty segment.
    EmptySegment,
    /// Parameters of a segment, after a semicolon.
    Semicolon,
    /// A character that should have been encoded.
    Bare,
}

impl Tricky {
    /// What is wrong with the target, for whoever sent it.
    pub const fn why(self) -> &'static str {
        match self {
            Self::AbsoluteForm => {
                "it begins with a scheme and a host: send the path alone, and use no HTTP proxy for localhost (NO_PROXY=127.0.0.1,localhost)"
            }
            Self::AuthorityForm => {
                "it is a host: CONNECT is not served, the base URL has to begin with http://"
            }
            Self::NoAccess => {
                "it names no access: the base URL has to be http://127.0.0.1:9470/proxy/<access> and the path of the provider's own"
            }
            Self::DotSegment => "it has a segment `.` or `..`: write the path plainly",
            Self::Encoded => {
                "it has an encoded dot, slash, backslash, percent sign, semicolon or control character, or half of a code: write the path plainly"
            }
            Self::Backslash => "it has a backslash: write the path plainly",
            Self::EmptySegment => {
                "it has an empty segment, `//`: remove the slash at the end of the base URL"
            }
            Self::Semicolon => "it has a semicolon: write the path plainly",
            Self::Bare => "it has a character that has to be percent-encoded",
        }
    }
}

impl<'a> Target<'a> {
    /// Reads a request's target.
    pub fn parse(uri: &'a Uri) -> Result<Self, Tricky> {
        if uri.scheme().is_some() {
            return Err(Tricky::AbsoluteForm);
        }
        if uri.authority().is_some() {
            return Err(Tricky::AuthorityForm);
        }
        let below = uri.path().strip_prefix(PREFIX).ok_or(Tricky::NoAccess)?;
        let at = memchr(b'/', below.as_bytes()).unwrap_or(below.len());
        let (access, path) = below.split_at(at);
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if access.is_empty() || access.starts_with('.') || !access.bytes().all(plain) {
            return Err(Tricky::NoAccess);
        }
        check(path)?;
        Ok(Self {
            access,
            path: if path.is_empty() { "/" } else { path },
            query: uri.query(),
        })
    }
}

/// Whether everybody reads the path in the same way.
fn check(path: &str) -> Result<(), Tricky> {
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        match byte {
            b'\\' => return Err(Tricky::Backslash),
            b';' => return Err(Tricky::Semicolon),
            b'%' => match tail.first_chunk().and_then(octet) {
                None | Some(b'.' | b'/' | b'\\' | b'%' | b';' | ..=0x1f | 0x7f) => {
                    return Err(Tricky::Encoded);
                }
                Some(_) => {}
            },
            ..=b' ' | 0x7f.. => return Err(Tricky::Bare),
            _ => {}
        }
        rest = tail;
    }
    let mut segments = path.as_bytes().split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            b"." | b".." => return Err(Tricky::DotSegment),
            // At the end it is a slash.
            b"" if segments.peek().is_some() => return Err(Tricky::EmptySegment),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::query::decoded;
    use super::*;

    #[test]
    fn the_rest_is_the_providers() {
        for (uri, access, path, query) in [
            ("/proxy/agent/v1/messages", "agent", "/v1/messages", None),
            (
                "/proxy/agent/v1/models/a%20b:x?alt=sse&k=%2F",
                "agent",
                "/v1/models/a%20b:x",
                Some("alt=sse&k=%2F"),
            ),
            ("/proxy/agent", "agent", "/", None),
            ("/proxy/agent?", "agent", "/", Some("")),
            ("/proxy/a-1.b/v1/", "a-1.b", "/v1/", None),
            ("/proxy/agent/v1/.hidden/a..b", "agent", "/v1/.hidden/a..b", None),
        ] {
            let uri: Uri = uri.parse().expect("a URI");
            let expected = Target { access, path, query };
            assert_eq!(Target::parse(&uri), Ok(expected), "{uri}");
        }
    }

    #[test]
    fn what_may_be_read_in_two_ways_is_refused() {
        for (uri, why) in [
            ("http://127.0.0.1:9470/proxy/agent/v1", Tricky::AbsoluteForm),
            ("api.openai.com:443", Tricky::AuthorityForm),
            ("*", Tricky::NoAccess),
            ("/", Tricky::NoAccess),
            ("/proxy/", Tricky::NoAccess),
            ("/proxy//v1", Tricky::NoAccess),
            ("/proxy/../v1", Tricky::NoAccess),
            ("/proxy/%61gent/v1", Tricky::NoAccess),
            ("/proxy/Agent/v1", Tricky::NoAccess),
            ("/proxy/agent//v1", Tricky::EmptySegment),
            ("/proxy/agent/v1//", Tricky::EmptySegment),
            ("/proxy/agent/./v1", Tricky::DotSegment),
            ("/proxy/agent/v1/..", Tricky::DotSegment),
            ("/proxy/agent/%2e%2e/v1", Tricky::Encoded),
            ("/proxy/agent/.%2E/v1", Tricky::Encoded),
            ("/proxy/agent/v1%2Fx", Tricky::Encoded),
            ("/proxy/agent/v1%2fx", Tricky::Encoded),
            ("/proxy/agent/v1%5Cx", Tricky::Encoded),
            ("/proxy/agent/v1%252fx", Tricky::Encoded),
            ("/proxy/agent/v1%3bx", Tricky::Encoded),
            ("/proxy/agent/v1%00", Tricky::Encoded),
            ("/proxy/agent/v1%0d%0a", Tricky::Encoded),
            ("/proxy/agent/v1%", Tricky::Encoded),
            ("/proxy/agent/v1%4", Tricky::Encoded),
            ("/proxy/agent/v1%zz", Tricky::Encoded),
            ("/proxy/agent/v1;x/y", Tricky::Semicolon),
            ("/proxy/agent/v1/\u{e9}", Tricky::Bare),
        ] {
            let uri: Uri = uri.parse().expect("a URI");
            assert_eq!(Target::parse(&uri), Err(why), "{uri}");
        }
        if let Ok(uri) = "/proxy/agent/v1\\x".parse::<Uri>() {
            assert_eq!(Target::parse(&uri), Err(Tricky::Backslash));
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_means_the_same_decoded(rest in "[a-z./%0-9A-F;\\\\]{0,24}") {
            let Ok(uri) = format!("/proxy/agent/{rest}").parse::<Uri>() else { return Ok(()) };
            if let Ok(target) = Target::parse(&uri) {
                prop_assert_eq!(format!("/proxy/agent{}", target.path), uri.path());
                let once = decoded(target.path);
                prop_assert_eq!(once.matches('/').count(), target.path.matches('/').count());
                prop_assert!(!once.contains(['\\', ';', '%', '\0']) && !once.contains("//"));
                prop_assert!(once.split('/').all(|segment| segment != "." && segment != ".."));
            }
        }
    }
}
