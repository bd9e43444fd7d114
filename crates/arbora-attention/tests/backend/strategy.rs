//! Search along several paths.

use crate::mean_tree;
use crate::two_pass::layer;
use arbora_attention::{GhostNodes, Route, SearchOptions, SearchOutput, TreeCrossAttention, flops};
use arbora_testing::{assert_close, autodiff_device, device, random, uniforms, values, weighed};
use arbora_tree::{Layout, TokenTree, TokenTreeShape};
use burn::module::Param;
use burn::tensor::{Int, Tensor, TensorData};
use proptest::prelude::*;
use std::collections::BTreeSet;

const BOTH: [Layout; 2] = [Layout::LeftFilled, Layout::Published];

/// Samples for two queries of each example, as [`Route::Sampled`] takes them.
fn samples(batch: usize, count: usize, draws: usize) -> Route {
    Route::Sampled(uniforms([batch, 2, count, draws], 4, &device()))
}

fn at(temperature: f64, route: Route) -> SearchOptions {
    SearchOptions { route, temperature }
}

fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

/// Two queries per example on a tree of random tokens, with a policy that prefers some children.
fn search(
    layer: &TreeCrossAttention,
    tree: &TokenTree,
    options: impl Into<SearchOptions>,
) -> SearchOutput {
    layer.search(queries(tree), &layer.index(tree), options)
}

fn queries(tree: &TokenTree) -> Tensor<3> {
    random([tree.nodes().dims()[0], 2, 6], 2, &device())
}

fn tree(lengths: &[usize], branching: usize, layout: Layout) -> TokenTree {
    let tokens = *lengths.iter().max().unwrap();
    let tokens = random([lengths.len(), tokens, 6], 1, &device()) * 2.0;
    mean_tree(tokens, lengths, branching, layout)
}

/// The last node of every path, by example and query.
fn ends(output: &SearchOutput) -> Vec<BTreeSet<usize>> {
    let [_, _, paths, steps] = output.path.dims();
    integers(output.path.clone())
        .chunks(paths * steps)
        .map(|paths| {
            let last = paths.chunks(steps).map(|path| path[steps - 1] as usize);
            last.collect()
        })
        .collect()
}

/// What paths to the given last nodes select and read, by definition: sets of (height, index).
struct Frontier {
    selected: BTreeSet<(usize, usize)>,
    read: BTreeSet<(usize, usize)>,
}

impl Frontier {
    fn new(
        shape: &TokenTreeShape,
        length: usize,
        ends: &BTreeSet<usize>,
        ghosts: GhostNodes,
    ) -> Self {
        let real = |(height, index): &(usize, usize)| index * shape.span(*height) < length;
        let last = shape.height().min(1);
        let mut visited = BTreeSet::new();
        for end in ends {
            let leaf = end * shape.span(last);
            visited.extend((last..=shape.height()).map(|h| (h, shape.ancestor(leaf, h))));
        }
        let below = |(height, index): (usize, usize)| match height {
            // The only token is the root itself.
            0 => vec![(0, index)],
            _ => shape
                .children(height, index)
                .map(|child| (height - 1, child))
                .collect(),
        };
        let children: BTreeSet<_> = visited.iter().copied().flat_map(below).collect();
        let is_leaf = |node: &(usize, usize)| node.0 == 0;
        let selected = children
            .iter()
            .filter(|node| is_leaf(node) || !visited.contains(node))
            .filter(|node| real(node) || (ghosts == GhostNodes::Published && !is_leaf(node)));
        Self {
            selected: selected.copied().collect(),
            read: children.iter().filter(|node| real(node)).copied().collect(),
        }
    }

    fn covers_every_token_once(&self, shape: &TokenTreeShape, length: usize) -> bool {
        let mut times = vec![0; length];
        for (height, index) in &self.selected {
            for token in shape
                .leaves(*height, *index)
                .filter(|token| *token < length)
            {
                times[token] += 1;
            }
        }
        times.iter().all(|times| *times == 1)
    }
}

