//! What a layer allocates at a length where a matrix of scores would not fit.
//!
//! A binary of its own: the allocator counts what the whole process holds.

use arbora_attention::{
    AttentionKindConfig, SelfAttention, SelfAttentionConfig, SelfAttentionInput, TreeFineConfig,
};
use arbora_testing::{autodiff_device, random, values};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts the bytes that are held and the most that were.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it is, and what that returns is returned. Counting asks for no memory
// and does not panic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const TOKENS: usize = 4096;
const HEADS: usize = 8;
/// Numbers per head: few, so that the test is quick.
const HEAD_DIM: usize = 4;

/// The most bytes that a step of training holds beyond what there was before it.
fn step(layer: &SelfAttention, tokens: usize) -> usize {
    let device = layer.query.weight.val().device();
    let input = random([1, tokens, HEADS * HEAD_DIM], 1, &device) * 2.0;
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let output = layer.forward(SelfAttentionInput::new(input));
    let report = output.routing.expect("the kind routes");
    let loss = output.context.square().mean() + report.balance_loss.expect("it trains") * 0.01;
    let gradients = loss.backward();
    let gradient = layer.query.weight.grad(&gradients).expect("it is read");
    let most = MOST.load(Relaxed) - before;
    let gradient = values(gradient);
    assert!(gradient.iter().all(|x| x.is_finite()) && gradient.iter().any(|x| *x != 0.0));
    most
}

#[test]
fn training_at_4096_tokens_holds_a_fraction_of_a_matrix_of_scores() {
    let kind = AttentionKindConfig::TreeFine(TreeFineConfig::new([8, 8]));
    let layer = SelfAttentionConfig::new(HEADS * HEAD_DIM, HEADS)
        .with_kind(kind)
        .init(&autodiff_device());
    let (quarter, most) = (step(&layer, TOKENS / 4), step(&layer, TOKENS));
    let matrix = TOKENS * TOKENS * HEADS * size_of::<f32>();
    assert_eq!(matrix, 512 << 20);
    let mib = |bytes: usize| bytes >> 20;
    // Of linear growth: four times as much.
    assert!(
        most < matrix / 4 && most < 6 * quarter,
        "{} MiB, {} MiB for a quarter of the tokens",
        mib(most),
        mib(quarter)
    );
}
