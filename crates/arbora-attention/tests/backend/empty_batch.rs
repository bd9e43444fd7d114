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
use arbora_testing::{assert_refuses_nothing, device};
use arbora_tree::routing::RoutingTreeConfig;
use arbora_tree::{Layout, MeanAggregator, TokenOrder, TokenTree, TokenTreeShape};
use burn::tensor::{Int, Tensor};

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
    assert_refuses_nothing("tree_search", || {
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
    assert_refuses_nothing("dense_attention", || {
        let options = DenseAttentionOptions {
            first_key: 0,
            scale: None,
        };
        drop(dense_attention(rows(), rows(), rows(), None, options));
    });
    assert_refuses_nothing("leaf_attention", || {
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
    assert_refuses_nothing("tree_fine", || {
        let input = TreeFineInput::self_attn(rows(), rows(), rows());
        drop(tree_fine(input, &tree, &tree, TreeFineOptions::default()));
    });
    assert_refuses_nothing("tree_coarse", || {
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
    assert_refuses_nothing("prefix_attention", || {
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
        assert_refuses_nothing("self_attention", || {
            drop(layer.forward(SelfAttentionInput::new(tokens())))
        });
        assert_refuses_nothing("its cache", || drop(layer.cache(0, &device())));
    }
    let layer = TreeCrossAttentionConfig::new(8, 2).init(&device());
    let attention = &layer.attention;
    assert_refuses_nothing("attend", || {
        drop(attention.attend(tokens(), tokens(), None))
    });
    assert_refuses_nothing("queries", || drop(attention.project_queries(tokens())));
}

#[test]
fn trees_of_tokens_refuse_a_batch_of_nothing() {
    let shape = TokenTreeShape::new(5, 2, Layout::LeftFilled);
    assert_refuses_nothing("order", || {
        drop(TokenOrder::Given.permutation(&tokens(), None, &shape))
    });
    assert_refuses_nothing("build", || {
        let order = Tensor::zeros([0, 5], &device());
        drop(TokenTree::build(
            tokens(),
            None,
            order,
            shape,
            &MeanAggregator,
        ));
    });
    assert_refuses_nothing("empty", || drop(TokenTree::empty(0, 8, shape, &device())));
    assert_refuses_nothing("from_nodes", || {
        let nodes = Tensor::zeros([0, shape.nodes(), 8], &device());
        drop(TokenTree::from_nodes(nodes, Vec::new(), shape));
    });
}
