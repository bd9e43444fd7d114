//! Continuing text and looking into language models.
#![cfg(feature = "flex")]

mod common;

use common::{Place, parse, stderr};
use serde_json::{Value, json};
use std::fs;

/// A place with the trained run `out`, on sequences of 24 bytes.
fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("texts")).unwrap();
    for name in ["one", "two", "three"] {
        let text = format!("All about {name}, café. ").repeat(9);
        fs::write(place.path(format!("texts/{name}.txt")), text).unwrap();
    }
    let settings = json!({
        "data": {
            "source": "texts", "tokenizer": { "kind": "bytes" }, "window": 24, "validation": 0.25,
        },
        "batch_size": 4,
        "eval_batch_size": 4,
        "architecture": {
            "d_model": 8, "n_heads": 2, "n_kv_heads": 2, "height": 2, "d_ff": [8],
            "route_on": { "kind": "first-n", "tokens": 4 },
        },
        "trainer": { "steps": 4, "eval_every": 2, "warmup_steps": 0 },
    });
    fs::write(place.path("language.json"), settings.to_string()).unwrap();
    train(&place, &["--out", "out"]);
    place
}

fn train(place: &Place, args: &[&str]) {
    place.succeed(&[&["train", "lm", "--config", "language.json"], args].concat());
}

fn continued(place: &Place, args: &[&str]) -> Vec<Value> {
    let start = ["generate", "out", "--json", "--prompt", "All about"];
    let found = parse(&place.succeed(&[&start, args].concat()));
    found["continuations"].as_array().unwrap().clone()
}

#[test]
fn text_is_continued_the_same_for_a_seed_and_without_the_corpus() {
    let place = place();
    let again = |seed: &str| continued(&place, &["--tokens", "9", "--seed", seed]);
    let first = again("1");
    assert_eq!(first[0]["tokens"].as_array().unwrap().len(), 9);
    assert_eq!(first[0]["finish"], "length");
    assert_eq!(first[0]["leaves"].as_array().unwrap().len(), 1);
    assert!(first[0]["mean_log_probability"].as_f64().unwrap() < 0.0);
    fs::remove_dir_all(place.path("texts")).unwrap();
    assert_eq!(again("1"), first);
    let others = (2..6).filter(|seed| again(&seed.to_string()) != first);
    assert!(others.count() > 0);
    let greedy = |seed: &str| {
        let found = continued(&place, &["--temperature", "0", "--seed", seed]);
        found[0]["tokens"].clone()
    };
    assert_eq!(greedy("1"), greedy("2"));
    let text = place.succeed(&["generate", "out", "--prompt", "All about", "--tokens", "4"]);
    assert!(
        text.starts_with("All about") && text.ends_with('\n'),
        "{text}"
    );
}

#[test]
fn several_prompts_are_continued_as_each_alone() {
    let place = place();
    let greedy = ["--temperature", "0", "--tokens", "5"];
    let both = continued(&place, &[&greedy[..], &["--prompt", "Another"]].concat());
    assert_eq!(both.len(), 2);
    assert_eq!(both[0], continued(&place, &greedy)[0]);
    let args = ["generate", "out", "--prompt", "All", "--prompt", "About"];
    let text = place.succeed(&[&args[..], &greedy].concat());
    let (one, other) = text.split_once("\n---\n").unwrap();
    assert!(
        one.starts_with("All") && other.starts_with("About"),
        "{text}"
    );
}

#[test]
fn a_continuation_ends_before_a_stop_or_with_the_context_or_goes_on_with_a_new_route() {
    let place = place();
    let greedy =
        |args: &[&str]| continued(&place, &[&["--temperature", "0"], args].concat())[0].clone();
    let full = greedy(&[]);
    assert_eq!(full["finish"], "context");
    let text = full["text"].as_str().unwrap();
    let stop = text.chars().last().unwrap().to_string();
    let stopped = greedy(&["--stop", &stop]);
    assert_eq!(stopped["finish"], "stop");
    let expected = &text[..text.find(&stop).unwrap()];
    assert_eq!(stopped["text"], expected);
    let args = [
        "generate",
        "out",
        "--prompt",
        "All about",
        "--temperature",
        "0",
    ];
    let shown = place.run(&[&args[..], &["--stop", &stop]].concat());
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(shown, format!("All about{expected}\n"));
    let note = stderr(&place.run(&args));
    assert!(note.contains("the context of 24 tokens is full"), "{note}");

    let long = greedy(&["--reroute", "4", "--tokens", "40"]);
    assert_eq!(long["finish"], "length");
    assert_eq!(long["tokens"].as_array().unwrap().len(), 40);
    assert!(long["leaves"].as_array().unwrap().len() > 1);
}

