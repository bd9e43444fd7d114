//! The search on its own.

use arbora_attention::functions::tree_search;
use arbora_attention::ops::TreeSearchOptions;
use arbora_attention::{GhostNodes, Route, SearchOutput};
use arbora_testing::{
    assert_close, autodiff_device, device, gradient, random, random_data, single, uniforms, values,
    weighed,
};
use arbora_tree::{Layout, TokenTreeShape};
use burn::tensor::{Device, Int, Tensor, TensorData};

fn lengths(values: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.iter().map(|length| *length as i64).collect();
    Tensor::from_data(TensorData::new(values.clone(), [values.len()]), device)
}

fn counts<const D: usize>(counts: Tensor<D, Int>) -> Vec<i64> {
    counts.into_data().iter::<i64>().collect()
}

/// Searches trees of random nodes: 2 heads of 3, values of width 4.
fn search(shape: TokenTreeShape, real: &[usize], queries: usize, route: Route) -> SearchOutput<4> {
    let (batch, nodes, device) = (real.len(), shape.nodes(), device());
    tree_search(
        random([batch, queries, 2, 3], 1, &device) * 3.0,
        random([batch, nodes, 2, 3], 2, &device) * 3.0,
        random([batch, nodes, 2, 4], 3, &device),
        lengths(real, &device),
        route,
        TreeSearchOptions::new(shape),
    )
}

#[test]
fn a_full_tree_selects_siblings_and_the_last_leaves() {
    // k decisions, b children, P leaves: |S| = k(b-1) + P, nodes read = kb + P.
    for (tokens, branching, selected, read) in [
        (16, 2, 5, 8),
        (27, 3, 7, 9),
        (25, 5, 9, 10),
        (4, 4, 4, 4),
        (1, 2, 1, 1),
    ] {
        let shape = TokenTreeShape::new(tokens, branching, Layout::LeftFilled);
        let found = search(shape, &[tokens], 5, Route::Greedy);
        assert_eq!(
            counts(found.selected),
            [selected; 5],
            "N = {tokens}, b = {branching}"
        );
        assert_eq!(
            counts(found.read),
            [read; 5],
            "N = {tokens}, b = {branching}"
        );
        assert_eq!(counts(found.decisions), [shape.decisions() as i64; 5]);
    }
}

#[test]
fn a_single_group_of_leaves_is_dense_attention_without_decisions() {
    for tokens in [1, 2, 5] {
        let shape = TokenTreeShape::new(tokens, 5, Layout::LeftFilled);
        let device = device();
        let (query, nodes) = (random([2, 3, 2, 3], 1, &device), shape.nodes());
        let key = random([2, nodes, 2, 3], 2, &device);
        let value = random([2, nodes, 2, 3], 3, &device);
        let found = tree_search(
            query.clone(),
            key.clone(),
            value.clone(),
            lengths(&[tokens, tokens], &device),
            Route::Greedy,
            TreeSearchOptions::new(shape),
        );
        let leaves = |rows: Tensor<4>| {
            rows.slice([0..2, shape.offset(0)..nodes, 0..2, 0..3])
                .swap_dims(1, 2)
        };
        let dense = burn::tensor::module::attention(
            query.swap_dims(1, 2),
            leaves(key),
            leaves(value),
            None,
            None,
            Default::default(),
        );
        assert_close(found.context, dense.swap_dims(1, 2), 1e-5, 1e-5);
        let nothing = Tensor::zeros([2, 3, 1], &device);
        assert_close(found.log_prob, nothing.clone(), 0.0, 0.0);
        assert_close(found.entropy.unwrap(), nothing, 0.0, 0.0);
    }
}

#[test]
fn replaying_a_sampled_path_gives_the_same_result() {
    let shape = TokenTreeShape::new(23, 3, Layout::LeftFilled);
    let numbers = uniforms([2, 6, 1, 4], 4, &device());
    let sampled = search(shape, &[23, 10], 6, Route::Sampled(numbers));
    let replayed = search(shape, &[23, 10], 6, Route::Given(sampled.path.clone()));
    assert_close(replayed.context, sampled.context, 1e-6, 0.0);
    assert_close(replayed.log_prob, sampled.log_prob, 1e-6, 0.0);
    assert_eq!(counts(replayed.path), counts(sampled.path));
}

