//! What every kind of attention must do, whatever it computes.

use arbora_attention::baselines::{BigBirdConfig, LinformerConfig, PerformerConfig};
use arbora_attention::{
    AttentionKindConfig, SelfAttention, SelfAttentionConfig, SelfAttentionInput, TreeCoarseConfig,
    TreeFineConfig,
};
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{assert_close, autodiff_device, device, padding, random, random_data, values};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Int, Tensor};

pub const D_MODEL: usize = 8;
pub const HEADS: usize = 4;

/// Attention with two key and value heads, whose parameters are the same on every backend.
pub fn layer(kind: &AttentionKindConfig, device: &Device) -> SelfAttention {
    SelfAttentionConfig::new(D_MODEL, HEADS)
        .with_n_kv_heads(Some(2))
        .with_kind(kind.clone())
        .init(device)
        .map(&mut HostWeights::default())
}

/// Draws trained parameters on the host and leaves buffers alone.
#[derive(Default)]
struct HostWeights {
    drawn: u64,
    path: Vec<String>,
}

impl ModuleMapper for HostWeights {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.path.iter().any(|name| name == "directions") {
            return param;
        }
        self.drawn += 1;
        let seed = self.drawn;
        param.map(|tensor| {
            random(tensor.dims(), seed, &tensor.device()).set_require_grad(tensor.is_require_grad())
        })
    }
}

/// Shapes, padding and the batch: everything but what is attended to.
#[track_caller]
pub fn check(kind: &AttentionKindConfig) {
    for tokens in [1, 2, 7, 13] {
        keeps_the_shape(kind, tokens);
    }
    ignores_what_stands_on_padding(kind);
    treats_examples_apart(kind);
    has_gradients_for_every_parameter(kind);
    matches_finite_differences(kind);
}

#[track_caller]
fn keeps_the_shape(kind: &AttentionKindConfig, tokens: usize) {
    let input = random([2, tokens, D_MODEL], 5, &device());
    let context = layer(kind, &device())
        .forward(SelfAttentionInput::new(input))
        .context;
    assert_eq!(context.dims(), [2, tokens, D_MODEL]);
    assert!(values(context).iter().all(|value| value.is_finite()));
}

#[track_caller]
fn ignores_what_stands_on_padding(kind: &AttentionKindConfig) {
    let (lengths, tokens) = ([13, 5, 1], 13);
    let layer = layer(kind, &device());
    let hidden = padding(&lengths, tokens, &device());
    let input = random::<3>([3, tokens, D_MODEL], 6, &device());
    let other = random::<3>([3, tokens, D_MODEL], 7, &device()) * 20.0;
    let everywhere = hidden.clone().unsqueeze_dim::<3>(2).expand(input.dims());
    let moved = input.clone().mask_where(everywhere, other);
    let forward = |input| {
        let input = SelfAttentionInput::new(input).mask_pad(hidden.clone());
        layer.forward(input).context
    };
    let (expected, got) = (forward(input), forward(moved));
    for (example, length) in lengths.into_iter().enumerate() {
        let real = |context: &Tensor<3>| {
            context
                .clone()
                .slice([example..example + 1, 0..length, 0..D_MODEL])
        };
        assert_close(real(&got), real(&expected), 1e-5, 1e-5);
    }
}

#[track_caller]
fn treats_examples_apart(kind: &AttentionKindConfig) {
    let layer = layer(kind, &device());
    let (lengths, order) = ([9, 4, 7], [2, 0, 1]);
    let input = random::<3>([3, 9, D_MODEL], 8, &device());
    let forward = |input, lengths: [usize; 3]| {
        let input = SelfAttentionInput::new(input).mask_pad(padding(&lengths, 9, &device()));
        layer.forward(input).context
    };
    let index = Tensor::<1, Int>::from_data(order.map(|at| at as i64), &device());
    let expected = forward(input.clone(), lengths).select(0, index.clone());
    let got = forward(input.select(0, index), order.map(|at| lengths[at]));
    assert_close(got, expected, 1e-5, 1e-5);
}