#[test]
fn a_prompt_shorter_than_what_chooses_the_route_is_continued_with_a_warning() {
    let place = place();
    let output = place.run(&["generate", "out", "--prompt", "A", "--tokens", "2"]);
    assert_eq!(output.status.code(), Some(0));
    let note = stderr(&output);
    assert!(note.contains("fewer than the 4 tokens"), "{note}");
}

/// A tokenizer of letters, with a byte for whatever else there is, and these steps of its decoder.
fn letters_and_bytes(place: &Place, decoders: Value) {
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let letters = "▁Aabcdefghijlnortuw,.é".chars().map(String::from);
    let symbols = ["<unk>".to_owned()].into_iter().chain(bytes).chain(letters);
    let vocabulary: serde_json::Map<String, Value> = symbols
        .enumerate()
        .map(|(number, symbol)| (symbol, json!(number)))
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    });
    fs::write(place.path("tokenizer.json"), tokenizer.to_string()).unwrap();
}

const WITH_TOKENIZER: &str = r#"data.tokenizer={"kind":"file","path":"tokenizer.json"}"#;

#[test]
fn what_is_shown_is_the_text_with_a_tokenizer_whose_bytes_change_text_before_them() {
    let place = place();
    let spaces = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
    letters_and_bytes(
        &place,
        json!([spaces, { "type": "ByteFallback" }, { "type": "Fuse" }]),
    );
    train(&place, &["--set", WITH_TOKENIZER, "--out", "bytes"]);
    for seed in ["1", "2", "3", "4"] {
        for stop in [
            &[][..],
            &["--stop", "\u{fffd}\u{fffd}a"],
            &["--stop", "-", "--stop", "e"],
        ] {
            // A prompt that ends with bytes of which more come.
            let args = ["generate", "bytes", "--prompt", "All é, 中", "--seed", seed];
            let args = [&args[..], &["--tokens", "60", "--reroute", "8"], stop].concat();
            let shown = place.succeed(&args);
            let found = parse(&place.succeed(&[&args[..], &["--json"]].concat()));
            let text = found["continuations"][0]["text"].as_str().unwrap();
            assert_eq!(shown, format!("All é, 中{text}\n"));
        }
    }
}

#[test]
fn tokens_that_a_tokenizer_cannot_write_are_refused() {
    let place = place();
    // Its library fails over pieces that are shorter than what is cut off.
    let strip = json!({ "type": "Strip", "content": "a", "start": 0, "stop": 9 });
    letters_and_bytes(&place, json!([strip]));
    train(&place, &["--set", WITH_TOKENIZER, "--out", "cut"]);
    let args = ["generate", "cut", "--prompt", "aaaa", "--tokens", "4"];
    for json in [&[][..], &["--json"]] {
        let line = place.refuse(&[&args[..], json].concat());
        assert!(
            line.starts_with("the tokenizer cannot decode these tokens"),
            "{line}"
        );
    }
}

#[test]
fn text_may_begin_with_hyphens() {
    let place = place();
    for text in ["- item", "---", "-1", "--json"] {
        let args = [
            "generate", "out", "--tokens", "4", "--stop", "---", "--prompt", text,
        ];
        let shown = place.succeed(&args);
        assert!(shown.starts_with(text), "{shown}");
        let found = parse(&place.succeed(&[&args[..], &["--json"]].concat()));
        assert_eq!(found["continuations"][0]["prompt"], text);
    }
}