#[test]
fn sampling_follows_the_policy() {
    // One decision between 3 children; uniform numbers on a grid hit each child as often as its
    // probability says, to within one grid step.
    let shape = TokenTreeShape::new(9, 3, Layout::LeftFilled);
    let device = device();
    let steps = 200;
    let query = random([1, 1, 2, 3], 5, &device).expand([1, steps, 2, 3]);
    let grid: Vec<f32> = (0..steps)
        .map(|step| (step as f32 + 0.5) / steps as f32)
        .collect();
    let numbers = Tensor::from_data(TensorData::new(grid, [1, steps, 1, 1]), &device);
    let found = tree_search(
        query,
        random([1, shape.nodes(), 2, 3], 6, &device) * 2.0,
        random([1, shape.nodes(), 2, 3], 7, &device),
        lengths(&[9], &device),
        Route::Sampled(numbers),
        TreeSearchOptions::new(shape),
    );
    let path: Vec<i64> = found.path.into_data().iter::<i64>().collect();
    let log_prob = values(found.log_prob);
    for child in 0..3 {
        let hits: Vec<usize> = (0..steps)
            .filter(|step| path[step * 2 + 1] == child)
            .collect();
        assert!(!hits.is_empty(), "child {child} was never chosen");
        let probability = log_prob[hits[0]].exp();
        let share = hits.len() as f32 / steps as f32;
        assert!(
            (share - probability).abs() <= 1.5 / steps as f32,
            "child {child}: probability {probability}, share {share}"
        );
    }
}

#[test]
fn a_child_without_probability_is_never_drawn_and_costs_no_infinity() {
    // The logits differ so much that every child but one has probability 0 in single precision.
    let shape = TokenTreeShape::new(9, 3, Layout::LeftFilled);
    let device = autodiff_device();
    let keys: Vec<f32> = (0..shape.nodes())
        .map(|node| if node == 2 { 400.0 } else { -400.0 })
        .collect();
    let key = Tensor::<4>::from_data(TensorData::new(keys, [1, shape.nodes(), 1, 1]), &device);
    let just_below_one = 1.0 - 2f32.powi(-24);
    let run = |route| {
        let query = Tensor::<4>::ones([1, 1, 1, 1], &device).require_grad();
        let found = tree_search(
            query.clone(),
            key.clone(),
            key.clone(),
            lengths(&[9], &arbora_testing::device()),
            route,
            TreeSearchOptions::new(shape),
        );
        let gradients = found.log_prob.clone().sum().backward();
        let gradient = values(query.grad(&gradients).unwrap())[0];
        let path: Vec<i64> = found.path.into_data().iter::<i64>().collect();
        (path, values(found.log_prob)[0], gradient)
    };
    let numbers = Tensor::<4>::full([1, 1, 1, 1], just_below_one, &arbora_testing::device());
    let (path, log_prob, gradient) = run(Route::Sampled(numbers));
    assert_eq!((path, log_prob), (vec![0, 1], 0.0));
    assert!(gradient.is_finite());
    let unlikely =
        Tensor::<4, Int>::from_data(TensorData::from([[[[0i64, 2]]]]), &arbora_testing::device());
    let (path, log_prob, gradient) = run(Route::Given(unlikely));
    assert_eq!(path, [0, 2]);
    assert!(log_prob.is_finite() && log_prob < -80.0, "{log_prob}");
    assert!(gradient.is_finite());
}

#[test]
fn uniform_routes_give_every_real_child_the_same_probability() {
    let shape = TokenTreeShape::new(27, 3, Layout::LeftFilled);
    let numbers = uniforms([2, 5, 1, 2], 8, &device());
    let found = search(shape, &[27, 10], 5, Route::Uniform(numbers));
    let log_prob = values(found.log_prob);
    let third = -(3f32.ln());
    for of_query in &log_prob[..5] {
        assert!((of_query - 2.0 * third).abs() < 1e-5);
    }
    // 10 tokens fill 4 groups of 3: one under the second child, so that child's step is forced.
    let path: Vec<i64> = found.path.into_data().iter::<i64>().collect();
    for query in 0..5 {
        let at_root = -(2f32.ln());
        let below = if path[(5 + query) * 3 + 1] == 0 {
            third
        } else {
            0.0
        };
        assert!((log_prob[5 + query] - at_root - below).abs() < 1e-5);
    }
}

