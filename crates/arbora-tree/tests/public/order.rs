//! In what order tokens become leaves.

use arbora_tree::{Layout, OrderInput, TokenOrder, TokenTreeShape};
use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
                    (points[2 * t] - centre[0]).powi(2) + (points[2 * t + 1] - centre[1]).powi(2)
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
