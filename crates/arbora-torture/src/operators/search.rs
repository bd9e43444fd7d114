//! Tree search.

use super::{
    Float, Input, Kind, Numbers, Operator, Output, Place, Scaling, drawn, gradients, integers,
    length, long, powers, product, width,
};
use anyhow::{Result, ensure};
use arbora::attention::GhostNodes;
use arbora::attention::ops::{
    RoutePrimitive, TreeAttentionOps, TreeSearchInputs, TreeSearchOptions, TreeSearchPrimitive,
    reference,
};
use arbora::tree::{Layout, TokenTreeShape};
use burn::backend::Dispatch;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use std::cell::RefCell;

/// How much more probable another child may be than the one that a greedy search takes: rounding.
const MARGIN: f64 = 1e-4;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Greedy,
    Sampled,
    Uniform,
    Given,
}

pub struct TreeSearch {
    queries: usize,
    heads: usize,
    widths: [usize; 2],
    lengths: Vec<i64>,
    options: TreeSearchOptions,
    way: Way,
    uniforms: Vec<f32>,
    given: Vec<i64>,
    powers: [i32; 4],
    /// The path that the kernel took: what belongs to a path is compared along it.
    taken: RefCell<Vec<i64>>,
}

impl std::fmt::Debug for TreeSearch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (queries, heads, way) = (self.queries, self.heads, self.way);
        write!(
            formatter,
            "{queries} queries, {heads} heads, widths {:?}, lengths {:?}, {way:?}, {:?}, powers {:?}",
            self.widths, self.lengths, self.options, self.powers
        )
    }
}

impl TreeSearch {
    fn batch(&self) -> usize {
        self.lengths.len()
    }

    fn steps(&self) -> usize {
        self.options.shape.decisions() + 1
    }

    fn path_dims(&self) -> [usize; 3] {
        [self.batch(), self.queries, self.steps()]
    }

    fn route(&self, device: &Device) -> RoutePrimitive<Dispatch> {
        let uniforms = || {
            let data = TensorData::new(self.uniforms.clone(), self.path_dims());
            Tensor::<3>::from_data(data, device).into_dispatch()
        };
        match self.way {
            Way::Greedy => RoutePrimitive::Greedy,
            Way::Sampled => RoutePrimitive::Sampled(uniforms()),
            Way::Uniform => RoutePrimitive::Uniform(uniforms()),
            Way::Given => self.along(&self.given, device),
        }
    }

    /// A route along a path.
    fn along(&self, path: &[i64], device: &Device) -> RoutePrimitive<Dispatch> {
        RoutePrimitive::Given(integers(path, self.path_dims(), device).into_dispatch())
    }

    fn searched(
        &self,
        [query, key, value]: [Float; 3],
        device: &Device,
    ) -> TreeSearchInputs<Dispatch> {
        TreeSearchInputs {
            query,
            key,
            value,
            lengths: integers(&self.lengths, [self.batch()], device).into_dispatch(),
        }
    }

    /// Whether the search went where there are tokens, and greedily where it was to.
    fn check_path(&self, path: &[f32], inputs: &[Numbers], kind: Kind) -> Result<()> {
        let (shape, steps) = (&self.options.shape, self.steps());
        for (row, path) in path.chunks(steps).enumerate() {
            let example = row / self.queries;
            let tokens = self.lengths[example] as usize;
            for step in 0..steps {
                let height = shape.height() - step;
                let node = path[step] as usize;
                let nodes = tokens.div_ceil(shape.span(height)).max(1);
                let told = || format!("path {path:?} of query {row}");
                ensure!(node < nodes, "{} leads to a node over no token", told());
                if step == 0 {
                    continue;
                }
                let group = shape.group(height + 1);
                let first = path[step - 1] as usize * group;
                let is_child = (first..first + group).contains(&node);
                ensure!(is_child, "{} does not follow the tree", told());
                if self.way == Way::Greedy && kind.is_compared() {
                    let real = (nodes - first).min(group);
                    let policy = self.policy(row, shape.offset(height) + first, real, inputs);
                    let best = policy.iter().fold(0.0, |best: f64, one| best.max(*one));
                    let is_worse = policy[node - first] < best - MARGIN;
                    ensure!(!is_worse, "{} is not greedy", told());
                }
            }
        }
        Ok(())
    }

    /// The probabilities of real siblings, which are so many nodes from one on.
    fn policy(&self, row: usize, first: usize, real: usize, inputs: &[Numbers]) -> Vec<f64> {
        let [example, row] = [row / self.queries, row % self.queries];
        let default = (self.widths[0] as f64).powf(-0.5);
        let scale = self.options.scale.unwrap_or(default);
        let mut policy = vec![0.0; real];
        for head in 0..self.heads {
            let query = inputs[0].row([example, row, head]);
            let logit = |node| {
                let key = inputs[1].row([example, node, head]);
                product(query, key) * scale / self.options.temperature
            };
            let logits: Vec<f64> = (first..first + real).map(logit).collect();
            let most = logits.iter().fold(f64::MIN, |most, one| most.max(*one));
            let total: f64 = logits.iter().map(|logit| (logit - most).exp()).sum();
            for (probability, logit) in policy.iter_mut().zip(logits) {
                *probability += (logit - most).exp() / total / self.heads as f64;
            }
        }
        policy
    }
}

