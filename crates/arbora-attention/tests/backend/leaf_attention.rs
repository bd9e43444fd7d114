//! Attention within leaves against its definition, computed on the host in double precision.

use arbora_attention::Dropout;
use arbora_attention::functions::{
    CandidateKeys, LeafAttentionInput, LeafAttentionOutput, candidate_keys, dense_attention,
    leaf_attention,
};
use arbora_attention::ops::{DenseAttentionOptions, LeafAttentionOptions};
use arbora_testing::{allowed, assert_close, autodiff_device, device, exact, random, values};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ABSOLUTE: f32 = 3e-5;
const RELATIVE: f32 = 3e-5;

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    value_dim: usize,
    bias: bool,
    options: LeafAttentionOptions,
}

const OPTIONS: LeafAttentionOptions = LeafAttentionOptions {
    leaves: 4,
    scale: None,
    causal: None,
    dropout: None,
};

const PLAIN: Case = Case {
    batch: 3,
    queries: 9,
    keys: 11,
    heads: 4,
    kv_heads: 2,
    head_dim: 3,
    value_dim: 5,
    bias: true,
    options: OPTIONS,
};

const CASES: [Case; 9] = [
    PLAIN,
    Case {
        batch: 1,
        queries: 40,
        keys: 40,
        heads: 2,
        kv_heads: 2,
        head_dim: 16,
        value_dim: 8,
        bias: false,
        options: LeafAttentionOptions {
            scale: Some(0.7),
            causal: Some(0),
            ..OPTIONS
        },
    },
    // As in decoding: the last queries of a longer sequence.
    Case {
        queries: 5,
        keys: 30,
        options: LeafAttentionOptions {
            causal: Some(25),
            ..OPTIONS
        },
        ..PLAIN
    },
    // More queries than positions: some see everything, and an offset of any size is fine.
    Case {
        options: LeafAttentionOptions {
            causal: Some(usize::MAX),
            ..OPTIONS
        },
        ..PLAIN
    },
    Case {
        queries: 33,
        keys: 33,
        heads: 3,
        kv_heads: 1,
        options: LeafAttentionOptions {
            leaves: 2,
            causal: Some(1),
            dropout: Some(Dropout {
                rate: 0.4,
                seed: u64::MAX - 5,
            }),
            ..OPTIONS
        },
        ..PLAIN
    },
    // More leaves than keys: most are empty.
    Case {
        options: LeafAttentionOptions {
            leaves: 30,
            ..OPTIONS
        },
        ..PLAIN
    },
    Case {
        options: LeafAttentionOptions {
            leaves: 1,
            dropout: Some(Dropout { rate: 0.2, seed: 1 }),
            ..OPTIONS
        },
        ..PLAIN
    },
    // More rows than one tile and one task.
    Case {
        batch: 1,
        queries: 300,
        keys: 290,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        value_dim: 4,
        bias: true,
        options: LeafAttentionOptions {
            leaves: 2,
            causal: Some(3),
            ..OPTIONS
        },
    },
    Case {
        batch: 1,
        queries: 1,
        keys: 1,
        options: LeafAttentionOptions {
            leaves: 1,
            ..OPTIONS
        },
        ..PLAIN
    },
];

/// Everything that an operator takes, on the host.
#[derive(Clone)]
struct Inputs {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    bias: Vec<f32>,
    query_leaf: Vec<i64>,
    key_leaf: Vec<i64>,
    grad: Vec<f32>,
}

/// Context, logarithm of the total, and the gradients of query, key, value and bias.
type Results = [Vec<f32>; 6];

const NAMES: [&str; 6] = ["context", "lse", "d_query", "d_key", "d_value", "d_bias"];

