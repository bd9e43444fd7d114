//! Text that is shown while it grows: what was shown is the beginning of what it becomes.

use arbora_tasks::text::{DecodeStream, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

const TRAINING: &str = "the whale's wake; the whale, the sea. naïve naïve 中文 中文 the end";

/// A `tokenizer.json`.
fn file(model: Value, normalizer: Value, pre_tokenizer: Value, decoder: Value) -> Tokenizer {
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [
            {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
        ],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": decoder, "model": model,
    });
    Tokenizer::from_json(&json.to_string()).unwrap()
}

/// Symbols with their numbers from 0, the unknown one first and every byte next.
fn vocabulary(symbols: &[&str]) -> Vec<String> {
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let symbols = symbols.iter().map(ToString::to_string);
    ["<unk>".to_owned()]
        .into_iter()
        .chain(bytes)
        .chain(symbols)
        .collect()
}

fn numbered(symbols: &[&str]) -> Value {
    let symbols = vocabulary(symbols).into_iter().enumerate();
    symbols
        .map(|(number, symbol)| (symbol, json!(number)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

const PIECES: [&str; 11] = [
    "▁", "t", "h", "e", "th", "the", "▁the", ".", "▁'s", "w▁", "é",
];

/// Byte-pair encoding with a byte for what is unknown.
fn byte_fallback(normalizer: Value, decoder: Value) -> Tokenizer {
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": numbered(&PIECES), "merges": ["t h", "th e", "▁ the"],
    });
    file(model, normalizer, Value::Null, decoder)
}

fn unigram(decoder: Value) -> Tokenizer {
    let pieces = vocabulary(&PIECES).into_iter();
    let vocab: Vec<_> = pieces.map(|piece| json!([piece, -1.0])).collect();
    let model = json!({ "type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": true });
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    file(model, Value::Null, metaspace, decoder)
}

fn word_piece(decoder: Value) -> Tokenizer {
    let model = json!({
        "type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": numbered(&["the", "##the", "##e", "t", "##h", "do not", "n't", ".", "##.", "'s", "!"]),
    });
    file(
        model,
        json!({"type": "Lowercase"}),
        json!({"type": "BertPreTokenizer"}),
        decoder,
    )
}

fn word_level(decoder: Value) -> Tokenizer {
    let model = json!({
        "type": "WordLevel", "unk_token": "<unk>",
        "vocab": numbered(&["the", "end", "Ġthe", "é", "<pad>", "|", ".", " "]),
    });
    file(
        model,
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "Whitespace"}),
        decoder,
    )
}

/// Byte-pair encoding whose words end with `</w>`.
fn suffixes(decoder: Value) -> Tokenizer {
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": numbered(&["t", "h", "e", "e</w>", "th", "the</w>", "</w>", "</w>e", ".</w>"]),
        "merges": ["t h", "th e</w>"],
    });
    file(
        model,
        Value::Null,
        json!({"type": "WhitespaceSplit"}),
        decoder,
    )
}

/// Tokenizers whose text is certain soon, as most people's files are.
fn prompt_ones() -> Vec<(&'static str, Tokenizer)> {
    let spaces = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
    let marks = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let (bytes, fuse) = (json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" }));
    let strip = |start: usize, stop: usize| json!({ "type": "Strip", "content": " ", "start": start, "stop": stop });
    let steps = |steps: &[&Value]| json!({ "type": "Sequence", "decoders": steps });
    let prepend = json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, marks] });
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let pieces = |cleanup: bool| json!({ "type": "WordPiece", "prefix": "##", "cleanup": cleanup });
    let suffix = json!({ "type": "BPEDecoder", "suffix": "</w>" });
    vec![
        ("bytes", Tokenizer::bytes()),
        (
            "trained",
            Tokenizer::train_bpe(280, [TRAINING].into_iter()).unwrap(),
        ),
        (
            "byte fallback",
            byte_fallback(marks.clone(), steps(&[&spaces, &bytes, &fuse])),
        ),
        (
            "and strip",
            byte_fallback(
                prepend.clone(),
                steps(&[&spaces, &bytes, &fuse, &strip(1, 0)]),
            ),
        ),
        (
            "and strip both",
            byte_fallback(prepend, steps(&[&spaces, &bytes, &fuse, &strip(1, 1)])),
        ),
        (
            "without fuse",
            byte_fallback(marks, steps(&[&bytes, &spaces])),
        ),
        ("unigram", unigram(metaspace.clone())),
        ("unigram of bytes", unigram(steps(&[&bytes, &metaspace]))),
        ("word pieces", word_piece(pieces(false))),
        ("clean word pieces", word_piece(pieces(true))),
        ("words", word_level(Value::Null)),
        (
            "words with a decoder",
            word_level(json!({ "type": "Fuse" })),
        ),
        (
            "words of bytes",
            word_level(
                json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true }),
            ),
        ),
        ("suffixes", suffixes(suffix.clone())),
        (
            "stripped suffixes",
            suffixes(steps(&[&suffix, &strip(0, 1)])),
        ),
    ]
}

