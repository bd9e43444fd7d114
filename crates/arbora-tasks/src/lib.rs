//! Data for attention over trees: file formats, generators and batches.
//!
//! Depend on this crate to feed a model of your own with the tasks that Arbora trains on. It knows
//! burn's tensors and no model. The `arbora` command line is one user of it.
//!
//! - [`images`]: sets of images from IDX files, from a folder of PNG and JPEG files or from the
//!   bundled sample, and image completion: predict unseen pixels from a few seen ones
//! - [`copy`]: random sequences to be written in reverse, the task of the Tree Cross Attention paper
//! - [`recall`]: associative recall and needles in a haystack: look up what a key came with
//! - [`series`]: sets of time series from `.ts` files or from the bundled sample, and their
//!   classification by windows
//! - [`text`]: corpora of text, tokenizers, and windows of tokens for language models
//! - [`gp`]: regression on functions drawn from Gaussian processes
//! - [`bandit`]: the wheel bandit, for loops that learn while they choose, and regression on its
//!   rewards
//! - [`optimisation`]: functions drawn from Gaussian processes, whose maximum is to be found
//! - [`batch`]: [`RegressionBatch`], the padded tensors of context and target points that every
//!   regression task yields, with a checked constructor for data of your own
//! - [`shuffle`]: a seeded permutation that is evaluated one position at a time
//! - [`error`]: [`TaskError`], which names the file or the key, what was expected and what came
//!
//! # Example
//! ```no_run
//! use arbora_tasks::images::{ImageCompletion, ImageCompletionConfig, ImageSet};
//! # fn main() -> Result<(), arbora_tasks::TaskError> {
//! # let device = burn::tensor::Device::default();
//! let set = ImageSet::from_idx("train-images-idx3-ubyte.gz", None::<&str>)?;
//! let task = ImageCompletion::new(set, ImageCompletionConfig::default())?;
//! let (seed, step) = (0, 0);
//! let batch = task.batch(seed, step, 16, &device)?;
//! assert_eq!(batch.context_x.dims(), [16, batch.context_counts[0], 2]);
//! # Ok(())
//! # }
//! ```
//!
//! # Randomness
//! Every draw happens on the host and derives from a seed and a step that the caller gives. A
//! batch is a pure function of both, so a resumed run sees the same batches, and every backend
//! gets the same numbers.
//!
//! # Feature flags
//! - `sample`: compiles the bundled samples into the binary: a part of Fashion-MNIST
//!   (`images::sample`), BasicMotions (`series::sample`) and Moby-Dick (`text::sample`)
//! - `flex`, `ndarray`, `tch`, `wgpu`, `vulkan`, `webgpu`, `metal`, `cuda`, `rocm`, `cpu`,
//!   `fusion`: burn's backends, named as burn names them. None is on by default.

pub mod bandit;
pub mod batch;
pub mod copy;
mod draws;
pub mod error;
mod files;
pub mod gp;
pub mod images;
pub mod optimisation;
pub mod recall;
pub mod series;
pub mod shuffle;
pub mod text;

pub use batch::{RegressionBatch, RegressionExample};
pub use error::{ConfigError, TaskError};
