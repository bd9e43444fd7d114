//! The implementation for backends whose tensors lie in this process's memory: kernels on slices,
//! and the way from tensors to slices and back.
//!
//! Kernels take single precision. Other types, and tensors on other devices of the same backend, are
//! left to the reference bodies.

mod attention_tiles;
mod dense_attention;
mod feed_forward;
mod leaf_attention;
mod rows;
mod simd;
mod tree_build;
mod tree_search;
mod tuning;

use crate::ops::{
    AttentionMask, AttentionOutput, BlockPrimitive, CandidateInputs, DenseAttentionInputs,
    DenseAttentionOptions, GhostNodes, LeafAttentionGradients, LeafAttentionInputs,
    LeafAttentionOptions, RoutePrimitive, TreeAttentionOps, TreeBuildGradients, TreeBuildOptions,
    TreeSearchInputs, TreeSearchOptions, TreeSearchPrimitive, reference,
};
use attention_tiles::{Attention, AttentionOutputs};
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, try_read_sync};
use burn::tensor::{DType, Shape, TensorData};
use dense_attention::DenseAttention;
use leaf_attention::LeafAttention;
pub(super) use simd::instructions;
use tree_build::Build;
use tree_search::{RouteSlices, Search, SearchGradient, SearchOutputs};

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

/// The same tensors in this process's memory, or none if one cannot be there.
fn on_host<B: HostBackend, const N: usize>(
    tensors: [&FloatTensor<B>; N],
) -> Option<[FloatTensor<B>; N]> {
    let host = tensors.into_iter().map(|tensor| B::host(tensor.clone()));
    host.collect::<Option<Vec<_>>>()?.try_into().ok()
}

/// A new tensor. Where assertions are compiled in it holds no number, so that tests see what a kernel leaves unwritten.
fn allocate<B: HostBackend>(shape: impl Into<Shape>, device: &B::Device) -> FloatTensor<B> {
    let mut tensor = B::allocate(shape.into(), device);
    if cfg!(debug_assertions) {
        B::floats_mut(&mut tensor).fill(f32::NAN);
    }
    tensor
}

/// A new tensor of the shape of another.
fn allocate_like<B: HostBackend>(tensor: &FloatTensor<B>) -> FloatTensor<B> {
    allocate::<B>(tensor.shape(), &tensor.device())
}

fn read<E: std::fmt::Debug>(data: impl Future<Output = Result<TensorData, E>>) -> TensorData {
    try_read_sync(data)
        .expect("memory of this process is read without waiting")
        .expect("memory of this process can be read")
}

/// Reads integers, whatever their type.
fn integers<B: Backend>(tensor: IntTensor<B>) -> Vec<i64> {
    read(B::int_into_data(tensor)).iter::<i64>().collect()
}

fn indices<B: Backend>(tensor: IntTensor<B>) -> Vec<u32> {
    let integers = integers::<B>(tensor).into_iter();
    integers.map(|index| index.max(0) as u32).collect()
}

fn lengths<B: Backend>(tensor: IntTensor<B>) -> Vec<usize> {
    let lengths = indices::<B>(tensor).into_iter();
    lengths.map(|length| length as usize).collect()
}

fn key_mask<B: Backend>(mask: AttentionMask<B>) -> Option<Vec<bool>> {
    let booleans = |mask: BoolTensor<B>| read(B::bool_into_data(mask)).iter::<bool>().collect();
    match mask {
        AttentionMask::None => None,
        AttentionMask::Keys(mask) => Some(booleans(mask)),
    }
}

fn write_integers<B: Backend>(
    values: Vec<u32>,
    shape: [usize; 3],
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

fn attention<'a, B: HostBackend>(
    [query, key, value]: [&'a FloatTensor<B>; 3],
    scale: Option<f64>,
) -> Attention<'a> {
    let [batch, queries, heads, head_dim] = query.shape().dims();
    let [_, keys, kv_heads, value_dim] = value.shape().dims();
    Attention {
        query: B::floats(query),
        key: B::floats(key),
        value: B::floats(value),
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        head_dim,
        value_dim,
        scale: scale.unwrap_or((head_dim as f64).powf(-0.5)) as f32,
    }
}

