//! Settings of a run of retrieval.

use super::data::{Features, Source};
use crate::families::check::{self, LARGEST_SIZE};
use crate::families::{kind, network_hash};
use anyhow::{Result, bail};
use arbora::attention::GhostNodes;
use arbora::models::{
    CrossAttentionConfig, EmbeddingKind, HeadKind, Initialization, ModelConfig, PerceiverIoConfig,
    ReTreeverConfig, RewardKind, StdKind, latents_for,
};
use arbora::rl::BaselineConfig;
use arbora::rl::train::TrainerConfig;
use arbora::tasks::images::ImageCompletionConfig;
use arbora::tree::{Layout, TokenOrder};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

kind! {
    /// What is learned.
    RetrievalTask {
        /// Image completion: predict unseen pixels from seen ones.
        Images = "images",
        /// Copying: read a random sequence, write it in reverse.
        Copy = "copy",
        /// Regression on functions drawn from Gaussian processes.
        Gp = "gp",
        /// Classification of time series by windows.
        Series = "series",
        /// Regression on the rewards of the wheel bandit, for loops that learn while they choose.
        Bandit = "bandit",
    }
}

kind! {
    /// Which model learns it.
    RetrievalModelKind {
        /// ReTreever with its learned route.
        ReTreever = "retreever",
        /// ReTreever with uniformly random routes, in training and evaluation: the control.
        RandomRoute = "random-route",
        /// ReTreever told which leaf answers a query, in training and evaluation: the control at the other
        /// end, for tasks that know it.
        OracleRoute = "oracle-route",
        /// The same encoder and decoder with dense cross attention.
        CrossAttention = "cross-attention",
        /// Perceiver IO with as many latents as ReTreever selects nodes.
        Perceiver = "perceiver",
    }
}

impl RetrievalModelKind {
    /// Whether it is ReTreever with some way down its tree.
    pub fn has_tree(self) -> bool {
        !matches!(self, Self::CrossAttention | Self::Perceiver)
    }
}

/// The network, less what the data decide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    pub d_model: usize,
    pub d_ff: usize,
    #[serde(alias = "heads")]
    pub n_heads: usize,
    /// Linear layers of an embedding.
    pub embedding_depth: usize,
    pub encoder_layers: usize,
    pub dropout: f64,
    /// How standard deviations are read.
    pub std: StdKind,
    /// How far weights are drawn from 0.
    pub initialization: Initialization,
    pub branching: usize,
    /// How leaves are grouped.
    pub layout: Layout,
    /// In what order pixels become leaves.
    pub order: TokenOrder,
    /// What attention does with nodes over no pixel.
    pub ghosts: GhostNodes,
    /// Whether gradients stop at the aggregator's input.
    pub detach_children: bool,
}

/// Everything that determines a run's numbers, and where its data are. [`Common`](crate::families::Common) says what all
/// families have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalConfig {
    pub task: RetrievalTask,
    pub model: RetrievalModelKind,
    /// Runs of before named a second model here. `arbora compare` trains several.
    #[serde(default, skip_serializing)]
    compare_with: IgnoredAny,
    pub data: Source,
    /// For images: how many pixels are shown and asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub points: Option<ImageCompletionConfig>,
    /// Items (images, sequences, functions) per training step.
    pub batch_size: usize,
    pub eval_batch_size: usize,
    pub eval_items: usize,
    pub test_items: usize,
    pub architecture: Architecture,
    /// Weight of the loss on all leaves, λ_CA.
    pub lambda_ca: f64,
    /// Weight of the loss that teaches the policy to walk where the model's own attention to all leaves
    /// looks. Not in the paper: 0 there.
    pub lambda_guide: f64,
    pub reward: RewardKind,
    pub samples: usize,
    pub trainer: TrainerConfig,
}

