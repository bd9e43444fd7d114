//! Orders along directions through the points: a ball tree's, and one drawn at random.

use super::points::{Points, dot};
use crate::shape::TokenTreeShape;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Sorts by projection onto `direction`, ascending, ties by token position.
///
/// `projections` is scratch, an entry per token, real or not.
fn sort_along(tokens: &mut [usize], points: &Points, direction: &[f64], projections: &mut [f64]) {
    for token in tokens.iter() {
        projections[*token] = dot(points.row(*token), direction);
    }
    tokens.sort_unstable_by(|a, b| {
        let order = projections[*a].total_cmp(&projections[*b]);
        order.then_with(|| a.cmp(b))
    });
}

pub(super) fn sort_by_ball_tree(tokens: &mut [usize], points: &Points, shape: &TokenTreeShape) {
    let mut projections = vec![0.0; shape.tokens()];
    super::descend(tokens, shape, shape.height(), &mut |node, _| {
        let from = points.farthest(node, &points.centroid(node));
        let to = points.farthest(node, points.row(from));
        let direction: Vec<f64> = points
            .row(to)
            .iter()
            .zip(points.row(from))
            .map(|(to, from)| to - from)
            .collect();
        sort_along(node, points, &direction, &mut projections);
    });
}

pub(super) fn sort_by_random_projection(tokens: &mut [usize], points: &Points, seed: u64) {
    let Some(last) = tokens.iter().max() else {
        return;
    };
    let mut projections = vec![0.0; last + 1];
    let direction = normal_draws(seed, points.dim());
    sort_along(tokens, points, &direction, &mut projections);
}

/// `count` independent draws from N(0, 1) (Box and Muller 1958); draw `i` depends on the seed and
/// `i` alone.
pub(crate) fn normal_draws(seed: u64, count: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // The upper 53 bits, in (0, 1]: the logarithm of 0 would be no number.
    let mut uniform = || ((rng.next_u64() >> 11) + 1) as f64 * (-53f64).exp2();
    (0..count)
        .map(|_| {
            let radius = (-2.0 * uniform().ln()).sqrt();
            radius * (std::f64::consts::TAU * uniform()).cos()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_draws_have_the_moments_of_a_normal_distribution() {
        let draws = normal_draws(7, 20_000);
        let moment = |power: i32| draws.iter().map(|x| x.powi(power)).sum::<f64>() / 20_000.0;
        // Five standard errors of each: 1/√n, √(2/n), √(96/n).
        assert!(moment(1).abs() < 0.036, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.05, "variance {}", moment(2));
        assert!(
            (moment(4) - 3.0).abs() < 0.35,
            "fourth moment {}",
            moment(4)
        );
    }

    #[test]
    fn random_projection_sorts_by_the_inner_product_with_the_drawn_direction() {
        let values = [3.0, -1.0, 0.5, 2.0, 2.0, 2.0, -4.0, 0.0, 1.0, 1.0];
        let direction = normal_draws(11, 2);
        let key = |token: &usize| {
            f64::from(values[2 * token]) * direction[0]
                + f64::from(values[2 * token + 1]) * direction[1]
        };
        let mut expected: Vec<usize> = (0..5).collect();
        expected.sort_by(|a, b| key(a).total_cmp(&key(b)));
        let mut tokens: Vec<usize> = (0..5).collect();
        sort_by_random_projection(&mut tokens, &Points::new(&values, 2), 11);
        assert_eq!(tokens, expected);
    }

    #[test]
    fn another_seed_draws_another_direction() {
        assert_ne!(normal_draws(1, 3), normal_draws(2, 3));
    }
}
