//! Attention with projections outside and kinds inside.
