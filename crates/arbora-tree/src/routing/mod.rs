//! Decision trees that route tokens: which leaf a query or a key belongs to.
//!
//! A [`RoutingTree`] is a complete tree whose inner nodes decide by linear functions of the token.
//! A *binary* level (branching factor 2) has one hyperplane `a = <w, x> + b` per node, and a token
//! goes to child 1, the right one, exactly when `a >= 0`. A *k-ary* level has one linear logit per
//! child, and a token goes to the child with the largest, ties to the lowest index.
//! [`RoutingTree::route`] follows these decisions; they are what an attention over leaves or paths
//! reads (Treeformer, arXiv 2208.09015, sections 3.1 and 3.2).
//!
//! A decision has no derivative. [`Surrogate`] names the differentiable scores that stand in for
//! it, and [`RoutingTree::best_leaves`] gives the best few leaves with such scores. All of them
//! rank the leaves so that the routed leaf is first.
//!
//! # Margin scores
//!
//! The score of a leaf is `z = -Σ (best child's logit - own child's logit)` over its ancestors; for
//! a hyperplane the term is `-ReLU(-S a)` with `S = 1` for the right child and `-1` for the left
//! one. The routed leaf has `z = 0` and every other leaf `z <= 0`, so `argmax z` is the routed leaf
//! at any height (DTSemNet, arXiv 2408.09135, for binary trees). A product of sigmoids
//! has no such property: its best leaf need not be the routed one.
//!
//! # Layout
//!
//! Tokens are `[batch, tokens, heads, dim]`. A tree routes one or several heads: with `trees`
//! trees, head `h` uses tree `h / (heads / trees)`. All routing is in single precision; half
//! precision is cast up. Nodes are named by their depth and their index within it, from the left
//! ([`CompleteTree`]).

mod balance;
mod growth;
mod level;
mod route;
mod split;
mod surrogate;

pub use balance::LeafCounts;
pub use growth::Growth;
pub use level::RoutingLevel;
pub use route::{Candidates, NO_LEAF, Routing};
pub use surrogate::Surrogate;

use crate::ConfigError;
use crate::shape::CompleteTree;
use crate::tensors::{expect_equal, expect_some};
use burn::config::Config;
use burn::module::{Module, ParamId};
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Device, FloatDType, Tensor};

/// Configuration of a [`RoutingTree`].
#[derive(Config, Debug)]
pub struct RoutingTreeConfig {
    /// Width of the tokens that are routed: of one head.
    pub dim: usize,
    /// Branching factor per level, root first, each at least 2. Empty: the root is the only leaf.
    pub branching: Vec<usize>,
    /// Independent trees: one per key/value head, or 1 for the whole layer.
    #[config(default = 1)]
    pub trees: usize,
    /// Whether tokens are divided by their root mean square before the tree. Straight-through
    /// gradients of [`Surrogate::DenseGradient`] vanish where `|a|` exceeds its clip, which was
    /// made for inputs of unit size; and the temperature of every surrogate then means the same at
    /// any scale of the tokens. Tokens that are exactly zero stay zero.
    #[config(default = true)]
    pub normalize: bool,
    /// Step of the bias that [`RoutingTree::track_balance`] adds to the logits against skew; 0 for
    /// none.
    #[config(default = "0.0")]
    pub balance_rate: f64,
    /// How far the tokens of a child may be off its fair share, as a part of that, before its bias moves; 0: any skew
    /// moves it.
    #[config(default = "0.0")]
    pub balance_slack: f64,
    /// Kinds of tokens that share the hyperplanes and are balanced each by themselves: 2 for queries and keys, see
    /// [`RoutingTree::side`].
    #[config(default = 1)]
    pub sides: usize,
    /// Seed of the weights, which are drawn from `N(0, 1/dim)` on the host. Biases start at 0.
    #[config(default = 0)]
    pub seed: u64,
}

