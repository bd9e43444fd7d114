//! Modules.

pub mod tree_cross_attention;

pub use tree_cross_attention::{
    SearchOutput, TreeCrossAttention, TreeCrossAttentionConfig, TreeIndex,
};
