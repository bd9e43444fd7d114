//! Which token comes next, given the logits of all: on the host, in double precision.

/// What is left of a distribution over tokens before one is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Filters {
    /// Logits are divided by it; 0: the first of the largest is taken.
    pub temperature: f64,
    /// How many of the most probable tokens are kept.
    pub top_k: Option<usize>,
    /// Of those, the fewest that have this much of their probability are kept.
    pub top_p: Option<f64>,
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub token: u32,
    /// Probabilities of all candidates sum to 1.
    pub probability: f64,
}

impl Filters {
    /// The tokens that may come next, the most probable one first, of equal ones the lower id first.
    ///
    /// - logits: finite, at least one
    pub fn candidates(self, logits: &[f32]) -> Vec<Candidate> {
        if self.temperature == 0.0 {
            return vec![Candidate {
                token: greatest(logits) as u32,
                probability: 1.0,
            }];
        }
        let most = f64::from(logits[greatest(logits)]);
        let mut kept: Vec<Candidate> = logits
            .iter()
            .enumerate()
            .map(|(token, logit)| Candidate {
                token: token as u32,
                probability: ((f64::from(*logit) - most) / self.temperature).exp(),
            })
            .collect();
        // By logits, since powers of different ones may be equal, all 0 for instance.
        kept.sort_by(|one, other| {
            let logit = |of: &Candidate| logits[of.token as usize];
            logit(other)
                .total_cmp(&logit(one))
                .then(one.token.cmp(&other.token))
        });
        kept.truncate(self.top_k.unwrap_or(usize::MAX));
        normalize(&mut kept);
        if let Some(mass) = self.top_p {
            let mut sum = 0.0;
            let enough = kept.iter().position(|candidate| {
                sum += candidate.probability;
                sum >= mass
            });
            // Rounding may keep the sum of all below 1.
            kept.truncate(enough.map_or(kept.len(), |last| last + 1));
            normalize(&mut kept);
        }
        kept
    }
}

fn normalize(candidates: &mut [Candidate]) {
    let sum: f64 = candidates.iter().map(|one| one.probability).sum();
    for candidate in candidates {
        candidate.probability /= sum;
    }
}

/// The candidate that a number from `[0, 1)` falls on.
pub(super) fn pick(candidates: &[Candidate], uniform: f64) -> u32 {
    let mut sum = 0.0;
    let hit = candidates.iter().find(|candidate| {
        sum += candidate.probability;
        uniform < sum
    });
    // Rounding may keep the sum of all below the number.
    hit.unwrap_or(&candidates[candidates.len() - 1]).token
}

/// The first of the largest.
pub(super) fn greatest(logits: &[f32]) -> usize {
    (0..logits.len())
        .rev()
        .max_by(|&one, &other| logits[one].total_cmp(&logits[other]))
        .unwrap_or(0)
}