impl Operator for TreeSearch {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let (tokens, branching) = (rng.random_range(1..30), rng.random_range(2..6));
        let layout = [Layout::LeftFilled, Layout::Published][rng.random_range(0..2)];
        let shape = TokenTreeShape::new(tokens, branching, layout);
        let ghosts = match layout {
            Layout::Published if rng.random() => GhostNodes::Published,
            _ => GhostNodes::Masked,
        };
        let batch = length(rng, 1..4);
        let lengths = drawn(batch, || match rng.random_range(0..4) {
            0 => tokens as i64,
            1 => [0, 1][rng.random_range(0..2)],
            _ => rng.random_range(0..=tokens as i64),
        });
        let queries = length(rng, 1..8);
        let queries = long(rng).unwrap_or(queries);
        let entries = batch * queries * (shape.decisions() + 1);
        Self {
            queries,
            heads: rng.random_range(1..4),
            widths: [width(rng), width(rng)],
            lengths,
            options: TreeSearchOptions {
                shape,
                scale: [None, Some(0.4)][rng.random_range(0..2)],
                temperature: [0.7, 1.0, 2.0][rng.random_range(0..3)],
                ghosts,
            },
            way: [Way::Greedy, Way::Sampled, Way::Uniform, Way::Given][rng.random_range(0..4)],
            uniforms: drawn(entries, || match rng.random_range(0..8) {
                0 => 0.0,
                1 => 1.0_f32.next_down(),
                _ => rng.random_range(0.0..1.0),
            }),
            // Anything: what leads to no real child is moved to one.
            given: drawn(entries, || rng.random_range(-2..tokens as i64 + 3)),
            powers: powers(rng),
            taken: RefCell::default(),
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let (batch, queries, heads) = (self.batch(), self.queries, self.heads);
        let nodes = self.options.shape.nodes();
        let [q, k, v, g] = self.powers;
        let [head_dim, value_dim] = self.widths;
        vec![
            Input::new([batch, queries, heads, head_dim], q, Scaling::To).by_heads(1),
            Input::new([batch, nodes, heads, head_dim], k, Scaling::Fro).by_heads(1),
            Input::new([batch, nodes, heads, value_dim], v, Scaling::Free).by_heads(1),
            Input::new([batch, queries, heads, value_dim], g, Scaling::Free).by_heads(1),
            // The gradients of log-probability and entropy, whose second axis counts examples.
            Input::new([2, batch, queries], 5, Scaling::None).shared(),
        ]
    }

    fn outputs(&self, scales: &[f64]) -> Vec<Output> {
        let [q, k, v, g, of_policy] = [0, 1, 2, 3, 4].map(|at| scales[at]);
        // Routes that do not depend on numbers keep heads apart.
        let alone = matches!(self.way, Way::Uniform | Way::Given);
        let by_context = |name, unit| match Output::new(name, unit) {
            output if alone => output.by_heads(1),
            output => output,
        };
        vec![
            by_context("context", v),
            Output::new("policy", 1.0).examples(Some(1)),
            Output::new("path", 0.0),
            Output::new("counts", 0.0).examples(Some(1)),
            by_context("gradient of query", g * v * k),
            by_context("gradient of key", g * v * q),
            by_context("gradient of value", g),
            Output::new("gradient of query by policy", of_policy * k),
            Output::new("gradient of key by policy", of_policy * q),
        ]
    }

    fn kernel(&self, inputs: Vec<Float>, device: &Device) -> Vec<Numbers> {
        let [query, key, value, grad, of_policy] = [0, 1, 2, 3, 4].map(|at| inputs[at].clone());
        let searched = self.searched([query, key, value], device);
        let found = Dispatch::tree_search(searched.clone(), self.route(device), self.options);
        let path = found.path.clone();
        let taken = Tensor::<3, Int>::from_dispatch(path.clone()).into_data();
        *self.taken.borrow_mut() = taken.iter::<i64>().collect();
        let (query, key, value) =
            Dispatch::tree_context_backward(searched.clone(), path.clone(), grad, self.options);
        let (policy_query, policy_key) =
            Dispatch::tree_policy_backward(searched, path, of_policy, self.options);
        let gradients = [query, key, value, policy_query, policy_key];
        all(found, gradients.map(Numbers::of))
    }

    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Numbers> {
        // burn-flex panics over parts of tensors without numbers, as the reference makes them; `check` has this case.
        if self.queries == 0 {
            return Vec::new();
        }
        let rows = [0, 1, 2].map(|at| place.tracked(&inputs[at]));
        let [grad, of_policy] = [3, 4].map(|at| place.float(&inputs[at]));
        let device = &place.device;
        let search = |route| {
            let searched = self.searched(rows.clone(), device);
            reference::tree_search::<Dispatch>(searched, route, self.options)
        };
        // Choices that are close to one another may be made in either way.
        let along = || search(self.along(&self.taken.borrow(), device));
        let mut of_inputs = gradients(&along().context, grad, &rows);
        of_inputs.extend(gradients(&along().policy, of_policy, &rows[..2]));
        // What a uniform search says of its path is not what others say.
        let found = match self.way {
            Way::Uniform => search(self.route(device)),
            _ => along(),
        };
        all(found, of_inputs)
    }

    fn check(&self, inputs: &[Numbers], found: &[Output], kind: Kind) -> Result<()> {
        let mut values = found.iter().flat_map(|output| &output.numbers.values);
        ensure!(
            self.queries > 0 || values.all(|value| *value == 0.0),
            "without queries something has a gradient"
        );
        self.check_path(&found[2].numbers.values, inputs, kind)
    }
}

/// What was found, and the gradients, as outputs are listed.
fn all(
    found: TreeSearchPrimitive<Dispatch>,
    gradients: impl IntoIterator<Item = Numbers>,
) -> Vec<Numbers> {
    let integers = |tensor| Tensor::<1, Int>::from_dispatch(tensor).into_data().into();
    let mut all = vec![
        Numbers::of(found.context),
        Numbers::of(found.policy),
        integers(found.path),
        integers(found.counts),
    ];
    all.extend(gradients);
    all
}
