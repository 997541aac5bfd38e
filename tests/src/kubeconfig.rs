//! Kubeconfig files. They are written as JSON, which every reader of YAML takes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use crate::certificates::Certificate;

/// How a kubeconfig's user proves who it is.
pub(crate) enum User<'a> {
    Certificate(&'a Certificate),
    Token(&'a str),
}

/// Writes the kubeconfig `<name>.kubeconfig` in `dir`.
pub(crate) fn write(
    dir: &Path,
    name: &str,
    server: &str,
    authority: &Path,
    user: &User<'_>,
) -> Result<PathBuf> {
    let user: Value = match user {
        User::Certificate(files) => {
            json!({ "client-certificate": files.certificate, "client-key": files.key })
        }
        User::Token(token) => json!({ "token": token }),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": { "server": server, "certificate-authority": authority } }],
        "users": [{ "name": name, "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": name } }],
        "current-context": "test",
    });
    let path = dir.join(format!("{name}.kubeconfig"));
    fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    Ok(path)
}
