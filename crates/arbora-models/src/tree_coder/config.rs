//! Settings of a TreeCoder, and what they must fulfil.

use crate::block::{TransformerBlockConfig, check_causal};
use arbora_attention::AttentionKindConfig;
use arbora_tree::ConfigError;
use arbora_tree::shape::CompleteTree;
use burn::config::Config;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Which hidden states a selector reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RouteOn {
    /// The mean over the first tokens of a sequence: its prompt. A language model is not to be trained to
    /// predict tokens of the prompt, since these choose the route that they are predicted on.
    FirstN {
        /// Tokens of the prompt.
        tokens: usize,
    },
    /// The mean over the chunk before: a sequence is cut into chunks, and each has a route of its own. The first
    /// chunk is routed by the biases of the selectors alone.
    PreviousChunk {
        /// Tokens of a chunk.
        tokens: usize,
    },
    /// The last token that is not padding. For classification: no token may be predicted before it.
    LastToken,
    /// The mean over all tokens that are not padding. For encoders.
    MeanAll,
}

impl RouteOn {
    /// Which tokens of a sequence of `count` say where one of its chunks goes.
    pub(super) fn read(self, chunk: usize, count: usize) -> Range<usize> {
        match self {
            Self::FirstN { tokens } => 0..tokens.min(count),
            Self::PreviousChunk { tokens } => chunk.saturating_sub(1) * tokens..chunk * tokens,
            Self::LastToken | Self::MeanAll => 0..count,
        }
    }

    /// Whether a causal model that is routed so can be trained to predict each next token after the prompt, and
    /// can generate.
    pub fn is_causal(self) -> bool {
        matches!(self, Self::FirstN { .. } | Self::PreviousChunk { .. })
    }

    /// Tokens at the beginning of a sequence that no loss may ask for.
    pub fn prompt(self) -> usize {
        match self {
            Self::FirstN { tokens } => tokens,
            _ => 0,
        }
    }
}

/// How children are chosen.
///
/// Selectors of all kinds have the same parameters, and weigh a child as [`SelectorGradient`] says: the controls differ
/// in the decisions alone. With [`SelectorGradient::Reinforce`] and [`SelectorGradient::Soft`] the controls weigh it by 1,
/// and their selectors do not learn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelectorKind {
    /// A classifier that learns.
    #[default]
    Learned,
    /// Chance: a control. Every item goes to a leaf drawn by the seed of the call and its number in the batch, in
    /// training and in evaluation.
    Random,
    /// A hash of the tokens that a selector would read, all of them with [`RouteOn::LastToken`]: a control (Hash
    /// Layers, arXiv 2106.04426).
    Hash,
}

/// How a selector gets a gradient through its decision. A child turns `x` into `y`, with probability `p`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum SelectorGradient {
    /// `x + p (y - x)`: Switch Transformers' scale, on what the child adds. Evaluation scales as well.
    #[default]
    ScaledDelta,
    /// `x + p / stop(p) (y - x)`: the value of the child, unscaled.
    ValuePreserving,
    /// As value-preserving, but with Gumbel noise on the scores while training, and the gradient of the softmax
    /// at a temperature.
    GumbelStraightThrough {
        /// Temperature of the softmax.
        temperature: f64,
    },
    /// All children, weighted by their probabilities: exact, at the cost of the whole tree. An oracle for
    /// small trees. Chunks of [`RouteOn::PreviousChunk`] then see all chunks before them, at every node.
    Soft,
    /// Children are drawn while training, and the log-probability of the path is returned for a policy gradient.
    Reinforce,
}

/// What keeps leaves in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum SelectorBalance {
    /// Nothing.
    #[default]
    None,
    /// Switch Transformers' auxiliary loss at every node (arXiv 2101.03961, section 2.2).
    SwitchLoss {
        /// Weight of the loss, beside the task's.
        weight: f64,
    },
    /// A bias per child that is added to the probabilities where decisions are taken, and nowhere else: it moves
    /// against the load (arXiv 2408.15664, algorithm 1).
    LossFree {
        /// Step of the bias per forward pass of training.
        rate: f64,
    },
}

