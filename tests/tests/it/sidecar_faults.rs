//! The sidecar under faults of what it reads from and writes to: the last good key is served, it says what is wrong, and it
//! recovers by itself.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use llmwarden_proto::delivery::Delivery;
use llmwarden_proto::names;
use llmwarden_tests::sidecar::Options;
use llmwarden_tests::skip::skipped;
use llmwarden_tests::{Sidecar, Volume, eventually, volume};
use tempfile::TempDir;

use crate::endpoint::{TEXT, assert_text};
use crate::sidecar::{KEY, assert_key, await_key, await_problem, await_withdrawn, start};
use crate::support::SOON;

const NEXT: &str = "sk-test-faults-next";

/// A delivery directory with a small file system of its own for the files of one access, until dropped.
struct Mount(TempDir);

impl Mount {
    /// `None`, after a word about it, where nothing may be mounted.
    fn new() -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        fs::create_dir(disk.path()).unwrap();
        if mount(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"], &disk.path()) {
            return Some(disk);
        }
        skipped("only root can mount a file system");
        None
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("agent")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn mount(arguments: &[&str], path: &Path) -> bool {
    let status = Command::new("mount").args(arguments).arg(path).status();
    status.is_ok_and(|status| status.success())
}

async fn value(sidecar: &Sidecar, metric: &str) -> f64 {
    let name = format!("llmwarden_sidecar_{metric}");
    sidecar.samples(&name).await.unwrap().into_values().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_be_read_costs_nothing_and_is_taken_when_it_can() {
    // Made at the first path, to be moved to the second.
    type Damage = fn(&Path, &Path);
    let damages: [(Damage, &str); 5] = [
        (|dir, _| fs::write(dir, "a file").unwrap(), "Not a directory"),
        (|dir, place| symlink(place, dir).unwrap(), "symbolic links"),
        (
            |dir, _| {
                fs::create_dir(dir).unwrap();
                fs::write(dir.join("..data"), "a file").unwrap();
            },
            "Invalid argument",
        ),
        (
            |dir, _| fs::create_dir_all(dir.join(names::LIVE_JSON)).unwrap(),
            "Is a directory",
        ),
        (
            |dir, _| {
                fs::create_dir(dir).unwrap();
                symlink("..gone", dir.join("..data")).unwrap();
            },
            "changes too fast to be read",
        ),
    ];
    for (damage, words) in damages {
        let mut volume = Volume::new().unwrap();
        volume.publish(1, KEY).unwrap();
        let sidecar = start(&[volume.source("agent")]).await;
        await_key(&sidecar, "agent", KEY).await;
        // In place at once: a directory that is still being staged is an empty one first.
        let staged = volume.path().with_file_name("staged");
        damage(&staged, &volume.path());
        volume.unmount().unwrap();
        fs::rename(staged, volume.path()).unwrap();
        await_problem(&sidecar, "agent", words).await;
        assert_key(&sidecar, "agent", KEY).await;
        assert!(value(&sidecar, "source_failing").await > 0.0);

        let away = volume.path().with_file_name("away");
        fs::rename(volume.path(), away).unwrap();
        volume.publish(2, NEXT).unwrap();
        await_key(&sidecar, "agent", NEXT).await;
        let status = sidecar.status().await.unwrap();
        assert_eq!(status.accesses["agent"].problems, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_or_read_only_disk_the_old_files_stay_whole() {
    type Step<'a> = &'a dyn Fn();
    let Some(disk) = Mount::new() else { return };
    let mut volume = Volume::new().unwrap();
    // A key that does not fit into what is left.
    let key = |version: u64| format!("sk-test-faults-{version}-{}", "k".repeat(9000));
    volume.publish(1, &key(1)).unwrap();
    let options = Options {
        dir: Some(disk.0.path().to_owned()),
        ..Options::new([volume.source("agent")])
    };
    let sidecar = Sidecar::start(options).await.unwrap();
    await_key(&sidecar, "agent", &key(1)).await;

    let filler = disk.path().join("..filler");
    let fill = || assert!(fs::write(&filler, vec![0; 1024 * 1024]).is_err());
    let read_only = || assert!(mount(&["-o", "remount,ro"], &disk.path()));
    let clear = || fs::remove_file(&filler).unwrap();
    let writable = || assert!(mount(&["-o", "remount,rw"], &disk.path()));
    let faults: [(Step, Step, &str); 2] = [
        (&fill, &clear, "No space left"),
        (&read_only, &writable, "Read-only file system"),
    ];
    for (version, (break_it, repair, words)) in (1..).zip(faults) {
        break_it();
        volume.publish(version + 1, &key(version + 1)).unwrap();
        let status = await_problem(&sidecar, "agent", words).await;
        // The endpoint has the new key, and says that the files are behind.
        assert_eq!(
            (status.version, status.file_version),
            (Some(version + 1), Some(version))
        );
        assert_text(&sidecar.get(TEXT).await.unwrap(), 200, &[&key(version + 1)]);
        let shown = fs::read_to_string(sidecar.file("agent", names::API_KEY)).unwrap();
        assert_eq!(shown, key(version));
        assert!(value(&sidecar, "files_failing").await > 0.0);
        let (ready, text) = sidecar.probe("/readyz").await.unwrap();
        assert!(ready == 503 && text.contains(words), "{text}");
        repair();
        await_key(&sidecar, "agent", &key(version + 1)).await;
        eventually("no problem any more", SOON, async || {
            value(&sidecar, "files_failing").await < 1.0
        })
        .await;
    }
    // A restart on a full disk finds what is there.
    fill();
    let sidecar = sidecar.restart().await.unwrap();
    assert_key(&sidecar, "agent", &key(3)).await;
    // What is withdrawn goes without any room.
    volume.empty().unwrap();
    await_withdrawn(&sidecar, "agent", "deleted or emptied").await;
    drop(sidecar);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_directory_that_is_deleted_comes_back_with_all_that_was_in_it() {
    let mut volume = Volume::new().unwrap();
    volume.publish(1, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    let token = fs::read(sidecar.dir().join(names::TOKEN_FILE)).unwrap();

    fs::remove_dir_all(sidecar.dir()).unwrap();
    await_key(&sidecar, "agent", KEY).await;
    eventually("the socket", SOON, async || {
        let answer = sidecar
            .send_unix(&format!("GET {TEXT}"), &["Host: localhost"])
            .await;
        answer.is_ok_and(|answer| answer.body == KEY)
    })
    .await;
    assert_eq!(fs::read(sidecar.dir().join(names::TOKEN_FILE)).unwrap(), token);
    let mode = fs::metadata(sidecar.dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // It is still its own.
    let home = tempfile::tempdir().unwrap();
    let mut second = Options::new([volume.source("agent")])
        .command(&sidecar.dir())
        .unwrap();
    let output = second.current_dir(home.path()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("another llmwarden-sidecar delivers there"),
        "{text}"
    );

    volume.publish(2, NEXT).unwrap();
    await_key(&sidecar, "agent", NEXT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_behind_orders_nothing_and_makes_no_age_negative() {
    let document = |version: u64, issued_at: &str| Delivery {
        issued_at: issued_at.parse().unwrap(),
        ..volume::document(version)
    };
    let mut volume = Volume::new().unwrap();
    // For who made these it is the year 2999.
    volume
        .publish_document(&document(32_472_144_000_000, "2999-01-01T00:00:00Z"), KEY)
        .unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    // The next version is larger, although it was made when the clock had been set back.
    volume
        .publish_document(&document(32_472_144_000_001, "2998-01-01T00:00:00Z"), NEXT)
        .unwrap();
    await_key(&sidecar, "agent", NEXT).await;
    let list = sidecar.get("/v1/keys").await.unwrap().body;
    assert!(list.contains("\"ageSeconds\":0"), "{list}");
    let zero = |value: f64| value.abs() < f64::EPSILON;
    assert!(zero(value(&sidecar, "key_age_seconds").await));
    assert!(zero(value(&sidecar, "delivery_lag_seconds_sum").await));
    assert!(!zero(value(&sidecar, "delivery_lag_seconds_count").await));
    // And a smaller one is older, whatever it says of its time.
    volume
        .publish_document(&document(1, "2999-06-01T00:00:00Z"), KEY)
        .unwrap();
    await_problem(&sidecar, "agent", "version 1, older than the one held").await;
    assert_key(&sidecar, "agent", NEXT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_a_delivery_is_counted_from_the_making_of_the_version() {
    let made = |version: u64, seconds_ago: i64| Delivery {
        issued_at: Timestamp::now() - SignedDuration::from_secs(seconds_ago),
        ..volume::document(version)
    };
    let mut volume = Volume::new().unwrap();
    volume.publish_document(&made(1, 100_000), KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    // The first key a pod gets was made when it was made: it did not wait for the pod.
    assert!(value(&sidecar, "delivery_lag_seconds_count").await < 1.0);
    volume.publish_document(&made(2, 1000), NEXT).unwrap();
    await_key(&sidecar, "agent", NEXT).await;
    let sum = value(&sidecar, "delivery_lag_seconds_sum{access=\"agent\"}").await;
    assert!((1000.0..3600.0).contains(&sum), "{sum}");
    let within = async |bound: &str| {
        value(
            &sidecar,
            &format!("delivery_lag_seconds_bucket{{le=\"{bound}\",access=\"agent\"}}"),
        )
        .await
    };
    assert!(within("300.0").await < 1.0 && within("3600.0").await > 0.0);
}
