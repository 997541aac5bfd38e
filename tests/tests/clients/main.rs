//! The providers' own SDKs, unmodified, against a fake provider: directly, which checks the fake, and through the sidecar.

mod direct;
mod program;
mod subjects;
