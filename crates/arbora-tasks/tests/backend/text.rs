//! Batches of text.

use arbora_tasks::{
    TaskError,
    text::{Corpus, Document, Text, TextBatch, TextConfig, Tokenizer},
};
use arbora_testing::device;

fn corpus(texts: &[&str]) -> Corpus {
    let documents = texts.iter().enumerate().map(|(at, text)| Document {
        name: at.to_string(),
        text: text.to_string(),
    });
    Corpus::from_documents(documents.collect()).unwrap()
}

/// Windows of four bytes, the same text for training and validation.
fn text(texts: &[&str], mix_documents: bool) -> Text {
    let corpus = corpus(texts);
    let config = TextConfig {
        window: 4,
        mix_documents,
        ..TextConfig::default()
    };
    Text::from_parts(&corpus, &corpus, Tokenizer::bytes(), config).unwrap()
}

/// Tokens and targets as bytes, with `.` for an end of document, and `#` for what is ignored.
fn rows(batch: &TextBatch) -> Vec<[String; 2]> {
    let [rows, window] = batch.tokens.dims();
    assert_eq!(batch.targets.dims(), [rows, window]);
    assert_eq!(batch.ignored.dims(), [rows, window]);
    let ignored: Vec<bool> = batch.ignored.clone().into_data().iter::<bool>().collect();
    let [tokens, targets] = [&batch.tokens, &batch.targets].map(|tensor| {
        let ids: Vec<i64> = tensor.clone().into_data().iter::<i64>().collect();
        ids.iter()
            .zip(&ignored)
            .map(|(&id, &ignored)| match (ignored, id) {
                (true, 256) => '#',
                (false, 256) => '.',
                (_, id) => char::from(u8::try_from(id).unwrap()),
            })
            .collect::<Vec<_>>()
    });
    let line = |chars: &[char]| chars.iter().collect();
    let rows = tokens.chunks(window).zip(targets.chunks(window));
    rows.map(|(tokens, targets)| [line(tokens), line(targets)])
        .collect()
}

#[test]
fn windows_have_tokens_of_one_document_and_padding_at_their_ends() {
    let text = text(&["abcdef", "gh", "ijkl"], false);
    let batches: Vec<_> = text.eval_batches(3, &device()).unwrap().collect();
    assert_eq!(batches.len(), 2);
    let found: Vec<_> = batches.iter().flat_map(rows).collect();
    let expected = [
        ["abcd", "bcde"],
        ["ef##", "f.##"],
        ["gh##", "h.##"],
        ["ijkl", "jkl."],
    ];
    assert_eq!(found, expected.map(|row| row.map(String::from)));
    assert_eq!(batches[0].counts, [4, 2, 2]);
    assert_eq!(batches[0].documents, [0, 0, 1]);
    assert_eq!(batches[0].bytes, [1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(batches[1].documents, [2]);
    assert_eq!(batches[1].indices, [3]);
    assert_eq!(
        (text.validation_targets_after(0), text.validation_bytes()),
        (12, 9)
    );
}

#[test]
fn mixed_documents_follow_each_other_in_one_stream() {
    let text = text(&["abcdef", "gh", "ijkl"], true);
    let batch = text.eval_batches(9, &device()).unwrap().next().unwrap();
    let expected = [
        ["abcd", "bcde"],
        ["ef.g", "f.gh"],
        ["h.ij", ".ijk"],
        ["kl##", "l.##"],
    ];
    assert_eq!(rows(&batch), expected.map(|row| row.map(String::from)));
    assert_eq!(batch.documents, [0, 0, 1, 2]);
    assert_eq!(batch.counts, [4, 4, 4, 2]);
    assert_eq!(
        (text.validation_targets_after(0), text.validation_bytes()),
        (14, 11)
    );
}

#[test]
fn a_batch_is_a_function_of_seed_and_step_and_an_epoch_has_every_window() {
    let text = text(&["abcdefghijklmnopqrs", "tuvwxyz"], false);
    let batch = |seed, step| text.batch(seed, step, 7, &device()).unwrap();
    assert_eq!(text.train_windows(), 7);
    assert_eq!(rows(&batch(3, 2)), rows(&batch(3, 2)));
    assert_ne!(batch(3, 0).indices, batch(3, 1).indices);
    assert_ne!(batch(3, 0).indices, batch(4, 0).indices);
    for step in 0..3 {
        let mut indices = batch(3, step).indices;
        indices.sort_unstable();
        assert_eq!(indices, [0, 1, 2, 3, 4, 5, 6]);
    }
    let clone = text.clone();
    assert_eq!(
        rows(&clone.batch(3, 2, 7, &device()).unwrap()),
        rows(&batch(3, 2))
    );
    assert!(matches!(
        text.batch(3, 0, 0, &device()),
        Err(TaskError::EmptyBatch)
    ));
}
