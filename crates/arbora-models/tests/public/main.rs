//! What needs no device: settings, sizes and names.

mod perceiver;
mod placement;
mod tree_coder_config;
