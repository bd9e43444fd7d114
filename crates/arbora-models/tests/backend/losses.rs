//! The parts of the training loss.

use crate::{points, small};
use arbora_attention::Route;
use arbora_models::{
    Context, EmbeddingKind, HeadKind, LossOptions, ModelConfig, Prediction, ReTreeverConfig,
    RewardKind, Target,
};
use arbora_rl::PolicyGradientConfig;
use arbora_testing::{assert_close, device, random, uniforms, values};
use burn::tensor::{Bool, Int, Tensor};

fn queries() -> Tensor<3> {
    random([2, 3, 2], 5, &device())
}

fn truth() -> Tensor<3> {
    random([2, 3, 1], 6, &device())
}

fn drawn() -> Tensor<4> {
    uniforms([2, 3, 1, 4], 7, &device())
}

/// Masks the last of three queries.
fn last() -> Tensor<2, Bool> {
    let masked = [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]];
    Tensor::<2>::from_data(masked, &device()).greater_elem(0.5)
}

#[test]
fn the_loss_of_a_gaussian_is_its_mean_reward_negated() {
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device());
    let context = points(2, 8, None, &device());
    let target = Target::Values(truth());
    let route = Route::Sampled(drawn());
    let losses = model.losses(
        &context,
        queries(),
        &target,
        None,
        route,
        LossOptions::default(),
    );
    assert_eq!(losses.reward.dims(), [6, 1]);
    assert_eq!(losses.rollout.dims(), [6, 1]);
    assert_eq!(values(losses.rollout.decisions), [2.0; 6]);
    assert_eq!(model.decisions(8), 2);
    assert_close(losses.tree, -losses.reward.mean(), 1e-5, 1e-5);

    let leaves = model.predict_from_leaves(queries(), &model.index(&context));
    assert_close(losses.leaves, leaves.loss(&target, None), 1e-5, 1e-5);
}

#[test]
fn masked_queries_take_no_part_in_a_loss() {
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device());
    let context = points(2, 9, None, &device());
    let first = |tensor: Tensor<3>| {
        let dim = tensor.dims()[2];
        tensor.slice([0..2, 0..2, 0..dim])
    };
    let garbage = |tensor: Tensor<3>| {
        let dim = tensor.dims()[2];
        let rest = Tensor::full([2, 1, dim], 1e4, &device());
        Tensor::cat(vec![first(tensor), rest], 1)
    };
    let target = Target::Values(garbage(truth()));
    let route = Route::Sampled(drawn());
    let masked = model.losses(
        &context,
        garbage(queries()),
        &target,
        Some(&last()),
        route,
        LossOptions::default(),
    );
    let target = Target::Values(first(truth()));
    let route = Route::Sampled(drawn().narrow(1, 0, 2));
    let without = model.losses(
        &context,
        first(queries()),
        &target,
        None,
        route,
        LossOptions::default(),
    );
    assert_close(masked.tree.clone(), without.tree.clone(), 1e-5, 1e-5);
    assert_close(masked.leaves.clone(), without.leaves.clone(), 1e-5, 1e-5);
    let (got, expected) = (masked.selected.clone(), without.selected.clone());
    assert_close(got, expected, 1e-5, 1e-5);

    let mut estimator = PolicyGradientConfig::default().init();
    let [masked, without] = [masked, without].map(|losses| {
        let output = estimator.loss(losses.rollout, losses.reward, None);
        output.loss
    });
    assert_close(masked, without, 1e-5, 1e-5);
}

