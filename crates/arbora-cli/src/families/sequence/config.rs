//! Settings of a run on sequences: a transformer classifies tokens, and its attention is of some kind.

use super::data::SequenceSource;
use crate::families::{attention, check, kind, network_hash};
use anyhow::{Result, anyhow, bail};
use arbora::attention::baselines::{BigBirdConfig, LinformerConfig, PerformerConfig};
use arbora::attention::{AttentionKindConfig, RouterConfig, TreeCoarseConfig, TreeFineConfig};
use arbora::models::TreeformerConfig;
use arbora::rl::train::TrainerConfig;
use arbora::tasks::recall::Lookup;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

kind! {
    /// What is learned.
    SequenceTask {
        /// Multi-query associative recall: many pairs of a key and a value, then keys that ask for theirs.
        Recall = "recall",
        /// Needles in a haystack: few pairs among tokens that mean nothing, asked for at the end.
        Needle = "needle",
    }
}

kind! {
    /// How the transformer attends.
    SequenceModelKind {
        /// To all tokens.
        Dense = "dense",
        /// Within the leaves of binary trees: TF-Attention.
        TreeFine = "tree-fine",
        /// Within the leaves of k-ary trees.
        TreeFineKary = "tree-fine-kary",
        /// To means over the nodes of trees: TC-Attention.
        TreeCoarse = "tree-coarse",
        /// To learned mixtures of tokens.
        Linformer = "linformer",
        /// To a window, random blocks and global ones.
        BigBird = "big-bird",
        /// By random features.
        Performer = "performer",
    }
}

/// The network, less what the data decide and how it attends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceArchitecture {
    pub d_model: usize,
    #[serde(alias = "heads")]
    pub n_heads: usize,
    #[serde(alias = "kv_heads")]
    pub n_kv_heads: usize,
    pub layers: usize,
    pub d_ff: usize,
    /// Whether tokens have learned positions.
    pub positions: bool,
    /// Whether every token gets a learned map of the one before it.
    pub local_mixing: bool,
    /// Whether a token sees none after it.
    pub causal: bool,
    /// Dropout after embeddings, in MLPs, and after attention and MLPs.
    pub dropout: f64,
    /// Blocks that attend densely whatever the model, counted from the tokens.
    pub dense_layers: usize,
}

/// The settings of every way to attend; a run uses those of its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionSettings {
    pub tree_fine: TreeFineConfig,
    pub tree_fine_kary: TreeFineConfig,
    /// Of `tree-coarse`, which takes no alignment.
    pub tree_coarse: TreeCoarseConfig,
    /// Of `linformer`; the most tokens are those of the data.
    pub linformer: LinformerConfig,
    pub big_bird: BigBirdConfig,
    pub performer: PerformerConfig,
}

impl AttentionSettings {
    /// Those of a model.
    fn kind(&self, model: SequenceModelKind) -> AttentionKindConfig {
        use AttentionKindConfig as Attention;
        match model {
            SequenceModelKind::Dense => Attention::Dense,
            SequenceModelKind::TreeFine => Attention::TreeFine(self.tree_fine.clone()),
            SequenceModelKind::TreeFineKary => Attention::TreeFine(self.tree_fine_kary.clone()),
            SequenceModelKind::TreeCoarse => Attention::TreeCoarse(self.tree_coarse.clone()),
            SequenceModelKind::Linformer => Attention::Linformer(self.linformer.clone()),
            SequenceModelKind::BigBird => Attention::BigBird(self.big_bird.clone()),
            SequenceModelKind::Performer => Attention::Performer(self.performer.clone()),
        }
    }
}

/// How trees learn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeTraining {
    /// Weight of the loss against skewed trees.
    pub lambda_balance: f64,
    /// Weight of the loss that aligns routes with dense attention.
    pub lambda_alignment: f64,
    /// Whether the candidates of `top-margin` fall from 4 to 2 to 1 at thirds of the run, whatever the
    /// surrogate says.
    pub anneal: bool,
    /// Learning rate of trees relative to that of all other parameters.
    pub rate: f64,
    /// Whether new trees start by splitting a batch evenly; otherwise their directions are random and their
    /// biases 0.
    pub median_split: bool,
}

/// Everything that determines a run's numbers. [`Common`](crate::families::Common) says what all families have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceConfig {
    pub task: SequenceTask,
    pub model: SequenceModelKind,
    /// The trained run whose weights this one starts from; none with `null`.
    pub from: Option<PathBuf>,
    pub data: SequenceSource,
    /// Sequences of full length per training step.
    pub batch_size: usize,
    pub eval_batch_size: usize,
    pub eval_items: usize,
    pub test_items: usize,
    pub architecture: SequenceArchitecture,
    pub attention: AttentionSettings,
    pub trees: TreeTraining,
    pub trainer: TrainerConfig,
}

