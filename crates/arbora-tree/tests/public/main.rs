//! What the public API does on the host: a module for each subject.

#[cfg(feature = "tensor")]
mod order;
mod shape;
