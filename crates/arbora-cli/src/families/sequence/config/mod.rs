//! Configuration of a run on sequences: a transformer classifies tokens, and its attention is of some kind.

mod check;
mod preset;

use super::data::SequenceSource;
use anyhow::Result;
use arbora::attention::baselines::{BigBirdConfig, LinformerConfig, PerformerConfig};
use arbora::attention::{AttentionKindConfig, RouterConfig, TreeCoarseConfig, TreeFineConfig};
use arbora::models::TreeformerConfig;
use arbora::models::init::stable_hash;
use arbora::rl::train::TrainerConfig;
use arbora::tasks::recall::Lookup;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SequenceTask {
    /// Multi-query associative recall: many pairs of a key and a value, then keys that ask for theirs.
    Recall,
    /// Needles in a haystack: few pairs among tokens that mean nothing, asked for at the end.
    Needle,
}

impl SequenceTask {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recall => "recall",
            Self::Needle => "needle",
        }
    }
}

/// How the transformer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SequenceModelKind {
    /// To all tokens.
    Dense,
    /// Within the leaves of binary trees: TF-Attention.
    TreeFine,
    /// Within the leaves of k-ary trees.
    TreeFineKary,
    /// To means over the nodes of trees: TC-Attention.
    TreeCoarse,
    /// To learned mixtures of tokens.
    Linformer,
    /// To a window, random blocks and global ones.
    BigBird,
    /// By random features.
    Performer,
}

impl SequenceModelKind {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::TreeFine => "tree-fine",
            Self::TreeFineKary => "tree-fine-kary",
            Self::TreeCoarse => "tree-coarse",
            Self::Linformer => "linformer",
            Self::BigBird => "big-bird",
            Self::Performer => "performer",
        }
    }
}

/// The network, less what the data decide and how it attends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceArchitecture {
    /// Width of tokens.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Width inside the MLPs.
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
    /// Of `tree-fine`.
    pub tree_fine: TreeFineConfig,
    /// Of `tree-fine-kary`.
    pub tree_fine_kary: TreeFineConfig,
    /// Of `tree-coarse`, which takes no alignment.
    pub tree_coarse: TreeCoarseConfig,
    /// Of `linformer`; the most tokens are those of the data.
    pub linformer: LinformerConfig,
    /// Of `big-bird`.
    pub big_bird: BigBirdConfig,
    /// Of `performer`.
    pub performer: PerformerConfig,
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

/// Everything that determines a run's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceConfig {
    /// What is learned.
    pub task: SequenceTask,
    /// How the transformer attends.
    pub model: SequenceModelKind,
    /// The trained run whose weights this one starts from; none with `null`.
    pub from: Option<PathBuf>,
    /// Where the sequences come from.
    pub data: SequenceSource,
    /// Sequences of full length per training step.
    pub batch_size: usize,
    /// Sequences per evaluation batch.
    pub eval_batch_size: usize,
    /// Sequences measured during training.
    pub eval_items: usize,
    /// Sequences measured at the end and by `arbora eval`.
    pub test_items: usize,
    /// The network.
    pub architecture: SequenceArchitecture,
    /// Every way to attend.
    pub attention: AttentionSettings,
    /// How trees learn.
    pub trees: TreeTraining,
    /// The optimiser and the schedule.
    pub trainer: TrainerConfig,
}

impl SequenceConfig {
    /// The sequences.
    ///
    /// # Errors
    /// If they do not fit together.
    pub fn lookup(&self) -> Result<Lookup> {
        self.data.lookup()
    }

    /// How all but the lowest layers attend, with seeds of the run.
    pub fn attention_kind(&self, tokens: usize) -> AttentionKindConfig {
        let purpose = arbora::rl::seed::Purpose::Parameters;
        let seed = arbora::rl::seed::derive(self.trainer.seed, purpose);
        let settings = &self.attention;
        let seeded = |router: &RouterConfig| RouterConfig {
            seed: router.seed.wrapping_add(seed),
            // What no loss reads is not computed.
            balance_loss: self.trees.lambda_balance > 0.0,
            alignment: router
                .alignment
                .filter(|_| self.trees.lambda_alignment > 0.0),
            ..router.clone()
        };
        let fine = |tree: &TreeFineConfig| {
            AttentionKindConfig::TreeFine(TreeFineConfig {
                router: seeded(&tree.router),
                ..tree.clone()
            })
        };
        match self.model {
            SequenceModelKind::Dense => AttentionKindConfig::Dense,
            SequenceModelKind::TreeFine => fine(&settings.tree_fine),
            SequenceModelKind::TreeFineKary => fine(&settings.tree_fine_kary),
            SequenceModelKind::TreeCoarse => AttentionKindConfig::TreeCoarse(TreeCoarseConfig {
                router: seeded(&settings.tree_coarse.router),
                ..settings.tree_coarse.clone()
            }),
            SequenceModelKind::Linformer => AttentionKindConfig::Linformer(LinformerConfig {
                max_tokens: tokens,
                ..settings.linformer.clone()
            }),
            SequenceModelKind::BigBird => AttentionKindConfig::BigBird(BigBirdConfig {
                seed: settings.big_bird.seed.wrapping_add(seed),
                ..settings.big_bird.clone()
            }),
            SequenceModelKind::Performer => AttentionKindConfig::Performer(PerformerConfig {
                seed: settings.performer.seed.wrapping_add(seed),
                ..settings.performer.clone()
            }),
        }
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
            .with_n_heads(a.heads)
            .with_n_kv_heads(Some(a.kv_heads))
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
    ///
    /// # Errors
    /// If the configuration cannot be written as JSON.
    pub(super) fn architecture_fingerprint(&self, lookup: &Lookup) -> Result<String> {
        let text = serde_json::to_string(&self.treeformer(lookup))?;
        Ok(format!("{}-{:016x}", self.model.name(), stable_hash(&text)))
    }
}
