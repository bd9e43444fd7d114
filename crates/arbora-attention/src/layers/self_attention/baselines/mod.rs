//! Published ways of attending without trees, which trees are compared with.

mod big_bird;
mod linformer;
mod performer;

pub use big_bird::{BigBird, BigBirdConfig};
pub use linformer::{Linformer, LinformerConfig};
pub use performer::{Performer, PerformerConfig};
