//! The whole of tree cross attention from tokens on (building the tree, projecting its nodes, queries
//! and outputs, searching), beside dense attention with its four projections.

use crate::backends::Opened;
use crate::floor::linear;
use crate::measure::{Entrant, contest};
use crate::numbers::{BreakEven, Cost, Measured, Row};
use crate::problem::{Problem, Routes, random};
use crate::{Bench, THREADS, dense, search};
use arbora_attention::{Route, TreeCrossAttention, TreeCrossAttentionConfig, TreeIndex};
use arbora_models::parts::BlockAggregator;
use arbora_models::{HeadKind, ModelConfig};
use arbora_tree::{TokenOrder, TokenTree};
use burn::tensor::{Device, Tensor};
use std::hint::black_box;
use std::rc::Rc;

pub const SECTION: &str = "layer";

pub fn measure(bench: &mut Bench) {
    for tokens in search::contexts(bench.quick) {
        measure_one(bench, search::problem(*tokens, bench.quick));
    }
}

/// A layer with its inputs.
struct Layer {
    problem: Problem,
    device: Device,
    tokens: Tensor<3>,  // [batch, tokens, d_model]
    queries: Tensor<3>, // [batch, queries, d_model]
    aggregator: BlockAggregator,
    attention: TreeCrossAttention,
}

/// The published width of feed-forward layers.
const D_FF: usize = 128;

impl Layer {
    fn new(problem: Problem, device: &Device) -> Self {
        let width = problem.heads * problem.head_dim;
        let config = ModelConfig::new(width, width, HeadKind::Classes { count: 2 })
            .with_d_model(width)
            .with_d_ff(D_FF)
            .with_n_heads(problem.heads);
        Self {
            problem,
            device: device.clone(),
            tokens: random([problem.batch, problem.tokens, width], 1, device),
            queries: random([problem.batch, problem.queries, width], 2, device),
            aggregator: BlockAggregator::new(&config, true, device),
            attention: TreeCrossAttentionConfig::new(width, problem.heads).init(device),
        }
    }

    fn index(&self) -> TreeIndex {
        let shape = self.problem.shape();
        let order = TokenOrder::Given.permutation(&self.tokens, None, &shape);
        let tree = TokenTree::build(self.tokens.clone(), None, order, shape, &self.aggregator);
        self.attention.index(&tree)
    }

    fn answers(&self, index: &TreeIndex) -> Tensor<3> {
        let queries = self.queries.clone();
        self.attention.search(queries, index, Route::Greedy).context
    }

    fn wait(&self) {
        self.device.sync().expect("the device runs the work");
    }
}

/// All of it, the tree with its index, the queries.
fn ours(problem: Problem, backend: &Opened) -> [Entrant<'static>; 3] {
    let layer = Rc::new(Layer::new(problem, &backend.device));
    let (of_index, of_queries) = (layer.clone(), layer.clone());
    let index = layer.index();
    [
        Entrant::new(backend.name, move || {
            black_box(layer.answers(&layer.index()));
            layer.wait();
        }),
        Entrant::new(backend.name, move || {
            black_box(of_index.index());
            of_index.wait();
        }),
        Entrant::new(backend.name, move || {
            black_box(of_queries.answers(&index));
            of_queries.wait();
        }),
    ]
}

fn measure_one(bench: &mut Bench, problem: Problem) {
    let mut entrants: Vec<Entrant<'static>> = Vec::new();
    for backend in &bench.backends {
        entrants.extend(ours(problem, backend));
    }
    entrants.extend(dense::layers(problem).into_iter().flatten());
    let measured = contest(&bench.effort, entrants);
    let parts: Vec<&[Measured]> = measured.chunks(3).collect();
    let (ours, others) = parts.split_at(bench.backends.len());
    let whole = |parts: &[&[Measured]]| -> Vec<Measured> {
        parts.iter().map(|parts| parts[0].clone()).collect()
    };
    let cost = cost(&problem);
    for ours in whole(ours) {
        bench.report.add(Row {
            section: SECTION.into(),
            what: "tree build, projections and search".into(),
            shape: problem.text(),
            tokens: problem.tokens,
            routes: Routes::Learned.name().into(),
            backend: ours.name.clone(),
            threads: THREADS,
            ours,
            others: whole(others),
            cost: Some(cost),
            ..Row::default()
        });
    }
    // The alternative is the one that is fastest as a whole.
    let all = whole(others);
    let Some(best) = dense::best(&all) else {
        return;
    };
    let best = others
        .iter()
        .find(|parts| parts[0].name == best.name)
        .expect("the best is one of them");
    let (trees, queries) = (
        problem.batch as f64,
        (problem.batch * problem.queries) as f64,
    );
    for ours in ours {
        let build_seconds = ours[1].seconds / trees;
        let tree_seconds_per_query = ours[2].seconds / queries;
        let dense_context_seconds = best[1].seconds / trees;
        let dense_seconds_per_query = best[2].seconds / queries;
        let saved = dense_seconds_per_query - tree_seconds_per_query;
        bench.report.break_even.push(BreakEven {
            backend: ours[0].name.clone(),
            tokens: problem.tokens,
            build_seconds,
            tree_seconds_per_query,
            dense_context_seconds,
            dense_seconds_per_query,
            queries: (saved > 0.0)
                .then(|| ((build_seconds - dense_context_seconds) / saved).max(0.0)),
        });
    }
}

/// The aggregator runs on every node but the root, the index projects every node, and queries are
/// projected twice. In come tokens and queries, out go the outputs.
fn cost(problem: &Problem) -> Cost {
    let Problem {
        batch,
        tokens,
        queries,
        ..
    } = *problem;
    let width = problem.heads * problem.head_dim;
    let shape = problem.shape();
    let nodes = batch * shape.nodes();
    let children = batch * (shape.nodes() - 1);
    let rows = batch * queries;
    let decisions = shape.decisions() as f64;
    Cost {
        flops: aggregation(children, width, D_FF)
            + 2.0 * linear(nodes, width, width)
            + 2.0 * linear(rows, width, width)
            // Two keys per decision and two at the end; half of the former are attended to.
            + 2.0 * (rows * width) as f64 * ((2.0 * decisions + 2.0) + (decisions + 2.0)),
        bytes: 4.0 * (width * (batch * tokens + 2 * rows)) as f64,
    }
}

/// One published transformer block over pairs of siblings.
pub fn aggregation(children: usize, width: usize, d_ff: usize) -> f64 {
    4.0 * linear(children, width, width)
        + crate::floor::attention(children, 2, width)
        + linear(children, width, 2 * d_ff)
        + linear(children, d_ff, width)
}
