//! The sidecar's life as a process: its start, its end, and sources that come, fail and go.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use llmwarden_proto::delivery::Delivery;
use llmwarden_proto::names;
use llmwarden_proto::status::{AccessStatus, DeliveryState};
use llmwarden_tests::sidecar::Options;
use llmwarden_tests::{Process, Sidecar, Signal, Volume, binaries, eventually, volume};

use crate::support::SOON;

pub const KEY: &str = "sk-test-sidecar-first";
const NEXT: &str = "sk-test-sidecar-next";
const TEXT: &str = "/v1/keys/agent/apiKey";

/// A sidecar with these sources.
pub async fn start(sources: &[String]) -> Sidecar {
    Sidecar::start(Options::new(sources)).await.unwrap()
}

/// An error unless file and endpoint have this key.
async fn look(sidecar: &Sidecar, access: &str, key: &str) -> Result<(), String> {
    let path = format!("/v1/keys/{access}/{}", names::API_KEY);
    // In this order: who writes the files answers when it is done with all of them.
    let file = std::fs::read_to_string(sidecar.file(access, names::API_KEY)).unwrap_or_default();
    let answer = sidecar.get(&path).await.map_err(|error| error.to_string())?;
    if (answer.status, answer.body.as_str(), file.as_str()) == (200, key, key) {
        Ok(())
    } else {
        Err(format!("{answer:?}, file: {file:?}"))
    }
}

/// Waits until file and endpoint have this key.
pub async fn await_key(sidecar: &Sidecar, access: &str, key: &str) {
    let what = format!("the key {key} of {access}");
    eventually(&what, SOON, async || look(sidecar, access, key).await).await;
}

/// Shows that file and endpoint have this key now.
pub async fn assert_key(sidecar: &Sidecar, access: &str, key: &str) {
    look(sidecar, access, key).await.unwrap();
}

/// Waits until the endpoint answers 410 in these words and the files are gone.
pub async fn await_withdrawn(sidecar: &Sidecar, access: &str, words: &str) {
    let path = format!("/v1/keys/{access}/{}", names::API_KEY);
    eventually(
        &format!("the withdrawal of {access}: {words}"),
        SOON,
        async || {
            let answer = sidecar.get(&path).await.map_err(|error| error.to_string())?;
            let files = file_names(&sidecar.dir().join(access));
            if answer.status == 410 && answer.body.contains(words) && files.is_empty() {
                Ok(())
            } else {
                Err(format!("{answer:?}, files: {files:?}"))
            }
        },
    )
    .await;
}

/// The names of the values in a delivered directory; nothing for a directory that does not exist.
pub fn file_names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with("..")).collect();
    names.sort();
    names
}

