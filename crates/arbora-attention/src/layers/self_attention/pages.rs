//! Which page holds which keys: bookkeeping on the host.

use arbora_tree::shape::CompleteTree;
use std::collections::BTreeSet;

/// The pages of every leaf, per example and key head.
#[derive(Clone, Debug)]
pub(super) struct LeafPages {
    kv_heads: usize,
    shape: CompleteTree,
    page: usize,
    /// `[batch, kv_heads, leaves]`
    leaves: Vec<Leaf>,
    pages: usize,
}

/// What one leaf holds.
#[derive(Clone, Debug, Default)]
struct Leaf {
    /// Indices of its pages, filled in order.
    pages: Vec<usize>,
    keys: usize,
}

/// A page to read.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    pub index: usize,
    pub leaf: i64,
    /// Keys on it.
    pub keys: usize,
}

impl LeafPages {
    /// - page: keys of a page
    pub fn new(batch: usize, kv_heads: usize, shape: CompleteTree, page: usize) -> Self {
        let leaves = vec![Leaf::default(); batch * kv_heads * shape.leaves()];
        Self {
            kv_heads,
            shape,
            page,
            leaves,
            pages: 0,
        }
    }

    /// The shape of the trees that keys are routed by.
    pub fn shape(&self) -> &CompleteTree {
        &self.shape
    }

    /// The pages of some examples. Those of others stay where they are, and nothing reads them until
    /// [`compact`](Self::compact) leaves them out.
    pub fn select(&self, rows: &[usize]) -> Self {
        let of_example = self.kv_heads * self.shape.leaves();
        Self {
            leaves: rows
                .iter()
                .flat_map(|row| &self.leaves[row * of_example..(row + 1) * of_example])
                .cloned()
                .collect(),
            shape: self.shape.clone(),
            ..*self
        }
    }

    /// Number of pages, those of examples that were not selected included.
    pub fn capacity(&self) -> usize {
        self.pages
    }

    /// Number of pages that are read.
    pub fn used(&self) -> usize {
        self.leaves.iter().map(|leaf| leaf.pages.len()).sum()
    }

    /// Renumbers the pages in use, without gaps. Returns the old index of each.
    pub fn compact(&mut self) -> Vec<usize> {
        let mut old = Vec::with_capacity(self.used());
        for page in self.leaves.iter_mut().flat_map(|leaf| &mut leaf.pages) {
            let index = old.len();
            old.push(std::mem::replace(page, index));
        }
        self.pages = old.len();
        old
    }

    /// Takes in one more key of a leaf; the place where it is stored.
    pub fn append(&mut self, example: usize, head: usize, leaf: i64) -> usize {
        let first = self.first(example, head);
        let leaf = &mut self.leaves[first + leaf as usize];
        if leaf.keys == leaf.pages.len() * self.page {
            leaf.pages.push(self.pages);
            self.pages += 1;
        }
        let place = leaf.pages[leaf.keys / self.page] * self.page + leaf.keys % self.page;
        leaf.keys += 1;
        place
    }

    /// The pages of the past that queries need.
    ///
    /// - queries: the position of each among the tokens of the call, and its leaf
    /// - fresh: leaves of the keys of the call, of which a query sees those up to its own token
    /// - needs_ancestors: whether a query whose leaf has neither old nor fresh keys needs those under the deepest
    ///   ancestor that has
    pub fn needed(
        &self,
        example: usize,
        head: usize,
        queries: impl Iterator<Item = (usize, i64)>,
        fresh: &[i64],
        needs_ancestors: bool,
    ) -> Vec<Page> {
        let first = self.first(example, head);
        let held = |leaf: usize| self.leaves[first + leaf].keys;
        let mut wanted = BTreeSet::new();
        for (token, leaf) in queries {
            let leaf = leaf as usize;
            let seen = &fresh[..=token];
            for depth in (0..=self.shape.height()).rev() {
                let below = self.shape.leaves() / self.shape.width(depth);
                let node = leaf / below;
                let under = node * below..(node + 1) * below;
                let is_answered = under.clone().any(|leaf| held(leaf) > 0)
                    || seen.iter().any(|leaf| under.contains(&(*leaf as usize)));
                wanted.extend(under.filter(|leaf| held(*leaf) > 0));
                if is_answered || !needs_ancestors {
                    break;
                }
            }
        }
        let mut needed = Vec::new();
        for at in wanted {
            let leaf = &self.leaves[first + at];
            for (place, index) in leaf.pages.iter().enumerate() {
                needed.push(Page {
                    index: *index,
                    leaf: at as i64,
                    keys: (leaf.keys - place * self.page).min(self.page),
                });
            }
        }
        needed
    }

    fn first(&self, example: usize, head: usize) -> usize {
        (example * self.kv_heads + head) * self.shape.leaves()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> LeafPages {
        LeafPages::new(1, 2, CompleteTree::new(vec![2, 2]), 2)
    }

    fn read(
        pages: &LeafPages,
        leaf: i64,
        fresh: &[i64],
        needs_ancestors: bool,
    ) -> Vec<(usize, i64, usize)> {
        let needed = pages.needed(0, 1, [(0, leaf)].into_iter(), fresh, needs_ancestors);
        let of = |page: &Page| (page.index, page.leaf, page.keys);
        needed.iter().map(of).collect()
    }

    #[test]
    fn keys_of_a_leaf_fill_its_pages_in_order() {
        let mut pages = pages();
        let places: Vec<usize> = [3, 0, 3, 3, 0]
            .map(|leaf| pages.append(0, 1, leaf))
            .to_vec();
        assert_eq!(places, [0, 2, 1, 4, 3]);
        assert_eq!(pages.capacity(), 3);
        assert_eq!(read(&pages, 3, &[0], false), [(0, 3, 2), (2, 3, 1)]);
        assert_eq!(read(&pages, 0, &[0], false), [(1, 0, 2)]);
    }

    #[test]
    fn pages_of_the_examples_that_are_left_close_up() {
        let mut both = LeafPages::new(2, 1, CompleteTree::new(vec![2]), 2);
        // Pages 0 and 3 are of the first example, 1, 2 and 4 of the second.
        for (example, leaf) in [(0, 0), (1, 1), (1, 0), (0, 1), (1, 0), (1, 0)] {
            both.append(example, 0, leaf);
        }
        let mut one = both.select(&[1]);
        assert_eq!((one.capacity(), one.used()), (5, 3));
        assert_eq!(one.compact(), [2, 4, 1]);
        assert_eq!((one.capacity(), one.used()), (3, 3));
        // The half-filled page of leaf 0 is filled up, and the next one is new.
        assert_eq!(one.append(0, 0, 0), 3);
        assert_eq!(one.append(0, 0, 0), 6);
        assert_eq!(one.append(0, 0, 1), 5);
    }

    #[test]
    fn a_query_of_an_empty_leaf_reads_what_its_deepest_ancestor_with_keys_holds() {
        let mut pages = pages();
        assert_eq!(read(&pages, 1, &[3], true), []);
        pages.append(0, 1, 3);
        pages.append(0, 1, 0);
        assert_eq!(read(&pages, 1, &[3], true), [(1, 0, 1)]);
        // Its own leaf is not empty any more.
        assert_eq!(read(&pages, 1, &[1], true), []);
        assert_eq!(read(&pages, 1, &[3], false), []);
        // Under the ancestor is a fresh key, and an old one.
        assert_eq!(read(&pages, 2, &[2], true), []);
        assert_eq!(read(&pages, 2, &[0], true), [(0, 3, 1)]);
    }
}
