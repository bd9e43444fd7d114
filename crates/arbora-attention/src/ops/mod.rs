//! The operators of tree attention, declared on burn's `Backend`.

mod feed_forward;
pub(crate) mod fields;
mod leaf_attention;
pub(crate) mod limits;
mod primitive;
pub mod reference;
pub(crate) mod shapes;
#[cfg(feature = "fusion")]
mod specs;

pub use feed_forward::{FeedForwardGradients, FeedForwardOps, FeedForwardPrimitive};
pub use leaf_attention::{Dropout, LeafAttentionOptions};
#[cfg(feature = "cpu-kernels")]
pub(crate) use leaf_attention::{pair_number, row_state};

use arbora_tree::TokenTreeShape;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};
use burn::tensor::DType;
use fields::{from_array, into_array};
use limits::are_single;
use serde::{Deserialize, Serialize};

/// The type that a type is computed in: half precision in single precision.
pub(crate) fn at_least_single(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        _ => dtype,
    }
}

/// What final attention does with nodes over no token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GhostNodes {
    /// Ghosts are masked out.
    #[default]
    Masked,
    /// As the published code does: unchosen inner ghosts stay in the attended set as zero vectors
    /// (logit 0, value 0), an attention sink. Leaves that are ghosts are masked all the same. Needs
    /// [`Layout::Published`](arbora_tree::Layout::Published). No effect where N is a power of the
    /// branching factor and no token is masked out.
    Published,
}

/// Options of a tree search.
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

/// Options of dense attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseAttentionOptions {
    /// The first attended row of keys and values: rows before it are not attended to, as inner nodes
    /// where leaves alone are attended to.
    pub first_key: usize,
    /// Factor on the attention logits; `None` means `head_dim^-1/2`.
    pub scale: Option<f64>,
}

impl DenseAttentionOptions {
    pub(crate) fn scale(&self, head_dim: usize) -> f64 {
        self.scale.unwrap_or((head_dim as f64).powf(-0.5))
    }
}

/// Options of a tree build.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TreeBuildOptions {
    /// Shape of the trees.
    pub shape: TokenTreeShape,
    /// Attention heads of the block; must divide the width.
    pub heads: usize,
    /// Added to the variance under the root of both layer normalisations.
    pub epsilon: f64,
    /// Whether gradients stop at the children, so that none crosses more than one level. Published:
    /// true.
    pub detach_children: bool,
}

/// How the child to descend into is chosen: [`Route`](crate::Route) on primitives.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum RoutePrimitive<B: Backend> {
    /// The most probable child, the leftmost of equals.
    Greedy,
    /// Drawn from the policy with the given uniforms.
    Sampled(FloatTensor<B>),
    /// Drawn uniformly from the real children with the given uniforms.
    Uniform(FloatTensor<B>),
    /// The given path.
    Given(IntTensor<B>),
}

/// What is searched, and by what.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct TreeSearchInputs<B: Backend> {
    /// `[batch, queries, heads, head_dim]`
    pub query: FloatTensor<B>,
    /// `[batch, nodes, heads, head_dim]`
    pub key: FloatTensor<B>,
    /// `[batch, nodes, heads, value_dim]`
    pub value: FloatTensor<B>,
    /// Real tokens, `[batch]`
    pub lengths: IntTensor<B>,
}

/// What a tree search returns.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct TreeSearchPrimitive<B: Backend> {
    /// `[batch, queries, heads, value_dim]`
    pub context: FloatTensor<B>,
    /// `[batch, queries, decisions + 1]`
    pub path: IntTensor<B>,
    /// `[2, batch, queries]`: log-probability and entropy, at least single precision
    pub policy: FloatTensor<B>,
    /// `[3, batch, queries]`: real decisions, nodes selected, nodes read
    pub counts: IntTensor<B>,
}

/// Which keys dense attention leaves out.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum AttentionMask<B: Backend> {
    /// None.
    None,
    /// `[batch, rows - first_key]`, `true` = masked out
    Keys(BoolTensor<B>),
}

/// What dense attention attends from and to.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct DenseAttentionInputs<B: Backend> {
    /// `[batch, queries, heads, head_dim]`
    pub query: FloatTensor<B>,
    /// `[batch, rows, heads, head_dim]`
    pub key: FloatTensor<B>,
    /// `[batch, rows, heads, value_dim]`
    pub value: FloatTensor<B>,
    /// Which keys are left out.
    #[extension_type]
    pub mask: AttentionMask<B>,
}

