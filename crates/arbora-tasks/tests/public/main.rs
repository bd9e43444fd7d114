//! What the public API does, on the host or on burn's CPU backend: a module for each subject.

#[cfg(feature = "flex")]
mod bandit;
#[cfg(feature = "flex")]
mod batch;
#[cfg(feature = "flex")]
mod completion;
#[cfg(feature = "flex")]
mod copy;
mod corpus;
mod folder;
#[cfg(feature = "flex")]
mod gp;
mod idx;
mod image_set;
#[cfg(feature = "flex")]
mod lookup;
mod optimisation;
mod picture;
#[cfg(feature = "flex")]
mod points;
#[cfg(feature = "sample")]
mod samples;
mod series_set;
#[cfg(feature = "flex")]
mod series_windows;
mod shuffle;
mod text_files;
#[cfg(feature = "flex")]
mod text_windows;
mod ts;
