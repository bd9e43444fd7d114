//! Softmax attention over a dense set of keys, forward and backward.
//!
//! No array of queries by keys exists. A task takes one head of one example and goes over tiles of some
//! keys by some queries that stay in the nearest cache; queries are the lanes of its vectors, so that
//! maxima and totals of the softmax need no sums across lanes. The forward pass keeps, per query, the
//! greatest logit so far and everything relative to it; the backward pass computes the weights again
//! from the total that the forward pass returns.
//!
//! See [FlashAttention-2](https://arxiv.org/abs/2307.08691).

use super::simd::{Arithmetic, Kernel, LANES, add_scaled, dispatch, exp_lanes_up_to_zero};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Keys of one tile, forward: few enough that keys, values and logits share the nearest cache.
const FORWARD_KEYS: usize = 128;

/// Keys of one tile, backward, where there are twice as many arrays.
const BACKWARD_KEYS: usize = 64;

/// Queries for which a task holds its state: few enough for the second cache, and many enough that
/// copying a tile of keys costs nothing beside what is done with it.
const QUERIES: usize = 256;

/// A call with fewer pairs of an example and a head is cut into more tasks than that.
const TASKS: usize = 64;

/// Sizes and scale of one attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DenseDims {
    /// Examples.
    pub(crate) batch: usize,
    /// Queries per example.
    pub(crate) queries: usize,
    /// Rows stored in key and value per example.
    pub(crate) rows: usize,
    /// Attended are the rows `first_key..rows`.
    pub(crate) first_key: usize,
    /// Heads.
    pub(crate) heads: usize,
    /// Numbers per query and key, of one head.
    pub(crate) head_dim: usize,
    /// Numbers per value, of one head.
    pub(crate) value_dim: usize,
    /// Factor of the dot products.
    pub(crate) scale: f32,
}

impl DenseDims {
    fn keys(&self) -> usize {
        self.rows - self.first_key
    }

    fn groups(&self) -> usize {
        self.batch * self.heads
    }

    fn query_row(&self, example: usize, query: usize, head: usize) -> usize {
        ((example * self.queries + query) * self.heads + head) * self.head_dim
    }

    fn context_row(&self, example: usize, query: usize, head: usize) -> usize {
        ((example * self.queries + query) * self.heads + head) * self.value_dim
    }

    fn total(&self, example: usize, query: usize, head: usize) -> usize {
        (example * self.queries + query) * self.heads + head
    }

    fn key_row(&self, example: usize, row: usize, head: usize) -> usize {
        ((example * self.rows + row) * self.heads + head) * self.head_dim
    }

    fn value_row(&self, example: usize, row: usize, head: usize) -> usize {
        ((example * self.rows + row) * self.heads + head) * self.value_dim
    }

    /// Rows of a range that are attended to.
    fn keep(
        &self,
        mask: Option<&[bool]>,
        example: usize,
        rows: Range<usize>,
        kept: &mut Vec<usize>,
    ) {
        kept.clear();
        match mask {
            None => kept.extend(rows),
            Some(mask) => {
                let mask = &mask[example * self.keys()..(example + 1) * self.keys()];
                kept.extend(rows.filter(|row| !mask[row - self.first_key]));
            }
        }
    }

    fn check(&self, query: &[f32], key: &[f32], value: &[f32], mask: Option<&[bool]>) {
        let heads = self.groups();
        assert!(self.first_key <= self.rows);
        assert_eq!(query.len(), heads * self.queries * self.head_dim);
        assert_eq!(key.len(), heads * self.rows * self.head_dim);
        assert_eq!(value.len(), heads * self.rows * self.value_dim);
        if let Some(mask) = mask {
            assert_eq!(mask.len(), self.batch * self.keys());
        }
    }
}

/// Softmax attention of all queries of an example over its keys.
///
/// # Shapes
/// - query: `[batch, queries, heads, head_dim]`
/// - key: `[batch, rows, heads, head_dim]`, value: `[batch, rows, heads, value_dim]`
/// - mask: `[batch, rows - first_key]`, `true` = masked out
/// - context: `[batch, queries, heads, value_dim]`
/// - log_total: `[batch, queries, heads]`, the logarithm of the sum of `exp(scale * query . key)`
///
/// A query without keys has context 0 and log_total 0.
///
/// # Panics
/// Where a slice is not of its shape.
pub(crate) fn forward(
    dims: DenseDims,
    query: &[f32],
    key: &[f32],
    value: &[f32],
    mask: Option<&[bool]>,
    context: &mut [f32],
    log_total: &mut [f32],
) {
    dims.check(query, key, value, mask);
    assert_eq!(context.len(), dims.groups() * dims.queries * dims.value_dim);
    assert_eq!(log_total.len(), dims.groups() * dims.queries);
    if log_total.is_empty() {
        return;
    }
    let chunk = match dims.groups() * dims.queries.div_ceil(QUERIES) >= TASKS / 2 {
        true => QUERIES,
        false => QUERIES / 4,
    };
    let chunks = dims.queries.div_ceil(chunk);
    let context = Shared::new(context);
    let log_total = Shared::new(log_total);
    (0..dims.groups() * chunks)
        .into_par_iter()
        .with_min_len(dims.groups() * chunks / TASKS)
        .for_each_init(Scratch::default, |scratch, task| {
            let first = task % chunks * chunk;
            dispatch(Forward {
                dims,
                query,
                key,
                value,
                mask,
                context,
                log_total,
                scratch,
                example: task / chunks / dims.heads,
                head: task / chunks % dims.heads,
                queries: first..dims.queries.min(first + chunk),
            });
        });
}

