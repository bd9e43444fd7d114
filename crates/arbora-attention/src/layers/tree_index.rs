//! The projected keys and values of token trees.

use super::index_file::IndexError;
use super::pre_norm_attention::PreNormAttention;
use super::tree_cross_attention::TreeCrossAttention;
use crate::functions::masked_attention::index_along;
use arbora_tree::{Changed, TokenTreeShape};
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Bool, Int, Tensor};
use sha2::{Digest, Sha256};
use std::sync::{Arc, PoisonError, RwLock};

/// The projected keys and values of a batch of token trees: made once, searched by any number of
/// queries, also from several threads.
///
/// An index belongs to the key and value weights of the layer that made it: see
/// [`check`](Self::check). Make a new one after a training step.
#[derive(Clone, Debug)]
pub struct TreeIndex {
    pub(super) shape: TokenTreeShape,
    pub(super) key: Tensor<4>,   // [batch, nodes, heads, head_dim]
    pub(super) value: Tensor<4>, // [batch, nodes, heads, head_dim]
    pub(super) lengths: Tensor<1, Int>,
    /// Replaced by equal weights only, so clones may share it.
    weights: Arc<RwLock<ContextWeights>>,
}

impl TreeIndex {
    /// An index whose keys and values the weights of `attention` are known to have made.
    pub(super) fn from_parts(
        attention: &PreNormAttention,
        shape: TokenTreeShape,
        key: Tensor<4>,
        value: Tensor<4>,
        lengths: Tensor<1, Int>,
    ) -> Self {
        Self {
            shape,
            key,
            value,
            lengths,
            weights: Arc::new(RwLock::new(ContextWeights::of(attention))),
        }
    }

    /// The shape that all trees of the batch share.
    pub fn shape(&self) -> &TokenTreeShape {
        &self.shape
    }

    /// Real tokens per example, `[batch]`.
    pub fn lengths(&self) -> Tensor<1, Int> {
        self.lengths.clone()
    }

    /// Whether the index is of the layer's key and value weights, as they are now.
    ///
    /// The layer that made the index, and clones of it, are recognised without reading a weight. The
    /// weights of any other are compared with those of the index, which reads both back from the
    /// device; if they are equal, that layer is recognised from then on. Queries, output and
    /// normalisation may change: an index does not depend on them.
    ///
    /// Every search and every append does this, and panics with the message of the error.
    ///
    /// # Errors
    /// [`IndexError::OtherLayer`] if heads, width or weights differ.
    pub fn check(&self, layer: &TreeCrossAttention) -> Result<(), IndexError> {
        self.check_weights(&layer.attention)
    }

    /// The panicking form of [`check`](Self::check).
    #[track_caller]
    pub(super) fn expect(&self, attention: &PreNormAttention) {
        if let Err(error) = self.check_weights(attention) {
            panic!("tree_cross_attention: {error}");
        }
    }

    fn check_weights(&self, attention: &PreNormAttention) -> Result<(), IndexError> {
        // A clone, so that other threads go on searching while weights are read back.
        let known = self.known_weights();
        if known.are_of(attention) {
            return Ok(());
        }
        if let Some(reason) = known.difference(attention) {
            return Err(IndexError::OtherLayer { reason });
        }
        *self.weights.write().unwrap_or_else(PoisonError::into_inner) =
            ContextWeights::of(attention);
        Ok(())
    }

