//! CubeCL's kernels beside the reference compositions of plain operations, on the same device.

use crate::backends::{Opened, adapter, on_cube};
use crate::measure::{Entrant, contest};
use crate::numbers::Row;
use crate::problem::{Problem, random};
use crate::{Bench, THREADS};
use arbora_attention::ops::{
    AttentionMask, BlockPrimitive, DenseAttentionInputs, DenseAttentionOptions,
    FeedForwardPrimitive, RoutePrimitive, TreeAttentionOps, TreeBuildOptions, TreeSearchInputs,
    TreeSearchOptions, reference,
};
use burn::backend::Dispatch;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Device, Int, Tensor};

pub const SECTION: &str = "gpu";

pub fn measure(bench: &mut Bench) {
    let devices = on_cube();
    if devices.is_empty() {
        bench
            .report
            .leave_out("kernels of CubeCL: no such backend is compiled in".into());
    }
    for device in devices {
        match device {
            Ok(backend) => measure_on(bench, &backend),
            Err(reason) => bench
                .report
                .leave_out(format!("kernels of CubeCL: {reason}")),
        }
    }
}

/// Small: on a machine without a GPU the device is a driver on the processor.
fn problem(quick: bool) -> Problem {
    Problem {
        batch: 2,
        tokens: if quick { 64 } else { 512 },
        queries: if quick { 64 } else { 512 },
        heads: 4,
        head_dim: 16,
    }
}

fn measure_on(bench: &mut Bench, backend: &Opened) {
    let problem = problem(bench.quick);
    compare(bench, backend, &problem, "tree search", search);
    compare(bench, backend, &problem, "dense attention", dense);
    compare(bench, backend, &problem, "tree build", build);
}

/// An operator by its kernel and by its reference body, with the operator's first output. The body
/// runs on whatever backend the tensors live on: `Dispatch` is a backend too.
struct Pair {
    kernel: Box<dyn Fn() -> FloatTensor<Dispatch>>,
    reference: Box<dyn Fn() -> FloatTensor<Dispatch>>,
}

/// Forward, then forward and backward.
fn compare(
    bench: &mut Bench,
    backend: &Opened,
    problem: &Problem,
    what: &str,
    pair: fn(&Problem, &Device) -> Pair,
) {
    let device = &backend.device;
    let wait = || device.sync().expect("the device runs the work");
    let plain = pair(problem, device);
    let recording = pair(problem, &device.clone().autodiff());
    let forward = |operator: &dyn Fn() -> FloatTensor<Dispatch>| {
        let output = operator();
        wait();
        drop(output);
    };
    let both = |operator: &dyn Fn() -> FloatTensor<Dispatch>| {
        // The mean of the squares: a gradient that differs from element to element.
        let output = Tensor::<1>::from_dispatch(flat(operator()));
        let gradients = output.square().mean().backward();
        wait();
        drop(gradients);
    };
    let passes = [
        (
            format!("{what}, forward"),
            [
                Entrant::new("kernel", || forward(&*plain.kernel)),
                Entrant::new("reference", || forward(&*plain.reference)),
            ],
        ),
        (
            format!("{what}, forward and backward"),
            [
                Entrant::new("kernel", || both(&*recording.kernel)),
                Entrant::new("reference", || both(&*recording.reference)),
            ],
        ),
    ];
    for (what, entrants) in passes {
        let mut others = contest(&bench.effort, entrants.into());
        for one in &mut others {
            // Tensors are in the device's memory, not in the process's.
            one.peak_bytes = None;
        }
        let ours = others.remove(0);
        bench.report.add(Row {
            section: SECTION.into(),
            what,
            shape: problem.text(),
            tokens: problem.tokens,
            routes: "–".into(),
            backend: format!("{} ({})", backend.name, adapter(device)),
            threads: THREADS,
            ours,
            others,
            ..Row::default()
        });
    }
}

fn flat(output: FloatTensor<Dispatch>) -> FloatTensor<Dispatch> {
    use burn::backend::TensorMetadata;
    use burn::backend::ops::FloatTensorOps;
    let elements = output.shape().num_elements();
    Dispatch::float_reshape(output, [elements].into())
}

