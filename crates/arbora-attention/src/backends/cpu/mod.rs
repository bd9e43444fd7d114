//! The implementation for backends whose tensors lie in this process's memory: kernels on slices,
//! and the way from tensors to slices and back.
//!
//! Kernels take single precision. Other types, and tensors on other devices of the same backend, are
//! left to the reference bodies.

mod attention_tiles;
mod dense_attention;
mod feed_forward;
mod leaf_attention;
mod leaf_tensors;
mod rows;
mod simd;
mod tree_build;
mod tree_search;

use crate::ops::{
    AttentionMask, BlockPrimitive, DenseAttentionOptions, FeedForwardGradients,
    FeedForwardPrimitive, GhostNodes, RoutePrimitive, TreeBuildGradients, TreeBuildOptions,
    TreeSearchOptions, TreeSearchPrimitive, reference,
};
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, try_read_sync};
use burn::tensor::{DType, Shape, TensorData};
use dense_attention::DenseDims;
use feed_forward::{FeedForwardGradientSlices, FeedForwardSlices};
pub(crate) use leaf_tensors::{candidate_keys_backward, leaf_attention, leaf_attention_backward};
pub(super) use simd::instructions;
use tree_build::{BlockGradients, BlockSlices, BuildDims};
use tree_search::{
    RouteSlices, SearchDims, SearchGradient, SearchGradients, SearchInputs, SearchOutputs,
};

/// A backend whose tensors lie in this process's memory, or may do so.
pub(crate) trait HostBackend: Backend {
    /// The same values in row-major order without gaps, if they are single precision in this
    /// process's memory. A tensor that is so already is not copied.
    fn host(tensor: FloatTensor<Self>) -> Option<FloatTensor<Self>>;

    /// The memory of a tensor that came from [`host`](Self::host).
    fn floats(tensor: &FloatTensor<Self>) -> &[f32];

    /// A new tensor in single precision, in this process's memory.
    fn allocate(shape: Shape, device: &Self::Device) -> FloatTensor<Self>;

    /// The memory of a tensor that came from [`allocate`](Self::allocate) and that nobody shares yet.
    fn floats_mut(tensor: &mut FloatTensor<Self>) -> &mut [f32];
}

/// Reads integers, whatever their type.
fn indices<B: Backend>(tensor: IntTensor<B>) -> Vec<u32> {
    read(B::int_into_data(tensor))
        .iter::<i64>()
        .map(|index| index.max(0) as u32)
        .collect()
}

fn lengths<B: Backend>(tensor: IntTensor<B>) -> Vec<usize> {
    let lengths = indices::<B>(tensor);
    lengths.into_iter().map(|length| length as usize).collect()
}

fn booleans<B: Backend>(tensor: BoolTensor<B>) -> Vec<bool> {
    read(B::bool_into_data(tensor)).iter::<bool>().collect()
}

fn read<E: std::fmt::Debug>(data: impl Future<Output = Result<TensorData, E>>) -> TensorData {
    try_read_sync(data)
        .expect("memory of this process is read without waiting")
        .expect("memory of this process can be read")
}

fn integers<B: Backend, const D: usize>(
    values: Vec<u32>,
    shape: [usize; D],
    dtype: DType,
    device: &B::Device,
) -> IntTensor<B> {
    let data = match dtype {
        DType::I64 => TensorData::new(values.into_iter().map(i64::from).collect(), shape),
        _ => {
            let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
            TensorData::new(values, shape).convert_dtype(dtype)
        }
    };
    B::int_from_data(data, device)
}

fn search_dims(query: &Shape, value_dim: usize, options: &TreeSearchOptions) -> SearchDims {
    let [batch, queries, heads, head_dim] = query.dims();
    SearchDims {
        shape: options.shape,
        batch,
        queries,
        heads,
        head_dim,
        value_dim,
        scale: options.scale.unwrap_or((head_dim as f64).powf(-0.5)) as f32,
        temperature: options.temperature as f32,
        ghosts_attended: options.ghosts == GhostNodes::Published,
    }
}

/// All tensors in this process's memory, or none.
macro_rules! on_host {
    ($backend:ident: $($tensor:ident),+) => {
        ($($backend::host($tensor.clone()),)+)
    };
}
use on_host;