/// Dense attention of each query to the nodes of its own set.
fn attend_to_sets(
    layer: &TreeCrossAttention,
    tree: &TokenTree,
    sets: &[BTreeSet<(usize, usize)>],
) -> Tensor<3> {
    let shape = tree.shape();
    let [batch, nodes, dim] = tree.nodes().dims();
    let rows = sets.len();
    let dropped: Vec<bool> = sets
        .iter()
        .flat_map(|set| (0..nodes).map(|node| !set.contains(&shape.node_at(node))))
        .collect();
    let tokens = tree
        .nodes()
        .reshape([batch, 1, nodes, dim])
        .repeat_dim(1, rows / batch)
        .reshape([rows, nodes, dim]);
    let queries = queries(tree).reshape([rows, 1, dim]);
    let mask = Tensor::from_data(TensorData::new(dropped, [rows, nodes]), &device());
    let attended = layer.attention.attend(queries, tokens, Some(mask));
    attended.reshape([batch, rows / batch, dim])
}

#[test]
fn a_beam_of_one_path_is_the_greedy_search_to_the_last_bit() {
    for ghosts in [GhostNodes::Masked, GhostNodes::Published] {
        let layer = layer(ghosts, &device());
        for (lengths, branching) in [
            (vec![1], 2),
            (vec![4, 0], 5),
            (vec![11, 3], 2),
            (vec![23, 9, 0], 3),
        ] {
            let tree = tree(&lengths, branching, Layout::Published);
            let found = search(&layer, &tree, at(0.7, Route::Beam(1)));
            let expected = search(&layer, &tree, at(0.7, Route::Greedy));
            assert_eq!(found.path.dims()[2], 1);
            assert_eq!(found.context.into_data(), expected.context.into_data());
            assert_eq!(found.path.into_data(), expected.path.into_data());
            assert_eq!(found.log_prob.into_data(), expected.log_prob.into_data());
            assert_eq!(integers(found.selected), integers(expected.selected));
            assert_eq!(integers(found.read), integers(expected.read));
            assert_eq!(integers(found.distinct), vec![1; 2 * lengths.len()]);
        }
    }
}

#[test]
fn one_path_of_several_passes_is_that_of_one_pass() {
    let cases = [(vec![1], 2), (vec![11, 3], 2), (vec![23, 9, 0], 3)];
    for (ghosts, (lengths, branching)) in [GhostNodes::Masked, GhostNodes::Published]
        .into_iter()
        .flat_map(|ghosts| cases.clone().map(|case| (ghosts, case)))
    {
        let layer = layer(ghosts, &device());
        let tree = tree(&lengths, branching, Layout::Published);
        let once = search(&layer, &tree, at(0.7, Route::Greedy));
        let twice = Route::Given(once.path.clone().repeat_dim(2, 2));
        let twice = search(&layer, &tree, at(0.7, twice));
        assert_close(twice.context, once.context, 1e-5, 1e-5);
        assert_eq!(integers(twice.selected), integers(once.selected));
        assert_eq!(integers(twice.read), integers(once.read));
        let first = |of_paths: Tensor<3>| of_paths.narrow(2, 0, 1);
        assert_close(first(twice.log_prob), once.log_prob, 1e-6, 1e-6);
        assert_close(
            first(twice.entropy.unwrap()),
            once.entropy.unwrap(),
            1e-6,
            1e-6,
        );
    }
}

#[test]
fn a_beam_counts_the_real_decisions_of_its_paths() {
    let layer = layer(GhostNodes::Masked, &device());
    for layout in BOTH {
        for (lengths, branching) in [(vec![1], 2), (vec![9, 3, 0], 2), (vec![23, 10], 3)] {
            let tree = tree(&lengths, branching, layout);
            let found = search(&layer, &tree, Route::Beam(4));
            let given = search(&layer, &tree, Route::Given(found.path));
            assert_eq!(integers(found.decisions), integers(given.decisions));
        }
    }
}

