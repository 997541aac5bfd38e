//! The JSON that a sidecar serves at `/status`: what it holds and delivers, never a value.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The `schema` that this version writes.
pub const SCHEMA: u32 = 1;

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Format of this document, [`SCHEMA`].
    pub schema: u32,
    /// Version of the sidecar.
    pub sidecar: String,
    /// Every access the sidecar was given a source for, by name.
    pub accesses: BTreeMap<String, AccessStatus>,
}

/// One access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessStatus {
    /// Whether there is a key.
    pub state: DeliveryState,
    /// Version that the endpoint serves, or that said the key is withdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Version that the files hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_version: Option<u64>,
    /// When the version was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Timestamp>,
    /// Why there is no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong with the source or the files now; the last good key is served meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Features the companion requires and this sidecar lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<String>,
    /// Running requests through the proxy, by the version of the key that they go on with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub in_use: BTreeMap<u64, u64>,
}

/// Where an access stands in a sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeliveryState {
    /// No key has come yet.
    Pending,
    /// A key is served.
    Active,
    /// The key was withdrawn or deleted.
    Withdrawn,
}
