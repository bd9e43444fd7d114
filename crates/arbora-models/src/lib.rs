//! ReTreever and the models it is compared with.
//!
//! Depend on this crate to train or embed a whole model. It composes `arbora-tree`,
//! `arbora-attention` and `arbora-rl`; it knows no data set and no command line.
//!
//! - [`retreever`]: [`ReTreever`], a transformer encoder whose tokens are searched as a tree
//!   (arXiv 2309.17388)
//! - [`cross_attention`]: [`CrossAttentionModel`], the same model with dense cross attention
//! - [`perceiver`]: [`PerceiverIo`], the same parts around a fixed number of learned latents
//!   (arXiv 2107.14795)
//! - [`treeformer`]: [`Treeformer`], a transformer over tokens whose attention is of any kind
//!   (arXiv 2208.09015)
//! - [`tree_coder`]: [`TreeCoder`], a tree of transformer blocks that routes each sequence to one leaf
//!   (arXiv 2411.07218)
//! - [`block`]: the pre-norm transformer block of the last two
//! - [`parts`]: embeddings, the published transformer block, the aggregator, the decoder
//! - [`prediction`]: what models predict, its loss and its reward
//! - [`init`]: seeded initialisation on the host, equal on every backend
//! - [`streaming`]: contexts that grow and change token by token
//! - [`store`]: saving and loading weights, as burnpack or safetensors; of `arbora-attention`
//!
//! # Feature flags
//!
//! `flex`, `ndarray`, `tch`, `wgpu`, `vulkan`, `webgpu`, `metal`, `cuda`, `rocm`, `cpu` and `fusion`
//! are burn's backend features of the same names; none is on by default. `remote`: parts of a model on devices of another
//! process.

pub mod block;
mod check;
pub mod cross_attention;
pub mod init;
pub mod parts;
pub mod perceiver;
pub mod prediction;
pub mod retreever;
pub mod streaming;
pub mod tree_coder;
pub mod treeformer;

pub use arbora_attention::store;
pub use arbora_tree::ConfigError;
pub use block::{TransformerBlock, TransformerBlockConfig};
pub use cross_attention::{CrossAttentionConfig, CrossAttentionModel};
pub use init::Initialization;
pub use parts::{Context, EmbeddingKind, ModelConfig};
pub use perceiver::{PerceiverIo, PerceiverIoConfig, latents_for};
pub use prediction::{HeadKind, Prediction, RewardKind, StdKind, Target};
pub use retreever::{LossOptions, ReTreever, ReTreeverConfig, ReTreeverOutput};
pub use streaming::{ReTreeverStream, ReTreeverStreamError};
pub use tree_coder::{TreeCoder, TreeCoderConfig, TreeCoderOptions, TreeCoderOutput};
pub use treeformer::{Treeformer, TreeformerConfig, TreeformerOptions, TreeformerOutput};
