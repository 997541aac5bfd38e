//! The sidecar killed before each of its system calls in turn that can change a file, from its start to the end of a
//! delivery, a rotation, a withdrawal and a deletion.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use llmwarden_proto::names;
use llmwarden_tests::sidecar::Options;
use llmwarden_tests::skip::skipped;
use llmwarden_tests::{Process, Sidecar, Volume, eventually};
use tempfile::TempDir;

use crate::endpoint::TEXT;
use crate::sidecar::{KEY, await_key, await_problem, await_withdrawn, file_names};
use crate::support::SOON;

const NEXT: &str = "sk-test-crashes-next";
const GONE: &str = "the label is gone";

/// What can make, change or remove a file. Not every machine has all of them, hence the question marks.
const CALLS: &str = "openat,write,writev,?rename,?renameat,renameat2,?symlink,symlinkat,?link,linkat,?mkdir,mkdirat,\
                     ?unlink,unlinkat,?rmdir,?chmod,fchmod,fchmodat,?fchmodat2,truncate,ftruncate,fallocate,bind";

/// What there is of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Nothing,
    Key(&'static str),
    Withdrawn,
    Deleted,
}

/// The source of a sidecar, and what the sidecar delivered to before.
struct Scene {
    volume: Volume,
    run: TempDir,
}

impl Scene {
    /// A sidecar has delivered `before`, and has ended since.
    async fn new(before: State) -> Self {
        let mut scene = Self {
            volume: Volume::new().unwrap(),
            run: tempfile::tempdir_in("/dev/shm")
                .or_else(|_| tempfile::tempdir())
                .unwrap(),
        };
        if before != State::Nothing {
            scene.write(before, 1);
            let sidecar = scene.start(&scene.run.path().join("before")).await;
            assert_state(&sidecar, before).await;
        }
        scene
    }

    fn write(&mut self, state: State, version: u64) {
        match state {
            State::Nothing => {}
            State::Key(key) => self.volume.publish(version, key).unwrap(),
            State::Withdrawn => self.volume.withdraw(version, GONE).unwrap(),
            State::Deleted => self.volume.empty().unwrap(),
        }
    }

    fn options(&self, dir: &Path) -> Options {
        Options {
            dir: Some(dir.to_owned()),
            ..Options::new([self.volume.source("agent")])
        }
    }

    async fn start(&self, dir: &Path) -> Sidecar {
        Sidecar::start(self.options(dir)).await.unwrap()
    }

    /// A copy of what was delivered before, for one run.
    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.run.path().join(name);
        let before = self.run.path().join("before");
        if before.exists() {
            let copied = Command::new("cp")
                .arg("-a")
                .args([&before, &dir])
                .status()
                .unwrap();
            assert!(copied.success());
        }
        dir
    }

    /// A sidecar whose calls are noted, until it is killed before one of them.
    fn trace(&self, dir: &Path, kill: Option<&Point>) -> Process {
        let options = Options {
            // Every line of the log would be a call as well.
            log_level: "error".to_owned(),
            ..self.options(dir)
        };
        let sidecar = options.command(dir).unwrap();
        let mut command = Command::new("strace");
        // The tracer is the one that goes to the background: what ends the process ends the sidecar.
        command
            .args(["-D", "-f", "-qq", "-e", &format!("trace={CALLS}"), "-o"])
            .arg(self.calls());
        if let Some(Point { call, number }) = kill {
            command.args(["-e", &format!("inject={call}:signal=KILL:when={number}")]);
        }
        command.arg(sidecar.get_program()).args(sidecar.get_args());
        for (name, value) in sidecar.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Process::spawn("traced sidecar", &command, self.run.path().join("trace.log")).unwrap()
    }

    fn calls(&self) -> PathBuf {
        self.run.path().join("calls")
    }

    /// Every call that changes a file on the way to `after`.
    async fn points(&mut self, after: State) -> Vec<Point> {
        self.write(after, 2);
        let dir = self.dir("whole");
        let traced = self.trace(&dir, None);
        eventually("the end of the work", SOON, async || settled(&dir, after)).await;
        traced.kill();
        points(&fs::read_to_string(self.calls()).unwrap())
    }
}

/// A call of a process: the name, and how many of the name there were up to it.
#[derive(Debug)]
struct Point {
    call: String,
    number: usize,
}

