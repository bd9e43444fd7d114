//! The policy's probabilities along a path.

use crate::mean_tree;
use crate::two_pass::layer;
use arbora_attention::{GhostNodes, Route};
use arbora_testing::{assert_close, device, random, values};
use arbora_tree::Layout;
use burn::tensor::Tensor;

/// Lengths that leave ghosts on every height.
const LENGTHS: [usize; 3] = [19, 7, 1];

/// Trees with and without ghosts among the children, in both layouts.
fn cases() -> impl Iterator<Item = (usize, Layout)> {
    [2, 3, 4]
        .into_iter()
        .flat_map(|branching| [Layout::LeftFilled, Layout::Published].map(|l| (branching, l)))
}

#[test]
fn probabilities_along_a_path_multiply_to_its_log_probability() {
    let layer = layer(GhostNodes::Masked, &device());
    let queries = random([3, 5, 6], 2, &device()) * 3.0;
    for (branching, layout) in cases() {
        let tree = mean_tree(
            random([3, 19, 6], 1, &device()),
            &LENGTHS,
            branching,
            layout,
        );
        let index = layer.index(&tree);
        let decisions = tree.shape().decisions();
        let numbers = random([3, 5, 1, decisions], 3, &device()).abs() % 1.0;
        for route in [Route::Greedy, Route::Sampled(numbers)] {
            let found = layer.search(queries.clone(), &index, route);
            let policy = layer.policy_probabilities(queries.clone(), &index, found.path.clone());
            assert_eq!(policy.dims(), [3, 5, 1, decisions, branching]);
            let next = found
                .path
                .clone()
                .slice([0..3, 0..5, 0..1, 1..decisions + 1]);
            let child = next % branching as i64;
            let chosen = policy.gather(4, child.unsqueeze_dim(4)).log();
            let log_prob = chosen.sum_dim(3).reshape([3, 5, 1]);
            assert_close(log_prob, found.log_prob, 1e-4, 1e-4);
        }
    }
}

#[test]
fn probabilities_along_several_paths_are_those_along_each() {
    let layer = layer(GhostNodes::Masked, &device());
    let queries = random([3, 2, 6], 2, &device()) * 3.0;
    let tree = mean_tree(
        random([3, 19, 6], 1, &device()),
        &LENGTHS,
        3,
        Layout::LeftFilled,
    );
    let index = layer.index(&tree);
    let path = layer.search(queries.clone(), &index, Route::Beam(3)).path;
    let all = layer.policy_probabilities(queries.clone(), &index, path.clone());
    for at in 0..3 {
        let one =
            layer.policy_probabilities(queries.clone(), &index, path.clone().narrow(2, at, 1));
        assert_close(all.clone().narrow(2, at, 1), one, 1e-6, 1e-6);
    }
}

#[test]
fn probabilities_sum_to_one_and_ghosts_have_none() {
    let layer = layer(GhostNodes::Masked, &device());
    let queries = random([3, 2, 6], 2, &device());
    for (branching, layout) in cases() {
        let tree = mean_tree(
            random([3, 19, 6], 1, &device()),
            &LENGTHS,
            branching,
            layout,
        );
        let shape = *tree.shape();
        let index = layer.index(&tree);
        let path = layer.search(queries.clone(), &index, Route::Greedy).path;
        let policy = layer.policy_probabilities(queries.clone(), &index, path.clone());
        let sums = policy.clone().sum_dim(4).reshape([3, 2, shape.decisions()]);
        assert_close(sums.clone(), Tensor::ones_like(&sums), 1e-5, 1e-5);

        let path: Vec<i64> = path.into_data().iter::<i64>().collect();
        let policy = values(policy);
        for (row, steps) in path.chunks(shape.decisions() + 1).enumerate() {
            for (depth, node) in steps[..shape.decisions()].iter().enumerate() {
                for slot in 0..branching {
                    let child = *node as usize * branching + slot;
                    let first_leaf = child * shape.span(shape.decisions() - depth);
                    let at = (row * shape.decisions() + depth) * branching + slot;
                    let is_ghost = first_leaf >= LENGTHS[row / 2];
                    assert_eq!(policy[at] == 0.0, is_ghost, "{layout:?} {branching} {at}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "policy_probabilities: path: expected [1, 2, 1, 3], got [1, 1, 1, 3]")]
fn paths_of_other_queries_are_refused() {
    let layer = layer(GhostNodes::Masked, &device());
    let tree = mean_tree(random([1, 8, 6], 1, &device()), &[8], 2, Layout::LeftFilled);
    let index = layer.index(&tree);
    let one = random([1, 1, 6], 2, &device());
    let path = layer.search(one, &index, Route::Greedy).path;
    layer.policy_probabilities(random([1, 2, 6], 2, &device()), &index, path);
}

#[test]
#[should_panic(expected = "policy_probabilities: decisions: expected at least 1, got 0")]
fn trees_without_a_decision_are_refused() {
    let layer = layer(GhostNodes::Masked, &device());
    let tree = mean_tree(random([1, 2, 6], 1, &device()), &[2], 2, Layout::LeftFilled);
    let index = layer.index(&tree);
    let query = random([1, 1, 6], 2, &device());
    let path = layer.search(query.clone(), &index, Route::Greedy).path;
    layer.policy_probabilities(query, &index, path);
}