/// Gradients of [`forward`] with regard to query, key and value.
///
/// `context` and `log_total` are what [`forward`] returned, `grad` is the gradient with regard to
/// `context`. The results are written in full; rows that nothing attends to get 0.
///
/// # Panics
/// Where a slice is not of its shape.
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    dims: DenseDims,
    query: &[f32],
    key: &[f32],
    value: &[f32],
    mask: Option<&[bool]>,
    context: &[f32],
    log_total: &[f32],
    grad: &[f32],
    d_query: &mut [f32],
    d_key: &mut [f32],
    d_value: &mut [f32],
) {
    dims.check(query, key, value, mask);
    assert_eq!(context.len(), dims.groups() * dims.queries * dims.value_dim);
    assert_eq!(log_total.len(), dims.groups() * dims.queries);
    assert_eq!(grad.len(), context.len());
    assert_eq!(d_query.len(), query.len());
    assert_eq!(d_key.len(), key.len());
    assert_eq!(d_value.len(), value.len());
    if log_total.is_empty() || dims.keys() == 0 {
        d_query.fill(0.0);
        d_key.fill(0.0);
        d_value.fill(0.0);
        return;
    }
    // With few heads the longer axis is cut as well, and the gradients of the other are summed after.
    let want = TASKS.div_ceil(dims.groups());
    let (key_chunks, query_chunks) = match dims.keys() >= dims.queries {
        true => (want.min(dims.keys().div_ceil(QUERIES)), 1),
        false => (1, want.min(dims.queries.div_ceil(QUERIES))),
    };
    let key_chunk = dims.keys().div_ceil(key_chunks);
    let query_chunk = dims.queries.div_ceil(query_chunks);
    let key_chunks = dims.keys().div_ceil(key_chunk);
    let query_chunks = dims.queries.div_ceil(query_chunk);

    let tasks = key_chunks * query_chunks;
    let mut parts_of_query = parts(key_chunks, d_query.len());
    let mut parts_of_key = parts(query_chunks, d_key.len());
    let mut parts_of_value = parts(query_chunks, d_value.len());
    let to_query = target(d_query, &mut parts_of_query);
    let to_key = target(d_key, &mut parts_of_key);
    let to_value = target(d_value, &mut parts_of_value);
    (0..dims.groups() * tasks)
        .into_par_iter()
        .with_min_len(dims.groups() * tasks / TASKS)
        .for_each_init(Scratch::default, |scratch, task| {
            let (group, part) = (task / tasks, task % tasks);
            let (key_part, query_part) = (part / query_chunks, part % query_chunks);
            let first_key = dims.first_key + key_part * key_chunk;
            let first_query = query_part * query_chunk;
            dispatch(Backward {
                dims,
                query,
                key,
                value,
                mask,
                context,
                log_total,
                grad,
                d_query: to_query.part(key_part, query.len()),
                d_key: to_key.part(query_part, key.len()),
                d_value: to_value.part(query_part, value.len()),
                scratch,
                example: group / dims.heads,
                head: group % dims.heads,
                keys: first_key..dims.rows.min(first_key + key_chunk),
                queries: first_query..dims.queries.min(first_query + query_chunk),
            });
        });
    add_parts(d_query, &parts_of_query);
    add_parts(d_key, &parts_of_key);
    add_parts(d_value, &parts_of_value);
}

/// Room for the results of chunks that are summed later; none where there is one chunk.
fn parts(chunks: usize, length: usize) -> Vec<f32> {
    match chunks {
        1 => Vec::new(),
        _ => vec![0.0; chunks * length],
    }
}

/// Where tasks write: to the parts, where there are any.
fn target<'a>(whole: &'a mut [f32], parts: &'a mut [f32]) -> Shared<'a> {
    match parts.is_empty() {
        true => Shared::new(whole),
        false => Shared::new(parts),
    }
}

/// Sums parts in their order.
fn add_parts(whole: &mut [f32], parts: &[f32]) {
    const PIECE: usize = 4096;
    let length = whole.len();
    if parts.is_empty() {
        return;
    }
    whole
        .par_chunks_mut(PIECE)
        .enumerate()
        .for_each(|(piece, whole)| {
            let here = piece * PIECE..piece * PIECE + whole.len();
            whole.copy_from_slice(&parts[here.clone()]);
            for part in parts.chunks_exact(length).skip(1) {
                for (sum, part) in whole.iter_mut().zip(&part[here.clone()]) {
                    *sum += part;
                }
            }
        });
}

/// An array that several tasks write to at once, each to rows of its own.
#[derive(Clone, Copy)]
struct Shared<'a> {
    start: *mut f32,
    length: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for an exclusive borrow of plain numbers, and every access goes through `row`, whose
// callers promise that no two of them overlap.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn new(array: &'a mut [f32]) -> Self {
        Self {
            start: array.as_mut_ptr(),
            length: array.len(),
            owner: PhantomData,
        }
    }

    /// One of several arrays of `length` numbers that lie behind one another.
    fn part(self, index: usize, length: usize) -> Self {
        assert!((index + 1) * length <= self.length);
        Self {
            // SAFETY: in bounds, as just checked.
            start: unsafe { self.start.add(index * length) },
            length,
            owner: PhantomData,
        }
    }

    /// A row of the array.
    ///
    /// # Safety
    /// No two rows that exist at the same time overlap.
    #[inline(always)]
    unsafe fn row(self, first: usize, length: usize) -> &'a mut [f32] {
        assert!(first + length <= self.length);
        // SAFETY: in bounds, as just checked, and not aliased, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), length) }
    }
}

