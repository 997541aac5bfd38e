//! Requests to a sidecar's endpoint, written out as they go over the wire, so that nothing corrects them on the way.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use llmwarden_proto::names;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::Sidecar;
use crate::wait::try_eventually;

/// Longer than any answer takes that comes at all.
const PATIENCE: Duration = Duration::from_mins(1);

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
    head: String,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(value))
    }
}

/// A request that was sent.
#[derive(Debug)]
pub struct Exchange {
    stream: TcpStream,
    endpoint: SocketAddr,
}

impl Exchange {
    /// Waits until the sidecar has read the request: from then on it counts as one that is being answered.
    pub async fn taken(&self) -> Result<()> {
        let client = self.stream.local_addr()?.port();
        let server = self.endpoint.port();
        try_eventually("the sidecar's read of the request", PATIENCE, async || {
            let sockets = Queues::read()?;
            let unsent = sockets.of(client, server).context("no socket of ours")?.unsent;
            let unread = sockets.of(server, client).context("no socket of its")?.unread;
            anyhow::ensure!(
                (unsent, unread) == (0, 0),
                "{unsent} bytes unsent, {unread} unread"
            );
            Ok(())
        })
        .await
    }

    /// The answer.
    pub async fn answer(self) -> Result<Answer> {
        read(self.stream).await
    }
}

impl Sidecar {
    /// The headers that an honest client sends.
    pub fn headers(&self) -> Result<[String; 2]> {
        let authorization = std::fs::read_to_string(self.auth_header())?;
        let host = format!("Host: localhost:{}", self.endpoint().port());
        Ok([host, authorization.trim_end().to_owned()])
    }

    /// Asks for a path as an honest client does.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.get_with(path, &[]).await
    }

    /// [`get`](Self::get), with more headers.
    pub async fn get_with(&self, path: &str, more: &[&str]) -> Result<Answer> {
        self.begin(path, more).await?.answer().await
    }

    /// [`get_with`](Self::get_with), without waiting for the answer.
    pub async fn begin(&self, path: &str, more: &[&str]) -> Result<Exchange> {
        let honest = self.headers()?;
        let headers: Vec<_> = honest
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        self.send(&format!("GET {path}"), &headers).await
    }

    /// Sends a request over TCP with these headers alone.
    pub async fn send(&self, line: &str, headers: &[&str]) -> Result<Exchange> {
        let endpoint = self.endpoint();
        let mut stream = TcpStream::connect(endpoint).await?;
        write(&mut stream, line, headers).await?;
        Ok(Exchange { stream, endpoint })
    }

    /// Sends bytes as they are, and keeps the connection open for more.
    pub async fn send_raw(&self, bytes: &[u8]) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.endpoint()).await?;
        stream.write_all(bytes).await?;
        Ok(stream)
    }

    /// Sends a request over the Unix socket with these headers alone, and returns the answer.
    pub async fn send_unix(&self, line: &str, headers: &[&str]) -> Result<Answer> {
        let mut stream = UnixStream::connect(self.dir().join(names::SOCKET_FILE)).await?;
        write(&mut stream, line, headers).await?;
        read(stream).await
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), line: &str, headers: &[&str]) -> Result<()> {
    let mut request = format!("{line} HTTP/1.1\r\n");
    for header in headers {
        request.extend([header, "\r\n"]);
    }
    request.push_str("Connection: close\r\n\r\n");
    Ok(stream.write_all(request.as_bytes()).await?)
}

/// All that comes until the sidecar closes the connection.
pub async fn read_text(mut stream: impl AsyncRead + Unpin) -> Result<String> {
    let mut text = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut text));
    read.await.context("no end")??;
    Ok(text)
}

/// The one answer that comes until the sidecar closes the connection.
pub async fn read(stream: impl AsyncRead + Unpin) -> Result<Answer> {
    let text = read_text(stream).await?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end")?;
    let status = head.split(' ').nth(1).context("an answer without a status")?;
    Ok(Answer {
        status: status.parse()?,
        body: body.to_owned(),
        head: head.to_owned(),
    })
}

/// What the kernel holds for each TCP socket.
struct Queues(String);

struct Queue {
    unsent: u32,
    unread: u32,
}

impl Queues {
    fn read() -> Result<Self> {
        Ok(Self(std::fs::read_to_string("/proc/net/tcp")?))
    }

    /// The socket between these two ports, as its local end sees it.
    fn of(&self, local: u16, remote: u16) -> Option<Queue> {
        let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
        self.0.lines().find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, its_local, its_remote, _, queues, ..] = fields.as_slice() else {
                return None;
            };
            if (port(its_local), port(its_remote)) != (Some(local), Some(remote)) {
                return None;
            }
            let (unsent, unread) = queues.split_once(':')?;
            Some(Queue {
                unsent: u32::from_str_radix(unsent, 16).ok()?,
                unread: u32::from_str_radix(unread, 16).ok()?,
            })
        })
    }
}
