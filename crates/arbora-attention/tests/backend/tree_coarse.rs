//! TC-attention as functions of routes.

use arbora_attention::{
    EmptyNode, NodeIndicators, TreeCoarseOptions, TreeCoarseState, tree_coarse, tree_coarse_relaxed,
};
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{assert_close, autodiff_device, device, random, random_data, values};
use arbora_tree::CompleteTree;
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const POLICIES: [EmptyNode; 2] = [EmptyNode::CarryParent, EmptyNode::Drop];

/// Leaves of tokens on the host, -1 where a token takes no part.
#[derive(Clone, Debug)]
struct Leaves {
    shape: [usize; 3],
    of: Vec<i64>,
}

impl Leaves {
    fn random(shape: [usize; 3], tree: &CompleteTree, absent: f64, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let count = shape.iter().product();
        let of = (0..count).map(|_| match rng.random_bool(absent) {
            true => -1,
            false => rng.random_range(0..tree.leaves() as i64),
        });
        let of = of.collect();
        Self { shape, of }
    }

    fn at(&self, batch: usize, token: usize, head: usize) -> i64 {
        let [_, tokens, heads] = self.shape;
        self.of[(batch * tokens + token) * heads + head]
    }

    fn tensor(&self, device: &Device) -> Tensor<3, Int> {
        Tensor::from_data(TensorData::new(self.of.clone(), self.shape), device)
    }
}

/// The definition: per depth, uniform attention over the keys in the query's node, each depth's matrix of pairs
/// `[batch, heads, queries, keys]` made on the host.
fn pairs_of_depths(
    query: &Leaves,
    key: &Leaves,
    tree: &CompleteTree,
    options: TreeCoarseOptions,
) -> Vec<Vec<f32>> {
    let ([batch, queries, heads], [_, keys, kv_heads]) = (query.shape, key.shape);
    let mut depths: Vec<Vec<f32>> = Vec::new();
    for depth in 0..=tree.height() {
        let span = (tree.leaves() / tree.width(depth)) as i64;
        let mut pairs = Vec::new();
        for (b, h, q) in triples(batch, heads, queries) {
            let own = query.at(b, q, h);
            let seen = |k: usize| {
                let leaf = key.at(b, k, h / (heads / kv_heads));
                let hidden = options.causal && k > q + keys - queries;
                leaf >= 0 && own >= 0 && leaf / span == own / span && !hidden
            };
            let count = (0..keys).filter(|k| seen(*k)).count();
            let above = depths
                .last()
                .map(|above| &above[pairs.len()..pairs.len() + keys]);
            match (above, options.empty_node) {
                (Some(above), EmptyNode::CarryParent) if count == 0 => {
                    pairs.extend_from_slice(above);
                }
                _ => pairs.extend((0..keys).map(|k| match seen(k) {
                    true => 1.0 / count as f32,
                    false => 0.0,
                })),
            }
        }
        depths.push(pairs);
    }
    depths
}

fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

/// [`tree_coarse`] with every pair in memory.
fn every_pair(
    query: &Leaves,
    key: &Leaves,
    value: Tensor<4>,
    alpha: Tensor<2>,
    tree: &CompleteTree,
    options: TreeCoarseOptions,
) -> Tensor<4> {
    let ([batch, queries, heads], [_, keys, kv_heads]) = (query.shape, key.shape);
    let width = value.dims()[3];
    let value = value
        .reshape([batch, keys, kv_heads, 1, width])
        .repeat_dim(3, heads / kv_heads)
        .reshape([batch, keys, heads, width])
        .swap_dims(1, 2);
    let rows = alpha.dims()[0];
    let depths = pairs_of_depths(query, key, tree, options);
    let terms = depths.into_iter().enumerate().map(|(depth, pairs)| {
        let pairs = TensorData::new(pairs, [batch, heads, queries, keys]);
        let pairs = Tensor::<4>::from_data(pairs, &value.device());
        let alpha = alpha.clone().narrow(1, depth, 1).reshape([1, rows, 1, 1]);
        pairs.matmul(value.clone()) * alpha
    });
    terms
        .reduce(|sum, term| sum + term)
        .unwrap()
        .swap_dims(1, 2)
}

/// One comparison: trees, tokens and heads.
struct Case {
    tree: CompleteTree,
    query: [usize; 3],
    key: [usize; 3],
    absent: f64,
}

