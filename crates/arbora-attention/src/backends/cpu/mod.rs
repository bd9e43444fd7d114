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

use crate::ops::{
    AttentionMask, AttentionOutput, BlockPrimitive, CandidateInputs, DenseAttentionInputs,
    DenseAttentionOptions, GhostNodes, LeafAttentionGradients, LeafAttentionInputs,
    LeafAttentionOptions, RoutePrimitive, TreeAttentionOps, TreeBuildGradients, TreeBuildOptions,
    TreeSearchInputs, TreeSearchOptions, TreeSearchPrimitive, reference,
};
use attention_tiles::{AttentionInputs, AttentionOutputs};
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, try_read_sync};
use burn::tensor::{DType, Shape, TensorData};
use dense_attention::DenseDims;
use leaf_attention::{LeafDims, LeafInputs};
pub(super) use simd::instructions;
use tree_build::{Block, BuildDims};
use tree_search::{RouteSlices, SearchDims, SearchGradient, SearchInputs, SearchOutputs};

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

/// All weights in this process's memory, in the order in which `map` goes over them, or none.
fn block_on_host<B: HostBackend>(block: &BlockPrimitive<B>) -> Option<Vec<FloatTensor<B>>> {
    let mut host = Vec::new();
    block.clone().map::<B>(|weight| {
        host.push(B::host(weight.clone()));
        weight
    });
    host.into_iter().collect()
}

/// A new tensor of the shape of another, as [`HostBackend::allocate`] makes them.
fn allocate_like<B: HostBackend>(tensor: &FloatTensor<B>) -> FloatTensor<B> {
    B::allocate(tensor.shape(), &tensor.device())
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

fn slices<'a, B: HostBackend>(
    query: &'a FloatTensor<B>,
    key: &'a FloatTensor<B>,
    value: &'a FloatTensor<B>,
) -> AttentionInputs<'a> {
    AttentionInputs {
        query: B::floats(query),
        key: B::floats(key),
        value: B::floats(value),
    }
}

/// Of context, logarithms of totals and gradient.
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
    let allocate = |shape| B::allocate(shape, &query.device());
    AttentionOutput {
        context: allocate(Shape::from([batch, queries, heads, value.shape()[3]])),
        lse: allocate(Shape::from([batch, queries, heads])),
    }
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

fn leaf_dims(
    query: &Shape,
    key: &Shape,
    value: &Shape,
    options: &LeafAttentionOptions,
) -> LeafDims {
    let [batch, queries, heads, head_dim] = query.dims();
    let [_, keys, kv_heads, _] = key.dims();
    LeafDims {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        head_dim,
        value_dim: value[3],
        leaves: options.leaves,
        scale: options.scale(head_dim) as f32,
        causal: options.causal,
        dropout: options.dropping(),
    }
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
        ff: block.feed_forward.outer.shape()[0],
        epsilon: options.epsilon as f32,
        detach: options.detach_children,
    }
}

