//! The part of the shared suite that tests data: the same names on every backend.
#![cfg(any(
    feature = "flex",
    feature = "ndarray",
    feature = "tch",
    feature = "wgpu",
    feature = "vulkan",
    feature = "webgpu",
    feature = "metal",
    feature = "cuda",
    feature = "rocm",
    feature = "cpu"
))]

mod bandit;
mod batch;
mod completion;
mod copy;
mod gp;
mod recall;
mod series;
mod text;

#[test]
fn the_backend_asked_for_is_the_one_that_runs() {
    arbora_testing::assert_backend_asked_for();
}
