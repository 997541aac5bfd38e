//! Consumers that never stop reading: one the file, one the endpoint, one that waits there for news. They note when each key first came, and every
//! read that no agent should ever get.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::try_eventually;

/// Between two reads; also how exactly the times are known.
const PAUSE: Duration = Duration::from_micros(200);

/// What a reader has seen so far.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Reads, good and bad.
    pub reads: u64,
    /// Reads that found nothing, or failed.
    pub missing: u64,
    /// Reads of something that is none of the keys.
    pub torn: u64,
    /// Reads of an older key after a newer one.
    pub backward: u64,
    /// The last failure, in words.
    pub last_failure: Option<String>,
}

impl Tally {
    /// Reads that no agent should get.
    pub fn bad(&self) -> u64 {
        self.missing + self.torn + self.backward
    }
}

/// The keys in the order in which they are published.
#[derive(Debug, Default)]
struct Keys(Mutex<Vec<String>>);

/// One reader's notes.
#[derive(Debug, Default)]
struct Notes {
    tally: Tally,
    newest: usize,
    first_seen: BTreeMap<usize, Instant>,
}

/// A reader of the file and one of the endpoint, until dropped.
#[derive(Debug)]
pub struct Readers {
    keys: Arc<Keys>,
    file: Reader,
    endpoint: Reader,
    waiting: Option<Reader>,
}

#[derive(Debug)]
struct Reader {
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Readers {
    /// Reads the file at `file`, and `url` with the header line that stands in `header`, starting with `first` there.
    pub fn start(file: PathBuf, url: &str, header: &Path, first: &str) -> Result<Self> {
        Self::start_beside(None, file, url, header, first)
    }

    /// [`start`](Self::start), with `url` in the network namespace of the process with this id.
    pub fn start_beside(
        pid: Option<u32>,
        file: PathBuf,
        url: &str,
        header: &Path,
        first: &str,
    ) -> Result<Self> {
        let namespace = |pid| File::open(format!("/proc/{pid}/ns/net"));
        let mut enter = pid.map(namespace).transpose()?;
        let keys = Arc::new(Keys(Mutex::new(vec![first.to_owned()])));
        let agent = ureq::Agent::new_with_defaults();
        let (name, value) = header_of(header)?;
        let url = url.to_owned();
        let ask = move || {
            // It is this thread alone that enters, with its first read.
            if let Some(namespace) = enter.take() {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
            }
            let mut answer = agent
                .get(&url)
                .header(&name, &value)
                .call()
                .map_err(io::Error::other)?;
            answer.body_mut().read_to_vec().map_err(io::Error::other)
        };
        Ok(Self {
            file: Reader::start(keys.clone(), move || std::fs::read(&file)),
            endpoint: Reader::start(keys.clone(), ask),
            waiting: None,
            keys,
        })
    }

    /// Has a third one ask `url` for what is newer than what it has, again and again.
    pub fn wait_too(&mut self, url: &str, header: &Path) -> Result<()> {
        let agent = ureq::Agent::new_with_defaults();
        let (name, value) = header_of(header)?;
        let url = url.to_owned();
        let (mut tag, mut key) = (String::from("none"), Vec::new());
        let mut ask = move || {
            let request = agent.get(&url).header(&name, &value);
            let request = request.header("Prefer", "wait=1").header("If-None-Match", &tag);
            let mut answer = request.call()?;
            // Not modified: it has the key already.
            if answer.status() != 304 {
                let etag = answer.headers().get("etag").and_then(|etag| etag.to_str().ok());
                etag.unwrap_or_default().clone_into(&mut tag);
                key = answer.body_mut().read_to_vec()?;
            }
            Ok(key.clone())
        };
        let read = move || ask().map_err(|error: ureq::Error| io::Error::other(error));
        self.waiting = Some(Reader::start(self.keys.clone(), read));
        Ok(())
    }

    /// Waits until the third one has seen `key`, and returns what it has seen so far.
    pub async fn waited(&self, key: &str, timeout: Duration) -> Result<Tally> {
        let waiting = self.waiting.as_ref().context("nobody waits")?;
        let index = self.index(key)?;
        try_eventually(&format!("key number {index} after a wait"), timeout, async || {
            let notes = lock(&waiting.notes);
            notes.first_seen.contains_key(&index).then(|| notes.tally.clone())
        })
        .await
    }

    fn index(&self, key: &str) -> Result<usize> {
        let keys = lock(&self.keys.0);
        let index = keys.iter().rposition(|known| known == key);
        index.context("a key that was not announced")
    }

    /// Announces the next key; call it before it is written anywhere.
    pub fn expect(&self, key: &str) {
        lock(&self.keys.0).push(key.to_owned());
    }

    /// Waits until both readers have seen `key`, and says when each first did.
    pub async fn saw(&self, key: &str, timeout: Duration) -> Result<(Instant, Instant)> {
        let index = self.index(key)?;
        let what = format!("key number {index} in file and endpoint");
        try_eventually(&what, timeout, async || {
            let seen = |reader: &Reader| lock(&reader.notes).first_seen.get(&index).copied();
            match (seen(&self.file), seen(&self.endpoint)) {
                (Some(file), Some(endpoint)) => Ok((file, endpoint)),
                (file, endpoint) => Err(format!(
                    "file: {}, endpoint: {}; {:?}",
                    file.is_some(),
                    endpoint.is_some(),
                    self.tallies()
                )),
            }
        })
        .await
    }

    /// What both have seen so far: the file's reader, the endpoint's.
    pub fn tallies(&self) -> (Tally, Tally) {
        let tally = |reader: &Reader| lock(&reader.notes).tally.clone();
        (tally(&self.file), tally(&self.endpoint))
    }
}

impl Reader {
    fn start(keys: Arc<Keys>, mut read: impl FnMut() -> io::Result<Vec<u8>> + Send + 'static) -> Self {
        let notes = Arc::new(Mutex::new(Notes::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (its_notes, its_stop) = (notes.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !its_stop.load(Ordering::Relaxed) {
                let read = read();
                note(&mut lock(&its_notes), &lock(&keys.0), read, Instant::now());
                std::thread::sleep(PAUSE);
            }
        });
        Self {
            notes,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed already.
            let _ = thread.join();
        }
    }
}

fn note(notes: &mut Notes, keys: &[String], read: io::Result<Vec<u8>>, now: Instant) {
    notes.tally.reads += 1;
    let content = match read {
        Ok(content) if !content.is_empty() => content,
        Ok(_) => {
            notes.tally.missing += 1;
            return;
        }
        Err(error) => {
            notes.tally.missing += 1;
            notes.tally.last_failure = Some(error.to_string());
            return;
        }
    };
    // From the end, as what is read is mostly what came last.
    match keys.iter().rposition(|key| key.as_bytes() == content) {
        None => notes.tally.torn += 1,
        Some(index) if index < notes.newest => notes.tally.backward += 1,
        Some(index) => {
            notes.newest = index;
            notes.first_seen.entry(index).or_insert(now);
        }
    }
}

/// The name and the value in a file with a header line.
fn header_of(file: &Path) -> Result<(String, String)> {
    let header = std::fs::read_to_string(file)?;
    let (name, value) = header.trim().split_once(": ").context("not a header line")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
