//! Sequences that are decoded together.

use super::items::indices;
use super::route::{Decided, Gate};
use arbora_attention::AttentionCache;
use burn::tensor::{Device, Int, Tensor};
use std::collections::BTreeMap;

/// Sequences of one length that took the same route so far.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Which sequences, one per row of what follows.
    pub members: Vec<usize>,
    /// Tokens of each so far.
    pub tokens: usize,
    /// Where they are, at each depth that is decided; the root is.
    pub path: Vec<usize>,
    /// The gates of the node at each depth below the root, of the members; `None`: all of what it adds is taken.
    pub gates: Vec<Option<Gate>>,
    /// Of the blocks of the nodes that they were at, by place in level order.
    pub caches: BTreeMap<usize, Vec<AttentionCache>>,
    /// Sums of hidden states over the tokens of the present chunk after each depth but the last, `[members,
    /// d_model]`.
    pub sums: Vec<Tensor<2>>,
}

impl Group {
    /// Of sequences without tokens.
    pub fn new(members: Vec<usize>) -> Self {
        Self {
            members,
            tokens: 0,
            path: vec![0],
            gates: Vec::new(),
            caches: BTreeMap::new(),
            sums: Vec::new(),
        }
    }

    /// The members at some places, in increasing order.
    pub fn take(&self, rows: &[usize]) -> Self {
        if rows.len() == self.members.len() {
            return self.clone();
        }
        let gates = self.gates.iter().map(Option::as_ref);
        let gates = gates.map(|gate| gate.map(|gate| gate.select(rows)));
        let caches = self.caches.iter().map(|(place, caches)| {
            let caches = caches.iter().map(|cache| cache.select(rows)).collect();
            (*place, caches)
        });
        Self {
            members: rows.iter().map(|&row| self.members[row]).collect(),
            tokens: self.tokens,
            path: self.path.clone(),
            gates: gates.collect(),
            caches: caches.collect(),
            sums: self.sums.iter().map(|sum| selected(sum, rows)).collect(),
        }
    }

    /// The members that go to each child, with their places.
    pub fn part(self, decided: Decided, branching: usize) -> Vec<(Self, Vec<usize>)> {
        let rows_of = places_of(decided.children.iter().copied());
        let parts = rows_of.into_iter().map(|(child, rows)| {
            let mut part = self.take(&rows);
            let node = part.path[part.path.len() - 1] * branching + child;
            part.path.push(node);
            let gate = decided.gate.as_ref();
            part.gates.push(gate.map(|gate| gate.select(&rows)));
            (part, rows)
        });
        parts.collect()
    }
}

/// Places of each number, in the order of numbers.
pub(super) fn places_of(numbers: impl Iterator<Item = usize>) -> BTreeMap<usize, Vec<usize>> {
    let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, number) in numbers.enumerate() {
        places.entry(number).or_default().push(place);
    }
    places
}

/// Some rows of a tensor.
fn selected<const D: usize>(tensor: &Tensor<D>, rows: &[usize]) -> Tensor<D> {
    tensor.clone().select(0, places(rows, &tensor.device()))
}

/// Places as an index.
pub(super) fn places(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    indices(rows.iter().map(|&row| row as i64).collect(), device)
}
