//! Trees that route tokens.

mod balance;
mod gradient;
mod growth;
mod route;
mod scores;

use arbora_testing::device;
use arbora_tree::{RoutingTree, RoutingTreeConfig, Surrogate};
use burn::tensor::{Int, Tensor};

/// Margins below this may fall either way under another order of summation.
const EPSILON: f32 = 1e-4;

fn tree(dim: usize, branching: &[usize], trees: usize) -> RoutingTree {
    RoutingTreeConfig::new(dim, branching.to_vec())
        .with_trees(trees)
        .with_seed(3)
        .init(&device())
}

fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

/// One surrogate of each kind.
fn surrogates() -> [Surrogate; 4] {
    [
        Surrogate::DenseGradient {
            temperature: 1.0,
            clip: 1.0,
            scale: None,
        },
        Surrogate::DenseGradient {
            temperature: 0.7,
            clip: 1.0,
            scale: Some(0.5),
        },
        Surrogate::TopMargin {
            candidates: 2,
            temperature: 1.0,
        },
        Surrogate::Soft { temperature: 0.5 },
    ]
}

/// Weights of 0 and a bias for the last child alone: the parameters of Treeformer's Lemma 1.
fn all_to_the_last_child(mut tree: RoutingTree) -> RoutingTree {
    for depth in 0..tree.height() {
        let [trees, outputs, dim] = tree.levels()[depth].weight.dims();
        let branching = tree.levels()[depth].branching();
        let per_node = if branching == 2 { 1 } else { branching };
        let bias: Vec<f32> = (0..trees * outputs)
            .map(|output| {
                if output % per_node == per_node - 1 {
                    1e-3
                } else {
                    0.0
                }
            })
            .collect();
        let bias = Tensor::<1>::from_floats(bias.as_slice(), &device()).reshape([trees, outputs]);
        let weight = Tensor::zeros([trees, outputs, dim], &device());
        tree = tree.with_parameters(depth, weight, bias);
    }
    tree
}
