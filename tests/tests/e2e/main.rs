//! llmwarden on a real node: our images, and pods with the sidecar beside an agent. `make e2e` runs it.

mod access;
mod images;
mod isolation;
mod kagent;
mod node;
mod outage;
mod pods;
mod proxy;
mod support;

// The tests on a control plane alone need more of it.
#[allow(dead_code)]
#[path = "../it/support.rs"]
mod tenant;
