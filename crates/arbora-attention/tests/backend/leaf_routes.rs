//! Routes that follow dense attention.

use crate::mean_tree;
use crate::two_pass::layer;
use arbora_attention::{GhostNodes, Route};
use arbora_testing::{autodiff_device, device, random};
use arbora_tree::Layout;
use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor};

fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<usize> {
    tensor
        .into_data()
        .iter::<i64>()
        .map(|n| n as usize)
        .collect()
}

/// Attention of each query to each leaf, the mean over heads, by the layer's own weights.
fn attention(tokens: &Tensor<3>, queries: &Tensor<3>, length: usize) -> Vec<Vec<f32>> {
    let layer = layer(GhostNodes::Masked, &device()).attention;
    let [_, count, width] = queries.dims();
    let heads = layer.n_heads;
    let split = |rows: Tensor<3>| {
        let [batch, count, _] = rows.dims();
        rows.reshape([batch, count, heads, width / heads])
            .swap_dims(1, 2)
    };
    let query = split(layer.query.forward(layer.norm.forward(queries.clone())));
    let tokens = tokens.clone().slice([0..1, 0..length, 0..width]);
    let key = split(layer.key.forward(tokens));
    let logits = query.matmul(key.swap_dims(2, 3)) / ((width / heads) as f64).sqrt();
    let mean = softmax(logits, 3).mean_dim(1).reshape([count, length]);
    let flat: Vec<f32> = mean.into_data().iter::<f32>().collect();
    flat.chunks(length).map(<[f32]>::to_vec).collect()
}

#[test]
fn leaves_are_drawn_by_inverting_the_attention_of_their_query() {
    let layer = layer(GhostNodes::Masked, &device());
    let (tokens, queries) = (
        random([1, 9, 6], 1, &device()),
        random([1, 4, 6], 2, &device()),
    );
    for (length, branching) in [(9, 2), (6, 3), (9, 5), (1, 2)] {
        let tree = mean_tree(tokens.clone(), &[length], branching, Layout::LeftFilled);
        let shape = *tree.shape();
        let index = layer.index(&tree);
        let mass = attention(&tokens, &queries, length);
        let projected = layer.attention.project_queries(queries.clone());
        for number in [0.0f32, 0.21, 0.5, 0.77, 0.999] {
            let numbers = Tensor::full([1, 4], number, &device());
            let path = integers(layer.leaf_routes(&projected, &index, numbers));
            for (query, path) in path.chunks(shape.decisions() + 1).enumerate() {
                let mut below = 0.0;
                let leaf = (0..length)
                    .find(|leaf| {
                        below += mass[query][*leaf];
                        below > number
                    })
                    .unwrap_or(length - 1);
                // A number too near a boundary may fall to either side.
                let near = (below - number).abs() < 1e-4
                    || (below - mass[query][leaf] - number).abs() < 1e-4;
                for (depth, node) in path.iter().enumerate() {
                    let expected = shape.ancestor(leaf, shape.height() - depth);
                    assert!(near || *node == expected, "{length} {branching} {query}");
                }
            }
        }
    }
}

#[test]
fn an_example_without_tokens_gets_the_leftmost_path_and_ghosts_are_never_drawn() {
    let layer = layer(GhostNodes::Masked, &device());
    let tokens = random([2, 9, 6], 1, &device());
    let tree = mean_tree(tokens, &[0, 5], 2, Layout::LeftFilled);
    let shape = *tree.shape();
    let index = layer.index(&tree);
    let queries = layer
        .attention
        .project_queries(random([2, 3, 6], 2, &device()));
    let last = Tensor::full([2, 3], 0.999_999, &device());
    let path = integers(layer.leaf_routes(&queries, &index, last));
    let (empty, five) = path.split_at(path.len() / 2);
    assert!(empty.iter().all(|node| *node == 0), "{empty:?}");
    for path in five.chunks(shape.decisions() + 1) {
        let lowest = *path.last().unwrap();
        let height = shape.height() - shape.decisions();
        assert!(shape.leaves(height, lowest).start < 5, "{path:?}");
    }
}

#[test]
fn routes_carry_no_gradient_and_the_policy_learns_from_their_probability() {
    let device = autodiff_device();
    let layer = layer(GhostNodes::Masked, &device);
    let tree = mean_tree(
        random([2, 9, 6], 1, &device),
        &[9, 7],
        2,
        Layout::LeftFilled,
    );
    let index = layer.index(&tree);
    let queries = layer
        .attention
        .project_queries(random([2, 3, 6], 2, &device));
    let numbers = Tensor::full([2, 3], 0.4, &device);
    let path = layer.leaf_routes(&queries, &index, numbers);
    let found = layer.search(queries, &index, Route::Given(path.clone()));
    assert_eq!(integers(found.path), integers(path));
    let gradients = found.log_prob.mean().backward();
    let learned = layer.attention.query.weight.val().grad(&gradients).unwrap();
    assert!(learned.abs().max().into_scalar::<f32>() > 0.0);
}
