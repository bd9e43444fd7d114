//! The walk of each query from root to leaf, and attention to what it meets.

use super::several_paths::SeveralPaths;
use crate::ops::{
    GhostNodes, RoutePrimitive, TreeAttentionOps, TreeSearchInputs, TreeSearchOptions, shapes,
};
use arbora_tree::Layout;
use burn::backend::Dispatch;
use burn::tensor::kind::Basic;
use burn::tensor::{Int, Tensor};

/// How a search chooses its paths, one or several per query.
#[derive(Clone, Debug, Default)]
pub enum Route {
    /// One path, by the most probable child at each node, the leftmost of equals: the published search.
    #[default]
    Greedy,
    /// Drawn from the policy with the given uniforms in `[0, 1)`, `[batch, queries, paths, draws]`
    /// with `draws` at least the number of decisions. Entry `h - 1` chooses the node at height `h`
    /// above the leaves, so that padding a batch to a higher tree changes no draw. Two paths of a query
    /// may be the same.
    Sampled(Tensor<4>),
    /// Drawn from all real children alike, with uniforms as for `Sampled`: the control for a
    /// learned policy. The log-probability is that of the uniform choice.
    Uniform(Tensor<4>),
    /// The given paths, as [`SearchOutput::path`] returns them. A step that leads to no real child of
    /// the node before it is moved to the nearest real one.
    Given(Tensor<4, Int>),
    /// The paths that are left after keeping, at each height, so many of the most probable partial paths, at
    /// least 1. Of equally probable ones the one further left is kept. Of several paths no gradient flows through
    /// the log-probabilities; one path is that of the greedy search.
    Beam(usize),
}

impl Route {
    /// Paths per query. A beam has fewer where the tree has fewer last nodes.
    pub fn paths(&self) -> usize {
        match self {
            Self::Greedy => 1,
            Self::Sampled(uniforms) | Self::Uniform(uniforms) => uniforms.dims()[2],
            Self::Given(path) => path.dims()[2],
            Self::Beam(width) => *width,
        }
    }

    /// Every path as that of a query of its own, `[batch, queries · paths, 1, …]`, the paths of a query side by
    /// side. Greedy search and beams are left as they are.
    #[must_use]
    pub fn apart(self) -> Self {
        match self {
            Self::Sampled(uniforms) => Self::Sampled(each_apart(uniforms)),
            Self::Uniform(uniforms) => Self::Uniform(each_apart(uniforms)),
            Self::Given(path) => Self::Given(each_apart(path)),
            Self::Greedy | Self::Beam(_) => self,
        }
    }
}

fn each_apart<K: Basic>(paths: Tensor<4, K>) -> Tensor<4, K> {
    let [batch, queries, count, steps] = paths.dims();
    paths.reshape([batch, queries * count, 1, steps])
}

/// What a tree search returns.
#[derive(Clone, Debug)]
pub struct SearchOutput<const D: usize = 3> {
    /// Of [`tree_search`]: attention over the selected nodes, `[batch, queries, heads, value_dim]`, zero for an
    /// example without tokens. Of a layer: its output `z`, `[batch, queries, d_model]`.
    pub context: Tensor<D>,
    /// Index of the node visited at each height, `[batch, queries, paths, decisions + 1]`: the root
    /// (always 0) first, the node whose leaves are taken last. Samples and given paths are in their order, the
    /// paths of a beam with the most probable first.
    pub path: Tensor<4, Int>,
    /// Log-probability of the decisions of each path, summed, `[batch, queries, paths]`. A forced step (fewer
    /// than two real children) counts 0. A step of a given path whose probability underflows counts the
    /// logarithm of the smallest positive single-precision number, about -87, without gradient.
    pub log_prob: Tensor<3>,
    /// Entropy of the policy in nats, the mean over heads and real decisions of each path, `[batch, queries,
    /// paths]`; 0 where no decision was made. `None` for a beam of several paths, which does not know it.
    pub entropy: Option<Tensor<3>>,
    /// Real decisions of each path, `[batch, queries, paths]`.
    pub decisions: Tensor<3, Int>,
    /// Different paths, `[batch, queries]`. Where it is smaller than the axis, paths coincide, or
    /// the tree of an example has too few nodes for a beam, which then repeats its first path behind
    /// the different ones.
    pub distinct: Tensor<2, Int>,
    /// Size of the selected set S, `[batch, queries]`.
    pub selected: Tensor<2, Int>,
    /// Different nodes whose keys were read, the chosen ones included, `[batch, queries]`; of a beam also the
    /// children of paths that it gave up.
    pub read: Tensor<2, Int>,
}

