//! Sizes that work is cut by. They change no number, but the order in which sums of several tasks are added.

use super::simd::LANES;
use std::ops::Range;

/// Keys of a tile of attention, forward: keys, values and logits share the nearest cache.
pub(super) const FORWARD_KEYS: usize = 128;
/// Keys of a tile of attention, backward, where there are twice as many arrays.
pub(super) const BACKWARD_KEYS: usize = 64;
/// Queries for which a task of attention holds its state: few enough for the second cache, and many enough that copying
/// a tile of keys costs nothing beside what is done with it.
pub(super) const QUERIES: usize = 256;
/// Attention with fewer pairs of an example and a head is cut into more tasks than that.
pub(super) const TASKS: usize = 64;
/// Numbers of a piece of a sum of parts.
pub(super) const PIECE: usize = 4096;

/// Rows (queries of all examples) per task of a tree search.
pub(super) const ROWS_PER_TASK: usize = 4 * LANES;
/// Queries of a tree search whose gradients are held before they are added to keys and values.
pub(super) const QUERIES_PER_CHUNK: usize = 32 * LANES;
/// Keys of a level beyond this many bytes do not stay in a core's cache: they are prefetched.
pub(super) const CACHED_BYTES: usize = 16 * 1024;

/// Numbers of one chunk's activations in blocks: half of a cache of 1 MB; weights and gradients share the rest.
pub(super) const CHUNK_NUMBERS: usize = 1 << 17;
/// Rows of a chunk, where there are as many: matrix products of fewer rows are slow, and more rows gain nothing.
pub(super) const CHUNK_ROWS: Range<usize> = 32..256;
/// Chunks that a few rows are cut into at least, so that threads share them.
pub(super) const CHUNKS_OF_FEW_ROWS: usize = 8;
/// Copies of the parameters' gradients, each summed over a fixed part of the chunks.
pub(super) const PARTIAL_GRADIENTS: usize = 32;
