//! Attention with projections outside and kinds inside.

mod alignment;

use arbora_attention::{
    AttentionKind, AttentionKindConfig, EmptyLeaf, RouterConfig, RoutingReport, SelfAttention,
    SelfAttentionConfig, SelfAttentionInput, TreeFine, TreeFineConfig, TreeScope, TreeSharing,
};
use arbora_testing::{assert_close, autodiff_device, device, padding, random, values};
use arbora_tree::Surrogate;
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Bool, Device, Gradients, Int, Tensor};

fn fine(branching: &[usize]) -> TreeFineConfig {
    TreeFineConfig {
        router: RouterConfig {
            seed: 3,
            ..RouterConfig::new(branching)
        },
        ..TreeFineConfig::default()
    }
}

fn layer(kind: AttentionKindConfig, device: &Device) -> SelfAttention {
    let layer = SelfAttentionConfig::new(12, 4)
        .with_n_kv_heads(Some(2))
        .with_kind(kind)
        .init(device);
    with_fixed_projections(layer)
}

/// The layer with projections that are the same in every run, on every backend.
pub(crate) fn with_fixed_projections(mut layer: SelfAttention) -> SelfAttention {
    let mut fixed = Fixed(100);
    layer.query = layer.query.map(&mut fixed);
    layer.key = layer.key.map(&mut fixed);
    layer.value = layer.value.map(&mut fixed);
    layer.output = layer.output.map(&mut fixed);
    layer
}

/// Parameters drawn on the host, with the next seed for each.
struct Fixed(u64);

impl ModuleMapper for Fixed {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.0 += 1;
        param.map(|old| {
            let new = random(old.dims(), self.0, &old.device()) * 0.5;
            if old.is_require_grad() {
                new.detach().require_grad()
            } else {
                new
            }
        })
    }
}

fn fine_layer(config: TreeFineConfig, device: &Device) -> SelfAttention {
    layer(AttentionKindConfig::TreeFine(config), device)
}

fn tree_fine(layer: &SelfAttention) -> &TreeFine {
    match &layer.kind {
        AttentionKind::TreeFine(tree) => tree,
        other => panic!("expected a tree, got {other:?}"),
    }
}

fn tokens(device: &Device) -> Tensor<3> {
    random([2, 9, 12], 1, device) * 2.0
}

fn mask() -> Tensor<2, Bool> {
    padding(&[9, 6], 9, &device())
}

fn report(layer: &SelfAttention, input: SelfAttentionInput) -> RoutingReport {
    layer.forward(input).routing.expect("the kind routes")
}

/// A step of gradient descent.
struct Descend(Gradients);

impl ModuleMapper for Descend {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = param.grad(&self.0);
        param.map(|old| match gradient {
            None => old,
            Some(gradient) => {
                let new = old.clone().without_autodiff() - gradient * 0.3;
                Tensor::from_data(new.into_data(), (&old.device(), old.dtype())).require_grad()
            }
        })
    }
}

fn projections(layer: &SelfAttention) -> Vec<ParamId> {
    [&layer.query, &layer.key, &layer.value, &layer.output]
        .map(|linear| linear.weight.id)
        .to_vec()
}

#[test]
fn causal_dense_attention_is_attention_with_a_triangular_mask_of_pairs() {
    let layer = layer(AttentionKindConfig::Dense, &device());
    let masked = SelfAttentionInput::new(tokens(&device())).mask_pad(mask());
    let after: Tensor<2, Bool> = Tensor::<2, Int>::ones([9, 9], &device()).triu(1).bool();
    let pairs = after.unsqueeze_dim::<3>(0).repeat_dim(0, 2);
    let expected = layer.forward(masked.clone().mask_attn(pairs)).context;
    assert_close(layer.forward(masked.causal()).context, expected, 1e-5, 1e-5);
}

