//! A companion that is mounted as a directory. What is watched is the directory: the kubelet swaps its `..data` link,
//! so that a watch on a file would see nothing of use. A look every two seconds covers lost notifications.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use llmwarden_proto::delivery::{Companion, MAX_KEY_BYTES};
use llmwarden_proto::names;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use secrecy::zeroize::Zeroizing;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::store::{Seen, Store};

const POLL: Duration = Duration::from_secs(2);
/// The link that the kubelet swaps.
const CURRENT: &str = "..data";
/// More than a Secret can hold: what is longer is no companion.
const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// Looks at `dir` at every change, until `stop`.
pub async fn run(dir: PathBuf, access: &str, store: &Store, stop: CancellationToken) {
    let (wake, mut changes) = channel(1);
    let mut watch = Watch::new(dir.clone(), wake);
    loop {
        // First the watch, then the look: a change in between is seen twice rather than never.
        watch.renew();
        store.observe(access, look(&dir));
        tokio::select! {
            () = next(&mut changes) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn next(changes: &mut Receiver<()>) {
    // Neither a timeout nor a closed channel is news: the next look happens in both cases.
    let _ = tokio::time::timeout(POLL, changes.recv()).await;
}

/// A watch on a directory that may go away and come back.
struct Watch {
    dir: PathBuf,
    wake: Sender<()>,
    active: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Watch {
    fn new(dir: PathBuf, wake: Sender<()>) -> Self {
        Self {
            dir,
            wake,
            active: None,
        }
    }

    /// Watches the directory that has the name now, if that is another one than before.
    fn renew(&mut self) {
        let Ok(identity) = std::fs::metadata(&self.dir).map(|metadata| (metadata.dev(), metadata.ino()))
        else {
            self.active = None;
            return;
        };
        if self
            .active
            .as_ref()
            .is_some_and(|(_, watched)| *watched == identity)
        {
            return;
        }
        let wake = self.wake.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is no change. A full channel means that a look is due anyway.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = wake.try_send(());
            }
        });
        let watching = watcher.and_then(|mut watcher| {
            watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        self.active = match watching {
            Ok(watcher) => Some((watcher, identity)),
            Err(error) => {
                debug!(%error, "no notifications: polling");
                None
            }
        };
    }
}

/// What is in the directory.
fn look(dir: &Path) -> Seen {
    const ATTEMPTS: usize = 3;
    for _ in 0..ATTEMPTS {
        match read(dir) {
            Ok(Some(seen)) => return seen,
            // It was replaced while it was read.
            Ok(None) => {}
            Err(error) => return Seen::Problem(format!("{}: {error}", dir.display())),
        }
    }
    Seen::Problem(format!("{} changes too fast to be read", dir.display()))
}

/// One look; `None` when the content changed under it.
fn read(dir: &Path) -> io::Result<Option<Seen>> {
    // All files from one directory, which never changes: a swap in between can't mix two versions.
    let current = current(dir)?;
    let seen = read_version(dir, &current)?;
    match seen {
        Some(Seen::Companion(_)) | None => Ok(seen),
        // What looks emptied or broken may be an old version that the kubelet is just removing.
        Some(_) if self::current(dir)? != current => Ok(None),
        seen => Ok(seen),
    }
}

/// The directory that holds the present version: the one that `..data` names, or `dir` itself where there is no such link.
fn current(dir: &Path) -> io::Result<PathBuf> {
    match std::fs::read_link(dir.join(CURRENT)) {
        Ok(target) => Ok(dir.join(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(dir.to_owned()),
        Err(error) => Err(error),
    }
}

fn read_version(dir: &Path, current: &Path) -> io::Result<Option<Seen>> {
    let document = read_file(&current.join(names::LIVE_JSON), MAX_DOCUMENT_BYTES)?;
    let read_value = |name| read_file(&current.join(name), MAX_KEY_BYTES);
    let key = read_value(names::API_KEY)?;
    let (previous, placeholder) = (
        read_value(names::PREVIOUS_API_KEY)?,
        read_value(names::PLACEHOLDER)?,
    );
    if document.is_none() && key.is_none() {
        // A missing directory is an error, unlike an empty one.
        return match std::fs::metadata(current) {
            Ok(_) => Ok(Some(Seen::Nothing)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && current != dir => Ok(None),
            Err(error) => Err(error),
        };
    }
    // A directory of plain files has no swap. Who writes one writes live.json last, so that it vouches for the key.
    let again = read_file(&current.join(names::LIVE_JSON), MAX_DOCUMENT_BYTES)?;
    if document != again {
        return Ok(None);
    }
    let parsed = Companion::parse(|name| match name {
        names::LIVE_JSON => document.as_deref(),
        names::API_KEY => key.as_deref(),
        names::PREVIOUS_API_KEY => previous.as_deref(),
        names::PLACEHOLDER => placeholder.as_deref(),
        _ => None,
    });
    Ok(Some(match parsed {
        Ok(companion) => Seen::Companion(companion.into()),
        Err(error) => Seen::Problem(error.to_string()),
    }))
}

/// A file's content, up to one byte over `limit`; `None` if it does not exist.
fn read_file(path: &Path, limit: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // With room for all of it, so that growing leaves no copy behind.
    let size = file.metadata()?.len();
    let room = usize::try_from(size).unwrap_or(limit).min(limit) + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    file.take(limit as u64 + 1).read_to_end(&mut content)?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn document(version: u64) -> String {
        format!(
            r#"{{"schema":1,"version":{version},"state":"active","issuedAt":"2026-01-01T00:00:00Z","keys":["apiKey"]}}"#
        )
    }

    /// Swaps in a version as the kubelet does.
    fn publish(dir: &Path, version: u64) {
        let data = dir.join(format!("..{version}"));
        fs::create_dir_all(&data).expect("data directory");
        fs::write(data.join(names::API_KEY), format!("sk-{version}")).expect("key");
        fs::write(data.join(names::LIVE_JSON), document(version)).expect("document");
        swap(dir, &data);
    }

    fn swap(dir: &Path, data: &Path) {
        symlink(data.file_name().expect("named"), dir.join("..data_tmp")).expect("link");
        fs::rename(dir.join("..data_tmp"), dir.join(CURRENT)).expect("swap");
    }

    fn seen(dir: &Path) -> String {
        match look(dir) {
            Seen::Companion(companion) => format!("version {}", companion.delivery.version),
            Seen::Nothing => "nothing".to_owned(),
            Seen::Problem(problem) => problem,
        }
    }

    #[test]
    fn tells_nothing_there_from_not_readable() {
        let root = tempfile::tempdir().expect("directory");
        let dir = root.path().join("companion");
        assert!(seen(&dir).contains("No such file"), "{}", seen(&dir));
        fs::create_dir(&dir).expect("created");
        assert_eq!(seen(&dir), "nothing");
        publish(&dir, 3);
        assert_eq!(seen(&dir), "version 3");
        // The Secret of an optional volume was deleted: the kubelet swaps in an empty directory.
        fs::create_dir(dir.join("..empty")).expect("created");
        swap(&dir, &dir.join("..empty"));
        assert_eq!(seen(&dir), "nothing");
        fs::remove_dir_all(&dir).expect("removed");
        fs::write(&dir, "a file").expect("written");
        assert!(seen(&dir).contains("Not a directory"), "{}", seen(&dir));
    }

    #[test]
    fn plain_files_do_too() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join(names::API_KEY), "sk-1").expect("written");
        assert!(
            seen(dir.path()).contains("no `live.json`"),
            "{}",
            seen(dir.path())
        );
        fs::write(dir.path().join(names::LIVE_JSON), document(1)).expect("written");
        assert_eq!(seen(dir.path()), "version 1");
        fs::write(dir.path().join(names::API_KEY), vec![b'k'; MAX_KEY_BYTES + 10]).expect("written");
        assert!(seen(dir.path()).contains("larger than"), "{}", seen(dir.path()));
    }
}
