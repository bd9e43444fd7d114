//! The kernels on the CPU: dense attention by its definition, and that threads change no result. With debug assertions
//! outputs begin as NaN, so that what a kernel leaves unwritten is seen.

use arbora_attention::Dropout;
use arbora_attention::ops::{
    AttentionMask, BlockPrimitive, CandidateInputs, DenseAttentionInputs, DenseAttentionOptions,
    FeedForwardOps, FeedForwardPrimitive, LeafAttentionInputs, LeafAttentionOptions,
    TreeAttentionOps, TreeBuildOptions,
};
use arbora_testing::{device, random, values};
use arbora_tree::{Layout, TokenTreeShape};
use burn::backend::Dispatch;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{Bool, Int, Tensor, TensorData};

type Float = FloatTensor<Dispatch>;

fn numbers<const D: usize>(shape: [usize; D], seed: u64) -> Float {
    random(shape, seed, &device()).into_dispatch()
}

/// Integers by a function of numbers in 0..1.
fn leaves(shape: [usize; 3], seed: u64, leaf: impl Fn(f32) -> i64) -> IntTensor<Dispatch> {
    let numbers = values(random(shape, seed, &device())).into_iter();
    let leaves: Vec<i64> = numbers.map(|number| leaf(0.5 + 0.5 * number)).collect();
    Tensor::<3, Int>::from_data(TensorData::new(leaves, shape), &device()).into_dispatch()
}

fn read<const D: usize>(tensor: Float) -> Vec<f32> {
    values(Tensor::<D>::from_dispatch(tensor))
}

/// Asserts that work returns the same bits on all of some numbers of threads.
fn assert_same_on_threads<const R: usize>(
    threads: [usize; 3],
    work: impl Fn() -> [Vec<f32>; R] + Sync,
) -> [Vec<f32>; R] {
    let results = threads.map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().expect("threads").install(&work)
    });
    let bits = |results: &[Vec<f32>; R]| {
        let bits = results.iter().flatten().map(|number| number.to_bits());
        bits.collect::<Vec<_>>()
    };
    let [first, others @ ..] = results;
    for other in &others {
        assert!(bits(&first) == bits(other));
    }
    first
}

struct Dense {
    sizes: [usize; 7],
    scale: f64,
    query: Float,
    key: Float,
    value: Float,
    mask: Option<Vec<bool>>,
    grad: Float,
}

/// Context, logarithm of the total, and the gradients of query, key and value.
type Results<T> = [Vec<T>; 5];

impl Dense {
    /// - sizes: batch, queries, rows, first_key, heads, head_dim, value_dim
    fn new(sizes: [usize; 7]) -> Self {
        let [batch, queries, rows, _, heads, head_dim, value_dim] = sizes;
        Self {
            sizes,
            scale: 3.0 / (head_dim as f64).sqrt(),
            query: numbers([batch, queries, heads, head_dim], 1),
            key: numbers([batch, rows, heads, head_dim], 2),
            value: numbers([batch, rows, heads, value_dim], 3),
            mask: None,
            grad: numbers([batch, queries, heads, value_dim], 4),
        }
    }

    fn keys(&self) -> usize {
        self.sizes[2] - self.sizes[3]
    }

    fn masked(mut self, masked_out: impl Fn(usize, usize) -> bool) -> Self {
        let keys = self.keys();
        let all = 0..self.sizes[0] * keys;
        self.mask = Some(all.map(|at| masked_out(at / keys, at % keys)).collect());
        self
    }

    fn run(&self) -> Results<f32> {
        let keys = |mask: &Vec<bool>| {
            let data = TensorData::new(mask.clone(), [self.sizes[0], self.keys()]);
            let mask = Tensor::<2, Bool>::from_data(data, &device());
            AttentionMask::Keys(mask.into_dispatch())
        };
        let inputs = DenseAttentionInputs {
            query: self.query.clone(),
            key: self.key.clone(),
            value: self.value.clone(),
            mask: self.mask.as_ref().map_or(AttentionMask::None, keys),
        };
        let options = DenseAttentionOptions {
            first_key: self.sizes[3],
            scale: Some(self.scale),
        };
        let output = Dispatch::dense_attention(inputs.clone(), options);
        let (d_query, d_key, d_value) =
            Dispatch::dense_attention_backward(inputs, output.clone(), self.grad.clone(), options);
        [
            read::<4>(output.context),
            read::<3>(output.lse),
            read::<4>(d_query),
            read::<4>(d_key),
            read::<4>(d_value),
        ]
    }

