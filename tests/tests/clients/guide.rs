//! The programs in `docs/guides/proxy.md`, as they stand there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use llmwarden_proto::profile::ProviderKind;
use llmwarden_tests::binaries;
use serde_json::json;

use crate::program;
use crate::proxied::Proxied;

const GUIDE: &str = "docs/guides/proxy.md";

/// A program, and whom it talks to.
#[derive(Debug)]
struct Snippet<'a> {
    language: &'a str,
    provider: ProviderKind,
    text: &'a str,
}

/// Fenced blocks whose info string names a language and a provider.
fn snippets(guide: &str) -> Vec<Snippet<'_>> {
    let blocks = guide.split("```").skip(1).step_by(2);
    let parsed = blocks.filter_map(|block| {
        let (info, text) = block.split_once('\n')?;
        let (language, provider) = info.split_once(' ')?;
        Some(Snippet {
            language,
            provider: serde_json::from_value(json!(provider)).unwrap(),
            text,
        })
    });
    parsed.collect()
}

/// Writes a program where its SDK is found, and says how it is run.
fn command(snippet: &Snippet<'_>, dir: &Path, node: &Path) -> Command {
    let write = |path: PathBuf| {
        fs::write(&path, snippet.text).unwrap();
        path
    };
    let clients = binaries::clients().unwrap();
    let mut command;
    match snippet.language {
        "python" => {
            command = Command::new(clients.join("newest/bin/python"));
            command.arg(write(dir.join("snippet.py")));
        }
        "js" => {
            command = Command::new(program::node(&clients));
            command.arg(write(node.join("snippet.mjs")));
        }
        "go" => {
            let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/go");
            for file in ["go.mod", "go.sum"] {
                fs::copy(module.join(file), dir.join(file)).unwrap();
            }
            write(dir.join("main.go"));
            command = Command::new("go");
            command.args(["run", "-mod=readonly", "."]);
        }
        "sh" => {
            command = Command::new("bash");
            command
                .arg("-euo")
                .arg("pipefail")
                .arg(write(dir.join("snippet.sh")));
        }
        other => panic!("{GUIDE}: nothing here runs {other}"),
    }
    command.current_dir(dir);
    command
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

#[test]
fn the_errors_that_the_guide_explains_are_those_that_there_are() {
    let texts = read("sidecar/src/proxy/refusal.rs");
    let guide = read(GUIDE);
    let (_, table) = guide.split_once("| it says |").expect("the table");
    let explained: Vec<_> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert!(explained.len() >= 19, "{explained:?}");
    for text in explained {
        assert!(texts.contains(text), "{GUIDE} explains what nothing says: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_program_of_the_guide_runs() {
    let guide = read(GUIDE);
    let snippets = snippets(&guide);
    assert!(snippets.len() >= 15, "{}", snippets.len());
    for snippet in snippets {
        let proxied = Proxied::start(snippet.provider).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        // Modules are looked for in the directories above a program.
        let node = tempfile::tempdir_in(binaries::clients().unwrap().join("node")).unwrap();
        let mut command = tokio::process::Command::from(command(&snippet, dir.path(), node.path()));
        command
            .envs(proxied.environment())
            .env("OPENAI_AGENTS_DISABLE_TRACING", "1")
            .kill_on_drop(true);
        let output = command.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("piece 1 piece 2"),
            "{snippet:?}: {output:?}"
        );
    }
}
