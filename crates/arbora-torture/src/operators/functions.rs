//! Functions that are composed of operators of the backend, beside their definitions on the host.

use super::{
    Float, Input, Kind, Numbers, Operator, Output, Place, Scaling, drawn, integers, mask, product,
    width,
};
use anyhow::{Result, bail, ensure};
use arbora::attention::EmptyNode;
use arbora::attention::functions::{TreeCoarseOptions, prefix_attention, tree_coarse};
use arbora::tree::{CompleteTree, NO_LEAF, RoutingTreeConfig};
use burn::tensor::{Device, Tensor};
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

/// What a function comes to on the host.
fn found(values: Vec<f64>, dims: [usize; 4]) -> Vec<Numbers> {
    let values = values.into_iter().map(|value| value as f32).collect();
    vec![Numbers {
        values,
        dims: dims.into(),
    }]
}

/// Mostly a few, sometimes more than are in one chunk of pairs or of causal means.
fn count_of_keys(rng: &mut ChaCha8Rng) -> usize {
    match rng.random_range(0..8) {
        0 => rng.random_range(60..140),
        _ => rng.random_range(1..20),
    }
}

#[derive(Debug)]
pub struct Prefix {
    batch: usize,
    queries: usize,
    keys: usize,
    kv_heads: usize,
    group: usize,
    widths: [usize; 2],
}

impl Operator for Prefix {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let keys = count_of_keys(rng);
        Self {
            batch: rng.random_range(1..4),
            queries: rng.random_range(1..=keys),
            keys,
            kv_heads: rng.random_range(1..3),
            group: rng.random_range(1..4),
            widths: [width(rng), width(rng)],
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let [features, value_dim] = self.widths;
        let rows = |count, heads, width| [self.batch, count, heads, width];
        let (group, kv_heads) = (self.group, self.kv_heads);
        let query = rows(self.queries, kv_heads * group, features);
        let [key, value] = [features, value_dim].map(|width| rows(self.keys, kv_heads, width));
        vec![
            Input::new(query, 10, Scaling::To).by_heads(group),
            Input::new(key, 10, Scaling::Fro).by_heads(1),
            Input::new(value, 10, Scaling::Free).by_heads(1),
        ]
    }

    fn outputs(&self, scales: &[f64]) -> Vec<Output> {
        vec![Output::new("context", scales[2]).by_heads(self.group)]
    }

    fn kernel(&self, inputs: Vec<Float>, _: &Device) -> Vec<Numbers> {
        let [query, key, value] =
            [0, 1, 2].map(|at| Tensor::<4>::from_dispatch(inputs[at].clone()));
        vec![prefix_attention(query, key, value).into_data().into()]
    }

    fn reference(&self, inputs: &[Numbers], _: &mut Place) -> Vec<Numbers> {
        let [query, key, value] = [&inputs[0], &inputs[1], &inputs[2]];
        let (heads, width) = (self.kv_heads * self.group, self.widths[1]);
        let mut context = Vec::new();
        for batch in 0..self.batch {
            for at in 0..self.queries {
                for head in 0..heads {
                    let mut sum = vec![0.0; width];
                    for seen in 0..=at + self.keys - self.queries {
                        let own = [batch, seen, head / self.group];
                        let weight = product(query.row([batch, at, head]), key.row(own));
                        for (sum, value) in sum.iter_mut().zip(value.row(own)) {
                            *sum += weight * f64::from(*value);
                        }
                    }
                    context.extend(sum);
                }
            }
        }
        found(context, [self.batch, self.queries, heads, width])
    }
}

#[derive(Debug)]
pub struct Route {
    batch: usize,
    tokens: usize,
    heads: usize,
    trees: usize,
    dim: usize,
    branching: Vec<usize>,
    normalize: bool,
    mask: Option<Vec<bool>>,
}

impl Route {
    fn shape(&self) -> CompleteTree {
        CompleteTree::new(self.branching.clone())
    }

    /// Linear functions of a level: one of a binary node, one of each child of others.
    fn outputs(&self, depth: usize) -> usize {
        let nodes = self.shape().width(depth);
        match self.branching[depth] {
            2 => nodes,
            more => nodes * more,
        }
    }
}

