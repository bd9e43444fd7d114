//! An index over trees that grow and change.

use super::tree_cross_attention::TreeCrossAttention;
use super::tree_index::TreeIndex;
use arbora_tree::{Aggregator, Changed, StreamError, TokenTree};
use burn::tensor::Tensor;

/// Token trees and their [`TreeIndex`], which grow and change together.
///
/// Appending or replacing tokens aggregates and projects the changed leaves and their ancestors and
/// nothing else: `O(log N)` nodes for one token. The result equals building and indexing the trees
/// anew, up to rounding. When that holds, how room grows, and why to stream without gradients: see
/// [`TokenTree`], section "Streams".
///
/// Search [`index`](Self::index). A clone of it is a snapshot that later changes leave alone; while
/// one is held, the next change copies the index.
///
/// # Example
///
/// ```no_run
/// use arbora_attention::{Route, TreeCrossAttentionConfig};
/// use arbora_tree::{Layout, MeanAggregator, TokenTree, TokenTreeShape};
/// use burn::tensor::{Device, Tensor};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::default();
/// let layer = TreeCrossAttentionConfig::new(32, 4).init(&device);
/// let shape = TokenTreeShape::new(1024, 2, Layout::LeftFilled); // room for 1024 tokens at first
/// let mut stream = layer.stream(TokenTree::empty(1, 32, shape, &device));
///
/// stream.append(&layer, Tensor::ones([1, 10, 32], &device), &MeanAggregator)?;
/// let queries = Tensor::ones([1, 4, 32], &device);
/// let found = layer.search(queries, stream.index(), Route::Greedy);
/// assert_eq!(found.context.dims(), [1, 4, 32]);
///
/// stream.save("stream.safetensors")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct StreamingIndex {
    pub(super) tree: TokenTree,
    pub(super) index: TreeIndex,
}

impl StreamingIndex {
    /// What to search.
    pub fn index(&self) -> &TreeIndex {
        &self.index
    }

    /// The indexed trees.
    pub fn tree(&self) -> &TokenTree {
        &self.tree
    }

    /// Limits how many tokens an example may grow to: see [`TokenTree::with_max_tokens`].
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Self {
        self.tree = self.tree.with_max_tokens(max_tokens);
        self
    }

    /// Appends the same number of tokens to every example: see [`TokenTree::append`].
    ///
    /// # Shapes
    /// - tokens: `[batch, new, d_model]`
    ///
    /// # Errors
    /// As [`TokenTree::append`]; trees and index are unchanged then.
    ///
    /// # Panics
    /// As [`TokenTree::append`], and if the index is not of the layer (see [`TreeIndex::check`]).
    #[track_caller]
    pub fn append<A: Aggregator + ?Sized>(
        &mut self,
        layer: &TreeCrossAttention,
        tokens: Tensor<3>,
        aggregator: &A,
    ) -> Result<Changed, StreamError> {
        self.change(layer, |tree| tree.append(tokens, aggregator))
    }

    /// Appends to every example the first `counts[example]` of its tokens: see
    /// [`TokenTree::append_ragged`].
    ///
    /// - tokens: `[batch, new, d_model]`
    /// - counts: one for each example
    ///
    /// # Errors
    /// As [`append`](Self::append).
    ///
    /// # Panics
    /// As [`append`](Self::append), and if a count exceeds the tokens given.
    #[track_caller]
    pub fn append_ragged<A: Aggregator + ?Sized>(
        &mut self,
        layer: &TreeCrossAttention,
        tokens: Tensor<3>,
        counts: &[usize],
        aggregator: &A,
    ) -> Result<Changed, StreamError> {
        self.change(layer, |tree| tree.append_ragged(tokens, counts, aggregator))
    }

    /// Replaces tokens, named as `(example, token)`: see [`TokenTree::update`].
    ///
    /// # Shapes
    /// - tokens: `[leaves, d_model]`
    ///
    /// # Errors
    /// As [`TokenTree::update`]; trees and index are unchanged then.
    ///
    /// # Panics
    /// As [`TokenTree::update`], and if the index is not of the layer (see [`TreeIndex::check`]).
    #[track_caller]
    pub fn update<A: Aggregator + ?Sized>(
        &mut self,
        layer: &TreeCrossAttention,
        leaves: &[(usize, usize)],
        tokens: Tensor<2>,
        aggregator: &A,
    ) -> Result<Changed, StreamError> {
        self.change(layer, |tree| tree.update(leaves, tokens, aggregator))
    }

    /// Makes room for `tokens` tokens per example at once: see [`TokenTree::reserve`].
    ///
    /// # Errors
    /// As [`append`](Self::append).
    ///
    /// # Panics
    /// If the index is not of the layer (see [`TreeIndex::check`]).
    #[track_caller]
    pub fn reserve<A: Aggregator + ?Sized>(
        &mut self,
        layer: &TreeCrossAttention,
        tokens: usize,
        aggregator: &A,
    ) -> Result<Changed, StreamError> {
        self.change(layer, |tree| tree.reserve(tokens, aggregator))
    }

    #[track_caller]
    fn change(
        &mut self,
        layer: &TreeCrossAttention,
        change: impl FnOnce(&mut TokenTree) -> Result<Changed, StreamError>,
    ) -> Result<Changed, StreamError> {
        self.index.expect(&layer.attention);
        let changed = change(&mut self.tree)?;
        self.index
            .follow(&layer.attention, &changed, self.tree.lengths());
        Ok(changed)
    }
}
