//! ReTreever: a transformer encoder whose tokens are searched as a tree.

use crate::check::expect;
use crate::init::seeded;
use crate::parts::{BlockAggregator, Context, Decoder, Encoder, ModelConfig};
use crate::prediction::{Prediction, RewardKind, Target, masked_average};
use arbora_attention::{
    GhostNodes, Route, SearchOptions, SearchOutput, TreeCrossAttention, TreeCrossAttentionConfig,
    TreeIndex,
};
use arbora_rl::Rollout;
use arbora_tree::{ConfigError, Layout, OrderInput, TokenOrder, TokenTree, TokenTreeShape};
use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Bool, Device, FloatDType, Int, Tensor};

/// Configuration of [`ReTreever`].
#[derive(Config, Debug)]
pub struct ReTreeverConfig {
    /// What it shares with the models it is compared with.
    pub model: ModelConfig,
    /// Branching factor of the tree.
    #[config(default = 2)]
    pub branching: usize,
    /// How leaves are grouped.
    #[config(default = "Layout::LeftFilled")]
    pub layout: Layout,
    /// In what order tokens become leaves.
    #[config(default = "TokenOrder::Given")]
    pub order: TokenOrder,
    /// What final attention does with nodes over no token.
    #[config(default = "GhostNodes::Masked")]
    pub ghosts: GhostNodes,
    /// Whether gradients stop at the aggregator's input, as published.
    #[config(default = true)]
    pub detach_children: bool,
    /// Seed of the weights: one seed gives the same weights on every backend.
    #[config(default = 0)]
    pub seed: u64,
}

/// Retrieval via tree cross attention (arXiv 2309.17388, §3.2).
///
/// Context → embed → encode → order → [`TokenTree`] → [`TreeIndex`] → search per query → decode. A
/// context is encoded and indexed once; each query then reads `O(b log N)` of its nodes.
#[derive(Module, Debug)]
pub struct ReTreever {
    pub(crate) encoder: Encoder,
    pub(crate) aggregator: BlockAggregator,
    pub(crate) attention: TreeCrossAttention,
    decoder: Decoder,
    pub(crate) branching: usize,
    #[module(skip)]
    pub(crate) layout: Layout,
    #[module(skip)]
    pub(crate) order: TokenOrder,
}

/// What [`ReTreever::predict`] returns.
#[derive(Clone, Debug)]
pub struct ReTreeverOutput {
    /// A prediction per query.
    pub prediction: Prediction,
    /// How each query walked down its tree, and what it read.
    pub search: SearchOutput,
}

/// How [`ReTreever::losses`] trains the policy.
#[derive(Clone, Debug)]
pub struct LossOptions {
    /// What the policy is rewarded for.
    pub reward: RewardKind,
    /// Uniforms in `0.0..1.0`, `[batch, queries]`: also teach the policy to walk where the
    /// model's own attention to all leaves looks
    /// ([`TreeCrossAttention::leaf_routes`]). Not in the paper.
    pub guide: Option<Tensor<2>>,
}

impl Default for LossOptions {
    /// As published: the published reward, no guide.
    fn default() -> Self {
        Self {
            reward: RewardKind::Published,
            guide: None,
        }
    }
}

/// The parts of the training loss that [`ReTreever::losses`] computes.
#[derive(Clone, Debug)]
pub struct ReTreeverLosses {
    /// The task's loss on the nodes that the search selected, `[1]`.
    pub tree: Tensor<1>,
    /// The task's loss on all leaves, with the same weights, `[1]`.
    pub leaves: Tensor<1>,
    /// The cross-entropy per decision of the policy against attention to all leaves, estimated from
    /// one path per query, `[1]`; only where a guide was asked for.
    pub guide: Option<Tensor<1>>,
    /// The decisions taken, `[batch · queries, samples]`.
    pub rollout: Rollout,
    /// Their rewards, `[batch · queries, samples]`.
    pub reward: Tensor<2>,
    /// Size of the selected set, the mean over queries, `[1]`.
    pub selected: Tensor<1>,
}