/// What attention within leaves attends from and to.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct LeafAttentionInputs<B: Backend> {
    /// `[batch, queries, heads, head_dim]`
    pub query: FloatTensor<B>,
    /// `[batch, keys, kv_heads, head_dim]`
    pub key: FloatTensor<B>,
    /// `[batch, keys, kv_heads, value_dim]`
    pub value: FloatTensor<B>,
    /// `[batch, keys, kv_heads]`, zero where there is none
    pub key_bias: FloatTensor<B>,
    /// `[batch, queries, heads]`
    pub query_leaf: IntTensor<B>,
    /// `[batch, keys, kv_heads]`
    pub key_leaf: IntTensor<B>,
}

/// What candidate keys are weighed by: see [`candidate_keys`](crate::functions::candidate_keys).
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct CandidateInputs<B: Backend> {
    /// `[batch, queries, heads, head_dim]`
    pub query: FloatTensor<B>,
    /// `[batch, keys, kv_heads, head_dim]`
    pub key: FloatTensor<B>,
    /// `[batch, keys, kv_heads, value_dim]`
    pub value: FloatTensor<B>,
    /// `[batch, queries, heads]`
    pub query_leaf: IntTensor<B>,
    /// `[batch, keys, kv_heads]`
    pub candidate_leaf: IntTensor<B>,
}

/// What attention returns.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct AttentionOutput<B: Backend> {
    /// `[batch, queries, heads, value_dim]`
    pub context: FloatTensor<B>,
    /// The logarithm of the softmax's denominator, `[batch, queries, heads]`, without a gradient. In at least single
    /// precision.
    pub lse: FloatTensor<B>,
}

/// Gradients of attention within leaves.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct LeafAttentionGradients<B: Backend> {
    /// `[batch, queries, heads, head_dim]`
    pub query: FloatTensor<B>,
    /// `[batch, keys, kv_heads, head_dim]`
    pub key: FloatTensor<B>,
    /// `[batch, keys, kv_heads, value_dim]`
    pub value: FloatTensor<B>,
    /// `[batch, keys, kv_heads]`
    pub key_bias: FloatTensor<B>,
}

/// The weights of the transformer block that summarises siblings:
/// [`BlockWeights`](crate::functions::BlockWeights) on primitives. `dim` is the width of nodes and `ff` that of
/// the feed-forward layer.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct BlockPrimitive<B: Backend> {
    /// Scale of the normalisation before attention, `[dim]`
    pub norm_gamma: FloatTensor<B>,
    /// Shift of the normalisation before attention, `[dim]`
    pub norm_beta: FloatTensor<B>,
    /// `W_q`, `[dim, dim]`
    pub query: FloatTensor<B>,
    /// `W_k`, `[dim, dim]`
    pub key: FloatTensor<B>,
    /// `W_v`, `[dim, dim]`
    pub value: FloatTensor<B>,
    /// `W_o`, `[dim, dim]`
    pub output: FloatTensor<B>,
    /// `b_o`, `[dim]`
    pub output_bias: FloatTensor<B>,
    /// The feed-forward part, with the normalisation before it.
    #[extension_type]
    pub feed_forward: FeedForwardPrimitive<B>,
}

impl<B: Backend> BlockPrimitive<B> {
    /// The same function of every weight.
    pub fn map<C: Backend>(
        self,
        function: impl FnMut(FloatTensor<B>) -> FloatTensor<C>,
    ) -> BlockPrimitive<C> {
        BlockPrimitive::from_array(self.into_array().map(function))
    }

    into_array! { [FloatTensor<B>; 13] norm_gamma, norm_beta, query, key, value, output, output_bias; feed_forward: FeedForwardPrimitive }
    from_array! { [FloatTensor<B>; 13] norm_gamma, norm_beta, query, key, value, output, output_bias; feed_forward: FeedForwardPrimitive }
}

/// Gradients of a tree build.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct TreeBuildGradients<B: Backend> {
    /// `[batch, leaves, dim]`, zero at ghosts
    pub leaves: FloatTensor<B>,
    /// Gradients of every weight, in its shape.
    #[extension_type]
    pub block: BlockPrimitive<B>,
}

