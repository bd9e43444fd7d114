//! Checks that the shapes of an operator's tensors fit together, for functions and for what kernels rely on.
//!
//! CubeCL kernels are launched without checks of bounds. They compute every position from the sizes that the host takes from
//! some of these shapes, so a tensor of another shape would be read or written past its end. What tensors hold is not relied
//! on: kernels bound lengths, paths and leaves themselves.

use super::{
    BlockPrimitive, DenseAttentionOptions, FeedForwardPrimitive, TreeBuildOptions,
    TreeSearchOptions,
};
use crate::functions::check::{Axes, axes, expect_divisor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

/// Query, key, value and lengths of a search; returns what the others must agree on.
#[track_caller]
pub(crate) fn tree_search(
    [query, key, value, lengths]: [&Shape; 4],
    options: &TreeSearchOptions,
) -> Axes {
    let [batch, queries, heads, head_dim] = query.dims();
    let (nodes, value_dim) = (options.shape.nodes(), value[3]);
    let axes = axes!(
        "tree_search",
        batch,
        queries,
        nodes,
        heads,
        head_dim,
        value_dim
    )
    .with("decisions + 1", options.shape.decisions() + 1)
    .with("2", 2);
    axes.expect("key", "batch, nodes, heads, head_dim", key);
    axes.expect("value", "batch, nodes, heads, value_dim", value);
    axes.expect("lengths", "batch", lengths);
    axes
}

/// Uniforms that choose children: at least one for each decision.
#[cfg(any(test, feature = "cube-kernels"))]
#[track_caller]
pub(crate) fn draws(axes: &Axes, uniforms: &Shape, options: &TreeSearchOptions) {
    let [_, _, draws] = uniforms.dims();
    let decisions = options.shape.decisions();
    assert!(
        draws >= decisions,
        "tree_search: uniforms: expected at least {decisions} for a query, got {draws}"
    );
    axes.expect("uniforms", "batch, queries", &uniforms[..2]);
}

/// Query, key, value and mask.
#[track_caller]
pub(crate) fn dense_attention(
    [query, key, value]: [&Shape; 3],
    mask: Option<&Shape>,
    options: &DenseAttentionOptions,
) -> Axes {
    let [batch, queries, heads, head_dim] = query.dims();
    let [_, rows, _, value_dim] = value.dims();
    let first_key = options.first_key;
    assert!(
        first_key <= rows,
        "dense_attention: first_key: expected at most {rows}, got {first_key}"
    );
    let axes = axes!(
        "dense_attention",
        batch,
        queries,
        rows,
        heads,
        head_dim,
        value_dim
    )
    .with("rows - first_key", rows - first_key);
    axes.expect("key", "batch, rows, heads, head_dim", key);
    axes.expect("value", "batch, rows, heads, value_dim", value);
    if let Some(mask) = mask {
        axes.expect("mask", "batch, rows - first_key", mask);
    }
    axes
}

/// Query, key, value and the leaves of queries; returns what those of keys must agree with.
#[track_caller]
pub(crate) fn leaf_attention(
    function: &'static str,
    [query, key, value, query_leaf]: [&Shape; 4],
) -> Axes {
    let [batch, queries, heads, head_dim] = query.dims();
    let [_, keys, kv_heads, _] = key.dims();
    let value_dim = value[3];
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "{function}: query: axis heads: expected a multiple of kv_heads = {kv_heads}, got {heads}"
    );
    let axes = axes!(
        function, batch, queries, keys, heads, kv_heads, head_dim, value_dim
    );
    axes.expect("key", "batch, keys, kv_heads, head_dim", key);
    axes.expect("value", "batch, keys, kv_heads, value_dim", value);
    axes.expect("query_leaf", "batch, queries, heads", query_leaf);
    axes
}

/// What the backward pass of attention takes beside the inputs: context and its gradient, and the logarithms of totals.
#[cfg(any(test, feature = "cube-kernels"))]
#[track_caller]
pub(crate) fn attended(axes: &Axes, [context, lse, grad]: [&Shape; 3]) {
    axes.expect("context", "batch, queries, heads, value_dim", context);
    axes.expect("lse", "batch, queries, heads", lse);
    axes.expect("grad", "batch, queries, heads, value_dim", grad);
}

/// Lengths and weights of a tree build, and rows: leaves, or nodes and their gradients.
#[track_caller]
pub(crate) fn tree_build<B: Backend>(
    rows: &[(&str, &Shape)],
    lengths: &Shape,
    block: &BlockPrimitive<B>,
    options: &TreeBuildOptions,
) {
    let [batch, _, dim] = rows[0].1.dims();
    let [ff, _] = block.feed_forward.outer.shape().dims();
    let axes = axes!("tree_build", batch, dim, ff)
        .with("leaves", options.shape.width(0))
        .with("nodes", options.shape.nodes())
        .with("2 ff", 2 * ff);
    for (name, shape) in rows {
        axes.expect(name, &format!("batch, {name}, dim"), shape);
    }
    axes.expect("lengths", "batch", lengths);
    for (name, names, weight) in [
        ("norm_gamma", "dim", &block.norm_gamma),
        ("norm_beta", "dim", &block.norm_beta),
        ("query", "dim, dim", &block.query),
        ("key", "dim, dim", &block.key),
        ("value", "dim, dim", &block.value),
        ("output", "dim, dim", &block.output),
        ("output_bias", "dim", &block.output_bias),
    ] {
        axes.expect(name, names, &weight.shape());
    }
    weights(&axes, &block.feed_forward);
    expect_divisor("tree_build: heads", options.heads, dim);
}

