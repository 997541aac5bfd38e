//! Running pods: their kubelets are asked to fetch each new version, and their sidecars whether it has arrived. `plan` decides,
//! pure; `ask` speaks to a sidecar; `run` does the rest.

mod ask;
mod plan;
mod run;

pub use self::run::Refresher;