#[test]
fn a_beam_as_wide_as_the_tree_is_dense_attention_to_the_leaves() {
    let layer = layer(GhostNodes::Masked, &device());
    for layout in BOTH {
        for branching in [2, 3, 5] {
            for lengths in [
                vec![1],
                vec![2, 1],
                vec![5, 2, 0],
                vec![9, 6],
                vec![32, 17, 1],
            ] {
                let tree = tree(&lengths, branching, layout);
                let shape = *tree.shape();
                let found = search(&layer, &tree, at(2.0, Route::Beam(1000)));
                let dense = layer.attend_leaves(queries(&tree), &layer.index(&tree));
                assert_close(found.context, dense, 1e-5, 1e-5);
                let twice = |of: &dyn Fn(usize) -> usize| -> Vec<i64> {
                    let both = lengths.iter().flat_map(|length| [of(*length); 2]);
                    both.map(|number| number as i64).collect()
                };
                assert_eq!(integers(found.selected), twice(&|length| length));
                let last = |length: usize| match shape.height() {
                    0 => 1,
                    _ => length.div_ceil(shape.span(1)).max(1),
                };
                assert_eq!(integers(found.distinct), twice(&last));
                // Every node is read once.
                let nodes = |length: usize| match length {
                    0 => 0,
                    _ if shape.height() == 0 => 1,
                    _ => (0..shape.height())
                        .map(|height| length.div_ceil(shape.span(height)))
                        .sum(),
                };
                assert_eq!(integers(found.read), twice(&nodes));
                // All different paths together have the whole probability, best first.
                let paths = found.log_prob.dims()[2];
                let log_prob = values(found.log_prob);
                for (row, log_prob) in log_prob.chunks(paths).enumerate() {
                    let log_prob = &log_prob[..last(lengths[row / 2])];
                    let total: f32 = log_prob.iter().map(|log_prob| log_prob.exp()).sum();
                    assert!((total - 1.0).abs() < 1e-4, "total probability {total}");
                    assert!(log_prob.is_sorted_by(|a, b| a >= b), "{log_prob:?}");
                }
            }
        }
    }
}

/// The paths that a beam should keep at the end, best first, and how many nodes it should read.
/// `probability` is that of every last node.
fn beam_by_definition(
    shape: &TokenTreeShape,
    width: usize,
    probability: &[f64],
) -> (Vec<usize>, usize) {
    // The probability of a node is that of all paths through it.
    let log_prob = |height: usize, index: usize| {
        let per_node = shape.span(height) / shape.span(1);
        let under = probability.iter().skip(index * per_node).take(per_node);
        under.sum::<f64>().ln()
    };
    let (mut kept, mut read) = (vec![0], 0);
    for height in (1..=shape.decisions()).rev() {
        let candidates = kept
            .iter()
            .flat_map(|node| shape.children(height + 1, *node));
        let mut scored: Vec<_> = candidates
            .map(|node| (log_prob(height, node), node))
            .collect();
        read += scored.len();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        if let Some(next) = scored.get(width) {
            let gap = scored[width - 1].0 - next.0;
            assert!(gap > 1e-5, "too close to a tie to test rounding: {gap}");
        }
        kept = scored
            .into_iter()
            .take(width)
            .map(|(_, node)| node)
            .collect();
    }
    read += kept
        .iter()
        .map(|node| shape.leaves(1, *node).len())
        .sum::<usize>();
    (kept, read)
}

