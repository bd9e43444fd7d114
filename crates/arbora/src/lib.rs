//! Facade.

#[cfg(feature = "cli")]
pub mod picture;
