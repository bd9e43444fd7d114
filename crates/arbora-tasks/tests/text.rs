//! Text on the host: tokenizers, what they say of bytes, and what windows cover.

use std::collections::HashSet;
use std::fs;

use arbora_tasks::TaskError;
use arbora_tasks::text::{Corpus, Document, Text, TextConfig, Tokenizer};
use proptest::prelude::*;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const TRAINING: &str = "The whale, the whale! The white whale's wake; a naïve sailor's wail — ah, the sea.\n\
                        The whale, the ship, the white sea. 1851 1851\n\n";

fn trained() -> Tokenizer {
    Tokenizer::train_bpe(280, [TRAINING].into_iter()).unwrap()
}

/// A tokenizer that knows whole words only, with a symbol for unknown ones, limits and padding.
fn words() -> String {
    serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"
        },
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "the": 1, "whale": 4}, "unk_token": "[UNK]"}
    })
    .to_string()
}

#[test]
fn bytes_are_their_own_numbers() {
    let tokenizer = Tokenizer::bytes();
    assert_eq!(
        (tokenizer.vocabulary(), tokenizer.end_of_document()),
        (257, 256)
    );
    let encoded = tokenizer.encode("aé").unwrap();
    assert_eq!(encoded.ids, [97, 0xc3, 0xa9]);
    assert_eq!(encoded.bytes, [1, 1, 1]);
    assert_eq!(tokenizer.decode(&[97, 256, 0xc3, 0xa9]).unwrap(), "aé");
    assert_eq!(
        tokenizer.decode(&[0xa9, 98, 0xc3]).unwrap(),
        "\u{fffd}b\u{fffd}"
    );
}

#[test]
fn training_merges_frequent_pairs_and_repeats_itself() {
    let tokenizer = trained();
    assert_eq!(tokenizer.vocabulary(), 280);
    assert_eq!(tokenizer.encode(" whale").unwrap().bytes, [6]);
    for _ in 0..3 {
        assert_eq!(trained().to_json(), tokenizer.to_json());
        assert_eq!(trained().fingerprint(), tokenizer.fingerprint());
    }
    let fewer = Tokenizer::train_bpe(279, [TRAINING].into_iter()).unwrap();
    assert_eq!(fewer.vocabulary(), 279);
    assert_ne!(fewer.fingerprint(), tokenizer.fingerprint());
    assert_eq!(tokenizer.fingerprint().len(), 64);
    // Pairs that occur once get no symbol, so a short text stays below what is asked for.
    let small = Tokenizer::train_bpe(1000, ["abab"].into_iter()).unwrap();
    assert_eq!(small.vocabulary(), 258);
    let error = Tokenizer::train_bpe(256, ["a"].into_iter()).unwrap_err();
    let TaskError::Config(error) = error else {
        panic!("{error}");
    };
    assert_eq!(
        (error.setting.as_str(), error.got.as_str()),
        ("vocabulary", "256")
    );
}

/// What the library makes of a text by itself.
fn of_the_library(vocabulary: usize, texts: &[&str]) -> String {
    let byte_level = ByteLevel::new(false, false, true);
    let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
    let trainer = BpeTrainer::builder()
        .vocab_size(vocabulary - 1)
        .min_frequency(2)
        .initial_alphabet(alphabet)
        .show_progress(false)
        .build();
    let mut model = tokenizers::Tokenizer::new(BPE::default());
    model
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(byte_level))
        .train(&mut TrainerWrapper::BpeTrainer(trainer), texts.iter())
        .unwrap();
    model.to_string(false).unwrap()
}

/// Letters without spaces, as of genes; always the same.
fn genes(length: usize) -> String {
    let mut state = 1_u32;
    let letter = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ['A', 'C', 'G', 'T'][(state >> 30) as usize]
    };
    (0..length).map(letter).collect()
}

#[test]
fn words_of_up_to_1024_bytes_are_merged_as_the_library_does() {
    let word = genes(1024);
    let texts = [
        TRAINING,
        &format!("{word} {}", genes(500)),
        &" ".repeat(1024),
    ];
    let tokenizer = Tokenizer::train_bpe(300, texts.into_iter()).unwrap();
    assert_eq!(tokenizer.to_json(), of_the_library(300, &texts));
    let longer = format!("{word}A");
    let texts = [TRAINING, &longer];
    let cut = Tokenizer::train_bpe(300, texts.into_iter()).unwrap();
    assert_ne!(cut.to_json(), of_the_library(300, &texts));
}

