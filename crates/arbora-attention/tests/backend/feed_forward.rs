//! The feed-forward part against its reference body on the same device, and against finite differences.

use arbora_attention::functions::{FeedForwardWeights, feed_forward};
use arbora_attention::ops::reference;
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{assert_close, autodiff_device, device, random, random_data};
use burn::backend::Dispatch;
use burn::tensor::{Device, Gradients, Tensor};

const EPSILON: f64 = 1e-5;

/// Rows, width, and width of the hidden layer.
type Sizes = (usize, usize, usize);

const CASES: [Sizes; 7] = [
    (1, 6, 5),
    (3, 1, 1),
    (33, 17, 9),
    (40, 16, 32),
    // Several chunks, the last one shorter.
    (300, 24, 20),
    (2053, 12, 7),
    (5, 70, 150),
];

fn weights((_, dim, ff): Sizes, device: &Device) -> FeedForwardWeights {
    let vector = |width, seed| random::<1>([width], seed, device);
    let matrix =
        |from: usize, to, seed| random::<2>([from, to], seed, device) * (3.0 / from as f64).sqrt();
    FeedForwardWeights {
        norm_gamma: vector(dim, 1) + 1.0,
        norm_beta: vector(dim, 2),
        inner: matrix(dim, 2 * ff, 3),
        inner_bias: vector(2 * ff, 4),
        outer: matrix(ff, dim, 5),
        outer_bias: vector(dim, 6),
    }
}

fn rows((rows, dim, _): Sizes, device: &Device) -> Tensor<2> {
    random([rows, dim], 7, device)
}

fn kernel(rows: Tensor<2>, weights: FeedForwardWeights) -> Tensor<2> {
    feed_forward(rows, weights, EPSILON)
}

fn composed(rows: Tensor<2>, weights: FeedForwardWeights) -> Tensor<2> {
    Tensor::from_dispatch(reference::feed_forward::<Dispatch>(
        rows.into_dispatch(),
        weights.into_dispatch(),
        EPSILON,
    ))
}

/// Gradients of the rows and of all weights, flattened.
fn gradients(
    case: Sizes,
    apply: impl FnOnce(Tensor<2>, FeedForwardWeights) -> Tensor<2>,
) -> Vec<(&'static str, Tensor<1>)> {
    let device = autodiff_device();
    let rows = rows(case, &device).require_grad();
    let weights = weights(case, &device);
    let weights = FeedForwardWeights {
        norm_gamma: weights.norm_gamma.require_grad(),
        norm_beta: weights.norm_beta.require_grad(),
        inner: weights.inner.require_grad(),
        inner_bias: weights.inner_bias.require_grad(),
        outer: weights.outer.require_grad(),
        outer_bias: weights.outer_bias.require_grad(),
    };
    let output = apply(rows.clone(), weights.clone());
    let factors = random(output.dims(), 8, &device);
    let found = (output * factors).sum().backward();
    vec![
        ("rows", flat(&rows, &found)),
        ("norm_gamma", flat(&weights.norm_gamma, &found)),
        ("norm_beta", flat(&weights.norm_beta, &found)),
        ("inner", flat(&weights.inner, &found)),
        ("inner_bias", flat(&weights.inner_bias, &found)),
        ("outer", flat(&weights.outer, &found)),
        ("outer_bias", flat(&weights.outer_bias, &found)),
    ]
}

fn flat<const D: usize>(tensor: &Tensor<D>, gradients: &Gradients) -> Tensor<1> {
    let count: usize = tensor.dims().iter().product();
    let gradient = tensor.grad(gradients);
    gradient.expect("all have a gradient").reshape([count])
}

#[test]
fn outputs_equal_the_reference() {
    for case in CASES {
        let device = device();
        let got = kernel(rows(case, &device), weights(case, &device));
        let expected = composed(rows(case, &device), weights(case, &device));
        assert_close(got, expected, 5e-5, 5e-5);
    }
}

#[test]
fn gradients_equal_those_of_the_reference() {
    for case in CASES {
        let got = gradients(case, kernel);
        let expected = gradients(case, composed);
        for ((name, got), (_, expected)) in got.into_iter().zip(expected) {
            println!("{case:?}: {name}");
            // Sums over rows: the error grows with the largest of them.
            let largest = expected.clone().abs().max().into_scalar::<f32>().max(1.0);
            assert_close(got / largest, expected / largest, 2e-5, 1e-4);
        }
    }
}

