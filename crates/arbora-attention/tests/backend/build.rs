//! Building trees by a transformer block, against the block composed of plain tensor operations.

use arbora_attention::functions::{BlockWeights, FeedForwardWeights, tree_build};
use arbora_attention::ops::TreeBuildOptions;
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{allowed, assert_close, autodiff_device, device, random, random_data, values};
use arbora_tree::token::masked_mean;
use arbora_tree::{Aggregator, Layout, TokenTreeShape};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};

const DIM: usize = 6;
const FF: usize = 5;

fn lengths(values: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.iter().map(|length| *length as i64).collect();
    Tensor::from_data(TensorData::new(values.clone(), [values.len()]), device)
}

fn options(shape: TokenTreeShape, detach_children: bool) -> TreeBuildOptions {
    TreeBuildOptions {
        shape,
        heads: 2,
        epsilon: 1e-5,
        detach_children,
    }
}

/// Random weights that record gradients where the device does.
fn weights(device: &Device) -> BlockWeights {
    let vector = |width: usize, seed: u64, around: f64| {
        with_grad(random([width], seed, device) * 0.3 + around)
    };
    let matrix = |from: usize, to: usize, seed: u64| with_grad(random([from, to], seed, device));
    BlockWeights {
        norm_gamma: vector(DIM, 1, 1.0),
        norm_beta: vector(DIM, 2, 0.0),
        query: matrix(DIM, DIM, 3),
        key: matrix(DIM, DIM, 4),
        value: matrix(DIM, DIM, 5),
        output: matrix(DIM, DIM, 6),
        output_bias: vector(DIM, 7, 0.0),
        feed_forward: FeedForwardWeights {
            norm_gamma: vector(DIM, 8, 1.0),
            norm_beta: vector(DIM, 9, 0.0),
            inner: matrix(DIM, 2 * FF, 10),
            inner_bias: vector(2 * FF, 11, 0.0),
            outer: matrix(FF, DIM, 12),
            outer_bias: vector(DIM, 13, 0.0),
        },
    }
}

fn with_grad<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.device().is_autodiff() {
        tensor.detach().require_grad()
    } else {
        tensor
    }
}

/// The same block, one level at a time, as its formula says.
struct Composed {
    block: BlockWeights,
    options: TreeBuildOptions,
}

fn normalise(rows: Tensor<3>, gamma: &Tensor<1>, beta: &Tensor<1>, epsilon: f64) -> Tensor<3> {
    let centred = rows.clone() - rows.mean_dim(2);
    let variance = (centred.clone() * centred.clone()).mean_dim(2);
    centred / (variance + epsilon).sqrt() * gamma.clone().reshape([1, 1, DIM])
        + beta.clone().reshape([1, 1, DIM])
}

impl Aggregator for Composed {
    fn aggregate(&self, children: Tensor<3>, leaves: Tensor<2, Int>) -> Tensor<2> {
        let mask = leaves.equal_elem(0);
        let (block, heads) = (&self.block, self.options.heads);
        let x = if self.options.detach_children {
            children.detach()
        } else {
            children
        };
        let [groups, siblings, _] = x.dims();
        let linear = |rows: Tensor<3>, weight: &Tensor<2>| rows.matmul(weight.clone().unsqueeze());
        let by_head = |rows: Tensor<3>| {
            rows.reshape([groups, siblings, heads, DIM / heads])
                .swap_dims(1, 2)
        };
        let epsilon = self.options.epsilon;
        let normed = normalise(x.clone(), &block.norm_gamma, &block.norm_beta, epsilon);
        let query = by_head(linear(normed.clone(), &block.query));
        let key = by_head(linear(x.clone(), &block.key));
        let value = by_head(linear(x, &block.value));
        let logits = query.matmul(key.transpose()) / ((DIM / heads) as f64).sqrt();
        let hidden = mask.clone().reshape([groups, 1, 1, siblings]);
        let logits = logits.mask_fill(hidden.expand([groups, heads, siblings, siblings]), -1e4);
        let context = softmax(logits, 3)
            .matmul(value)
            .swap_dims(1, 2)
            .reshape([groups, siblings, DIM]);
        let bias = |bias: &Tensor<1>| bias.clone().unsqueeze::<3>();
        let y = linear(context, &block.output) + bias(&block.output_bias) + normed;
        let part = &block.feed_forward;
        let normed = normalise(y, &part.norm_gamma, &part.norm_beta, epsilon);
        let inner = linear(normed.clone(), &part.inner) + bias(&part.inner_bias);
        let fed = |gated| linear(gated, &part.outer) + bias(&part.outer_bias);
        let part = |first: usize| {
            inner
                .clone()
                .slice([0..groups, 0..siblings, first..first + FF])
        };
        // Not burn's `gelu`, whose gradient some backends take from its approximation by tanh.
        let gate = part(FF);
        let gelu = gate.clone() * ((gate / 2f64.sqrt()).erf() + 1.0) / 2.0;
        let gated = part(0) * gelu;
        let output = fed(gated) + normed;
        masked_mean(output, mask)
    }
}

