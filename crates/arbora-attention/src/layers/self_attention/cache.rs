//! What decoding keeps of earlier tokens.

use super::kind::{CachedRows, HeadSizes};
use super::pages::LeafPages;
use super::{AttentionKind, SelfAttention, SelfAttentionOutput, expect, expect_some};
use crate::functions::TreeCoarseState;
use crate::functions::masked_attention::{places, select_rows};
use arbora_tree::shape::CompleteTree;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// What a causal [`SelfAttention`] remembers of the tokens it has seen.
///
/// Made by [`SelfAttention::cache`], filled by [`SelfAttention::forward_cached`].
#[derive(Clone, Debug)]
pub struct AttentionCache {
    batch: usize,
    tokens: usize,
    /// Keys that the last call of dense attention read.
    read: usize,
    state: CacheState,
}

/// What a kind remembers.
#[derive(Clone, Debug)]
pub(super) enum CacheState {
    /// Keys and values in the order of tokens, `[batch, tokens, kv_heads, head_dim]` each.
    Dense(Option<[Tensor<4>; 2]>),
    TreeFine(FineCache),
    /// Sums over the keys so far, `[batch, kv_heads, features, head_dim + 1]`.
    Performer(Option<Tensor<4>>),
    TreeCoarse(TreeCoarseState),
}

impl AttentionCache {
    /// Tokens of each example seen so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Keys that the last call read from the cache, with their values, over all examples and key heads. The tokens of the
    /// call itself are not counted. 0 for tree-coarse and Performer, which keep sums in place of keys.
    pub fn keys_read(&self) -> usize {
        match &self.state {
            CacheState::TreeFine(cache) => cache.read,
            _ => self.read,
        }
    }

    /// Examples of the batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The cache of some of the examples, in this order: `rows` are their places in the batch. Sequences that were
    /// decoded together part this way, and those that have ended are left behind.
    ///
    /// Attention within leaves reads the pages of the selected examples alone. It keeps those of the others in store until
    /// they are more than half.
    ///
    /// # Panics
    /// If `rows` is empty, names a row that is not there, or one twice.
    #[track_caller]
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let mut seen = vec![false; self.batch];
        for &row in rows {
            assert!(
                row < self.batch,
                "attention_cache: select: expected rows below {}, got {row}",
                self.batch
            );
            assert!(
                !std::mem::replace(&mut seen[row], true),
                "attention_cache: select: expected each row once, got {row} twice"
            );
        }
        assert!(
            !rows.is_empty(),
            "attention_cache: select: expected at least 1 row, got {}",
            rows.len()
        );
        let state = match &self.state {
            CacheState::Dense(state) => {
                let of = |[key, value]: &[_; 2]| [select_rows(key, rows), select_rows(value, rows)];
                CacheState::Dense(state.as_ref().map(of))
            }
            CacheState::TreeFine(cache) => CacheState::TreeFine(cache.select(rows)),
            CacheState::Performer(state) => {
                CacheState::Performer(state.as_ref().map(|state| select_rows(state, rows)))
            }
            CacheState::TreeCoarse(state) => CacheState::TreeCoarse(state.select(rows)),
        };
        Self {
            batch: rows.len(),
            tokens: self.tokens,
            read: self.read,
            state,
        }
    }
}

/// Panics where a cache is of other trees than the layer.
#[track_caller]
pub(super) fn expect_trees(layer: &str, got: &CompleteTree, expected: &CompleteTree) {
    assert!(
        got == expected,
        "{layer}: cache: expected one of trees {expected:?}, got {got:?}"
    );
}

/// Panics on autodiff devices, where a cache would hold the graph of all calls.
#[track_caller]
pub(super) fn expect_no_autodiff(layer: &str, device: &Device) {
    assert!(
        !device.is_autodiff(),
        "{layer}: cache: expected a device without autodiff, got {device:?}"
    );
}

impl SelfAttention {
    /// A cache for `batch` examples that has seen no token.
    ///
    /// # Panics
    /// If `batch` is 0 or the kind does not support causal decoding.
    #[track_caller]
    #[must_use]
    pub fn cache(&self, batch: usize, device: &Device) -> AttentionCache {
        expect_some("self_attention: batch of a cache", batch);
        AttentionCache {
            batch,
            tokens: 0,
            read: 0,
            state: self.kind.cache(self.sizes, batch, device),
        }
    }

