//! `arbora inspect` through the real binary.

mod common;

use common::{IMAGES, Place, SIZE, parse};
use serde_json::Value;
use std::fs;

/// What is written for a run with a tree.
const FILES: [&str; 7] = [
    "confidence.png",
    "confidence.svg",
    "curves.png",
    "curves.svg",
    "inspect.json",
    "path.png",
    "path.svg",
];

/// Settings of a copy run that has three decisions and takes a second.
const COPY: &str = r#"{
    "data": { "kind": "copy", "length": 32, "characters": 4, "curriculum": null },
    "batch_size": 2, "eval_batch_size": 3, "eval_items": 3, "test_items": 6,
    "architecture": {
        "d_model": 8, "d_ff": 8, "n_heads": 2, "embedding_depth": 1, "encoder_layers": 0
    },
    "trainer": { "steps": 4, "eval_every": 2, "checkpoint_every": 4, "warmup_steps": 0 }
}"#;

/// Trains the copy run; what it says on standard error.
fn train_copy(place: &Place, more: &[&str]) -> String {
    fs::write(place.path("copy.json"), COPY).unwrap();
    let train = ["train", "copy", "--config", "copy.json", "--out", "out"];
    let output = place.run(&[&train, more].concat());
    let stderr = common::stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    stderr
}

fn inspect(place: &Place, more: &[&str]) -> Value {
    parse(&place.succeed(&[&["inspect", "out", "--json"], more].concat()))
}

/// The files of a folder, by name.
fn files(place: &Place, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(place.path(folder)).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Checks what must hold of the numbers of any search, and returns the tokens of the selected leaves.
fn assert_consistent(numbers: &Value) -> Vec<u64> {
    let list = |value: &Value| value.as_array().unwrap().clone();
    let nodes = list(&numbers["nodes"]);
    assert_eq!(numbers["selected"], nodes.len());
    // Every token lies under exactly one selected node.
    let mut tokens: Vec<u64> = nodes
        .iter()
        .flat_map(|node| list(&node["tokens"]))
        .map(|token| token.as_u64().unwrap())
        .collect();
    tokens.sort();
    let count = numbers["tokens"].as_u64().unwrap();
    assert_eq!(tokens, (0..count).collect::<Vec<_>>());

    let decisions = list(&numbers["decisions"]);
    let mut log_probability = 0.0;
    for step in &decisions {
        let probabilities: Vec<f64> = list(&step["probabilities"])
            .iter()
            .map(|number| number.as_f64().unwrap())
            .collect();
        assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-4);
        let chosen = probabilities[step["child"].as_u64().unwrap() as usize];
        let best = probabilities.iter().fold(0.0, |a: f64, b| a.max(*b));
        assert_eq!(chosen, best, "a greedy search takes the most probable");
        assert_eq!(step["probability"], chosen);
        log_probability += chosen.ln();
    }
    let told = numbers["log_probability"].as_f64().unwrap();
    assert!(
        (told - log_probability).abs() < 1e-3,
        "{told} {log_probability}"
    );
    let leaves = nodes.iter().filter(|node| node["height"] == 0);
    leaves
        .map(|node| node["tokens"][0].as_u64().unwrap())
        .collect()
}

