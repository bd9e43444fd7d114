//! The build of trees, level by level from the leaves.

use super::*;

impl Build<'_> {
    /// Builds the nodes of all examples.
    ///
    /// - leaves: `[batch, width(0), dim]`; rows of ghosts are ignored
    /// - nodes: `[batch, nodes, dim]` in level order, fully written; ghosts are zero
    pub(crate) fn forward(&self, leaves: &[f32], nodes: &mut [f32]) {
        self.check(leaves, nodes);
        let shape = &self.shape;
        nodes
            .par_chunks_exact_mut(self.example())
            .zip(leaves.par_chunks_exact(shape.width(0) * self.dim))
            .zip(self.lengths)
            .for_each(|((nodes, leaves), length)| {
                for height in 0..=shape.height() {
                    let level = &mut nodes[self.offset(height)..][..shape.width(height) * self.dim];
                    let (real, ghosts) = level.split_at_mut(self.real(height, *length) * self.dim);
                    if height == 0 {
                        real.copy_from_slice(&leaves[..real.len()]);
                    }
                    ghosts.fill(0.0);
                }
            });

        let most = most_rows(numbers_per_row(self));
        let pool = Pool::<Scratch>::default();
        for height in 1..=shape.height() {
            // What is left to write of each example's parents, and all of its children.
            let mut levels: Vec<(&mut [f32], &[f32])> = nodes
                .chunks_exact_mut(self.example())
                .map(|example| {
                    let (above, below) = example.split_at_mut(self.offset(height - 1));
                    (&mut above[self.offset(height)..], &*below)
                })
                .collect();
            let group = shape.group(height);
            let chunks: Vec<Vec<ForwardRun>> = plan(self, height, most)
                .into_iter()
                .map(|chunk| {
                    let cut = |run: Run| {
                        let (parents, children) = &mut levels[run.example];
                        let parents = parents.split_off_mut(..run.groups * self.dim);
                        ForwardRun {
                            children: &children[run.first * group * self.dim..]
                                [..run.rows * self.dim],
                            parents: parents.expect("runs are parts of their level"),
                        }
                    };
                    chunk.into_iter().map(cut).collect()
                })
                .collect();
            for_each(chunks, |mut runs| {
                pool.with(|scratch| {
                    dispatch(Forward {
                        build: self,
                        group,
                        runs: &mut runs,
                        scratch,
                    });
                });
            });
        }
    }
}

struct ForwardRun<'a> {
    children: &'a [f32],
    parents: &'a mut [f32],
}

struct Forward<'a, 'r> {
    build: &'a Build<'a>,
    group: usize,
    runs: &'a mut [ForwardRun<'r>],
    scratch: &'a mut Scratch,
}

impl Kernel for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (build, scratch) = (self.build, self.scratch);
        let dim = build.dim;
        let runs = self.runs.iter();
        let runs = runs.map(|run| (run.children, run.parents.len() / dim));
        let rows = scratch.gather(dim, self.group, runs);
        activate::<A>(build, self.group, rows, scratch);

        scratch.parents.resize(scratch.groups.len() * dim, 0.0);
        build.feed_forward().apply::<A>(
            scratch.groups.iter().cloned(),
            &scratch.attended,
            &mut scratch.parents,
            &mut scratch.feed_forward,
        );
        let mut rest = scratch.parents.as_slice();
        for run in self.runs {
            let (own, after) = rest.split_at(run.parents.len());
            run.parents.copy_from_slice(own);
            rest = after;
        }
    }
}
