//! The block aggregator builds trees by one operator; its levels, one by one, are the same.

use crate::{gradients_of, small};
use arbora_models::init::seeded;
use arbora_models::parts::BlockAggregator;
use arbora_testing::{allowed, assert_close, autodiff_device, device, padding, random, values};
use arbora_tree::{Aggregator, Layout, TokenOrder, TokenTree, TokenTreeShape};
use burn::tensor::{Device, Int, Tensor};

/// An aggregator without its own way to all nodes.
struct Levels<'a>(&'a BlockAggregator);

impl Aggregator for Levels<'_> {
    fn aggregate(&self, children: Tensor<3>, leaves: Tensor<2, Int>) -> Tensor<2> {
        self.0.aggregate(children, leaves)
    }
}

fn aggregator(dropout: f64, detach: bool, device: &Device) -> BlockAggregator {
    let config = small().with_dropout(dropout);
    seeded(
        BlockAggregator::new(&config, detach, device),
        3,
        config.initialization,
    )
}

/// The nodes of trees over 11 random tokens.
fn nodes(tokens: Tensor<3>, layout: Layout, aggregator: &dyn Aggregator) -> Tensor<3> {
    let [_, count, _] = tokens.dims();
    let mask = padding(&[count, 0, 1, 6], count, &tokens.device());
    let shape = TokenTreeShape::new(count, 3, layout);
    let order = TokenOrder::Given.permutation(&tokens, Some(&mask), &shape);
    TokenTree::build(tokens, Some(mask), order, shape, aggregator).nodes()
}

#[test]
fn one_operator_builds_what_levels_build() {
    let device = device();
    let aggregator = aggregator(0.0, true, &device);
    for layout in [Layout::LeftFilled, Layout::Published] {
        let tokens = random([4, 11, 8], 1, &device);
        assert_close(
            nodes(tokens.clone(), layout, &aggregator),
            nodes(tokens, layout, &Levels(&aggregator)),
            2e-5,
            2e-5,
        );
    }
}

#[test]
fn one_operator_has_the_gradients_of_levels() {
    let device = autodiff_device();
    for detach in [true, false] {
        let aggregator = aggregator(0.0, detach, &device);
        let run = |built_by: &dyn Aggregator| {
            let tokens = random([4, 11, 8], 1, &device).require_grad();
            let nodes = nodes(tokens.clone(), Layout::LeftFilled, built_by);
            let readout = random(nodes.dims(), 2, &device);
            let found = (nodes * readout).sum().backward();
            let parameters = gradients_of(&aggregator, &found);
            let tokens = tokens.grad(&found).map(values).unwrap_or_default();
            let parameters = parameters
                .into_iter()
                .map(|found| (found.path, found.values));
            let mut all: Vec<(String, Vec<f32>)> = parameters.collect();
            all.push(("tokens".to_owned(), tokens));
            all
        };
        let (operator, levels) = (run(&aggregator), run(&Levels(&aggregator)));
        assert_eq!(operator.len(), 14, "13 weights, and the tokens");
        for ((path, got), (_, expected)) in operator.into_iter().zip(levels) {
            assert!(!got.is_empty(), "{path} has no gradient");
            assert_eq!(got.len(), expected.len(), "{path}");
            // On some backends the gradient of burn's `gelu` is that of its approximation by tanh.
            let largest = expected.iter().fold(1.0f32, |most, x| most.max(x.abs()));
            for (got, expected) in got.into_iter().zip(expected) {
                assert!(
                    (got - expected).abs() <= allowed(2e-3) * largest,
                    "{path}, detach {detach}: {got}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn dropout_acts_on_trees_in_training_alone() {
    let tokens = |device: &Device| random([4, 11, 8], 1, device);
    let twice = |device: &Device| {
        let aggregator = aggregator(0.5, true, device);
        let nodes = || values(nodes(tokens(device), Layout::LeftFilled, &aggregator));
        (nodes(), nodes())
    };
    let (first, second) = twice(&autodiff_device());
    assert_ne!(first, second);
    let (first, second) = twice(&device());
    assert_eq!(first, second);
}