pub(crate) fn tree_search<B: HostBackend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    lengths: IntTensor<B>,
    route: RoutePrimitive<B>,
    options: TreeSearchOptions,
) -> TreeSearchPrimitive<B> {
    let fallback = || {
        reference::tree_search::<B>(
            query.clone(),
            key.clone(),
            value.clone(),
            lengths.clone(),
            route.clone(),
            options,
        )
    };
    let (Some(query), Some(key), Some(value)) = on_host!(B: query, key, value) else {
        return fallback();
    };
    // Numbers or path of the route, to be borrowed by the kernel.
    let (numbers, draws) = match &route {
        RoutePrimitive::Sampled(numbers) | RoutePrimitive::Uniform(numbers) => {
            let Some(host) = B::host(numbers.clone()) else {
                return fallback();
            };
            (Some(host), numbers.shape()[2])
        }
        RoutePrimitive::Greedy | RoutePrimitive::Given(_) => (None, 0),
    };
    let numbers = numbers.as_ref().map(B::floats).unwrap_or(&[]);
    let given = match &route {
        RoutePrimitive::Given(path) => indices::<B>(path.clone()),
        _ => Vec::new(),
    };
    let route = match &route {
        RoutePrimitive::Greedy => RouteSlices::Greedy,
        RoutePrimitive::Sampled(_) => RouteSlices::Sampled { numbers, draws },
        RoutePrimitive::Uniform(_) => RouteSlices::Uniform { numbers, draws },
        RoutePrimitive::Given(_) => RouteSlices::Given(&given),
    };

    let dims = search_dims(&query.shape(), value.shape()[3], &options);
    let (batch, queries) = (dims.batch, dims.queries);
    let steps = dims.shape.decisions() + 1;
    let device = query.device();
    let mut context = B::allocate(
        Shape::from([batch, queries, dims.heads, dims.value_dim]),
        &device,
    );
    let mut policy = B::allocate(Shape::from([2, batch, queries]), &device);
    let mut path = vec![0; batch * queries * steps];
    let mut counts = vec![0; batch * queries * 3];
    let dtype = lengths.dtype();
    tree_search::search(
        &dims,
        SearchInputs {
            query: B::floats(&query),
            key: B::floats(&key),
            value: B::floats(&value),
            lengths: &self::lengths::<B>(lengths),
        },
        route,
        SearchOutputs {
            context: B::floats_mut(&mut context),
            path: &mut path,
            policy: B::floats_mut(&mut policy),
            counts: &mut counts,
        },
    );
    TreeSearchPrimitive {
        context,
        path: integers::<B, 3>(path, [batch, queries, steps], dtype, &device),
        policy,
        counts: integers::<B, 3>(counts, [3, batch, queries], dtype, &device),
    }
}

pub(crate) fn tree_context_backward<B: HostBackend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    lengths: IntTensor<B>,
    path: IntTensor<B>,
    grad: FloatTensor<B>,
    options: TreeSearchOptions,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let (Some(query), Some(key), Some(value), Some(grad)) = on_host!(B: query, key, value, grad)
    else {
        return reference::tree_context_backward::<B>(
            query, key, value, lengths, path, grad, options,
        );
    };
    let dims = search_dims(&query.shape(), value.shape()[3], &options);
    let device = query.device();
    let mut d_query = B::allocate(query.shape(), &device);
    let mut d_key = B::allocate(key.shape(), &device);
    let mut d_value = B::allocate(value.shape(), &device);
    tree_search::backward(
        &dims,
        SearchInputs {
            query: B::floats(&query),
            key: B::floats(&key),
            value: B::floats(&value),
            lengths: &self::lengths::<B>(lengths),
        },
        &indices::<B>(path),
        SearchGradient::Context(B::floats(&grad)),
        SearchGradients {
            query: B::floats_mut(&mut d_query),
            key: B::floats_mut(&mut d_key),
            value: B::floats_mut(&mut d_value),
        },
    );
    (d_query, d_key, d_value)
}

