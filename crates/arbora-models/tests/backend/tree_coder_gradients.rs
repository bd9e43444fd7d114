//! What a TreeCoder learns from.

use crate::gradients_of;
use crate::tree_coder_oracle::{learning, rows, select_one_hot, small, tokens};
use arbora_models::tree_coder::{LeafHead, RouteOn, SelectorBalance, SelectorGradient};
use arbora_models::{TreeCoder, TreeCoderConfig, TreeCoderOptions, TreeCoderOutput};
use arbora_rl::seed::{Purpose, derive, step_rng};
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{autodiff_device, device, padding, random, values};
use burn::module::{Param, ParamId};
use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::Rng;

const LEAVES: [usize; 5] = [0, 3, 3, 1, 2];

fn config(gradient: SelectorGradient) -> TreeCoderConfig {
    learning(gradient, SelectorBalance::None)
}

fn forward(model: &TreeCoder, leaves: Option<&[usize]>, device: &Device) -> TreeCoderOutput {
    let options = TreeCoderOptions {
        leaves: leaves.map(<[usize]>::to_vec),
        ..Default::default()
    };
    model.forward(tokens(&rows::<4>(5), device), None, &options)
}

/// One number that all logits enter.
fn score(logits: Tensor<3>) -> Tensor<1> {
    let weights = random(logits.dims(), 8, &logits.device());
    (logits * weights).sum()
}

/// The model whose root reads with this weight, `[d_model, branching]`.
fn with_root(config: &TreeCoderConfig, weight: Tensor<2>) -> TreeCoder {
    let mut model = config.clone().with_seed(6).init(&weight.device());
    let selector = model.nodes[0].selector.as_mut().unwrap();
    selector.output.weight = Param::initialized(ParamId::new(), weight);
    model
}

fn root_weight() -> TensorData {
    let model = small().with_seed(6).init(&device());
    let selector = model.nodes[0].selector.as_ref().unwrap();
    selector.output.weight.val().into_data()
}

#[test]
fn every_parameter_that_a_route_meets_learns_and_no_other() {
    for head in [LeafHead::Shared, LeafHead::PerLeaf] {
        for gradient in [
            SelectorGradient::ScaledDelta,
            SelectorGradient::ValuePreserving,
            SelectorGradient::GumbelStraightThrough { temperature: 0.7 },
        ] {
            let device = autodiff_device();
            let model = config(gradient).with_head(head).with_seed(1).init(&device);
            let output = forward(&model, Some(&[0, 0, 2, 0, 2]), &device);
            let found = gradients_of(&model, &score(output.logits).backward());
            for parameter in found {
                let path = parameter.path;
                // Leaves 1 and 3 are nodes 4 and 6. Biases of balance are no parameters.
                let is_met = !path.starts_with("nodes.4") && !path.starts_with("nodes.6");
                let expected = is_met && !path.ends_with("balance");
                assert_eq!(
                    !parameter.values.is_empty(),
                    expected,
                    "{gradient:?}: {path}"
                );
                let mut values = parameter.values.iter();
                assert!(values.clone().all(|value| value.is_finite()), "{path}");
                // A bias of keys moves all scores of a query alike, so it has no effect.
                if expected && !path.ends_with("key.bias") {
                    assert!(values.any(|value| *value != 0.0), "{gradient:?}: {path}");
                }
            }
        }
    }
}

#[test]
fn selectors_of_a_control_learn_how_much_to_take_of_a_child() {
    use arbora_models::tree_coder::SelectorKind;
    let device = autodiff_device();
    for kind in [SelectorKind::Random, SelectorKind::Hash] {
        let model = crate::tree_coder_oracle::control(kind)
            .with_seed(1)
            .init(&device);
        let output = forward(&model, Some(&[0, 1, 2, 3, 0]), &device);
        let found = gradients_of(&model, &score(output.logits).backward());
        // Biases of balance are no parameters.
        let mut found = found.iter().filter(|one| !one.path.contains("balance"));
        assert!(found.all(|parameter| !parameter.values.is_empty()));
    }
}

