//! The webhook's certificates, with nothing else installed: an authority of our own and a certificate from it, in one Secret
//! of the controller's namespace. `plan` decides (pure), `make` makes, `keep` writes (the Lease holder alone), and `serving`
//! is what every replica does with them.
//!
//! An authority is replaced in three steps, so that the API server trusts what is served at any time: the new one joins the
//! old one in `caBundle`; then it issues the certificate; then the old one goes.

pub mod keep;
mod make;
pub mod plan;
pub mod serving;
mod stored;

pub use self::stored::Stored;
