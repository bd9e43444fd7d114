//! Index arithmetic of trees.

use arbora_tree::{CompleteTree, Layout, TokenTreeShape};
use proptest::prelude::*;

fn layouts() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::LeftFilled), Just(Layout::Published)]
}

#[test]
fn published_layout_has_the_published_levels_and_leaf_groups() {
    // (N, b, k, P, slots), from the formulas of the published method.
    for (tokens, branching, decisions, group, slots) in [
        (46, 4, 2, 3, 48),
        (128, 2, 6, 2, 128),
        (129, 2, 7, 2, 256),
        (197, 2, 7, 2, 256),
        (47, 2, 5, 2, 64),
        (8193, 2, 13, 2, 16384),
        (4, 4, 0, 4, 4),
        (2, 2, 0, 2, 2),
    ] {
        let shape = TokenTreeShape::new(tokens, branching, Layout::Published);
        assert_eq!(
            shape.decisions(),
            decisions,
            "N = {tokens}, b = {branching}"
        );
        assert_eq!(shape.leaf_group(), group, "N = {tokens}, b = {branching}");
        assert_eq!(shape.width(0), slots, "N = {tokens}, b = {branching}");
    }
}

#[test]
fn one_token_is_a_root_without_decisions() {
    for layout in [Layout::LeftFilled, Layout::Published] {
        let shape = TokenTreeShape::new(1, 3, layout);
        assert_eq!(
            (shape.height(), shape.decisions(), shape.nodes()),
            (0, 0, 1)
        );
        assert_eq!(shape.parent(0, 0), None);
    }
}

#[test]
fn left_filled_counts_only_nodes_over_tokens() {
    let shape = TokenTreeShape::new(7, 3, Layout::LeftFilled);
    let widths: Vec<_> = (0..=shape.height()).map(|h| shape.width(h)).collect();
    assert_eq!(widths, [7, 3, 1]);
    assert_eq!(shape.children(1, 2), 6..7);
    assert_eq!(shape.first_leaves(), [0, 0, 3, 6, 0, 1, 2, 3, 4, 5, 6]);
}

#[test]
#[should_panic(expected = "branching factor: expected at least 2, got 1")]
fn branching_of_one_is_refused() {
    TokenTreeShape::new(4, 1, Layout::LeftFilled);
}

#[test]
fn no_arithmetic_overflows_at_the_largest_sizes() {
    let shape = TokenTreeShape::new(usize::MAX, 2, Layout::LeftFilled);
    assert_eq!(shape.height(), usize::BITS as usize);
    assert_eq!(shape.leaves(shape.height(), 0), 0..usize::MAX);
}

#[test]
fn complete_tree_refuses_no_children_and_uncountable_nodes() {
    assert!(CompleteTree::try_from(vec![2, 0]).is_err());
    assert!(CompleteTree::try_from(vec![2; 64]).is_err());
    assert_eq!(CompleteTree::new(Vec::new()).nodes(), 1);
}

proptest! {
    #[test]
    fn children_of_a_level_partition_the_level_below(
        tokens in 1usize..400, branching in 2usize..6, layout in layouts(),
    ) {
        let shape = TokenTreeShape::new(tokens, branching, layout);
        prop_assert_eq!(shape.width(shape.height()), 1);
        for height in 1..=shape.height() {
            let mut next = 0;
            for index in 0..shape.width(height) {
                let children = shape.children(height, index);
                prop_assert_eq!(children.start, next);
                prop_assert!(children.len() <= shape.group(height));
                for child in children.clone() {
                    prop_assert_eq!(shape.parent(height - 1, child), Some(index));
                }
                let tokens_below: usize =
                    children.clone().map(|c| shape.leaves(height - 1, c).len()).sum();
                prop_assert_eq!(tokens_below, shape.leaves(height, index).len());
                next = children.end;
            }
            prop_assert_eq!(next, shape.width(height - 1));
        }
    }

    #[test]
    fn positions_count_nodes_in_level_order(
        tokens in 1usize..400, branching in 2usize..6, layout in layouts(),
    ) {
        let shape = TokenTreeShape::new(tokens, branching, layout);
        let first_leaves = shape.first_leaves();
        prop_assert_eq!(first_leaves.len(), shape.nodes());
        for (position, first_leaf) in first_leaves.into_iter().enumerate() {
            let (height, index) = shape.node_at(position);
            prop_assert_eq!(shape.position(height, index), position);
            prop_assert_eq!(first_leaf, index * shape.span(height));
        }
    }

    #[test]
    fn siblings_along_a_path_and_the_last_leaves_cover_every_token_once(
        tokens in 1usize..300, branching in 2usize..6, layout in layouts(), pick in 0usize..300,
    ) {
        let shape = TokenTreeShape::new(tokens, branching, layout);
        let leaf = pick % tokens;
        let mut covered = vec![0; tokens];
        for height in (2..=shape.height()).rev() {
            let chosen = shape.ancestor(leaf, height - 1);
            for child in shape.children(height, shape.ancestor(leaf, height)) {
                if child != chosen {
                    shape.leaves(height - 1, child).for_each(|token| covered[token] += 1);
                }
            }
        }
        let last = shape.height().min(1);
        shape.leaves(last, shape.ancestor(leaf, last)).for_each(|token| covered[token] += 1);
        prop_assert!(covered.iter().all(|count| *count == 1));
    }

    #[test]
    fn a_shorter_left_filled_tree_is_the_left_part_of_a_longer_one(
        short in 1usize..200, more in 0usize..200, branching in 2usize..6,
    ) {
        let shorter = TokenTreeShape::new(short, branching, Layout::LeftFilled);
        let longer = TokenTreeShape::new(short + more, branching, Layout::LeftFilled);
        for height in 0..=shorter.height() {
            for index in 0..shorter.width(height) {
                let all = longer.leaves(height, index);
                prop_assert_eq!(
                    shorter.leaves(height, index),
                    all.start..all.end.min(short)
                );
            }
        }
    }

    #[test]
    fn layouts_agree_on_real_nodes_for_two_children(tokens in 1usize..600) {
        let left = TokenTreeShape::new(tokens, 2, Layout::LeftFilled);
        let published = TokenTreeShape::new(tokens, 2, Layout::Published);
        prop_assert_eq!(left.height(), published.height());
        for height in 0..=left.height() {
            let real = (0..published.width(height))
                .filter(|index| !published.leaves(height, *index).is_empty())
                .count();
            prop_assert_eq!(real, left.width(height));
        }
    }

    #[test]
    fn complete_tree_paths_and_leaves_invert_each_other(
        branching in proptest::collection::vec(1usize..4, 0..5), pick in 0usize..1000,
    ) {
        let tree = CompleteTree::new(branching);
        let leaf = pick % tree.leaves();
        let path = tree.path(leaf);
        prop_assert_eq!(tree.leaf(&path), leaf);
        let mut index = 0;
        for (depth, child) in path.iter().enumerate() {
            let children = tree.children(depth, index);
            index = children.start + child;
            prop_assert!(children.contains(&index));
            prop_assert!(tree.offset(depth + 1) + index < tree.nodes());
        }
        prop_assert_eq!(index, leaf);
    }
}