#[test]
fn detached_selectors_learn_and_leave_hidden_states_as_they_are() {
    let device = autodiff_device();
    let learns = |detach: bool| {
        let balance = SelectorBalance::SwitchLoss { weight: 1.0 };
        let mut config = learning(SelectorGradient::ScaledDelta, balance);
        config.selector.detach = detach;
        let model = config.clone().with_seed(1).init(&device);
        let output = forward(&model, Some(&[0, 1, 2, 3, 0]), &device);
        let loss = output
            .routing
            .balance_loss
            .expect("there is a balance loss");
        gradients_of(&model, &loss.backward())
            .into_iter()
            .filter(|one| one.values.iter().any(|value| *value != 0.0))
            .map(|one| one.path)
            .collect::<Vec<_>>()
    };
    let whole = learns(false);
    assert!(whole.iter().any(|path| path.contains("blocks")));
    let detached = learns(true);
    assert!(!detached.is_empty());
    assert!(
        detached.iter().all(|path| path.contains("selector")),
        "{detached:?}"
    );
}

#[test]
fn a_scaled_delta_is_the_derivative_of_its_forward_pass() {
    let config = config(SelectorGradient::ScaledDelta);
    assert_matches_finite_differences(root_weight(), &device(), 1e-2, 2e-2, |weight: Tensor<2>| {
        let device = weight.device();
        score(forward(&with_root(&config, weight), Some(&LEAVES), &device).logits)
    });
}

#[test]
fn chunks_that_part_and_padding_pass_gradients_on_to_what_they_read() {
    const LENGTHS: [usize; 3] = [5, 3, 1];
    // Chunks of a sequence meet again at nodes, in other numbers than those of others.
    let chunks = vec![0, 3, 0, 1, 1, 2, 3, 0, 2];
    for (route_on, leaves) in [
        (RouteOn::PreviousChunk { tokens: 2 }, chunks),
        (RouteOn::LastToken, vec![2, 0, 2]),
    ] {
        let config = config(SelectorGradient::ScaledDelta).with_route_on(route_on);
        let model = config.clone().with_seed(6).init(&device());
        // Of the root, which everything passes.
        let start = model.nodes[0].blocks[0].attention.value.weight.val();
        let start = start.into_data();
        assert_matches_finite_differences(start, &device(), 1e-2, 2e-2, |weight: Tensor<2>| {
            let device = weight.device();
            let mut model = config.clone().with_seed(6).init(&device);
            let value = &mut model.nodes[0].blocks[0].attention.value;
            value.weight = Param::initialized(ParamId::new(), weight);
            let mask = padding(&LENGTHS, 5, &device);
            let options = TreeCoderOptions {
                leaves: Some(leaves.clone()),
                ..Default::default()
            };
            let input = tokens(&rows::<5>(3), &device);
            let logits = model.forward(input, Some(mask.clone()), &options).logits;
            let mask = mask.unsqueeze_dim::<3>(2).expand(logits.dims());
            score(logits.mask_fill(mask, 0.0))
        });
    }
}

#[test]
fn a_soft_tree_is_the_derivative_of_its_forward_pass() {
    let config = config(SelectorGradient::Soft).with_head(LeafHead::PerLeaf);
    assert_matches_finite_differences(root_weight(), &device(), 1e-2, 2e-2, |weight: Tensor<2>| {
        let device = weight.device();
        score(forward(&with_root(&config, weight), None, &device).logits)
    });
}

/// Probabilities of the children taken at each depth, from the weights before they are moved.
fn taken() -> [Vec<f32>; 2] {
    let taken = std::cell::RefCell::new([Vec::new(), Vec::new()]);
    let model = with_root(&small(), Tensor::from_data(root_weight(), &device()));
    let input = tokens(&rows::<4>(5), &device());
    select_one_hot(&model, input, Some(&LEAVES), |depth, probabilities| {
        taken.borrow_mut()[depth] = values(probabilities.clone());
        probabilities.ones_like()
    });
    taken.into_inner()
}

