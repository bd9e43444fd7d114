//! What kernels do to the rows of a chunk: normalisation, sums and products.

use super::simd::{Arithmetic, LANES};
use super::tuning::{CHUNK_NUMBERS, CHUNK_ROWS};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Most rows of a chunk whose rows have this many numbers of activations.
pub(super) fn most_rows(numbers_per_row: usize) -> usize {
    (CHUNK_NUMBERS / numbers_per_row).clamp(CHUNK_ROWS.start, CHUNK_ROWS.end)
}

/// Memory for the chunks that are being worked on, kept for those to come.
#[derive(Default)]
pub(super) struct Pool<T>(Mutex<Vec<T>>);

impl<T: Default> Pool<T> {
    pub(super) fn with(&self, work: impl FnOnce(&mut T)) {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = lock().pop();
        let mut scratch = free.unwrap_or_default();
        work(&mut scratch);
        lock().push(scratch);
    }
}

/// Parts of these lengths, one behind the other.
pub(super) fn split(
    mut flat: &mut [f32],
    lengths: impl IntoIterator<Item = usize>,
) -> impl Iterator<Item = &mut [f32]> {
    let lengths = lengths.into_iter();
    lengths.map(move |length| {
        flat.split_off_mut(..length)
            .expect("the slice has all parts")
    })
}

/// [`split`] into an array.
pub(super) fn split_array<const N: usize>(
    mut flat: &mut [f32],
    lengths: [usize; N],
) -> [&mut [f32]; N] {
    lengths.map(|length| {
        flat.split_off_mut(..length)
            .expect("the slice has all parts")
    })
}

/// Writes sums of partial gradients: `partials` holds copies of all fields side by side.
pub(super) fn sum_partials<const N: usize>(partials: &[f32], fields: [&mut [f32]; N]) {
    let parameters: usize = fields.iter().map(|field| field.len()).sum();
    let mut first = 0;
    for field in fields {
        field
            .par_chunks_mut(4096)
            .enumerate()
            .for_each(|(at, field)| {
                field.fill(0.0);
                for partial in partials.chunks_exact(parameters) {
                    let partial = &partial[first + at * 4096..][..field.len()];
                    for (total, part) in field.iter_mut().zip(partial) {
                        *total += part;
                    }
                }
            });
        first += field.len();
    }
}

/// Normalises rows: `(x - mean) / sqrt(variance + epsilon) * gamma + beta` with the biased variance.
#[inline(always)]
pub(super) fn layer_norm<A: Arithmetic>(
    input: &[f32],
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    output: &mut [f32],
    moments: &mut [[f32; 2]],
) {
    let dim = gamma.len();
    let rows = input.chunks_exact(dim).zip(output.chunks_exact_mut(dim));
    for ((input, output), moments) in rows.zip(moments) {
        let mean = sum::<A>(input) / dim as f32;
        // Lanes past the row's end hold the mean, which is no distance apart.
        let mut total = [0.0; LANES];
        for at in (0..dim).step_by(LANES) {
            let input = load_or(&input[at..], mean);
            for lane in 0..LANES {
                let apart = input[lane] - mean;
                total[lane] = A::mul_add(apart, apart, total[lane]);
            }
        }
        let inverse = 1.0 / (sum_lanes::<A>(&total) / dim as f32 + epsilon).sqrt();
        *moments = [mean, inverse];
        for at in (0..dim).step_by(LANES) {
            let (input, gamma, beta) = (load(&input[at..]), load(&gamma[at..]), load(&beta[at..]));
            let mut normal = [0.0; LANES];
            for lane in 0..LANES {
                normal[lane] = A::mul_add((input[lane] - mean) * inverse, gamma[lane], beta[lane]);
            }
            store(&mut output[at..], normal);
        }
    }
}

