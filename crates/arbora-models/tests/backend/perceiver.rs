//! Perceiver IO: its size, its start, what it reads and what learns.

use crate::padding::{example_of, examples, padded, parts, queries};
use crate::{Parameter, gradients_of, parameters, points, small};
use arbora_attention::Route;
use arbora_models::store::{StoreError, load_weights, save_weights};
use arbora_models::{
    Context, EmbeddingKind, HeadKind, ModelConfig, PerceiverIo, PerceiverIoConfig, ReTreeverConfig,
    StdKind, Target, latents_for,
};
use arbora_testing::{
    allowed, assert_close, assert_held, autodiff_device, device, padding, random, random_data,
    uniforms, values,
};
use arbora_tree::Layout;
use burn::module::Module;
use burn::tensor::{Int, Tensor};

fn model() -> PerceiverIo {
    PerceiverIoConfig::new(small(), 3)
        .with_seed(1)
        .init(&device())
}

#[test]
fn it_has_the_parameters_of_retreever_and_its_latents() {
    let gaussian = HeadKind::Gaussian {
        dim: 1,
        std: StdKind::Exp,
    };
    let points = ModelConfig::new(3, 2, gaussian);
    let copy = ModelConfig::new(12, 12, HeadKind::Classes { count: 12 })
        .with_embedding(EmbeddingKind::Sequence);
    for (model, layers, tokens, retreever, expected) in [
        (&copy, 0, 128, 185_868, 186_380),
        (&copy, 0, 512, 185_868, 186_508),
        (&points, 0, 197, 117_186, 117_762),
        (&points, 2, 197, 200_386, 200_962),
        (&points, 6, 197, 366_786, 367_362),
    ] {
        let model = model.clone().with_encoder_layers(layers);
        let latents = latents_for(tokens, 2, Layout::LeftFilled);
        let perceiver = PerceiverIoConfig::new(model.clone(), latents).init(&device());
        let tree = ReTreeverConfig::new(model).init(&device());
        assert_eq!(perceiver.num_params(), expected, "{layers} layers");
        assert_eq!(tree.num_params(), retreever, "{layers} layers");
        assert_eq!(expected, retreever + 64 * latents, "{layers} layers");
        assert!(expected.abs_diff(retreever) * 10 <= retreever);
    }
}

#[test]
fn one_seed_gives_these_latents_on_every_backend() {
    let found = parameters(
        &PerceiverIoConfig::new(small(), 3)
            .with_seed(7)
            .init(&device()),
    );
    let latents = latents(&found);
    assert_eq!(latents.shape, [3, 8]);
    assert_held(&latents.values[..2], &[0.008463077, 0.022838725], "latents");
}

#[test]
fn latents_start_as_a_truncated_normal_of_the_seed() {
    let wide = small().with_d_model(64);
    let draws = |seed| {
        let found = parameters(
            &PerceiverIoConfig::new(wide.clone(), 64)
                .with_seed(seed)
                .init(&device()),
        );
        latents(&found).values.clone()
    };
    let drawn = draws(1);
    assert_eq!(drawn, draws(1));
    assert_ne!(drawn, draws(2));
    assert!(drawn.iter().all(|value| value.abs() < 0.04 + allowed(0.0)));
    let count = drawn.len() as f32;
    let mean = drawn.iter().sum::<f32>() / count;
    let square = drawn.iter().map(|value| value * value).sum::<f32>() / count;
    // 4,096 draws: five standard errors of the mean, and of the deviation 0.8796 · 0.02.
    assert!(mean.abs() < 0.0014, "{mean}");
    assert!(
        (square.sqrt() - 0.017_59).abs() < 0.001,
        "{}",
        square.sqrt()
    );
}

