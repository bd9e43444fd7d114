//! Predictions from several paths.

use crate::{points, small};
use arbora_attention::Route;
use arbora_models::{Prediction, ReTreeverConfig};
use arbora_testing::{assert_close, device, padding, random};
use burn::tensor::Tensor;

fn parts(prediction: Prediction) -> Tensor<3> {
    match prediction {
        Prediction::Gaussian { mean, std } => Tensor::cat(vec![mean, std], 2),
        Prediction::Classes { logits } => logits,
    }
}

#[test]
fn options_lead_from_the_greedy_prediction_to_that_from_all_leaves() {
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device());
    let mask = padding(&[9, 4], 9, &device());
    let index = model.index(&points(2, 9, Some(mask), &device()));
    let queries = random([2, 3, 2], 5, &device());
    let predict = |route| {
        let found = model.predict(queries.clone(), &index, route);
        let selected: Vec<i64> = found.search.selected.into_data().iter().collect();
        (parts(found.prediction), selected)
    };
    let (narrowest, _) = predict(Route::Beam(1));
    assert_close(narrowest, predict(Route::Greedy).0, 0.0, 0.0);
    let (widest, selected) = predict(Route::Beam(9));
    let leaves = model.predict_from_leaves(queries.clone(), &index);
    assert_close(widest, parts(leaves), 1e-5, 1e-5);
    assert_eq!(selected, [9, 9, 9, 4, 4, 4]);
}
