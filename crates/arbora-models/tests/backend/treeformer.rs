//! The Treeformer on a device.

use crate::{gradients_of, parameters};
use arbora_attention::{
    AttentionKindConfig, Growth, SelfAttention, SelfAttentionConfig, SelfAttentionInput,
    TreeCoarseConfig, TreeFineConfig, TreeSharing,
};
use arbora_models::store::{load_weights, save_weights};
use arbora_models::{Treeformer, TreeformerConfig, TreeformerOptions};
use arbora_testing::{allowed, assert_held, autodiff_device, device, random, values};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

fn small() -> TreeformerConfig {
    TreeformerConfig::new(7, 3)
        .with_d_model(8)
        .with_d_ff(8)
        .with_layers(2)
        .with_max_positions(6)
}

fn tokens(rows: &[[i64; 5]], device: &Device) -> Tensor<2, Int> {
    let data = TensorData::new(rows.concat(), [rows.len(), 5]);
    Tensor::from_data(data, device)
}

fn logits(
    model: &Treeformer,
    tokens: Tensor<2, Int>,
    padding: Option<Tensor<2, Bool>>,
) -> Vec<f32> {
    let options = TreeformerOptions::default();
    values(model.forward(tokens, padding, &options).logits)
}

fn assert_near(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-4, "{got} for {expected}");
    }
}

fn ids<M: Module>(model: &M) -> Vec<ParamId> {
    struct Ids(Vec<ParamId>);
    impl ModuleVisitor for Ids {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.id);
        }
    }
    let mut ids = Ids(Vec::new());
    model.visit(&mut ids);
    ids.0
}

#[test]
fn every_token_gets_its_classes() {
    let model = small().with_seed(1).init(&device());
    let tokens = tokens(&[[0, 1, 2, 3, 6], [3, 3, 1, 0, 2]], &device());
    let output = model.forward(tokens, None, &TreeformerOptions::default());
    assert_eq!(output.logits.dims(), [2, 5, 3]);
}

/// Ways to attend that must not see what is masked out: all tokens, their leaves, means over nodes.
fn masked_kinds() -> [AttentionKindConfig; 3] {
    [
        AttentionKindConfig::Dense,
        trees(),
        AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([2, 2])),
    ]
}

#[test]
fn padding_changes_no_token_wherever_it_stands() {
    for kind in masked_kinds() {
        padding_changes_no_token(kind);
    }
}