#[test]
fn what_it_shares_with_retreever_starts_the_same() {
    let perceiver = parameters(
        &PerceiverIoConfig::new(small(), 3)
            .with_seed(5)
            .init(&device()),
    );
    let tree = parameters(&ReTreeverConfig::new(small()).with_seed(5).init(&device()));
    let shared = |found: &[Parameter]| -> Vec<(String, Vec<f32>)> {
        let of = |path: &str| path.starts_with("encoder.") || path.starts_with("decoder.");
        let shared = found.iter().filter(|parameter| of(&parameter.path));
        shared
            .map(|parameter| (parameter.path.clone(), parameter.values.clone()))
            .collect()
    };
    assert!(!shared(&tree).is_empty());
    assert_eq!(shared(&perceiver), shared(&tree));
}

#[test]
fn there_are_as_many_latents_as_nodes_that_a_search_selects_at_most() {
    for branching in [2, 3, 4] {
        let model = ReTreeverConfig::new(small())
            .with_branching(branching)
            .with_seed(1)
            .init(&device());
        for tokens in [1, 2, 3, 5, 10, 13] {
            let index = model.index(&points(1, tokens, None, &device()));
            let draws = model.decisions(tokens).max(1);
            let route = Route::Sampled(uniforms([1, 64, 1, draws], 2, &device()));
            let output = model.predict(random([1, 64, 2], 3, &device()), &index, route);
            let most = output.search.selected.float().max().into_scalar::<f32>();
            let latents = latents_for(tokens, branching, Layout::LeftFilled);
            assert_eq!(latents, most as usize, "{tokens} tokens, b = {branching}");
        }
    }
}

#[test]
fn a_context_of_any_length_becomes_the_same_number_of_latents() {
    let model = model();
    for tokens in [1, 2, 9] {
        let encoded = model.encode(&points(2, tokens, None, &device()));
        assert_eq!(encoded.latents().dims(), [2, 3, 8]);
        let prediction = parts(model.predict(queries(), &encoded));
        assert_eq!(prediction.dims(), [2, 3, 2]);
        assert!(values(prediction).iter().all(|value| value.is_finite()));
    }
}

#[test]
fn latents_differ_after_reading() {
    let [batch, count, width] = [1, 3, 8];
    let encoded = model().encode(&points(batch, 9, None, &device()));
    let rows = values(encoded.latents().reshape([count, width]));
    let rows: Vec<&[f32]> = rows.chunks(width).collect();
    for (first, second) in [(0, 1), (0, 2), (1, 2)] {
        let apart = rows[first].iter().zip(rows[second]);
        let apart = apart.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(apart > 1e-3, "latents {first} and {second}: {apart}");
    }
}

#[test]
fn every_token_reaches_every_query() {
    let device = autodiff_device();
    let model = PerceiverIoConfig::new(small(), 3)
        .with_seed(1)
        .init(&device);
    let features = Tensor::<3>::from_data(random_data([1, 6, 3], 2), &device).require_grad();
    let context = Context {
        features: features.clone(),
        positions: random([1, 6, 2], 3, &device),
        mask: None,
    };
    for query in 0..2 {
        let queries = random([1, 2, 2], 4, &device);
        let prediction = parts(model.predict(queries, &model.encode(&context)));
        let gradients = prediction.slice([0..1, query..query + 1]).sum().backward();
        let gradient = values(features.grad(&gradients).expect("features have a gradient"));
        for (token, gradient) in gradient.chunks(3).enumerate() {
            let reached = gradient.iter().any(|value| *value != 0.0);
            assert!(reached, "token {token}, query {query}");
        }
    }
}

#[test]
fn masked_tokens_never_change_what_latents_predict() {
    let model = model();
    let batch = parts(model.predict(queries(), &model.encode(&padded())));
    for (example, context) in examples().iter().enumerate() {
        let queries = example_of(queries(), example);
        let alone = parts(model.predict(queries, &model.encode(context)));
        assert_close(alone, example_of(batch.clone(), example), 1e-4, 1e-4);
    }
}

