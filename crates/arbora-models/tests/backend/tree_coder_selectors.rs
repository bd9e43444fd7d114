//! Who chooses children, and what is drawn.

use crate::parameters;
use crate::tree_coder_oracle::{
    assert_near, certain, control, learning, rows, run, run_on, small, tokens,
};
use arbora_models::tree_coder::{
    RouteOn, SelectorBalance, SelectorConfig, SelectorGradient, SelectorKind, TreeCoderRouting,
};
use arbora_models::{TreeCoder, TreeCoderOptions};
use arbora_testing::{autodiff_device, device, random, values};
use burn::module::{Param, ParamId};
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Tensor, TensorData};

const GUMBEL: SelectorGradient = SelectorGradient::GumbelStraightThrough { temperature: 1.0 };

fn routed<const N: usize>(
    model: &TreeCoder,
    rows: &[[i64; N]],
    seed: u64,
    device: &Device,
) -> TreeCoderRouting {
    let options = TreeCoderOptions {
        seed,
        ..Default::default()
    };
    model.forward(tokens(rows, device), None, &options).routing
}

/// The model whose first chunks, which have nothing to read but biases, go to the second child for certain, while
/// what others read outweighs this.
fn surely_begun(mut model: TreeCoder) -> TreeCoder {
    for node in &mut model.nodes {
        if let Some(selector) = &mut node.selector {
            let device = selector.output.weight.device();
            let bias = Tensor::<1>::from_floats([0.0, 30.0], &device);
            selector.output.bias = Some(Param::initialized(ParamId::new(), bias));
        }
    }
    model
}

#[test]
fn sure_selectors_make_all_gradients_the_same_model() {
    let rows = rows::<5>(9);
    for (route_on, softly) in [
        (RouteOn::FirstN { tokens: 2 }, true),
        (RouteOn::MeanAll, true),
        // A soft mixture lets every chunk see those before it at every node.
        (RouteOn::PreviousChunk { tokens: 2 }, false),
    ] {
        let output = |gradient| {
            let config = learning(gradient, SelectorBalance::None).with_route_on(route_on);
            run(
                &surely_begun(certain(config.clone().with_seed(17).init(&device()))),
                &rows,
            )
        };
        let scaled = output(SelectorGradient::ScaledDelta);
        let leaves = scaled.routing.leaves;
        assert!(leaves.iter().any(|leaf| *leaf != leaves[0]));
        if softly {
            assert!(
                scaled
                    .routing
                    .levels
                    .iter()
                    .all(|level| level.entropy < 1e-3)
            );
        }
        let expected = values(scaled.logits);
        let mut others = vec![
            SelectorGradient::ValuePreserving,
            GUMBEL,
            SelectorGradient::Reinforce,
        ];
        if softly {
            others.push(SelectorGradient::Soft);
        }
        for gradient in others {
            let other = output(gradient);
            assert_eq!(other.routing.leaves, leaves, "{gradient:?}");
            assert_near(&values(other.logits), &expected);
        }
    }
}

#[test]
fn a_soft_tree_runs_every_node_on_everything_and_tells_the_greedy_route() {
    let soft = learning(SelectorGradient::Soft, SelectorBalance::None)
        .with_seed(5)
        .init(&device());
    let rows = rows::<5>(3);
    let routing = run(&soft, &rows).routing;
    assert_eq!(routing.activations, [3; 7]);
    assert_eq!(routing.levels.len(), 2);
    assert!(routing.levels.iter().all(|level| level.entropy > 0.1));
}

#[test]
#[should_panic(expected = "expected none with soft selectors")]
fn soft_selectors_take_no_given_leaves() {
    let soft = learning(SelectorGradient::Soft, SelectorBalance::None)
        .with_seed(5)
        .init(&device());
    let options = TreeCoderOptions {
        leaves: Some(vec![0]),
        ..Default::default()
    };
    soft.forward(tokens(&rows::<5>(1), &device()), None, &options);
}