#[cfg(feature = "sample")]
#[test]
fn the_bundled_book_is_merged_as_the_library_does() {
    let book = Corpus::moby_dick();
    let tokenizer = Tokenizer::train_bpe(512, book.texts()).unwrap();
    let texts: Vec<&str> = book.texts().collect();
    assert_eq!(tokenizer.to_json(), of_the_library(512, &texts));
}

#[test]
fn longer_words_are_cut_in_training_and_in_encoding_and_come_back() {
    // No symbol is longer than a part, and equal parts have equal tokens.
    let letter = "a".repeat(4096);
    let tokenizer = Tokenizer::train_bpe(400, [letter.as_str()].into_iter()).unwrap();
    let whole = tokenizer.encode(&letter).unwrap();
    assert_eq!(whole.bytes, [1024; 4]);
    assert!(!tokenizer.to_json().contains(&"a".repeat(1025)));
    assert_eq!(tokenizer.decode(&whole.ids).unwrap(), letter);

    // Every part but the last ends within a character.
    let text = format!("x{}, the whale. {}", "é中".repeat(3000), genes(5000));
    let tokenizer = Tokenizer::train_bpe(400, [text.as_str()].into_iter()).unwrap();
    let json = tokenizer.to_json();
    assert!(json.contains(".{1,1024}"), "{json}");
    let again = Tokenizer::from_json(&json).unwrap();
    assert_eq!(again.fingerprint(), tokenizer.fingerprint());
    for tokenizer in [tokenizer, again] {
        for text in [&text, TRAINING, &format!("{text}{text}")] {
            let encoded = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&encoded.ids).unwrap(), *text);
            let mut at = 0;
            for (&id, &bytes) in encoded.ids.iter().zip(&encoded.bytes) {
                let part = &text.as_bytes()[at..at + bytes as usize];
                assert_eq!(
                    tokenizer.decode(&[id]).unwrap(),
                    String::from_utf8_lossy(part)
                );
                at += bytes as usize;
            }
            assert_eq!(at, text.len());
        }
    }
}

#[test]
fn a_tokenizer_that_knows_no_longest_word_encodes_as_it_did() {
    let word = genes(3000);
    let json = of_the_library(400, &[&word]);
    let tokenizer = Tokenizer::from_json(&json).unwrap();
    let library: tokenizers::Tokenizer = json.parse().unwrap();
    let expected = library.encode(word.as_str(), false).unwrap();
    assert_eq!(tokenizer.encode(&word).unwrap().ids, expected.get_ids());
    assert_eq!(tokenizer.to_json(), json);
}

#[test]
fn a_saved_tokenizer_comes_back_the_same_from_text_and_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut fingerprints = Vec::new();
    for tokenizer in [
        Tokenizer::bytes(),
        trained(),
        Tokenizer::from_json(&words()).unwrap(),
    ] {
        fs::write(&path, tokenizer.to_json()).unwrap();
        for again in [
            Tokenizer::from_json(&tokenizer.to_json()).unwrap(),
            Tokenizer::from_file(&path).unwrap(),
        ] {
            assert_eq!(again.vocabulary(), tokenizer.vocabulary());
            assert_eq!(again.fingerprint(), tokenizer.fingerprint());
            assert_eq!(
                again.encode(TRAINING).unwrap(),
                tokenizer.encode(TRAINING).unwrap()
            );
        }
        fingerprints.push(tokenizer.fingerprint());
    }
    fingerprints.sort_unstable();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), 3);
}

#[test]
fn a_tokenizer_is_the_same_with_the_ends_of_lines_of_other_systems() {
    let lines = serde_json::from_str::<serde_json::Value>(&words()).unwrap();
    let lines = serde_json::to_string_pretty(&lines).unwrap();
    let others = lines.replace('\n', "\r\n");
    assert_ne!(lines, others);
    let [one, other] =
        [lines, others].map(|json| Tokenizer::from_json(&json).unwrap().fingerprint());
    assert_eq!(one, other);
}

#[test]
fn a_tokenizer_from_a_file_cuts_and_pads_nothing_and_accounts_for_every_byte() {
    let tokenizer = Tokenizer::from_json(&words()).unwrap();
    // The numbers have gaps: the last one counts.
    assert_eq!(
        (tokenizer.vocabulary(), tokenizer.end_of_document()),
        (6, 5)
    );
    let encoded = tokenizer.encode(" The WHALE  naïve whale \n").unwrap();
    assert_eq!(encoded.ids, [1, 4, 0, 4]);
    assert_eq!(encoded.bytes, [4, 6, 8, 8]);
    assert_eq!(tokenizer.decode(&[1, 3, 4, 5]).unwrap(), "the whale");
}

