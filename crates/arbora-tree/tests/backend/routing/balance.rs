//! Statistics and control of balance.

use super::{all_to_the_last_child, surrogates, tree};
use arbora_testing::{allowed, assert_close, autodiff_device, device, padding, random, values};
use arbora_tree::{
    CompleteTree, LeafCounts, NO_LEAF, Routing, RoutingTree, RoutingTreeConfig, Surrogate,
};
use burn::tensor::{Bool, DType, FloatDType, Int, Tensor, TensorData};

fn given(leaves: &[i64], dims: [usize; 3], branching: &[usize], trees: usize) -> Routing {
    let leaves = Tensor::from_data(TensorData::new(leaves.to_vec(), dims), &device());
    Routing::from_leaves(leaves, &CompleteTree::new(branching.to_vec()), trees)
}

#[test]
fn leaves_are_counted_per_example_and_tree_without_masked_tokens() {
    // Two examples of two tokens, four heads on two trees of three leaves.
    let leaves = [
        0, 1, 2, 2, 0, 0, 1, NO_LEAF, 2, 2, 2, 2, NO_LEAF, NO_LEAF, NO_LEAF, NO_LEAF,
    ];
    let queries = given(&leaves, [2, 2, 4], &[3], 2);
    let keys = given(&[0, 1, 0, 2, 1, 1, 0, 0], [2, 2, 2], &[3], 2);
    let counts = LeafCounts::new(&queries, &keys);
    assert_eq!(
        values(counts.queries),
        [3.0, 1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 2.0]
    );
    assert_eq!(
        values(counts.keys),
        [2.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    );
}

#[test]
fn the_cost_ratio_is_the_share_of_pairs_that_meet() {
    // Even, all in one leaf, disjoint, no query.
    let queries = [
        0, 1, 2, 3, 1, 1, 1, 1, 0, 0, 1, 1, NO_LEAF, NO_LEAF, NO_LEAF, NO_LEAF,
    ];
    let keys = [3, 2, 1, 0, 1, 1, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3];
    let routing = |leaves| given(leaves, [4, 4, 1], &[2, 2], 1);
    let counts = LeafCounts::new(&routing(&queries), &routing(&keys));
    assert_eq!(values(counts.cost_ratio()), [0.25, 1.0, 0.0, 0.0]);
    assert_eq!(
        values(counts.effective_leaves()),
        [4.0, 1.0, f32::INFINITY, 0.0]
    );
}

#[test]
fn queries_and_keys_that_meet_nobody_are_counted() {
    // Half of the queries, half of the keys; nobody alone; no query; no key.
    let queries = [
        0, 0, 1, 1, 2, 2, 3, 3, NO_LEAF, NO_LEAF, NO_LEAF, NO_LEAF, 0, 1, 2, 3,
    ];
    let keys = [
        1, 1, 2, 3, 2, 3, 2, 3, 0, 1, 2, 3, NO_LEAF, NO_LEAF, NO_LEAF, NO_LEAF,
    ];
    let routing = |leaves| given(leaves, [4, 4, 1], &[2, 2], 1);
    let counts = LeafCounts::new(&routing(&queries), &routing(&keys));
    assert_eq!(values(counts.queries_without_key()), [0.5, 0.0, 0.0, 1.0]);
    assert_eq!(values(counts.keys_without_query()), [0.5, 0.0, 1.0, 0.0]);
}

#[test]
fn the_balance_loss_is_1_at_balance_and_the_branching_factor_at_collapse() {
    let tree = tree(4, &[2, 2, 2], 1);
    let soft = Surrogate::Soft { temperature: 1.0 };
    // Exactly undecided: probabilities are equal whatever the shares are.
    let zero = Tensor::zeros([1, 6, 1, 4], &device());
    let routing = tree.route(zero.clone(), None);
    let loss = tree.balance_loss(zero, &routing, &soft);
    assert!((loss.into_scalar::<f32>() - 1.0).abs() < 1e-5);

    let x = random([1, 6, 1, 4], 1, &device());
    let collapsed = all_to_the_last_child(tree);
    let sure = Surrogate::Soft { temperature: 1e-5 };
    let routing = collapsed.route(x.clone(), None);
    let loss = collapsed.balance_loss(x, &routing, &sure);
    assert!((loss.into_scalar::<f32>() - 2.0).abs() < 1e-4);
}

#[test]
fn leaves_that_are_even_over_a_batch_alone_are_not_balanced() {
    // Each example goes one way.
    let tree = tree(4, &[2], 1);
    let row = random([1, 1, 1, 4], 1, &device());
    let x = Tensor::cat(vec![row.clone(), row.neg()], 0).repeat_dim(1, 5);
    let sure = Surrogate::Soft { temperature: 1e-5 };
    let loss = tree.balance_loss(x.clone(), &tree.route(x, None), &sure);
    assert!((loss.into_scalar::<f32>() - 2.0).abs() < 1e-4);
}

#[test]
fn the_balance_loss_is_its_definition() {
    let tree = tree(4, &[3, 2], 1);
    let x = random([1, 9, 1, 4], 2, &device());
    let soft = Surrogate::Soft { temperature: 1.0 };
    let probabilities = tree.node_probabilities(x.clone(), None, &soft);
    let routing = tree.route(x.clone(), None);
    let loss: f32 = tree.balance_loss(x, &routing, &soft).into_scalar();

    let mut expected = 0.0;
    for (depth, branching) in [(0, 3), (1, 2)] {
        let nodes = super::integers(routing.nodes(depth));
        let children = super::integers(routing.nodes(depth + 1));
        let p = values(probabilities[depth + 1].clone());
        let width = p.len() / 9;
        for node in 0..tree.shape().width(depth) {
            let here: Vec<usize> = (0..9).filter(|t| nodes[*t] as usize == node).collect();
            for child in node * branching..(node + 1) * branching {
                let goes = here
                    .iter()
                    .filter(|t| children[**t] as usize == child)
                    .count() as f32;
                let given_node = |token: &usize| {
                    let siblings = &p[token * width + node * branching..][..branching];
                    p[token * width + child] / siblings.iter().sum::<f32>()
                };
                let sum: f32 = here.iter().map(given_node).sum();
                // Weighted by here / 9, of f = goes / here and P = sum / here.
                if !here.is_empty() {
                    expected += branching as f32 * goes * sum / here.len() as f32 / 9.0 / 2.0;
                }
            }
        }
    }
    assert!(
        (loss - expected).abs() < 1e-5,
        "expected {expected}, got {loss}"
    );
}

#[test]
fn masked_tokens_do_not_count_in_the_balance_loss() {
    let tree = tree(4, &[2, 3], 2);
    let x = random([1, 6, 4, 4], 3, &device());
    for surrogate in surrogates() {
        let loss = |x: Tensor<4>, mask: Option<_>| {
            let routing = tree.route(x.clone(), mask);
            tree.balance_loss(x, &routing, &surrogate)
        };
        let short = loss(x.clone().narrow(1, 0, 4), None);
        let mask = padding(&[4], 6, &device());
        assert_close(loss(x.clone(), Some(mask)), short, 1e-5, 0.0);
        let nothing = padding(&[0], 6, &device());
        assert_eq!(values(loss(x.clone(), Some(nothing))), [1.0]);
    }
    let flat = super::tree(4, &[], 1);
    let routing = flat.route(x.clone(), None);
    let loss = flat.balance_loss(x, &routing, &Surrogate::default());
    assert_eq!(values(loss), [1.0]);
}

/// The probabilities of the children of one depth given the node that a token comes to, from those of
/// all nodes: `[batch, tokens, heads, branching]`.
fn given_the_node(children: Tensor<4>, node: Tensor<3, Int>, branching: usize) -> Tensor<4> {
    let [batch, tokens, heads, count] = children.dims();
    let rows = batch * tokens * heads;
    let index = node
        .clamp_min(0)
        .reshape([rows, 1, 1])
        .expand([rows, 1, branching]);
    let siblings = children
        .reshape([rows, count / branching, branching])
        .gather(1, index);
    (siblings.clone() / siblings.sum_dim(2)).reshape([batch, tokens, heads, branching])
}

/// The balance loss of one tree from the probabilities of all nodes, node by node of each example.
fn from_all_nodes(
    tree: &RoutingTree,
    x: Tensor<4>,
    mask: Option<Tensor<2, Bool>>,
    surrogate: &Surrogate,
) -> Tensor<1> {
    let routing = tree.route(x.clone(), mask.clone());
    let probabilities = tree.node_probabilities(x, mask, surrogate);
    let on = routing.nodes(0).greater_equal_elem(0).unsqueeze_dim::<4>(3);
    let all = on.clone().cast(FloatDType::F32).sum().into_scalar::<f32>();
    let mut total = Tensor::zeros([1], (&device(), DType::F32));
    for depth in 0..tree.height() {
        let branching = tree.shape().branching(depth);
        let node = routing.nodes(depth);
        let child = routing.nodes(depth + 1);
        let given = given_the_node(probabilities[depth + 1].clone(), node.clone(), branching);
        let examples = node.dims()[0];
        let nodes = 0..tree.shape().width(depth);
        let each = (0..examples).flat_map(|example| nodes.clone().map(move |at| (example, at)));
        for (example, at) in each {
            let node = node.clone().narrow(0, example, 1);
            let child = child.clone().narrow(0, example, 1);
            let given = given.clone().narrow(0, example, 1);
            let here = node.equal_elem(at as i64).cast(FloatDType::F32);
            let count = here.clone().sum().into_scalar::<f32>();
            let mean = (given.clone() * here.unsqueeze_dim::<4>(3)) / count.max(1.0);
            for branch in 0..branching {
                let goes = child.clone().equal_elem((at * branching + branch) as i64);
                let goes = goes.cast(FloatDType::F32).sum().into_scalar::<f32>();
                let mean = mean.clone().narrow(3, branch, 1).sum();
                total = total + mean * (goes / all * branching as f32);
            }
        }
    }
    total / tree.height() as f32
}

#[test]
fn nodes_on_the_path_give_the_balance_loss_of_all_nodes_and_its_gradients() {
    let device = autodiff_device();
    let mut surrogates = surrogates().to_vec();
    surrogates.push(Surrogate::DenseGradient {
        temperature: 0.7,
        clip: 1.5,
        scale: Some(0.8),
    });
    for branching in [&[2, 2, 2][..], &[3, 4], &[12, 2]] {
        for surrogate in &surrogates {
            let tree = RoutingTreeConfig::new(4, branching.to_vec()).init(&device);
            let mask = || Some(padding(&[7, 5], 7, &arbora_testing::device()));
            let x = || random([2, 7, 2, 4], 3, &device).require_grad();
            let gradients = |loss: Tensor<1>, x: Tensor<4>| {
                let gradients = loss.backward();
                let levels = tree.levels().iter();
                let levels = levels.flat_map(|level| {
                    let bias = values(level.bias.val().grad(&gradients).unwrap());
                    let weight = values(level.weight.val().grad(&gradients).unwrap());
                    [weight, bias].concat()
                });
                let levels: Vec<f32> = levels.collect();
                [levels, values(x.grad(&gradients).unwrap())].concat()
            };
            let (one, other) = (x(), x());
            let loss = tree.balance_loss(one.clone(), &tree.route(one.clone(), mask()), surrogate);
            let expected = from_all_nodes(&tree, other.clone(), mask(), surrogate);
            assert_close(loss.clone(), expected.clone(), 1e-5, 1e-5);
            let (got, expected) = (gradients(loss, one), gradients(expected, other));
            assert!(expected.iter().any(|x| x.abs() > 1e-3));
            for (got, expected) in got.iter().zip(&expected) {
                let error = (got - expected).abs();
                assert!(error < allowed(1e-5), "{surrogate:?}: {got}, {expected}");
            }
        }
    }
}

#[test]
fn descent_on_the_balance_loss_evens_out_a_skewed_tree() {
    let mut tree = RoutingTreeConfig::new(4, vec![2]).init(&autodiff_device());
    let x = random([1, 200, 1, 4], 4, &device()) + 2.0;
    let soft = Surrogate::Soft { temperature: 1.0 };
    let ratio = |tree: &RoutingTree| {
        let routing = tree.route(x.clone(), None);
        LeafCounts::new(&routing, &routing)
            .cost_ratio()
            .into_scalar::<f32>()
    };
    let before = ratio(&tree);
    for _ in 0..40 {
        let loss = tree.balance_loss(x.clone(), &tree.route(x.clone(), None), &soft);
        let gradients = loss.backward();
        let level = &tree.levels()[0];
        let (weight, bias) = (level.weight.val(), level.bias.val());
        let step = bias.grad(&gradients).unwrap() * 1.0;
        tree = tree.with_parameters(0, weight, bias.without_autodiff() - step);
    }
    let after = ratio(&tree);
    assert!(before > 0.8 && after < 0.6, "{before} {after}");
}

#[test]
fn tracking_converges_to_balance_on_a_skewed_input() {
    for branching in [vec![2, 2], vec![4], vec![3, 2]] {
        let tree = RoutingTreeConfig::new(4, branching)
            .with_trees(2)
            .with_balance_rate(0.02)
            .init(&device());
        let queries = random([1, 120, 2, 4], 5, &device()) + 0.6;
        let keys = random([1, 120, 2, 4], 6, &device()) + 0.6;
        let ratio = || {
            let queries = tree.route(queries.clone(), None);
            let keys = tree.route(keys.clone(), None);
            values(LeafCounts::new(&queries, &keys).cost_ratio())
        };
        let (before, even) = (ratio(), 1.0 / tree.leaves() as f32);
        for _ in 0..120 {
            let queries = tree.route(queries.clone(), None);
            tree.track_balance(&[&queries, &tree.route(keys.clone(), None)]);
        }
        for (before, after) in before.into_iter().zip(ratio()) {
            assert!(
                after < 1.2 * even,
                "from {before} to {after}, even is {even}"
            );
        }
    }
}

#[test]
fn a_step_of_tracking_moves_against_the_skew_and_ignores_masked_tokens() {
    let config = RoutingTreeConfig::new(4, vec![2]).with_balance_rate(0.5);
    let balance = |tree: &RoutingTree| values(tree.levels()[0].balance.value());
    let tracked = |leaves: &[i64]| {
        let tree = config.init(&device());
        tree.track_balance(&[&given(leaves, [1, leaves.len(), 1], &[2], 1)]);
        balance(&tree)
    };
    assert_eq!(tracked(&[1, 1, 0]), [-0.5]);
    assert_eq!(tracked(&[0, 1, 0]), [0.5]);
    assert_eq!(tracked(&[0, 1]), [0.0]);
    assert_eq!(tracked(&[0, NO_LEAF, NO_LEAF]), [0.5]);

    let ternary = RoutingTreeConfig::new(4, vec![3])
        .with_balance_rate(0.5)
        .init(&device());
    ternary.track_balance(&[&given(&[2, 2, 2, 1, 0, 1], [1, 6, 1], &[3], 1)]);
    assert_eq!(balance(&ternary), [0.5, 0.0, -0.5]);

    let off = RoutingTreeConfig::new(4, vec![2]).init(&device());
    off.track_balance(&[&given(&[1, 1], [1, 2, 1], &[2], 1)]);
    assert_eq!(balance(&off), [0.0]);
}

#[test]
fn balance_biases_take_no_gradient_and_move_routes() {
    let config = RoutingTreeConfig::new(4, vec![2]).with_balance_rate(1e3);
    let tree = config.init(&autodiff_device());
    let x = random([1, 5, 1, 4], 7, &device());
    tree.track_balance(&[&given(&[1, 1], [1, 2, 1], &[2], 1)]);
    assert_eq!(
        super::integers(tree.route(x.clone(), None).leaves()),
        [0; 5]
    );
    let scores = tree.best_leaves(x, None, 2).scores;
    let gradients = scores.sum().backward();
    let level = &tree.levels()[0];
    assert_eq!(values(level.bias.val().grad(&gradients).unwrap()), [5.0]);
    assert!(!level.balance.value().is_require_grad());
}

#[test]
#[should_panic(expected = "track_balance: routing: expected 1 trees [2], got 1 trees [3]")]
fn a_routing_of_another_tree_is_refused() {
    let tree = RoutingTreeConfig::new(4, vec![2]).init(&device());
    tree.track_balance(&[&given(&[0], [1, 1, 1], &[3], 1)]);
}

#[test]
#[should_panic(
    expected = "balance_loss: routing [batch, tokens, heads]: expected [1, 3, 1], got [1, 2, 1]"
)]
fn a_routing_of_other_tokens_is_refused() {
    let tree = RoutingTreeConfig::new(4, vec![2]).init(&device());
    let routing = given(&[0, 1], [1, 2, 1], &[2], 1);
    tree.balance_loss(
        random([1, 3, 1, 4], 1, &device()),
        &routing,
        &Surrogate::default(),
    );
}

