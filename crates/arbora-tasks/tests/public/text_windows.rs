//! Windows of tokens.

use arbora_tasks::text::{Corpus, Document, Text, TextConfig, Tokenizer};
use burn::tensor::{Device, Int, Tensor};
use proptest::prelude::*;

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

/// Rows of numbers without their padding.
fn rows(tensor: Tensor<2, Int>, counts: &[usize]) -> Vec<Vec<i64>> {
    let [_, width] = tensor.dims();
    let numbers: Vec<i64> = tensor.into_data().iter::<i64>().collect();
    let rows = numbers.chunks(width).zip(counts);
    rows.map(|(row, &count)| row[..count].to_vec()).collect()
}

proptest! {
    #[test]
    fn every_token_but_first_ones_is_a_target_exactly_once(
        texts in prop::collection::vec(".{1,20}", 1..6),
        window in 1usize..9,
        mix_documents: bool,
    ) {
        let documents = texts.iter().map(|text| Document {
            name: String::new(),
            text: text.clone(),
        });
        let corpus = Corpus::from_documents(documents.collect()).unwrap();
        let config = TextConfig { window, mix_documents, ..Default::default() };
        let text = Text::from_parts(&corpus, &corpus, Tokenizer::bytes(), config).unwrap();

        // Of each stream, the tokens with their documents.
        let mut streams: Vec<Vec<(i64, usize)>> = Vec::new();
        for (document, text) in texts.iter().enumerate() {
            if !mix_documents || document == 0 {
                streams.push(Vec::new());
            }
            let tokens = text.bytes().map(i64::from).chain([256]);
            streams.last_mut().unwrap().extend(tokens.map(|token| (token, document)));
        }
        let mut expected = Vec::new();
        for stream in &streams {
            for first in (0..stream.len() - 1).step_by(window) {
                let last = (first + window).min(stream.len() - 1);
                let tokens = |at: std::ops::Range<usize>| stream[at].iter().map(|one| one.0).collect::<Vec<_>>();
                expected.push((tokens(first..last), tokens(first + 1..last + 1), stream[first].1));
            }
        }
        let mut found = Vec::new();
        for batch in text.eval_batches(3, &Device::flex()).unwrap() {
            let (tokens, targets) = (rows(batch.tokens, &batch.counts), rows(batch.targets, &batch.counts));
            found.extend(tokens.into_iter().zip(targets).zip(batch.documents).map(|((one, next), of)| (one, next, of)));
        }
        prop_assert_eq!(found, expected.clone());
        for skipped in 0..=window {
            let after = expected.iter().map(|(_, targets, _)| targets.len().saturating_sub(skipped));
            prop_assert_eq!(text.validation_targets_after(skipped), after.sum::<usize>());
        }
    }
}
