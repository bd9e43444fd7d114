//! Tree search with the index given beside the core of dense attention: projected queries, keys and
//! values go in, and neither side projects anything.

use crate::measure::{Entrant, contest};
use crate::numbers::Row;
use crate::problem::{Problem, Routes};
use crate::{Bench, THREADS, dense};
use std::hint::black_box;

pub const SECTION: &str = "search";

/// The problem at a context size.
pub fn problem(tokens: usize, quick: bool) -> Problem {
    Problem {
        batch: if quick { 4 } else { 16 },
        tokens,
        queries: if quick { 512 } else { 2048 },
        heads: 4,
        head_dim: 16,
    }
}

/// Sizes of contexts, the largest last.
pub fn contexts(quick: bool) -> &'static [usize] {
    if quick {
        &[128, 1024]
    } else {
        &[128, 256, 512, 1024, 2048]
    }
}

pub fn measure(bench: &mut Bench) {
    let contexts = contexts(bench.quick);
    for tokens in contexts {
        let routes = if contexts.last() == Some(tokens) {
            &Routes::ALL[..]
        } else {
            &[Routes::Learned]
        };
        for routes in routes {
            measure_one(bench, problem(*tokens, bench.quick), *routes);
        }
    }
}

fn measure_one(bench: &mut Bench, problem: Problem, routes: Routes) {
    let mut cost = None;
    let mut entrants = Vec::new();
    for backend in &bench.backends {
        let device = backend.device.clone();
        let inputs = problem.inputs(routes, problem.index(&device), &device);
        cost.get_or_insert_with(|| inputs.cost());
        entrants.push(Entrant::new(backend.name, move || {
            black_box(inputs.search());
            device.sync().expect("the device runs the work");
        }));
    }
    entrants.extend(dense::cores(problem));
    let mut measured = contest(&bench.effort, entrants);
    let others = measured.split_off(bench.backends.len());
    for ours in measured {
        let queries = (problem.batch * problem.queries) as f64;
        bench.report.add(Row {
            section: SECTION.into(),
            what: "tree search".into(),
            shape: problem.text(),
            tokens: problem.tokens,
            routes: routes.name().into(),
            backend: ours.name.clone(),
            threads: THREADS,
            microseconds_per_query: Some(ours.seconds * 1e6 / queries),
            ours,
            others: others.clone(),
            cost,
            ..Row::default()
        });
    }
}
