//! Attention within the leaves of trees, as a function.

mod empty_leaf;
mod gradient;
mod host;
mod properties;

use arbora_attention::EmptyLeaf;
use arbora_attention::functions::{TreeFineInput, TreeFineOptions, dense_attention, tree_fine};
use arbora_attention::ops::DenseAttentionOptions;
use arbora_testing::{assert_close, autodiff_device, device, large, padding, random, values};
use arbora_tree::{Growth, RoutingTree, RoutingTreeConfig, Surrogate};
use burn::tensor::{DType, Device, Int, Tensor};
use host::Host;

pub(crate) fn tree(
    dim: usize,
    branching: &[usize],
    trees: usize,
    seed: u64,
    device: &Device,
) -> RoutingTree {
    RoutingTreeConfig::new(dim, branching.to_vec())
        .with_trees(trees)
        .with_seed(seed)
        .init(device)
}

/// The parameters of Treeformer's Lemma 1: weights of 0, and a small bias that sends everything to the
/// last child.
pub(crate) fn last_leaf_tree(
    dim: usize,
    branching: &[usize],
    trees: usize,
    device: &Device,
) -> RoutingTree {
    let growth = Growth::Preserve {
        seed: 0,
        noise: 0.0,
        bias: 1e-3,
    };
    branching
        .iter()
        .fold(tree(dim, &[], trees, 0, device), |tree, factor| {
            tree.grow(*factor, &growth)
        })
}

fn integers(tensor: Tensor<3, Int>) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

/// Two examples, the second padded; four query heads on two key heads.
fn input(queries: usize, keys: usize, device: &Device) -> TreeFineInput {
    let cross = TreeFineInput::cross(
        random([2, queries, 4, 6], 1, device) * 2.0,
        random([2, keys, 2, 6], 2, device) * 2.0,
        random([2, keys, 2, 5], 3, device),
    );
    let mask = padding(&[keys, keys - 3], keys, &device.clone().without_autodiff());
    TreeFineInput {
        is_self: queries == keys,
        ..cross
    }
    .mask_pad(mask)
}

const ZERO: TreeFineOptions = TreeFineOptions {
    empty_leaf: EmptyLeaf::Zero,
    surrogate: Surrogate::TopMargin {
        candidates: 1,
        temperature: 1.0,
    },
    causal: None,
    scale: None,
    dropout: None,
};

#[test]
fn context_and_gradients_are_those_of_attention_masked_by_equal_leaves() {
    for (queries, keys, causal) in [
        (9, 9, None),
        (9, 9, Some(0)),
        (5, 11, None),
        (5, 11, Some(6)),
    ] {
        let device = autodiff_device();
        let mut input = input(queries, keys, &device);
        input.query = input.query.require_grad();
        input.key = input.key.require_grad();
        input.value = input.value.require_grad();
        let trees = tree(6, &[2, 3], 2, 5, &device);
        let options = TreeFineOptions { causal, ..ZERO };
        let found = tree_fine(input.clone(), &trees, &trees, options);

        let host = Host::new(&input, &found, causal);
        let expected = host.context();
        let data = |got: Tensor<4>| values(got);
        host::assert_near("context", &data(found.context.clone()), &expected);

        let weights = random(found.context.dims(), 7, &device);
        let gradients = (found.context * weights.clone()).sum().backward();
        let [query, key, value] = host.gradients(&values(weights));
        let grad = |tensor: &Tensor<4>| data(tensor.grad(&gradients).expect("it is read"));
        host::assert_near("gradient of the query", &grad(&input.query), &query);
        host::assert_near("gradient of the key", &grad(&input.key), &key);
        host::assert_near("gradient of the value", &grad(&input.value), &value);
    }
}

#[test]
fn trees_without_weights_give_dense_attention_at_any_height() {
    for branching in [
        &[][..],
        &[2],
        &[2, 2, 2, 2, 2],
        &[4],
        &[5, 3],
        &[2, 3, 2, 2],
    ] {
        let device = device();
        let input = input(7, 10, &device);
        let trees = last_leaf_tree(6, branching, 2, &device);
        let found = tree_fine(input.clone(), &trees, &trees, TreeFineOptions::default());
        let repeat = |rows: Tensor<4>| {
            let [batch, keys, heads, width] = rows.dims();
            rows.reshape([batch, keys, heads, 1, width])
                .repeat_dim(3, 2)
                .reshape([batch, keys, heads * 2, width])
        };
        let dense = dense_attention(
            input.query,
            repeat(input.key),
            repeat(input.value),
            input.key_padding,
            DenseAttentionOptions {
                first_key: 0,
                scale: None,
            },
        );
        assert_close(found.context, dense, 1e-5, 1e-5);
    }
}