impl ReTreeverConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::in_section("model", self.model.check())?;
        let branching = self.branching;
        ConfigError::unless(branching >= 2, "branching", "at least 2", branching)?;
        let fits = self.ghosts == GhostNodes::Masked || self.layout == Layout::Published;
        let expected = "masked, or published with layout published";
        ConfigError::unless(fits, "ghosts", expected, "published")
    }

    /// Initialises the model on a device.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    #[track_caller]
    pub fn init(&self, device: &Device) -> ReTreever {
        ConfigError::expect_ok("retreever", self.check());
        let model = &self.model;
        let retreever = ReTreever {
            encoder: Encoder::new(model, device),
            aggregator: BlockAggregator::new(model, self.detach_children, device),
            attention: TreeCrossAttentionConfig::new(model.d_model, model.n_heads)
                .with_ghosts(self.ghosts)
                .init(device),
            decoder: Decoder::new(model, device),
            branching: self.branching,
            layout: self.layout,
            order: self.order,
        };
        seeded(retreever, self.seed, model.initialization)
    }
}

impl ReTreever {
    /// Encodes a context and builds its tree.
    ///
    /// # Panics
    /// If there is no token, an axis disagrees with the others or the model, the order reads an axis that positions
    /// lack, or a sequence is longer than `max_positions`.
    pub fn tree(&self, context: &Context) -> TokenTree {
        let tokens = self.encoder.encode(context);
        let shape = TokenTreeShape::new(tokens.dims()[1], self.branching, self.layout);
        let points = match self.order.reads() {
            OrderInput::Nothing | OrderInput::Positions => context.positions.clone(),
            OrderInput::Encodings => tokens.clone().detach(),
        };
        let order = self
            .order
            .permutation(&points, context.mask.as_ref(), &shape);
        TokenTree::build(tokens, context.mask.clone(), order, shape, &self.aggregator)
    }

    /// Encodes a context, builds its tree and projects its nodes: all that queries need.
    ///
    /// # Panics
    /// As [`tree`](Self::tree).
    pub fn index(&self, context: &Context) -> TreeIndex {
        self.attention.index(&self.tree(context))
    }

    /// Number of choices on the way down a tree over `tokens` tokens: the uniforms that a
    /// [`Route::Sampled`] needs per path.
    pub fn decisions(&self, tokens: usize) -> usize {
        TokenTreeShape::new(tokens, self.branching, self.layout).decisions()
    }

    /// The paths to tokens of a context, for [`Route::Given`]: what an oracle would walk.
    ///
    /// - tokens: `[batch, queries]`, indices of context tokens
    /// - returns `[batch, queries, 1, decisions + 1]`
    pub fn paths_to(&self, tokens: Tensor<2, Int>, context: &Context) -> Tensor<4, Int> {
        self.tree(context).paths_to_tokens(tokens).unsqueeze_dim(2)
    }

    /// Answers queries by search, along one or several paths: see [`TreeCrossAttention::search`].
    ///
    /// - queries: `[batch, queries, d_query]`
    ///
    /// # Panics
    /// As [`TreeCrossAttention::search`].
    #[track_caller]
    pub fn predict(
        &self,
        queries: Tensor<3>,
        index: &TreeIndex,
        options: impl Into<SearchOptions>,
    ) -> ReTreeverOutput {
        let queries = self.encoder.embed_queries(queries);
        let search = self.attention.search(queries, index, options);
        ReTreeverOutput {
            prediction: self.decoder.decode(search.context.clone()),
            search,
        }
    }

    /// The probabilities that the policy gives to the children of the nodes on a path; see
    /// [`TreeCrossAttention::policy_probabilities`].
    ///
    /// - queries: `[batch, queries, d_query]`
    /// - path: `[batch, queries, paths, decisions + 1]`, as a search returns it
    /// - returns `[batch, queries, paths, decisions, branching]`, the decision at the root first
    ///
    /// # Panics
    /// As [`TreeCrossAttention::policy_probabilities`].
    #[track_caller]
    pub fn policy_probabilities(
        &self,
        queries: Tensor<3>,
        index: &TreeIndex,
        path: Tensor<4, Int>,
    ) -> Tensor<5> {
        let queries = self.encoder.embed_queries(queries);
        self.attention.policy_probabilities(queries, index, path)
    }

    /// Answers queries from all leaves, with the same weights.
    ///
    /// - queries: `[batch, queries, d_query]`
    #[track_caller]
    pub fn predict_from_leaves(&self, queries: Tensor<3>, index: &TreeIndex) -> Prediction {
        let queries = self.encoder.embed_queries(queries);
        self.decoder
            .decode(self.attention.attend_leaves(queries, index))
    }