    /// Attends from the next tokens to all tokens so far and themselves, causally. Any split of a sequence into calls gives
    /// what one causal [`forward`](Self::forward) gives, up to rounding.
    ///
    /// Dense attention appends keys and values, and reads them all. Attention within leaves keeps them in pages
    /// of one leaf each: a query reads the pages of its leaf alone, or, where that is empty, what its policy for empty
    /// leaves asks for. It reads leaves back from the device once per call. Tree-coarse keeps one sum per node and Performer one
    /// per feature, however many tokens there were. Nothing is dropped, and the report on routing is left out.
    ///
    /// # Shapes
    /// - tokens: `[batch, new tokens, d_model]`, none of them padding
    /// - returns `[batch, new tokens, d_model]`
    ///
    /// # Panics
    /// If there is no new token, if an axis disagrees with the layer or the cache, if the cache is of another kind of attention, or on an
    /// autodiff device: a cache would hold the graph of all calls.
    #[track_caller]
    pub fn forward_cached(
        &self,
        tokens: Tensor<3>,
        cache: &mut AttentionCache,
    ) -> SelfAttentionOutput {
        let [batch, new, width] = tokens.dims();
        let d_model = self.sizes.d_model();
        expect("self_attention: axis 2 of tokens", width, d_model);
        expect_some("self_attention: axis 1 of tokens", new);
        expect(
            "self_attention: axis 0 of tokens, as of the cache",
            batch,
            cache.batch,
        );
        expect_no_autodiff("self_attention", &tokens.device());
        let [query, key, value] = self.project(tokens.clone(), tokens);
        let rows = CachedRows { query, key, value };
        let context = match (&self.kind, &mut cache.state) {
            (AttentionKind::Dense(dense), CacheState::Dense(state)) => {
                cache.read = batch * self.sizes.kv_heads * cache.tokens;
                dense.attend_cached(rows, state)
            }
            (AttentionKind::TreeFine(tree), CacheState::TreeFine(state)) => {
                tree.attend_cached(rows, state)
            }
            (AttentionKind::Performer(performer), CacheState::Performer(state)) => {
                performer.attend_cached(rows, state)
            }
            (AttentionKind::TreeCoarse(tree), CacheState::TreeCoarse(state)) => {
                tree.attend_cached(rows, state)
            }
            (kind, _) => panic!(
                "self_attention: cache: expected one of {}, got one of another kind of attention",
                kind.name()
            ),
        };
        cache.tokens += new;
        SelfAttentionOutput {
            context: self.output.forward(context.reshape([batch, new, d_model])),
            routing: None,
        }
    }
}

/// Keys and values in pages of one leaf each.
#[derive(Clone, Debug)]
pub(super) struct FineCache {
    pages: LeafPages,
    /// `[pages · page, head_dim]` each; zero where nothing is stored yet.
    key: Tensor<2>,
    value: Tensor<2>,
    read: usize,
}

/// Keys of the past and of the call, those of the past first.
pub(super) struct Gathered {
    /// `[batch, keys, kv_heads, head_dim]`
    pub key: Tensor<4>,
    /// `[batch, keys, kv_heads, head_dim]`
    pub value: Tensor<4>,
    /// `[batch, keys, kv_heads]`, -1 for places without a key
    pub key_leaf: Tensor<3, Int>,
    /// How many of them are of the past.
    pub before: usize,
}

impl FineCache {
    /// Keys of a page. Few are wasted where leaves hold few keys, and a page is still a copy worth making.
    const PAGE: usize = 16;

    pub fn new(sizes: HeadSizes, shape: &CompleteTree, batch: usize, device: &Device) -> Self {
        let empty = || Tensor::zeros([Self::PAGE, sizes.head_dim], device);
        Self {
            pages: LeafPages::new(batch, sizes.kv_heads, shape.clone(), Self::PAGE),
            key: empty(),
            value: empty(),
            read: 0,
        }
    }

    /// The shape of the trees that keys are routed by.
    pub fn shape(&self) -> &CompleteTree {
        self.pages.shape()
    }

    fn select(&self, rows: &[usize]) -> Self {
        let mut kept = Self {
            pages: self.pages.select(rows),
            ..self.clone()
        };
        let used = kept.pages.used();
        // At least one page stays: tensors without rows are refused by some backends.
        if used > 0 && 2 * used < kept.pages.capacity() {
            let old = places(&kept.pages.compact(), &kept.key.device());
            kept.key = Self::pages_at(&self.key, &old);
            kept.value = Self::pages_at(&self.value, &old);
        }
        kept
    }

    /// Some pages of stored rows, one after the other, `[pages · page, head_dim]`.
    fn pages_at(stored: &Tensor<2>, pages: &Tensor<1, Int>) -> Tensor<2> {
        let ([places, head_dim], [count]) = (stored.dims(), pages.dims());
        let stored = stored.clone();
        stored
            .reshape([places / Self::PAGE, Self::PAGE * head_dim])
            .select(0, pages.clone())
            .reshape([count * Self::PAGE, head_dim])
    }

