//! What flows back through surrogate scores.

use super::surrogates;
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{
    allowed, autodiff_device, device, padding, random, random_data, random_like, values,
};
use arbora_tree::{RoutingTree, RoutingTreeConfig, Surrogate};
use burn::tensor::{Device, Tensor};

const MARGINS: Surrogate = Surrogate::TopMargin {
    candidates: 2,
    temperature: 1.0,
};

fn tree(branching: &[usize], normalize: bool, device: &Device) -> RoutingTree {
    RoutingTreeConfig::new(3, branching.to_vec())
        .with_normalize(normalize)
        .with_seed(3)
        .init(device)
}

/// A number that depends on every node score.
fn weighted(scores: Vec<Tensor<4>>) -> Tensor<1> {
    let sums = scores.into_iter().enumerate().map(|(depth, scores)| {
        let weight = random_like(&scores, 10 + depth as u64);
        (scores * weight).sum()
    });
    sums.reduce(|sum, next| sum + next).unwrap()
}

#[test]
fn gradients_of_margin_scores_match_finite_differences() {
    if arbora_testing::skipped_in_half_precision("steps that differences need are lost in rounding")
    {
        return;
    }
    // Seeds whose decisions are all farther from a kink than a step reaches.
    for (branching, normalize) in [(vec![2, 2], true), (vec![3, 2], true), (vec![3], false)] {
        assert_matches_finite_differences(
            random_data([1, 2, 1, 3], 1),
            &device(),
            1e-3,
            2e-3,
            |x| {
                let tree = tree(&branching, normalize, &x.device());
                weighted(tree.node_scores(x, None, &MARGINS))
            },
        );
        assert_matches_finite_differences(
            random_data([1, 2, 1, 3], 1),
            &device(),
            1e-3,
            2e-3,
            |x| {
                let tree = tree(&branching, normalize, &x.device());
                weighted(vec![tree.best_leaves(x, None, 2).scores])
            },
        );
    }
}

/// 1 at `[0, output, 1]` of `[1, 3, 3]`.
fn unit_at(output: usize) -> Tensor<3> {
    let mut numbers = [0.0f32; 9];
    numbers[output * 3 + 1] = 1.0;
    Tensor::<1>::from_floats(numbers, &device()).reshape([1, 3, 3])
}

#[test]
fn gradients_reach_every_weight_and_bias_as_finite_differences_say() {
    if arbora_testing::skipped_in_half_precision("steps that differences need are lost in rounding")
    {
        return;
    }
    let x = random([1, 4, 1, 3], 2, &device());
    let trained = tree(&[3, 2], true, &autodiff_device());
    let gradients = weighted(trained.node_scores(x.clone(), None, &MARGINS)).backward();
    let step = 1e-3f32;
    for depth in 0..2 {
        let level = &trained.levels()[depth];
        let (weight, bias) = (level.weight.val(), level.bias.val());
        let of_weight = values(weight.grad(&gradients).unwrap());
        let of_bias = values(bias.grad(&gradients).unwrap());
        let (weight, bias) = (weight.without_autodiff(), bias.without_autodiff());
        let loss = |weight: Tensor<3>, bias: Tensor<2>| -> f32 {
            let moved = tree(&[3, 2], true, &device()).with_parameters(depth, weight, bias);
            weighted(moved.node_scores(x.clone(), None, &MARGINS)).into_scalar()
        };
        for output in 0..3 {
            let unit = Tensor::<2>::eye(3, &device()).narrow(0, output, 1) * step;
            let (up, down) = (bias.clone() + unit.clone(), bias.clone() - unit);
            let numeric = (loss(weight.clone(), up) - loss(weight.clone(), down)) / (2.0 * step);
            assert!((numeric - of_bias[output]).abs() < 5e-3 * (1.0 + numeric.abs()));
            let unit = unit_at(output) * step;
            let (up, down) = (weight.clone() + unit.clone(), weight.clone() - unit);
            let numeric = (loss(up, bias.clone()) - loss(down, bias.clone())) / (2.0 * step);
            assert!((numeric - of_weight[output * 3 + 1]).abs() < 5e-3 * (1.0 + numeric.abs()));
        }
    }
}

