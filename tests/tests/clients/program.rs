//! The programs in `tests/clients`: one for each language, with nothing set up but what the SDKs read themselves.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use llmwarden_tests::binaries;
use serde::Deserialize;
use tokio::process::Command;

/// Longer than all scenarios of an SDK take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(3);

/// A language, with the versions of its SDKs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Python, at the versions that kagent locks.
    Locked,
    /// Python, at the newest.
    Newest,
    /// Node, at the newest, in the newest of the Nodes that are looked after for long.
    Node,
    /// Go, at the versions of kagent.
    Go,
    /// Go, at the newest.
    GoNewest,
}

/// What a program says of a scenario.
#[derive(Debug, Deserialize)]
pub struct Outcome {
    pub scenario: String,
    pub passed: bool,
    /// What it has to say about it, or why it failed.
    pub said: String,
}

impl Program {
    /// The command that runs scenarios of an SDK in this environment and no other.
    pub fn command(self, sdk: &str, environment: &[(&str, String)]) -> Command {
        let dir = binaries::clients().unwrap();
        let python = |environment: &str| {
            let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python/drive.py");
            let python = dir.join(environment).join("bin/python");
            vec![python.into_os_string(), "-B".into(), driver.into_os_string()]
        };
        let (words, sdk) = match self {
            Self::Locked => (python("locked"), format!("with_{sdk}")),
            Self::Newest => (python("newest"), format!("with_{sdk}")),
            Self::Node => (
                [node(&dir), dir.join("node/drive.mjs")]
                    .map(PathBuf::into_os_string)
                    .into(),
                sdk.to_owned(),
            ),
            Self::Go => (vec![dir.join("go/clients").into_os_string()], sdk.to_owned()),
            Self::GoNewest => (
                vec![dir.join("go-newest/clients").into_os_string()],
                sdk.to_owned(),
            ),
        };
        // It ends with the test, also when that is killed.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(words)
            .arg(sdk)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            // Traces would go to a host of their own.
            .env("OPENAI_AGENTS_DISABLE_TRACING", "1")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs scenarios of an SDK, to the end.
    pub async fn run(self, sdk: &str, scenarios: &[&str], environment: &[(&str, String)]) -> Vec<Outcome> {
        let mut command = self.command(sdk, environment);
        let output = tokio::time::timeout(PATIENCE, command.args(scenarios).output());
        let output = output.await.expect("an end").unwrap();
        let (said, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        let lines = said
            .lines()
            .filter_map(|line| serde_json::from_str::<Outcome>(line).ok());
        let outcomes: Vec<_> = lines.collect();
        // A program that broke has fewer lines.
        let told: Vec<_> = outcomes.iter().map(|outcome| outcome.scenario.as_str()).collect();
        assert_eq!(
            told, scenarios,
            "{self:?} {sdk}: {}\n{said}\n{errors}",
            output.status
        );
        outcomes
    }
}

/// The Node of the client programs: a system's own may be too old for the newest SDKs.
pub fn node(clients: &Path) -> PathBuf {
    clients.join("node/node_modules/.bin/node")
}

/// Fails with all that failed, and prints the line of a matrix otherwise.
pub fn report(how: &str, program: Program, subject: &str, outcomes: &[Outcome]) {
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    let texts: Vec<_> = failed
        .iter()
        .map(|outcome| format!("--- {}\n{}", outcome.scenario, outcome.said))
        .collect();
    assert!(
        failed.is_empty(),
        "{how}, {program:?}, {subject}:\n{}",
        texts.join("\n")
    );
    let passed: Vec<_> = outcomes.iter().map(|outcome| outcome.scenario.as_str()).collect();
    println!("{how}, {program:?}, {subject}: {}", passed.join(" "));
}
