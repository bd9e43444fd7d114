//! Indices that grow and change with their trees.

use crate::mean_tree;
use crate::two_pass::layer;
use arbora_attention::{
    GhostNodes, Route, StreamingIndex, TreeCrossAttention, TreeCrossAttentionConfig, flops,
};
use arbora_testing::{assert_close, device, padding, random};
use arbora_tree::{Layout, MeanAggregator, StreamError, TokenTree, TokenTreeShape};
use burn::tensor::Tensor;

fn empty(layer: &TreeCrossAttention, batch: usize, branching: usize) -> StreamingIndex {
    let shape = TokenTreeShape::new(1, branching, Layout::LeftFilled);
    layer.stream(TokenTree::empty(batch, 6, shape, &device()))
}

/// Tokens `from..to` of every example.
fn part(tokens: &Tensor<3>, from: usize, to: usize) -> Tensor<3> {
    tokens.clone().narrow(1, from, to - from)
}

/// Searches and dense attention give what they give over an index made at once, of a tree without
/// room to grow.
fn assert_same_answers(
    layer: &TreeCrossAttention,
    memory: &StreamingIndex,
    tokens: Tensor<3>,
    lengths: &[usize],
) {
    let branching = memory.tree().shape().branching();
    let tree = mean_tree(tokens, lengths, branching, Layout::LeftFilled);
    let index = layer.index(&tree);
    let queries = random([lengths.len(), 4, 6], 2, &device());
    let got = layer.search(queries.clone(), memory.index(), Route::Greedy);
    let expected = layer.search(queries.clone(), &index, Route::Greedy);
    assert_close(got.context, expected.context, 1e-5, 1e-5);
    assert_close(got.log_prob, expected.log_prob, 1e-5, 1e-5);
    assert_close(got.entropy.unwrap(), expected.entropy.unwrap(), 1e-5, 1e-5);
    assert_close(got.selected.float(), expected.selected.float(), 0.0, 0.0);
    assert_close(
        layer.attend_leaves(queries.clone(), memory.index()),
        layer.attend_leaves(queries, &index),
        1e-5,
        1e-5,
    );
}

#[test]
fn appended_and_replaced_tokens_are_found_as_in_an_index_made_at_once() {
    let layer = layer(GhostNodes::Masked, &device());
    for branching in [2, 3] {
        let mut tokens = random([2, 9, 6], 1, &device());
        let mut memory = empty(&layer, 2, branching);
        let append = |memory: &mut StreamingIndex, from, to, counts: &[usize]| {
            let new = part(&tokens, from, to);
            memory
                .append_ragged(&layer, new, counts, &MeanAggregator)
                .unwrap();
        };
        append(&mut memory, 0, 2, &[2, 2]);
        append(&mut memory, 2, 3, &[1, 0]);
        append(&mut memory, 3, 9, &[6, 0]);
        assert_same_answers(&layer, &memory, tokens.clone(), &[9, 2]);
        let new = random([2, 6], 3, &device());
        memory
            .update(&layer, &[(1, 1), (0, 4)], new.clone(), &MeanAggregator)
            .unwrap();
        for (row, (example, token)) in [(1, 1), (0, 4)].into_iter().enumerate() {
            let new = new.clone().narrow(0, row, 1).unsqueeze_dim::<3>(0);
            tokens = tokens.slice_assign([example..example + 1, token..token + 1, 0..6], new);
        }
        assert_same_answers(&layer, &memory, tokens, &[9, 2]);
    }
}

#[test]
fn room_changes_no_answer() {
    let layer = layer(GhostNodes::Masked, &device());
    let tokens = random([2, 5, 6], 1, &device());
    let tree = mean_tree(tokens.clone(), &[5, 3], 2, Layout::LeftFilled);
    let mut memory = layer.stream(tree);
    memory.reserve(&layer, 40, &MeanAggregator).unwrap();
    assert_eq!(memory.tree().capacity(), 40);
    assert_same_answers(&layer, &memory, tokens, &[5, 3]);
}

