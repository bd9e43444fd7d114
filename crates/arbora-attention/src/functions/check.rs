//! What functions and layers say about arguments that do not fit.

use std::fmt::Debug;

/// Panics unless `got` is what is expected of `what`.
#[track_caller]
pub(crate) fn expect<T: PartialEq + Debug>(what: &str, got: T, expected: T) {
    assert!(
        got == expected,
        "{what}: expected {expected:?}, got {got:?}"
    );
}

/// Panics if `what` is 0.
#[track_caller]
pub(crate) fn expect_some(what: &str, got: usize) {
    assert!(got > 0, "{what}: expected at least 1, got 0");
}

/// Panics unless `what` divides `of`.
#[track_caller]
pub(crate) fn expect_divisor(what: &str, got: usize, of: usize) {
    assert!(
        got > 0 && of.is_multiple_of(got),
        "{what}: expected a divisor of {of}, got {got}"
    );
}

/// The sizes of a function's axes by their names: its tensors must agree on them.
pub(crate) struct Axes {
    function: &'static str,
    sizes: Vec<(&'static str, usize)>,
}

/// [`Axes`] that are named as the variables that hold their sizes.
macro_rules! axes {
    ($function:expr, $($axis:ident),+) => {
        $crate::functions::check::Axes::new($function, vec![$((stringify!($axis), $axis)),+])
    };
}
pub(crate) use axes;

impl Axes {
    /// Panics without an example: not every backend takes tensors of none.
    #[track_caller]
    pub fn new(function: &'static str, sizes: Vec<(&'static str, usize)>) -> Self {
        for (name, size) in &sizes {
            assert!(
                *name != "batch" || *size > 0,
                "{function}: batch: expected at least 1, got 0"
            );
        }
        Self { function, sizes }
    }

    /// One more axis, whose name is that of no variable.
    pub fn with(mut self, name: &'static str, size: usize) -> Self {
        self.sizes.push((name, size));
        self
    }

    /// Panics unless a tensor has the axes of these names, which commas separate.
    #[track_caller]
    pub fn expect(&self, tensor: &str, names: &str, got: &[usize]) {
        let size = |axis: &str| {
            let named = self.sizes.iter().find(|(name, _)| *name == axis);
            named.expect("the function names its axes").1
        };
        let expected: Vec<usize> = names.split(", ").map(size).collect();
        assert!(
            got == expected,
            "{}: {tensor} [{names}]: expected {expected:?}, got {got:?}",
            self.function
        );
    }
}
