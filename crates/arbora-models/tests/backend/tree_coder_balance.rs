//! What keeps leaves in use.

use crate::tree_coder_oracle::{assert_near, learning, rows, run, run_on, tokens};
use arbora_models::tree_coder::{RouteOn, SelectorBalance, SelectorGradient, TreeCoderRouting};
use arbora_models::{TreeCoder, TreeCoderConfig, TreeCoderOptions};
use arbora_testing::{allowed, autodiff_device, device, padding, values};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Tensor, TensorData};

const LOSS: SelectorBalance = SelectorBalance::SwitchLoss { weight: 0.5 };
const BIAS: SelectorBalance = SelectorBalance::LossFree { rate: 0.125 };

fn balanced(balance: SelectorBalance) -> TreeCoderConfig {
    learning(SelectorGradient::ScaledDelta, balance)
}

/// The model with selectors that add these numbers to the scores of all they read, and read nothing.
fn with_scores(mut model: TreeCoder, scores: &[f32]) -> TreeCoder {
    for node in &mut model.nodes {
        if let Some(selector) = &mut node.selector {
            let weight = selector.output.weight.val();
            selector.output.weight = Param::initialized(ParamId::new(), weight.zeros_like());
            let scores = Tensor::from_floats(scores, &weight.device());
            selector.output.bias = Some(Param::initialized(ParamId::new(), scores));
        }
    }
    model
}

fn loss(model: &TreeCoder, leaves: Option<Vec<usize>>) -> f32 {
    let options = TreeCoderOptions {
        leaves,
        ..Default::default()
    };
    let input = tokens(&rows::<4>(6), &device());
    let routing = model.forward(input, None, &options).routing;
    values(routing.balance_loss.unwrap())[0]
}

#[test]
fn the_switch_loss_is_its_weight_where_children_are_alike_and_k_times_it_where_one_takes_all() {
    for (branching, height) in [(2, 1), (2, 3), (3, 2)] {
        let config = balanced(LOSS).with_branching(branching).with_height(height);
        let model = config.clone().with_seed(1).init(&device());
        let even = with_scores(model.clone(), &vec![0.0; branching]);
        assert!((loss(&even, None) - 0.5).abs() < 1e-5);
        let mut scores = vec![0.0; branching];
        scores[1] = 100.0;
        let sure = with_scores(model, &scores);
        assert!((loss(&sure, None) - 0.5 * branching as f32).abs() < 1e-5);
    }
}

#[test]
fn the_switch_loss_weighs_nodes_by_their_items() {
    // Probabilities 3/4 and 1/4 everywhere. Of six items the root sends 4 : 2, its children 3 : 1 and 0 : 2.
    let model = with_scores(
        balanced(LOSS).with_seed(1).init(&device()),
        &[3f32.ln(), 0.0],
    );
    let got = loss(&model, Some(vec![0, 3, 0, 1, 3, 0]));
    let switch = |first: f32| 2.0 * (first * 0.75 + (1.0 - first) * 0.25);
    let root = switch(4.0 / 6.0);
    let children = 4.0 / 6.0 * switch(0.75) + 2.0 / 6.0 * switch(0.0);
    assert!(
        (got - 0.5 * (root + children) / 2.0).abs() < allowed(1e-5),
        "{got}"
    );
}

#[test]
fn the_switch_loss_teaches_selectors_to_share() {
    let device = autodiff_device();
    let model = balanced(LOSS).with_height(1).with_seed(1).init(&device);
    let model = with_scores(model, &[1.0, 0.0]);
    let bias = Tensor::<1>::from_floats([1.0, 0.0], &device).require_grad();
    let mut model = model;
    let selector = model.nodes[0].selector.as_mut().unwrap();
    selector.output.bias = Some(Param::initialized(ParamId::new(), bias.clone()));
    let routing = run_on(&model, &rows::<4>(6), &device).routing;
    assert_eq!(routing.leaves, [0; 6]);
    let gradients = routing.balance_loss.unwrap().backward();
    // 0.5 · 2 · dp/ds, with p (1 - p) at one.
    let slope = 1.0 / (1.0 + (-1f32).exp());
    let slope = slope * (1.0 - slope);
    let got = values(bias.grad(&gradients).unwrap());
    assert!(
        (got[0] - slope).abs() < allowed(1e-5) && (got[1] + slope).abs() < allowed(1e-5),
        "{got:?}"
    );
}

