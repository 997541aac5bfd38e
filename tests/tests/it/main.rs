//! llmwarden on a real control plane: one module per subject, one program, so that all share one installation.

mod adoption;
mod conflicts;
mod definitions;
mod denial;
mod guide;
mod refusals;
mod repair;
mod rotation;
mod support;
mod validation;
