//! The loss that draws routes towards dense attention.

use super::{Descend, fine, fine_layer, mask, report, tokens, tree_fine};
use arbora_attention::{
    AlignmentConfig, SelfAttention, SelfAttentionInput, TreeFineConfig, TreeSharing,
};
use arbora_testing::{allowed, autodiff_device, values};
use arbora_tree::Surrogate;
use burn::module::Module;
use burn::tensor::{Int, Tensor};

pub(super) fn aligned(rows: usize) -> TreeFineConfig {
    let mut config = fine(&[2, 2]);
    config.router.sharing = TreeSharing::Separate;
    config.router.alignment = Some(AlignmentConfig { rows });
    // Calls leave the trees as they are.
    config.router.balance_rate = 0.0;
    config
}

fn alignment(layer: &SelfAttention, input: SelfAttentionInput) -> Tensor<1> {
    report(layer, input)
        .alignment_loss
        .expect("it is asked for")
}

/// The loss over all rows by definition, on the host.
fn divergences(layer: &SelfAttention, tokens: Tensor<3>, lengths: [usize; 2], causal: bool) -> f64 {
    const TEMPERATURE: f64 = 1.0;
    let layer = layer.valid();
    let tokens = tokens.without_autodiff();
    let host = |rows: Tensor<3>| -> Vec<f64> { values(rows).into_iter().map(f64::from).collect() };
    let (query, key) = (
        host(layer.query.forward(tokens.clone())),
        host(layer.key.forward(tokens.clone())),
    );
    let router = &tree_fine(&layer).router;
    let rows = |linear: &burn::nn::Linear, heads: usize| {
        linear.forward(tokens.clone()).reshape([2, 9, heads, 3])
    };
    let soft = Surrogate::Soft {
        temperature: TEMPERATURE,
    };
    let floats =
        |rows: Tensor<4>| -> Vec<f64> { values(rows).into_iter().map(f64::from).collect() };
    let p_query = floats(
        router
            .query
            .leaf_probabilities(rows(&layer.query, 4), None, &soft),
    );
    let p_key = floats(
        router
            .key_tree()
            .leaf_probabilities(rows(&layer.key, 2), None, &soft),
    );
    let (query_routes, key_routes) =
        router.route(rows(&layer.query, 4), rows(&layer.key, 2), None, None);
    let leaves = |leaves: Tensor<3, Int>| -> Vec<i64> { leaves.into_data().iter().collect() };
    let (query_leaf, key_leaf) = (leaves(query_routes.leaves()), leaves(key_routes.leaves()));

    let mut key_mass = vec![0.0; 2 * 9 * 2 * 4];
    let divergence = |mass: &[f64], p: &[f64]| -> f64 {
        let total: f64 = mass.iter().sum();
        mass.iter()
            .zip(p)
            .filter(|(mass, _)| **mass > 0.0)
            .map(|(mass, p)| mass / total * (mass / total / p).ln())
            .sum()
    };
    let (mut sum, mut count) = (0.0, 0.0);
    for (example, length) in lengths.into_iter().enumerate() {
        for (i, head) in (0..length).flat_map(|i| (0..4).map(move |head| (i, head))) {
            let q = (example * 9 + i) * 4 + head;
            let last = if causal { i + 1 } else { length };
            let key_at = |j: usize| (example * 9 + j) * 2 + head / 2;
            let weights: Vec<f64> = (0..last)
                .map(|j| {
                    let dot: f64 = (0..3)
                        .map(|d| query[q * 3 + d] * key[key_at(j) * 3 + d])
                        .sum();
                    (dot / 3_f64.sqrt()).exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            let mut mass = [0.0; 4];
            for (j, weight) in weights.iter().enumerate() {
                mass[key_leaf[key_at(j)] as usize] += weight / total;
                key_mass[key_at(j) * 4 + query_leaf[q] as usize] += weight / total;
            }
            sum += divergence(&mass, &p_query[q * 4..][..4]);
            count += 1.0;
        }
    }
    let queries = sum / count;
    let (mut sum, mut count) = (0.0, 0.0);
    for (mass, p) in key_mass.chunks(4).zip(p_key.chunks(4)) {
        if mass.iter().sum::<f64>() > 0.0 {
            sum += divergence(mass, p);
            count += 1.0;
        }
    }
    queries + sum / count
}

#[test]
fn the_alignment_loss_is_its_definition() {
    let device = autodiff_device();
    let layer = fine_layer(aligned(9), &device);
    for causal in [false, true] {
        let mut input = SelfAttentionInput::new(tokens(&device)).mask_pad(mask());
        input.masks.causal = causal;
        let got = f64::from(alignment(&layer, input).into_scalar::<f32>());
        let expected = divergences(&layer, tokens(&device), [9, 6], causal);
        assert!(
            (got - expected).abs() < f64::from(allowed(1e-4)) * expected,
            "{got}, {expected}"
        );
    }
}

#[test]
fn the_alignment_loss_trains_trees_alone_and_goes_down() {
    let device = autodiff_device();
    let mut layer = fine_layer(aligned(9), &device);
    let input = || SelfAttentionInput::new(tokens(&device));
    let gradients = alignment(&layer, input()).backward();
    assert!(layer.query.weight.grad(&gradients).is_none());
    assert!(layer.key.weight.grad(&gradients).is_none());
    let before = alignment(&layer, input()).into_scalar::<f32>();
    for _ in 0..30 {
        let gradients = alignment(&layer, input()).backward();
        layer = layer.map(&mut Descend(gradients));
    }
    let after = alignment(&layer, input()).into_scalar::<f32>();
    assert!(after < 0.8 * before, "{before} -> {after}");
}

#[test]
fn the_same_call_twice_gives_the_same_bits() {
    let device = autodiff_device();
    let layer = fine_layer(aligned(5), &device);
    let run = || {
        let input = SelfAttentionInput::new(tokens(&device)).mask_pad(mask());
        let loss = alignment(&layer, input.causal().with_seed(3));
        let gradients = loss.clone().backward();
        let router = &tree_fine(&layer).router;
        let mut bits = values(loss);
        for tree in [&router.query, &router.key_tree()] {
            for level in tree.levels() {
                bits.extend(values(level.weight.grad(&gradients).expect("trees learn")));
                bits.extend(values(level.bias.grad(&gradients).expect("trees learn")));
            }
        }
        bits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn drawn_rows_follow_the_seed_and_estimate_the_loss() {
    let device = autodiff_device();
    let layer = fine_layer(aligned(4), &device);
    let drawn = |seed| {
        let input = SelfAttentionInput::new(tokens(&device)).with_seed(seed);
        alignment(&layer, input).into_scalar::<f32>()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    let mean = (0..40).map(|seed| f64::from(drawn(seed))).sum::<f64>() / 40.0;
    let all = divergences(&layer, tokens(&device), [9, 9], false);
    assert!((mean / all - 1.0).abs() < 0.25, "{mean}, {all}");
}

#[test]
#[should_panic(
    expected = "alignment to 4 of 9 rows on an autodiff device needs one per call, see with_seed"
)]
fn drawn_rows_need_a_seed() {
    let device = autodiff_device();
    let layer = fine_layer(aligned(4), &device);
    layer.forward(SelfAttentionInput::new(tokens(&device)));
}
