//! Everything about routes that is drawn or hashed, on the host.
//!
//! What an item draws depends on the seed of the call, the depth and the number of the item alone: neither on
//! which other items share its node, nor on the backend.

use arbora_rl::seed::{Purpose, derive, mix, spread, step_rng};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// The leaf of an item that is routed by chance: all leaves are equally likely.
pub(super) fn random_leaf(seed: u64, item: usize, leaves: usize) -> usize {
    step_rng(derive(seed, Purpose::Policy), item as u64).random_range(0..leaves)
}

/// The leaf of an item that is routed by a hash of its tokens (Hash Layers, arXiv 2106.04426).
pub(super) fn hash_leaf(tokens: impl IntoIterator<Item = u64>, leaves: usize) -> usize {
    // Mixed again, since the lowest bits of the sum below depend on the lowest bits of tokens alone.
    let hash = tokens
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, token| {
            mixed(hash ^ token).wrapping_mul(0x0100_0000_01b3)
        });
    (mixed(hash) % leaves as u64) as usize
}

/// Gumbel noise for the scores of an item's children at a depth.
pub(super) fn gumbel(seed: u64, depth: usize, item: usize, children: usize) -> Vec<f32> {
    let mut rng = generator(seed, depth, item);
    let mut draw = || {
        // Neither 0 nor 1, whose logarithms are not finite.
        let uniform: f64 = rng.random_range(f64::EPSILON..1.0);
        -(-uniform.ln()).ln() as f32
    };
    (0..children).map(|_| draw()).collect()
}

/// A child drawn from a distribution.
///
/// - probabilities: of the children, which need not sum to exactly 1
pub(super) fn sampled_child(seed: u64, depth: usize, item: usize, probabilities: &[f64]) -> usize {
    let whole: f64 = probabilities.iter().sum();
    let mut left = generator(seed, depth, item).random::<f64>() * whole;
    for (child, probability) in probabilities.iter().enumerate() {
        if left < *probability {
            return child;
        }
        left -= probability;
    }
    // Rounding can leave a little: the last child that is possible at all.
    let possible = probabilities.iter().rposition(|value| *value > 0.0);
    possible.unwrap_or(0)
}

fn generator(seed: u64, depth: usize, item: usize) -> ChaCha8Rng {
    step_rng(
        derive(place_seed(seed, depth), Purpose::Policy),
        item as u64,
    )
}

/// A seed of a place in the tree, far from those of other places and calls.
pub(super) fn place_seed(seed: u64, place: usize) -> u64 {
    mixed(seed ^ mixed(place as u64 + 1))
}

fn mixed(value: u64) -> u64 {
    mix(spread(value, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every count within five standard deviations of a fair share.
    fn assert_even(counts: &[usize]) {
        let draws: usize = counts.iter().sum();
        let share = draws as f64 / counts.len() as f64;
        for count in counts {
            assert!(
                (*count as f64 - share).abs() < 5.0 * share.sqrt(),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn chance_and_hashes_use_all_leaves_evenly() {
        for leaves in [4, 9] {
            let mut chance = vec![0; leaves];
            let mut hashes = vec![0; leaves];
            for item in 0..4000 {
                chance[random_leaf(3, item, leaves)] += 1;
                // Even tokens: a hash of lowest bits would never reach half of the leaves.
                hashes[hash_leaf([2 * item as u64, 8], leaves)] += 1;
            }
            assert_even(&chance);
            assert_even(&hashes);
        }
    }

    #[test]
    fn a_hash_reads_every_token_in_its_place() {
        let leaves = 1 << 20;
        let hash = |tokens: [u64; 3]| hash_leaf(tokens, leaves);
        assert_eq!(hash([1, 2, 3]), hash([1, 2, 3]));
        for other in [[0, 2, 3], [1, 0, 3], [1, 2, 0], [3, 2, 1]] {
            assert_ne!(hash([1, 2, 3]), hash(other));
        }
        assert_ne!(hash_leaf([0], leaves), hash_leaf([0, 0], leaves));
    }

    #[test]
    fn children_are_drawn_as_often_as_they_are_likely() {
        let probabilities = [0.1, 0.0, 0.6, 0.3];
        let mut counts = [0; 4];
        for item in 0..4000 {
            counts[sampled_child(1, 2, item, &probabilities)] += 1;
        }
        assert_eq!(counts[1], 0);
        for (count, probability) in counts.into_iter().zip(probabilities) {
            assert!(
                (count as f64 / 4000.0 - probability).abs() < 0.04,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn the_largest_of_noisy_scores_is_a_draw_from_their_softmax() {
        let scores = [0.0, 1.0, -1.0];
        let powers = scores.map(f32::exp);
        let sum: f32 = powers.iter().sum();
        let mut counts = [0; 3];
        for item in 0..4000 {
            let noise = gumbel(5, 0, item, 3);
            let noisy = |child: &usize| scores[*child] + noise[*child];
            let best = (0..3).max_by(|a, b| noisy(a).total_cmp(&noisy(b)));
            counts[best.unwrap()] += 1;
        }
        for (count, power) in counts.into_iter().zip(powers) {
            let expected = f64::from(power / sum);
            assert!(
                (f64::from(count) / 4000.0 - expected).abs() < 0.04,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn depths_items_and_seeds_draw_numbers_of_their_own() {
        let first = gumbel(1, 1, 1, 2);
        assert_eq!(first, gumbel(1, 1, 1, 2));
        for (seed, depth, item) in [(2, 1, 1), (1, 2, 1), (1, 1, 2)] {
            assert_ne!(first, gumbel(seed, depth, item, 2));
        }
    }
}
