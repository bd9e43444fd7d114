use super::config::{RouteOn, SelectorBalance, SelectorKind};
use super::items::{Group, Items, indices};
use super::node::NodeInput;
use super::{SelectorGradient, TreeCoder};
use arbora_attention::RoutingReport;
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Int, Tensor};

/// What [`TreeCoder::forward`] takes beside tokens.
#[derive(Clone, Debug, Default)]
pub struct TreeCoderOptions {
    /// Seed of what this call draws: Gumbel noise, sampled and random routes, dropout within leaves of attention.
    pub seed: u64,
    /// Leaves to go to in place of those that are chosen, one per routed item, sequence-major.
    pub leaves: Option<Vec<usize>>,
}

/// What [`TreeCoder::forward`] returns.
#[derive(Clone, Debug)]
pub struct TreeCoderOutput {
    /// Unnormalised log-probabilities of classes, `[batch, tokens, classes]`.
    pub logits: Tensor<3>,
    /// Where sequences went.
    pub routing: TreeCoderRouting,
}

/// Where the routed items of a batch went: sequences, or chunks of sequences, sequence-major.
#[derive(Clone, Debug)]
pub struct TreeCoderRouting {
    /// Routed items of a sequence.
    pub chunks: usize,
    /// The leaf of each item.
    pub leaves: Vec<usize>,
    /// The decisions of each level, the root's first.
    pub levels: Vec<LevelRouting>,
    /// Items that each node ran on, in level order. Each item is counted height + 1 times.
    pub activations: Vec<usize>,
    /// The auxiliary loss of the selectors' balance, `[1]`, weighted: to be added to the task's. `None` where
    /// there is none.
    pub balance_loss: Option<Tensor<1>>,
    /// Where the attention of the blocks sent tokens, for kinds that route: of each node that ran, in level
    /// order, block by block.
    pub attention: Vec<RoutingReport>,
}

/// The decisions of one level, per item, sequence-major.
#[derive(Clone, Debug)]
pub struct LevelRouting {
    /// The node of this depth that each item was at.
    pub nodes: Vec<usize>,
    /// The child that it went to.
    pub children: Vec<usize>,
    /// The mean entropy of the probabilities, in nats; 0 where routes are not learned.
    pub entropy: f64,
}

impl TreeCoder {
    /// Predicts classes at every token, each sequence along its own path.
    ///
    /// # Shapes
    /// - tokens: `[batch, tokens]`, each below the vocabulary
    /// - padding: `[batch, tokens]`, `true` = masked out; what is predicted there means nothing
    /// - logits: `[batch, tokens, classes]`
    ///
    /// Each node runs once, on the sequences alone that reached it. Decisions are read back from the device
    /// once per level.
    ///
    /// # Panics
    /// If there are no tokens or more than the context, the axes of `padding` disagree with those of `tokens`, `options.leaves`
    /// has another length or names no leaf, or the attention does not take a mask that is there.
    #[track_caller]
    pub fn forward(
        &self,
        tokens: Tensor<2, Int>,
        padding: Option<Tensor<2, Bool>>,
        options: &TreeCoderOptions,
    ) -> TreeCoderOutput {
        let home = tokens.device();
        let config = &self.config;
        let tree = self.tree();
        let hidden = self.embed(tokens.clone(), 0);
        let mut items = Items::new(hidden, padding, config.route_on);
        let count = items.order.len();
        let mut routing = TreeCoderRouting {
            chunks: items.chunks,
            leaves: vec![0; count],
            levels: Vec::with_capacity(config.height),
            activations: vec![0; tree.nodes()],
            balance_loss: None,
            attention: Vec::new(),
        };
        // How much of what a node adds is taken, `[items]` in the present order.
        let mut weight: Option<Tensor<1>> = None;
        for depth in 0..=config.height {
            let groups = items.groups();
            let mut outputs = Vec::with_capacity(groups.len());
            for group in &groups {
                let place = tree.offset(depth) + group.node;
                let node = &self.nodes[place];
                routing.activations[place] += group.count;
                let (rows, reports) = items.run(group, &node.device(), |rows, padding| {
                    node.forward(
                        rows,
                        &NodeInput {
                            padding,
                            causal: config.causal,
                            seed: Some(call_seed(options.seed, place)),
                        },
                    )
                });
                routing.attention.extend(reports.into_iter().flatten());
                outputs.push(rows.to_device(&home));
            }
            let entered = items.rows.clone();
            let left = Tensor::cat(outputs, 0);
            items.rows = match weight.take() {
                None => left,
                Some(weight) => entered.clone() + (left - entered) * weight.reshape([count, 1, 1]),
            };
            if depth < config.height {
                weight = self.descend(depth, &groups, &mut items, &tokens, options, &mut routing);
            }
        }
        for (row, &item) in items.order.iter().enumerate() {
            routing.leaves[item] = items.nodes[row];
        }
        let logits = match &self.head {
            Some(head) => head.forward(items.sequences(items.rows.clone())),
            None => {
                let heads = items.groups().into_iter().map(|group| {
                    let rows = items.rows.clone().narrow(0, group.start, group.count);
                    let head = self.node(config.height, group.node).head.as_ref();
                    head.expect("every leaf has a head where none is shared")
                        .forward(rows)
                });
                items.sequences(Tensor::cat(heads.collect(), 0))
            }
        };
        TreeCoderOutput { logits, routing }
    }