#[test]
fn a_query_of_an_image_is_drawn_with_its_pixels() {
    let place = Place::new();
    place.train(&["--out", "out"]);
    let before = common::snapshot(&place.path("out"));
    let numbers = inspect(&place, &["--item", "2", "--query", "7"]);
    assert_eq!(files(&place, "out/inspect"), FILES);
    let mut after = common::snapshot(&place.path("out"));
    after.retain(|path, _| !path.starts_with(place.path("out/inspect")));
    assert!(before == after, "the run itself is left alone");

    assert_eq!(
        (&numbers["item"], &numbers["query"]),
        (&2.into(), &7.into())
    );
    assert_eq!(
        numbers["tokens"], 11,
        "as many pixels as the run has at most"
    );
    assert_consistent(&numbers);
    let mean = numbers["prediction"]["mean"][0].as_f64().unwrap();
    let std = numbers["prediction"]["std"][0].as_f64().unwrap();
    let truth = numbers["truth"][0].as_f64().unwrap();
    // The pattern of the test images: 20 per image, 15 per row, 9 per column; 7 is row 1, column 2.
    assert!((truth - ((2 * 20 + 15 + 2 * 9) as f64 / 255.0 - 0.5)).abs() < 1e-5);
    let density =
        -0.5 * ((truth - mean) / std).powi(2) - std.ln() - 0.5 * (2.0 * std::f64::consts::PI).ln();
    let told = numbers["log_likelihood"].as_f64().unwrap();
    assert!((told - density).abs() < 1e-3, "{told} {density}");

    let path = fs::read_to_string(place.path("out/inspect/path.svg")).unwrap();
    assert!(path.contains("row 1, column 2"), "{path}");
    assert!(path.contains("what covers each pixel"), "{path}");
    let curves = fs::read_to_string(place.path("out/inspect/curves.svg")).unwrap();
    assert!(curves.contains("nats per query") && !curves.contains("Accuracy"));
    let file = place.json("out/inspect/inspect.json");
    assert_eq!(file["nodes"], numbers["nodes"]);
}

#[test]
fn a_query_of_the_copy_task_is_drawn_with_its_answer() {
    let place = Place::new();
    train_copy(&place, &[]);
    let numbers = inspect(&place, &["--item", "4", "--query", "3", "--out", "here"]);
    assert_eq!(files(&place, "here"), FILES);
    assert!(!place.path("out/inspect").try_exists().unwrap());
    let leaves = assert_consistent(&numbers);
    assert_eq!(leaves.len(), 2);
    assert_eq!(numbers["tokens"], 16);
    assert_eq!(numbers["decisions"].as_array().unwrap().len(), 3);
    let right = numbers["prediction"]["class"] == numbers["truth"]["class"];
    assert_eq!(numbers["right"], right);
    let probability = numbers["truth"]["probability"].as_f64().unwrap();
    let told = numbers["log_likelihood"].as_f64().unwrap();
    assert!((told - probability.ln()).abs() < 1e-3);

    let path = fs::read_to_string(place.path("here/path.svg")).unwrap();
    // Query 3 of 16 asks for place 19 of the sequence; its answer stands at token 16 - 1 - 3.
    assert!(path.contains("what stands at place 19?"), "{path}");
    assert!(path.contains("answer (blue mark): token 12"), "{path}");
    let curves = fs::read_to_string(place.path("here/curves.svg")).unwrap();
    for text in [
        "Accuracy, training",
        "Accuracy, held out",
        "% of answers right",
    ] {
        assert!(curves.contains(text), "{text}: {curves}");
    }
    let confidence = fs::read_to_string(place.path("here/confidence.svg")).unwrap();
    assert!(confidence.contains("answer wrong"), "{confidence}");
    // The end sign is no token: its answer is marked nowhere.
    inspect(&place, &["--query", "15"]);
    let path = fs::read_to_string(place.path("out/inspect/path.svg")).unwrap();
    assert!(!path.contains("blue mark"), "{path}");
}

#[test]
fn items_of_a_batch_are_told_apart_and_a_query_is_told_the_same_twice() {
    let place = Place::new();
    train_copy(&place, &[]);
    let numbers = |item: &str| inspect(&place, &["--item", item, "--query", "0"]);
    let all: Vec<Value> = ["0", "1", "2", "3", "4", "5"].map(numbers).into();
    assert_eq!(all[4], numbers("4"));
    for (at, one) in all.iter().enumerate() {
        for other in &all[at + 1..] {
            assert_ne!(one["prediction"], other["prediction"], "other sequences");
        }
    }
}

