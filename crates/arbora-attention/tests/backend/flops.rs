//! What layers say that they cost.

use crate::kinds::{D_MODEL, HEADS, layer};
use arbora_attention::baselines::{BigBirdConfig, LinformerConfig, PerformerConfig};
use arbora_attention::flops::{CostShape, RunCost};
use arbora_attention::{AttentionKindConfig, SelfAttentionInput, TreeCoarseConfig, TreeFineConfig};
use arbora_testing::{device, padding, random, values};

#[test]
fn a_layer_costs_what_its_settings_say() {
    let tokens = 40;
    let shape = CostShape::new(tokens, D_MODEL, HEADS).with_kv_heads(2);
    let big_bird = BigBirdConfig {
        block: 4,
        ..BigBirdConfig::default()
    };
    let linformer = LinformerConfig {
        rank: 5,
        ..LinformerConfig::default()
    };
    let performer = PerformerConfig {
        features: 7,
        ..PerformerConfig::default()
    };
    let kinds = [
        (AttentionKindConfig::Dense, shape.dense(), "dense"),
        (
            AttentionKindConfig::BigBird(big_bird.clone()),
            shape.big_bird(&big_bird),
            "big-bird",
        ),
        (
            AttentionKindConfig::Linformer(linformer),
            shape.linformer(5),
            "linformer",
        ),
        (
            AttentionKindConfig::Performer(performer),
            shape.performer(7),
            "performer",
        ),
        (
            AttentionKindConfig::TreeFine(TreeFineConfig::new([3, 2])),
            shape.tree_fine(&[3, 2], 1.0 / 6.0),
            "tree-fine",
        ),
        (
            AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([3, 2])),
            shape.tree_coarse(&[3, 2]),
            "tree-coarse",
        ),
    ];
    for (kind, expected, name) in kinds {
        let layer = layer(&kind, &device());
        assert_eq!(layer.cost_shape(tokens, tokens), shape);
        assert_eq!(layer.kind.cost(&shape, None), expected);
        assert_eq!(layer.kind.name(), name);
        let written = serde_json::to_value(&kind).expect("settings can be written");
        assert_eq!(written["kind"], name);
    }
}

#[test]
fn a_run_reports_what_the_counts_of_its_leaves_cost() {
    let kind = AttentionKindConfig::TreeFine(TreeFineConfig::new([2, 2]));
    let layer = layer(&kind, &device());
    let lengths = [24, 9];
    let input = SelfAttentionInput::new(random([2, 24, D_MODEL], 3, &device())).mask_pad(padding(
        &lengths,
        24,
        &device(),
    ));
    let report = layer.forward(input).routing.expect("trees report");
    let [_, trees] = report.cost_ratio.dims();
    let ratios = values(report.cost_ratio);
    let counts = report.counts;
    let [_, _, leaves] = counts.queries.dims();
    let (queries, keys) = (values(counts.queries), values(counts.keys));

    let mut run = RunCost::default();
    let mut pairs = 0.0;
    for (example, length) in lengths.into_iter().enumerate() {
        let own = &ratios[example * trees..][..trees];
        let share = f64::from(own.iter().sum::<f32>()) / trees as f64;
        run.record(0, &layer, [length, length], Some(share));
        // The same from the counts of leaves.
        for tree in 0..trees {
            let at = (example * trees + tree) * leaves;
            let counts = |all: &[f32]| -> Vec<usize> {
                all[at..at + leaves]
                    .iter()
                    .map(|count| *count as usize)
                    .collect()
            };
            let meet = CostShape::share_of_pairs(&counts(&queries), &counts(&keys));
            pairs += meet * (length * length) as f64 / trees as f64;
        }
    }
    let dense: f64 = lengths.iter().map(|length| (length * length) as f64).sum();
    let per_pair = (4 * D_MODEL + 5 * HEADS) as f64;
    // Two levels of one hyperplane, for queries and for keys, which have half as many heads.
    let routing = 2.0 * 2.0 * 33.0 * (D_MODEL + D_MODEL / 2) as f64;
    let expected = (pairs * per_pair + routing) / (dense * per_pair);
    assert!((run.core_ratio() - expected).abs() < 1e-6);
    assert!(run.to_string().starts_with("layer 1, tree-fine: "));
}
