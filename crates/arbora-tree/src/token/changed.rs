//! What a change of a tree touches.

use super::stream::grow;
use crate::shape::TokenTreeShape;
use crate::tensors::expect_equal;
use burn::tensor::Tensor;
use core::ops::Range;

/// The nodes that an append or an update recomputed. An index is updated from these.
#[derive(Clone, Debug)]
pub struct Changed {
    pub(super) before: TokenTreeShape,
    pub(super) after: TokenTreeShape,
    pub(super) runs: Vec<Run>,
    pub(super) nodes: Option<Tensor<2>>,
}

/// Neighbouring nodes, the same ones in neighbouring examples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub examples: Range<usize>,
    pub positions: Range<usize>,
}

impl Changed {
    /// The tree's shape before the change.
    pub fn shape_before(&self) -> &TokenTreeShape {
        &self.before
    }

    /// The tree's shape after the change: a higher one if it had to grow.
    pub fn shape(&self) -> &TokenTreeShape {
        &self.after
    }

    /// The new nodes, `[changed, dim]`, height by height from the leaves up; `None` if no node
    /// changed.
    pub fn nodes(&self) -> Option<Tensor<2>> {
        self.nodes.clone()
    }

    /// Positions, in the level order of [`shape`](Self::shape), of an example's new nodes, from the
    /// leaves up.
    pub fn positions(&self, example: usize) -> impl Iterator<Item = usize> + '_ {
        self.runs
            .iter()
            .filter(move |run| run.examples.contains(&example))
            .flat_map(|run| run.positions.clone())
    }

    /// Brings what is stored per node up to date: makes room if the tree grew, and writes the rows of
    /// changed nodes. New room is zero.
    ///
    /// Where `stored` is the only handle to its memory, the write happens in place and costs what it
    /// writes. Any other handle (a clone, a recorded gradient) makes it a copy of the whole.
    ///
    /// # Shapes
    /// - stored: `[batch, shape_before().nodes(), …]`
    /// - rows: `[1, changed, …]`, one per row of [`nodes`](Self::nodes), whatever is stored of it
    /// - returns `[batch, shape().nodes(), …]`
    ///
    /// # Panics
    /// If axis 1 of `stored` or of `rows` differs.
    #[track_caller]
    pub fn apply<const D: usize>(&self, stored: Tensor<D>, rows: Option<Tensor<D>>) -> Tensor<D> {
        let count = self.runs.iter().map(Run::rows).sum::<usize>();
        let given = rows.as_ref().map_or(0, |rows| rows.dims()[1]);
        expect_equal(
            "token_tree: axis 1 of stored",
            self.before.nodes(),
            stored.dims()[1],
        );
        expect_equal("token_tree: axis 1 of rows", count, given);
        let mut stored = grow(stored, &self.before, &self.after);
        let Some(rows) = rows else {
            return stored;
        };
        let mut first = 0;
        for run in &self.runs {
            let mut dims = stored.dims();
            let slices: [Range<usize>; D] = core::array::from_fn(|axis| match axis {
                0 => run.examples.clone(),
                1 => run.positions.clone(),
                _ => 0..dims[axis],
            });
            dims[0] = run.examples.len();
            dims[1] = run.positions.len();
            let part = rows.clone().narrow(1, first, run.rows()).reshape(dims);
            // One slice per run: burn 0.22 assigns slices in place on flex, ndarray, libtorch and CubeCL,
            // while its `select_assign` copies the whole on libtorch, and `scatter_nd` on flex.
            stored = stored.slice_assign(slices, part);
            first += run.rows();
        }
        stored
    }
}

impl Run {
    fn rows(&self) -> usize {
        self.examples.len() * self.positions.len()
    }
}

/// Appends the runs of sorted `(example, index)` at a height with the given offset.
pub(super) fn add_runs(runs: &mut Vec<Run>, nodes: &[(usize, usize)], offset: usize) {
    let mut level: Vec<Run> = Vec::new();
    for (example, index) in nodes {
        let position = offset + index;
        match level.last_mut() {
            Some(run) if run.examples.start == *example && run.positions.end == position => {
                run.positions.end += 1;
            }
            _ => level.push(Run {
                examples: *example..example + 1,
                positions: position..position + 1,
            }),
        }
    }
    // The same run in the next example is one write with it.
    let first = runs.len();
    for run in level {
        match runs[first..].last_mut() {
            Some(last)
                if last.positions == run.positions && last.examples.end == run.examples.start =>
            {
                last.examples.end += 1;
            }
            _ => runs.push(run),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_nodes_are_one_run_and_equal_runs_of_neighbouring_examples_too() {
        let mut runs = Vec::new();
        add_runs(&mut runs, &[(0, 3), (0, 4), (1, 3), (1, 4), (2, 4)], 10);
        add_runs(&mut runs, &[(2, 1)], 3);
        let run = |examples, positions| Run {
            examples,
            positions,
        };
        assert_eq!(
            runs,
            [run(0..2, 13..15), run(2..3, 14..15), run(2..3, 4..5)]
        );
    }

    #[test]
    fn a_run_ends_where_its_example_does() {
        let mut runs = Vec::new();
        // Example 0 ends with node 4 and example 1 begins with node 5.
        add_runs(&mut runs, &[(0, 4), (1, 5)], 0);
        assert_eq!(runs.len(), 2);
    }
}