/// As many numbers as one vector of the widest kind, at an address that such vectors like best.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Memory of a task, kept for the next one. The first task finds it zeroed, and all tasks of a call lay it
/// out alike, so that columns that only pad a row to whole vectors stay zero.
#[derive(Default)]
struct Scratch {
    lines: Vec<Line>,
    kept: Vec<usize>,
}

impl Scratch {
    fn reserve<const PIECES: usize>(
        &mut self,
        lengths: [usize; PIECES],
    ) -> ([&mut [f32]; PIECES], &mut Vec<usize>) {
        let lines = lengths.map(|length| length.div_ceil(LANES));
        self.lines.resize(lines.iter().sum(), Line([0.0; LANES]));
        let mut rest = self.lines.as_mut_slice();
        let pieces = lines.map(|lines| {
            let (piece, behind) = std::mem::take(&mut rest).split_at_mut(lines);
            rest = behind;
            // SAFETY: a line is `LANES` numbers and nothing else.
            unsafe { std::slice::from_raw_parts_mut(piece.as_mut_ptr().cast(), lines * LANES) }
        });
        (pieces, &mut self.kept)
    }
}

fn padded(length: usize) -> usize {
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
    assert!((ROWS - 1) * a_row + (depth - 1) * a_step < a.len());
    assert!((depth - 1) * b_step + VECTORS * LANES <= b.len());
    for t in 0..depth {
        let mut columns = [A::splat(0.0); VECTORS];
        for (vector, numbers) in columns.iter_mut().enumerate() {
            let first = t * b_step + vector * LANES;
            // SAFETY: the largest index is checked above.
            *numbers = A::load(unsafe { &*b.as_ptr().add(first).cast() });
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the largest index is checked above.
            let factor = A::splat(unsafe { *a.get_unchecked(row * a_row + t * a_step) });
            for (sum, numbers) in sums.iter_mut().zip(columns) {
                *sum = A::mul_add_lanes(factor, numbers, *sum);
            }
        }
    }
    sums
}

/// What becomes of a block of products.
trait Sink<A: Arithmetic> {
    fn take(&mut self, row: usize, vector: usize, products: A::Vector);
}

/// Products of `rows` rows of `a` and a tile of `VECTORS` vectors: as [`product`] gives them, rows of the
/// last block beyond `rows` included.
#[inline(always)]
fn products<A: Arithmetic, const VECTORS: usize>(
    rows: usize,
    depth: usize,
    a: &[f32],
    a_row: usize,
    b: &[f32],
    sink: &mut impl Sink<A>,
) {
    #[inline(always)]
    fn blocks<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
        rows: usize,
        depth: usize,
        a: &[f32],
        a_row: usize,
        b: &[f32],
        sink: &mut impl Sink<A>,
    ) {
        for first in (0..rows).step_by(ROWS) {
            let block = product::<A, ROWS, VECTORS>(
                depth,
                &a[first * a_row..],
                [a_row, 1],
                b,
                VECTORS * LANES,
            );
            for (row, vectors) in block.into_iter().enumerate() {
                for (vector, products) in vectors.into_iter().enumerate() {
                    sink.take(first + row, vector, products);
                }
            }
        }
    }
    match (A::MANY_REGISTERS, VECTORS) {
        (false, _) => blocks::<A, 4, VECTORS>(rows, depth, a, a_row, b, sink),
        (true, 1) => blocks::<A, 16, VECTORS>(rows, depth, a, a_row, b, sink),
        (true, _) => blocks::<A, 8, VECTORS>(rows, depth, a, a_row, b, sink),
    }
}

/// `target[row][column] += sum over t < depth of a[row * a_row + t * a_step] * b[t][column]`, with rows of
/// `columns` numbers, whole vectors, in `b` and in `target`. Up to 15 rows beyond `rows` are written, too.
#[inline(always)]
fn add_products<A: Arithmetic>(
    rows: usize,
    depth: usize,
    a: &[f32],
    a_strides: [usize; 2],
    b: &[f32],
    columns: usize,
    target: &mut [f32],
) {
    #[inline(always)]
    fn blocks<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
        rows: usize,
        depth: usize,
        a: &[f32],
        a_strides: [usize; 2],
        b: &[f32],
        columns: usize,
        target: &mut [f32],
    ) {
        for first in (0..rows).step_by(ROWS) {
            let block = product::<A, ROWS, VECTORS>(
                depth,
                &a[first * a_strides[0]..],
                a_strides,
                b,
                columns,
            );
            for (row, vectors) in block.into_iter().enumerate() {
                for (vector, products) in vectors.into_iter().enumerate() {
                    let start = (first + row) * columns + vector * LANES;
                    let target = lanes_mut(target, start);
                    A::store(A::add_lanes(A::load(target), products), target);
                }
            }
        }
    }
    let mut column = 0;
    if A::MANY_REGISTERS {
        while column + 2 * LANES <= columns {
            let (b, target) = (&b[column..], &mut target[column..]);
            blocks::<A, 8, 2>(rows, depth, a, a_strides, b, columns, target);
            column += 2 * LANES;
        }
    }
    while column < columns {
        let (b, target) = (&b[column..], &mut target[column..]);
        match A::MANY_REGISTERS {
            true => blocks::<A, 16, 1>(rows, depth, a, a_strides, b, columns, target),
            false => blocks::<A, 4, 1>(rows, depth, a, a_strides, b, columns, target),
        }
        column += LANES;
    }
}

/// One vector of an array.
#[inline(always)]
fn lanes(array: &[f32], first: usize) -> &[f32; LANES] {
    array[first..]
        .first_chunk()
        .expect("arrays of a task hold whole vectors")
}

