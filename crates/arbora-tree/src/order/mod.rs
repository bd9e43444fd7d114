//! In what order tokens become leaves.
//!
//! An order puts an example's real tokens first and its masked tokens last, so every tree is filled
//! from the left. Ties are broken by token position. The sort runs on the host: it is exact, stable
//! and the same on every backend (burn's own sorts are not stable, and run on the host for most
//! backends too). Reading points back waits for the device once per tree.

mod clusters;
mod directions;
mod points;

pub(crate) use self::directions::normal_draws;
use self::points::Points;
use crate::shape::TokenTreeShape;
use crate::tensors::{counting, expect_equal, expect_some, int_tensor};
use burn::tensor::{Bool, Int, Tensor};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How tokens are ordered into leaves.
///
/// With [`Layout::LeftFilled`](crate::Layout::LeftFilled) no order depends on how many masked tokens
/// pad an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenOrder {
    /// As the tokens come.
    #[default]
    Given,
    /// By one coordinate, ascending. The published image experiments sort by row or by column.
    Axis(usize),
    /// k-d tree: at each node the tokens are sorted along one coordinate and cut at the capacities
    /// of the node's children. The coordinate alternates with the height above the leaves: nodes of
    /// height `h` cut along coordinate `(h - 1) mod dim`.
    KdTree,
    /// Along the Morton (Z-order) curve through each example's bounding box.
    Morton,
    /// Ball tree: at each node the tokens are sorted along the direction of greatest spread and cut
    /// at the capacities of the node's children. The direction leads from the point farthest from
    /// the centroid to the point farthest from that one: two passes, where a principal axis takes an
    /// iteration (Omohundro 1989, "Five Balltree Construction Algorithms", splits nodes likewise).
    BallTree,
    /// By the inner product with one direction drawn from N(0, I), ascending, the same for every
    /// example. Published as the order `random_proj` of image experiments (arXiv 2309.17388), there
    /// with a generator of its own.
    RandomProjection {
        /// Seed of the direction.
        seed: u64,
    },
    /// Balanced hierarchical k-means on the encoded tokens: it depends on the encoder, but no gradient
    /// flows through it.
    ///
    /// A node with k children divides its tokens into k clusters by Lloyd's iterations from
    /// farthest-point seeds. Its children are then filled one after the other, greatest cluster
    /// first: each takes, up to its capacity, the tokens whose squared distance to its centre is
    /// least compared with the nearest of the centres left. With two children no other division at
    /// these capacities has a smaller sum of squared distances to the two centres; with more it is
    /// greedy. Leaves that share a parent stay in token order.
    Learned {
        /// Most Lloyd iterations per node; 0 divides by the seeds. Fewer where they converge before.
        iterations: usize,
    },
    /// A permutation drawn from the seed, the same for every example: the control for the others.
    Random {
        /// Seed of the permutation.
        seed: u64,
    },
}

/// What a [`TokenOrder`] reads of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderInput {
    /// Nothing but its place among the tokens.
    Nothing,
    /// Where it is: coordinates that come with the data.
    Positions,
    /// Its vector after encoding.
    Encodings,
}

impl TokenOrder {
    /// What the order reads: which points [`permutation`](Self::permutation) has to be given.
    pub fn reads(&self) -> OrderInput {
        match self {
            Self::Given | Self::Random { .. } => OrderInput::Nothing,
            Self::Axis(_)
            | Self::KdTree
            | Self::Morton
            | Self::BallTree
            | Self::RandomProjection { .. } => OrderInput::Positions,
            Self::Learned { .. } => OrderInput::Encodings,
        }
    }

    /// The permutation `[batch, tokens]`: entry `[e, leaf]` is the token of example `e` that becomes
    /// that leaf.
    ///
    /// # Shapes
    /// - points: `[batch, tokens, dim]`, one per token: its position or its encoding, as
    ///   [`reads`](Self::reads) says. Only the first two axes matter where that is
    ///   [`OrderInput::Nothing`]. No gradient flows through an order.
    /// - mask: `[batch, tokens]`, `true` = masked out; may mask any subset
    ///
    /// # Panics
    /// If the token axes of `points`, `mask` and `shape` differ, if an axis is out of range, or
    /// if Morton order is asked for more than 64 coordinates.
    #[track_caller]
    pub fn permutation(
        &self,
        points: &Tensor<3>,
        mask: Option<&Tensor<2, Bool>>,
        shape: &TokenTreeShape,
    ) -> Tensor<2, Int> {
        let [batch, tokens, dim] = points.dims();
        expect_some("token_order: axis 0 of points", batch);
        expect_equal("token_order: axis 1 of points", shape.tokens(), tokens);
        if let Some(mask) = mask {
            expect_equal("token_order: mask", [batch, tokens], mask.dims());
        }
        let device = points.device();
        if *self == Self::Given && mask.is_none() {
            return counting([batch, tokens], &device);
        }
        let points: Vec<f32> = match self.reads() {
            OrderInput::Nothing => Vec::new(),
            OrderInput::Positions | OrderInput::Encodings => points
                .clone()
                .into_data()
                .convert::<f32>()
                .iter::<f32>()
                .collect(),
        };
        let masked: Option<Vec<bool>> =
            mask.map(|mask| mask.clone().into_data().iter::<bool>().collect());
        let mut order: Vec<i64> = Vec::with_capacity(batch * tokens);
        for example in 0..batch {
            let real = |token: &usize| masked.as_ref().is_none_or(|m| !m[example * tokens + token]);
            let (mut leaves, ghosts): (Vec<usize>, Vec<usize>) = (0..tokens).partition(real);
            let points = if points.is_empty() {
                &points[..]
            } else {
                &points[example * tokens * dim..(example + 1) * tokens * dim]
            };
            self.sort(&mut leaves, points, dim, shape);
            order.extend(leaves.iter().chain(&ghosts).map(|token| *token as i64));
        }
        int_tensor(order, [batch, tokens], &device)
    }

