//! The FLOPs that the Treeformer paper printed beside those of our formulas, as the table of `docs/guide/flops.md`.
//!
//! `cargo run -p arbora-attention --example published_flops --features flex`

mod tables;

fn main() {
    print!("{}", tables::table());
}
