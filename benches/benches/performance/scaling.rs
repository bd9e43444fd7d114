//! Time and memory of a search per query as the context grows, on one thread.

use crate::machine::single_threaded;
use crate::measure::{Entrant, contest};
use crate::numbers::Row;
use crate::problem::{Problem, Routes};
use crate::{Bench, dense};
use std::hint::black_box;

pub const SECTION: &str = "scaling";

/// Exponents of two of the context sizes, the largest last.
pub fn exponents(quick: bool) -> &'static [u32] {
    if quick {
        &[10, 13, 16]
    } else {
        &[10, 12, 14, 16, 18, 20]
    }
}

/// So many that the nodes they read do not all stay in a cache at the largest context.
const QUERIES: usize = 8192;

/// Of dense attention, whose time per query is that of its share.
const DENSE_QUERIES: usize = 64;

pub fn measure(bench: &mut Bench) {
    let exponents = exponents(bench.quick);
    for exponent in exponents {
        let routes = if exponents.last() == Some(exponent) {
            &Routes::ALL[..]
        } else {
            &[Routes::Learned]
        };
        for routes in routes {
            single_threaded(|| measure_one(bench, 1 << exponent, *routes));
        }
    }
}

fn measure_one(bench: &mut Bench, tokens: usize, routes: Routes) {
    let problem = Problem {
        batch: 1,
        tokens,
        queries: QUERIES,
        heads: 4,
        head_dim: 16,
    };
    let few = Problem {
        queries: DENSE_QUERIES,
        ..problem
    };
    let mut others = match routes {
        Routes::Learned => contest(&bench.effort, dense::cores(few)),
        _ => Vec::new(),
    };
    for other in &mut others {
        other.name += " (scaled)";
        other.seconds *= (QUERIES / DENSE_QUERIES) as f64;
        other.fastest *= (QUERIES / DENSE_QUERIES) as f64;
        other.peak_bytes = None;
    }
    // One backend after the other: an index of 2^20 tokens takes a gigabyte.
    for backend in bench.backends.clone() {
        let device = backend.device.clone();
        let inputs = problem.inputs(routes, problem.index(&device), &device);
        let cost = inputs.cost();
        let entrant = Entrant::new(backend.name, || {
            black_box(inputs.search());
            device.sync().expect("the device runs the work");
        });
        let ours = contest(&bench.effort, vec![entrant]).remove(0);
        bench.report.add(Row {
            section: SECTION.into(),
            what: "tree search".into(),
            shape: problem.text(),
            tokens,
            routes: routes.name().into(),
            backend: backend.name.into(),
            threads: 1,
            microseconds_per_query: Some(ours.seconds * 1e6 / QUERIES as f64),
            ours,
            others: others.clone(),
            cost: Some(cost),
            ..Row::default()
        });
    }
}