fn padding_changes_no_token(kind: AttentionKindConfig) {
    let config = small().with_max_positions(0).with_attention(kind);
    let model = config.clone().with_seed(1).init(&device());
    let row = [1, 2, 3, 4, 5];
    let padding = |row: [bool; 5]| Tensor::<2, Bool>::from_data([row], &device());
    let classes = |row: [i64; 5], mask| {
        let found = logits(&model, tokens(&[row], &device()), Some(padding(mask)));
        found.chunks(3).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let behind = [false, false, false, true, true];
    let before = [true, true, false, false, false];
    let [first, other, shifted] = [
        classes(row, behind),
        classes([1, 2, 3, 0, 6], behind),
        classes([6, 0, 1, 2, 3], before),
    ];
    for token in 0..3 {
        assert_near(&first[token], &other[token]);
        assert_near(&first[token], &shifted[token + 2]);
    }
}

#[test]
fn a_causal_model_sees_nothing_ahead() {
    for kind in masked_kinds() {
        let config = small().with_causal(true).with_attention(kind);
        let model = config.clone().with_seed(1).init(&device());
        let classes = |row| logits(&model, tokens(&[row], &device()), None);
        let (one, other) = (classes([1, 2, 3, 4, 5]), classes([1, 2, 3, 0, 6]));
        assert_near(&one[..9], &other[..9]);
        assert!((one[9] - other[9]).abs() > 1e-4, "{config}");
    }
}

#[test]
#[should_panic(expected = "treeformer: dense_layers: expected at most 2, got 3")]
fn more_dense_layers_than_layers_are_refused() {
    small().with_dense_layers(3).with_seed(1).init(&device());
}

#[test]
fn a_token_reads_the_one_before_it_and_where_it_stands() {
    let classes = |config: TreeformerConfig, row| {
        let model = config.clone().with_seed(3).init(&device());
        logits(&model, tokens(&[row], &device()), None)
    };
    let plain = small().with_local_mixing(false).with_max_positions(0);
    // Without either a sequence is a set.
    let [one, other] = [[1, 2, 3, 4, 5], [2, 1, 3, 4, 5]].map(|row| classes(plain.clone(), row));
    assert_near(&one[6..], &other[6..]);
    for config in [
        small().with_local_mixing(false),
        small().with_max_positions(0),
    ] {
        let [one, other] =
            [[1, 2, 3, 4, 5], [2, 1, 3, 4, 5]].map(|row| classes(config.clone(), row));
        assert!((one[12] - other[12]).abs() > 1e-5, "{config}");
    }
}

/// Two binary levels.
fn trees() -> AttentionKindConfig {
    AttentionKindConfig::TreeFine(TreeFineConfig::new([2, 2]))
}

#[test]
fn another_way_of_attending_keeps_all_other_weights() {
    let model = small().with_seed(1).init(&device());
    let swapped = model.clone().with_attention(&trees(), 1..2, 5);
    let (before, after) = (ids(&model), ids(&swapped));
    assert!(before.iter().all(|id| after.contains(id)));
    assert!(after.len() > before.len(), "trees have parameters");
    let found = parameters(&swapped);
    for parameter in parameters(&model) {
        let same = found.iter().find(|other| other.path == parameter.path);
        assert_eq!(same.expect("a kept parameter").values, parameter.values);
    }
    // And back again.
    let back = swapped.with_attention(&AttentionKindConfig::Dense, 0..2, 5);
    assert_eq!(ids(&back), before);
    let row = tokens(&[[0, 1, 2, 3, 6]], &device());
    assert_near(
        &logits(&back, row.clone(), None),
        &logits(&model, row, None),
    );
}

#[test]
fn layers_that_route_report_where_and_the_lowest_can_stay_dense() {
    let model = small()
        .with_attention(trees())
        .with_dense_layers(1)
        .with_seed(1)
        .init(&device());
    let row = tokens(&[[0, 1, 2, 3, 6], [3, 3, 1, 0, 2]], &device());
    let output = model.forward(row, None, &TreeformerOptions::default());
    let [None, Some(report)] = &output.routing[..] else {
        panic!("expected no report and one, got {:?}", output.routing);
    };
    assert_eq!(report.counts.keys.dims(), [2, 2, 4]);
    assert_eq!(values(report.counts.keys.clone().sum_dim(2)), [5.0; 4]);
    // One tree of two levels, each with weights and biases.
    assert_eq!(model.tree_parameter_ids().len(), 4);
}

#[test]
fn layers_have_trees_of_their_own() {
    let model = small().with_attention(trees()).with_seed(1).init(&device());
    let found = parameters(&model);
    let weight = |layer: usize| {
        let of = format!("blocks.{layer}.attention.kind");
        let mut weights = found.iter().filter(|parameter| {
            parameter.path.starts_with(&of) && parameter.path.ends_with("weight")
        });
        weights.next().expect("a tree has weights").values.clone()
    };
    assert_ne!(weight(0), weight(1));
}

#[test]
fn median_split_trees_send_half_of_what_reaches_them_either_way() {
    let model = small()
        .with_attention(AttentionKindConfig::TreeFine(TreeFineConfig::new([2])))
        .with_seed(1)
        .init(&device());
    let rows = tokens(&[[0, 1, 2, 3, 6], [3, 5, 1, 4, 2]], &device());
    let spread = |model: &Treeformer, layer: usize| {
        let output = model.forward(rows.clone(), None, &TreeformerOptions::default());
        let counts = output.routing[layer].clone().expect("it routes").counts;
        // Queries and keys share the tree: [trees, leaves] over both examples.
        values((counts.queries + counts.keys).sum_dim(0))
    };
    let split = model.clone().with_median_split(rows.clone(), &[1]);
    let kept = |path: &str| path.starts_with("blocks.0");
    let same = |model: &Treeformer| {
        let found = parameters(model).into_iter();
        found
            .filter(|parameter| kept(&parameter.path))
            .flat_map(|parameter| parameter.values)
            .collect::<Vec<f32>>()
    };
    assert_eq!(same(&split), same(&model), "layer 0 was not asked for");
    // Ten queries and ten keys in each of two trees.
    let apart = |model: &Treeformer| -> Vec<f32> {
        let counts = spread(model, 1);
        counts
            .chunks(2)
            .map(|tree| (tree[0] - tree[1]).abs())
            .collect()
    };
    let (before, after) = (apart(&model), apart(&split));
    // Equal tokens may fall together.
    assert!(after.iter().all(|apart| *apart <= 2.0), "{after:?}");
    assert!(
        before.iter().sum::<f32>() > after.iter().sum::<f32>() + 4.0,
        "{before:?} {after:?}"
    );
}

#[test]
fn trees_split_the_same_way_on_an_autodiff_device_and_nothing_else_moves() {
    let mut fine = TreeFineConfig::new([2, 2]);
    fine.router.balance_rate = 0.1;
    fine.router.alignment = Some(Default::default());
    let config = small()
        .with_dropout(0.5)
        .with_attention(AttentionKindConfig::TreeFine(fine));
    let plain = config.clone().with_seed(1).init(&device());
    let training = plain.clone().train();
    let rows = [[0, 1, 2, 3, 6], [3, 5, 1, 4, 2]];
    let numbers = |model: &Treeformer| -> Vec<(String, Vec<f32>)> {
        let found = parameters(model).into_iter();
        found
            .map(|parameter| (parameter.path, parameter.values))
            .collect()
    };
    for layers in [&[0, 1][..], &[0], &[]] {
        let expected = plain
            .clone()
            .with_median_split(tokens(&rows, &device()), layers);
        let inputs = tokens(&rows, &autodiff_device());
        let split = training.clone().with_median_split(inputs, layers);
        assert_eq!(split.tree_parameter_ids(), plain.tree_parameter_ids());
        // Among them the biases that follow the counts of children.
        assert_eq!(numbers(&split), numbers(&expected));
    }
}

#[test]
#[should_panic(expected = "treeformer: layers: expected below 2, got 2")]
fn trees_of_a_layer_that_is_not_there_are_not_split() {
    let tokens = tokens(&[[0, 1, 2, 3, 6]], &device());
    let _ = small()
        .with_seed(1)
        .init(&device())
        .with_median_split(tokens, &[2]);
}

#[test]
fn losses_on_routes_and_the_mixture_of_leaves_teach_the_trees() {
    let device = autodiff_device();
    let mut fine = TreeFineConfig::new([2, 2]);
    fine.router.alignment = Some(Default::default());
    let model = small()
        .with_layers(1)
        .with_attention(AttentionKindConfig::TreeFine(fine))
        .with_seed(1)
        .init(&device)
        .train();
    let tokens = tokens(&[[0, 1, 2, 3, 6], [3, 5, 1, 4, 2]], &device);
    let options = TreeformerOptions {
        seed: Some(3),
        ..TreeformerOptions::default()
    };
    let output = model.forward(tokens, None, &options);
    let report = output.routing[0].clone().expect("it routes");
    let losses = report.balance_loss.expect("on an autodiff device")
        + report.alignment_loss.expect("on an autodiff device");
    let loss = output.logits.powi_scalar(2).mean() + losses;
    let gradients = gradients_of(&model, &loss.backward());
    let of_trees = gradients
        .iter()
        .filter(|parameter| parameter.path.contains("router") && !parameter.values.is_empty());
    let mut seen = 0;
    for parameter in of_trees {
        seen += 1;
        assert!(
            parameter.values.iter().any(|value| *value != 0.0),
            "{} has no gradient",
            parameter.path
        );
        assert!(parameter.values.iter().all(|value| value.is_finite()));
    }
    assert_eq!(seen, 4, "weights and biases of two levels");
}

#[test]
#[should_panic(expected = "treeformer: layers: expected below 2, got 1..3")]
fn layers_that_are_not_there_are_refused() {
    let _ =
        small()
            .with_seed(1)
            .init(&device())
            .with_attention(&AttentionKindConfig::Dense, 1..3, 5);
}

#[test]
#[should_panic(expected = "axis 1 of tokens: expected at most 4 positions, got 5")]
fn sequences_longer_than_the_positions_are_refused() {
    let model = small().with_max_positions(4).with_seed(1).init(&device());
    logits(&model, tokens(&[[0; 5]], &device()), None);
}

#[test]
fn one_seed_gives_these_weights_on_every_backend() {
    let found = parameters(&small().with_seed(7).init(&device()));
    for (path, first) in GOLDEN {
        let parameter = found
            .iter()
            .find(|parameter| parameter.path == path)
            .unwrap_or_else(|| panic!("no parameter {path}"));
        assert_held(&parameter.values[..2], &first, path);
    }
    let again = parameters(&small().with_seed(7).init(&device()));
    let other = parameters(&small().with_seed(8).init(&device()));
    for ((one, again), other) in found.iter().zip(&again).zip(&other) {
        assert_eq!(one.values, again.values, "{}", one.path);
        let constant = one.path.ends_with("gamma") || one.path.ends_with("bias");
        assert_eq!(one.values == other.values, constant, "{}", one.path);
    }
}

/// The first two numbers of some parameters of the small model with seed 7.
const GOLDEN: [(&str, [f32; 2]); 4] = [
    ("embedding.weight", [-1.1322179, -0.09658718]),
    ("mixing.before.weight", [0.5150754, 0.17270833]),
    ("blocks.1.attention.key.weight", [0.60616654, -0.44962707]),
    ("head.bias", [0.0, 0.0]),
];

#[test]
fn every_weight_that_matters_learns() {
    let device = autodiff_device();
    let model = small().with_seed(1).init(&device).train();
    let tokens = tokens(&[[0, 1, 2, 3, 6], [3, 3, 1, 0, 2]], &device);
    let output = model.forward(tokens, None, &TreeformerOptions::default());
    let loss = output.logits.powi_scalar(2).mean();
    for parameter in gradients_of(&model, &loss.backward()) {
        // A softmax over keys does not see what is added to all of them.
        let unseen = parameter.path.ends_with("key.bias");
        assert!(
            unseen || parameter.values.iter().any(|value| *value != 0.0),
            "{} has no gradient",
            parameter.path
        );
        assert!(parameter.values.iter().all(|value| value.is_finite()));
    }
}

#[test]
fn saved_weights_load_into_a_model_of_another_seed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let saved = small().with_seed(1).init(&device());
    save_weights(&saved, &path).unwrap();
    let loaded = load_weights(small().with_seed(2).init(&device()), &path).unwrap();
    let row = tokens(&[[0, 1, 2, 3, 6]], &device());
    assert_eq!(
        logits(&loaded, row.clone(), None),
        logits(&saved, row, None)
    );
}

