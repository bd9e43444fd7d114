//! The tree build and the feed-forward part.

use super::{
    Float, Input, Numbers, Operator, Output, Place, Scaling, drawn, gradients, integers, length,
    long,
};
use arbora::attention::ops::{
    BlockPrimitive, FeedForwardGradients, FeedForwardOps, FeedForwardPrimitive, TreeAttentionOps,
    TreeBuildGradients, TreeBuildOptions, reference,
};
use arbora::tree::{Layout, TokenTreeShape};
use burn::backend::Dispatch;
use burn::backend::tensor::IntTensor;
use burn::tensor::Device;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

const EPSILON: f64 = 1e-5;

/// Normalisations amplify rounding where a row is nearly constant, and gradients of weights are sums over all rows.
const TOLERANCE: f64 = 2e-3;

/// Rows may be this large: their squares are summed. Their gradients are of the size of what they come from.
const ROWS: i32 = 15;
const WEIGHTS: i32 = 0;

fn vector(width: usize) -> Input {
    Input::new([width], WEIGHTS, Scaling::None).shared()
}

fn matrix(from: usize, to: usize) -> Input {
    Input {
        size: (3.0 / from as f64).sqrt(),
        ..Input::new([from, to], WEIGHTS, Scaling::None).shared()
    }
}

/// The inputs of a feed-forward part with its normalisation.
fn part(dim: usize, ff: usize) -> [Input; 6] {
    [
        vector(dim),
        vector(dim),
        matrix(dim, 2 * ff),
        vector(2 * ff),
        matrix(ff, dim),
        vector(dim),
    ]
}

/// The same of its tensors.
fn part_of(mut next: impl FnMut() -> Float) -> FeedForwardPrimitive<Dispatch> {
    FeedForwardPrimitive {
        norm_gamma: next(),
        norm_beta: next(),
        inner: next(),
        inner_bias: next(),
        outer: next(),
        outer_bias: next(),
    }
}