/// Waits until `/status` says this of what hinders an access, and returns what it says of the access.
pub async fn await_problem(sidecar: &Sidecar, access: &str, words: &str) -> AccessStatus {
    eventually(&format!("the problem of {access}: {words}"), SOON, async || {
        let status = sidecar.status().await.map_err(|error| error.to_string())?;
        let status = status.accesses[access].clone();
        if status.problems.iter().any(|problem| problem.contains(words)) {
            Ok(status)
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await
}

async fn await_probe(sidecar: &Sidecar, path: &str, status: u16, words: &str) {
    eventually(&format!("{status} of {path}: {words}"), SOON, async || {
        let (seen, text) = sidecar.probe(path).await.map_err(|error| error.to_string())?;
        if seen == status && text.contains(words) {
            Ok(())
        } else {
            Err(format!("{seen}: {text}"))
        }
    })
    .await;
}

async fn assert_healthy(sidecar: &Sidecar) {
    let (status, text) = sidecar.probe("/healthz").await.unwrap();
    assert_eq!((status, text.as_str()), (200, "ok\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_before_its_source_and_delivers_when_that_comes() {
    let mut volume = Volume::new().unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    let missing = volume.path().display().to_string();
    for probe in ["/startupz", "/readyz"] {
        await_probe(&sidecar, probe, 503, &format!("agent: {missing}")).await;
    }
    assert_healthy(&sidecar).await;
    assert_eq!(sidecar.get(TEXT).await.unwrap().status, 503);
    let status = await_problem(&sidecar, "agent", &missing).await;
    assert_eq!((status.state, status.version), (DeliveryState::Pending, None));

    // Mounted, and the Secret does not exist yet.
    volume.empty().unwrap();
    for probe in ["/startupz", "/readyz"] {
        await_probe(&sidecar, probe, 503, "agent: holds nothing").await;
    }
    assert_healthy(&sidecar).await;

    volume.publish(1, KEY).unwrap();
    for probe in ["/startupz", "/readyz"] {
        await_probe(&sidecar, probe, 200, "ok").await;
    }
    await_key(&sidecar, "agent", KEY).await;
    let status = sidecar.status().await.unwrap().accesses.remove("agent").unwrap();
    assert_eq!(
        (status.state, status.version, status.file_version, status.problems),
        (DeliveryState::Active, Some(1), Some(1), Vec::new())
    );

    // A withdrawn key is no reason to start again.
    volume.empty().unwrap();
    await_withdrawn(&sidecar, "agent", "deleted or emptied").await;
    for probe in ["/startupz", "/readyz"] {
        await_probe(&sidecar, probe, 200, "ok").await;
    }
    assert_healthy(&sidecar).await;
    // The same version may come back after a deletion, as a Secret that is restored does.
    volume.publish(1, KEY).unwrap();
    await_key(&sidecar, "agent", KEY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_answers_what_waits_and_leaves_the_files() {
    let mut volume = Volume::new().unwrap();
    volume.publish(1, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    let headers = ["Prefer: wait=300", "If-None-Match: \"1\""];
    let waiting = sidecar.begin(TEXT, &headers).await.unwrap();
    waiting.taken().await.unwrap();

    sidecar.process().signal(Signal::SIGTERM).unwrap();
    let answer = waiting.answer().await.unwrap();
    assert_eq!((answer.status, answer.header("etag")), (304, Some("\"1\"")));
    let ended = sidecar.process().wait(SOON).await.unwrap();
    assert_eq!(ended.code(), Some(0), "{}", sidecar.process().log());
    let file = std::fs::read_to_string(sidecar.file("agent", names::API_KEY)).unwrap();
    assert_eq!(file, KEY);
    assert!(!sidecar.dir().join(names::SOCKET_FILE).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_without_its_source_the_last_good_key_is_served() {
    let mut volume = Volume::new().unwrap();
    let document = Delivery {
        keys: vec!["apiKey".into(), "ANTHROPIC_API_KEY".into()],
        ..volume::document(5)
    };
    volume.publish_document(&document, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    let link = sidecar.dir().join("agent/..data");
    let token = std::fs::read(sidecar.dir().join(names::TOKEN_FILE)).unwrap();
    let (version, whole) = (
        std::fs::read_link(&link).unwrap(),
        sidecar.get("/v1/keys/agent").await.unwrap(),
    );

    volume.unmount().unwrap();
    await_problem(&sidecar, "agent", "No such file").await;
    let sidecar = sidecar.restart().await.unwrap();
    assert_key(&sidecar, "agent", KEY).await;
    await_problem(&sidecar, "agent", "No such file").await;
    assert_key(&sidecar, "agent", KEY).await;
    for probe in ["/startupz", "/readyz", "/healthz"] {
        await_probe(&sidecar, probe, 200, "ok").await;
    }
    let again = sidecar.get("/v1/keys/agent").await.unwrap();
    assert_eq!((again.status, &again.body), (200, &whole.body));
    assert_eq!(again.header("etag"), Some("\"5\""));
    assert_eq!(
        std::fs::read(sidecar.dir().join(names::TOKEN_FILE)).unwrap(),
        token
    );
    assert_eq!(std::fs::read_link(&link).unwrap(), version);
    assert_eq!(
        file_names(&sidecar.dir().join("agent")),
        ["ANTHROPIC_API_KEY", "apiKey"]
    );

    // What was older before the crash is older after it.
    volume.publish(4, "sk-test-sidecar-older").unwrap();
    await_problem(&sidecar, "agent", "version 4, older than the one held").await;
    assert_key(&sidecar, "agent", KEY).await;
    volume.publish(6, NEXT).unwrap();
    await_key(&sidecar, "agent", NEXT).await;

    // Its pod has started, whatever became of the key since: only the first start waits for one.
    volume.withdraw(7, "the label is gone").unwrap();
    await_withdrawn(&sidecar, "agent", "the label is gone").await;
    let sidecar = sidecar.restart().await.unwrap();
    await_withdrawn(&sidecar, "agent", "the label is gone").await;
    for probe in ["/startupz", "/readyz"] {
        await_probe(&sidecar, probe, 200, "ok").await;
    }
    let mut late = Volume::new().unwrap();
    late.withdraw(1, "the label is gone").unwrap();
    let fresh = start(&[late.source("agent")]).await;
    await_withdrawn(&fresh, "agent", "the label is gone").await;
    await_probe(&fresh, "/startupz", 503, "withdrawn").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_outlives_a_crash() {
    let mut volume = Volume::new().unwrap();
    volume.publish(1, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    volume.withdraw(2, "the label is gone").unwrap();
    await_withdrawn(&sidecar, "agent", "the label is gone").await;

    volume.unmount().unwrap();
    let sidecar = sidecar.restart().await.unwrap();
    await_problem(&sidecar, "agent", "No such file").await;
    await_withdrawn(&sidecar, "agent", "the label is gone").await;
    volume.publish(1, KEY).unwrap();
    await_problem(&sidecar, "agent", "version 1, older than the one held").await;
    await_withdrawn(&sidecar, "agent", "the label is gone").await;
    volume.publish(3, NEXT).unwrap();
    await_key(&sidecar, "agent", NEXT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_is_not_taken() {
    let mut volume = Volume::new().unwrap();
    volume.publish(2, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    volume.publish(1, "sk-test-sidecar-older").unwrap();
    let status = await_problem(&sidecar, "agent", "version 1, older than the one held").await;
    assert_eq!((status.state, status.version), (DeliveryState::Active, Some(2)));
    assert_key(&sidecar, "agent", KEY).await;

    volume.publish(3, NEXT).unwrap();
    await_key(&sidecar, "agent", NEXT).await;
    let status = sidecar.status().await.unwrap();
    assert_eq!(status.accesses["agent"].problems, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_broken_companion_nothing_is_taken_and_the_problem_is_told() {
    type Files<'a> = &'a [(&'a str, &'a [u8])];
    let whole = serde_json::to_vec(&volume::document(2)).unwrap();
    let half = &whole[..whole.len() / 2];
    let (live, key) = (names::LIVE_JSON, names::API_KEY);
    let quoting = format!("{{\"schema\":1,\"version\":\"{NEXT}\"}}");
    let huge = vec![b'k'; 1024 * 1024];
    let cases: [(Files, &str); 8] = [
        (&[(live, &whole), (key, &huge)], "larger than 65536 bytes"),
        (
            &[(live, half), (key, NEXT.as_bytes())],
            "`live.json` is malformed",
        ),
        (&[(live, b""), (key, NEXT.as_bytes())], "`live.json` is malformed"),
        (
            &[(live, quoting.as_bytes()), (key, NEXT.as_bytes())],
            "`live.json` is malformed",
        ),
        (&[(key, NEXT.as_bytes())], "no `live.json`"),
        (&[(live, &whole)], "active but has no `apiKey`"),
        (&[(live, &whole), (key, b"")], "active but has no `apiKey`"),
        (&[(live, &whole), (key, b"\xff\xfe")], "not valid UTF-8"),
    ];
    let mut volume = Volume::new().unwrap();
    volume.publish(1, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    for (files, words) in cases {
        volume.write(files).unwrap();
        let status = await_problem(&sidecar, "agent", words).await;
        assert_eq!((status.state, status.version), (DeliveryState::Active, Some(1)));
        assert!(!format!("{status:?}").contains(NEXT));
        assert_key(&sidecar, "agent", KEY).await;
        // It has started, and it is ready with what it holds.
        for probe in ["/startupz", "/readyz"] {
            await_probe(&sidecar, probe, 200, "ok").await;
        }

        let fresh = start(&[volume.source("agent")]).await;
        for probe in ["/startupz", "/readyz"] {
            await_probe(&fresh, probe, 503, words).await;
        }
        assert_eq!(fresh.get(TEXT).await.unwrap().status, 503);
        assert_eq!(file_names(&fresh.dir().join("agent")), [""; 0]);
    }
    volume.write(&[(key, NEXT.as_bytes()), (live, &whole)]).unwrap();
    await_key(&sidecar, "agent", NEXT).await;
    let status = sidecar.status().await.unwrap();
    assert_eq!(status.accesses["agent"].problems, [""; 0]);
}

#[test]
fn a_bad_flag_ends_it_with_a_line_that_names_the_flag() {
    let cases: [(&[&str], &str); 9] = [
        (&[], "--source"),
        (&["--source", "agent"], "--source"),
        (&["--source", "Agent=/keys"], "--source"),
        (&["--source", "token=/keys"], "--source"),
        (&["--source", "agent=kube:agent.llmwarden"], "--source"),
        (&["--source", "agent=/a", "--source", "agent=/b"], "--source"),
        (
            &["--source", "agent=/keys", "--listen", "0.0.0.0:9470"],
            "--listen",
        ),
        (&["--source", "agent=/keys", "--status", "nowhere"], "--status"),
        (&["--source", "agent=/keys", "--no-such-flag"], "--no-such-flag"),
    ];
    let program = binaries::sidecar().unwrap();
    for (arguments, flag) in cases {
        let output = Command::new(&program).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(flag), "{arguments:?}: {text}");
    }
    let mut twin = Command::new(&program);
    let output = twin.env("LLMWARDEN_SOURCE", "agent").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--source"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_one_has_is_not_taken_from_it() {
    let mut volume = Volume::new().unwrap();
    volume.publish(1, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    let other = tempfile::tempdir().unwrap();
    let (same_dir, other_dir) = (sidecar.dir(), other.path().join("run"));
    let taken = sidecar.endpoint().to_string();
    for (dir, listen, words) in [
        (
            &same_dir,
            "127.0.0.1:0",
            "another llmwarden-sidecar delivers there",
        ),
        (&other_dir, taken.as_str(), "cannot listen there"),
    ] {
        let mut command = Command::new(binaries::sidecar().unwrap());
        command
            .args(["--source", &volume.source("agent"), "--listen", listen])
            .args(["--status", "127.0.0.1:0", "--dir"])
            .arg(dir);
        let process = Process::spawn("second", &command, other.path().join(words)).unwrap();
        let ended = process.wait(SOON).await.unwrap();
        let log = process.log();
        assert_eq!(ended.code(), Some(1), "{log}");
        let flag = if dir == &same_dir { "--dir" } else { "--listen" };
        let line = log.lines().last().unwrap_or_default();
        assert!(line.contains(flag) && line.contains(words), "{log}");
    }

    volume.publish(2, NEXT).unwrap();
    await_key(&sidecar, "agent", NEXT).await;
    let answer = sidecar
        .send_unix(&format!("GET {TEXT}"), &["Host: localhost"])
        .await;
    assert_eq!(answer.unwrap().body, NEXT);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_mount_may_read_everything_in_it() {
    let mut volume = Volume::new().unwrap();
    let document = Delivery {
        keys: vec!["apiKey".into(), "ANTHROPIC_API_KEY".into()],
        values: [("baseUrl".to_owned(), "https://llm.example.com".to_owned())].into(),
        ..volume::document(1)
    };
    volume.publish_document(&document, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    let mode = |path: &str| {
        let metadata = std::fs::metadata(sidecar.dir().join(path)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    for (path, expected) in [
        ("agent", 0o755),
        ("agent/..data", 0o755),
        ("agent/apiKey", 0o444),
        ("agent/ANTHROPIC_API_KEY", 0o444),
        ("agent/baseUrl", 0o444),
        (names::TOKEN_FILE, 0o444),
        (names::AUTH_HEADER_FILE, 0o444),
        (names::SOCKET_FILE, 0o666),
    ] {
        assert_eq!(mode(path), expected, "{path}: {:o}", mode(path));
    }
    assert_eq!(
        file_names(&sidecar.dir().join("agent")),
        ["ANTHROPIC_API_KEY", "apiKey", "baseUrl"]
    );

    // A name that is no longer delivered goes, and no version stays behind.
    volume.publish(2, NEXT).unwrap();
    await_key(&sidecar, "agent", NEXT).await;
    eventually("one file and one version", SOON, async || {
        let directory = sidecar.dir().join("agent");
        let entries = std::fs::read_dir(&directory).unwrap().flatten();
        let mut all: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        all.sort();
        if all == ["..2", "..data", "apiKey"] {
            Ok(())
        } else {
            Err(format!("{all:?}"))
        }
    })
    .await;
}

/// What the kubelet runs in the container, and what it puts into the pod's events.
#[tokio::test(flavor = "multi_thread")]
async fn the_probe_says_what_the_sidecar_waits_for() {
    let mut volume = Volume::new().unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    let url = sidecar.status_url("");
    let address = url.trim_start_matches("http://");
    let probe = async || {
        let mut command = tokio::process::Command::new(binaries::sidecar().unwrap());
        command.args(["probe", "--status", address]);
        let output = command.output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (ready, text) = probe().await;
    assert!(!ready && text.starts_with("waiting for agent: "), "{text}");
    volume.publish(1, KEY).unwrap();
    await_probe(&sidecar, "/startupz", 200, "ok").await;
    assert_eq!(probe().await, (true, "ok\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_access_goes_its_own_way() {
    let (mut one, mut two) = (Volume::new().unwrap(), Volume::new().unwrap());
    one.publish(1, KEY).unwrap();
    let sidecar = start(&[one.source("one"), two.source("two.b")]).await;
    await_key(&sidecar, "one", KEY).await;
    await_probe(&sidecar, "/startupz", 503, "waiting for two.b: ").await;
    assert_eq!(sidecar.get("/v1/keys/two.b/apiKey").await.unwrap().status, 503);

    two.publish(9, NEXT).unwrap();
    await_key(&sidecar, "two.b", NEXT).await;
    await_probe(&sidecar, "/startupz", 200, "ok").await;
    one.withdraw(2, "the label is gone").unwrap();
    await_withdrawn(&sidecar, "one", "the label is gone").await;
    assert_key(&sidecar, "two.b", NEXT).await;
    let accesses = sidecar.status().await.unwrap().accesses;
    let seen: Vec<_> = accesses
        .iter()
        .map(|(name, access)| (name.as_str(), access.state, access.version))
        .collect();
    assert_eq!(
        seen,
        [
            ("one", DeliveryState::Withdrawn, Some(2)),
            ("two.b", DeliveryState::Active, Some(9))
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_speak_of_versions_and_never_of_keys() {
    let mut volume = Volume::new().unwrap();
    volume.publish(1_767_225_600_123, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    let host = sidecar.headers().unwrap()[0].clone();
    let refused = sidecar.send(&format!("GET {TEXT}"), &[&host]).await.unwrap();
    assert_eq!(refused.answer().await.unwrap().status, 401);
    volume.write(&[(names::LIVE_JSON, b"{")]).unwrap();
    await_problem(&sidecar, "agent", "malformed").await;

    let (status, text) = sidecar.probe("/metrics").await.unwrap();
    assert_eq!(status, 200);
    for line in [
        "llmwarden_sidecar_served_version{access=\"agent\"} 1767225600123\n",
        "llmwarden_sidecar_file_version{access=\"agent\"} 1767225600123\n",
        "llmwarden_sidecar_source_failing{access=\"agent\"} 1\n",
        "llmwarden_sidecar_files_failing{access=\"agent\"} 0\n",
        "llmwarden_sidecar_refusals_total{reason=\"token\"} 1\n",
        "llmwarden_sidecar_requests_total{code=\"401\"} 1\n",
        "llmwarden_sidecar_key_age_seconds{access=\"agent\"} ",
    ] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    let token = std::fs::read_to_string(sidecar.dir().join(names::TOKEN_FILE)).unwrap();
    assert!(!text.contains(KEY) && !text.contains(&token));
    assert!(text.ends_with("# EOF\n"));

    volume.withdraw(1_767_225_600_124, "the label is gone").unwrap();
    await_withdrawn(&sidecar, "agent", "the label is gone").await;
    let (_, text) = sidecar.probe("/metrics").await.unwrap();
    assert!(text.contains("llmwarden_sidecar_served_version{access=\"agent\"} 0\n"));
    assert!(!text.contains("key_age_seconds{access"));
}
