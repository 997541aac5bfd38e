//! Where the programs under test are: the product's, each built once per process, and the control plane's.
//!
//! With `LLMWARDEN_PROGRAMS` set, the product's are those in that directory, and nothing of it is built.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// Keeps the outcome of the one build, its error included: a build that failed is not tried again by the next test.
type Built = OnceLock<Result<PathBuf, String>>;

/// The `llmwarden-controller` program.
pub fn controller() -> Result<PathBuf> {
    static PROGRAM: Built = OnceLock::new();
    once(&PROGRAM, || product("llmwarden-controller"))
}

/// The `llmwarden-sidecar` program.
pub fn sidecar() -> Result<PathBuf> {
    static PROGRAM: Built = OnceLock::new();
    once(&PROGRAM, || product("llmwarden-sidecar"))
}

/// The directory of `etcd`, `kube-apiserver`, `kubectl` and, unless it is envtest's, `kube-controller-manager`.
pub fn control_plane() -> Result<PathBuf> {
    static DIR: Built = OnceLock::new();
    once(&DIR, || build("build", "cluster"))
}

/// The `helm` program.
pub fn helm() -> Result<PathBuf> {
    static PROGRAM: Built = OnceLock::new();
    once(&PROGRAM, || Ok(build("build", "helm")?.join("helm")))
}

/// nginx: that of the machine, or Debian's.
pub fn nginx() -> Result<PathBuf> {
    static PROGRAM: Built = OnceLock::new();
    once(&PROGRAM, || Ok(build("build", "nginx")?.join("nginx")))
}

/// The directory of the providers' SDKs, with a program on them for each language.
pub fn clients() -> Result<PathBuf> {
    static DIR: Built = OnceLock::new();
    once(&DIR, || build("build", "clients"))
}

/// The program on Go's SDKs: static, so that it runs in an image of its own.
pub fn go_client() -> Result<PathBuf> {
    static PROGRAM: Built = OnceLock::new();
    once(&PROGRAM, || Ok(build("clients/build", "go")?.join("go/clients")))
}

/// Cargo's target directory, of the build that the running program came from.
pub fn target_dir() -> Result<PathBuf> {
    Ok(profile_dir()?
        .parent()
        .context("the program is not in a target directory")?
        .to_owned())
}

/// The directory of the programs that a script of `tests` makes of what is pinned under this name.
fn build(script: &str, name: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(&script)
        .arg(name)
        .env("CARGO_TARGET_DIR", target_dir()?)
        // Minutes pass when nothing is built yet: let it show what it does.
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| script.display().to_string())?;
    ensure!(
        output.status.success(),
        "{} {name}: {}",
        script.display(),
        output.status
    );
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()).canonicalize()?)
}

fn product(name: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("LLMWARDEN_PROGRAMS") {
        return Ok(Path::new(&dir).join(name));
    }
    let dir = profile_dir()?;
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => bail!("{} names no profile", dir.display()),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", name, "--bin", name])
        .args(["--profile", profile, "--target-dir"])
        .arg(target_dir()?)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "building {name}: {status}");
    Ok(dir.join(name))
}

/// `target/debug` for a program in it, or in its `deps` (tests) or `examples`.
fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("a program without a directory")?;
    let nested = dir
        .file_name()
        .is_some_and(|name| name == "deps" || name == "examples");
    Ok(if nested { dir.parent().unwrap_or(dir) } else { dir }.to_owned())
}

fn once(cell: &Built, make: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
    cell.get_or_init(|| make().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}
