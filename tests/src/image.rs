//! Container images, built by buildah into archives, with no registry and no base image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::output;

/// The image of [`Image::busybox`].
pub const BUSYBOX: &str = "localhost/busybox:test";
/// The image of [`Image::program`].
pub const PROGRAM: &str = "localhost/program:test";
/// The authorities that a distribution trusts, without those that somebody added to this machine.
const AUTHORITIES: &str = "/usr/share/ca-certificates/mozilla";

/// An image in an archive.
#[derive(Debug)]
pub struct Image {
    reference: String,
    archive: PathBuf,
    digest: String,
    config: Value,
}

impl Image {
    /// One of the product's, with `program` in it, by the Dockerfile that is named after it.
    pub async fn product(program: &Path, dir: &Path) -> Result<Self> {
        let name = program.file_name().and_then(|name| name.to_str());
        let name = name.context("a program without a name")?;
        let context = tempfile::tempdir_in(dir)?;
        fs::copy(program, context.path().join(name))?;
        fs::write(context.path().join("ca-certificates.crt"), authorities()?)?;
        let dockerfile = format!("../Dockerfile.{}", name.trim_start_matches("llmwarden-"));
        let dockerfile = Path::new(env!("CARGO_MANIFEST_DIR")).join(dockerfile);
        Self::build(
            &format!("localhost/{name}:test"),
            &dockerfile,
            context.path(),
            dir,
        )
        .await
    }

    /// The tools of a shell, as root. It sleeps unless told otherwise.
    pub async fn busybox(dir: &Path) -> Result<Self> {
        Self::tools(BUSYBOX, 0, None, dir).await
    }

    /// In place of an agent's image, which can't be pulled: the tools of a shell, as this user, and the page under
    /// `/www` that kagent asks its agents for.
    pub async fn agent(user: u32, dir: &Path) -> Result<Self> {
        Self::tools(&format!("localhost/agent-{user}:test"), user, None, dir).await
    }

    /// An agent that is this static program, with the tools of a shell to look around in its container.
    pub async fn program(program: &Path, user: u32, dir: &Path) -> Result<Self> {
        Self::tools(PROGRAM, user, Some(program), dir).await
    }

    async fn tools(reference: &str, user: u32, program: Option<&Path>, dir: &Path) -> Result<Self> {
        let context = tempfile::tempdir_in(dir)?;
        fs::copy("/bin/busybox", context.path().join("busybox"))?;
        fs::write(context.path().join("agent-card.json"), "{}")?;
        let dockerfile = context.path().join("Dockerfile");
        let mut text = format!(
            "FROM scratch\nCOPY busybox /bin/busybox\nCOPY agent-card.json /www/.well-known/agent-card.json\nUSER {user}\n"
        );
        if let Some(program) = program {
            fs::copy(program, context.path().join("program"))?;
            text += "COPY program /program\nENTRYPOINT [\"/program\"]\n";
        } else {
            text += "ENTRYPOINT [\"/bin/busybox\", \"sleep\", \"infinity\"]\n";
        }
        fs::write(&dockerfile, text)?;
        Self::build(reference, &dockerfile, context.path(), dir).await
    }

    async fn build(reference: &str, dockerfile: &Path, context: &Path, dir: &Path) -> Result<Self> {
        let archive = tempfile::Builder::new()
            .suffix(".tar")
            .tempfile_in(dir)?
            .into_temp_path();
        // buildah writes it anew.
        let archive = archive.keep()?;
        fs::remove_file(&archive)?;
        let storage = tempfile::tempdir_in(dir)?;
        let buildah = |subcommand: &str| {
            let mut command = Command::new("buildah");
            command
                .args(["--storage-driver", "vfs", "--root"])
                .arg(storage.path().join("storage"))
                .arg("--runroot")
                .arg(storage.path().join("run"))
                .arg(subcommand);
            command
        };

        let mut build = buildah("build");
        build
            .args(["--isolation", "chroot", "--timestamp", "0", "--quiet"])
            .args(["--build-arg", "BINARIES=prebuilt", "--tag", reference, "--file"])
            .arg(dockerfile)
            .arg(context);
        output(build).await?;
        let digest_file = storage.path().join("digest");
        let mut push = buildah("push");
        push.args(["--quiet", "--digestfile"])
            .arg(&digest_file)
            .arg(reference)
            .arg(format!("oci-archive:{}:{reference}", archive.display()));
        output(push).await?;
        let mut inspect = buildah("inspect");
        inspect.args(["--type", "image", reference]);
        let described: Value = serde_json::from_str(&output(inspect).await?)?;
        Ok(Self {
            reference: reference.to_owned(),
            archive,
            digest: fs::read_to_string(digest_file)?,
            config: described["OCIv1"]["config"].clone(),
        })
    }

    /// What a pod calls it.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// The archive, in OCI's layout.
    pub fn archive(&self) -> &Path {
        &self.archive
    }

    /// What identifies its content.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// How containers of it are started, as OCI has it.
    pub fn config(&self) -> &Value {
        &self.config
    }
}

/// In the order in which a shell lists the files.
fn authorities() -> Result<Vec<u8>> {
    let entries = fs::read_dir(AUTHORITIES).with_context(|| format!("{AUTHORITIES} (ca-certificates)"))?;
    let mut files = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.sort();
    let contents = files.into_iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
    ensure!(!contents.is_empty(), "{AUTHORITIES} is empty");
    Ok(contents.concat())
}
