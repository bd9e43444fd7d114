//! Where tasks read and write.

use super::super::simd::LANES;
use super::{KeyPlace, Pairs, Places, QueryPlace, Sight};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Room for the results of chunks that are summed later; none where there is one chunk.
pub(in super::super) fn parts(chunks: usize, length: usize) -> Vec<f32> {
    match chunks {
        1 => Vec::new(),
        _ => vec![0.0; chunks * length],
    }
}

/// Where tasks write: to the parts, where there are any.
pub(in super::super) fn target<'a>(whole: &'a mut [f32], parts: &'a mut [f32]) -> Shared<'a> {
    match parts.is_empty() {
        true => Shared::new(whole),
        false => Shared::new(parts),
    }
}

/// Sums parts in their order.
pub(in super::super) fn add_parts(whole: &mut [f32], parts: &[f32]) {
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
pub(in super::super) struct Shared<'a> {
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
    pub(in super::super) fn new(array: &'a mut [f32]) -> Self {
        Self {
            start: array.as_mut_ptr(),
            length: array.len(),
            owner: PhantomData,
        }
    }

    /// One of several arrays of `length` numbers that lie behind one another.
    pub(in super::super) fn part(self, index: usize, length: usize) -> Self {
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
    pub(in super::super) unsafe fn row(self, first: usize, length: usize) -> &'a mut [f32] {
        assert!(first + length <= self.length);
        // SAFETY: in bounds, as just checked, and not aliased, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), length) }
    }

    /// Fills one of several rows of `width` numbers with zeros.
    ///
    /// # Safety
    /// As for [`row`](Self::row).
    pub(in super::super) unsafe fn clear_row(self, row: usize, width: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.row(row * width, width) }.fill(0.0);
    }
}

/// As many numbers as one vector of the widest kind, at an address that such vectors like best.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Memory of a task, kept for the next one. The first task finds it zeroed, and all tasks of a call lay it
/// out alike, so that columns that only pad a row to whole vectors stay zero.
#[derive(Default)]
pub(in super::super) struct Scratch {
    lines: Vec<Line>,
    places: HeldPlaces,
}

/// Places of the queries and of the keys that a task holds.
#[derive(Default)]
pub(super) struct HeldPlaces {
    queries: QueryLanes,
    keys: Vec<KeyPlace>,
}

/// Places of queries, as whole vectors: lanes without a query repeat the last one's.
#[derive(Default)]
struct QueryLanes {
    positions: Vec<u32>,
    states: Vec<u32>,
}

impl HeldPlaces {
    pub(super) fn hold_queries(&mut self, pairs: &impl Pairs, rows: &[usize]) {
        let QueryLanes { positions, states } = &mut self.queries;
        positions.clear();
        states.clear();
        for row in rows {
            let QueryPlace { position, state } = pairs.query(*row);
            positions.push(position);
            states.push(state);
        }
        for lanes in [positions, states] {
            let last = lanes.last().copied().unwrap_or(0);
            lanes.resize(lanes.len().next_multiple_of(LANES), last);
        }
    }

    pub(super) fn hold_keys(&mut self, pairs: &impl Pairs, rows: &[usize]) {
        self.keys.clear();
        self.keys.extend(rows.iter().map(|row| pairs.key(*row)));
    }

    /// Those of a tile of queries and of the keys, and how much of these the tile sees.
    #[inline(always)]
    pub(super) fn tile<P: Pairs>(&self, pairs: &P, queries: Range<usize>) -> (Places<'_>, Sight) {
        let keys = self.keys.as_slice();
        let positions = match P::PLAIN {
            true => &[],
            false => &self.queries.positions[queries.clone()],
        };
        let sight = match (positions, keys) {
            _ if P::PLAIN => Sight::All,
            ([.., last], [key, ..]) if key.position > *last => Sight::Nothing,
            ([first, ..], [.., key]) if key.position > *first => Sight::Some,
            _ => Sight::All,
        };
        let places = Places {
            positions,
            states: match P::PLAIN {
                true => &[],
                false => &self.queries.states[queries],
            },
            keys,
            partial: sight == Sight::Some,
            dropping: pairs.dropping(),
        };
        (places, sight)
    }
}

impl Scratch {
    pub(super) fn reserve<const PIECES: usize>(
        &mut self,
        lengths: [usize; PIECES],
    ) -> ([&mut [f32]; PIECES], &mut HeldPlaces) {
        let lines = lengths.map(|length| length.div_ceil(LANES));
        self.lines.resize(lines.iter().sum(), Line([0.0; LANES]));
        let mut rest = self.lines.as_mut_slice();
        let pieces = lines.map(|lines| {
            let (piece, behind) = std::mem::take(&mut rest).split_at_mut(lines);
            rest = behind;
            // SAFETY: a line is `LANES` numbers and nothing else.
            unsafe { std::slice::from_raw_parts_mut(piece.as_mut_ptr().cast(), lines * LANES) }
        });
        (pieces, &mut self.places)
    }
}
