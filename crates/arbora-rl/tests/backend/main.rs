//! The suite that runs unchanged on every backend. `BURN_DEVICE` names the backend.
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

mod baselines;
mod clip;
mod loss;
mod rewards;
mod sampling;

#[test]
fn the_backend_asked_for_is_the_one_that_runs() {
    arbora_testing::assert_backend_asked_for();
}
