//! What a forward pass takes and gives besides logits.

use super::TreeCoder;
use super::config::{SelectorGradient, SelectorKind};
use super::draws::place_seed;
use super::items::{Hidden, Items};
use super::node::NodeInput;
use super::routes::Group;
use arbora_attention::RoutingReport;
use arbora_rl::Rollout;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, assert_shape};

/// What [`TreeCoder::forward`] takes beside tokens.
#[derive(Clone, Debug, Default)]
pub struct TreeCoderOptions {
    /// Seed of what this call draws: Gumbel noise, sampled and random routes, dropout within leaves of attention.
    pub seed: u64,
    /// Leaves to go to in place of those that are chosen, one per routed item, sequence-major. Biases of loss-free
    /// balancing do not move for them.
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
    /// Whether each item has a token that is not padding; `None`: all have. Balance and entropies count no others.
    pub real: Option<Vec<bool>>,
    /// The decisions of each level, the root's first.
    pub levels: Vec<LevelRouting>,
    /// Items that each node ran on, in level order. Each item is counted height + 1 times.
    pub activations: Vec<usize>,
    /// The auxiliary loss of the selectors' balance, `[1]`, weighted: to be added to the task's. The mean over
    /// levels of `Σ_j r_j k Σ_c f_jc P_jc` over items that are not all padding, with `r_j` the share of items at node `j`, `f_jc` the share of these that
    /// went to its child `c`, and `P_jc` the mean of that child's probability: `weight` where children are used
    /// alike, `k · weight` where one child is certain and gets everything. Found in evaluation as well. `None` where
    /// there is none.
    pub balance_loss: Option<Tensor<1>>,
    /// The log-probability of each item's path, summed over its decisions, `[items]` in nats; for selectors that
    /// learn by [`SelectorGradient::Reinforce`].
    pub log_prob: Option<Tensor<1>>,
    /// The entropy of each item's selectors, the mean over its decisions, `[items]` in nats; as `log_prob`.
    pub entropy: Option<Tensor<1>>,
    /// Where the attention of the blocks sent tokens, for kinds that route: of each node that ran, in level
    /// order, block by block. Their losses are at home, where tokens are; the rest is on the device of its node.
    pub attention: Vec<RoutingReport>,
}

impl TreeCoderRouting {
    /// The decisions as a policy gradient reads them: one row per item, with one sample. Items of nothing but padding
    /// are masked out. `None` unless selectors learn by [`SelectorGradient::Reinforce`] and there are decisions.
    ///
    /// Rows are independent of each other where sequences are routed whole. The route of a chunk changes what later
    /// chunks of its sequence read, and with it their rewards: a reward per chunk leaves this out, so the gradient is
    /// that of looking one chunk ahead.
    pub fn rollout(&self) -> Option<Rollout> {
        let column = |numbers: &Tensor<1>| numbers.clone().unsqueeze_dim::<2>(1);
        let log_prob = column(self.log_prob.as_ref()?);
        let device = log_prob.device();
        let mask = self.real.as_ref().map(|real| {
            let masked: Vec<bool> = real.iter().map(|real| !real).collect();
            Tensor::from_data(TensorData::new(masked, [real.len(), 1]), &device)
        });
        Some(Rollout {
            decisions: log_prob.ones_like() * self.levels.len() as f64,
            entropy: column(self.entropy.as_ref()?),
            log_prob,
            mask,
        })
    }

    /// How many items have a token that is not padding.
    pub fn real_items(&self) -> usize {
        match &self.real {
            Some(real) => real.iter().filter(|real| **real).count(),
            None => self.leaves.len(),
        }
    }
}