#[test]
fn random_merges_of_a_file_are_turned_off() {
    let json = trained()
        .to_json()
        .replace("\"dropout\":null", "\"dropout\":0.9");
    assert!(json.contains("0.9"));
    let tokenizer = Tokenizer::from_json(&json).unwrap();
    assert_eq!(
        tokenizer.encode(TRAINING).unwrap(),
        trained().encode(TRAINING).unwrap()
    );
    let again = Tokenizer::from_json(&tokenizer.to_json()).unwrap();
    assert_eq!(again.fingerprint(), tokenizer.fingerprint());
}

#[test]
fn templates_of_a_file_neither_double_nor_remove_a_text() {
    let plain = Tokenizer::from_json(&words()).unwrap();
    let piece = serde_json::json!({ "Sequence": { "id": "A", "type_id": 0 } });
    for single in [vec![], vec![piece.clone(), piece.clone()]] {
        let template = serde_json::json!({
            "type": "TemplateProcessing", "single": single, "pair": [piece, piece], "special_tokens": {},
        });
        let json = words().replace(
            "\"post_processor\":null",
            &format!("\"post_processor\":{template}"),
        );
        assert!(json.contains("TemplateProcessing"));
        let tokenizer = Tokenizer::from_json(&json).unwrap();
        let text = "the whale";
        assert_eq!(tokenizer.encode(text).unwrap(), plain.encode(text).unwrap());
    }
}

#[test]
fn numbers_that_name_no_symbol_or_cannot_be_counted_are_refused() {
    let with = |vocabulary: &str| {
        let json = words().replace("{\"[UNK]\":0,\"the\":1,\"whale\":4}", vocabulary);
        assert!(json.contains(vocabulary));
        Tokenizer::from_json(&json)
    };
    with("{\"[UNK]\":0,\"the\":1048575}").unwrap();
    for (vocabulary, problem) in [
        (
            "{\"[UNK]\":0,\"the\":1,\"whale\":1}",
            "\"the\" and \"whale\" have the same number 1",
        ),
        (
            "{\"[UNK]\":0,\"the\":1048576}",
            "\"the\" has the number 1048576: expected numbers below 1048576",
        ),
        (
            "{\"[UNK]\":0,\"the\":4294967295}",
            "\"the\" has the number 4294967295: expected numbers below 1048576",
        ),
    ] {
        let error = with(vocabulary).unwrap_err().to_string();
        assert_eq!(error, format!("not a tokenizer: {problem}"));
    }
}

#[test]
fn what_its_library_panics_over_is_refused() {
    let parts = |vocabulary: &str| {
        format!(
            "{{\"type\":\"BPE\",\"continuing_subword_prefix\":\"######\",\"vocab\":{vocabulary},\"merges\":[[\"a\",\"b\"]]}}"
        )
    };
    let mut json: serde_json::Value = serde_json::from_str(&words()).unwrap();
    json["model"] = serde_json::from_str(&parts("{\"a\":0,\"b\":1,\"ab\":2}")).unwrap();
    let error = Tokenizer::from_json(&json.to_string()).unwrap_err();
    assert!(
        error.to_string().starts_with("not a tokenizer: "),
        "{error}"
    );
    let mut json: serde_json::Value = serde_json::from_str(&words()).unwrap();
    json["pre_tokenizer"] = serde_json::json!({ "type": "FixedLength", "length": 0 });
    let tokenizer = Tokenizer::from_json(&json.to_string()).unwrap();
    let error = tokenizer.encode("the whale").unwrap_err();
    assert!(
        error.to_string().starts_with("the tokenizer cannot encode"),
        "{error}"
    );
}

