//! Every operator of the backend under test against the reference bodies on the same device: values, and
//! gradients against what burn's autodiff makes of the reference.

use arbora_attention::functions::{
    BlockWeights, FeedForwardWeights, dense_attention, tree_build, tree_search,
};
use arbora_attention::ops::TreeAttentionOps;
use arbora_attention::ops::{
    AttentionMask, DenseAttentionInputs, RoutePrimitive, TreeBuildOptions, TreeSearchInputs,
    reference,
};
use arbora_attention::ops::{DenseAttentionOptions, TreeSearchOptions};
use arbora_attention::{GhostNodes, Route};
use arbora_testing::{
    assert_close, autodiff_device, device, padding, random, single, uniforms, values, weighed,
};
use arbora_tree::{Layout, TokenTreeShape};
use burn::backend::Dispatch;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

/// Sums of tens of products of numbers around 1, in another order.
const ABSOLUTE: f32 = 2e-5;
const RELATIVE: f32 = 2e-5;

/// Decisions closer to one another than this are not compared.
const MARGIN: f64 = 1e-4;

#[derive(Clone, Copy)]
struct Search {
    tokens: usize,
    branching: usize,
    layout: Layout,
    ghosts: GhostNodes,
    lengths: &'static [usize],
    queries: usize,
    heads: usize,
    head_dim: usize,
    value_dim: usize,
    temperature: f64,
    scale: Option<f64>,
}

const PLAIN: Search = Search {
    tokens: 13,
    branching: 2,
    layout: Layout::LeftFilled,
    ghosts: GhostNodes::Masked,
    lengths: &[13, 0, 1, 6],
    queries: 5,
    heads: 2,
    head_dim: 3,
    value_dim: 4,
    temperature: 0.7,
    scale: None,
};

const SEARCHES: [Search; 10] = [
    PLAIN,
    Search {
        tokens: 23,
        branching: 3,
        lengths: &[23, 7],
        heads: 1,
        head_dim: 16,
        value_dim: 16,
        scale: Some(0.4),
        ..PLAIN
    },
    Search {
        tokens: 27,
        branching: 5,
        lengths: &[27, 6, 1],
        heads: 4,
        head_dim: 16,
        value_dim: 8,
        temperature: 2.0,
        ..PLAIN
    },
    // More queries than fit one task or one plane.
    Search {
        tokens: 9,
        branching: 3,
        lengths: &[9],
        queries: 70,
        temperature: 1.0,
        ..PLAIN
    },
    Search {
        tokens: 19,
        branching: 3,
        layout: Layout::Published,
        lengths: &[19, 11, 0],
        ..PLAIN
    },
    Search {
        tokens: 19,
        branching: 3,
        layout: Layout::Published,
        ghosts: GhostNodes::Published,
        lengths: &[19, 2, 0],
        ..PLAIN
    },
    Search {
        tokens: 33,
        branching: 5,
        layout: Layout::Published,
        ghosts: GhostNodes::Published,
        lengths: &[33, 9],
        ..PLAIN
    },
    Search {
        tokens: 1,
        lengths: &[1, 0],
        ..PLAIN
    },
    Search {
        tokens: 1,
        layout: Layout::Published,
        lengths: &[1],
        ..PLAIN
    },
    Search {
        tokens: 3,
        branching: 5,
        lengths: &[3, 1, 0],
        ..PLAIN
    },
];

