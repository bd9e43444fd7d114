//! Where tasks read and write.

use super::super::simd::LANES;
use super::super::tuning::PIECE;
use super::{KeyPlace, Pairs, Places, QueryPlace, Sight};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// An array that is written by one chunk of tasks, or summed over the arrays of several.
pub(in super::super) struct Summed<'a> {
    whole: &'a mut [f32],
    /// As many arrays as there are chunks; empty where there is one.
    parts: Vec<f32>,
}

impl<'a> Summed<'a> {
    pub(in super::super) fn new(whole: &'a mut [f32], chunks: usize) -> Self {
        let parts = match chunks {
            1 => Vec::new(),
            _ => vec![0.0; chunks * whole.len()],
        };
        Self { whole, parts }
    }

    /// Where tasks write: to the parts, where there are any.
    pub(in super::super) fn target(&mut self) -> Shared<'_> {
        if self.parts.is_empty() {
            Shared::new(self.whole)
        } else {
            Shared::new(&mut self.parts)
        }
    }

    /// Sums the parts in their order.
    pub(in super::super) fn finish(self) {
        let (length, parts) = (self.whole.len(), self.parts);
        if parts.is_empty() {
            return;
        }
        self.whole
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
}

/// An array that several tasks write to at once, each to rows of its own, as [`Rows`].
pub(in super::super) struct Shared<'a> {
    start: *mut f32,
    length: usize,
    owner: PhantomData<&'a mut [f32]>,
    #[cfg(debug_assertions)]
    taken: Taken,
}

// SAFETY: it stands for an exclusive borrow of plain numbers. Tasks reach them through `task` and `part` alone, whose callers
// promise that no two tasks reach the same ones.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(in super::super) fn new(array: &'a mut [f32]) -> Self {
        Self {
            start: array.as_mut_ptr(),
            length: array.len(),
            owner: PhantomData,
            #[cfg(debug_assertions)]
            taken: Taken::new(array.len()),
        }
    }

    /// The array for one task.
    ///
    /// # Safety
    /// No row that is taken from the result overlaps one that is taken from the result of another call, of this or of
    /// [`part`](Self::part). Builds with debug assertions panic where it does.
    pub(in super::super) unsafe fn task(&self) -> Rows<'_> {
        // SAFETY: the caller's promise; the only part of this length is the whole.
        unsafe { self.part(0, self.length) }
    }

    /// One of several arrays of `length` numbers that lie behind one another, for one task.
    ///
    /// # Safety
    /// As for [`task`](Self::task). Arrays of one length and different indices do not overlap.
    ///
    /// # Panics
    /// If there is no such array.
    pub(in super::super) unsafe fn part(&self, index: usize, length: usize) -> Rows<'_> {
        let end = index.checked_add(1).and_then(|end| end.checked_mul(length));
        assert!(end.is_some_and(|end| end <= self.length));
        let first = index * length;
        Rows {
            // SAFETY: in bounds, as just checked.
            start: unsafe { self.start.add(first) },
            length,
            owner: PhantomData,
            #[cfg(debug_assertions)]
            taken: (self.taken.number(), &self.taken.by[first..first + length]),
        }
    }
}

/// The rows of an array that a task writes, one at a time.
pub(in super::super) struct Rows<'a> {
    start: *mut f32,
    length: usize,
    owner: PhantomData<&'a mut [f32]>,
    /// The task, and which tasks have taken the numbers.
    #[cfg(debug_assertions)]
    taken: (u32, &'a [AtomicU32]),
}

impl Rows<'_> {
    /// Some numbers of the array.
    ///
    /// # Panics
    /// If the array ends before.
    #[inline(always)]
    pub(in super::super) fn row(&mut self, first: usize, length: usize) -> &mut [f32] {
        let rest = self.length.checked_sub(first);
        assert!(rest.is_some_and(|rest| length <= rest));
        #[cfg(debug_assertions)]
        Taken::check(self.taken, first, length);
        // SAFETY: in bounds, as just checked. Not aliased: other tasks take other rows, as they promised who made this, and this
        // task takes no other row while it has this one, which borrows `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), length) }
    }

    /// Fills one of several rows of `width` numbers with zeros.
    pub(in super::super) fn clear_row(&mut self, row: usize, width: usize) {
        self.row(row * width, width).fill(0.0);
    }
}

/// Which task has taken each number of an array, so that one that two tasks take is seen on any number of threads.
#[cfg(debug_assertions)]
struct Taken {
    tasks: AtomicU32,
    /// Numbers of tasks; 0 is none.
    by: Vec<AtomicU32>,
}

#[cfg(debug_assertions)]
impl Taken {
    fn new(length: usize) -> Self {
        Self {
            tasks: AtomicU32::new(0),
            by: std::iter::repeat_with(AtomicU32::default)
                .take(length)
                .collect(),
        }
    }

    /// The number of another task.
    fn number(&self) -> u32 {
        self.tasks.fetch_add(1, Relaxed) + 1
    }