/// Configuration of the selectors.
#[derive(Config, Debug, PartialEq)]
pub struct SelectorConfig {
    /// How children are chosen.
    #[config(default = "SelectorKind::Learned")]
    pub kind: SelectorKind,
    /// Width of a hidden layer; `None`: a linear classifier.
    #[config(default = "None")]
    pub hidden: Option<usize>,
    /// How decisions learn.
    #[config(default = "SelectorGradient::ScaledDelta")]
    pub gradient: SelectorGradient,
    /// What keeps leaves in use, where routes are learned.
    #[config(default = "SelectorBalance::None")]
    pub balance: SelectorBalance,
    /// Whether selectors read hidden states without passing a gradient on to them: they then learn to tell
    /// sequences apart by what is there, and do not reshape it.
    #[config(default = "false")]
    pub detach: bool,
}

/// Which head a leaf predicts with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeafHead {
    /// One head for all leaves.
    #[default]
    Shared,
    /// Every leaf has a head of its own.
    PerLeaf,
}

/// Configuration of [`TreeCoder`](super::TreeCoder).
#[derive(Config, Debug)]
pub struct TreeCoderConfig {
    /// Different tokens.
    pub vocabulary: usize,
    /// Longest sequence, which is the number of learned positions.
    pub context: usize,
    /// Classes predicted at every token; `None`: the vocabulary, as a language model predicts.
    #[config(default = "None")]
    pub classes: Option<usize>,
    /// Width of tokens.
    #[config(default = 64)]
    pub d_model: usize,
    /// Query heads; must divide `d_model`.
    #[config(default = 2)]
    pub n_heads: usize,
    /// Key and value heads, which must divide `n_heads`; `None` means as many.
    #[config(default = "None")]
    pub n_kv_heads: Option<usize>,
    /// Children of every node that has some; at least 2.
    #[config(default = 2)]
    pub branching: usize,
    /// Decisions from root to leaf. 0 is a linear transformer: one node.
    #[config(default = 2)]
    pub height: usize,
    /// Transformer blocks of a node, for every level from the root, or one number for all levels.
    #[config(default = "vec![1]")]
    pub blocks: Vec<usize>,
    /// Width inside the MLPs, for every level from the root, or one number for all levels. At height 0 there may be
    /// one for each block of the only node.
    #[config(default = "vec![256]")]
    pub d_ff: Vec<usize>,
    /// Whether a token sees none after it: decoder blocks. Otherwise encoder blocks.
    #[config(default = true)]
    pub causal: bool,
    /// Dropout after embeddings, in MLPs, and after attention and MLPs.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// How tokens attend, in every block.
    #[config(default = "AttentionKindConfig::Dense")]
    pub attention: AttentionKindConfig,
    /// What selectors read.
    #[config(default = "RouteOn::FirstN { tokens: 16 }")]
    pub route_on: RouteOn,
    /// The selectors.
    #[config(default = "SelectorConfig::new()")]
    pub selector: SelectorConfig,
    /// Which head a leaf predicts with.
    #[config(default = "LeafHead::Shared")]
    pub head: LeafHead,
    /// Seed of the weights: one seed gives the same weights on every backend.
    #[config(default = 0)]
    pub seed: u64,
}

