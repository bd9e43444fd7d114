//! Padding never changes a prediction, and neither does the order of a batch.

use crate::{points, small};
use arbora_attention::Route;
use arbora_models::{Context, CrossAttentionConfig, Prediction, ReTreeverConfig};
use arbora_testing::{assert_close, device, large, padding, random, uniforms};
use arbora_tree::TokenOrder;
use burn::tensor::{Int, Tensor};

/// One example of five tokens and one of three, as they are without padding to a common length.
pub fn examples() -> [Context; 2] {
    let both = points(2, 5, None, &device());
    [(0, 5), (1, 3)].map(|(example, length)| {
        let rows = |tensor: &Tensor<3>| {
            let dim = tensor.dims()[2];
            let rows = [example..example + 1, 0..length, 0..dim];
            tensor.clone().slice(rows)
        };
        Context {
            features: rows(&both.features),
            positions: rows(&both.positions),
            mask: None,
        }
    })
}

/// The same examples in one batch, padded to nine tokens with large numbers.
pub fn padded() -> Context {
    let both = points(2, 5, None, &device());
    let mask = padding(&[5, 3], 9, &device());
    let pad = |tensor: Tensor<3>| {
        let dim = tensor.dims()[2];
        let garbage = Tensor::full([2, 4, dim], large(), &device());
        let padded = Tensor::cat(vec![tensor, garbage], 1);
        let masked = mask.clone().unsqueeze_dim::<3>(2).expand([2, 9, dim]);
        padded.mask_fill(masked, large())
    };
    Context {
        features: pad(both.features),
        positions: pad(both.positions),
        mask: Some(mask),
    }
}

pub fn queries() -> Tensor<3> {
    random([2, 3, 2], 5, &device())
}

pub fn parts(prediction: Prediction) -> Tensor<3> {
    match prediction {
        Prediction::Gaussian { mean, std } => Tensor::cat(vec![mean, std], 2),
        Prediction::Classes { logits } => logits,
    }
}

pub fn example_of<const D: usize>(tensor: Tensor<D>, example: usize) -> Tensor<D> {
    tensor.narrow(0, example, 1)
}

#[test]
fn masked_tokens_never_change_what_a_sampled_search_predicts() {
    for order in [
        TokenOrder::Given,
        TokenOrder::KdTree,
        TokenOrder::Learned { iterations: 3 },
    ] {
        let model = ReTreeverConfig::new(small())
            .with_order(order)
            .with_seed(1)
            .init(&device());
        let numbers = uniforms([2, 3, 1, 4], 6, &device());
        let route = Route::Sampled(numbers.clone());
        let batch = model.predict(queries(), &model.index(&padded()), route);
        let batch_leaves = model.predict_from_leaves(queries(), &model.index(&padded()));
        for (example, context) in examples().iter().enumerate() {
            let index = model.index(context);
            let queries = example_of(queries(), example);
            let route = Route::Sampled(example_of(numbers.clone(), example));
            let alone = model.predict(queries.clone(), &index, route);
            let expected = example_of(parts(batch.prediction.clone()), example);
            assert_close(parts(alone.prediction), expected, 1e-4, 1e-4);
            let log_prob = example_of(batch.search.log_prob.clone(), example);
            assert_close(alone.search.log_prob, log_prob, 1e-4, 1e-4);
            let leaves = parts(model.predict_from_leaves(queries, &index));
            let expected = example_of(parts(batch_leaves.clone()), example);
            assert_close(leaves, expected, 1e-4, 1e-4);
        }
    }
}

#[test]
fn masked_tokens_never_change_what_dense_attention_predicts() {
    let model = CrossAttentionConfig::new(small())
        .with_seed(1)
        .init(&device());
    let batch = parts(model.predict(queries(), &model.encode(&padded())));
    for (example, context) in examples().iter().enumerate() {
        let queries = example_of(queries(), example);
        let alone = parts(model.predict(queries, &model.encode(context)));
        assert_close(alone, example_of(batch.clone(), example), 1e-4, 1e-4);
    }
}

#[test]
fn masked_tokens_between_real_ones_are_skipped() {
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device());
    // Two masked tokens first, then the real ones, then the others: real ones keep their order.
    let from = Tensor::<1, Int>::from_data([7, 8, 0, 1, 2, 3, 4, 5, 6], &device());
    let Context {
        features,
        positions,
        mask,
    } = padded();
    let moved = Context {
        features: features.select(1, from.clone()),
        positions: positions.select(1, from.clone()),
        mask: mask.map(|mask| mask.float().select(1, from).greater_elem(0.5)),
    };
    let [got, expected] = [moved, padded()].map(|context| {
        let output = model.predict(queries(), &model.index(&context), Route::Greedy);
        parts(output.prediction)
    });
    assert_close(got, expected, 1e-4, 1e-4);
}

#[test]
fn the_order_of_a_batch_never_changes_a_prediction() {
    fn swap<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
        tensor.flip([0])
    }
    let Context {
        features,
        positions,
        mask,
    } = padded();
    let swapped = Context {
        features: swap(features),
        positions: swap(positions),
        mask: mask.map(|mask| mask.float().flip([0]).greater_elem(0.5)),
    };
    let numbers = uniforms([2, 3, 1, 4], 6, &device());
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device());
    let sampled = |context: &Context, queries, numbers| {
        let index = model.index(context);
        parts(
            model
                .predict(queries, &index, Route::Sampled(numbers))
                .prediction,
        )
    };
    let expected = sampled(&padded(), queries(), numbers.clone());
    let got = sampled(&swapped, swap(queries()), swap(numbers));
    assert_close(swap(got), expected, 1e-5, 1e-5);

    let dense = CrossAttentionConfig::new(small())
        .with_seed(1)
        .init(&device());
    let expected = parts(dense.predict(queries(), &dense.encode(&padded())));
    let got = parts(dense.predict(swap(queries()), &dense.encode(&swapped)));
    assert_close(swap(got), expected, 1e-5, 1e-5);
}