/// The decisions of one level, per item, sequence-major.
#[derive(Clone, Debug)]
pub struct LevelRouting {
    /// The node of this depth that each item was at.
    pub nodes: Vec<usize>,
    /// The child that it went to.
    pub children: Vec<usize>,
    /// How much the probability of the child that evaluation takes, with the bias of loss-free balancing, is above that
    /// of the next; infinite where no selector decides.
    pub margins: Vec<f64>,
    /// The mean entropy of the probabilities over items that are not all padding, in nats; 0 where routes are not
    /// learned.
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
    /// Each node runs once, on the items alone that reached it; with [`SelectorGradient::Soft`] every node runs on
    /// all. Decisions are read back from the device once per level. Noise and samples belong to training: to a model
    /// on an autodiff device. An item of nothing but padding is routed like any other, but moves no balance; padding is
    /// read back once per call for this.
    ///
    /// # Panics
    /// If there are no sequences, no tokens or more than the context, the axes of `padding` disagree with those of `tokens`,
    /// `options.leaves` has another length, names no leaf or is given to soft selectors, or the attention does not
    /// take a mask that is there.
    #[track_caller]
    pub fn forward(
        &self,
        tokens: Tensor<2, Int>,
        padding: Option<Tensor<2, Bool>>,
        options: &TreeCoderOptions,
    ) -> TreeCoderOutput {
        if let Some(padding) = &padding {
            let [batch, count] = tokens.dims();
            assert_shape!(*padding, [batch, count]);
        }
        let hidden = self.embed(tokens.clone(), 0);
        let items = Items::new(hidden, padding.clone(), &self.config);
        let mut pass = Pass {
            model: self,
            options,
            routing: TreeCoderRouting {
                chunks: items.chunks,
                leaves: Vec::new(),
                real: items.real.clone(),
                levels: Vec::with_capacity(self.config.height),
                activations: vec![0; self.tree().nodes()],
                balance_loss: None,
                log_prob: None,
                entropy: None,
                attention: Vec::new(),
            },
        };
        let selector = &self.config.selector;
        let hidden = match (selector.kind, selector.gradient) {
            (SelectorKind::Learned, SelectorGradient::Soft) => {
                assert!(
                    options.leaves.is_none(),
                    "tree_coder: options.leaves: expected none with soft selectors, which run all leaves"
                );
                pass.mixture(items)
            }
            _ => {
                let fixed = pass.fixed_leaves(&tokens, &padding, items.chunks);
                pass.routed(items, fixed.as_deref())
            }
        };
        let logits = match &self.head {
            Some(head) => head.forward(hidden),
            None => hidden,
        };
        TreeCoderOutput {
            logits,
            routing: pass.routing,
        }
    }

    /// The logits of a leaf that has a head of its own, and the rows as they are where all share one.
    ///
    /// - rows: `[items, tokens, d_model]`, on the device of the leaf
    pub(super) fn predict_alone(&self, leaf: usize, rows: Tensor<3>) -> Tensor<3> {
        match &self.node(self.config.height, leaf).head {
            None => rows,
            Some(head) => head.forward(rows),
        }
    }
}

/// One call of [`TreeCoder::forward`].
pub(super) struct Pass<'a> {
    pub model: &'a TreeCoder,
    pub options: &'a TreeCoderOptions,
    /// What is known of the routes so far.
    pub routing: TreeCoderRouting,
}

impl Pass<'_> {
    /// Runs every item along its own path.
    ///
    /// - fixed: leaves that are not to be chosen, by item
    /// - returns hidden states, or logits where every leaf has a head, `[batch, tokens, d_model or classes]`
    fn routed(&mut self, mut items: Items, fixed: Option<&[usize]>) -> Tensor<3> {
        let height = self.model.config.height;
        for depth in 0..=height {
            let (chunks, home) = (items.chunks, items.routes.home.clone());
            for group in &mut items.routes.groups {
                let left = self.run_node(depth, group, chunks, &home);
                group.state.rows = match &group.gate {
                    None => left,
                    Some(gate) => gate.apply(group.state.rows.clone(), left),
                };
            }
            if depth < height {
                self.descend(depth, &mut items, fixed);
            }
        }
        let routes = &items.routes;
        self.routing.leaves = vec![0; routes.count()];
        for (item, leaf) in routes.members().zip(routes.nodes()) {
            self.routing.leaves[item] = leaf;
        }
        let outputs = routes.groups.iter();
        let outputs = outputs.map(|group| {
            let rows = group.state.rows.clone();
            self.model.predict_alone(group.node, rows)
        });
        items.sequences(outputs.collect())
    }

    /// What comes out of a node, on its device, to which its items are brought: `[items, tokens of an item, d_model]`.
    ///
    /// - chunks: of a sequence
    pub fn run_node(
        &mut self,
        depth: usize,
        group: &mut Group<Hidden>,
        chunks: usize,
        home: &Device,
    ) -> Tensor<3> {
        let place = self.model.tree().offset(depth) + group.node;
        let node = &self.model.nodes[place];
        self.routing.activations[place] += group.members.len();
        group.state.move_to(&node.device());
        let (rows, reports) = group.run(chunks, |rows, padding| {
            let input = NodeInput {
                padding,
                causal: self.model.config.causal,
                seed: Some(place_seed(self.options.seed, place)),
            };
            node.forward(rows, &input)
        });
        let at_home = |loss: Option<Tensor<1>>| loss.map(|loss| loss.to_device(home));
        let reports = reports.into_iter().flatten().map(|report| RoutingReport {
            balance_loss: at_home(report.balance_loss),
            alignment_loss: at_home(report.alignment_loss),
            ..report
        });
        self.routing.attention.extend(reports);
        rows
    }
}
