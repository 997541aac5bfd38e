//! Reference data that lives beside the repository and isn't part of it.

use std::path::{Path, PathBuf};

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
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(
        !ci,
        "no reference data at {}: set LLMWARDEN_SHARED",
        dir.display()
    );
    let test = std::thread::current();
    eprintln!(
        "SKIPPED: {}: no reference data at {}",
        test.name().unwrap_or("a test"),
        dir.display()
    );
    None
}
