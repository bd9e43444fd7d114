//! Sequences fed to a TreeCoder token by token.
//!
//! What becomes of a sequence:
//!
//! ```text
//!             fewer tokens than the route reads
//!              ┌──────────┐
//!              ▼          │ feed: computed anew, whole, without a cache
//! add ───► unrouted ──────┘
//!              │ feed: enough tokens, or the route reads none
//!              ▼
//!    ┌───► in a group: one route, one length, caches along the route ◄────┐
//!    │         │ feed                                                     │
//!    │         │   others of the group get no, or other, tokens: split ───┤
//!    │         │   routes part, at a node or where a chunk begins: split ─┤
//!    │         └── all go on together ────────────────────────────────────┘
//!    │
//!    └──── clear: out of its group, without tokens, unrouted again
//! ```
//!
//! A chunk ([`RouteOn::PreviousChunk`]) begins with the route that the sums of hidden states of the chunk before it decide; caches
//! of nodes that a sequence leaves stay with it, and go on when it comes back.

use super::config::{RouteOn, SelectorBalance, SelectorGradient, SelectorKind};
use super::draws::{hash_leaf, random_leaf};
use super::generate::GenerateError;
use super::group::{Group, places, places_of};
use super::route::{Decided, Gate, choose};
use super::{TreeCoder, TreeCoderOptions};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::collections::BTreeMap;

/// Feeds sequences to a model token by token, with a cache of keys and values at every node that they reached.
///
/// Each sequence gets the logits that one [`forward`](TreeCoder::forward) over all of its tokens gives, up to
/// rounding, however they were split into calls and whatever was fed beside it. Rounding may decide a route where
/// children are all but equally likely: see [`Decoder::route_margin`]. Sequences of one length that took
/// the same route so far advance together; where their routes part, so do their caches. With
/// [`RouteOn::PreviousChunk`] a sequence that comes back to a node goes on with what the node remembers of it.
///
/// While a sequence has fewer tokens than [`RouteOn::FirstN`] reads, its route is not settled: it is computed anew
/// at each call. So is, at every length, a model of [`SelectorGradient::Soft`], which has no route.
#[derive(Debug)]
pub struct Decoder {
    model: TreeCoder,
    is_cached: bool,
    sequences: Vec<Sequence>,
    groups: Vec<Group>,
    /// Of loss-free balancing, by node in level order: read back once each.
    biases: BTreeMap<usize, Vec<f32>>,
}

#[derive(Debug)]
struct Sequence {
    /// Seed for random routing.
    seed: u64,
    tokens: Vec<u32>,
    /// Of its routed items.
    leaves: Vec<usize>,
    /// Of its closest decision.
    margin: f64,
}

impl Sequence {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            tokens: Vec::new(),
            leaves: Vec::new(),
            margin: f64::INFINITY,
        }
    }
}

/// Tokens that are to be fed to a group, of equally many for each member.
struct Task {
    group: Group,
    tokens: Vec<Vec<u32>>,
    /// Whether the chunk that begins here has its route.
    is_routed: bool,
}

impl TreeCoder {
    /// Feeds sequences to the model token by token. The decoder has a copy of the model without dropout, off the
    /// autodiff device; tensors are shared. Biases of loss-free balancing are read once, when they are first needed.
    ///
    /// # Errors
    /// If the model is not causal, what selectors read is not, or its classes are not its vocabulary.
    pub fn decoder(&self) -> Result<Decoder, GenerateError> {
        let config = self.config();
        if !config.causal {
            return Err(GenerateError::NotCausal);
        }
        if config.height > 0 && !config.route_on.is_causal() {
            return Err(GenerateError::RouteNotCausal {
                route_on: config.route_on,
            });
        }
        if config.classes() != config.vocabulary {
            return Err(GenerateError::NotALanguageModel {
                classes: config.classes(),
                vocabulary: config.vocabulary,
            });
        }
        let is_soft = config.height > 0
            && config.selector.kind == SelectorKind::Learned
            && config.selector.gradient == SelectorGradient::Soft;
        Ok(Decoder {
            model: self.valid(),
            is_cached: !is_soft,
            sequences: Vec::new(),
            groups: Vec::new(),
            biases: BTreeMap::new(),
        })
    }
}