    /// The definition, in double precision.
    fn exact(&self) -> Results<f64> {
        let [batch, queries, rows, first_key, heads, head_dim, width] = self.sizes;
        let doubles = |tensor: &Float| -> Vec<f64> {
            read::<4>(tensor.clone())
                .into_iter()
                .map(f64::from)
                .collect()
        };
        let [all_q, all_k, all_v, grads] =
            [&self.query, &self.key, &self.value, &self.grad].map(doubles);
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let keeps = |example: usize, row: usize| {
            row >= first_key
                && self
                    .mask
                    .as_ref()
                    .is_none_or(|mask| !mask[example * self.keys() + row - first_key])
        };
        let mut lse = vec![0.0; batch * queries * heads];
        let [mut context, mut d_query, mut d_key, mut d_value] =
            [&grads, &all_q, &all_k, &all_v].map(|like| vec![0.0; like.len()]);
        for (index, lse) in lse.iter_mut().enumerate() {
            let (example, head) = (index / heads / queries, index % heads);
            let (at_query, at_context) = (index * head_dim, index * width);
            let q = &all_q[at_query..][..head_dim];
            let grad = &grads[at_context..][..width];
            let kept: Vec<usize> = (0..rows)
                .filter(|row| keeps(example, *row))
                .map(|row| (example * rows + row) * heads + head)
                .collect();
            let k = |row: usize| &all_k[row * head_dim..][..head_dim];
            let v = |row: usize| &all_v[row * width..][..width];
            let exponentials = kept.iter().map(|row| (self.scale * dot(q, k(*row))).exp());
            let exponentials: Vec<f64> = exponentials.collect();
            let total: f64 = exponentials.iter().sum();
            if !kept.is_empty() {
                *lse = total.ln();
            }
            let weights: Vec<f64> = exponentials.iter().map(|weight| weight / total).collect();
            let d_weights: Vec<f64> = kept.iter().map(|row| dot(grad, v(*row))).collect();
            let mean = dot(&weights, &d_weights);
            for (at, row) in kept.iter().enumerate() {
                let d_logit = weights[at] * (d_weights[at] - mean) * self.scale;
                for column in 0..width {
                    context[at_context + column] += weights[at] * v(*row)[column];
                    d_value[row * width + column] += weights[at] * grad[column];
                }
                for column in 0..head_dim {
                    d_query[at_query + column] += d_logit * k(*row)[column];
                    d_key[row * head_dim + column] += d_logit * q[column];
                }
            }
        }
        [context, lse, d_query, d_key, d_value]
    }

    fn check(&self) {
        let names = ["context", "lse", "d_query", "d_key", "d_value"];
        for ((name, got), exact) in names.into_iter().zip(self.run()).zip(self.exact()) {
            let greatest = exact
                .iter()
                .fold(1.0_f64, |most, number| most.max(number.abs()));
            for (at, (got, exact)) in got.iter().zip(&exact).enumerate() {
                assert!(
                    (f64::from(*got) - exact).abs() <= 4e-6 * greatest,
                    "{name}[{at}]: expected {exact}, got {got}, {:?}",
                    self.sizes
                );
            }
        }
    }
}

#[test]
fn results_are_those_of_the_definition() {
    for sizes in [
        [1, 1, 1, 0, 1, 1, 1],
        [2, 3, 5, 2, 2, 3, 5],
        [3, 33, 67, 3, 2, 5, 1],
        [1, 17, 130, 0, 3, 16, 20],
        [1, 70, 33, 1, 1, 40, 33],
    ] {
        Dense::new(sizes).check();
        Dense::new(sizes)
            .masked(|example, key| (key * 7 + example) % 3 == 1)
            .check();
    }
}

#[test]
fn results_do_not_depend_on_how_the_longer_axis_is_cut() {
    // Few heads: the backward pass sums gradients over chunks of keys, then over chunks of queries.
    Dense::new([1, 20, 600, 10, 1, 4, 4]).check();
    Dense::new([1, 600, 20, 10, 1, 4, 4]).check();
}

#[test]
fn queries_without_keys_are_zero() {
    let cases = [
        Dense::new([2, 5, 3, 3, 2, 4, 3]),
        Dense::new([2, 5, 9, 2, 2, 4, 3]).masked(|_, _| true),
    ];
    for case in cases {
        assert!(case.run().iter().flatten().all(|number| *number == 0.0));
    }
    // Beside an example that has keys.
    Dense::new([2, 5, 9, 2, 2, 4, 3])
        .masked(|example, _| example == 1)
        .check();
}

#[test]
fn empty_batches_and_empty_queries_are_fine() {
    Dense::new([0, 5, 9, 2, 2, 4, 3]).check();
    Dense::new([2, 0, 9, 2, 2, 4, 3]).check();
}

