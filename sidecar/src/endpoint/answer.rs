//! How answers are put together.

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::server::Answer;

/// One line of text for people, with its line end.
pub fn text(status: StatusCode, line: &str) -> Answer {
    let end = if line.ends_with('\n') { "" } else { "\n" };
    with(
        status,
        "text/plain; charset=utf-8",
        Bytes::from(format!("{line}{end}")),
    )
}

/// A document without secrets.
pub fn json(status: StatusCode, document: &impl Serialize) -> Answer {
    match serde_json::to_vec(document) {
        Ok(body) => with(status, "application/json", Bytes::from(body)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// What was asked for. Who makes a body with a key in it sees to its wiping.
pub fn value(content_type: &'static str, body: Bytes) -> Answer {
    with(StatusCode::OK, content_type, body)
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Answer {
    let mut answer = with(status, "", Bytes::new());
    answer.headers_mut().remove(CONTENT_TYPE);
    answer
}

fn with(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
