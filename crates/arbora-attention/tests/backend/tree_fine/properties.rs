//! What holds for all trees and masks.

use super::empty_leaf::expected;
use super::host::{self, Host};
use super::{POLICIES, tree};
use arbora_attention::EmptyLeaf;
use arbora_attention::functions::{TreeFineInput, TreeFineOptions, tree_fine};
use arbora_testing::{assert_close, autodiff_device, device, padding, random, values};
use arbora_tree::{RoutingTree, Surrogate};
use burn::tensor::{Device, Tensor};
use proptest::prelude::*;

proptest! {
    // Few and small: on the CPU driver of Vulkan every new shape compiles a kernel.
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_gives_masked_dense_attention(
        branching in proptest::collection::vec(2_usize..5, 0..4),
        policy in 0_usize..4,
        (queries, earlier) in (1_usize..9, 0_usize..4),
        (cut, is_self, causal) in (0_usize..9, any::<bool>(), any::<bool>()),
        (kv_heads, group, seed) in (1_usize..3, 1_usize..3, 0_u64..1000),
    ) {
        let device = device();
        let keys = if is_self { queries } else { queries + earlier };
        let empty_leaf = match POLICIES[policy] {
            EmptyLeaf::SelfKey if !is_self => EmptyLeaf::AncestorMean,
            policy => policy,
        };
        let causal = causal.then(|| keys - queries);
        let rows = |count, heads, width, seed| random([2, count, heads, width], seed, &device) * 2.0;
        let input = TreeFineInput {
            is_self,
            ..TreeFineInput::cross(
                rows(queries, kv_heads * group, 4, seed),
                rows(keys, kv_heads, 4, seed + 1),
                rows(keys, kv_heads, 3, seed + 2),
            )
        };
        let input = input.mask_pad(padding(&[keys, keys.saturating_sub(cut)], keys, &device));
        let (asked, found) = (
            tree(4, &branching, kv_heads, seed, &device),
            tree(4, &branching, kv_heads, seed + 1, &device),
        );
        let options = TreeFineOptions { empty_leaf, causal, ..TreeFineOptions::default() };
        let output = tree_fine(input.clone(), &asked, &found, options);
        let host = Host::new(&input, &output, causal);
        let expected = expected(&host, &branching, empty_leaf);
        host::assert_near("context", &values(output.context), &expected);
    }
}

/// Gradients of the first contexts, in the order of rows: of queries, keys, values, then of trees.
fn gradients(rows: [Tensor<4>; 3], trees: &RoutingTree, options: TreeFineOptions) -> Earlier {
    let [query, key, value] = rows.map(|rows| rows.require_grad());
    let input = TreeFineInput::self_attn(query.clone(), key.clone(), value.clone());
    let context = tree_fine(input, trees, trees, options).context;
    let first = context.slice([0..2, 0..EARLIER]);
    let weights = random(first.dims(), 9, &first.device());
    let gradients = (first.clone() * weights).sum().backward();
    let levels = trees.levels().iter();
    Earlier {
        context: first.without_autodiff(),
        rows: [query, key, value].map(|rows| rows.grad(&gradients).expect("it is read")),
        trees: levels
            .map(|level| level.weight.grad(&gradients).expect("trees learn"))
            .collect(),
    }
}

/// Tokens that are the same in both calls of a test.
const EARLIER: usize = 5;

struct Earlier {
    context: Tensor<4>,
    rows: [Tensor<4>; 3],
    trees: Vec<Tensor<3>>,
}

#[test]
fn a_training_under_the_causal_rule_learns_nothing_from_later_tokens() {
    let device = autodiff_device();
    for surrogate in [
        Surrogate::TopMargin {
            candidates: 3,
            temperature: 1.0,
        },
        Surrogate::Soft { temperature: 0.5 },
    ] {
        for empty_leaf in POLICIES {
            let options = TreeFineOptions {
                empty_leaf,
                surrogate,
                causal: Some(0),
                ..TreeFineOptions::default()
            };
            let trees = tree(6, &[2, 2, 2], 2, 5, &device);
            let before = gradients(tokens(false, &device), &trees, options);
            let after = gradients(tokens(true, &device), &trees, options);
            assert_close(after.context, before.context, 1e-6, 1e-6);
            for (after, before) in after.rows.into_iter().zip(before.rows) {
                let first = |rows: Tensor<4>| rows.slice([0..2, 0..EARLIER]);
                assert_close(first(after.clone()), first(before), 1e-5, 1e-5);
                let later = values(after.slice([0..2, EARLIER..8]));
                assert!(later.iter().all(|x| *x == 0.0), "{surrogate:?}: {later:?}");
            }
            for (after, before) in after.trees.into_iter().zip(before.trees) {
                assert!(values(before.clone()).iter().any(|x| x.abs() > 1e-3));
                assert_close(after, before, 1e-5, 1e-5);
            }
        }
    }
}

/// Queries, keys and values of eight tokens, the last of which may be others.
fn tokens(are_others: bool, device: &Device) -> [Tensor<4>; 3] {
    [1, 2, 3].map(|seed| {
        let rows = random([2, 8, 2, 6], seed, device);
        let others = random([2, 8 - EARLIER, 2, 6], seed + 10, device) * 3.0;
        if are_others {
            rows.slice_assign([0..2, EARLIER..8], others)
        } else {
            rows
        }
    })
}