/// Tokenizers whose text the last token may still change as a whole.
fn late_ones() -> Vec<(&'static str, Tokenizer)> {
    let (bytes, fuse) = (json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" }));
    let steps = |steps: &[&Value]| json!({ "type": "Sequence", "decoders": steps });
    let regex =
        json!({ "type": "Replace", "pattern": { "Regex": "t.*e$|^.*\\.$" }, "content": "!" });
    let pieces = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    let suffix = json!({ "type": "BPEDecoder", "suffix": "</w>" });
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    let ctc = json!({ "type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true });
    vec![
        (
            "fused and replaced",
            byte_fallback(Value::Null, steps(&[&bytes, &fuse, &regex])),
        ),
        ("fused and cleaned", word_piece(steps(&[&fuse, &pieces]))),
        ("fused bytes", word_level(steps(&[&fuse, &level]))),
        ("fused and doubled", word_level(steps(&[&fuse, &bytes]))),
        ("fused suffixes", suffixes(steps(&[&fuse, &suffix]))),
        ("suffixes and replaced", suffixes(steps(&[&suffix, &regex]))),
        ("doubled", word_level(ctc)),
    ]
}

#[test]
fn readable_text_is_certain_with_its_token() {
    let stops = ["END".to_owned()];
    for (name, tokenizer) in prompt_ones() {
        let ids = |text: &str| tokenizer.encode(text).unwrap().ids;
        let mut text = DecodeStream::new(&tokenizer, &ids("the"), &stops).unwrap();
        for token in ids(" the the thethe") {
            text.push(token);
            let whole = text.whole().unwrap().text;
            assert_eq!(
                text.stable_text().unwrap().trim_end(),
                whole.trim_end(),
                "{name}"
            );
        }
        assert!(text.whole().unwrap().text.len() > "thethe".len(), "{name}");
    }
}

#[test]
fn no_tokens_have_no_text() {
    for (name, tokenizer) in prompt_ones().into_iter().chain(late_ones()) {
        for ids in [&[][..], &[tokenizer.end_of_document()]] {
            assert_eq!(tokenizer.decode(ids).unwrap(), "", "{name}");
            let text = DecodeStream::new(&tokenizer, ids, &[]).unwrap();
            assert_eq!(text.stable_text().unwrap(), "", "{name}");
            assert_eq!(text.whole().unwrap().text, "", "{name}");
        }
    }
}

#[test]
fn text_goes_on_from_its_prompt_as_if_it_were_one() {
    for (name, tokenizer) in prompt_ones() {
        let ids = |text: &str| tokenizer.encode(text).unwrap().ids;
        let (prompt, new) = (ids("the"), ids(" the the"));
        let decoded = |ids: &[u32]| tokenizer.decode(ids).unwrap();
        let mut text = DecodeStream::new(&tokenizer, &prompt, &[]).unwrap();
        new.iter().for_each(|&token| text.push(token));
        let whole = format!("{}{}", decoded(&prompt), text.whole().unwrap().text);
        assert_eq!(whole, decoded(&[prompt, new].concat()), "{name}");
    }
}

#[test]
fn bytes_of_the_model_do_not_change_the_prompt() {
    let mut tried = 0;
    for (name, tokenizer) in prompt_ones() {
        if !name.contains("byte") {
            continue;
        }
        // The last byte of a character, alone or as one too many.
        let ids = tokenizer.encode("the 中").unwrap().ids;
        let Some(&last) = ids
            .last()
            .filter(|_| tokenizer.decode(&ids).unwrap().ends_with('中'))
        else {
            continue;
        };
        let mut text = DecodeStream::new(&tokenizer, &ids, &[]).unwrap();
        text.push(last);
        assert_eq!(text.whole().unwrap().text, "\u{fffd}", "{name}");
        assert_eq!(text.stable_text().unwrap(), "", "{name}");
        tried += 1;
    }
    // The vocabulary of "words of bytes" has no such character.
    assert_eq!(tried, 3);
}

#[test]
fn a_run_of_bytes_is_held_back_until_it_is_over() {
    let (_, tokenizer) = prompt_ones().swap_remove(2);
    let byte = |byte: u32| byte + 1;
    let the = tokenizer.encode("the").unwrap().ids;
    for (run, expected) in [
        (&[0x41, 0x42][..], "AB"),
        (&[0xc3, 0xa9], "é"),
        (&[0x41, 0x42, 0xff], "\u{fffd}\u{fffd}\u{fffd}"),
    ] {
        let mut text = DecodeStream::new(&tokenizer, &the, &[]).unwrap();
        for &one in run {
            text.push(byte(one));
            assert_eq!(text.stable_text().unwrap(), "");
        }
        text.push(the[0]);
        assert_eq!(text.stable_text().unwrap(), format!("{expected}the"));
    }
}

#[test]
fn numbers_are_those_of_the_tokens_before_a_stop() {
    let bytes = Tokenizer::bytes();
    let ids = |text: &str| bytes.encode(text).unwrap().ids;
    let whole = |stop: &str| {
        let stops = [stop.to_owned()];
        let mut text = DecodeStream::new(&bytes, &ids("x"), &stops).unwrap();
        ids("the énd")
            .into_iter()
            .for_each(|token| text.push(token));
        let whole = text.whole().unwrap();
        (whole.text, whole.tokens, whole.is_stopped)
    };
    assert_eq!(whole("énd"), ("the ".into(), 4, true));
    assert_eq!(whole("nd"), ("the é".into(), 6, true));
    assert_eq!(whole("the"), (String::new(), 0, true));
    assert_eq!(whole(""), (String::new(), 0, true));
    assert_eq!(whole("End"), ("the énd".into(), 8, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_was_certain_is_the_beginning_of_the_text_forever(
        written in "[the .é中!]{0,6}",
        half in prop::collection::vec(any::<u32>(), 0..4),
        new in prop::collection::vec((any::<bool>(), any::<u32>()), 1..24),
        stops in prop::collection::vec("[the .é\u{fffd}]{1,3}", 0..3),
    ) {
        let mut tried = 0;
        for (name, tokenizer) in prompt_ones().into_iter().chain(late_ones()) {
            let vocabulary = tokenizer.vocabulary() as u32;
            // Half of all tokens are readable, for whatever a decoder does with text.
            let token = |(readable, number): &(bool, u32)| if *readable && vocabulary > 257 { 257 + number % (vocabulary - 257) } else { number % vocabulary };
            let mut prompt = tokenizer.encode(&written).unwrap().ids;
            prompt.extend(half.iter().map(|number| number % vocabulary));
            // A few decoders of the library fail over a few tokens: at most two here.
            let Ok(mut text) = DecodeStream::new(&tokenizer, &prompt, &stops) else {
                continue;
            };
            let mut certain: Vec<String> = Vec::new();
            for one in &new {
                text.push(token(one));
                let (Ok(now), Ok(whole)) = (text.stable_text(), text.whole()) else {
                    break;
                };
                certain.push(now);
                prop_assert!(whole.tokens <= new.len());
                for earlier in &certain {
                    prop_assert!(
                        whole.text.starts_with(earlier.as_str()),
                        "{name}: {earlier:?} became {:?}", whole.text
                    );
                }
                let last = certain.len() - 1;
                let grows = certain[last].starts_with(&certain[last.saturating_sub(1)]);
                prop_assert!(grows, "{}: {:?}", name, certain);
                let stop = stops.iter().find(|stop| whole.text.contains(stop.as_str()));
                prop_assert_eq!(stop, None, "{}: {:?}", name, &whole.text);
            }
            tried += usize::from(!certain.is_empty());
        }
        prop_assert!(tried >= 20, "{tried}");
    }
}

#[test]
fn what_may_become_a_stop_or_a_character_is_held_back() {
    let bytes = Tokenizer::bytes();
    let stops = ["\n\n", "END", "early", "late", "ly and late"].map(String::from);
    let certain = |text: &[u8], stops: &[String]| {
        let mut continuation = DecodeStream::new(&bytes, &[], stops).unwrap();
        text.iter().for_each(|&byte| continuation.push(byte.into()));
        let certain = continuation.stable_text().unwrap();
        assert!(continuation.whole().unwrap().text.starts_with(&certain));
        certain
    };
    for (text, expected) in [
        (&b"abc"[..], "abc"),
        (b"abc\n", "abc"),
        (b"abc\nd", "abc\nd"),
        (b"abc\n\nd", "abc"),
        (b"abcEN", "abc"),
        (b"abcENd", "abcENd"),
        (b"abcEND and END", "abc"),
        (b"an early and a late one", "an "),
        (b"unduly and late", "undu"),
        // The stop that is there is not the first one, if "ly and late" is.
        (b"unduly and lat", "undu"),
        (b"ab\xc3", "ab"),
        (b"ab\xff", "ab"),
        (b"ab\xff.", "ab\u{fffd}."),
        ("é".as_bytes(), "é"),
    ] {
        assert_eq!(certain(text, &stops), expected, "{text:?}");
    }
    assert_eq!(certain(b"ab\n", &[]), "ab\n");
    let nested = ["cd", "abcde"].map(String::from);
    assert_eq!(certain(b".abcd", &nested), ".");
    assert_eq!(certain(b".abcdf", &nested), ".ab");
    assert_eq!(certain(b"ab", &[String::new()]), "");
}