/// Rows and weights of a feed-forward part, and the gradient of its result.
#[track_caller]
pub(crate) fn feed_forward<B: Backend>(
    rows: &Shape,
    weights: &FeedForwardPrimitive<B>,
    grad: Option<&Shape>,
) {
    let [count, dim] = rows.dims();
    let [ff, _] = weights.outer.shape().dims();
    let axes = axes!("feed_forward", count, dim, ff).with("2 ff", 2 * ff);
    self::weights(&axes, weights);
    if let Some(grad) = grad {
        axes.expect("grad", "count, dim", grad);
    }
}

#[track_caller]
fn weights<B: Backend>(axes: &Axes, weights: &FeedForwardPrimitive<B>) {
    for (name, names, weight) in [
        ("norm_gamma", "dim", &weights.norm_gamma),
        ("norm_beta", "dim", &weights.norm_beta),
        ("inner", "dim, 2 ff", &weights.inner),
        ("inner_bias", "2 ff", &weights.inner_bias),
        ("outer", "ff, dim", &weights.outer),
        ("outer_bias", "dim", &weights.outer_bias),
    ] {
        axes.expect(name, names, &weight.shape());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::GhostNodes;
    use arbora_tree::{Layout, TokenTreeShape};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Whether shapes that fit are taken, and refused where any axis of any of them is longer or shorter by one, unless
    /// others have their sizes from it.
    fn refused(shapes: &[Vec<usize>], free: &[[usize; 2]], check: impl Fn(&[Shape])) {
        let taken = |shapes: &[Vec<usize>]| {
            let shapes: Vec<Shape> = shapes.iter().map(|dims| dims.clone().into()).collect();
            catch_unwind(AssertUnwindSafe(|| check(&shapes))).is_ok()
        };
        assert!(taken(shapes));
        for tensor in 0..shapes.len() {
            for axis in 0..shapes[tensor].len() {
                for change in [1, -1] {
                    let mut other = shapes.to_vec();
                    other[tensor][axis] = other[tensor][axis].strict_add_signed(change);
                    let is_free = free.contains(&[tensor, axis]);
                    assert_eq!(taken(&other), is_free, "{tensor} {axis} {other:?}");
                }
            }
        }
    }

    #[test]
    fn searches_of_shapes_that_do_not_fit_are_refused() {
        let shape = TokenTreeShape::new(5, 2, Layout::LeftFilled);
        let options = TreeSearchOptions {
            ghosts: GhostNodes::Masked,
            ..TreeSearchOptions::new(shape)
        };
        let (nodes, decisions) = (shape.nodes(), shape.decisions());
        let tensors = [
            vec![2, 3, 4, 6],
            vec![2, nodes, 4, 6],
            vec![2, nodes, 4, 7],
            vec![2],
            vec![2, 3, decisions + 1],
        ];
        // Without a gradient the width of values is theirs alone.
        refused(&tensors, &[[2, 3]], |shapes| {
            let axes = tree_search([0, 1, 2, 3].map(|at| &shapes[at]), &options);
            axes.expect("path", "batch, queries, decisions + 1", &shapes[4]);
        });
    }

    #[test]
    fn fewer_draws_than_decisions_are_refused() {
        let shape = TokenTreeShape::new(9, 2, Layout::LeftFilled);
        let options = TreeSearchOptions::new(shape);
        let node = Shape::from([2, shape.nodes(), 4, 6]);
        let inputs = [&Shape::from([2, 3, 4, 6]), &node, &node, &Shape::from([2])];
        let axes = tree_search(inputs, &options);
        let taken = |dims: [usize; 3]| {
            catch_unwind(AssertUnwindSafe(|| draws(&axes, &dims.into(), &options))).is_ok()
        };
        let decisions = shape.decisions();
        assert!(taken([2, 3, decisions]) && taken([2, 3, decisions + 1]));
        for dims in [[2, 3, decisions - 1], [1, 3, decisions], [2, 4, decisions]] {
            assert!(!taken(dims), "{dims:?}");
        }
    }

    #[test]
    fn dense_attention_of_shapes_that_do_not_fit_is_refused() {
        let options = DenseAttentionOptions {
            first_key: 2,
            scale: None,
        };
        let tensors = [
            vec![2, 3, 4, 6],
            vec![2, 5, 4, 6],
            vec![2, 5, 4, 7],
            vec![2, 3],
            vec![2, 3, 4, 7],
            vec![2, 3, 4],
            vec![2, 3, 4, 7],
        ];
        refused(&tensors, &[], |shapes| {
            let inputs = [0, 1, 2].map(|at| &shapes[at]);
            let axes = dense_attention(inputs, Some(&shapes[3]), &options);
            attended(&axes, [4, 5, 6].map(|at| &shapes[at]));
        });
    }

    #[test]
    #[should_panic(expected = "dense_attention: first_key: expected at most 5, got 6")]
    fn a_first_key_past_the_last_is_refused() {
        let options = DenseAttentionOptions {
            first_key: 6,
            scale: None,
        };
        let rows = Shape::from([2, 5, 4, 6]);
        dense_attention([&rows; 3], None, &options);
    }

    #[test]
    fn attention_within_leaves_of_shapes_that_do_not_fit_is_refused() {
        let tensors = [
            vec![2, 3, 4, 6],
            vec![2, 5, 2, 6],
            vec![2, 5, 2, 7],
            vec![2, 3, 4],
            vec![2, 5, 2],
            vec![2, 3, 4, 7],
            vec![2, 3, 4],
            vec![2, 3, 4, 7],
        ];
        refused(&tensors, &[], |shapes| {
            let axes = leaf_attention("leaf_attention", [0, 1, 2, 3].map(|at| &shapes[at]));
            axes.expect("key_leaf", "batch, keys, kv_heads", &shapes[4]);
            attended(&axes, [5, 6, 7].map(|at| &shapes[at]));
        });
    }
}