#[test]
fn a_beam_keeps_the_most_probable_partial_paths_at_each_height() {
    let layer = layer(GhostNodes::Masked, &device());
    let mut given_up = 0;
    for (tokens, branching, layout) in [
        (27, 3, Layout::LeftFilled),
        (46, 4, Layout::Published),
        (64, 2, Layout::LeftFilled),
        (45, 2, Layout::LeftFilled),
    ] {
        let tree = tree(&[tokens], branching, layout);
        let (shape, index) = (*tree.shape(), layer.index(&tree));
        let real = tokens.div_ceil(shape.span(1));
        let steps = shape.decisions() + 1;
        for temperature in [1.0, 0.4] {
            // The probability of every path, by replaying it.
            let replayed: Vec<i64> = (0..2 * real)
                .flat_map(|row| {
                    let leaf = (row % real) * shape.span(1);
                    (1..=shape.height())
                        .rev()
                        .map(move |h| shape.ancestor(leaf, h) as i64)
                })
                .collect();
            let replayed = Tensor::from_data(
                TensorData::new(replayed, [1, 2 * real, 1, steps]),
                &device(),
            );
            let repeated = queries(&tree)
                .reshape([1, 2, 1, 6])
                .repeat_dim(2, real)
                .reshape([1, 2 * real, 6]);
            let every = layer.search(repeated, &index, at(temperature, Route::Given(replayed)));
            let every: Vec<f64> = values(every.log_prob)
                .iter()
                .map(|x| f64::from(*x))
                .collect();
            for width in [2, 3, 5] {
                let found = search(&layer, &tree, at(temperature, Route::Beam(width)));
                let log_prob = values(found.log_prob.clone());
                let read = integers(found.read.clone());
                let paths = integers(found.path.clone());
                for query in 0..2 {
                    let every = &every[query * real..(query + 1) * real];
                    let probability: Vec<f64> = every.iter().map(|x| x.exp()).collect();
                    let (expected, expected_read) = beam_by_definition(&shape, width, &probability);
                    let paths = &paths[query * width * steps..][..width * steps];
                    let mut got: Vec<_> = paths
                        .chunks(steps)
                        .map(|path| path[steps - 1] as usize)
                        .collect();
                    for (slot, end) in got.iter().enumerate() {
                        let error = f64::from(log_prob[query * width + slot]) - every[*end];
                        assert!(error.abs() < 1e-4, "log-probability is off by {error}");
                    }
                    assert_eq!(read[query], expected_read as i64);
                    let mut best = expected.clone();
                    best.sort_unstable();
                    got.sort_unstable();
                    assert_eq!(got, best, "N = {tokens}, b = {branching}, width {width}");
                    let kept = Frontier::new(
                        &shape,
                        tokens,
                        &expected.into_iter().collect(),
                        GhostNodes::Masked,
                    );
                    given_up += expected_read - kept.read.len();
                }
            }
        }
    }
    assert!(
        given_up > 0,
        "no beam gave up a path whose children it had read"
    );
}

/// A layer whose policy finds all children alike.
fn indifferent() -> TreeCrossAttention {
    let mut layer = layer(GhostNodes::Masked, &device());
    layer.attention.key.weight = Param::from_tensor(Tensor::zeros([6, 6], &device()));
    layer
}

#[test]
fn equally_probable_paths_are_kept_from_the_left() {
    for (tokens, branching) in [(16, 2), (27, 3)] {
        let found = search(
            &indifferent(),
            &tree(&[tokens], branching, Layout::LeftFilled),
            Route::Beam(3),
        );
        let steps = found.path.dims()[3];
        let paths = integers(found.path);
        for (row, path) in paths.chunks(steps).enumerate() {
            assert_eq!(path[steps - 1], (row % 3) as i64);
        }
    }
}

#[test]
fn forced_steps_cost_nothing() {
    // The ninth token hangs alone on the right: after one choice in two, every step to it is forced.
    let found = search(
        &indifferent(),
        &tree(&[9], 2, Layout::LeftFilled),
        Route::Beam(3),
    );
    let once = [[0, 1, 2, 4], [0, 0, 0, 0], [0, 0, 0, 1]].concat();
    assert_eq!(integers(found.path), once.repeat(2));
    let half = 0.5_f32.ln();
    let expected = [half, 3.0 * half, 3.0 * half].repeat(2);
    let expected = Tensor::<1>::from_data(&expected[..], &device()).reshape([1, 2, 3]);
    assert_close(found.log_prob, expected, 1e-5, 0.0);
}

