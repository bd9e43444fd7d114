//! Time and memory of a query as the context grows from 2^7 to 2^17 tokens: `docs/results/growth.md` with
//! its plot.
//!
//! ```sh
//! cargo bench -p arbora-benches --features flex --bench growth -- --out docs/results
//! ```
//!
//! On burn-flex, one thread. Memory is what the process's allocator handed out at the highest point of
//! one call, less what it had handed out before: exact, unlike resident pages.

use arbora_attention::Route;
use arbora_attention::functions::{dense_attention, tree_search};
use arbora_attention::ops::{DenseAttentionOptions, TreeSearchOptions};
use arbora_cli::picture::curves::{self, Panel, Scale, Series};
use arbora_rl::sample::uniform;
use arbora_rl::seed::step_rng;
use arbora_tree::{Layout as TreeLayout, TokenTreeShape};
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Tensor};
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

/// The system's allocator, counting.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Exponents of two of the context sizes.
const EXPONENTS: std::ops::RangeInclusive<u32> = 7..=17;

/// Queries of one call, of every kind of attention.
const QUERIES: usize = 256;

/// Calls whose median is taken.
const CALLS: usize = 9;

/// What is measured, by name.
const KINDS: [&str; 3] = [
    "tree search",
    "dense, one pass over keys",
    "dense, burn's attention",
];

struct Measured {
    microseconds: f64,
    bytes: f64,
}

/// Time and memory of a call, per query.
fn measure(mut call: impl FnMut()) -> Measured {
    call();
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    call();
    let bytes = PEAK.load(Relaxed).saturating_sub(before) as f64 / QUERIES as f64;
    Measured {
        microseconds: median_seconds(call) * 1e6 / QUERIES as f64,
        bytes,
    }
}

fn median_seconds(mut call: impl FnMut()) -> f64 {
    let mut seconds = [0.0; CALLS].map(|_: f64| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    });
    seconds.sort_by(f64::total_cmp);
    seconds[CALLS / 2]
}

fn at(tokens: usize, device: &Device) -> [Measured; 3] {
    const HEADS: usize = 4;
    const HEAD_DIM: usize = 16;
    let shape = TokenTreeShape::new(tokens, 2, TreeLayout::LeftFilled);
    // Mean 0 and variance 1.
    let random = |rows: usize, seed: u64| -> Tensor<4> {
        let numbers = uniform(&mut step_rng(seed, 0), [1, rows, HEADS, HEAD_DIM], device);
        (numbers * 2.0 - 1.0) * 3f64.sqrt()
    };
    let query = random(QUERIES, 1);
    let (key, value) = (random(shape.nodes(), 2), random(shape.nodes(), 3));
    let lengths = Tensor::full([1], tokens as i64, device);
    let options = DenseAttentionOptions {
        first_key: shape.offset(0),
        scale: None,
    };
    let leaves = |rows: &Tensor<4>| {
        let nodes = shape.offset(0)..shape.nodes();
        rows.clone().slice([0..1, nodes]).swap_dims(1, 2)
    };
    let by_head = [query.clone().swap_dims(1, 2), leaves(&key), leaves(&value)];
    [
        measure(|| {
            black_box(tree_search(
                query.clone(),
                key.clone(),
                value.clone(),
                lengths.clone(),
                Route::Greedy,
                TreeSearchOptions::new(shape),
            ));
        }),
        measure(|| {
            let (query, key, value) = (query.clone(), key.clone(), value.clone());
            black_box(dense_attention(query, key, value, None, options));
        }),
        measure(|| {
            let [query, key, value] = by_head.clone();
            let options = AttentionModuleOptions::default();
            black_box(attention(query, key, value, None, None, options));
        }),
    ]
}

fn out() -> Result<PathBuf, String> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    match (words.next().as_deref(), words.next(), words.next()) {
        (Some("--out"), Some(folder), None) => {
            // Cargo runs a bench in its package's folder; a person means the workspace's.
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("..")
                .join(folder);
            if folder.is_dir() {
                Ok(folder)
            } else {
                Err(format!("{}: no such folder", folder.display()))
            }
        }
        _ => Err("expected --out FOLDER".into()),
    }
}

