//! Trees that grow and change leaf by leaf.

use super::changed::{Changed, add_runs};
use super::{Aggregator, TokenTree};
use crate::shape::{Layout, TokenTreeShape};
use crate::tensors::{counting, expect_equal, expect_some, int_tensor};
use burn::tensor::{Device, Int, Tensor, TensorCreationOptions};
use thiserror::Error;

/// Why tokens cannot be appended to a tree or replaced in it. The tree is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The tree has another layout than [`Layout::LeftFilled`], so that one more token may move all
    /// others.
    #[error("append and update need the layout left-filled, this tree is {layout:?}")]
    Layout {
        /// The tree's layout.
        layout: Layout,
    },
    /// The leaves are not the tokens in their given order, so that one more token may belong
    /// anywhere.
    #[error(
        "append and update need tokens in their given order, \
         leaf {leaf} of example {example} is token {token}"
    )]
    Order {
        /// The example.
        example: usize,
        /// Its first leaf that is another token.
        leaf: usize,
        /// That token.
        token: usize,
    },
    /// An example would grow past [`TokenTree::with_max_tokens`].
    #[error(
        "append: example {example}: expected at most {max_tokens} tokens, got {length} and {appended} more"
    )]
    Full {
        /// The example.
        example: usize,
        /// Its tokens.
        length: usize,
        /// How many were to follow.
        appended: usize,
        /// The limit.
        max_tokens: usize,
    },
    /// The token to replace does not exist.
    #[error("update: example {example} of {batch} has no token {token}")]
    NoSuchToken {
        /// The example asked for.
        example: usize,
        /// The token asked for.
        token: usize,
        /// Number of examples.
        batch: usize,
    },
    /// A token is to be replaced by two.
    #[error("update: token {token} of example {example} is given twice")]
    Repeated {
        /// The example.
        example: usize,
        /// The token.
        token: usize,
    },
}

/// # Streams
///
/// Append and update recompute the changed leaves and their ancestors and nothing else: for one token
/// `O(b log N)` rows are read and `O(log N)` nodes aggregated; neighbouring tokens share ancestors. The
/// nodes equal those of a tree built at once, up to rounding.
///
/// That holds for the layout [`Layout::LeftFilled`], tokens in their given order, and tokens that were
/// encoded one by one: an encoder that attends among tokens changes all of them when one comes.
///
/// A tree has room for [`capacity`](Self::capacity) tokens per example. When one needs more, the tree
/// grows to `b` times the room, and so copies what it holds; over many appends that is a constant cost
/// per token. A tree with room left has more levels than its tokens need; on them every node has one
/// child, aggregated as any other, and a search passes them without a decision.
///
/// The first append or update reads lengths and order of a built tree back from the device; later ones
/// read nothing. Stream on a device without gradients: with them each step copies, and holds on to all
/// steps before it.
impl TokenTree {
    /// A batch of trees without tokens, with room for `shape.tokens()` of them each.
    ///
    /// - options: `&device`, for tokens of the device's default type, or `(&device, dtype)`
    ///
    /// # Panics
    /// If `batch` or `dim` is 0.
    #[track_caller]
    pub fn empty(
        batch: usize,
        dim: usize,
        shape: TokenTreeShape,
        options: impl Into<TensorCreationOptions>,
    ) -> Self {
        expect_some("token_tree: batch", batch);
        expect_some("token_tree: dim", dim);
        let nodes = Tensor::zeros([batch, shape.nodes(), dim], options);
        Self::from_nodes(nodes, vec![0; batch], shape)
    }

    /// A batch of trees over tokens in their given order, from all its nodes.
    ///
    /// # Shapes
    /// - nodes: `[batch, shape.nodes(), dim]` in level order; ghosts must be zero
    /// - lengths: real tokens of each example
    ///
    /// # Panics
    /// If there is no example, the axes of `nodes`, `lengths` and `shape` disagree, or a length exceeds `shape.tokens()`.
    #[track_caller]
    pub fn from_nodes(nodes: Tensor<3>, lengths: Vec<usize>, shape: TokenTreeShape) -> Self {
        let [batch, count, _] = nodes.dims();
        expect_some("token_tree: axis 0 of nodes", batch);
        expect_equal("token_tree: axis 1 of nodes", shape.nodes(), count);
        expect_equal("token_tree: lengths", batch, lengths.len());
        for (example, length) in lengths.iter().enumerate() {
            assert!(
                *length <= shape.tokens(),
                "token_tree: length of example {example}: expected at most {}, got {length}",
                shape.tokens()
            );
        }
        let device = nodes.device();
        Self {
            shape,
            nodes,
            lengths: length_tensor(&lengths, &device),
            order: counting([batch, shape.tokens()], &device),
            stream: Some(lengths),
            max_tokens: None,
        }
    }