impl RoutingTreeConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_1([
            ("dim", self.dim),
            ("trees", self.trees),
            ("sides", self.sides),
        ])?;
        ConfigError::unless_at_least_0("balance_rate", self.balance_rate)?;
        ConfigError::unless_at_least_0("balance_slack", self.balance_slack)?;
        let holds = self.branching.iter().all(|factor| *factor >= 2);
        let got = format!("{:?}", self.branching);
        ConfigError::unless(holds, "branching", "factors of at least 2", &got)?;
        let mut factors = self.branching.iter();
        let nodes = factors.try_fold(2usize, |nodes, factor| nodes.checked_mul(*factor));
        ConfigError::unless(
            nodes.is_some(),
            "branching",
            "nodes that can be counted",
            got,
        )
    }

    /// A tree with random hyperplanes through the origin.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    #[track_caller]
    pub fn init(&self, device: &Device) -> RoutingTree {
        ConfigError::expect_ok("routing_tree", self.check());
        let shape = CompleteTree::new(self.branching.clone());
        let levels = (0..shape.height())
            .map(|depth| {
                let outputs = level::outputs(&shape, depth);
                let weight = growth::random_weight(
                    [self.trees, outputs, self.dim],
                    growth::level_seed(self.seed, depth),
                    1.0,
                );
                let bias = vec![0.0; self.trees * outputs];
                RoutingLevel::new(weight, bias, (shape.branching(depth), self.sides), device)
            })
            .collect();
        RoutingTree {
            levels,
            shape,
            trees: self.trees,
            dim: self.dim,
            normalize: self.normalize,
            balance_rate: self.balance_rate,
            balance_slack: self.balance_slack,
            sides: self.sides,
            side: 0,
            seed: self.seed,
            device: device.clone(),
        }
    }
}

/// Decision trees that route tokens to leaves; see the [module](self).
///
/// # Weight decay
///
/// Exempt the parameters from it: decay draws the weights to 0, and a tree without weights sends
/// every token by its biases alone. They are [`parameter_ids`](Self::parameter_ids), and they are
/// found below containers named `Struct:RoutingTree` by a module visitor.
///
/// # Balance state
///
/// The biases of [`track_balance`](Self::track_balance) are saved and loaded with the module. As
/// with burn's batch norm, they are not parameters, and clones of a module share them.
#[derive(Module, Debug)]
pub struct RoutingTree {
    /// One module per level, root first: growth leaves the parameters of the others, their ids and
    /// so their optimiser state, as they are.
    levels: Vec<RoutingLevel>,
    #[module(skip)]
    shape: CompleteTree,
    #[module(skip)]
    trees: usize,
    #[module(skip)]
    dim: usize,
    #[module(skip)]
    normalize: bool,
    #[module(skip)]
    balance_rate: f64,
    #[module(skip)]
    balance_slack: f64,
    #[module(skip)]
    sides: usize,
    /// Whose balance biases count.
    #[module(skip)]
    side: usize,
    #[module(skip)]
    seed: u64,
    /// Where a tree without levels grows its first.
    #[module(skip)]
    device: Device,
}

impl RoutingTree {
    /// The shape of each tree.
    pub fn shape(&self) -> &CompleteTree {
        &self.shape
    }

    /// Decisions on the way from the root to a leaf.
    pub fn height(&self) -> usize {
        self.shape.height()
    }

    /// Leaves of each tree.
    pub fn leaves(&self) -> usize {
        self.shape.leaves()
    }

    /// Number of independent trees.
    pub fn trees(&self) -> usize {
        self.trees
    }

    /// Kinds of tokens that are balanced each by themselves.
    pub fn sides(&self) -> usize {
        self.sides
    }

    /// Width of a token's head.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The same trees for tokens of another side: with the same hyperplanes, and balance biases of its own. Queries and
    /// keys are distributed differently, and what evens out both together can leave all queries on one side of a
    /// hyperplane and all keys on the other.
    ///
    /// Parameters are shared as clones share them: optimise the tree that this is taken from, and take it anew
    /// for every call.
    ///
    /// # Panics
    /// If there is no such side.
    #[must_use]
    #[track_caller]
    pub fn side(&self, side: usize) -> Self {
        assert!(
            side < self.sides,
            "routing_tree: side: expected below {}, got {side}",
            self.sides
        );
        Self {
            side,
            ..self.clone()
        }
    }

    /// What is added to the logits of a level without gradient, `[trees, outputs]`: what
    /// [`track_balance`](Self::track_balance) moved.
    ///
    /// # Panics
    /// If the level does not exist.
    #[track_caller]
    pub fn balance_bias(&self, depth: usize) -> Tensor<2> {
        self.levels[depth].balance_of(self.side)
    }

