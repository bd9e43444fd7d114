//! Modules.

mod index_file;
mod leaf_routes;
mod policy_probabilities;
mod pre_norm_attention;
mod self_attention;
mod streaming_index;
mod tree_cross_attention;
mod tree_index;

pub use index_file::IndexError;
pub use pre_norm_attention::{
    PreNormAttention, PreNormAttentionConfig, ProjectedQueries, QueryResidual,
};
pub use self_attention::*;
pub use streaming_index::StreamingIndex;
pub use tree_cross_attention::{
    Queries, SearchOptions, TreeCrossAttention, TreeCrossAttentionConfig,
};
pub use tree_index::TreeIndex;