#[test]
fn ghosts_are_never_chosen_and_forced_steps_are_free() {
    // 5 real tokens in a tree for 64: the upper steps have one real child.
    let shape = TokenTreeShape::new(64, 2, Layout::LeftFilled);
    let near_one = Tensor::<4>::full([1, 4, 1, 5], 0.999_999_9, &device());
    let found = search(shape, &[5], 4, Route::Sampled(near_one));
    let path: Vec<i64> = found.path.into_data().iter::<i64>().collect();
    for (at, node) in path.iter().enumerate() {
        let height = 6 - at % 6;
        assert!(
            *node as usize * shape.span(height) < 5,
            "height {height}: ghost {node} chosen"
        );
    }
    assert!(counts(found.decisions).iter().all(|made| *made <= 2));
}

#[test]
fn padding_to_a_higher_tree_changes_nothing() {
    let device = device();
    let small = TokenTreeShape::new(5, 2, Layout::LeftFilled);
    let large = TokenTreeShape::new(19, 2, Layout::LeftFilled);
    let query = random([1, 4, 2, 3], 1, &device) * 3.0;
    let numbers = uniforms([1, 4, 1, 4], 2, &device);
    let (key, value) = (
        random([1, small.nodes(), 2, 3], 3, &device),
        random([1, small.nodes(), 2, 3], 4, &device),
    );
    // The same nodes at their places in the larger tree, noise elsewhere.
    let embed = |rows: &Tensor<4>, seed| {
        let mut all = random([1, large.nodes(), 2, 3], seed, &device);
        for height in 0..=small.height() {
            let (from, to) = (small.offset(height), large.offset(height));
            let width = small.width(height);
            let level = rows.clone().slice([0..1, from..from + width, 0..2, 0..3]);
            all = all.slice_assign([0..1, to..to + width, 0..2, 0..3], level);
        }
        all
    };
    let run = |shape, key, value| {
        let route = Route::Sampled(numbers.clone());
        let options = TreeSearchOptions::new(shape);
        tree_search(
            query.clone(),
            key,
            value,
            lengths(&[5], &device),
            route,
            options,
        )
    };
    let padded = run(large, embed(&key, 5), embed(&value, 6));
    let alone = run(small, key, value);
    assert_close(padded.context, alone.context, 1e-6, 0.0);
    assert_close(padded.log_prob, alone.log_prob, 1e-6, 0.0);
    assert_close(padded.entropy.unwrap(), alone.entropy.unwrap(), 1e-6, 0.0);
    assert_eq!(counts(padded.selected), counts(alone.selected));
    assert_eq!(counts(padded.read - padded.decisions.squeeze_dim(2)), {
        // Forced steps read their one real child.
        let forced = (large.height() - small.height()) as i64;
        let alone = counts(alone.read - alone.decisions.squeeze_dim(2));
        alone
            .into_iter()
            .map(|read| read + forced)
            .collect::<Vec<_>>()
    });
}

#[test]
fn examples_and_queries_do_not_influence_each_other() {
    let shape = TokenTreeShape::new(12, 2, Layout::LeftFilled);
    let device = device();
    let query = random([2, 3, 2, 3], 1, &device);
    let key = random([2, shape.nodes(), 2, 3], 2, &device);
    let value = random([2, shape.nodes(), 2, 3], 3, &device);
    let run = |query: Tensor<4>, key, value, real: &[usize]| {
        let route = Route::Greedy;
        tree_search(
            query,
            key,
            value,
            lengths(real, &device),
            route,
            TreeSearchOptions::new(shape),
        )
    };
    let both = run(query.clone(), key.clone(), value.clone(), &[12, 7]);
    let flipped = run(query.flip([0, 1]), key.flip([0]), value.flip([0]), &[7, 12]);
    assert_close(flipped.context.flip([0, 1]), both.context, 1e-6, 0.0);
    assert_close(flipped.log_prob.flip([0, 1]), both.log_prob, 1e-6, 0.0);
}

#[test]
fn non_contiguous_inputs_give_the_same_result() {
    let shape = TokenTreeShape::new(7, 2, Layout::LeftFilled);
    let device = device();
    let (query, key) = (
        random([2, 3, 2, 3], 1, &device),
        random([2, shape.nodes(), 2, 3], 2, &device),
    );
    let run = |query, key: Tensor<4>| {
        let options = TreeSearchOptions::new(shape);
        tree_search(
            query,
            key.clone(),
            key,
            lengths(&[7, 4], &device),
            Route::Greedy,
            options,
        )
    };
    let permuted = |x: &Tensor<4>| {
        // Stored head-major, viewed node-major.
        let stored = Tensor::<4>::from_data(x.clone().swap_dims(1, 2).into_data(), &device);
        stored.swap_dims(1, 2)
    };
    let got = run(permuted(&query), permuted(&key));
    let expected = run(query, key);
    assert_close(got.context, expected.context, 1e-6, 0.0);
    assert_close(got.entropy.unwrap(), expected.entropy.unwrap(), 1e-6, 0.0);
}