pub(crate) fn tree_policy_backward<B: HostBackend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    lengths: IntTensor<B>,
    path: IntTensor<B>,
    grad: FloatTensor<B>,
    options: TreeSearchOptions,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (Some(query), Some(key), Some(grad)) = on_host!(B: query, key, grad) else {
        return reference::tree_policy_backward::<B>(query, key, lengths, path, grad, options);
    };
    // Log-probability and entropy read no values.
    let dims = search_dims(&query.shape(), key.shape()[3], &options);
    let device = query.device();
    let mut d_query = B::allocate(query.shape(), &device);
    let mut d_key = B::allocate(key.shape(), &device);
    tree_search::backward(
        &dims,
        SearchInputs {
            query: B::floats(&query),
            key: B::floats(&key),
            value: &[],
            lengths: &self::lengths::<B>(lengths),
        },
        &indices::<B>(path),
        SearchGradient::Policy(B::floats(&grad)),
        SearchGradients {
            query: B::floats_mut(&mut d_query),
            key: B::floats_mut(&mut d_key),
            value: &mut [],
        },
    );
    (d_query, d_key)
}

fn dense_dims(query: &Shape, value: &Shape, options: &DenseAttentionOptions) -> DenseDims {
    let [batch, queries, heads, head_dim] = query.dims();
    let [_, rows, _, value_dim] = value.dims();
    DenseDims {
        batch,
        queries,
        rows,
        first_key: options.first_key,
        heads,
        head_dim,
        value_dim,
        scale: options.scale(head_dim) as f32,
    }
}

fn key_mask<B: Backend>(mask: AttentionMask<B>) -> Option<Vec<bool>> {
    match mask {
        AttentionMask::None => None,
        AttentionMask::Keys(mask) => Some(booleans::<B>(mask)),
    }
}

pub(crate) fn dense_attention<B: HostBackend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    mask: AttentionMask<B>,
    options: DenseAttentionOptions,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (Some(query), Some(key), Some(value)) = on_host!(B: query, key, value) else {
        return reference::dense_attention::<B>(query, key, value, mask, options);
    };
    let dims = dense_dims(&query.shape(), &value.shape(), &options);
    let device = query.device();
    let per_head = [dims.batch, dims.queries, dims.heads];
    let mut context = B::allocate(
        Shape::from([dims.batch, dims.queries, dims.heads, dims.value_dim]),
        &device,
    );
    let mut log_total = B::allocate(Shape::from(per_head), &device);
    dense_attention::forward(
        dims,
        B::floats(&query),
        B::floats(&key),
        B::floats(&value),
        key_mask::<B>(mask).as_deref(),
        B::floats_mut(&mut context),
        B::floats_mut(&mut log_total),
    );
    (context, log_total)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn dense_attention_backward<B: HostBackend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    mask: AttentionMask<B>,
    context: FloatTensor<B>,
    log_total: FloatTensor<B>,
    grad: FloatTensor<B>,
    options: DenseAttentionOptions,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let (Some(query), Some(key), Some(value), Some(context), Some(log_total), Some(grad)) =
        on_host!(B: query, key, value, context, log_total, grad)
    else {
        return reference::dense_attention_backward::<B>(query, key, value, mask, grad, options);
    };
    let dims = dense_dims(&query.shape(), &value.shape(), &options);
    let device = query.device();
    let mut d_query = B::allocate(query.shape(), &device);
    let mut d_key = B::allocate(key.shape(), &device);
    let mut d_value = B::allocate(value.shape(), &device);
    dense_attention::backward(
        dims,
        B::floats(&query),
        B::floats(&key),
        B::floats(&value),
        key_mask::<B>(mask).as_deref(),
        B::floats(&context),
        B::floats(&log_total),
        B::floats(&grad),
        B::floats_mut(&mut d_query),
        B::floats_mut(&mut d_key),
        B::floats_mut(&mut d_value),
    );
    (d_query, d_key, d_value)
}

fn build_dims<B: Backend>(
    rows: &Shape,
    block: &BlockPrimitive<B>,
    options: &TreeBuildOptions,
) -> BuildDims {
    let [batch, _, dim] = rows.dims();
    BuildDims {
        shape: options.shape,
        batch,
        dim,
        heads: options.heads,
        ff: block.outer.shape()[0],
        epsilon: options.epsilon as f32,
    }
}

