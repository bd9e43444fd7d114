//! Random numbers as a function of (seed, step) alone.
//!
//! Nothing is carried from step to step, so there is no random state to save: a run that stops
//! and resumes draws what it would have drawn.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What random numbers are for. Each purpose has its own sequence for the same seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Which examples enter a batch, and how they are cut.
    Data = 1,
    /// Which decisions a policy takes in training.
    Policy = 2,
    /// Anything drawn while evaluating.
    Evaluation = 3,
    /// Initial values of parameters.
    Parameters = 4,
}

/// The seed of one purpose, derived from the seed of the run.
pub fn derive(seed: u64, purpose: Purpose) -> u64 {
    // Neighbouring seeds must not give related sequences.
    mix(spread(seed, purpose as u64))
}

/// State `index` of the generator SplitMix64 that starts at `seed`, before its output function, which is [`mix`].
pub fn spread(seed: u64, index: u64) -> u64 {
    seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): every
/// bit of the result depends on all bits of the value.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// The generator of one step for one purpose.
pub fn rng(seed: u64, purpose: Purpose, step: u64) -> ChaCha8Rng {
    step_rng(derive(seed, purpose), step)
}

/// The generator of one step for a seed that already belongs to one purpose: seed and stream of
/// ChaCha8.
pub fn step_rng(seed: u64, step: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step);
    rng
}
