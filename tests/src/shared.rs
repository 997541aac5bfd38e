//! Reference data that lives beside the repository and isn't part of it.

use std::path::{Path, PathBuf};

use crate::skip::skipped;

/// The directory of the reference data: `LLMWARDEN_SHARED`, or `shared` beside the repository. Without it the caller
/// skips its test: a line on standard error says so, since the test runner counts an early return as passed.
///
/// # Panics
///
/// Without the directory when `CI=true`: there, nothing may be skipped.
pub fn shared_dir() -> Option<PathBuf> {
    let given = std::env::var_os("LLMWARDEN_SHARED").map(PathBuf::from);
    let dir = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"));
    if dir.is_dir() {
        return Some(dir);
    }
    skipped(&format!("no reference data at {}", dir.display()));
    None
}