/// Turns the gradient of [`layer_norm`]'s output into that of its input, and adds to those of its
/// parameters.
#[inline(always)]
pub(super) fn layer_norm_backward<A: Arithmetic>(
    input: &[f32],
    gamma: &[f32],
    moments: &[[f32; 2]],
    grad: &mut [f32],
    d_gamma: &mut [f32],
    d_beta: &mut [f32],
) {
    let dim = gamma.len();
    let rows = input.chunks_exact(dim).zip(grad.chunks_exact_mut(dim));
    for ((input, grad), [mean, inverse]) in rows.zip(moments) {
        let mut plain = [0.0; LANES];
        let mut along = [0.0; LANES];
        for at in (0..dim).step_by(LANES) {
            let (input, gamma) = (load(&input[at..]), load(&gamma[at..]));
            let grad = load(&grad[at..]);
            let mut d_gamma_total = load(&d_gamma[at..]);
            let mut d_beta_total = load(&d_beta[at..]);
            for lane in 0..LANES {
                let normal = (input[lane] - mean) * inverse;
                let scaled = grad[lane] * gamma[lane];
                plain[lane] += scaled;
                along[lane] = A::mul_add(scaled, normal, along[lane]);
                d_gamma_total[lane] = A::mul_add(grad[lane], normal, d_gamma_total[lane]);
                d_beta_total[lane] += grad[lane];
            }
            store(&mut d_gamma[at..], d_gamma_total);
            store(&mut d_beta[at..], d_beta_total);
        }
        let (plain, along) = (
            sum_lanes::<A>(&plain) / dim as f32,
            sum_lanes::<A>(&along) / dim as f32,
        );
        for at in (0..dim).step_by(LANES) {
            let (input, gamma) = (load(&input[at..]), load(&gamma[at..]));
            let mut change = load(&grad[at..]);
            for lane in 0..LANES {
                let normal = (input[lane] - mean) * inverse;
                let centred = A::mul_add(change[lane], gamma[lane], -plain);
                change[lane] = inverse * A::mul_add(-normal, along, centred);
            }
            store(&mut grad[at..], change);
        }
    }
}

/// The first numbers of a slice; zeros past its end.
#[inline(always)]
pub(super) fn load(slice: &[f32]) -> [f32; LANES] {
    load_or(slice, 0.0)
}

#[inline(always)]
fn load_or(slice: &[f32], missing: f32) -> [f32; LANES] {
    match slice.first_chunk() {
        Some(lanes) => *lanes,
        None => load_rest(slice, missing),
    }
}

/// Not inlined, or the compiler copies whole vectors, too, by a length it does not know.
#[cold]
#[inline(never)]
fn load_rest(slice: &[f32], missing: f32) -> [f32; LANES] {
    let mut lanes = [missing; LANES];
    lanes[..slice.len()].copy_from_slice(slice);
    lanes
}

/// Writes the first numbers of a slice, as many as it has.
#[inline(always)]
pub(super) fn store(slice: &mut [f32], lanes: [f32; LANES]) {
    match slice.first_chunk_mut() {
        Some(target) => *target = lanes,
        None => store_rest(slice, lanes),
    }
}

#[cold]
#[inline(never)]
fn store_rest(slice: &mut [f32], lanes: [f32; LANES]) {
    slice.copy_from_slice(&lanes[..slice.len()]);
}

#[inline(always)]
fn sum<A: Arithmetic>(slice: &[f32]) -> f32 {
    let mut total = [0.0; LANES];
    for at in (0..slice.len()).step_by(LANES) {
        let lanes = load(&slice[at..]);
        for lane in 0..LANES {
            total[lane] += lanes[lane];
        }
    }
    sum_lanes::<A>(&total)
}

#[inline(always)]
fn sum_lanes<A: Arithmetic>(lanes: &[f32; LANES]) -> f32 {
    A::sum_lanes(A::load(lanes))
}

/// Adds every row of a matrix to the target, column by column: a sum that stays in a register is not
/// written once per row.
#[inline(always)]
pub(super) fn add_rows<A: Arithmetic>(target: &mut [f32], rows: &[f32]) {
    let dim = target.len();
    for at in (0..dim).step_by(LANES) {
        let mut total = load(&target[at..]);
        for row in rows.chunks_exact(dim) {
            let row = load(&row[at..]);
            for lane in 0..LANES {
                total[lane] += row[lane];
            }
        }
        store(&mut target[at..], total);
    }
}

