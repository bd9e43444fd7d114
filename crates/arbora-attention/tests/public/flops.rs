//! What attention costs by formula, and over a run.

use arbora_attention::TreeScope;
use arbora_attention::baselines::BigBirdConfig;
use arbora_attention::flops::{AttentionCost, CostShape, RunCost};
use proptest::prelude::*;

const SHAPE: CostShape = CostShape::new(48, 16, 4);

#[test]
fn formulas_are_those_of_the_documentation() {
    let (n, d, heads) = (48.0, 16.0, 4.0);
    let dense = SHAPE.dense();
    assert_eq!(dense.core, 4.0 * n * n * d + 5.0 * heads * n * n);
    assert_eq!(dense.projections, 8.0 * n * d * d);
    let balanced = SHAPE.tree_fine(&[2, 2, 2], 0.125);
    assert_eq!(balanced.core, dense.core / 8.0 + 4.0 * n * d * 3.0);
    let wide = SHAPE.tree_fine(&[10, 3], 0.0);
    assert_eq!(wide.core, 4.0 * n * d * 13.0);
    let path = SHAPE.tree_coarse(&[2; 5]).core;
    assert_eq!(path, 4.0 * n * 5.0 * d + 2.0 * n * d + 2.0 * n * 6.0 * d);
    let all = SHAPE.tree_coarse_all_nodes(&[2; 5]);
    assert_eq!(all.core, 3.0 * 2.0 * n * 31.0 * d);
    let rest = path - 4.0 * n * 5.0 * d;
    for (scope, trees) in [(TreeScope::PerLayer, 1.0), (TreeScope::PerHead, heads)] {
        let folded = SHAPE.tree_coarse_folded(&[2; 5], scope);
        assert_eq!(folded.projections, 4.0 * n * d * d);
        assert_eq!(folded.core, 4.0 * n * 5.0 * d * trees + rest);
    }
    let all = SHAPE.tree_coarse_all_nodes(&[3, 4]).core;
    assert_eq!(all, 3.0 * 2.0 * n * (3.0 + 12.0) * d);
    let linformer = SHAPE.linformer(7).core;
    assert_eq!(linformer, 8.0 * n * 7.0 * d + 5.0 * heads * n * 7.0);
    let performer = SHAPE.performer(9).core;
    assert_eq!(performer, 8.0 * n * 9.0 * d + 14.0 * n * 9.0 * heads);
}

#[test]
fn folded_trees_read_whole_tokens_also_for_fewer_key_heads() {
    let (n, d) = (48.0, 16.0);
    let grouped = SHAPE.with_kv_heads(2);
    let rest = grouped.tree_coarse(&[]).core + 2.0 * n * d;
    let folded = |scope| grouped.tree_coarse_folded(&[2], scope).core - rest;
    assert_eq!(folded(TreeScope::PerHead), 2.0 * n * d * (4.0 + 2.0));
    assert_eq!(folded(TreeScope::PerLayer), 2.0 * n * d * 2.0);
}

#[test]
fn a_height_of_zero_costs_what_dense_attention_costs() {
    assert_eq!(SHAPE.tree_fine(&[], 1.0), SHAPE.dense());
}

#[test]
fn big_bird_counts_the_pairs_it_forms() {
    let config = BigBirdConfig {
        block: 4,
        window: 3,
        random: 1,
        global: 1,
        ..BigBirdConfig::default()
    };
    let pairs = 4.0 * 48.0 + 44.0 * 20.0;
    let expected = pairs * (4.0 * 16.0 + 5.0 * 4.0);
    assert_eq!(SHAPE.big_bird(&config).core, expected);
    let covering = BigBirdConfig {
        random: 12,
        ..config
    };
    assert_eq!(SHAPE.big_bird(&covering), SHAPE.dense());
}

#[test]
fn fewer_key_heads_project_and_route_fewer_numbers() {
    let grouped = SHAPE.with_kv_heads(1);
    let (n, d) = (48.0, 16.0);
    assert_eq!(grouped.dense().core, SHAPE.dense().core);
    let projections = 4.0 * n * d * d + 4.0 * n * d * d / 4.0;
    assert_eq!(grouped.dense().projections, projections);
    assert_eq!(
        grouped.tree_fine(&[2], 0.0).core,
        2.0 * n * d + 2.0 * n * d / 4.0
    );
}

proptest! {
    #[test]
    fn shares_lie_between_balance_and_one_leaf(counts in prop::collection::vec(0usize..50, 1..20)) {
        let share = CostShape::share_of_pairs(&counts, &counts);
        prop_assert!(share <= 1.0);
        if counts.iter().sum::<usize>() > 0 {
            prop_assert!(share >= CostShape::balanced_share(&[counts.len()]) - 1e-12);
        }
    }
}

#[test]
#[should_panic(expected = "share_of_pairs: leaves of keys: expected 2, got 1")]
fn other_leaves_of_keys_are_refused() {
    CostShape::share_of_pairs(&[1, 2], &[3]);
}

#[test]
fn layers_add_up_and_are_described() {
    let shape = CostShape::new(64, 32, 4);
    let mut run = RunCost::default();
    assert_eq!(run.core_ratio(), 1.0);
    for _ in 0..2 {
        run.add(0, "dense", shape.dense(), shape.dense());
    }
    let half = AttentionCost {
        core: shape.dense().core / 2.0,
        ..shape.dense()
    };
    run.add(1, "tree-fine", half, shape.dense());
    run.add(1, "tree-fine", half, shape.dense());
    assert_eq!(run.core_ratio(), 0.75);
    assert_eq!(run.layers()[1].cost.core, shape.dense().core);
    assert_eq!(
        run.to_string(),
        "layer 1, dense: 100.0 % of the core FLOPs of dense attention\n\
         layer 2, tree-fine: 50.0 % of the core FLOPs of dense attention\n\
         all layers: 75.0 % of the core FLOPs of dense attention"
    );
}
