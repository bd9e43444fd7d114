//! The suite that every backend runs: `cargo xtask test-all-backends`.

#[path = "backend/big_bird.rs"]
mod big_bird;
#[path = "backend/build.rs"]
mod build;
#[path = "backend/decode_coarse.rs"]
mod decode_coarse;
#[path = "backend/decode_fine.rs"]
mod decode_fine;
#[path = "backend/feed_forward.rs"]
mod feed_forward;
#[path = "backend/flops.rs"]
mod flops;
#[path = "backend/folded.rs"]
mod folded;
#[path = "backend/grow.rs"]
mod grow;
#[path = "backend/index.rs"]
mod index;
#[path = "backend/kernels.rs"]
mod kernels;
#[path = "backend/kinds.rs"]
mod kinds;
#[path = "backend/layer.rs"]
mod layer;
#[path = "backend/leaf_attention.rs"]
mod leaf_attention;
#[path = "backend/leaf_kernels.rs"]
mod leaf_kernels;
#[path = "backend/leaf_routes.rs"]
mod leaf_routes;
#[path = "backend/linformer.rs"]
mod linformer;
#[path = "backend/performer.rs"]
mod performer;
#[path = "backend/policy.rs"]
mod policy;
#[path = "backend/prefix_attention.rs"]
mod prefix_attention;
#[path = "backend/search.rs"]
mod search;
#[path = "backend/self_attention.rs"]
mod self_attention;
#[path = "backend/strategy.rs"]
mod strategy;
#[path = "backend/stream.rs"]
mod stream;
#[path = "backend/tree_coarse.rs"]
mod tree_coarse;
#[path = "backend/tree_coarse_gradients.rs"]
mod tree_coarse_gradients;
#[path = "backend/tree_coarse_layer.rs"]
mod tree_coarse_layer;
#[path = "backend/tree_fine.rs"]
mod tree_fine;
#[path = "backend/two_pass.rs"]
mod two_pass;

use arbora_testing::{device, padding};
use arbora_tree::{Layout, MeanAggregator, TokenOrder, TokenTree, TokenTreeShape};
use burn::tensor::{Device, Tensor};

#[test]
fn the_backend_asked_for_is_the_one_that_runs() {
    arbora_testing::assert_backend_asked_for();
    println!("[device] {}", device_name(&device()));
}

/// What the machine calls the device; burn's own name where a backend does not tell.
fn device_name(device: &Device) -> String {
    #[cfg(feature = "fusion")]
    if let Some(identity) = device.identity() {
        return identity.name;
    }
    format!("{:?}", device.as_dispatch())
}

/// A tree of means over the tokens, in their given order.
fn mean_tree(tokens: Tensor<3>, lengths: &[usize], branching: usize, layout: Layout) -> TokenTree {
    let [_, count, _] = tokens.dims();
    let shape = TokenTreeShape::new(count, branching, layout);
    let mask = padding(lengths, count, &device());
    let order = TokenOrder::Given.permutation(&tokens, Some(&mask), &shape);
    TokenTree::build(tokens, Some(mask), order, shape, &MeanAggregator)
}