fn integers(values: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.iter().map(|value| *value as i64).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

fn indices<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

/// Query, key and value.
type Inputs = [Tensor<4>; 3];

/// What both sides of a comparison return: context, policy `[2, batch, queries]`, path, counts.
type Found = (Tensor<4>, Tensor<3>, Tensor<4, Int>, Tensor<3, Int>);

impl Search {
    fn shape(&self) -> TokenTreeShape {
        TokenTreeShape::new(self.tokens, self.branching, self.layout)
    }

    fn options(&self) -> TreeSearchOptions {
        TreeSearchOptions {
            scale: self.scale,
            temperature: self.temperature,
            ghosts: self.ghosts,
            ..TreeSearchOptions::new(self.shape())
        }
    }

    fn inputs(&self, device: &Device) -> Inputs {
        let (batch, nodes) = (self.lengths.len(), self.shape().nodes());
        let (heads, head_dim) = (self.heads, self.head_dim);
        [
            random([batch, self.queries, heads, head_dim], 1, device) * 2.0,
            random([batch, nodes, heads, head_dim], 2, device) * 2.0,
            random([batch, nodes, heads, self.value_dim], 3, device),
        ]
    }

    fn uniforms(&self) -> Tensor<4> {
        // More draws than decisions, which is allowed.
        let draws = self.shape().decisions() + 1;
        uniforms([self.lengths.len(), self.queries, 1, draws], 4, &device())
    }

    fn kernel(&self, [query, key, value]: Inputs, route: Route) -> Found {
        let lengths = integers(self.lengths, &device());
        let found = tree_search(query, key, value, lengths, route, self.options());
        (
            found.context,
            Tensor::stack::<4>(vec![found.log_prob, found.entropy.unwrap()], 0).squeeze_dim(3),
            found.path,
            Tensor::stack(
                vec![found.decisions.squeeze_dim(2), found.selected, found.read],
                0,
            ),
        )
    }

    fn reference(&self, [query, key, value]: Inputs, route: Route) -> Found {
        let route = match route {
            Route::Greedy => RoutePrimitive::Greedy,
            Route::Sampled(numbers) => {
                RoutePrimitive::Sampled(numbers.squeeze_dim::<3>(2).into_dispatch())
            }
            Route::Uniform(numbers) => {
                RoutePrimitive::Uniform(numbers.squeeze_dim::<3>(2).into_dispatch())
            }
            Route::Given(path) => RoutePrimitive::Given(path.squeeze_dim::<3>(2).into_dispatch()),
            Route::Beam(_) => unreachable!("no kernel has beams"),
        };
        let inputs = TreeSearchInputs {
            query: query.into_dispatch(),
            key: key.into_dispatch(),
            value: value.into_dispatch(),
            lengths: integers(self.lengths, &device()).into_dispatch(),
        };
        let found = reference::tree_search::<Dispatch>(inputs, route, self.options());
        (
            Tensor::from_dispatch(found.context),
            Tensor::from_dispatch(found.policy),
            Tensor::<3, Int>::from_dispatch(found.path).unsqueeze_dim(2),
            Tensor::from_dispatch(found.counts),
        )
    }

    /// Paths of random children, ghosts among them.
    fn random_path(&self) -> Tensor<4, Int> {
        let shape = self.shape();
        let steps = shape.decisions() + 1;
        let draws = values(self.uniforms());
        let rows = self.lengths.len() * self.queries;
        let mut path = vec![0i64; rows * steps];
        for row in 0..rows {
            for step in 1..steps {
                let group = shape.group(shape.height() - step + 1) as i64;
                let child = (draws[row * steps + step] * group as f32) as i64;
                path[row * steps + step] = path[row * steps + step - 1] * group + child;
            }
        }
        let data = TensorData::new(path, [self.lengths.len(), self.queries, 1, steps]);
        Tensor::from_data(data, &device())
    }

    /// Rows whose every decision on a path is clear: how far the most probable child is from the next,
    /// or a uniform number from the border of two children.
    fn clear_rows(&self, path: &[i64], uniforms: Option<&[f32]>) -> Vec<bool> {
        let shape = self.shape();
        let [query, key, _] = self.inputs(&device()).map(values);
        let steps = shape.decisions() + 1;
        let scale = self.scale.unwrap_or((self.head_dim as f64).powf(-0.5));
        let rows = self.lengths.len() * self.queries;
        let logit = |row: usize, node: usize, head: usize| -> f64 {
            let dim = self.head_dim;
            let query = &query[(row * self.heads + head) * dim..][..dim];
            let key = &key[(node * self.heads + head) * dim..][..dim];
            let product: f64 = query
                .iter()
                .zip(key)
                .map(|(q, k)| f64::from(*q) * f64::from(*k))
                .sum();
            product * scale / self.temperature
        };
        let clear = |row: usize, step: usize| {
            let height = shape.height() - step - 1;
            let group = shape.group(height + 1);
            let example = row / self.queries;
            let first = path[row * steps + step] as usize * group;
            let real = self.lengths[example]
                .div_ceil(shape.span(height))
                .saturating_sub(first)
                .min(group);
            let mut policy = vec![0.0; real];
            for head in 0..self.heads {
                let weights: Vec<f64> = (0..real)
                    .map(|child| {
                        let node = example * shape.nodes() + shape.offset(height) + first + child;
                        logit(row, node, head).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for (probability, weight) in policy.iter_mut().zip(&weights) {
                    *probability += weight / total / self.heads as f64;
                }
            }
            match uniforms {
                None => {
                    policy.sort_by(|a, b| b.total_cmp(a));
                    real < 2 || policy[0] - policy[1] > MARGIN
                }
                Some(numbers) => {
                    let number = f64::from(numbers[row * steps + height - 1]);
                    let mut border = 0.0;
                    policy.iter().all(|probability| {
                        border += probability;
                        (border - number).abs() > MARGIN
                    })
                }
            }
        };
        (0..rows)
            .map(|row| (0..steps - 1).all(|step| clear(row, step)))
            .collect()
    }
}

fn assert_found(got: Found, expected: Found) {
    assert_eq!(indices(got.2), indices(expected.2), "paths");
    assert_eq!(indices(got.3), indices(expected.3), "counts");
    assert_close(got.0, expected.0, ABSOLUTE, RELATIVE);
    assert_close(got.1, expected.1, ABSOLUTE, RELATIVE);
}

#[test]
fn searches_along_given_paths_equal_the_reference() {
    for case in SEARCHES {
        let route = Route::Given(case.random_path());
        let got = case.kernel(case.inputs(&device()), route.clone());
        assert_found(got, case.reference(case.inputs(&device()), route));
    }
}

#[test]
fn searches_choose_as_the_reference_does() {
    for case in SEARCHES {
        let numbers = case.uniforms();
        let drawn = values(numbers.clone());
        for (route, uniforms) in [
            (Route::Greedy, None),
            (Route::Sampled(numbers), Some(&drawn)),
        ] {
            let got = case.kernel(case.inputs(&device()), route.clone());
            let expected = case.reference(case.inputs(&device()), route);
            let steps = case.shape().decisions() + 1;
            let (chosen, wanted) = (indices(got.2.clone()), indices(expected.2));
            let clear = case.clear_rows(&wanted, uniforms.map(Vec::as_slice));
            for (row, _) in clear.iter().enumerate().filter(|(_, clear)| **clear) {
                let row = row * steps..(row + 1) * steps;
                assert_eq!(chosen[row.clone()], wanted[row]);
            }
            // What belongs to a path is that of the same path given.
            let given = Route::Given(got.2.clone());
            assert_found(got, case.reference(case.inputs(&device()), given));
        }
    }
}

#[test]
fn uniform_searches_equal_the_reference() {
    for case in SEARCHES {
        let route = Route::Uniform(case.uniforms());
        let got = case.kernel(case.inputs(&device()), route.clone());
        assert_found(got, case.reference(case.inputs(&device()), route));
    }
}

/// Gradients of a loss over three inputs.
fn gradients(inputs: Inputs, loss: impl FnOnce(Inputs) -> Tensor<1>) -> Inputs {
    let tracked = inputs.map(|input| input.require_grad());
    let gradients = loss(tracked.clone()).backward();
    tracked.map(|input| match input.grad(&gradients) {
        Some(gradient) => gradient,
        None => Tensor::zeros(input.dims(), &device()),
    })
}

#[test]
fn gradients_of_searches_equal_those_of_the_reference() {
    let device = autodiff_device();
    for case in SEARCHES {
        let path = case.random_path();
        let loss = |(context, policy, ..): Found| weighed(context, 5) + weighed(policy, 6);
        let got = gradients(case.inputs(&device), |inputs| {
            loss(case.kernel(inputs, Route::Given(path.clone())))
        });
        let expected = gradients(case.inputs(&device), |inputs| {
            loss(case.reference(inputs, Route::Given(path.clone())))
        });
        for (got, expected) in got.into_iter().zip(expected) {
            assert_close(got, expected, ABSOLUTE, RELATIVE);
        }
    }
}

#[test]
fn gradients_of_context_and_policy_are_right_on_their_own() {
    let device = autodiff_device();
    for case in [SEARCHES[1], SEARCHES[5]] {
        let path = case.random_path();
        for of_context in [true, false] {
            let loss = |(context, policy, ..): Found| {
                if of_context {
                    context.powi_scalar(2).sum()
                } else {
                    policy.powi_scalar(2).sum()
                }
            };
            let got = gradients(case.inputs(&device), |inputs| {
                loss(case.kernel(inputs, Route::Given(path.clone())))
            });
            let expected = gradients(case.inputs(&device), |inputs| {
                loss(case.reference(inputs, Route::Given(path.clone())))
            });
            for (got, expected) in got.into_iter().zip(expected) {
                assert_close(got, expected, ABSOLUTE, RELATIVE);
            }
        }
    }
}

/// The same numbers with the second and third axes swapped in memory.
fn permuted(tensor: Tensor<4>) -> Tensor<4> {
    let device = tensor.device();
    let stored = Tensor::<4>::from_data(tensor.swap_dims(1, 2).into_data(), &device);
    stored.swap_dims(1, 2)
}

#[test]
fn non_contiguous_inputs_are_searched_alike() {
    let device = autodiff_device();
    let case = PLAIN;
    let path = case.random_path();
    let loss =
        |(context, policy, ..): Found| single(context).powi_scalar(2).sum() + single(policy).sum();
    let of = |inputs: Inputs| {
        gradients(inputs, |inputs| {
            loss(case.kernel(inputs, Route::Given(path.clone())))
        })
    };
    let got = of(case.inputs(&device).map(permuted));
    let expected = of(case.inputs(&device));
    for (got, expected) in got.into_iter().zip(expected) {
        assert_close(got, expected, 1e-6, 0.0);
    }
}

#[test]
fn searches_and_attention_take_no_queries() {
    let device = device();
    let case = Search {
        queries: 0,
        ..PLAIN
    };
    let numbers = Tensor::<4>::zeros([4, 0, 1, 3], &device);
    let [key, value] = [case.head_dim, case.value_dim]
        .map(|dim| random([4, case.shape().nodes(), 2, dim], 1, &device));
    let query = Tensor::<4>::zeros([4, 0, 2, 3], &device);
    for route in [Route::Greedy, Route::Sampled(numbers)] {
        let lengths = integers(case.lengths, &device);
        let (query, key, value) = (query.clone(), key.clone(), value.clone());
        let found = tree_search(query, key, value, lengths, route, case.options());
        assert_eq!(found.context.dims(), [4, 0, 2, 4]);
        assert_eq!(found.path.dims(), [4, 0, 1, 4]);
        assert_eq!(found.entropy.unwrap().dims(), [4, 0, 1]);
        assert_eq!(found.read.dims(), [4, 0]);
    }
    let options = DenseAttentionOptions {
        first_key: 0,
        scale: None,
    };
    let context = dense_attention(query, key, value, None, options);
    assert_eq!(context.dims(), [4, 0, 2, 4]);
}

#[test]
fn no_queries_give_zero_gradients() {
    let device = device();
    let case = Search {
        queries: 0,
        ..PLAIN
    };
    let [key, value] = [case.head_dim, case.value_dim]
        .map(|dim| random([4, case.shape().nodes(), 2, dim], 1, &device).into_dispatch());
    let inputs = TreeSearchInputs {
        query: Tensor::<4>::zeros([4, 0, 2, 3], &device).into_dispatch(),
        key,
        value,
        lengths: integers(case.lengths, &device).into_dispatch(),
    };
    let path = || {
        let path = Vec::<i64>::new();
        Tensor::<3, Int>::from_data(TensorData::new(path, [4, 0, 4]), &device).into_dispatch()
    };
    let (_, of_key, of_value) = <Dispatch as TreeAttentionOps>::tree_context_backward(
        inputs.clone(),
        path(),
        Tensor::<4>::zeros([4, 0, 2, 4], &device).into_dispatch(),
        case.options(),
    );
    let (_, of_policy) = <Dispatch as TreeAttentionOps>::tree_policy_backward(
        inputs,
        path(),
        Tensor::<3>::zeros([2, 4, 0], (&device, DType::F32)).into_dispatch(),
        case.options(),
    );
    for gradient in [of_key, of_value, of_policy].map(Tensor::<4>::from_dispatch) {
        assert_close(gradient.clone(), gradient.zeros_like(), 0.0, 0.0);
    }
}

#[test]
fn a_path_that_the_policy_hardly_takes_has_a_finite_gradient() {
    let device = autodiff_device();
    // The chosen child's probability goes from e^-86 through the smallest normal number, e^-87.34.
    let queries = 40;
    let logits = (0..queries).flat_map(|query| [-86.0 - 0.05 * query as f32; 2]);
    let case = Search {
        tokens: 4,
        lengths: &[4],
        queries,
        head_dim: 1,
        value_dim: 1,
        temperature: 1.0,
        scale: Some(1.0),
        ..PLAIN
    };
    let numbers = |numbers: Vec<f32>, shape: [usize; 4]| {
        Tensor::<4>::from_data(TensorData::new(numbers, shape), &device)
    };
    // Seven nodes of two heads: the second is the chosen child of the root.
    let mut key = vec![0.0; 14];
    key[2..4].fill(1.0);
    let inputs = [
        numbers(logits.collect(), [1, queries, 2, 1]),
        numbers(key, [1, 7, 2, 1]),
        numbers(vec![0.0; 14], [1, 7, 2, 1]),
    ];
    let path = TensorData::new([0i64, 0].repeat(queries), [1, queries, 1, 2]);
    let path = Tensor::<4, Int>::from_data(path, &self::device());
    let [of_query, ..] = gradients(inputs, |inputs| {
        let (_, policy, ..) = case.kernel(inputs, Route::Given(path));
        policy.narrow(0, 0, 1).sum() * 1e3
    });
    // Below the smallest normal number the log-probability is held.
    let held = values(of_query.clone())
        .iter()
        .filter(|gradient| **gradient == 0.0)
        .count();
    let taken = 2 * queries - held;
    assert!(taken >= 40 && held >= 20, "{taken} gradients, {held} held");
    let expected = of_query.clone().not_equal_elem(0.0).float() * 500.0;
    assert_close(of_query, expected, 0.0, 1e-3);
}

#[test]
fn nan_in_a_query_or_key_is_seen_where_it_is_attended_to() {
    let device = autodiff_device();
    let is_nan = |tensor: Tensor<4>, query: usize| {
        let of = values(tensor.narrow(1, query, 1));
        of.iter().all(|number| number.is_nan())
    };
    let options = DenseAttentionOptions {
        first_key: 0,
        scale: None,
    };
    for (queries, keys) in [(1, 1), (20, 37)] {
        let numbers = |rows, seed| random([1, rows, 1, 5], seed, &device);
        let nan = || Tensor::<4>::full([1, 1, 1, 1], f32::NAN, &device);
        for row in [0, keys / 2, keys - 1] {
            let key = numbers(keys, 2).slice_assign([0..1, row..row + 1, 0..1, 3..4], nan());
            let [query, value] = [numbers(queries, 1), numbers(keys, 3)];
            let context = dense_attention(query, key, value, None, options);
            assert!(
                (0..queries).all(|query| is_nan(context.clone(), query)),
                "{row}"
            );
        }
        let query = numbers(queries, 1).slice_assign([0..1, 0..1, 0..1, 0..1], nan());
        let [key, value] = [numbers(keys, 2), numbers(keys, 3)];
        let context = dense_attention(query, key, value, None, options);
        for query in 0..queries {
            assert_eq!(is_nan(context.clone(), query), query == 0);
        }
    }
    // Nor is it lost in a gradient of the policy.
    let [query, key, value] = PLAIN.inputs(&device);
    let of = gradients([query * f32::NAN, key, value], |inputs| {
        let (_, policy, ..) = PLAIN.kernel(inputs, Route::Given(PLAIN.random_path()));
        policy.sum()
    });
    assert!(is_nan(of[0].clone().narrow(0, 0, 1), 0));
}

#[test]
fn gradients_are_the_same_numbers_every_time() {
    let device = autodiff_device();
    // Most queries add to the same nodes.
    let case = SEARCHES[3];
    let path = case.random_path();
    let of = || {
        let inputs = case.inputs(&device);
        gradients(inputs, |inputs| {
            let (context, policy, ..) = case.kernel(inputs, Route::Given(path.clone()));
            single(context).powi_scalar(2).sum() + single(policy).sum()
        })
    };
    let first = of().map(values);
    for _ in 0..3 {
        assert_eq!(of().map(values), first);
    }
}

#[derive(Clone, Copy)]
struct Dense {
    queries: usize,
    rows: usize,
    first_key: usize,
    heads: usize,
    head_dim: usize,
    value_dim: usize,
    scale: Option<f64>,
    /// Keys that are not masked out, of each of three examples.
    kept: Option<[usize; 3]>,
}

const DENSE: Dense = Dense {
    queries: 5,
    rows: 11,
    first_key: 0,
    heads: 2,
    head_dim: 3,
    value_dim: 4,
    scale: None,
    kept: None,
};

const DENSES: [Dense; 8] = [
    DENSE,
    // Too wide for two rows to be held at once.
    Dense {
        head_dim: 36,
        value_dim: 32,
        heads: 1,
        kept: Some([11, 2, 0]),
        ..DENSE
    },
    Dense {
        first_key: 4,
        kept: Some([7, 0, 3]),
        scale: Some(0.8),
        ..DENSE
    },
    Dense {
        rows: 40,
        heads: 4,
        head_dim: 16,
        value_dim: 8,
        kept: Some([40, 1, 17]),
        ..DENSE
    },
    Dense {
        queries: 70,
        heads: 1,
        head_dim: 16,
        value_dim: 16,
        ..DENSE
    },
    Dense {
        first_key: 10,
        ..DENSE
    },
    Dense {
        first_key: 11,
        ..DENSE
    },
    Dense {
        rows: 1,
        kept: Some([1, 0, 0]),
        ..DENSE
    },
];

impl Dense {
    fn inputs(&self, device: &Device) -> Inputs {
        [
            random([3, self.queries, self.heads, self.head_dim], 1, device) * 2.0,
            random([3, self.rows, self.heads, self.head_dim], 2, device) * 2.0,
            random([3, self.rows, self.heads, self.value_dim], 3, device),
        ]
    }

    fn mask(&self) -> Option<Tensor<2, Bool>> {
        let keys = self.rows - self.first_key;
        self.kept.map(|kept| padding(&kept, keys, &device()))
    }

    fn options(&self) -> DenseAttentionOptions {
        DenseAttentionOptions {
            first_key: self.first_key,
            scale: self.scale,
        }
    }

    fn kernel(&self, [query, key, value]: Inputs) -> Tensor<4> {
        dense_attention(query, key, value, self.mask(), self.options())
    }

    fn reference(&self, inputs: Inputs) -> Tensor<4> {
        let inputs = self.primitive(inputs);
        let output = reference::dense_attention::<Dispatch>(inputs, self.options());
        Tensor::from_dispatch(output.context)
    }

    fn primitive(&self, inputs: Inputs) -> DenseAttentionInputs<Dispatch> {
        let [query, key, value] = inputs.map(Tensor::into_dispatch);
        DenseAttentionInputs {
            query,
            key,
            value,
            mask: match self.mask() {
                None => AttentionMask::None,
                Some(mask) => AttentionMask::Keys(mask.into_dispatch()),
            },
        }
    }
}

#[test]
fn dense_attention_equals_the_reference() {
    for case in DENSES {
        let got = case.kernel(case.inputs(&device()));
        assert_close(
            got,
            case.reference(case.inputs(&device())),
            ABSOLUTE,
            RELATIVE,
        );
    }
}

#[test]
fn the_denominators_of_dense_attention_equal_those_of_the_reference() {
    for case in DENSES {
        let inputs = case.primitive(case.inputs(&device()));
        let expected = reference::dense_attention::<Dispatch>(inputs.clone(), case.options());
        let got = <Dispatch as TreeAttentionOps>::dense_attention(inputs, case.options());
        let [got, expected] = [got.lse, expected.lse].map(Tensor::<3>::from_dispatch);
        assert_close(got, expected, ABSOLUTE, RELATIVE);
    }
}

#[test]
fn gradients_of_dense_attention_equal_those_of_the_reference() {
    let device = autodiff_device();
    for case in DENSES {
        let loss = |context: Tensor<4>| weighed(context, 5);
        let got = gradients(case.inputs(&device), |inputs| loss(case.kernel(inputs)));
        if case.first_key == case.rows {
            // The reference of no keys is a constant, which has nothing to differentiate.
            for gradient in got {
                assert_close(gradient.clone(), gradient.zeros_like(), 0.0, 0.0);
            }
            continue;
        }
        let expected = gradients(case.inputs(&device), |inputs| loss(case.reference(inputs)));
        for (got, expected) in got.into_iter().zip(expected) {
            assert_close(got, expected, ABSOLUTE, RELATIVE);
        }
    }
}

#[test]
fn non_contiguous_inputs_are_attended_to_alike() {
    let device = autodiff_device();
    let case = DENSES[2];
    let of = |inputs: Inputs| gradients(inputs, |inputs| case.kernel(inputs).powi_scalar(2).sum());
    let got = of(case.inputs(&device).map(permuted));
    for (got, expected) in got.into_iter().zip(of(case.inputs(&device))) {
        assert_close(got, expected, 1e-6, 0.0);
    }
}

#[derive(Clone, Copy)]
struct Build {
    tokens: usize,
    branching: usize,
    layout: Layout,
    lengths: &'static [usize],
    dim: usize,
    ff: usize,
    heads: usize,
    detach_children: bool,
}

const BUILD: Build = Build {
    tokens: 13,
    branching: 2,
    layout: Layout::LeftFilled,
    lengths: &[13, 0, 1, 6],
    dim: 6,
    ff: 10,
    heads: 2,
    detach_children: false,
};

const BUILDS: [Build; 7] = [
    BUILD,
    Build {
        tokens: 23,
        branching: 3,
        lengths: &[23, 7],
        dim: 16,
        ff: 16,
        heads: 1,
        detach_children: true,
        ..BUILD
    },
    Build {
        tokens: 27,
        branching: 5,
        lengths: &[27, 6],
        dim: 12,
        heads: 4,
        ..BUILD
    },
    Build {
        tokens: 19,
        branching: 3,
        layout: Layout::Published,
        lengths: &[19, 2, 0],
        ..BUILD
    },
    Build {
        tokens: 1,
        lengths: &[1, 0],
        ..BUILD
    },
    Build {
        tokens: 1,
        layout: Layout::Published,
        lengths: &[1],
        ..BUILD
    },
    Build {
        tokens: 3,
        branching: 5,
        lengths: &[3, 1],
        ..BUILD
    },
];

impl Build {
    fn options(&self) -> TreeBuildOptions {
        TreeBuildOptions {
            shape: TokenTreeShape::new(self.tokens, self.branching, self.layout),
            heads: self.heads,
            epsilon: 1e-5,
            detach_children: self.detach_children,
        }
    }

    fn leaves(&self, device: &Device) -> Tensor<3> {
        let leaves = self.options().shape.width(0);
        random([self.lengths.len(), leaves, self.dim], 1, device)
    }

    fn weights(&self, device: &Device) -> BlockWeights {
        let (dim, ff) = (self.dim, self.ff);
        let vector = |width, seed| random([width], seed, device);
        let matrix =
            |from: usize, to, seed| random([from, to], seed, device) * (3.0 / from as f64).sqrt();
        BlockWeights {
            norm_gamma: vector(dim, 2) + 1.0,
            norm_beta: vector(dim, 3),
            query: matrix(dim, dim, 4),
            key: matrix(dim, dim, 5),
            value: matrix(dim, dim, 6),
            output: matrix(dim, dim, 7),
            output_bias: vector(dim, 8),
            feed_forward: FeedForwardWeights {
                norm_gamma: vector(dim, 9) + 1.0,
                norm_beta: vector(dim, 10),
                inner: matrix(dim, 2 * ff, 11),
                inner_bias: vector(2 * ff, 12),
                outer: matrix(ff, dim, 13),
                outer_bias: vector(dim, 14),
            },
        }
    }

    fn kernel(&self, leaves: Tensor<3>, block: BlockWeights) -> Tensor<3> {
        let lengths = integers(self.lengths, &device());
        tree_build(leaves, lengths, block, self.options())
    }

    fn reference(&self, leaves: Tensor<3>, block: BlockWeights) -> Tensor<3> {
        Tensor::from_dispatch(reference::tree_build::<Dispatch>(
            leaves.into_dispatch(),
            integers(self.lengths, &device()).into_dispatch(),
            block.into_dispatch(),
            self.options(),
        ))
    }

    /// Gradients of the leaves and of all weights, flattened.
    fn gradients(
        &self,
        build: impl FnOnce(Tensor<3>, BlockWeights) -> Tensor<3>,
    ) -> Vec<(&'static str, Tensor<1>)> {
        let device = autodiff_device();
        let leaves = self.leaves(&device).require_grad();
        let weights = self.weights(&device);
        let vector = |weight: Tensor<1>| weight.require_grad();
        let matrix = |weight: Tensor<2>| weight.require_grad();
        let block = BlockWeights {
            norm_gamma: vector(weights.norm_gamma),
            norm_beta: vector(weights.norm_beta),
            query: matrix(weights.query),
            key: matrix(weights.key),
            value: matrix(weights.value),
            output: matrix(weights.output),
            output_bias: vector(weights.output_bias),
            feed_forward: FeedForwardWeights {
                norm_gamma: vector(weights.feed_forward.norm_gamma),
                norm_beta: vector(weights.feed_forward.norm_beta),
                inner: matrix(weights.feed_forward.inner),
                inner_bias: vector(weights.feed_forward.inner_bias),
                outer: matrix(weights.feed_forward.outer),
                outer_bias: vector(weights.feed_forward.outer_bias),
            },
        };
        let part = &block.feed_forward;
        let nodes = build(leaves.clone(), block.clone());
        let factors = random(nodes.dims(), 15, &device);
        let gradients = (nodes * factors).sum().backward();
        vec![
            ("leaves", flat(&leaves, &gradients)),
            ("norm_gamma", flat(&block.norm_gamma, &gradients)),
            ("norm_beta", flat(&block.norm_beta, &gradients)),
            ("query", flat(&block.query, &gradients)),
            ("key", flat(&block.key, &gradients)),
            ("value", flat(&block.value, &gradients)),
            ("output", flat(&block.output, &gradients)),
            ("output_bias", flat(&block.output_bias, &gradients)),
            ("feed-forward gamma", flat(&part.norm_gamma, &gradients)),
            ("feed-forward beta", flat(&part.norm_beta, &gradients)),
            ("inner", flat(&part.inner, &gradients)),
            ("inner_bias", flat(&part.inner_bias, &gradients)),
            ("outer", flat(&part.outer, &gradients)),
            ("outer_bias", flat(&part.outer_bias, &gradients)),
        ]
    }
}

/// The gradient of a tensor, flattened; zeros where nothing depends on it.
fn flat<const D: usize>(tensor: &Tensor<D>, gradients: &burn::tensor::Gradients) -> Tensor<1> {
    let count: usize = tensor.dims().iter().product();
    match tensor.grad(gradients) {
        Some(gradient) => gradient.reshape([count]),
        None => Tensor::zeros([count], &device()),
    }
}

#[test]
fn built_trees_equal_the_reference() {
    for case in BUILDS {
        let got = case.kernel(case.leaves(&device()), case.weights(&device()));
        let expected = case.reference(case.leaves(&device()), case.weights(&device()));
        assert_close(got, expected, 5.0 * ABSOLUTE, 5.0 * RELATIVE);
    }
}

#[test]
fn gradients_of_built_trees_equal_those_of_the_reference() {
    for case in BUILDS {
        let got = case.gradients(|leaves, block| case.kernel(leaves, block));
        let expected = case.gradients(|leaves, block| case.reference(leaves, block));
        for ((name, got), (_, expected)) in got.into_iter().zip(expected) {
            println!("N = {}, b = {}: {name}", case.tokens, case.branching);
            assert_close(got, expected, 1e-4, 1e-3);
        }
    }
}

#[test]
fn non_contiguous_leaves_and_weights_build_the_same_tree() {
    let case = BUILD;
    let device = device();
    let transposed = |matrix: Tensor<2>| {
        let stored = Tensor::<2>::from_data(matrix.transpose().into_data(), &device);
        stored.transpose()
    };
    let leaves = case.leaves(&device);
    let stored = Tensor::<3>::from_data(leaves.clone().swap_dims(0, 1).into_data(), &device);
    let weights = case.weights(&device);
    let block = BlockWeights {
        query: transposed(weights.query.clone()),
        key: transposed(weights.key.clone()),
        feed_forward: FeedForwardWeights {
            inner: transposed(weights.feed_forward.inner.clone()),
            outer: transposed(weights.feed_forward.outer.clone()),
            ..weights.feed_forward.clone()
        },
        ..weights.clone()
    };
    let got = case.kernel(stored.swap_dims(0, 1), block);
    assert_close(got, case.kernel(leaves, weights), 1e-5, 1e-5);
}