#[test]
fn a_person_gets_the_same_in_lines() {
    let place = Place::new();
    let told = train_copy(&place, &[]);
    assert!(told.contains("step 4, held-out accuracy "), "{told}");
    let text = place.succeed(&["inspect", "out"]);
    let first = "retreever at step 4: copy, item 0, query 0\nanswers ";
    assert!(text.starts_with(first), "{text}");
    assert!(
        text.contains("selected 5 nodes for 16 tokens, read 8"),
        "{text}"
    );
    assert!(
        text.contains("\ndepth  child  probability  entropy\n    0 "),
        "{text}"
    );
    assert!(text.contains("pictures and numbers: out/inspect"), "{text}");
    let evaluated = place.succeed(&["eval", "out"]);
    let second = evaluated.lines().nth(1).unwrap();
    assert!(
        second.starts_with("accuracy") && second.ends_with(" %"),
        "{evaluated}"
    );
}

#[test]
fn models_without_a_tree_have_curves_alone() {
    let place = Place::new();
    for model in ["cross-attention", "perceiver"] {
        place.train(&["--model", model, "--out", model]);
        let text = place.succeed(&["inspect", model]);
        let expected = format!("{model} has no tree; its curves are in {model}/inspect\n");
        assert_eq!(text, expected);
        let folder = format!("{model}/inspect");
        assert_eq!(files(&place, &folder), ["curves.png", "curves.svg"]);
        let refused = place.refuse(&["inspect", model, "--query", "0"]);
        assert!(refused.contains("which has no tree"), "{refused}");
    }
}

#[test]
fn controls_are_inspected_too() {
    let place = Place::new();
    train_copy(&place, &["--model", "oracle-route"]);
    let numbers = inspect(&place, &["--query", "2"]);
    let leaves = numbers["nodes"].as_array().unwrap().iter();
    let leaves = leaves.filter(|node| node["height"] == 0);
    assert!(
        leaves.clone().any(|node| node["tokens"][0] == 13),
        "the oracle walks to the answer"
    );
    assert_eq!(numbers["model"], "oracle-route");
}

#[test]
fn a_model_that_a_run_was_compared_with_shares_its_curves() {
    let place = Place::new();
    let models = "retreever,cross-attention";
    place.succeed(&[
        "compare",
        "images",
        "--models",
        models,
        "--config",
        "tiny.json",
        "--out",
        "out",
    ]);
    let curves = fs::read_to_string(place.path("out/curves.svg")).unwrap();
    assert!(curves.contains("cross-attention"), "{curves}");
}

#[test]
fn what_is_not_there_is_refused_and_nothing_written() {
    let place = Place::new();
    place.train(&["--out", "out"]);
    fs::write(place.path("file"), "").unwrap();
    let pixels = (SIZE[0] * SIZE[1]).to_string();
    let images = IMAGES[1].to_string();
    for (args, expected) in [
        (&["nowhere"][..], "nowhere: expected a run folder"),
        (
            &["out", "--item", &images],
            "--item: expected below 8 (test images), got 8",
        ),
        (
            &["out", "--query", &pixels],
            "--query: expected below 30, the queries of item 0",
        ),
        (&["out", "--out", "file"], "file: expected a folder"),
        (&["out", "--backend", "abacus"], "unknown backend abacus"),
        (
            &["out", "--item", "-1"],
            "invalid value '-1' for '--item <ITEM>'",
        ),
    ] {
        let refused = place.refuse(&[&["inspect"], args].concat());
        assert!(refused.starts_with(expected), "{args:?}: {refused}");
    }
    fs::remove_file(place.path("out/metrics.jsonl")).unwrap();
    let refused = place.refuse(&["inspect", "out"]);
    assert!(refused.contains("metrics.jsonl"), "{refused}");
}

#[test]
fn a_dashboard_needs_a_terminal_and_leaves_no_room_for_json() {
    let place = Place::new();
    let refused = place.refuse_training(&["--dashboard"]);
    let expected = if cfg!(feature = "dashboard") {
        "--dashboard: standard output is no terminal"
    } else {
        "--dashboard is not compiled in; build with --features dashboard"
    };
    assert_eq!(refused, expected);
    let refused = place.refuse_training(&["--dashboard", "--json"]);
    assert!(refused.contains("--json"), "{refused}");
}