/// As [`lanes`], to be written.
#[inline(always)]
fn lanes_mut(array: &mut [f32], first: usize) -> &mut [f32; LANES] {
    array[first..]
        .first_chunk_mut()
        .expect("arrays of a task hold whole vectors")
}

/// Copies a row; the columns that pad it in the target are left alone.
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

/// Writes the rows of queries as a tile, `tile[column][lane] = factor * rows[lane][column]`, with lanes for
/// `VECTORS` vectors; lanes without a row get 0.
#[inline(always)]
fn transpose<A: Arithmetic>(
    rows: &[f32],
    stride: usize,
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
            for lane in 0..LANES.min(count - vector * LANES) {
                let row = &rows[(vector * LANES + lane) * stride + column..];
                block[lane] = match row.first_chunk() {
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
fn tiles(many_registers: bool, queries: usize) -> impl Iterator<Item = (usize, usize)> {
    let most = if many_registers { 2 } else { 1 };
    (0..queries)
        .step_by(most * LANES)
        .map(move |first| (first, most.min((queries - first).div_ceil(LANES))))
}

/// The forward pass of some queries of one head.
struct Forward<'a> {
    dims: DenseDims,
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    mask: Option<&'a [bool]>,
    context: Shared<'a>,
    log_total: Shared<'a>,
    scratch: &'a mut Scratch,
    example: usize,
    head: usize,
    queries: Range<usize>,
}

/// The state of a tile of queries between two tiles of keys.
struct ForwardTile<'a> {
    /// `[head_dim, lanes]`, times scale.
    query: &'a [f32],
    /// The greatest logit so far.
    maximum: &'a mut [f32],
    /// The sum of weights so far.
    total: &'a mut [f32],
    /// The sum of weighted values so far, `[queries, padded value_dim]`.
    context: &'a mut [f32],
    queries: usize,
}

/// A tile of keys, and room for the weights of one tile of queries.
struct ForwardKeys<'a> {
    /// `[keys, head_dim]`
    key: &'a [f32],
    /// `[keys, padded value_dim]`
    value: &'a [f32],
    /// `[keys, lanes]`
    weights: &'a mut [f32],
    count: usize,
    first: bool,
}

/// Keeps logits and their maxima.
struct Logits<'a, A: Arithmetic, const VECTORS: usize> {
    logits: &'a mut [f32],
    maximum: [A::Vector; VECTORS],
    keys: usize,
}

impl<A: Arithmetic, const VECTORS: usize> Sink<A> for Logits<'_, A, VECTORS> {
    #[inline(always)]
    fn take(&mut self, key: usize, vector: usize, products: A::Vector) {
        A::store(
            products,
            lanes_mut(self.logits, (key * VECTORS + vector) * LANES),
        );
        // Rows that only fill the last block are not keys.
        if key < self.keys {
            self.maximum[vector] = A::max_lanes(self.maximum[vector], products);
        }
    }
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self {
            dims,
            example,
            head,
            queries,
            ..
        } = self;
        let (key_dim, value_dim) = (dims.head_dim, dims.value_dim);
        let columns = padded(value_dim);
        let room = dims.queries.min(QUERIES).next_multiple_of(2 * LANES);
        let ([query, key, value, weights, context, maximum, total], kept) = self.scratch.reserve([
            room * key_dim,
            FORWARD_KEYS * key_dim,
            FORWARD_KEYS * columns,
            FORWARD_KEYS * 2 * LANES,
            room * columns,
            room,
            room,
        ]);
        dims.keep(self.mask, example, dims.first_key..dims.rows, kept);
        for (first, vectors) in tiles(A::MANY_REGISTERS, queries.len()) {
            let count = (queries.len() - first).min(vectors * LANES);
            transpose::<A>(
                &self.query[dims.query_row(example, queries.start + first, head)..],
                dims.heads * key_dim,
                count,
                key_dim,
                dims.scale,
                &mut query[first * key_dim..],
                vectors,
            );
        }
        context[..padded(queries.len()) * columns].fill(0.0);

        for (block, rows) in kept.chunks(FORWARD_KEYS).enumerate() {
            for (index, &row) in rows.iter().enumerate() {
                let from = dims.key_row(example, row, head);
                copy_row(
                    &mut key[index * key_dim..(index + 1) * key_dim],
                    &self.key[from..from + key_dim],
                );
                let from = dims.value_row(example, row, head);
                copy_row(
                    &mut value[index * columns..(index + 1) * columns],
                    &self.value[from..from + value_dim],
                );
            }
            for (first, vectors) in tiles(A::MANY_REGISTERS, queries.len()) {
                let width = vectors * LANES;
                let tile = ForwardTile {
                    query: &query[first * key_dim..(first + width) * key_dim],
                    maximum: &mut maximum[first..first + width],
                    total: &mut total[first..first + width],
                    context: &mut context[first * columns..(first + width) * columns],
                    queries: width.min(queries.len() - first),
                };
                let keys = ForwardKeys {
                    key,
                    value,
                    weights,
                    count: rows.len(),
                    first: block == 0,
                };
                match vectors {
                    1 => tile.attend::<A, 1>(keys, key_dim, columns),
                    _ => tile.attend::<A, 2>(keys, key_dim, columns),
                }
            }
        }

        for first in (0..queries.len()).step_by(LANES) {
            let mut log_totals = [0.0; LANES];
            let mut inverses = [0.0; LANES];
            if !kept.is_empty() {
                let (maximum, total) = (lanes(maximum, first), lanes(total, first));
                for lane in 0..LANES {
                    log_totals[lane] = maximum[lane] + total[lane].ln();
                    inverses[lane] = 1.0 / total[lane];
                }
            }
            for lane in 0..LANES.min(queries.len() - first) {
                let index = queries.start + first + lane;
                // SAFETY: no other task has this query of this head.
                let (log_total, target) = unsafe {
                    (
                        self.log_total.row(dims.total(example, index, head), 1),
                        self.context
                            .row(dims.context_row(example, index, head), value_dim),
                    )
                };
                log_total[0] = log_totals[lane];
                let row = (first + lane) * columns;
                scale_row(target, &context[row..row + columns], inverses[lane]);
            }
        }
    }
}

