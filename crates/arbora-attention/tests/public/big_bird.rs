//! Which blocks of keys a block of queries sees.

use arbora_attention::baselines::BigBirdConfig;
use proptest::prelude::*;

proptest! {
    #[test]
    fn random_blocks_are_distinct_and_neither_global_nor_in_the_window(
        blocks in 1usize..40, reach in 0usize..3, random in 0usize..5, global in 0usize..4,
        seed in any::<u64>(), layer in 0u64..9,
    ) {
        let config = BigBirdConfig { block: 4, window: 2 * reach + 1, random, global, seed, layer };
        for row in 0..blocks {
            let seen = config.key_blocks(row, blocks);
            prop_assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
            prop_assert!(seen.iter().all(|block| *block < blocks));
            if row < global {
                prop_assert_eq!(seen.len(), blocks);
                continue;
            }
            let fixed = (0..blocks).filter(|at| *at < global || row.abs_diff(*at) <= reach);
            let fixed: Vec<usize> = fixed.collect();
            prop_assert!(fixed.iter().all(|block| seen.contains(block)));
            let expected = fixed.len() + random.min(blocks - fixed.len());
            prop_assert_eq!(seen.len(), expected);
            prop_assert!(seen.len() <= config.global + config.window + config.random);
            prop_assert_eq!(seen, config.key_blocks(row, blocks));
        }
    }
}

#[test]
fn every_other_block_is_drawn_about_equally_often() {
    let mut times = [0u32; 12];
    for seed in 0..4000 {
        let config = BigBirdConfig {
            window: 3,
            random: 3,
            global: 1,
            seed,
            ..BigBirdConfig::default()
        };
        for block in config.key_blocks(5, 12) {
            times[block] += 1;
        }
    }
    for (block, times) in times.into_iter().enumerate() {
        // 3 of 8 others; four standard deviations are 122.
        let (expected, allowed) = match block {
            0 | 4..=6 => (4000u32, 0),
            _ => (1500, 122),
        };
        assert!(expected.abs_diff(times) <= allowed, "{block}: {times}");
    }
}

#[test]
fn seeds_and_layers_draw_different_blocks() {
    let draws = |seed, layer| {
        let config = BigBirdConfig {
            seed,
            layer,
            ..BigBirdConfig::default()
        };
        let rows = (2..64).map(|row| config.key_blocks(row, 64));
        rows.collect::<Vec<_>>()
    };
    assert_ne!(draws(0, 0), draws(1, 0));
    assert_ne!(draws(0, 0), draws(0, 1));
}
