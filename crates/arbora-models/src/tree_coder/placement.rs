//! Which device computes which node of a tree.

use arbora_tree::shape::CompleteTree;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// The name of a node: the numbers of the children on the path to it, counted from 0. The root is `root`, its
/// children are `0`, `1`, .., and `0.1` is the second child of the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Vec<usize>);

const ROOT: &str = "root";

impl NodeName {
    /// The name of the node that a path of child numbers leads to; of the root for an empty path.
    pub fn new(path: impl Into<Vec<usize>>) -> Self {
        Self(path.into())
    }

    /// The child numbers from the root.
    pub fn path(&self) -> &[usize] {
        &self.0
    }

    /// The name of a node by its depth and its index at that depth.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn of(tree: &CompleteTree, depth: usize, index: usize) -> Self {
        assert!(
            depth <= tree.height() && index < tree.width(depth),
            "NodeName: of: expected a depth up to {} and an index below its width, got {depth} and {index}",
            tree.height()
        );
        // The node is a leaf of the tree down to its depth.
        Self(CompleteTree::new(tree.factors()[..depth].to_vec()).path(index))
    }

    /// The index of the node at its depth, if the tree has it.
    fn index(&self, tree: &CompleteTree) -> Option<usize> {
        if self.0.len() > tree.height() {
            return None;
        }
        let mut steps = self.0.iter().enumerate();
        steps.try_fold(0, |index, (depth, child)| {
            let branching = tree.branching(depth);
            (*child < branching).then_some(index * branching + child)
        })
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(ROOT);
        }
        for (at, child) in self.0.iter().enumerate() {
            let point = if at == 0 { "" } else { "." };
            write!(f, "{point}{child}")?;
        }
        Ok(())
    }
}

impl FromStr for NodeName {
    type Err = PlacementError;

    fn from_str(text: &str) -> Result<Self, PlacementError> {
        if text == ROOT {
            return Ok(Self::default());
        }
        let children = text.split('.').map(|child| {
            // Not what else `parse` takes, such as a sign.
            let is_number = child.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| child.parse().ok()).flatten()
        });
        let path: Option<Vec<usize>> = children.collect();
        path.map(Self).ok_or_else(|| PlacementError::Name {
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for NodeName {
    type Error = PlacementError;

    fn try_from(text: String) -> Result<Self, PlacementError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.to_string()
    }
}

/// Why nodes cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlacementError {
    /// A text names no node of any tree.
    #[error(
        "{text}: expected the name of a node: root, or the numbers of children from the root, such as 0 or 0.1"
    )]
    Name {
        /// The text.
        text: String,
    },
    /// The tree has no such node.
    #[error(
        "node {node}: the tree has none; it has root and, below it, up to {height} numbers from 0 to {last}, such \
         as {leaf}"
    )]
    UnknownNode {
        /// The name.
        node: NodeName,
        /// Height of the tree.
        height: usize,
        /// The number of a node's last child.
        last: usize,
        /// The name of the last leaf.
        leaf: NodeName,
    },
}

/// Which device computes which nodes. A node without a device of its own is where its nearest ancestor with one
/// is; without such an ancestor it stays where it is.
///
/// A node is its blocks, its selector, and at a leaf the head of its own, if there is one. Embeddings and the head
/// that all leaves share stay where they are: on the device of the tokens, the home of a call.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    devices: BTreeMap<NodeName, Device>,
}

impl Placement {
    /// Everything stays where it is.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places a node and all below it that is not placed itself. The last device given to a node counts.
    #[must_use]
    pub fn with(mut self, node: NodeName, device: Device) -> Self {
        self.devices.insert(node, device);
        self
    }

    /// Whether no node is placed.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The device of a node, its own or its nearest ancestor's.
    pub fn device(&self, node: &NodeName) -> Option<&Device> {
        let path = node.path();
        (0..=path.len())
            .rev()
            .find_map(|length| self.devices.get(&NodeName::new(&path[..length])))
    }

    /// Refuses names that a tree does not have.
    ///
    /// # Errors
    /// [`PlacementError::UnknownNode`] with the first one.
    pub fn check(&self, tree: &CompleteTree) -> Result<(), PlacementError> {
        match self.devices.keys().find(|name| name.index(tree).is_none()) {
            None => Ok(()),
            Some(name) => Err(PlacementError::UnknownNode {
                node: name.clone(),
                height: tree.height(),
                last: match tree.height() {
                    0 => 0,
                    _ => tree.branching(0) - 1,
                },
                leaf: NodeName::of(tree, tree.height(), tree.width(tree.height()) - 1),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_of_a_tree_has_one_name() {
        let tree = CompleteTree::uniform(3, 2);
        let mut seen = std::collections::BTreeSet::new();
        for depth in 0..=2 {
            for index in 0..tree.width(depth) {
                let name = NodeName::of(&tree, depth, index);
                assert_eq!(name.path().len(), depth);
                assert_eq!(name.index(&tree), Some(index));
                assert!(seen.insert(name));
            }
        }
        assert_eq!(seen.len(), tree.nodes());
        // The path of a leaf is the tree's own.
        assert_eq!(NodeName::of(&tree, 2, 7).path(), tree.path(7));
    }
}
