//! Dense attention, and attention within leaves.

use super::{
    Float, Input, Numbers, Operator, Output, Place, Scaling, drawn, gradients, integers, length,
    long, mask, powers, width,
};
use arbora::attention::Dropout;
use arbora::attention::ops::{
    AttentionMask, AttentionOutput, CandidateInputs, DenseAttentionInputs, DenseAttentionOptions,
    LeafAttentionGradients, LeafAttentionInputs, LeafAttentionOptions, TreeAttentionOps, reference,
};
use burn::backend::Dispatch;
use burn::tensor::{Device, Tensor};
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

/// Context and statistic, and the gradients of query, key and value with the sizes of what they are made of: the gradient of a
/// logit is the difference of sums over the width of values.
///
/// - scale: of logits
fn outputs(scales: &[f64], [value_dim, group]: [usize; 2], scale: f64) -> Vec<Output> {
    let [q, k, v, g] = [0, 1, 2, 3].map(|at| scales[at]);
    let logit = 4.0 * g * v * (value_dim as f64).sqrt();
    vec![
        Output::new("context", v).by_heads(group),
        Output::new("lse", 1.0).by_heads(group),
        Output::new("gradient of query", logit * k * scale).by_heads(group),
        Output::new("gradient of key", logit * q * scale).by_heads(1),
        Output::new("gradient of value", g).by_heads(1),
    ]
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

    fn attended(
        &self,
        [query, key, value]: [Float; 3],
        device: &Device,
    ) -> DenseAttentionInputs<Dispatch> {
        let keys = [self.batch, self.rows - self.first_key];
        let mask = mask(self.mask.as_ref(), keys, device);
        DenseAttentionInputs {
            query,
            key,
            value,
            mask: mask.map_or(AttentionMask::None, |mask| {
                AttentionMask::Keys(mask.into_dispatch())
            }),
        }
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

    fn outputs(&self, scales: &[f64]) -> Vec<Output> {
        outputs(scales, [self.widths[1], 1], self.scale.unwrap_or(1.0))
    }

    fn kernel(&self, inputs: Vec<Float>, device: &Device) -> Vec<Numbers> {
        let [query, key, value, grad] = four_of(&inputs);
        let attended = self.attended([query, key, value], device);
        let options = self.options();
        let output = Dispatch::dense_attention(attended.clone(), options);
        let (query, key, value) =
            Dispatch::dense_attention_backward(attended, output.clone(), grad, options);
        [output.context, output.lse, query, key, value]
            .map(Numbers::of)
            .into()
    }

    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Numbers> {
        let tracked = [0, 1, 2].map(|at| place.tracked(&inputs[at]));
        let grad = place.float(&inputs[3]);
        let attended = self.attended(tracked.clone(), &place.device);
        let output = reference::dense_attention::<Dispatch>(attended, self.options());
        let gradients = gradients(&output.context, grad, &tracked);
        let mut found = vec![Numbers::of(output.context), Numbers::of(output.lse)];
        found.extend(gradients);
        found
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
    /// What is attended to, and the same rows with other leaves for keys.
    fn attended(
        &self,
        [query, key, value]: [Float; 3],
        key_bias: Float,
        device: &Device,
    ) -> (LeafAttentionInputs<Dispatch>, CandidateInputs<Dispatch>) {
        let of_queries = [self.batch, self.queries, self.kv_heads * self.group];
        let of_keys = [self.batch, self.keys, self.kv_heads];
        let [query_leaf, key_leaf, candidate_leaf] = [
            integers(&self.query_leaf, of_queries, device),
            integers(&self.key_leaf, of_keys, device),
            integers(&self.candidate_leaf, of_keys, device),
        ]
        .map(Tensor::into_dispatch);
        let candidates = CandidateInputs {
            query: query.clone(),
            key: key.clone(),
            value: value.clone(),
            query_leaf: query_leaf.clone(),
            candidate_leaf,
        };
        let attended = LeafAttentionInputs {
            query,
            key,
            value,
            key_bias,
            query_leaf,
            key_leaf,
        };
        (attended, candidates)
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

    fn outputs(&self, scales: &[f64]) -> Vec<Output> {
        let dropout = self.options.dropout;
        let kept = dropout.map_or(1.0, |dropout| 1.0 / (1.0 - dropout.rate));
        let scale = self.options.scale.unwrap_or(1.0) * kept;
        let mut outputs = outputs(scales, [self.widths[1], self.group], scale);
        // Of a logit, without what it is made of.
        let gain = outputs[2].unit / scale * kept / scales[1];
        let names = ["gradient of key bias", "gradient of gate"];
        outputs.extend(names.map(|name| Output::new(name, gain).by_heads(1)));
        outputs
    }

    fn kernel(&self, inputs: Vec<Float>, device: &Device) -> Vec<Numbers> {
        let [query, key, value, grad] = four_of(&inputs);
        let rows = [query, key, value];
        let (attended, candidates) = self.attended(rows, inputs[4].clone(), device);
        let output = Dispatch::leaf_attention(attended.clone(), self.options);
        let (of_output, of_grad) = (output.clone(), grad.clone());
        let LeafAttentionGradients {
            query,
            key,
            value,
            key_bias,
        } = Dispatch::leaf_attention_backward(attended, of_output, of_grad, self.options);
        let of_output = output.clone();
        let gate = Dispatch::candidate_keys_backward(candidates, of_output, grad, self.options);
        [
            output.context,
            output.lse,
            query,
            key,
            value,
            key_bias,
            gate,
        ]
        .map(Numbers::of)
        .into()
    }

    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Numbers> {
        let rows = [0, 1, 2].map(|at| place.tracked(&inputs[at]));
        let grad = place.float(&inputs[3]);
        let bias = place.tracked(&inputs[4]);
        let (attended, _) = self.attended(rows.clone(), bias.clone(), &place.device);
        let output = reference::leaf_attention::<Dispatch>(attended, self.options);
        let [query, key, value] = rows.clone();
        let tracked = [query, key, value, bias.clone()];
        let gradients = gradients(&output.context, grad.clone(), &tracked);
        let [context, lse] = [output.context, output.lse].map(untracked);
        let (_, candidates) = self.attended(rows.map(untracked), bias, &place.device);
        let output = AttentionOutput {
            context: context.clone(),
            lse: lse.clone(),
        };
        let gate =
            reference::candidate_keys_backward::<Dispatch>(candidates, output, grad, self.options);
        let mut found = vec![Numbers::of(context), Numbers::of(lse)];
        found.extend(gradients);
        found.push(Numbers::of(gate));
        found
    }
}

/// The inputs that all attention has: query, key, value and the gradient of the context.
fn four_of(inputs: &[Float]) -> [Float; 4] {
    std::array::from_fn(|at| inputs[at].clone())
}

/// A tensor of any rank without its history.
fn untracked(tensor: Float) -> Float {
    let tensor = Tensor::<1>::from_dispatch(tensor);
    tensor.without_autodiff().into_dispatch()
}
