//! The providers' own SDKs, unmodified, against a fake provider: directly, which checks the fake, and through the sidecar.

mod direct;
mod guide;
mod program;
mod proxied;
mod rotation;
mod subjects;

use std::time::Duration;

/// More than anything takes, on a machine that runs everything else at the same time.
const SOON: Duration = Duration::from_mins(1);
