//! Injection: what a pod gets that an access selects. `select` finds the accesses, `plan` makes the patch, both pure;
//! `serve` answers the API server, from the index alone.

mod env;
pub mod obstacle;
pub mod patch;
pub mod plan;
pub mod select;
pub mod serve;
pub mod sidecar;

use json_patch::PatchOperation;

pub use self::obstacle::Obstacle;

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is changed.
    Patch(Injected),
    /// It stays as it is.
    Skip(SkipReason),
    /// It is refused: it asked by name for what it can't get.
    Deny(Obstacle),
}

/// How a pod is changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// The changes, to the object as it was sent.
    pub operations: Vec<PatchOperation>,
    /// What its author should know.
    pub warnings: Vec<String>,
    /// Accesses that select it and are not injected, and why.
    pub left_out: Vec<Obstacle>,
}

/// Why a pod stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkipReason {
    /// Nothing selects it.
    NotSelected,
    /// It says that it wants nothing.
    OptedOut,
    /// It is in a namespace that nothing is injected into.
    SystemNamespace,
    /// It has the sidecar.
    AlreadyInjected,
    /// It is selected, and something is in the way.
    Obstructed(Obstacle),
}

impl SkipReason {
    /// In one word, for metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotSelected => "NotSelected",
            Self::OptedOut => "OptedOut",
            Self::SystemNamespace => "SystemNamespace",
            Self::AlreadyInjected => "AlreadyInjected",
            Self::Obstructed(obstacle) => obstacle.reason(),
        }
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod proxied;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod tests;