#[test]
fn one_tree_for_all_heads_sends_a_token_to_one_leaf() {
    let device = device();
    let mut input = input(9, 9, &device);
    input.key = random([2, 9, 4, 6], 4, &device);
    input.value = random([2, 9, 4, 5], 5, &device);
    let trees = tree(24, &[2, 2], 1, 5, &device);
    let found = tree_fine(input.clone(), &trees, &trees, ZERO);
    assert_eq!(found.query.leaves().dims(), [2, 9, 1]);
    let host = Host::new(&input, &found, None);
    host::assert_near("context", &values(found.context), &host.context());
}

#[test]
fn queries_and_keys_may_have_trees_of_their_own() {
    let device = device();
    let input = input(6, 10, &device);
    let (queries, keys) = (
        tree(6, &[2, 2], 2, 5, &device),
        tree(6, &[2, 2], 2, 6, &device),
    );
    let found = tree_fine(input.clone(), &queries, &keys, ZERO);
    let routed = keys.route(input.key.clone(), input.key_padding.clone());
    assert_eq!(
        integers(found.key.leaves()),
        integers(routed.leaves()),
        "the trees of keys route them"
    );
    let host = Host::new(&input, &found, None);
    host::assert_near("context", &values(found.context), &host.context());
}

#[test]
fn padding_changes_nothing_and_padded_queries_get_zero() {
    let device = device();
    for empty_leaf in POLICIES {
        for causal in [None, Some(0)] {
            let options = TreeFineOptions {
                empty_leaf,
                causal,
                ..TreeFineOptions::default()
            };
            let trees = tree(6, &[2, 2, 2, 2], 2, 5, &device);
            let padded = input(9, 9, &device);
            let short = TreeFineInput::self_attn(
                padded.query.clone().slice([1..2, 0..6]),
                padded.key.clone().slice([1..2, 0..6]),
                padded.value.clone().slice([1..2, 0..6]),
            );
            let padded = tree_fine(padded, &trees, &trees, options).context;
            let short = tree_fine(short, &trees, &trees, options).context;
            assert_close(padded.clone().slice([1..2, 0..6]), short, 1e-5, 1e-5);
            let rest = values(padded.slice([1..2, 6..9]));
            assert!(rest.iter().all(|x| *x == 0.0), "{empty_leaf:?}");
        }
    }
}

#[test]
fn an_example_of_padding_alone_gets_zero_and_finite_gradients() {
    for empty_leaf in POLICIES {
        for surrogate in surrogates() {
            let device = autodiff_device();
            let mask = padding(&[4, 0], 4, &device.clone().without_autodiff());
            let rows = |seed| random([2, 4, 2, 6], seed, &device).require_grad();
            let input = TreeFineInput::self_attn(rows(1), rows(2), rows(3)).mask_pad(mask);
            let trees = tree(6, &[2, 2], 2, 5, &device);
            let options = TreeFineOptions {
                empty_leaf,
                surrogate,
                ..TreeFineOptions::default()
            };
            let context = tree_fine(input.clone(), &trees, &trees, options).context;
            let second = values(context.clone().narrow(0, 1, 1));
            assert!(second.iter().all(|x| *x == 0.0));
            // A large factor: nothing masked may become infinity times zero.
            let gradients = (context * large()).sum().backward();
            for rows in [input.query, input.key, input.value] {
                let gradient = values(rows.grad(&gradients).expect("it is read"));
                assert!(gradient.iter().all(|x| x.is_finite()), "{surrogate:?}");
                assert!(gradient[48..].iter().all(|x| *x == 0.0), "{surrogate:?}");
            }
        }
    }
}

#[test]
fn keys_that_are_all_masked_give_zero_to_queries_that_are_not() {
    let device = device();
    for empty_leaf in [
        EmptyLeaf::Zero,
        EmptyLeaf::AncestorMean,
        EmptyLeaf::AncestorAttend,
    ] {
        let rows = |seed| random([1, 4, 2, 6], seed, &device);
        let input =
            TreeFineInput::cross(rows(1), rows(2), rows(3)).mask_pad(padding(&[0], 4, &device));
        let trees = tree(6, &[2, 2], 2, 5, &device);
        let options = TreeFineOptions {
            empty_leaf,
            ..TreeFineOptions::default()
        };
        let context = values(tree_fine(input, &trees, &trees, options).context);
        assert!(context.iter().all(|x| *x == 0.0));
    }
}

#[test]
fn permuting_the_batch_permutes_the_context() {
    let device = device();
    let input = input(9, 9, &device);
    let trees = tree(6, &[2, 2, 2], 2, 5, &device);
    let swapped = TreeFineInput {
        query: input.query.clone().flip([0]),
        key: input.key.clone().flip([0]),
        value: input.value.clone().flip([0]),
        query_padding: input.query_padding.clone().map(|mask| mask.flip([0])),
        key_padding: input.key_padding.clone().map(|mask| mask.flip([0])),
        is_self: true,
    };
    let options = TreeFineOptions::default();
    let straight = tree_fine(input, &trees, &trees, options).context;
    let swapped = tree_fine(swapped, &trees, &trees, options).context;
    assert_close(swapped.flip([0]), straight, 1e-6, 1e-6);
}

