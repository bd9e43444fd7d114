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
    /// Balanced hierarchical k-means on the encoded tokens: where leaves go is learned with the
    /// encoder.
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
        assert_eq!(
            tokens,
            shape.tokens(),
            "token_order: axis 1 of points: expected {}, got {tokens}",
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
        let device = points.device();
        if *self == Self::Given && mask.is_none() {
            return Tensor::arange(0..tokens as i64, &device)
                .reshape([1, tokens])
                .expand([batch, tokens]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Layout;
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    const ORDERS: [TokenOrder; 9] = [
        TokenOrder::Given,
        TokenOrder::Axis(1),
        TokenOrder::KdTree,
        TokenOrder::Morton,
        TokenOrder::Random { seed: 3 },
        TokenOrder::BallTree,
        TokenOrder::RandomProjection { seed: 3 },
        TokenOrder::Learned { iterations: 0 },
        TokenOrder::Learned { iterations: 3 },
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
        for order in ORDERS {
            if order.reads() == OrderInput::Nothing {
                continue;
            }
            assert_eq!(
                sorted(order, &[0.1; 14], 2, 7),
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

    /// The children of the root, each with its tokens ascending.
    fn children_of_root(order: TokenOrder, points: &[f32], branching: usize) -> Vec<Vec<usize>> {
        let tokens = points.len() / 2;
        let shape = TokenTreeShape::new(tokens, branching, Layout::LeftFilled);
        let mut children: Vec<Vec<usize>> = sorted(order, points, branching, tokens)
            .chunks(shape.span(shape.height() - 1))
            .map(<[usize]>::to_vec)
            .collect();
        children.iter_mut().for_each(|child| child.sort());
        children
    }

    #[test]
    fn ball_order_cuts_a_diagonal_cloud_across_its_long_axis() {
        // A band around the line y = x. The even tokens are its upper half, but tokens 2 to 5 lie
        // across the line, so that neither coordinate alone tells the halves apart.
        let points = [
            6.0, 5.0, -5.0, -5.0, 1.5, -1.0, -1.5, 1.0, //
            -1.0, 1.5, 1.0, -1.5, 4.0, 3.0, -3.0, -4.0,
        ];
        let halves = children_of_root(TokenOrder::BallTree, &points, 2);
        assert_eq!(halves, [[0, 2, 4, 6], [1, 3, 5, 7]]);
        for axis in [0, 1] {
            let cut = children_of_root(TokenOrder::Axis(axis), &points, 2);
            assert_ne!(cut[1], halves[0], "axis {axis}");
        }
    }

    #[test]
    fn ball_children_are_cut_along_their_own_directions() {
        // Two pairs of pairs: the root's cut is along coordinate 0, its children's along 1.
        let points = [
            -10.0, 1.0, 10.0, 1.0, -10.0, -1.0, 10.0, -1.0, //
            -10.5, 1.0, 10.5, 1.0, -10.5, -1.0, 10.5, -1.0,
        ];
        let order = sorted(TokenOrder::BallTree, &points, 2, 8);
        let mut pairs: Vec<Vec<usize>> = order.chunks(2).map(<[usize]>::to_vec).collect();
        pairs.iter_mut().for_each(|pair| pair.sort());
        pairs.sort();
        assert_eq!(pairs, [[0, 4], [1, 5], [2, 6], [3, 7]]);
    }

    /// Points near `(x, x)`, one per offset.
    fn cluster(x: f32, offsets: &[f32]) -> Vec<f32> {
        offsets.iter().flat_map(|o| [x + o, x - o]).collect()
    }

    #[test]
    fn learned_order_puts_clusters_that_fit_into_children_of_their_own() {
        // Four tokens around 20, then eight around 0: the second cluster fills the first child.
        let mut points = cluster(20.0, &[0.0, 0.3, 0.1, 0.2]);
        points.extend(cluster(0.0, &[0.0, 0.7, 0.1, 0.6, 0.2, 0.5, 0.3, 0.4]));
        for iterations in [0, 1, 5] {
            let children = children_of_root(TokenOrder::Learned { iterations }, &points, 2);
            let expected = [(4..12).collect::<Vec<_>>(), (0..4).collect()];
            assert_eq!(children, expected, "{iterations} iterations");
        }
        // Three clusters for three children, in the order of their sizes.
        let mut points = cluster(20.0, &[0.0, 0.1]);
        points.extend(cluster(-30.0, &[0.0, 0.2, 0.1]));
        points.extend(cluster(0.0, &[0.0, 0.1, 0.2]));
        let children = children_of_root(TokenOrder::Learned { iterations: 3 }, &points, 3);
        let mut greatest = [children[0].clone(), children[1].clone()];
        greatest.sort();
        assert_eq!(greatest, [[2, 3, 4], [5, 6, 7]]);
        assert_eq!(children[2], [0, 1]);
    }

    #[test]
    fn learned_order_moves_only_the_tokens_that_capacity_forces() {
        // Five tokens around 0 and three around 9, four to a child: the one nearest the other
        // cluster has to leave.
        let x = [0.0, 9.0, 1.0, 9.5, 2.0, 8.5, -1.0, 0.5];
        let points: Vec<f32> = x.iter().flat_map(|x| [*x, 0.0]).collect();
        let children = children_of_root(TokenOrder::Learned { iterations: 4 }, &points, 2);
        assert_eq!(children, [[0, 2, 6, 7], [1, 3, 4, 5]]);
    }

    #[test]
    fn learned_order_improves_on_its_seeds_by_iterations() {
        // The outlier, token 7, becomes a seed.
        let points = [
            0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0, //
            0.0, 3.0, 1.0, 3.0, 2.0, 3.0, 8.0, 3.0,
        ];
        let cost = |iterations| {
            let children = children_of_root(TokenOrder::Learned { iterations }, &points, 2);
            children
                .iter()
                .map(|child| {
                    let mean = |axis| {
                        child.iter().map(|t| points[2 * t + axis]).sum::<f32>() / child.len() as f32
                    };
                    let centre = [mean(0), mean(1)];
                    let distance = |t: &usize| {
                        (points[2 * t] - centre[0]).powi(2)
                            + (points[2 * t + 1] - centre[1]).powi(2)
                    };
                    child.iter().map(distance).sum::<f32>()
                })
                .sum::<f32>()
        };
        assert!(cost(8) < cost(0), "{} after {}", cost(8), cost(0));
    }

    #[test]
    fn points_that_are_no_numbers_still_give_a_permutation() {
        for order in ORDERS {
            let mut points = [1.0, f32::NAN, f32::INFINITY, 0.0].repeat(5);
            points.extend([0.5; 6]);
            let mut tokens = sorted(order, &points, 3, 13);
            tokens.sort();
            assert_eq!(tokens, (0..13).collect::<Vec<_>>(), "{order:?}");
        }
    }

    /// Whether a line has one set on each side; points of both may lie on it.
    fn separated_by_a_line(left: &[[f32; 2]], right: &[[f32; 2]]) -> bool {
        let all: Vec<[f32; 2]> = left.iter().chain(right).copied().collect();
        let apart = |[u, v]: [f32; 2]| {
            let along = |[x, y]: &[f32; 2]| u * x + v * y;
            let highest = left.iter().map(along).fold(f32::MIN, f32::max);
            let lowest = right.iter().map(along).fold(f32::MAX, f32::min);
            highest <= lowest
        };
        // If a line separates them, so does one through two of the points, or across all of them
        // where they lie on one line.
        all.iter().any(|a| {
            all.iter().any(|b| {
                let [u, v] = [b[0] - a[0], b[1] - a[1]];
                [[u, v], [v, -u], [-v, u]].into_iter().any(apart)
            })
        })
    }

    proptest! {
        #[test]
        fn a_learned_node_with_two_children_is_divided_by_a_line(
            points in proptest::collection::vec(-50i8..50, 4..60),
            iterations in 0usize..5,
        ) {
            let points: Vec<f32> = points[..points.len() / 2 * 2].iter().map(|x| *x as f32).collect();
            let children = children_of_root(TokenOrder::Learned { iterations }, &points, 2);
            let [left, right] = [0, 1].map(|child: usize| {
                let point = |token: &usize| [points[2 * token], points[2 * token + 1]];
                children[child].iter().map(point).collect::<Vec<_>>()
            });
            prop_assert!(separated_by_a_line(&left, &right));
        }

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
