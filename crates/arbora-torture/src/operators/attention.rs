//! Dense attention, and attention within leaves.

use super::{
    Input, Numbers, Operator, Output, Place, Scaling, backward, drawn, gradient, length, long,
    powers, width,
};
use arbora::attention::Dropout;
use arbora::attention::ops::TreeAttentionOps;
use arbora::attention::ops::{
    AttentionMask, AttentionOutput, CandidateInputs, DenseAttentionInputs, LeafAttentionGradients,
    LeafAttentionInputs, reference,
};
use arbora::attention::ops::{DenseAttentionOptions, LeafAttentionOptions};
use burn::backend::Dispatch;
use burn::backend::tensor::IntTensor;
use burn::tensor::{Bool, Tensor, TensorData};
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

/// Query, key, value and the gradient of the context, of attention in which `group` heads of queries share one of keys.
fn four(
    [batch, queries, keys]: [usize; 3],
    [kv_heads, group]: [usize; 2],
    [head_dim, value_dim]: [usize; 2],
    powers: [i32; 4],
) -> Vec<Input> {
    let heads = kv_heads * group;
    let [query, key, value, grad] = powers;
    vec![
        Input::new([batch, queries, heads, head_dim], query, Scaling::To).by_heads(group),
        Input::new([batch, keys, kv_heads, head_dim], key, Scaling::Fro).by_heads(1),
        Input::new([batch, keys, kv_heads, value_dim], value, Scaling::Free).by_heads(1),
        Input::new([batch, queries, heads, value_dim], grad, Scaling::Free).by_heads(group),
    ]
}

/// The sizes of the gradients of query, key and value, by those of what they are made of: the gradient of a logit is the
/// difference of sums over the width of values.
fn units(inputs: &[Numbers], scale: f64) -> [f64; 3] {
    let [q, k, v, g] = [0, 1, 2, 3].map(|at| inputs[at].scale);
    let logit = 4.0 * g * v * (inputs[2].dims[3] as f64).sqrt();
    [logit * k * scale, logit * q * scale, g]
}

#[derive(Debug)]
pub struct Dense {
    batch: usize,
    queries: usize,
    rows: usize,
    first_key: usize,
    heads: usize,
    widths: [usize; 2],
    scale: Option<f64>,
    mask: Option<Vec<bool>>,
    powers: [i32; 4],
}

impl Dense {
    fn options(&self) -> DenseAttentionOptions {
        DenseAttentionOptions {
            first_key: self.first_key,
            scale: self.scale,
        }
    }

    fn mask(&self, place: &Place) -> AttentionMask<Dispatch> {
        match &self.mask {
            None => AttentionMask::None,
            Some(mask) => {
                let data = TensorData::new(mask.clone(), [self.batch, self.rows - self.first_key]);
                let mask = Tensor::<2, Bool>::from_data(data, &place.device);
                AttentionMask::Keys(mask.into_dispatch())
            }
        }
    }

    fn outputs(
        &self,
        inputs: &[Numbers],
        (context, lse): (Tensor<4>, Tensor<3>),
        [d_query, d_key, d_value]: [Tensor<4>; 3],
    ) -> Vec<Output> {
        let scale = self.options().scale.unwrap_or(1.0);
        let [query, key, value] = units(inputs, scale);
        let output = |name, tensor, unit| Output::new(name, tensor, unit).by_heads(2, 1);
        vec![
            output("context", context, inputs[2].scale),
            Output::new("lse", lse, 1.0).by_heads(2, 1),
            output("gradient of query", d_query, query),
            output("gradient of key", d_key, key),
            output("gradient of value", d_value, value),
        ]
    }
}

impl Operator for Dense {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let batch = length(rng, 1..4);
        let (mut queries, mut rows) = (length(rng, 1..12), length(rng, 1..40));
        if let Some(long) = long(rng) {
            *[&mut queries, &mut rows][long % 2] = long;
        }
        let first_key = match rng.random_range(0..3) {
            0 => rng.random_range(0..=rows),
            _ => 0,
        };
        let masked = [0.0, 0.3, 0.9, 1.0][rng.random_range(0..4)];
        let entries = batch * (rows - first_key);
        let mask = rng.random::<bool>();
        let mask = mask.then(|| drawn(entries, || rng.random_bool(masked)));
        Self {
            batch,
            queries,
            rows,
            first_key,
            heads: rng.random_range(1..4),
            widths: [width(rng), width(rng)],
            scale: [None, Some(0.4), Some(1.0)][rng.random_range(0..3)],
            mask,
            powers: powers(rng),
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let rows = [self.batch, self.queries, self.rows];
        four(rows, [self.heads, 1], self.widths, self.powers)
    }