impl Case {
    fn inputs(&self) -> Inputs {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut numbers = |count: usize, size: f32| -> Vec<f32> {
            (0..count)
                .map(|_| exact(size * rng.random_range(-1.0..1.0)))
                .collect()
        };
        let (query_rows, key_rows) = (
            self.batch * self.queries * self.heads,
            self.batch * self.keys * self.kv_heads,
        );
        let query = numbers(query_rows * self.head_dim, 2.0);
        let key = numbers(key_rows * self.head_dim, 2.0);
        let value = numbers(key_rows * self.value_dim, 1.0);
        let bias = if self.bias {
            numbers(key_rows, 1.0)
        } else {
            vec![0.0; key_rows]
        };
        let grad = numbers(query_rows * self.value_dim, 1.0);
        // One leaf below the first and one past the last: masked rows.
        let leaves = self.options.leaves as i64;
        let mut leaf = |count: usize| -> Vec<i64> {
            (0..count).map(|_| rng.random_range(-1..=leaves)).collect()
        };
        Inputs {
            query,
            key,
            value,
            bias,
            query_leaf: leaf(query_rows),
            key_leaf: leaf(key_rows),
            grad,
        }
    }

    fn key_row(&self, example: usize, key: usize, head: usize) -> usize {
        (example * self.keys + key) * self.kv_heads + head / (self.heads / self.kv_heads)
    }

    /// Whether a query sees a key.
    fn sees(&self, inputs: &Inputs, row: usize, key_row: usize) -> bool {
        let leaf = inputs.query_leaf[row];
        let query = row / self.heads % self.queries;
        let key = key_row / self.kv_heads % self.keys;
        let allowed = match self.options.causal {
            None => true,
            Some(offset) => key <= query.saturating_add(offset),
        };
        let real = (0..self.options.leaves as i64).contains(&leaf);
        real && leaf == inputs.key_leaf[key_row] && allowed
    }

    fn score(&self, inputs: &Inputs, row: usize, key_row: usize) -> f64 {
        let dim = self.head_dim;
        let scale = self.options.scale.unwrap_or((dim as f64).powf(-0.5));
        scale * dot(&inputs.query, row * dim, &inputs.key, key_row * dim, dim)
    }

    /// The definition.
    fn exact(&self, inputs: &Inputs) -> Results {
        let (dim, width) = (self.head_dim, self.value_dim);
        let scale = self.options.scale.unwrap_or((dim as f64).powf(-0.5));
        let zeros = |of: &[f32]| vec![0.0_f64; of.len()];
        let mut context = zeros(&inputs.grad);
        let mut lse = vec![0.0_f64; inputs.query_leaf.len()];
        let (mut d_query, mut d_key) = (zeros(&inputs.query), zeros(&inputs.key));
        let (mut d_value, mut d_bias) = (zeros(&inputs.value), zeros(&inputs.bias));
        for row in 0..inputs.query_leaf.len() {
            let (head, query) = (row % self.heads, row / self.heads % self.queries);
            let example = row / self.heads / self.queries;
            let seen: Vec<(usize, f64)> = (0..self.keys)
                .map(|key| (key, self.key_row(example, key, head)))
                .filter(|(_, key_row)| self.sees(inputs, row, *key_row))
                .map(|(key, key_row)| {
                    let keep = match self.options.dropout {
                        None => 1.0,
                        Some(dropout) => {
                            if dropout.keeps(example, head, query, key) {
                                1.0 / (1.0 - dropout.rate)
                            } else {
                                0.0
                            }
                        }
                    };
                    (key_row, keep)
                })
                .collect();
            let logits: Vec<f64> = seen
                .iter()
                .map(|(key, _)| self.score(inputs, row, *key) + f64::from(inputs.bias[*key]))
                .collect();
            let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
            lse[row] = if seen.is_empty() {
                f64::from(f32::MIN)
            } else {
                total.ln()
            };
            let weights: Vec<f64> = logits.iter().map(|logit| logit.exp() / total).collect();
            let d_weights: Vec<f64> = seen
                .iter()
                .map(|(key, keep)| {
                    keep * dot(&inputs.grad, row * width, &inputs.value, key * width, width)
                })
                .collect();
            let mean: f64 = weights.iter().zip(&d_weights).map(|(w, d)| w * d).sum();
            for (at, (key, keep)) in seen.iter().enumerate() {
                let d_logit = weights[at] * (d_weights[at] - mean);
                d_bias[*key] += d_logit;
                for column in 0..width {
                    let weight = weights[at] * keep;
                    context[row * width + column] +=
                        weight * f64::from(inputs.value[key * width + column]);
                    d_value[key * width + column] +=
                        weight * f64::from(inputs.grad[row * width + column]);
                }
                for column in 0..dim {
                    d_query[row * dim + column] +=
                        scale * d_logit * f64::from(inputs.key[key * dim + column]);
                    d_key[key * dim + column] +=
                        scale * d_logit * f64::from(inputs.query[row * dim + column]);
                }
            }
        }
        [context, lse, d_query, d_key, d_value, d_bias]
            .map(|numbers| numbers.into_iter().map(|number| number as f32).collect())
    }