fn shapes() -> impl Iterator<Item = TokenTreeShape> {
    [(1, 2), (2, 2), (7, 2), (4, 3), (11, 3), (13, 5)]
        .into_iter()
        .flat_map(|(tokens, branching)| {
            [Layout::LeftFilled, Layout::Published]
                .map(|layout| TokenTreeShape::new(tokens, branching, layout))
        })
}

/// Examples of all kinds of lengths, none and one token included.
fn ragged(shape: &TokenTreeShape) -> [usize; 4] {
    let tokens = shape.tokens();
    [tokens, 0, 1, tokens.div_ceil(2)]
}

#[test]
fn a_build_is_its_levels_composed() {
    let device = device();
    for shape in shapes() {
        let real = lengths(&ragged(&shape), &device);
        let leaves = random([4, shape.width(0), DIM], 20, &device);
        let (block, options) = (weights(&device), options(shape, true));
        let built = tree_build(leaves.clone(), real.clone(), block.clone(), options);
        let composed = Composed { block, options }.nodes(leaves, real, &shape);
        assert_close(built, composed, 2e-5, 2e-5);
    }
}

/// The gradients of a loss over all nodes: of the leaves first, then of every weight.
fn gradients(
    shape: TokenTreeShape,
    detach: bool,
    build: impl Fn(Tensor<3>, Tensor<1, Int>, BlockWeights, TreeBuildOptions) -> Tensor<3>,
) -> Vec<(&'static str, Vec<f32>)> {
    let device = autodiff_device();
    let leaves = random([4, shape.width(0), DIM], 20, &device).require_grad();
    let block = weights(&device);
    let real = lengths(&ragged(&shape), &device);
    let nodes = build(leaves.clone(), real, block.clone(), options(shape, detach));
    let readout = random([4, shape.nodes(), DIM], 21, &device);
    let found = (nodes * readout).sum().backward();

    let mut all = vec![("leaves", leaves.grad(&found).map(values))];
    for (name, vector) in [
        ("norm_gamma", &block.norm_gamma),
        ("norm_beta", &block.norm_beta),
        ("output_bias", &block.output_bias),
        ("feed_forward.norm_gamma", &block.feed_forward.norm_gamma),
        ("feed_forward.norm_beta", &block.feed_forward.norm_beta),
        ("inner_bias", &block.feed_forward.inner_bias),
        ("outer_bias", &block.feed_forward.outer_bias),
    ] {
        all.push((name, vector.grad(&found).map(values)));
    }
    for (name, matrix) in [
        ("query", &block.query),
        ("key", &block.key),
        ("value", &block.value),
        ("output", &block.output),
        ("inner", &block.feed_forward.inner),
        ("outer", &block.feed_forward.outer),
    ] {
        all.push((name, matrix.grad(&found).map(values)));
    }
    // A tree of one token uses no weight, and then a graph need not mention it.
    all.into_iter()
        .map(|(name, gradient)| (name, gradient.unwrap_or_default()))
        .collect()
}