#[test]
fn the_published_backward_pass_has_its_closed_form() {
    // Binary, height 3: `∂L/∂z = p (g - <p, g>) / τ` and `∂L/∂a = 2 · 1[|a| <= clip] · S^T ∂L/∂z`.
    let (tokens, temperature, clip) = (6, 0.8f64, 0.6f64);
    let surrogate = Surrogate::DenseGradient {
        temperature,
        clip,
        scale: None,
    };
    let tree = tree(&[2, 2, 2], false, &autodiff_device());
    let x = random([1, tokens, 1, 3], 4, &device()) * 2.0;
    let probabilities = tree.leaf_probabilities(x.clone(), None, &surrogate);
    let upstream = random_like(&probabilities, 5);
    let p = values(probabilities.clone());
    let gradients = (probabilities * upstream.clone()).sum().backward();
    let (x, g) = (values(x), values(upstream));

    let mut clipped = 0;
    for depth in 0..3 {
        let level = &tree.levels()[depth];
        let weight = values(level.weight.val());
        let got = values(level.bias.val().grad(&gradients).unwrap());
        for node in 0..1 << depth {
            let mut expected = 0.0f64;
            for token in 0..tokens {
                let a: f64 = (0..3)
                    .map(|at| f64::from(weight[node * 3 + at]) * f64::from(x[token * 3 + at]))
                    .sum();
                assert!((a.abs() - clip).abs() > 1e-4, "the seed sits on the clip");
                if a.abs() > clip {
                    clipped += 1;
                    continue;
                }
                let row = |v: &[f32], leaf: usize| f64::from(v[token * 8 + leaf]);
                let mean: f64 = (0..8).map(|leaf| row(&p, leaf) * row(&g, leaf)).sum();
                let below = 8 >> depth;
                for leaf in node * below..(node + 1) * below {
                    let sign = if leaf % below >= below / 2 { 1.0 } else { -1.0 };
                    let z = row(&p, leaf) * (row(&g, leaf) - mean) / temperature;
                    expected += 2.0 * sign * z;
                }
            }
            assert!(
                (got[node] - expected as f32).abs() < allowed(1e-4),
                "depth {depth}, node {node}: expected {expected}, got {}",
                got[node]
            );
        }
    }
    assert!(clipped > 0 && clipped < 7 * tokens);
}

#[test]
fn the_backward_pass_of_a_k_ary_choice_is_that_of_its_softmax() {
    let temperature = 0.7;
    let surrogate = Surrogate::DenseGradient {
        temperature,
        clip: 1.0,
        scale: Some(0.5),
    };
    let tree = tree(&[4], false, &autodiff_device());
    let x = random([1, 3, 1, 3], 6, &device());
    let scores = tree.node_scores(x.clone(), None, &surrogate).pop().unwrap();
    let upstream = random_like(&scores, 7);
    let gradients = (scores * upstream.clone()).sum().backward();
    let got = values(tree.levels()[0].bias.val().grad(&gradients).unwrap());

    let weight = values(tree.levels()[0].weight.val());
    let (x, g) = (values(x), values(upstream));
    let mut expected = [0.0f64; 4];
    for token in 0..3 {
        let exponential = |child: usize| {
            let dot: f32 = (0..3)
                .map(|at| weight[child * 3 + at] * x[token * 3 + at])
                .sum();
            (f64::from(dot) / temperature).exp()
        };
        let total: f64 = (0..4).map(exponential).sum();
        let p = |child: usize| exponential(child) / total;
        let mean: f64 = (0..4).map(|c| p(c) * f64::from(g[token * 4 + c])).sum();
        for (child, expected) in expected.iter_mut().enumerate() {
            *expected += 0.5 * p(child) * (f64::from(g[token * 4 + child]) - mean) / temperature;
        }
    }
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected as f32).abs() < allowed(1e-5),
            "{got} {expected}"
        );
    }
}

#[test]
fn values_do_not_depend_on_whether_gradients_are_recorded() {
    let x = random([2, 3, 1, 3], 8, &device());
    for surrogate in surrogates() {
        let plain = tree(&[2, 3], true, &device()).node_scores(x.clone(), None, &surrogate);
        let tracked =
            tree(&[2, 3], true, &autodiff_device()).node_scores(x.clone(), None, &surrogate);
        for (plain, tracked) in plain.into_iter().zip(tracked) {
            assert_eq!(values(plain), values(tracked));
        }
    }
}

#[test]
fn masked_candidates_send_no_gradient() {
    let tree = tree(&[2, 3], true, &autodiff_device());
    let x = random([1, 4, 1, 3], 9, &autodiff_device()).require_grad();
    let mask = padding(&[3], 4, &device());
    let scores = tree.best_leaves(x.clone(), Some(mask), 3).scores;
    let gradient = values(x.grad(&scores.sum().backward()).unwrap());
    assert!(gradient[..9].iter().any(|x| *x != 0.0));
    assert_eq!(gradient[9..], [0.0; 3]);
}