#[test]
fn random_routes_follow_the_seed_and_the_number_of_the_item_alone() {
    let model = control(SelectorKind::Random).with_seed(1).init(&device());
    let many = rows::<3>(32);
    let routing = routed(&model, &many, 9, &device());
    // Other tokens, fewer of them, another mode.
    assert_eq!(
        routed(&model, &[[0; 3]; 20], 9, &device()).leaves,
        routing.leaves[..20]
    );
    let training = control(SelectorKind::Random)
        .with_seed(1)
        .init(&autodiff_device());
    assert_eq!(
        routed(&training, &many, 9, &autodiff_device()).leaves,
        routing.leaves
    );
    assert_ne!(routed(&model, &many, 10, &device()).leaves, routing.leaves);
    for leaf in 0..4 {
        assert!(routing.leaves.contains(&leaf));
    }
    assert!(routing.levels.iter().all(|level| level.entropy == 0.0));
}

#[test]
fn hashed_routes_follow_the_tokens_that_a_selector_would_read() {
    let model = |route_on| {
        let config = control(SelectorKind::Hash).with_route_on(route_on);
        config.clone().with_seed(1).init(&device())
    };
    let leaves = |route_on, rows: &[[i64; 4]]| routed(&model(route_on), rows, 0, &device()).leaves;
    // All pairs of tokens before two others.
    let prompts: Vec<[i64; 4]> = (0..49).map(|pair| [pair / 7, pair % 7, 1, 2]).collect();
    let others: Vec<[i64; 4]> = (0..49)
        .map(|pair| [pair / 7, pair % 7, 3, pair % 5])
        .collect();
    let first = RouteOn::FirstN { tokens: 2 };
    let found = leaves(first, &prompts);
    assert_eq!(leaves(first, &others), found);
    assert!((0..4).all(|leaf| found.contains(&leaf)));
    assert_ne!(
        leaves(RouteOn::MeanAll, &others),
        leaves(RouteOn::MeanAll, &prompts)
    );

    let chunks = RouteOn::PreviousChunk { tokens: 2 };
    let found = leaves(chunks, &prompts);
    assert_eq!(leaves(chunks, &others), found);
    let (firsts, seconds): (Vec<_>, Vec<_>) =
        found.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
    assert!(
        firsts.iter().all(|leaf| *leaf == firsts[0]),
        "nothing is read"
    );
    assert!((0..4).all(|leaf| seconds.contains(&leaf)));
}

#[test]
fn gumbel_noise_moves_routes_in_training_alone_and_leaves_values_as_they_are() {
    let config = learning(GUMBEL, SelectorBalance::None);
    let (training, evaluated) = (
        config.clone().with_seed(1).init(&autodiff_device()),
        config.clone().with_seed(1).init(&device()),
    );
    let rows = rows::<4>(16);
    let options = TreeCoderOptions {
        seed: 3,
        ..Default::default()
    };
    let output = training.forward(tokens(&rows, &autodiff_device()), None, &options);
    let leaves = output.routing.leaves;
    assert_eq!(
        routed(&training, &rows, 3, &autodiff_device()).leaves,
        leaves
    );
    assert_ne!(
        routed(&training, &rows, 4, &autodiff_device()).leaves,
        leaves
    );
    let greedy = routed(&evaluated, &rows, 3, &device()).leaves;
    assert_eq!(routed(&evaluated, &rows, 4, &device()).leaves, greedy);
    assert_ne!(greedy, leaves);
    let options = TreeCoderOptions {
        leaves: Some(leaves),
        ..options
    };
    let same = evaluated.forward(tokens(&rows, &device()), None, &options);
    assert_near(&values(output.logits), &values(same.logits));
}