    fn tensors(&self, inputs: &Inputs, device: &Device) -> LeafAttentionInput {
        let [query, key, value] = [
            (&inputs.query, self.queries, self.heads, self.head_dim),
            (&inputs.key, self.keys, self.kv_heads, self.head_dim),
            (&inputs.value, self.keys, self.kv_heads, self.value_dim),
        ]
        .map(|(numbers, rows, heads, width)| {
            let data = TensorData::new(numbers.clone(), [self.batch, rows, heads, width]);
            Tensor::<4>::from_data(data, device)
        });
        let per_key = [self.batch, self.keys, self.kv_heads];
        let bias = TensorData::new(inputs.bias.clone(), per_key);
        LeafAttentionInput {
            query,
            key,
            value,
            query_leaf: integers(
                &inputs.query_leaf,
                [self.batch, self.queries, self.heads],
                device,
            ),
            key_leaf: integers(&inputs.key_leaf, per_key, device),
            key_bias: self.bias.then(|| Tensor::from_data(bias, device)),
        }
    }

    fn grad(&self, inputs: &Inputs, device: &Device) -> Tensor<4> {
        let shape = [self.batch, self.queries, self.heads, self.value_dim];
        Tensor::from_data(TensorData::new(inputs.grad.clone(), shape), device)
    }

    /// What the operator makes of it, each input passed through `view` first.
    fn run_viewed(
        &self,
        inputs: &Inputs,
        view: impl Fn(Tensor<4>) -> Tensor<4>,
        view_leaf: impl Fn(Tensor<3, Int>) -> Tensor<3, Int>,
    ) -> Results {
        let device = autodiff_device();
        let input = self.tensors(inputs, &device);
        let [query, key, value] =
            [input.query, input.key, input.value].map(|tensor| view(tensor).require_grad());
        let key_bias = input.key_bias.map(|bias| bias.require_grad());
        let LeafAttentionOutput { context, lse } = leaf_attention(
            LeafAttentionInput {
                query: query.clone(),
                key: key.clone(),
                value: value.clone(),
                query_leaf: view_leaf(input.query_leaf),
                key_leaf: view_leaf(input.key_leaf),
                key_bias: key_bias.clone(),
            },
            self.options,
        );
        let loss = (context.clone() * self.grad(inputs, &device)).sum();
        let gradients = loss.backward();
        let gradient = |tensor: Tensor<4>| values(tensor.grad(&gradients).expect("a gradient"));
        let d_bias = match key_bias {
            None => Vec::new(),
            Some(bias) => values(bias.grad(&gradients).expect("a gradient")),
        };
        [
            values(context),
            values(lse),
            gradient(query),
            gradient(key),
            gradient(value),
            d_bias,
        ]
    }

    fn run(&self, inputs: &Inputs) -> Results {
        self.run_viewed(inputs, |tensor| tensor, |leaf| leaf)
    }

    fn check(&self, inputs: &Inputs) {
        assert_results(&self.run(inputs), &self.exact(inputs), &format!("{self:?}"));
    }