#[test]
fn causal_queries_are_the_last_of_a_longer_context() {
    let layer = layer(AttentionKindConfig::Dense, &device());
    let context = tokens(&device());
    let last = context.clone().slice([0..2, 6..9]);
    let all = SelfAttentionInput::new(context.clone()).causal();
    let expected = layer.forward(all).context.slice([0..2, 6..9]);
    let asked = SelfAttentionInput::cross(last, context).causal();
    assert_close(layer.forward(asked).context, expected, 1e-5, 1e-5);
}

#[test]
fn a_tree_without_levels_is_dense_attention() {
    let dense = layer(AttentionKindConfig::Dense, &device());
    let kind = AttentionKindConfig::TreeFine(fine(&[]));
    let same = dense.clone().with_kind(&kind, &device());
    for causal in [false, true] {
        let mut input = SelfAttentionInput::new(tokens(&device())).mask_pad(mask());
        input.masks.causal = causal;
        let real = |context: Tensor<3>| context.slice([1..2, 0..6]);
        let expected = dense.forward(input.clone()).context;
        let got = same.forward(input).context;
        assert_close(real(got), real(expected), 1e-5, 1e-5);
    }
}

#[test]
fn another_kind_keeps_the_projections_and_their_ids() {
    let dense = layer(AttentionKindConfig::Dense, &device());
    let (before, weight) = (projections(&dense), values(dense.query.weight.val()));
    let trees = dense.with_kind(&AttentionKindConfig::TreeFine(fine(&[2, 2])), &device());
    assert_eq!(projections(&trees), before);
    assert_eq!(values(trees.query.weight.val()), weight);
    assert!(matches!(trees.kind, AttentionKind::TreeFine(_)));
    let back = trees.with_kind(&AttentionKindConfig::Dense, &device());
    assert_eq!(projections(&back), before);
}

#[test]
fn the_report_counts_rows_and_their_cost() {
    let layer = fine_layer(fine(&[2, 3]), &device());
    let input = SelfAttentionInput::new(tokens(&device())).mask_pad(mask());
    let report = report(&layer, input);
    assert_eq!(report.query.leaves().dims(), [2, 9, 4]);
    assert_eq!(report.key.leaves().dims(), [2, 9, 2]);
    let sums = |counts: Tensor<3>| values(counts.sum_dim(2));
    // Two query heads per key head; 9 and 6 tokens.
    assert_eq!(
        sums(report.counts.queries.clone()),
        [18.0, 18.0, 12.0, 12.0]
    );
    assert_eq!(sums(report.counts.keys.clone()), [9.0, 9.0, 6.0, 6.0]);
    let met = values((report.counts.queries * report.counts.keys).sum_dim(2));
    let expected: Vec<f32> = met
        .iter()
        .zip([162.0, 162.0, 72.0, 72.0])
        .map(|(met, all)| met / all)
        .collect();
    let got = values(report.cost_ratio);
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-6, "{got}, {expected}");
    }
    assert!(report.balance_loss.is_none() && report.alignment_loss.is_none());
}

#[test]
fn every_surrogate_reaches_both_trees_and_all_projections() {
    for surrogate in [
        Surrogate::TopMargin {
            candidates: 2,
            temperature: 1.0,
        },
        Surrogate::DenseGradient {
            temperature: 1.0,
            clip: 2.0,
            scale: None,
        },
        Surrogate::Soft { temperature: 1.0 },
    ] {
        for scope in [TreeScope::PerHead, TreeScope::PerLayer] {
            let device = autodiff_device();
            let mut config = fine(&[2, 2]);
            config.router.sharing = TreeSharing::Separate;
            config.router.scope = scope;
            let layer = fine_layer(config, &device);
            let input = SelfAttentionInput::new(tokens(&device)).with_surrogate(surrogate);
            let gradients = layer.forward(input).context.square().sum().backward();
            let router = &tree_fine(&layer).router;
            for tree in [&router.query, &router.key_tree()] {
                for level in tree.levels() {
                    let weight = level.weight.grad(&gradients).expect("trees learn");
                    let most = values(weight)
                        .iter()
                        .fold(0.0, |most: f32, x| most.max(x.abs()));
                    assert!(most > 0.0 && most.is_finite(), "{surrogate:?}, {scope:?}");
                }
            }
            for linear in [&layer.query, &layer.key, &layer.value, &layer.output] {
                assert!(linear.weight.grad(&gradients).is_some());
            }
        }
    }
}