#[test]
fn samples_with_the_same_numbers_are_copies_of_one_sample() {
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device());
    let context = points(2, 9, None, &device());
    let target = Target::Values(truth());
    let losses = |uniforms| {
        let (route, options) = (Route::Sampled(uniforms), LossOptions::default());
        model.losses(&context, queries(), &target, Some(&last()), route, options)
    };
    let one = losses(drawn());
    let three = losses(drawn().repeat_dim(2, 3));
    assert_close(three.tree, one.tree, 1e-5, 1e-5);
    assert_close(three.leaves, one.leaves, 1e-5, 1e-5);
    assert_close(three.selected, one.selected, 1e-5, 1e-5);
    let copies = |column: Tensor<2>| column.repeat_dim(1, 3);
    assert_close(three.reward, copies(one.reward), 1e-5, 1e-5);
    let (three, one) = (three.rollout, one.rollout);
    assert_close(three.log_prob, copies(one.log_prob), 1e-5, 1e-5);
    assert_close(three.entropy, copies(one.entropy), 1e-5, 1e-5);
    assert_close(three.decisions, copies(one.decisions), 0.0, 0.0);
    let [three, one] = [three.mask, one.mask].map(|mask| mask.expect("a mask").float());
    assert_close(three, copies(one), 0.0, 0.0);
}

#[test]
fn contexts_without_a_decision_have_a_loss_and_nothing_to_learn_a_route_from() {
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device());
    let target = Target::Values(truth());
    for tokens in [1, 2] {
        let context = points(2, tokens, None, &device());
        assert_eq!(model.decisions(tokens), 0);
        let route = Route::Sampled(drawn());
        let losses = model.losses(
            &context,
            queries(),
            &target,
            None,
            route,
            LossOptions::default(),
        );
        // The search selects all leaves.
        assert_close(losses.tree, losses.leaves, 1e-5, 1e-5);
        assert_eq!(values(losses.rollout.log_prob), [0.0; 6]);
        assert_eq!(values(losses.rollout.decisions), [0.0; 6]);
        assert_eq!(values(losses.selected), [tokens as f32]);
    }
}

#[test]
fn the_copy_task_is_rewarded_by_accuracy() {
    let model = ModelConfig::new(4, 4, HeadKind::Classes { count: 4 })
        .with_d_model(8)
        .with_d_ff(8)
        .with_n_heads(2)
        .with_encoder_layers(0)
        .with_embedding(EmbeddingKind::Sequence)
        .with_max_positions(16);
    let model = ReTreeverConfig::new(model).with_seed(1).init(&device());
    let context = Context::sequence(random([2, 9, 4], 1, &device()), None);
    let queries = random([2, 3, 4], 2, &device());
    let index = model.index(&context);
    let guess = model
        .predict(queries.clone(), &index, Route::Greedy)
        .prediction;
    let Prediction::Classes { logits } = guess else {
        panic!("expected classes");
    };
    assert_eq!(logits.dims(), [2, 3, 4]);
    // Right for the first example, wrong for the second.
    let best: Tensor<2, Int> = logits.argmax(2).squeeze_dim(2);
    let classes: Vec<i64> = best.into_data().iter::<i64>().collect();
    let classes: Vec<i64> = classes
        .iter()
        .enumerate()
        .map(|(at, class)| if at < 3 { *class } else { (class + 1) % 4 })
        .collect();
    let target = Tensor::<1, Int>::from_data(&classes[..], &device()).reshape([2, 3]);
    let target = Target::Classes(target);
    let losses = model.losses(
        &context,
        queries,
        &target,
        None,
        Route::Greedy,
        LossOptions::default(),
    );
    assert_eq!(values(losses.reward), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    let loss = values(losses.tree)[0];
    assert!(loss.is_finite() && loss > 0.0);
}

#[test]
#[should_panic(expected = "retreever: route: expected one to learn by, got a beam")]
fn a_beam_is_no_route_to_learn_by() {
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device());
    let context = points(2, 9, None, &device());
    let target = Target::Values(truth());
    model.losses(
        &context,
        queries(),
        &target,
        None,
        Route::Beam(1),
        LossOptions::default(),
    );
}