    /// The gradient of the gates, and whether context passed through with its gradient.
    fn gate_gradient(&self, inputs: &Inputs, candidates: &Inputs) -> Vec<f32> {
        let device = autodiff_device();
        let input = self.tensors(inputs, &device);
        let candidate_leaf = self.tensors(candidates, &device).key_leaf;
        let output = leaf_attention(input.clone(), self.options);
        let context = output.context.detach().require_grad();
        let gate = Tensor::<3>::zeros([self.batch, self.keys, self.kv_heads], &device);
        let gate = gate.require_grad();
        let query = input.query.require_grad();
        let out = candidate_keys(
            context.clone(),
            CandidateKeys {
                gate: gate.clone(),
                query: query.clone(),
                key: input.key,
                value: input.value,
                query_leaf: input.query_leaf,
                candidate_leaf,
                lse: output.lse,
            },
            self.options,
        );
        assert_eq!(values(out.clone()), values(context.clone()));
        let gradients = (out * self.grad(inputs, &device)).sum().backward();
        let passed = context.grad(&gradients).expect("it passes through");
        assert_eq!(values(passed), inputs.grad);
        assert!(query.grad(&gradients).is_none());
        values(gate.grad(&gradients).expect("a gradient"))
    }

    /// The formula, from the attention's own context and total.
    fn exact_gate_gradient(&self, inputs: &Inputs, candidates: &Inputs) -> Vec<f32> {
        let width = self.value_dim;
        let [context, lse, ..] = self.exact(inputs);
        let candidates = Inputs {
            key_leaf: candidates.key_leaf.clone(),
            ..inputs.clone()
        };
        let mut gate = vec![0.0_f64; inputs.key_leaf.len()];
        for (row, lse) in lse.iter().enumerate() {
            let example = row / self.heads / self.queries;
            for key in 0..self.keys {
                let key = self.key_row(example, key, row % self.heads);
                if !self.sees(&candidates, row, key) {
                    continue;
                }
                let u = self.score(inputs, row, key).exp();
                let total = match *lse {
                    f32::MIN => 0.0,
                    lse => f64::from(lse).exp(),
                };
                let of_value = dot(&inputs.grad, row * width, &inputs.value, key * width, width);
                let of_context = dot(&inputs.grad, row * width, &context, row * width, width);
                gate[key] += u / (total + u) * (of_value - of_context);
            }
        }
        gate.into_iter().map(|number| number as f32).collect()
    }
}

fn dot(a: &[f32], a_first: usize, b: &[f32], b_first: usize, count: usize) -> f64 {
    (0..count)
        .map(|at| f64::from(a[a_first + at]) * f64::from(b[b_first + at]))
        .sum()
}

fn integers(values: &[i64], shape: [usize; 3], device: &Device) -> Tensor<3, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

#[track_caller]
fn assert_numbers(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= allowed(ABSOLUTE) + allowed(RELATIVE) * expected.abs(),
            "{what}[{at}]: expected {expected}, got {got}"
        );
    }
}

#[track_caller]
fn assert_results(got: &Results, expected: &Results, what: &str) {
    for ((name, got), expected) in NAMES.iter().zip(got).zip(expected) {
        // Without a bias there is no gradient of one.
        if *name != "d_bias" || !got.is_empty() {
            assert_numbers(got, expected, &format!("{name} of {what}"));
        }
    }
}

#[test]
fn attention_and_its_gradients_are_those_of_the_definition() {
    for case in CASES {
        case.check(&case.inputs());
    }
}