    /// Limits how many tokens an example may grow to. Appending more is refused before anything
    /// changes.
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// How many tokens an example may grow to, if that is limited.
    pub fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    /// Tokens per example that there is room for: those of the [`shape`](Self::shape).
    pub fn capacity(&self) -> usize {
        self.shape.tokens()
    }

    /// Makes room for `tokens` tokens per example at once.
    ///
    /// # Errors
    /// As [`append`](Self::append). A limit below `tokens` is [`StreamError::Full`].
    #[track_caller]
    pub fn reserve<A: Aggregator + ?Sized>(
        &mut self,
        tokens: usize,
        aggregator: &A,
    ) -> Result<Changed, StreamError> {
        let lengths = self.stream_lengths()?;
        if let (Some(max_tokens), Some(length)) = (self.max_tokens, lengths.first())
            && tokens > max_tokens
        {
            return Err(StreamError::Full {
                example: 0,
                length: *length,
                appended: tokens.saturating_sub(*length),
                max_tokens,
            });
        }
        let shape = self.shape_for(tokens.max(self.capacity()));
        Ok(self.change(Vec::new(), None, lengths, shape, aggregator))
    }

    /// Appends the same number of tokens to every example.
    ///
    /// # Shapes
    /// - tokens: `[batch, new, dim]`
    ///
    /// # Errors
    /// If the layout is not left-filled, the leaves are not the tokens in their given order, or an
    /// example would exceed [`with_max_tokens`](Self::with_max_tokens). Nothing has changed then.
    ///
    /// # Panics
    /// If `batch` or `dim` is not that of the tree.
    #[track_caller]
    pub fn append<A: Aggregator + ?Sized>(
        &mut self,
        tokens: Tensor<3>,
        aggregator: &A,
    ) -> Result<Changed, StreamError> {
        let [batch, new, _] = tokens.dims();
        self.append_ragged(tokens, &vec![new; batch], aggregator)
    }

    /// Appends to every example the first `counts[example]` of its tokens.
    ///
    /// # Shapes
    /// - tokens: `[batch, new, dim]`; what follows an example's count is ignored
    /// - counts: `[batch]`
    ///
    /// # Errors
    /// As [`append`](Self::append).
    ///
    /// # Panics
    /// If `batch` or `dim` is not that of the tree, or a count exceeds `new`.
    #[track_caller]
    pub fn append_ragged<A: Aggregator + ?Sized>(
        &mut self,
        tokens: Tensor<3>,
        counts: &[usize],
        aggregator: &A,
    ) -> Result<Changed, StreamError> {
        let [batch, new, dim] = tokens.dims();
        let [trees, _, width] = self.nodes.dims();
        expect_equal("token_tree: append: axis 0 of tokens", trees, batch);
        expect_equal("token_tree: append: axis 2 of tokens", width, dim);
        expect_equal("token_tree: append: counts", trees, counts.len());
        for (example, count) in counts.iter().enumerate() {
            assert!(
                *count <= new,
                "token_tree: append: count of example {example}: expected at most {new}, got {count}"
            );
        }
        let mut lengths = self.stream_lengths()?;
        let mut leaves = Vec::new();
        let mut rows = Vec::new();
        for (example, (length, count)) in lengths.iter_mut().zip(counts).enumerate() {
            let max_tokens = self.max_tokens.unwrap_or(usize::MAX);
            if *count > max_tokens.saturating_sub(*length) {
                return Err(StreamError::Full {
                    example,
                    length: *length,
                    appended: *count,
                    max_tokens,
                });
            }
            leaves.extend((*length..*length + count).map(|leaf| (example, leaf)));
            rows.extend((0..*count).map(|token| (example * new + token) as i64));
            *length += count;
        }
        let shape = self.shape_for(lengths.iter().copied().max().unwrap_or(0));
        let tokens = (!rows.is_empty()).then(|| pick(tokens.reshape([batch * new, dim]), rows));
        Ok(self.change(leaves, tokens, lengths, shape, aggregator))
    }

