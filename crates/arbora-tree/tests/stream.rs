//! Trees after any sequence of appends and updates, against trees built at once.
#![cfg(feature = "flex")]

use arbora_tree::token::masked_mean;
use arbora_tree::{Aggregator, Layout, TokenOrder, TokenTree, TokenTreeShape};
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DIM: usize = 3;

/// Unlike a mean alone, tells a node from its only child, counts leaves and is not linear.
struct Squashed;

impl Aggregator for Squashed {
    fn aggregate(&self, children: Tensor<3>, leaves: Tensor<2, Int>) -> Tensor<2> {
        let weight = leaves.clone().cast(FloatDType::F32).sum_dim(1) * 0.1;
        (masked_mean(children, leaves.equal_elem(0)) * 1.5 + weight).tanh()
    }
}

fn tensor(rows: Vec<f32>, batch: usize) -> Tensor<3> {
    let count = rows.len() / (batch * DIM);
    Tensor::from_data(TensorData::new(rows, [batch, count, DIM]), &Device::flex())
}

fn rebuilt(examples: &[Vec<[f32; DIM]>], shape: TokenTreeShape) -> TokenTree {
    let (batch, count) = (examples.len(), shape.tokens());
    let mut rows = Vec::new();
    let mut masked = Vec::new();
    for tokens in examples {
        for token in 0..count {
            rows.extend(tokens.get(token).unwrap_or(&[0.0; DIM]));
            masked.push(token >= tokens.len());
        }
    }
    let tokens = tensor(rows, batch);
    let mask = Tensor::from_data(TensorData::new(masked, [batch, count]), &Device::flex());
    let order = TokenOrder::Given.permutation(&tokens, Some(&mask), &shape);
    TokenTree::build(tokens, Some(mask), order, shape, &Squashed)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_appends_and_updates_equals_a_rebuild(
        batch in 1usize..4, branching in prop::sample::select(vec![2usize, 3, 5]),
        capacity in 1usize..9, steps in 1usize..9, most in 1usize..9, seed in any::<u64>(),
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = || -> [f32; DIM] { core::array::from_fn(|_| rng.random_range(-1.0..1.0)) };
        let mut choose = ChaCha8Rng::seed_from_u64(seed ^ 1);
        let shape = TokenTreeShape::new(capacity, branching, Layout::LeftFilled);
        let mut tree = TokenTree::empty(batch, DIM, shape, &Device::flex());
        let mut examples = vec![Vec::new(); batch];
        for _ in 0..steps {
            let before: Vec<usize> = examples.iter().map(Vec::len).collect();
            let changed = if choose.random_bool(0.6) {
                let counts: Vec<usize> = (0..batch).map(|_| choose.random_range(0..=most)).collect();
                let mut rows = Vec::new();
                for (tokens, count) in examples.iter_mut().zip(&counts) {
                    let new: Vec<_> = (0..most).map(|_| draw()).collect();
                    rows.extend(new.iter().flatten());
                    tokens.extend(&new[..*count]);
                }
                tree.append_ragged(tensor(rows, batch), &counts, &Squashed).unwrap()
            } else {
                let mut leaves = Vec::new();
                let mut rows = Vec::new();
                for (example, tokens) in examples.iter_mut().enumerate() {
                    for (leaf, token) in tokens.iter_mut().enumerate().rev() {
                        if choose.random_bool(0.3) {
                            *token = draw();
                            rows.extend(*token);
                            leaves.push((example, leaf));
                        }
                    }
                }
                if leaves.is_empty() {
                    continue;
                }
                let new = tensor(rows, 1).squeeze_dim::<2>(0);
                tree.update(&leaves, new, &Squashed).unwrap()
            };
            let expected = rebuilt(&examples, *tree.shape());
            let got = tree.nodes().into_data().iter::<f32>().collect::<Vec<_>>();
            let expected = expected.nodes().into_data().iter::<f32>().collect::<Vec<_>>();
            for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
                prop_assert!((got - expected).abs() <= 1e-6, "{at}: {got}, expected {expected}");
            }
            // Neighbouring appended tokens share ancestors; others are not touched.
            if changed.shape() == changed.shape_before() {
                for (example, before) in before.iter().enumerate() {
                    let new = examples[example].len() - before;
                    let nodes = changed.positions(example).count();
                    let most: usize = (0..=shape_height(&tree))
                        .map(|height| new.div_ceil(tree.shape().span(height)) + 1)
                        .sum();
                    prop_assert!(new == 0 || nodes <= most, "{nodes} nodes for {new} tokens");
                }
            }
        }
    }
}

fn shape_height(tree: &TokenTree) -> usize {
    tree.shape().height()
}
