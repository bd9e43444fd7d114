//! What orders compute from points.

/// The points of one example in double precision, a row per token, real or not.
///
/// Sums run in an order that depends on the tokens asked for alone, so padding changes no digit.
pub(super) struct Points {
    values: Vec<f64>,
    dim: usize,
}

impl Points {
    pub(super) fn new(points: &[f32], dim: usize) -> Self {
        Self {
            values: points.iter().map(|value| f64::from(*value)).collect(),
            dim,
        }
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    pub(super) fn row(&self, token: usize) -> &[f64] {
        &self.values[token * self.dim..(token + 1) * self.dim]
    }

    /// The mean of at least one token.
    pub(super) fn centroid(&self, tokens: &[usize]) -> Vec<f64> {
        let mut mean = vec![0.0; self.dim];
        for token in tokens {
            add(&mut mean, self.row(*token));
        }
        mean.iter_mut().for_each(|sum| *sum /= tokens.len() as f64);
        mean
    }

    /// The token farthest from `point`, the first by position among equals.
    pub(super) fn farthest(&self, tokens: &[usize], point: &[f64]) -> usize {
        greatest(tokens, |token| squared_distance(self.row(token), point))
    }
}

/// The token with the greatest key, the first by position among equals; `tokens` has at least one.
pub(super) fn greatest(tokens: &[usize], mut key: impl FnMut(usize) -> f64) -> usize {
    let first = tokens[0];
    let mut best = (key(first), first);
    for token in &tokens[1..] {
        let value = key(*token);
        let order = value.total_cmp(&best.0);
        if order.is_gt() || order.is_eq() && *token < best.1 {
            best = (value, *token);
        }
    }
    best.1
}

pub(super) fn add(sum: &mut [f64], row: &[f64]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += value;
    }
}

pub(super) fn dot(left: &[f64], right: &[f64]) -> f64 {
    sum_of_terms(left, right, |a, b| a * b)
}

pub(super) fn squared_distance(left: &[f64], right: &[f64]) -> f64 {
    sum_of_terms(left, right, |a, b| (a - b) * (a - b))
}

/// Eight sums side by side: the compiler may not reorder one sum of floats, and so could not use
/// vector instructions for it.
#[inline(always)]
pub(super) fn sum_of_terms(left: &[f64], right: &[f64], term: impl Fn(f64, f64) -> f64) -> f64 {
    let (left_blocks, left_rest) = left.as_chunks::<8>();
    let (right_blocks, right_rest) = right.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (left, right) in left_blocks.iter().zip(right_blocks) {
        for lane in 0..8 {
            sums[lane] += term(left[lane], right[lane]);
        }
    }
    let rest: f64 = left_rest
        .iter()
        .zip(right_rest)
        .map(|(a, b)| term(*a, *b))
        .sum();
    sums.iter().sum::<f64>() + rest
}
