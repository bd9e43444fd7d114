//! The operators of tree attention, declared on burn's `Backend`.

mod primitive;
pub mod reference;

use arbora_tree::TokenTreeShape;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};
use serde::{Deserialize, Serialize};

/// What final attention does with nodes over no token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GhostNodes {
    /// Ghosts take no part.
    #[default]
    Masked,
    /// As the published code does: unchosen inner ghosts stay in the attended set as zero vectors
    /// (logit 0, value 0), an attention sink. Leaves that are ghosts are masked all the same. Needs
    /// [`Layout::Published`](arbora_tree::Layout::Published), and has no effect where N is a power
    /// of the branching factor.
    Published,
}

/// What a tree search needs to know besides its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TreeSearchOptions {
    /// Shape of the searched trees.
    pub shape: TokenTreeShape,
    /// Factor on the attention logits; `None` means `head_dim^-1/2`.
    pub scale: Option<f64>,
    /// Divides the logits of the policy, and only those: below 1 sharpens the choice of a route.
    pub temperature: f64,
    /// What final attention does with nodes over no token.
    pub ghosts: GhostNodes,
}

impl TreeSearchOptions {
    /// The defaults for a shape: scale `head_dim^-1/2`, temperature 1, ghosts masked.
    pub fn new(shape: TokenTreeShape) -> Self {
        Self {
            shape,
            scale: None,
            temperature: 1.0,
            ghosts: GhostNodes::Masked,
        }
    }
}

/// How the child to descend into is chosen: [`Route`](crate::Route) on primitives.
#[derive(Clone, Debug, ExtensionType)]
pub enum RoutePrimitive<B: Backend> {
    /// The most probable child, the leftmost of equals.
    Greedy,
    /// Drawn from the policy with the given uniform numbers.
    Sampled(FloatTensor<B>),
    /// Drawn uniformly from the real children with the given uniform numbers.
    Uniform(FloatTensor<B>),
    /// The given path.
    Given(IntTensor<B>),
}

/// What a tree search returns: [`TreeSearch`](crate::TreeSearch) on primitives.
#[derive(Clone, Debug, ExtensionType)]
pub struct TreeSearchPrimitive<B: Backend> {
    /// `[batch, queries, heads, value_dim]`
    pub context: FloatTensor<B>,
    /// `[batch, queries, decisions + 1]`
    pub path: IntTensor<B>,
    /// `[batch, queries]`
    pub log_prob: FloatTensor<B>,
    /// `[batch, queries]`
    pub entropy: FloatTensor<B>,
    /// `[batch, queries, 3]`: real decisions, nodes selected, nodes read
    pub counts: IntTensor<B>,
}

/// Tree attention on a backend.
///
/// The default bodies compose plain backend operations. They are correct on every backend and
/// differentiable, and stay public in [`mod@reference`] as the oracle of faster overrides.
#[backend_extension(
    Cube: cfg(any(
        feature = "wgpu",
        feature = "webgpu",
        feature = "vulkan",
        feature = "metal",
        feature = "cuda",
        feature = "rocm",
        feature = "cpu"
    )),
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Fusion: cfg(feature = "fusion"),
    Autodiff,
)]
pub trait TreeAttentionOps: Backend {
    /// One pass from the root to the leaves that routes, scores and attends; see
    /// [`tree_search`](crate::tree_search) for shapes and meaning.
    #[fusion(default)]
    fn tree_search(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        #[extension_type] route: RoutePrimitive<Self>,
        options: TreeSearchOptions,
    ) -> TreeSearchPrimitive<Self> {
        reference::tree_search::<Self>(query, key, value, lengths, route, options)
    }
}
