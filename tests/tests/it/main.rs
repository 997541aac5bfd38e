//! llmwarden on a real control plane: one module per subject, one program, so that all share one installation.

mod adoption;
mod attacks;
mod canary;
mod companions;
mod conflicts;
mod crashes;
mod definitions;
mod delivery;
mod denial;
mod endpoint;
mod faults;
mod guide;
mod readme;
mod refusals;
mod repair;
mod replicas;
mod rotation;
mod sidecar;
mod soak;
mod support;
mod validation;
