//! What the public API does on the host: a module for each subject.

#[cfg(feature = "train")]
mod claim;
mod schedule;
mod seed;
