//! Attention within leaves, of which there is one, beside dense attention: what separate kernels for dense attention gain.

use crate::backends::{Opened, adapter, on_cube};
use crate::measure::{Entrant, contest};
use crate::numbers::Row;
use crate::problem::{Problem, random};
use crate::{Bench, THREADS};
use arbora_attention::functions::{LeafAttentionInput, dense_attention, leaf_attention};
use arbora_attention::ops::{DenseAttentionOptions, LeafAttentionOptions};
use burn::tensor::{Device, Int, Tensor};
use std::hint::black_box;

pub const SECTION: &str = "leaf";

pub fn measure(bench: &mut Bench) {
    let sizes: &[usize] = if bench.quick {
        &[128, 1024]
    } else {
        &[128, 512, 2048, 8192]
    };
    for backend in bench.backends.clone() {
        for tokens in sizes {
            measure_one(bench, &backend, *tokens, backend.name.into());
        }
    }
    // On a machine without a GPU the device is a driver on the processor.
    for backend in on_cube().into_iter().flatten() {
        for tokens in &sizes[..2] {
            let name = format!("{} ({})", backend.name, adapter(&backend.device));
            measure_one(bench, &backend, *tokens, name);
        }
    }
}

fn measure_one(bench: &mut Bench, backend: &Opened, tokens: usize, name: String) {
    let problem = Problem {
        batch: (2048 / tokens).max(1),
        tokens,
        queries: tokens,
        heads: 4,
        head_dim: 16,
    };
    for (what, device) in [
        ("forward", backend.device.clone()),
        ("forward and backward", backend.device.clone().autodiff()),
    ] {
        let entrants = [true, false].map(|within| entrant(&problem, within, &device));
        let mut others = contest(&bench.effort, entrants.into());
        let ours = others.remove(0);
        bench.report.add(Row {
            section: SECTION.into(),
            what: format!("attention of one leaf, {what}"),
            shape: problem.text(),
            tokens,
            routes: "–".into(),
            backend: name.clone(),
            threads: THREADS,
            ours,
            others,
            ..Row::default()
        });
    }
}

fn entrant(problem: &Problem, within_leaves: bool, device: &Device) -> Entrant<'static> {
    let rows = [
        problem.batch,
        problem.tokens,
        problem.heads,
        problem.head_dim,
    ];
    let is_recorded = device.is_autodiff();
    let [query, key, value] = [1, 2, 3].map(|seed| {
        let rows = random(rows, seed, device);
        if is_recorded {
            rows.require_grad()
        } else {
            rows
        }
    });
    let weight = random(rows, 4, device);
    let leaf = Tensor::<3, Int>::zeros([rows[0], rows[1], rows[2]], device);
    let name = if within_leaves {
        "leaf attention"
    } else {
        "dense attention"
    };
    let device = device.clone();
    Entrant::new(name, move || {
        let context = if within_leaves {
            let input = LeafAttentionInput {
                query: query.clone(),
                key: key.clone(),
                value: value.clone(),
                key_bias: None,
                query_leaf: leaf.clone(),
                key_leaf: leaf.clone(),
            };
            leaf_attention(input, LeafAttentionOptions::new(1)).context
        } else {
            let options = DenseAttentionOptions {
                first_key: 0,
                scale: None,
            };
            let (key, value) = (key.clone(), value.clone());
            dense_attention(query.clone(), key, value, None, options)
        };
        if is_recorded {
            let gradients = (context * weight.clone()).sum().backward();
            black_box(query.grad(&gradients));
            black_box(key.grad(&gradients));
            black_box(value.grad(&gradients));
        } else {
            black_box(context);
        }
        device.sync().expect("the device runs the work");
    })
}
