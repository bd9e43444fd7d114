//! Dense attention over the same tokens: the best that is in this process.
//!
//! libtorch is called through its own bindings, burn-flex through burn.

use crate::measure::Entrant;
use crate::numbers::Measured;
use crate::problem::Problem;

/// The fastest of the measurements, if there is any.
pub fn best(measured: &[Measured]) -> Option<&Measured> {
    measured
        .iter()
        .min_by(|one, other| one.seconds.total_cmp(&other.seconds))
}

/// What makes an entrant, or its parts, for a problem.
type Make<T> = fn(Problem) -> T;

const CORES: &[Make<Entrant<'static>>] = &[
    #[cfg(feature = "tch")]
    libtorch::core,
    #[cfg(feature = "flex")]
    flex::core,
];

const LAYERS: &[Make<[Entrant<'static>; 3]>] = &[
    #[cfg(feature = "tch")]
    libtorch::layer,
    #[cfg(feature = "flex")]
    flex::layer,
];

const GRADIENTS: &[Make<Entrant<'static>>] = &[
    #[cfg(feature = "tch")]
    libtorch::gradient,
];

/// Attention of projected queries to projected tokens.
pub fn cores(problem: Problem) -> Vec<Entrant<'static>> {
    CORES.iter().map(|make| make(problem)).collect()
}

/// The same with its projections, in three parts: all of it; keys and values, which a context needs
/// once; queries, attention and output.
pub fn layers(problem: Problem) -> Vec<[Entrant<'static>; 3]> {
    LAYERS.iter().map(|make| make(problem)).collect()
}

/// Forward and backward of libtorch's fused attention by its own autograd.
pub fn gradients(problem: Problem) -> Vec<Entrant<'static>> {
    GRADIENTS.iter().map(|make| make(problem)).collect()
}

#[cfg(feature = "tch")]
mod libtorch {
    use super::*;
    use std::hint::black_box;
    use tch::{Device, Kind, Tensor};

    const NAME: &str = "libtorch";

    fn random(shape: &[usize]) -> Tensor {
        let shape: Vec<i64> = shape.iter().map(|axis| *axis as i64).collect();
        Tensor::randn(&shape, (Kind::Float, Device::Cpu))
    }

    /// `[batch, heads, rows, head_dim]`
    fn projected(problem: &Problem, rows: usize) -> Tensor {
        random(&[problem.batch, problem.heads, rows, problem.head_dim])
    }

    fn attention(query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
        let no_mask = None::<&Tensor>;
        Tensor::scaled_dot_product_attention(query, key, value, no_mask, 0.0, false, None, false)
    }

    pub fn core(problem: Problem) -> Entrant<'static> {
        let query = projected(&problem, problem.queries);
        let [key, value] = [(); 2].map(|()| projected(&problem, problem.tokens));
        Entrant::new(NAME, move || {
            drop(black_box(attention(&query, &key, &value)));
        })
    }

    pub fn gradient(problem: Problem) -> Entrant<'static> {
        let query = projected(&problem, problem.queries).set_requires_grad(true);
        let [key, value] =
            [(); 2].map(|()| projected(&problem, problem.tokens).set_requires_grad(true));
        let weight = projected(&problem, problem.queries);
        Entrant::new(NAME, move || {
            let loss = (attention(&query, &key, &value) * &weight).sum(Kind::Float);
            let inputs = [&query, &key, &value];
            drop(black_box(Tensor::run_backward(
                &[loss],
                &inputs,
                false,
                false,
            )));
        })
    }

    struct Layer {
        problem: Problem,
        queries: Tensor,
        tokens: Tensor,
        /// Of queries, keys, values and outputs.
        weights: [Tensor; 4],
        bias: Tensor,
    }

    impl Layer {
        fn new(problem: Problem) -> Self {
            let width = problem.heads * problem.head_dim;
            Self {
                problem,
                queries: random(&[problem.batch, problem.queries, width]),
                tokens: random(&[problem.batch, problem.tokens, width]),
                weights: [(); 4].map(|()| random(&[width, width]) / (width as f64).sqrt()),
                bias: random(&[width]),
            }
        }

        /// `[batch, heads, rows, head_dim]`
        fn project(&self, rows: &Tensor, at: usize) -> Tensor {
            let Problem {
                batch,
                heads,
                head_dim,
                ..
            } = self.problem;
            let shape = [batch as i64, -1, heads as i64, head_dim as i64];
            let rows = rows.linear(&self.weights[at], None::<&Tensor>);
            rows.reshape(shape).transpose(1, 2)
        }

        fn context(&self) -> [Tensor; 2] {
            [1, 2].map(|at| self.project(&self.tokens, at))
        }

        fn answers(&self, [key, value]: &[Tensor; 2]) -> Tensor {
            let context = attention(&self.project(&self.queries, 0), key, value);
            let rows = context.transpose(1, 2).reshape(self.queries.size());
            rows.linear(&self.weights[3], Some(&self.bias))
        }
    }

    pub fn layer(problem: Problem) -> [Entrant<'static>; 3] {
        let [all, of_context, of_queries] = [(); 3].map(|()| Layer::new(problem));
        let context = of_queries.context();
        [
            Entrant::new(NAME, move || {
                drop(black_box(all.answers(&all.context())));
            }),
            Entrant::new(NAME, move || {
                drop(black_box(of_context.context()));
            }),
            Entrant::new(NAME, move || {
                drop(black_box(of_queries.answers(&context)));
            }),
        ]
    }
}

