//! The proxy: what it decides about a request and an answer. Nothing here waits, or knows of a connection.

pub mod caller;
pub mod dead_key;
pub mod headers;
pub mod json;
pub mod models;
pub mod query;
pub mod refusal;
pub mod routes;
pub mod target;
pub mod usage;