impl SequenceConfig {
    /// Checks that every setting is in its range and goes with the others.
    pub fn check(&self) -> Result<()> {
        if self.data.task() != self.task {
            bail!("data: expected those of task {}", self.task.name());
        }
        let a = &self.architecture;
        check::sizes([
            ("batch_size", self.batch_size, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("eval_items", self.eval_items, 1),
            ("test_items", self.test_items, 1),
            ("architecture.d_model", a.d_model, 1),
            ("architecture.n_heads", a.n_heads, 1),
            ("architecture.n_kv_heads", a.n_kv_heads, 1),
            ("architecture.layers", a.layers, 1),
            ("architecture.d_ff", a.d_ff, 1),
        ])?;
        let trees = &self.trees;
        check::weights([
            ("trees.lambda_balance", trees.lambda_balance),
            ("trees.lambda_alignment", trees.lambda_alignment),
            ("trees.rate", trees.rate),
        ])?;
        let others = &self.attention;
        check::sizes([
            ("attention.linformer.rank", others.linformer.rank, 1),
            ("attention.big_bird.block", others.big_bird.block, 1),
            ("attention.big_bird.window", others.big_bird.window, 1),
            ("attention.big_bird.random", others.big_bird.random, 0),
            ("attention.big_bird.global", others.big_bird.global, 0),
            ("attention.performer.features", others.performer.features, 1),
        ])?;
        for (key, model) in [
            ("attention.tree_fine", SequenceModelKind::TreeFine),
            ("attention.tree_fine_kary", SequenceModelKind::TreeFineKary),
            ("attention.tree_coarse", SequenceModelKind::TreeCoarse),
            ("attention.big_bird", SequenceModelKind::BigBird),
        ] {
            // Those of another model need not fit the heads of this one.
            let own = model == self.model;
            let kv_heads = if own { a.n_kv_heads } else { a.n_heads };
            check::section(key, others.kind(model).check(a.n_heads, kv_heads))?;
        }
        let network = self.treeformer(&self.data.lookup()?);
        network
            .check()
            .map_err(|error| match error.setting.as_str() {
                "attention" => anyhow!("model: expected {}, got {}", error.expected, error.got),
                _ => anyhow!("architecture.{error}"),
            })?;
        check::trainer(&self.trainer)
    }

    /// How all but the lowest layers attend, with seeds of the run.
    pub fn attention_kind(&self, tokens: usize) -> AttentionKindConfig {
        let mut kind = self.attention.kind(self.model);
        if let AttentionKindConfig::Linformer(linformer) = &mut kind {
            linformer.max_tokens = tokens;
        }
        let trees = &self.trees;
        let (balances, aligns) = (trees.lambda_balance > 0.0, trees.lambda_alignment > 0.0);
        attention::of_run(kind, self.trainer.seed, balances, aligns)
    }

    /// The settings of the model's trees, if it has any.
    pub fn router(&self) -> Option<&RouterConfig> {
        match self.model {
            SequenceModelKind::TreeFine => Some(&self.attention.tree_fine.router),
            SequenceModelKind::TreeFineKary => Some(&self.attention.tree_fine_kary.router),
            SequenceModelKind::TreeCoarse => Some(&self.attention.tree_coarse.router),
            _ => None,
        }
    }

    /// The network's full configuration for these sequences.
    pub fn treeformer(&self, lookup: &Lookup) -> TreeformerConfig {
        let a = &self.architecture;
        TreeformerConfig::new(lookup.vocabulary(), lookup.classes())
            .with_d_model(a.d_model)
            .with_n_heads(a.n_heads)
            .with_n_kv_heads(Some(a.n_kv_heads))
            .with_layers(a.layers)
            .with_d_ff(a.d_ff)
            .with_max_positions(if a.positions { lookup.length() } else { 0 })
            .with_local_mixing(a.local_mixing)
            .with_causal(a.causal)
            .with_dropout(a.dropout)
            .with_attention(self.attention_kind(lookup.length()))
            .with_dense_layers(a.dense_layers)
    }

    /// Names the model's architecture: checkpoints of another are refused.
    pub(super) fn architecture_fingerprint(&self, lookup: &Lookup) -> Result<String> {
        let hash = network_hash(&self.treeformer(lookup))?;
        Ok(format!("{}-{hash:016x}", self.model.name()))
    }
}