impl Decoder {
    /// The same without caches: every call computes each sequence it is fed anew and on its own. What caches are
    /// measured against.
    ///
    /// # Panics
    /// If there are sequences already.
    #[must_use]
    #[track_caller]
    pub fn without_cache(mut self) -> Self {
        assert!(
            self.sequences.is_empty(),
            "decoder: without_cache: expected no sequences yet, got {}",
            self.sequences.len()
        );
        self.is_cached = false;
        self
    }

    /// Adds a sequence without tokens. Returns its number.
    ///
    /// - seed: of its routes, where these are random
    pub fn add(&mut self, seed: u64) -> usize {
        self.sequences.push(Sequence::new(seed));
        self.sequences.len() - 1
    }

    /// The tokens that a sequence was fed.
    pub fn tokens(&self, sequence: usize) -> &[u32] {
        &self.sequences[sequence].tokens
    }

    /// The leaf of each routed item of a sequence: of itself, or of each of its chunks.
    pub fn leaves(&self, sequence: usize) -> &[usize] {
        &self.sequences[sequence].leaves
    }

    /// How much the value of the chosen child was above that of the next where a decision about a sequence was closest:
    /// its probability, with the bias of loss-free balancing. Infinite where no selector decided.
    pub fn route_margin(&self, sequence: usize) -> f64 {
        self.sequences[sequence].margin
    }

    /// Forgets the tokens of a sequence and all that was kept of them.
    pub fn clear(&mut self, sequence: usize) {
        let state = &mut self.sequences[sequence];
        *state = Sequence::new(state.seed);
        self.split_groups(|member| usize::from(member == sequence));
        self.groups.retain(|group| group.members != [sequence]);
    }

    /// Gives a sequence without tokens another seed.
    pub(super) fn reseed(&mut self, sequence: usize, seed: u64) {
        self.sequences[sequence].seed = seed;
    }

    /// Feeds some of the sequences their next tokens. Returns, for each of them in this order, the logits of the token
    /// that follows.
    ///
    /// - fed: numbers of sequences, each at most once, with at least one token each
    ///
    /// Logits are read back from the device once per group of sequences that advance together, and routes once
    /// per level where they are decided.
    ///
    /// # Errors
    /// If a token is not in the vocabulary, or a sequence would be longer than the context. Nothing is fed
    /// then.
    ///
    /// # Panics
    /// If there is no such sequence, one is named twice, or is fed no tokens.
    #[track_caller]
    pub fn feed(&mut self, fed: &[(usize, &[u32])]) -> Result<Vec<Vec<f32>>, GenerateError> {
        let config = self.model.config();
        let mut count_of = vec![0; self.sequences.len()];
        for &(sequence, tokens) in fed {
            assert!(
                sequence < self.sequences.len() && count_of[sequence] == 0 && !tokens.is_empty(),
                "decoder: feed: expected tokens for different sequences below {}, got {} tokens for {sequence}",
                self.sequences.len(),
                tokens.len()
            );
            count_of[sequence] = tokens.len();
            check_tokens(sequence, tokens, config.vocabulary)?;
            let length = self.sequences[sequence].tokens.len() + tokens.len();
            if length > config.context {
                return Err(GenerateError::TooLong {
                    prompt: sequence,
                    tokens: length,
                    context: config.context,
                });
            }
        }
        for &(sequence, tokens) in fed {
            self.sequences[sequence].tokens.extend(tokens);
        }
        let mut logits: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        let mut fresh: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &(sequence, tokens) in fed {
            let length = self.sequences[sequence].tokens.len();
            if !self.is_cached || length < self.route_prefix_len() {
                logits.insert(sequence, self.recompute(sequence));
            } else if length - tokens.len() < self.route_prefix_len().max(1) {
                fresh.entry(length).or_default().push(sequence);
            }
        }
        self.split_groups(|member| count_of[member]);
        let (active, waiting) = std::mem::take(&mut self.groups)
            .into_iter()
            .partition::<Vec<_>, _>(|group| count_of[group.members[0]] > 0);
        self.groups = waiting;
        let fresh = fresh.into_values().map(Group::new);
        for group in active.into_iter().chain(fresh) {
            let tokens = group.members.iter().map(|&member| {
                let all = &self.sequences[member].tokens;
                all[group.tokens..].to_vec()
            });
            let task = Task {
                tokens: tokens.collect(),
                group,
                is_routed: false,
            };
            for (group, last) in self.advance(task) {
                let rows = self.predict(&group, last);
                logits.extend(group.members.iter().copied().zip(rows));
                self.groups.push(group);
            }
        }
        let of_sequence = fed.iter().map(|(sequence, _)| {
            let logits = logits.remove(sequence);
            logits.expect("every sequence that was fed is in one group")
        });
        Ok(of_sequence.collect())
    }

