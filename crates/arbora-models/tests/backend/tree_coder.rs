//! The TreeCoder on a device: where sequences go, and that each is computed as if it were alone.

use crate::parameters;
use crate::tree_coder_oracle::{
    assert_near, join_chunks, learning, rows, run, select_one_hot, small, tokens,
};
use arbora_attention::baselines::{BigBirdConfig, LinformerConfig, PerformerConfig};
use arbora_attention::{
    AttentionKindConfig, RouterConfig, TreeCoarseConfig, TreeFineConfig, TreeScope, TreeSharing,
};
use arbora_models::store::{load_weights, save_weights};
use arbora_models::tree_coder::{
    LeafHead, NodeName, Placement, RouteOn, SelectorBalance, SelectorConfig, SelectorGradient,
    SelectorKind,
};
use arbora_models::{TreeCoder, TreeCoderConfig, TreeCoderOptions};
use arbora_testing::{assert_close, assert_held, device, values};
use burn::module::Module;
use std::collections::HashSet;

fn config(branching: usize, height: usize) -> TreeCoderConfig {
    small().with_branching(branching).with_height(height)
}

#[test]
fn each_item_is_computed_by_height_plus_one_nodes() {
    for (branching, height) in [(2, 0), (2, 1), (3, 2), (2, 3)] {
        for (route_on, chunks) in [
            (RouteOn::FirstN { tokens: 2 }, 1),
            (
                RouteOn::PreviousChunk { tokens: 2 },
                if height == 0 { 1 } else { 3 },
            ),
        ] {
            let config = config(branching, height).with_route_on(route_on);
            let output = run(&config.clone().with_seed(1).init(&device()), &rows::<5>(6));
            let routing = output.routing;
            assert_eq!(output.logits.dims(), [6, 5, 7]);
            assert_eq!(routing.chunks, chunks);
            assert_eq!(routing.leaves.len(), 6 * chunks);
            assert_eq!(
                routing.activations.iter().sum::<usize>(),
                6 * chunks * (height + 1)
            );
            // Level by level, nodes were active as often as decisions sent items there.
            let tree = config.tree();
            for (depth, level) in routing.levels.iter().enumerate() {
                for (item, (node, child)) in level.nodes.iter().zip(&level.children).enumerate() {
                    let path = tree.path(routing.leaves[item]);
                    let expected = path[..depth]
                        .iter()
                        .fold(0, |node, child| node * branching + child);
                    assert_eq!((*node, *child), (expected, path[depth]));
                }
                for index in 0..tree.width(depth) {
                    let here = level.nodes.iter().filter(|node| **node == index).count();
                    assert_eq!(routing.activations[tree.offset(depth) + index], here);
                }
            }
        }
    }
}

#[test]
fn grouped_execution_equals_every_node_on_every_sequence_selected_by_one_hot_rows() {
    for (branching, height) in [(2, 0), (2, 2), (3, 1), (2, 3)] {
        for head in [LeafHead::Shared, LeafHead::PerLeaf] {
            let model = config(branching, height)
                .with_head(head)
                .with_seed(17)
                .init(&device());
            let rows = rows::<4>(7);
            let output = run(&model, &rows);
            let used = output.routing.leaves.iter().collect::<HashSet<_>>();
            assert!(height == 0 || used.len() > 2, "{used:?}");
            let input = tokens(&rows, &device());
            let (logits, leaves) = select_one_hot(&model, input, None, |_, taken| taken);
            assert_eq!(output.routing.leaves, leaves);
            assert_close(output.logits, logits, 1e-4, 1e-4);
        }
    }
}

#[test]
fn levels_have_blocks_and_widths_of_their_own() {
    let config = small().with_blocks(vec![2, 1, 3]).with_d_ff(vec![8, 4, 6]);
    let model = config.clone().with_seed(1).init(&device());
    let blocks: Vec<usize> = model.nodes.iter().map(|node| node.blocks.len()).collect();
    assert_eq!(blocks, [2, 1, 1, 3, 3, 3, 3]);
    assert_eq!(config.active_blocks(), 6);
    let rows = rows::<4>(5);
    let input = tokens(&rows, &device());
    let (logits, _) = select_one_hot(&model, input, None, |_, taken| taken);
    assert_close(run(&model, &rows).logits, logits, 1e-4, 1e-4);

    let linear = config.linear_active();
    let widths: Vec<usize> = (0..6).map(|place| linear.d_ff_of(0, place)).collect();
    assert_eq!(widths, [8, 8, 4, 6, 6, 6]);
    assert_eq!(
        run(&linear.with_seed(1).init(&device()), &rows)
            .routing
            .leaves,
        [0; 5]
    );
}

