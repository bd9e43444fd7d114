//! Gradients of TC-attention: to routes, values and the weights of depths.

use crate::tree_coarse::{Leaves, POLICIES, every_pair, indicators, options};
use arbora_attention::EmptyNode;
use arbora_attention::functions::{
    NodeIndicators, TreeCoarseOptions, tree_coarse, tree_coarse_relaxed,
};
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{
    assert_close, autodiff_device, device, random, random_data, random_like, values,
};
use arbora_tree::CompleteTree;
use burn::tensor::{Tensor, TensorData};

#[test]
fn gradients_of_values_and_alpha_are_those_of_uniform_attention() {
    let autodiff = autodiff_device();
    let tree = CompleteTree::new(vec![2, 3]);
    let query = Leaves::random([2, 7, 4], &tree, 0.2, 1);
    let key = Leaves::random([2, 7, 2], &tree, 0.2, 2);
    let value = random([2, 7, 2, 3], 3, &autodiff).require_grad();
    let alpha = random([4, 3], 4, &autodiff).require_grad();
    let weight = random([2, 7, 4, 3], 5, &autodiff);
    let gradients = |context: Tensor<4>| {
        let gradients = (context * weight.clone()).sum().backward();
        (
            value.grad(&gradients).unwrap(),
            alpha.grad(&gradients).unwrap(),
        )
    };
    for options in options(false).chain(options(true)) {
        let expected = every_pair(&query, &key, value.clone(), alpha.clone(), &tree, options);
        let expected = gradients(expected);
        let hard = tree_coarse(
            query.tensor(&autodiff),
            key.tensor(&autodiff),
            value.clone(),
            alpha.clone(),
            &tree,
            options,
        );
        let [q, k] = [&query, &key].map(|side| indicators(side, &tree, &autodiff));
        let relaxed = tree_coarse_relaxed(q, k, value.clone(), alpha.clone(), options);
        for context in [hard, relaxed] {
            let got = gradients(context);
            assert_close(got.0, expected.0.clone(), 1e-5, 1e-5);
            assert_close(got.1, expected.1.clone(), 1e-4, 1e-5);
        }
    }
}

#[test]
fn the_same_call_gives_the_same_bits_and_so_do_its_gradients() {
    let autodiff = autodiff_device();
    let tree = CompleteTree::new(vec![2, 2]);
    // Many tokens per leaf: sums in another order would have other bits.
    let query = Leaves::random([2, 500, 4], &tree, 0.1, 1).tensor(&autodiff);
    let key = Leaves::random([2, 500, 2], &tree, 0.1, 2).tensor(&autodiff);
    let value = random([2, 500, 2, 5], 3, &autodiff).require_grad();
    let alpha = random([4, 3], 4, &autodiff).require_grad();
    let weight = random([2, 500, 4, 5], 5, &autodiff);
    for options in options(false).chain(options(true)) {
        let run = || {
            let context = tree_coarse(
                query.clone(),
                key.clone(),
                value.clone(),
                alpha.clone(),
                &tree,
                options,
            );
            let gradients = (context.clone() * weight.clone()).sum().backward();
            [
                values(context),
                values(value.grad(&gradients).unwrap()),
                values(alpha.grad(&gradients).unwrap()),
            ]
        };
        let inference = || {
            let (value, alpha) = (value.clone().inner(), alpha.clone().inner());
            let [query, key] = [&query, &key].map(|leaves| leaves.clone().inner());
            values(tree_coarse(query, key, value, alpha, &tree, options))
        };
        let (first, first_inference) = (run(), inference());
        for _ in 0..3 {
            assert_eq!(run(), first);
            assert_eq!(inference(), first_inference);
        }
    }
}

/// Every node has a key, also for the first query where attention is causal: finite differences see no node that
/// becomes empty.
fn filled() -> (CompleteTree, Leaves, Leaves) {
    let tree = CompleteTree::new(vec![2, 2]);
    let query = Leaves {
        shape: [1, 4, 2],
        of: vec![0, 1, 2, 0, 3, 2, 1, 3],
    };
    let key = Leaves {
        shape: [1, 8, 1],
        of: vec![0, 3, 1, 2, 0, 3, 3, 1],
    };
    (tree, query, key)
}