    /// Tokens from which on a route does not change.
    fn route_prefix_len(&self) -> usize {
        let config = self.model.config();
        match config.route_on {
            RouteOn::FirstN { tokens } if config.height > 0 => tokens,
            _ => 0,
        }
    }

    /// Splits groups whose members differ by some number.
    fn split_groups(&mut self, of: impl Fn(usize) -> usize) {
        let groups = std::mem::take(&mut self.groups);
        for group in groups {
            let rows_of = places_of(group.members.iter().map(|&member| of(member)));
            let parts = rows_of.values().map(|rows| group.take(rows));
            self.groups.extend(parts);
        }
    }

    /// Logits after the last token of a sequence, without a cache.
    fn recompute(&mut self, sequence: usize) -> Vec<f32> {
        let state = &mut self.sequences[sequence];
        let device = self.model.embedding.weight.val().device();
        let tokens = rows_of_tokens(std::slice::from_ref(&state.tokens), &device);
        let options = TreeCoderOptions {
            seed: state.seed,
            ..TreeCoderOptions::default()
        };
        let output = self.model.forward(tokens, None, &options);
        state.leaves = output.routing.leaves;
        let levels = output.routing.levels.iter();
        let margins = levels.flat_map(|level| &level.margins);
        state.margin = margins.copied().fold(state.margin, f64::min);
        let [_, tokens, _] = output.logits.dims();
        host(output.logits.narrow(1, tokens - 1, 1))
    }

    /// Feeds a group. Returns what became of it, with the hidden states of the last token, `[members, 1, d_model]`.
    fn advance(&mut self, task: Task) -> Vec<(Group, Tensor<3>)> {
        let config = self.model.config().clone();
        let device = self.model.embedding.weight.val().device();
        let mut done = Vec::new();
        let mut tasks = vec![task];
        while let Some(Task {
            group,
            tokens,
            is_routed,
        }) = tasks.pop()
        {
            let left = tokens[0].len();
            let count = match config.route_on {
                RouteOn::FirstN { tokens } if config.height > 0 && group.tokens == 0 => {
                    tokens.min(left)
                }
                RouteOn::PreviousChunk { tokens: chunk } if config.height > 0 => {
                    if group.tokens.is_multiple_of(chunk) && !is_routed {
                        let parts = self.route_chunk(group, chunk);
                        tasks.extend(parts.into_iter().map(|(group, rows)| Task {
                            group,
                            tokens: rows.iter().map(|&row| tokens[row].clone()).collect(),
                            is_routed: true,
                        }));
                        continue;
                    }
                    left.min(chunk - group.tokens % chunk)
                }
                _ => left,
            };
            let now: Vec<&[u32]> = tokens.iter().map(|tokens| &tokens[..count]).collect();
            let now = rows_of_tokens(&now, &device);
            let hidden = self.model.embed(now, group.tokens);
            let rows = (0..group.members.len()).collect();
            for (mut group, rows, hidden) in self.pass(group, rows, 0, hidden) {
                group.tokens += count;
                if count == left {
                    done.push((group, hidden.narrow(1, count - 1, 1)));
                    continue;
                }
                let tokens = rows.iter().map(|&row| tokens[row][count..].to_vec());
                tasks.push(Task {
                    group,
                    tokens: tokens.collect(),
                    is_routed: false,
                });
            }
        }
        done
    }

