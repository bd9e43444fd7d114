//! Multi-head attention of one of several kinds.

mod alignment;
pub mod baselines;
mod cache;
mod check;
mod dense;
mod folded_tree_coarse;
mod grow;
mod kind;
mod masks;
mod pages;
mod router;
mod tree_coarse;
mod tree_fine;

pub use cache::AttentionCache;
pub use folded_tree_coarse::FoldedTreeCoarse;
pub use kind::{AttentionKind, AttentionKindConfig};
pub use masks::AttentionMasks;
pub use router::{AlignmentConfig, Router, RouterConfig, RoutingReport, TreeScope, TreeSharing};
pub use tree_coarse::{TreeCoarse, TreeCoarseConfig};
pub use tree_fine::{TreeFine, TreeFineConfig};

use crate::flops;
use crate::functions::check::{expect, expect_some};
use arbora_tree::ConfigError;
use arbora_tree::routing::{RoutingTree, Surrogate};
use burn::config::Config;
use burn::module::{Module, ParamGroup, ParamId};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Bool, Device, Tensor};
use kind::{HeadSizes, Projected};

/// Configuration of [`SelfAttention`].
#[derive(Config, Debug)]
pub struct SelfAttentionConfig {
    /// Width of tokens.
    pub d_model: usize,
    /// Number of query heads; must divide `d_model`.
    pub n_heads: usize,
    /// Number of key and value heads, which must divide `n_heads`; `None` means as many. Query head `h`
    /// reads key and value head `h / (n_heads / n_kv_heads)`.
    #[config(default = "None")]
    pub n_kv_heads: Option<usize>,
    /// How queries attend.
    #[config(default = "AttentionKindConfig::Dense")]
    pub kind: AttentionKindConfig,
    /// Whether the projections add a bias.
    #[config(default = true)]
    pub bias: bool,
}

/// Multi-head attention with projections outside, and a kind of attention inside.
///
/// The projections of queries, keys, values and outputs belong to this module and not to the [`AttentionKind`],
/// so that their parameter ids, and the optimiser's state for them, survive a change of kind by
/// [`with_kind`](Self::with_kind): how a dense model becomes a Treeformer.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// `W_q`, `[d_model, heads · head_dim]`
    pub query: Linear,
    /// `W_k`, `[d_model, kv_heads · head_dim]`
    pub key: Linear,
    /// `W_v`, `[d_model, kv_heads · head_dim]`
    pub value: Linear,
    /// `W_o`, `[heads · head_dim, d_model]`
    pub output: Linear,
    /// How queries attend.
    pub kind: AttentionKind,
    #[module(skip)]
    sizes: HeadSizes,
}

/// What [`SelfAttention::forward`] reads.
#[derive(Clone, Debug)]
pub struct SelfAttentionInput {
    /// `[batch, tokens, d_model]`: queries, and keys and values where there is no context.
    pub tokens: Tensor<3>,
    /// `[batch, context tokens, d_model]`: keys and values of cross-attention.
    pub context: Option<Tensor<3>>,
    /// What is masked out.
    pub masks: AttentionMasks,
    /// What the gradient of a route is, for kinds that route; `None`: what their configuration says.
    pub surrogate: Option<Surrogate>,
    /// Seed of this call's randomness: dropout, and the rows drawn for an alignment loss.
    pub seed: Option<u64>,
}

impl SelfAttentionInput {
    /// Attention among tokens `[batch, tokens, d_model]`, nothing masked.
    pub fn new(tokens: Tensor<3>) -> Self {
        Self {
            tokens,
            context: None,
            masks: AttentionMasks::default(),
            surrogate: None,
            seed: None,
        }
    }

    /// Attention from queries `[batch, queries, d_model]` to a context `[batch, tokens, d_model]`.
    pub fn cross(queries: Tensor<3>, context: Tensor<3>) -> Self {
        Self {
            context: Some(context),
            ..Self::new(queries)
        }
    }

    /// Leaves out padding: `[batch, keys]`, `true` = masked out. See [`AttentionMasks::padding`] for the
    /// queries there.
    #[must_use]
    pub fn mask_pad(mut self, padding: Tensor<2, Bool>) -> Self {
        self.masks.padding = Some(padding);
        self
    }

    /// Leaves out pairs: `[batch, queries, keys]`, `true` = masked out.
    #[must_use]
    pub fn mask_attn(mut self, pairs: Tensor<3, Bool>) -> Self {
        self.masks.pairs = Some(pairs);
        self
    }

    /// Hides from every token those that come after it.
    #[must_use]
    pub fn causal(mut self) -> Self {
        self.masks.causal = true;
        self
    }

    /// Takes another gradient of routes in this call, as annealing does. Kinds that do not route ignore
    /// it.
    #[must_use]
    pub fn with_surrogate(mut self, surrogate: Surrogate) -> Self {
        self.surrogate = Some(surrogate);
        self
    }