#[test]
fn a_single_key_gives_its_logit_no_gradient() {
    let [context, _, d_query, d_key, _] = Dense::new([2, 40, 3, 2, 2, 5, 7]).run();
    assert!(context.iter().any(|number| *number != 0.0));
    assert!(d_query.iter().chain(&d_key).all(|number| *number == 0.0));
}

#[test]
fn logits_of_any_size_stay_finite() {
    let mut case = Dense::new([1, 20, 150, 0, 1, 8, 8]);
    case.scale = 1e4;
    assert!(case.run().iter().flatten().all(|number| number.is_finite()));
}

#[test]
fn results_of_dense_attention_do_not_depend_on_the_number_of_threads() {
    for sizes in [
        [3, 70, 67, 3, 2, 5, 3],
        [1, 300, 600, 0, 1, 4, 4],
        [1, 600, 300, 0, 1, 4, 4],
    ] {
        let case = Dense::new(sizes);
        assert_same_on_threads([1, 2, 3], || case.run());
    }
}

/// Attention within leaves of 300 queries with two heads to 700 keys with one.
struct Leaves {
    inputs: LeafAttentionInputs<Dispatch>,
    options: LeafAttentionOptions,
    grad: Float,
}

impl Leaves {
    /// - heads: of queries; keys have one
    /// - query_leaf, key_leaf: functions of numbers in 0..1
    fn new(
        [batch, heads]: [usize; 2],
        query_leaf: impl Fn(f32) -> i64,
        key_leaf: impl Fn(f32) -> i64,
    ) -> Self {
        let (queries, keys) = (300, 700);
        Self {
            inputs: LeafAttentionInputs {
                query: numbers([batch, queries, heads, 5], 1),
                key: numbers([batch, keys, 1, 5], 2),
                value: numbers([batch, keys, 1, 7], 3),
                key_bias: numbers([batch, keys, 1], 4),
                query_leaf: leaves([batch, queries, heads], 5, query_leaf),
                key_leaf: leaves([batch, keys, 1], 6, key_leaf),
            },
            options: LeafAttentionOptions {
                scale: Some(0.9),
                causal: Some(350),
                dropout: Some(Dropout { rate: 0.3, seed: 1 }),
                ..LeafAttentionOptions::new(3)
            },
            grad: numbers([batch, queries, heads, 7], 7),
        }
    }

    /// Context, logarithm of the total, the gradients of query, key, value and bias, and that of gates.
    fn run(&self) -> [Vec<f32>; 7] {
        let (inputs, options, grad) = (&self.inputs, self.options, &self.grad);
        let output = Dispatch::leaf_attention(inputs.clone(), options);
        let of = Dispatch::leaf_attention_backward(
            inputs.clone(),
            output.clone(),
            grad.clone(),
            options,
        );
        let candidates = CandidateInputs {
            query: inputs.query.clone(),
            key: inputs.key.clone(),
            value: inputs.value.clone(),
            query_leaf: inputs.query_leaf.clone(),
            candidate_leaf: inputs.key_leaf.clone(),
        };
        let gates =
            Dispatch::candidate_keys_backward(candidates, output.clone(), grad.clone(), options);
        [
            read::<4>(output.context),
            read::<3>(output.lse),
            read::<4>(of.query),
            read::<4>(of.key),
            read::<4>(of.value),
            read::<3>(of.key_bias),
            read::<3>(gates),
        ]
    }
}

#[test]
fn one_leaf_cut_into_parts_is_dense_attention() {
    let mut case = Leaves::new([1, 1], |_| 0, |_| 0);
    case.inputs.key_bias = Tensor::<3>::zeros([1, 700, 1], &device()).into_dispatch();
    case.options = LeafAttentionOptions {
        scale: Some(0.9),
        ..LeafAttentionOptions::new(1)
    };
    let dense = Dense {
        sizes: [1, 300, 700, 0, 1, 5, 7],
        scale: 0.9,
        query: case.inputs.query.clone(),
        key: case.inputs.key.clone(),
        value: case.inputs.value.clone(),
        mask: None,
        grad: case.grad.clone(),
    };
    for (index, (got, expected)) in case.run().iter().zip(dense.run()).enumerate() {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!(
                (got - expected).abs() < 1e-5,
                "{index}: {got}, expected {expected}"
            );
        }
    }
}

#[test]
fn results_of_attention_within_leaves_do_not_depend_on_the_number_of_threads() {
    // Skewed: most rows share a leaf, some have none, and one leaf is empty.
    let skewed = |number| match number {
        0.0..0.1 => -1,
        0.1..0.2 => 2,
        _ => 0,
    };
    let case = Leaves::new([1, 2], skewed, skewed);
    assert_same_on_threads([1, 2, 3], || case.run());
}