impl TreeCoderConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// With the first setting that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_1([
            ("vocabulary", self.vocabulary),
            ("context", self.context),
            ("classes", self.classes.unwrap_or(1)),
        ])?;
        let branching = self.branching;
        ConfigError::unless(branching >= 2, "branching", "at least 2", branching)?;
        for (setting, values) in [("blocks", &self.blocks), ("d_ff", &self.d_ff)] {
            let of_blocks = setting == "d_ff" && self.height == 0;
            let fits = values.len() == 1
                || Some(values.len()) == self.height.checked_add(1)
                || of_blocks && self.blocks == [values.len()];
            let expected = if of_blocks {
                "one number, or one for each block"
            } else {
                "one number, or one for each of the height + 1 levels"
            };
            let got = format!("{values:?} at height {}", self.height);
            ConfigError::unless(fits, setting, expected, &got)?;
            ConfigError::unless(!values.contains(&0), setting, "at least 1", got)?;
        }
        let countable = self.nodes().is_some_and(|nodes| nodes <= Self::MOST_NODES);
        let got = format!("{} with branching {branching}", self.height);
        ConfigError::unless(countable, "height", "a tree of at most 65536 nodes", got)?;
        if let RouteOn::FirstN { tokens } | RouteOn::PreviousChunk { tokens } = self.route_on {
            let holds = (1..=self.context).contains(&tokens);
            let expected = "at least 1 and at most the context";
            ConfigError::unless(holds, "route_on.tokens", expected, tokens)?;
        }
        self.block(0, 0, 0).check()?;
        if self.causal {
            check_causal(&self.attention)?;
        }
        if let AttentionKindConfig::Linformer(linformer) = &self.attention {
            let most = linformer.max_tokens;
            let expected = "at least the context, rounded up to whole chunks";
            ConfigError::unless(
                most >= self.padded(),
                "attention.max_tokens",
                expected,
                most,
            )?;
        }
        ConfigError::in_section("selector", self.selector.check())
    }

    /// Most tokens that a block gets: sequences are filled up to whole chunks.
    fn padded(&self) -> usize {
        self.context.next_multiple_of(self.chunk().unwrap_or(1))
    }

    /// Tokens of a chunk, where there are routes and each chunk has its own.
    pub(super) fn chunk(&self) -> Option<usize> {
        match self.route_on {
            RouteOn::PreviousChunk { tokens } if self.height > 0 => Some(tokens),
            _ => None,
        }
    }

    const MOST_NODES: usize = 1 << 16;

    /// Nodes of the tree; `None` where there are more than can be counted.
    fn nodes(&self) -> Option<usize> {
        let mut width: usize = 1;
        let mut nodes: usize = 1;
        for _ in 0..self.height {
            width = width.checked_mul(self.branching)?;
            nodes = nodes.checked_add(width)?;
        }
        Some(nodes)
    }

    /// The shape of the tree.
    pub fn tree(&self) -> CompleteTree {
        CompleteTree::uniform(self.branching, self.height)
    }

    /// Transformer blocks of a node at a depth.
    pub fn blocks_at(&self, depth: usize) -> usize {
        level(&self.blocks, depth)
    }

    /// Blocks that one sequence passes from the root to a leaf.
    pub fn active_blocks(&self) -> usize {
        (0..=self.height).map(|depth| self.blocks_at(depth)).sum()
    }

    /// What is predicted at every token.
    pub fn classes(&self) -> usize {
        self.classes.unwrap_or(self.vocabulary)
    }

    /// Width inside the MLP of a block.
    ///
    /// - place: of the block in its node
    pub fn d_ff_of(&self, depth: usize, place: usize) -> usize {
        match self.height {
            0 => level(&self.d_ff, place),
            _ => level(&self.d_ff, depth),
        }
    }

    /// - place: of the block in its node
    /// - layer: a number that no other block of the model has
    pub(super) fn block(&self, depth: usize, place: usize, layer: usize) -> TransformerBlockConfig {
        TransformerBlockConfig::new(self.d_model, self.n_heads, self.d_ff_of(depth, place))
            .with_n_kv_heads(self.n_kv_heads)
            .with_dropout(self.dropout)
            .with_attention(self.attention.for_layer(layer))
    }
}

/// The number of a level, where one number stands for all.
fn level(numbers: &[usize], depth: usize) -> usize {
    match numbers {
        [all] => *all,
        numbers => numbers[depth],
    }
}

impl SelectorConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// With the first setting that is out of its range, or does not go with the others.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_1([("hidden", self.hidden.unwrap_or(1))])?;
        if let SelectorGradient::GumbelStraightThrough { temperature } = self.gradient {
            ConfigError::unless_positive("gradient.temperature", temperature)?;
        }
        if self.kind == SelectorKind::Learned {
            match (self.gradient, self.balance) {
                (_, SelectorBalance::None) => {}
                (SelectorGradient::Soft, balance) => {
                    let expected = "none with soft selectors, which use all children";
                    let got = format!("{balance:?}");
                    return Err(ConfigError::new("balance", expected, got));
                }
                (SelectorGradient::Reinforce, SelectorBalance::LossFree { .. }) => {
                    let expected = "none or switch-loss with reinforce, whose samples follow the probabilities alone";
                    return Err(ConfigError::new("balance", expected, "loss-free"));
                }
                _ => {}
            }
        }
        match self.balance {
            SelectorBalance::None => Ok(()),
            SelectorBalance::SwitchLoss { weight } => {
                ConfigError::unless_positive("balance.weight", weight)
            }
            SelectorBalance::LossFree { rate } => {
                ConfigError::unless_positive("balance.rate", rate)
            }
        }
    }
}