impl Operator for Route {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let (batch, tokens) = (rng.random_range(1..4), rng.random_range(1..12));
        let (trees, group) = (rng.random_range(1..3), rng.random_range(1..3));
        let height = rng.random_range(0..4);
        let masked = [0.2, 1.0][rng.random_range(0..2)];
        let is_masked = rng.random::<bool>();
        Self {
            batch,
            tokens,
            heads: trees * group,
            trees,
            dim: width(rng),
            branching: drawn(height, || rng.random_range(2..5)),
            normalize: rng.random(),
            mask: is_masked.then(|| drawn(batch * tokens, || rng.random_bool(masked))),
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let dims = [self.batch, self.tokens, self.heads, self.dim];
        let mut inputs = vec![Input::new(dims, 15, Scaling::None)];
        for depth in 0..self.branching.len() {
            let outputs = self.outputs(depth);
            let weight = Input::new([self.trees, outputs, self.dim], 10, Scaling::None);
            let bias = Input::new([self.trees, outputs], 10, Scaling::None);
            inputs.extend([weight.shared(), bias.shared()]);
        }
        inputs
    }

    fn outputs(&self, _: &[f64]) -> Vec<Output> {
        vec![Output::new("path", 0.0), Output::new("margins", 1.0)]
    }

    fn kernel(&self, inputs: Vec<Float>, device: &Device) -> Vec<Numbers> {
        let mut tree = RoutingTreeConfig::new(self.dim, self.branching.clone())
            .with_trees(self.trees)
            .with_normalize(self.normalize)
            .init(device);
        for (depth, parameters) in inputs[1..].chunks(2).enumerate() {
            let weight = Tensor::<3>::from_dispatch(parameters[0].clone());
            let bias = Tensor::<2>::from_dispatch(parameters[1].clone());
            tree = tree.with_parameters(depth, weight, bias);
        }
        let mask = mask(self.mask.as_ref(), [self.batch, self.tokens], device);
        let routing = tree.route(Tensor::<4>::from_dispatch(inputs[0].clone()), mask);
        [routing.path.into_data(), routing.margins.into_data()]
            .map(Numbers::from)
            .into()
    }

    /// There is nothing to compare: `check` follows the path.
    fn reference(&self, _: &[Numbers], _: &mut Place) -> Vec<Numbers> {
        Vec::new()
    }

