//! Which loss teaches which part.

use crate::{gradients_of, points, small};
use arbora_attention::{GhostNodes, Route};
use arbora_models::{Context, LossOptions, Prediction, ReTreever, ReTreeverConfig, Target};
use arbora_testing::{autodiff_device, padding, random, uniforms, values};
use arbora_tree::Layout;
use burn::tensor::{Int, Tensor};

/// Four tokens, each encoded by itself.
fn model(detach_children: bool) -> ReTreever {
    ReTreeverConfig::new(small().with_encoder_layers(0))
        .with_detach_children(detach_children)
        .with_seed(1)
        .init(&autodiff_device())
}

fn features() -> Tensor<3> {
    random([1, 4, 3], 2, &autodiff_device()).require_grad()
}

/// For each of four tokens, whether its features have a gradient of `read` when the search takes
/// the left half: it reads leaves 0 and 1, and the node above leaves 2 and 3.
fn reached(model: &ReTreever, read: impl Fn(Prediction, Tensor<2>) -> Tensor<2>) -> [bool; 4] {
    let device = autodiff_device();
    let features = features();
    let context = Context {
        features: features.clone(),
        positions: random([1, 4, 2], 3, &device),
        mask: None,
    };
    let left = Tensor::<4, Int>::zeros([1, 2, 1, 2], &device);
    let queries = random([1, 2, 2], 4, &device);
    let output = model.predict(queries, &model.index(&context), Route::Given(left));
    let log_prob = output.search.log_prob.squeeze_dim(2);
    let gradients = read(output.prediction, log_prob).sum().backward();
    let gradient = features.grad(&gradients).map(values);
    let gradient = gradient.unwrap_or(vec![0.0; 12]);
    [0, 1, 2, 3].map(|token| gradient[3 * token..3 * token + 3].iter().any(|g| *g != 0.0))
}

fn mean(prediction: Prediction, _: Tensor<2>) -> Tensor<2> {
    let Prediction::Gaussian { mean, .. } = prediction else {
        panic!("expected a Gaussian");
    };
    mean.squeeze_dim(2)
}

#[test]
fn detached_children_let_the_encoder_learn_from_selected_leaves_alone() {
    assert_eq!(reached(&model(true), mean), [true, true, false, false]);
    assert_eq!(reached(&model(false), mean), [true; 4]);
}

#[test]
fn detached_children_keep_the_policy_out_of_the_encoder() {
    let log_prob = |_: Prediction, log_prob: Tensor<2>| log_prob;
    assert_eq!(reached(&model(true), log_prob), [false; 4]);
    assert_eq!(reached(&model(false), log_prob), [true; 4]);
}

#[test]
fn the_tree_loss_and_the_policy_teach_the_aggregator_and_the_leaves_loss_does_not() {
    let device = autodiff_device();
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device);
    for part in ["tree", "leaves", "policy"] {
        let target = Target::Values(random([2, 3, 1], 6, &device));
        let losses = model.losses(
            &points(2, 9, None, &device),
            random([2, 3, 2], 5, &device),
            &target,
            None,
            Route::Sampled(uniforms([2, 3, 1, 4], 7, &device)),
            LossOptions::default(),
        );
        let loss = match part {
            "tree" => losses.tree,
            "leaves" => losses.leaves,
            _ => losses.rollout.log_prob.mean(),
        };
        let learned = gradients_of(&model, &loss.backward());
        let learns = |path: &str| {
            let mut of = learned.iter().filter(|found| found.path.starts_with(path));
            of.any(|found| found.values.iter().any(|gradient| *gradient != 0.0))
        };
        assert!(
            learned
                .iter()
                .all(|found| found.values.iter().all(|g| g.is_finite()))
        );
        assert!(learns("encoder.query"), "{part}");
        assert!(learns("attention.attention.key"), "{part}");
        assert_eq!(learns("aggregator"), part != "leaves", "{part}");
        assert_eq!(learns("encoder.context"), part != "policy", "{part}");
        assert_eq!(learns("decoder"), part != "policy", "{part}");
    }
}

/// Losses and gradients of a ragged batch in the published layout.
fn published(tokens: usize, branching: usize, ghosts: GhostNodes) -> (f32, Vec<f32>) {
    let device = autodiff_device();
    let model = ReTreeverConfig::new(small())
        .with_branching(branching)
        .with_layout(Layout::Published)
        .with_ghosts(ghosts)
        .with_seed(1)
        .init(&device);
    let context = points(
        2,
        tokens,
        Some(padding(&[tokens, 3], tokens, &device)),
        &device,
    );
    let target = Target::Values(random([2, 4, 1], 5, &device));
    let draws = model.decisions(tokens).max(1);
    let route = Route::Sampled(uniforms([2, 4, 1, draws], 6, &device));
    let queries = random([2, 4, 2], 7, &device);
    let losses = model.losses(
        &context,
        queries,
        &target,
        None,
        route,
        LossOptions::default(),
    );
    let loss = losses.tree + losses.leaves + losses.rollout.log_prob.mean();
    let gradients = loss.backward();
    let numbers = gradients_of(&model, &gradients)
        .into_iter()
        .flat_map(|parameter| parameter.values)
        .collect();
    (loss.into_scalar::<f32>(), numbers)
}

#[test]
fn the_published_layout_with_its_ghosts_trains_on_ragged_batches() {
    for branching in [2, 3] {
        let (loss, gradients) = published(9, branching, GhostNodes::Published);
        assert!(loss.is_finite());
        assert!(gradients.iter().all(|gradient| gradient.is_finite()));
        assert!(gradients.iter().any(|gradient| *gradient != 0.0));
    }
}

#[test]
fn published_ghosts_change_the_loss_of_ragged_trees() {
    let (masked, _) = published(9, 2, GhostNodes::Masked);
    let (sink, _) = published(9, 2, GhostNodes::Published);
    assert!((masked - sink).abs() > 1e-4, "{masked} and {sink}");
}