#[test]
fn queries_and_keys_apart_differ_from_one_tree_for_both() {
    let shared = fine_layer(fine(&[2, 2]), &device());
    assert!(tree_fine(&shared).router.key.is_none());
    let mut config = fine(&[2, 2]);
    config.router.sharing = TreeSharing::Separate;
    let apart = fine_layer(config, &device());
    let router = &tree_fine(&apart).router;
    assert_ne!(
        values(router.query.levels()[0].weight.val()),
        values(router.key_tree().levels()[0].weight.val())
    );
}

#[test]
fn the_balance_loss_spreads_rows() {
    let device = autodiff_device();
    let mut config = fine(&[2, 2]);
    config.router.sharing = TreeSharing::Separate;
    let mut layer = fine_layer(config, &device);
    // Tokens that are all much alike.
    let tokens = random([2, 9, 12], 1, &device) * 0.3 + random([1, 1, 12], 2, &device);
    let ratio = |layer: &SelfAttention| {
        let report = report(layer, SelfAttentionInput::new(tokens.clone()));
        report.cost_ratio.mean().into_scalar::<f32>()
    };
    let before = ratio(&layer);
    for _ in 0..60 {
        let input = SelfAttentionInput::new(tokens.clone());
        let loss = report(&layer, input).balance_loss.expect("it trains");
        layer = layer.map(&mut Descend(loss.backward()));
    }
    let after = ratio(&layer);
    assert!(after < 0.8 * before, "{before} -> {after}");
}

#[test]
fn biases_follow_the_counts_where_a_rate_is_set() {
    let device = autodiff_device();
    let mut config = fine(&[2]);
    config.router.balance_rate = 0.1;
    let layer = fine_layer(config, &device);
    let balance = |layer: &SelfAttention| {
        let level = &tree_fine(layer).router.query.levels()[0];
        values(level.balance.value_sync())
    };
    assert!(balance(&layer).iter().all(|x| *x == 0.0));
    // Tokens that are much alike: one side gets more.
    let alike = tokens(&device) * 0.2 + random([1, 1, 12], 2, &device);
    layer.forward(SelfAttentionInput::new(alike));
    assert!(balance(&layer).iter().all(|x| x.abs() <= 0.1001));
    assert!(balance(&layer).iter().any(|x| x.abs() > 0.0999));
    let before = balance(&layer);
    layer
        .valid()
        .forward(SelfAttentionInput::new(tokens(&arbora_testing::device())));
    assert_eq!(balance(&layer), before, "inference changes nothing");
}

#[test]
fn biases_move_after_the_losses_of_their_call() {
    let device = autodiff_device();
    let run = |rate: f64| {
        let mut config = alignment::aligned(9);
        (config.router.balance_rate, config.router.balance_slack) = (rate, 0.0);
        let layer = fine_layer(config, &device);
        let report = report(&layer, SelfAttentionInput::new(tokens(&device)));
        let level = &tree_fine(&layer).router.query.levels()[0];
        (
            values(report.balance_loss.expect("it trains")),
            values(report.alignment_loss.expect("it is asked for")),
            values(level.balance.value_sync()),
        )
    };
    let (still, moving) = (run(0.0), run(5.0));
    assert_eq!(moving.0, still.0);
    assert_eq!(moving.1, still.1);
    assert!(moving.2.iter().any(|bias| bias.abs() == 5.0));
}