    fn kernel(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Output> {
        let [query, key, value, grad] =
            [0, 1, 2, 3].map(|at| place.tensor::<4>(&inputs[at]).into_dispatch());
        let (mask, options) = (self.mask(place), self.options());
        let attended = DenseAttentionInputs {
            query,
            key,
            value,
            mask,
        };
        let output = Dispatch::dense_attention(attended.clone(), options);
        let (q, k, v) = Dispatch::dense_attention_backward(attended, output.clone(), grad, options);
        let found = (
            Tensor::from_dispatch(output.context),
            Tensor::from_dispatch(output.lse),
        );
        self.outputs(inputs, found, [q, k, v].map(Tensor::from_dispatch))
    }

    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Output> {
        let tracked = [0, 1, 2].map(|at| place.tracked::<4>(&inputs[at]));
        let grad = place.tensor(&inputs[3]);
        let [query, key, value] = tracked.clone().map(Tensor::into_dispatch);
        let attended = DenseAttentionInputs {
            query,
            key,
            value,
            mask: self.mask(place),
        };
        let output = reference::dense_attention::<Dispatch>(attended, self.options());
        let context = Tensor::<4>::from_dispatch(output.context);
        let gradients = backward(context.clone(), grad, &tracked[0]);
        let found = (context.inner(), Tensor::from_dispatch(output.lse));
        self.outputs(inputs, found, tracked.map(|one| gradient(&one, &gradients)))
    }
}

#[derive(Debug)]
pub struct Leaf {
    batch: usize,
    queries: usize,
    keys: usize,
    kv_heads: usize,
    group: usize,
    widths: [usize; 2],
    options: LeafAttentionOptions,
    query_leaf: Vec<i64>,
    key_leaf: Vec<i64>,
    candidate_leaf: Vec<i64>,
    powers: [i32; 4],
}

impl Leaf {
    /// The leaves of queries, keys and candidates.
    fn leaves(&self, place: &Place) -> [IntTensor<Dispatch>; 3] {
        let of_queries = [self.batch, self.queries, self.kv_heads * self.group];
        let of_keys = [self.batch, self.keys, self.kv_heads];
        [
            place.integers(&self.query_leaf, of_queries),
            place.integers(&self.key_leaf, of_keys),
            place.integers(&self.candidate_leaf, of_keys),
        ]
        .map(Tensor::into_dispatch)
    }

    fn outputs(
        &self,
        inputs: &[Numbers],
        (context, lse): (Tensor<4>, Tensor<3>),
        [d_query, d_key, d_value]: [Tensor<4>; 3],
        [bias, gate]: [Tensor<3>; 2],
    ) -> Vec<Output> {
        let dropout = self.options.dropout;
        let kept = dropout.map_or(1.0, |dropout| 1.0 / (1.0 - dropout.rate));
        let scale = self.options.scale.unwrap_or(1.0) * kept;
        let [query, key, value] = units(inputs, scale);
        let group = self.group;
        let size = inputs[2].scale;
        // Of a logit, without what it is made of.
        let gain = query / scale * kept / inputs[1].scale;
        vec![
            Output::new("context", context, size).by_heads(2, group),
            Output::new("lse", lse, 1.0).by_heads(2, group),
            Output::new("gradient of query", d_query, query).by_heads(2, group),
            Output::new("gradient of key", d_key, key).by_heads(2, 1),
            Output::new("gradient of value", d_value, value).by_heads(2, 1),
            Output::new("gradient of key bias", bias, gain).by_heads(2, 1),
            Output::new("gradient of gate", gate, gain).by_heads(2, 1),
        ]
    }
}

impl Operator for Leaf {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let batch = length(rng, 1..4);
        let (mut queries, mut keys) = (length(rng, 1..24), length(rng, 1..40));
        if let Some(long) = long(rng) {
            *[&mut queries, &mut keys][long % 2] = long;
        }
        let (kv_heads, group) = (rng.random_range(1..3), rng.random_range(1..4));
        let leaves = rng.random_range(1..6);
        let absent = [0.0, 0.2, 1.0][rng.random_range(0..3)];
        let mut leaf = |count| {
            drawn(count, || {
                if rng.random_bool(absent) {
                    [-1, leaves, leaves + 7, i64::from(i32::MIN)][rng.random_range(0..4)]
                } else {
                    rng.random_range(0..leaves)
                }
            })
        };
        let [query_leaf, key_leaf, candidate_leaf] = [
            leaf(batch * queries * kv_heads * group),
            leaf(batch * keys * kv_heads),
            leaf(batch * keys * kv_heads),
        ];
        let dropout = Dropout {
            rate: [0.0, 0.3, 0.99][rng.random_range(0..3)],
            seed: rng.random(),
        };
        Self {
            batch,
            queries,
            keys,
            kv_heads,
            group,
            widths: [width(rng), width(rng)],
            options: LeafAttentionOptions {
                leaves: leaves as usize,
                scale: [None, Some(0.4)][rng.random_range(0..2)],
                causal: [None, Some(rng.random_range(0..40))][rng.random_range(0..2)],
                dropout: [None, Some(dropout)][rng.random_range(0..2)],
            },
            query_leaf,
            key_leaf,
            candidate_leaf,
            powers: powers(rng),
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let rows = [self.batch, self.queries, self.keys];
        let heads = [self.kv_heads, self.group];
        let mut inputs = four(rows, heads, self.widths, self.powers);
        let bias = Input::new([self.batch, self.keys, self.kv_heads], 26, Scaling::None);
        inputs.push(bias.by_heads(1));
        inputs
    }

