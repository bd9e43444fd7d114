//! Sequences fed to a TreeCoder token by token.
//!
//! What becomes of a sequence:
//!
//! ```text
//!             fewer tokens than the route reads
//!              ┌──────────┐
//!              ▼          │ feed: recomputed whole, without a cache
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
use super::generate::GenerateError;
use super::route::{Decided, Gate, Scores, children_of, fixed_leaf};
use super::routes::{Carried, Group, Routes, select};
use super::{TreeCoder, TreeCoderOptions};
use crate::check::expect;
use arbora_attention::AttentionCache;
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
/// While a sequence has fewer tokens than [`RouteOn::FirstN`] reads, its route may change, so it is recomputed
/// at each call. So is, at every length, a model of [`SelectorGradient::Soft`], which has no route.
#[derive(Debug)]
pub struct Decoder {
    model: TreeCoder,
    is_cached: bool,
    sequences: Vec<Sequence>,
    /// Sequences of one length that took the same route so far.
    groups: Vec<Group<Decoding>>,
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

/// What is kept of the sequences of a group.
#[derive(Clone, Debug, Default)]
struct Decoding {
    /// Tokens that are to be fed, equally many for each.
    fed: Vec<Vec<u32>>,
    /// Tokens of each so far.
    tokens: usize,
    /// Where they are below the root, at each depth that is decided, with the gate there.
    path: Vec<(usize, Option<Gate>)>,
    /// Of the blocks of the nodes that they were at, by place in level order.
    caches: BTreeMap<usize, Vec<AttentionCache>>,
    /// Sums of hidden states over the tokens of the present chunk after each depth but the last, `[members, d_model]`.
    sums: Vec<Tensor<2>>,
    /// Of the tokens that are being fed, `[members, tokens, d_model]`; at the end, of the last one.
    hidden: Option<Tensor<3>>,
}

impl Carried for Decoding {
    fn select(&self, rows: &[usize]) -> Self {
        let path = self.path.iter().map(|(node, gate)| {
            let gate = gate.as_ref().map(|gate| gate.select(rows));
            (*node, gate)
        });
        let caches = self.caches.iter().map(|(place, caches)| {
            let caches = caches.iter().map(|cache| cache.select(rows)).collect();
            (*place, caches)
        });
        Self {
            fed: rows.iter().map(|&row| self.fed[row].clone()).collect(),
            tokens: self.tokens,
            path: path.collect(),
            caches: caches.collect(),
            sums: self.sums.iter().map(|sum| select(sum, rows)).collect(),
            hidden: self.hidden.as_ref().map(|hidden| select(hidden, rows)),
        }
    }
}

impl Decoder {
    pub(super) fn new(model: &TreeCoder) -> Result<Self, GenerateError> {
        let config = model.config();
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
        Ok(Self {
            model: model.valid(),
            is_cached: !is_soft,
            sequences: Vec::new(),
            groups: Vec::new(),
        })
    }

