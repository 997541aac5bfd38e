//! Headers on their way through: what is about one connection alone stays behind, in both directions (RFC 9110, 7.6.1).

use hyper::HeaderMap;
use hyper::header::{ACCEPT_ENCODING, CONNECTION, HeaderName, HeaderValue, TE};

/// Removes what a message says about its connection.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    remove(headers, is_hop_by_hop);
}

/// Makes a request's headers those of our own request; the host is still to be replaced, and the key to be put in.
pub fn outbound(headers: &mut HeaderMap) {
    let trailers = options(headers, TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    remove(headers, |name| is_hop_by_hop(name) || is_ours_to_say(name));
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    // Answers are looked at for tokens, and for words that mean that the key is dead.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
    )
}

/// What a request does not keep of its way to us: what we have answered ourselves, and by what it would be treated as one of
/// another method than was decided about.
fn is_ours_to_say(name: &str) -> bool {
    matches!(
        name,
        "expect" | "x-http-method-override" | "x-http-method" | "x-method-override"
    )
}

/// Removes headers by their names, and those that the message says are about its connection. The names are looked at in one
/// go: each look for one of them costs about as much.
fn remove(headers: &mut HeaderMap, goes: impl Fn(&str) -> bool) {
    let named = options(headers, CONNECTION)
        // Mostly this is `keep-alive`, which goes anyway.
        .filter(|name| !goes(name))
        .filter_map(|name| HeaderName::try_from(name).ok());
    let going = headers.keys().filter(|name| goes(name.as_str())).cloned();
    for name in named.chain(going).collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// The parts of a header that is a list.
fn options(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, &str)]) -> HeaderMap {
        all.iter()
            .map(|(name, value)| {
                (
                    HeaderName::try_from(*name).expect("a name"),
                    HeaderValue::try_from(*value).expect("a value"),
                )
            })
            .collect()
    }

    #[test]
    fn what_is_about_the_connection_stays_behind() {
        let mut all = headers(&[
            ("connection", "close, X-Own"),
            ("connection", "x-other ,,"),
            ("x-own", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("trailer", "x-sum"),
            ("content-type", "text/event-stream"),
        ]);
        strip_hop_by_hop(&mut all);
        assert_eq!(
            all,
            headers(&[("trailer", "x-sum"), ("content-type", "text/event-stream")])
        );
    }

    #[test]
    fn a_request_becomes_ours() {
        let mut all = headers(&[
            ("te", "gzip, Trailers"),
            ("expect", "100-continue"),
            ("accept-encoding", "gzip"),
            ("x-http-method-override", "DELETE"),
            ("anthropic-version", "2023-06-01"),
        ]);
        outbound(&mut all);
        let expected = headers(&[
            ("te", "trailers"),
            ("connection", "te"),
            ("accept-encoding", "identity"),
            ("anthropic-version", "2023-06-01"),
        ]);
        assert_eq!(all, expected);
    }
}