/// `target = factor * source`, as far as the target goes.
#[inline(always)]
fn scale_row(target: &mut [f32], source: &[f32], factor: f32) {
    for (target, source) in target.iter_mut().zip(source) {
        *target = factor * source;
    }
}

impl ForwardTile<'_> {
    /// Takes a tile of keys into the state.
    #[inline(always)]
    fn attend<A: Arithmetic, const VECTORS: usize>(
        self,
        keys: ForwardKeys,
        key_dim: usize,
        columns: usize,
    ) {
        let width = VECTORS * LANES;
        let mut logits = Logits::<A, VECTORS> {
            logits: keys.weights,
            maximum: [A::splat(f32::NEG_INFINITY); VECTORS],
            keys: keys.count,
        };
        products::<A, VECTORS>(
            keys.count,
            key_dim,
            keys.key,
            key_dim,
            self.query,
            &mut logits,
        );
        let mut maximum = logits.maximum;
        let mut total = [A::splat(0.0); VECTORS];
        if !keys.first {
            let mut shrink = [[0.0; LANES]; VECTORS];
            for vector in 0..VECTORS {
                let before = A::load(lanes(self.maximum, vector * LANES));
                maximum[vector] = A::max_lanes(maximum[vector], before);
                let factor = exp_lanes_up_to_zero::<A>(A::sub_lanes(before, maximum[vector]));
                total[vector] = A::mul_lanes(A::load(lanes(self.total, vector * LANES)), factor);
                A::store(factor, &mut shrink[vector]);
            }
            for query in 0..self.queries {
                let factor = A::splat(shrink[query / LANES][query % LANES]);
                for column in (0..columns).step_by(LANES) {
                    let sum = lanes_mut(self.context, query * columns + column);
                    A::store(A::mul_lanes(A::load(sum), factor), sum);
                }
            }
        }
        for key in 0..keys.count {
            for vector in 0..VECTORS {
                let weights = lanes_mut(keys.weights, (key * VECTORS + vector) * LANES);
                let weight =
                    exp_lanes_up_to_zero::<A>(A::sub_lanes(A::load(weights), maximum[vector]));
                A::store(weight, weights);
                total[vector] = A::add_lanes(total[vector], weight);
            }
        }
        for vector in 0..VECTORS {
            A::store(maximum[vector], lanes_mut(self.maximum, vector * LANES));
            A::store(total[vector], lanes_mut(self.total, vector * LANES));
        }
        add_products::<A>(
            self.queries,
            keys.count,
            keys.weights,
            [1, width],
            keys.value,
            columns,
            self.context,
        );
    }
}

/// The backward pass of some queries and some keys of one head.
struct Backward<'a> {
    dims: DenseDims,
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    mask: Option<&'a [bool]>,
    context: &'a [f32],
    log_total: &'a [f32],
    grad: &'a [f32],
    d_query: Shared<'a>,
    d_key: Shared<'a>,
    d_value: Shared<'a>,
    scratch: &'a mut Scratch,
    example: usize,
    head: usize,
    keys: Range<usize>,
    queries: Range<usize>,
}

/// What a tile of queries brings to a tile of keys, and its gradient.
struct BackwardTile<'a> {
    /// `[queries, padded head_dim]`
    query: &'a [f32],
    /// `[head_dim, lanes]`, times scale.
    query_lanes: &'a [f32],
    /// `[queries, padded value_dim]`
    grad: &'a [f32],
    /// `[value_dim, lanes]`
    grad_lanes: &'a [f32],
    /// Of all keys.
    log_total: &'a [f32],
    /// The mean of what the weights get as gradients.
    mean: &'a [f32],
    /// `[queries, padded head_dim]`, without scale.
    d_query: &'a mut [f32],
    queries: usize,
}

/// A tile of keys, its gradients, and room for one tile of queries.
struct BackwardKeys<'a> {
    /// `[keys, padded head_dim]`
    key: &'a [f32],
    /// `[keys, value_dim]`
    value: &'a [f32],
    /// `[keys, padded head_dim]`, without scale.
    d_key: &'a mut [f32],
    /// `[keys, padded value_dim]`
    d_value: &'a mut [f32],
    /// `[keys, lanes]`
    weights: &'a mut [f32],
    /// `[keys, lanes]`
    d_logits: &'a mut [f32],
    count: usize,
}

/// Turns logits into weights.
struct Weights<'a, A: Arithmetic, const VECTORS: usize> {
    weights: &'a mut [f32],
    log_total: [A::Vector; VECTORS],
}

impl<A: Arithmetic, const VECTORS: usize> Sink<A> for Weights<'_, A, VECTORS> {
    #[inline(always)]
    fn take(&mut self, key: usize, vector: usize, products: A::Vector) {
        A::store(
            exp_lanes_up_to_zero::<A>(A::sub_lanes(products, self.log_total[vector])),
            lanes_mut(self.weights, (key * VECTORS + vector) * LANES),
        );
    }
}

/// Turns gradients of weights into gradients of logits.
struct LogitGrads<'a, A: Arithmetic, const VECTORS: usize> {
    weights: &'a [f32],
    d_logits: &'a mut [f32],
    mean: [A::Vector; VECTORS],
}

