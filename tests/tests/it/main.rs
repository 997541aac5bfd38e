//! llmwarden on a real control plane: one module per subject, one program, so that all share one installation.

mod adoption;
mod conflicts;
mod definitions;
mod guide;
mod refusals;
mod support;
mod validation;
