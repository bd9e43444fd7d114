//! Products of small matrices, one of them a tile of vectors.

use super::super::simd::{Arithmetic, LANES};

pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(LANES)
}

/// Products of a block of `ROWS` rows and `VECTORS` vectors of columns, all in registers:
/// `sum over t < depth of a[row * a_row + t * a_step] * b[t * b_step + column]`.
#[inline(always)]
fn product<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
    depth: usize,
    a: &[f32],
    [a_row, a_step]: [usize; 2],
    b: &[f32],
    b_step: usize,
) -> [[A::Vector; VECTORS]; ROWS] {
    let mut sums = [[A::splat(0.0); VECTORS]; ROWS];
    if depth == 0 {
        return sums;
    }
    // Strides are widths of arrays that exist, and depth is one of those: their products do not overflow.
    assert!((ROWS - 1) * a_row + (depth - 1) * a_step < a.len());
    assert!((depth - 1) * b_step + VECTORS * LANES <= b.len());
    for t in 0..depth {
        let mut columns = [A::splat(0.0); VECTORS];
        for (vector, numbers) in columns.iter_mut().enumerate() {
            let first = t * b_step + vector * LANES;
            // SAFETY: `LANES` numbers of `b`, as the largest `t` and `vector` have them, as asserted above. An array of numbers needs
            // no alignment but theirs.
            *numbers = A::load(unsafe { &*b.as_ptr().add(first).cast() });
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: a number of `a`, as the largest `row` and `t` have one, as asserted above.
            let factor = A::splat(unsafe { *a.get_unchecked(row * a_row + t * a_step) });
            for (sum, numbers) in sums.iter_mut().zip(columns) {
                *sum = A::mul_add_lanes(factor, numbers, *sum);
            }
        }
    }
    sums
}

/// What becomes of a block of products.
pub(super) trait Sink<A: Arithmetic> {
    fn take(&mut self, row: usize, vector: usize, products: A::Vector);
}

/// Products of `rows` rows of `a`, block by block, as [`product`] gives them, rows of the last block beyond
/// `rows` included.
#[inline(always)]
fn blocks<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
    rows: usize,
    depth: usize,
    a: &[f32],
    a_strides: [usize; 2],
    b: &[f32],
    b_step: usize,
    sink: &mut impl Sink<A>,
) {
    for first in (0..rows).step_by(ROWS) {
        let a = &a[first * a_strides[0]..];
        let block = product::<A, ROWS, VECTORS>(depth, a, a_strides, b, b_step);
        for (row, vectors) in block.into_iter().enumerate() {
            for (vector, products) in vectors.into_iter().enumerate() {
                sink.take(first + row, vector, products);
            }
        }
    }
}

/// Products of `rows` rows of `a` and a tile of `VECTORS` vectors: see [`blocks`].
#[inline(always)]
pub(super) fn products<A: Arithmetic, const VECTORS: usize>(
    rows: usize,
    depth: usize,
    a: &[f32],
    a_row: usize,
    b: &[f32],
    sink: &mut impl Sink<A>,
) {
    let (a_strides, b_step) = ([a_row, 1], VECTORS * LANES);
    match (A::MANY_REGISTERS, VECTORS) {
        (false, _) => blocks::<A, 4, VECTORS>(rows, depth, a, a_strides, b, b_step, sink),
        (true, 1) => blocks::<A, 16, VECTORS>(rows, depth, a, a_strides, b, b_step, sink),
        (true, _) => blocks::<A, 8, VECTORS>(rows, depth, a, a_strides, b, b_step, sink),
    }
}

/// Adds products to rows of `columns` numbers, of which the first are the first column's.
struct Added<'a> {
    target: &'a mut [f32],
    columns: usize,
}

impl<A: Arithmetic> Sink<A> for Added<'_> {
    #[inline(always)]
    fn take(&mut self, row: usize, vector: usize, products: A::Vector) {
        let target = lanes_mut(self.target, row * self.columns + vector * LANES);
        A::store(A::add_lanes(A::load(target), products), target);
    }
}

/// `target[row][column] += sum over t < depth of a[row * a_row + t * a_step] * b[t][column]`, with rows of
/// `columns` numbers, whole vectors, in `b` and in `target`. Up to 15 rows beyond `rows` are written, too.
#[inline(always)]
pub(super) fn add_products<A: Arithmetic>(
    rows: usize,
    depth: usize,
    a: &[f32],
    a_strides: [usize; 2],
    b: &[f32],
    columns: usize,
    target: &mut [f32],
) {
    let mut column = 0;
    while column < columns {
        let b = &b[column..];
        let target = &mut target[column..];
        let sink = &mut Added { target, columns };
        let vectors = if !A::MANY_REGISTERS {
            blocks::<A, 4, 1>(rows, depth, a, a_strides, b, columns, sink);
            1
        } else if column + 2 * LANES <= columns {
            blocks::<A, 8, 2>(rows, depth, a, a_strides, b, columns, sink);
            2
        } else {
            blocks::<A, 16, 1>(rows, depth, a, a_strides, b, columns, sink);
            1
        };
        column += vectors * LANES;
    }
}

