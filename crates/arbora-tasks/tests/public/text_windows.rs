//! Windows of tokens.

use arbora_tasks::text::{Corpus, Document, Text, TextConfig, Tokenizer};
use burn::tensor::Device;

#[test]
fn some_batches_are_spread_over_the_whole_part() {
    let corpus = |length: usize| {
        let document = Document {
            name: String::new(),
            text: "x".repeat(length),
        };
        Corpus::from_documents(vec![document]).unwrap()
    };
    let config = TextConfig::default().with_window(2);
    // 21 windows: 10 batches of 2 and one of 1.
    let text = Text::from_parts(&corpus(2), &corpus(42), Tokenizer::bytes(), config).unwrap();
    let device = Device::flex();
    let first = |batches: usize| -> Vec<usize> {
        let batches = text.spread_eval_batches(batches, 2, &device).unwrap();
        batches.map(|batch| batch.indices[0]).collect()
    };
    assert!(first(0).is_empty());
    assert_eq!(first(1), [0]);
    assert_eq!(first(4), [0, 4, 10, 16]);
    assert_eq!(first(11), (0..21).step_by(2).collect::<Vec<_>>());
    assert_eq!(first(99), first(11));
    let targets =
        |batches: usize, skipped: usize| text.spread_targets_after(batches, 2, skipped).unwrap();
    assert_eq!((targets(0, 0), targets(4, 0), targets(4, 1)), (0, 16, 8));
    assert_eq!((targets(99, 0), targets(99, 2)), (42, 0));
}
