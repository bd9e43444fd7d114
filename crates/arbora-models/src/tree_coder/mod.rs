//! The TreeCoder: a tree of transformer blocks that routes each sequence to one leaf.

mod config;
mod decoder;
mod draws;
mod forward;
mod generate;
mod items;
mod node;
mod parameters;
mod placement;
mod route;
mod routes;
mod sampling;
mod selector;
mod soft;

pub use config::{
    LeafHead, RouteOn, SelectorBalance, SelectorConfig, SelectorGradient, SelectorKind,
    TreeCoderConfig,
};
pub use decoder::Decoder;
pub use forward::{LevelRouting, TreeCoderOptions, TreeCoderOutput, TreeCoderRouting};
pub use generate::{
    FinishReason, GREEDY_EPSILON, GenerateError, GenerateOptions, Generated, NewToken,
};
pub use node::{Head, Node};
pub use parameters::ParameterCounts;
pub use placement::{NodeName, Placement, PlacementError};
pub use selector::Selector;

use crate::check::expect_some;
use crate::init::{Initialization, seeded};
use arbora_tree::ConfigError;
use arbora_tree::shape::CompleteTree;
use burn::module::{Module, ParamId};
use burn::nn::{Dropout, DropoutConfig, Embedding, EmbeddingConfig};
use burn::tensor::{Device, Int, Tensor};

/// A complete tree of nodes of transformer blocks. Every sequence passes the nodes from the root to one leaf:
/// selectors outside the blocks choose the children (TreeCoders,
/// [D'Istria and Altahhan](https://arxiv.org/abs/2411.07218)).
///
/// Of height 0 it is the transformer that one compares with.
///
/// What the paper leaves open, and how it is here: blocks are pre-norm with a root mean square, positions are
/// learned, the route reads what [`RouteOn`] says, and decisions learn as [`SelectorGradient`] says.
///
/// Clones share the biases of loss-free balancing, as they share all running state of burn's modules: where one trains,
/// or moves to another device, those of all change.
#[derive(Module, Debug)]
pub struct TreeCoder {
    embedding: Embedding,
    positions: Embedding,
    dropout: Dropout,
    /// The nodes in level order, the root first.
    pub nodes: Vec<Node>,
    /// What all leaves predict with; `None` where every leaf has a head.
    pub head: Option<Head>,
    #[module(skip)]
    config: TreeCoderConfig,
}

impl TreeCoderConfig {
    /// Initialises the model on a device.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    #[track_caller]
    pub fn init(&self, device: &Device) -> TreeCoder {
        ConfigError::expect_ok("tree_coder", self.check());
        let table = |rows| EmbeddingConfig::new(rows, self.d_model).init(device);
        let tree = self.tree();
        let nodes = (0..=self.height)
            .flat_map(|depth| std::iter::repeat_n(depth, tree.width(depth)))
            .enumerate()
            .map(|(number, depth)| Node::new(self, number, depth, device))
            .collect();
        let model = TreeCoder {
            embedding: table(self.vocabulary),
            positions: table(self.context),
            dropout: DropoutConfig::new(self.dropout).init(),
            nodes,
            head: (self.head == LeafHead::Shared).then(|| Head::new(self, device)),
            config: self.clone(),
        };
        let mut model = seeded(model, self.seed, Initialization::Unit);
        for node in &mut model.nodes {
            node.selector = node.selector.take().map(Selector::with_even_start);
        }
        model
    }
}

/// `device`, recording gradients as another one does: not at all, or by the same strategy of checkpointing.
fn recording_as(other: &Device, device: &Device) -> Device {
    if !other.is_autodiff() {
        return device.clone();
    }
    let plain = device.clone().autodiff();
    let checkpointed = plain.clone().gradient_checkpointing();
    let strategy = Device::gradient_checkpointing_strategy;
    if strategy(other) == strategy(&checkpointed) {
        checkpointed
    } else {
        plain
    }
}

impl TreeCoder {
    /// What the model was made from.
    pub fn config(&self) -> &TreeCoderConfig {
        &self.config
    }

    /// The shape of the tree.
    pub fn tree(&self) -> CompleteTree {
        self.config.tree()
    }

    /// A node.
    ///
    /// # Panics
    /// If there is none at this depth and index.
    #[track_caller]
    pub fn node(&self, depth: usize, index: usize) -> &Node {
        let tree = self.tree();
        assert!(
            depth <= tree.height() && index < tree.width(depth),
            "tree_coder: node: expected a depth up to {} and an index below its width, got {depth} and {index}",
            tree.height()
        );
        &self.nodes[tree.offset(depth) + index]
    }

    /// The ids of the parameters of the selectors, in the order of the nodes. An optimiser should not decay them:
    /// decay draws probabilities together, and so undoes decisions that the loss no longer teaches.
    pub fn selector_parameter_ids(&self) -> Vec<ParamId> {
        let selectors = self.nodes.iter().filter_map(|node| node.selector.as_ref());
        selectors.flat_map(Selector::parameter_ids).collect()
    }