#[test]
fn an_append_projects_the_new_leaves_and_their_ancestors() {
    let layer = layer(GhostNodes::Masked, &device());
    for tokens in [16, 64, 256] {
        let tree = mean_tree(
            random([1, tokens, 6], 1, &device()),
            &[tokens - 5],
            2,
            Layout::LeftFilled,
        );
        let height = tree.shape().height();
        let mut memory = layer.stream(tree);
        let one = random([1, 1, 6], 2, &device());
        let (_, work) = flops::count(|| memory.append(&layer, one.clone(), &MeanAggregator));
        let projected = height + 1;
        let only = |rows| flops::Projections {
            key: rows,
            value: rows,
            ..Default::default()
        };
        assert_eq!(work, only(projected));
        // Four leaves side by side: two parents, and one node on each level above.
        let four = random([1, 4, 6], 3, &device());
        let (_, work) = flops::count(|| memory.append(&layer, four, &MeanAggregator));
        assert_eq!(work, only(4 + 2 + height - 1));
        let token = one.squeeze_dim::<2>(0);
        let (_, work) = flops::count(|| memory.update(&layer, &[(0, 7)], token, &MeanAggregator));
        assert_eq!(work, only(projected));
    }
}

#[test]
fn an_index_without_tokens_gives_a_zero_attention_output() {
    let layer = layer(GhostNodes::Masked, &device());
    let memory = empty(&layer, 1, 2);
    let queries = random([1, 3, 6], 2, &device());
    // What is left without attention: the output's bias and the two residuals.
    let mask = padding(&[0], 1, &device());
    let nothing =
        layer
            .attention
            .attend(queries.clone(), random([1, 1, 6], 1, &device()), Some(mask));
    let found = layer.search(queries.clone(), memory.index(), Route::Greedy);
    assert_close(found.context, nothing.clone(), 1e-5, 1e-5);
    assert!(
        found
            .selected
            .into_data()
            .iter::<i64>()
            .all(|count| count == 0)
    );
    assert_close(
        layer.attend_leaves(queries, memory.index()),
        nothing,
        1e-5,
        1e-5,
    );
}

#[test]
fn a_snapshot_outlives_later_appends() {
    let layer = layer(GhostNodes::Masked, &device());
    let tokens = random([1, 7, 6], 1, &device());
    let mut memory = empty(&layer, 1, 2);
    memory
        .append(&layer, part(&tokens, 0, 4), &MeanAggregator)
        .unwrap();
    let snapshot = memory.index().clone();
    let queries = random([1, 3, 6], 2, &device());
    let before = layer.search(queries.clone(), &snapshot, Route::Greedy);
    memory
        .append(&layer, part(&tokens, 4, 7), &MeanAggregator)
        .unwrap();
    let after = layer.search(queries, &snapshot, Route::Greedy);
    assert_close(after.context, before.context, 1e-6, 1e-6);
    assert_same_answers(&layer, &memory, tokens, &[7]);
}

#[test]
fn a_refused_append_leaves_trees_and_index_as_they_were() {
    let layer = layer(GhostNodes::Masked, &device());
    let tokens = random([1, 5, 6], 1, &device());
    let mut memory = empty(&layer, 1, 2).with_max_tokens(3);
    memory
        .append(&layer, part(&tokens, 0, 3), &MeanAggregator)
        .unwrap();
    let error = memory
        .append(&layer, part(&tokens, 3, 4), &MeanAggregator)
        .unwrap_err();
    assert_eq!(
        error,
        StreamError::Full {
            example: 0,
            length: 3,
            appended: 1,
            max_tokens: 3
        }
    );
    assert_same_answers(&layer, &memory, part(&tokens, 0, 3), &[3]);
}

#[test]
#[should_panic(expected = "tree_cross_attention: the index is not of this layer")]
fn an_append_with_another_layer_is_refused() {
    let mut memory = empty(&layer(GhostNodes::Masked, &device()), 1, 2);
    let other = TreeCrossAttentionConfig::new(6, 2).init(&device());
    let _ = memory.append(&other, random([1, 1, 6], 1, &device()), &MeanAggregator);
}