/// Tree attention on a backend.
///
/// The default bodies compose plain backend operations and are correct on every backend. They stay
/// public in [`mod@reference`] as the oracle of the kernels that override them. Under `Autodiff` an
/// operator is one step whose gradient is the operator of the same name with `backward`.
///
/// Where no kernel takes a gradient, its reference is differentiated, on the thread that asks. In fusion's queue
/// that could wait forever: burn's graphs have one lock, and a thread may hold it while it waits for room in the
/// queue. So `backward` chooses before anything is queued, and `backward_kernel` is what the queue runs. Call that only
/// where `backward` would choose a kernel: on CubeCL it panics otherwise.
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
    Remote: cfg(feature = "remote"),
    Fusion: cfg(feature = "fusion"),
    Autodiff,
)]
pub trait TreeAttentionOps: Backend {
    /// One pass from the root to the leaves that routes, scores and attends; see
    /// [`tree_search`](crate::functions::tree_search) for shapes and meaning.
    #[fusion(meta = |inputs, _, options| specs::tree_search(inputs, options))]
    fn tree_search(
        #[extension_type] inputs: TreeSearchInputs<Self>,
        #[extension_type] route: RoutePrimitive<Self>,
        options: TreeSearchOptions,
    ) -> TreeSearchPrimitive<Self> {
        reference::tree_search::<Self>(inputs, route, options)
    }

    /// Gradients of query, key and value through the context of a search, given its path.
    ///
    /// `grad`: `[batch, queries, heads, value_dim]`, of the context.
    #[fusion(default)]
    fn tree_context_backward(
        #[extension_type] inputs: TreeSearchInputs<Self>,
        path: IntTensor<Self>,
        grad: FloatTensor<Self>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if limits::tree_search_backward(&inputs, &path, &grad, &options) {
            Self::tree_context_backward_kernel(inputs, path, grad, options)
        } else {
            reference::tree_context_backward::<Self>(inputs, path, grad, options)
        }
    }