/// One vector of an array.
#[inline(always)]
pub(super) fn lanes(array: &[f32], first: usize) -> &[f32; LANES] {
    array[first..]
        .first_chunk()
        .expect("arrays of a task hold whole vectors")
}

/// As [`lanes`], to be written.
#[inline(always)]
pub(super) fn lanes_mut(array: &mut [f32], first: usize) -> &mut [f32; LANES] {
    array[first..]
        .first_chunk_mut()
        .expect("arrays of a task hold whole vectors")
}

/// Copies some rows one behind the other; the columns that pad them in the target are left alone.
#[inline(always)]
pub(super) fn copy_rows(
    target: &mut [f32],
    target_width: usize,
    source: &[f32],
    source_width: usize,
    rows: &[usize],
) {
    for (index, row) in rows.iter().enumerate() {
        copy_row(
            &mut target[index * target_width..][..target_width],
            &source[row * source_width..][..source_width],
        );
    }
}

#[inline(always)]
fn copy_row(target: &mut [f32], source: &[f32]) {
    let (from, from_rest) = source.as_chunks::<LANES>();
    let (to, _) = target.as_chunks_mut::<LANES>();
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    let copied = from.len() * LANES;
    for (to, from) in target[copied..].iter_mut().zip(from_rest) {
        *to = *from;
    }
}

/// Writes the rows of queries as a tile, `tile[column][lane] = factor * row(lane)[column]`, with lanes for
/// some vectors; lanes without a row get 0.
#[inline(always)]
pub(super) fn transpose<'a, A: Arithmetic>(
    row: impl Fn(usize) -> &'a [f32],
    count: usize,
    columns: usize,
    factor: f32,
    tile: &mut [f32],
    vectors: usize,
) {
    let factor = A::splat(factor);
    for vector in 0..vectors {
        for column in (0..columns).step_by(LANES) {
            let here = LANES.min(columns - column);
            let mut block = [A::splat(0.0); LANES];
            let used = LANES.min(count - vector * LANES);
            for (lane, numbers) in block.iter_mut().enumerate().take(used) {
                let row = &row(vector * LANES + lane)[column..];
                *numbers = match row.first_chunk() {
                    Some(row) if here == LANES => A::load(row),
                    _ => {
                        let mut part = [0.0; LANES];
                        part[..here].copy_from_slice(&row[..here]);
                        A::load(&part)
                    }
                };
            }
            // Each round is a perfect shuffle of all numbers; four of them exchange rows and lanes.
            for _ in 0..LANES.ilog2() {
                let mut shuffled = block;
                for index in 0..LANES / 2 {
                    let [low, high] = A::interleave_lanes(block[index], block[index + LANES / 2]);
                    shuffled[2 * index] = low;
                    shuffled[2 * index + 1] = high;
                }
                block = shuffled;
            }
            for (index, numbers) in block.into_iter().enumerate().take(here) {
                let first = ((column + index) * vectors + vector) * LANES;
                A::store(A::mul_lanes(numbers, factor), lanes_mut(tile, first));
            }
        }
    }
}

/// First query and number of vectors of each tile of a chunk.
#[inline(always)]
pub(super) fn tiles(many_registers: bool, queries: usize) -> impl Iterator<Item = (usize, usize)> {
    let most = if many_registers { 2 } else { 1 };
    (0..queries)
        .step_by(most * LANES)
        .map(move |first| (first, most.min((queries - first).div_ceil(LANES))))
}

/// `target = factor * source`, as far as the target goes.
#[inline(always)]
pub(super) fn scale_row(target: &mut [f32], source: &[f32], factor: f32) {
    for (target, source) in target.iter_mut().zip(source) {
        *target = factor * source;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::simd::{Kernel, dispatch};
    use super::*;

    /// A block of two rows and two vectors, from arrays of these lengths.
    struct Block {
        depth: usize,
        lengths: [usize; 2],
    }

    impl Kernel for Block {
        type Output = ();

        #[inline(always)]
        fn run<A: Arithmetic>(self) {
            let Self { depth, lengths } = self;
            let [a, b] = lengths.map(|length| vec![2.0; length]);
            // Rows of `a` are 7 apart, those of `b` 40.
            let block = product::<A, 2, 2>(depth, &a, [7, 1], &b, 40);
            for vector in block.into_iter().flatten() {
                let mut numbers = [0.0; LANES];
                A::store(vector, &mut numbers);
                assert_eq!(numbers, [4.0 * depth as f32; LANES]);
            }
        }
    }

    fn block(depth: usize, lengths: [usize; 2]) {
        dispatch(Block { depth, lengths });
    }

    #[test]
    fn a_block_reads_to_the_end_of_its_arrays() {
        block(3, [7 + 3, 2 * 40 + 2 * LANES]);
        block(1, [8, 2 * LANES]);
        block(0, [0, 0]);
    }

    #[test]
    #[should_panic(expected = "< a.len()")]
    fn a_block_past_the_end_of_its_rows_is_refused() {
        block(3, [7 + 2, 2 * 40 + 2 * LANES]);
    }

    #[test]
    #[should_panic(expected = "<= b.len()")]
    fn a_block_past_the_end_of_its_vectors_is_refused() {
        block(3, [7 + 3, 2 * 40 + 2 * LANES - 1]);
    }
}
