//! A request in one piece, in case it has to be sent again: that is hardly ever needed, and costs less than a second map of
//! headers.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};

use super::forward::Head;

/// What no target, name or value has, stands behind each of them.
const END: u8 = b'\n';

/// The head of a request, from which it can be made again.
pub struct Packed {
    method: Method,
    text: Vec<u8>,
}

impl Packed {
    /// Packs a head, nothing of which is a secret.
    pub fn new(head: &Head) -> Self {
        let target = head.uri.path_and_query().map_or("", |target| target.as_str());
        let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 2;
        let size = target.len() + 1 + head.headers.iter().map(size).sum::<usize>();
        let mut text = Vec::with_capacity(size);
        let mut push = |part: &[u8]| {
            text.extend_from_slice(part);
            text.push(END);
        };
        push(target.as_bytes());
        for (name, value) in &head.headers {
            push(name.as_ref());
            push(value.as_bytes());
        }
        Self {
            method: head.method.clone(),
            text,
        }
    }

    /// The head, all of it.
    pub fn unpack(&self) -> Option<Head> {
        let mut parts = self.text.strip_suffix(&[END])?.split(|byte| *byte == END);
        let uri = Uri::try_from(parts.next()?).ok()?;
        let mut headers = HeaderMap::new();
        while let Some(name) = parts.next() {
            let name = HeaderName::from_bytes(name).ok()?;
            headers.append(name, HeaderValue::from_bytes(parts.next()?).ok()?);
        }
        Some(Head {
            method: self.method.clone(),
            uri,
            headers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let all = HeaderMap::from_iter([
            (HeaderName::from_static("accept"), HeaderValue::from_static("a/b")),
            (HeaderName::from_static("x-empty"), HeaderValue::from_static("")),
        ]);
        let mut twice = all.clone();
        let latin = HeaderValue::from_bytes(b"caf\xe9").expect("a value");
        twice.append(HeaderName::from_static("accept"), latin);
        for (headers, uri) in [
            (HeaderMap::new(), "/"),
            (all, "/v1/messages"),
            (twice, "/v1/models/a%20b?alt=sse&k=%2F"),
        ] {
            let head = Head {
                method: Method::POST,
                uri: Uri::from_static(uri),
                headers,
            };
            let unpacked = Packed::new(&head).unpack().expect("all of it");
            assert_eq!((unpacked.method, unpacked.uri), (head.method, head.uri));
            assert!(unpacked.headers.iter().eq(head.headers.iter()), "{uri}");
        }
    }
}