/// What comes out, the gradient of the rows that go in, and those of so many weights. Gradients of earlier weights are sums of
/// products of those of later ones, and what is no number in one example is none in any of a weight.
fn outputs(names: [&'static str; 2], weights: usize, scale: f64) -> Vec<Output> {
    let output = |name, unit| Output {
        tolerance: TOLERANCE,
        ..Output::new(name, unit)
    };
    let gradient = |name| Output {
        is_together: true,
        ..output(name, scale)
    };
    let mut outputs = vec![output(names[0], 1.0), gradient(names[1])];
    outputs.extend(drawn(weights, || {
        gradient("gradient of a weight").examples(None)
    }));
    outputs
}

/// Output and gradients by a reference: of rows, of the gradient of its output, which has none, and of weights.
fn differentiated(
    inputs: &[Numbers],
    place: &mut Place,
    reference: impl FnOnce(Float, &[Float]) -> Float,
) -> Vec<Numbers> {
    let rows = place.tracked(&inputs[0]);
    let gradient = place.float(&inputs[1]);
    let mut tracked = vec![rows.clone()];
    tracked.extend(inputs[2..].iter().map(|weight| place.tracked(weight)));
    let output = reference(rows, &tracked[1..]);
    let mut found = vec![Numbers::of(output.clone())];
    found.extend(gradients(&output, gradient, &tracked));
    found
}

#[derive(Debug)]
pub struct TreeBuild {
    lengths: Vec<i64>,
    dim: usize,
    ff: usize,
    options: TreeBuildOptions,
}

impl TreeBuild {
    fn lengths(&self, device: &Device) -> IntTensor<Dispatch> {
        integers(&self.lengths, [self.lengths.len()], device).into_dispatch()
    }
}

/// Weights in the order of the inputs.
fn block(weights: &[Float]) -> BlockPrimitive<Dispatch> {
    let mut weights = weights.iter().cloned();
    let mut next = || weights.next().expect("there are thirteen");
    BlockPrimitive {
        norm_gamma: next(),
        norm_beta: next(),
        query: next(),
        key: next(),
        value: next(),
        output: next(),
        output_bias: next(),
        feed_forward: part_of(next),
    }
}

impl Operator for TreeBuild {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let (tokens, branching) = (rng.random_range(1..16), rng.random_range(2..5));
        let layout = [Layout::LeftFilled, Layout::Published][rng.random_range(0..2)];
        let heads = rng.random_range(1..4);
        let batch = length(rng, 1..4);
        let batch = long(rng).map_or(batch, |long| long / 8);
        Self {
            lengths: drawn(batch, || rng.random_range(0..=tokens as i64)),
            dim: heads * [1, 2, 3, 5, 8][rng.random_range(0..5)],
            ff: [1, 2, 5, 16][rng.random_range(0..4)],
            options: TreeBuildOptions {
                shape: TokenTreeShape::new(tokens, branching, layout),
                heads,
                epsilon: EPSILON,
                detach_children: rng.random(),
            },
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let (batch, dim, ff) = (self.lengths.len(), self.dim, self.ff);
        let shape = &self.options.shape;
        let mut inputs = vec![
            Input::new([batch, shape.width(0), dim], ROWS, Scaling::None),
            Input::new([batch, shape.nodes(), dim], 5, Scaling::Free),
            vector(dim),
            vector(dim),
            matrix(dim, dim),
            matrix(dim, dim),
            matrix(dim, dim),
            matrix(dim, dim),
            vector(dim),
        ];
        inputs.extend(part(dim, ff));
        inputs
    }

    fn outputs(&self, scales: &[f64]) -> Vec<Output> {
        outputs(["nodes", "gradient of leaves"], 13, scales[1])
    }

    fn kernel(&self, inputs: Vec<Float>, device: &Device) -> Vec<Numbers> {
        let (leaves, grad) = (inputs[0].clone(), inputs[1].clone());
        let (block, lengths) = (block(&inputs[2..]), self.lengths(device));
        let nodes = Dispatch::tree_build(leaves, lengths.clone(), block.clone(), self.options);
        let TreeBuildGradients { leaves, block } =
            Dispatch::tree_build_backward(nodes.clone(), lengths, block, grad, self.options);
        let mut found = vec![nodes, leaves];
        block.map::<Dispatch>(|weight| {
            found.push(weight.clone());
            weight
        });
        found.into_iter().map(Numbers::of).collect()
    }

    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Numbers> {
        let lengths = self.lengths(&place.device);
        differentiated(inputs, place, |leaves, weights| {
            reference::tree_build::<Dispatch>(leaves, lengths, block(weights), self.options)
        })
    }
}

#[derive(Debug)]
pub struct FeedForward {
    rows: usize,
    dim: usize,
    ff: usize,
}

/// Weights in the order of the inputs.
fn feed_forward(weights: &[Float]) -> FeedForwardPrimitive<Dispatch> {
    let mut weights = weights.iter().cloned();
    part_of(|| weights.next().expect("there are six"))
}

impl Operator for FeedForward {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let sizes = [1, 2, 3, 7, 16, 17];
        let rows = length(rng, 1..40);
        Self {
            rows: long(rng).unwrap_or(rows),
            dim: sizes[rng.random_range(0..6)],
            ff: sizes[rng.random_range(0..6)],
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let rows = [self.rows, self.dim];
        let mut inputs = vec![
            Input::new(rows, ROWS, Scaling::None),
            Input::new(rows, 5, Scaling::Free),
        ];
        inputs.extend(part(self.dim, self.ff));
        inputs
    }

    fn outputs(&self, scales: &[f64]) -> Vec<Output> {
        outputs(["output", "gradient of rows"], 6, scales[1])
    }

    fn kernel(&self, inputs: Vec<Float>, _: &Device) -> Vec<Numbers> {
        let (rows, grad) = (inputs[0].clone(), inputs[1].clone());
        let part = feed_forward(&inputs[2..]);
        let output = Dispatch::feed_forward(rows.clone(), part.clone(), EPSILON);
        let FeedForwardGradients { rows, weights } =
            Dispatch::feed_forward_backward(rows, part, grad, EPSILON);
        let mut found = vec![output, rows];
        weights.map::<Dispatch>(|weight| {
            found.push(weight.clone());
            weight
        });
        found.into_iter().map(Numbers::of).collect()
    }

    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Numbers> {
        differentiated(inputs, place, |rows, weights| {
            reference::feed_forward::<Dispatch>(rows, feed_forward(weights), EPSILON)
        })
    }
}
