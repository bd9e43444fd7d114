//! Batches of no example, which not every backend takes: refused in the same words wherever one comes in.

use arbora_attention::functions::{
    LeafAttentionInput, TreeCoarseOptions, TreeFineInput, TreeFineOptions, dense_attention,
    leaf_attention, prefix_attention, tree_coarse, tree_fine, tree_search,
};
use arbora_attention::ops::{DenseAttentionOptions, LeafAttentionOptions, TreeSearchOptions};
use arbora_attention::{
    AttentionKindConfig, Route, SelfAttentionConfig, SelfAttentionInput, TreeCoarseConfig,
    TreeCrossAttentionConfig, TreeFineConfig,
};
use arbora_testing::device;
use arbora_tree::routing::RoutingTreeConfig;
use arbora_tree::{Layout, MeanAggregator, TokenOrder, TokenTree, TokenTreeShape};
use burn::tensor::{Int, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};

#[track_caller]
fn refused(what: &str, call: impl FnOnce()) {
    let message = catch_unwind(AssertUnwindSafe(call)).expect_err(what);
    let message = message.downcast_ref::<String>().expect("a sentence");
    assert!(
        message.ends_with("expected at least 1, got 0"),
        "{what}: {message}"
    );
}

fn rows() -> Tensor<4> {
    Tensor::zeros([0, 5, 2, 4], &device())
}

fn tokens() -> Tensor<3> {
    Tensor::zeros([0, 5, 8], &device())
}

#[test]
fn functions_refuse_a_batch_of_nothing() {
    let shape = TokenTreeShape::new(5, 2, Layout::LeftFilled);
    let none = || Tensor::<1, Int>::zeros([0], &device());
    let leaves = || Tensor::<3, Int>::zeros([0, 5, 2], &device());
    let tree = RoutingTreeConfig::new(4, vec![2]).init(&device());
    refused("tree_search", || {
        let key = Tensor::zeros([0, shape.nodes(), 2, 4], &device());
        let options = TreeSearchOptions::new(shape);
        drop(tree_search(
            rows(),
            key.clone(),
            key,
            none(),
            Route::Greedy,
            options,
        ));
    });
    refused("dense_attention", || {
        let options = DenseAttentionOptions {
            first_key: 0,
            scale: None,
        };
        drop(dense_attention(rows(), rows(), rows(), None, options));
    });
    refused("leaf_attention", || {
        let input = LeafAttentionInput {
            query: rows(),
            key: rows(),
            value: rows(),
            query_leaf: leaves(),
            key_leaf: leaves(),
            key_bias: None,
        };
        drop(leaf_attention(input, LeafAttentionOptions::new(2)));
    });
    refused("tree_fine", || {
        let input = TreeFineInput::self_attn(rows(), rows(), rows());
        drop(tree_fine(input, &tree, &tree, TreeFineOptions::default()));
    });
    refused("tree_coarse", || {
        let alpha = Tensor::ones([1, 2], &device());
        let options = TreeCoarseOptions::default();
        drop(tree_coarse(
            leaves(),
            leaves(),
            rows(),
            alpha,
            tree.shape(),
            options,
        ));
    });
    refused("prefix_attention", || {
        drop(prefix_attention(rows(), rows(), rows()))
    });
}

#[test]
fn layers_refuse_a_batch_of_nothing() {
    for kind in [
        AttentionKindConfig::Dense,
        AttentionKindConfig::TreeFine(TreeFineConfig::new([2])),
        AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([2])),
    ] {
        let layer = SelfAttentionConfig::new(8, 2)
            .with_kind(kind.clone())
            .init(&device());
        refused("self_attention", || {
            drop(layer.forward(SelfAttentionInput::new(tokens())))
        });
        refused("its cache", || drop(layer.cache(0, &device())));
    }
    let layer = TreeCrossAttentionConfig::new(8, 2).init(&device());
    let attention = &layer.attention;
    refused("attend", || {
        drop(attention.attend(tokens(), tokens(), None))
    });
    refused("queries", || drop(attention.project_queries(tokens())));
}

#[test]
fn trees_of_tokens_refuse_a_batch_of_nothing() {
    let shape = TokenTreeShape::new(5, 2, Layout::LeftFilled);
    refused("order", || {
        drop(TokenOrder::Given.permutation(&tokens(), None, &shape))
    });
    refused("build", || {
        let order = Tensor::zeros([0, 5], &device());
        drop(TokenTree::build(
            tokens(),
            None,
            order,
            shape,
            &MeanAggregator,
        ));
    });
    refused("empty", || drop(TokenTree::empty(0, 8, shape, &device())));
    refused("from_nodes", || {
        let nodes = Tensor::zeros([0, shape.nodes(), 8], &device());
        drop(TokenTree::from_nodes(nodes, Vec::new(), shape));
    });
}
