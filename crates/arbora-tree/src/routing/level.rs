//! One level of a routing tree: the linear functions of its nodes.

use crate::shape::CompleteTree;
use crate::tensors::{constant_like, counting, single};
use burn::module::{Module, Param, RunningState};
use burn::tensor::activation::relu;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};

/// The decisions of all nodes of one depth.
///
/// A binary level has one output per node, a hyperplane. A k-ary level has one per child, those of
/// a node side by side.
#[derive(Module, Debug)]
pub struct RoutingLevel {
    /// `[trees, outputs, dim]`
    pub weight: Param<Tensor<3>>,
    /// `[trees, outputs]`
    pub bias: Param<Tensor<2>>,
    /// Added to the logits without gradient, `[sides · trees, outputs]`: what
    /// [`track_balance`](super::RoutingTree::track_balance) moves.
    pub balance: RunningState<Tensor<2>>,
    #[module(skip)]
    branching: usize,
}

/// Linear functions of a level of `shape`.
pub(super) fn outputs(shape: &CompleteTree, depth: usize) -> usize {
    shape.width(depth) * logits_per_node(shape.branching(depth))
}

fn logits_per_node(branching: usize) -> usize {
    if branching == 2 { 1 } else { branching }
}

impl RoutingLevel {
    /// - weight: `[trees, outputs, dim]`
    /// - bias: `trees * outputs` numbers
    pub(super) fn new(
        weight: TensorData,
        bias: Vec<f32>,
        (branching, sides): (usize, usize),
        device: &Device,
    ) -> Self {
        let shape = weight.shape();
        let [trees, outputs] = [shape[0], shape[1]];
        Self {
            weight: Param::from_data(weight, device),
            bias: Param::from_data(TensorData::new(bias, [trees, outputs]), device),
            balance: RunningState::new(Tensor::zeros([sides * trees, outputs], single(device))),
            branching,
        }
    }

    /// Children of each node.
    pub fn branching(&self) -> usize {
        self.branching
    }

    /// The same level with other biases, `trees * outputs` numbers, and no balance bias. The
    /// parameter keeps its id.
    pub(super) fn with_bias(self, values: Vec<f32>) -> Self {
        let bias = self.bias.map(|old| {
            let new = TensorData::new(values, old.dims());
            successor(&old, Tensor::from_data(new, (&old.device(), old.dtype())))
        });
        let balance = self.balance.value_sync();
        let balance = Tensor::zeros(balance.dims(), single(&balance.device()));
        let balance = RunningState::new(balance);
        Self {
            bias,
            balance,
            ..self
        }
    }

    /// The same level with other parameters, which keep their ids.
    #[track_caller]
    pub(super) fn with_parameters(self, weight: Tensor<3>, bias: Tensor<2>) -> Self {
        let expected = (self.weight.dims(), self.bias.dims());
        assert!(
            (weight.dims(), bias.dims()) == expected,
            "routing_tree: weight and bias of a level: expected {:?} and {:?}, got {:?} and {:?}",
            expected.0,
            expected.1,
            weight.dims(),
            bias.dims()
        );
        Self {
            weight: self.weight.map(|old| successor(&old, weight)),
            bias: self.bias.map(|old| successor(&old, bias)),
            ..self
        }
    }

    /// The balance biases of a side, `[trees, outputs]`, without gradient and in single precision.
    pub(super) fn balance_of(&self, side: usize) -> Tensor<2> {
        let trees = self.bias.dims()[0];
        let all = self.balance.value_sync().without_autodiff();
        all.narrow(0, side * trees, trees).cast(FloatDType::F32)
    }

    /// Moves the balance biases of a side by `-step`.
    pub(super) fn move_balance(&self, side: usize, step: Tensor<2>) {
        let [trees, outputs] = self.bias.dims();
        // Where a model trains, its tensors are on a device with gradients, and a buffer has none.
        let all = self.balance.value_sync().without_autodiff();
        let new = self.balance_of(side) - step.without_autodiff();
        let rows = [side * trees..(side + 1) * trees, 0..outputs];
        let all = all.cast(FloatDType::F32).slice_assign(rows, new);
        self.balance.update(all.detach());
        // A record is made of the value that is in sync.
        self.balance.value_sync();
    }