#[test]
fn later_tokens_change_nothing_before_them_under_the_causal_rule() {
    let device = device();
    let trees = tree(6, &[2, 2, 2], 2, 5, &device);
    for empty_leaf in POLICIES {
        let options = TreeFineOptions {
            empty_leaf,
            causal: Some(0),
            ..TreeFineOptions::default()
        };
        let rows = |seed| random([2, 8, 2, 6], seed, &device);
        let before = TreeFineInput::self_attn(rows(1), rows(2), rows(3));
        let replace = |rows: Tensor<4>, seed| {
            rows.slice_assign([0..2, 5..8], random([2, 3, 2, 6], seed, &device))
        };
        let after = TreeFineInput::self_attn(
            replace(before.query.clone(), 11),
            replace(before.key.clone(), 12),
            replace(before.value.clone(), 13),
        );
        let first = |input| {
            tree_fine(input, &trees, &trees, options)
                .context
                .slice([0..2, 0..5])
        };
        assert_close(first(after), first(before), 1e-6, 1e-6);
    }
}

#[test]
fn training_sees_the_values_of_inference_bit_for_bit() {
    for surrogate in surrogates().into_iter().take(3) {
        for empty_leaf in POLICIES {
            let options = TreeFineOptions {
                surrogate,
                empty_leaf,
                ..TreeFineOptions::default()
            };
            let run = |device: &Device| {
                let trees = tree(6, &[2, 2, 2], 2, 5, device);
                values(tree_fine(input(9, 9, device), &trees, &trees, options).context)
            };
            assert_eq!(run(&autodiff_device()), run(&device()), "{surrogate:?}");
        }
    }
}

#[test]
fn half_precision_follows_single_precision() {
    let device = autodiff_device();
    if !device.supports_dtype(DType::F16) {
        arbora_testing::skip("the device has no half precision");
        return;
    }
    // Numbers that both hold exactly, so that both are routed alike.
    let half = |rows: Tensor<4>| rows.cast(DType::F16);
    let exact = |rows: Tensor<4>| half(rows).cast(DType::F32);
    for surrogate in surrogates() {
        let trees = tree(6, &[2, 2, 2], 2, 5, &device);
        let single = input(9, 9, &device);
        let single = TreeFineInput {
            query: exact(single.query),
            key: exact(single.key),
            value: exact(single.value),
            ..single
        };
        let halved = TreeFineInput {
            query: half(single.query.clone()).detach().require_grad(),
            key: half(single.key.clone()),
            value: half(single.value.clone()),
            ..single.clone()
        };
        let options = TreeFineOptions {
            surrogate,
            ..TreeFineOptions::default()
        };
        let expected = tree_fine(single, &trees, &trees, options).context;
        let found = tree_fine(halved.clone(), &trees, &trees, options).context;
        assert_eq!(found.dtype(), DType::F16);
        assert_close(found.clone().cast(DType::F32), expected, 1e-2, 1e-2);
        let gradients = found.sum().backward();
        let gradient = halved.query.grad(&gradients).expect("it is read");
        let gradient = values(gradient.cast(DType::F32));
        assert!(gradient.iter().all(|x| x.is_finite()));
    }
}

#[test]
#[should_panic(expected = "tree_fine: empty_leaf: expected another policy than self-key")]
fn self_key_is_refused_in_cross_attention() {
    let trees = tree(6, &[2], 2, 5, &device());
    let options = TreeFineOptions {
        empty_leaf: EmptyLeaf::SelfKey,
        ..ZERO
    };
    tree_fine(input(5, 7, &device()), &trees, &trees, options);
}

#[test]
#[should_panic(expected = "tree_fine: shape of the trees of keys")]
fn trees_of_different_shapes_are_refused() {
    let (queries, keys) = (
        tree(6, &[2], 2, 5, &device()),
        tree(6, &[3], 2, 5, &device()),
    );
    tree_fine(input(5, 7, &device()), &queries, &keys, ZERO);
}

#[test]
#[should_panic(expected = "tree_fine: width of the tree: expected 6")]
fn trees_of_another_width_are_refused() {
    let trees = tree(5, &[2], 2, 5, &device());
    tree_fine(input(5, 7, &device()), &trees, &trees, ZERO);
}

const POLICIES: [EmptyLeaf; 4] = [
    EmptyLeaf::Zero,
    EmptyLeaf::AncestorMean,
    EmptyLeaf::AncestorAttend,
    EmptyLeaf::SelfKey,
];

fn surrogates() -> [Surrogate; 4] {
    [
        Surrogate::TopMargin {
            candidates: 2,
            temperature: 1.0,
        },
        Surrogate::TopMargin {
            candidates: 4,
            temperature: 0.5,
        },
        Surrogate::DenseGradient {
            temperature: 1.0,
            clip: 1.0,
            scale: None,
        },
        Surrogate::Soft { temperature: 0.5 },
    ]
}
