//! Hard decisions.

use super::{EPSILON, all_to_the_last_child, integers, tree};
use arbora_testing::{assert_close, autodiff_device, device, padding, random, skip, values};
use arbora_tree::{CompleteTree, NO_LEAF, Routing, RoutingTreeConfig};
use burn::module::Module;
use burn::tensor::{DType, FloatDType, Tensor, TensorData};

/// The path and margins of one token by the definition, in double precision.
fn walk(x: &[f32], weight: &[Vec<f32>], shape: &CompleteTree) -> (Vec<usize>, Vec<f64>) {
    let dim = x.len();
    let size = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / dim as f64;
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x) / size.sqrt()).collect();
    let (mut path, mut margins) = (vec![0], Vec::new());
    for (depth, weight) in weight.iter().enumerate() {
        let branching = shape.branching(depth);
        let node = path[depth];
        let logit = |output: usize| -> f64 {
            let weight = &weight[output * dim..][..dim];
            weight.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum()
        };
        let (child, margin) = if branching == 2 {
            let a = logit(node);
            (usize::from(a >= 0.0), a.abs())
        } else {
            let logits: Vec<f64> = (0..branching)
                .map(|c| logit(node * branching + c))
                .collect();
            let mut order: Vec<usize> = (0..branching).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            (order[0], logits[order[0]] - logits[order[1]])
        };
        path.push(node * branching + child);
        margins.push(margin);
    }
    (path, margins)
}

#[test]
fn routes_and_margins_follow_the_definition() {
    for branching in [vec![2, 2, 2], vec![3, 2, 4], vec![40, 3]] {
        let (dim, trees, heads, tokens) = (5, 2, 4, 6);
        let tree = tree(dim, &branching, trees);
        let x = random([2, tokens, heads, dim], 1, &device());
        let routing = tree.route(x.clone(), None);
        let height = tree.height();
        assert_eq!(routing.path.dims(), [2, tokens, heads, height + 1]);
        let (path, margins) = (
            integers(routing.path.clone()),
            values(routing.margins.clone()),
        );
        let (x, least) = (values(x), values(routing.least_margin()));
        for token in 0..2 * tokens * heads {
            let used = token % heads / (heads / trees);
            let weights: Vec<Vec<f32>> = tree
                .levels()
                .iter()
                .map(|level| {
                    let all = values(level.weight.val());
                    let each = all.len() / trees;
                    all[used * each..(used + 1) * each].to_vec()
                })
                .collect();
            let (expected, expected_margins) =
                walk(&x[token * dim..][..dim], &weights, tree.shape());
            let smallest = expected_margins.iter().fold(f64::MAX, |a, b| a.min(*b));
            if smallest < f64::from(EPSILON) {
                continue;
            }
            let got: Vec<usize> = path[token * (height + 1)..][..height + 1]
                .iter()
                .map(|node| *node as usize)
                .collect();
            assert_eq!(got, expected, "{branching:?}, token {token}");
            for (got, expected) in margins[token * height..].iter().zip(&expected_margins) {
                assert!((f64::from(*got) - expected).abs() < 1e-4);
            }
            assert!((f64::from(least[token]) - smallest).abs() < 1e-4);
        }
    }
}

#[test]
fn a_logit_of_zero_goes_right_and_ties_go_to_the_first_child() {
    let zero = Tensor::zeros([1, 2, 1, 3], &device());
    let binary = tree(3, &[2, 2, 2], 1).route(zero.clone(), None);
    assert_eq!(integers(binary.leaves()), [7, 7]);
    let ternary = tree(3, &[3, 4], 1).route(zero.clone(), None);
    assert_eq!(integers(ternary.leaves()), [0, 0]);
    assert_eq!(values(binary.least_margin()), [0.0; 2]);
    // The first candidate is the routed leaf although all leaves score 0.
    let candidates = tree(3, &[2, 2, 2], 1).best_leaves(zero, None, 3);
    assert_eq!(integers(candidates.leaves.narrow(3, 0, 1)), [7, 7]);
}

#[test]
fn each_node_of_a_path_is_a_child_of_the_one_before() {
    let tree = tree(4, &[3, 2, 5], 1);
    let path = integers(tree.route(random([2, 7, 3, 4], 2, &device()), None).path);
    for path in path.chunks(4) {
        assert_eq!(path[0], 0);
        for depth in 0..3 {
            let children = tree.shape().children(depth, path[depth] as usize);
            assert!(children.contains(&(path[depth + 1] as usize)), "{path:?}");
        }
    }
}

