//! The last words to a connection that the server itself refuses, before any service has seen a request.

use std::error::Error;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Connection, HEAD_TIMEOUT, MAX_HEAD_BYTES};

/// How long a closed connection is read on.
const LINGER: Duration = Duration::from_secs(1);

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There are too many.
    Connections,
    /// What was sent is no head of a request.
    Malformed,
    /// The head is too large.
    Large,
    /// The head did not come in time.
    Slow,
    /// The head ended before its end.
    Incomplete,
    /// The client speaks HTTP/2.
    Version,
    /// The client does not read its answers.
    Unread,
}

impl Refusal {
    /// Why a connection ended, if it was refused. `begun` says whether a part of a head had come.
    pub(super) fn of(error: &hyper::Error, begun: bool) -> Option<Self> {
        let io = error
            .source()
            .and_then(|source| source.downcast_ref::<io::Error>());
        match () {
            () if error.is_parse_version_h2() => Some(Self::Version),
            () if error.is_parse_too_large() => Some(Self::Large),
            () if error.is_parse() => Some(Self::Malformed),
            // Without one, it is a client that keeps its connection for later, or has gone.
            () if error.is_timeout() => begun.then_some(Self::Slow),
            () if error.is_incomplete_message() => begun.then_some(Self::Incomplete),
            () if io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut) => Some(Self::Unread),
            () => None,
        }
    }

    /// For the metric.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Malformed => "malformed",
            Self::Large => "large",
            Self::Slow => "slow",
            Self::Incomplete => "incomplete",
            Self::Version => "version",
            Self::Unread => "unread",
        }
    }

    /// What is said: status and words. Nothing to a client that does not read.
    fn answer(self) -> Option<(&'static str, String)> {
        Some(match self {
            Self::Connections => (
                "503 Service Unavailable\r\nretry-after: 1",
                "too many connections at once; close some, or wait".into(),
            ),
            Self::Malformed => (
                "400 Bad Request",
                "this is no request of HTTP/1.1; its head can't be read".into(),
            ),
            Self::Large => (
                "431 Request Header Fields Too Large",
                format!(
                    "the head of the request is too large: {MAX_HEAD_BYTES} bytes and 100 headers at most"
                ),
            ),
            Self::Slow => (
                "408 Request Timeout",
                format!(
                    "the head of the request took longer than {} s",
                    HEAD_TIMEOUT.as_secs()
                ),
            ),
            Self::Incomplete => (
                "400 Bad Request",
                "the head of the request ended before its empty line".into(),
            ),
            Self::Version => (
                "505 HTTP Version Not Supported",
                "only HTTP/1.1; tell the client not to begin with HTTP/2".into(),
            ),
            Self::Unread => return None,
        })
    }
}

/// Tells a connection why it is refused, and ends it.
pub(super) async fn say(mut connection: Connection, refusal: Refusal) {
    let Some((status, words)) = refusal.answer() else {
        return;
    };
    let body = format!("llmwarden: {words}\n");
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let said = async {
        connection.write_all((head + &body).as_bytes()).await?;
        connection.shutdown().await
    };
    // Whether it was heard is the client's matter.
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, said).await {
        linger(connection).await;
    }
}

/// Reads on for a moment: closing a socket with unread data would take back what was written to it.
pub(super) async fn linger(mut connection: Connection) {
    let mut ignored = [0; 1024];
    let rest = async { while connection.read(&mut ignored).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(LINGER, rest).await;
}