    /// The levels, root first, each with its parameters.
    pub fn levels(&self) -> &[RoutingLevel] {
        &self.levels
    }

    /// The tree with other parameters at one level, which keep their ids.
    ///
    /// # Shapes
    /// - weight: `[trees, outputs, dim]`, where `outputs` is the number of nodes at that depth,
    ///   times the branching factor where that is not 2
    /// - bias: `[trees, outputs]`
    ///
    /// # Panics
    /// If the level does not exist or the shapes differ.
    #[track_caller]
    pub fn with_parameters(mut self, depth: usize, weight: Tensor<3>, bias: Tensor<2>) -> Self {
        assert!(
            depth < self.height(),
            "routing_tree: level: expected below {}, got {depth}",
            self.height()
        );
        let level = self.levels.remove(depth).with_parameters(weight, bias);
        self.levels.insert(depth, level);
        self
    }

    /// The ids of all weights and biases, root first: what is to be exempt from weight decay.
    pub fn parameter_ids(&self) -> Vec<ParamId> {
        self.levels
            .iter()
            .flat_map(|level| [level.weight.id, level.bias.id])
            .collect()
    }

    /// The tokens as the levels read them: normalised, in single precision, grouped by tree.
    ///
    /// - returns `[trees, rows, dim]`, where `rows = batch * tokens * (heads / trees)`
    #[track_caller]
    fn rows(&self, operation: &str, x: Tensor<4>) -> (Tensor<3>, Heads) {
        let [batch, tokens, heads, dim] = x.dims();
        expect_equal(format_args!("{operation}: axis 3 of x"), self.dim, dim);
        let heads = Heads::new(operation, [batch, tokens, heads], self.trees);
        let mut x = heads.to_rows(x.cast(FloatDType::F32));
        if self.normalize {
            let square = x.clone().square().mean_dim(2);
            let zero = square.clone().equal_elem(0.0);
            x = x / square.mask_fill(zero, 1.0).sqrt();
        }
        (x, heads)
    }
}

/// How heads are grouped onto trees.
#[derive(Clone, Copy, Debug)]
struct Heads {
    batch: usize,
    tokens: usize,
    heads: usize,
    trees: usize,
}

impl Heads {
    #[track_caller]
    fn new(operation: &str, [batch, tokens, heads]: [usize; 3], trees: usize) -> Self {
        for (axis, length) in [batch, tokens, heads].into_iter().enumerate() {
            expect_some(format_args!("{operation}: axis {axis} of x"), length);
        }
        assert!(
            heads.is_multiple_of(trees),
            "{operation}: heads: expected a multiple of {trees} trees, got {heads}"
        );
        Self {
            batch,
            tokens,
            heads,
            trees,
        }
    }

    /// Heads per tree.
    fn group(&self) -> usize {
        self.heads / self.trees
    }

    /// `[batch, tokens, heads, width]` to `[trees, rows, width]`.
    fn to_rows<K: Basic>(self, x: Tensor<4, K>) -> Tensor<3, K> {
        let width = x.dims()[3];
        let (positions, group) = (self.batch * self.tokens, self.group());
        x.reshape([positions, self.trees, group, width]) // [batch * tokens, trees, group, width]
            .swap_dims(0, 1)
            .reshape([self.trees, positions * group, width])
    }

    /// The inverse of [`to_rows`](Self::to_rows).
    fn to_heads<K: Basic>(self, rows: Tensor<3, K>) -> Tensor<4, K> {
        let width = rows.dims()[2];
        let (positions, group) = (self.batch * self.tokens, self.group());
        rows.reshape([self.trees, positions, group, width])
            .swap_dims(0, 1)
            .reshape([self.batch, self.tokens, self.heads, width])
    }

    /// A mask of tokens as a mask of `[batch, tokens, heads, width]`.
    #[track_caller]
    fn spread(self, operation: &str, mask: Tensor<2, Bool>, width: usize) -> Tensor<4, Bool> {
        let [batch, tokens] = [self.batch, self.tokens];
        expect_equal(
            format_args!("{operation}: mask"),
            [batch, tokens],
            mask.dims(),
        );
        mask.reshape([batch, tokens, 1, 1])
            .expand([batch, tokens, self.heads, width])
    }
}
