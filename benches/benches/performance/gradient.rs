//! Forward and backward of a search with the index given, beside libtorch's own autograd of its
//! fused attention. Gradients reach queries, keys and values on both sides.

use crate::measure::{Entrant, contest};
use crate::numbers::{Cost, Row};
use crate::problem::{Inputs, Problem, Routes, random};
use crate::{Bench, THREADS, dense, search};
use burn::tensor::{Device, Tensor};
use std::hint::black_box;

pub const SECTION: &str = "gradient";

/// What the loss depends on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    Context,
    /// Also on log-probabilities and entropies, as a policy gradient's does.
    Policy,
}

impl Loss {
    fn what(self) -> &'static str {
        match self {
            Self::Context => FROM_CONTEXT,
            Self::Policy => "forward and backward from context, log-probability and entropy",
        }
    }
}

/// What the rows are called that the target is about.
pub const FROM_CONTEXT: &str = "forward and backward from the context";

pub fn measure(bench: &mut Bench) {
    let contexts = search::contexts(bench.quick);
    for tokens in contexts {
        let problem = search::problem(*tokens, bench.quick);
        measure_one(bench, problem, Routes::Learned, Loss::Context);
        if contexts.last() != Some(tokens) {
            continue;
        }
        measure_one(bench, problem, Routes::Learned, Loss::Policy);
        if !bench.quick {
            measure_one(bench, problem, Routes::OneLeaf, Loss::Context);
            measure_one(bench, problem, Routes::Uniform, Loss::Context);
        }
    }
}

fn measure_one(bench: &mut Bench, problem: Problem, routes: Routes, loss: Loss) {
    let mut cost = None;
    let mut entrants = Vec::new();
    for backend in &bench.backends {
        let plain = problem.inputs(routes, problem.index(&backend.device), &backend.device);
        cost.get_or_insert_with(|| with_backward(&problem, plain.cost()));
        entrants.push(entrant(
            backend.name,
            &problem,
            routes,
            loss,
            &backend.device,
        ));
    }
    entrants.extend(dense::gradients(problem));
    let mut measured = contest(&bench.effort, entrants);
    let others = measured.split_off(bench.backends.len());
    for ours in measured {
        bench.report.add(Row {
            section: SECTION.into(),
            what: loss.what().into(),
            shape: problem.text(),
            tokens: problem.tokens,
            routes: routes.name().into(),
            backend: ours.name.clone(),
            threads: THREADS,
            ours,
            others: others.clone(),
            cost,
            ..Row::default()
        });
    }
}

fn entrant(
    name: &'static str,
    problem: &Problem,
    routes: Routes,
    loss: Loss,
    device: &Device,
) -> Entrant<'static> {
    let device = device.clone().autodiff();
    let inputs = problem.inputs(routes, problem.index(&device), &device);
    let inputs = Inputs {
        query: inputs.query.require_grad(),
        key: inputs.key.require_grad(),
        value: inputs.value.require_grad(),
        ..inputs
    };
    let rows = [problem.batch, problem.queries, 1];
    let weight = random(inputs.query.dims(), 5, &device);
    let (log_prob_weight, entropy_weight) = (random(rows, 6, &device), random(rows, 7, &device));
    Entrant::new(name, move || {
        let found = inputs.search();
        let mut total: Tensor<1> = (found.context * weight.clone()).sum();
        if loss == Loss::Policy {
            total = total
                + (found.log_prob * log_prob_weight.clone()).sum()
                + (found.entropy.expect("no beam") * entropy_weight.clone()).sum();
        }
        let gradients = total.backward();
        for input in [&inputs.query, &inputs.key, &inputs.value] {
            black_box(input.grad(&gradients).expect("a gradient per input"));
        }
        device.sync().expect("the device runs the work");
    })
}

/// Adds the backward pass to the cost of the forward pass: each product has two adjoint products. In
/// come the contexts' gradients and everything the forward pass read, out go gradients of queries and
/// of all keys and values, zeros included.
fn with_backward(problem: &Problem, forward: Cost) -> Cost {
    let width = (problem.heads * problem.head_dim) as f64;
    let nodes = (problem.batch * problem.shape().nodes()) as f64;
    let queries = (problem.batch * problem.queries) as f64;
    forward
        + Cost {
            flops: 2.0 * forward.flops,
            bytes: forward.bytes + 4.0 * width * (2.0 * nodes + queries),
        }
}