#[test]
fn the_order_of_points_never_changes_a_prediction() {
    let model = model();
    let context = points(2, 7, None, &device());
    let from = Tensor::<1, Int>::from_data([4, 0, 6, 2, 5, 1, 3], &device());
    let shuffled = Context {
        features: context.features.clone().select(1, from.clone()),
        positions: context.positions.clone().select(1, from),
        mask: None,
    };
    let [got, expected] =
        [shuffled, context].map(|context| parts(model.predict(queries(), &model.encode(&context))));
    assert_close(got, expected, 1e-5, 1e-5);
}

/// The gradients of a small model for a batch of one whole and one shorter context.
fn learned(layers: usize, lengths: [usize; 2]) -> Vec<Parameter> {
    let device = autodiff_device();
    let model = PerceiverIoConfig::new(small().with_encoder_layers(layers), 3)
        .with_seed(1)
        .init(&device);
    let context = points(2, 6, Some(padding(&lengths, 6, &device)), &device);
    let queries = random([2, 3, 2], 5, &device);
    let prediction = model.predict(queries, &model.encode(&context));
    let target = Target::Values(random([2, 3, 1], 6, &device));
    let loss = prediction.loss(&target, None);
    assert!(loss.clone().into_scalar::<f32>().is_finite());
    gradients_of(&model, &loss.backward())
}

#[test]
fn gradients_reach_every_parameter() {
    for layers in [0, 1, 2] {
        for Parameter { path, values, .. } in learned(layers, [6, 4]) {
            assert!(values.iter().all(|value| value.is_finite()), "{path}");
            let reached = values.iter().any(|value| *value != 0.0);
            assert!(reached, "{path}, {layers} layers");
        }
    }
}

#[test]
fn a_context_without_a_real_token_leaves_predictions_and_gradients_finite() {
    let model = model();
    let nothing = |features: f32| {
        let context = points(2, 6, Some(padding(&[0, 0], 6, &device())), &device());
        let context = Context {
            features: context.features * features,
            ..context
        };
        parts(model.predict(queries(), &model.encode(&context)))
    };
    assert_close(nothing(1.0), nothing(-3.0), 1e-6, 1e-6);

    for Parameter { path, values, .. } in learned(1, [0, 0]) {
        assert!(values.iter().all(|value| value.is_finite()), "{path}");
        let reads = path == "latents" || path == "read.attention.output.bias";
        let reached = values.iter().any(|value| *value != 0.0);
        assert!(reached || !reads, "{path}");
        assert!(!path.starts_with("encoder.context") || !reached, "{path}");
    }
}

#[test]
fn saved_weights_are_the_weights_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let config = PerceiverIoConfig::new(small(), 3);
    let saved = config.clone().with_seed(1).init(&device());
    for name in ["perceiver.bpk", "perceiver.safetensors"] {
        let path = folder.path().join(name);
        save_weights(&saved, &path).unwrap();
        let loaded = load_weights(config.clone().with_seed(2).init(&device()), &path).unwrap();
        for (got, expected) in parameters(&loaded).iter().zip(parameters(&saved)) {
            assert_eq!(got.path, expected.path);
            assert_eq!(got.values, expected.values, "{name}: {}", got.path);
        }
        let other = PerceiverIoConfig::new(small(), 4)
            .with_seed(2)
            .init(&device());
        let error = load_weights(other, &path).expect_err("another number of latents");
        assert!(matches!(error, StoreError::OtherModel { .. }), "{error}");
    }
}

#[test]
#[should_panic(expected = "perceiver_io: latents: expected at least 1, got 0")]
fn a_model_without_latents_is_refused() {
    PerceiverIoConfig::new(small(), 0)
        .with_seed(1)
        .init(&device());
}

fn latents(found: &[Parameter]) -> &Parameter {
    let mut of = found.iter().filter(|parameter| parameter.path == "latents");
    of.next().expect("a parameter named latents")
}