impl<A: Arithmetic, const VECTORS: usize> Sink<A> for LogitGrads<'_, A, VECTORS> {
    #[inline(always)]
    fn take(&mut self, key: usize, vector: usize, products: A::Vector) {
        let first = (key * VECTORS + vector) * LANES;
        let weight = A::load(lanes(self.weights, first));
        A::store(
            A::mul_lanes(weight, A::sub_lanes(products, self.mean[vector])),
            lanes_mut(self.d_logits, first),
        );
    }
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self {
            dims,
            example,
            head,
            keys,
            queries,
            ..
        } = self;
        let (key_dim, value_dim) = (dims.head_dim, dims.value_dim);
        let (key_columns, value_columns) = (padded(key_dim), padded(value_dim));
        let room = dims.queries.min(QUERIES).next_multiple_of(2 * LANES);
        let (
            [
                query,
                query_lanes,
                grad,
                grad_lanes,
                context_lanes,
                log_total,
                mean,
                d_query,
                key,
                value,
                d_key,
                d_value,
                weights,
                d_logits,
            ],
            kept,
        ) = self.scratch.reserve([
            room * key_columns,
            room * key_dim,
            room * value_columns,
            room * value_dim,
            2 * LANES * value_dim,
            room,
            room,
            room * key_columns,
            BACKWARD_KEYS * key_columns,
            BACKWARD_KEYS * value_dim,
            BACKWARD_KEYS * key_columns,
            BACKWARD_KEYS * value_columns,
            BACKWARD_KEYS * 2 * LANES,
            BACKWARD_KEYS * 2 * LANES,
        ]);
        // SAFETY: a task writes the rows of its keys and its head, in the part of its queries, and no
        // other task does; the first task of a head takes the rows before the first key as well.
        let key_rows = |row| unsafe {
            (
                self.d_key.row(dims.key_row(example, row, head), key_dim),
                self.d_value
                    .row(dims.value_row(example, row, head), value_dim),
            )
        };
        dims.keep(self.mask, example, keys.clone(), kept);
        let first_row = match keys.start == dims.first_key {
            true => 0,
            false => keys.start,
        };
        let mut attended = kept.iter().copied().peekable();
        for row in first_row..keys.end {
            if attended.next_if_eq(&row).is_none() {
                let (d_key, d_value) = key_rows(row);
                d_key.fill(0.0);
                d_value.fill(0.0);
            }
        }

        for chunk in queries.clone().step_by(QUERIES) {
            let count = QUERIES.min(queries.end - chunk);
            for index in 0..count {
                let from = dims.query_row(example, chunk + index, head);
                copy_row(
                    &mut query[index * key_columns..(index + 1) * key_columns],
                    &self.query[from..from + key_dim],
                );
                let from = dims.context_row(example, chunk + index, head);
                copy_row(
                    &mut grad[index * value_columns..(index + 1) * value_columns],
                    &self.grad[from..from + value_dim],
                );
                log_total[index] = self.log_total[dims.total(example, chunk + index, head)];
            }
            for (first, vectors) in tiles(A::MANY_REGISTERS, count) {
                let queries = (count - first).min(vectors * LANES);
                transpose::<A>(
                    &query[first * key_columns..],
                    key_columns,
                    queries,
                    key_dim,
                    dims.scale,
                    &mut query_lanes[first * key_dim..],
                    vectors,
                );
                let grad_lanes = &mut grad_lanes[first * value_dim..];
                transpose::<A>(
                    &grad[first * value_columns..],
                    value_columns,
                    queries,
                    value_dim,
                    1.0,
                    grad_lanes,
                    vectors,
                );
                transpose::<A>(
                    &self.context[dims.context_row(example, chunk + first, head)..],
                    dims.heads * value_dim,
                    queries,
                    value_dim,
                    1.0,
                    context_lanes,
                    vectors,
                );
                // In the order in which the gradients of weights are summed, so that both are the same
                // number where one key has all the weight, and the logits get no gradient.
                for vector in 0..vectors {
                    let mut sum = A::splat(0.0);
                    for column in 0..value_dim {
                        let at = (column * vectors + vector) * LANES;
                        let of_context = A::load(lanes(context_lanes, at));
                        sum = A::mul_add_lanes(of_context, A::load(lanes(grad_lanes, at)), sum);
                    }
                    A::store(sum, lanes_mut(mean, first + vector * LANES));
                }
            }
            d_query[..count * key_columns].fill(0.0);

            for rows in kept.chunks(BACKWARD_KEYS) {
                for (index, &row) in rows.iter().enumerate() {
                    let from = dims.key_row(example, row, head);
                    copy_row(
                        &mut key[index * key_columns..(index + 1) * key_columns],
                        &self.key[from..from + key_dim],
                    );
                    let from = dims.value_row(example, row, head);
                    copy_row(
                        &mut value[index * value_dim..(index + 1) * value_dim],
                        &self.value[from..from + value_dim],
                    );
                }
                d_key[..rows.len() * key_columns].fill(0.0);
                d_value[..rows.len() * value_columns].fill(0.0);
                for (first, vectors) in tiles(A::MANY_REGISTERS, count) {
                    let end = first + vectors * LANES;
                    let tile = BackwardTile {
                        query: &query[first * key_columns..end * key_columns],
                        query_lanes: &query_lanes[first * key_dim..end * key_dim],
                        grad: &grad[first * value_columns..end * value_columns],
                        grad_lanes: &grad_lanes[first * value_dim..end * value_dim],
                        log_total: &log_total[first..end],
                        mean: &mean[first..end],
                        d_query: &mut d_query[first * key_columns..end * key_columns],
                        queries: count.min(end) - first,
                    };
                    let keys = BackwardKeys {
                        key,
                        value,
                        d_key,
                        d_value,
                        weights,
                        d_logits,
                        count: rows.len(),
                    };
                    match vectors {
                        1 => tile.attend::<A, 1>(keys, dims),
                        _ => tile.attend::<A, 2>(keys, dims),
                    }
                }
                for (index, &row) in rows.iter().enumerate() {
                    let (to_key, to_value) = key_rows(row);
                    let d_key = &d_key[index * key_columns..][..key_dim];
                    let d_value = &d_value[index * value_columns..][..value_dim];
                    if chunk == queries.start {
                        scale_row(to_key, d_key, dims.scale);
                        scale_row(to_value, d_value, 1.0);
                    } else {
                        add_scaled::<A>(to_key, dims.scale, d_key);
                        add_scaled::<A>(to_value, 1.0, d_value);
                    }
                }
            }
            for index in 0..count {
                let first = dims.query_row(example, chunk + index, head);
                // SAFETY: no other task writes this query of this head in the part of these keys.
                let target = unsafe { self.d_query.row(first, key_dim) };
                let row = index * key_columns;
                scale_row(target, &d_query[row..row + key_columns], dims.scale);
            }
        }
    }
}

