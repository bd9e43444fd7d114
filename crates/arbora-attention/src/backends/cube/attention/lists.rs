//! The rows of each leaf, listed on the device.
//!
//! A unit owns one leaf of one example and head of keys, and reads all leaves of that group. The lists of a side, queries and then
//! keys, are: its rows in the order of their leaves, the leaf of each of those, and where each leaf of each group starts and
//! ends. Rows without a leaf come behind the last one.

use super::*;

/// Lists the rows of a leaf.
#[cube(launch_unchecked)]
fn list_kernel<I: Numeric>(
    leaf: &[I],
    lists: &mut [u32],
    units: usize,
    side: &Side,
    kv_heads: usize,
    leaves: usize,
    #[define(I)] _dtype: ElemType,
) {
    end_past(units);
    let buckets = leaves + 1;
    let (group, mine) = (ABSOLUTE_POS / buckets, ABSOLUTE_POS % buckets);
    let share = side.heads / kv_heads;
    let per_group = side.positions * share;
    let base = group / kv_heads * side.positions * side.heads + group % kv_heads * share;
    let mut slot = group * per_group;
    for at in 0..per_group {
        let row = base + at / share * side.heads + at % share;
        if bucket_of::<I>(leaf[row], leaves) < mine {
            slot += 1;
        }
    }
    let bounds = side.lists + 2 * side.rows + 2 * ABSOLUTE_POS;
    lists[bounds] = u32::cast_from(slot);
    for at in 0..per_group {
        let row = base + at / share * side.heads + at % share;
        if bucket_of::<I>(leaf[row], leaves) == mine {
            lists[side.lists + slot] = u32::cast_from(row);
            lists[side.lists + side.rows + slot] = u32::cast_from(mine);
            slot += 1;
        }
    }
    lists[bounds + 1] = u32::cast_from(slot);
}

/// The leaf, or the number of leaves for a row without one.
#[cube]
fn bucket_of<I: Numeric>(leaf: I, leaves: usize) -> usize {
    let mut bucket = leaves;
    if leaf >= I::from_int(0) {
        let number = position_of::<I>(leaf);
        if number < leaves {
            bucket = number;
        }
    }
    bucket
}

impl Problem {
    /// Lists the rows of both sides.
    pub(super) fn list(&mut self, leaves: [CubeTensor; 2]) {
        let [batch, keys, kv_heads, _] = self.key.shape().dims();
        let units = batch * kv_heads * (self.options.leaves + 1);
        let rows = self.query_rows() + batch * keys * kv_heads;
        self.others = empty(&self.query, [2 * rows + 4 * units], DType::U32);
        for (leaf, side) in leaves.into_iter().zip([self.queries(), self.keys()]) {
            let leaf = into_contiguous(leaf);
            let (leaves, dtype) = (self.options.leaves, element(&leaf));
            // SAFETY: a unit writes the bounds of its own leaf and group, and as many rows as that leaf has, behind those of the
            // leaves before it: all leaves of a group have its rows together. A number that is no leaf counts as none
            // (`bucket_of`).
            unsafe {
                launch!(
                    list_kernel(units, side, kv_heads, leaves, dtype),
                    [leaf, self.others]
                );
            }
        }
    }
}
