//! Recall and needles on a device.

use arbora_tasks::recall::{Lookup, LookupBatch, NeedleConfig, RecallConfig, Stage};
use arbora_testing::device;
use burn::tensor::{Int, Tensor};
use std::collections::BTreeMap;

fn integers(tensor: Tensor<2, Int>) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

/// Looks every query up in the tokens before it, as a model has to.
fn assert_answers_can_be_looked_up(batch: LookupBatch, keys: i64, queries: usize) {
    let [examples, length] = batch.tokens.dims();
    assert_eq!(batch.classes.dims(), [examples, length]);
    let ignored_targets: Vec<bool> = batch.target_mask.into_data().iter::<bool>().collect();
    let (tokens, classes) = (integers(batch.tokens), integers(batch.classes));
    for example in 0..examples {
        let row = example * length..(example + 1) * length;
        let (tokens, classes) = (&tokens[row.clone()], &classes[row.clone()]);
        let mut asked = 0;
        let mut shown = BTreeMap::new();
        for (place, &ignored_targets) in ignored_targets[row].iter().enumerate() {
            if ignored_targets {
                assert_eq!(classes[place], 0);
                if tokens[place] < keys {
                    shown.insert(tokens[place], tokens[place + 1] - keys);
                }
            } else {
                assert_eq!(shown[&tokens[place]], classes[place]);
                asked += 1;
            }
        }
        assert_eq!(asked, queries);
    }
}

#[test]
fn recall_asks_everywhere_after_the_pairs() {
    let recall = Lookup::recall(RecallConfig {
        length: 24,
        pairs: 5,
        keys: 7,
        values: 4,
        curriculum: Vec::new(),
    })
    .unwrap();
    let batch = recall.batch(3, 0, 4, &device()).unwrap();
    assert_eq!(batch.tokens.dims(), [4, 24]);
    assert_answers_can_be_looked_up(batch, 7, 14);
}

#[test]
fn needles_are_asked_for_at_the_end() {
    let needle = Lookup::needle(NeedleConfig {
        length: 40,
        needles: 3,
        keys: 6,
        values: 5,
        fillers: 9,
        queries: 4,
        curriculum: Vec::new(),
    })
    .unwrap();
    let batch = needle.batch(3, 0, 4, &device()).unwrap();
    assert_answers_can_be_looked_up(batch, 6, 4);
}

#[test]
fn batches_repeat_by_seed_and_step_and_differ_from_those_of_evaluation() {
    let recall = Lookup::recall(RecallConfig::default()).unwrap();
    let step = |seed, step| integers(recall.batch(seed, step, 2, &device()).unwrap().tokens);
    let eval = |seed, index| integers(recall.eval_batch(seed, index, 2, &device()).unwrap().tokens);
    assert_eq!(step(1, 5), step(1, 5));
    assert_ne!(step(1, 5), step(1, 6));
    assert_ne!(step(1, 5), step(2, 5));
    assert_ne!(step(1, 5), eval(1, 5));
    assert_eq!(eval(1, 5), eval(1, 5));
    assert!(recall.batch(1, 0, 0, &device()).is_err());
    let needle = Lookup::needle(NeedleConfig::default()).unwrap();
    let step = |step| integers(needle.batch(1, step, 2, &device()).unwrap().tokens);
    let eval = |index| integers(needle.eval_batch(1, index, 2, &device()).unwrap().tokens);
    assert_eq!(step(2), step(2));
    assert_ne!(step(2), eval(2));
    assert!(needle.eval_batch(1, 0, 0, &device()).is_err());
}

#[test]
fn a_curriculum_trains_on_shorter_sequences_first_and_evaluates_whole_ones() {
    let curriculum = vec![
        Stage {
            length: 10,
            steps: 2,
        },
        Stage {
            length: 20,
            steps: 1,
        },
    ];
    let recall = Lookup::recall(RecallConfig {
        length: 40,
        pairs: 12,
        keys: 14,
        values: 4,
        curriculum: curriculum.clone(),
    })
    .unwrap();
    for (step, shape, queries) in [
        (0, [8, 10], 4),
        (1, [8, 10], 4),
        (2, [4, 20], 8),
        (3, [2, 40], 16),
    ] {
        let batch = recall.batch(3, step, 2, &device()).unwrap();
        assert_eq!(batch.tokens.dims(), shape, "step {step}");
        assert_answers_can_be_looked_up(batch, 14, queries);
    }
    let whole = recall.eval_batch(3, 0, 2, &device()).unwrap();
    assert_eq!(whole.tokens.dims(), [2, 40]);
    let needle = Lookup::needle(NeedleConfig {
        length: 40,
        needles: 3,
        keys: 6,
        values: 5,
        fillers: 9,
        queries: 4,
        curriculum,
    });
    assert_answers_can_be_looked_up(needle.unwrap().batch(3, 0, 2, &device()).unwrap(), 6, 4);
}