    pub(super) fn functions(&self, side: usize) -> LinearFunctions {
        LinearFunctions {
            weight: self.weight.val().cast(FloatDType::F32),
            bias: self.bias.val().cast(FloatDType::F32) + self.balance_of(side),
            branching: self.branching,
        }
    }
}

/// `new` where `old` is, with gradients where `old` has them.
fn successor<const D: usize>(old: &Tensor<D>, new: Tensor<D>) -> Tensor<D> {
    constant_like(new, old).set_require_grad(old.is_require_grad())
}

/// The linear functions of a level as tensors, in single precision.
#[derive(Clone, Debug)]
pub(super) struct LinearFunctions {
    weight: Tensor<3>,
    bias: Tensor<2>,
    branching: usize,
}

impl LinearFunctions {
    /// The same functions without gradient.
    pub fn constant(self) -> Self {
        Self {
            weight: self.weight.without_autodiff(),
            bias: self.bias.without_autodiff(),
            ..self
        }
    }

    fn logits_per_node(&self) -> usize {
        logits_per_node(self.branching)
    }

    /// The logits of every node.
    ///
    /// - rows: `[trees, rows, dim]`
    /// - returns `[trees, rows, nodes, logits]`, 1 logit for binary nodes
    pub fn logits(&self, rows: Tensor<3>) -> Tensor<4> {
        let [trees, count, _] = rows.dims();
        let weight = self.weight.clone();
        let [_, outputs, dim] = weight.dims();
        let weight = if outputs == 1 {
            // The same, and its gradient lies in memory as the weight does: where it does not, burn-fusion 0.22.1 updates all
            // trees from the weights of the first.
            weight.reshape([trees, dim, 1])
        } else {
            weight.swap_dims(1, 2)
        };
        let logits = rows.matmul(weight);
        let logits = logits + self.bias.clone().unsqueeze_dim::<3>(1);
        let [_, outputs] = self.bias.dims();
        let per_node = self.logits_per_node();
        logits.reshape([trees, count, outputs / per_node, per_node])
    }

    /// The logits of some nodes of each row.
    ///
    /// Copying a weight vector per row takes a fraction of the time of all logits, from 16 outputs
    /// on. Its backward pass adds the copies up again, which is slower than a matrix product up to
    /// about as many outputs as a node's weights have elements (both measured on the CPU, 8192
    /// rows, dim 16 to 96).
    ///
    /// - rows: `[trees, rows, dim]`
    /// - nodes: `[trees, rows, picked]`
    /// - returns `[trees, rows, picked, logits]`, 1 logit for binary nodes
    pub fn logits_at(&self, rows: Tensor<3>, nodes: Tensor<3, Int>) -> Tensor<4> {
        let [trees, outputs, dim] = self.weight.dims();
        let per_node = self.logits_per_node();
        if outputs == per_node {
            // Only the root has a level to itself, and every row is there.
            return self.logits(rows);
        }
        if self.weight.is_autodiff() && outputs <= per_node * dim {
            return self.pick_logits(rows, nodes);
        }
        let [_, count, picked] = nodes.dims();
        let chunk = (COPIED_ELEMENTS / (trees * picked * per_node * dim)).clamp(1, count);
        let chunks = (0..count).step_by(chunk).map(|first| {
            let length = chunk.min(count - first);
            let part = nodes.clone().narrow(1, first, length);
            self.pick_functions(rows.clone().narrow(1, first, length), part)
        });
        Tensor::cat(chunks.collect(), 1)
    }

    /// All logits in one matrix product, of which the picked nodes' are kept.
    fn pick_logits(&self, rows: Tensor<3>, nodes: Tensor<3, Int>) -> Tensor<4> {
        let [trees, count, picked] = nodes.dims();
        let per_node = self.logits_per_node();
        let logits = self.logits(rows); // [trees, rows, nodes, logits]
        let index = nodes
            .unsqueeze_dim::<4>(3)
            .expand([trees, count, picked, per_node]);
        logits.gather(2, index)
    }