#[test]
fn gradients_of_indicators_agree_with_finite_differences() {
    let (tree, query, key) = filled();
    for options in options(false).chain(options(true)) {
        let attend = |query: NodeIndicators, key: NodeIndicators| {
            let device = query.nodes().device();
            let value = random([1, 8, 1, 3], 3, &device);
            let alpha = random([2, 3], 4, &device);
            let weight = random([1, 4, 2, 3], 5, &device);
            (tree_coarse_relaxed(query, key, value, alpha, options) * weight).sum()
        };
        let hard = |side: &Leaves| indicators(side, &tree, &device()).into_nodes().into_data();
        assert_matches_finite_differences::<4>(hard(&query), &device(), 1e-2, 2e-3, |nodes| {
            let key = indicators(&key, &tree, &nodes.device());
            attend(NodeIndicators::new(nodes, &tree), key)
        });
        assert_matches_finite_differences::<4>(hard(&key), &device(), 1e-2, 2e-3, |nodes| {
            let query = indicators(&query, &tree, &nodes.device());
            attend(query, NodeIndicators::new(nodes, &tree))
        });
    }
}

/// What a node gives, its count, and `gamma` of the docs of [`tree_coarse_relaxed`], on the host.
struct HostNode {
    gives: Vec<f32>,
    count: usize,
    gamma: Vec<f32>,
}

