//! Weights saved on a backend load on it; `tests/store.rs` has the rest.

use crate::{parameters, small};
use arbora_models::ReTreeverConfig;
use arbora_models::store::{load_weights, save_weights};
use arbora_testing::device;

#[test]
fn saved_weights_are_the_weights_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let config = ReTreeverConfig::new(small());
    let saved = config.clone().with_seed(1).init(&device());
    for name in ["weights.bpk", "weights.safetensors"] {
        let path = folder.path().join(name);
        save_weights(&saved, &path).unwrap();
        let loaded = load_weights(config.clone().with_seed(2).init(&device()), &path).unwrap();
        for (got, expected) in parameters(&loaded).iter().zip(parameters(&saved)) {
            assert_eq!(got.path, expected.path);
            assert_eq!(got.values, expected.values, "{name}: {}", got.path);
        }
    }
}
