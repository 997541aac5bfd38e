//! Who may ask at all, and what. Everything is refused that no honest local client sends: what a browser adds, what a proxy
//! adds, another Host than ours, a path that is written in a tricky way, a body; and over TCP, whatever comes without the
//! token.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, FORWARDED, HOST, HeaderMap, HeaderName, ORIGIN, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, Request, StatusCode};
use llmwarden_proto::names;

use crate::token::Token;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FORWARDED_PREFIX: &str = "x-forwarded-";

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Over loopback, which everybody on the host or in the pod reaches.
    Tcp,
    /// Over the Unix socket, which only those reach who have the mount.
    Unix,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A proxy passed it on.
    Forwarded,
    /// The target is not a plain path.
    Target,
    /// Another host was asked for, or none, or two.
    Host,
    /// A browser sent it for a web page.
    Browser,
    /// No token, or a wrong one.
    Token,
    /// Another method than GET.
    Method,
    /// It wants to go on in another protocol.
    Upgrade,
    /// It has a body.
    Body,
}

impl Refusal {
    /// For the metric.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Target => "target",
            Self::Host => "host",
            Self::Browser => "browser",
            Self::Token => "token",
            Self::Method => "method",
            Self::Upgrade => "upgrade",
            Self::Body => "body",
        }
    }

    /// The answer's status.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Forwarded | Self::Target | Self::Host | Self::Upgrade | Self::Body => {
                StatusCode::BAD_REQUEST
            }
            Self::Browser => StatusCode::FORBIDDEN,
            Self::Token => StatusCode::UNAUTHORIZED,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

/// The rules of one endpoint.
#[derive(Debug)]
pub struct Guard {
    hosts: [String; 2],
    token: Arc<Token>,
    dir: PathBuf,
}

impl Guard {
    /// For an endpoint at this address, whose token's files are in `dir`.
    pub fn new(address: SocketAddr, token: Arc<Token>, dir: PathBuf) -> Self {
        let hosts = [address.to_string(), format!("localhost:{}", address.port())];
        Self { hosts, token, dir }
    }

    /// Whether the request may be looked at.
    pub fn check<B>(&self, request: &Request<B>, transport: Transport) -> Result<(), Refusal> {
        let said = Said::of(request.headers());
        self.check_said(&said, transport)?;
        let uri = request.uri();
        if uri.authority().is_some() || uri.query().is_some() || !is_plain(uri.path()) {
            return Err(Refusal::Target);
        }
        if transport == Transport::Tcp && !said.authorization.is_some_and(|value| self.has_token(value)) {
            return Err(Refusal::Token);
        }
        if request.method() != Method::GET {
            return Err(Refusal::Method);
        }
        if said.upgrades {
            return Err(Refusal::Upgrade);
        }
        if said.has_body {
            return Err(Refusal::Body);
        }
        Ok(())
    }

    /// Whether it comes from a local client, and not through one: the part of the rules that holds for the proxy too.
    pub fn check_origin(&self, headers: &HeaderMap, transport: Transport) -> Result<(), Refusal> {
        self.check_said(&Said::of(headers), transport)
    }

    fn check_said(&self, said: &Said<'_>, transport: Transport) -> Result<(), Refusal> {
        if said.is_forwarded {
            return Err(Refusal::Forwarded);
        }
        // Whoever reaches the Unix socket came through the file system, not through a name.
        let host_is_ours = said.host.is_some_and(|host| {
            transport == Transport::Unix || self.hosts.iter().any(|ours| ours.as_bytes() == host)
        });
        if !host_is_ours {
            return Err(Refusal::Host);
        }
        if said.is_from_a_page {
            return Err(Refusal::Browser);
        }
        Ok(())
    }

    fn has_token(&self, value: &[u8]) -> bool {
        const SCHEME: &[u8] = b"bearer ";
        value
            .split_at_checked(SCHEME.len())
            .is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case(SCHEME) && self.token.matches(token))
    }

    /// What to tell the caller: what is wrong and what would work.
    pub fn explain(&self, refusal: Refusal, path: &str) -> String {
        let [_, host] = &self.hosts;
        match refusal {
            Refusal::Forwarded => {
                "this endpoint is for local clients: send no Forwarded or X-Forwarded-* header".into()
            }
            Refusal::Target => {
                "write the path alone and plainly: no scheme or host before it, no query, nothing \
                                encoded, no `.` or `..` in it"
                    .into()
            }
            Refusal::Host => format!("send one Host header with {} or {host}", self.hosts[0]),
            Refusal::Browser => {
                "this endpoint is not for web pages: send no Origin or Sec-Fetch-Site header".into()
            }
            Refusal::Method => "only GET".into(),
            Refusal::Upgrade => "only HTTP/1.1: send no Upgrade header".into(),
            Refusal::Body => "send no body".into(),
            Refusal::Token => {
                let path = if path.starts_with("/v1/keys/") {
                    path
                } else {
                    "/v1/keys"
                };
                let header = self.dir.join(names::AUTH_HEADER_FILE);
                format!(
                    "the token is missing or wrong. This works for whoever can read the file:\n  \
                     curl -H @{} http://{host}{path}",
                    header.display()
                )
            }
        }
    }
}

/// Whether a path is written in the one way that an honest client writes it.
fn is_plain(path: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    path == "/"
        || path.as_bytes().strip_prefix(b"/").is_some_and(|parts| {
            parts
                .split(|byte| *byte == b'/')
                .all(|part| !matches!(part, b"" | b"." | b"..") && part.iter().all(plain))
        })
}

/// What the headers say that the rules are about, read in one go: each look for a name costs about as much.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each tells of headers that are there or not"
)]
struct Said<'a> {
    /// If it was sent exactly once.
    host: Option<&'a [u8]>,
    /// If it was sent exactly once.
    authorization: Option<&'a [u8]>,
    is_forwarded: bool,
    is_from_a_page: bool,
    upgrades: bool,
    has_body: bool,
}

impl<'a> Said<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let mut said = Self::default();
        let (mut hosts, mut authorizations) = (0, 0);
        for (name, value) in headers {
            if *name == HOST {
                hosts += 1;
                said.host = (hosts == 1).then_some(value.as_bytes());
            } else if *name == AUTHORIZATION {
                authorizations += 1;
                said.authorization = (authorizations == 1).then_some(value.as_bytes());
            } else if *name == CONTENT_LENGTH {
                said.has_body |= value != "0";
            } else if *name == TRANSFER_ENCODING {
                said.has_body = true;
            } else if *name == UPGRADE {
                said.upgrades = true;
            } else if *name == ORIGIN || *name == SEC_FETCH_SITE {
                said.is_from_a_page = true;
            } else if *name == FORWARDED || name.as_str().starts_with(FORWARDED_PREFIX) {
                said.is_forwarded = true;
            }
        }
        said
    }
}
