//! llmwarden on a real control plane: one module per subject, one program, so that all share one installation.

mod adoption;
mod attacks;
mod canary;
mod companions;
mod conflicts;
mod controller_crashes;
mod controller_faults;
mod definitions;
mod delivery;
mod denial;
mod endpoint;
mod guide;
mod readme;
mod refusals;
mod repair;
mod replicas;
mod rotation;
mod settled;
mod sidecar;
mod sidecar_crashes;
mod sidecar_faults;
mod soak;
mod support;
mod two_controllers;
mod validation;
