//! Attention within leaves on the backend under test against the reference bodies on the same device.

use arbora_attention::Dropout;
use arbora_attention::ops::LeafAttentionOptions;
use arbora_attention::ops::TreeAttentionOps;
use arbora_attention::ops::{
    CandidateInputs, LeafAttentionGradients, LeafAttentionInputs, reference,
};
use arbora_testing::{assert_close, autodiff_device, device, random, values};
use burn::backend::Dispatch;
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Sums of tens of products of numbers around 1, in another order.
const ABSOLUTE: f32 = 3e-5;
const RELATIVE: f32 = 3e-5;

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    queries: usize,
    keys: usize,
    /// Heads of queries per head of keys.
    share: usize,
    kv_heads: usize,
    /// Widths of keys and values.
    widths: [usize; 2],
    options: LeafAttentionOptions,
    /// In tenths: how many rows are masked out.
    absent: u32,
    seed: u64,
}

/// Query, key, value, key bias, and the gradient of the context.
type Floats = ([Tensor<4>; 3], Tensor<3>, Tensor<4>);

impl Case {
    fn floats(&self, device: &Device) -> Floats {
        let heads = self.share * self.kv_heads;
        let [head_dim, value_dim] = self.widths;
        let inputs = [
            random(
                [self.batch, self.queries, heads, head_dim],
                self.seed,
                device,
            ) * 2.0,
            random(
                [self.batch, self.keys, self.kv_heads, head_dim],
                self.seed + 1,
                device,
            ) * 2.0,
            random(
                [self.batch, self.keys, self.kv_heads, value_dim],
                self.seed + 2,
                device,
            ),
        ];
        let bias = random(
            [self.batch, self.keys, self.kv_heads],
            self.seed + 3,
            device,
        );
        let grad = random(
            [self.batch, self.queries, heads, value_dim],
            self.seed + 4,
            device,
        );
        (inputs, bias, grad)
    }

    fn leaves(&self, rows: usize, heads: usize, seed: u64) -> Tensor<3, Int> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let leaves = self.options.leaves as i64;
        let leaf = |_| {
            if rng.random_range(0..10) < self.absent {
                [-1, leaves, leaves + 3][rng.random_range(0..3)]
            } else {
                rng.random_range(0..leaves)
            }
        };
        let leaf: Vec<i64> = (0..self.batch * rows * heads).map(leaf).collect();
        Tensor::from_data(TensorData::new(leaf, [self.batch, rows, heads]), &device())
    }

    fn query_leaf(&self) -> Tensor<3, Int> {
        self.leaves(self.queries, self.share * self.kv_heads, self.seed + 5)
    }

    fn key_leaf(&self, seed: u64) -> Tensor<3, Int> {
        self.leaves(self.keys, self.kv_heads, self.seed + seed)
    }

    fn inputs(&self, inputs: [Tensor<4>; 3], key_bias: Tensor<3>) -> LeafAttentionInputs<Dispatch> {
        let [query, key, value] = inputs.map(Tensor::into_dispatch);
        LeafAttentionInputs {
            query,
            key,
            value,
            key_bias: key_bias.into_dispatch(),
            query_leaf: self.query_leaf().into_dispatch(),
            key_leaf: self.key_leaf(6).into_dispatch(),
        }
    }

    fn check(&self) {
        println!("{self:?}");
        let (inputs, bias, grad) = self.floats(&device());
        let (inputs, grad) = (self.inputs(inputs, bias), grad.into_dispatch());
        let output = <Dispatch as TreeAttentionOps>::leaf_attention(inputs.clone(), self.options);
        let expected = reference::leaf_attention::<Dispatch>(inputs.clone(), self.options);
        close(output.context.clone(), expected.context);
        assert_close(
            Tensor::<3>::from_dispatch(output.lse.clone()),
            Tensor::<3>::from_dispatch(expected.lse),
            ABSOLUTE,
            RELATIVE,
        );

        let LeafAttentionGradients {
            query: d_query,
            key: d_key,
            value: d_value,
            key_bias,
        } = <Dispatch as TreeAttentionOps>::leaf_attention_backward(
            inputs.clone(),
            output.clone(),
            grad.clone(),
            self.options,
        );
        let [expected_query, expected_key, expected_value] = {
            let (tracked, tracked_bias, _) = self.floats(&autodiff_device());
            let tracked = tracked.map(|input| input.require_grad());
            let tracked_bias = tracked_bias.require_grad();
            let inputs = self.inputs(tracked.clone(), tracked_bias.clone());
            let output = reference::leaf_attention::<Dispatch>(inputs, self.options);
            let (_, _, grad) = self.floats(&autodiff_device());
            let loss = (Tensor::<4>::from_dispatch(output.context) * grad).sum();
            let gradients = loss.backward();
            let expected = tracked_bias.grad(&gradients).expect("a gradient");
            let got = Tensor::<3>::from_dispatch(key_bias);
            assert_close(got, expected, ABSOLUTE, RELATIVE);
            tracked.map(|input| input.grad(&gradients).expect("a gradient"))
        };
        close(d_query, expected_query.into_dispatch());
        close(d_key, expected_key.into_dispatch());
        close(d_value, expected_value.into_dispatch());

        let candidates = CandidateInputs {
            query: inputs.query,
            key: inputs.key,
            value: inputs.value,
            query_leaf: inputs.query_leaf,
            candidate_leaf: self.key_leaf(7).into_dispatch(),
        };
        let gates = [
            <Dispatch as TreeAttentionOps>::candidate_keys_backward,
            reference::candidate_keys_backward::<Dispatch>,
        ]
        .map(|operator| {
            Tensor::<3>::from_dispatch(operator(
                candidates.clone(),
                output.clone(),
                grad.clone(),
                self.options,
            ))
        });
        let [got, expected] = gates;
        assert_close(got, expected, ABSOLUTE, RELATIVE);
    }
}

