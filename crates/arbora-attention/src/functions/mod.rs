//! The tensor functions that users call.

mod tree_search;

pub use tree_search::{Route, TreeSearch, tree_search};
