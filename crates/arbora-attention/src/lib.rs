//! Attention over trees.