fn biases(model: &TreeCoder) -> Vec<Vec<f32>> {
    let selectors = model.nodes.iter().filter_map(|node| node.selector.as_ref());
    selectors
        .map(|selector| values(selector.decision_bias()))
        .collect()
}

#[test]
fn biases_move_against_the_load_in_training_and_not_where_nothing_came() {
    let config = balanced(BIAS);
    let training = with_scores(
        config.clone().with_seed(1).init(&autodiff_device()),
        &[0.0, 1.0],
    );
    let routing = run_on(&training, &rows::<4>(5), &autodiff_device()).routing;
    assert_eq!(routing.leaves, [3; 5]);
    assert!(routing.balance_loss.is_none());
    let moved = [vec![0.125, -0.125], vec![0.0, 0.0], vec![0.125, -0.125]];
    assert_eq!(biases(&training), moved);
    // Evaluation moves nothing, nor do leaves that were given.
    let evaluated = training.valid();
    run(&evaluated, &rows::<4>(5));
    assert_eq!(biases(&evaluated), moved);
    let options = TreeCoderOptions {
        leaves: Some(vec![0, 0]),
        ..Default::default()
    };
    let input = tokens(&rows::<4>(2), &autodiff_device());
    training.forward(input, None, &options);
    assert_eq!(biases(&training), moved);
}

#[test]
fn equal_loads_move_no_bias() {
    // Hidden states decide: with enough rows some node splits evenly. Two chunks, one of which reads nothing.
    let config = balanced(BIAS)
        .with_height(1)
        .with_route_on(RouteOn::PreviousChunk { tokens: 2 });
    let mut equal = 0;
    for seed in 0..8 {
        let model = config.clone().with_seed(seed).init(&autodiff_device());
        let leaves = run_on(&model, &rows::<4>(1), &autodiff_device())
            .routing
            .leaves;
        let expected = match leaves[..] {
            [0, 0] => [-0.125, 0.125],
            [0, 1] => {
                equal += 1;
                [0.0, 0.0]
            }
            _ => panic!("ties go to the first child: {leaves:?}"),
        };
        assert_eq!(biases(&model), [expected]);
    }
    assert!(equal > 0 && equal < 8, "{equal}");
}

#[test]
fn balance_counts_what_evaluation_chooses_where_training_draws() {
    let gumbel = SelectorGradient::GumbelStraightThrough { temperature: 1.0 };
    let device = autodiff_device();
    for (gradient, balance) in [
        (gumbel, LOSS),
        (SelectorGradient::Reinforce, LOSS),
        (gumbel, BIAS),
    ] {
        // At the root alone: below it the two would see other items.
        let trained = |gradient| {
            let model = learning(gradient, balance)
                .with_height(1)
                .with_seed(3)
                .init(&device);
            let routing = run_on(&model, &rows::<4>(8), &device).routing;
            let loss = routing.balance_loss.map(values);
            (routing.leaves, loss, biases(&model))
        };
        let (taken, expected_loss, expected_biases) = trained(SelectorGradient::ScaledDelta);
        let (drawn, loss, moved) = trained(gradient);
        assert_ne!(drawn, taken);
        assert_eq!(moved, expected_biases);
        match (loss, expected_loss) {
            (Some(loss), Some(expected)) => assert_near(&loss, &expected),
            (loss, expected) => assert_eq!(loss, expected),
        }
    }
}