fn output_slices<B: HostBackend>(
    [context, lse, grad]: &[FloatTensor<B>; 3],
) -> AttentionOutputs<'_> {
    AttentionOutputs {
        context: B::floats(context),
        lse: B::floats(lse),
        grad: B::floats(grad),
    }
}

/// To be written.
fn allocate_output<B: HostBackend>(
    query: &FloatTensor<B>,
    value: &FloatTensor<B>,
) -> AttentionOutput<B> {
    let [batch, queries, heads, _] = query.shape().dims();
    let device = query.device();
    AttentionOutput {
        context: allocate::<B>([batch, queries, heads, value.shape()[3]], &device),
        lse: allocate::<B>([batch, queries, heads], &device),
    }
}

fn search<'a, B: HostBackend>(
    [query, key]: [&'a FloatTensor<B>; 2],
    value: Option<&'a FloatTensor<B>>,
    lengths: &'a [usize],
    options: &TreeSearchOptions,
) -> Search<'a> {
    let [batch, queries, heads, head_dim] = query.shape().dims();
    Search {
        shape: options.shape,
        batch,
        queries,
        heads,
        head_dim,
        value_dim: value.unwrap_or(key).shape()[3],
        scale: options.scale.unwrap_or((head_dim as f64).powf(-0.5)) as f32,
        temperature: options.temperature as f32,
        ghosts_attended: options.ghosts == GhostNodes::Published,
        query: B::floats(query),
        key: B::floats(key),
        value: value.map_or(&[], B::floats),
        lengths,
    }
}

/// Tensors that `HostBackend::host` refuses are left to the reference bodies.
impl<B: HostBackend> TreeAttentionOps for B {
    fn tree_search(
        inputs: TreeSearchInputs<B>,
        route: RoutePrimitive<B>,
        options: TreeSearchOptions,
    ) -> TreeSearchPrimitive<B> {
        let Some([query, key, value]) =
            on_host::<B, _>([&inputs.query, &inputs.key, &inputs.value])
        else {
            return reference::tree_search::<B>(inputs, route, options);
        };
        let uniforms = match &route {
            RoutePrimitive::Sampled(uniforms) | RoutePrimitive::Uniform(uniforms) => {
                B::host(uniforms.clone())
            }
            // None are read.
            RoutePrimitive::Greedy | RoutePrimitive::Given(_) => Some(query.clone()),
        };
        let Some(uniforms) = uniforms else {
            return reference::tree_search::<B>(inputs, route, options);
        };
        let uniforms = B::floats(&uniforms);
        let given = match &route {
            RoutePrimitive::Given(path) => indices::<B>(path.clone()),
            _ => Vec::new(),
        };
        let route = match &route {
            RoutePrimitive::Greedy => RouteSlices::Greedy,
            RoutePrimitive::Sampled(_) => RouteSlices::Sampled(uniforms),
            RoutePrimitive::Uniform(_) => RouteSlices::Uniform(uniforms),
            RoutePrimitive::Given(_) => RouteSlices::Given(&given),
        };

        let (device, dtype) = (query.device(), inputs.lengths.dtype());
        let lengths = lengths::<B>(inputs.lengths);
        let call = search::<B>([&query, &key], Some(&value), &lengths, &options);
        let (batch, queries, steps) = (call.batch, call.queries, call.steps());
        let shape = [batch, queries, call.heads, call.value_dim];
        let mut context = allocate::<B>(shape, &device);
        let mut policy = allocate::<B>([2, batch, queries], &device);
        let mut path = vec![0; batch * queries * steps];
        let mut counts = vec![0; batch * queries * 3];
        call.forward(
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
            path: write_integers::<B>(path, [batch, queries, steps], dtype, &device),
            policy,
            counts: write_integers::<B>(counts, [3, batch, queries], dtype, &device),
        }
    }

    fn tree_context_backward(
        inputs: TreeSearchInputs<B>,
        path: IntTensor<B>,
        grad: FloatTensor<B>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let floats = [&inputs.query, &inputs.key, &inputs.value, &grad];
        let Some([query, key, value, grad]) = on_host::<B, _>(floats) else {
            return reference::tree_context_backward::<B>(inputs, path, grad, options);
        };
        let lengths = lengths::<B>(inputs.lengths);
        let mut gradients = [&query, &key, &value].map(allocate_like::<B>);
        search::<B>([&query, &key], Some(&value), &lengths, &options).backward(
            &indices::<B>(path),
            SearchGradient::Context(B::floats(&grad)),
            gradients.each_mut().map(B::floats_mut),
        );
        gradients.into()
    }

