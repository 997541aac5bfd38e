//! Puts the parts together and runs them until it is told to stop.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hyper::Request;
use hyper::body::Incoming;
use kube::Client;
use llmwarden_proto::names;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::{Cli, Origin};
use crate::endpoint::Endpoint;
use crate::endpoint::guard::{Guard, Transport};
use crate::files::{self, Directory};
use crate::metrics::Metrics;
use crate::proxy::{MAX_REQUESTS, Proxy};
use crate::server::{Answering, Listener, MAX_CONNECTIONS, Place, Server, Site};
use crate::source;
use crate::source::kube::api_server;
use crate::status::StatusPage;
use crate::store::{Slot, Store};
use crate::token::Token;

/// How many files there have to be room for: a proxied request has two connections.
const FILES: u64 = 4_096;
/// How long open connections may take to finish. Pods get 30 s by default.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the delivery directory, the token's files and the socket are looked after.
const CHECK: Duration = Duration::from_secs(5);
/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;
/// Held while a sidecar delivers to the directory.
const LOCK_FILE: &str = "..lock";

/// What the agent asks: the proxy and the endpoint.
#[derive(Debug)]
struct AgentSite {
    proxy: Arc<Proxy>,
    endpoint: Arc<Endpoint>,
    transport: Transport,
}

impl Site for AgentSite {
    fn answer(self: &Arc<Self>, request: Request<Incoming>, place: &Arc<Place>) -> Answering {
        if Proxy::is_asked(&request) {
            self.proxy.answer(request, place, self.transport)
        } else {
            self.endpoint.answer(&request, place, self.transport)
        }
    }
}

/// Runs the sidecar until SIGTERM or SIGINT. The files stay: the agent may end later.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run_async(cli))
}

async fn run_async(cli: Cli) -> anyhow::Result<()> {
    // First of all, so that no signal finds the default action.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    if let Err(error) = raise_file_limit() {
        warn!(%error, "the limit of open files stays as it is");
    }

    let dir = cli.dir.as_path();
    let lock = open_directory(dir)?;
    let token = Arc::new(Token::load_or_create(dir)?);
    let stop = CancellationToken::new();
    let connections = TaskTracker::new();
    let metrics = Arc::new(Metrics::default());
    // Streams are many and last; the other places stay free for the endpoint.
    let streams = if cli.proxied.is_empty() { 0 } else { MAX_REQUESTS };
    let server = |streams| Server {
        places: Arc::new(Semaphore::new(MAX_CONNECTIONS + streams)),
        metrics: metrics.clone(),
        stop: stop.clone(),
        connections: connections.clone(),
    };

    let endpoint_listener = listen(cli.listen, "--listen")?;
    let endpoint_address = endpoint_listener.local_addr()?;
    let store = Arc::new(restore(&cli, endpoint_address));
    let socket = dir.join(names::SOCKET_FILE);
    let socket_listener = listen_unix(&socket)?;
    let status_listener = listen(cli.status, "--status")?;
    let status_address = status_listener.local_addr()?;

    let mut tasks = JoinSet::new();
    let guard = Arc::new(Guard::new(endpoint_address, token.clone(), cli.dir.clone()));
    let proxy = Arc::new(Proxy::new(guard.clone(), store.clone(), metrics.clone()));
    let endpoint = Arc::new(Endpoint::new(guard, store.clone(), metrics.clone(), stop.clone()));
    let page = Arc::new(StatusPage::new(
        store.clone(),
        metrics.clone(),
        proxy.clone(),
        dir,
    ));
    let agent = |transport| {
        Arc::new(AgentSite {
            proxy: proxy.clone(),
            endpoint: endpoint.clone(),
            transport,
        })
    };
    tasks.spawn(server(streams).serve(Listener::Left(endpoint_listener), agent(Transport::Tcp)));
    tasks.spawn(serve_socket(
        socket.clone(),
        socket_listener,
        server(streams),
        agent(Transport::Unix),
    ));
    tasks.spawn(server(0).serve(Listener::Left(status_listener), page));
    tasks.spawn(keep_directory(cli.dir.clone(), lock, token));
    start_deliveries(&cli, &store, &metrics, &stop, &mut tasks)?;
    info!(endpoint = %endpoint_address, status = %status_address, "listening");

    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        // None of them ends by itself: a restart is better than a sidecar without one of its parts.
        ended = tasks.join_next() => match ended {
            Some(Err(error)) => Err(anyhow::Error::new(error).context("a part of the sidecar failed")),
            _ => Err(anyhow::Error::msg("a part of the sidecar ended")),
        },
    };
    info!("stopping");
    stop.cancel();
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
        warn!(left = connections.len(), "connections were still open at the end");
    }
    // Nobody listens there any more. The directory is still ours, so it is no other one's socket.
    let _ = fs::remove_file(socket);
    tasks.shutdown().await;
    outcome
}

/// Makes room for all that may be open at a time, as far as it is allowed: container runtimes leave 1,024 files to whoever
/// asks for no more.
fn raise_file_limit() -> nix::Result<()> {
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if most < FILES {
        warn!(
            limit = most,
            needed = FILES,
            "few files may be open here: under load, connections will be refused"
        );
    }
    setrlimit(Resource::RLIMIT_NOFILE, now.max(FILES.min(most)), most)
}

