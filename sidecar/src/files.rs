//! Delivery as files: `<dir>/<access>/<name>`, replaced all at once as the kubelet does it for Secret volumes. The names
//! are links through `..data`, a link to a directory that holds one version and never changes; swapping that one link is
//! the replacement. Beside the values the directory holds what it takes to go on from it after a restart.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use llmwarden_proto::delivery::Companion;
use llmwarden_proto::names;
use secrecy::zeroize::Zeroizing;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::metrics::Metrics;
use crate::store::{Delivered, Held, Mode, Slot, Store, Withdrawn};

/// The link to the present version.
const CURRENT: &str = "..data";
/// Where a version is written before it gets its name.
const DRAFT: &str = "..new";
/// In a version: its document.
const DOCUMENT: &str = "..live.json";
/// In a version that stands for a deleted companion: the number of the last one before.
const DELETED: &str = "..deleted";

/// How long a replaced version stays for readers that resolved the link before.
const RETIREMENT: Duration = Duration::from_secs(1);
/// How many of them stay at a time. Nobody rotates so fast; it bounds the space that they take.
const MAX_RETIRED: usize = 256;
/// How often the files are looked after when nothing changes.
const CHECK: Duration = Duration::from_secs(5);

/// Keeps the files of an access as the store says, until `stop`. What can't be written is tried again.
pub async fn run(
    mut directory: Directory,
    access: &str,
    store: &Store,
    metrics: &Metrics,
    stop: CancellationToken,
) {
    let Some(mut slot) = store.subscribe(access) else {
        return;
    };
    loop {
        let Slot {
            held, file_version, ..
        } = slot.borrow_and_update().clone();
        let failed = match directory.ensure(&held) {
            Ok(()) => {
                if let Held::Active(delivered) = &held
                    && file_version.is_some_and(|version| version < delivered.version())
                {
                    metrics.delivered(access, delivered.issued_at());
                }
                store.note_files(access, held.version(), None);
                false
            }
            Err(error) => {
                let shown = slot.borrow().file_version;
                store.note_files(access, shown, Some(error.to_string()));
                true
            }
        };
        let pause = if failed || !directory.retired.is_empty() {
            RETIREMENT
        } else {
            CHECK
        };
        tokio::select! {
            changed = slot.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// The files of one access.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    mode: Mode,
    retired: VecDeque<(PathBuf, Instant)>,
}

/// A failed operation on a file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// For `map_err`: says which file an operation failed on.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    |source| Error {
        path: path.to_owned(),
        source,
    }
}

impl Directory {
    /// The files of `access` in the delivery directory `dir`; nothing is touched yet.
    pub fn new(dir: &Path, access: &str, mode: Mode) -> Self {
        Self {
            path: dir.join(access),
            mode,
            retired: VecDeque::new(),
        }
    }

    /// What the files show: what the last run of the sidecar held.
    pub fn restore(&self) -> Held {
        let current = self.path.join(CURRENT);
        if let Ok(version) = fs::read_to_string(current.join(DELETED)) {
            let version = version.trim().parse();
            return version.map_or(Held::Pending, |version| {
                Held::Withdrawn(Withdrawn::deleted(version))
            });
        }
        let companion = Companion::parse(|name| {
            let file = if name == names::LIVE_JSON { DOCUMENT } else { name };
            fs::read(current.join(file)).ok().map(Zeroizing::new)
        });
        match companion {
            Ok(companion) => Held::restored(companion, &self.mode),
            Err(error) => {
                debug!(path = %self.path.display(), %error, "nothing to go on from");
                Held::Pending
            }
        }
    }

    /// Makes the files show what is held. Nothing is written when they do. A reader sees the old version or the new one.
    pub fn ensure(&mut self, held: &Held) -> Result<(), Error> {
        match held {
            // What is not of this mode: until the source is read, nothing comes in the place of a key that direct mode left.
            Held::Pending if self.mode.is_proxy() && matches!(self.restore(), Held::Pending) => {
                remove_file(&self.path.join(CURRENT))?;
                self.link(&BTreeSet::new())?;
            }
            Held::Pending => {}
            Held::Active(delivered) => {
                if !self.shows(delivered) {
                    self.publish(delivered.version(), &files(delivered))?;
                }
                self.link(&delivered.names().collect())?;
            }
            Held::Withdrawn(withdrawn) => {
                if !self.shows_withdrawn(withdrawn) {
                    let published = self.publish(withdrawn.version, &[tombstone(withdrawn)]);
                    // Nobody is to read on from a key that was withdrawn.
                    self.retired.clear();
                    if published.is_err() {
                        // A full disk must not keep it: removing needs no room, and makes some.
                        remove_file(&self.path.join(CURRENT))?;
                        self.link(&BTreeSet::new())?;
                        self.sweep()?;
                        self.publish(withdrawn.version, &[tombstone(withdrawn)])?;
                    }
                }
                self.link(&BTreeSet::new())?;
            }
        }
        self.sweep()
    }

