//! The libraries under one name: order points along a k-d tree, build a tree of means over them, and
//! let queries search it.
//!
//! Run: `cargo run -p arbora --example search_points --features flex`

use arbora::attention::{Route, TreeCrossAttentionConfig};
use arbora::tree::{Layout, MeanAggregator, TokenOrder, TokenTree, TokenTreeShape};
use burn::tensor::{Device, Distribution, Tensor};

fn main() {
    let device = Device::flex();
    let (tokens, queries, d_model) = (200, 5, 16);
    let points = Tensor::<3>::random([1, tokens, 2], Distribution::Default, &device);
    let features = Tensor::random([1, tokens, d_model], Distribution::Default, &device);

    let shape = TokenTreeShape::new(tokens, 2, Layout::LeftFilled);
    let order = TokenOrder::KdTree.permutation(&points, None, &shape);
    let tree = TokenTree::build(features, None, order, shape, &MeanAggregator);

    let attention = TreeCrossAttentionConfig::new(d_model, 4).init(&device);
    let index = attention.index(&tree);
    let queries = Tensor::random([1, queries, d_model], Distribution::Default, &device);
    let found = attention.search(queries, &index, Route::Greedy);

    println!("context {:?} of {tokens} tokens", found.context.dims());
    println!("nodes selected per query {}", found.selected.into_data());
    println!("nodes read per query     {}", found.read.into_data());
}