    fn tree_policy_backward(
        inputs: TreeSearchInputs<B>,
        path: IntTensor<B>,
        grad: FloatTensor<B>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let floats = [&inputs.query, &inputs.key, &grad];
        let Some([query, key, grad]) = on_host::<B, _>(floats) else {
            return reference::tree_policy_backward::<B>(inputs, path, grad, options);
        };
        let lengths = lengths::<B>(inputs.lengths);
        let [mut d_query, mut d_key] = [&query, &key].map(allocate_like::<B>);
        // Log-probability and entropy read no values.
        search::<B>([&query, &key], None, &lengths, &options).backward(
            &indices::<B>(path),
            SearchGradient::Policy(B::floats(&grad)),
            [
                B::floats_mut(&mut d_query),
                B::floats_mut(&mut d_key),
                &mut [],
            ],
        );
        (d_query, d_key)
    }

    fn dense_attention(
        inputs: DenseAttentionInputs<B>,
        options: DenseAttentionOptions,
    ) -> AttentionOutput<B> {
        let floats = [&inputs.query, &inputs.key, &inputs.value];
        let Some([query, key, value]) = on_host::<B, _>(floats) else {
            return reference::dense_attention::<B>(inputs, options);
        };
        let mut output = allocate_output::<B>(&query, &value);
        DenseAttention {
            attention: attention::<B>([&query, &key, &value], options.scale),
            first_key: options.first_key,
            mask: key_mask::<B>(inputs.mask).as_deref(),
        }
        .forward(
            B::floats_mut(&mut output.context),
            B::floats_mut(&mut output.lse),
        );
        output
    }

    fn dense_attention_backward(
        inputs: DenseAttentionInputs<B>,
        output: AttentionOutput<B>,
        grad: FloatTensor<B>,
        options: DenseAttentionOptions,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let floats = [&inputs.query, &inputs.key, &inputs.value];
        let (Some([query, key, value]), Some(outputs)) = (
            on_host::<B, _>(floats),
            on_host::<B, _>([&output.context, &output.lse, &grad]),
        ) else {
            return reference::dense_attention_backward::<B>(inputs, grad, options);
        };
        let mut gradients = [&query, &key, &value].map(allocate_like::<B>);
        DenseAttention {
            attention: attention::<B>([&query, &key, &value], options.scale),
            first_key: options.first_key,
            mask: key_mask::<B>(inputs.mask).as_deref(),
        }
        .backward(
            output_slices::<B>(&outputs),
            gradients.each_mut().map(B::floats_mut),
        );
        gradients.into()
    }

    fn leaf_attention(
        inputs: LeafAttentionInputs<B>,
        options: LeafAttentionOptions,
    ) -> AttentionOutput<B> {
        let floats = [&inputs.query, &inputs.key, &inputs.value, &inputs.key_bias];
        let Some([query, key, value, key_bias]) = on_host::<B, _>(floats) else {
            return reference::leaf_attention::<B>(inputs, options);
        };
        let mut output = allocate_output::<B>(&query, &value);
        LeafAttention {
            attention: attention::<B>([&query, &key, &value], options.scale),
            query_leaf: &integers::<B>(inputs.query_leaf),
            key_leaf: &integers::<B>(inputs.key_leaf),
            key_bias: B::floats(&key_bias),
            options,
        }
        .forward(
            B::floats_mut(&mut output.context),
            B::floats_mut(&mut output.lse),
        );
        output
    }