    fn kernel(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Output> {
        let [query, key, value, grad] =
            [0, 1, 2, 3].map(|at| place.tensor::<4>(&inputs[at]).into_dispatch());
        let [query_leaf, key_leaf, candidate_leaf] = self.leaves(place);
        let attended = LeafAttentionInputs {
            query,
            key,
            value,
            key_bias: place.tensor::<3>(&inputs[4]).into_dispatch(),
            query_leaf,
            key_leaf,
        };
        let candidates = candidates(attended.clone(), candidate_leaf);
        let output = Dispatch::leaf_attention(attended.clone(), self.options);
        let gradients =
            Dispatch::leaf_attention_backward(attended, output.clone(), grad.clone(), self.options);
        let gate =
            Dispatch::candidate_keys_backward(candidates, output.clone(), grad, self.options);
        let LeafAttentionGradients {
            query,
            key,
            value,
            key_bias,
        } = gradients;
        self.outputs(
            inputs,
            (
                Tensor::from_dispatch(output.context),
                Tensor::from_dispatch(output.lse),
            ),
            [query, key, value].map(Tensor::from_dispatch),
            [key_bias, gate].map(Tensor::from_dispatch),
        )
    }

    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Output> {
        let tracked = [0, 1, 2].map(|at| place.tracked::<4>(&inputs[at]));
        let grad = place.tensor::<4>(&inputs[3]);
        let bias = place.tracked::<3>(&inputs[4]);
        let [query_leaf, key_leaf, candidate_leaf] = self.leaves(place);
        let [query, key, value] = tracked.clone().map(Tensor::into_dispatch);
        let attended = LeafAttentionInputs {
            query,
            key,
            value,
            key_bias: bias.clone().into_dispatch(),
            query_leaf,
            key_leaf,
        };
        let output = reference::leaf_attention::<Dispatch>(attended.clone(), self.options);
        let context = Tensor::<4>::from_dispatch(output.context);
        let lse = Tensor::<3>::from_dispatch(output.lse);
        let gradients = backward(context.clone(), grad.clone(), &bias);
        let (context, lse) = (context.inner(), lse.without_autodiff());
        let [query, key, value] = tracked.clone().map(|one| one.inner().into_dispatch());
        let attended = LeafAttentionInputs {
            query,
            key,
            value,
            ..attended
        };
        let gate = reference::candidate_keys_backward::<Dispatch>(
            candidates(attended, candidate_leaf),
            AttentionOutput {
                context: context.clone().into_dispatch(),
                lse: lse.clone().into_dispatch(),
            },
            grad.into_dispatch(),
            self.options,
        );
        self.outputs(
            inputs,
            (context, lse),
            tracked.map(|one| gradient(&one, &gradients)),
            [gradient(&bias, &gradients), Tensor::from_dispatch(gate)],
        )
    }
}

/// The same rows, with other leaves for keys.
fn candidates(
    attended: LeafAttentionInputs<Dispatch>,
    candidate_leaf: IntTensor<Dispatch>,
) -> CandidateInputs<Dispatch> {
    CandidateInputs {
        query: attended.query,
        key: attended.key,
        value: attended.value,
        query_leaf: attended.query_leaf,
        candidate_leaf,
    }
}
