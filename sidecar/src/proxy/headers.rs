//! Headers on their way through: what is about one connection alone stays behind, in both directions (RFC 9110, 7.6.1).

use hyper::HeaderMap;
use hyper::header::{
    ACCEPT_ENCODING, CONNECTION, EXPECT, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// By these a request is treated as one of another method than was decided about.
const OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// Removes what a message says about its connection.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    let fixed = [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    for name in named.into_iter().chain(fixed) {
        headers.remove(name);
    }
}

/// Makes a request's headers those of our own request; the host and the key are still to be put in.
pub fn outbound(headers: &mut HeaderMap) {
    let trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    for name in OVERRIDES {
        headers.remove(name);
    }
    headers.remove(HOST);
    // We have answered it ourselves.
    headers.remove(EXPECT);
    // Answers are looked at for tokens, and for words that mean that the key is dead.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
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
            ("host", "127.0.0.1:9470"),
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
