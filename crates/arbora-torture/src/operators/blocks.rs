//! The tree build and the feed-forward part.

use super::{
    Input, Numbers, Operator, Output, Place, Scaling, backward, drawn, gradient, length, long,
};
use arbora::attention::ops::TreeAttentionOps;
use arbora::attention::ops::TreeBuildOptions;
use arbora::attention::ops::{
    BlockPrimitive, FeedForwardGradients, FeedForwardOps, FeedForwardPrimitive, TreeBuildGradients,
    reference,
};
use arbora::tree::{Layout, TokenTreeShape};
use burn::backend::Dispatch;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{Gradients, Tensor};
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

type Float = FloatTensor<Dispatch>;

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

/// A weight, whose rank is 1 or 2.
#[derive(Clone)]
enum Weight {
    Vector(Tensor<1>),
    Matrix(Tensor<2>),
}

impl Weight {
    fn new(numbers: &Numbers, place: &mut Place, is_tracked: bool) -> Self {
        match (numbers.dims.len(), is_tracked) {
            (1, false) => Self::Vector(place.tensor(numbers)),
            (1, true) => Self::Vector(place.tracked(numbers)),
            (_, false) => Self::Matrix(place.tensor(numbers)),
            (_, true) => Self::Matrix(place.tracked(numbers)),
        }
    }

    fn primitive(&self) -> Float {
        match self.clone() {
            Self::Vector(tensor) => tensor.into_dispatch(),
            Self::Matrix(tensor) => tensor.into_dispatch(),
        }
    }

    /// Its gradient as an output: what is no number in one example is none in it.
    fn output(&self, gradients: &Gradients, unit: f64) -> Output {
        match self {
            Self::Vector(tensor) => of_weight(gradient(tensor, gradients), unit),
            Self::Matrix(tensor) => of_weight(gradient(tensor, gradients), unit),
        }
    }
}

/// The gradient of a shared weight: what is no number in one example is none in it.
fn of_weight<const D: usize>(tensor: Tensor<D>, unit: f64) -> Output {
    of_rows("gradient of a weight", tensor, unit).examples(None)
}

/// The gradient of a weight of this rank.
fn of_primitive(tensor: Float, rank: usize, unit: f64) -> Output {
    match rank {
        1 => of_weight(Tensor::<1>::from_dispatch(tensor), unit),
        _ => of_weight(Tensor::<2>::from_dispatch(tensor), unit),
    }
}

fn of_rows<const D: usize>(name: &'static str, tensor: Tensor<D>, unit: f64) -> Output {
    Output {
        tolerance: TOLERANCE,
        ..Output::new(name, tensor, unit)
    }
}

/// Gradients with the unit of the largest of them: those of earlier weights are sums of products of those of later ones.
fn together(mut outputs: Vec<Output>) -> Vec<Output> {
    let all = outputs[1..].iter().flat_map(|output| &output.values);
    let largest = all.fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for output in &mut outputs[1..] {
        output.unit = f64::from(largest);
    }
    outputs
}

#[derive(Debug)]
pub struct TreeBuild {
    lengths: Vec<i64>,
    dim: usize,
    ff: usize,
    options: TreeBuildOptions,
}

impl TreeBuild {
    /// The weights, in the order of `inputs`.
    fn block(&self, weights: &[Weight]) -> BlockPrimitive<Dispatch> {
        let mut weights = weights.iter().map(Weight::primitive);
        let mut next = || weights.next().expect("there are thirteen");
        BlockPrimitive {
            norm_gamma: next(),
            norm_beta: next(),
            query: next(),
            key: next(),
            value: next(),
            output: next(),
            output_bias: next(),
            feed_forward: FeedForwardPrimitive {
                norm_gamma: next(),
                norm_beta: next(),
                inner: next(),
                inner_bias: next(),
                outer: next(),
                outer_bias: next(),
            },
        }
    }

    fn lengths(&self, place: &Place) -> IntTensor<Dispatch> {
        let lengths = place.integers(&self.lengths, [self.lengths.len()]);
        lengths.into_dispatch()
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
        vec![
            Input::new([batch, shape.width(0), dim], ROWS, Scaling::None),
            Input::new([batch, shape.nodes(), dim], 5, Scaling::Free),
            vector(dim),
            vector(dim),
            matrix(dim, dim),
            matrix(dim, dim),
            matrix(dim, dim),
            matrix(dim, dim),
            vector(dim),
            vector(dim),
            vector(dim),
            matrix(dim, 2 * ff),
            vector(2 * ff),
            matrix(ff, dim),
            vector(dim),
        ]
    }