/// Weights in this process's memory, as far as they can be: `missing` says whether one cannot.
fn host_weight<B: HostBackend>(missing: &mut bool) -> impl FnMut(FloatTensor<B>) -> FloatTensor<B> {
    |weight| {
        B::host(weight.clone()).unwrap_or_else(|| {
            *missing = true;
            weight
        })
    }
}

/// All weights in this process's memory, or none.
fn host_block<B: HostBackend>(block: &BlockPrimitive<B>) -> Option<BlockPrimitive<B>> {
    let mut missing = false;
    let block = block.clone().map::<B>(host_weight::<B>(&mut missing));
    (!missing).then_some(block)
}

fn block_slices<B: HostBackend>(block: &BlockPrimitive<B>) -> BlockSlices<'_> {
    BlockSlices {
        norm_gamma: B::floats(&block.norm_gamma),
        norm_beta: B::floats(&block.norm_beta),
        query: B::floats(&block.query),
        key: B::floats(&block.key),
        value: B::floats(&block.value),
        output: B::floats(&block.output),
        output_bias: B::floats(&block.output_bias),
        feed_forward: FeedForwardSlices {
            norm_gamma: B::floats(&block.feed_forward_norm_gamma),
            norm_beta: B::floats(&block.feed_forward_norm_beta),
            inner: B::floats(&block.inner),
            inner_bias: B::floats(&block.inner_bias),
            outer: B::floats(&block.outer),
            outer_bias: B::floats(&block.outer_bias),
        },
    }
}

fn block_slices_mut<B: HostBackend>(block: &mut BlockPrimitive<B>) -> BlockGradients<'_> {
    BlockGradients {
        norm_gamma: B::floats_mut(&mut block.norm_gamma),
        norm_beta: B::floats_mut(&mut block.norm_beta),
        query: B::floats_mut(&mut block.query),
        key: B::floats_mut(&mut block.key),
        value: B::floats_mut(&mut block.value),
        output: B::floats_mut(&mut block.output),
        output_bias: B::floats_mut(&mut block.output_bias),
        feed_forward: FeedForwardGradientSlices {
            norm_gamma: B::floats_mut(&mut block.feed_forward_norm_gamma),
            norm_beta: B::floats_mut(&mut block.feed_forward_norm_beta),
            inner: B::floats_mut(&mut block.inner),
            inner_bias: B::floats_mut(&mut block.inner_bias),
            outer: B::floats_mut(&mut block.outer),
            outer_bias: B::floats_mut(&mut block.outer_bias),
        },
    }
}

pub(crate) fn tree_build<B: HostBackend>(
    leaves: FloatTensor<B>,
    lengths: IntTensor<B>,
    block: BlockPrimitive<B>,
    options: TreeBuildOptions,
) -> FloatTensor<B> {
    let (Some(leaves), Some(block)) = (B::host(leaves.clone()), host_block::<B>(&block)) else {
        return reference::tree_build::<B>(leaves, lengths, block, options);
    };
    let dims = build_dims::<B>(&leaves.shape(), &block, &options);
    let mut nodes = B::allocate(
        Shape::from([dims.batch, dims.shape.nodes(), dims.dim]),
        &leaves.device(),
    );
    tree_build::forward(
        &dims,
        B::floats(&leaves),
        &self::lengths::<B>(lengths),
        &block_slices::<B>(&block),
        B::floats_mut(&mut nodes),
    );
    nodes
}

