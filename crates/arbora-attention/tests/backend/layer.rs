//! The layer.

use crate::mean_tree;
use crate::two_pass::layer;
use arbora_attention::{GhostNodes, Route, TreeCrossAttentionConfig, flops};
use arbora_testing::{assert_close, autodiff_device, device, large, padding, random, values};
use arbora_tree::Layout;
use burn::tensor::Tensor;

#[test]
fn keys_and_values_are_projected_once_per_tree_and_queries_once_per_search() {
    let layer = layer(GhostNodes::Masked, &device());
    let tree = mean_tree(
        random([2, 9, 6], 1, &device()),
        &[9, 5],
        2,
        Layout::LeftFilled,
    );
    let nodes = 2 * tree.shape().nodes();
    let (index, indexing) = flops::count(|| layer.index(&tree));
    let only_nodes = flops::Projections {
        key: nodes,
        value: nodes,
        ..Default::default()
    };
    assert_eq!(indexing, only_nodes);
    for _ in 0..2 {
        let queries = random([2, 4, 6], 2, &device());
        let (_, searching) = flops::count(|| layer.search(queries, &index, Route::Greedy));
        let only_queries = flops::Projections {
            query: 8,
            output: 8,
            ..Default::default()
        };
        assert_eq!(searching, only_queries);
    }
}

#[test]
fn attending_to_leaves_is_dense_attention_to_the_tokens() {
    let layer = layer(GhostNodes::Masked, &device());
    let tokens = random([2, 9, 6], 1, &device());
    let queries = random([2, 4, 6], 2, &device());
    for layout in [Layout::LeftFilled, Layout::Published] {
        let tree = mean_tree(tokens.clone(), &[9, 5], 2, layout);
        let leaves = layer.attend_leaves(queries.clone(), &layer.index(&tree));
        let mask = padding(&[9, 5], 9, &device());
        let dense = layer
            .attention
            .attend(queries.clone(), tokens.clone(), Some(mask));
        assert_close(leaves, dense, 1e-5, 1e-5);
    }
}

#[test]
fn forward_searches_a_binary_tree_of_means_greedily() {
    let layer = layer(GhostNodes::Masked, &device());
    for tokens in [1, 9] {
        let context = random([2, tokens, 6], 1, &device());
        let queries = random([2, 4, 6], 2, &device());
        let tree = mean_tree(context.clone(), &[tokens; 2], 2, Layout::LeftFilled);
        let expected = layer.search(queries.clone(), &layer.index(&tree), Route::Greedy);
        let found = layer.forward(queries, context);
        assert_close(found.context, expected.context, 0.0, 0.0);
        assert_close(found.path.float(), expected.path.float(), 0.0, 0.0);
    }
}

#[test]
fn queries_that_are_projected_already_find_the_same() {
    let layer = layer(GhostNodes::Masked, &device());
    let tree = mean_tree(
        random([2, 9, 6], 1, &device()),
        &[9, 5],
        2,
        Layout::LeftFilled,
    );
    let index = layer.index(&tree);
    let queries = random([2, 4, 6], 2, &device());
    let projected = layer.attention.project_queries(queries.clone());
    let raw = layer.search(queries.clone(), &index, Route::Greedy);
    let found = layer.search(projected.clone(), &index, Route::Greedy);
    assert_close(found.context, raw.context, 0.0, 0.0);
    let leaves = layer.attend_leaves(projected, &index);
    assert_close(leaves, layer.attend_leaves(queries, &index), 0.0, 0.0);
}

#[test]
fn a_search_that_covers_all_leaves_equals_dense_attention() {
    let layer = layer(GhostNodes::Masked, &device());
    let tokens = random([2, 5, 6], 1, &device());
    let queries = random([2, 4, 6], 2, &device());
    let tree = mean_tree(tokens.clone(), &[5, 3], 5, Layout::LeftFilled);
    let index = layer.index(&tree);
    let searched = layer.search(queries.clone(), &index, Route::Greedy).context;
    assert_close(searched, layer.attend_leaves(queries, &index), 1e-5, 1e-5);
}

#[test]
fn queries_without_any_token_get_a_zero_attention_output_and_finite_gradients() {
    let layer = layer(GhostNodes::Masked, &autodiff_device());
    let tokens = random([2, 3, 6], 1, &autodiff_device()).require_grad();
    let queries = random([2, 2, 6], 2, &autodiff_device());
    let mask = padding(&[3, 0], 3, &device());
    let output = layer
        .attention
        .attend(queries.clone(), tokens.clone(), Some(mask));
    // What is left without attention: the output's bias and the two residuals.
    let bias = layer.attention.output.bias.as_ref().unwrap().val();
    let alone = bias.reshape([1, 1, 6]) + layer.attention.norm.forward(queries.clone()) + queries;
    let second = |rows: Tensor<3>| rows.slice([1..2, 0..2, 0..6]);
    assert_close(second(output.clone()), second(alone), 1e-5, 1e-5);
    // A large factor: the masked rows must not turn it into infinity times zero.
    let gradients = (output * large()).sum().backward();
    let gradient = values(tokens.grad(&gradients).unwrap());
    assert!(gradient.iter().all(|x| x.is_finite()));
    assert!(gradient[18..].iter().all(|x| *x == 0.0));
}

#[test]
#[should_panic(expected = "pre_norm_attention: n_heads: expected a divisor of 6, got 4")]
fn heads_must_divide_the_width() {
    TreeCrossAttentionConfig::new(6, 4).init(&device());
}

#[test]
#[should_panic(expected = "pre_norm_attention: axis 2 of queries: expected 6, got 5")]
fn queries_of_another_width_are_refused() {
    let layer = layer(GhostNodes::Masked, &device());
    let tree = mean_tree(random([1, 4, 6], 1, &device()), &[4], 2, Layout::LeftFilled);
    layer.search(
        random([1, 2, 5], 2, &device()),
        &layer.index(&tree),
        Route::Greedy,
    );
}
