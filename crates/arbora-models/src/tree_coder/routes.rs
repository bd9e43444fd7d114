//! Rows by the node that they are at: items of a batch, or sequences that are decoded.

use super::route::{Decided, Gate};
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::collections::BTreeMap;

/// What rows take along from node to node.
pub(super) trait Carried: Clone {
    /// That of some rows, in increasing order.
    fn select(&self, rows: &[usize]) -> Self;
}

/// The rows at one node.
///
/// They go to its children without meeting those of other groups: the backward pass of a part of a tensor writes the
/// whole tensor, which is then no larger than the parent's.
#[derive(Clone, Debug)]
pub(super) struct Group<S> {
    /// Among the nodes of its depth.
    pub node: usize,
    /// What each row is: an item of the batch, or a sequence of the decoder. Increasing.
    pub members: Vec<usize>,
    /// How much of what the node adds is taken; `None`: all.
    pub gate: Option<Gate>,
    pub state: S,
}

/// All rows of a level: group by group, and within a group by member.
#[derive(Clone, Debug)]
pub(super) struct Routes<S> {
    pub groups: Vec<Group<S>>,
    /// Where decisions are taken.
    pub home: Device,
}

impl<S: Carried> Group<S> {
    pub fn at_root(members: Vec<usize>, state: S) -> Self {
        Self {
            node: 0,
            members,
            gate: None,
            state,
        }
    }

    /// Its parts, each of the rows with the same number, by that number.
    pub fn split(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<(usize, Self)> {
        let mut rows_of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (row, number) in numbers.into_iter().enumerate() {
            rows_of.entry(number).or_default().push(row);
        }
        let parts = rows_of.into_iter();
        parts
            .map(|(number, rows)| (number, self.select(&rows)))
            .collect()
    }

    fn select(&self, rows: &[usize]) -> Self {
        if rows.len() == self.members.len() {
            return self.clone();
        }
        Self {
            node: self.node,
            members: rows.iter().map(|&row| self.members[row]).collect(),
            gate: self.gate.as_ref().map(|gate| gate.select(rows)),
            state: self.state.select(rows),
        }
    }
}

impl<S: Carried> Routes<S> {
    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.groups.iter().map(|group| group.members.len()).sum()
    }

    /// What each row is.
    pub fn members(&self) -> impl Iterator<Item = usize> {
        let groups = self.groups.iter();
        groups.flat_map(|group| group.members.iter().copied())
    }

    /// The node of each row.
    pub fn nodes(&self) -> impl Iterator<Item = usize> {
        let groups = self.groups.iter();
        groups.flat_map(|group| std::iter::repeat_n(group.node, group.members.len()))
    }

    /// Sends every row to a child of its node.
    pub fn send(&mut self, decided: &Decided, branching: usize) {
        let mut start = 0;
        let mut sent = Vec::new();
        for mut group in std::mem::take(&mut self.groups) {
            let rows = start..start + group.members.len();
            start = rows.end;
            let gate = decided.gate.as_ref();
            group.gate = gate.map(|gate| gate.narrow(rows.clone()));
            let parts = group.split(decided.children[rows].iter().copied());
            sent.extend(parts.into_iter().map(|(child, part)| Group {
                node: part.node * branching + child,
                ..part
            }));
        }
        self.groups = sent;
    }
}

/// Some rows of a tensor.
pub(super) fn select<const D: usize>(tensor: &Tensor<D>, rows: &[usize]) -> Tensor<D> {
    tensor.clone().select(0, indices(rows, &tensor.device()))
}

/// Places as an index.
pub(super) fn indices(places: &[usize], device: &Device) -> Tensor<1, Int> {
    let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), device)
}