/// Of sequences of four tokens, as they are or filled up with masked ones, in chunks of two.
fn filled(model: &TreeCoder, lengths: &[usize], tokens: usize) -> TreeCoderRouting {
    let device = model.nodes[0].device();
    let input: Vec<i64> = rows::<4>(lengths.len())
        .iter()
        .flat_map(|row| row.iter().copied().chain([6; 4]).take(tokens))
        .collect();
    let input = Tensor::from_data(TensorData::new(input, [lengths.len(), tokens]), &device);
    let mask = padding(lengths, tokens, &device);
    let routing = model.forward(input, Some(mask), &TreeCoderOptions::default());
    routing.routing
}

#[test]
fn chunks_of_nothing_but_padding_count_in_no_balance() {
    for balance in [LOSS, BIAS] {
        let config = balanced(balance).with_route_on(RouteOn::PreviousChunk { tokens: 2 });
        let measured = |lengths: &[usize], tokens: usize| {
            let model = config.clone().with_seed(3).init(&autodiff_device());
            let routing = filled(&model, lengths, tokens);
            let entropies: Vec<f64> = routing.levels.iter().map(|level| level.entropy).collect();
            (routing, entropies, biases(&model))
        };
        let (alone, expected, expected_biases) = measured(&[4, 3], 4);
        let (routing, entropies, moved) = measured(&[4, 3], 8);
        assert_eq!(alone.real, Some(vec![true; 4]));
        let real = [true, true, false, false].repeat(2);
        assert_eq!(routing.real, Some(real));
        for (got, expected) in entropies.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5, "{got} for {expected}");
        }
        assert_eq!(moved, expected_biases);
        match (routing.balance_loss, alone.balance_loss) {
            (Some(got), Some(expected)) => assert_near(&values(got), &values(expected)),
            (got, _) => assert!(balance == BIAS && got.is_none()),
        }
        // A batch of nothing else.
        let (routing, entropies, moved) = measured(&[0, 0], 8);
        assert_eq!(entropies, [0.0; 2]);
        assert!(moved.iter().flatten().all(|bias| *bias == 0.0));
        if let Some(loss) = routing.balance_loss {
            assert_eq!(values(loss), [0.0]);
        }
    }
}

#[test]
fn chunks_of_nothing_but_padding_take_no_part_in_a_rollout() {
    let config = learning(SelectorGradient::Reinforce, SelectorBalance::None)
        .with_route_on(RouteOn::PreviousChunk { tokens: 2 });
    let model = config.clone().with_seed(3).init(&autodiff_device());
    let routing = filled(&model, &[4, 3], 8);
    let rollout = routing.rollout().unwrap();
    assert_eq!(rollout.dims(), [8, 1]);
    let masked: Vec<bool> = rollout.mask.unwrap().into_data().iter().collect();
    assert_eq!(masked, [false, false, true, true].repeat(2));
    assert_eq!(routing.real_items(), 4);
}

#[test]
fn biases_bring_items_to_leaves_that_had_none_and_change_no_probability() {
    // Child 1 has probability 0.73: biases of 1 / 8 per step turn the decision in the second step.
    let config = balanced(BIAS).with_height(1);
    let training = with_scores(
        config.clone().with_seed(1).init(&autodiff_device()),
        &[0.0, 1.0],
    );
    let leaves = || {
        run_on(&training, &rows::<4>(3), &autodiff_device())
            .routing
            .leaves
    };
    let seen: Vec<usize> = (0..4).map(|_| leaves()[0]).collect();
    assert_eq!(seen, [1, 1, 0, 1]);
    let evaluated = training.valid();
    let routing = run(&evaluated, &rows::<4>(3)).routing;
    let probability = 1.0 / (1.0 + (-1f64).exp());
    let expected = -probability * probability.ln() - (1.0 - probability) * (1.0 - probability).ln();
    assert!((routing.levels[0].entropy - expected).abs() < 1e-5);
}