    /// Sorts the tokens of one example.
    ///
    /// `tokens` lists the real tokens ascending; `points` holds `dim` coordinates per token, real or
    /// not, and may be empty where the order [`reads`](Self::reads) nothing.
    ///
    /// # Panics
    /// As [`permutation`](Self::permutation).
    #[track_caller]
    pub fn sort(&self, tokens: &mut [usize], points: &[f32], dim: usize, shape: &TokenTreeShape) {
        match *self {
            Self::Given => {}
            Self::Axis(axis) => {
                assert!(
                    axis < dim,
                    "token_order: axis: expected below {dim}, got {axis}"
                );
                sort_by_coordinate(tokens, points, dim, axis);
            }
            Self::KdTree => {
                assert!(
                    dim >= 1,
                    "token_order: coordinates per token: expected at least 1, got 0"
                );
                descend(tokens, shape, shape.height(), &mut |node, height| {
                    sort_by_coordinate(node, points, dim, (height - 1) % dim);
                });
            }
            Self::Morton => {
                let codes = morton_codes(tokens, points, dim);
                tokens.sort_by_key(|token| (codes[*token], *token));
            }
            Self::BallTree => {
                directions::sort_by_ball_tree(tokens, &Points::new(points, dim), shape);
            }
            Self::RandomProjection { seed } => {
                directions::sort_by_random_projection(tokens, &Points::new(points, dim), seed);
            }
            Self::Learned { iterations } => {
                clusters::sort_by_clusters(tokens, &Points::new(points, dim), shape, iterations);
            }
            Self::Random { seed } => {
                // Token i takes the i-th draw, so padding an example moves no key.
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let keys: Vec<u64> = (0..shape.tokens()).map(|_| rng.next_u64()).collect();
                tokens.sort_by_key(|token| (keys[*token], *token));
            }
        }
    }
}

fn sort_by_coordinate(tokens: &mut [usize], points: &[f32], dim: usize, axis: usize) {
    tokens.sort_by(|a, b| {
        points[a * dim + axis]
            .total_cmp(&points[b * dim + axis])
            .then_with(|| a.cmp(b))
    });
}

/// Divides the tokens of a node of this height from the top down: `arrange` orders a node's tokens
/// and gets its height; consecutive runs of its child's capacity are then its children.
///
/// A node with one child passes its tokens on untouched: padding adds such nodes at the top.
fn descend(
    tokens: &mut [usize],
    shape: &TokenTreeShape,
    height: usize,
    arrange: &mut impl FnMut(&mut [usize], usize),
) {
    if height == 0 || tokens.len() <= 1 {
        return;
    }
    let span = shape.span(height - 1);
    if tokens.len() > span {
        arrange(tokens, height);
    }
    for child in tokens.chunks_mut(span) {
        descend(child, shape, height - 1, arrange);
    }
}

/// Morton codes by token; entries of tokens that are not listed are 0 and never read.
fn morton_codes(tokens: &[usize], points: &[f32], dim: usize) -> Vec<u64> {
    assert!(
        (1..=64).contains(&dim),
        "token_order: coordinates per token in Morton order: expected 1 to 64, got {dim}"
    );
    let bits = (64 / dim).min(16) as u32;
    let cells = (1u64 << bits) as f32;
    let mut codes = vec![0; points.len() / dim];
    let ranges: Vec<(f32, f32)> = (0..dim)
        .map(|axis| {
            let coordinates = tokens.iter().map(|token| points[token * dim + axis]);
            coordinates.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| {
                (low.min(x), high.max(x))
            })
        })
        .collect();
    for token in tokens {
        let mut code = 0u64;
        let cell: Vec<u64> = (0..dim)
            .map(|axis| {
                let (low, high) = ranges[axis];
                // A float cast saturates, so a flat axis (0/0) and the upper end stay in range.
                let scaled = (points[token * dim + axis] - low) / (high - low) * cells;
                (scaled as u64).min((1 << bits) - 1)
            })
            .collect();
        for bit in (0..bits).rev() {
            for coordinate in &cell {
                code = (code << 1) | (coordinate >> bit & 1);
            }
        }
        codes[*token] = code;
    }
    codes
}