    /// Seeds the randomness of this call. Give every step of a training its own, and every layer.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

impl SelfAttentionInput {
    /// The context, which is the tokens where none is given, and `[batch, queries, keys]`. Panics where they do not
    /// fit a layer for tokens of this width.
    #[track_caller]
    fn checked(&self, layer: &str, d_model: usize) -> (Tensor<3>, [usize; 3]) {
        let context = self.context.as_ref().unwrap_or(&self.tokens);
        let [batch, queries, width] = self.tokens.dims();
        let [contexts, keys, context_width] = context.dims();
        expect(&format!("{layer}: axis 2 of tokens"), width, d_model);
        let name = format!("{layer}: axis 2 of context");
        expect(&name, context_width, d_model);
        expect(&format!("{layer}: axis 0 of context"), contexts, batch);
        expect_some(&format!("{layer}: axis 0 of tokens"), batch);
        expect_some(&format!("{layer}: axis 1 of tokens"), queries);
        expect_some(&format!("{layer}: axis 1 of context"), keys);
        self.masks.check(batch, queries, keys);
        (context.clone(), [batch, queries, keys])
    }
}

/// What [`SelfAttention::forward`] returns.
#[derive(Clone, Debug)]
pub struct SelfAttentionOutput {
    /// `[batch, tokens, d_model]`
    pub context: Tensor<3>,
    /// Where queries and keys went, and the losses that train trees, for kinds that route.
    pub routing: Option<RoutingReport>,
}

impl SelfAttentionConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let kv_heads = self.n_kv_heads.unwrap_or(self.n_heads);
        ConfigError::unless_at_least_1([("d_model", self.d_model)])?;
        ConfigError::unless_divisor("n_heads", self.n_heads, self.d_model)?;
        ConfigError::unless_divisor("n_kv_heads", kv_heads, self.n_heads)?;
        ConfigError::in_section("kind", self.kind.check(self.n_heads, kv_heads))
    }

    /// Initialises the layer on a device.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    #[track_caller]
    pub fn init(&self, device: &Device) -> SelfAttention {
        ConfigError::expect_ok("self_attention", self.check());
        let kv_heads = self.n_kv_heads.unwrap_or(self.n_heads);
        let sizes = HeadSizes {
            heads: self.n_heads,
            kv_heads,
            head_dim: self.d_model / self.n_heads,
        };
        let linear = |width: usize| {
            LinearConfig::new(self.d_model, width)
                .with_bias(self.bias)
                .init(device)
        };
        SelfAttention {
            query: linear(self.d_model),
            key: linear(kv_heads * sizes.head_dim),
            value: linear(kv_heads * sizes.head_dim),
            output: linear(self.d_model),
            kind: self.kind.init(sizes, device),
            sizes,
        }
    }
}

impl SelfAttention {
    /// The same projections with another kind of attention, freshly initialised.
    ///
    /// # Panics
    /// With a setting that is out of its range, see [`AttentionKindConfig::check`].
    #[must_use]
    #[track_caller]
    pub fn with_kind(self, kind: &AttentionKindConfig, device: &Device) -> Self {
        Self {
            kind: kind.init(self.sizes, device),
            ..self
        }
    }

    /// Attends.
    ///
    /// # Shapes
    /// - tokens: `[batch, tokens, d_model]`
    /// - returns `[batch, tokens, d_model]`
    ///
    /// # Panics
    /// If there is no example or no token, or a context without one, if an axis disagrees with the others, or the kind
    /// does not take a mask that is there.
    #[track_caller]
    pub fn forward(&self, input: SelfAttentionInput) -> SelfAttentionOutput {
        let d_model = self.sizes.d_model();
        let (context, [batch, queries, _]) = input.checked("self_attention", d_model);
        let is_self = input.context.is_none();
        let [query, key, value] = self.project(input.tokens, context);
        let attended = self.kind.attend(Projected {
            query,
            key,
            value,
            masks: input.masks,
            is_self,
            surrogate: input.surrogate,
            seed: input.seed,
        });
        SelfAttentionOutput {
            context: self
                .output
                .forward(attended.context.reshape([batch, queries, d_model])),
            routing: attended.routing,
        }
    }

    /// The parameters of the trees of all layers of a model, by their paths: levels that grow later belong to it too. They
    /// are to be exempt from weight decay, see [`RoutingTree`].
    ///
    /// `optimizer.with_group(SelfAttention::tree_parameter_group(), without_decay, None)` of burn's `ModuleOptimizer`.
    #[must_use]
    pub fn tree_parameter_group() -> ParamGroup {
        let levels = r"(^|\.)router\.(query|key)\.levels\.\d+\.(weight|bias)$";
        ParamGroup::from_regex(levels).expect("a fixed pattern")
    }

    /// The ids of the parameters of all trees, those of queries before those of keys; empty for kinds
    /// without trees. A level that grows later has others: see [`tree_parameter_group`](Self::tree_parameter_group).
    pub fn tree_parameter_ids(&self) -> Vec<ParamId> {
        let router = match &self.kind {
            AttentionKind::TreeFine(fine) => &fine.router,
            AttentionKind::TreeCoarse(coarse) => &coarse.router,
            _ => return Vec::new(),
        };
        std::iter::once(&router.query)
            .chain(&router.key)
            .flat_map(RoutingTree::parameter_ids)
            .collect()
    }

    pub(crate) fn sizes(&self) -> HeadSizes {
        self.sizes
    }

    /// Queries of tokens, keys and values of a context.
    fn project(&self, tokens: Tensor<3>, context: Tensor<3>) -> [Tensor<4>; 3] {
        let rows = |tensor: &Tensor<3>| tensor.dims()[0] * tensor.dims()[1];
        let (queries, keys) = (rows(&tokens), rows(&context));
        flops::record(|total| {
            total.query += queries;
            total.key += keys;
            total.value += keys;
            total.output += queries;
        });
        let sizes = self.sizes;
        [
            self.by_head(self.query.forward(tokens), sizes.heads),
            self.by_head(self.key.forward(context.clone()), sizes.kv_heads),
            self.by_head(self.value.forward(context), sizes.kv_heads),
        ]
    }

    /// `[batch, rows, heads · head_dim]` -> `[batch, rows, heads, head_dim]`
    fn by_head(&self, projected: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, rows, _] = projected.dims();
        projected.reshape([batch, rows, heads, self.sizes.head_dim])
    }
}