/// A matrix by its numbers and the distances between them.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    numbers: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
}

impl<'a> Matrix<'a> {
    /// Row after row.
    #[inline(always)]
    pub(super) fn new(numbers: &'a [f32], columns: usize) -> Self {
        Self {
            numbers,
            rows: numbers.len() / columns,
            columns,
            row_stride: columns as isize,
            column_stride: 1,
        }
    }

    #[inline(always)]
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// What happens to the numbers that a product is written over.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Write {
    Set,
    Add,
}

/// `target = factor * left * right`, or that added to it, on this thread.
pub(super) fn multiply(target: &mut [f32], write: Write, factor: f32, left: Matrix, right: Matrix) {
    let (rows, columns, inner) = (left.rows, right.columns, left.columns);
    assert_eq!(inner, right.rows, "product: inner axis");
    assert_eq!(target.len(), rows * columns, "product: size");
    // SAFETY: strides stay inside the slices: a `Matrix` has at least `rows * columns` numbers, which `new` ensures and
    // `transposed` keeps, the target has as many as just asserted, and all are one axis's length apart along the other. The target
    // is borrowed exclusively, so neither factor overlaps it.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            target.as_mut_ptr(),
            1,
            columns as isize,
            write == Write::Add,
            left.numbers.as_ptr(),
            left.column_stride,
            left.row_stride,
            right.numbers.as_ptr(),
            right.column_stride,
            right.row_stride,
            1.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Numbers in -1..1 that look random.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    proptest! {
        #[test]
        fn products_are_those_of_the_definition_whatever_the_sizes(
            [rows, columns, inner] in [1_usize..20, 1..20, 1..20],
            transposed in any::<[bool; 2]>(),
            add in any::<bool>(),
        ) {
            let (left, right) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
            let matrix = |numbers, [rows, columns]: [usize; 2], transposed| if transposed { Matrix::new(numbers, rows).transposed() } else { Matrix::new(numbers, columns) };
            let mut target = vec![if add { 1.0 } else { f32::NAN }; rows * columns];
            multiply(
                &mut target,
                if add { Write::Add } else { Write::Set },
                0.5,
                matrix(&left, [rows, inner], transposed[0]),
                matrix(&right, [inner, columns], transposed[1]),
            );
            let at = |numbers: &[f32], [rows, columns]: [usize; 2], [row, column]: [usize; 2], transposed| {
                f64::from(numbers[if transposed { column * rows + row } else { row * columns + column }])
            };
            for row in 0..rows {
                for column in 0..columns {
                    let products = (0..inner).map(|step| {
                        at(&left, [rows, inner], [row, step], transposed[0])
                            * at(&right, [inner, columns], [step, column], transposed[1])
                    });
                    let expected = 0.5 * products.sum::<f64>() + f64::from(u8::from(add));
                    let got = f64::from(target[row * columns + column]);
                    prop_assert!((got - expected).abs() < 1e-5, "{got}, expected {expected}");
                }
            }
        }
    }

    /// A product into a target of so many numbers; the factors have 3 by `inner` and 4 by 5.
    fn product(inner: usize, target: usize) {
        let (left, right) = (vec![0.0; 3 * inner], vec![0.0; 4 * 5]);
        let [left, right] = [Matrix::new(&left, inner), Matrix::new(&right, 5)];
        multiply(&mut vec![0.0; target], Write::Set, 1.0, left, right);
    }

    #[test]
    #[should_panic(expected = "product: size")]
    fn a_product_past_the_end_of_its_target_is_refused() {
        product(4, 14);
    }

    #[test]
    #[should_panic(expected = "product: inner axis")]
    fn a_product_of_factors_that_do_not_fit_is_refused() {
        product(5, 15);
    }
}