impl RetrievalConfig {
    /// Checks that every setting is in its range and goes with the others.
    pub fn check(&self) -> Result<()> {
        if self.data.task() != self.task {
            bail!("data: expected those of task {}", self.task.name());
        }
        let a = &self.architecture;
        check::sizes([
            ("batch_size", self.batch_size, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("samples", self.samples, 1),
            ("architecture.d_model", a.d_model, 1),
            ("architecture.d_ff", a.d_ff, 1),
            ("architecture.n_heads", a.n_heads, 1),
            ("architecture.embedding_depth", a.embedding_depth, 1),
            ("architecture.encoder_layers", a.encoder_layers, 0),
            ("architecture.branching", a.branching, 2),
        ])?;
        self.check_network(EmbeddingKind::Points)?;
        check::weights([
            ("lambda_ca", self.lambda_ca),
            ("lambda_guide", self.lambda_guide),
        ])?;
        let baseline = self.trainer.policy_gradient.baseline;
        if baseline == BaselineConfig::LeaveOneOut && self.samples < 2 {
            bail!(
                "samples: the leave-one-out baseline needs at least 2, got {}",
                self.samples
            );
        }
        check::section("data", self.data.check())?;
        if let Source::Bandit(bandit) = &self.data {
            for (key, value) in [
                ("data.max_context", bandit.max_context),
                ("data.target_contexts", bandit.target_contexts),
            ] {
                if value > LARGEST_SIZE {
                    bail!("{key}: expected at most {LARGEST_SIZE}, got {value}");
                }
            }
        }
        if let Some(points) = &self.points {
            check::section("points", points.check())?;
        }
        check::trainer(&self.trainer)
    }

    /// Checks the network for a kind of embedding; its other sizes that follow from the data are in range.
    fn check_network(&self, embedding: EmbeddingKind) -> Result<()> {
        let model = ModelConfig::new(1, 1, HeadKind::Classes { count: 1 });
        let model = self.shared(model.with_embedding(embedding));
        check::section("architecture", model.check())?;
        check::section("architecture", self.retreever(model).check())
    }

    /// Checks what depends on the data.
    pub fn check_features(&self, features: &Features) -> Result<()> {
        self.check_network(features.embedding)?;
        if let TokenOrder::Axis(axis) = self.architecture.order
            && axis >= features.d_position
        {
            bail!(
                "architecture.order: positions have {} coordinates, counted from 0, got {axis}",
                features.d_position
            );
        }
        let classes = matches!(features.head, HeadKind::Classes { .. });
        match self.reward {
            RewardKind::Accuracy if !classes => {
                bail!("reward: accuracy needs classes; this task predicts values")
            }
            RewardKind::NegativeMse if classes => {
                bail!("reward: negative-mse needs values; this task predicts classes")
            }
            _ => Ok(()),
        }
    }

    /// What all networks share.
    fn shared(&self, model: ModelConfig) -> ModelConfig {
        let a = &self.architecture;
        model
            .with_d_model(a.d_model)
            .with_d_ff(a.d_ff)
            .with_n_heads(a.n_heads)
            .with_embedding_depth(a.embedding_depth)
            .with_encoder_layers(a.encoder_layers)
            .with_dropout(a.dropout)
            .with_initialization(a.initialization)
    }

    fn retreever(&self, model: ModelConfig) -> ReTreeverConfig {
        let a = &self.architecture;
        ReTreeverConfig::new(self.shared(model))
            .with_branching(a.branching)
            .with_layout(a.layout)
            .with_order(a.order)
            .with_ghosts(a.ghosts)
            .with_detach_children(a.detach_children)
    }

    /// The full configuration of the network for data with the given features.
    pub fn network(&self, features: &Features) -> NetworkConfig {
        let a = &self.architecture;
        let model = ModelConfig::new(features.d_context, features.d_query, features.head)
            .with_embedding(features.embedding)
            .with_max_positions(features.most_tokens.max(5000));
        match self.model {
            RetrievalModelKind::CrossAttention => {
                NetworkConfig::Dense(CrossAttentionConfig::new(self.shared(model)))
            }
            // As many latents as ReTreever selects of the largest context.
            RetrievalModelKind::Perceiver => {
                let latents = latents_for(features.most_tokens, a.branching, a.layout);
                NetworkConfig::Perceiver(PerceiverIoConfig::new(self.shared(model), latents))
            }
            RetrievalModelKind::ReTreever
            | RetrievalModelKind::RandomRoute
            | RetrievalModelKind::OracleRoute => NetworkConfig::ReTreever(self.retreever(model)),
        }
    }

    /// Names the model's architecture: checkpoints of another are refused.
    pub fn architecture_fingerprint(&self, features: &Features) -> Result<String> {
        let hash = network_hash(&self.network(features))?;
        Ok(format!("{}-{hash:016x}", self.model.name()))
    }
}

/// The full configuration of a network.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum NetworkConfig {
    ReTreever(ReTreeverConfig),
    Dense(CrossAttentionConfig),
    Perceiver(PerceiverIoConfig),
}
