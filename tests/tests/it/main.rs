//! llmwarden on a real control plane: one module per subject, one program, so that all share one installation.

mod adoption;
mod canary;
mod conflicts;
mod definitions;
mod delivery;
mod denial;
mod endpoint;
mod guide;
mod policies;
mod readme;
mod refusals;
mod repair;
mod rights;
mod rotation;
mod sidecar;
mod support;
mod validation;
