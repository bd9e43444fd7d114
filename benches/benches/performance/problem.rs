//! Inputs of searches.

use crate::numbers::Cost;
use arbora_attention::functions::tree_search;
use arbora_attention::ops::TreeSearchOptions;
use arbora_attention::{Route, SearchOutput};
use arbora_rl::seed::{mix, spread};
use arbora_tree::{Layout, TokenTreeShape};
use burn::tensor::{Device, Int, Tensor, TensorData};

/// Token trees of full length with a branching factor of 2, and queries.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub batch: usize,
    pub tokens: usize,
    /// Per tree.
    pub queries: usize,
    pub heads: usize,
    pub head_dim: usize,
}

/// Where the queries of a problem go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routes {
    /// Greedy by the policy, with random keys and a random vector per query.
    Learned,
    /// Greedy by the policy, with one random vector for all queries of a tree.
    OneLeaf,
    /// A uniformly random child at each node.
    Uniform,
}

impl Routes {
    pub const ALL: [Self; 3] = [Self::Learned, Self::OneLeaf, Self::Uniform];

    pub fn name(self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::OneLeaf => "all to one leaf",
            Self::Uniform => "uniformly random",
        }
    }
}

/// The tensors of a search on one device.
#[derive(Clone, Debug)]
pub struct Inputs {
    pub query: Tensor<4>, // [batch, queries, heads, head_dim]
    pub key: Tensor<4>,   // [batch, nodes, heads, head_dim]
    pub value: Tensor<4>, // [batch, nodes, heads, head_dim]
    pub lengths: Tensor<1, Int>,
    pub route: Route,
    pub options: TreeSearchOptions,
}

impl Problem {
    pub fn shape(&self) -> TokenTreeShape {
        TokenTreeShape::new(self.tokens, 2, Layout::LeftFilled)
    }

    /// Keys and values of the trees; the same numbers on every device.
    pub fn index(&self, device: &Device) -> [Tensor<4>; 2] {
        let dims = [self.batch, self.shape().nodes(), self.heads, self.head_dim];
        [random(dims, 2, device), random(dims, 3, device)]
    }

    pub fn inputs(&self, routes: Routes, index: [Tensor<4>; 2], device: &Device) -> Inputs {
        let Self {
            batch,
            tokens,
            queries,
            heads,
            head_dim,
        } = *self;
        let shape = self.shape();
        let query = match routes {
            Routes::OneLeaf => {
                random([batch, 1, heads, head_dim], 1, device).repeat_dim(1, queries)
            }
            _ => random([batch, queries, heads, head_dim], 1, device),
        };
        let route = match routes {
            Routes::Uniform => {
                Route::Uniform(uniform([batch, queries, 1, draws(&shape)], 4, device))
            }
            _ => Route::Greedy,
        };
        let [key, value] = index;
        Inputs {
            query,
            key,
            value,
            lengths: Tensor::full([batch], tokens as i64, device),
            route,
            options: TreeSearchOptions::new(shape),
        }
    }

    /// Words for tables.
    pub fn text(&self) -> String {
        let Self {
            batch,
            tokens,
            queries,
            heads,
            head_dim,
        } = self;
        let trees = if *batch == 1 { "tree" } else { "trees" };
        format!("{batch} {trees} of {tokens} tokens, {queries} queries each, {heads} × {head_dim}")
    }
}

/// Uniform numbers per query: at least one, since some backends refuse empty tensors.
pub fn draws(shape: &TokenTreeShape) -> usize {
    shape.decisions().max(1)
}

impl Inputs {
    pub fn search(&self) -> SearchOutput<4> {
        tree_search(
            self.query.clone(),
            self.key.clone(),
            self.value.clone(),
            self.lengths.clone(),
            self.route.clone(),
            self.options,
        )
    }

    /// What the search at least does, from the paths that it takes.
    pub fn cost(&self) -> Cost {
        let found = self.search();
        let sum = |count: Tensor<2, Int>| -> f64 {
            let count = count.into_data();
            count.iter::<i64>().map(|count| count as f64).sum()
        };
        let [batch, queries, heads, head_dim] = self.query.dims();
        let shape = &self.options.shape;
        let decisions = shape.decisions();
        let paths: Vec<usize> = found
            .path
            .into_data()
            .iter::<i64>()
            .map(|i| i as usize)
            .collect();
        let mut touched = 0;
        for paths in paths.chunks(queries * (decisions + 1)) {
            let mut seen = vec![false; shape.nodes()];
            for path in paths.chunks(decisions + 1) {
                for (level, node) in path.iter().enumerate() {
                    // The path names nodes from the root down to height 1; what is read are their
                    // children.
                    let height = shape.height() - level;
                    let first = shape.offset(height - 1);
                    for child in shape.children(height, *node) {
                        touched += usize::from(!seen[first + child]);
                        seen[first + child] = true;
                    }
                }
            }
        }
        let width = (heads * head_dim) as f64;
        let rows = (batch * queries) as f64;
        Cost {
            flops: 2.0 * width * (sum(found.read) + sum(found.selected)),
            // Queries in, contexts out, the nodes touched once; path, log-probability, entropy and
            // three counts per query.
            bytes: 4.0 * (2.0 * width * rows + 2.0 * width * touched as f64)
                + 4.0 * rows * (decisions + 6) as f64,
        }
    }
}

/// Independent numbers of mean 0 and variance 1, the same on every device.
pub fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let spread = 3.0_f32.sqrt();
    numbers(shape, seed, |unit| (2.0 * unit - 1.0) * spread, device)
}

/// Independent draws from U(0, 1), 1 excluded.
pub fn uniform<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    numbers(shape, seed, |unit| unit, device)
}

/// SplitMix64: an index of 2^21 nodes has more numbers than a better generator is worth.
fn numbers<const D: usize>(
    shape: [usize; D],
    seed: u64,
    from_unit: impl Fn(f32) -> f32,
    device: &Device,
) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64)
        .map(|index| mix(spread(seed << 40, index + 1)))
        .map(|mixed| from_unit((mixed >> 40) as f32 / (1_u32 << 24) as f32))
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}