pub(crate) fn tree_build_backward<B: HostBackend>(
    nodes: FloatTensor<B>,
    lengths: IntTensor<B>,
    block: BlockPrimitive<B>,
    grad: FloatTensor<B>,
    options: TreeBuildOptions,
) -> TreeBuildGradients<B> {
    let (Some(nodes), Some(grad), Some(block)) = (
        B::host(nodes.clone()),
        B::host(grad.clone()),
        host_block::<B>(&block),
    ) else {
        return reference::tree_build_backward::<B>(nodes, lengths, block, grad, options);
    };
    let dims = build_dims::<B>(&nodes.shape(), &block, &options);
    let device = nodes.device();
    let mut leaves = B::allocate(
        Shape::from([dims.batch, dims.shape.width(0), dims.dim]),
        &device,
    );
    let mut d_block = block
        .clone()
        .map::<B>(|weight| B::allocate(weight.shape(), &device));
    tree_build::backward(
        &dims,
        B::floats(&nodes),
        &self::lengths::<B>(lengths),
        &block_slices::<B>(&block),
        options.detach_children,
        B::floats(&grad),
        B::floats_mut(&mut leaves),
        &mut block_slices_mut::<B>(&mut d_block),
    );
    TreeBuildGradients {
        leaves,
        block: d_block,
    }
}

/// All weights in this process's memory, or none.
fn host_feed_forward<B: HostBackend>(
    weights: &FeedForwardPrimitive<B>,
) -> Option<FeedForwardPrimitive<B>> {
    let mut missing = false;
    let weights = weights.clone().map::<B>(host_weight::<B>(&mut missing));
    (!missing).then_some(weights)
}

fn feed_forward_slices<B: HostBackend>(weights: &FeedForwardPrimitive<B>) -> FeedForwardSlices<'_> {
    FeedForwardSlices {
        norm_gamma: B::floats(&weights.norm_gamma),
        norm_beta: B::floats(&weights.norm_beta),
        inner: B::floats(&weights.inner),
        inner_bias: B::floats(&weights.inner_bias),
        outer: B::floats(&weights.outer),
        outer_bias: B::floats(&weights.outer_bias),
    }
}

pub(crate) fn feed_forward<B: HostBackend>(
    rows: FloatTensor<B>,
    weights: FeedForwardPrimitive<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let (Some(rows), Some(weights)) = (B::host(rows.clone()), host_feed_forward::<B>(&weights))
    else {
        return reference::feed_forward::<B>(rows, weights, epsilon);
    };
    let mut outputs = B::allocate(rows.shape(), &rows.device());
    feed_forward::forward(
        B::floats(&rows),
        &feed_forward_slices::<B>(&weights),
        epsilon as f32,
        B::floats_mut(&mut outputs),
    );
    outputs
}

pub(crate) fn feed_forward_backward<B: HostBackend>(
    rows: FloatTensor<B>,
    weights: FeedForwardPrimitive<B>,
    grad: FloatTensor<B>,
    epsilon: f64,
) -> FeedForwardGradients<B> {
    let (Some(rows), Some(grad), Some(weights)) = (
        B::host(rows.clone()),
        B::host(grad.clone()),
        host_feed_forward::<B>(&weights),
    ) else {
        return reference::feed_forward_backward::<B>(rows, weights, grad, epsilon);
    };
    let device = rows.device();
    let mut d_rows = B::allocate(rows.shape(), &device);
    let mut d_weights = weights
        .clone()
        .map::<B>(|weight| B::allocate(weight.shape(), &device));
    feed_forward::backward(
        B::floats(&rows),
        &feed_forward_slices::<B>(&weights),
        B::floats(&grad),
        epsilon as f32,
        B::floats_mut(&mut d_rows),
        &mut FeedForwardGradientSlices {
            norm_gamma: B::floats_mut(&mut d_weights.norm_gamma),
            norm_beta: B::floats_mut(&mut d_weights.norm_beta),
            inner: B::floats_mut(&mut d_weights.inner),
            inner_bias: B::floats_mut(&mut d_weights.inner_bias),
            outer: B::floats_mut(&mut d_weights.outer),
            outer_bias: B::floats_mut(&mut d_weights.outer_bias),
        },
    );
    FeedForwardGradients {
        rows: d_rows,
        weights: d_weights,
    }
}

