//! The suite that every backend runs: `cargo xtask test-all-backends`.
#![cfg(feature = "tensor")]

mod order;
mod routing;
mod stream;
mod token;

#[test]
fn the_backend_asked_for_is_the_one_that_runs() {
    arbora_testing::assert_backend_asked_for();
}