/// The calls in a tracer's notes that change a file.
fn points(calls: &str) -> Vec<Point> {
    let mut numbers = BTreeMap::<&str, usize>::new();
    let mut all = Vec::new();
    for line in calls.lines() {
        // After the id of the thread.
        let Some((call, arguments)) = line
            .split_once(' ')
            .and_then(|(_, call)| call.trim().split_once('('))
        else {
            continue;
        };
        let number = numbers.entry(call).or_default();
        *number += 1;
        let changes = match call {
            "openat" => arguments.contains("O_CREAT"),
            // Eight bytes with a number: it wakes a thread.
            "write" => !arguments.contains("\\0\\0\\0\\0\\0\\0\\0\", 8)"),
            _ => true,
        };
        if changes {
            all.push(Point {
                call: call.to_owned(),
                number: *number,
            });
        }
    }
    all
}

/// What the files alone show. A name may not be there yet, or any more, but what it leads to is never anything else.
fn shown(dir: &Path) -> State {
    let access = dir.join("agent");
    let read = |name: &str| fs::read_to_string(access.join(name)).ok();
    let (current, named) = (read("..data/apiKey"), read(names::API_KEY));
    assert!(
        named.is_none() || named == current,
        "{named:?} is not {current:?}"
    );
    match (current.as_deref(), read("..data/..live.json")) {
        (Some(KEY), Some(_)) => State::Key(KEY),
        (Some(NEXT), Some(_)) => State::Key(NEXT),
        (None, Some(document)) if document.contains(GONE) => State::Withdrawn,
        (None, None) if access.join("..data/..deleted").exists() => State::Deleted,
        (None, None) => State::Nothing,
        other => panic!("not a version: {other:?}"),
    }
}

/// Whether nothing is left to do: the files are as they should be, and no other version is left.
fn settled(dir: &Path, after: State) -> bool {
    let entries = fs::read_dir(dir.join("agent")).into_iter().flatten().flatten();
    let versions = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let socket = dir.join(names::SOCKET_FILE).exists();
    let links = matches!(after, State::Key(_)) == (file_names(&dir.join("agent")) == [names::API_KEY]);
    socket && links && shown(dir) == after && versions.count() == 1
}

async fn assert_state(sidecar: &Sidecar, state: State) {
    match state {
        State::Nothing => assert_eq!(sidecar.get(TEXT).await.unwrap().status, 503),
        State::Key(key) => await_key(sidecar, "agent", key).await,
        State::Withdrawn => await_withdrawn(sidecar, "agent", GONE).await,
        State::Deleted => await_withdrawn(sidecar, "agent", "deleted or emptied").await,
    }
}

/// Kills a sidecar at every step from one state to another. What is left has to show one of the two.
async fn crash_everywhere(before: State, after: State) {
    if !can_trace() {
        return;
    }
    let mut scene = Scene::new(before).await;
    let points = scene.points(after).await;
    assert!(points.len() > 20, "{points:?}");
    let mut kills = 0;
    for point in &points {
        scene.write(after, 2);
        let dir = scene.dir("run");
        let traced = scene.trace(&dir, Some(point));
        let ended = eventually("the end of the sidecar, or of its work", SOON, async || {
            let ended = traced.exited();
            (ended.is_some() || settled(&dir, after)).then_some(ended)
        })
        .await;
        // What wakes it is not the same every time, and so a last look may be missing.
        kills += usize::from(ended.is_some());
        if let Some(ended) = ended {
            assert_eq!(ended.signal(), Some(9), "{point:?}: {}", traced.log());
        }
        drop(traced);

        // Its source is no good. Whatever it serves now, it is one of the two.
        scene.volume.write(&[(names::LIVE_JSON, b"{")]).unwrap();
        let present = shown(&dir);
        assert!([before, after].contains(&present), "{point:?}: {present:?}");
        let sidecar = scene.start(&dir).await;
        await_problem(&sidecar, "agent", "malformed").await;
        assert_state(&sidecar, present).await;
        // And with its source, it gets where it was going.
        scene.write(after, 2);
        assert_state(&sidecar, after).await;
        drop(sidecar);
        fs::remove_dir_all(dir).unwrap();
    }
    println!(
        "from {before:?} to {after:?}: {} points, {kills} kills",
        points.len()
    );
    assert!(kills + 2 >= points.len(), "{kills} kills at {points:?}");
}

fn can_trace() -> bool {
    let works = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .status();
    let works = works.is_ok_and(|status| status.success());
    if !works {
        skipped("there is no strace, or it may not trace");
    }
    works
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_delivery_survives_a_kill_at_every_step() {
    crash_everywhere(State::Nothing, State::Key(KEY)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_survives_a_kill_at_every_step() {
    crash_everywhere(State::Key(KEY), State::Key(NEXT)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_survives_a_kill_at_every_step() {
    crash_everywhere(State::Key(KEY), State::Withdrawn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_survives_a_kill_at_every_step() {
    crash_everywhere(State::Key(KEY), State::Deleted).await;
}
