//! Gradients of a tree build, level by level from the root.

use super::super::tuning::PARTIAL_GRADIENTS;
use super::*;

impl Build<'_> {
    /// Gradients of a build. Activations are computed again from the nodes.
    ///
    /// - nodes: what [`forward`](Self::forward) wrote
    /// - grad: `[batch, nodes, dim]`, gradient with respect to all nodes; ghosts are ignored
    /// - d_leaves: `[batch, width(0), dim]`, fully written; ghosts are zero
    /// - d_block: in the order of the weights, fully written
    pub(crate) fn backward(
        &self,
        nodes: &[f32],
        grad: &[f32],
        d_leaves: &mut [f32],
        d_block: [&mut [f32]; 13],
    ) {
        self.check(d_leaves, nodes);
        expect("tree_build_backward: gradient", grad.len(), nodes.len());
        let shape = &self.shape;
        let most = most_rows(numbers_per_row(self) + 5 * self.dim + self.ff);
        let pool = Pool::default();
        let heights = (1..=shape.height()).rev();
        let chunks_of = |height| plan(self, height, most);
        let children_of = |run: &Run, height: usize| {
            let first = run.example * self.example() + self.offset(height - 1);
            &nodes[first + run.first * shape.group(height) * self.dim..][..run.rows * self.dim]
        };
        let mut partials = vec![0.0; PARTIAL_GRADIENTS * self.parameters()];

        // Gradients of the leaves, in level order of whole trees.
        let mut flow = Vec::new();
        if self.detach {
            // Levels do not depend on one another.
            let chunks = heights.flat_map(|height| {
                chunks_of(height).into_iter().map(move |chunk| {
                    let cut = |run: Run| BackwardRun {
                        children: children_of(&run, height),
                        d_parents: &grad[run.example * self.example() + self.offset(height)..]
                            [run.first * self.dim..][..run.groups * self.dim],
                        d_children: &mut [],
                    };
                    (shape.group(height), chunk.into_iter().map(cut).collect())
                })
            });
            backward_chunks(self, &pool, chunks.collect(), &mut partials);
        } else {
            flow.extend_from_slice(grad);
            for height in heights {
                let group = shape.group(height);
                let mut levels: Vec<(&[f32], &mut [f32])> = flow
                    .chunks_exact_mut(self.example())
                    .map(|example| {
                        let (above, below) = example.split_at_mut(self.offset(height - 1));
                        (&above[self.offset(height)..], below)
                    })
                    .collect();
                let chunks = chunks_of(height).into_iter().map(|chunk| {
                    let cut = |run: Run| {
                        let (d_parents, d_children) = &mut levels[run.example];
                        let d_children = d_children.split_off_mut(..run.rows * self.dim);
                        BackwardRun {
                            children: children_of(&run, height),
                            d_parents: &d_parents[run.first * self.dim..][..run.groups * self.dim],
                            d_children: d_children.expect("runs are parts of their level"),
                        }
                    };
                    (group, chunk.into_iter().map(cut).collect())
                });
                backward_chunks(self, &pool, chunks.collect(), &mut partials);
            }
        }

        let totals: &[f32] = if self.detach { grad } else { &flow };
        d_leaves
            .par_chunks_exact_mut(shape.width(0) * self.dim)
            .zip(totals.par_chunks_exact(self.example()))
            .zip(self.lengths)
            .for_each(|((d_leaves, totals), length)| {
                let (real, ghosts) = d_leaves.split_at_mut(length * self.dim);
                real.copy_from_slice(&totals[self.offset(0)..][..real.len()]);
                ghosts.fill(0.0);
            });

        sum_partials(&partials, d_block);
    }
}

struct BackwardRun<'a> {
    children: &'a [f32],
    d_parents: &'a [f32],
    /// Added to; empty where no gradient reaches the children.
    d_children: &'a mut [f32],
}

fn backward_chunks(
    build: &Build,
    pool: &Pool<Scratch>,
    mut chunks: Vec<(usize, Vec<BackwardRun>)>,
    partials: &mut [f32],
) {
    let share = chunks.len().div_ceil(PARTIAL_GRADIENTS).max(1);
    let tasks = chunks
        .chunks_mut(share)
        .zip(partials.chunks_exact_mut(build.parameters()));
    for_each(tasks.collect(), |(chunks, partial)| {
        pool.with(|scratch| {
            for (group, runs) in chunks {
                dispatch(Backward {
                    build,
                    group: *group,
                    runs,
                    gradients: Block::from_array(split_array(partial, build.sizes())),
                    scratch,
                });
            }
        });
    });
}

struct Backward<'a, 'r> {
    build: &'a Build<'a>,
    group: usize,
    runs: &'a mut [BackwardRun<'r>],
    gradients: Block<&'a mut [f32]>,
    scratch: &'a mut Scratch,
}

