//! What models say about arguments that do not fit.

use std::fmt::Debug;

/// Panics if there are none of `what`.
#[track_caller]
pub(crate) fn expect_some(what: &str, got: usize) {
    assert!(got > 0, "{what}: expected at least 1, got 0");
}

/// Panics unless `got` is what is expected of `what`.
#[track_caller]
pub(crate) fn expect<T: PartialEq + Debug>(what: &str, got: T, expected: T) {
    assert!(
        got == expected,
        "{what}: expected {expected:?}, got {got:?}"
    );
}