    /// Runs hidden states `[members, new tokens, d_model]` of a group from a depth to the leaves, and decides its route
    /// where it has none. Returns the groups it becomes, with the places of their members in `rows`, and their hidden
    /// states.
    fn pass(
        &mut self,
        mut group: Group,
        rows: Vec<usize>,
        depth: usize,
        hidden: Tensor<3>,
    ) -> Vec<(Group, Vec<usize>, Tensor<3>)> {
        let height = self.model.config().height;
        let home = hidden.device();
        let members = rows.len();
        let place = self.model.tree().offset(depth) + group.path[depth];
        let node = &self.model.nodes[place];
        let device = node.device();
        let caches = group.caches.entry(place).or_insert_with(|| {
            let blocks = node.blocks.iter();
            blocks
                .map(|block| block.attention.cache(members, &device))
                .collect()
        });
        let mut left = hidden.clone().to_device(&device);
        for (block, cache) in node.blocks.iter().zip(caches) {
            left = block.forward_cached(left, cache);
        }
        let mut left = left.to_device(&home);
        if depth > 0
            && let Some(gate) = &group.gates[depth - 1]
        {
            left = gate.take(0..members, hidden, left);
        }
        if depth == height {
            for &member in &group.members {
                // Of a chunk that goes on, the leaf is there already.
                let chunk = self.model.config().chunk();
                let chunk = chunk.map_or(0, |tokens| group.tokens / tokens);
                let leaves = &mut self.sequences[member].leaves;
                leaves.truncate(chunk);
                leaves.push(group.path[height]);
            }
            return vec![(group, rows, left)];
        }
        if let RouteOn::PreviousChunk { .. } = self.model.config().route_on {
            let sum: Tensor<2> = left.clone().sum_dim(1).squeeze_dim(1);
            match group.sums.get_mut(depth) {
                Some(so_far) => *so_far = so_far.clone() + sum,
                None => group.sums.push(sum),
            }
        }
        if group.path.len() > depth + 1 {
            return self.pass(group, rows, depth + 1, left);
        }
        let pooled = left.clone().mean_dim(1).squeeze_dim(1);
        let decided = self.decide(&group, depth, pooled);
        let mut parts = Vec::new();
        for (part, at) in group.part(decided, self.model.config().branching) {
            let hidden = if at.len() == members {
                left.clone()
            } else {
                left.clone().select(0, places(&at, &home))
            };
            let rows = at.iter().map(|&row| rows[row]).collect();
            parts.extend(self.pass(part, rows, depth + 1, hidden));
        }
        parts
    }

    /// Decides the route of the chunk that begins, from what the chunk before it left behind. Returns the groups with
    /// the places of their members.
    fn route_chunk(&mut self, mut group: Group, chunk: usize) -> Vec<(Group, Vec<usize>)> {
        let (height, d_model) = (self.model.config().height, self.model.config().d_model);
        let device = self.model.embedding.weight.val().device();
        let before = std::mem::take(&mut group.sums);
        group.path.truncate(1);
        group.gates.clear();
        let rows: Vec<usize> = (0..group.members.len()).collect();
        let mut parts = vec![(group, rows)];
        for depth in 0..height {
            let mut next = Vec::new();
            for (group, rows) in parts {
                let pooled = match before.get(depth) {
                    Some(sum) => sum.clone().select(0, places(&rows, &device)) / chunk as f64,
                    None => Tensor::zeros([rows.len(), d_model], &device),
                };
                let decided = self.decide(&group, depth, pooled);
                for (part, at) in group.part(decided, self.model.config().branching) {
                    next.push((part, at.iter().map(|&row| rows[row]).collect()));
                }
            }
            parts = next;
        }
        parts
    }

