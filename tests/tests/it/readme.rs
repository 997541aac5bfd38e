//! The README's "first key in five minutes", command by command, as a reader would run it.

use std::path::Path;
use std::process::Stdio;

use llmwarden_tests::{ControlPlane, binaries, free_port};
use tokio::io::AsyncWriteExt;

const SECTION: &str = "\n## A first key in five minutes\n";
const KEYS: [&str; 2] = ["sk-test-readme-1", "sk-test-readme-2"];

/// The shell ends with the test, and what it starts with the shell, also when one of them is killed.
const WITH_PARENT: &str = "setpriv --pdeathsig KILL --";

/// All commands of the section, as one script.
fn script(readme: &str) -> String {
    let (_, text) = readme.split_once(SECTION).expect("the section");
    let text = text.split("\n## ").next().unwrap_or_default();
    let blocks = text.split("```sh\n").skip(1);
    blocks.filter_map(|rest| rest.split("```").next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_key_is_there_in_five_minutes() {
    let cluster = ControlPlane::start().await.unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    // The usual ports may be taken here.
    let (endpoint, status, proxy) = (free_port(), free_port(), free_port());
    let programs = binaries::controller().unwrap();
    let programs = programs.parent().unwrap();
    let script = script(&readme)
        .replace("make build\n", "")
        .replace(
            "llmwarden-controller >",
            "llmwarden-controller --status 127.0.0.1:0 >",
        )
        .replace("localhost:9470", &format!("localhost:{endpoint}"))
        .replace("localhost:9471", &format!("localhost:{status}"))
        .replace("=8001", &format!("={proxy}"))
        .replace(":8001", &format!(":{proxy}"))
        .replace("kubectl proxy", &format!("{WITH_PARENT} kubectl proxy"))
        .replace("target/debug/", &format!("{WITH_PARENT} {}/", programs.display()))
        .replace(
            "> controller.log",
            &format!("> {}/controller.log", cluster.work_dir().display()),
        )
        .replace(
            "> proxy.log",
            &format!("> {}/proxy.log", cluster.work_dir().display()),
        )
        .replace(
            "> sidecar.log",
            &format!("> {}/sidecar.log", cluster.work_dir().display()),
        );
    let path = std::env::var("PATH").unwrap();
    let mut shell = tokio::process::Command::new("setpriv")
        .args(WITH_PARENT.split_whitespace().skip(1))
        .args(["bash", "-euxo", "pipefail", "-c", &script])
        .current_dir(root)
        .env("PATH", format!("{}:{path}", cluster.bin_dir().display()))
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("KUBECACHEDIR", cluster.work_dir().join("kubectl"))
        .env("LLMWARDEN_LISTEN", format!("127.0.0.1:{endpoint}"))
        .env("LLMWARDEN_STATUS", format!("127.0.0.1:{status}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut typed = shell.stdin.take().unwrap();
    typed
        .write_all(format!("{}\n", KEYS.join("\n")).as_bytes())
        .await
        .unwrap();
    drop(typed);
    let output = shell.wait_with_output().await.unwrap();
    let (said, how) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{said}\n{how}");
    for expected in [
        "agent-anthropic   True    True",
        "kagent-anthropic",
        "the master key changed",
    ] {
        assert!(said.contains(expected), "no {expected:?} in:\n{said}\n{how}");
    }
    let read: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("sk-test-readme"))
        .collect();
    assert_eq!(
        read,
        [KEYS[0], KEYS[0], KEYS[1], KEYS[1]],
        "from file and endpoint, before and after:\n{how}"
    );
}
