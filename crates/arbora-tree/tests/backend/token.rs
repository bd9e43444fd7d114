//! Trees over tokens.

use arbora_testing::{allowed, assert_close, autodiff_device, device, padding, random, values};
use arbora_tree::{Layout, MeanAggregator, TokenOrder, TokenTree, TokenTreeShape};
use burn::tensor::{DType, Int, Tensor};

fn tree(tokens: Tensor<3>, lengths: &[usize], branching: usize, layout: Layout) -> TokenTree {
    let [_, count, _] = tokens.dims();
    let shape = TokenTreeShape::new(count, branching, layout);
    let mask = padding(lengths, count, &device());
    let order = TokenOrder::Given.permutation(&tokens, Some(&mask), &shape);
    TokenTree::build(tokens, Some(mask), order, shape, &MeanAggregator)
}

/// The mean of the leaves below a node, by hand.
fn expected_node(
    tokens: &[f32],
    dim: usize,
    shape: &TokenTreeShape,
    length: usize,
    height: usize,
    index: usize,
) -> Vec<f32> {
    if shape.leaves(height, index).start >= length || shape.leaves(height, index).is_empty() {
        return vec![0.0; dim];
    }
    let leaves = shape.leaves(height, index);
    let leaves = leaves.start..leaves.end.min(length);
    let count = leaves.len() as f32;
    let mut mean = vec![0.0; dim];
    for leaf in leaves {
        let token = &tokens[leaf * dim..(leaf + 1) * dim];
        mean.iter_mut()
            .zip(token)
            .for_each(|(sum, x)| *sum += x / count);
    }
    mean
}

#[test]
fn every_node_aggregates_its_real_children() {
    for (count, branching) in [(1usize, 2), (2, 5), (5, 5), (7, 2), (9, 3), (13, 5)] {
        for layout in [Layout::LeftFilled, Layout::Published] {
            let lengths = [count, count.div_ceil(2), 0];
            let tokens = random([3, count, 2], 7, &device());
            let host = values(tokens.clone());
            let tree = tree(tokens, &lengths, branching, layout);
            let shape = *tree.shape();
            let nodes = values(tree.nodes());
            let masked: Vec<bool> = tree.mask().into_data().iter::<bool>().collect();
            for (example, length) in lengths.iter().enumerate() {
                let tokens = &host[example * count * 2..(example + 1) * count * 2];
                for position in 0..shape.nodes() {
                    let (height, index) = shape.node_at(position);
                    let node = &nodes[(example * shape.nodes() + position) * 2..][..2];
                    let expected = expected_node(tokens, 2, &shape, *length, height, index);
                    for (got, expected) in node.iter().zip(&expected) {
                        assert!(
                            (got - expected).abs() < allowed(1e-6),
                            "N = {count}, b = {branching}, {layout:?}, example {example}, node \
                             {height}/{index}: expected {expected}, got {got}"
                        );
                    }
                    let ghost = index * shape.span(height) >= *length;
                    assert_eq!(masked[example * shape.nodes() + position], ghost);
                }
            }
        }
    }
}

#[test]
fn leaves_follow_the_order() {
    let tokens = random([2, 5, 3], 3, &device());
    let shape = TokenTreeShape::new(5, 2, Layout::LeftFilled);
    let order = TokenOrder::Axis(1).permutation(&tokens, None, &shape);
    let tree = TokenTree::build(tokens.clone(), None, order.clone(), shape, &MeanAggregator);
    let index = order.unsqueeze_dim::<3>(2).expand([2, 5, 3]);
    assert_close(tree.level(0), tokens.gather(1, index), 0.0, 0.0);
}

#[test]
fn padding_changes_no_node_over_real_tokens() {
    let tokens = random([1, 11, 2], 4, &device());
    let alone = tree(
        tokens.clone().slice([0..1, 0..5, 0..2]),
        &[5],
        2,
        Layout::LeftFilled,
    );
    let padded = tree(tokens, &[5], 2, Layout::LeftFilled);
    for height in 0..=alone.shape().height() {
        let width = alone.shape().width(height);
        let left = padded.level(height).slice([0..1, 0..width, 0..2]);
        assert_close(left, alone.level(height), 1e-6, 0.0);
    }
}

