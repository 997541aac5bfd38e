//! `LLMAccess`: observe, plan (pure), apply.

pub mod apply;
pub mod asked;
pub mod desired;
pub mod folding;
pub mod grant;
pub mod observe;
pub mod plan;
pub mod pods;
pub mod promises;
pub mod recent;
pub mod reconcile;
pub mod recorders;
pub mod status;
pub mod superseded;
pub mod told;