    /// Chooses the children of a group at a depth, as evaluation does.
    ///
    /// - pooled: what the selector reads, `[members, d_model]`
    fn decide(&mut self, group: &Group, depth: usize, pooled: Tensor<2>) -> Decided {
        let config = self.model.config();
        let home = pooled.device();
        let index = group.path[depth];
        let device = self.model.node(depth, index).device();
        let selector = self.model.selector(depth, index);
        let scores = selector.forward(pooled.to_device(&device));
        let mut margins = vec![f64::INFINITY; group.members.len()];
        let children: Vec<usize> = match config.selector.kind {
            SelectorKind::Learned => {
                let place = self.model.tree().offset(depth) + index;
                let bias = matches!(config.selector.balance, SelectorBalance::LossFree { .. })
                    .then(|| {
                        let of_node = self.biases.entry(place);
                        of_node.or_insert_with(|| host(selector.decision_bias()))
                    });
                let bias = bias.as_deref().map(Vec::as_slice);
                let scores = host(scores.clone());
                let rows = margins.iter_mut().zip(scores.chunks(config.branching));
                rows.map(|(margin, scores)| {
                    let choice = choose(scores, bias);
                    *margin = choice.margin;
                    choice.child
                })
                .collect()
            }
            SelectorKind::Random | SelectorKind::Hash => {
                let tree = self.model.tree();
                let leaves = group.members.iter();
                let leaves = leaves.map(|&member| self.fixed_leaf(group, member));
                leaves.map(|leaf| tree.path(leaf)[depth]).collect()
            }
        };
        // The other ways to learn take all of what a child adds.
        let is_scaled = config.selector.gradient == SelectorGradient::ScaledDelta;
        let gate = is_scaled.then(|| Gate::by_probability(scores.to_device(&home), &children));
        for (&member, margin) in group.members.iter().zip(&margins) {
            let closest = &mut self.sequences[member].margin;
            *closest = closest.min(*margin);
        }
        Decided {
            children,
            margins,
            gate,
        }
    }

    /// The leaf of the routed item that begins, where it is not learned.
    fn fixed_leaf(&self, group: &Group, member: usize) -> usize {
        let config = self.model.config();
        let leaves = self.model.tree().leaves();
        let Sequence { seed, tokens, .. } = &self.sequences[member];
        let (item, read) = match config.route_on {
            RouteOn::PreviousChunk { tokens: chunk } => (
                group.tokens / chunk,
                group.tokens.saturating_sub(chunk)..group.tokens,
            ),
            RouteOn::FirstN { tokens } => (0, 0..tokens),
            RouteOn::LastToken | RouteOn::MeanAll => {
                unreachable!("a decoder is not made for routes that are not causal")
            }
        };
        match config.selector.kind {
            SelectorKind::Random => random_leaf(*seed, item, leaves),
            SelectorKind::Hash | SelectorKind::Learned => {
                hash_leaf(tokens[read].iter().map(|&token| u64::from(token)), leaves)
            }
        }
    }

    /// Logits `[members][vocabulary]` from hidden states `[members, 1, d_model]` after the leaf of a group.
    fn predict(&self, group: &Group, last: Tensor<3>) -> Vec<Vec<f32>> {
        let config = self.model.config();
        let logits = match &self.model.head {
            Some(head) => head.forward(last),
            None => {
                let leaf = group.path[config.height];
                let device = self.model.node(config.height, leaf).device();
                self.model.predict_alone(leaf, last.to_device(&device))
            }
        };
        host(logits)
            .chunks(config.vocabulary)
            .map(<[f32]>::to_vec)
            .collect()
    }
}

pub(super) fn check_tokens(
    prompt: usize,
    tokens: &[u32],
    vocabulary: usize,
) -> Result<(), GenerateError> {
    match tokens.iter().find(|token| **token as usize >= vocabulary) {
        None => Ok(()),
        Some(token) => Err(GenerateError::UnknownToken {
            prompt,
            token: *token,
            vocabulary,
        }),
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_into_vec().expect("converted to this type")
}

/// `[rows, tokens]`, of rows of one length.
fn rows_of_tokens<R: AsRef<[u32]>>(rows: &[R], device: &Device) -> Tensor<2, Int> {
    let count = rows[0].as_ref().len();
    let tokens = rows
        .iter()
        .flat_map(|row| row.as_ref().iter().map(|&token| i64::from(token)))
        .collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(tokens, [rows.len(), count]), device)
}
