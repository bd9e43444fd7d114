//! Orders random points along a k-d tree and builds a tree of means over them.
//!
//! `cargo run -p arbora-tree --example order_points --features flex`

use arbora_tree::{Layout, MeanAggregator, TokenOrder, TokenTree, TokenTreeShape};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn main() {
    let device = Device::default();
    let (tokens, branching) = (16, 2);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let numbers: Vec<f32> = (0..2 * tokens).map(|_| rng.random()).collect();
    // One example of 16 points in the unit square.
    let points = Tensor::<3>::from_data(TensorData::new(numbers, [1, tokens, 2]), &device);

    let shape = TokenTreeShape::new(tokens, branching, Layout::LeftFilled);
    let order = TokenOrder::KdTree.permutation(&points, None, &shape);
    let leaves: Vec<i64> = order.clone().into_data().iter::<i64>().collect();
    println!("points in k-d order: {leaves:?}");

    // Any tensor with a row per token can be summarised; here it is the points themselves.
    let tree = TokenTree::build(points, None, order, shape, &MeanAggregator);
    for height in (0..=shape.height()).rev() {
        let level = tree.level(height).into_data();
        let centres: Vec<f32> = level.iter::<f32>().collect();
        let centres: Vec<String> = centres
            .chunks(2)
            .map(|centre| format!("({:.2}, {:.2})", centre[0], centre[1]))
            .collect();
        println!("height {height}: {}", centres.join(" "));
    }
}