    fn shows(&self, delivered: &Delivered) -> bool {
        let intact = delivered.names().all(|name| {
            let content = fs::read(self.path.join(CURRENT).join(name)).map(Zeroizing::new);
            content.ok().as_deref().map(Vec::as_slice) == delivered.expose(name).map(str::as_bytes)
        });
        intact && matches!(self.restore(), Held::Active(shown) if shown.document() == delivered.document())
    }

    fn shows_withdrawn(&self, withdrawn: &Withdrawn) -> bool {
        matches!(self.restore(), Held::Withdrawn(shown) if shown == *withdrawn)
    }

    fn publish(&mut self, version: u64, files: &[(&str, Zeroizing<Vec<u8>>)]) -> Result<(), Error> {
        make_directory(&self.path)?;
        // What is over makes room first.
        self.sweep()?;
        let draft = self.path.join(DRAFT);
        remove_directory(&draft)?;
        make_directory(&draft)?;
        for (name, content) in files {
            create(&draft.join(name), content)?;
        }
        // The name is free, but for one case: this version was there before, and somebody damaged it.
        let mut names = (0..).map(|n| {
            if n == 0 {
                format!("..{version}")
            } else {
                format!("..{version}.{n}")
            }
        });
        let name = names
            .find(|name| !self.path.join(name).exists())
            .unwrap_or_default();
        let data = self.path.join(&name);
        fs::rename(&draft, &data).map_err(at(&data))?;

        let replaced = fs::read_link(self.path.join(CURRENT)).ok();
        relink(&self.path.join(CURRENT), Path::new(&name))?;
        if let Some(name) = replaced {
            self.retired.push_back((self.path.join(name), Instant::now()));
        }
        Ok(())
    }

    /// Makes the names link through `..data`, and no others.
    fn link(&self, names: &BTreeSet<&str>) -> Result<(), Error> {
        for name in names {
            let (link, target) = (self.path.join(name), Path::new(CURRENT).join(name));
            if fs::read_link(&link).ok().as_ref() != Some(&target) {
                relink(&link, &target)?;
            }
        }
        for (name, path) in self.entries()? {
            if !name.starts_with("..") && !names.contains(name.as_str()) && path.is_symlink() {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    /// Removes versions that are neither present nor just retired.
    fn sweep(&mut self) -> Result<(), Error> {
        let surplus = self.retired.len().saturating_sub(MAX_RETIRED);
        self.retired.drain(..surplus);
        self.retired.retain(|(_, since)| since.elapsed() < RETIREMENT);
        let current = fs::read_link(self.path.join(CURRENT)).ok();
        for (name, path) in self.entries()? {
            let kept = current.as_deref() == Some(Path::new(&name))
                || self.retired.iter().any(|(retired, _)| *retired == path);
            if name.starts_with("..") && !kept && path.is_dir() && !path.is_symlink() {
                remove_directory(&path)?;
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at(&self.path)(error)),
        };
        let named = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name, entry.path()))
        });
        Ok(named.collect())
    }
}

/// The files of a version.
fn files(delivered: &Delivered) -> Vec<(&str, Zeroizing<Vec<u8>>)> {
    let value = |name| delivered.expose(name).unwrap_or_default().as_bytes().to_vec();
    let mut files: Vec<_> = delivered
        .names()
        .map(|name| (name, Zeroizing::new(value(name))))
        .collect();
    files.push((DOCUMENT, Zeroizing::new(delivered.document().to_vec())));
    files
}

/// The one file of a version without a key: it keeps an older one from coming back after a restart.
fn tombstone(withdrawn: &Withdrawn) -> (&'static str, Zeroizing<Vec<u8>>) {
    let Withdrawn {
        version,
        reason,
        deleted,
    } = withdrawn;
    if *deleted {
        return (DELETED, Zeroizing::new(version.to_string().into_bytes()));
    }
    let document = serde_json::json!({
        "schema": llmwarden_proto::delivery::SCHEMA,
        "version": version,
        "state": "withdrawn",
        "reason": reason,
        "issuedAt": Timestamp::now(),
    });
    (DOCUMENT, Zeroizing::new(document.to_string().into_bytes()))
}

/// Replaces a file that any user may read: who has the mount may have the content.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let draft = beside(path);
    remove_file(&draft)?;
    create(&draft, content)?;
    fs::rename(&draft, path).map_err(at(path))
}

fn create(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)
        .map_err(at(path))?;
    file.write_all(content).map_err(at(path))?;
    // Not left to the umask.
    file.set_permissions(Permissions::from_mode(0o444))
        .map_err(at(path))
}

/// The directory above is not made here: who makes that one gives it to the user alone.
fn make_directory(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(path)(error)),
        _ => {}
    }
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(at(path))
}

fn relink(link: &Path, target: &Path) -> Result<(), Error> {
    let draft = beside(link);
    remove_file(&draft)?;
    symlink(target, &draft).map_err(at(&draft))?;
    fs::rename(&draft, link).map_err(at(link))
}

/// A hidden name in the same directory, from which a rename is atomic.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("..{name}.new"))
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

fn remove_directory(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
