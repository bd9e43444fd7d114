//! A seeded permutation that is evaluated one position at a time.

use crate::TaskError;
use crate::error::check_batch;

/// A pseudo-random permutation of `0..len`: each epoch of a data set in its own order.
///
/// Position `i` is computed alone, in constant expected time and without a table, so a batch costs
/// what its size costs and a run can resume at any step. The permutation is a Feistel network on the
/// next power of four, walked until it lands below `len` (Black and Rogaway, "Ciphers with arbitrary
/// finite domains", 2002). It is for shuffling data and has no cryptographic strength.
#[derive(Clone, Copy, Debug)]
pub struct Shuffle {
    len: u64,
    half_bits: u32,
    keys: [u64; Shuffle::ROUNDS],
}

impl Shuffle {
    const ROUNDS: usize = 6;

    /// The permutation of `0..len` that belongs to `seed` and `epoch`.
    ///
    /// # Panics
    /// If `len` is 0.
    pub fn new(len: usize, seed: u64, epoch: u64) -> Self {
        assert!(len > 0, "Shuffle::new: len: expected at least 1, got 0");
        let len = len as u64;
        // Both halves need at least one bit; len = 1 and 2 walk inside a domain of four.
        let bits = (u64::BITS - (len - 1).leading_zeros()).max(2);
        let mut state = mix(seed) ^ mix(epoch.wrapping_add(0xA076_1D64_78BD_642F));
        let keys = std::array::from_fn(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            mix(state)
        });
        Self {
            len,
            half_bits: bits.div_ceil(2),
            keys,
        }
    }

    /// The element at `position`.
    ///
    /// # Panics
    /// If `position` is not below the length.
    pub fn get(&self, position: usize) -> usize {
        let mut at = position as u64;
        assert!(
            at < self.len,
            "Shuffle::get: position: expected below {}, got {at}",
            self.len
        );
        // The network permutes its whole domain, so the walk along its cycle comes back below `len`.
        loop {
            at = self.encrypt(at);
            if at < self.len {
                return at as usize;
            }
        }
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// The items of training batch `step`: epochs over `0..len`, each in an order of its own, cut into
/// batches. A batch that ends one epoch begins the next.
pub(crate) fn batch_indices(
    len: usize,
    seed: u64,
    step: u64,
    batch_size: usize,
) -> Result<Vec<usize>, TaskError> {
    check_batch(batch_size)?;
    let first = u128::from(step) * batch_size as u128;
    let mut epoch = (first / len as u128) as u64;
    let mut position = (first % len as u128) as usize;
    let mut shuffle = Shuffle::new(len, seed, epoch);
    let mut indices = Vec::with_capacity(batch_size);
    for _ in 0..batch_size {
        if position == len {
            position = 0;
            epoch = epoch.wrapping_add(1);
            shuffle = Shuffle::new(len, seed, epoch);
        }
        indices.push(shuffle.get(position));
        position += 1;
    }
    Ok(indices)
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