#[track_caller]
fn has_gradients_for_every_parameter(kind: &AttentionKindConfig) {
    struct Trained<'a>(&'a burn::tensor::Gradients, usize);
    impl ModuleVisitor for Trained<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            let gradient = param.val().grad(self.0).expect("every parameter learns");
            let gradient = values(gradient);
            assert!(gradient.iter().all(|value| value.is_finite()));
            assert!(gradient.iter().any(|value| *value != 0.0));
            self.1 += 1;
        }
    }
    let device = autodiff_device();
    // Without biases: one on the keys moves all logits of a softmax alike, and so learns nothing.
    let layer = SelfAttentionConfig::new(D_MODEL, HEADS)
        .with_kind(kind.clone())
        .with_bias(false)
        .init(&device);
    let input = SelfAttentionInput::new(random([2, 11, D_MODEL], 9, &device)).mask_pad(padding(
        &[11, 6],
        11,
        &device,
    ));
    let gradients = layer.forward(input).context.powi_scalar(2).sum().backward();
    let mut trained = Trained(&gradients, 0);
    layer.visit(&mut trained);
    assert!(trained.1 >= 4, "{} parameters", trained.1);
}

#[track_caller]
fn matches_finite_differences(kind: &AttentionKindConfig) {
    let weights = random_data([2, 7, D_MODEL], 11);
    let function = |input: Tensor<3>| {
        let device = input.device();
        let masked = SelfAttentionInput::new(input).mask_pad(padding(&[7, 4], 7, &device));
        let context = layer(kind, &device).forward(masked).context;
        (context * Tensor::from_data(weights.clone(), &device)).sum()
    };
    let input = random_data([2, 7, D_MODEL], 10);
    assert_matches_finite_differences(input, &device(), 1e-2, 1e-2, function);
}

fn every_kind() -> [AttentionKindConfig; 6] {
    [
        AttentionKindConfig::Dense,
        AttentionKindConfig::Linformer(LinformerConfig::default()),
        AttentionKindConfig::BigBird(BigBirdConfig::default()),
        AttentionKindConfig::Performer(PerformerConfig::default()),
        AttentionKindConfig::TreeFine(TreeFineConfig::new([2, 2])),
        AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([2, 2])),
    ]
}

/// What a call panics with.
fn message(call: impl FnOnce()) -> String {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    let payload = caught.expect_err("the call is refused");
    *payload.downcast::<String>().expect("asserts give text")
}

fn none() -> Tensor<3> {
    Tensor::zeros([2, 0, D_MODEL], &device())
}

#[test]
fn every_kind_refuses_rows_of_no_tokens() {
    let some = random([2, 3, D_MODEL], 1, &device());
    let expected = |of: &str| format!("self_attention: axis 1 of {of}: expected at least 1, got 0");
    for kind in every_kind() {
        let layer = layer(&kind, &device());
        let refused = |input| message(|| drop(layer.forward(input)));
        assert_eq!(
            refused(SelfAttentionInput::new(none())),
            expected("tokens"),
            "{kind:?}"
        );
        assert_eq!(
            refused(SelfAttentionInput::cross(none(), some.clone())),
            expected("tokens"),
            "{kind:?}"
        );
        assert_eq!(
            refused(SelfAttentionInput::cross(some.clone(), none())),
            expected("context"),
            "{kind:?}"
        );
    }
}

#[test]
fn every_kind_with_a_cache_refuses_calls_of_no_tokens() {
    for kind in every_kind() {
        if matches!(
            kind,
            AttentionKindConfig::Linformer(_) | AttentionKindConfig::BigBird(_)
        ) {
            continue;
        }
        let layer = layer(&kind, &device());
        let mut cache = layer.cache(2, &device());
        let got = message(|| drop(layer.forward_cached(none(), &mut cache)));
        let expected = "self_attention: axis 1 of tokens: expected at least 1, got 0";
        assert_eq!(got, expected, "{kind:?}");
        assert_eq!(cache.tokens(), 0);
    }
}

