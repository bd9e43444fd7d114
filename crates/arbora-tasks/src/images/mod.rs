//! Sets of images, and image completion.
//!
//! - [`ImageSet`]: pixels and labels in memory, from IDX files, from a folder or from the sample
//! - [`ImageCompletion`]: batches that ask for unseen pixels, given seen ones
//! - `sample` (feature `sample`): the bundled part of Fashion-MNIST and its licence

mod changes;
mod completion;
mod folder;
mod idx;
mod picture;
#[cfg(feature = "sample")]
pub mod sample;
mod set;

pub use changes::PictureChanges;
pub use completion::{ImageCompletion, ImageCompletionConfig, WholeImage};
pub use set::ImageSet;
