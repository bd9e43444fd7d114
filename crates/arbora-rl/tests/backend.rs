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

#[path = "backend/baselines.rs"]
mod baselines;
#[path = "backend/clip.rs"]
mod clip;
#[path = "backend/loss.rs"]
mod loss;
#[path = "backend/rewards.rs"]
mod rewards;
#[path = "backend/sampling.rs"]
mod sampling;

#[test]
fn the_backend_asked_for_is_the_one_that_runs() {
    arbora_testing::assert_backend_asked_for();
}