    /// The parts of the training loss for one batch (arXiv 2309.17388, §3.2.1):
    /// `L = L_tree + λ_CA · L_leaves + λ_RL · L_policy [+ λ_guide · L_guide]`, where the policy's comes
    /// from [`PolicyGradient`](arbora_rl::PolicyGradient) and the rollout returned here.
    ///
    /// - queries: `[batch, queries, d_query]`
    /// - target: the truth per query
    /// - mask: `[batch, queries]`, `true` = masked out
    /// - route: how to walk, at least once per query. Each of several paths is a search of its own, with a
    ///   prediction and a reward of its own, and the loss is their mean.
    ///
    /// # Panics
    /// If axes disagree, there is no path, the route is a beam, or the reward does not fit the target.
    #[track_caller]
    pub fn losses(
        &self,
        context: &Context,
        queries: Tensor<3>,
        target: &Target,
        mask: Option<&Tensor<2, Bool>>,
        route: Route,
        options: LossOptions,
    ) -> ReTreeverLosses {
        assert!(
            !matches!(route, Route::Beam(_)),
            "retreever: route: expected one to learn by, got a beam"
        );
        let samples = route.paths();
        assert!(
            samples > 0,
            "retreever: paths of the route: expected at least 1, got 0"
        );
        let [batch, count, _] = queries.dims();
        let got = match &route {
            Route::Sampled(uniforms) | Route::Uniform(uniforms) => uniforms.dims(),
            Route::Given(path) => path.dims(),
            Route::Greedy | Route::Beam(_) => [batch, count, samples, 0],
        };
        let what = "retreever: axes 0 and 1 of the route";
        expect(what, &got[..2], &[batch, count]);
        let index = self.index(context);
        // Search and attention to all leaves share their weights, so they share projected queries.
        let queries = self
            .attention
            .attention
            .project_queries(self.encoder.embed_queries(queries));
        let leaves = self.attention.attend_leaves(queries.clone(), &index);
        let leaves = self.decoder.decode(leaves).loss(target, mask);
        let guide = options.guide.map(|uniforms| {
            let path = self.attention.leaf_routes(&queries, &index, uniforms);
            let found = self
                .attention
                .search(queries.clone(), &index, Route::Given(path));
            // Per decision, so that its weight means the same at every height.
            let decisions = found.decisions.cast(FloatDType::F32).clamp_min(1.0);
            let decisions = decisions.cast(found.log_prob.dtype());
            let per_decision = found.log_prob / decisions;
            -masked_average(per_decision.squeeze_dim(2), mask)
        });

        let search = self
            .attention
            .search(queries.repeat(samples), &index, route.apart());
        let prediction = self.decoder.decode(search.context);
        let target = match target {
            Target::Values(values) => Target::Values(repeat_queries(values.clone(), samples)),
            Target::Classes(class) => {
                let class = class.clone().reshape([batch, count, 1]);
                Target::Classes(
                    class
                        .repeat_dim(2, samples)
                        .reshape([batch, count * samples]),
                )
            }
        };
        let mask = mask.map(|mask| {
            let mask = mask.clone().reshape([batch * count, 1]);
            mask.expand([batch * count, samples])
        });
        let flat_mask = mask
            .clone()
            .map(|mask| mask.reshape([batch, count * samples]));
        let by_row = |values: Tensor<2>| values.reshape([batch * count, samples]);
        let by_path = |values: Tensor<3>| values.reshape([batch * count, samples]);
        ReTreeverLosses {
            tree: prediction.loss(&target, flat_mask.as_ref()),
            leaves,
            guide,
            reward: by_row(prediction.reward(&target, options.reward)),
            selected: masked_average(search.selected.cast(FloatDType::F32), flat_mask.as_ref()),
            rollout: Rollout {
                log_prob: by_path(search.log_prob),
                entropy: by_path(search.entropy.expect("no beam")),
                decisions: by_path(search.decisions.cast(FloatDType::F32)),
                mask,
            },
        }
    }
}

/// Puts `samples` copies of each row side by side: `[batch, rows, dim]` ->
/// `[batch, rows · samples, dim]`.
fn repeat_queries(rows: Tensor<3>, samples: usize) -> Tensor<3> {
    if samples == 1 {
        return rows;
    }
    let [batch, count, dim] = rows.dims();
    rows.reshape([batch, count, 1, dim])
        .repeat_dim(2, samples)
        .reshape([batch, count * samples, dim])
}
