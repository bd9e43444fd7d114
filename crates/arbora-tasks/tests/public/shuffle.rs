//! Seeded permutations.

use arbora_tasks::shuffle::Shuffle;
use proptest::prelude::*;

fn order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let shuffle = Shuffle::new(len, seed, epoch);
    (0..len).map(|position| shuffle.get(position)).collect()
}

proptest! {
    #[test]
    fn every_element_comes_exactly_once(len in 1usize..400, seed: u64, epoch: u64) {
        let mut order = order(len, seed, epoch);
        order.sort_unstable();
        prop_assert_eq!(order, (0..len).collect::<Vec<_>>());
    }
}

#[test]
fn epochs_and_seeds_have_orders_of_their_own() {
    assert_ne!(order(100, 1, 0), order(100, 1, 1));
    assert_ne!(order(100, 1, 0), order(100, 2, 0));
    assert_eq!(order(100, 1, 0), order(100, 1, 0));
}

#[test]
fn elements_land_on_every_position_about_equally_often() {
    // 6,000 epochs of 5 elements: each cell expects 1,200 with a standard deviation of 31.
    let mut counts = [[0u32; 5]; 5];
    for epoch in 0..6_000 {
        for (position, element) in order(5, 7, epoch).into_iter().enumerate() {
            counts[position][element] += 1;
        }
    }
    for count in counts.as_flattened() {
        assert!((1_040..1_360).contains(count), "counts {counts:?}");
    }
}