#[test]
fn chunks_of_a_sequence_meet_at_nodes_as_if_joined_there() {
    if arbora_testing::skipped_in_half_precision(
        "other groups of sequences round otherwise, and near routes change",
    ) {
        return;
    }
    // Rows that stand for missing chunks come last, so only encoders could see them.
    let sizes = [(2, 2), (1, 2), (3, 1), (5, 1), (2, 0)];
    let encoders = [(2, 2, false), (3, 1, false)];
    let all = sizes.map(|(chunk, height)| (chunk, height, true));
    for (chunk, height, causal) in all.into_iter().chain(encoders) {
        let config = config(2, height)
            .with_causal(causal)
            .with_route_on(RouteOn::PreviousChunk { tokens: chunk });
        let model = config.clone().with_seed(17).init(&device());
        let rows = rows::<7>(4);
        let output = run(&model, &rows);
        // At height 0 there is nothing to route.
        let chunks = match height {
            0 => 1,
            _ => 7usize.div_ceil(chunk),
        };
        let mut unequal = false;
        for (sequence, row) in rows.iter().enumerate() {
            let (logits, leaves) = join_chunks(&model, tokens(&[*row], &device()), chunk);
            let leaves = &leaves[..chunks];
            assert_eq!(
                output.routing.leaves[sequence * chunks..][..chunks],
                *leaves
            );
            unequal |= leaves.iter().any(|leaf| *leaf != leaves[0]);
            let got = output.logits.clone().narrow(0, sequence, 1);
            assert_close(got, logits, 1e-4, 1e-4);
        }
        assert!(
            unequal || height == 0 || chunks == 2,
            "every chunk went the same way"
        );
    }
}

#[test]
#[should_panic(expected = "tree_coder: axis 0 of tokens: expected at least 1, got 0")]
fn a_batch_without_sequences_is_refused() {
    run::<3>(&small().with_seed(1).init(&device()), &[]);
}

#[test]
fn the_order_of_a_batch_changes_no_sequence() {
    for route_on in [
        RouteOn::FirstN { tokens: 2 },
        RouteOn::PreviousChunk { tokens: 2 },
        RouteOn::LastToken,
        RouteOn::MeanAll,
    ] {
        let model = small()
            .with_route_on(route_on)
            .with_seed(17)
            .init(&device());
        let rows = rows::<5>(5);
        let mut turned = rows.clone();
        turned.rotate_left(2);
        let logits = values(run(&model, &rows).logits);
        let mut expected = logits.clone();
        expected.rotate_left(2 * 5 * 7);
        assert_near(&values(run(&model, &turned).logits), &expected);
        for (row, expected) in rows.iter().zip(logits.chunks(5 * 7)) {
            assert_near(&values(run(&model, &[*row]).logits), expected);
        }
    }
}

#[test]
fn given_leaves_are_gone_to() {
    let model = small().with_seed(1).init(&device());
    let rows = rows::<4>(4);
    // One item per leaf, a leaf without items, one leaf for all.
    for leaves in [[0, 1, 2, 3], [3, 1, 1, 0], [2; 4]] {
        let options = TreeCoderOptions {
            leaves: Some(leaves.to_vec()),
            ..Default::default()
        };
        let input = tokens(&rows, &device());
        let output = model.forward(input.clone(), None, &options);
        assert_eq!(output.routing.leaves, leaves);
        let (logits, _) = select_one_hot(&model, input, Some(&leaves), |_, taken| taken);
        assert_close(output.logits, logits, 1e-4, 1e-4);
    }
}

