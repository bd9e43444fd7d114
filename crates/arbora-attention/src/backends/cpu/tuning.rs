//! Sizes that work is cut by. They change no number, but the order in which sums of several tasks are added.
//!
//! The time with another size divided by that with this one, lowest and highest over the rows of the named sections of
//! `cargo xtask bench --quick --backends flex` (fastest of three runs in turns, 2 threads, AVX-512; runs of one binary differ by 5 %):
//!
//! | size | others | sections |
//! |---|---|---|
//! | `FORWARD_KEYS` | 64: 0.95–1.05, 256: 0.95–1.01 | leaf |
//! | `BACKWARD_KEYS` | 32: 0.96–1.02, 128: 0.91–1.01 | leaf |
//! | `QUERIES` | 128: 0.96–1.09, 512: 0.96–1.05 | leaf |
//! | `TASKS` | 16: 0.98–1.02, 256: 0.94–1.13 | leaf |
//! | `PIECE` | 512: 0.96–1.02, 65,536: 0.96–1.01 | leaf |
//! | `ROWS_PER_TASK` | 1 · `LANES`: 0.97–1.05, 16 · `LANES`: 0.97–1.00 | search, gradient |
//! | `QUERIES_PER_CHUNK` | 8 · `LANES`: 0.94–1.03, 128 · `LANES`: 0.96–1.02 | search, gradient |
//! | `CACHED_BYTES` | always prefetched: 1.03–1.10, never: 0.91–1.09 | scaling |
//! | `CHUNK_NUMBERS` | 2^15: 1.00–1.08, 2^19: 0.95–1.18 | layer, training |
//! | `CHUNK_ROWS` | to 64: 0.99–1.12, to 1,024: 0.98–1.04 | layer, training |
//! | `CHUNKS_OF_FEW_ROWS` | 2: 0.98–1.05, 32: 1.01–1.08 | layer, training |
//! | `PARTIAL_GRADIENTS` | 8: 0.97–1.07, 128: 1.00–1.11 | layer, training |

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
