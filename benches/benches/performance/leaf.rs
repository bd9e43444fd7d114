//! Attention within leaves beside dense attention. With one leaf, what separate kernels for dense attention gain; with 64 balanced
//! ones, what leaves gain.

use crate::backends::{Opened, adapter, on_cube};
use crate::measure::{Entrant, contest};
use crate::numbers::Row;
use crate::problem::{Problem, random};
use crate::{Bench, THREADS};
use arbora_attention::functions::{LeafAttentionInput, dense_attention, leaf_attention};
use arbora_attention::ops::{DenseAttentionOptions, LeafAttentionOptions};
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::hint::black_box;

pub const SECTION: &str = "leaf";

/// Attention of as many queries as keys, all in leaves of one size.
struct Case {
    problem: Problem,
    leaves: usize,
}

impl Case {
    fn one_leaf(tokens: usize) -> Self {
        let problem = Problem {
            batch: (2048 / tokens).max(1),
            tokens,
            queries: tokens,
            heads: 4,
            head_dim: 16,
        };
        Self { problem, leaves: 1 }
    }

    /// As many leaves as trees of height 6 have.
    fn many_leaves(tokens: usize) -> Self {
        let problem = Problem {
            batch: 1,
            tokens,
            queries: tokens,
            heads: 8,
            head_dim: 96,
        };
        Self {
            problem,
            leaves: 64,
        }
    }

    fn what(&self) -> String {
        match self.leaves {
            1 => "attention of one leaf".into(),
            leaves => format!("attention within {leaves} leaves"),
        }
    }
}

pub fn measure(bench: &mut Bench) {
    let (one, many): (&[usize], &[usize]) = if bench.quick {
        (&[128, 1024], &[1024])
    } else {
        (&[128, 512, 2048, 8192], &[1024, 4096])
    };
    let one: Vec<Case> = one.iter().copied().map(Case::one_leaf).collect();
    let many: Vec<Case> = many.iter().copied().map(Case::many_leaves).collect();
    for backend in bench.backends.clone() {
        for case in one.iter().chain(&many) {
            measure_one(bench, &backend, case, backend.name.into());
        }
    }
    // On a machine without a GPU the device is a driver on the processor.
    for backend in on_cube().into_iter().flatten() {
        for case in &one[..2] {
            let name = format!("{} ({})", backend.name, adapter(&backend.device));
            measure_one(bench, &backend, case, name);
        }
    }
}

fn measure_one(bench: &mut Bench, backend: &Opened, case: &Case, name: String) {
    for (what, device) in [
        ("forward", backend.device.clone()),
        ("forward and backward", backend.device.clone().autodiff()),
    ] {
        let entrants = [true, false].map(|within| entrant(case, within, &device));
        let mut others = contest(&bench.effort, entrants.into());
        let ours = others.remove(0);
        bench.report.add(Row {
            section: SECTION.into(),
            what: format!("{}, {what}", case.what()),
            shape: case.problem.text(),
            tokens: case.problem.tokens,
            routes: "–".into(),
            backend: name.clone(),
            threads: THREADS,
            ours,
            others,
            ..Row::default()
        });
    }
}

fn entrant(case: &Case, within_leaves: bool, device: &Device) -> Entrant<'static> {
    let Case { problem, leaves } = case;
    let [batch, tokens, heads] = [problem.batch, problem.tokens, problem.heads];
    let rows = [batch, tokens, heads, problem.head_dim];
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
    let leaf = (0..batch * tokens * heads).map(|at| (at / heads % leaves) as i64);
    let leaf = TensorData::new(leaf.collect(), [batch, tokens, heads]);
    let leaf = Tensor::<3, Int>::from_data(leaf, device);
    let options = LeafAttentionOptions::new(*leaves);
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
            leaf_attention(input, options).context
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
