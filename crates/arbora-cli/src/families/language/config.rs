//! Settings of a run on language: a TreeCoder, or what it is compared with, predicts each next token.

use super::LanguageModel;
use super::data::{LanguageSource, TokenizerSource};
use crate::families::{attention, check, kind, network_hash};
use anyhow::{Result, anyhow, bail};
use arbora::attention::AttentionKindConfig;
use arbora::models::init::stable_hash;
use arbora::models::tree_coder::{
    LeafHead, RouteOn, SelectorBalance, SelectorConfig, SelectorGradient, SelectorKind,
    TreeCoderConfig,
};
use arbora::rl::BaselineConfig;
use arbora::rl::seed::{Purpose, derive};
use arbora::rl::train::TrainerConfig;
use arbora::tasks::text::Tokenizer;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

kind! {
    /// What is learned.
    LanguageTask {
        /// Language modelling: predict each next token of a text.
        Lm = "lm",
    }
}

kind! {
    /// Which model learns it. All predict the same tokens.
    LanguageModelKind {
        /// A tree of transformer blocks whose selectors learn.
        TreeCoder = "tree-coder",
        /// A transformer as deep as one path through the tree: a control with the same compute.
        LinearActive = "linear-active",
        /// A transformer as deep as one path through the tree, and wider, with as many parameters as the whole
        /// tree: a control of the same size.
        LinearTotal = "linear-total",
        /// The tree with random routes, in training and evaluation: a control.
        RandomRoute = "random-route",
        /// The tree with routes by a hash of the tokens that a selector would read: a control.
        HashRoute = "hash-route",
    }
}

impl LanguageModelKind {
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
    pub d_model: usize,
    #[serde(alias = "heads")]
    pub n_heads: usize,
    #[serde(alias = "kv_heads")]
    pub n_kv_heads: usize,
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

/// Everything that determines a run's numbers. [`Common`](crate::families::Common) says what all families have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageConfig {
    pub task: LanguageTask,
    pub model: LanguageModelKind,
    pub data: LanguageSource,
    /// Sequences per training step.
    pub batch_size: usize,
    pub eval_batch_size: usize,
    pub eval_items: usize,
    pub test_items: usize,
    pub architecture: LanguageArchitecture,
    pub selector: SelectorSettings,
    /// Weight of the balance of the trees inside of attention, for kinds that have some.
    pub lambda_attention: f64,
    pub trainer: TrainerConfig,
}

impl LanguageConfig {
    /// Checks that every setting is in its range and goes with the others.
    pub fn check(&self) -> Result<()> {
        let a = &self.architecture;
        let sizes = [
            ("batch_size", self.batch_size, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("eval_items", self.eval_items, 0),
            ("test_items", self.test_items, 0),
            ("data.window", self.data.window, 2),
            ("architecture.d_model", a.d_model, 1),
            ("architecture.n_heads", a.n_heads, 1),
            ("architecture.n_kv_heads", a.n_kv_heads, 1),
        ];
        let blocks = a.blocks.iter();
        let blocks = blocks.map(|value| ("architecture.blocks", *value, 1));
        let d_ff = a.d_ff.iter().map(|value| ("architecture.d_ff", *value, 1));
        check::sizes(sizes.into_iter().chain(blocks).chain(d_ff))?;
        if let TokenizerSource::Bpe { vocabulary } = self.data.tokenizer {
            check::sizes([("data.tokenizer.vocabulary", vocabulary, 257)])?;
        }
        check::section("data", self.windows().check())?;
        self.check_route()?;
        // The vocabulary that the tokenizer will have does not matter here.
        self.tree(1).check().map_err(|error| {
            if error.setting.starts_with("selector") {
                anyhow!("{error}")
            } else {
                anyhow!("architecture.{error}")
            }
        })?;
        check::weights([
            ("lambda_attention", self.lambda_attention),
            ("selector.rate", self.selector.rate),
        ])?;
        check::trainer(&self.trainer)?;
        self.check_baseline()
    }

    /// What selectors read must not be what is predicted, and must leave something to predict.
    fn check_route(&self) -> Result<()> {
        let window = self.data.window;
        let reads_targets = |name: &str| {
            anyhow!(
                "architecture.route_on: {name} reads tokens that a language model must predict; use first-n or previous-chunk"
            )
        };
        match self.architecture.route_on {
            RouteOn::FirstN { tokens } if !(1..window).contains(&tokens) => bail!(
                "architecture.route_on.tokens: expected 1 to below data.window = {window}, got {tokens}"
            ),
            RouteOn::PreviousChunk { tokens } if !(1..=window).contains(&tokens) => bail!(
                "architecture.route_on.tokens: expected 1 to data.window = {window}, got {tokens}"
            ),
            RouteOn::LastToken => Err(reads_targets("last-token")),
            RouteOn::MeanAll => Err(reads_targets("mean-all")),
            RouteOn::FirstN { .. } | RouteOn::PreviousChunk { .. } => Ok(()),
        }
    }

    fn check_baseline(&self) -> Result<()> {
        let learns = self.model.learns() && self.selector.gradient == SelectorGradient::Reinforce;
        let needs = match self.trainer.policy_gradient.baseline {
            BaselineConfig::LeaveOneOut if learns => "several samples of a route",
            BaselineConfig::SelfCritical if learns => "a second, greedy pass",
            _ => return Ok(()),
        };
        bail!(
            "trainer.policy_gradient.baseline: needs {needs}, which language models do not take; use none, constant, moving_average or batch_mean"
        )
    }

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
        let (kind, balances) = (a.attention.clone(), self.lambda_attention > 0.0);
        let attention = attention::of_run(kind, self.trainer.seed, balances, false);
        TreeCoderConfig::new(vocabulary, self.data.window)
            .with_d_model(a.d_model)
            .with_n_heads(a.n_heads)
            .with_n_kv_heads(Some(a.n_kv_heads))
            .with_branching(a.branching)
            .with_height(a.height)
            .with_blocks(a.blocks.clone())
            .with_d_ff(a.d_ff.clone())
            .with_dropout(a.dropout)
            .with_attention(attention)
            .with_route_on(a.route_on)
            .with_selector(selector)
            .with_head(a.head)
    }

    /// The model before its first step, for a vocabulary.
    pub fn untrained_for(&self, vocabulary: usize, device: &Device) -> LanguageModel {
        let seed = derive(self.trainer.seed, Purpose::Parameters);
        LanguageModel::new(
            self,
            self.tree_coder(vocabulary).with_seed(seed).init(device),
        )
    }

    /// Names the architecture and the tokenizer: checkpoints of others are refused.
    pub fn fingerprint_with(&self, tokenizer: &Tokenizer) -> Result<String> {
        let network = network_hash(&self.tree_coder(tokenizer.vocabulary()))?;
        let tokenizer = stable_hash(&tokenizer.fingerprint());
        let model = self.model.name();
        Ok(format!("{model}-{network:016x}-tokenizer-{tokenizer:016x}"))
    }
}
