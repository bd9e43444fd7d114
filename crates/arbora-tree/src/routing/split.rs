//! Biases that split samples evenly, on the host.

/// The bias of a hyperplane that sends the larger half of the projections to the right: minus the
/// middle between the two halves. 0 without projections.
pub(super) fn median_bias(mut projections: Vec<f32>) -> f32 {
    projections.sort_unstable_by(f32::total_cmp);
    let half = projections.len() / 2;
    match (projections.get(half.wrapping_sub(1)), projections.get(half)) {
        (Some(below), Some(above)) => -between(*below, *above),
        (None, Some(only)) => -only,
        _ => 0.0,
    }
}

/// A number above `below` and at most `above`, where there is one.
fn between(below: f32, above: f32) -> f32 {
    let middle = ((f64::from(below) + f64::from(above)) / 2.0) as f32;
    // The middle of neighbouring numbers rounds to one of them.
    if middle > below { middle } else { above }
}

/// Biases of the children of a k-ary node such that about equally many samples go to each.
///
/// - logits: of each sample, `branching` numbers side by side
/// - returns `branching` numbers
///
/// Each step takes the child that is farthest from its share and moves its bias to where exactly
/// its share comes to it. That minimises `Σ_samples max_c (logit_c + bias_c) - share · Σ_c bias_c`
/// along one coordinate, a convex function whose minimum is the balanced assignment. The best
/// biases seen are returned.
pub(super) fn equalising_biases(logits: &[f32], branching: usize) -> Vec<f32> {
    let mut biases = vec![0.0f32; branching];
    let samples = logits.len() / branching;
    if samples == 0 {
        return biases;
    }
    let share = samples as f64 / branching as f64;
    let mut best = (f64::INFINITY, biases.clone());
    let mut gaps = Vec::with_capacity(samples);
    for _ in 0..STEPS_PER_CHILD * branching {
        let mut counts = vec![0usize; branching];
        for sample in logits.chunks_exact(branching) {
            counts[largest(sample.iter().zip(&biases).map(|(a, b)| a + b))] += 1;
        }
        let excess = |child: usize| (counts[child] as f64 - share).abs();
        let worst = (1..branching).fold(0, |worst, child| {
            if excess(child) > excess(worst) {
                child
            } else {
                worst
            }
        });
        if excess(worst) < best.0 {
            best = (excess(worst), biases.clone());
        }
        if excess(worst) < 1.0 {
            break;
        }
        gaps.clear();
        gaps.extend(logits.chunks_exact(branching).map(|sample| {
            let others = (0..branching).filter(|other| *other != worst);
            let rival = others.map(|other| sample[other] + biases[other]);
            rival.fold(f32::NEG_INFINITY, f32::max) - sample[worst]
        }));
        gaps.sort_unstable_by(f32::total_cmp);
        let wanted = (share.round() as usize).min(samples);
        biases[worst] = match (gaps.get(wanted.wrapping_sub(1)), gaps.get(wanted)) {
            (Some(below), Some(above)) => between(*below, *above),
            (None, Some(first)) => first - 1.0,
            (Some(last), None) => last + 1.0,
            (None, None) => 0.0,
        };
    }
    best.1
}

/// Steps that the search for a k-ary node's biases may take, per child.
const STEPS_PER_CHILD: usize = 20;

/// Position of the largest number, the first of several.
pub(super) fn largest(values: impl Iterator<Item = f32>) -> usize {
    let start = (0, f32::NEG_INFINITY);
    let better = |best: (usize, f32), new: (usize, f32)| if new.1 > best.1 { new } else { best };
    values.enumerate().fold(start, better).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn no_sample_gives_no_bias() {
        assert_eq!(median_bias(Vec::new()), 0.0);
        assert_eq!(equalising_biases(&[], 3), [0.0; 3]);
    }

    #[test]
    fn neighbouring_numbers_are_told_apart() {
        let (below, above) = (1.0f32, 1.0f32.next_up());
        let bias = median_bias(vec![above, below]);
        assert!(below + bias < 0.0 && above + bias >= 0.0);
    }

    #[test]
    fn biases_of_many_children_even_out_skewed_logits() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (branching, samples) in [(3usize, 100usize), (5, 400), (10, 1000)] {
            let logits: Vec<f32> = (0..samples * branching)
                .map(|at| rng.random_range(-1.0..1.0) + (at % branching) as f32)
                .collect();
            let biases = equalising_biases(&logits, branching);
            let mut counts = vec![0usize; branching];
            for sample in logits.chunks(branching) {
                counts[largest(sample.iter().zip(&biases).map(|(a, b)| a + b))] += 1;
            }
            let share = samples as f64 / branching as f64;
            for count in &counts {
                assert!((*count as f64 - share).abs() <= 2.0, "{counts:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_median_bias_halves_distinct_projections(
            values in proptest::collection::btree_set(-1000i32..1000, 1..40),
        ) {
            let values: Vec<f32> = values.into_iter().map(|value| value as f32 / 7.0).collect();
            let bias = median_bias(values.clone());
            let right = values.iter().filter(|value| **value + bias >= 0.0).count();
            prop_assert_eq!(right, values.len() - values.len() / 2);
        }
    }
}
