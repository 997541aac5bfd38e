//! The directory of one test cluster: removed afterwards, kept with a word about it when something went wrong.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::process::tail;

const LOCK: &str = "in-use";

/// A directory that goes with its owner, unless it is asked to stay.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
    keep: AtomicBool,
    /// Held while the directory is in use. The kernel lets go of it however the process ends.
    _lock: File,
}

impl WorkDir {
    /// Makes a new directory in `parent`, and removes those that killed processes left there.
    pub(crate) fn create(parent: &Path) -> Result<Self> {
        fs::create_dir_all(parent)?;
        let parent = parent.canonicalize()?;
        sweep(&parent)?;
        // It gets its final name when the lock is held, so that nobody's sweep takes it in between.
        let new = tempfile::Builder::new()
            .prefix("new-")
            .tempdir_in(&parent)?
            .keep();
        let lock = File::create(new.join(LOCK))?;
        lock.lock()?;
        let name = new
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .replacen("new-", "run-", 1);
        let path = parent.join(name);
        fs::rename(&new, &path).with_context(|| path.display().to_string())?;
        Ok(Self {
            path,
            keep: AtomicBool::new(false),
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the directory stay, and prints where it is and how its logs end. Once: a cluster may serve many failing tests.
    pub(crate) fn keep(&self, why: &str) {
        if self.keep.swap(true, Ordering::Relaxed) {
            return;
        }
        // Without its lock file no sweep takes it.
        let _ = fs::remove_file(self.path.join(LOCK));
        eprintln!(
            "{why}: everything about this cluster is kept in {}",
            self.path.display()
        );
        let mut logs: Vec<_> = fs::read_dir(&self.path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for log in logs {
            let text = fs::read(&log).unwrap_or_default();
            eprintln!(
                "--- the end of {}\n{}",
                log.display(),
                tail(&String::from_utf8_lossy(&text), 15)
            );
        }
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if !*self.keep.get_mut() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn sweep(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)?.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with("run-");
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if ours && lock.try_lock().is_ok() {
            // Another sweep may be at it too: whoever comes second finds nothing left.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}