#[test]
fn masked_tokens_have_no_leaf_and_change_no_other() {
    let tree = tree(4, &[2, 3], 2);
    let x = random([2, 5, 2, 4], 3, &device());
    let mask = padding(&[5, 3], 5, &device());
    let alone = tree.route(x.clone(), None);
    let masked = tree.route(x.clone(), Some(mask.clone()));
    let candidates = tree.best_leaves(x.clone(), Some(mask.clone()), 2);
    let (alone, least) = (integers(alone.path), values(masked.least_margin()));
    let (leaves, scores) = (integers(candidates.leaves), values(candidates.scores));
    for (at, node) in integers(masked.path).into_iter().enumerate() {
        let token = at / 3;
        if token / 2 >= 5 + 3 {
            assert_eq!((node, least[token]), (NO_LEAF, 0.0));
            assert_eq!(leaves[token * 2..][..2], [NO_LEAF; 2]);
            assert_eq!(scores[token * 2..][..2], [0.0; 2]);
        } else {
            assert_eq!(node, alone[at]);
        }
    }
    // What masked tokens hold does not matter.
    let other = x
        .clone()
        .slice_assign([1..2, 3..5], random([1, 2, 2, 4], 9, &device()) * 50.0);
    let again = tree.route(other, Some(mask.clone()));
    assert_eq!(
        integers(again.path),
        integers(tree.route(x, Some(mask)).path)
    );
}

#[test]
fn the_order_of_a_batch_changes_nothing() {
    let tree = tree(4, &[2, 2, 3], 1);
    let x = random([3, 4, 2, 4], 4, &device());
    let whole = integers(tree.route(x.clone(), None).leaves());
    for (at, example) in [2usize, 0, 1].into_iter().enumerate() {
        let order = TensorData::from([2i64, 0, 1]);
        let shuffled = x.clone().select(0, Tensor::from_data(order, &device()));
        let leaves = integers(tree.route(shuffled, None).leaves());
        assert_eq!(leaves[at * 8..][..8], whole[example * 8..][..8]);
    }
}

#[test]
fn heads_are_grouped_onto_trees_in_order() {
    let (one, both) = (tree(3, &[2, 2, 2], 1), tree(3, &[2, 2, 2], 2));
    let x = random([2, 6, 4, 3], 5, &device());
    let leaves = integers(both.route(x.clone(), None).leaves());
    for used in 0..2 {
        let mut alone = one.clone();
        for depth in 0..3 {
            let level = &both.levels()[depth];
            let weight = level.weight.val().narrow(0, used, 1);
            alone = alone.with_parameters(depth, weight, level.bias.val().narrow(0, used, 1));
        }
        let expected = alone.route(x.clone().narrow(2, 2 * used, 2), None).leaves();
        for (at, leaf) in integers(expected).into_iter().enumerate() {
            assert_eq!(leaves[at / 2 * 4 + 2 * used + at % 2], leaf);
        }
    }
}

#[test]
fn the_scale_of_a_token_changes_no_route_and_zero_stays_zero() {
    let tree = tree(4, &[2, 2], 1);
    let x = random([1, 9, 1, 4], 6, &device());
    let far = tree.route(x.clone() * 1000.0, None);
    assert_eq!(
        integers(far.path),
        integers(tree.route(x.clone(), None).path)
    );
    let raw = RoutingTreeConfig::new(4, vec![2, 2])
        .with_normalize(false)
        .with_seed(3)
        .init(&device());
    let (small, large) = (raw.route(x.clone(), None), raw.route(x * 1000.0, None));
    assert_close(large.margins, small.margins * 1000.0, 1e-3, 1e-4);
}

#[test]
fn lemma_1_parameters_send_every_token_to_the_last_leaf() {
    for branching in [vec![2; 5], vec![3, 4], vec![2, 5, 2]] {
        let tree = all_to_the_last_child(tree(4, &branching, 2));
        let routing = tree.route(random([2, 5, 4, 4], 7, &device()), None);
        let last = tree.leaves() as i64 - 1;
        assert!(integers(routing.leaves()).iter().all(|leaf| *leaf == last));
    }
}

#[test]
fn a_tree_of_height_0_has_one_leaf() {
    let tree = tree(3, &[], 1);
    assert_eq!((tree.height(), tree.leaves(), tree.num_params()), (0, 1, 0));
    let x = random([1, 2, 2, 3], 8, &device());
    let routing = tree.route(x.clone(), Some(padding(&[1], 2, &device())));
    assert_eq!(integers(routing.path.clone()), [0, 0, NO_LEAF, NO_LEAF]);
    assert_eq!(
        values(routing.least_margin()),
        [f32::MAX, f32::MAX, 0.0, 0.0]
    );
    let candidates = tree.best_leaves(x, None, 3);
    assert_eq!(candidates.leaves.dims(), [1, 2, 2, 1]);
    assert_eq!(values(candidates.scores), [0.0; 4]);
}

