//! burn's data-parallel strategy takes the steps that one device takes with the joined batch.
#![cfg(feature = "flex")]

#[path = "../examples/data_parallel.rs"]
mod example;

use arbora::models::TreeCoder;
use arbora_testing::assert_close;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use example::{loss, network, train, windows};

const BATCH: usize = 3;
const RATE: f64 = 0.2;

/// All parameters one after the other.
fn flat(network: &TreeCoder) -> Tensor<1> {
    struct Flat(Vec<Tensor<1>>);
    impl ModuleVisitor for Flat {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().without_autodiff();
            self.0.push(value.reshape([-1]).to_device(&Device::flex()));
        }
    }
    let mut flat = Flat(Vec::new());
    network.visit(&mut flat);
    Tensor::cat(flat.0, 0)
}

#[test]
fn two_devices_take_the_steps_of_one_with_the_joined_batch() {
    let device = Device::flex();
    let text = "A tree of nodes; each sequence goes from its root to one leaf. ".repeat(8);
    let mut windows = windows(&text, 16);
    windows.truncate(4 * BATCH);
    let start = network(&device);
    let folder = tempfile::tempdir().unwrap();
    let devices = vec![device.clone(), device.clone()];
    let optimizer = (SgdConfig::new().init(), RATE);
    let parallel = train(
        start.clone(),
        devices,
        windows.clone(),
        BATCH,
        optimizer,
        folder.path(),
    )
    .unwrap();

    let autodiff = device.clone().autodiff();
    let mut single = start.clone().train().fork(&autodiff);
    let mut optimizer = SgdConfig::new().init();
    let half = windows.len() / 2;
    for step in 0..half / BATCH {
        let part = |from: usize| windows[from..from + BATCH].concat();
        let joined = [part(step * BATCH), part(half + step * BATCH)].concat();
        let joined = TensorData::new(joined, [2 * BATCH, 17]);
        let gradients = loss(&single, Tensor::from_data(joined, &autodiff)).backward();
        let gradients = GradientsParams::from_grads(gradients, &single);
        single = optimizer.step(RATE, single, gradients);
    }
    let (start, single) = (flat(&start), flat(&single));
    let moved = (single.clone() - start).abs().max().into_scalar::<f32>();
    assert!(moved > 1e-3, "{moved}");
    assert_close(flat(&parallel), single, 1e-5, 1e-4);
}
