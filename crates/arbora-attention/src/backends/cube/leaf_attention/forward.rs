//! Attention within leaves, forward.

use super::*;

#[cube(launch_unchecked)]
fn forward_kernel<N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    key_bias: &[f32],
    lists: &[u32],
    context: &mut [Vector<f32, N>],
    lse: &mut [f32],
    sizes: &Sizes,
    #[comptime] causal: bool,
    #[comptime] dropping: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::query(lists, sizes, ABSOLUTE_POS);
    let row = load::<N>(query, owned.row, key_vectors);
    let mut sums = zeros::<N>(value_vectors);
    let mut greatest = f32::new(MASKED);
    let mut total = 0.0f32;
    let last = owned.position + sizes.offset;
    let mut state = 0u32;
    if comptime![dropping] {
        state = row_state(sizes, owned.row);
    }
    for at in owned.first..owned.end {
        let key_row = usize::cast_from(lists[at]);
        let key_at = key_row / sizes.kv_heads % sizes.keys;
        // Keys of a leaf are listed in their order: none behind this one is seen either.
        if comptime![causal] {
            if key_at > last {
                break;
            }
        }
        let product = dot::<N>(&row, key, key_row, key_vectors);
        let logit = product * sizes.scale + key_bias[key_row];
        if logit > greatest {
            let shrink = (greatest - logit).exp();
            total *= shrink;
            #[unroll]
            for i in 0..value_vectors {
                sums[i] *= Vector::<f32, N>::new(shrink);
            }
            greatest = logit;
        }
        let mut weight = (logit - greatest).exp();
        total += weight;
        if comptime![dropping] {
            weight *= kept(sizes, state, key_at);
        }
        add::<N>(&mut sums, weight, value, key_row, value_vectors);
    }
    let mut logarithm = f32::new(NO_KEYS);
    if total > 0.0f32 {
        logarithm = total.ln() + greatest;
    }
    lse[owned.row] = logarithm;
    // A query without keys has total 0; any positive divisor leaves it at 0.
    let inverse = 1.0f32 / total.max(SMALLEST);
    store::<N>(context, owned.row, &sums, inverse, value_vectors);
}

pub(crate) fn attend(
    inputs: LeafAttentionInputs<CubeBackend>,
    options: LeafAttentionOptions,
) -> AttentionOutput<CubeBackend> {
    let floats = [inputs.query, inputs.key, inputs.value, inputs.key_bias];
    let [query, key, value, key_bias] = floats.map(into_contiguous);
    let leaves = [inputs.query_leaf, inputs.key_leaf];
    let problem = Problem::new([&query, &key, &value], leaves, options);
    problem.check_bias(&key_bias);
    let (batch, queries, heads) = (problem.batch, problem.queries, problem.heads);
    let context = empty(
        &query,
        [batch, queries, heads, problem.value_dim],
        DType::F32,
    );
    let lse = empty(&query, [batch, queries, heads], DType::F32);
    let units = problem.query_rows();
    let vector = problem.vector();
    let (count, dim) = grid(&query, units);
    // SAFETY: a unit writes the query and head that the lists have at its place; there each stands once. They hold rows and bounds
    // that `list_kernel` wrote, all of them.
    unsafe {
        forward_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            vector,
            query.clone().into_buffer_arg(),
            key.into_buffer_arg(),
            value.into_buffer_arg(),
            key_bias.into_buffer_arg(),
            problem.lists.clone().into_buffer_arg(),
            context.clone().into_buffer_arg(),
            lse.clone().into_buffer_arg(),
            problem.sizes(units),
            problem.causal(),
            problem.dropping(),
            problem.head_dim / vector,
            problem.value_dim / vector,
        );
    }
    AttentionOutput { context, lse }
}
