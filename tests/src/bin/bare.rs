//! A bare hyper responder, for `make bench`: it answers every request with the text that it is given, and prints where it
//! listens. With a certificate and its key it speaks TLS, as a provider does, and what is asked with a query is answered by
//! a stream: the text as an event, a pause of as many milliseconds as the query says, and the text again.

use std::future::ready;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use llmwarden_tests::certificates::Certificate;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// As `http_body_util::Either` has it.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let text = Bytes::from(arguments.next().context("give it a text")?);
    let files = arguments.next().zip(arguments.next());
    let tls = files.map(|(certificate, key)| {
        let (certificate, key) = (certificate.into(), key.into());
        Certificate { certificate, key }.acceptor()
    });
    let tls = tls.transpose()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let text = text.clone();
        // How a connection ends is its client's matter.
        match tls.clone() {
            None => {
                let service = service_fn(move |_| ready(key(text.clone())));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
            Some(tls) => {
                tokio::spawn(provide(tls, stream, text));
            }
        }
    }
}

/// Under the same headers as the endpoint.
fn key(text: Bytes) -> hyper::http::Result<Response<Full<Bytes>>> {
    Response::builder()
        .header(CONTENT_TYPE, "text/plain; charset=utf-8")
        .header(CACHE_CONTROL, "no-store")
        .header(X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(ETAG, "\"1\"")
        .body(Full::new(text))
}

async fn provide(tls: TlsAcceptor, stream: TcpStream, text: Bytes) -> Result<()> {
    let stream = tls.accept(stream).await?;
    let service = service_fn(move |request| chat(request, text.clone()));
    Ok(http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await?)
}

async fn chat(
    request: Request<Incoming>,
    text: Bytes,
) -> Result<Response<impl Body<Data = Bytes, Error = BoxError>>> {
    let pause = request.uri().query().map(str::parse).transpose()?;
    request.into_body().collect().await?;
    let Some(pause) = pause else {
        let answer = Response::builder().header(CONTENT_TYPE, "application/json");
        return Ok(answer.body(Either::Left(Full::new(text)))?);
    };
    let event = Bytes::from([b"data: ", &text[..], b"\n\n"].concat());
    let events = stream::iter([0, pause]).then(move |pause| {
        let event = event.clone();
        async move {
            if pause > 0 {
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            Ok::<_, BoxError>(Frame::data(event))
        }
    });
    let answer = Response::builder().header(CONTENT_TYPE, "text/event-stream");
    Ok(answer.body(Either::Right(StreamBody::new(events)))?)
}
