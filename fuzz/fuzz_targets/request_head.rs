//! The endpoint, from the first byte of a connection on: whatever is sent, no answer holds the key unless the token was
//! sent, every answer is one of HTTP/1.1, and the connection ends.
#![no_main]

use std::net::SocketAddr;
use std::os::unix::net;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use hyper::Request;
use hyper::body::Incoming;
use libfuzzer_sys::fuzz_target;
use llmwarden_proto::delivery::Companion;
use llmwarden_proto::names;
use llmwarden_sidecar::endpoint::Endpoint;
use llmwarden_sidecar::endpoint::guard::{Guard, Transport};
use llmwarden_sidecar::metrics::Metrics;
use llmwarden_sidecar::server::{self, Answering, Listener, MAX_CONNECTIONS, Place, Server};
use llmwarden_sidecar::store::{Held, Mode, Slot, Store};
use llmwarden_sidecar::token::Token;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const KEY: &[u8] = b"sk-test-fuzz";
/// As it stands in the seeds.
const TOKEN: &[u8] = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const DOCUMENT: &[u8] = br#"{"version":1,"state":"active","keys":["apiKey"]}"#;

static TOKEN_OF_THE_SEEDS: LazyLock<Arc<Token>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(names::TOKEN_FILE), TOKEN).expect("written");
    Arc::new(Token::load_or_create(dir.path()).expect("loaded"))
});

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// Where the connections come from, and the directory that its socket is in.
static SOCKET: LazyLock<(TempDir, net::UnixListener)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = net::UnixListener::bind(dir.path().join("socket")).expect("bound");
    listener
        .set_nonblocking(true)
        .expect("a socket that does not block");
    (dir, listener)
});

fn store() -> Store {
    let companion = Companion::parse(|name| match name {
        names::LIVE_JSON => Some(DOCUMENT),
        _ => Some(KEY),
    });
    let held = Held::of(companion.expect("readable"), &Mode::Direct).expect("direct");
    Store::new([(
        "agent".to_owned(),
        Slot {
            held,
            ..Slot::default()
        },
    )])
}

/// The endpoint alone.
struct Site(Arc<Endpoint>);

impl server::Site for Site {
    fn answer(self: &Arc<Self>, request: Request<Incoming>, place: &Arc<Place>) -> Answering {
        self.0.answer(&request, place, Transport::Tcp)
    }
}

/// All that is answered.
async fn converse(sent: &[u8]) -> Vec<u8> {
    let address = SocketAddr::from(([127, 0, 0, 1], names::ENDPOINT_PORT));
    let guard = Guard::new(
        address,
        TOKEN_OF_THE_SEEDS.clone(),
        Path::new(names::DELIVERY_DIR).into(),
    );
    let metrics = Arc::new(Metrics::default());
    let stop = CancellationToken::new();
    let site = Arc::new(Site(Arc::new(Endpoint::new(
        Arc::new(guard),
        Arc::new(store()),
        metrics.clone(),
        stop.clone(),
    ))));
    let connections = TaskTracker::new();
    let server = Server {
        places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        metrics,
        stop: stop.clone(),
        connections: connections.clone(),
    };
    let (dir, listener) = &*SOCKET;
    let listener = UnixListener::from_std(listener.try_clone().expect("a copy")).expect("in the runtime");
    let client = UnixStream::connect(dir.path().join("socket")).await;
    let mut client = client.expect("connected");
    let talk = async {
        // It may have refused it before its end.
        let _ = client.write_all(sent).await;
        let _ = client.shutdown().await;
        let mut answered = Vec::new();
        let _ = client.read_to_end(&mut answered).await;
        answered
    };
    let answered = tokio::select! {
        answered = talk => answered,
        () = server.serve(Listener::Right(listener), site) => Vec::new(),
    };
    stop.cancel();
    connections.close();
    connections.wait().await;
    answered
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fuzz_target!(|sent: &[u8]| {
    let answered = RUNTIME.with(|runtime| runtime.block_on(converse(sent)));
    assert!(answered.is_empty() || answered.starts_with(b"HTTP/1."));
    assert!(
        !contains(&answered, KEY) || contains(sent, TOKEN),
        "the key without the token"
    );
});
