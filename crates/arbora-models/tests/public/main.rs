//! What needs no device: settings, sizes and names.

mod configs;
mod parameters;
mod perceiver;
mod placement;
mod tree_coder_config;
