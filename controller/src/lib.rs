//! The llmwarden controller: provisions, rotates and withdraws the Secrets of `LLMAccess` objects.
//!
//! [`index`] holds what the watches saw; [`access`] and [`provider`] each reconcile one kind in three steps: observe,
//! plan (pure), apply. [`refresh`] keeps running pods up to date. [`inject`] answers the API server about pods, with the certificates of [`certificates`].

pub mod access;
pub mod admin;
pub mod certificates;
pub mod conditions;
pub mod config;
pub mod crd;
pub mod index;
pub mod inject;
pub mod instance;
pub mod lease;
pub mod metrics;
pub mod provider;
pub mod pulse;
pub mod refresh;
pub mod run;