#[test]
fn gradients_are_finite_differences() {
    let case = (4, 5, 3);
    let loss = |rows: Tensor<2>, change: &dyn Fn(&mut FeedForwardWeights)| {
        let device = rows.device();
        let mut weights = weights(case, &device);
        change(&mut weights);
        (kernel(rows, weights) * random([4, 5], 8, &device)).sum()
    };
    let rows = random_data([4, 5], 7);
    assert_matches_finite_differences(rows.clone(), &device(), 1e-2, 2e-2, |rows| {
        loss(rows, &|_| ())
    });
    let of_vector = |width, change: fn(&mut FeedForwardWeights, Tensor<1>)| {
        let vector = random_data([width], 9);
        assert_matches_finite_differences(vector, &device(), 1e-2, 2e-2, |vector| {
            let rows = Tensor::from_data(rows.clone(), &vector.device());
            loss(rows, &|weights| change(weights, vector.clone()))
        });
    };
    of_vector(5, |weights, vector| weights.norm_gamma = vector);
    of_vector(5, |weights, vector| weights.norm_beta = vector);
    of_vector(6, |weights, vector| weights.inner_bias = vector);
    of_vector(5, |weights, vector| weights.outer_bias = vector);
    let of_matrix = |sizes, change: fn(&mut FeedForwardWeights, Tensor<2>)| {
        let matrix = random_data(sizes, 9);
        assert_matches_finite_differences(matrix, &device(), 1e-2, 2e-2, |matrix| {
            let rows = Tensor::from_data(rows.clone(), &matrix.device());
            loss(rows, &|weights| change(weights, matrix.clone()))
        });
    };
    of_matrix([5, 6], |weights, matrix| weights.inner = matrix);
    of_matrix([3, 5], |weights, matrix| weights.outer = matrix);
}

#[test]
fn no_rows_have_no_outputs_and_gradients_of_zero() {
    let case = (0, 6, 5);
    let device = device();
    let output = kernel(Tensor::zeros([0, 6], &device), weights(case, &device));
    assert_eq!(output.dims(), [0, 6]);

    let device = autodiff_device();
    let (none, some) = (
        Tensor::<2>::zeros([0, 6], &device),
        random::<1>([6], 7, &device),
    );
    let weights = weights(case, &device);
    let inner = weights.inner.clone().require_grad();
    let weights = FeedForwardWeights {
        inner: inner.clone(),
        ..weights
    };
    let loss = kernel(none, weights).sum() + (some.clone() * some).sum();
    if let Some(gradient) = inner.grad(&loss.backward()) {
        assert_close(gradient.clone(), gradient.zeros_like(), 0.0, 0.0);
    }
}

#[test]
fn every_axis_but_the_last_counts_rows() {
    let case = (24, 6, 5);
    let device = device();
    let flat = kernel(rows(case, &device), weights(case, &device));
    let input = rows(case, &device).reshape([2, 3, 4, 6]);
    let got = feed_forward(input, weights(case, &device), EPSILON);
    assert_close(got, flat.clone().reshape([2, 3, 4, 6]), 0.0, 0.0);
    let row: Tensor<1> = rows(case, &device).slice([5..6, 0..6]).reshape([6]);
    let got = feed_forward(row, weights(case, &device), EPSILON);
    assert_close(got, flat.slice([5..6, 0..6]).reshape([6]), 1e-5, 1e-5);
}

#[test]
fn inputs_need_not_be_contiguous() {
    let case = (20, 6, 5);
    let device = device();
    // The same values, laid out the other way around.
    let turned = |matrix: Tensor<2>| {
        let stored = Tensor::<2>::from_data(matrix.transpose().into_data(), &device);
        stored.transpose()
    };
    let expected = kernel(rows(case, &device), weights(case, &device));
    let whole = weights(case, &device);
    let weights = FeedForwardWeights {
        inner: turned(whole.inner),
        outer: turned(whole.outer),
        ..whole
    };
    let got = kernel(turned(rows(case, &device)), weights);
    assert_close(got, expected, 1e-5, 1e-5);
}

#[test]
#[should_panic(expected = "feed_forward: inner [dim, 2 ff]: expected [6, 10], got [6, 9]")]
fn a_weight_of_another_width_is_refused() {
    let case = (2, 6, 5);
    let device = device();
    let weights = FeedForwardWeights {
        inner: random([6, 9], 3, &device),
        ..weights(case, &device)
    };
    kernel(rows(case, &device), weights);
}
