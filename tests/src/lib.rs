//! Harness of llmwarden's tests: a real Kubernetes control plane (etcd, API server, controller manager) per test, a real
//! node for those that run pods, the product's binaries as processes, and one way to wait for something to become true.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! let cluster = llmwarden_tests::ControlPlane::start().await?;
//! let version = cluster.client().apiserver_version().await?;
//! # Ok(()) }
//! ```

pub mod api_proxy;
pub mod binaries;
pub mod certificates;
pub mod chart;
pub mod client;
pub mod control_plane;
pub mod fake_provider;
pub mod image;
pub mod installation;
mod kubeconfig;
pub mod node;
mod ports;
pub mod process;
pub mod readers;
pub mod shared;
pub mod sidecar;
pub mod skip;
pub mod volume;
pub mod wait;
pub mod webhook;
mod work_dir;

pub use api_proxy::ApiProxy;
pub use control_plane::{ControlPlane, Options};
pub use fake_provider::FakeProvider;
pub use image::Image;
pub use installation::Installation;
pub use node::Node;
pub use ports::free_port;
pub use process::{Process, Signal};
pub use shared::shared_dir;
pub use sidecar::Sidecar;
pub use volume::Volume;
pub use wait::{eventually, try_eventually};
