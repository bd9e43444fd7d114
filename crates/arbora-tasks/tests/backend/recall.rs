//! Recall and needles on a device.

use arbora_tasks::recall::{Lookup, LookupBatch, NeedleConfig, RecallConfig};
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
    let unasked: Vec<bool> = batch.target_mask.into_data().iter::<bool>().collect();
    let (tokens, classes) = (integers(batch.tokens), integers(batch.classes));
    for example in 0..examples {
        let row = example * length..(example + 1) * length;
        let (tokens, classes) = (&tokens[row.clone()], &classes[row.clone()]);
        let mut asked = 0;
        let mut shown = BTreeMap::new();
        for (place, &unasked) in unasked[row].iter().enumerate() {
            if unasked {
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