#[test]
fn a_small_balance_rate_moves_biases_whatever_the_precision_of_the_device() {
    let tree = RoutingTreeConfig::new(4, vec![2])
        .with_balance_rate(1e-4)
        .init(&autodiff_device());
    let tokens = Tensor::ones([1, 5, 1, 4], &autodiff_device());
    for _ in 0..3 {
        tree.track_balance(&[&tree.route(tokens.clone(), None)]);
    }
    let moved = values(tree.levels()[0].balance.value_sync());
    assert!((moved[0].abs() - 3e-4).abs() < 1e-8, "{moved:?}");
}

#[test]
fn sides_share_hyperplanes_and_are_balanced_by_themselves() {
    let tree = RoutingTreeConfig::new(4, vec![2, 2])
        .with_balance_rate(0.1)
        .with_sides(2)
        .with_seed(3)
        .init(&autodiff_device());
    let rows = |seed, offset: f32| random([1, 64, 1, 4], seed, &autodiff_device()) + offset;
    // On opposite sides of the origin, which hyperplanes go through.
    let (queries, keys) = (rows(1, 2.0), rows(2, -2.0));
    let alone = |tree: &RoutingTree| {
        let routes = (
            tree.route(queries.clone(), None),
            tree.side(1).route(keys.clone(), None),
        );
        values(LeafCounts::new(&routes.0, &routes.1).queries_without_key())[0]
    };
    let before = alone(&tree);
    for _ in 0..60 {
        tree.track_balance(&[&tree.route(queries.clone(), None)]);
        let of_keys = tree.side(1);
        of_keys.track_balance(&[&of_keys.route(keys.clone(), None)]);
    }
    assert!(
        before > 0.9 && alone(&tree) == 0.0,
        "{before}, {}",
        alone(&tree)
    );
    let [first, second] = [0, 1].map(|side| values(tree.side(side).balance_bias(0))[0]);
    assert!((first - second).abs() > 1.0, "{first} {second}");
}

#[test]
#[should_panic(expected = "routing_tree: side: expected below 1, got 1")]
fn a_tree_of_one_side_has_no_other() {
    let _ = tree(4, &[2], 1).side(1);
}

#[test]
fn biases_within_the_slack_stay_as_they_are() {
    // Of ten tokens 7 : 3, then 8 : 2, at a root whose children are to have at least a quarter.
    for (branching, left, moves) in [(2, 7, false), (2, 8, true), (3, 5, true), (3, 4, false)] {
        let tree = RoutingTreeConfig::new(4, vec![branching])
            .with_balance_rate(0.1)
            .with_balance_slack(if branching == 2 { 0.5 } else { 0.25 })
            .init(&device());
        let leaves: Vec<i64> = (0..10).map(|at| i64::from(at >= left)).collect();
        tree.track_balance(&[&given(&leaves, [1, 10, 1], &[branching], 1)]);
        let moved = values(tree.levels()[0].balance.value_sync());
        let has_moved = moved[0].abs() > 0.09;
        assert_eq!(has_moved, moves, "{branching}, {left}: {moved:?}");
    }
}