impl Kernel for Backward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (build, scratch) = (self.build, self.scratch);
        let block = &build.block;
        let mut gradients = self.gradients;
        let dim = build.dim;
        let runs = self.runs.iter();
        let runs = runs.map(|run| (run.children, run.d_parents.len() / dim));
        let rows = scratch.gather(dim, self.group, runs);
        activate::<A>(build, self.group, rows, scratch);

        for array in [
            &mut scratch.d_rows,
            &mut scratch.d_context,
            &mut scratch.d_query,
            &mut scratch.d_key,
            &mut scratch.d_value,
        ] {
            array.resize(rows * dim, 0.0);
        }
        scratch.d_weights.resize(self.group, 0.0);

        // Siblings share the gradient of their outputs: that of the parent, divided among them.
        let d_outputs = &mut scratch.parents;
        d_outputs.clear();
        for run in self.runs.iter() {
            d_outputs.extend_from_slice(run.d_parents);
        }
        add_rows::<A>(gradients.feed_forward.outer_bias, d_outputs);
        for (siblings, d_output) in scratch.groups.iter().zip(d_outputs.chunks_exact_mut(dim)) {
            let share = 1.0 / siblings.len() as f32;
            for number in d_output {
                *number *= share;
            }
        }
        build.feed_forward().differentiate::<A>(
            scratch.groups.iter().cloned(),
            &scratch.attended,
            d_outputs,
            &mut scratch.d_rows,
            &mut gradients.feed_forward,
            &mut scratch.feed_forward,
        );

        // The attention among siblings.
        let accumulate = |target: &mut [f32], factor: f32, rows: &[f32], grads: &[f32]| {
            let (rows, grads) = (Matrix::new(rows, dim), Matrix::new(grads, dim));
            multiply(target, Write::Add, factor, rows.transposed(), grads);
        };
        let back =
            |target: &mut [f32], write: Write, factor: f32, grads: &[f32], weight: &[f32]| {
                let (grads, weight) = (Matrix::new(grads, dim), Matrix::new(weight, dim));
                multiply(target, write, factor, grads, weight.transposed());
            };
        let d_rows = &mut scratch.d_rows;
        add_rows::<A>(gradients.output_bias, d_rows);
        accumulate(gradients.output, 1.0, &scratch.context, d_rows);
        back(
            &mut scratch.d_context,
            Write::Set,
            1.0,
            d_rows,
            block.output,
        );
        attend_backward::<A>(build, self.group, scratch);
        let scale = scale(build);
        let (input, d_rows) = (&scratch.input, &mut scratch.d_rows);
        accumulate(gradients.query, scale, &scratch.normed, &scratch.d_query);
        accumulate(gradients.key, 1.0, input, &scratch.d_key);
        accumulate(gradients.value, 1.0, input, &scratch.d_value);
        back(d_rows, Write::Add, scale, &scratch.d_query, block.query);
        layer_norm_backward::<A>(
            input,
            block.norm_gamma,
            &scratch.moments,
            d_rows,
            gradients.norm_gamma,
            gradients.norm_beta,
        );
        if build.detach {
            return;
        }
        back(d_rows, Write::Add, 1.0, &scratch.d_key, block.key);
        back(d_rows, Write::Add, 1.0, &scratch.d_value, block.value);
        let mut rest = d_rows.as_slice();
        for run in self.runs {
            let (own, after) = rest.split_at(run.d_children.len());
            add_scaled::<A>(run.d_children, 1.0, own);
            rest = after;
        }
    }
}

/// Gradients of queries, keys and values through [`attend`].
#[inline(always)]
fn attend_backward<A: Arithmetic>(build: &Build, group: usize, scratch: &mut Scratch) {
    let Scratch {
        groups,
        query,
        key,
        value,
        weights,
        d_context,
        d_query,
        d_key,
        d_value,
        d_weights,
        ..
    } = scratch;
    // As in `attend`.
    let (groups, query, key, value) = (&groups[..], &query[..], &key[..], &value[..]);
    let (weights, d_context, d_weights) = (&weights[..], &d_context[..], &mut d_weights[..]);
    let (d_query, d_key, d_value) = (&mut d_query[..], &mut d_key[..], &mut d_value[..]);
    let (dim, heads) = (build.dim, build.heads);
    let width = dim / heads;
    d_query.fill(0.0);
    d_key.fill(0.0);
    d_value.fill(0.0);
    for siblings in groups {
        for row in siblings.clone() {
            for head in 0..heads {
                let of = |row: usize| row * dim + head * width..row * dim + (head + 1) * width;
                let weights = &weights[(row * heads + head) * group..][..group];
                let d_context = &d_context[of(row)];
                // The gradient of a logit is its weight times how far the gradient of the weight is
                // from the weighted mean of all.
                let mut mean = 0.0;
                for ((d_weight, weight), other) in
                    d_weights.iter_mut().zip(weights).zip(siblings.clone())
                {
                    *d_weight = dot::<A>(d_context, &value[of(other)]);
                    mean = A::mul_add(*weight, *d_weight, mean);
                }
                for ((d_weight, weight), other) in
                    d_weights.iter().zip(weights).zip(siblings.clone())
                {
                    let d_logit = weight * (d_weight - mean);
                    add_scaled::<A>(&mut d_query[of(row)], d_logit, &key[of(other)]);
                    add_scaled::<A>(&mut d_key[of(other)], d_logit, &query[of(row)]);
                    add_scaled::<A>(&mut d_value[of(other)], *weight, d_context);
                }
            }
        }
    }
}