#[test]
fn damaged_tokenizers_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let json = trained().to_json();
    let merged = json.find("\"merges\":[").unwrap() + "\"merges\":[".len();
    let wrong_merge = format!(
        "{}[\"nothing\",\"known\"],{}",
        &json[..merged],
        &json[merged..]
    );
    for damaged in [
        &json[..json.len() / 2],
        &wrong_merge,
        "{}",
        "",
        "{\"kind\":\"letters\"}",
        &words().replace("{\"[UNK]\":0,\"the\":1,\"whale\":4}", "{}"),
    ] {
        fs::write(&path, damaged).unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err();
        assert!(matches!(&error, TaskError::File { .. }), "{error:?}");
        assert!(
            error
                .to_string()
                .contains("tokenizer.json: not a tokenizer: "),
            "{error}"
        );
    }
    fs::write(&path, b"{\xff}").unwrap();
    assert!(Tokenizer::from_file(&path).is_err());
    fs::write(&path, format!("\u{feff}{json}")).unwrap();
    assert_eq!(Tokenizer::from_file(&path).unwrap().to_json(), json);
    let missing = Tokenizer::from_file(folder.path().join("none")).unwrap_err();
    assert!(matches!(missing, TaskError::Read { .. }));
}

#[test]
#[should_panic(expected = "Tokenizer::decode: ids: expected numbers below 257, got 257")]
fn numbers_beyond_the_vocabulary_are_a_bug_of_the_caller() {
    let _ = Tokenizer::bytes().decode(&[1, 257]);
}

#[test]
fn settings_out_of_range_are_refused() {
    let error = |config: TextConfig| config.check().unwrap_err().to_string();
    let default = TextConfig::default();
    default.check().unwrap();
    assert_eq!(
        error(TextConfig {
            window: 0,
            ..default
        }),
        "window: expected 1 to 1048576, got 0"
    );
    assert_eq!(
        error(TextConfig {
            validation: 1.0,
            ..default
        }),
        "validation: expected more than 0 and less than 1, got 1"
    );
}

#[test]
fn text_of_which_no_token_is_left_is_refused() {
    let documents = |text: &str| {
        let name = "one".into();
        Corpus::from_documents(vec![Document {
            name,
            text: text.into(),
        }])
        .unwrap()
    };
    let tokenizer = Tokenizer::from_json(&words()).unwrap();
    let text = Text::from_parts(
        &documents("the whale"),
        &documents(" \n"),
        tokenizer,
        TextConfig::default(),
    );
    assert_eq!(
        text.unwrap_err().to_string(),
        "the tokenizer gives no token for any document of the validation text"
    );
}

#[cfg(feature = "sample")]
#[test]
fn the_bundled_book_is_split_by_chapters() {
    let book = Corpus::moby_dick();
    let text = Text::new(&book, Tokenizer::bytes(), TextConfig::default()).unwrap();
    let (train, validation) = book.split(0.1).unwrap();
    assert_eq!(
        validation.documents().last().unwrap().name,
        book.documents()[137].name
    );
    let share = validation.bytes() as f64 / book.bytes() as f64;
    assert!((0.1..0.12).contains(&share), "{share}");
    // Every byte but the first of a document is a target, and so is every end of a document.
    assert_eq!(text.validation_targets_after(0), validation.bytes());
    assert_eq!(text.train_targets_after(0), train.bytes());
    assert_eq!(
        text.validation_bytes() as usize,
        validation.bytes() - validation.documents().len()
    );
}

proptest! {
    #[test]
    fn any_text_comes_back_and_its_bytes_add_up(text in "(\\PC|[ \n\tehlwa]){0,60}") {
        for tokenizer in [Tokenizer::bytes(), trained()] {
            let encoded = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(encoded.ids.len(), encoded.bytes.len());
            prop_assert_eq!(encoded.bytes.iter().sum::<u32>() as usize, text.len());
            prop_assert!(encoded.bytes.iter().all(|&bytes| bytes > 0));
            prop_assert_eq!(tokenizer.decode(&encoded.ids).unwrap(), text.clone());
            // Each token's bytes are those of its text.
            let mut at = 0;
            for (&id, &bytes) in encoded.ids.iter().zip(&encoded.bytes) {
                let part = &text.as_bytes()[at..at + bytes as usize];
                prop_assert_eq!(tokenizer.decode(&[id]).unwrap(), String::from_utf8_lossy(part));
                at += bytes as usize;
            }
        }
        let words = Tokenizer::from_json(&words()).unwrap().encode(&text).unwrap();
        let sum = words.bytes.iter().sum::<u32>() as usize;
        prop_assert_eq!(sum, if words.ids.is_empty() { 0 } else { text.len() });
    }

    #[test]
    fn any_tokens_have_a_text(ids in prop::collection::vec(0u32..257, 0..40)) {
        for tokenizer in [Tokenizer::bytes(), trained()] {
            tokenizer.decode(&ids).unwrap();
        }
    }
}
