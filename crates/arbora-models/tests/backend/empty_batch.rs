//! Batches of no example are refused by every model, in the same words.

use crate::{points, small};
use arbora_models::{
    CrossAttentionConfig, PerceiverIoConfig, ReTreeverConfig, TreeformerConfig, TreeformerOptions,
};
use arbora_testing::{assert_refuses_nothing, device};
use burn::tensor::{Int, Tensor};

#[test]
fn models_refuse_a_batch_of_nothing() {
    let device = device();
    let none = || Tensor::<3>::zeros([0, 3, 2], &device);
    let empty = || {
        let mut context = points(1, 5, None, &device);
        context.features = Tensor::zeros([0, 5, 3], &device);
        context.positions = Tensor::zeros([0, 5, 2], &device);
        context
    };
    let one = points(1, 5, None, &device);
    let retreever = ReTreeverConfig::new(small()).init(&device);
    assert_refuses_nothing("retreever", || drop(retreever.index(&empty())));
    let index = retreever.index(&one);
    assert_refuses_nothing("its queries", || {
        drop(retreever.predict_from_leaves(none(), &index));
    });
    let dense = CrossAttentionConfig::new(small()).init(&device);
    assert_refuses_nothing("cross attention", || drop(dense.encode(&empty())));
    let latents = PerceiverIoConfig::new(small(), 3).init(&device);
    assert_refuses_nothing("perceiver", || drop(latents.encode(&empty())));
    let treeformer = TreeformerConfig::new(7, 3).with_d_model(8).init(&device);
    assert_refuses_nothing("treeformer", || {
        let tokens = Tensor::<2, Int>::zeros([0, 5], &device);
        drop(treeformer.forward(tokens, None, &TreeformerOptions::default()));
    });
}
