//! How many rows the layers of this crate project: keys and values are meant to be projected once per tree and
//! queries once per search. Counted for tests alone, with the feature `count-projections`.

/// Rows (tokens, nodes or queries) that went through each projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Projections {
    /// Query rows.
    pub query: usize,
    /// Key rows.
    pub key: usize,
    /// Value rows.
    pub value: usize,
    /// Output rows.
    pub output: usize,
}

#[cfg(feature = "count-projections")]
mod counter {
    use super::Projections;
    use std::cell::Cell;

    thread_local! {
        static TOTAL: Cell<Projections> = Cell::default();
    }

    /// Runs `work` and returns its result with the rows that this crate's layers projected meanwhile on
    /// this thread.
    pub fn count<T>(work: impl FnOnce() -> T) -> (T, Projections) {
        TOTAL.take();
        let result = work();
        (result, TOTAL.take())
    }

    pub(crate) fn record(add: impl FnOnce(&mut Projections)) {
        let mut total = TOTAL.get();
        add(&mut total);
        TOTAL.set(total);
    }
}

#[cfg(feature = "count-projections")]
pub use counter::count;
#[cfg(feature = "count-projections")]
pub(crate) use counter::record;

#[cfg(not(feature = "count-projections"))]
pub(crate) fn record(_: impl FnOnce(&mut Projections)) {}
