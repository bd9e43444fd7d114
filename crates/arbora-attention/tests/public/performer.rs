//! The random directions of Performer.

use arbora_attention::baselines::PerformerConfig;
use arbora_attention::{AttentionKind, AttentionKindConfig, SelfAttentionConfig};
use arbora_testing::{device, values};

/// The directions that a layer of one head draws, `[features, dim]`.
fn drawn(config: PerformerConfig, dim: usize) -> Vec<f32> {
    let layer = SelfAttentionConfig::new(dim, 1)
        .with_kind(AttentionKindConfig::Performer(config))
        .init(&device());
    let AttentionKind::Performer(performer) = layer.kind else {
        unreachable!("the kind is that of the configuration");
    };
    values(performer.directions.value().transpose())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn config(features: usize, orthogonal: bool, seed: u64) -> PerformerConfig {
    PerformerConfig {
        features,
        orthogonal,
        seed,
        layer: 0,
    }
}

#[test]
fn orthogonal_directions_are_orthogonal_within_their_group() {
    let rows = drawn(config(7, true, 3), 4);
    let row =
        |at: usize| -> Vec<f64> { rows[at * 4..][..4].iter().map(|x| f64::from(*x)).collect() };
    for (a, b) in [(0, 1), (0, 3), (2, 3), (4, 5), (5, 6)] {
        let cosine = dot(&row(a), &row(b)) / norm(&row(a)) / norm(&row(b));
        assert!(cosine.abs() < 1e-6, "{a} {b} {cosine}");
    }
    let across = dot(&row(0), &row(4)) / norm(&row(0)) / norm(&row(4));
    assert!(across.abs() > 1e-3, "{across}");
}

#[test]
fn products_of_features_estimate_the_exponential_without_bias() {
    let (q, k) = ([0.5, -0.3, 0.8], [0.2, 0.7, 0.4]);
    let exact = dot(&q, &k).exp();
    for orthogonal in [true, false] {
        let (seeds, features) = (2000, 24);
        let estimates: Vec<f64> = (0..seeds)
            .map(|seed| {
                let rows = drawn(config(features, orthogonal, seed), 3);
                let product = |row: &[f32]| {
                    let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
                    let feature = |x: &[f64]| (dot(&row, x) - dot(x, x) / 2.0).exp();
                    feature(&q) * feature(&k)
                };
                rows.chunks(3).map(product).sum::<f64>() / features as f64
            })
            .collect();
        let mean = estimates.iter().sum::<f64>() / seeds as f64;
        let variance = estimates
            .iter()
            .map(|estimate| (estimate - mean).powi(2))
            .sum::<f64>()
            / seeds as f64;
        let deviation = (variance / seeds as f64).sqrt();
        assert!(
            (mean - exact).abs() < 4.0 * deviation && deviation < 0.02,
            "{orthogonal}: {mean} ± {deviation}, exact {exact}"
        );
    }
}

#[test]
fn seeds_and_layers_draw_different_directions() {
    let other_layer = PerformerConfig {
        layer: 1,
        ..config(8, true, 0)
    };
    assert_ne!(drawn(config(8, true, 0), 4), drawn(config(8, true, 1), 4));
    assert_ne!(drawn(config(8, true, 0), 4), drawn(other_layer, 4));
}
