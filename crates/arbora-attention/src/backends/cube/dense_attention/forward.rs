//! Dense attention, forward.

use super::*;

#[cube(launch_unchecked)]
fn forward_kernel<M: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    mask: &[M],
    context: &mut [Vector<f32, N>],
    lse: &mut [f32],
    sizes: &Sizes,
    #[comptime] masked: bool,
    #[comptime] held: usize,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
    #[define(M)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::new(ABSOLUTE_POS, sizes.queries, sizes.heads, held);
    let rows = load::<N>(query, &owned, held, key_vectors);
    let mut sums = zeros::<N>(held * value_vectors);
    let mut greatest = Array::<f32>::new(held);
    let mut totals = Array::<f32>::new(held);
    let mut weights = Array::<f32>::new(held);
    #[unroll]
    for row in 0..held {
        greatest[row] = f32::new(MASKED);
        totals[row] = 0.0f32;
    }
    for at in sizes.first_key..sizes.rows {
        if kept::<M>(mask, sizes, owned.example, at, masked) {
            let of_key = (owned.example * sizes.rows + at) * sizes.heads + owned.head;
            let products = dots::<N>(&rows, key, of_key * key_vectors, held, key_vectors);
            #[unroll]
            for row in 0..held {
                let logit = products[row] * sizes.scale;
                if logit > greatest[row] {
                    let shrink = (greatest[row] - logit).exp();
                    totals[row] *= shrink;
                    #[unroll]
                    for i in 0..value_vectors {
                        sums[row * value_vectors + i] *= Vector::<f32, N>::new(shrink);
                    }
                    greatest[row] = logit;
                }
                let weight = (logit - greatest[row]).exp();
                totals[row] += weight;
                weights[row] = weight;
            }
            add::<N>(
                &mut sums,
                &weights,
                value,
                of_key * value_vectors,
                held,
                value_vectors,
            );
        }
    }
    #[unroll]
    for row in 0..held {
        // A query without keys has total 0; any positive divisor leaves it at 0.
        weights[row] = 1.0f32 / totals[row].max(SMALLEST);
        if owned.first + row < owned.count {
            let mut logarithm = 0.0f32;
            if totals[row] != 0.0f32 {
                logarithm = totals[row].ln() + greatest[row];
            }
            lse[owned.row(row)] = logarithm;
        }
    }
    store::<N>(context, &owned, &sums, &weights, held, value_vectors);
}

pub(crate) fn attend(
    inputs: DenseAttentionInputs<CubeBackend>,
    options: DenseAttentionOptions,
) -> AttentionOutput<CubeBackend> {
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(into_contiguous);
    let problem = Problem::new([&query, &key, &value], inputs.mask, options);
    let (batch, queries, heads) = (problem.batch, problem.queries, problem.heads);
    let context = empty(
        &query,
        [batch, queries, heads, problem.value_dim],
        DType::F32,
    );
    let lse = empty(&query, [batch, queries, heads], DType::F32);
    let units = problem.units(queries);
    if units > 0 {
        let vector = problem.vector();
        let (count, dim) = grid(&query, units);
        let dtype = element(&problem.mask);
        // SAFETY: a unit writes its own query and head, or two; of past-the-end neighbours it reads the last query and writes
        // nothing. Shapes are checked above.
        unsafe {
            forward_kernel::launch_unchecked(
                &query.client,
                count,
                dim,
                vector,
                query.clone().into_buffer_arg(),
                key.into_buffer_arg(),
                value.into_buffer_arg(),
                problem.mask.clone().into_buffer_arg(),
                context.clone().into_buffer_arg(),
                lse.clone().into_buffer_arg(),
                problem.sizes(units),
                problem.masked,
                problem.held(),
                problem.head_dim / vector,
                problem.value_dim / vector,
                dtype,
            );
        }
    }
    AttentionOutput { context, lse }
}
