//! Attention within leaves beside dense attention, forward and backward, as the context grows: the time of
//! each, and how many times the one is faster than the other.
//!
//! ```sh
//! cargo bench -p arbora-benches --features flex --bench leaf_attention
//! ```
//!
//! On burn-flex. Leaves are balanced: each holds the same number of queries and of keys.

mod common;

use arbora_attention::functions::{LeafAttentionInput, dense_attention, leaf_attention};
use arbora_attention::ops::{DenseAttentionOptions, LeafAttentionOptions};
use arbora_rl::sample::uniform;
use arbora_rl::seed::step_rng;
use burn::tensor::{Device, Int, Tensor};
use std::hint::black_box;

const TOKENS: [usize; 2] = [1024, 4096];
const HEADS: usize = 8;
const HEAD_DIM: usize = 96;

/// As many as trees of height 6 have.
const LEAVES: usize = 64;

/// The median time of a call in milliseconds, after one that warms up.
fn measure(mut call: impl FnMut()) -> f64 {
    call();
    common::median_seconds(call) * 1e3
}

/// Runs attention and the gradient of the sum of its squares.
fn train(inputs: &[Tensor<4>; 3], attend: impl FnOnce([Tensor<4>; 3]) -> Tensor<4>) {
    let inputs = inputs.clone().map(|input| input.require_grad());
    let context = attend(inputs.clone());
    let gradients = context.powi_scalar(2).sum().backward();
    for input in inputs {
        black_box(input.grad(&gradients));
    }
}

fn main() {
    let device = Device::flex().autodiff();
    println!("{HEADS} heads of {HEAD_DIM}, {LEAVES} balanced leaves, forward and backward");
    for tokens in TOKENS {
        let inputs = [1, 2, 3].map(|seed| {
            let shape = [1, tokens, HEADS, HEAD_DIM];
            uniform(&mut step_rng(seed, 0), shape, &device) * 2.0 - 1.0
        });
        let leaf = Tensor::<1, Int>::arange(0..tokens as i64, &device)
            .remainder_scalar(LEAVES as i64)
            .reshape([1, tokens, 1])
            .expand([1, tokens, HEADS]);
        let dense = measure(|| {
            train(&inputs, |[query, key, value]| {
                let options = DenseAttentionOptions {
                    first_key: 0,
                    scale: None,
                };
                dense_attention(query, key, value, None, options)
            });
        });
        let within = measure(|| {
            train(&inputs, |[query, key, value]| {
                let input = LeafAttentionInput {
                    query,
                    key,
                    value,
                    query_leaf: leaf.clone(),
                    key_leaf: leaf.clone(),
                    key_bias: None,
                };
                leaf_attention(input, LeafAttentionOptions::new(LEAVES)).context
            });
        });
        println!(
            "{tokens} tokens: dense {dense:.1} ms, within leaves {within:.1} ms: {:.1} times faster",
            dense / within
        );
    }
}