impl<const D: usize> SearchOutput<D> {
    /// The same with what is made of its context.
    pub(crate) fn map_context<const E: usize>(
        self,
        function: impl FnOnce(Tensor<D>) -> Tensor<E>,
    ) -> SearchOutput<E> {
        SearchOutput {
            context: function(self.context),
            path: self.path,
            log_prob: self.log_prob,
            entropy: self.entropy,
            decisions: self.decisions,
            distinct: self.distinct,
            selected: self.selected,
            read: self.read,
        }
    }
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
/// Along several paths a query attends once, to what they select together: the siblings of nodes on a path that
/// are themselves on no path, and all leaves under the last nodes. That set lies over every token exactly
/// once, whatever the paths, so more paths show more of the tokens at full resolution: a beam as wide as
/// the tree has last nodes gives dense attention over the leaves. Several paths are found and attended to in
/// separate passes, with memory for `paths · (k b + P)` rows per query, where k decisions lead to P
/// leaves. Published ghosts are honoured: a ghost that is a sibling of a node on a path is attended to
/// once, as a zero vector.
///
/// Source: Tree Cross Attention (arXiv 2309.17388), §3.1 and Algorithm 1. The published policy also
/// is the final cross attention; there a second pass recomputes the logits. Several paths are an extension of it.
///
/// # Shapes
/// - query: `[batch, queries, heads, head_dim]`
/// - key: `[batch, nodes, heads, head_dim]`, nodes in the level order of `options.shape`
/// - value: `[batch, nodes, heads, value_dim]`
/// - lengths: `[batch]`, real tokens per example; the nodes over none of them are ghosts, which are
///   never chosen. 0 gives a zero context.
///
/// # Panics
/// If an axis disagrees with the others or with `options.shape`, if there is no path, if the temperature is not
/// positive and finite, or if published ghosts are asked for with another layout.
#[track_caller]
pub fn tree_search(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    lengths: Tensor<1, Int>,
    route: Route,
    options: TreeSearchOptions,
) -> SearchOutput<4> {
    check(&query, &key, &value, &lengths, &route, &options);
    let shape = &options.shape;
    let last_nodes = shape.width(shape.height().min(1));
    let (paths, route) = match route {
        Route::Beam(width) if width.min(last_nodes) == 1 => (1, Route::Greedy),
        Route::Beam(width) => (width.min(last_nodes), route),
        _ => (route.paths(), route),
    };
    if paths == 1 {
        return one_path_each(query, key, value, lengths, route, options);
    }
    let several = SeveralPaths::new(
        query.clone(),
        key.clone(),
        value.clone(),
        lengths.clone(),
        options,
    );
    if let Route::Beam(_) = route {
        let beam = several.beam(paths);
        let frontier = several.attend(beam.ends.clone());
        let path = several.paths(beam.ends);
        return SearchOutput {
            context: frontier.context,
            decisions: several.decisions(&path),
            path,
            log_prob: beam.log_prob,
            entropy: None,
            distinct: frontier.distinct,
            selected: frontier.selected,
            read: beam.read + frontier.leaves,
        };
    }
    let [batch, queries, heads, head_dim] = query.dims();
    let steps = shape.decisions() + 1;
    let each = query
        .reshape([batch, queries, 1, heads * head_dim])
        .repeat_dim(2, paths)
        .reshape([batch, queries * paths, heads, head_dim]);
    let found = one_path_each(each, key, value, lengths, route.apart(), options);
    let path = found.path.reshape([batch, queries, paths, steps]);
    let last = path.clone().narrow(3, steps - 1, 1);
    let frontier = several.attend(last.squeeze_dim(3));
    let by_query = [batch, queries, paths];
    SearchOutput {
        context: frontier.context,
        path,
        log_prob: found.log_prob.reshape(by_query),
        entropy: found.entropy.map(|entropy| entropy.reshape(by_query)),
        decisions: found.decisions.reshape(by_query),
        distinct: frontier.distinct,
        selected: frontier.selected,
        read: frontier.siblings + frontier.leaves,
    }
}

/// A search in one pass, along one path per query.
fn one_path_each(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    lengths: Tensor<1, Int>,
    route: Route,
    options: TreeSearchOptions,
) -> SearchOutput<4> {
    let route = match route {
        Route::Greedy | Route::Beam(_) => RoutePrimitive::Greedy,
        Route::Sampled(uniforms) => {
            RoutePrimitive::Sampled(uniforms.squeeze_dim::<3>(2).into_dispatch())
        }
        Route::Uniform(uniforms) => {
            RoutePrimitive::Uniform(uniforms.squeeze_dim::<3>(2).into_dispatch())
        }
        Route::Given(path) => RoutePrimitive::Given(path.squeeze_dim::<3>(2).into_dispatch()),
    };
    let inputs = TreeSearchInputs {
        query: query.into_dispatch(),
        key: key.into_dispatch(),
        value: value.into_dispatch(),
        lengths: lengths.into_dispatch(),
    };
    let found = <Dispatch as TreeAttentionOps>::tree_search(inputs, route, options);
    // Parts of the first axis lie together, so that nothing is copied where a backend has views.
    let counts = Tensor::<3, Int>::from_dispatch(found.counts);
    let count = |at: usize| counts.clone().narrow(0, at, 1).squeeze_dim::<2>(0);
    let policy = Tensor::<3>::from_dispatch(found.policy);
    let number = |at: usize| policy.clone().narrow(0, at, 1).squeeze_dim::<2>(0);
    let selected = count(1);
    SearchOutput {
        context: Tensor::from_dispatch(found.context),
        path: Tensor::<3, Int>::from_dispatch(found.path).unsqueeze_dim(2),
        log_prob: number(0).unsqueeze_dim(2),
        entropy: Some(number(1).unsqueeze_dim(2)),
        decisions: count(0).unsqueeze_dim(2),
        distinct: selected.ones_like(),
        selected,
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
    let shapes = [query.shape(), key.shape(), value.shape(), lengths.shape()];
    let (decisions, paths) = (options.shape.decisions(), route.paths());
    let axes = shapes::tree_search(shapes.each_ref(), options).with("paths", paths);
    assert!(paths > 0, "tree_search: paths: expected at least 1, got 0");
    match route {
        Route::Greedy | Route::Beam(_) => {}
        Route::Sampled(uniforms) | Route::Uniform(uniforms) => {
            let draws = uniforms.dims()[3];
            let axes = axes.with("draws", draws);
            let dims = uniforms.dims();
            axes.expect("uniforms", "batch, queries, paths, draws", &dims);
            assert!(
                draws >= decisions,
                "tree_search: axis 3 of uniforms: expected at least {decisions}, got {draws}"
            );
        }
        Route::Given(path) => {
            let dims = path.dims();
            axes.expect("path", "batch, queries, paths, decisions + 1", &dims);
        }
    }
    let temperature = options.temperature;
    assert!(
        temperature.is_finite() && temperature > 0.0,
        "tree_search: temperature: expected finite and above 0, got {temperature}"
    );
    assert!(
        options.ghosts == GhostNodes::Masked || options.shape.layout() == Layout::Published,
        "tree_search: published ghosts: expected layout Published, got {:?}",
        options.shape.layout()
    );
}
