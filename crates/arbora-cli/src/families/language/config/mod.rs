//! Configuration of a run on language: a TreeCoder, or what it is compared with, predicts each next token.

mod check;
mod preset;

use super::LanguageModel;
use super::data::LanguageSource;
use anyhow::Result;
use arbora::attention::{AttentionKindConfig, TreeCoarseConfig, TreeFineConfig};
use arbora::models::init::stable_hash;
use arbora::models::tree_coder::{
    LeafHead, RouteOn, SelectorBalance, SelectorConfig, SelectorGradient, SelectorKind,
    TreeCoderConfig,
};
use arbora::rl::seed::{Purpose, derive};
use arbora::rl::train::TrainerConfig;
use arbora::tasks::text::Tokenizer;
use burn::tensor::Device;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LanguageTask {
    /// Language modelling: predict each next token of a text.
    Lm,
}

impl LanguageTask {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lm => "lm",
        }
    }
}

/// Which model learns it. All predict the same tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LanguageModelKind {
    /// A tree of transformer blocks whose selectors learn.
    TreeCoder,
    /// A transformer as deep as one path through the tree: a control with the same compute.
    LinearActive,
    /// A transformer as deep as one path through the tree, and wider, with as many parameters as the whole
    /// tree: a control of the same size.
    LinearTotal,
    /// The tree with random routes, in training and evaluation: a control.
    RandomRoute,
    /// The tree with routes by a hash of the tokens that a selector would read: a control.
    HashRoute,
}

impl LanguageModelKind {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::TreeCoder => "tree-coder",
            Self::LinearActive => "linear-active",
            Self::LinearTotal => "linear-total",
            Self::RandomRoute => "random-route",
            Self::HashRoute => "hash-route",
        }
    }

    /// Whether it has more than one node to send text to.
    pub fn has_tree(self) -> bool {
        !matches!(self, Self::LinearActive | Self::LinearTotal)
    }

    /// Whether it has selectors that learn.
    pub fn learns(self) -> bool {
        self == Self::TreeCoder
    }

    fn selector(self) -> SelectorKind {
        match self {
            Self::RandomRoute => SelectorKind::Random,
            Self::HashRoute => SelectorKind::Hash,
            _ => SelectorKind::Learned,
        }
    }
}

/// The network, less what the data decide and how selectors learn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageArchitecture {
    /// Width of tokens.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Children of a node.
    pub branching: usize,
    /// Decisions from the root to a leaf.
    pub height: usize,
    /// Transformer blocks of a node, for every level from the root, or one number for all levels.
    pub blocks: Vec<usize>,
    /// Width inside the MLPs, for every level from the root, or one number for all levels.
    pub d_ff: Vec<usize>,
    /// What selectors read: `first-n` or `previous-chunk`, which read no token that is to be predicted.
    pub route_on: RouteOn,
    /// Whose probabilities a leaf gives.
    pub head: LeafHead,
    /// How tokens attend, in every block.
    pub attention: AttentionKindConfig,
    /// Dropout after embeddings, in MLPs, and after attention and MLPs.
    pub dropout: f64,
}

/// How selectors learn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectorSettings {
    /// How decisions get a gradient.
    pub gradient: SelectorGradient,
    /// What keeps leaves in use.
    pub balance: SelectorBalance,
    /// Width of a hidden layer; none with `null`.
    pub hidden: Option<usize>,
    /// Whether gradients stop at what selectors read: then they shape nothing but the selectors.
    pub detach: bool,
    /// Learning rate of selectors relative to that of all other parameters. A selector that learns as fast as
    /// the rest is sure before its children differ.
    pub rate: f64,
}

/// Everything that determines a run's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageConfig {
    /// What is learned.
    pub task: LanguageTask,
    /// Which model learns it.
    pub model: LanguageModelKind,
    /// The text.
    pub data: LanguageSource,
    /// Sequences per training step.
    pub batch_size: usize,
    /// Sequences per evaluation batch.
    pub eval_batch_size: usize,
    /// Sequences measured during training; 0 means all.
    pub eval_items: usize,
    /// Sequences measured at the end and by `arbora eval`; 0 means all.
    pub test_items: usize,
    /// The network.
    pub architecture: LanguageArchitecture,
    /// How selectors learn.
    pub selector: SelectorSettings,
    /// Weight of the balance of the trees inside of attention, for kinds that have some.
    pub lambda_attention: f64,
    /// The optimiser, the policy gradient and the schedule.
    pub trainer: TrainerConfig,
}

impl LanguageConfig {
    /// The network's full configuration for a vocabulary.
    pub fn tree_coder(&self, vocabulary: usize) -> TreeCoderConfig {
        let tree = self.tree(vocabulary);
        match self.model {
            LanguageModelKind::LinearActive => tree.linear_active(),
            LanguageModelKind::LinearTotal => tree.linear_total(),
            _ => tree,
        }
    }

    /// The tree, which the linear models are made from.
    fn tree(&self, vocabulary: usize) -> TreeCoderConfig {
        let a = &self.architecture;
        let selector = SelectorConfig::new()
            .with_kind(self.model.selector())
            .with_hidden(self.selector.hidden)
            .with_gradient(self.selector.gradient)
            .with_balance(self.selector.balance)
            .with_detach(self.selector.detach);
        TreeCoderConfig::new(vocabulary, self.data.window)
            .with_d_model(a.d_model)
            .with_n_heads(a.heads)
            .with_n_kv_heads(Some(a.kv_heads))
            .with_branching(a.branching)
            .with_height(a.height)
            .with_blocks(a.blocks.clone())
            .with_d_ff(a.d_ff.clone())
            .with_dropout(a.dropout)
            .with_attention(self.attention())
            .with_route_on(a.route_on)
            .with_selector(selector)
            .with_head(a.head)
    }

    /// How tokens attend, with seeds of the run.
    fn attention(&self) -> AttentionKindConfig {
        let seed = derive(self.trainer.seed, Purpose::Parameters);
        let mut kind = self.architecture.attention.clone();
        match &mut kind {
            AttentionKindConfig::TreeFine(TreeFineConfig { router, .. })
            | AttentionKindConfig::TreeCoarse(TreeCoarseConfig { router, .. }) => {
                router.seed = router.seed.wrapping_add(seed);
                // What no loss reads is not computed.
                router.balance_loss = self.lambda_attention > 0.0;
                router.alignment = None;
            }
            AttentionKindConfig::BigBird(big_bird) => {
                big_bird.seed = big_bird.seed.wrapping_add(seed);
            }
            AttentionKindConfig::Performer(performer) => {
                performer.seed = performer.seed.wrapping_add(seed);
            }
            AttentionKindConfig::Dense | AttentionKindConfig::Linformer(_) => {}
        }
        kind
    }

    /// The model before its first step, for a vocabulary.
    pub fn untrained_for(&self, vocabulary: usize, device: &Device) -> LanguageModel {
        let seed = derive(self.trainer.seed, Purpose::Parameters);
        LanguageModel::new(self, self.tree_coder(vocabulary).init(seed, device))
    }

    /// Names the architecture and the tokenizer: checkpoints of others are refused.
    ///
    /// # Errors
    /// If the configuration cannot be written as JSON.
    pub fn fingerprint_with(&self, tokenizer: &Tokenizer) -> Result<String> {
        let network = serde_json::to_string(&self.tree_coder(tokenizer.vocabulary()))?;
        let [network, tokenizer] =
            [network, tokenizer.fingerprint()].map(|text| stable_hash(&text));
        let model = self.model.name();
        Ok(format!("{model}-{network:016x}-tokenizer-{tokenizer:016x}"))
    }
}