fn main() {
    let outcome = out().and_then(|folder| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build_global()
            .map_err(|error| error.to_string())?;
        write(&folder).map_err(|error| format!("{error:#}"))
    });
    if let Err(message) = outcome {
        eprintln!("error: {message}");
        std::process::exit(2);
    }
}

fn write(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex();
    let mut rows = Vec::new();
    for exponent in EXPONENTS {
        let tokens = 1usize << exponent;
        rows.push((tokens, at(tokens, &device)));
        eprintln!("{tokens} tokens");
    }
    let lines = |number: fn(&Measured) -> f64| {
        (0..KINDS.len())
            .map(|kind| Series {
                name: KINDS[kind].into(),
                points: rows
                    .iter()
                    .map(|(tokens, measured)| (*tokens as f64, number(&measured[kind])))
                    .collect(),
                ..Series::default()
            })
            .collect()
    };
    let panel = |title: &str, y_label: &str, series| Panel {
        title: title.into(),
        x_label: "tokens of context".into(),
        y_label: y_label.into(),
        x_scale: Scale::Log2,
        y_scale: Scale::Log10,
        series,
    };
    let panels = [
        panel("Time per query", "microseconds", lines(|m| m.microseconds)),
        panel("Memory per query", "bytes", lines(|m| m.bytes)),
    ];
    curves::draw(&panels, &folder.join("growth"))?;
    let numbers: Vec<serde_json::Value> = rows
        .iter()
        .map(|(tokens, measured)| {
            let of = |m: &Measured| {
                serde_json::json!({"microseconds_per_query": m.microseconds, "bytes_per_query": m.bytes})
            };
            serde_json::json!({
                "tokens": tokens, "tree_search": of(&measured[0]),
                "dense_one_pass": of(&measured[1]), "dense_burn": of(&measured[2]),
            })
        })
        .collect();
    std::fs::write(
        folder.join("growth.json"),
        serde_json::to_string_pretty(&numbers)? + "\n",
    )?;
    std::fs::write(folder.join("growth.md"), page(&rows))?;
    Ok(())
}

fn page(rows: &[(usize, [Measured; 3])]) -> String {
    let mut text = String::from(
        "# Time and memory of a query as the context grows\n\n\
         The whole page is made by\n\n\
         ```sh\ncargo bench -p arbora-benches --features flex --bench growth -- --out docs/results\n```\n\n\
         on burn-flex with one thread: 256 queries at once, 4 heads of 16, keys and values projected \
         before, random keys, greedy routes, branching factor 2. Medians of 9 calls. Memory is what the \
         allocator handed out at the highest point of a call, outputs included, divided by the queries; \
         keys and values themselves are not in it. *Dense, one pass over keys* is this workspace's \
         `dense_attention`, which keeps no scores; *burn's attention* is `burn::tensor::module::attention`.\n\n\
         ![Time and memory of a query by context size](growth.svg)\n\n\
         | tokens | tree search, µs | dense, one pass, µs | dense, burn, µs | tree search, bytes | dense, one pass, bytes | dense, burn, bytes |\n\
         |---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for (tokens, [tree, one_pass, burn]) in rows {
        text += &format!(
            "| {tokens} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} |\n",
            tree.microseconds,
            one_pass.microseconds,
            burn.microseconds,
            tree.bytes,
            one_pass.bytes,
            burn.bytes
        );
    }
    let (first, last) = (&rows[0], &rows[rows.len() - 1]);
    let grown = |kind: usize| last.1[kind].microseconds / first.1[kind].microseconds;
    text + &format!(
        "\nFrom {} to {} tokens, {} times as many, a query takes {:.1} times the time by tree search, {:.0} \
         times by dense attention in one pass, and {:.0} times by burn's. At {} tokens a tree search is {:.0} \
         times as fast as the faster of the two. Ratios within one run on a machine that may have had other \
         work.\n",
        first.0,
        last.0,
        last.0 / first.0,
        grown(0),
        grown(1),
        grown(2),
        last.0,
        last.1[1].microseconds.min(last.1[2].microseconds) / last.1[0].microseconds
    )
}
