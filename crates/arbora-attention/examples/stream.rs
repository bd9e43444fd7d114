//! A memory that is appended to and asked, token by token.
//!
//! `cargo run -p arbora-attention --example stream --features flex --release`

use arbora_attention::{Route, StreamingIndex, TreeCrossAttentionConfig};
use arbora_tree::{Layout, MeanAggregator, TokenTree, TokenTreeShape};
use burn::tensor::{Device, Distribution, Tensor};
use std::error::Error;
use std::time::Instant;

const D_MODEL: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::default();
    let layer = TreeCrossAttentionConfig::new(D_MODEL, 4).init(&device);
    let tokens = |count| {
        let normal = Distribution::Normal(0.0, 1.0);
        Tensor::<3>::random([1, count, D_MODEL], normal, &device)
    };

    // One stream that may hold a million tokens, and has room for 1024 at first.
    let shape = TokenTreeShape::new(1024, 2, Layout::LeftFilled);
    let tree = TokenTree::empty(1, D_MODEL, shape, &device);
    let mut memory = layer.stream(tree).with_max_tokens(1 << 20);

    println!("tokens  µs per appended token  nodes made anew  nodes read per query");
    let mut length = 0;
    for exponent in [10, 14, 17] {
        let next = (1 << exponent) - length;
        memory.append(&layer, tokens(next), &MeanAggregator)?;
        // So that no growth falls into what is timed.
        memory.reserve(&layer, (1 << exponent) + 64, &MeanAggregator)?;
        memory.append(&layer, tokens(1), &MeanAggregator)?;
        device.sync()?;

        let start = Instant::now();
        let mut changed = 0;
        for _ in 0..32 {
            let new = memory.append(&layer, tokens(1), &MeanAggregator)?;
            changed += new.positions(0).count();
        }
        device.sync()?;
        let micros = start.elapsed().as_micros() / 32;

        let found = layer.search(tokens(8), memory.index(), Route::Greedy);
        let read: f32 = found.read.float().mean().into_scalar();
        length = (1 << exponent) + 33;
        println!("{length:6}  {micros:21}  {:15}  {read:20}", changed / 32);
    }

    // A token can be replaced, and the memory kept for another day.
    let token = tokens(1).squeeze_dim::<2>(0);
    memory.update(&layer, &[(0, 5)], token, &MeanAggregator)?;
    let path = std::env::temp_dir().join(format!("memory-{}.safetensors", std::process::id()));
    memory.save(&path)?;
    let loaded = StreamingIndex::load(&path, &layer, &device)?;
    println!(
        "loaded again with room for {} tokens",
        loaded.tree().capacity()
    );
    std::fs::remove_file(path)?;
    Ok(())
}
