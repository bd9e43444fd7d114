//! A node: transformer blocks, and a head where it is a leaf.

use super::TreeCoderConfig;
use super::config::LeafHead;
use super::selector::Selector;
use crate::block::TransformerBlock;
use arbora_attention::{RoutingReport, SelfAttentionInput};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Bool, Device, Tensor};

/// A node of the tree: transformer blocks, then the selector of an inner node, or the head of a leaf.
#[derive(Module, Debug)]
pub struct Node {
    /// The transformer blocks, the first one first.
    pub blocks: Vec<TransformerBlock>,
    /// Scores the children; in the controls it only weighs the child that was chosen without it. `None` at leaves.
    pub selector: Option<Selector>,
    /// What this leaf predicts; `None` at inner nodes, and where all leaves share a head.
    pub head: Option<Head>,
}

/// A final norm and a linear map to classes.
#[derive(Module, Debug)]
pub struct Head {
    norm: RmsNorm,
    output: Linear,
}

impl Head {
    pub(super) fn new(config: &TreeCoderConfig, device: &Device) -> Self {
        Self {
            norm: RmsNormConfig::new(config.d_model).init(device),
            output: LinearConfig::new(config.d_model, config.classes()).init(device),
        }
    }

    /// `[batch, tokens, d_model]` -> `[batch, tokens, classes]`
    pub fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.output.forward(self.norm.forward(hidden))
    }
}

/// What a node's blocks are asked beside tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeInput {
    /// `[batch, tokens]`, `true` = masked out
    pub padding: Option<Tensor<2, Bool>>,
    pub causal: bool,
    /// Of this node in this call.
    pub seed: Option<u64>,
}

impl Node {
    /// - number: of the node in level order
    pub(super) fn new(
        config: &TreeCoderConfig,
        number: usize,
        depth: usize,
        device: &Device,
    ) -> Self {
        let is_leaf = depth == config.height;
        let most = config.blocks.iter().copied().max().unwrap_or(1);
        Self {
            blocks: (0..config.blocks_at(depth))
                .map(|place| {
                    config
                        .block(depth, place, number * most + place)
                        .init(device)
                })
                .collect(),
            selector: (!is_leaf).then(|| Selector::new(config, device)),
            head: (is_leaf && config.head == LeafHead::PerLeaf).then(|| Head::new(config, device)),
        }
    }

    /// `[batch, tokens, d_model]` -> the same, and where the attention of each block sent tokens.
    pub(super) fn forward(
        &self,
        mut hidden: Tensor<3>,
        input: &NodeInput,
    ) -> (Tensor<3>, Vec<Option<RoutingReport>>) {
        let mut reports = Vec::with_capacity(self.blocks.len());
        for (place, block) in self.blocks.iter().enumerate() {
            let mut asked = SelfAttentionInput::new(hidden);
            asked.masks.padding = input.padding.clone();
            asked.masks.causal = input.causal;
            asked.seed = input.seed.map(|seed| seed.wrapping_add(place as u64));
            let (next, attended) = block.forward(asked);
            hidden = next;
            reports.push(attended.routing);
        }
        (hidden, reports)
    }

    /// What chooses a child of an inner node.
    pub(super) fn selector(&self) -> &Selector {
        let selector = self.selector.as_ref();
        selector.expect("inner nodes have selectors")
    }

    /// The device that the node is on.
    pub fn device(&self) -> Device {
        self.blocks[0].attention.query.weight.val().device()
    }
}