    /// Replaces tokens.
    ///
    /// # Shapes
    /// - leaves: `(example, token)` of each token to replace, in any order
    /// - tokens: `[leaves, dim]`, what replaces them
    ///
    /// # Errors
    /// If the layout is not left-filled, the leaves are not the tokens in their given order, or a token
    /// does not exist or is named twice. Nothing has changed then.
    ///
    /// # Panics
    /// If `tokens` has another number of rows than `leaves`, or its `dim` is not that of the tree.
    #[track_caller]
    pub fn update<A: Aggregator + ?Sized>(
        &mut self,
        leaves: &[(usize, usize)],
        tokens: Tensor<2>,
        aggregator: &A,
    ) -> Result<Changed, StreamError> {
        let [count, dim] = tokens.dims();
        let [batch, _, width] = self.nodes.dims();
        expect_equal("token_tree: update: axis 0 of tokens", leaves.len(), count);
        expect_equal("token_tree: update: axis 1 of tokens", width, dim);
        let lengths = self.stream_lengths()?;
        let mut rows: Vec<usize> = (0..leaves.len()).collect();
        rows.sort_unstable_by_key(|row| leaves[*row]);
        let sorted: Vec<(usize, usize)> = rows.iter().map(|row| leaves[*row]).collect();
        for (example, token) in sorted.iter().copied() {
            if lengths.get(example).is_none_or(|length| token >= *length) {
                return Err(StreamError::NoSuchToken {
                    example,
                    token,
                    batch,
                });
            }
        }
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let (example, token) = pair[0];
            return Err(StreamError::Repeated { example, token });
        }
        let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
        let tokens = (!rows.is_empty()).then(|| pick(tokens, rows));
        let shape = self.shape;
        Ok(self.change(sorted, tokens, lengths, shape, aggregator))
    }

    /// Real tokens per example, if the tree can be streamed.
    fn stream_lengths(&mut self) -> Result<Vec<usize>, StreamError> {
        if self.shape.layout() != Layout::LeftFilled {
            let layout = self.shape.layout();
            return Err(StreamError::Layout { layout });
        }
        if let Some(lengths) = &self.stream {
            return Ok(lengths.clone());
        }
        let count = self.shape.tokens();
        let order = self.order.clone().into_data();
        for (row, token) in order.iter::<i64>().enumerate() {
            let (example, leaf, token) = (row / count, row % count, token as usize);
            if token != leaf {
                return Err(StreamError::Order {
                    example,
                    leaf,
                    token,
                });
            }
        }
        let lengths = self.lengths.clone().into_data();
        let lengths: Vec<usize> = lengths.iter::<i64>().map(|one| one as usize).collect();
        self.stream = Some(lengths.clone());
        Ok(lengths)
    }

    /// The shape with room for `tokens` tokens: this one if it has.
    fn shape_for(&self, tokens: usize) -> TokenTreeShape {
        let capacity = self.capacity();
        if tokens <= capacity {
            return self.shape;
        }
        let branching = self.shape.branching();
        let grown = capacity
            .saturating_mul(branching)
            .min(self.max_tokens.unwrap_or(usize::MAX))
            .max(tokens);
        TokenTreeShape::new(grown, branching, self.shape.layout())
    }

    /// Replaces leaves, and aggregates their ancestors again.
    ///
    /// `leaves` are sorted `(example, leaf)`, `tokens` `[leaves, dim]` their vectors. `lengths` and
    /// `shape` are those after the change. Everything is computed before anything is written, so that
    /// an aggregator that panics leaves the tree as it was.
    #[track_caller]
    fn change<A: Aggregator + ?Sized>(
        &mut self,
        leaves: Vec<(usize, usize)>,
        tokens: Option<Tensor<2>>,
        lengths: Vec<usize>,
        shape: TokenTreeShape,
        aggregator: &A,
    ) -> Changed {
        let before = self.shape;
        let device = self.nodes.device();
        let mut runs = Vec::new();
        let mut levels = Vec::new();
        let mut touched = leaves;
        let mut level = tokens;
        add_runs(&mut runs, &touched, shape.offset(0));
        levels.extend(level.clone());
        for height in 1..=shape.height() {
            let group = shape.group(height);
            let mut parents: Vec<(usize, usize)> = touched
                .iter()
                .map(|(example, index)| (*example, index / group))
                .collect();
            if height > before.height() {
                // A new level is over all tokens there are.
                let filled = lengths
                    .iter()
                    .enumerate()
                    .filter(|(_, length)| **length > 0);
                parents.extend(filled.map(|(example, _)| (example, 0)));
                parents.sort_unstable();
            }
            parents.dedup();
            if parents.is_empty() {
                continue;
            }
            let (children, counts) =
                self.children(&parents, &touched, level.take(), &lengths, &shape, height);
            let rows = aggregator.aggregate(children, counts);
            let expected = [parents.len(), self.nodes.dims()[2]];
            expect_equal("token_tree: aggregator's output", expected, rows.dims());
            add_runs(&mut runs, &parents, shape.offset(height));
            levels.push(rows.clone());
            level = Some(rows);
            touched = parents;
        }
        let changed = Changed {
            before,
            after: shape,
            runs,
            nodes: (!levels.is_empty()).then(|| Tensor::cat(levels, 0)),
        };

        // The only handle to the nodes, or writing would copy them all.
        let nodes = core::mem::replace(&mut self.nodes, Tensor::empty([1, 1, 1], &device));
        let rows = changed.nodes().map(|rows| rows.unsqueeze_dim::<3>(0));
        self.nodes = changed.apply(nodes, rows);
        if before != shape {
            let [batch, ..] = self.nodes.dims();
            self.order = counting([batch, shape.tokens()], &self.order.device());
        }
        self.lengths = length_tensor(&lengths, &self.lengths.device());
        self.shape = shape;
        self.stream = Some(lengths);
        changed
    }

    /// The children of nodes of a height, `[parents, group, dim]`, and the leaves below each. Those that are
    /// `touched` are rows of `level`, others are read from the tree as it was, ghosts are zero.
    fn children(
        &self,
        parents: &[(usize, usize)],
        touched: &[(usize, usize)],
        level: Option<Tensor<2>>,
        lengths: &[usize],
        shape: &TokenTreeShape,
        height: usize,
    ) -> (Tensor<3>, Tensor<2, Int>) {
        let [batch, count, dim] = self.nodes.dims();
        let device = self.nodes.device();
        let (group, span) = (shape.group(height), shape.span(height - 1));
        // Offsets exist for stored heights alone; children above them are all touched.
        let offset = if height - 1 <= self.shape.height() {
            self.shape.offset(height - 1)
        } else {
            0
        };
        // Rows side by side: one of zeros for all ghosts, touched ones, those of the tree.
        let mut stored = Vec::new();
        let mut rows = Vec::with_capacity(parents.len() * group);
        let mut leaves = Vec::with_capacity(parents.len() * group);
        for (example, parent) in parents {
            for child in parent * group..(parent + 1) * group {
                let first = child.saturating_mul(span);
                leaves.push(lengths[*example].saturating_sub(first).min(span) as i64);
                rows.push(if let Ok(row) = touched.binary_search(&(*example, child)) {
                    (1 + row) as i64
                } else if first < lengths[*example] {
                    stored.push((example * count + offset + child) as i64);
                    (touched.len() + stored.len()) as i64
                } else {
                    0
                });
            }
        }
        let mut parts = vec![Tensor::zeros([1, dim], (&device, self.nodes.dtype()))];
        parts.extend(level);
        if !stored.is_empty() {
            let nodes = self.nodes.clone().reshape([batch * count, dim]);
            parts.push(pick(nodes, stored));
        }
        let children = pick(Tensor::cat(parts, 0), rows);
        let dims = [parents.len(), group];
        (
            children.reshape([dims[0], dims[1], dim]),
            int_tensor(leaves, dims, &device),
        )
    }
}

/// Moves rows stored per node of one shape to their places in a larger one; new rows are zero.
pub(super) fn grow<const D: usize>(
    rows: Tensor<D>,
    from: &TokenTreeShape,
    to: &TokenTreeShape,
) -> Tensor<D> {
    if from == to {
        return rows;
    }
    let device = rows.device();
    let mut levels = Vec::new();
    for height in (0..=to.height()).rev() {
        let existing = from.width(height);
        if existing > 0 {
            levels.push(rows.clone().narrow(1, from.offset(height), existing));
        }
        let missing = to.width(height) - existing;
        if missing > 0 {
            let mut dims = rows.dims();
            dims[1] = missing;
            levels.push(Tensor::zeros(dims, (&device, rows.dtype())));
        }
    }
    Tensor::cat(levels, 1)
}

fn pick(rows: Tensor<2>, indices: Vec<i64>) -> Tensor<2> {
    let device = rows.device();
    let count = indices.len();
    rows.select(0, int_tensor(indices, [count], &device))
}

fn length_tensor(lengths: &[usize], device: &Device) -> Tensor<1, Int> {
    let lengths: Vec<i64> = lengths.iter().map(|length| *length as i64).collect();
    let batch = lengths.len();
    int_tensor(lengths, [batch], device)
}
