//! Modules.

mod leaf_routes;
mod pre_norm_attention;
mod tree_cross_attention;

pub use pre_norm_attention::{
    PreNormAttention, PreNormAttentionConfig, ProjectedQueries, QueryResidual,
};
pub use tree_cross_attention::{
    SearchOutput, TreeCrossAttention, TreeCrossAttentionConfig, TreeIndex,
};
