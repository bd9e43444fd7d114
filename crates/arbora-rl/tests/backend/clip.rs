//! Clipping by the global norm.

use arbora_rl::{clip_global_norm, global_norm};
use arbora_testing::{allowed, assert_close, autodiff_device, device};
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};

#[derive(Module, Debug)]
struct Two {
    first: Param<Tensor<1>>,
    second: Param<Tensor<2>>,
}

fn two() -> Two {
    let device = autodiff_device();
    Two {
        first: Param::from_data(TensorData::from([0.0f32, 0.0]), &device),
        second: Param::from_data(TensorData::from([[0.0f32], [0.0]]), &device),
    }
}

/// The gradients are `first` and `second`: the loss is linear.
fn gradients(module: &Two, first: [f32; 2], second: [[f32; 1]; 2]) -> GradientsParams {
    let device = module.first.val().device();
    let loss = (module.first.val() * Tensor::from_data(first, &device)).sum()
        + (module.second.val() * Tensor::from_data(second, &device)).sum();
    GradientsParams::from_grads(loss.backward(), module)
}

#[test]
fn one_factor_scales_all_parameters() {
    let module = two();
    let gradients = gradients(&module, [3.0, 0.0], [[0.0], [4.0]]);
    let (clipped, norm) = clip_global_norm(gradients, &module, 1.0);
    assert!((norm - 5.0).abs() < 1e-5);
    let first = clipped.get::<1>(module.first.id).unwrap();
    let second = clipped.get::<2>(module.second.id).unwrap();
    assert_close(first, Tensor::from_data([0.6, 0.0], &device()), 1e-5, 0.0);
    assert_close(
        second,
        Tensor::from_data([[0.0], [0.8]], &device()),
        1e-5,
        0.0,
    );
    assert!((global_norm(&clipped, &module) - 1.0).abs() < allowed(1e-5));
}

#[test]
fn gradients_within_the_norm_stay_as_they_are() {
    let module = two();
    let gradients = gradients(&module, [0.3, 0.0], [[0.0], [0.4]]);
    let (clipped, norm) = clip_global_norm(gradients, &module, 1.0);
    assert!((norm - 0.5).abs() < allowed(1e-6));
    let first = clipped.get::<1>(module.first.id).unwrap();
    assert_close(first, Tensor::from_data([0.3, 0.0], &device()), 0.0, 0.0);
}

#[test]
fn a_norm_that_is_not_finite_is_reported_and_nothing_is_scaled() {
    let module = two();
    for bad in [f32::NAN, f32::INFINITY] {
        let gradients = gradients(&module, [bad, 1.0], [[0.0], [4.0]]);
        let (clipped, norm) = clip_global_norm(gradients, &module, 1.0);
        assert!(!norm.is_finite());
        let second = clipped.get::<2>(module.second.id).unwrap();
        assert_close(
            second,
            Tensor::from_data([[0.0], [4.0]], &device()),
            0.0,
            0.0,
        );
    }
}

#[test]
fn a_shared_parameter_counts_once() {
    #[derive(Module, Debug)]
    struct Shared {
        one: Param<Tensor<1>>,
        same: Param<Tensor<1>>,
    }
    let one = Param::from_data(TensorData::from([0.0f32, 0.0]), &autodiff_device());
    let module = Shared {
        same: one.clone(),
        one,
    };
    let weights = Tensor::<1>::from_data([3.0, 4.0], &autodiff_device());
    let loss = (module.one.val() * weights).sum();
    let gradients = GradientsParams::from_grads(loss.backward(), &module);
    let (clipped, norm) = clip_global_norm(gradients, &module, 1.0);
    assert!((norm - 5.0).abs() < 1e-5, "{norm}");
    let clipped = clipped.get::<1>(module.one.id).unwrap();
    assert_close(clipped, Tensor::from_data([0.6, 0.8], &device()), 1e-5, 0.0);
}

#[test]
fn without_gradients_the_norm_is_zero() {
    let (clipped, norm) = clip_global_norm(GradientsParams::new(), &two(), 1.0);
    assert_eq!(norm, 0.0);
    assert!(clipped.is_empty());
}

#[test]
#[should_panic(expected = "clip_global_norm: max_norm: expected a positive number, got 0")]
fn a_bound_of_zero_is_refused() {
    clip_global_norm(GradientsParams::new(), &two(), 0.0);
}
