//! How many parameters models have, and what they start as.

use crate::{Parameter, parameters, small};
use arbora_models::{
    CrossAttentionConfig, EmbeddingKind, HeadKind, Initialization, ModelConfig, ReTreeverConfig,
    StdKind,
};
use arbora_testing::{allowed, assert_held, device};
use burn::module::Module;

/// Parameters of the published aggregator: one transformer block 64 wide.
const AGGREGATOR: usize = 41_600;

#[test]
fn published_models_have_the_published_number_of_parameters() {
    let gaussian = |dim| HeadKind::Gaussian {
        dim,
        std: StdKind::Exp,
    };
    let copy = ModelConfig::new(12, 12, HeadKind::Classes { count: 12 })
        .with_encoder_layers(0)
        .with_embedding(EmbeddingKind::Sequence)
        .with_max_positions(5000);
    for (name, model, expected) in [
        ("gp", ModelConfig::new(2, 1, gaussian(1)), 366_658),
        ("rgb 32x32", ModelConfig::new(5, 2, gaussian(3)), 367_430),
        ("grey 28x28", ModelConfig::new(3, 2, gaussian(1)), 366_786),
        ("copy", copy, 185_868),
    ] {
        let retreever = ReTreeverConfig::new(model.clone()).init(&device());
        assert_eq!(retreever.num_params(), expected, "{name}");
        let dense = CrossAttentionConfig::new(model).init(&device());
        assert_eq!(dense.num_params(), expected - AGGREGATOR, "{name}, dense");
    }
}

#[test]
fn sequences_may_have_more_positions_than_the_published_timescale() {
    let config = |positions| {
        let model = small().with_embedding(EmbeddingKind::Sequence);
        ReTreeverConfig::new(model.with_max_positions(positions)).init(&device())
    };
    assert_eq!(config(20_000).num_params(), config(10).num_params());
}

#[test]
fn one_seed_gives_these_weights_on_every_backend() {
    let model = ReTreeverConfig::new(small()).with_seed(7).init(&device());
    let found = parameters(&model);
    for (path, first) in GOLDEN {
        let parameter = found
            .iter()
            .find(|parameter| parameter.path == path)
            .unwrap_or_else(|| panic!("no parameter {path}"));
        assert_held(&parameter.values[..2], &first, path);
    }
}

#[test]
fn he_positions_widens_the_weights_after_positions_and_nothing_else() {
    let config = |initialization| {
        let model = small()
            .with_embedding(EmbeddingKind::Sequence)
            .with_initialization(initialization);
        parameters(&ReTreeverConfig::new(model).with_seed(7).init(&device()))
    };
    let published = config(Initialization::Published);
    let wide = config(Initialization::HePositions);
    let mut widened = 0;
    for (narrow, wide) in published.iter().zip(&wide) {
        let after = narrow.path.contains("sequence.layers") && narrow.path.ends_with("weight");
        let factor = if after { 6f32.sqrt() } else { 1.0 };
        widened += usize::from(after);
        for (narrow, wide) in narrow.values.iter().zip(&wide.values) {
            assert!((narrow * factor - wide).abs() < allowed(1e-5));
        }
    }
    assert_eq!(widened, 6, "three layers for tokens and three for queries");
}

/// The first two numbers of some parameters of the small model with seed 7.
const GOLDEN: [(&str, [f32; 2]); 4] = [
    ("encoder.context.layers.0.weight", [-0.500716, 0.1254667]),
    (
        "encoder.blocks.0.attention.key.weight",
        [-0.08994189, -0.3386886],
    ),
    (
        "aggregator.block.feed_forward.inner.bias",
        [-0.10704373, -0.14723942],
    ),
    ("decoder.output.weight", [0.0027354956, -0.19389658]),
];

#[test]
fn the_seed_alone_decides_the_weights() {
    let weights = |seed| {
        parameters(
            &ReTreeverConfig::new(small())
                .with_seed(seed)
                .init(&device()),
        )
        .into_iter()
        .flat_map(|parameter| parameter.values)
        .collect::<Vec<f32>>()
    };
    assert_eq!(weights(1), weights(1));
    assert_ne!(weights(1), weights(2));
}

#[test]
fn linear_layers_start_within_their_bounds_and_layer_norms_as_the_identity() {
    let model = ReTreeverConfig::new(small()).with_seed(3).init(&device());
    let found = parameters(&model);
    let mut firsts = Vec::new();
    for Parameter {
        path,
        shape,
        values,
    } in &found
    {
        let (layer, name) = path.rsplit_once('.').expect("a field of a layer");
        match name {
            "gamma" => assert!(values.iter().all(|value| *value == 1.0), "{path}"),
            "beta" => assert!(values.iter().all(|value| *value == 0.0), "{path}"),
            _ => {
                let weight = format!("{layer}.weight");
                let weight = found.iter().find(|other| other.path == weight);
                let fan_in = weight.expect("a linear layer has a weight").shape[0];
                let bound = (fan_in as f32).sqrt().recip();
                let largest = values
                    .iter()
                    .fold(0f32, |most, value| most.max(value.abs()));
                assert!(largest <= bound, "{path}: {largest} is above {bound}");
                if shape.iter().product::<usize>() >= 32 {
                    assert!(largest > bound / 2.0, "{path}: {largest} for bound {bound}");
                }
                firsts.push(values[0] / bound);
            }
        }
    }
    // Every parameter has numbers of its own.
    let count = firsts.len();
    firsts.sort_by(f32::total_cmp);
    firsts.dedup();
    assert_eq!(firsts.len(), count);
}
