//! The walk of each query from root to leaf, and attention to what it meets.

use super::check::axes;
use crate::ops::{GhostNodes, RoutePrimitive, TreeAttentionOps, TreeSearchOptions};
use arbora_tree::Layout;
use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

/// How the child to descend into is chosen.
#[derive(Clone, Debug)]
pub enum Route {
    /// The most probable child; the leftmost of equals.
    Greedy,
    /// Drawn from the policy with the given uniforms in `[0, 1)`, `[batch, queries, draws]`
    /// with `draws` at least the number of decisions. Entry `h - 1` chooses the node at height `h`
    /// above the leaves, so that padding a batch to a higher tree changes no draw.
    Sampled(Tensor<3>),
    /// Drawn from all real children alike, with uniforms as for `Sampled`: the control for a
    /// learned policy. The log-probability is that of the uniform choice.
    Uniform(Tensor<3>),
    /// The given path, as [`TreeSearch::path`] returns it. A step that leads to no real child of
    /// the node before it is moved to the nearest real one.
    Given(Tensor<3, Int>),
}

/// What a tree search returns.
#[derive(Clone, Debug)]
pub struct TreeSearch {
    /// Attention over the selected nodes, `[batch, queries, heads, value_dim]`; zero for an example
    /// without tokens.
    pub context: Tensor<4>,
    /// Index of the node visited at each height, `[batch, queries, decisions + 1]`: the root (always
    /// 0) first, the node whose leaves are taken last.
    pub path: Tensor<3, Int>,
    /// Log-probability of the decisions made, summed, `[batch, queries]`. A forced step (fewer than
    /// two real children) counts 0. A step of a given path whose probability underflows counts the
    /// logarithm of the smallest positive single-precision number, about -87, without gradient.
    pub log_prob: Tensor<2>,
    /// Entropy of the policy in nats, the mean over heads and real decisions, `[batch, queries]`; 0
    /// where no decision was made.
    pub entropy: Tensor<2>,
    /// Real decisions, `[batch, queries]`.
    pub decisions: Tensor<2, Int>,
    /// Size of the selected set S, `[batch, queries]`.
    pub selected: Tensor<2, Int>,
    /// Nodes whose keys were read, the chosen ones included, `[batch, queries]`.
    pub read: Tensor<2, Int>,
}

/// Searches token trees from the root to the leaves and attends to what the search selects.
///
/// At each node with at least two real children the policy picks the one to descend into:
///
/// `π(a) = mean over heads of softmax_children(q · k / √d / τ)`
///
/// The children not picked, and all leaves under the last node, form the selected set S. The context
/// is softmax attention over S, per head, with the same logits: keys and values are read once and
/// nothing is projected. A query reads `O(b log N)` nodes.
///
/// Source: Tree Cross Attention (arXiv 2309.17388), §3.1 and Algorithm 1. The published policy also
/// is the final cross attention; there a second pass recomputes the logits.
///
/// # Shapes
/// - query: `[batch, queries, heads, head_dim]`
/// - key: `[batch, nodes, heads, head_dim]`, nodes in the level order of `options.shape`
/// - value: `[batch, nodes, heads, value_dim]`
/// - lengths: `[batch]`, real tokens per example; the nodes over none of them are ghosts, which are
///   never chosen. 0 gives a zero context.
///
/// # Panics
/// If an axis disagrees with the others or with `options.shape`, if the temperature is not positive,
/// or if published ghosts are asked for with another layout.
#[track_caller]
pub fn tree_search(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    lengths: Tensor<1, Int>,
    route: Route,
    options: TreeSearchOptions,
) -> TreeSearch {
    check(&query, &key, &value, &lengths, &route, &options);
    let route = match route {
        Route::Greedy => RoutePrimitive::Greedy,
        Route::Sampled(uniforms) => RoutePrimitive::Sampled(uniforms.into_dispatch()),
        Route::Uniform(uniforms) => RoutePrimitive::Uniform(uniforms.into_dispatch()),
        Route::Given(path) => RoutePrimitive::Given(path.into_dispatch()),
    };
    let found = <Dispatch as TreeAttentionOps>::tree_search(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        lengths.into_dispatch(),
        route,
        options,
    );
    // Parts of the first axis lie together, so that nothing is copied where a backend has views.
    let counts = Tensor::<3, Int>::from_dispatch(found.counts);
    let count = |at: usize| counts.clone().narrow(0, at, 1).squeeze_dim::<2>(0);
    let policy = Tensor::<3>::from_dispatch(found.policy);
    let number = |at: usize| policy.clone().narrow(0, at, 1).squeeze_dim::<2>(0);
    TreeSearch {
        context: Tensor::from_dispatch(found.context),
        path: Tensor::from_dispatch(found.path),
        log_prob: number(0),
        entropy: number(1),
        decisions: count(0),
        selected: count(1),
        read: count(2),
    }
}

#[track_caller]
fn check(
    query: &Tensor<4>,
    key: &Tensor<4>,
    value: &Tensor<4>,
    lengths: &Tensor<1, Int>,
    route: &Route,
    options: &TreeSearchOptions,
) {
    let [batch, queries, heads, head_dim] = query.dims();
    let value_dim = value.dims()[3];
    let (nodes, decisions) = (options.shape.nodes(), options.shape.decisions());
    let axes = axes!(
        "tree_search",
        batch,
        queries,
        nodes,
        heads,
        head_dim,
        value_dim
    )
    .with("decisions + 1", decisions + 1);
    axes.expect("key", "batch, nodes, heads, head_dim", &key.dims());
    axes.expect("value", "batch, nodes, heads, value_dim", &value.dims());
    axes.expect("lengths", "batch", &lengths.dims());
    match route {
        Route::Greedy => {}
        Route::Sampled(uniforms) | Route::Uniform(uniforms) => {
            let draws = uniforms.dims()[2];
            let axes = axes.with("draws", draws);
            axes.expect("uniforms", "batch, queries, draws", &uniforms.dims());
            assert!(
                draws >= decisions,
                "tree_search: axis 2 of uniforms: expected at least {decisions}, got {draws}"
            );
        }
        Route::Given(path) => axes.expect("path", "batch, queries, decisions + 1", &path.dims()),
    }
    assert!(
        options.temperature > 0.0,
        "tree_search: temperature: expected above 0, got {}",
        options.temperature
    );
    assert!(
        options.ghosts == GhostNodes::Masked || options.shape.layout() == Layout::Published,
        "tree_search: published ghosts: expected layout Published, got {:?}",
        options.shape.layout()
    );
}