#[test]
fn dropout_follows_the_seed_and_is_off_without_gradients() {
    let config = || TreeFineConfig {
        dropout: 0.5,
        ..fine(&[2])
    };
    let device = autodiff_device();
    let layer = fine_layer(config(), &device);
    let run = |layer: &SelfAttention, seed| {
        let input = SelfAttentionInput::new(tokens(&device)).with_seed(seed);
        values(layer.forward(input).context)
    };
    assert_eq!(run(&layer, 1), run(&layer, 1));
    assert_ne!(run(&layer, 1), run(&layer, 2));
    let kind = AttentionKindConfig::TreeFine(fine(&[2]));
    let without = layer.valid().with_kind(&kind, &arbora_testing::device());
    let input = || SelfAttentionInput::new(tokens(&arbora_testing::device()));
    assert_eq!(
        values(layer.valid().forward(input()).context),
        values(without.forward(input()).context)
    );
}

#[test]
#[should_panic(
    expected = "tree_fine: seed: dropout of 0.5 on an autodiff device needs one per call, see with_seed"
)]
fn dropout_needs_a_seed() {
    let device = autodiff_device();
    let config = TreeFineConfig {
        dropout: 0.5,
        ..fine(&[2])
    };
    fine_layer(config, &device).forward(SelfAttentionInput::new(tokens(&device)));
}

#[test]
#[should_panic(
    expected = "self_attention: pairs: tree-fine does not support masks of pairs, got one"
)]
fn masks_of_pairs_are_refused() {
    let layer = fine_layer(fine(&[2]), &device());
    let pairs = Tensor::<3, Int>::zeros([2, 9, 9], &device()).bool();
    layer.forward(SelfAttentionInput::new(tokens(&device())).mask_attn(pairs));
}

#[test]
#[should_panic(expected = "tree_fine: empty_leaf: expected another policy than self-key")]
fn self_key_is_refused_across_contexts() {
    let config = TreeFineConfig {
        empty_leaf: EmptyLeaf::SelfKey,
        ..fine(&[2])
    };
    let layer = fine_layer(config, &device());
    layer.forward(SelfAttentionInput::cross(
        tokens(&device()),
        tokens(&device()),
    ));
}

#[test]
#[should_panic(
    expected = "self_attention: kind.router.sharing: expected separate with one tree per layer"
)]
fn one_shared_tree_per_layer_needs_equal_widths() {
    let mut config = fine(&[2]);
    config.router.scope = TreeScope::PerLayer;
    fine_layer(config, &device());
}

#[test]
fn rows_of_padding_alone_give_the_bias_of_the_output() {
    let layer = fine_layer(fine(&[2, 2]), &device());
    let mask = padding(&[9, 0], 9, &device());
    let context = layer
        .forward(SelfAttentionInput::new(tokens(&device())).mask_pad(mask))
        .context;
    let bias = layer.output.bias.as_ref().expect("there is a bias").val();
    let expected = bias.reshape([1, 1, 12]).expand([1, 9, 12]);
    assert_close(context.narrow(0, 1, 1), expected, 1e-6, 1e-6);
}