#[test]
fn a_beam_wider_than_the_tree_of_an_example_repeats_its_first_path() {
    let layer = layer(GhostNodes::Masked, &device());
    for layout in BOTH {
        let tree = tree(&[16, 3, 0], 2, layout);
        let found = search(&layer, &tree, Route::Beam(6));
        assert_eq!(found.path.dims(), [3, 2, 6, 4]);
        assert_eq!(integers(found.distinct), [6, 6, 2, 2, 1, 1]);
        assert_eq!(integers(found.selected)[2..], [3, 3, 0, 0]);
        // The children of the only choice, and the leaves.
        assert_eq!(integers(found.read)[2..], [7, 7, 0, 0]);
        let paths = integers(found.path);
        let log_prob = values(found.log_prob);
        for row in [2, 3] {
            let path = |slot: usize| &paths[(row * 6 + slot) * 4..][..4];
            assert_ne!(path(0), path(1));
            for slot in 2..6 {
                assert_eq!(path(slot), path(0));
                assert_eq!(log_prob[row * 6 + slot], log_prob[row * 6]);
            }
        }
        assert!(paths[4 * 6 * 4..].iter().all(|node| *node == 0));
        assert!(log_prob[4 * 6..].iter().all(|log_prob| *log_prob == 0.0));
    }
}

#[test]
fn samples_follow_the_routes_of_the_one_pass_search() {
    let layer = layer(GhostNodes::Masked, &device());
    let tree = tree(&[23, 10], 3, Layout::LeftFilled);
    let route = samples(2, 4, 3);
    let found = search(&layer, &tree, at(1.5, route.clone()));
    let repeated = queries(&tree)
        .reshape([2, 2, 1, 6])
        .repeat_dim(2, 4)
        .reshape([2, 8, 6]);
    let single = layer.search(repeated, &layer.index(&tree), at(1.5, route.apart()));
    assert_eq!(integers(found.path.clone()), integers(single.path));
    assert_close(found.log_prob.reshape([2, 8, 1]), single.log_prob, 0.0, 0.0);
}

#[test]
fn policies_of_several_samples_have_the_gradients_of_one_each() {
    let device = autodiff_device();
    let layer = layer(GhostNodes::Masked, &device);
    let tokens = random([2, 19, 6], 1, &device);
    let route = samples(2, 3, 3);
    let gradient = |apart: bool| {
        let tree = mean_tree(tokens.clone(), &[19, 4], 3, Layout::LeftFilled);
        let queries = random([2, 2, 6], 2, &device);
        let index = layer.index(&tree);
        let found = if apart {
            let queries = layer.attention.project_queries(queries).repeat(3);
            layer.search(queries, &index, route.clone().apart())
        } else {
            layer.search(queries, &index, route.clone())
        };
        let of_paths = found.log_prob.reshape([12]) + found.entropy.unwrap().reshape([12]) * 0.5;
        let gradients = weighed(of_paths, 5).backward();
        let of = |weight: Tensor<2>| weight.grad(&gradients).unwrap();
        [&layer.attention.query, &layer.attention.key].map(|linear| of(linear.weight.val()))
    };
    for (got, expected) in gradient(false).into_iter().zip(gradient(true)) {
        assert!(values(expected.clone()).iter().any(|x| *x != 0.0));
        assert_close(got, expected, 1e-5, 1e-5);
    }
}

#[test]
fn samples_that_coincide_count_once() {
    let layer = layer(GhostNodes::Masked, &device());
    for layout in BOTH {
        let tree = tree(&[23, 10], 3, layout);
        let numbers = uniforms([2, 2, 1, 4], 4, &device());
        let same = numbers.clone().repeat_dim(2, 3);
        let thrice = search(&layer, &tree, Route::Sampled(same));
        let once = search(&layer, &tree, Route::Sampled(numbers));
        assert_eq!(integers(thrice.distinct), [1; 4]);
        assert_close(thrice.context, once.context, 1e-5, 1e-5);
        assert_eq!(integers(thrice.selected), integers(once.selected));
        assert_eq!(integers(thrice.read), integers(once.read));
    }
}