    fn check(&self, inputs: &[Numbers], found: &[Output], kind: Kind) -> Result<()> {
        let (shape, height) = (self.shape(), self.branching.len());
        for (at, path) in found[0].numbers.values.chunks(height + 1).enumerate() {
            let (token, head) = (at / self.heads, at % self.heads);
            if self.mask.as_ref().is_some_and(|mask| mask[token]) {
                let is_absent = path.iter().all(|node| *node == NO_LEAF as f32);
                ensure!(is_absent, "token {token} is masked and has a path");
                continue;
            }
            let tree = head / (self.heads / self.trees);
            let x = &inputs[0].values[at * self.dim..][..self.dim];
            let square = product(x, x) / self.dim as f64;
            let size = if self.normalize && square > 0.0 {
                square.sqrt()
            } else {
                1.0
            };
            for depth in 0..height {
                let (branching, node) = (self.branching[depth], path[depth] as usize);
                let children = node * branching..(node + 1) * branching;
                let next = path[depth + 1];
                let is_path = path[depth] >= 0.0
                    && next >= 0.0
                    && node < shape.width(depth)
                    && children.contains(&(next as usize));
                ensure!(is_path, "path {path:?} does not follow the tree");
                if !kind.is_compared() {
                    continue;
                }
                let (weight, bias) = (&inputs[1 + 2 * depth], &inputs[2 + 2 * depth]);
                let function = |output: usize| {
                    let at = tree * self.outputs(depth) + output;
                    let weight = &weight.values[at * self.dim..][..self.dim];
                    product(weight, x) / size + f64::from(bias.values[at])
                };
                let logits: Vec<f64> = match branching {
                    2 => vec![0.0, function(node)],
                    more => (0..more)
                        .map(|child| function(node * more + child))
                        .collect(),
                };
                let most = logits.iter().fold(f64::MIN, |most, one| most.max(*one));
                let taken = logits[next as usize - children.start];
                let margin = 1e-4 * (1.0 + most.abs() + self.dim as f64);
                if taken < most - margin {
                    bail!(
                        "path {path:?} takes a child of {taken} at depth {depth} where another has {most}"
                    );
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
pub struct Coarse {
    batch: usize,
    queries: usize,
    keys: usize,
    kv_heads: usize,
    group: usize,
    value_dim: usize,
    branching: Vec<usize>,
    own_alpha: bool,
    options: TreeCoarseOptions,
    query_leaf: Vec<i64>,
    key_leaf: Vec<i64>,
}

impl Coarse {
    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }
}

impl Operator for Coarse {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let keys = count_of_keys(rng);
        let (batch, queries) = (rng.random_range(1..4), rng.random_range(1..=keys));
        let (kv_heads, group) = (rng.random_range(1..3), rng.random_range(1..3));
        let height = rng.random_range(0..4);
        let branching: Vec<usize> = drawn(height, || rng.random_range(2..4));
        let leaves = branching.iter().product::<usize>() as i64;
        let absent = [0.0, 0.2, 1.0][rng.random_range(0..3)];
        let mut leaf = |count| {
            drawn(count, || {
                if rng.random_bool(absent) {
                    NO_LEAF
                } else {
                    rng.random_range(0..leaves)
                }
            })
        };
        let [query_leaf, key_leaf] = [
            leaf(batch * queries * kv_heads * group),
            leaf(batch * keys * kv_heads),
        ];
        Self {
            batch,
            queries,
            keys,
            kv_heads,
            group,
            value_dim: width(rng),
            branching,
            own_alpha: rng.random(),
            options: TreeCoarseOptions {
                causal: rng.random(),
                empty_node: [EmptyNode::CarryParent, EmptyNode::Drop][rng.random_range(0..2)],
            },
            query_leaf,
            key_leaf,
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let value = [self.batch, self.keys, self.kv_heads, self.value_dim];
        let alpha = if self.own_alpha { self.heads() } else { 1 };
        let alpha = Input::new([alpha, self.branching.len() + 1], 5, Scaling::None);
        let value = Input::new(value, 25, Scaling::Free);
        vec![value.by_heads(1), alpha.shared()]
    }

    fn outputs(&self, scales: &[f64]) -> Vec<Output> {
        vec![Output::new("context", scales[0]).by_heads(self.group)]
    }

    fn kernel(&self, inputs: Vec<Float>, device: &Device) -> Vec<Numbers> {
        let of_queries = [self.batch, self.queries, self.heads()];
        let of_keys = [self.batch, self.keys, self.kv_heads];
        let context = tree_coarse(
            integers(&self.query_leaf, of_queries, device),
            integers(&self.key_leaf, of_keys, device),
            Tensor::<4>::from_dispatch(inputs[0].clone()),
            Tensor::<2>::from_dispatch(inputs[1].clone()),
            &CompleteTree::new(self.branching.clone()),
            self.options,
        );
        vec![context.into_data().into()]
    }

    fn reference(&self, inputs: &[Numbers], _: &mut Place) -> Vec<Numbers> {
        let tree = CompleteTree::new(self.branching.clone());
        let (heads, width) = (self.heads(), self.value_dim);
        let mut context = Vec::new();
        for (at, own) in self.query_leaf.iter().enumerate() {
            let (token, head) = (at / heads, at % heads);
            let (batch, query) = (token / self.queries, token % self.queries);
            let kv_head = head / self.group;
            let last = if self.options.causal {
                query + self.keys - self.queries
            } else {
                self.keys - 1
            };
            let leaf = |key| self.key_leaf[(batch * self.keys + key) * self.kv_heads + kv_head];
            let (mut sum, mut mean) = (vec![0.0; width], vec![0.0; width]);
            for depth in 0..=tree.height() {
                let span = (tree.leaves() / tree.width(depth)) as i64;
                let is_near = |leaf| leaf >= 0 && *own >= 0 && leaf / span == own / span;
                let keys: Vec<usize> = (0..=last).filter(|key| is_near(leaf(*key))).collect();
                if !keys.is_empty() {
                    mean = vec![0.0; width];
                    for key in &keys {
                        let value = inputs[0].row([batch, *key, kv_head]);
                        for (mean, value) in mean.iter_mut().zip(value) {
                            *mean += f64::from(*value) / keys.len() as f64;
                        }
                    }
                } else if self.options.empty_node == EmptyNode::Drop {
                    mean = vec![0.0; width];
                }
                let row = if self.own_alpha { head } else { 0 };
                let alpha = f64::from(inputs[1].values[row * (tree.height() + 1) + depth]);
                for (sum, mean) in sum.iter_mut().zip(&mean) {
                    *sum += alpha * mean;
                }
            }
            context.extend(sum);
        }
        found(context, [self.batch, self.queries, heads, width])
    }
}