    /// The weights that made the index.
    pub(super) fn known_weights(&self) -> ContextWeights {
        let weights = self.weights.read();
        weights.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which leaves are ghosts, `[batch, leaves]`, `true` = masked out.
    pub(super) fn leaf_mask(&self) -> Tensor<2, Bool> {
        let [batch] = self.lengths.dims();
        let leaves = self.shape.width(0);
        let length = self.lengths.clone().reshape([batch, 1]);
        index_along(1, [batch, leaves], &self.lengths.device())
            .greater_equal(length.expand([batch, leaves]))
    }

    /// Projects the nodes that a change of the tree recomputed, and no others.
    #[track_caller]
    pub(super) fn follow(
        &mut self,
        attention: &PreNormAttention,
        changed: &Changed,
        lengths: Tensor<1, Int>,
    ) {
        let rows = changed.nodes().map(|nodes| nodes.unsqueeze_dim::<3>(0));
        let (key, value) = rows.map(|rows| attention.project_context(rows)).unzip();
        // The only handles to keys and values, or writing would copy them all.
        let device = self.key.device();
        let take = |tensor: &mut Tensor<4>| {
            core::mem::replace(tensor, Tensor::empty([1, 1, 1, 1], &device))
        };
        self.key = changed.apply(take(&mut self.key), key);
        self.value = changed.apply(take(&mut self.value), value);
        self.shape = *changed.shape();
        self.lengths = lengths;
    }
}

/// The weights that keys and values depend on.
#[derive(Clone, Debug)]
pub(super) struct ContextWeights {
    key: Linear,
    value: Linear,
    heads: usize,
}

impl ContextWeights {
    pub(super) fn of(attention: &PreNormAttention) -> Self {
        Self {
            key: attention.key.clone(),
            value: attention.value.clone(),
            heads: attention.n_heads,
        }
    }

    /// Whether they are known to be those of `attention`, without reading them.
    fn are_of(&self, attention: &PreNormAttention) -> bool {
        self.heads == attention.n_heads
            && same_linear(&self.key, &attention.key)
            && same_linear(&self.value, &attention.value)
    }

    /// In words, how the weights of `attention` differ from these; `None` if they are equal.
    fn difference(&self, attention: &PreNormAttention) -> Option<String> {
        let other = Self::of(attention);
        let (expected, got) = (self.heads, other.heads);
        if expected != got {
            return Some(format!("heads: expected {expected}, got {got}"));
        }
        for (name, own, other) in [
            ("key", &self.key, &other.key),
            ("value", &self.value, &other.value),
        ] {
            let (expected, got) = (own.weight.dims(), other.weight.dims());
            if expected != got {
                return Some(format!(
                    "{name} weights: expected {expected:?}, got {got:?}"
                ));
            }
            let bias = |linear: &Linear| linear.bias.as_ref().map(|bias| bias.val().into_data());
            let equal = own.weight.val().into_data() == other.weight.val().into_data()
                && bias(own) == bias(other);
            if !equal {
                return Some(format!(
                    "its {name} weights are not those of the layer as it is now"
                ));
            }
        }
        None
    }

    /// SHA-256 over the single-precision weights, in hexadecimal.
    pub(super) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update((self.heads as u64).to_le_bytes());
        for linear in [&self.key, &self.value] {
            for size in linear.weight.dims() {
                hash.update((size as u64).to_le_bytes());
            }
            let bias = linear.bias.as_ref().map(|bias| bias.val().into_data());
            hash.update([u8::from(bias.is_some())]);
            for data in [Some(linear.weight.val().into_data()), bias]
                .into_iter()
                .flatten()
            {
                data.iter::<f32>()
                    .for_each(|weight| hash.update(weight.to_le_bytes()));
            }
        }
        hexadecimal(hash)
    }
}

pub(super) fn hexadecimal(hash: Sha256) -> String {
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn same_linear(left: &Linear, right: &Linear) -> bool {
    let same_bias = match (&left.bias, &right.bias) {
        (Some(left), Some(right)) => same_parameter(left, right),
        (left, right) => left.is_none() && right.is_none(),
    };
    same_bias && same_parameter(&left.weight, &right.weight)
}

/// Whether two parameters are clones of one.
///
/// burn never changes a parameter in place: clones share one allocation, and whatever changes one (an
/// optimiser, a loaded record) gives it an allocation of its own. As long as `left` is held, its
/// address cannot become another's. An adapter's weights lie elsewhere, so with one nothing is known.
fn same_parameter<const D: usize>(left: &Param<Tensor<D>>, right: &Param<Tensor<D>>) -> bool {
    let adapted = left.adapter().is_some() || right.adapter().is_some();
    !adapted && core::ptr::eq::<Tensor<D>>(&**left, &**right)
}
