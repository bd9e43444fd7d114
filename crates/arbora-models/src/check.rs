//! What models say about arguments that do not fit.

use std::fmt::Debug;

/// Panics unless `got` is what is expected of `what`.
#[track_caller]
pub(crate) fn expect<T: PartialEq + Debug>(what: &str, got: T, expected: T) {
    assert!(
        got == expected,
        "{what}: expected {expected:?}, got {got:?}"
    );
}
