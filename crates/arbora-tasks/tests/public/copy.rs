//! The copy task.

use arbora_tasks::copy::{CopyConfig, Curriculum, SequenceCopy};
use burn::tensor::Device;

fn config(length: usize) -> CopyConfig {
    CopyConfig::default().with_length(length)
}

#[test]
fn a_curriculum_doubles_until_the_length_is_whole() {
    let config = CopyConfig {
        curriculum: Some(Curriculum {
            start: 8,
            steps: 10,
        }),
        ..config(100)
    };
    let task = SequenceCopy::new(config).unwrap();
    let lengths = [0, 9, 10, 25, 30, u64::MAX].map(|step| {
        let batch = task.batch(0, step, 1, &Device::flex());
        batch.unwrap().active_tokens
    });
    assert_eq!(lengths, [8, 8, 16, 32, 50, 50]);
}

#[test]
fn lengths_that_cannot_be_halved_and_empty_curricula_are_refused() {
    let refusal = |config: CopyConfig| config.check().unwrap_err().to_string();
    for length in [0, 2, 7] {
        let message = refusal(config(length));
        assert!(message.starts_with("length: expected an even"), "{message}");
    }
    let curriculum = |start, steps| CopyConfig {
        curriculum: Some(Curriculum { start, steps }),
        ..config(8)
    };
    assert!(refusal(curriculum(1, 5)).starts_with("curriculum.start"));
    assert!(refusal(curriculum(2, 0)).starts_with("curriculum.steps"));
    assert!(curriculum(2, 1).check().is_ok());
}
