//! A companion Secret as the kubelet mounts it: a directory whose files are links through `..data`, a link that is
//! swapped when the Secret changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::Result;
use llmwarden_proto::delivery::{Delivery, SCHEMA, State};
use llmwarden_proto::names;
use tempfile::TempDir;

/// The volume of one companion. Dropping it removes it.
#[derive(Debug)]
pub struct Volume {
    parent: TempDir,
    generation: u32,
}

impl Volume {
    /// One that is not mounted yet: its directory comes with the first write.
    pub fn new() -> Result<Self> {
        Ok(Self {
            parent: tempfile::tempdir()?,
            generation: 0,
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.parent.path().join("companion")
    }

    /// What a sidecar's `--source` flag says to deliver it as `access`.
    pub fn source(&self, access: &str) -> String {
        format!("{access}={}", self.path().display())
    }

    /// Replaces the content by this version with this key.
    pub fn publish(&mut self, version: u64, key: &str) -> Result<()> {
        self.publish_document(&document(version), key)
    }

    /// [`publish`](Self::publish), with a document that says more.
    pub fn publish_document(&mut self, document: &Delivery, key: &str) -> Result<()> {
        let document = serde_json::to_vec(document)?;
        self.write(&[(names::API_KEY, key.as_bytes()), (names::LIVE_JSON, &document)])
    }

    /// Replaces the content by a version that withdraws the key.
    pub fn withdraw(&mut self, version: u64, reason: &str) -> Result<()> {
        let document = Delivery {
            state: State::Withdrawn,
            reason: Some(reason.to_owned()),
            keys: Vec::new(),
            ..document(version)
        };
        self.write(&[(names::LIVE_JSON, &serde_json::to_vec(&document)?)])
    }

    /// Removes the content, as when an optional Secret is deleted.
    pub fn empty(&mut self) -> Result<()> {
        self.write(&[])
    }

    /// Takes the directory away, at once as an unmount does: removed file by file, it would look emptied first.
    pub fn unmount(&self) -> Result<()> {
        let away = self.parent.path().join("unmounted");
        fs::rename(self.path(), &away)?;
        Ok(fs::remove_dir_all(away)?)
    }

    /// Replaces the content by these files, all at once.
    pub fn write(&mut self, files: &[(&str, &[u8])]) -> Result<()> {
        let volume = self.path();
        fs::create_dir_all(&volume)?;
        self.generation += 1;
        let name = format!("..{}", self.generation);
        fs::create_dir(volume.join(&name))?;
        for (file, content) in files {
            fs::write(volume.join(&name).join(file), content)?;
        }
        let current = volume.join("..data");
        let replaced = fs::read_link(&current).ok();
        symlink(&name, volume.join("..data_tmp"))?;
        fs::rename(volume.join("..data_tmp"), &current)?;

        let wanted: BTreeSet<_> = files.iter().map(|(file, _)| PathBuf::from(file)).collect();
        for file in &wanted {
            if !volume.join(file).is_symlink() {
                symlink(PathBuf::from("..data").join(file), volume.join(file))?;
            }
        }
        for entry in fs::read_dir(&volume)? {
            let file = PathBuf::from(entry?.file_name());
            let hidden = file.to_string_lossy().starts_with("..");
            if !hidden && !wanted.contains(&file) {
                fs::remove_file(volume.join(file))?;
            }
        }
        if let Some(replaced) = replaced {
            fs::remove_dir_all(volume.join(replaced))?;
        }
        Ok(())
    }
}

/// The `live.json` of a version that delivers the key under its one usual name.
pub fn document(version: u64) -> Delivery {
    Delivery {
        schema: SCHEMA,
        version,
        state: State::Active,
        reason: None,
        issued_at: jiff::Timestamp::UNIX_EPOCH,
        keys: vec![names::API_KEY.to_owned()],
        values: BTreeMap::new(),
        upstream: None,
        requires: Vec::new(),
    }
}