#[test]
fn an_example_without_tokens_gets_zeros_and_finite_gradients() {
    let shape = TokenTreeShape::new(6, 2, Layout::LeftFilled);
    let device = autodiff_device();
    let query = random([1, 2, 2, 3], 1, &device).require_grad();
    let key = random([1, shape.nodes(), 2, 3], 2, &device).require_grad();
    let found = tree_search(
        query.clone(),
        key.clone(),
        key.clone(),
        lengths(&[0], &arbora_testing::device()),
        Route::Greedy,
        TreeSearchOptions::new(shape),
    );
    assert_close(
        found.context.clone(),
        Tensor::zeros([1, 2, 2, 3], &device),
        0.0,
        0.0,
    );
    assert_eq!(counts(found.selected), [0, 0]);
    let of_policy = single(found.log_prob).sum() + single(found.entropy.unwrap()).sum();
    let loss = single(found.context).sum() + of_policy;
    let gradients = loss.backward();
    for gradient in [
        query.grad(&gradients).unwrap(),
        key.grad(&gradients).unwrap(),
    ] {
        assert!(values(gradient).iter().all(|x| *x == 0.0));
    }
}

#[test]
fn negative_lengths_are_zero_and_negative_steps_the_first_child() {
    let shape = TokenTreeShape::new(9, 3, Layout::LeftFilled);
    let device = device();
    let keys = |width, seed| random([2, shape.nodes(), 2, width], seed, &device);
    let integers = |numbers: &[i64]| TensorData::from(numbers);
    let search = |lengths: &[i64], step: i64| {
        let path = [0, step, 0, step].repeat(3);
        let path = Tensor::<1, Int>::from_data(integers(&path), &device);
        tree_search(
            random([2, 3, 2, 3], 1, &device),
            keys(3, 2),
            keys(4, 3),
            Tensor::from_data(integers(lengths), &device),
            Route::Given(path.reshape([2, 3, 1, 2])),
            TreeSearchOptions::new(shape),
        )
    };
    let (got, expected) = (search(&[-1, 9], -5), search(&[0, 9], 0));
    assert_close(got.context, expected.context, 0.0, 0.0);
    assert_close(got.log_prob, expected.log_prob, 0.0, 0.0);
    assert_eq!(counts(got.selected), counts(expected.selected));
    assert_eq!(counts(got.path), counts(expected.path));
}

#[test]
fn temperature_sharpens_the_policy_and_leaves_attention_alone() {
    let shape = TokenTreeShape::new(9, 3, Layout::LeftFilled);
    let device = device();
    let run = |temperature| {
        tree_search(
            random([1, 3, 2, 3], 1, &device),
            random([1, shape.nodes(), 2, 3], 2, &device),
            random([1, shape.nodes(), 2, 3], 3, &device),
            lengths(&[9], &device),
            Route::Greedy,
            TreeSearchOptions {
                temperature,
                ..TreeSearchOptions::new(shape)
            },
        )
    };
    let (plain, sharp) = (run(1.0), run(0.1));
    let [plain_entropy, sharp_entropy] =
        [plain.entropy, sharp.entropy].map(|entropy| values(entropy.unwrap()));
    assert!(
        plain_entropy
            .iter()
            .zip(&sharp_entropy)
            .all(|(plain, sharp)| sharp < plain)
    );
    // Where heads disagree a temperature may change the route; compare on the same one.
    let along = |temperature, path: Tensor<4, Int>| {
        tree_search(
            random([1, 3, 2, 3], 1, &device),
            random([1, shape.nodes(), 2, 3], 2, &device),
            random([1, shape.nodes(), 2, 3], 3, &device),
            lengths(&[9], &device),
            Route::Given(path),
            TreeSearchOptions {
                temperature,
                ..TreeSearchOptions::new(shape)
            },
        )
        .context
    };
    assert_close(
        along(0.1, plain.path.clone()),
        along(1.0, plain.path),
        1e-6,
        0.0,
    );
}

