//! llmwarden on a real control plane: one module per subject, one program, so that all share one installation.

mod adoption;
mod canary;
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
mod rotation;
mod settled;
mod sidecar;
mod support;
mod two_controllers;
mod validation;