impl BackwardTile<'_> {
    /// Adds the gradients between a tile of queries and a tile of keys.
    #[inline(always)]
    fn attend<A: Arithmetic, const VECTORS: usize>(self, keys: BackwardKeys, dims: DenseDims) {
        let width = VECTORS * LANES;
        let (key_columns, value_columns) = (padded(dims.head_dim), padded(dims.value_dim));
        let mut log_total = [A::splat(0.0); VECTORS];
        let mut mean = [A::splat(0.0); VECTORS];
        for vector in 0..VECTORS {
            log_total[vector] = A::load(lanes(self.log_total, vector * LANES));
            mean[vector] = A::load(lanes(self.mean, vector * LANES));
        }
        products::<A, VECTORS>(
            keys.count,
            dims.head_dim,
            keys.key,
            key_columns,
            self.query_lanes,
            &mut Weights::<A, VECTORS> {
                weights: keys.weights,
                log_total,
            },
        );
        products::<A, VECTORS>(
            keys.count,
            dims.value_dim,
            keys.value,
            dims.value_dim,
            self.grad_lanes,
            &mut LogitGrads::<A, VECTORS> {
                weights: keys.weights,
                d_logits: keys.d_logits,
                mean,
            },
        );
        add_products::<A>(
            keys.count,
            self.queries,
            keys.weights,
            [width, 1],
            self.grad,
            value_columns,
            keys.d_value,
        );
        add_products::<A>(
            keys.count,
            self.queries,
            keys.d_logits,
            [width, 1],
            self.query,
            key_columns,
            keys.d_key,
        );
        add_products::<A>(
            self.queries,
            keys.count,
            keys.d_logits,
            [1, width],
            keys.key,
            key_columns,
            self.d_query,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in -1..1 that look random.
    fn numbers(length: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..length).map(|_| next()).collect()
    }

    struct Case {
        dims: DenseDims,
        query: Vec<f32>,
        key: Vec<f32>,
        value: Vec<f32>,
        mask: Option<Vec<bool>>,
        grad: Vec<f32>,
    }

    /// Context, logarithm of the total, and the gradients of query, key and value.
    type Results<T> = [Vec<T>; 5];

    impl Case {
        fn new([batch, queries, rows, first_key, heads, head_dim, value_dim]: [usize; 7]) -> Self {
            let scale = 3.0 / (head_dim as f32).sqrt();
            let dims = DenseDims {
                batch,
                queries,
                rows,
                first_key,
                heads,
                head_dim,
                value_dim,
                scale,
            };
            Self {
                dims,
                query: numbers(batch * queries * heads * head_dim, 1),
                key: numbers(batch * rows * heads * head_dim, 2),
                value: numbers(batch * rows * heads * value_dim, 3),
                mask: None,
                grad: numbers(batch * queries * heads * value_dim, 4),
            }
        }

        fn masked(mut self, masked_out: impl Fn(usize, usize) -> bool) -> Self {
            let keys = self.dims.keys();
            let all = 0..self.dims.batch * keys;
            self.mask = Some(all.map(|at| masked_out(at / keys, at % keys)).collect());
            self
        }

        fn run(&self) -> Results<f32> {
            let dims = self.dims;
            let mask = self.mask.as_deref();
            let nan = |length| vec![f32::NAN; length];
            let (mut context, mut total) = (
                nan(self.grad.len()),
                nan(dims.batch * dims.queries * dims.heads),
            );
            let (query, key, value) = (&self.query, &self.key, &self.value);
            forward(dims, query, key, value, mask, &mut context, &mut total);
            let [mut d_query, mut d_key, mut d_value] =
                [query.len(), key.len(), value.len()].map(nan);
            backward(
                dims,
                query,
                key,
                value,
                mask,
                &context,
                &total,
                &self.grad,
                &mut d_query,
                &mut d_key,
                &mut d_value,
            );
            [context, total, d_query, d_key, d_value]
        }

        /// The definition, in double precision.
        fn exact(&self) -> Results<f64> {
            let dims = self.dims;
            let (width, scale) = (dims.value_dim, f64::from(dims.scale));
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
                products.sum()
            };
            let zero = |length| vec![0.0; length];
            let mut context = zero(self.grad.len());
            let mut log_total = zero(dims.batch * dims.queries * dims.heads);
            let [mut d_query, mut d_key, mut d_value] =
                [self.query.len(), self.key.len(), self.value.len()].map(zero);
            for (index, log_total) in log_total.iter_mut().enumerate() {
                let (row, head) = (index / dims.heads, index % dims.heads);
                let (example, query) = (row / dims.queries, row % dims.queries);
                let at_query = dims.query_row(example, query, head);
                let at_context = dims.context_row(example, query, head);
                let q = &self.query[at_query..at_query + dims.head_dim];
                let grad = &self.grad[at_context..at_context + width];
                let mut kept = Vec::new();
                dims.keep(
                    self.mask.as_deref(),
                    example,
                    dims.first_key..dims.rows,
                    &mut kept,
                );
                let kept: Vec<(usize, usize)> = kept
                    .into_iter()
                    .map(|row| {
                        (
                            dims.key_row(example, row, head),
                            dims.value_row(example, row, head),
                        )
                    })
                    .collect();
                let logits: Vec<f64> = kept
                    .iter()
                    .map(|&(key, _)| scale * dot(q, &self.key[key..key + dims.head_dim]))
                    .collect();
                let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
                if !kept.is_empty() {
                    *log_total = total.ln();
                }
                let d_weights: Vec<f64> = kept
                    .iter()
                    .map(|&(_, value)| dot(grad, &self.value[value..value + width]))
                    .collect();
                let weights: Vec<f64> = logits.iter().map(|logit| logit.exp() / total).collect();
                let mean: f64 = weights.iter().zip(&d_weights).map(|(w, d)| w * d).sum();
                for (index, &(key, value)) in kept.iter().enumerate() {
                    let d_logit = weights[index] * (d_weights[index] - mean) * scale;
                    for column in 0..width {
                        let number = f64::from(self.value[value + column]);
                        context[at_context + column] += weights[index] * number;
                        d_value[value + column] += weights[index] * f64::from(grad[column]);
                    }
                    for column in 0..dims.head_dim {
                        let number = f64::from(self.key[key + column]);
                        d_query[at_query + column] += d_logit * number;
                        d_key[key + column] += d_logit * f64::from(q[column]);
                    }
                }
            }
            [context, log_total, d_query, d_key, d_value]
        }

        fn check(&self) {
            let names = ["context", "log_total", "d_query", "d_key", "d_value"];
            for ((name, got), exact) in names.into_iter().zip(self.run()).zip(self.exact()) {
                let greatest = exact
                    .iter()
                    .fold(1.0_f64, |most, number| most.max(number.abs()));
                for (at, (got, exact)) in got.iter().zip(&exact).enumerate() {
                    assert!(
                        (f64::from(*got) - exact).abs() <= 4e-6 * greatest,
                        "{name}[{at}]: expected {exact}, got {got}, {:?}",
                        self.dims
                    );
                }
            }
        }
    }

    #[test]
    fn results_are_those_of_the_definition() {
        // batch, queries, rows, first_key, heads, head_dim, value_dim
        for sizes in [
            [1, 1, 1, 0, 1, 1, 1],
            [2, 3, 5, 2, 2, 3, 5],
            [3, 33, 67, 3, 2, 5, 1],
            [1, 17, 130, 0, 3, 16, 20],
            [1, 70, 33, 1, 1, 40, 33],
        ] {
            Case::new(sizes).check();
            Case::new(sizes)
                .masked(|example, key| (key * 7 + example) % 3 == 1)
                .check();
        }
    }

    #[test]
    fn results_do_not_depend_on_how_the_longer_axis_is_cut() {
        // Few heads: the backward pass sums gradients over chunks of keys, then over chunks of queries.
        Case::new([1, 20, 600, 10, 1, 4, 4]).check();
        Case::new([1, 600, 20, 10, 1, 4, 4]).check();
    }

    #[test]
    fn queries_without_keys_are_zero() {
        let cases = [
            Case::new([2, 5, 3, 3, 2, 4, 3]),
            Case::new([2, 5, 9, 2, 2, 4, 3]).masked(|_, _| true),
        ];
        for case in cases {
            assert!(case.run().iter().flatten().all(|number| *number == 0.0));
        }
        // Beside an example that has keys.
        Case::new([2, 5, 9, 2, 2, 4, 3])
            .masked(|example, _| example == 1)
            .check();
    }

    #[test]
    fn empty_batches_and_empty_queries_are_fine() {
        Case::new([0, 5, 9, 2, 2, 4, 3]).check();
        Case::new([2, 0, 9, 2, 2, 4, 3]).check();
    }

    #[test]
    fn a_single_key_gives_its_logit_no_gradient() {
        let [context, _, d_query, d_key, _] = Case::new([2, 40, 3, 2, 2, 5, 7]).run();
        assert!(context.iter().any(|number| *number != 0.0));
        assert!(d_query.iter().chain(&d_key).all(|number| *number == 0.0));
    }

    #[test]
    fn logits_of_any_size_stay_finite() {
        let mut case = Case::new([1, 20, 150, 0, 1, 8, 8]);
        case.dims.scale = 1e4;
        assert!(case.run().iter().flatten().all(|number| number.is_finite()));
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        for sizes in [
            [3, 70, 67, 3, 2, 5, 3],
            [1, 300, 600, 0, 1, 4, 4],
            [1, 600, 300, 0, 1, 4, 4],
        ] {
            let case = Case::new(sizes);
            let [one, three] = [1, 3].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let results = pool.build().unwrap().install(|| case.run());
                results.map(|numbers| numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            });
            assert!(one == three, "{sizes:?}");
        }
    }
}
