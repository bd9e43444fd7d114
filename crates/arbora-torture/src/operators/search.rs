//! Tree search.

use super::{
    Input, Kind, Numbers, Operator, Output, Place, Scaling, backward, drawn, gradient, length,
    long, powers, width,
};
use arbora::attention::GhostNodes;
use arbora::attention::ops::TreeAttentionOps;
use arbora::attention::ops::TreeSearchOptions;
use arbora::attention::ops::{RoutePrimitive, TreeSearchInputs, TreeSearchPrimitive, reference};
use arbora::tree::{Layout, TokenTreeShape};
use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor, TensorData};
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

    fn route(&self, place: &Place) -> RoutePrimitive<Dispatch> {
        let uniforms = || {
            let data = TensorData::new(self.uniforms.clone(), self.path_dims());
            Tensor::<3>::from_data(data, &place.device).into_dispatch()
        };
        match self.way {
            Way::Greedy => RoutePrimitive::Greedy,
            Way::Sampled => RoutePrimitive::Sampled(uniforms()),
            Way::Uniform => RoutePrimitive::Uniform(uniforms()),
            Way::Given => {
                let path = place.integers(&self.given, self.path_dims());
                RoutePrimitive::Given(path.into_dispatch())
            }
        }
    }

    fn outputs(
        &self,
        inputs: &[Numbers],
        found: TreeSearchPrimitive<Dispatch>,
        [query, key, value, policy_query, policy_key]: [Tensor<4>; 5],
    ) -> Vec<Output> {
        let [q, k, v, g, of_policy] = [0, 1, 2, 3, 4].map(|at| inputs[at].scale);
        let alone = matches!(self.way, Way::Uniform | Way::Given);
        let context = |output: Output| if alone { output.by_heads(2, 1) } else { output };
        let integers = |tensor| Tensor::<3, Int>::from_dispatch(tensor).float();
        let policy = Tensor::<3>::from_dispatch(found.policy).without_autodiff();
        let policy = Output::new("policy", policy, 1.0);
        let found_context = Tensor::<4>::from_dispatch(found.context).without_autodiff();
        vec![
            context(Output::new("context", found_context, v)),
            policy.examples(Some(1)),
            Output::new("path", integers(found.path), 0.0),
            Output::new("counts", integers(found.counts), 0.0).examples(Some(1)),
            context(Output::new("gradient of query", query, g * v * k)),
            context(Output::new("gradient of key", key, g * v * q)),
            context(Output::new("gradient of value", value, g)),
            Output::new("gradient of query by policy", policy_query, of_policy * k),
            Output::new("gradient of key by policy", policy_key, of_policy * q),
        ]
    }

    /// Whether the search went where there are tokens, and greedily where it was to.
    fn check_path(&self, path: &[f32], inputs: &[Numbers], kind: Kind) -> Result<(), String> {
        let (shape, steps) = (&self.options.shape, self.steps());
        for (row, path) in path.chunks(steps).enumerate() {
            let example = row / self.queries;
            let tokens = self.lengths[example] as usize;
            for step in 0..steps {
                let height = shape.height() - step;
                let node = path[step] as usize;
                let nodes = tokens.div_ceil(shape.span(height)).max(1);
                if node >= nodes {
                    return Err(format!(
                        "path {path:?} of query {row} leads to a node over no token"
                    ));
                }
                if step == 0 {
                    continue;
                }
                let group = shape.group(height + 1);
                let first = path[step - 1] as usize * group;
                if !(first..first + group).contains(&node) {
                    return Err(format!(
                        "path {path:?} of query {row} does not follow the tree"
                    ));
                }
                let compared = matches!(kind, Kind::Plain | Kind::Scaled);
                if self.way == Way::Greedy && compared {
                    let real = (nodes - first).min(group);
                    let policy = self.policy(row, height, first, real, inputs);
                    let best = policy.iter().fold(0.0, |best: f64, one| best.max(*one));
                    if policy[node - first] < best - MARGIN {
                        return Err(format!("path {path:?} of query {row} is not greedy"));
                    }
                }
            }
        }
        Ok(())
    }

    /// The probabilities of real siblings.
    fn policy(
        &self,
        row: usize,
        height: usize,
        first: usize,
        real: usize,
        inputs: &[Numbers],
    ) -> Vec<f64> {
        let shape = &self.options.shape;
        let (dim, heads) = (self.widths[0], self.heads);
        let scale = self.options.scale.unwrap_or((dim as f64).powf(-0.5));
        let example = row / self.queries;
        let mut policy = vec![0.0; real];
        for head in 0..heads {
            let query = &inputs[0].values[(row * heads + head) * dim..][..dim];
            let logits: Vec<f64> = (0..real)
                .map(|child| {
                    let node = example * shape.nodes() + shape.offset(height) + first + child;
                    let key = &inputs[1].values[(node * heads + head) * dim..][..dim];
                    let products = query.iter().zip(key);
                    let product: f64 = products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    product * scale / self.options.temperature
                })
                .collect();
            let most = logits.iter().fold(f64::MIN, |most, one| most.max(*one));
            let total: f64 = logits.iter().map(|logit| (logit - most).exp()).sum();
            for (probability, logit) in policy.iter_mut().zip(logits) {
                *probability += (logit - most).exp() / total / heads as f64;
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

    fn kernel(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Output> {
        let [query, key, value, grad] =
            [0, 1, 2, 3].map(|at| place.tensor::<4>(&inputs[at]).into_dispatch());
        let of_policy = place.tensor::<3>(&inputs[4]).into_dispatch();
        let lengths = place.integers(&self.lengths, [self.batch()]);
        let searched = TreeSearchInputs {
            query,
            key,
            value,
            lengths: lengths.into_dispatch(),
        };
        let found = Dispatch::tree_search(searched.clone(), self.route(place), self.options);
        let path = Tensor::<3, Int>::from_dispatch(found.path.clone());
        *self.taken.borrow_mut() = path.into_data().iter::<i64>().collect();
        let path = found.path.clone();
        let (query, key, value) =
            Dispatch::tree_context_backward(searched.clone(), path.clone(), grad, self.options);
        let (policy_query, policy_key) =
            Dispatch::tree_policy_backward(searched, path, of_policy, self.options);
        let gradients = [query, key, value, policy_query, policy_key];
        self.outputs(inputs, found, gradients.map(Tensor::from_dispatch))
    }

    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Output> {
        // burn-flex panics over parts of tensors without numbers, as the reference makes them; `check` has this case.
        if self.queries == 0 {
            return Vec::new();
        }
        let [q, k, v] = [0, 1, 2].map(|at| place.tracked::<4>(&inputs[at]));
        let (grad, of_policy) = (place.tensor(&inputs[3]), place.tensor(&inputs[4]));
        let lengths = place.integers(&self.lengths, [self.batch()]);
        let search = |route| {
            let searched = TreeSearchInputs {
                query: q.clone().into_dispatch(),
                key: k.clone().into_dispatch(),
                value: v.clone().into_dispatch(),
                lengths: lengths.clone().into_dispatch(),
            };
            reference::tree_search::<Dispatch>(searched, route, self.options)
        };
        // Choices that are close to one another may be made in either way.
        let path = place.integers(&self.taken.borrow(), self.path_dims());
        let along = || search(RoutePrimitive::Given(path.clone().into_dispatch()));
        let of_context = backward(Tensor::<4>::from_dispatch(along().context), grad, &q);
        let of_policy = backward(Tensor::<3>::from_dispatch(along().policy), of_policy, &q);
        let gradients = [
            gradient(&q, &of_context),
            gradient(&k, &of_context),
            gradient(&v, &of_context),
            gradient(&q, &of_policy),
            gradient(&k, &of_policy),
        ];
        // What a uniform search says of its path is not what others say.
        let found = match self.way {
            Way::Uniform => search(self.route(place)),
            _ => along(),
        };
        self.outputs(inputs, found, gradients)
    }

    fn check(&self, inputs: &[Numbers], found: &[Output], kind: Kind) -> Result<(), String> {
        let mut values = found.iter().flat_map(|output| &output.values);
        if self.queries == 0 && values.any(|value| *value != 0.0) {
            return Err("without queries something has a gradient".into());
        }
        self.check_path(&found[2].values, inputs, kind)
    }
}