    fn leaf_attention_backward(
        inputs: LeafAttentionInputs<B>,
        output: AttentionOutput<B>,
        grad: FloatTensor<B>,
        options: LeafAttentionOptions,
    ) -> LeafAttentionGradients<B> {
        let floats = [&inputs.query, &inputs.key, &inputs.value, &inputs.key_bias];
        let (Some([query, key, value, key_bias]), Some(outputs)) = (
            on_host::<B, _>(floats),
            on_host::<B, _>([&output.context, &output.lse, &grad]),
        ) else {
            return reference::leaf_attention_backward::<B>(inputs, grad, options);
        };
        let mut gradients = [&query, &key, &value, &key_bias].map(allocate_like::<B>);
        LeafAttention {
            attention: attention::<B>([&query, &key, &value], options.scale),
            query_leaf: &integers::<B>(inputs.query_leaf),
            key_leaf: &integers::<B>(inputs.key_leaf),
            key_bias: B::floats(&key_bias),
            options,
        }
        .backward(
            output_slices::<B>(&outputs),
            gradients.each_mut().map(B::floats_mut),
        );
        let [query, key, value, key_bias] = gradients;
        LeafAttentionGradients {
            query,
            key,
            value,
            key_bias,
        }
    }

    fn candidate_keys_backward(
        inputs: CandidateInputs<B>,
        output: AttentionOutput<B>,
        grad: FloatTensor<B>,
        options: LeafAttentionOptions,
    ) -> FloatTensor<B> {
        let floats = [&inputs.query, &inputs.key, &inputs.value];
        let (Some([query, key, value]), Some(outputs)) = (
            on_host::<B, _>(floats),
            on_host::<B, _>([&output.context, &output.lse, &grad]),
        ) else {
            return reference::candidate_keys_backward::<B>(inputs, output, grad, options);
        };
        let [batch, keys, kv_heads, _] = key.shape().dims();
        let mut d_gate = allocate::<B>([batch, keys, kv_heads], &query.device());
        LeafAttention {
            attention: attention::<B>([&query, &key, &value], options.scale),
            query_leaf: &integers::<B>(inputs.query_leaf),
            key_leaf: &integers::<B>(inputs.candidate_leaf),
            key_bias: &[],
            options,
        }
        .candidate_gates(output_slices::<B>(&outputs), B::floats_mut(&mut d_gate));
        d_gate
    }

    fn tree_build(
        leaves: FloatTensor<B>,
        lengths: IntTensor<B>,
        block: BlockPrimitive<B>,
        options: TreeBuildOptions,
    ) -> FloatTensor<B> {
        let (Some([leaves]), Some(weights)) = (
            on_host::<B, _>([&leaves]),
            on_host::<B, _>(block.clone().into_array().each_ref()),
        ) else {
            return reference::tree_build::<B>(leaves, lengths, block, options);
        };
        let [batch, _, dim] = leaves.shape().dims();
        let shape = [batch, options.shape.nodes(), dim];
        let mut nodes = allocate::<B>(shape, &leaves.device());
        let (lengths, weights) = (
            self::lengths::<B>(lengths),
            weights.each_ref().map(B::floats),
        );
        Build::new([batch, dim], &lengths, weights, &options)
            .forward(B::floats(&leaves), B::floats_mut(&mut nodes));
        nodes
    }

    fn tree_build_backward(
        nodes: FloatTensor<B>,
        lengths: IntTensor<B>,
        block: BlockPrimitive<B>,
        grad: FloatTensor<B>,
        options: TreeBuildOptions,
    ) -> TreeBuildGradients<B> {
        let (Some([nodes, grad]), Some(weights)) = (
            on_host::<B, _>([&nodes, &grad]),
            on_host::<B, _>(block.clone().into_array().each_ref()),
        ) else {
            return reference::tree_build_backward::<B>(nodes, lengths, block, grad, options);
        };
        let [batch, _, dim] = nodes.shape().dims();
        let shape = [batch, options.shape.width(0), dim];
        let mut leaves = allocate::<B>(shape, &nodes.device());
        let mut d_weights = weights.each_ref().map(allocate_like::<B>);
        let (lengths, weights) = (
            self::lengths::<B>(lengths),
            weights.each_ref().map(B::floats),
        );
        Build::new([batch, dim], &lengths, weights, &options).backward(
            B::floats(&nodes),
            B::floats(&grad),
            B::floats_mut(&mut leaves),
            d_weights.each_mut().map(B::floats_mut),
        );
        TreeBuildGradients {
            leaves,
            block: BlockPrimitive::from_array(d_weights),
        }
    }
}