fn cases() -> Vec<Case> {
    let case = |branching: &[usize], query, key, absent| Case {
        tree: CompleteTree::new(branching.to_vec()),
        query,
        key,
        absent,
    };
    vec![
        case(&[], [2, 5, 2], [2, 5, 2], 0.3),
        case(&[2, 2], [2, 9, 4], [2, 9, 2], 0.2),
        case(&[3, 2], [1, 4, 2], [1, 7, 2], 0.0),
        case(&[2, 2, 2, 2], [1, 3, 1], [1, 3, 1], 0.0),
        case(&[2], [1, 1, 1], [1, 1, 1], 0.0),
        case(&[2, 2], [2, 3, 1], [2, 4, 1], 1.0),
        case(&[2, 2, 2], [1, 131, 2], [1, 131, 2], 0.1),
    ]
}

fn options(causal: bool) -> impl Iterator<Item = TreeCoarseOptions> {
    POLICIES
        .into_iter()
        .map(move |empty_node| TreeCoarseOptions { causal, empty_node })
}

/// Indicators of the hard routes, from the function that makes them.
fn indicators(leaves: &Leaves, tree: &CompleteTree, device: &Device) -> NodeIndicators {
    NodeIndicators::of_leaves(leaves.tensor(device), tree)
}

#[test]
fn hard_and_relaxed_forms_are_uniform_attention_within_equal_nodes() {
    for (number, case) in cases().into_iter().enumerate() {
        let Case {
            tree,
            query,
            key,
            absent,
        } = case;
        let query = Leaves::random(query, &tree, absent, 1);
        let key = Leaves::random(key, &tree, absent, 2);
        let [batch, keys, kv_heads] = key.shape;
        let value = random([batch, keys, kv_heads, 3], 3, &device());
        let rows = [1, query.shape[2]][number % 2];
        let alpha = random([rows, tree.height() + 1], 4, &device());
        for options in options(false).chain(options(true)) {
            let (value, alpha) = (value.clone(), alpha.clone());
            let expected = every_pair(&query, &key, value.clone(), alpha.clone(), &tree, options);
            let hard = tree_coarse(
                query.tensor(&device()),
                key.tensor(&device()),
                value.clone(),
                alpha.clone(),
                &tree,
                options,
            );
            assert_close(hard, expected.clone(), 1e-5, 1e-5);
            let [query, key] = [&query, &key].map(|side| indicators(side, &tree, &device()));
            let relaxed = tree_coarse_relaxed(query, key, value, alpha, options);
            assert_close(relaxed, expected, 1e-5, 1e-5);
        }
    }
}

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
    let weight = random([1, 3, 1, 7], 9, &autodiff);
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

#[test]
fn the_root_alone_is_mean_pooling() {
    let tree = CompleteTree::new(vec![2, 2]);
    let leaves = Leaves::random([1, 6, 1], &tree, 0.0, 1).tensor(&device());
    let value = random([1, 6, 1, 3], 2, &device());
    let alpha = Tensor::from_data([[1.0, 0.0, 0.0]], &device());
    let context = tree_coarse(
        leaves.clone(),
        leaves,
        value.clone(),
        alpha,
        &tree,
        Default::default(),
    );
    assert_close(context, value.mean_dim(1).repeat_dim(1, 6), 1e-6, 1e-5);
}

#[test]
fn what_stands_at_padding_changes_nothing_even_infinities() {
    let tree = CompleteTree::new(vec![2, 2]);
    let mut leaves = Leaves::random([1, 6, 1], &tree, 0.0, 1);
    leaves.of[4] = -1;
    leaves.of[5] = -1;
    let value = random([1, 6, 1, 2], 2, &device());
    let padding = Tensor::full([1, 2, 1, 2], f32::INFINITY, &device());
    let infinite = Tensor::cat(vec![value.clone().narrow(1, 0, 4), padding], 1);
    for causal in [false, true] {
        let attend = |value: Tensor<4>| {
            let alpha = random([1, 3], 3, &device());
            let options = TreeCoarseOptions {
                causal,
                ..Default::default()
            };
            let leaves = leaves.tensor(&device());
            tree_coarse(leaves.clone(), leaves, value, alpha, &tree, options)
        };
        let context = attend(infinite.clone());
        assert_close(context.clone(), attend(value.clone()), 1e-6, 1e-6);
        assert!(values(context.narrow(1, 4, 2)).iter().all(|x| *x == 0.0));
    }
}