#[test]
#[should_panic(expected = "tree_coder: options.leaves: expected leaves below 4, got 4")]
fn a_leaf_that_does_not_exist_is_refused() {
    given(vec![0, 4]);
}

#[test]
#[should_panic(expected = "tree_coder: options.leaves: axis 0 (items): expected 2, got 1")]
fn a_leaf_for_every_item_is_demanded() {
    given(vec![0]);
}

fn given(leaves: Vec<usize>) {
    let options = TreeCoderOptions {
        leaves: Some(leaves),
        ..Default::default()
    };
    let model = small().with_seed(1).init(&device());
    model.forward(tokens(&rows::<3>(2), &device()), None, &options);
}

#[test]
#[should_panic(expected = "axis 1 of tokens: expected 1 to 8")]
fn sequences_longer_than_the_context_are_refused() {
    run(&small().with_seed(1).init(&device()), &rows::<9>(1));
}

fn router(scope: TreeScope, sharing: TreeSharing) -> RouterConfig {
    let mut router = RouterConfig::new([2, 3]);
    (router.scope, router.sharing) = (scope, sharing);
    router
}

/// Ways to attend, and how many numbers a block of them saves without learning them.
fn kinds() -> Vec<(AttentionKindConfig, usize)> {
    let mut fine = TreeFineConfig::new([2, 3]);
    fine.router = router(TreeScope::PerLayer, TreeSharing::Separate);
    let mut coarse = TreeCoarseConfig::new([2, 3]);
    coarse.router = RouterConfig {
        balance_loss: coarse.router.balance_loss,
        surrogate: coarse.router.surrogate,
        ..router(TreeScope::PerHead, TreeSharing::Shared)
    };
    let linformer = LinformerConfig {
        max_tokens: 8,
        rank: 3,
        ..Default::default()
    };
    let performer = PerformerConfig {
        features: 5,
        ..Default::default()
    };
    let big_bird = BigBirdConfig {
        block: 2,
        ..Default::default()
    };
    vec![
        (AttentionKindConfig::Dense, 0),
        // One function at the root of a binary level, and three at each of its children.
        (AttentionKindConfig::TreeFine(fine), 2 * 7),
        // Of queries and of keys.
        (AttentionKindConfig::TreeCoarse(coarse), 2 * 2 * 7),
        (AttentionKindConfig::Performer(performer), 4 * 5),
        (AttentionKindConfig::Linformer(linformer), 0),
        (AttentionKindConfig::BigBird(big_bird), 0),
    ]
}

#[test]
fn parameters_are_counted_as_the_model_has_them() {
    let hidden = SelectorConfig::new().with_hidden(Some(5));
    let hash = SelectorConfig::new().with_kind(SelectorKind::Hash);
    for (kind, saved) in kinds() {
        let config = small()
            .with_attention(kind)
            .with_causal(false)
            .with_route_on(RouteOn::MeanAll);
        for (config, biases) in [
            (config.clone(), 2 * 3),
            (
                config
                    .clone()
                    .with_selector(hidden.clone())
                    .with_branching(3),
                3 * 4,
            ),
            (config.clone().with_selector(hash.clone()), 2 * 3),
            (
                config
                    .clone()
                    .with_head(LeafHead::PerLeaf)
                    .with_classes(Some(3)),
                2 * 3,
            ),
            (
                config
                    .clone()
                    .with_blocks(vec![1, 2, 1])
                    .with_d_ff(vec![4, 5, 6]),
                2 * 3,
            ),
            (config.clone().with_height(0), 0),
            (config.linear_total(), 0),
        ] {
            let model = config.clone().with_seed(1).init(&device());
            let blocks: usize = model.nodes.iter().map(|node| node.blocks.len()).sum();
            let directions = match config.attention {
                AttentionKindConfig::Performer(_) => config.d_model / config.n_heads * 5,
                _ => saved,
            };
            let expected = model.num_params() - biases - blocks * directions;
            assert_eq!(config.parameters().total, expected, "{config}");
        }
    }
}