#[test]
fn padding_to_a_higher_tree_changes_nothing() {
    let layer = layer(GhostNodes::Masked, &device());
    let tokens = random([2, 40, 6], 1, &device()) * 2.0;
    let short = tokens.clone().slice([0..1, 0..11, 0..6]);
    let numbers = uniforms([2, 2, 3, 5], 4, &device());
    for layout in BOTH {
        let alone = mean_tree(short.clone(), &[11], 2, layout);
        let padded = mean_tree(tokens.clone(), &[11, 40], 2, layout);
        let first = numbers.clone().narrow(0, 0, 1);
        for [route, of_first] in [
            [Route::Beam(3), Route::Beam(3)],
            [numbers.clone(), first].map(Route::Sampled),
        ] {
            let queries = queries(&padded).slice([0..1, 0..2, 0..6]);
            let expected = layer.search(queries, &layer.index(&alone), of_first);
            let found = search(&layer, &padded, route);
            let steps = [expected.path.dims()[3], found.path.dims()[3]];
            let first = |rows: Tensor<3>| {
                let [_, count, width] = rows.dims();
                rows.slice([0..1, 0..count, 0..width])
            };
            assert_close(first(found.context), expected.context, 1e-5, 1e-5);
            assert_close(first(found.log_prob), expected.log_prob, 1e-5, 1e-5);
            assert_eq!(integers(found.selected)[..2], integers(expected.selected));
            // Each height more has one forced step, whose only real child is read.
            let forced = (steps[1] - steps[0]) as i64;
            assert_eq!(integers(found.read)[..2], integers(expected.read + forced));
            assert_eq!(integers(found.distinct)[..2], integers(expected.distinct));
            let (found, expected) = (integers(found.path), integers(expected.path));
            for (found, expected) in found.chunks(steps[1]).zip(expected.chunks(steps[0])) {
                let (above, found) = found.split_at(steps[1] - steps[0]);
                assert!(above.iter().all(|node| *node == 0));
                assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn the_order_of_a_batch_changes_nothing() {
    let layer = layer(GhostNodes::Masked, &device());
    let tokens = random([3, 19, 6], 1, &device()) * 2.0;
    let queries = random([3, 2, 6], 2, &device());
    for route in [Route::Beam(3), samples(3, 3, 4)] {
        let run = |flip: bool, lengths: &[usize]| {
            let turned = |rows: &Tensor<3>| {
                if flip {
                    rows.clone().flip([0])
                } else {
                    rows.clone()
                }
            };
            let tree = mean_tree(turned(&tokens), lengths, 3, Layout::LeftFilled);
            let index = layer.index(&tree);
            let route = match &route {
                Route::Sampled(numbers) if flip => Route::Sampled(numbers.clone().flip([0])),
                route => route.clone(),
            };
            layer.search(turned(&queries), &index, route)
        };
        let forth = run(false, &[19, 4, 12]);
        let back = run(true, &[12, 4, 19]);
        assert_close(back.context.flip([0]), forth.context, 1e-6, 1e-6);
        assert_close(back.log_prob.flip([0]), forth.log_prob, 1e-6, 1e-6);
        assert_eq!(integers(back.path.flip([0])), integers(forth.path));
        assert_eq!(integers(back.selected.flip([0])), integers(forth.selected));
        assert_eq!(integers(back.read.flip([0])), integers(forth.read));
    }
}

#[test]
fn queries_are_projected_once_however_many_paths() {
    let layer = layer(GhostNodes::Masked, &device());
    let tree = tree(&[16, 9], 2, Layout::LeftFilled);
    let index = layer.index(&tree);
    for route in [Route::Beam(3), samples(2, 3, 3)] {
        let (_, work) = flops::count(|| layer.search(queries(&tree), &index, route));
        let only_queries = flops::Projections {
            query: 4,
            output: 4,
            ..Default::default()
        };
        assert_eq!(work, only_queries);
    }
}

#[test]
fn searching_with_recorded_gradients_gives_the_same_and_finite_gradients() {
    let (plain, recorded) = (
        layer(GhostNodes::Masked, &device()),
        layer(GhostNodes::Masked, &autodiff_device()),
    );
    for route in [Route::Beam(3), samples(2, 3, 3)] {
        let run = |layer: &TreeCrossAttention, device| {
            let tokens = random([2, 19, 6], 1, &device);
            let tree = mean_tree(tokens, &[19, 4], 3, Layout::LeftFilled);
            let queries = random([2, 2, 6], 2, &device);
            layer.search(queries, &layer.index(&tree), route.clone())
        };
        let expected = run(&plain, device());
        let found = run(&recorded, autodiff_device());
        assert_close(found.context.clone(), expected.context, 1e-5, 1e-5);
        assert_eq!(integers(found.path), integers(expected.path));
        let gradients = found.context.sum().backward();
        let weight = recorded.attention.value.weight.val();
        let gradient = values(weight.grad(&gradients).unwrap());
        assert!(gradient.iter().all(|x| x.is_finite()));
        assert!(gradient.iter().any(|x| *x != 0.0));
    }
}

#[test]
#[should_panic(expected = "tree_search: paths: expected at least 1, got 0")]
fn a_beam_without_a_path_is_refused() {
    let layer = layer(GhostNodes::Masked, &device());
    search(&layer, &tree(&[9], 2, Layout::LeftFilled), Route::Beam(0));
}

#[test]
#[should_panic(
    expected = "uniforms [batch, queries, paths, draws]: expected [1, 2, 3, 3], got [1, 1, 3, 3]"
)]
fn numbers_for_too_few_queries_are_refused() {
    let layer = layer(GhostNodes::Masked, &device());
    let numbers = uniforms([1, 1, 3, 3], 4, &device());
    let tree = tree(&[9], 2, Layout::LeftFilled);
    search(&layer, &tree, Route::Sampled(numbers));
}

#[test]
fn temperatures_that_divide_into_no_policy_are_refused() {
    let layer = layer(GhostNodes::Masked, &device());
    let tree = tree(&[9], 2, Layout::LeftFilled);
    for temperature in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        let run = || search(&layer, &tree, at(temperature, Route::Greedy));
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
        let text = refused.downcast_ref::<String>().unwrap();
        let expected = format!("temperature: expected finite and above 0, got {temperature}");
        assert!(text.ends_with(&expected), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The selected set of several paths, whatever they are, lies over every token exactly once, and
    /// the context is attention over that set.
    #[test]
    fn several_paths_select_a_partition_of_the_tokens_and_attend_to_it(
        longest in 1usize..70,
        shorter in 0usize..70,
        branching in 2usize..6,
        published in any::<bool>(),
        ghosts in any::<bool>(),
        paths in 2usize..7,
        sampled in any::<bool>(),
        seed in 0u64..1000,
    ) {
        let lengths = [longest, shorter.min(longest)];
        let layout = BOTH[usize::from(published)];
        let ghosts = if published && ghosts { GhostNodes::Published } else { GhostNodes::Masked };
        let layer = layer(ghosts, &device());
        let tokens = random([2, longest, 6], seed, &device());
        let tree = mean_tree(tokens, &lengths, branching, layout);
        let shape = *tree.shape();
        let numbers = uniforms([2, 2, paths, 7], seed + 1, &device());
        let route = if sampled { Route::Sampled(numbers) } else { Route::Beam(paths) };
        let found = search(&layer, &tree, route);
        let ends = ends(&found);
        let distinct: Vec<_> = ends.iter().map(|ends| ends.len() as i64).collect();
        prop_assert_eq!(integers(found.distinct), distinct);

        let mut sets = Vec::new();
        let read = integers(found.read);
        for (row, ends) in ends.iter().enumerate() {
            let length = lengths[row / 2];
            let frontier = Frontier::new(&shape, length, ends, ghosts);
            prop_assert!(frontier.covers_every_token_once(&shape, length));
            let needed = frontier.read.len() as i64;
            if sampled {
                prop_assert_eq!(read[row], needed);
            } else {
                // A beam also reads below paths that it gives up; one path searches in one pass.
                prop_assert!(read[row] >= needed);
            }
            sets.push(frontier.selected);
        }
        // Without tokens the only path is a root without children.
        let sizes: Vec<_> = sets.iter().map(|set| set.len() as i64).collect();
        prop_assert_eq!(integers(found.selected), sizes);
        assert_close(found.context, attend_to_sets(&layer, &tree, &sets), 2e-5, 1e-5);
    }
}
