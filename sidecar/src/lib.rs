//! The sidecar: takes each new key from its source and delivers it to the running agent, as an atomically replaced file
//! and on a localhost endpoint.
//!
//! A [`source`] observes the companion of one access and tells the [`store`], which decides what it means. What the
//! store holds, [`files`] and the [`endpoint`] hand out; [`status`] says how that goes.

mod client;
mod compare;
pub mod config;
pub mod endpoint;
pub mod files;
mod idle;
mod incoming;
pub mod metrics;
pub mod probe;
pub mod proxy;
pub mod run;
pub mod server;
pub mod source;
pub mod status;
pub mod store;
pub mod token;
