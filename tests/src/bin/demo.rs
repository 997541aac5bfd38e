//! `make demo`: the guide's manifests on a real control plane, and a key that changes under a running reader. With KEEP=1
//! everything stays up until Ctrl-C.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use llmwarden_proto::names::ENDPOINT_PORT;
use llmwarden_tests::installation::SYSTEM;
use llmwarden_tests::readers::{Readers, Tally};
use llmwarden_tests::sidecar::{self, Sidecar};
use llmwarden_tests::{Installation, try_eventually};
use tokio::io::AsyncWriteExt;

const SOON: Duration = Duration::from_mins(1);
const ROTATIONS: u32 = 20;
const MASTER: &str = "anthropic-master-key";

#[tokio::main]
async fn main() -> Result<()> {
    let started = Instant::now();
    say(
        "A control plane of its own (etcd, kube-apiserver, kube-controller-manager), and the llmwarden controller",
    );
    let llmwarden = Installation::start(&[]).await?;
    println!("ready after {:.1} s", started.elapsed().as_secs_f64());
    let demo = Demo { llmwarden };

    say("The platform team stores the provider's key, declares the provider and lets a namespace use it");
    demo.create_master_key(&key(0)).await?;
    demo.kubectl("create namespace kagent").await?;
    demo.kubectl("label namespace kagent llmwarden.io/ai-enabled=true")
        .await?;
    demo.kubectl("apply -f examples/kagent/single/provider.yaml")
        .await?;

    say("The agent team asks for access, and has its Secret");
    demo.kubectl("apply -f examples/kagent/single/access.yaml")
        .await?;
    let ready = "wait -n kagent llmaccess/agent-anthropic --for=condition=Ready --timeout=60s";
    demo.llmwarden.run_kubectl(ready).await?;
    demo.kubectl("get llmaccess -n kagent").await?;
    demo.kubectl("get secret kagent-anthropic -n kagent").await?;

    say("A sidecar, allowed to read that one companion Secret, delivers the key");
    demo.kubectl("apply -f examples/local/sidecar-role.yaml").await?;
    let sidecar = demo.start_sidecar().await?;
    let file = sidecar.file("agent-anthropic", "apiKey");
    shell(&format!("cat {}", file.display())).await?;
    let url = sidecar.url("/v1/keys/agent-anthropic/apiKey");
    let curl = format!("curl -H @{} {url}", sidecar.auth_header().display());
    shell(&curl).await?;

    say(
        "The platform team replaces the key, over and over, while a reader loops on the file and one on the endpoint",
    );
    demo.rotate(&file, &url, &sidecar).await?;
    demo.kubectl("get llmaccess -n kagent -o wide").await?;
    demo.kubectl("get events -n kagent --field-selector reason=Rotated")
        .await?;

    if std::env::var_os("KEEP").is_some_and(|keep| !keep.is_empty() && keep != "0") {
        demo.keep(&sidecar, &curl).await?;
    }
    println!(
        "\nDone in {:.1} s; everything is stopped and removed.",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

struct Demo {
    llmwarden: Installation,
}

impl Demo {
    /// Runs `kubectl` and shows the command and what it prints.
    async fn kubectl(&self, arguments: &str) -> Result<()> {
        println!("$ kubectl {arguments}");
        let output = self.llmwarden.run_kubectl(arguments).await?;
        print!("{output}");
        Ok(())
    }

    /// The key goes in through a pipe: arguments of a command are seen by everybody on the machine.
    async fn create_master_key(&self, key: &str) -> Result<()> {
        let arguments = format!("create secret generic {MASTER} -n {SYSTEM} --from-file=api-key=/dev/stdin");
        println!("$ printf %s \"$ANTHROPIC_KEY\" | kubectl {arguments}");
        let mut command = self.llmwarden.kubectl();
        command.args(arguments.split_whitespace()).stdin(Stdio::piped());
        let mut kubectl = command.spawn()?;
        let mut input = kubectl.stdin.take().context("a pipe")?;
        input.write_all(key.as_bytes()).await?;
        drop(input);
        ensure!(kubectl.wait().await?.success(), "kubectl failed");
        Ok(())
    }

    async fn start_sidecar(&self) -> Result<Sidecar> {
        let account = self
            .llmwarden
            .account("kagent", "agent-anthropic-sidecar")
            .await?;
        let source = "agent-anthropic=kube:kagent/agent-anthropic.llmwarden";
        // The usual port, unless somebody has it.
        let port = TcpListener::bind(("127.0.0.1", ENDPOINT_PORT)).map_or(0, |_| ENDPOINT_PORT);
        let options = sidecar::Options {
            port,
            account: Some(account),
            ..sidecar::Options::new([source])
        };
        let sidecar = Sidecar::start(options).await?;
        println!(
            "$ llmwarden-sidecar --source {source} --dir {}",
            sidecar.dir().display()
        );
        if port == 0 {
            println!(
                "(port {ENDPOINT_PORT} is taken on this machine: the endpoint is at {})",
                sidecar.url("")
            );
        }
        let file = sidecar.file("agent-anthropic", "apiKey");
        try_eventually("the first key", SOON, async || file.exists()).await?;
        Ok(sidecar)
    }

    async fn rotate(&self, file: &Path, url: &str, sidecar: &Sidecar) -> Result<()> {
        let readers = Readers::start(file.to_owned(), url, &sidecar.auth_header(), &key(0))?;
        readers.saw(&key(0), SOON).await?;
        let (mut to_file, mut to_endpoint) = (Vec::new(), Vec::new());
        for number in 1..=ROTATIONS {
            readers.expect(&key(number));
            self.llmwarden.replace_master_key(MASTER, &key(number)).await?;
            let acknowledged = Instant::now();
            let (file, endpoint) = readers.saw(&key(number), SOON).await?;
            to_file.push(file.saturating_duration_since(acknowledged));
            to_endpoint.push(endpoint.saturating_duration_since(acknowledged));
        }
        let (file_tally, endpoint_tally) = readers.tallies();
        println!("{ROTATIONS} rotations, from the master Secret's write to the running reader:");
        report("file", to_file, &file_tally);
        report("endpoint", to_endpoint, &endpoint_tally);
        ensure!(
            file_tally.bad() + endpoint_tally.bad() == 0,
            "a reader got what no agent should get: {file_tally:?} {endpoint_tally:?}"
        );
        Ok(())
    }

    async fn keep(&self, sidecar: &Sidecar, curl: &str) -> Result<()> {
        say("Everything stays up until Ctrl-C. To look around:");
        println!("export KUBECONFIG={}", self.llmwarden.kubeconfig().display());
        println!("export PATH={}:$PATH", self.llmwarden.bin_dir().display());
        println!("kubectl describe llmaccess agent-anthropic -n kagent");
        println!("{curl}");
        println!("curl {}", sidecar.status_url("/status"));
        println!("ls {}   # logs", self.llmwarden.work_dir().display());
        tokio::signal::ctrl_c().await?;
        Ok(())
    }
}

fn report(what: &str, mut times: Vec<Duration>, tally: &Tally) {
    times.sort();
    let milliseconds = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
    println!(
        "  {what:<9} median {:>5.1} ms, slowest {:>5.1} ms; {} reads: {} torn, {} missing or empty, {} backward",
        milliseconds(times.get(times.len() / 2)),
        milliseconds(times.last()),
        tally.reads,
        tally.torn,
        tally.missing,
        tally.backward
    );
}

/// Runs a command line as a person would, and shows it with what it prints.
async fn shell(line: &str) -> Result<()> {
    println!("$ {line}");
    let output = tokio::process::Command::new("sh")
        .args(["-c", line])
        .output()
        .await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {error}");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// Made-up keys in the shape of real ones, and long, so that a torn read would show.
fn key(number: u32) -> String {
    format!("sk-ant-demo-{number:04}-{}", "0123456789abcdef".repeat(6))
}

fn say(what: &str) {
    println!("\n==> {what}");
}