    /// The keys that the queries of a call need, and the call's own.
    ///
    /// - rows: of the call
    /// - query_leaf, key_leaf: of the call, on the host, `[batch, new, heads]` and `[batch, new, kv_heads]`
    /// - needs_ancestors: whether a query of an empty leaf needs the keys under its deepest ancestor that has some
    pub fn gather(
        &mut self,
        rows: &CachedRows,
        query_leaf: &[i64],
        key_leaf: &[i64],
        needs_ancestors: bool,
    ) -> Gathered {
        let [batch, new, heads, _] = rows.query.dims();
        let [_, _, kv_heads, head_dim] = rows.key.dims();
        let group = heads / kv_heads;
        let device = rows.key.device();
        let mut lists = Vec::with_capacity(batch * kv_heads);
        for example in 0..batch {
            for head in 0..kv_heads {
                let own = |token: usize| key_leaf[(example * new + token) * kv_heads + head];
                let fresh: Vec<i64> = (0..new).map(own).collect();
                let queries = (0..new).flat_map(|token| {
                    let first = (example * new + token) * heads + head * group;
                    query_leaf[first..first + group]
                        .iter()
                        .map(move |leaf| (token, *leaf))
                });
                lists.push(
                    self.pages
                        .needed(example, head, queries, &fresh, needs_ancestors),
                );
            }
        }
        self.read = lists.iter().flatten().map(|page| page.keys).sum();
        let pages = lists.iter().map(Vec::len).max().unwrap_or(0);
        let before = pages * Self::PAGE;

        let mut leaves = vec![-1; batch * (before + new) * kv_heads];
        let mut order = vec![0; batch * kv_heads * pages];
        for (at, list) in lists.iter().enumerate() {
            let (example, head) = (at / kv_heads, at % kv_heads);
            for (place, page) in list.iter().enumerate() {
                order[at * pages + place] = page.index;
                for slot in 0..page.keys {
                    let key = example * (before + new) + place * Self::PAGE + slot;
                    leaves[key * kv_heads + head] = page.leaf;
                }
            }
            for token in 0..new {
                let key = example * (before + new) + before + token;
                leaves[key * kv_heads + head] = key_leaf[(example * new + token) * kv_heads + head];
            }
        }
        let leaves = TensorData::new(leaves, [batch, before + new, kv_heads]);
        let order = (pages > 0).then(|| places(&order, &device));
        let read = |stored: &Tensor<2>, new: &Tensor<4>| match &order {
            None => new.clone(),
            Some(order) => {
                let old = Self::pages_at(stored, order);
                let old = old.reshape([batch, kv_heads, before, head_dim]);
                Tensor::cat(vec![old.swap_dims(1, 2), new.clone()], 1)
            }
        };
        Gathered {
            key: read(&self.key, &rows.key),
            value: read(&self.value, &rows.value),
            key_leaf: Tensor::from_data(leaves, &device),
            before,
        }
    }

    /// Stores the keys and values of a call.
    pub fn append(&mut self, key: Tensor<4>, value: Tensor<4>, key_leaf: &[i64]) {
        let [batch, new, kv_heads, head_dim] = key.dims();
        let count = batch * new * kv_heads;
        let place = |(at, leaf): (usize, &i64)| {
            let (row, head) = (at / kv_heads, at % kv_heads);
            self.pages.append(row / new, head, *leaf)
        };
        let stored: Vec<usize> = key_leaf.iter().enumerate().map(place).collect();
        let places = places(&stored, &key.device());
        let stored = self.pages.capacity() * Self::PAGE;
        let store = |pool: &mut Tensor<2>, rows: Tensor<4>| {
            let [held, width] = pool.dims();
            let device = rows.device();
            let options = (&device, rows.dtype());
            let old = std::mem::replace(pool, Tensor::zeros([1, 1], options));
            let mut old = old.cast(rows.dtype());
            if stored > held {
                // Doubling: appending stays linear in the number of keys.
                let more = Tensor::zeros([stored.max(2 * held) - held, width], options);
                old = Tensor::cat(vec![old, more], 0);
            }
            // New places hold zeros, so adding is storing.
            *pool = old.select_assign(
                0,
                places.clone(),
                rows.reshape([count, head_dim]),
                burn::tensor::IndexingUpdateOp::Add,
            );
        };
        store(&mut self.key, key);
        store(&mut self.value, value);
    }
}