/// Every access with what its files show from the last run.
fn restore(cli: &Cli, endpoint: SocketAddr) -> Store {
    Store::new(cli.sources.iter().map(|source| {
        let mode = cli.mode(&source.access, endpoint);
        let held = Directory::new(&cli.dir, &source.access, mode.clone()).restore();
        info!(access = source.access, %held, "from the last run");
        let slot = Slot {
            mode,
            held,
            ..Slot::default()
        };
        (source.access.clone(), slot)
    }))
}

/// Starts a source and the files of each access.
fn start_deliveries(
    cli: &Cli,
    store: &Arc<Store>,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let mut client = None;
    for source in cli.sources.clone() {
        let (access, store, stop) = (source.access, store.clone(), stop.clone());
        let slot = store.get(&access).context("an access that is not in the store")?;
        let directory = Directory::new(&cli.dir, &access, slot.mode);
        let (files_access, files_store, files_stop) = (access.clone(), store.clone(), stop.clone());
        let metrics = metrics.clone();
        tasks.spawn(async move {
            files::run(directory, &files_access, &files_store, &metrics, files_stop).await;
        });
        match source.origin {
            Origin::Volume(dir) => {
                tasks.spawn(async move { source::volume::run(dir, &access, &store, stop).await });
            }
            Origin::Kube { namespace, secret } => {
                let client = if let Some(client) = &client {
                    Client::clone(client)
                } else {
                    let url = cli.api_server.as_ref();
                    client
                        .insert(api_server::client(url, cli.service_account.as_deref())?)
                        .clone()
                };
                tasks.spawn(async move {
                    source::kube::run(client, &namespace, &secret, &access, &store, stop).await;
                });
            }
        }
    }
    Ok(())
}

/// Keeps the delivery directory, the claim to it and the token's files, if somebody removes them.
async fn keep_directory(dir: PathBuf, mut lock: File, token: Arc<Token>) {
    loop {
        let inode = |file: std::io::Result<fs::Metadata>| file.map(|metadata| metadata.ino()).ok();
        if inode(fs::metadata(dir.join(LOCK_FILE))) != inode(lock.metadata()) {
            match open_directory(&dir) {
                Ok(again) => lock = again,
                Err(error) => warn!(%error, "the delivery directory is gone; trying again"),
            }
        }
        if let Err(error) = token.ensure_files(&dir) {
            warn!(%error, "the token's files can't be written; trying again");
        }
        tokio::time::sleep(CHECK).await;
    }
}

/// Serves the Unix socket until the stop, and makes it anew if somebody removes it.
async fn serve_socket(path: PathBuf, first: UnixListener, server: Server, site: Arc<AgentSite>) {
    let mut listener = Some(first);
    while !server.stop.is_cancelled() {
        if let Some(listener) = listener.take() {
            tokio::select! {
                () = server.clone().serve(Listener::Right(listener), site.clone()) => return,
                () = replaced(&path) => {}
            }
        }
        match listen_unix(&path) {
            Ok(again) => listener = Some(again),
            Err(error) => {
                warn!(%error, "no socket; trying again");
                tokio::time::sleep(CHECK).await;
            }
        }
    }
}

/// Waits until a path leads elsewhere than now, or nowhere.
async fn replaced(path: &Path) {
    let inode = || fs::symlink_metadata(path).map(|metadata| metadata.ino()).ok();
    let before = inode();
    while inode().is_some() && inode() == before {
        tokio::time::sleep(CHECK).await;
    }
}

/// Makes the delivery directory if it does not exist, for the user alone, and takes it for this process.
fn open_directory(dir: &Path) -> anyhow::Result<File> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("--dir {}: cannot make it", dir.display()))?;
    let path = dir.join(LOCK_FILE);
    let lock = File::create(&path).with_context(|| format!("--dir {}: cannot write to it", dir.display()))?;
    if lock.try_lock().is_err() {
        bail!(
            "--dir {}: another llmwarden-sidecar delivers there",
            dir.display()
        );
    }
    Ok(lock)
}

fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let bound = match bind(address) {
        // No IPv6 here.
        Err(error)
            if address.ip().is_unspecified()
                && matches!(
                    error.raw_os_error(),
                    Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)
                ) =>
        {
            bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), address.port()).into())
        }
        bound => bound,
    };
    bound.with_context(|| format!("{flag} {address}: cannot listen there"))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    // Connections have it from here: no piece of a stream waits until the client has confirmed the one before.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn listen_unix(path: &Path) -> anyhow::Result<UnixListener> {
    let what = || format!("{}: cannot listen there", path.display());
    // What a killed sidecar left; that no other one runs here is known from the lock.
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path).with_context(what)?,
        Ok(_) => bail!(
            "{}: there is something in place of the socket; remove it",
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(what),
    }
    let listener = UnixListener::bind(path).with_context(what)?;
    // The umask takes the right to connect from other users, who are to have it.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).with_context(what)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_all_connections() {
        let limit = || getrlimit(Resource::RLIMIT_NOFILE).expect("readable");
        let (_, most) = limit();
        setrlimit(Resource::RLIMIT_NOFILE, most.min(1_024), most).expect("allowed");
        raise_file_limit().expect("allowed");
        assert_eq!(limit(), (most.min(FILES), most));
    }
}