fn close(
    got: burn::backend::tensor::FloatTensor<Dispatch>,
    expected: burn::backend::tensor::FloatTensor<Dispatch>,
) {
    assert_close(
        Tensor::<4>::from_dispatch(got),
        Tensor::<4>::from_dispatch(expected),
        ABSOLUTE,
        RELATIVE,
    );
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (1..4usize, 1..70usize, 1..70usize, 1..4usize, 1..3usize);
    // Each pair of widths is another kernel, and kernels take long to compile on some devices.
    let widths = prop_oneof![Just([3, 5]), Just([8, 4])];
    let causal = prop_oneof![Just(None), (0..50usize).prop_map(Some)];
    let dropout = prop_oneof![
        Just(None),
        any::<u64>().prop_map(|seed| Some(Dropout { rate: 0.3, seed }))
    ];
    let options = (1..9usize, causal, dropout);
    (sizes, widths, options, 0..11u32, 0..1000u64).prop_map(
        |(sizes, widths, (leaves, causal, dropout), absent, seed)| {
            let (batch, queries, keys, share, kv_heads) = sizes;
            Case {
                batch,
                queries,
                keys,
                share,
                kv_heads,
                widths,
                options: LeafAttentionOptions {
                    leaves,
                    scale: None,
                    causal,
                    dropout,
                },
                absent,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attention_within_leaves_equals_the_reference(case in cases()) {
        case.check();
    }
}

#[test]
fn large_leaves_equal_the_reference() {
    // More rows of a leaf than a tile and a task have, and rows that are cut into parts.
    Case {
        batch: 1,
        queries: 150,
        keys: 600,
        share: 2,
        kv_heads: 1,
        widths: [8, 4],
        options: LeafAttentionOptions {
            leaves: 1,
            scale: Some(0.3),
            causal: Some(400),
            dropout: None,
        },
        absent: 1,
        seed: 3,
    }
    .check();
}

#[test]
fn attention_within_leaves_is_the_same_numbers_every_time() {
    let case = Case {
        batch: 2,
        queries: 60,
        keys: 60,
        share: 2,
        kv_heads: 2,
        widths: [3, 5],
        options: LeafAttentionOptions::new(2),
        absent: 1,
        seed: 0,
    };
    let of = || {
        let (inputs, bias, grad) = case.floats(&device());
        let (inputs, grad) = (case.inputs(inputs, bias), grad.into_dispatch());
        let output = <Dispatch as TreeAttentionOps>::leaf_attention(inputs.clone(), case.options);
        let found = <Dispatch as TreeAttentionOps>::leaf_attention_backward(
            inputs,
            output,
            grad,
            case.options,
        );
        [found.query, found.key, found.value]
            .map(|tensor| values(Tensor::<4>::from_dispatch(tensor)))
    };
    let first = of();
    for _ in 0..3 {
        assert_eq!(of(), first);
    }
}

#[test]
fn the_only_key_of_a_leaf_has_all_the_weight_whatever_its_logits() {
    if arbora_testing::skipped_in_half_precision("the logits are larger than any number") {
        return;
    }
    let case = Case {
        batch: 2,
        queries: 21,
        keys: 1,
        share: 2,
        kv_heads: 1,
        widths: [8, 4],
        options: LeafAttentionOptions::new(1),
        absent: 0,
        seed: 5,
    };
    for size in [1.0, 1e4, 1e13] {
        let ([query, key, value], bias, grad) = case.floats(&device());
        // Of the size of the products: where these are large, what is between them is lost in another order of sums.
        let bias = bias * size * size;
        let inputs = case.inputs([query * size, key * size, value], bias);
        let output = <Dispatch as TreeAttentionOps>::leaf_attention(inputs.clone(), case.options);
        let found = <Dispatch as TreeAttentionOps>::leaf_attention_backward(
            inputs,
            output,
            grad.clone().into_dispatch(),
            case.options,
        );
        let expected = grad.sum_dim(1).sum_dim(2).into_dispatch();
        close(found.value, expected);
    }
}