#[test]
fn the_state_holds_as_many_numbers_after_any_number_of_keys() {
    let tree = CompleteTree::new(vec![2, 2]);
    let mut state = TreeCoarseState::new(2, 3, 5, &tree, &device());
    assert_eq!(state.numbers(), 2 * 3 * 7 * (5 + 1));
    for seed in 0..3 {
        let leaves = Leaves::random([2, 40, 3], &tree, 0.1, seed).tensor(&device());
        state.append(leaves, random([2, 40, 3, 5], seed, &device()));
    }
    assert_eq!(state.numbers(), 2 * 3 * 7 * (5 + 1));
}

#[test]
fn tokens_given_to_the_state_in_any_portions_are_the_causal_form() {
    let tree = CompleteTree::new(vec![2, 3, 2]);
    let query = Leaves::random([2, 9, 4], &tree, 0.1, 1);
    let key = Leaves::random([2, 9, 2], &tree, 0.1, 2);
    let value = random([2, 9, 2, 3], 3, &device());
    let alpha = random([4, 4], 4, &device());
    for options in options(true) {
        let expected = every_pair(&query, &key, value.clone(), alpha.clone(), &tree, options);
        for portions in [vec![1; 9], vec![4, 1, 3, 1], vec![9]] {
            let mut state = TreeCoarseState::new(2, 2, 3, &tree, &device());
            let mut first = 0;
            let mut contexts = Vec::new();
            for new in portions {
                contexts.push(state.attend(
                    query.tensor(&device()).narrow(1, first, new),
                    key.tensor(&device()).narrow(1, first, new),
                    value.clone().narrow(1, first, new),
                    alpha.clone(),
                    options.empty_node,
                ));
                first += new;
            }
            assert_close(Tensor::cat(contexts, 1), expected.clone(), 1e-5, 1e-5);
        }
    }
}

#[test]
#[should_panic(
    expected = "tree_coarse: alpha [1 or heads, height + 1]: expected [1, 3] or [2, 3], got [2, 2]"
)]
fn alpha_has_one_weight_per_depth() {
    let tree = CompleteTree::new(vec![2, 2]);
    let leaves = Leaves::random([1, 3, 2], &tree, 0.0, 1).tensor(&device());
    let (value, alpha) = (
        random([1, 3, 2, 2], 1, &device()),
        random([2, 2], 1, &device()),
    );
    tree_coarse(
        leaves.clone(),
        leaves,
        value,
        alpha,
        &tree,
        Default::default(),
    );
}

#[test]
#[should_panic(expected = "node_indicators: probabilities: expected one per depth (3), got 2")]
fn probabilities_are_needed_for_every_depth() {
    let tree = CompleteTree::new(vec![2, 2]);
    let leaves = Leaves::random([1, 3, 1], &tree, 0.0, 1);
    let probabilities = [1, 2].map(|width| random([1, 3, 1, width], 1, &device()));
    let _ = indicators(&leaves, &tree, &device()).soft(&probabilities);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    #[test]
    fn any_tree_any_padding_any_length_is_uniform_attention_within_equal_nodes(
        branching in prop::collection::vec(2usize..4, 0..4),
        lengths in (1usize..7, 0usize..4),
        heads in (1usize..3, 1usize..3),
        absent in prop::sample::select(vec![0.0, 0.3, 1.0]),
        causal: bool,
        drops: bool,
        seed in 0u64..1000,
    ) {
        let tree = CompleteTree::new(branching);
        let ((queries, more), (kv_heads, group)) = (lengths, heads);
        let query = Leaves::random([2, queries, kv_heads * group], &tree, absent, seed);
        let key = Leaves::random([2, queries + more, kv_heads], &tree, absent, seed + 1);
        let value = random([2, queries + more, kv_heads, 2], seed + 2, &device());
        let alpha = random([1, tree.height() + 1], seed + 3, &device());
        let empty_node = POLICIES[usize::from(drops)];
        let options = TreeCoarseOptions { causal, empty_node };
        let expected = every_pair(&query, &key, value.clone(), alpha.clone(), &tree, options);
        let context = tree_coarse(
            query.tensor(&device()),
            key.tensor(&device()),
            value,
            alpha,
            &tree,
            options,
        );
        assert_close(context, expected, 1e-5, 1e-5);
    }
}