#[test]
fn gradients_reach_every_real_token_and_no_masked_one() {
    let tokens = random([1, 7, 2], 5, &autodiff_device()).require_grad();
    let mask = padding(&[5], 7, &device());
    let shape = TokenTreeShape::new(7, 2, Layout::LeftFilled);
    let order = TokenOrder::Given.permutation(&tokens, Some(&mask), &shape);
    let tree = TokenTree::build(tokens.clone(), Some(mask), order, shape, &MeanAggregator);
    let gradients = tree.level(shape.height()).sum().backward();
    let gradient: Vec<f32> = values(tokens.grad(&gradients).unwrap());
    // The root is the mean of five.
    let expected = [0.2f32; 10].into_iter().chain([0.0; 4]);
    for (got, expected) in gradient.into_iter().zip(expected) {
        assert!(
            (got - expected).abs() < allowed(1e-6),
            "expected {expected}, got {got}"
        );
    }
}

#[test]
#[should_panic(expected = "token_tree: order: expected [1, 4], got [1, 3]")]
fn an_order_of_another_length_is_refused() {
    let tokens = random([1, 4, 2], 1, &device());
    let shape = TokenTreeShape::new(4, 2, Layout::LeftFilled);
    let short = TokenTreeShape::new(3, 2, Layout::LeftFilled);
    let order = TokenOrder::Given.permutation(&random([1, 3, 2], 1, &device()), None, &short);
    TokenTree::build(tokens, None, order, shape, &MeanAggregator);
}

#[test]
fn paths_to_tokens_end_at_the_nodes_over_them() {
    for (count, branching) in [(1usize, 2), (5, 5), (7, 2), (13, 3), (26, 5)] {
        for layout in [Layout::LeftFilled, Layout::Published] {
            let shape = TokenTreeShape::new(count, branching, layout);
            let tokens = random([2, count, 2], 3, &device());
            let order = TokenOrder::Random { seed: 5 }.permutation(&tokens, None, &shape);
            let tree = TokenTree::build(tokens, None, order.clone(), shape, &MeanAggregator);
            let asked = Tensor::<1, Int>::arange(0..count as i64, &device())
                .reshape([1, count])
                .expand([2, count]);
            let paths = tree.paths_to_tokens(asked);
            let steps = shape.decisions() + 1;
            assert_eq!(paths.dims(), [2, count, steps]);
            let paths: Vec<i64> = paths.into_data().iter::<i64>().collect();
            let order: Vec<i64> = order.into_data().iter::<i64>().collect();
            for example in 0..2 {
                for token in 0..count {
                    let at = |leaf: &usize| order[example * count + leaf] == token as i64;
                    let leaf = (0..count).find(at).unwrap();
                    let path = &paths[(example * count + token) * steps..][..steps];
                    for (depth, node) in path.iter().enumerate() {
                        let height = shape.height() - depth;
                        assert_eq!(*node as usize, shape.ancestor(leaf, height));
                    }
                }
            }
        }
    }
}

#[test]
fn tokens_of_another_precision_than_the_device_are_built_and_appended() {
    for dtype in arbora_testing::other_floats(&device()) {
        let tokens = random([1, 7, 2], 7, &device()).cast(dtype);
        let shape = TokenTreeShape::new(7, 2, Layout::LeftFilled);
        let mask = padding(&[5], 7, &device());
        let order = TokenOrder::Given.permutation(&tokens, Some(&mask), &shape);
        let built = TokenTree::build(tokens.clone(), Some(mask), order, shape, &MeanAggregator);
        let options = (&device(), DType::from(dtype));
        let mut grown = TokenTree::empty(1, 2, shape, options);
        grown
            .append(tokens.narrow(1, 0, 5), &MeanAggregator)
            .unwrap();
        assert_eq!(grown.nodes().dtype(), DType::from(dtype));
        assert_eq!(values(built.nodes()), values(grown.nodes()));
    }
}

#[test]
fn the_root_of_many_tokens_is_their_mean() {
    // The last child of the root has few leaves, far from the others.
    let count = 1025;
    let tokens: Vec<f32> = (0..count).map(|at| f32::from(at == 1024)).collect();
    let tokens = Tensor::<1>::from_floats(tokens.as_slice(), &device()).reshape([1, 1025, 1]);
    let tree = tree(tokens, &[count], 2, Layout::LeftFilled);
    let root = values(tree.level(tree.shape().height()))[0];
    assert!((root - 1.0 / 1025.0).abs() < 1e-5, "{root}");
}
