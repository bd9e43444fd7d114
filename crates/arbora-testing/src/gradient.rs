//! Gradient checks by central differences.

use burn::tensor::{Device, Tensor, TensorData};

/// Asserts that the gradient of `function` at `input` agrees with central differences.
///
/// `function` maps the input to one number. Each checked coordinate is moved by ±`step`; the error
/// allowed is `tolerance * (1 + |numeric|)`, where single precision leaves about
/// `1e-7 * |function| / step` of rounding in the numeric value itself. In half precision steps are
/// four times as long, and four units of that rounding are allowed on top. At most 24 coordinates,
/// spread evenly, are checked.
///
/// # Panics
/// With the first coordinate whose derivatives disagree.
#[track_caller]
pub fn assert_matches_finite_differences<const D: usize>(
    input: TensorData,
    device: &Device,
    step: f32,
    tolerance: f32,
    function: impl Fn(Tensor<D>) -> Tensor<1>,
) {
    let autodiff = crate::recording(device);
    let tensor = Tensor::<D>::from_data(input.clone(), &autodiff).require_grad();
    let gradients = function(tensor.clone()).backward();
    let analytic = tensor
        .grad(&gradients)
        .expect("the function must depend on its input");
    let analytic = crate::values(analytic);

    let shape = input.shape().clone();
    let base: Vec<f32> = input.iter::<f32>().collect();
    let evaluate = |at: usize, delta: f32| -> f64 {
        let mut moved = base.clone();
        moved[at] += delta;
        let tensor = Tensor::<D>::from_data(TensorData::new(moved, shape.clone()), device);
        f64::from(function(tensor).into_scalar::<f32>())
    };
    let (step, rounding) = match crate::half_precision() {
        Some(unit) => (
            4.0 * step,
            unit * (1.0 + evaluate(0, 0.0).abs()) / f64::from(step),
        ),
        None => (step, 0.0),
    };
    let stride = base.len().div_ceil(24);
    for at in (0..base.len()).step_by(stride) {
        let numeric = (evaluate(at, step) - evaluate(at, -step)) / (2.0 * f64::from(step));
        let error = (f64::from(analytic[at]) - numeric).abs();
        assert!(
            error <= f64::from(tolerance) * (1.0 + numeric.abs()) + rounding,
            "gradient at coordinate {at}: autodiff {}, finite differences {numeric}",
            analytic[at]
        );
    }
}