/// Implements the operators with the kernels of this module.
macro_rules! impl_tree_attention_ops {
    ($backend:ty) => {
        impl $crate::ops::TreeAttentionOps for $backend {
            fn tree_search(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                value: FloatTensor<Self>,
                lengths: IntTensor<Self>,
                route: RoutePrimitive<Self>,
                options: TreeSearchOptions,
            ) -> TreeSearchPrimitive<Self> {
                cpu::tree_search::<Self>(query, key, value, lengths, route, options)
            }

            fn tree_context_backward(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                value: FloatTensor<Self>,
                lengths: IntTensor<Self>,
                path: IntTensor<Self>,
                grad: FloatTensor<Self>,
                options: TreeSearchOptions,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                cpu::tree_context_backward::<Self>(query, key, value, lengths, path, grad, options)
            }

            fn tree_policy_backward(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                lengths: IntTensor<Self>,
                path: IntTensor<Self>,
                grad: FloatTensor<Self>,
                options: TreeSearchOptions,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                cpu::tree_policy_backward::<Self>(query, key, lengths, path, grad, options)
            }

            fn dense_attention(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                value: FloatTensor<Self>,
                mask: AttentionMask<Self>,
                options: DenseAttentionOptions,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                cpu::dense_attention::<Self>(query, key, value, mask, options)
            }

            fn dense_attention_backward(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                value: FloatTensor<Self>,
                mask: AttentionMask<Self>,
                context: FloatTensor<Self>,
                log_total: FloatTensor<Self>,
                grad: FloatTensor<Self>,
                options: DenseAttentionOptions,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                cpu::dense_attention_backward::<Self>(
                    query, key, value, mask, context, log_total, grad, options,
                )
            }

            fn leaf_attention(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                value: FloatTensor<Self>,
                key_bias: FloatTensor<Self>,
                query_leaf: IntTensor<Self>,
                key_leaf: IntTensor<Self>,
                options: LeafAttentionOptions,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                cpu::leaf_attention::<Self>(
                    query, key, value, key_bias, query_leaf, key_leaf, options,
                )
            }

            fn leaf_attention_backward(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                value: FloatTensor<Self>,
                key_bias: FloatTensor<Self>,
                query_leaf: IntTensor<Self>,
                key_leaf: IntTensor<Self>,
                context: FloatTensor<Self>,
                log_total: FloatTensor<Self>,
                grad: FloatTensor<Self>,
                options: LeafAttentionOptions,
            ) -> LeafAttentionGradients<Self> {
                cpu::leaf_attention_backward::<Self>(
                    query, key, value, key_bias, query_leaf, key_leaf, context, log_total, grad,
                    options,
                )
            }

            fn candidate_keys_backward(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                value: FloatTensor<Self>,
                query_leaf: IntTensor<Self>,
                candidate_leaf: IntTensor<Self>,
                context: FloatTensor<Self>,
                log_total: FloatTensor<Self>,
                grad: FloatTensor<Self>,
                options: LeafAttentionOptions,
            ) -> FloatTensor<Self> {
                cpu::candidate_keys_backward::<Self>(
                    query,
                    key,
                    value,
                    query_leaf,
                    candidate_leaf,
                    context,
                    log_total,
                    grad,
                    options,
                )
            }

            fn tree_build(
                leaves: FloatTensor<Self>,
                lengths: IntTensor<Self>,
                block: BlockPrimitive<Self>,
                options: TreeBuildOptions,
            ) -> FloatTensor<Self> {
                cpu::tree_build::<Self>(leaves, lengths, block, options)
            }

            fn tree_build_backward(
                nodes: FloatTensor<Self>,
                lengths: IntTensor<Self>,
                block: BlockPrimitive<Self>,
                grad: FloatTensor<Self>,
                options: TreeBuildOptions,
            ) -> TreeBuildGradients<Self> {
                cpu::tree_build_backward::<Self>(nodes, lengths, block, grad, options)
            }

            fn feed_forward(
                rows: FloatTensor<Self>,
                weights: FeedForwardPrimitive<Self>,
                epsilon: f64,
            ) -> FloatTensor<Self> {
                cpu::feed_forward::<Self>(rows, weights, epsilon)
            }

            fn feed_forward_backward(
                rows: FloatTensor<Self>,
                weights: FeedForwardPrimitive<Self>,
                grad: FloatTensor<Self>,
                epsilon: f64,
            ) -> FeedForwardGradients<Self> {
                cpu::feed_forward_backward::<Self>(rows, weights, grad, epsilon)
            }
        }
    };
}
pub(crate) use impl_tree_attention_ops;