#[test]
fn routes_without_a_path_or_of_other_queries_are_refused() {
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device());
    let context = points(2, 9, None, &device());
    let target = Target::Values(truth());
    for (route, expected) in [
        (Route::Beam(0), "expected one to learn by, got a beam"),
        (
            Route::Sampled(drawn().narrow(1, 0, 2)),
            "axes 0 and 1 of the route: expected [2, 3], got [2, 2]",
        ),
        (
            Route::Sampled(drawn().reshape([2, 1, 3, 4])),
            "axes 0 and 1 of the route: expected [2, 3], got [2, 1]",
        ),
    ] {
        let options = LossOptions::default();
        let run = || model.losses(&context, queries(), &target, None, route, options);
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
        let text = refused.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| refused.downcast_ref::<&str>().copied());
        assert!(text.unwrap().contains(expected), "{text:?}");
    }
}

#[test]
fn a_guide_is_the_cross_entropy_per_decision_of_the_path_that_attention_draws() {
    let model = ReTreeverConfig::new(small()).with_seed(1).init(&device());
    let context = points(2, 8, None, &device());
    let target = Target::Values(truth());
    let guided = |uniforms: Option<Tensor<2>>| {
        let options = LossOptions {
            guide: uniforms,
            ..LossOptions::default()
        };
        let route = Route::Sampled(drawn());
        model.losses(&context, queries(), &target, None, route, options)
    };
    let with = guided(Some(uniforms([2, 3], 9, &device())));
    let without = guided(None);
    assert!(without.guide.is_none());
    assert_close(with.tree, without.tree, 1e-6, 1e-6);
    // A tree over 8 tokens has 2 binary decisions; an untrained policy is near ln 2 for each.
    let guide = with.guide.unwrap().into_scalar::<f32>();
    assert!((0.3..1.5).contains(&guide), "{guide}");
}

#[test]
fn rewards_of_classes_are_right_or_wrong_or_the_negative_cross_entropy() {
    let logits = Tensor::<3>::from_data([[[2.0, 0.0], [0.0, 1.0]]], &device());
    let prediction = Prediction::Classes { logits };
    let class = Tensor::<2, Int>::from_data([[0, 0]], &device());
    let target = Target::Classes(class);
    let reward = |kind| values(prediction.reward(&target, kind));
    assert_eq!(reward(RewardKind::Published), [1.0, 0.0]);
    assert_eq!(reward(RewardKind::Accuracy), [1.0, 0.0]);
    let expected = [
        -(1.0f32 + (-2.0f32).exp()).ln(),
        -(1.0f32 + 1.0f32.exp()).ln(),
    ];
    for (got, expected) in reward(RewardKind::LogLikelihood).iter().zip(expected) {
        assert!((got - expected).abs() < 1e-5, "{got} {expected}");
    }
}

#[test]
#[should_panic(expected = "expected classes, got values")]
fn values_have_no_accuracy() {
    let one = Tensor::<3>::ones([1, 1, 1], &device());
    let prediction = Prediction::Gaussian {
        mean: one.clone(),
        std: one.clone(),
    };
    prediction.reward(&Target::Values(one), RewardKind::Accuracy);
}

#[test]
fn an_oracle_walks_to_the_tokens_it_is_told() {
    let config = ReTreeverConfig::new(small()).with_order(arbora_tree::TokenOrder::KdTree);
    let model = config.with_seed(1).init(&device());
    let context = points(2, 8, None, &device());
    let tokens = Tensor::<2, Int>::from_data([[3, 0, 7], [1, 1, 6]], &device());
    let path = model.paths_to(tokens.clone(), &context);
    let index = model.index(&context);
    let found = model.predict(queries(), &index, Route::Given(path.clone()));
    let integers = |tensor: Tensor<4, Int>| tensor.into_data().iter::<i64>().collect::<Vec<_>>();
    assert_eq!(integers(found.search.path), integers(path.clone()));
    // The leaves of the last node hold the token.
    let order: Vec<i64> = model
        .tree(&context)
        .order()
        .into_data()
        .iter::<i64>()
        .collect();
    let told: Vec<i64> = tokens.into_data().iter::<i64>().collect();
    for (row, token) in told.iter().enumerate() {
        let last = integers(path.clone())[row * 3 + 2] as usize;
        let leaves = &order[row / 3 * 8 + last * 2..][..2];
        assert!(leaves.contains(token), "{row}");
    }
}
