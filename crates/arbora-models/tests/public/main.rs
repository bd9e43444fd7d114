//! What needs no device: settings, sizes and names.

mod parameters;
mod perceiver;
mod placement;
mod tree_coder_config;