#[test]
fn sampled_paths_are_as_frequent_as_their_probabilities_say() {
    let config = learning(SelectorGradient::Reinforce, SelectorBalance::None);
    let training = config.clone().with_seed(2).init(&autodiff_device());
    let many = [[1, 4, 2]; 600];
    let routing = routed(&training, &many, 1, &autodiff_device());
    let mut counts = [0; 4];
    for leaf in &routing.leaves {
        counts[*leaf] += 1;
    }
    let options = TreeCoderOptions {
        leaves: Some(vec![0, 1, 2, 3]),
        ..Default::default()
    };
    let evaluated = config.clone().with_seed(2).init(&device());
    let one_each = evaluated
        .forward(tokens(&[[1, 4, 2]; 4], &device()), None, &options)
        .routing;
    let probabilities: Vec<f32> = values(one_each.log_prob.unwrap())
        .into_iter()
        .map(f32::exp)
        .collect();
    assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-4);
    for (count, probability) in counts.into_iter().zip(&probabilities) {
        assert!(
            (count as f32 / 600.0 - probability).abs() < 0.1,
            "{counts:?}, {probabilities:?}"
        );
    }
    // What was drawn says how likely it was, whatever the order of nodes.
    for (leaf, log_prob) in routing.leaves.iter().zip(values(routing.log_prob.unwrap())) {
        assert!((log_prob.exp() - probabilities[*leaf]).abs() < 1e-4);
    }
    // Greedy where nothing is trained.
    let greedy = routed(&evaluated, &many[..8], 1, &device()).leaves;
    assert!(greedy.iter().all(|leaf| *leaf == greedy[0]));
}

#[test]
fn a_rollout_has_a_row_per_item() {
    let config = learning(SelectorGradient::Reinforce, SelectorBalance::None)
        .with_route_on(RouteOn::PreviousChunk { tokens: 2 });
    let training = config.clone().with_seed(2).init(&autodiff_device());
    let routing = run_on(&training, &rows::<5>(3), &autodiff_device()).routing;
    let rollout = routing.rollout().unwrap();
    assert_eq!(rollout.dims(), [9, 1]);
    assert_eq!(values(rollout.decisions), [2.0; 9]);
    // The first chunk reads nothing: both of its decisions are even.
    let [entropies, log_probs] = [rollout.entropy, rollout.log_prob].map(values);
    for first in [0, 3, 6] {
        assert!((entropies[first] - 2f32.ln()).abs() < 1e-5);
        assert!((log_probs[first] - 0.25f32.ln()).abs() < 1e-5);
    }
    let scaled = small().with_seed(2).init(&device());
    assert!(run(&scaled, &rows::<5>(3)).routing.rollout().is_none());
}

#[test]
fn a_hidden_layer_is_computed_as_written_down() {
    let config = small().with_selector(SelectorConfig::new().with_hidden(Some(12)));
    let model = config.clone().with_seed(1).init(&device());
    let found = parameters(&model);
    let of = |name: &str| -> Tensor<2> {
        let path = format!("nodes.0.selector.{name}");
        let one = found.iter().find(|one| one.path == path);
        let one = one.unwrap_or_else(|| panic!("there is no {path}"));
        let rows = if one.shape.len() == 1 {
            1
        } else {
            one.shape[0]
        };
        let columns = one.values.len() / rows;
        Tensor::from_data(
            TensorData::new(one.values.clone(), [rows, columns]),
            &device(),
        )
    };
    let pooled = random::<2>([3, 8], 4, &device());
    let scale = (pooled.clone().square().mean_dim(1) + 1e-5).sqrt();
    let normed = pooled.clone() / scale * of("norm.gamma");
    let inner = gelu(normed.matmul(of("hidden.weight")) + of("hidden.bias"));
    let expected = inner.matmul(of("output.weight")) + of("output.bias");
    let selector = model.nodes[0].selector.as_ref().unwrap();
    let got = values(selector.forward(pooled));
    assert!(got.iter().any(|score| score.abs() > 0.01), "{got:?}");
    assert_near(&got, &values(expected));
}

#[test]
fn selectors_start_near_even() {
    let routing = run(
        &small().with_d_model(32).with_seed(1).init(&device()),
        &rows::<6>(16),
    )
    .routing;
    for level in routing.levels {
        assert!(level.entropy > 0.85 * 2f64.ln(), "{}", level.entropy);
    }
}