/// Tensors that `HostBackend::host` refuses are left to the reference bodies.
impl<B: HostBackend> TreeAttentionOps for B {
    fn tree_search(
        inputs: TreeSearchInputs<B>,
        route: RoutePrimitive<B>,
        options: TreeSearchOptions,
    ) -> TreeSearchPrimitive<B> {
        let numbers = match &route {
            RoutePrimitive::Sampled(numbers) | RoutePrimitive::Uniform(numbers) => {
                B::host(numbers.clone())
            }
            RoutePrimitive::Greedy | RoutePrimitive::Given(_) => {
                Some(B::allocate(Shape::from([0, 0, 0]), &inputs.query.device()))
            }
        };
        let (Some([query, key, value]), Some(numbers)) = (
            on_host::<B, _>([&inputs.query, &inputs.key, &inputs.value]),
            numbers,
        ) else {
            return reference::tree_search::<B>(inputs, route, options);
        };
        let (draws, numbers) = (numbers.shape()[2], B::floats(&numbers));
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
        let shape = Shape::from([batch, queries, dims.heads, dims.value_dim]);
        let mut context = B::allocate(shape, &device);
        let mut policy = B::allocate(Shape::from([2, batch, queries]), &device);
        let mut path = vec![0; batch * queries * steps];
        let mut counts = vec![0; batch * queries * 3];
        let dtype = inputs.lengths.dtype();
        tree_search::search(
            &dims,
            SearchInputs {
                query: B::floats(&query),
                key: B::floats(&key),
                value: B::floats(&value),
                lengths: &lengths::<B>(inputs.lengths),
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
        let dims = search_dims(&query.shape(), value.shape()[3], &options);
        let mut gradients = [&query, &key, &value].map(allocate_like::<B>);
        tree_search::backward(
            &dims,
            SearchInputs {
                query: B::floats(&query),
                key: B::floats(&key),
                value: B::floats(&value),
                lengths: &lengths::<B>(inputs.lengths),
            },
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
        // Log-probability and entropy read no values.
        let dims = search_dims(&query.shape(), key.shape()[3], &options);
        let [mut d_query, mut d_key] = [&query, &key].map(allocate_like::<B>);
        tree_search::backward(
            &dims,
            SearchInputs {
                query: B::floats(&query),
                key: B::floats(&key),
                value: &[],
                lengths: &lengths::<B>(inputs.lengths),
            },
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
        let dims = dense_dims(&query.shape(), &value.shape(), &options);
        let mut output = allocate_output::<B>(&query, &value);
        dense_attention::forward(
            dims,
            slices::<B>(&query, &key, &value),
            key_mask::<B>(inputs.mask).as_deref(),
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
        dense_attention::backward(
            dense_dims(&query.shape(), &value.shape(), &options),
            slices::<B>(&query, &key, &value),
            key_mask::<B>(inputs.mask).as_deref(),
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
        leaf_attention::forward(
            leaf_dims(&query.shape(), &key.shape(), &value.shape(), &options),
            LeafInputs {
                attention: slices::<B>(&query, &key, &value),
                query_leaf: &integers::<B>(inputs.query_leaf),
                key_leaf: &integers::<B>(inputs.key_leaf),
            },
            B::floats(&key_bias),
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
        leaf_attention::backward(
            leaf_dims(&query.shape(), &key.shape(), &value.shape(), &options),
            LeafInputs {
                attention: slices::<B>(&query, &key, &value),
                query_leaf: &integers::<B>(inputs.query_leaf),
                key_leaf: &integers::<B>(inputs.key_leaf),
            },
            B::floats(&key_bias),
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
        let dims = leaf_dims(&query.shape(), &key.shape(), &value.shape(), &options);
        let shape = Shape::from([dims.batch, dims.keys, dims.kv_heads]);
        let mut d_gate = B::allocate(shape, &query.device());
        leaf_attention::candidate_gates(
            dims,
            LeafInputs {
                attention: slices::<B>(&query, &key, &value),
                query_leaf: &integers::<B>(inputs.query_leaf),
                key_leaf: &integers::<B>(inputs.candidate_leaf),
            },
            output_slices::<B>(&outputs),
            B::floats_mut(&mut d_gate),
        );
        d_gate
    }

    fn tree_build(
        leaves: FloatTensor<B>,
        lengths: IntTensor<B>,
        block: BlockPrimitive<B>,
        options: TreeBuildOptions,
    ) -> FloatTensor<B> {
        let (Some([leaves]), Some(weights)) =
            (on_host::<B, _>([&leaves]), block_on_host::<B>(&block))
        else {
            return reference::tree_build::<B>(leaves, lengths, block, options);
        };
        let dims = build_dims::<B>(&leaves.shape(), &block, &options);
        let shape = Shape::from([dims.batch, dims.shape.nodes(), dims.dim]);
        let mut nodes = B::allocate(shape, &leaves.device());
        tree_build::forward(
            &dims,
            B::floats(&leaves),
            &self::lengths::<B>(lengths),
            &Block::new(weights.iter().map(B::floats)),
            B::floats_mut(&mut nodes),
        );
        nodes
    }

    fn tree_build_backward(
        nodes: FloatTensor<B>,
        lengths: IntTensor<B>,
        block: BlockPrimitive<B>,
        grad: FloatTensor<B>,
        options: TreeBuildOptions,
    ) -> TreeBuildGradients<B> {
        let (Some([nodes, grad]), Some(weights)) =
            (on_host::<B, _>([&nodes, &grad]), block_on_host::<B>(&block))
        else {
            return reference::tree_build_backward::<B>(nodes, lengths, block, grad, options);
        };
        let dims = build_dims::<B>(&nodes.shape(), &block, &options);
        let shape = Shape::from([dims.batch, dims.shape.width(0), dims.dim]);
        let mut leaves = B::allocate(shape, &nodes.device());
        let mut d_weights: Vec<_> = weights.iter().map(allocate_like::<B>).collect();
        tree_build::backward(
            &dims,
            B::floats(&nodes),
            &self::lengths::<B>(lengths),
            &Block::new(weights.iter().map(B::floats)),
            B::floats(&grad),
            B::floats_mut(&mut leaves),
            d_weights.iter_mut().map(B::floats_mut).collect(),
        );
        let mut d_weights = d_weights.into_iter();
        TreeBuildGradients {
            leaves,
            block: block.map(|_| d_weights.next().expect("there is one for each weight")),
        }
    }
}

#[cfg(test)]
mod tests {
    /// Numbers in -1..1 that look random.
    pub(super) fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// What work returns on a number of threads.
    pub(super) fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().expect("threads").install(work)
    }
}
