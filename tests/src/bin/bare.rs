//! A bare hyper responder, for `make bench` to compare the endpoint with: it answers every request with the text that it is
//! given, under the same headers, and prints where it listens.

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let text = Bytes::from(std::env::args().nth(1).context("give it a text")?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let text = text.clone();
        let service = service_fn(move |_| {
            let answer = Response::builder()
                .header(CONTENT_TYPE, "text/plain; charset=utf-8")
                .header(CACHE_CONTROL, "no-store")
                .header(X_CONTENT_TYPE_OPTIONS, "nosniff")
                .header(ETAG, "\"1\"")
                .body(Full::new(text.clone()));
            std::future::ready(answer)
        });
        // How a connection ends is its client's matter.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}
