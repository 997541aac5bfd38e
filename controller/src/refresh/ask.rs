//! Asks a sidecar what it has. It answers on the pod's network to whoever reaches it, and holds no values.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::index::pod::Told;

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// No answer is longer.
const MAX_ANSWER: usize = 256 * 1024;

/// Of `/status`, what is needed here.
#[derive(Deserialize)]
struct Answer {
    accesses: BTreeMap<String, Told>,
}

/// What the sidecar that answers there says of its accesses.
pub async fn ask(address: SocketAddr) -> anyhow::Result<BTreeMap<String, Told>> {
    tokio::time::timeout(PATIENCE, exchange(address))
        .await
        .context("no answer in time")?
}

async fn exchange(address: SocketAddr) -> anyhow::Result<BTreeMap<String, Told>> {
    let stream = TcpStream::connect(address).await.context("cannot connect")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/status")
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        ensure!(
            response.status() == StatusCode::OK,
            "it answers {}",
            response.status()
        );
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        let answer: Answer = serde_json::from_slice(&body).context("not a sidecar's status")?;
        Ok(answer.accesses)
    };
    tokio::pin!(connection);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}