#[test]
fn prompts_options_and_runs_that_cannot_be_continued_are_refused() {
    let place = place();
    place.train(&["--out", "images"]);
    let says = |args: &[&str], words: &[&str]| {
        let line = place.refuse(&[&["generate"], args].concat());
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    };
    let long = "x".repeat(25);
    for (option, value, words) in [
        ("--prompt", "", "--prompt: \"\" has no token"),
        ("--prompt", &long, "has 25 tokens: expected at most 24"),
        ("--tokens", "0", "'--tokens <N>': expected a whole number"),
        (
            "--temperature",
            "-1",
            "--temperature: expected a number of at least 0, got -1",
        ),
        (
            "--temperature",
            "NaN",
            "--temperature: expected a number of at least 0, got NaN",
        ),
        ("--tokens", "-1", "'--tokens <N>': expected a whole number"),
        ("--seed", "-1", "invalid value '-1' for '--seed <SEED>'"),
        (
            "--reroute",
            "-1",
            "'--reroute <N>': expected a whole number",
        ),
        ("--top-k", "-1", "'--top-k <K>': expected a whole number"),
        ("--top-k", "0", "'--top-k <K>': expected a whole number"),
        (
            "--top-p",
            "0",
            "--top-p: expected above 0 and at most 1, got 0",
        ),
        (
            "--top-p",
            "1.5",
            "--top-p: expected above 0 and at most 1, got 1.5",
        ),
        ("--stop", "", "--stop: \"\" has no token"),
        ("--reroute", "0", "'--reroute <N>': expected a whole number"),
        ("--backend", "abacus", "abacus"),
    ] {
        match option {
            "--prompt" => says(&["out", option, value], &[words]),
            _ => says(&["out", "--prompt", "All", option, value], &[words]),
        }
    }
    says(&["out"], &["--prompt <TEXT>"]);
    let prompt = ["--prompt", "All"];
    let of = |run: &'static str| [&[run], &prompt[..]].concat();
    says(&of("nowhere"), &["nowhere: expected a run folder"]);
    says(&of("images"), &["images: a run of task images", "task lm"]);
    let tokenizer = place.path("out/tokenizer.json");
    fs::write(&tokenizer, "{}").unwrap();
    says(&of("out"), &["out/tokenizer.json: not a tokenizer"]);
    fs::remove_file(&tokenizer).unwrap();
    says(&of("out"), &["out/tokenizer.json: cannot be read"]);
    fs::write(&tokenizer, r#"{"kind":"bytes"}"#).unwrap();
    let mut config = place.json("out/config.json");
    config["architecture"]["height"] = json!(1);
    fs::write(place.path("out/config.json"), config.to_string()).unwrap();
    says(&of("out"), &["checkpoint of another model"]);
    fs::remove_dir_all(place.path("out/checkpoints")).unwrap();
    says(&of("out"), &["out: no checkpoint here"]);
}

#[test]
fn inspect_shows_where_every_document_went() {
    let place = place();
    let numbers = parse(&place.succeed(&["inspect", "out", "--json"]));
    assert_eq!(numbers["leaves"], json!(["0.0", "0.1", "1.0", "1.1"]));
    let parts = numbers["parts"].as_array().unwrap();
    assert_eq!(parts.len(), 2);
    for part in parts {
        let shares = part["shares"].as_array().unwrap().iter();
        let sum: f64 = shares.map(|share| share.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{part}");
        assert_eq!(part["entropies"].as_array().unwrap().len(), 2);
        let documents = part["documents"].as_array().unwrap();
        let names: Vec<&str> = documents
            .iter()
            .map(|document| document["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["one.txt", "three.txt", "two.txt"]);
        let items = documents
            .iter()
            .flat_map(|document| document["items"].as_array().unwrap())
            .map(|count| count.as_u64().unwrap());
        assert_eq!(items.sum::<u64>(), part["sequences"].as_u64().unwrap());
    }
    for stem in ["curves", "leaves", "documents"] {
        for ending in ["svg", "png"] {
            let file = format!("out/inspect/{stem}.{ending}");
            assert!(place.path(&file).is_file(), "{file}");
        }
    }
    let picture = fs::read_to_string(place.path("out/inspect/documents.svg")).unwrap();
    assert!(picture.contains("three.txt") && picture.contains("1.1"));
    let picture = fs::read_to_string(place.path("out/inspect/leaves.svg")).unwrap();
    assert!(picture.contains("Use of leaves, held out") && picture.contains("depth 1"));
    let text = place.succeed(&["inspect", "out", "--out", "pictures"]);
    assert!(
        text.contains("leaf 0.1") && text.contains("selectors at depth 1"),
        "{text}"
    );
    assert_eq!(
        place.json("pictures/inspect.json")["parts"],
        numbers["parts"]
    );
}

#[test]
fn inspect_draws_the_curves_of_models_without_a_tree_and_refuses_queries() {
    let place = place();
    train(&place, &["--model", "linear-active", "--out", "linear"]);
    let numbers = parse(&place.succeed(&["inspect", "linear", "--json"]));
    assert_eq!(numbers["tree"], false);
    assert!(place.path("linear/inspect/curves.svg").is_file());
    assert!(
        !place
            .path("linear/inspect/documents.svg")
            .try_exists()
            .unwrap()
    );
    train(&place, &["--model", "hash-route", "--out", "hash"]);
    let numbers = parse(&place.succeed(&["inspect", "hash", "--json"]));
    assert_eq!(numbers["parts"][0]["entropies"], json!([]));
    let line = place.refuse(&["inspect", "out", "--item", "1"]);
    assert!(line.contains("--item and --query"), "{line}");
    let line = place.refuse(&["inspect", "out", "--out", "language.json"]);
    assert!(line.contains("language.json: expected a folder"), "{line}");
}
