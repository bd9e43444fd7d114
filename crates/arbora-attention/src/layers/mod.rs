//! Modules.

mod pre_norm_attention;
mod search_strategy;
mod tree_cross_attention;

pub use pre_norm_attention::{
    PreNormAttention, PreNormAttentionConfig, ProjectedQueries, QueryResidual,
};
pub use search_strategy::{SearchOptions, SearchOptionsError, SearchStrategy, StrategyOutput};
pub use tree_cross_attention::{
    SearchOutput, TreeCrossAttention, TreeCrossAttentionConfig, TreeIndex,
};
