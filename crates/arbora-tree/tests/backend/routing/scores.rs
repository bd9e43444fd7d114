//! Surrogate scores and the beam over them.

use super::{EPSILON, integers, surrogates, tree};
use arbora_testing::{assert_close, device, padding, random, values};
use arbora_tree::{RoutingTree, Surrogate};
use burn::config::Config;
use burn::tensor::Tensor;
use proptest::prelude::*;

fn leaf_scores(tree: &RoutingTree, x: Tensor<4>, surrogate: &Surrogate) -> Tensor<4> {
    tree.node_scores(x, None, surrogate).pop().unwrap()
}

fn largest(values: &[f32]) -> usize {
    (0..values.len()).fold(
        0,
        |best, at| {
            if values[at] > values[best] { at } else { best }
        },
    )
}

#[test]
fn the_best_leaf_of_every_surrogate_is_the_routed_one() {
    // Together 10^5 margins of binary trees, and some of k-ary ones.
    let mut shapes: Vec<(Vec<usize>, usize)> = (1..=7).map(|h| (vec![2; h], 410)).collect();
    shapes.extend([(vec![5, 3], 60), (vec![100, 10], 20), (vec![3, 2, 2], 60)]);
    for (branching, tokens) in shapes {
        let tree = tree(16, &branching, 1);
        let x = random([1, tokens, 1, 16], 1, &device());
        let routing = tree.route(x.clone(), None);
        let (routed, least) = (integers(routing.leaves()), values(routing.least_margin()));
        for surrogate in surrogates() {
            let scores = values(leaf_scores(&tree, x.clone(), &surrogate));
            for (token, scores) in scores.chunks(tree.leaves()).enumerate() {
                if least[token] > EPSILON {
                    let best = largest(scores) as i64;
                    assert_eq!(best, routed[token], "{branching:?}, {surrogate:?}");
                }
            }
        }
    }
}

#[test]
fn scores_of_a_decision_of_zero_prefer_the_right_child_or_neither() {
    let zero = Tensor::zeros([1, 1, 1, 3], &device());
    let tree = tree(3, &[2, 2], 1);
    for surrogate in surrogates() {
        let scores = values(leaf_scores(&tree, zero.clone(), &surrogate));
        assert!(scores.iter().all(|score| *score <= scores[3]), "{scores:?}");
    }
}

#[test]
fn node_scores_are_sums_over_their_ancestors() {
    let tree = tree(4, &[2, 3], 2);
    for surrogate in surrogates() {
        let scores = tree.node_scores(random([1, 3, 2, 4], 2, &device()), None, &surrogate);
        let dims: Vec<_> = scores.iter().map(Tensor::dims).collect();
        assert_eq!(dims, [[1, 3, 2, 1], [1, 3, 2, 2], [1, 3, 2, 6]]);
        assert_eq!(values(scores[0].clone()), [0.0; 6]);
        let (parents, leaves) = (values(scores[1].clone()), values(scores[2].clone()));
        for (siblings, parent) in leaves.chunks(3).zip(&parents) {
            let best = siblings.iter().fold(f32::MIN, |a, b| a.max(*b));
            // Some child of every node adds 0; with the published scores it adds the scale.
            match surrogate {
                Surrogate::DenseGradient { .. } => assert!(best > *parent),
                _ => assert_eq!(best, *parent),
            }
        }
    }
}

#[test]
fn published_scores_count_wrong_decisions() {
    let tree = tree(4, &[2, 2, 2], 1);
    let x = random([1, 5, 1, 4], 3, &device());
    let routed = integers(tree.route(x.clone(), None).leaves());
    let scale = 0.25;
    let surrogate = Surrogate::DenseGradient {
        temperature: 1.0,
        clip: 1.0,
        scale: Some(scale),
    };
    let scores = values(leaf_scores(&tree, x, &surrogate));
    for (token, scores) in scores.chunks(8).enumerate() {
        for (leaf, score) in scores.iter().enumerate() {
            let path = tree.shape().path(leaf);
            // The nodes on a leaf's path other than on the routed one decide by their own sign:
            // what is known without them is the parity of the wrong decisions, and all of them for
            // the routed leaf.
            let decisions = path.len() as f32;
            let wrong = (decisions - score / scale as f32) / 2.0;
            assert!((wrong - wrong.round()).abs() < 1e-5);
            assert_eq!(wrong.round() == 0.0, leaf as i64 == routed[token]);
        }
    }
}