#[test]
fn a_preserved_value_learns_as_if_its_scale_were_the_ratio_of_probabilities() {
    let config = config(SelectorGradient::ValuePreserving);
    let before = taken();
    assert_matches_finite_differences(root_weight(), &device(), 1e-2, 2e-2, |weight: Tensor<2>| {
        let device = weight.device();
        let model = with_root(&config, weight);
        if device.is_autodiff() {
            return score(forward(&model, Some(&LEAVES), &device).logits);
        }
        let ratio = |depth: usize, probabilities: Tensor<1>| {
            probabilities / Tensor::from_data(before[depth].as_slice(), (&device, DType::F32))
        };
        let input = tokens(&rows::<4>(5), &device);
        score(select_one_hot(&model, input, Some(&LEAVES), ratio).0)
    });
}

#[test]
fn a_preserved_value_stays_finite_where_a_bias_chose_an_impossible_child() {
    let device = autodiff_device();
    let weight = Tensor::<2>::from_data(root_weight(), &device) * 1e4;
    let model = with_root(&config(SelectorGradient::ValuePreserving), weight);
    // Every child of the root is impossible for some of these.
    for leaves in [[0; 5], [3; 5]] {
        let output = forward(&model, Some(&leaves), &device);
        let found = gradients_of(&model, &score(output.logits).backward());
        let mut values = found.iter().flat_map(|parameter| &parameter.values);
        assert!(values.all(|value| value.is_finite()));
    }
}

#[test]
fn a_straight_through_child_learns_as_the_softmax_at_its_temperature() {
    if arbora_testing::skipped_in_half_precision("steps that differences need are lost in rounding")
    {
        return;
    }
    // At a temperature this high noise is nothing: probabilities are 1 / 2, with a slope of 1 / (4 · temperature) by the
    // difference of scores, as the probabilities of scores divided by it.
    const TEMPERATURE: f64 = 500.0;
    let config = config(SelectorGradient::GumbelStraightThrough {
        temperature: TEMPERATURE,
    });
    assert_matches_finite_differences(root_weight(), &device(), 1e-2, 2e-2, |weight: Tensor<2>| {
        let device = weight.device();
        let model = with_root(&config, weight);
        if device.is_autodiff() {
            return score(forward(&model, Some(&LEAVES), &device).logits) * TEMPERATURE;
        }
        // Only the root's selector moves; half of the difference of scores is the logit of its probability.
        let logits =
            |probabilities: Tensor<1>| (probabilities.clone() / (probabilities.neg() + 1.0)).log();
        let [root, _] = taken();
        let root = logits(Tensor::from_data(root.as_slice(), (&device, DType::F32)));
        let surrogate = |depth: usize, probabilities: Tensor<1>| match depth {
            0 => (logits(probabilities) - root.clone()) / (4.0 * TEMPERATURE) + 1.0,
            _ => probabilities.ones_like(),
        };
        let input = tokens(&rows::<4>(5), &device);
        // Of the surrogate only the slope counts: 1 / 500 of it would drown in rounding.
        let step = |scale: f64| {
            let scaled = |depth, probabilities: Tensor<1>| {
                (surrogate(depth, probabilities) - 1.0) * scale + 1.0
            };
            score(select_one_hot(&model, input.clone(), Some(&LEAVES), scaled).0)
        };
        let [up, down] = [step(1e-1 * TEMPERATURE), step(-1e-1 * TEMPERATURE)];
        (up - down) / 0.2
    });
}

/// How much more noise the child taken gets than the other, for each sequence at a depth: drawn with seed 0 as the
/// library says, but written anew.
fn noise(depth: usize) -> Vec<f32> {
    let mixed = |value: u64| {
        let mut mixed = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    };
    let seed = derive(mixed(mixed(depth as u64 + 1)), Purpose::Policy);
    let of_item = LEAVES.iter().enumerate().map(|(item, leaf)| {
        let mut rng = step_rng(seed, item as u64);
        let noise: [f64; 2] = std::array::from_fn(|_| {
            let uniform: f64 = rng.random_range(f64::EPSILON..1.0);
            -(-uniform.ln()).ln()
        });
        let child = (leaf >> (1 - depth)) & 1;
        (noise[child] - noise[1 - child]) as f32
    });
    of_item.collect()
}