#[test]
fn gradients_of_indicators_are_dense_and_exact_also_where_nodes_are_empty() {
    let autodiff = autodiff_device();
    let tree = CompleteTree::new(vec![2, 2]);
    let query = Leaves {
        shape: [1, 3, 1],
        of: vec![1, 3, 1],
    };
    let key = Leaves {
        shape: [1, 4, 1],
        of: vec![0, 2, 0, 2],
    }; // leaves 1 and 3 are empty
    let (value, delta, alpha) = (
        random_data([1, 4, 1, 2], 3),
        random_data([1, 3, 1, 2], 5),
        [0.5f32, -0.3, 0.8],
    );
    let rows = |data: &TensorData| {
        let flat: Vec<f32> = data.iter::<f32>().collect();
        flat.chunks(2).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let (value_rows, delta_rows) = (rows(&value), rows(&delta));
    for empty_node in POLICIES {
        let mut nodes: Vec<HostNode> = Vec::new();
        for depth in 0..=2 {
            let span = 4 >> depth;
            for index in 0..1 << depth {
                let inside = |leaf: &i64| *leaf as usize / span == index;
                let keys: Vec<usize> = (0..4).filter(|k| inside(&key.of[*k])).collect();
                let add =
                    |sum: Vec<f32>, row: &[f32]| sum.iter().zip(row).map(|(a, b)| a + b).collect();
                let total = keys
                    .iter()
                    .fold(vec![0.0; 2], |sum, k| add(sum, &value_rows[*k]));
                let gives = match (keys.len(), empty_node) {
                    (0, EmptyNode::Drop) => vec![0.0; 2],
                    (0, EmptyNode::CarryParent) => {
                        nodes[tree.offset(depth - 1) + index / 2].gives.clone()
                    }
                    (count, _) => total.iter().map(|x| x / count as f32).collect(),
                };
                let through = (0..3).filter(|q| inside(&query.of[*q]));
                let gamma = through.fold(vec![0.0; 2], |sum, q| add(sum, &delta_rows[q]));
                let gamma = gamma.iter().map(|x: &f32| x * alpha[depth]).collect();
                nodes.push(HostNode {
                    gives,
                    count: keys.len(),
                    gamma,
                });
            }
        }
        let depth_of = |node: usize| [0, 1, 1, 2, 2, 2, 2][node];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let of_queries: Vec<f32> = (0..3 * 7)
            .map(|at| {
                let (q, node) = (at / 7, at % 7);
                alpha[depth_of(node)] * dot(&delta_rows[q], &nodes[node].gives)
            })
            .collect();
        let of_keys: Vec<f32> = (0..4 * 7)
            .map(|at| {
                let (k, node) = (at / 7, &nodes[at % 7]);
                let apart: Vec<f32> = value_rows[k]
                    .iter()
                    .zip(&node.gives)
                    .map(|(v, g)| v - g)
                    .collect();
                dot(&node.gamma, &apart) / node.count.max(1) as f32
            })
            .collect();

        let [q, k] = [&query, &key].map(|side| {
            indicators(side, &tree, &autodiff)
                .into_nodes()
                .require_grad()
        });
        let context = tree_coarse_relaxed(
            NodeIndicators::new(q.clone(), &tree),
            NodeIndicators::new(k.clone(), &tree),
            Tensor::from_data(value.clone(), &autodiff),
            Tensor::from_data([alpha], &autodiff),
            TreeCoarseOptions {
                causal: false,
                empty_node,
            },
        );
        let delta = Tensor::<4>::from_data(delta.clone(), &autodiff);
        let gradients = (context * delta).sum().backward();
        let expected = Tensor::<1>::from_floats(&of_queries[..], &device());
        let got = q.grad(&gradients).unwrap().reshape([21]);
        assert_close(got, expected, 1e-5, 1e-5);
        // With an empty node that carries its parent, the parent's mean reaches further: what its keys' gradient
        // gets on top is the empty child's share, `gamma` of the child.
        let mut carried = of_keys.clone();
        if empty_node == EmptyNode::CarryParent {
            for (child, parent) in [(4usize, 1usize), (6, 2)] {
                for k in 0..4 {
                    let apart: Vec<f32> = value_rows[k]
                        .iter()
                        .zip(&nodes[parent].gives)
                        .map(|(v, g)| v - g)
                        .collect();
                    carried[k * 7 + parent] +=
                        dot(&nodes[child].gamma, &apart) / nodes[parent].count as f32;
                }
            }
        }
        let got = k.grad(&gradients).unwrap().reshape([28]);
        assert_close(
            got,
            Tensor::<1>::from_floats(&carried[..], &device()),
            1e-5,
            1e-5,
        );
    }
}

#[test]
fn straight_through_keeps_hard_values_and_passes_every_gradient_but_those_of_roots_and_padding() {
    let autodiff = autodiff_device();
    let tree = CompleteTree::new(vec![2, 2]);
    let leaves = Leaves {
        shape: [1, 3, 1],
        of: vec![1, -1, 2],
    };
    let hard = indicators(&leaves, &tree, &autodiff);
    let probabilities = [0, 1, 2]
        .map(|depth| random([1, 3, 1, 1 << depth], depth as u64, &autodiff).require_grad());
    let relaxed = hard.clone().straight_through(&probabilities);
    assert_eq!(
        values(relaxed.nodes().clone()),
        values(hard.nodes().clone())
    );
    let weight = random_like(relaxed.nodes(), 9);
    let gradients = (relaxed.into_nodes() * weight.clone()).sum().backward();
    assert!(
        probabilities[0].grad(&gradients).is_none(),
        "the root has no choice"
    );
    for (depth, first) in [(1, 1), (2, 3)] {
        let got = values(probabilities[depth].grad(&gradients).unwrap());
        let width = 1 << depth;
        let mut expected = values(weight.clone().narrow(3, first, width));
        expected[width..2 * width].fill(0.0);
        assert_eq!(got, expected);
    }
}

#[test]
fn soft_indicators_are_the_probabilities_but_at_roots_and_padding() {
    let tree = CompleteTree::new(vec![3, 2]);
    let leaves = Leaves {
        shape: [1, 2, 1],
        of: vec![4, -1],
    };
    let probabilities = [1, 3, 6].map(|width| random([1, 2, 1, width], 1, &device()));
    let soft = indicators(&leaves, &tree, &device()).soft(&probabilities);
    let soft = values(soft.into_nodes());
    let given = |depth: usize| values(probabilities[depth].clone().narrow(1, 0, 1));
    assert_eq!(soft[..10], [vec![1.0], given(1), given(2)].concat());
    assert_eq!(soft[10..], [0.0; 10]);
}