#[test]
fn caches_of_selected_examples_go_on_without_the_others() {
    for kind in [
        AttentionKindConfig::Dense,
        AttentionKindConfig::Performer(PerformerConfig::default()),
        AttentionKindConfig::TreeFine(TreeFineConfig::new([2, 2])),
        AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([2, 2])),
    ] {
        let layer = layer(&kind, &device());
        let tokens: Tensor<3> = random([3, 6, D_MODEL], 1, &device());
        let expected = layer
            .forward(SelfAttentionInput::new(tokens.clone()).causal())
            .context
            .narrow(1, 4, 2);
        let of = |row: usize| tokens.clone().narrow(0, row, 1);
        let mut all = layer.cache(3, &device());
        layer.forward_cached(tokens.clone().narrow(1, 0, 4), &mut all);
        // Several times, so that caches of one origin all go on; one of three examples closes up what it keeps.
        for rows in [&[2, 0][..], &[0, 1], &[1]] {
            let mut some = all.select(rows);
            assert_eq!((some.batch(), some.tokens()), (rows.len(), 4));
            let next = Tensor::cat(rows.iter().copied().map(of).collect(), 0);
            let got = [4, 5].map(|at| {
                let next = next.clone().narrow(1, at, 1);
                layer.forward_cached(next, &mut some).context
            });
            let expected = rows.iter().map(|row| expected.clone().narrow(0, *row, 1));
            assert_close(
                Tensor::cat(got.to_vec(), 1),
                Tensor::cat(expected.collect(), 0),
                1e-4,
                1e-4,
            );
        }
    }
}

#[test]
fn caches_refuse_selections_of_what_is_not_there() {
    let layer = layer(&AttentionKindConfig::Dense, &device());
    let cache = layer.cache(2, &device());
    for (rows, expected) in [
        (&[][..], "at least 1 row, got 0"),
        (&[2], "rows below 2, got 2"),
        (&[1, 1], "each row once, got 1 twice"),
    ] {
        let got = message(|| drop(cache.select(rows)));
        assert_eq!(got, format!("attention_cache: select: expected {expected}"));
    }
}

#[test]
fn queries_at_padding_get_the_bias_of_the_output_from_kinds_that_route_alone() {
    for kind in every_kind() {
        let layer = layer(&kind, &device());
        let input = SelfAttentionInput::new(random([1, 5, D_MODEL], 1, &device()));
        let context = layer
            .forward(input.mask_pad(padding(&[3], 5, &device())))
            .context;
        let bias = values(layer.output.bias.as_ref().expect("there is one").val());
        let routes = matches!(
            kind,
            AttentionKindConfig::TreeFine(_) | AttentionKindConfig::TreeCoarse(_)
        );
        for row in values(context.slice([0..1, 3..5])).chunks(D_MODEL) {
            let most = row.iter().zip(&bias).map(|(x, bias)| (x - bias).abs());
            let most = most.fold(0.0, f32::max);
            assert_eq!(most < 1e-6, routes, "{kind:?}: {most}");
        }
    }
}

#[test]
fn trees_name_their_parameters_and_other_kinds_have_none() {
    for kind in every_kind() {
        let layer = layer(&kind, &device());
        let ids = layer.tree_parameter_ids();
        let expected = match kind {
            // Two levels with weights and biases.
            AttentionKindConfig::TreeFine(_) => 4,
            // The same for queries and for keys.
            AttentionKindConfig::TreeCoarse(_) => 8,
            _ => 0,
        };
        assert_eq!(ids.len(), expected, "{kind:?}");
        assert!(!ids.contains(&layer.query.weight.id));
    }
}
