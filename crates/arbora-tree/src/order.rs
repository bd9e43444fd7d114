//! In what order tokens become leaves.
//!
//! An order puts an example's real tokens first and its masked tokens last, so every tree is filled
//! from the left. Ties are broken by token position. The sort runs on the host: it is exact, stable
//! and the same on every backend (burn's own sorts are not stable, and run on the host for most
//! backends too). Reading positions back waits for the device once per tree.

use crate::shape::TokenTreeShape;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
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
    /// A permutation drawn from the seed, the same for every example: the control for the others.
    Random {
        /// Seed of the permutation.
        seed: u64,
    },
}

impl TokenOrder {
    /// Whether the order reads token positions.
    pub fn needs_positions(&self) -> bool {
        matches!(self, Self::Axis(_) | Self::KdTree | Self::Morton)
    }

    /// The permutation `[batch, tokens]`: entry `[e, leaf]` is the token of example `e` that becomes
    /// that leaf.
    ///
    /// # Shapes
    /// - positions: `[batch, tokens, dim]`, one point per token; only its first two axes matter
    ///   where [`needs_positions`](Self::needs_positions) is false
    /// - mask: `[batch, tokens]`, `true` = masked out; may mask any subset
    ///
    /// # Panics
    /// If the token axes of `positions`, `mask` and `shape` differ, if an axis is out of range, or
    /// if Morton order is asked for more than 64 coordinates.
    #[track_caller]
    pub fn permutation(
        &self,
        positions: &Tensor<3>,
        mask: Option<&Tensor<2, Bool>>,
        shape: &TokenTreeShape,
    ) -> Tensor<2, Int> {
        let [batch, tokens, dim] = positions.dims();
        assert_eq!(
            tokens,
            shape.tokens(),
            "token_order: axis 1 of positions: expected {}, got {tokens}",
            shape.tokens()
        );
        if let Some(mask) = mask {
            assert_eq!(
                mask.dims(),
                [batch, tokens],
                "token_order: mask: expected {:?}, got {:?}",
                [batch, tokens],
                mask.dims()
            );
        }
        let device = positions.device();
        if *self == Self::Given && mask.is_none() {
            return Tensor::arange(0..tokens as i64, &device)
                .reshape([1, tokens])
                .expand([batch, tokens]);
        }
        let points: Vec<f32> = match self.needs_positions() {
            true => positions
                .clone()
                .into_data()
                .convert::<f32>()
                .iter::<f32>()
                .collect(),
            false => Vec::new(),
        };
        let masked: Option<Vec<bool>> =
            mask.map(|mask| mask.clone().into_data().iter::<bool>().collect());
        let mut order: Vec<i64> = Vec::with_capacity(batch * tokens);
        for example in 0..batch {
            let real = |token: &usize| masked.as_ref().is_none_or(|m| !m[example * tokens + token]);
            let (mut leaves, ghosts): (Vec<usize>, Vec<usize>) = (0..tokens).partition(real);
            let points = match points.is_empty() {
                true => &points[..],
                false => &points[example * tokens * dim..(example + 1) * tokens * dim],
            };
            self.sort(&mut leaves, points, dim, shape);
            order.extend(leaves.iter().chain(&ghosts).map(|token| *token as i64));
        }
        int_tensor(order, [batch, tokens], &device)
    }

    /// Sorts the tokens of one example.
    ///
    /// `tokens` lists the real tokens ascending; `points` holds `dim` coordinates per token, real or
    /// not, and may be empty where [`needs_positions`](Self::needs_positions) is false.
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
                split(tokens, points, dim, shape, shape.height());
            }
            Self::Morton => {
                let codes = morton_codes(tokens, points, dim);
                tokens.sort_by_key(|token| (codes[*token], *token));
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

/// `values` as an integer tensor of the device's own integer type.
pub(crate) fn int_tensor<const D: usize>(
    values: Vec<i64>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn sort_by_coordinate(tokens: &mut [usize], points: &[f32], dim: usize, axis: usize) {
    tokens.sort_by(|a, b| {
        points[a * dim + axis]
            .total_cmp(&points[b * dim + axis])
            .then_with(|| a.cmp(b))
    });
}

fn split(tokens: &mut [usize], points: &[f32], dim: usize, shape: &TokenTreeShape, height: usize) {
    if height == 0 || tokens.len() <= 1 {
        return;
    }
    sort_by_coordinate(tokens, points, dim, (height - 1) % dim);
    for child in tokens.chunks_mut(shape.span(height - 1)) {
        split(child, points, dim, shape, height - 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Layout;
    use proptest::prelude::{prop_assert_eq, proptest};

    const ORDERS: [TokenOrder; 5] = [
        TokenOrder::Given,
        TokenOrder::Axis(1),
        TokenOrder::KdTree,
        TokenOrder::Morton,
        TokenOrder::Random { seed: 3 },
    ];

    fn sorted(order: TokenOrder, points: &[f32], branching: usize, capacity: usize) -> Vec<usize> {
        let shape = TokenTreeShape::new(capacity, branching, Layout::LeftFilled);
        let mut tokens: Vec<usize> = (0..points.len() / 2).collect();
        order.sort(&mut tokens, points, 2, &shape);
        tokens
    }

    #[test]
    fn morton_order_visits_quadrants_in_z_order() {
        // Points at the corners of the unit square, first coordinate major.
        let points = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0];
        assert_eq!(sorted(TokenOrder::Morton, &points, 2, 4), [3, 1, 2, 0]);
    }

    #[test]
    fn k_d_order_cuts_both_axes_of_a_square() {
        // Four corners: the root (height 2) cuts along coordinate 1, its children along 0.
        let points = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0];
        assert_eq!(sorted(TokenOrder::KdTree, &points, 2, 4), [3, 2, 1, 0]);
    }

    #[test]
    fn equal_coordinates_keep_token_order() {
        for order in [TokenOrder::Axis(0), TokenOrder::KdTree, TokenOrder::Morton] {
            assert_eq!(
                sorted(order, &[0.5; 14], 2, 7),
                [0, 1, 2, 3, 4, 5, 6],
                "{order:?}"
            );
        }
    }

    #[test]
    fn k_d_children_are_separated_along_their_axis() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let points: Vec<f32> = (0..54).map(|_| (rng.next_u32() % 1000) as f32).collect();
        let order = sorted(TokenOrder::KdTree, &points, 3, 27);
        // The root has height 3 and cuts along coordinate 0 into spans of 9.
        for (left, right) in [(0..9, 9..18), (9..18, 18..27)] {
            let highest = left.map(|i| points[order[i] * 2]).fold(f32::MIN, f32::max);
            let lowest = right.map(|i| points[order[i] * 2]).fold(f32::MAX, f32::min);
            assert!(highest <= lowest);
        }
    }

    proptest! {
        #[test]
        fn every_order_is_a_permutation_that_padding_does_not_change(
            points in proptest::collection::vec(-3i8..3, 2..60),
            padding in 0usize..40,
            branching in 2usize..5,
        ) {
            let points: Vec<f32> = points[..points.len() / 2 * 2].iter().map(|x| *x as f32).collect();
            let tokens = points.len() / 2;
            for order in ORDERS {
                let alone = sorted(order, &points, branching, tokens);
                prop_assert_eq!(&sorted(order, &points, branching, tokens + padding), &alone);
                let mut seen = alone.clone();
                seen.sort();
                prop_assert_eq!(seen, (0..tokens).collect::<Vec<_>>());
            }
        }
    }
}