/// A random tensor, whose gradient is asked for where the device records.
fn input<const D: usize>(
    shape: [usize; D],
    seed: u64,
    scale: f64,
    device: &Device,
) -> FloatTensor<Dispatch> {
    let tensor = random(shape, seed, device) * scale;
    if device.is_autodiff() {
        tensor.require_grad().into_dispatch()
    } else {
        tensor.into_dispatch()
    }
}

fn search(problem: &Problem, device: &Device) -> Pair {
    let Problem {
        batch,
        tokens,
        queries,
        heads,
        head_dim,
    } = *problem;
    let shape = problem.shape();
    let nodes = [batch, shape.nodes(), heads, head_dim];
    let inputs = TreeSearchInputs {
        query: input([batch, queries, heads, head_dim], 1, 1.0, device),
        key: input(nodes, 2, 1.0, device),
        value: input(nodes, 3, 1.0, device),
        lengths: Tensor::<1, Int>::full([batch], tokens as i64, device).into_dispatch(),
    };
    let run = move |reference_body: bool| {
        let operator = if reference_body {
            reference::tree_search::<Dispatch>
        } else {
            <Dispatch as TreeAttentionOps>::tree_search
        };
        let options = TreeSearchOptions::new(shape);
        operator(inputs.clone(), RoutePrimitive::Greedy, options).context
    };
    pair(run)
}

fn dense(problem: &Problem, device: &Device) -> Pair {
    let Problem {
        batch,
        tokens,
        queries,
        heads,
        head_dim,
    } = *problem;
    let rows = [batch, tokens, heads, head_dim];
    let inputs = DenseAttentionInputs {
        query: input([batch, queries, heads, head_dim], 1, 1.0, device),
        key: input(rows, 2, 1.0, device),
        value: input(rows, 3, 1.0, device),
        mask: AttentionMask::None,
    };
    pair(move |reference_body| {
        let operator = if reference_body {
            reference::dense_attention::<Dispatch>
        } else {
            <Dispatch as TreeAttentionOps>::dense_attention
        };
        let options = DenseAttentionOptions {
            first_key: 0,
            scale: None,
        };
        operator(inputs.clone(), options).context
    })
}

fn build(problem: &Problem, device: &Device) -> Pair {
    let (dim, ff) = (problem.heads * problem.head_dim, 128);
    let options = TreeBuildOptions {
        shape: problem.shape(),
        heads: problem.heads,
        epsilon: 1e-5,
        detach_children: true,
    };
    let leaves = input([problem.batch, problem.tokens, dim], 1, 1.0, device);
    let lengths = Tensor::<1, Int>::full([problem.batch], problem.tokens as i64, device);
    let lengths = lengths.into_dispatch();
    let vector = |width, seed| input([width], seed, 0.1, device);
    let matrix = |from, to, seed| input([from, to], seed, 0.1, device);
    let block = BlockPrimitive::<Dispatch> {
        norm_gamma: vector(dim, 2),
        norm_beta: vector(dim, 3),
        query: matrix(dim, dim, 4),
        key: matrix(dim, dim, 5),
        value: matrix(dim, dim, 6),
        output: matrix(dim, dim, 7),
        output_bias: vector(dim, 8),
        feed_forward: FeedForwardPrimitive {
            norm_gamma: vector(dim, 9),
            norm_beta: vector(dim, 10),
            inner: matrix(dim, 2 * ff, 11),
            inner_bias: vector(2 * ff, 12),
            outer: matrix(ff, dim, 13),
            outer_bias: vector(dim, 14),
        },
    };
    pair(move |reference_body| {
        let operator = if reference_body {
            reference::tree_build::<Dispatch>
        } else {
            <Dispatch as TreeAttentionOps>::tree_build
        };
        operator(leaves.clone(), lengths.clone(), block.clone(), options)
    })
}

fn pair(run: impl Fn(bool) -> FloatTensor<Dispatch> + Clone + 'static) -> Pair {
    let other = run.clone();
    Pair {
        kernel: Box::new(move || run(false)),
        reference: Box::new(move || other(true)),
    }
}