#[test]
fn configurations_read_back_and_refuse_what_they_do_not_know() {
    let kind = AttentionKindConfig::TreeFine(TreeFineConfig {
        dropout: 0.1,
        empty_leaf: EmptyLeaf::AncestorAttend,
        ..alignment::aligned(4)
    });
    let text = serde_json::to_string(&kind).expect("it is written");
    assert!(text.starts_with(r#"{"kind":"tree-fine","#), "{text}");
    let back: AttentionKindConfig = serde_json::from_str(&text).expect("it is read");
    assert_eq!(back, kind);
    let short = r#"{"kind":"tree-fine","router":{"branching":[4,4],"sharing":"separate"}}"#;
    let AttentionKindConfig::TreeFine(config) = serde_json::from_str(short).expect("it is read")
    else {
        panic!("expected a tree");
    };
    assert_eq!(config.router.branching, [4, 4]);
    assert_eq!(config.empty_leaf, EmptyLeaf::AncestorMean);
    for unknown in [
        r#"{"kind":"tree-fine","leafs":3}"#,
        r#"{"kind":"tree-fine","router":{"branch":[2]}}"#,
    ] {
        assert!(serde_json::from_str::<AttentionKindConfig>(unknown).is_err());
    }
}

#[test]
fn queries_whose_leaf_has_no_key_yet_are_reported() {
    let mut seen = 0;
    for scope in [TreeScope::PerHead, TreeScope::PerLayer] {
        for surrogate in [
            Surrogate::default(),
            Surrogate::Soft { temperature: 1.0 },
            Surrogate::DenseGradient {
                temperature: 1.0,
                clip: 1.0,
                scale: None,
            },
        ] {
            for device in [device(), autodiff_device()] {
                let mut config = TreeFineConfig::new([2, 2, 2]);
                config.router.scope = scope;
                config.router.sharing = TreeSharing::Separate;
                config.router.surrogate = surrogate;
                let layer = fine_layer(config, &device);
                for causal in [false, true] {
                    let mut input = SelfAttentionInput::new(tokens(&device)).mask_pad(mask());
                    input.masks.causal = causal;
                    let report = report(&layer, input);
                    let [batch, queries, heads] = report.query.leaves().dims();
                    let [.., kv_heads] = report.key.leaves().dims();
                    let trees = report.query.trees();
                    let integers = |tensor: Tensor<3, Int>| -> Vec<i64> {
                        tensor.into_data().iter::<i64>().collect()
                    };
                    let (asked, kept) = (
                        integers(report.query.leaves()),
                        integers(report.key.leaves()),
                    );
                    let mut expected = Vec::new();
                    for example in 0..batch {
                        for tree in 0..trees {
                            let (mut all, mut alone) = (0.0, 0.0f32);
                            let group = heads / trees;
                            for head in tree * group..(tree + 1) * group {
                                let kv_head = head * kv_heads / heads;
                                for query in 0..queries {
                                    let leaf = asked[(example * queries + query) * heads + head];
                                    if leaf < 0 {
                                        continue;
                                    }
                                    let last = if causal { query + 1 } else { queries };
                                    let met = (0..last).any(|key| {
                                        kept[(example * queries + key) * kv_heads + kv_head] == leaf
                                    });
                                    all += 1.0;
                                    alone += f32::from(u8::from(!met));
                                }
                            }
                            expected.push(alone / all);
                        }
                    }
                    seen += expected.iter().filter(|share| **share > 0.0).count();
                    let got = values(report.queries_without_key);
                    for (got, expected) in got.iter().zip(&expected) {
                        assert!(
                            (got - expected).abs() < 1e-6,
                            "{scope:?} {surrogate:?} {causal}"
                        );
                    }
                    assert_eq!(got.len(), expected.len());
                }
            }
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn balance_biases_bring_the_keys_of_shared_trees_to_their_queries() {
    let mut config = TreeFineConfig::new([2, 2]);
    config.router.balance_rate = 0.1;
    let mut layer = fine_layer(config, &autodiff_device());
    // Queries and keys that are far apart.
    let offset = |linear: burn::nn::Linear, by: f32| {
        let bias = linear
            .bias
            .map(|bias| bias.map(|old| (old + by).detach().require_grad()));
        burn::nn::Linear { bias, ..linear }
    };
    layer.query = offset(layer.query, 3.0);
    layer.key = offset(layer.key, -3.0);
    let alone = |layer: &SelfAttention| {
        let input = SelfAttentionInput::new(tokens(&autodiff_device()));
        report(layer, input)
            .queries_without_key
            .mean()
            .into_scalar::<f32>()
    };
    let before = alone(&layer);
    for _ in 0..60 {
        alone(&layer);
    }
    let after = alone(&layer);
    assert!(before > 0.5 && after < 0.2, "{before}, {after}");
    assert_eq!(alone(&layer.valid()), alone(&layer.valid()));
}