    /// Chooses the children of all items at a depth and sends them there. Returns how much of what the children
    /// add is to be taken.
    fn descend(
        &self,
        depth: usize,
        groups: &[Group],
        items: &mut Items,
        tokens: &Tensor<2, Int>,
        options: &TreeCoderOptions,
        routing: &mut TreeCoderRouting,
    ) -> Option<Tensor<1>> {
        let _ = (
            tokens,
            SelectorKind::Learned,
            SelectorGradient::Soft,
            SelectorBalance::None,
            RouteOn::MeanAll,
        );
        let config = &self.config;
        let tree = self.tree();
        let k = config.branching;
        let home = items.rows.device();
        let pooled = items.pooled(config.route_on);
        let scores = groups.iter().map(|group| {
            let node = self.node(depth, group.node);
            let selector = node.selector.as_ref().expect("routes are learned");
            let rows = pooled.clone().narrow(0, group.start, group.count);
            selector
                .forward(rows.to_device(&node.device()))
                .to_device(&home)
        });
        let scores = Tensor::cat(scores.collect(), 0); // [items, branching]
        let host: Vec<f32> = scores
            .clone()
            .into_data()
            .convert::<f32>()
            .try_into_vec()
            .expect("converted to this type");
        let chosen: Vec<usize> = match &options.leaves {
            Some(leaves) => items
                .order
                .iter()
                .map(|&item| tree.path(leaves[item])[depth])
                .collect(),
            None => host.chunks(k).map(largest).collect(),
        };
        let probabilities = softmax(scores, 1);
        let children = indices(chosen.iter().map(|&child| child as i64).collect(), &home);
        let weight = probabilities
            .gather(1, children.reshape([chosen.len(), 1]))
            .squeeze_dim::<1>(1);

        let mut level = LevelRouting {
            nodes: vec![0; chosen.len()],
            children: vec![0; chosen.len()],
            entropy: host.chunks(k).map(entropy).sum::<f64>() / chosen.len() as f64,
        };
        for (row, &item) in items.order.iter().enumerate() {
            level.nodes[item] = items.nodes[row];
            level.children[item] = chosen[row];
        }
        routing.levels.push(level);
        let nodes: Vec<usize> = items
            .nodes
            .iter()
            .zip(&chosen)
            .map(|(node, child)| node * k + child)
            .collect();
        let moved = items.send(&nodes);
        let moved = indices(moved.into_iter().map(|row| row as i64).collect(), &home);
        Some(weight.select(0, moved))
    }
}

/// The first of the largest.
fn largest(scores: &[f32]) -> usize {
    (0..scores.len())
        .rev()
        .max_by(|&one, &other| scores[one].total_cmp(&scores[other]))
        .unwrap_or(0)
}

/// Of the softmax of some scores, in nats.
fn entropy(scores: &[f32]) -> f64 {
    let most = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let powers: Vec<f64> = scores
        .iter()
        .map(|score| (f64::from(*score) - most).exp())
        .collect();
    let sum: f64 = powers.iter().sum();
    let parts = powers.iter().map(|power| power / sum);
    -parts
        .filter(|part| *part > 0.0)
        .map(|part| part * part.ln())
        .sum::<f64>()
}

/// A seed of a place in the tree, far from those of other places and calls.
fn call_seed(seed: u64, place: usize) -> u64 {
    (seed ^ (place as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)).rotate_left(17)
}