    fn kernel(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Output> {
        let leaves = place.tensor::<3>(&inputs[0]).into_dispatch();
        let grad = place.tensor::<3>(&inputs[1]).into_dispatch();
        let weights = inputs[2..].iter();
        let weights: Vec<_> = weights.map(|one| Weight::new(one, place, false)).collect();
        let (block, lengths) = (self.block(&weights), self.lengths(place));
        let nodes = Dispatch::tree_build(leaves, lengths.clone(), block.clone(), self.options);
        let TreeBuildGradients { leaves, block } =
            Dispatch::tree_build_backward(nodes.clone(), lengths, block, grad, self.options);
        let unit = inputs[1].scale;
        let mut outputs = vec![
            of_rows("nodes", Tensor::<3>::from_dispatch(nodes), 1.0),
            of_rows(
                "gradient of leaves",
                Tensor::<3>::from_dispatch(leaves),
                unit,
            ),
        ];
        let mut ranks = inputs[2..].iter().map(|input| input.dims.len());
        block.map::<Dispatch>(|weight: Float| {
            let rank = ranks.next().expect("there are thirteen");
            outputs.push(of_primitive(weight.clone(), rank, unit));
            weight
        });
        outputs
    }

    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Output> {
        let leaves = place.tracked::<3>(&inputs[0]);
        let grad = place.tensor::<3>(&inputs[1]);
        let weights = inputs[2..].iter();
        let weights: Vec<_> = weights.map(|one| Weight::new(one, place, true)).collect();
        let nodes = Tensor::<3>::from_dispatch(reference::tree_build::<Dispatch>(
            leaves.clone().into_dispatch(),
            self.lengths(place),
            self.block(&weights),
            self.options,
        ));
        let (gradients, unit) = (backward(nodes.clone(), grad, &leaves), inputs[1].scale);
        let mut outputs = vec![
            of_rows("nodes", nodes.inner(), 1.0),
            of_rows("gradient of leaves", gradient(&leaves, &gradients), unit),
        ];
        outputs.extend(weights.iter().map(|weight| weight.output(&gradients, unit)));
        together(outputs)
    }
}

#[derive(Debug)]
pub struct FeedForward {
    rows: usize,
    dim: usize,
    ff: usize,
}

impl FeedForward {
    /// The weights, in the order of `inputs`.
    fn part(&self, weights: &[Weight]) -> FeedForwardPrimitive<Dispatch> {
        let mut weights = weights.iter().map(Weight::primitive);
        let mut next = || weights.next().expect("there are six");
        FeedForwardPrimitive {
            norm_gamma: next(),
            norm_beta: next(),
            inner: next(),
            inner_bias: next(),
            outer: next(),
            outer_bias: next(),
        }
    }
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
        let Self { rows, dim, ff } = *self;
        vec![
            Input::new([rows, dim], ROWS, Scaling::None),
            Input::new([rows, dim], 5, Scaling::Free),
            vector(dim),
            vector(dim),
            matrix(dim, 2 * ff),
            vector(2 * ff),
            matrix(ff, dim),
            vector(dim),
        ]
    }

    fn kernel(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Output> {
        let rows = place.tensor::<2>(&inputs[0]).into_dispatch();
        let grad = place.tensor::<2>(&inputs[1]).into_dispatch();
        let weights = inputs[2..].iter();
        let weights: Vec<_> = weights.map(|one| Weight::new(one, place, false)).collect();
        let part = self.part(&weights);
        let output = Dispatch::feed_forward(rows.clone(), part.clone(), EPSILON);
        let FeedForwardGradients { rows, weights } =
            Dispatch::feed_forward_backward(rows, part, grad, EPSILON);
        let unit = inputs[1].scale;
        let mut outputs = vec![
            of_rows("output", Tensor::<2>::from_dispatch(output), 1.0),
            of_rows("gradient of rows", Tensor::<2>::from_dispatch(rows), unit),
        ];
        let mut ranks = inputs[2..].iter().map(|input| input.dims.len());
        weights.map::<Dispatch>(|weight: Float| {
            let rank = ranks.next().expect("there are six");
            outputs.push(of_primitive(weight.clone(), rank, unit));
            weight
        });
        outputs
    }

    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Output> {
        let rows = place.tracked::<2>(&inputs[0]);
        let grad = place.tensor::<2>(&inputs[1]);
        let weights = inputs[2..].iter();
        let weights: Vec<_> = weights.map(|one| Weight::new(one, place, true)).collect();
        let output = Tensor::<2>::from_dispatch(reference::feed_forward::<Dispatch>(
            rows.clone().into_dispatch(),
            self.part(&weights),
            EPSILON,
        ));
        let (gradients, unit) = (backward(output.clone(), grad, &rows), inputs[1].scale);
        let mut outputs = vec![
            of_rows("output", output.inner(), 1.0),
            of_rows("gradient of rows", gradient(&rows, &gradients), unit),
        ];
        outputs.extend(weights.iter().map(|weight| weight.output(&gradients, unit)));
        together(outputs)
    }
}