#[test]
fn one_leaf_is_dense_attention() {
    let case = Case {
        heads: 2,
        kv_heads: 2,
        bias: false,
        options: LeafAttentionOptions {
            leaves: 1,
            ..OPTIONS
        },
        ..PLAIN
    };
    let mut inputs = case.inputs();
    inputs.query_leaf.fill(0);
    inputs.key_leaf.fill(0);
    let input = case.tensors(&inputs, &device());
    let options = DenseAttentionOptions {
        first_key: 0,
        scale: None,
    };
    let (query, key, value) = (input.query.clone(), input.key.clone(), input.value.clone());
    let expected = dense_attention(query, key, value, None, options);
    let got = leaf_attention(input, case.options).context;
    assert_close(got, expected, 1e-6, 1e-6);
}

#[test]
fn examples_of_padding_alone_are_zero() {
    let case = PLAIN;
    let mut inputs = case.inputs();
    let (of_queries, of_keys) = (case.queries * case.heads, case.keys * case.kv_heads);
    // No queries in the first example, no keys in the second, neither in the third.
    inputs.query_leaf[..of_queries].fill(-1);
    inputs.key_leaf[of_keys..].fill(4);
    inputs.query_leaf[2 * of_queries..].fill(-7);
    case.check(&inputs);
    let results = case.run(&inputs);
    for (name, numbers) in NAMES.iter().zip(&results) {
        let expected = if *name == "lse" { f32::MIN } else { 0.0 };
        assert!(numbers.iter().all(|number| *number == expected), "{name}");
    }
}

#[test]
fn permuting_the_batch_permutes_what_is_returned() {
    let case = PLAIN;
    let inputs = case.inputs();
    let rotate = |numbers: &Vec<f32>| {
        let mut numbers = numbers.clone();
        let third = numbers.len() / 3;
        numbers.rotate_left(third);
        numbers
    };
    let mut rotated = Inputs {
        query: rotate(&inputs.query),
        key: rotate(&inputs.key),
        value: rotate(&inputs.value),
        bias: rotate(&inputs.bias),
        grad: rotate(&inputs.grad),
        ..inputs.clone()
    };
    let third = rotated.query_leaf.len() / 3;
    rotated.query_leaf.rotate_left(third);
    let third = rotated.key_leaf.len() / 3;
    rotated.key_leaf.rotate_left(third);
    for (got, expected) in case.run(&rotated).iter().zip(&case.run(&inputs)) {
        assert_eq!(*got, rotate(expected));
    }
}

#[test]
fn what_comes_later_changes_nothing_if_causal() {
    let case = Case {
        batch: 1,
        queries: 40,
        keys: 40,
        options: LeafAttentionOptions {
            leaves: 2,
            causal: Some(0),
            ..OPTIONS
        },
        ..PLAIN
    };
    let inputs = case.inputs();
    let mut changed = inputs.clone();
    let border = 23;
    let first = border * case.kv_heads;
    for key in changed.key[first * case.head_dim..].iter_mut() {
        *key = 3.0 - *key;
    }
    for value in changed.value[first * case.value_dim..].iter_mut() {
        *value *= -50.0;
    }
    for leaf in changed.key_leaf[first..].iter_mut() {
        *leaf = 1 - *leaf;
    }
    let [before, totals_before, ..] = case.run(&inputs);
    let [after, totals_after, ..] = case.run(&changed);
    let rows = border * case.heads;
    let width = case.value_dim;
    assert_eq!(before[..rows * width], after[..rows * width]);
    assert_eq!(totals_before[..rows], totals_after[..rows]);
    assert_ne!(before[rows * width..], after[rows * width..]);
}

