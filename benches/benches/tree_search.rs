//! Tree search over a finished index beside dense attention over the same tokens, core with core:
//! projected queries, keys and values go in, and neither side projects anything.
//!
//! `BURN_DEVICE=flex cargo bench -p arbora-benches --features flex`
//!
//! Rows are named `n<tokens>_q<queries>_h<heads>_d<head_dim>`. Every sample ends with a synchronised
//! device.

use arbora_attention::{Route, TreeSearchOptions, tree_search};
use arbora_tree::{Layout, TokenTreeShape};
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Distribution, Int, Tensor};
use divan::Bencher;
use std::fmt;

fn main() {
    divan::main();
}

/// One problem: a batch of one, with a branching factor of 2.
#[derive(Clone, Copy, Debug)]
struct Problem {
    tokens: usize,
    queries: usize,
    heads: usize,
    head_dim: usize,
}

const fn problem(tokens: usize) -> Problem {
    Problem {
        tokens,
        queries: 256,
        heads: 4,
        head_dim: 16,
    }
}

const PROBLEMS: [Problem; 3] = [problem(1 << 7), problem(1 << 10), problem(1 << 13)];

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tokens,
            queries,
            heads,
            head_dim,
        } = self;
        write!(formatter, "n{tokens}_q{queries}_h{heads}_d{head_dim}")
    }
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Runs `work` until the device has finished.
fn bench<T>(bencher: Bencher<'_, '_>, device: &Device, work: impl Fn() -> T) {
    let synced = || {
        let output = work();
        device.sync().expect("the device runs the work");
        output
    };
    // Compiles kernels and tunes them, outside the measurement.
    synced();
    bencher.bench_local(synced);
}

#[divan::bench(args = PROBLEMS)]
fn tree(bencher: Bencher<'_, '_>, problem: Problem) {
    let device = Device::default();
    let Problem {
        tokens,
        queries,
        heads,
        head_dim,
    } = problem;
    let shape = TokenTreeShape::new(tokens, 2, Layout::LeftFilled);
    let query = random([1, queries, heads, head_dim], &device);
    let key = random([1, shape.nodes(), heads, head_dim], &device);
    let value = random([1, shape.nodes(), heads, head_dim], &device);
    let lengths = Tensor::<1, Int>::full([1], tokens as i64, &device);
    bench(bencher, &device, || {
        tree_search(
            query.clone(),
            key.clone(),
            value.clone(),
            lengths.clone(),
            Route::Greedy,
            TreeSearchOptions::new(shape),
        )
        .context
    });
}

#[divan::bench(args = PROBLEMS)]
fn dense(bencher: Bencher<'_, '_>, problem: Problem) {
    let device = Device::default();
    let Problem {
        tokens,
        queries,
        heads,
        head_dim,
    } = problem;
    // burn's attention takes [batch, heads, rows, head_dim].
    let query = random([1, heads, queries, head_dim], &device);
    let key = random([1, heads, tokens, head_dim], &device);
    let value = random([1, heads, tokens, head_dim], &device);
    bench(bencher, &device, || {
        attention(
            query.clone(),
            key.clone(),
            value.clone(),
            None,
            None,
            AttentionModuleOptions::default(),
        )
    });
}
