//! Where companions come from. A source looks, and tells the store what it saw; it decides nothing.

pub mod kube;
pub mod volume;