#[test]
fn a_tree_with_any_attention_computes_each_sequence_alone() {
    for (kind, _) in kinds() {
        let causal = !matches!(
            kind,
            AttentionKindConfig::Linformer(_) | AttentionKindConfig::BigBird(_)
        );
        let model = small()
            .with_attention(kind)
            .with_causal(causal)
            .with_seed(1)
            .init(&device());
        let rows = rows::<6>(4);
        let together = run(&model, &rows);
        let expected = values(together.logits);
        for (row, expected) in rows.iter().zip(expected.chunks(6 * 7)) {
            assert_near(&values(run(&model, &[*row]).logits), expected);
        }
    }
}

#[test]
fn selectors_and_trees_of_attention_are_named_for_the_optimiser() {
    let tree = AttentionKindConfig::TreeFine(TreeFineConfig::new([2]));
    let model = small().with_attention(tree).with_seed(1).init(&device());
    // A gamma, weights and biases of each of three selectors; one level in each of seven blocks.
    assert_eq!(model.selector_parameter_ids().len(), 9);
    assert_eq!(model.tree_parameter_ids().len(), 14);
    let hidden = small().with_selector(SelectorConfig::new().with_hidden(Some(4)));
    let model = hidden.with_seed(1).init(&device());
    assert_eq!(model.selector_parameter_ids().len(), 15);
}

fn state(model: &TreeCoder) -> Vec<f32> {
    let all = parameters(model).into_iter();
    all.flat_map(|parameter| parameter.values).collect()
}

#[test]
fn saved_weights_are_the_weights_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let config = learning(
        SelectorGradient::ScaledDelta,
        SelectorBalance::LossFree { rate: 0.125 },
    );
    let training = config
        .clone()
        .with_seed(1)
        .init(&arbora_testing::autodiff_device());
    crate::tree_coder_oracle::run_on(&training, &rows::<4>(5), &arbora_testing::autodiff_device());
    let saved = training.valid();
    let bias = saved.nodes[0].selector.as_ref().unwrap().decision_bias();
    assert!(values(bias).iter().any(|bias| *bias != 0.0));
    for name in ["weights.bpk", "weights.safetensors"] {
        let path = folder.path().join(name);
        for saved in [&saved, &training] {
            save_weights(saved, &path).unwrap();
            let loaded = load_weights(config.clone().with_seed(2).init(&device()), &path).unwrap();
            assert_eq!(state(&loaded), state(saved), "{name}");
            let output = run(&loaded, &rows::<4>(3)).logits;
            assert_close(
                output,
                run(&training.valid(), &rows::<4>(3)).logits,
                0.0,
                0.0,
            );
        }
    }
    let other = config.with_height(1).with_seed(2).init(&device());
    assert!(load_weights(other, folder.path().join("weights.bpk")).is_err());
}

#[test]
fn one_seed_gives_these_weights_on_every_backend() {
    let found = parameters(&small().with_seed(7).init(&device()));
    for (path, first) in GOLDEN {
        let parameter = found.iter().find(|parameter| parameter.path == path);
        let parameter = parameter.unwrap_or_else(|| panic!("no parameter {path}"));
        assert_held(&parameter.values[..2], &first, path);
    }
}

/// The first two numbers of some parameters of the small model with seed 7.
const GOLDEN: [(&str, [f32; 2]); 3] = [
    ("nodes.0.selector.output.weight", [-0.17243546, 0.3059593]),
    (
        "nodes.6.blocks.0.attention.key.weight",
        [-0.10807943, -0.42100927],
    ),
    ("head.output.weight", [0.5053595, 0.4724651]),
];

#[test]
fn a_placed_model_records_as_it_did_where_gradients_are_checkpointed() {
    let recording = [
        device(),
        device().autodiff(),
        device().autodiff().gradient_checkpointing(),
    ];
    for recording in recording {
        let model = small().with_seed(1).init(&recording);
        let placement = Placement::new().with(NodeName::new([0]), device());
        let placed = model.place(&placement).unwrap();
        let input = tokens(&[[3, 5, 1, 2]], &recording);
        let output = placed.forward(input, None, &TreeCoderOptions::default());
        let loss = output.logits.powi_scalar(2).mean();
        assert!(loss.clone().into_scalar::<f32>().is_finite());
        if recording.is_autodiff() {
            drop(loss.backward());
        }
    }
}
