//! Random numbers as a function of seed and step.

use arbora_rl::seed::{Purpose, rng};
use rand::RngCore;

#[test]
fn steps_and_purposes_and_seeds_have_sequences_of_their_own() {
    let mut firsts = Vec::new();
    for seed in [0, 1] {
        let purposes = [
            Purpose::Data,
            Purpose::Policy,
            Purpose::Evaluation,
            Purpose::Parameters,
        ];
        for purpose in purposes {
            for step in [0, 1, 1000] {
                firsts.push(rng(seed, purpose, step).next_u64());
            }
        }
    }
    let count = firsts.len();
    firsts.sort_unstable();
    firsts.dedup();
    assert_eq!(firsts.len(), count);
}

#[test]
fn a_step_draws_the_same_numbers_every_time() {
    let draw = || rng(7, Purpose::Policy, 42).next_u64();
    assert_eq!(draw(), draw());
}
