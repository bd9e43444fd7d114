//! The copy task on a device.

use arbora_tasks::copy::{CopyConfig, Curriculum, SequenceCopy};
use arbora_testing::{device, values};
use burn::tensor::{Int, Tensor};

fn classes(tensor: Tensor<2, Int>) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

fn tokens(one_hot: Tensor<3>) -> Vec<i64> {
    let [batch, context, _] = one_hot.dims();
    classes(one_hot.argmax(2).reshape([batch, context]))
}

#[test]
fn answers_are_the_context_from_its_end_and_then_the_end_sign() {
    let copy = SequenceCopy::new(CopyConfig {
        length: 12,
        ..CopyConfig::default()
    })
    .unwrap();
    let batch = copy.batch(3, 0, 4, &device()).unwrap();
    assert_eq!(batch.tokens.dims(), [4, 6, 12]);
    assert_eq!(values(batch.tokens.clone().sum_dim(2)), [1.0; 24]);
    assert_eq!(values(batch.queries.clone()), [0.0; 4 * 6 * 12]);
    let (read, asked) = (tokens(batch.tokens), classes(batch.classes));
    for (read, asked) in read.chunks(6).zip(asked.chunks(6)) {
        assert_eq!(read[0], 0, "the start sign");
        assert!(read[1..].iter().all(|token| (2..12).contains(token)));
        let mirrored: Vec<i64> = read[1..].iter().rev().copied().chain([1]).collect();
        assert_eq!(asked, mirrored);
        // Every answer but the end sign lies where the oracle is told that it lies.
        for (query, answer) in copy.answers().into_iter().enumerate().take(5) {
            assert_eq!(asked[query], read[answer]);
        }
    }
}

#[test]
fn batches_repeat_by_seed_and_step_and_differ_from_those_of_evaluation() {
    let copy = SequenceCopy::new(CopyConfig::default()).unwrap();
    let step = |seed, step| classes(copy.batch(seed, step, 2, &device()).unwrap().classes);
    let eval = |seed, index| classes(copy.eval_batch(seed, index, 2, &device()).unwrap().classes);
    assert_eq!(step(1, 5), step(1, 5));
    assert_ne!(step(1, 5), step(1, 6));
    assert_ne!(step(1, 5), step(2, 5));
    assert_ne!(step(1, 5), eval(1, 5));
    assert!(copy.batch(1, 0, 0, &device()).is_err());
}

#[test]
fn a_curriculum_masks_what_takes_no_part_and_keeps_every_answer_reachable() {
    let config = CopyConfig {
        length: 16,
        curriculum: Some(Curriculum { start: 3, steps: 2 }),
        ..CopyConfig::default()
    };
    let copy = SequenceCopy::new(config).unwrap();
    let flags = |mask: Tensor<2, burn::tensor::Bool>| {
        mask.into_data().iter::<bool>().collect::<Vec<bool>>()
    };
    let batch = copy.batch(1, 1, 2, &device()).unwrap();
    let context = flags(batch.context_mask().unwrap());
    let target = flags(batch.target_mask().unwrap());
    assert_eq!(context.iter().filter(|masked| !**masked).count(), 2 * 3);
    for (query, answer) in copy.answers().into_iter().enumerate() {
        assert_eq!(target[query], context[answer]);
    }
    let whole = copy.batch(1, 4, 2, &device()).unwrap();
    assert!(whole.context_mask().is_none() && whole.target_mask().is_none());
    let evaluated = copy.eval_batch(1, 0, 2, &device()).unwrap();
    assert!(
        evaluated.context_mask().is_none(),
        "evaluation is at full length"
    );
}
