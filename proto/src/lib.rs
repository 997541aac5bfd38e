//! The contracts that the llmwarden controller and its sidecars share: the custom resources, the companion Secret, and
//! every name, port, path and reason that more than one part has to agree on. (Nothing here is protobuf.)

#[cfg(feature = "crd")]
pub mod access;
pub mod delivery;
#[cfg(feature = "process")]
pub mod errors;
#[cfg(feature = "process")]
pub mod hardening;
pub mod interval;
#[cfg(feature = "process")]
pub mod logging;
pub mod names;
pub mod profile;
#[cfg(feature = "crd")]
pub mod provider;
#[cfg(feature = "crd")]
pub mod reason;
pub mod status;
