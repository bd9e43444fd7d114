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

#[path = "backend/bandit.rs"]
mod bandit;
#[path = "backend/batch.rs"]
mod batch;
#[path = "backend/completion.rs"]
mod completion;
#[path = "backend/copy.rs"]
mod copy;
#[path = "backend/gp.rs"]
mod gp;
#[path = "backend/recall.rs"]
mod recall;
#[path = "backend/series.rs"]
mod series;
#[path = "backend/text.rs"]
mod text;

#[test]
fn the_backend_asked_for_is_the_one_that_runs() {
    arbora_testing::assert_backend_asked_for();
}