    /// The same without caches: every call recomputes each whole sequence by itself. What caches are
    /// measured against.
    ///
    /// # Panics
    /// If there are sequences already.
    #[must_use]
    #[track_caller]
    pub fn without_cache(mut self) -> Self {
        expect("decoder: without_cache: sequences", self.sequences.len(), 0);
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
    ///
    /// # Panics
    /// If there is no such sequence, as all that take one do.
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
        let fresh = fresh.into_values();
        let fresh = fresh.map(|members| Group::at_root(members, Decoding::default()));
        let mut pending: Vec<Group<Decoding>> = active.into_iter().chain(fresh).collect();
        for group in &mut pending {
            let so_far = group.state.tokens;
            let members = group.members.iter();
            let fed = members.map(|&member| self.sequences[member].tokens[so_far..].to_vec());
            group.state.fed = fed.collect();
        }
        while let Some(mut group) = pending.pop() {
            if group.state.fed[0].is_empty() {
                let rows = self.predict(&mut group);
                logits.extend(group.members.iter().copied().zip(rows));
                self.groups.push(group);
            } else {
                pending.extend(self.advance(group));
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
            let parts = group.split(group.members.iter().map(|&member| of(member)));
            self.groups.extend(parts.into_iter().map(|(_, part)| part));
        }
    }

    /// Logits after the last token of a sequence, without a cache.
    fn recompute(&mut self, sequence: usize) -> Vec<f32> {
        let device = self.home();
        let state = &mut self.sequences[sequence];
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

    /// Where decisions are taken.
    fn home(&self) -> Device {
        self.model.embedding.weight.val().device()
    }

    /// Feeds a group its tokens, up to where a route may change. Returns the groups that it becomes.
    fn advance(&mut self, group: Group<Decoding>) -> Vec<Group<Decoding>> {
        let config = self.model.config();
        let (height, chunk) = (config.height, config.chunk());
        let (so_far, left) = (group.state.tokens, group.state.fed[0].len());
        let count = match (config.route_on, chunk) {
            (RouteOn::FirstN { tokens }, _) if height > 0 && so_far == 0 => tokens.min(left),
            (_, Some(chunk)) => left.min(chunk - so_far % chunk),
            _ => left,
        };
        let home = self.home();
        let mut routes = Routes {
            groups: vec![group],
            home: home.clone(),
        };
        if let Some(chunk) = chunk
            && so_far.is_multiple_of(chunk)
        {
            self.route_chunk(&mut routes, chunk);
        }
        for Group { state, .. } in &mut routes.groups {
            let fed = state.fed.iter_mut();
            let now: Vec<Vec<u32>> = fed.map(|fed| fed.drain(..count).collect()).collect();
            let now = rows_of_tokens(&now, &home);
            state.hidden = Some(self.model.embed(now, so_far));
        }
        for depth in 0..=height {
            if depth > 0 && routes.groups[0].state.path.len() < depth {
                let hidden = routes.groups.iter().map(|group| &group.state.hidden);
                let hidden = hidden.map(|hidden| hidden.clone().expect("tokens are being fed"));
                let pooled = hidden.map(|hidden| hidden.mean_dim(1).squeeze_dim(1));
                let pooled = pooled.collect();
                self.decide(depth - 1, &mut routes, pooled);
            }
            for group in &mut routes.groups {
                (group.node, group.gate) = match depth {
                    0 => (0, None),
                    _ => group.state.path[depth - 1].clone(),
                };
                self.run(depth, group, &home);
            }
        }
        for Group {
            node,
            members,
            state,
            ..
        } in &mut routes.groups
        {
            for &member in &*members {
                // Of a chunk that goes on, the leaf is there already.
                let leaves = &mut self.sequences[member].leaves;
                leaves.truncate(chunk.map_or(0, |chunk| so_far / chunk));
                leaves.push(*node);
            }
            state.tokens += count;
            let hidden = state.hidden.take();
            state.hidden = hidden.map(|hidden| hidden.narrow(1, count - 1, 1));
        }
        routes.groups
    }

    /// Runs the node of a group on its hidden states.
    fn run(&self, depth: usize, group: &mut Group<Decoding>, home: &Device) {
        let config = self.model.config();
        let place = self.model.tree().offset(depth) + group.node;
        let node = &self.model.nodes[place];
        let device = node.device();
        let state = &mut group.state;
        let caches = state.caches.entry(place).or_insert_with(|| {
            let blocks = node.blocks.iter();
            let rows = group.members.len();
            blocks
                .map(|block| block.attention.cache(rows, &device))
                .collect()
        });
        let entered = state.hidden.take().expect("tokens are being fed");
        let mut left = entered.clone().to_device(&device);
        for (block, cache) in node.blocks.iter().zip(caches) {
            left = block.forward_cached(left, cache);
        }
        let mut left = left.to_device(home);
        if let Some(gate) = &group.gate {
            left = gate.apply(entered, left);
        }
        if depth < config.height && config.chunk().is_some() {
            let sum: Tensor<2> = left.clone().sum_dim(1).squeeze_dim(1);
            match state.sums.get_mut(depth) {
                Some(so_far) => *so_far = so_far.clone() + sum,
                None => state.sums.push(sum),
            }
        }
        state.hidden = Some(left);
    }

    /// Decides the route of the chunk that begins, from what the chunk before it left behind.
    fn route_chunk(&mut self, routes: &mut Routes<Decoding>, chunk: usize) {
        let (height, d_model) = (self.model.config().height, self.model.config().d_model);
        for group in &mut routes.groups {
            group.node = 0;
            group.state.path.clear();
        }
        for depth in 0..height {
            let groups = routes.groups.iter();
            let pooled = groups.map(|group| match group.state.sums.get(depth) {
                Some(sum) => sum.clone() / chunk as f64,
                None => Tensor::zeros([group.members.len(), d_model], &routes.home),
            });
            let pooled = pooled.collect();
            self.decide(depth, routes, pooled);
        }
        for group in &mut routes.groups {
            group.state.sums.clear();
        }
    }

    /// Chooses the children of groups at a depth, as evaluation does, and sends them there.
    ///
    /// - pooled: what the selector of each reads, `[members, d_model]`
    fn decide(&mut self, depth: usize, routes: &mut Routes<Decoding>, pooled: Vec<Tensor<2>>) {
        let config = self.model.config();
        let selectors = &config.selector;
        let is_learned = selectors.kind == SelectorKind::Learned;
        let is_biased = is_learned && matches!(selectors.balance, SelectorBalance::LossFree { .. });
        let scores = Scores::new(&self.model, depth, routes, pooled, is_biased);
        let (children, margins) = if is_learned {
            let host = scores.read();
            let choices = host.choose(&host.scores);
            let margins = choices.iter().map(|choice| choice.margin).collect();
            (children_of(&choices), margins)
        } else {
            let tree = self.model.tree();
            let groups = routes.groups.iter();
            let leaves = groups.flat_map(|group| {
                let members = group.members.iter();
                members.map(|&member| self.fixed_leaf(group.state.tokens, member))
            });
            let children = leaves.map(|leaf| tree.path(leaf)[depth]);
            (children.collect(), vec![f64::INFINITY; routes.count()])
        };
        // The other ways to learn take all of what a child adds.
        let is_scaled = selectors.gradient == SelectorGradient::ScaledDelta;
        let gate = is_scaled.then(|| Gate::by_probability(scores.tensor, &children));
        for (member, margin) in routes.members().zip(&margins) {
            let closest = &mut self.sequences[member].margin;
            *closest = closest.min(*margin);
        }
        let decided = Decided {
            children,
            margins,
            gate,
        };
        routes.send(&decided, config.branching);
        for group in &mut routes.groups {
            group.state.path.push((group.node, group.gate.take()));
        }
    }

    /// The leaf of the routed item that begins after so many tokens, where no selector decides.
    fn fixed_leaf(&self, so_far: usize, member: usize) -> usize {
        let config = self.model.config();
        let Sequence { seed, tokens, .. } = &self.sequences[member];
        let item = config.chunk().map_or(0, |chunk| so_far / chunk);
        let read = config.route_on.read(item, tokens.len());
        let read = tokens[read].iter().map(|&token| u64::from(token));
        let leaves = self.model.tree().leaves();
        fixed_leaf(config.selector.kind, (*seed, item), read, leaves)
    }

    /// Logits `[members][vocabulary]` after the last token of a group.
    fn predict(&self, group: &mut Group<Decoding>) -> Vec<Vec<f32>> {
        let config = self.model.config();
        let last = group.state.hidden.take().expect("tokens were fed");
        let logits = match &self.model.head {
            Some(head) => head.forward(last),
            None => {
                let device = self.model.node(config.height, group.node).device();
                self.model
                    .predict_alone(group.node, last.to_device(&device))
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