    /// Only the picked nodes' logits, from their weights copied row by row.
    fn pick_functions(&self, rows: Tensor<3>, nodes: Tensor<3, Int>) -> Tensor<4> {
        let [trees, count, picked] = nodes.dims();
        let [_, outputs, dim] = self.weight.dims();
        let per_node = self.logits_per_node();
        let width = outputs / per_node;
        let first = Tensor::<1, Int>::arange(0..trees as i64, &nodes.device()) * width as i64;
        let index = (nodes + first.reshape([trees, 1, 1])).reshape([trees * count * picked]);
        let weight = self
            .weight
            .clone()
            .reshape([trees * width, per_node * dim])
            .select(0, index.clone())
            .reshape([trees, count, picked * per_node, dim]);
        let bias = self
            .bias
            .clone()
            .reshape([trees * width, per_node])
            .select(0, index)
            .reshape([trees, count, picked, per_node]);
        let products = weight * rows.unsqueeze_dim::<4>(2); // [trees, rows, picked * logits, dim]
        products
            .sum_dim(3)
            .reshape([trees, count, picked, per_node])
            + bias
    }
}

/// At most about this many elements of weights are copied at once.
const COPIED_ELEMENTS: usize = 1 << 24;

/// The child that each node takes: child 1 of a binary node where its logit is at least 0, else the
/// child with the largest logit, ties to the lowest index. Logits that are not numbers give some
/// child.
///
/// - logits: `[trees, rows, nodes, logits]`
/// - returns `[trees, rows, nodes]`
pub(super) fn children(logits: Tensor<4>) -> Tensor<3, Int> {
    if logits.dims()[3] == 1 {
        logits.greater_equal_elem(0.0).int().squeeze_dim(3)
    } else {
        first_maximum(logits).squeeze_dim(3)
    }
}

/// By how much each node decides: `|a|`, or the best child's logit minus the second best's.
///
/// - logits: `[trees, rows, nodes, logits]`
/// - returns `[trees, rows, nodes]`
pub(super) fn margins(logits: Tensor<4>) -> Tensor<3> {
    if logits.dims()[3] == 1 {
        return logits.abs().squeeze_dim(3);
    }
    let best = logits.clone().max_dim(3);
    let at = first_maximum(logits.clone());
    let is_best = counting(logits.dims(), &logits.device()).equal(at.expand(logits.dims()));
    let second = logits.mask_fill(is_best, f32::MIN).max_dim(3);
    (best - second).squeeze_dim(3)
}

/// The terms that each child adds to the margin score: its own logit minus the best child's, or
/// `-ReLU(-S a)`.
///
/// - logits: `[trees, rows, nodes, logits]`
/// - returns `[trees, rows, nodes, branching]`, at most 0
pub(super) fn margin_terms(logits: Tensor<4>) -> Tensor<4> {
    if logits.dims()[3] == 1 {
        let left = relu(logits.clone()).neg();
        let right = relu(logits.neg()).neg();
        Tensor::cat(vec![left, right], 3)
    } else {
        logits.clone() - logits.max_dim(3)
    }
}

/// Position of the maximum along the last axis, the first of several; burn's own may be any of
/// them.
pub(super) fn first_maximum<const D: usize>(values: Tensor<D>) -> Tensor<D, Int> {
    let dims = values.dims();
    let last = dims[D - 1] as i64 - 1;
    let best = values.clone().max_dim(D - 1).expand(dims);
    counting(dims, &values.device())
        .mask_fill(values.lower(best), last)
        .min_dim(D - 1)
}

/// 1 at the given position of the last axis, 0 elsewhere.
///
/// - positions: last axis of length 1
pub(super) fn one_hot<const D: usize>(positions: Tensor<D, Int>, width: usize) -> Tensor<D> {
    let mut dims = positions.dims();
    dims[D - 1] = width;
    let places = counting(dims, &positions.device());
    places.equal(positions.expand(dims)).cast(FloatDType::F32)
}