#[test]
fn the_published_scale_leaves_out_masked_tokens() {
    let tree = tree(4, &[2, 3], 1);
    let x = random([1, 5, 1, 4], 4, &device());
    let mask = padding(&[3], 5, &device());
    let [published, ..] = surrogates();
    let padded = tree.node_scores(x.clone(), Some(mask), &published);
    let short = tree.node_scores(x.narrow(1, 0, 3), None, &published);
    for (padded, short) in padded.into_iter().zip(short) {
        assert_close(padded.narrow(1, 0, 3), short, 1e-6, 1e-6);
    }
}

#[test]
fn probabilities_are_softmaxes_of_scores() {
    let tree = tree(4, &[3, 2], 1);
    let x = random([2, 3, 2, 4], 5, &device());
    for surrogate in surrogates() {
        let leaves = tree.leaf_probabilities(x.clone(), None, &surrogate);
        let ones = Tensor::ones([2, 3, 2, 1], &device());
        assert_close(leaves.clone().sum_dim(3), ones.clone(), 1e-5, 0.0);
        let depths = tree.node_probabilities(x.clone(), None, &surrogate);
        assert_close(depths[0].clone(), ones, 0.0, 0.0);
        assert_close(depths[2].clone(), leaves.clone(), 1e-6, 0.0);
        let scores = leaf_scores(&tree, x.clone(), &surrogate) / surrogate.temperature();
        let ratio = |t: Tensor<4>| t.clone().narrow(3, 0, 1) - t.narrow(3, 4, 1);
        assert_close(ratio(leaves.log()), ratio(scores), 1e-4, 1e-4);
    }
}

#[derive(Config, Debug)]
struct Settings {
    surrogate: Surrogate,
}

#[test]
fn a_surrogate_is_written_and_read_by_its_kind() {
    for surrogate in surrogates() {
        let text = Settings::new(surrogate).to_string();
        let read = Settings::load_binary(text.as_bytes()).unwrap();
        assert_eq!(read.surrogate, surrogate);
    }
    let text = r#"{"surrogate": {"kind": "top-margin", "candidates": 2, "temperature": 1.0}}"#;
    let read = Settings::load_binary(text.as_bytes()).unwrap();
    assert_eq!(read.surrogate, Surrogate::default());
}

#[test]
#[should_panic(expected = "node_scores: temperature: expected a positive number, got 0")]
fn a_temperature_of_zero_is_refused() {
    let x = random([1, 1, 1, 3], 1, &device());
    tree(3, &[2], 1).node_scores(x, None, &Surrogate::Soft { temperature: 0.0 });
}

#[test]
#[should_panic(expected = "best_leaves: count: expected at least 1, got 0")]
fn no_candidates_are_refused() {
    tree(3, &[2], 1).best_leaves(random([1, 1, 1, 3], 1, &device()), None, 0);
}

proptest! {
    // Few cases: some backends compile kernels for each shape.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_beam_finds_the_best_leaves(
        branching in prop_oneof![
            Just(vec![2, 2, 2]), Just(vec![4, 3]), Just(vec![2, 5, 2]), Just(vec![2])
        ],
        count in 1usize..7,
        seed in 0u64..1000,
    ) {
        let tree = tree(4, &branching, 2);
        let x = random([1, 6, 2, 4], seed, &device());
        let candidates = tree.best_leaves(x.clone(), None, count);
        let count = count.min(tree.leaves());
        prop_assert_eq!(candidates.leaves.dims(), [1, 6, 2, count]);
        let routed = integers(tree.route(x.clone(), None).leaves());
        let all = values(leaf_scores(&tree, x, &Surrogate::default()));
        let (leaves, scores) = (integers(candidates.leaves), values(candidates.scores));
        for (token, all) in all.chunks(tree.leaves()).enumerate() {
            let leaves = &leaves[token * count..][..count];
            let scores = &scores[token * count..][..count];
            prop_assert_eq!(leaves[0], routed[token]);
            let mut sorted = all.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for (at, (leaf, score)) in leaves.iter().zip(scores).enumerate() {
                prop_assert!(!leaves[..at].contains(leaf));
                prop_assert!((all[*leaf as usize] - score).abs() < 1e-5);
                prop_assert!((sorted[at] - score).abs() < 1e-5, "{sorted:?} {scores:?}");
            }
        }
    }
}
