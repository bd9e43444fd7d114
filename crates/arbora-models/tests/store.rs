//! Files of weights: whole, damaged, missing and of another model.

use arbora_models::store::{StoreError, load_weights, save_weights};
use arbora_models::{
    Context, CrossAttentionConfig, HeadKind, ModelConfig, Prediction, ReTreever, ReTreeverConfig,
    StdKind,
};
use arbora_testing::{device, random, values};
use std::path::Path;

const FORMATS: [&str; 2] = ["weights.bpk", "weights.safetensors"];

fn small() -> ModelConfig {
    let head = HeadKind::Gaussian {
        dim: 1,
        std: StdKind::Exp,
    };
    ModelConfig::new(3, 2, head)
        .with_d_model(8)
        .with_d_ff(8)
        .with_n_heads(2)
        .with_encoder_layers(1)
}

fn model(seed: u64) -> ReTreever {
    ReTreeverConfig::new(small())
        .with_seed(seed)
        .init(&device())
}

/// What a model predicts for one fixed input, bit by bit.
fn answer(model: &ReTreever) -> Vec<u32> {
    let x = random([1, 5, 2], 1, &device());
    let context = Context::points(x, random([1, 5, 1], 2, &device()), None);
    let index = model.index(&context);
    let queries = random([1, 2, 2], 3, &device());
    let Prediction::Gaussian { mean, std } = model.predict_from_leaves(queries, &index) else {
        panic!("expected a Gaussian");
    };
    let both = values(mean).into_iter().chain(values(std));
    both.map(f32::to_bits).collect()
}

#[track_caller]
fn refused(path: &Path) -> StoreError {
    load_weights(model(2), path).expect_err("the file must be refused")
}

#[test]
fn a_loaded_model_answers_bit_by_bit_like_the_saved_one() {
    let folder = tempfile::tempdir().unwrap();
    let saved = model(1);
    assert_ne!(answer(&saved), answer(&model(2)));
    for name in FORMATS {
        let path = folder.path().join(name);
        save_weights(&saved, &path).unwrap();
        let loaded = load_weights(model(2), &path).unwrap();
        assert_eq!(answer(&loaded), answer(&saved), "{name}");
    }
}

#[test]
fn saving_replaces_an_earlier_file() {
    let folder = tempfile::tempdir().unwrap();
    for name in FORMATS {
        let path = folder.path().join(name);
        save_weights(&model(1), &path).unwrap();
        save_weights(&model(3), &path).unwrap();
        let loaded = load_weights(model(2), &path).unwrap();
        assert_eq!(answer(&loaded), answer(&model(3)), "{name}");
    }
}

#[test]
fn other_endings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["weights.bin", "weights"] {
        let path = folder.path().join(name);
        let error = save_weights(&model(1), &path).unwrap_err();
        assert!(matches!(error, StoreError::UnknownFormat { .. }), "{error}");
        assert!(!path.try_exists().unwrap());
        let error = refused(&path);
        assert!(matches!(error, StoreError::UnknownFormat { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains(".bpk or .safetensors"), "{message}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for name in FORMATS {
        let error = refused(&folder.path().join(name));
        assert!(matches!(error, StoreError::File { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for name in FORMATS {
        let path = folder.path().join(name);
        save_weights(&model(1), &path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 1, 7, 8, 40, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = refused(&path);
            assert!(
                matches!(error, StoreError::File { .. }),
                "{name} cut at {length}: {error}"
            );
        }
    }
}

#[test]
fn a_file_that_is_none_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for name in FORMATS {
        let path = folder.path().join(name);
        std::fs::write(&path, [0xff; 4096]).unwrap();
        let error = refused(&path);
        assert!(matches!(error, StoreError::File { .. }), "{name}: {error}");
    }
}

#[test]
fn weights_of_another_architecture_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in FORMATS {
        let path = folder.path().join(name);
        let wider = ReTreeverConfig::new(small().with_d_ff(16));
        save_weights(&wider.with_seed(1).init(&device()), &path).unwrap();
        let error = refused(&path);
        assert!(matches!(error, StoreError::OtherModel { .. }), "{error}");

        let deeper = ReTreeverConfig::new(small().with_encoder_layers(2));
        save_weights(&deeper.with_seed(1).init(&device()), &path).unwrap();
        let error = refused(&path);
        assert!(matches!(error, StoreError::OtherModel { .. }), "{error}");

        let dense = CrossAttentionConfig::new(small());
        save_weights(&dense.with_seed(1).init(&device()), &path).unwrap();
        let error = refused(&path);
        assert!(matches!(error, StoreError::OtherModel { .. }), "{error}");
    }
}
