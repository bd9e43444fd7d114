//! The suite that every backend runs: `cargo xtask test-all-backends`.

mod big_bird;
mod build;
mod decode_coarse;
mod decode_fine;
mod empty_batch;
mod feed_forward;
mod flops;
mod folded;
mod grow;
mod index;
mod kernels;
mod kinds;
mod layer;
mod leaf_attention;
mod leaf_kernels;
mod leaf_routes;
mod linformer;
mod performer;
mod policy;
mod precision;
mod prefix_attention;
mod search;
mod self_attention;
mod strategy;
mod stream;
mod tree_coarse;
mod tree_coarse_gradients;
mod tree_coarse_layer;
mod tree_fine;
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