#[test]
fn gradients_match_finite_differences() {
    let shape = TokenTreeShape::new(7, 2, Layout::LeftFilled);
    let plain = device();
    let numbers = uniforms([2, 2, 1, 2], 9, &plain);
    let path = {
        let found = tree_search(
            random([2, 2, 2, 3], 1, &plain),
            random([2, shape.nodes(), 2, 3], 2, &plain),
            random([2, shape.nodes(), 2, 3], 3, &plain),
            lengths(&[7, 4], &plain),
            Route::Sampled(numbers),
            TreeSearchOptions::new(shape),
        );
        found.path
    };
    // The route is discrete: differences are taken along a fixed one.
    let objective = |query: Tensor<4>, key: Tensor<4>, value: Tensor<4>| {
        let found = tree_search(
            query,
            key,
            value,
            lengths(&[7, 4], &plain),
            Route::Given(path.clone()),
            TreeSearchOptions::new(shape),
        );
        let of_policy = weighed(found.log_prob, 5) + weighed(found.entropy.unwrap(), 6);
        weighed(found.context, 4) + of_policy
    };
    let nodes = [2, shape.nodes(), 2, 3];
    let other = |shape: [usize; 4], seed, like: &Tensor<4>| random(shape, seed, &like.device());
    gradient::assert_matches_finite_differences(
        random_data([2, 2, 2, 3], 1),
        &plain,
        1e-2,
        5e-3,
        |query| {
            objective(
                query.clone(),
                other(nodes, 2, &query),
                other(nodes, 3, &query),
            )
        },
    );
    gradient::assert_matches_finite_differences(random_data(nodes, 2), &plain, 1e-2, 5e-3, |key| {
        objective(
            other([2, 2, 2, 3], 1, &key),
            key.clone(),
            other(nodes, 3, &key),
        )
    });
    gradient::assert_matches_finite_differences(
        random_data(nodes, 3),
        &plain,
        1e-2,
        5e-3,
        |value| {
            objective(
                other([2, 2, 2, 3], 1, &value),
                other(nodes, 2, &value),
                value.clone(),
            )
        },
    );
}

#[test]
fn gradient_checkpointing_changes_no_gradient() {
    let shape = TokenTreeShape::new(7, 2, Layout::LeftFilled);
    let run = |device: Device| {
        let key = random([1, shape.nodes(), 2, 3], 2, &device).require_grad();
        let found = tree_search(
            random([1, 2, 2, 3], 1, &device),
            key.clone(),
            key.clone(),
            lengths(&[7], &arbora_testing::device()),
            Route::Greedy,
            TreeSearchOptions::new(shape),
        );
        let gradients = (single(found.context).sum() + single(found.log_prob).sum()).backward();
        let gradient = key.grad(&gradients).unwrap();
        Tensor::<4>::from_data(gradient.into_data(), &arbora_testing::device())
    };
    let plain = run(autodiff_device());
    let checkpointed = run(device().autodiff().gradient_checkpointing());
    assert_close(checkpointed, plain, 1e-6, 0.0);
}

#[test]
#[should_panic(
    expected = "key [batch, nodes, heads, head_dim]: expected [1, 7, 2, 3], got [1, 6, 2, 3]"
)]
fn keys_of_another_tree_are_refused() {
    let device = device();
    let shape = TokenTreeShape::new(4, 2, Layout::LeftFilled);
    let key = random([1, 6, 2, 3], 2, &device);
    let query = random([1, 2, 2, 3], 1, &device);
    let options = TreeSearchOptions::new(shape);
    tree_search(
        query,
        key.clone(),
        key,
        lengths(&[4], &device),
        Route::Greedy,
        options,
    );
}

#[test]
#[should_panic(expected = "axis 3 of uniforms: expected at least 2, got 1")]
fn too_few_uniform_numbers_are_refused() {
    let shape = TokenTreeShape::new(8, 2, Layout::LeftFilled);
    search(
        shape,
        &[8],
        2,
        Route::Sampled(uniforms([1, 2, 1, 1], 1, &device())),
    );
}

#[test]
#[should_panic(expected = "published ghosts: expected layout Published, got LeftFilled")]
fn published_ghosts_need_the_published_layout() {
    let shape = TokenTreeShape::new(4, 2, Layout::LeftFilled);
    let device = device();
    let key = random([1, shape.nodes(), 2, 3], 2, &device);
    let query = random([1, 2, 2, 3], 1, &device);
    let options = TreeSearchOptions {
        ghosts: GhostNodes::Published,
        ..TreeSearchOptions::new(shape)
    };
    tree_search(
        query,
        key.clone(),
        key,
        lengths(&[4], &device),
        Route::Greedy,
        options,
    );
}