/// A layer under a name of its own, as users have it.
#[derive(Module, Debug)]
struct Wrapped {
    body: SelfAttention,
}

#[test]
fn levels_that_grow_after_an_optimiser_was_made_do_not_decay_either() {
    let device = autodiff_device();
    let (rate, decay) = (0.1, 0.5);
    for sharing in [TreeSharing::Shared, TreeSharing::Separate] {
        let mut kind = TreeFineConfig::new([2]);
        kind.router.sharing = sharing;
        let kind = AttentionKindConfig::TreeFine(kind);
        let body = SelfAttentionConfig::new(8, 2).with_kind(kind).init(&device);
        let weight_decay = Some(WeightDecayConfig::new(decay));
        let decaying = SgdConfig::new().with_weight_decay(weight_decay).build();
        let group = SelfAttention::tree_parameter_group();
        let mut optimizer =
            ModuleOptimizer::from(decaying).with_group(group, SgdConfig::new().build(), None);
        let growth = Growth::Random { seed: 3 };
        let model = Wrapped {
            body: body.grow(2, &growth),
        };
        let input = SelfAttentionInput::new(random([2, 9, 8], 1, &device));
        let gradients = model
            .body
            .forward(input)
            .context
            .powi_scalar(2)
            .mean()
            .backward();
        let (before, of) = (parameters(&model), gradients_of(&model, &gradients));
        let gradients = GradientsParams::from_grads(gradients, &model);
        let after = parameters(&optimizer.step(f64::from(rate), model, gradients));
        let mut trees = 0;
        for ((before, of), after) in before.iter().zip(&of).zip(&after) {
            // Balance biases are buffers.
            let is_tree = before.path.contains("levels") && !before.path.ends_with("balance");
            trees += usize::from(is_tree);
            let decay = if is_tree { 0.0 } else { decay };
            for (at, gradient) in of.values.iter().enumerate() {
                let expected = before.values[at] - rate * (gradient + decay * before.values[at]);
                let error = (after.values[at] - expected).abs();
                assert!(
                    error < allowed(1e-6),
                    "{}: {error} {:?} {:?} {:?}",
                    before.path,
                    before.values,
                    of.values,
                    after.values
                );
            }
        }
        let per_tree = 2 * 2; // levels, with a weight and a bias each
        let expected = match sharing {
            TreeSharing::Shared => per_tree,
            TreeSharing::Separate => 2 * per_tree,
        };
        assert_eq!(trees, expected);
    }
}