#[test]
fn a_straight_through_child_learns_as_the_softmax_of_noisy_scores() {
    let before = taken();
    for temperature in [1.0, 0.6] {
        let config = config(SelectorGradient::GumbelStraightThrough { temperature });
        assert_matches_finite_differences(
            root_weight(),
            &device(),
            1e-2,
            2e-2,
            |weight: Tensor<2>| {
                let device = weight.device();
                let model = with_root(&config, weight);
                if device.is_autodiff() {
                    return score(forward(&model, Some(&LEAVES), &device).logits);
                }
                let numbers =
                    |numbers: &[f32]| Tensor::<1>::from_data(numbers, (&device, DType::F32));
                // Of two children: the logit of one is the difference of scores.
                let noisy = |depth: usize, probabilities: Tensor<1>| {
                    let logits = (probabilities.clone() / (probabilities.neg() + 1.0)).log();
                    sigmoid((logits + numbers(&noise(depth))) / temperature)
                };
                let share = |depth: usize, probabilities: Tensor<1>| {
                    noisy(depth, probabilities) - noisy(depth, numbers(&before[depth])) + 1.0
                };
                let input = tokens(&rows::<4>(5), &device);
                score(select_one_hot(&model, input, Some(&LEAVES), share).0)
            },
        );
    }
}

#[test]
fn reinforce_expects_the_gradient_of_the_expected_reward() {
    let device = autodiff_device();
    let rewards = [1.0, -0.5, 2.0, 0.25];
    let config = config(SelectorGradient::Reinforce);
    let gradient = |mean: &dyn Fn(&TreeCoder) -> Tensor<1>| {
        let model = config.clone().with_seed(3).init(&device);
        let found = gradients_of(&model, &mean(&model).backward());
        let of = |path: &str| {
            let found = found.iter().find(|parameter| parameter.path == path);
            found.unwrap().values.clone()
        };
        (0..3)
            .flat_map(|node| of(&format!("nodes.{node}.selector.output.bias")))
            .collect::<Vec<f32>>()
    };
    // All leaves, by their probabilities.
    let exact = gradient(&|model| {
        let options = TreeCoderOptions {
            leaves: Some(vec![0, 1, 2, 3]),
            ..Default::default()
        };
        let input = tokens(&[[3, 5, 1]; 4], &device);
        let routing = model.forward(input, None, &options).routing;
        let probability = routing.log_prob.unwrap().exp();
        (probability * Tensor::<1>::from_data(rewards, (&device, DType::F32))).sum()
    });
    let estimate = gradient(&|model| {
        let input = tokens(&[[3, 5, 1]; 600], &device);
        let options = TreeCoderOptions {
            seed: 11,
            ..Default::default()
        };
        let routing = model.forward(input, None, &options).routing;
        let rewards: Vec<f32> = routing.leaves.iter().map(|leaf| rewards[*leaf]).collect();
        let rewards = Tensor::<1>::from_data(rewards.as_slice(), (&device, DType::F32));
        (routing.rollout().unwrap().log_prob.squeeze_dim(1) * rewards).mean()
    });
    // A term has a deviation below 1, so the mean of 600 has one below 0.04.
    assert!(exact.iter().any(|slope| slope.abs() > 0.1), "{exact:?}");
    for (estimate, exact) in estimate.iter().zip(&exact) {
        assert!((estimate - exact).abs() < 0.12, "{estimate} for {exact}");
    }
}

#[test]
fn reinforce_takes_children_whole_and_teaches_selectors_by_rewards_alone() {
    let device = autodiff_device();
    let model = config(SelectorGradient::Reinforce)
        .with_seed(1)
        .init(&device);
    let output = forward(&model, None, &device);
    let found = gradients_of(&model, &score(output.logits).backward());
    for parameter in &found {
        if parameter.path.contains("selector") {
            assert!(parameter.values.iter().all(|value| *value == 0.0));
        }
    }
    let entropy = forward(&model, None, &device).routing.entropy.unwrap();
    let found = gradients_of(&model, &entropy.mean().backward());
    let learns = |path: &str| {
        let mut of = found
            .iter()
            .filter(|parameter| parameter.path.contains(path));
        of.any(|parameter| parameter.values.iter().any(|value| *value != 0.0))
    };
    assert!(learns("nodes.0.selector") && learns("embedding") && !learns("head"));
}
