//! Nobody else on the node gets to read the memory of a process that holds keys.

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Makes the process undumpable: no core file, and no access through `/proc/<pid>` or ptrace for processes of the same
/// user.
pub fn apply() -> nix::Result<()> {
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_not_dumpable() {
        apply().expect("allowed");
        assert!(!prctl::get_dumpable().expect("readable"));
    }
}