    fn check((task, by): (u32, &[AtomicU32]), first: usize, length: usize) {
        for (at, by) in by[first..first + length].iter().enumerate() {
            let before = by.swap(task, Relaxed);
            assert!(
                before == 0 || before == task,
                "two tasks take number {} of an array",
                first + at
            );
        }
    }
}

/// As many numbers as one vector of the widest kind, at an address that such vectors like best.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

const _: () = assert!(size_of::<Line>() == size_of::<[f32; LANES]>());

/// Memory of a task, kept for the next one. The first task finds it zeroed, and all tasks of a call lay it
/// out alike, so that columns that only pad a row to whole vectors stay zero.
#[derive(Default)]
pub(in super::super) struct Scratch {
    lines: Vec<Line>,
    places: HeldPlaces,
}

/// Places of the queries and of the keys that a task holds. Those of queries are whole vectors: lanes without a query repeat
/// the last one's.
#[derive(Default)]
pub(super) struct HeldPlaces {
    positions: Vec<u32>,
    states: Vec<u32>,
    keys: Vec<KeyPlace>,
}

impl HeldPlaces {
    pub(super) fn hold_queries(&mut self, pairs: &impl Pairs, rows: &[usize]) {
        self.positions.clear();
        self.states.clear();
        for row in rows {
            let QueryPlace { position, state } = pairs.query(*row);
            self.positions.push(position);
            self.states.push(state);
        }
        for lanes in [&mut self.positions, &mut self.states] {
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
        let (positions, states): (&[u32], &[u32]) = if P::PLAIN {
            (&[], &[])
        } else {
            (&self.positions[queries.clone()], &self.states[queries])
        };
        let sight = match (positions, keys) {
            _ if P::PLAIN => Sight::All,
            ([.., last], [key, ..]) if key.position > *last => Sight::Nothing,
            ([first, ..], [.., key]) if key.position > *first => Sight::Some,
            _ => Sight::All,
        };
        let places = Places {
            positions,
            states,
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
            // SAFETY: `piece` is borrowed for as long as the result, has `lines` lines, and each is `LANES` numbers and nothing
            // else, which is checked where `Line` is declared. Numbers need less alignment than lines.
            unsafe { std::slice::from_raw_parts_mut(piece.as_mut_ptr().cast(), lines * LANES) }
        });
        (pieces, &mut self.places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two tasks that each take one row of an array of six numbers.
    fn two_rows(rows: [(usize, usize); 2]) -> Vec<f32> {
        let mut array = vec![0.0; 6];
        let shared = Shared::new(&mut array);
        for (at, (first, length)) in rows.into_iter().enumerate() {
            // SAFETY: rows that overlap are refused before they are written.
            let mut task = unsafe { shared.task() };
            // Again, and in pieces: a task may.
            task.row(first, length).fill(0.0);
            task.row(first, length).fill(1.0 + at as f32);
        }
        drop(shared);
        array
    }

    #[test]
    fn tasks_write_rows_of_their_own() {
        assert_eq!(two_rows([(1, 2), (3, 3)]), [0.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
        assert_eq!(two_rows([(0, 6), (6, 0)]), [1.0; 6]);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "two tasks take number 2 of an array")]
    fn a_row_that_two_tasks_take_is_refused() {
        two_rows([(1, 2), (2, 2)]);
    }

    #[test]
    #[should_panic(expected = "rest.is_some_and")]
    fn a_row_past_the_end_is_refused() {
        two_rows([(0, 2), (5, 2)]);
    }

    #[test]
    #[should_panic(expected = "rest.is_some_and")]
    fn a_row_whose_end_overflows_is_refused() {
        two_rows([(0, 2), (2, usize::MAX)]);
    }

    #[test]
    fn parts_lie_behind_one_another() {
        let mut array = [0.0; 6];
        let shared = Shared::new(&mut array);
        for index in 0..3 {
            // SAFETY: each part is asked for once.
            let mut part = unsafe { shared.part(index, 2) };
            part.clear_row(0, 1);
            part.row(1, 1)[0] = index as f32;
        }
        drop(shared);
        assert_eq!(array, [0.0, 0.0, 0.0, 1.0, 0.0, 2.0]);
    }

    #[test]
    #[should_panic(expected = "end <= self.length")]
    fn a_part_past_the_end_is_refused() {
        let mut array = [0.0; 5];
        // SAFETY: it is asked for once.
        unsafe { Shared::new(&mut array).part(2, 2) };
    }

    #[test]
    fn pieces_of_scratch_memory_are_apart_and_as_long_as_asked_for() {
        let mut scratch = Scratch::default();
        for lengths in [[1, 0, 17], [33, 16, 5]] {
            let (pieces, _) = scratch.reserve(lengths);
            for (at, piece) in pieces.into_iter().enumerate() {
                assert_eq!(piece.len(), lengths[at].next_multiple_of(LANES));
                piece.fill(at as f32);
            }
            let lines = lengths.map(|length| length.div_ceil(LANES));
            let owners = scratch.lines.iter().map(|line| line.0);
            let expected = (0..3).flat_map(|at| vec![[at as f32; LANES]; lines[at]]);
            assert!(owners.eq(expected));
        }
    }
}
