//! Options of leaf attention, and the random numbers of its dropout.

/// Options of leaf attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeafAttentionOptions {
    /// Number of leaves. A query or key whose leaf is outside `0..leaves` is masked out.
    pub leaves: usize,
    /// Factor on the dot products; `None` means `head_dim^-1/2`.
    pub scale: Option<f64>,
    /// `None`: every query sees all keys of its leaf. `Some(offset)`: query `i` sits at position
    /// `i + offset` of the keys' sequence, and sees those keys `j` of its leaf with `j <= i + offset`.
    pub causal: Option<usize>,
    /// Which weights are dropped; `None` means none.
    pub dropout: Option<Dropout>,
}

impl LeafAttentionOptions {
    /// The defaults for a number of leaves: scale `head_dim^-1/2`, not causal, no dropout.
    pub fn new(leaves: usize) -> Self {
        Self {
            leaves,
            scale: None,
            causal: None,
            dropout: None,
        }
    }

    pub(crate) fn scale(&self, head_dim: usize) -> f64 {
        self.scale.unwrap_or((head_dim as f64).powf(-0.5))
    }

    /// Dropout, if it drops anything.
    pub(crate) fn dropping(&self) -> Option<Dropout> {
        self.dropout.filter(|dropout| dropout.rate > 0.0)
    }
}

/// Dropout of attention weights after the softmax.
///
/// Whether the weight of a pair stays is a function of the seed, the example, the head, and the positions
/// of query and key, and of nothing else: all backends drop the same pairs, the gradient drops those
/// that the forward pass dropped, and no mask is stored. Padding an example changes none of its pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The probability that a weight is dropped, in `0.0..1.0`. Those kept are divided by `1 - rate`.
    pub rate: f64,
    /// Another seed drops other pairs. Draw a new one for every step of a training.
    pub seed: u64,
}

impl Dropout {
    /// Whether the weight of a pair stays: its 32-bit number is at least `rate * 2^32`.
    pub fn keeps(&self, example: usize, head: usize, query: usize, key: usize) -> bool {
        let row = row_state(self.state(), example as u32, head as u32, query as u32);
        pair_number(row, key as u32) >= self.threshold()
    }

    /// Factor of the weights that stay.
    pub(crate) fn factor(&self) -> f64 {
        1.0 / (1.0 - self.rate)
    }

    pub(crate) fn threshold(&self) -> u32 {
        // A cast saturates.
        (self.rate * 4_294_967_296.0) as u32
    }

    /// What all pairs share.
    pub(crate) fn state(&self) -> u32 {
        step(step(0, self.seed as u32), (self.seed >> 32) as u32)
    }
}

/// What the pairs of one head of a query share. Kernels compute the same.
pub(crate) fn row_state(state: u32, example: u32, head: u32, query: u32) -> u32 {
    step(step(step(state, example), head), query)
}

/// The number that decides on a pair, uniform over all 32 bits.
#[inline(always)]
pub(crate) fn pair_number(row: u32, key: u32) -> u32 {
    step(row, key)
}

/// Takes a word into the state.
#[inline(always)]
fn step(state: u32, word: u32) -> u32 {
    // Without the constant a state and a word of 0 would stay 0.
    mix(state.wrapping_add(0x9e37_79b9) ^ word)
}

/// A bijection of 32 bits in which every bit of the input flips every bit of the output in about half of
/// all cases; constants from the [hash prospector](https://github.com/skeeto/hash-prospector).
#[inline(always)]
fn mix(mut word: u32) -> u32 {
    word ^= word >> 16;
    word = word.wrapping_mul(0x7feb_352d);
    word ^= word >> 15;
    word = word.wrapping_mul(0x846c_a68b);
    word ^ (word >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_never_changes() {
        // A resumed training drops what it would have dropped.
        let dropout = Dropout { rate: 0.5, seed: 3 };
        let row = row_state(dropout.state(), 0, 1, 2);
        assert_eq!([row, pair_number(row, 5)], [0xf834_f658, 0xd4df_0b95]);
        assert_eq!(Dropout { rate: 0.0, seed: 3 }.threshold(), 0);
        assert_eq!(dropout.threshold(), 1 << 31);
    }
}