#[test]
fn one_token_is_routed_as_it_is_among_others() {
    let tree = tree(4, &[3, 3], 1);
    let x = random([1, 5, 1, 4], 9, &device());
    let among = integers(tree.route(x.clone(), None).path);
    let alone = integers(tree.route(x.narrow(1, 3, 1), None).path);
    assert_eq!(alone, among[9..12]);
}

#[test]
fn more_tokens_than_are_evaluated_at_once_are_routed_as_fewer() {
    // 16384 weights per token in the second level: chunks of 1024 tokens.
    let tree = tree(256, &[2, 64], 1);
    let x = random([1, 1100, 1, 256], 11, &device());
    let whole = tree.route(x.clone(), None);
    let (leaves, least) = (integers(whole.leaves()), values(whole.least_margin()));
    for first in [0, 1000] {
        let part = tree.route(x.clone().narrow(1, first, 100), None);
        for (at, leaf) in integers(part.leaves()).into_iter().enumerate() {
            if least[first + at] > EPSILON {
                assert_eq!(leaf, leaves[first + at]);
            }
        }
    }
}

#[test]
fn half_precision_is_routed_in_single_precision() {
    if !device().supports_dtype(DType::F16) {
        return skip("the backend has no half precision");
    }
    let tree = tree(4, &[2, 3], 1);
    let half = random([1, 9, 1, 4], 12, &device()).cast(FloatDType::F16);
    let single = half.clone().cast(FloatDType::F32);
    let (half, single) = (tree.route(half, None), tree.route(single, None));
    assert_eq!(half.margins.dtype(), DType::F32);
    assert_eq!(integers(half.path), integers(single.path));
    assert_eq!(values(half.margins), values(single.margins));
}

#[test]
fn a_routing_carries_no_gradient() {
    let tree = RoutingTreeConfig::new(4, vec![2, 3]).init(&autodiff_device());
    let x = random([1, 5, 1, 4], 10, &autodiff_device()).require_grad();
    assert!(!tree.route(x, None).margins.is_require_grad());
}

#[test]
fn given_leaves_have_the_path_of_their_ancestors() {
    let shape = CompleteTree::new(vec![3, 2, 2]);
    let given = TensorData::new(vec![0i64, 11, NO_LEAF, 6], [1, 4, 1]);
    let routing = Routing::from_leaves(Tensor::from_data(given, &device()), &shape, 1);
    let path = integers(routing.path.clone());
    assert_eq!(path[..4], [0, 0, 0, 0]);
    assert_eq!(path[4..8], [0, 2, 5, 11]);
    assert_eq!(path[8..12], [NO_LEAF; 4]);
    assert_eq!(path[12..], [0, 1, 3, 6]);
    assert_eq!(integers(routing.leaves()), [0, 11, NO_LEAF, 6]);
}

#[test]
#[should_panic(expected = "routing_tree: branching: expected factors of at least 2, got [2, 1]")]
fn a_node_with_one_child_is_refused() {
    tree(3, &[2, 1], 1);
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let config = || RoutingTreeConfig::new(3, vec![2]);
    config().check().unwrap();
    for (setting, refused) in [
        ("dim", RoutingTreeConfig::new(0, vec![2])),
        ("trees", config().with_trees(0)),
        ("branching", RoutingTreeConfig::new(3, vec![2, 1])),
        ("branching", RoutingTreeConfig::new(3, vec![2; 64])),
        ("balance_rate", config().with_balance_rate(-1.0)),
        ("balance_rate", config().with_balance_rate(f64::NAN)),
    ] {
        let error = refused.check().expect_err(setting);
        assert_eq!(error.setting, setting, "{error}");
    }
}

#[test]
#[should_panic(expected = "routing_tree: trees: expected at least 1, got 0")]
fn no_trees_are_refused() {
    tree(3, &[2], 0);
}

#[test]
#[should_panic(expected = "route: heads: expected a multiple of 2 trees, got 3")]
fn heads_that_do_not_divide_among_trees_are_refused() {
    tree(3, &[2], 2).route(random([1, 1, 3, 3], 1, &device()), None);
}

#[test]
#[should_panic(expected = "route: axis 3 of x: expected 3, got 4")]
fn tokens_of_another_width_are_refused() {
    tree(3, &[2], 1).route(random([1, 1, 1, 4], 1, &device()), None);
}