    /// The ids of the parameters of the trees that route tokens within the attention of blocks, in the order of the
    /// nodes. An optimiser should not decay them.
    pub fn tree_parameter_ids(&self) -> Vec<ParamId> {
        let blocks = self.nodes.iter().flat_map(|node| &node.blocks);
        blocks
            .flat_map(|block| block.attention.tree_parameter_ids())
            .collect()
    }

    /// Tokens as they come to the root, `[batch, tokens]` -> `[batch, tokens, d_model]`.
    ///
    /// - before: tokens of each sequence that came before these
    ///
    /// # Panics
    /// If there are no sequences, no tokens, or more than the context with those before.
    #[track_caller]
    pub fn embed(&self, tokens: Tensor<2, Int>, before: usize) -> Tensor<3> {
        let [batch, count] = tokens.dims();
        let context = self.config.context;
        expect_some("tree_coder: axis 0 of tokens", batch);
        assert!(
            count >= 1 && before + count <= context,
            "tree_coder: axis 1 of tokens: expected 1 to {context} tokens with those before, got {before} + {count}"
        );
        let device = tokens.device();
        let places = Tensor::<1, Int>::arange(before as i64..(before + count) as i64, &device);
        let positions = self.positions.forward(places.reshape([1, count]));
        self.dropout
            .forward(self.embedding.forward(tokens) + positions)
    }

    /// Feeds sequences to the model token by token. The decoder has a copy of the model without dropout, off the
    /// autodiff device; tensors are shared.
    ///
    /// # Errors
    /// If the model is not causal, what selectors read is not, or its classes are not its vocabulary.
    pub fn decoder(&self) -> Result<Decoder, GenerateError> {
        Decoder::new(self)
    }

    /// Continues prompts. None of them has an influence on another: each gets what it gets alone with the seed
    /// `seed + its index`, up to the rounding of sums over batches of another size.
    ///
    /// Routes are chosen, and weigh what children add, as in evaluation:
    ///
    /// - [`RouteOn::FirstN`]: by the first tokens of the prompt. A shorter prompt is not what the model was trained for:
    ///   [`Generated::short_prompt`] says so, and until there are enough tokens the route is chosen again at each of
    ///   them.
    /// - [`RouteOn::PreviousChunk`]: for each chunk when it begins, by the chunk before it.
    /// - With [`GenerateOptions::reroute`] a sequence starts again with its last tokens, on the route that these choose, so
    ///   that text may be longer than the context. Random routes are drawn again.
    ///
    /// Prompts of one length that take the same route advance together, see [`Decoder`]. A prompt that
    /// has ended costs nothing more.
    ///
    /// # Errors
    /// If the model is not a causal language model, an option is out of range, a prompt is empty, longer than the
    /// context or has a token that is not in the vocabulary, or logits are not finite.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
    ) -> Result<Vec<Generated>, GenerateError> {
        self.generate_each(prompts, options, |_| {})
    }

    /// As [`generate`](Self::generate), and calls `on_token` for each new token: of all prompts in turn, the first tokens
    /// first.
    ///
    /// # Errors
    /// As [`generate`](Self::generate). Tokens that came before were passed to `on_token`.
    pub fn generate_each(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        on_token: impl FnMut(NewToken),
    ) -> Result<Vec<Generated>, GenerateError> {
        generate::continued(self, prompts, options, on_token)
    }

    /// Moves nodes to the devices that compute them from now on. A model that records gradients goes on doing so.
    ///
    /// [`forward`](Self::forward) and its backward pass send the hidden states of the sequences that reach a node
    /// to its device and back home, and nothing else of size: where every leaf has a head of its own and is placed,
    /// logits come home as well. Weights, their gradients and the state of an optimiser stay with the node.
    ///
    /// Clones share running state (biases of loss-free balancing and of routing trees, the directions of Performer), which
    /// moves with the first of them that is placed; the others then cannot run. Place before cloning.
    ///
    /// # Errors
    /// If the tree does not have a node of the placement.
    pub fn place(mut self, placement: &Placement) -> Result<Self, PlacementError> {
        let tree = self.tree();
        placement.check(&tree)?;
        let names = (0..=tree.height())
            .flat_map(|depth| (0..tree.width(depth)).map(move |index| (depth, index)));
        self.nodes = self
            .nodes
            .into_iter()
            .zip(names)
            .map(|(node, (depth, index))| {
                match placement.device(&NodeName::of(&tree, depth, index)) {
                    None => node,
                    Some(device) => {
                        let device = recording_as(&node.device(), device);
                        node.fork(&device)
                    }
                }
            })
            .collect();
        Ok(self)
    }
}
