//! Attention, forward.

use super::*;

/// The `lse` of a query that sees no key of its leaf. In dense attention it is 0.
const NO_KEYS_OF_LEAF: f32 = f32::MIN;

#[cube(launch_unchecked)]
fn forward_kernel<M: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    key_bias: &[f32],
    others: &[M],
    context: &mut [Vector<f32, N>],
    lse: &mut [f32],
    units: usize,
    sizes: &Sizes,
    #[define(M)] _dtype: ElemType,
    #[define(N)] _vector: usize,
) {
    end_past(units);
    let plan = comptime![sizes.plan];
    let held = comptime![plan.held];
    let value_vectors = comptime![plan.value_vectors];
    let owned = Owned::new::<M>(others, &sizes.query, &sizes.key, sizes);
    let rows = Rows::<N>::load(query, &owned, plan.key_vectors);
    let mut sums = Rows::<N>::zeros(held, value_vectors);
    let mut greatest = filled(f32::new(MASKED), held);
    let mut totals = filled(0.0f32, held);
    let mut weights = filled(0.0f32, held);
    let last = owned.position + sizes.offset;
    let state = row_state(sizes, owned.row);
    for at in owned.first..owned.end {
        let key_row = owned.other::<M>(others, at);
        // Keys of a leaf are listed in their order: none behind this one is seen either.
        if comptime![plan.causal] {
            if key_position(sizes, key_row) > last {
                break;
            }
        }
        if is_kept::<M>(others, sizes, owned.example, at) {
            let products = rows.dots(key, key_row);
            #[unroll]
            for row in 0..held {
                let mut logit = products[row] * sizes.scale;
                if comptime![plan.listed] {
                    logit += key_bias[key_row];
                }
                if logit > greatest[row] {
                    let shrink = (greatest[row] - logit).exp();
                    totals[row] *= shrink;
                    #[unroll]
                    for i in 0..value_vectors {
                        sums.numbers[row * value_vectors + i] *= Vector::<f32, N>::new(shrink);
                    }
                    greatest[row] = logit;
                }
                let mut weight = (logit - greatest[row]).exp();
                totals[row] += weight;
                if comptime![plan.dropping] {
                    weight *= drop_factor(sizes, state, key_position(sizes, key_row));
                }
                weights[row] = weight;
            }
            sums.add(&weights, value, key_row);
        }
    }
    #[unroll]
    for row in 0..held {
        // A query without keys has total 0; any positive divisor leaves it at 0.
        weights[row] = 1.0f32 / totals[row].max(SMALLEST);
        if row < owned.stored {
            let mut logarithm = 0.0f32;
            if comptime![plan.listed] {
                logarithm = f32::new(NO_KEYS_OF_LEAF);
            }
            if totals[row] != 0.0f32 {
                logarithm = totals[row].ln() + greatest[row];
            }
            lse[owned.row(row)] = logarithm;
        }
    }
    sums.store(context, &owned, &weights);
}

impl Problem {
    fn attend(&self, key_bias: &CubeTensor) -> AttentionOutput<CubeBackend> {
        let [query, key, value, others] = self.inputs();
        let [batch, queries, heads, _] = query.shape().dims();
        let [_, _, _, value_dim] = value.shape().dims();
        let context = floats(query, [batch, queries, heads, value_dim]);
        let lse = floats(query, [batch, queries, heads]);
        let (units, dtype) = (self.units(query), element(others));
        // SAFETY: a unit writes its own query and head, or two; of past-the-end neighbours it reads the last query and writes
        // nothing. Within leaves they are what the lists have at its place, where each stands once. Lists hold rows and bounds
        // that `list_kernel` wrote, all of them. Shapes are checked by who makes a problem.
        unsafe {
            launch!(
                forward_kernel(units, self.sizes(), dtype, self.vector),
                [query, key, value, key_bias, others, context, lse]
            );
        }
        AttentionOutput { context, lse }
    }
}

pub(crate) fn dense(
    inputs: DenseAttentionInputs<CubeBackend>,
    options: DenseAttentionOptions,
) -> AttentionOutput<CubeBackend> {
    let problem = Problem::dense(inputs, options);
    // Dense attention has no bias, and reads none.
    problem.attend(&problem.query)
}

pub(crate) fn within_leaves(
    inputs: LeafAttentionInputs<CubeBackend>,
    options: LeafAttentionOptions,
) -> AttentionOutput<CubeBackend> {
    let rows = [inputs.query, inputs.key, inputs.value];
    let problem = Problem::within_leaves(rows, [inputs.query_leaf, inputs.key_leaf], options);
    problem.expect_bias(&inputs.key_bias);
    problem.attend(&into_contiguous(inputs.key_bias))
}