#[test]
fn dropout_keeps_the_mean_and_drops_the_pairs_of_its_hash() {
    // Values of one: a context is the sum of the weights that stay.
    let case = Case {
        batch: 1,
        queries: 64,
        keys: 64,
        heads: 2,
        kv_heads: 2,
        value_dim: 1,
        bias: false,
        options: LeafAttentionOptions {
            leaves: 1,
            dropout: Some(Dropout { rate: 0.3, seed: 9 }),
            ..OPTIONS
        },
        ..PLAIN
    };
    let mut inputs = case.inputs();
    inputs.query_leaf.fill(0);
    inputs.key_leaf.fill(0);
    inputs.value.fill(1.0);
    inputs.query.fill(0.0);
    case.check(&inputs);
    let [context, ..] = case.run(&inputs);
    let mean = context.iter().sum::<f32>() / context.len() as f32;
    // Of 8192 pairs a share of 0.7 stays, give or take 0.005.
    assert!((mean - 1.0).abs() < 4.0 * 0.0073, "mean {mean}");
    let dropout = case.options.dropout.unwrap();
    for (row, got) in context.iter().enumerate() {
        let kept = (0..64).filter(|key| dropout.keeps(0, row % 2, row / 2, *key));
        let expected = kept.count() as f32 / 64.0 / 0.7;
        assert!(
            (got - expected).abs() < allowed(1e-5),
            "{got}, expected {expected}"
        );
    }
    // Another seed drops others.
    let other = Case {
        options: LeafAttentionOptions {
            dropout: Some(Dropout {
                rate: 0.3,
                seed: 10,
            }),
            ..case.options
        },
        ..case
    };
    assert_ne!(other.run(&inputs)[0], context);
}

#[test]
fn dropout_of_nothing_is_no_dropout() {
    let with = |dropout| Case {
        options: LeafAttentionOptions { dropout, ..OPTIONS },
        ..PLAIN
    };
    let none = Some(Dropout { rate: 0.0, seed: 5 });
    let inputs = PLAIN.inputs();
    assert_eq!(with(none).run(&inputs), with(None).run(&inputs));
}

#[test]
fn non_contiguous_inputs_give_the_same() {
    let stored_otherwise = |tensor: Tensor<4>| {
        let device = tensor.device();
        let stored = Tensor::<4>::from_data(tensor.swap_dims(1, 2).into_data(), &device);
        stored.swap_dims(1, 2)
    };
    let leaf_stored_otherwise = |leaf: Tensor<3, Int>| {
        let device = leaf.device();
        let stored = Tensor::<3, Int>::from_data(leaf.swap_dims(1, 2).into_data(), &device);
        stored.swap_dims(1, 2)
    };
    for case in [CASES[0], CASES[4]] {
        let inputs = case.inputs();
        let got = case.run_viewed(&inputs, stored_otherwise, leaf_stored_otherwise);
        for (got, expected) in got.iter().zip(&case.run(&inputs)) {
            assert_numbers(got, expected, "a number");
        }
    }
}

#[test]
fn large_logits_stay_finite() {
    let case = Case {
        options: LeafAttentionOptions {
            scale: Some(1e3),
            ..OPTIONS
        },
        ..PLAIN
    };
    let inputs = case.inputs();
    let finite = |numbers: &Vec<f32>| numbers.iter().all(|number| number.is_finite());
    assert!(case.run(&inputs).iter().all(finite));
    assert!(finite(&case.gate_gradient(&inputs, &inputs)));
}

#[test]
fn gates_of_candidates_get_the_gain_of_moving_there() {
    for case in CASES
        .into_iter()
        .filter(|case| case.options.dropout.is_none())
    {
        let inputs = case.inputs();
        // Other leaves, some of which no key is in, or no query, or which do not exist.
        let mut candidates = inputs.clone();
        candidates.key_leaf.reverse();
        assert_numbers(
            &case.gate_gradient(&inputs, &candidates),
            &case.exact_gate_gradient(&inputs, &candidates),
            &format!("gate of {case:?}"),
        );
    }
}

#[test]
fn a_candidate_of_a_leaf_without_keys_counts_in_full() {
    let case = Case {
        batch: 1,
        queries: 2,
        keys: 1,
        heads: 1,
        kv_heads: 1,
        value_dim: 2,
        ..PLAIN
    };
    let mut inputs = case.inputs();
    inputs.query_leaf = vec![0, 1];
    inputs.key_leaf = vec![1];
    let mut candidates = inputs.clone();
    candidates.key_leaf = vec![0];
    let gain = dot(&inputs.grad, 0, &inputs.value, 0, 2) as f32;
    assert_numbers(&case.gate_gradient(&inputs, &candidates), &[gain], "gate");
}