#[cfg(feature = "flex")]
mod flex {
    use super::*;
    use crate::problem::random;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::module::attention;
    use burn::tensor::{Device, Tensor};
    use std::hint::black_box;

    const NAME: &str = "burn-flex";

    /// `[batch, heads, rows, head_dim]`
    fn projected(problem: &Problem, rows: usize, seed: u64) -> Tensor<4> {
        let dims = [problem.batch, problem.heads, rows, problem.head_dim];
        random(dims, seed, &Device::flex())
    }

    fn attend(query: Tensor<4>, key: &Tensor<4>, value: &Tensor<4>) -> Tensor<4> {
        let options = Default::default();
        attention(query, key.clone(), value.clone(), None, None, options)
    }

    pub fn core(problem: Problem) -> Entrant<'static> {
        let query = projected(&problem, problem.queries, 1);
        let [key, value] = [2, 3].map(|seed| projected(&problem, problem.tokens, seed));
        Entrant::new(NAME, move || {
            black_box(attend(query.clone(), &key, &value));
        })
    }

    #[derive(Clone)]
    struct Layer {
        problem: Problem,
        queries: Tensor<3>,
        tokens: Tensor<3>,
        query: Linear,
        key: Linear,
        value: Linear,
        output: Linear,
    }

    impl Layer {
        fn new(problem: Problem) -> Self {
            let device = Device::flex();
            let width = problem.heads * problem.head_dim;
            let linear = |bias| {
                LinearConfig::new(width, width)
                    .with_bias(bias)
                    .init(&device)
            };
            Self {
                problem,
                queries: random([problem.batch, problem.queries, width], 1, &device),
                tokens: random([problem.batch, problem.tokens, width], 2, &device),
                query: linear(false),
                key: linear(false),
                value: linear(false),
                output: linear(true),
            }
        }

        /// `[batch, heads, rows, head_dim]`
        fn project(&self, rows: &Tensor<3>, by: &Linear) -> Tensor<4> {
            let [batch, count, _] = rows.dims();
            let (heads, head_dim) = (self.problem.heads, self.problem.head_dim);
            let rows = by.forward(rows.clone());
            rows.reshape([batch, count, heads, head_dim])
                .swap_dims(1, 2)
        }

        fn context(&self) -> [Tensor<4>; 2] {
            [&self.key, &self.value].map(|by| self.project(&self.tokens, by))
        }

        fn answers(&self, [key, value]: &[Tensor<4>; 2]) -> Tensor<3> {
            let context = attend(self.project(&self.queries, &self.query), key, value);
            let rows = context.swap_dims(1, 2).reshape(self.queries.dims());
            self.output.forward(rows)
        }
    }

    pub fn layer(problem: Problem) -> [Entrant<'static>; 3] {
        let all = Layer::new(problem);
        let (of_context, of_queries) = (all.clone(), all.clone());
        let context = of_queries.context();
        [
            Entrant::new(NAME, move || {
                black_box(all.answers(&all.context()));
            }),
            Entrant::new(NAME, move || {
                black_box(of_context.context());
            }),
            Entrant::new(NAME, move || {
                black_box(of_queries.answers(&context));
            }),
        ]
    }
}