#[test]
fn everything_is_written_whatever_the_leaves() {
    for queries_leaf in [-1, 0, 3] {
        for keys_leaf in [-1, 0, 1, 3] {
            let case = Leaves::new([2, 2], |_| queries_leaf, |_| keys_leaf);
            assert!(case.run().iter().flatten().all(|number| number.is_finite()));
        }
    }
}

fn feed_forward(dim: usize, ff: usize) -> FeedForwardPrimitive<Dispatch> {
    FeedForwardPrimitive {
        norm_gamma: numbers([dim], 11),
        norm_beta: numbers([dim], 12),
        inner: numbers([dim, 2 * ff], 13),
        inner_bias: numbers([2 * ff], 14),
        outer: numbers([ff, dim], 15),
        outer_bias: numbers([dim], 16),
    }
}

fn read_feed_forward(weights: FeedForwardPrimitive<Dispatch>) -> [Vec<f32>; 6] {
    [
        read::<1>(weights.norm_gamma),
        read::<1>(weights.norm_beta),
        read::<2>(weights.inner),
        read::<1>(weights.inner_bias),
        read::<2>(weights.outer),
        read::<1>(weights.outer_bias),
    ]
}

#[test]
fn results_of_a_feed_forward_part_do_not_depend_on_the_number_of_threads() {
    for (rows, dim, ff) in [(0, 8, 4), (1, 8, 4), (300, 24, 20), (9001, 13, 7)] {
        let weights = feed_forward(dim, ff);
        let (input, grad) = (numbers([rows, dim], 2), numbers([rows, dim], 3));
        let results = assert_same_on_threads([1, 2, 5], || {
            let outputs = Dispatch::feed_forward(input.clone(), weights.clone(), 1e-5);
            let of =
                Dispatch::feed_forward_backward(input.clone(), weights.clone(), grad.clone(), 1e-5);
            let d_weights = read_feed_forward(of.weights).concat();
            [read::<2>(outputs), read::<2>(of.rows), d_weights]
        });
        assert!(results.iter().flatten().all(|number| number.is_finite()));
    }
}

#[test]
fn results_of_a_tree_build_do_not_depend_on_the_number_of_threads() {
    let (batch, dim, ff) = (9, 24, 20);
    let block = BlockPrimitive::<Dispatch> {
        norm_gamma: numbers([dim], 21),
        norm_beta: numbers([dim], 22),
        query: numbers([dim, dim], 23),
        key: numbers([dim, dim], 24),
        value: numbers([dim, dim], 25),
        output: numbers([dim, dim], 26),
        output_bias: numbers([dim], 27),
        feed_forward: feed_forward(dim, ff),
    };
    for (tokens, branching, layout) in [
        (150, 2, Layout::LeftFilled),
        (100, 3, Layout::Published),
        (90, 5, Layout::LeftFilled),
    ] {
        let shape = TokenTreeShape::new(tokens, branching, layout);
        let leaves = numbers([batch, shape.width(0), dim], 2);
        let grad = numbers([batch, shape.nodes(), dim], 3);
        let lengths: Vec<i64> = (0..batch).map(|at| (tokens * at / 8) as i64).collect();
        let lengths = Tensor::<1, Int>::from_data(lengths.as_slice(), &device()).into_dispatch();
        for detach_children in [true, false] {
            let options = TreeBuildOptions {
                shape,
                heads: 3,
                epsilon: 1e-5,
                detach_children,
            };
            let results = assert_same_on_threads([1, 2, 5], || {
                let (leaves, lengths, block) = (leaves.clone(), lengths.clone(), block.clone());
                let nodes = Dispatch::tree_build(leaves, lengths.clone(), block.clone(), options);
                let of = Dispatch::tree_build_backward(
                    nodes.clone(),
                    lengths,
                    block,
                    grad.clone(),
                    options,
                );
                let d_weights = [
                    read::<1>(of.block.norm_gamma),
                    read::<1>(of.block.norm_beta),
                    read::<2>(of.block.query),
                    read::<2>(of.block.key),
                    read::<2>(of.block.value),
                    read::<2>(of.block.output),
                    read::<1>(of.block.output_bias),
                    read_feed_forward(of.block.feed_forward).concat(),
                ];
                [read::<3>(nodes), read::<3>(of.leaves), d_weights.concat()]
            });
            assert!(results.iter().flatten().all(|number| number.is_finite()));
        }
    }
}