/// How much the largest is above the second largest; infinite where there is no second.
pub(super) fn margin(logits: &[f32]) -> f64 {
    let (mut first, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    for logit in logits.iter().copied().map(f64::from) {
        if logit > first {
            second = first;
            first = logit;
        } else if logit > second {
            second = logit;
        }
    }
    first - second
}

/// The logarithm of the probability of a token, with nothing filtered out and a temperature of 1.
pub(super) fn log_probability(logits: &[f32], token: u32) -> f64 {
    let most = f64::from(logits[greatest(logits)]);
    let sum: f64 = logits
        .iter()
        .map(|logit| (f64::from(*logit) - most).exp())
        .sum();
    f64::from(logits[token as usize]) - most - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Filters = Filters {
        temperature: 1.0,
        top_k: None,
        top_p: None,
    };

    fn tokens(candidates: &[Candidate]) -> Vec<u32> {
        candidates.iter().map(|one| one.token).collect()
    }

    #[test]
    fn of_equal_logits_the_lower_token_comes_first() {
        let logits = [1.0, 2.0, 2.0, 0.0];
        assert_eq!(tokens(&ALL.candidates(&logits)), [1, 2, 0, 3]);
        assert_eq!(greatest(&logits), 1);
        assert_eq!(margin(&logits), 0.0);
        assert_eq!(margin(&[3.0]), f64::INFINITY);
    }

    #[test]
    fn the_nucleus_is_the_smallest_set_with_the_mass() {
        let logits = [0.5_f32.ln(), 0.25_f32.ln(), 0.125_f32.ln(), 0.125_f32.ln()];
        for (mass, count) in [(0.3, 1), (0.49, 1), (0.51, 2), (0.8, 3), (1.0, 4)] {
            let filters = Filters {
                top_p: Some(mass),
                ..ALL
            };
            assert_eq!(filters.candidates(&logits).len(), count, "{mass}");
        }
    }

    #[test]
    fn each_candidate_is_picked_in_its_share() {
        let candidates = [0.5, 0.25, 0.25]
            .into_iter()
            .zip([7, 3, 5])
            .map(|(probability, token)| Candidate { token, probability })
            .collect::<Vec<_>>();
        let picked = [0.0, 0.49, 0.5, 0.74, 0.75, 0.999_999].map(|at| pick(&candidates, at));
        assert_eq!(picked, [7, 7, 3, 3, 5, 5]);
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [0.0, 1.0, -2.0];
        let sum: f64 = (0..3)
            .map(|token| log_probability(&logits, token).exp())
            .sum();
        assert!((sum - 1.0).abs() < 1e-12);
        let ratio = log_probability(&logits, 1) - log_probability(&logits, 0);
        assert!((ratio - 1.0).abs() < 1e-12);
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-1e3_f32..1e3, 1..40)
    }

    proptest! {
        #[test]
        fn probabilities_of_candidates_sum_to_one_and_fall(
            logits in logits(),
            temperature in 0.01_f64..10.0,
            top_k in prop::option::of(1_usize..50),
            top_p in prop::option::of(0.001_f64..=1.0),
        ) {
            let kept = Filters { temperature, top_k, top_p }.candidates(&logits);
            prop_assert!(!kept.is_empty());
            let sum: f64 = kept.iter().map(|one| one.probability).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9);
            prop_assert!(kept.is_sorted_by(|one, other| one.probability >= other.probability));
            prop_assert!(kept.len() <= top_k.unwrap_or(usize::MAX));
        }

        #[test]
        fn what_is_kept_has_the_mass_and_less_would_not(
            logits in logits(),
            top_p in 0.001_f64..0.999,
        ) {
            let all = ALL.candidates(&logits);
            let kept = Filters { top_p: Some(top_p), ..ALL }.candidates(&logits);
            let mass = |count: usize| all[..count].iter().map(|one| one.probability).sum::<f64>();
            prop_assert!(mass(kept.len()) >= top_p - 1e-9);
            prop_assert!(mass(kept.len() - 1) < top_p);
        }

        #[test]
        fn a_wider_filter_keeps_what_a_narrower_one_keeps(
            logits in logits(),
            (few, more) in (1_usize..40, 1_usize..40),
            (low, high) in (0.001_f64..=1.0, 0.001_f64..=1.0),
        ) {
            let by = |top_k, top_p| {
                tokens(&Filters { top_k, top_p, ..ALL }.candidates(&logits))
            };
            let few_kept = by(Some(few.min(more)), None);
            prop_assert!(by(Some(few.max(more)), None).starts_with(&few_kept));
            let low_kept = by(None, Some(low.min(high)));
            prop_assert!(by(None, Some(low.max(high))).starts_with(&low_kept));
        }

        #[test]
        fn one_token_or_hardly_any_mass_is_greedy(logits in logits(), uniform in 0.0_f64..1.0) {
            let greedy = Filters { temperature: 0.0, ..ALL };
            let expected = pick(&greedy.candidates(&logits), uniform);
            for filters in [
                Filters { top_k: Some(1), ..ALL },
                Filters { top_p: Some(1e-9), ..ALL },
            ] {
                prop_assert_eq!(pick(&filters.candidates(&logits), uniform), expected);
            }
        }
    }
}