#[test]
fn gradients_of_a_build_are_those_of_its_levels_composed() {
    if arbora_testing::skipped_in_half_precision("the composition rounds after every operation") {
        return;
    }
    for shape in shapes() {
        for detach in [true, false] {
            let built = gradients(shape, detach, tree_build);
            let composed = gradients(shape, detach, |leaves, real, block, options| {
                let shape = options.shape;
                Composed { block, options }.nodes(leaves, real, &shape)
            });
            for ((name, built), (_, composed)) in built.into_iter().zip(composed) {
                let at = |gradient: &[f32], index: usize| gradient.get(index).copied();
                // Sums over rows: the error grows with the largest of them.
                let largest = composed.iter().fold(1.0f32, |most, x| most.max(x.abs()));
                for index in 0..built.len().max(composed.len()) {
                    let got = at(&built, index).unwrap_or(0.0);
                    let expected = at(&composed, index).unwrap_or(0.0);
                    assert!(
                        (got - expected).abs() <= allowed(1e-4) * largest,
                        "{name}[{index}], {shape:?}, detach {detach}: {got}, expected {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn gradients_are_finite_differences() {
    let shape = TokenTreeShape::new(5, 2, Layout::LeftFilled);
    let loss = |leaves: Tensor<3>, change: &dyn Fn(&mut BlockWeights)| {
        let device = leaves.device();
        let mut block = weights(&device);
        change(&mut block);
        let real = lengths(&[5, 3], &device);
        let nodes = tree_build(leaves, real, block, options(shape, false));
        (nodes * random([2, shape.nodes(), DIM], 21, &device)).sum()
    };
    let leaves = random_data([2, shape.width(0), DIM], 20);
    assert_matches_finite_differences(leaves.clone(), &device(), 1e-2, 2e-2, |leaves| {
        loss(leaves, &|_| ())
    });
    for (seed, field) in [
        (
            3,
            (|block, weight| block.query = weight) as fn(&mut BlockWeights, Tensor<2>),
        ),
        (5, |block, weight| block.value = weight),
        (6, |block, weight| block.output = weight),
    ] {
        let weight = random_data([DIM, DIM], seed);
        assert_matches_finite_differences(weight, &device(), 1e-2, 2e-2, |weight| {
            let leaves = Tensor::from_data(leaves.clone(), &weight.device());
            loss(leaves, &|block| field(block, weight.clone()))
        });
    }
}

#[test]
fn what_ghost_leaves_hold_changes_nothing() {
    let device = device();
    for layout in [Layout::LeftFilled, Layout::Published] {
        let shape = TokenTreeShape::new(7, 3, layout);
        let slots = shape.width(0);
        let real = [7, 4, 0];
        let build = |ghost: f32| {
            let data = random_data([3, slots, DIM], 20);
            let mut leaves: Vec<f32> = data.iter::<f32>().collect();
            for (example, length) in real.iter().enumerate() {
                leaves[(example * slots + length) * DIM..(example + 1) * slots * DIM].fill(ghost);
            }
            tree_build(
                Tensor::from_data(TensorData::new(leaves, [3, slots, DIM]), &device),
                lengths(&real, &device),
                weights(&device),
                options(shape, true),
            )
        };
        assert_close(build(1e6), build(0.0), 0.0, 0.0);
    }
}

#[test]
fn negative_lengths_are_zero() {
    let device = device();
    let shape = TokenTreeShape::new(7, 3, Layout::LeftFilled);
    let build = |lengths: [i64; 2]| {
        tree_build(
            random([2, shape.width(0), DIM], 20, &device),
            Tensor::from_data(TensorData::from(lengths), &device),
            weights(&device),
            options(shape, true),
        )
    };
    assert_close(build([-2, 7]), build([0, 7]), 0.0, 0.0);
}

#[test]
fn an_example_does_not_see_the_others() {
    let device = device();
    let shape = TokenTreeShape::new(9, 2, Layout::LeftFilled);
    let leaves = random([3, 9, DIM], 20, &device);
    let build = |leaves: Tensor<3>, real: &[usize]| {
        tree_build(
            leaves,
            lengths(real, &device),
            weights(&device),
            options(shape, true),
        )
    };
    let together = build(leaves.clone(), &[9, 5, 8]);
    for (example, length) in [9, 5, 8].into_iter().enumerate() {
        let alone = leaves.clone().slice([example..example + 1, 0..9, 0..DIM]);
        let expected = together
            .clone()
            .slice([example..example + 1, 0..shape.nodes(), 0..DIM]);
        assert_close(build(alone, &[length]), expected, 1e-5, 1e-5);
    }
}

#[test]
fn inputs_need_not_be_contiguous() {
    let device = device();
    let shape = TokenTreeShape::new(6, 2, Layout::LeftFilled);
    let real = lengths(&[6, 4], &device);
    let block = weights(&device);
    let leaves = random([2, 6, DIM], 20, &device);
    let expected = tree_build(
        leaves.clone(),
        real.clone(),
        block.clone(),
        options(shape, true),
    );
    // The same values, laid out the other way around.
    let turned = |matrix: Tensor<2>| {
        let [rows, columns] = matrix.dims();
        let data = TensorData::new(values(matrix.transpose()), [columns, rows]);
        Tensor::<2>::from_data(data, &device).transpose()
    };
    let block = BlockWeights {
        query: turned(block.query),
        feed_forward: FeedForwardWeights {
            inner: turned(block.feed_forward.inner),
            outer: turned(block.feed_forward.outer),
            ..block.feed_forward
        },
        ..block
    };
    let data = TensorData::new(values(leaves.swap_dims(1, 2)), [2, DIM, 6]);
    let leaves = Tensor::<3>::from_data(data, &device).swap_dims(1, 2);
    let got = tree_build(leaves, real, block, options(shape, true));
    assert_close(got, expected, 1e-5, 1e-5);
}

#[test]
#[should_panic(expected = "tree_build: query [dim, dim]: expected [6, 6], got [6, 5]")]
fn a_weight_of_another_width_is_refused() {
    let device = device();
    let shape = TokenTreeShape::new(3, 2, Layout::LeftFilled);
    let block = BlockWeights {
        query: random([DIM, 5], 3, &device),
        ..weights(&device)
    };
    let leaves = random([1, 3, DIM], 20, &device);
    tree_build(leaves, lengths(&[3], &device), block, options(shape, true));
}
