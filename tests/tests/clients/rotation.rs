//! A hundred rotations under programs that never stop asking, and that try nothing twice themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use llmwarden_proto::profile::ProviderKind;
use llmwarden_tests::eventually;
use llmwarden_tests::fake_provider::Pace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use crate::SOON;
use crate::program::{Outcome, Program};
use crate::proxied::Proxied;

const ROTATIONS: usize = 100;

async fn rotate_under(program: Program, sdk: &str, kind: ProviderKind) {
    let mut proxied = Proxied::start(kind).await.unwrap();
    // Long enough for streams to outlast a rotation.
    proxied.provider.set_pace(Pace {
        every: Duration::from_millis(15),
        ..Pace::default()
    });
    let mut child = program
        .command(sdk, &proxied.environment())
        .arg("load")
        .stderr(std::process::Stdio::inherit())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let begun = timeout(SOON, lines.next_line()).await.expect("a first request");
    assert_eq!(begun.unwrap().unwrap().replace(' ', ""), r#"{"begun":true}"#);

    for rotation in 1..=ROTATIONS {
        proxied.rotate().await.unwrap();
        eventually("an answer to the new key", SOON, async || {
            let provider = &proxied.provider;
            provider.has_seen(|seen| seen.key == Some(rotation) && seen.status == Some(200))
        })
        .await;
    }
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    // Before its verdict the Go program has a line for each failure.
    let mut told = Vec::new();
    while let Some(line) = timeout(SOON, lines.next_line()).await.expect("an end").unwrap() {
        told.push(line);
    }
    let outcome: Outcome = serde_json::from_str(told.last().expect("a verdict")).unwrap();
    assert!(outcome.passed, "{program:?} {sdk}:\n{}", told.join("\n"));

    let mut requests = BTreeMap::<_, usize>::new();
    for seen in proxied.provider.seen() {
        *requests.entry(seen.status).or_default() += 1;
    }
    println!(
        "{program:?}, {sdk}: {ROTATIONS} rotations, {}, 0 failed; the provider saw, by status: {requests:?}",
        outcome.said
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_in_a_hundred_rotations() {
    tokio::join!(
        rotate_under(Program::Locked, "openai", ProviderKind::Openai),
        rotate_under(Program::Newest, "anthropic", ProviderKind::Anthropic),
        rotate_under(Program::Newest, "gemini", ProviderKind::Gemini),
        rotate_under(Program::Node, "openai", ProviderKind::AzureOpenai),
        rotate_under(Program::Go, "openai", ProviderKind::Openai),
        rotate_under(Program::Go, "anthropic", ProviderKind::Anthropic),
    );
}
