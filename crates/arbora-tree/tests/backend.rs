//! The suite that every backend runs: `cargo xtask test-all-backends`.
#![cfg(feature = "tensor")]

#[path = "backend/order.rs"]
mod order;
#[path = "backend/routing.rs"]
mod routing;
#[path = "backend/stream.rs"]
mod stream;
#[path = "backend/token.rs"]
mod token;

#[test]
fn the_backend_asked_for_is_the_one_that_runs() {
    arbora_testing::assert_backend_asked_for();
}