#[test]
fn no_queries_and_no_keys_are_fine() {
    let device = device();
    for (queries, keys) in [(0, 5), (5, 0)] {
        let output = leaf_attention(
            LeafAttentionInput {
                query: Tensor::zeros([2, queries, 2, 3], &device),
                key: Tensor::zeros([2, keys, 1, 3], &device),
                value: Tensor::zeros([2, keys, 1, 4], &device),
                query_leaf: Tensor::zeros([2, queries, 2], &device),
                key_leaf: Tensor::zeros([2, keys, 1], &device),
                key_bias: None,
            },
            OPTIONS,
        );
        assert_eq!(values(output.context), vec![0.0; 2 * queries * 2 * 4]);
        assert_eq!(values(output.lse), vec![f32::MIN; 2 * queries * 2]);
    }
}

/// Small inputs of matching shapes.
fn small() -> LeafAttentionInput {
    let device = device();
    LeafAttentionInput {
        query: random([2, 3, 4, 5], 1, &device),
        key: random([2, 6, 2, 5], 2, &device),
        value: random([2, 6, 2, 7], 3, &device),
        query_leaf: Tensor::zeros([2, 3, 4], &device),
        key_leaf: Tensor::zeros([2, 6, 2], &device),
        key_bias: None,
    }
}

#[test]
#[should_panic(
    expected = "leaf_attention: value [batch, keys, kv_heads, value_dim]: expected [2, 6, 2, 7], got [2, 5, 2, 7]"
)]
fn values_of_other_keys_are_refused() {
    let value = random([2, 5, 2, 7], 3, &device());
    // The key's own axis is what the value is compared with.
    let _ = leaf_attention(LeafAttentionInput { value, ..small() }, OPTIONS);
}

#[test]
#[should_panic(expected = "leaf_attention: query: axis heads: expected a multiple of kv_heads = 2")]
fn heads_that_share_no_keys_evenly_are_refused() {
    let query = random([2, 3, 3, 5], 1, &device());
    let _ = leaf_attention(LeafAttentionInput { query, ..small() }, OPTIONS);
}

#[test]
#[should_panic(
    expected = "leaf_attention: query_leaf [batch, queries, heads]: expected [2, 3, 4], got [2, 3, 1]"
)]
fn leaves_of_other_heads_are_refused() {
    let query_leaf = Tensor::zeros([2, 3, 1], &device());
    let _ = leaf_attention(
        LeafAttentionInput {
            query_leaf,
            ..small()
        },
        OPTIONS,
    );
}

#[test]
#[should_panic(expected = "leaf_attention: leaves: expected at least 1, got 0")]
fn no_leaves_are_refused() {
    let _ = leaf_attention(small(), LeafAttentionOptions::new(0));
}

#[test]
#[should_panic(expected = "leaf_attention: rate of dropout: expected a number in 0.0..1.0, got 1")]
fn dropping_everything_is_refused() {
    let options = LeafAttentionOptions {
        dropout: Some(Dropout { rate: 1.0, seed: 0 }),
        ..OPTIONS
    };
    let _ = leaf_attention(small(), options);
}

#[test]
#[should_panic(
    expected = "candidate_keys: gate [batch, keys, kv_heads]: expected [2, 6, 2], got [2, 5, 2]"
)]
fn gates_of_other_keys_are_refused() {
    let device = device();
    let input = small();
    let _ = candidate_keys(
        Tensor::zeros([2, 3, 4, 7], &device),
        CandidateKeys {
            gate: Tensor::zeros([2, 5, 2], &device),
            query: input.query,
            key: input.key,
            value: input.value,
            query_leaf: input.query_leaf,
            candidate_leaf: input.key_leaf,
            lse: Tensor::zeros([2, 3, 4], &device),
        },
        OPTIONS,
    );
}
