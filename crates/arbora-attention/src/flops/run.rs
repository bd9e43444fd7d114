//! What the attention of a model has cost so far.

use super::{AttentionCost, CostShape};
use crate::layers::SelfAttention;
use std::fmt;

/// What the attention of a model has cost so far, layer by layer, beside dense attention of the same sizes.
///
/// ```
/// use arbora_attention::flops::{CostShape, RunCost};
///
/// let shape = CostShape::new(512, 768, 12);
/// let mut run = RunCost::default();
/// run.add(0, "dense", shape.dense(), shape.dense());
/// run.add(1, "tree-fine", shape.tree_fine(&[2, 2], 0.3), shape.dense());
/// assert!((run.core_ratio() - 0.651).abs() < 1e-3);
/// println!("{run}");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunCost {
    layers: Vec<LayerCost>,
}

/// What one layer has cost so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerCost {
    /// The kind of attention last recorded; empty where nothing was.
    pub kind: &'static str,
    /// Its cost.
    pub cost: AttentionCost,
    /// What dense attention would have taken.
    pub dense: AttentionCost,
}

impl RunCost {
    /// Adds the cost of some examples to a layer, counted from 0.
    pub fn add(
        &mut self,
        layer: usize,
        kind: &'static str,
        cost: AttentionCost,
        dense: AttentionCost,
    ) {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, LayerCost::default());
        }
        let total = &mut self.layers[layer];
        total.kind = kind;
        total.cost = total.cost + cost;
        total.dense = total.dense + dense;
    }

    /// Adds one example of a layer.
    ///
    /// - queries, keys: real tokens of the example
    /// - share: of pairs that met in a leaf, averaged over trees, for kinds with leaves: the example's row of the cost ratio
    ///   that the layer reported; `None` counts equally full leaves
    pub fn record(
        &mut self,
        layer: usize,
        attention: &SelfAttention,
        [queries, keys]: [usize; 2],
        share: Option<f64>,
    ) {
        let shape: CostShape = attention.cost_shape(queries, keys);
        let cost = attention.kind.cost(&shape, share);
        self.add(layer, attention.kind.name(), cost, shape.dense());
    }

    /// Per layer.
    pub fn layers(&self) -> &[LayerCost] {
        &self.layers
    }

    /// Over all layers.
    pub fn total(&self) -> AttentionCost {
        self.layers.iter().map(|layer| layer.cost).sum()
    }

    /// Core of all layers as a share of that of dense attention; 1 where nothing was added.
    pub fn core_ratio(&self) -> f64 {
        let dense: AttentionCost = self.layers.iter().map(|layer| layer.dense).sum();
        self.total().core_ratio(&dense)
    }
}

/// One line per layer and one for all: `layer 2, tree-fine: 30.2 % of the core FLOPs of dense attention`.
impl fmt::Display for RunCost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_dense = "of the core FLOPs of dense attention";
        for (at, layer) in self.layers.iter().enumerate() {
            let percent = 100.0 * layer.cost.core_ratio(&layer.dense);
            let (number, kind) = (at + 1, layer.kind);
            writeln!(out, "layer {number}, {kind}: {percent:.1} % {of_dense}")?;
        }
        let percent = 100.0 * self.core_ratio();
        write!(out, "all layers: {percent:.1} % {of_dense}")
    }
}
