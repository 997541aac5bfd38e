//! HTTP/1.1 to one server, on connections that are kept for the next request.

pub mod connect;
mod kept;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Request, Response, Uri};
use tower_service::Service;
use tracing::debug;

use crate::incoming;
use crate::server::BoxError;
use connect::Connector;
use kept::Kept;
pub use kept::Received;

/// How long a connection may take, TLS and an egress proxy included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends requests to one server.
pub struct Client<B> {
    server: Uri,
    host: HeaderValue,
    connector: Connector,
    kept: Arc<Kept<B>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection.
    #[error("cannot connect")]
    Connect(#[source] BoxError),
    /// The connection broke, or what came is no answer.
    #[error("no answer")]
    Exchange(#[source] hyper::Error),
}

/// The URL does not say where a server is.
#[derive(Debug, thiserror::Error)]
#[error("it is no http:// or https:// URL with a host")]
pub struct NoServer;

impl<B> Client<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    /// For the server of a URL, whose path does not count.
    pub fn new(url: &Uri, connector: Connector) -> Result<Self, NoServer> {
        let (Some(scheme), Some(authority)) = (url.scheme(), url.authority()) else {
            return Err(NoServer);
        };
        if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
            return Err(NoServer);
        }
        let server = Uri::builder()
            .scheme(scheme.clone())
            .authority(authority.clone())
            .path_and_query(PathAndQuery::from_static("/"));
        Ok(Self {
            server: server.build().map_err(|_| NoServer)?,
            host: host(scheme, authority)?,
            connector,
            kept: Arc::default(),
        })
    }

    /// Sends a request, whose URI is a path with a query, and waits for the head of the answer. A request that a kept
    /// connection did not take, as the server had just closed it, goes out on another one.
    pub fn send(
        &self,
        mut request: Request<B>,
    ) -> impl Future<Output = Result<Response<Received<B>>, Error>> + Send {
        request.headers_mut().insert(HOST, self.host.clone());
        // What an `async fn` is given, it would hold twice.
        async move {
            loop {
                let kept = self.kept.take();
                let is_kept = kept.is_some();
                let mut sender = match kept {
                    Some(sender) => sender,
                    // Boxed, as it is larger than all else that a request needs.
                    None => Box::pin(self.connect()).await?,
                };
                match sender.try_send_request(request).await {
                    Ok(answer) => {
                        return Ok(answer.map(|body| Received::new(body.into(), sender, self.kept.clone())));
                    }
                    Err(mut error) => match error.take_message() {
                        Some(again) if is_kept => request = again,
                        _ => return Err(Error::Exchange(error.into_error())),
                    },
                }
            }
        }
    }

    async fn connect(&self) -> Result<http1::SendRequest<B>, Error> {
        // It is always ready: its services are.
        let stream = self.connector.clone().call(self.server.clone());
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, stream).await {
            Ok(stream) => stream.map_err(Error::Connect)?,
            Err(elapsed) => return Err(Error::Connect(elapsed.into())),
        };
        let (sender, connection) = http1::handshake(stream).await.map_err(Error::Exchange)?;
        let connection = incoming::Connection::new(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection to a server ended early");
            }
        });
        Ok(sender)
    }
}

impl<B> fmt::Debug for Client<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({}, {} kept)", self.server, self.kept.len())
    }
}

/// The host as a request names it: without the port that its scheme implies, and without a user.
fn host(scheme: &Scheme, authority: &Authority) -> Result<HeaderValue, NoServer> {
    let implied = if *scheme == Scheme::HTTPS { 443 } else { 80 };
    let host = authority.host();
    let host = match authority.port_u16() {
        Some(port) if port != implied => HeaderValue::try_from(format!("{host}:{port}")),
        _ => HeaderValue::from_str(host),
    };
    host.map_err(|_| NoServer)
}

#[cfg(test)]
mod tests;