    /// [`tree_context_backward`](Self::tree_context_backward) where kernels take it.
    #[fusion(meta = |inputs, _, _, _| {
        (inputs.query.clone(), inputs.key.clone(), inputs.value.clone())
    })]
    fn tree_context_backward_kernel(
        #[extension_type] inputs: TreeSearchInputs<Self>,
        path: IntTensor<Self>,
        grad: FloatTensor<Self>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        reference::tree_context_backward::<Self>(inputs, path, grad, options)
    }

    /// Gradients of query and key through log-probability and entropy of a search, given its path. Values are not
    /// read, but fit as in a search.
    ///
    /// `grad`: `[2, batch, queries]`, of log-probability and entropy, of the type that
    /// [`TreeSearchPrimitive::policy`] has.
    #[fusion(default)]
    fn tree_policy_backward(
        #[extension_type] inputs: TreeSearchInputs<Self>,
        path: IntTensor<Self>,
        grad: FloatTensor<Self>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if limits::tree_search_backward(&inputs, &path, &grad, &options) {
            Self::tree_policy_backward_kernel(inputs, path, grad, options)
        } else {
            reference::tree_policy_backward::<Self>(inputs, path, grad, options)
        }
    }

    /// [`tree_policy_backward`](Self::tree_policy_backward) where kernels take it.
    #[fusion(meta = |inputs, _, _, _| (inputs.query.clone(), inputs.key.clone()))]
    fn tree_policy_backward_kernel(
        #[extension_type] inputs: TreeSearchInputs<Self>,
        path: IntTensor<Self>,
        grad: FloatTensor<Self>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::tree_policy_backward::<Self>(inputs, path, grad, options)
    }

    /// Attention of every query to all rows of keys from `first_key` on, without a matrix of scores
    /// in memory; see [`dense_attention`](crate::functions::dense_attention). The logarithm of a denominator is 0 for a query
    /// without keys.
    #[fusion(meta = |inputs, _| specs::attention(&inputs.query, &inputs.value))]
    fn dense_attention(
        #[extension_type] inputs: DenseAttentionInputs<Self>,
        options: DenseAttentionOptions,
    ) -> AttentionOutput<Self> {
        reference::dense_attention::<Self>(inputs, options)
    }

    /// Gradients of query, key and value through dense attention. `grad` is the gradient of its context.
    #[fusion(default)]
    fn dense_attention_backward(
        #[extension_type] inputs: DenseAttentionInputs<Self>,
        #[extension_type] output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        options: DenseAttentionOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if limits::dense_attention_backward(&inputs, &output, &grad) {
            Self::dense_attention_backward_kernel(inputs, output, grad, options)
        } else {
            reference::dense_attention_backward::<Self>(inputs, grad, options)
        }
    }

    /// [`dense_attention_backward`](Self::dense_attention_backward) where kernels take it.
    #[fusion(meta = |inputs, _, _, _| {
        (inputs.query.clone(), inputs.key.clone(), inputs.value.clone())
    })]
    fn dense_attention_backward_kernel(
        #[extension_type] inputs: DenseAttentionInputs<Self>,
        #[extension_type] output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        options: DenseAttentionOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let _ = output;
        reference::dense_attention_backward::<Self>(inputs, grad, options)
    }

    /// Attention of every query to the keys of its own leaf; see
    /// [`leaf_attention`](crate::functions::leaf_attention) for shapes and meaning. The logarithm of a denominator is
    /// `f32::MIN` for a query that sees no key.
    #[fusion(meta = |inputs, _| specs::attention(&inputs.query, &inputs.value))]
    fn leaf_attention(
        #[extension_type] inputs: LeafAttentionInputs<Self>,
        options: LeafAttentionOptions,
    ) -> AttentionOutput<Self> {
        reference::leaf_attention::<Self>(inputs, options)
    }

    /// Gradients of query, key, value and key bias through attention within leaves. `grad` is the gradient of its
    /// context.
    #[fusion(default)]
    fn leaf_attention_backward(
        #[extension_type] inputs: LeafAttentionInputs<Self>,
        #[extension_type] output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> LeafAttentionGradients<Self> {
        if limits::leaf_attention_backward(&inputs, &output, &grad, &options) {
            Self::leaf_attention_backward_kernel(inputs, output, grad, options)
        } else {
            reference::leaf_attention_backward::<Self>(inputs, grad, options)
        }
    }

    /// [`leaf_attention_backward`](Self::leaf_attention_backward) where kernels take it.
    #[fusion(meta = |inputs, _, _, _| LeafAttentionGradientsMetadata {
        query: inputs.query.clone(),
        key: inputs.key.clone(),
        value: inputs.value.clone(),
        key_bias: inputs.key_bias.clone(),
    })]
    fn leaf_attention_backward_kernel(
        #[extension_type] inputs: LeafAttentionInputs<Self>,
        #[extension_type] output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> LeafAttentionGradients<Self> {
        let _ = output;
        reference::leaf_attention_backward::<Self>(inputs, grad, options)
    }

    /// The context, unchanged. What it does is its gradient; see
    /// [`candidate_keys`](crate::functions::candidate_keys).
    #[fusion(meta = |_, output, _, _| output.context.clone())]
    fn candidate_keys(
        #[extension_type] inputs: CandidateInputs<Self>,
        #[extension_type] output: AttentionOutput<Self>,
        gate: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> FloatTensor<Self> {
        let _ = (inputs, gate, options);
        output.context
    }

    /// The gradient of the gates of [`candidate_keys`](Self::candidate_keys), `[batch, keys, kv_heads]`.
    /// `grad` is the gradient of its output.
    #[fusion(meta = |inputs, _, _, _| specs::candidate_keys_backward(&inputs.key))]
    fn candidate_keys_backward(
        #[extension_type] inputs: CandidateInputs<Self>,
        #[extension_type] output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> FloatTensor<Self> {
        reference::candidate_keys_backward::<Self>(inputs, output, grad, options)
    }

    /// All nodes of trees, bottom-up from their leaves by a transformer block; see
    /// [`tree_build`](crate::functions::tree_build).
    #[fusion(meta = |leaves, _, _, options| specs::tree_build(leaves, options))]
    fn tree_build(
        leaves: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        #[extension_type] block: BlockPrimitive<Self>,
        options: TreeBuildOptions,
    ) -> FloatTensor<Self> {
        reference::tree_build::<Self>(leaves, lengths, block, options)
    }

    /// Gradients of leaves and weights through a tree build. `nodes` is its output, `grad` the
    /// gradient of that.
    #[fusion(default)]
    fn tree_build_backward(
        nodes: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        #[extension_type] block: BlockPrimitive<Self>,
        grad: FloatTensor<Self>,
        options: TreeBuildOptions,
    ) -> TreeBuildGradients<Self> {
        if limits::tree_build::<Self>(&nodes, &block, &options) && are_single([&grad]) {
            Self::tree_build_backward_kernel(nodes, lengths, block, grad, options)
        } else {
            reference::tree_build_backward::<Self>(nodes, lengths, block, grad, options)
        }
    }

    /// [`tree_build_backward`](Self::tree_build_backward) where kernels take it.
    #[fusion(meta = |nodes, _, block, _, options| specs::tree_build_backward(nodes, block, options))]
    fn tree_build_backward_kernel(
        nodes: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        #[extension_type] block: BlockPrimitive<Self>,
        grad: FloatTensor<Self>,
        options: TreeBuildOptions,
    ) -> TreeBuildGradients<Self> {
        reference::tree_build_backward::<Self>(nodes, lengths, block, grad, options)
    }
}
