//! Runs on sequences: recall and needles by any way to attend, starting from another run, and what is refused.
#![cfg(feature = "flex")]

mod common;

use common::{Place, parse, stderr};
use serde_json::{Value, json};
use std::fs;

/// Settings of a run of four steps on sequences of 16 tokens.
fn tiny() -> Value {
    json!({
        "data": {
            "kind": "recall", "length": 16, "pairs": 4, "keys": 6, "values": 3,
            "curriculum": [{ "length": 8, "steps": 1 }],
        },
        "batch_size": 2,
        "eval_batch_size": 2,
        "eval_items": 2,
        "test_items": 4,
        "architecture": { "d_model": 8, "n_heads": 2, "n_kv_heads": 2, "layers": 2, "d_ff": 8 },
        "attention": {
            "tree_fine": { "router": { "branching": [2, 2] } },
            "tree_fine_kary": { "router": { "branching": [3] } },
            "tree_coarse": { "router": { "branching": [2] } },
            "linformer": { "rank": 4 },
            "big_bird": { "block": 4, "random": 1 },
            "performer": { "features": 4 },
        },
        "trainer": { "steps": 4, "eval_every": 2, "checkpoint_every": 1, "warmup_steps": 0 },
    })
}

fn place() -> Place {
    let place = Place::new();
    fs::write(place.path("sequence.json"), tiny().to_string()).unwrap();
    place
}

fn train(place: &Place, args: &[&str]) -> String {
    place.succeed(&[&["train", "recall", "--config", "sequence.json"], args].concat())
}

fn refused_training(place: &Place, args: &[&str]) -> String {
    let start = [
        "train",
        "recall",
        "--config",
        "sequence.json",
        "--out",
        "new",
    ];
    place.refuse(&[&start, args].concat())
}

#[test]
fn a_dense_run_leaves_numbers_curves_and_a_model_that_eval_measures_again() {
    let place = place();
    let trained = parse(&train(&place, &["--out", "out", "--json"]));
    let numbers = &trained["models"]["dense"];
    assert_eq!(numbers["core_flops_percent"], 100.0);
    assert!(numbers.get("effective_leaves").is_none());
    let accuracy = numbers["accuracy"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&accuracy));
    let evaluated = place.eval("out", &[]);
    assert_eq!(evaluated["model"], "dense");
    assert_eq!(evaluated["step"], 4);
    assert_eq!(evaluated["of"], "sequences");
    for name in ["accuracy", "log_likelihood"] {
        assert_eq!(evaluated["metrics"][name], numbers[name], "{name}");
    }
    assert!(place.path("out/curves.svg").is_file() && place.path("out/curves.png").is_file());
    let text = place.succeed(&["eval", "out"]);
    assert!(text.starts_with("dense at step 4, 4 sequences"), "{text}");
    // Steps of the curriculum have fewer tokens and still one line each.
    assert_eq!(place.metrics("out").matches("\"train\"").count(), 4);
}

#[test]
fn every_way_to_attend_starts_from_a_dense_run_and_says_what_it_costs() {
    let place = place();
    train(&place, &["--out", "dense"]);
    for model in [
        "dense",
        "tree-fine",
        "tree-fine-kary",
        "tree-coarse",
        "linformer",
        "big-bird",
        "performer",
    ] {
        let args = [
            "--model", model, "--from", "dense", "--out", model, "--json",
        ];
        let args: Vec<&str> = match model {
            "dense" => [&args[..4], &["--out", "again", "--json"]].concat(),
            _ => args.to_vec(),
        };
        let trained = parse(&train(&place, &args));
        let numbers = &trained["models"][model];
        assert!(numbers["core_flops_percent"].as_f64().unwrap() > 0.0);
        let leaves = numbers.get("effective_leaves").and_then(Value::as_f64);
        assert_eq!(leaves.is_some(), model.starts_with("tree-"), "{model}");
        if let Some(leaves) = leaves {
            let ratio = numbers["cost_ratio"].as_f64().unwrap();
            assert!(
                (leaves * ratio - 1.0).abs() < 1e-9 && leaves >= 0.99,
                "{numbers}"
            );
            let [least, most] =
                ["leaf_tokens_min", "leaf_tokens_max"].map(|name| numbers[name].as_f64().unwrap());
            assert!((0.0..=16.0).contains(&least) && least <= most);
        }
        let run = if model == "dense" { "again" } else { model };
        let evaluated = place.eval(run, &[]);
        assert_eq!(evaluated["metrics"]["accuracy"], numbers["accuracy"]);
        let from = place.json(format!("{run}/config.json"))["from"].clone();
        assert!(from.as_str().unwrap().ends_with("/dense"), "{from}");
    }
}

#[test]
fn a_run_starts_from_the_weights_of_the_other_one() {
    let place = place();
    train(&place, &["--out", "dense"]);
    // Nothing is learned, so what is measured is what was loaded.
    let still = ["--set", "trainer.steps=0", "--set", "data.curriculum=[]"];
    let args = |more: &[&'static str]| [&still[..], more].concat();
    train(&place, &args(&["--from", "dense", "--out", "copy"]));
    let measured = |run: &str| place.eval(run, &[])["metrics"].clone();
    assert_eq!(measured("copy"), measured("dense"));
    // Trees without a level are dense attention, up to rounding.
    train(
        &place,
        &args(&[
            "--from",
            "dense",
            "--model",
            "tree-fine",
            "--set",
            "attention.tree_fine.router.branching=[]",
            "--out",
            "flat",
        ]),
    );
    let [flat, dense] =
        ["flat", "dense"].map(|run| measured(run)["log_likelihood"].as_f64().unwrap());
    assert!((flat - dense).abs() < 1e-5, "{flat} for {dense}");
    // Trained trees are kept, and not split again.
    train(
        &place,
        &["--from", "dense", "--model", "tree-fine", "--out", "tree"],
    );
    train(
        &place,
        &args(&["--from", "tree", "--model", "tree-fine", "--out", "kept"]),
    );
    assert_eq!(measured("kept"), measured("tree"));
}

#[test]
fn a_run_starts_from_one_on_sequences_of_another_length() {
    let place = place();
    let linformer = ["--model", "linformer"];
    train(&place, &[&linformer[..], &["--out", "short"]].concat());
    let longer = ["--from", "short", "--set", "data.length=24"];
    for model in ["linformer", "dense"] {
        let args = ["--model", model, "--out", model, "--json"];
        let trained = parse(&train(&place, &[&longer[..], &args].concat()));
        assert!(trained["models"][model]["accuracy"].is_f64(), "{model}");
    }
}

#[test]
fn trees_that_read_rows_in_another_way_are_new() {
    let place = place();
    let tree = ["--model", "tree-fine"];
    train(&place, &[&tree[..], &["--out", "tree"]].concat());
    let spread = |out: &str, split: &str| {
        let split = format!("trees.median_split={split}");
        let raw = "attention.tree_fine.router.normalize=false";
        let args = [
            "--model",
            "tree-fine",
            "--from",
            "tree",
            "--set",
            raw,
            "--set",
            &split,
            "--set",
            "trainer.steps=0",
            "--out",
            out,
            "--json",
        ];
        parse(&train(&place, &args))["models"]["tree-fine"]["cost_ratio"].clone()
    };
    // Only new trees are split.
    assert_ne!(spread("split", "true"), spread("random", "false"));
}

#[test]
fn the_run_to_start_from_is_no_setting() {
    let place = place();
    train(&place, &["--out", "dense"]);
    let says = |args: &[&str]| {
        let line = refused_training(&place, args);
        assert!(line.contains("from: give it as --from RUN"), "{line}");
    };
    says(&["--set", "from=dense"]);
    says(&["--from", "dense", "--set", "from=null"]);
    fs::write(place.path("start.json"), r#"{"from": "dense"}"#).unwrap();
    let line = place.refuse(&["train", "recall", "--config", "start.json", "--out", "new"]);
    assert!(line.contains("from: give it as --from RUN"), "{line}");
    // Saying the same twice changes nothing.
    train(
        &place,
        &["--from", "dense", "--set", "from=dense", "--out", "again"],
    );
}

#[test]
fn new_trees_split_tokens_unless_told_not_to() {
    let place = place();
    let spread = |out: &str, split: &str| {
        let setting = format!("trees.median_split={split}");
        let args = ["--model", "tree-fine", "--set", "trainer.steps=0", "--json"];
        let trained = train(
            &place,
            &[&args[..], &["--set", &setting, "--out", out]].concat(),
        );
        parse(&trained)["models"]["tree-fine"]["cost_ratio"].clone()
    };
    assert_ne!(spread("split", "true"), spread("random", "false"));
}

#[test]
fn losses_on_routes_weigh_what_the_settings_say() {
    let place = place();
    let parts = |balance: f64, alignment: f64| {
        let run = format!("{balance}-{alignment}");
        let weights = [
            format!("trees.lambda_balance={balance}"),
            format!("trees.lambda_alignment={alignment}"),
        ];
        let start = ["--model", "tree-fine", "--out", &run, "--set"];
        train(
            &place,
            &[&start[..], &[&weights[0], "--set", &weights[1]]].concat(),
        );
        let log = place.metrics(&run);
        let step = parse(log.lines().next().unwrap());
        let task = -step["log_likelihood"].as_f64().unwrap();
        let auxiliary = step["loss"].as_f64().unwrap() - task;
        let part = |name: &str| step[name].as_f64();
        (auxiliary, part("balance"), part("alignment"))
    };
    let near = |found: f64, expected: f64| {
        assert!((found - expected).abs() < 1e-4, "{found} for {expected}");
    };
    let (loss, balance, alignment) = parts(2.0, 3.0);
    let (balance, alignment) = (balance.unwrap(), alignment.unwrap());
    assert!(balance > 0.1 && alignment > 1e-3, "{balance} {alignment}");
    near(loss, 2.0 * balance + 3.0 * alignment);
    // What weighs nothing is not computed.
    let (loss, found, none) = parts(2.0, 0.0);
    assert_eq!(none, None);
    near(found.unwrap(), balance);
    near(loss, 2.0 * balance);
    let (loss, none, found) = parts(0.0, 3.0);
    assert_eq!(none, None);
    near(loss, 3.0 * found.unwrap());
    assert_eq!(parts(0.0, 0.0), (0.0, None, None));
}

#[test]
fn a_resumed_run_continues_the_same_numbers() {
    let place = place();
    let args = ["--model", "tree-fine", "--set", "trees.anneal=true"];
    train(&place, &[&args[..], &["--out", "whole"]].concat());
    train(&place, &[&args[..], &["--out", "cut"]].concat());
    let whole = place.metrics("whole");
    assert_eq!(place.metrics("cut"), whole);
    // As if it had been stopped after its third step.
    let newest = place.path("cut/checkpoints/step-00000004");
    fs::remove_dir_all(newest).unwrap();
    place.succeed(&["train", "recall", "--out", "cut", "--resume"]);
    assert_eq!(place.metrics("cut"), whole);
    let changed = place.run(&[
        "train",
        "recall",
        "--out",
        "cut",
        "--resume",
        "--set",
        "trees.rate=2",
    ]);
    assert_eq!(changed.status.code(), Some(2));
    assert!(stderr(&changed).contains("--resume continues a run with its own settings"));
}

#[test]
fn needles_are_a_task_for_the_same_models() {
    let place = place();
    let data = r#"data={"kind":"needle","length":16,"needles":2,"keys":4,"values":3,"fillers":5,"queries":3,"curriculum":[]}"#;
    let args = [
        "train",
        "needle",
        "--config",
        "sequence.json",
        "--set",
        data,
        "--set",
        "task=needle",
    ];
    // The file is for the other task: what the command line says last is one task throughout.
    let mut settings = tiny();
    settings.as_object_mut().unwrap().remove("data");
    fs::write(place.path("sequence.json"), settings.to_string()).unwrap();
    for model in ["dense", "tree-fine", "tree-coarse"] {
        let more = ["--model", model, "--out", model, "--json"];
        let trained = parse(&place.succeed(&[&args[..], &more].concat()));
        let numbers = &trained["models"][model];
        let measured = place.eval(model, &[]);
        assert!(numbers["accuracy"].is_f64());
        assert_eq!(measured["metrics"]["accuracy"], numbers["accuracy"]);
    }
}

#[test]
fn a_comparison_starts_all_models_from_one_run_and_has_one_table() {
    let place = place();
    train(&place, &["--out", "dense"]);
    let args = [
        "compare",
        "recall",
        "--config",
        "sequence.json",
        "--models",
        "dense,tree-fine,linformer",
        "--from",
        "dense",
        "--out",
        "all",
    ];
    let text = place.succeed(&args);
    let head = text.lines().next().unwrap();
    for title in ["accuracy, %", "core FLOPs, % of dense", "effective leaves"] {
        assert!(head.contains(title), "{head}");
    }
    assert!(
        !head.contains("nodes read") && !text.contains("Published"),
        "{text}"
    );
    for model in ["dense", "tree-fine", "linformer"] {
        assert!(
            text.lines()
                .any(|line| line.starts_with(&format!("| {model} "))),
            "{text}"
        );
    }
    assert!(text.contains("Effective leaves: 1 / cost ratio"), "{text}");
    let numbers = place.json("all/compare.json");
    assert_eq!(numbers["task"], "recall");
    assert_eq!(numbers["summary"][1]["line"], "tree-fine");
    assert!(numbers["summary"][1]["metrics"]["effective_leaves"]["mean"].is_f64());
    let settings = place.json("all/tree-fine-seed0/config.json");
    assert!(settings["from"].as_str().unwrap().ends_with("/dense"));
    // Again: everything is finished.
    let output = place.run(&args);
    assert!(stderr(&output).matches("finished before").count() == 3);
}

#[test]
fn starting_points_that_do_not_fit_are_refused() {
    let place = place();
    train(&place, &["--out", "dense"]);
    place.train(&["--out", "images"]);
    let says = |args: &[&str], words: &[&str]| {
        let line = refused_training(&place, args);
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    };
    says(
        &["--from", "nowhere"],
        &["nowhere: no run to start from here"],
    );
    says(&["--from", "images"], &["images", "another task"]);
    says(
        &["--from", "dense", "--set", "architecture.d_model=16"],
        &["dense", "another d_model", "the run has 8, asked for 16"],
    );
    says(
        &["--from", "dense", "--set", "data.keys=9"],
        &["another vocabulary", "the run has 9, asked for 12"],
    );
    says(
        &["--from", "dense", "--set", "architecture.layers=1"],
        &["another layers"],
    );
    fs::remove_dir_all(place.path("dense/checkpoints")).unwrap();
    says(&["--from", "dense"], &["dense: no checkpoint here"]);
    let line = place.refuse(&["train", "images", "--from", "dense", "--out", "new"]);
    assert!(
        line.contains("--from: images starts from fresh weights"),
        "{line}"
    );
    let compare = [
        "compare",
        "images",
        "--models",
        "retreever",
        "--from",
        "dense",
    ];
    assert!(place.refuse(&compare).contains("--from"));
}

#[test]
fn models_and_commands_of_the_other_family_are_refused() {
    let place = place();
    train(&place, &["--out", "out"]);
    let says = |args: &[&str], words: &[&str]| {
        let line = place.refuse(args);
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    };
    says(
        &["train", "recall", "--model", "retreever"],
        &["retreever is for retrieval", "tree-fine"],
    );
    says(
        &["train", "images", "--model", "dense"],
        &["dense is for sequences", "cross-attention"],
    );
    says(
        &["train", "recall", "--preset", "published"],
        &["no published settings"],
    );
    says(
        &["inspect", "out", "--item", "1"],
        &["--item and --query: a run of sequences shows the leaves of all its held-out items"],
    );
    says(
        &["grow", "out"],
        &["task recall", "grow needs a run of retrieval"],
    );
    says(
        &["eval", "out", "--random-route"],
        &["dense searches no token tree"],
    );
    says(
        &["eval", "out", "--search", "beam=2"],
        &["dense searches no token tree"],
    );
    says(
        &["train", "images", "--out", "out", "--resume"],
        &["for task recall, asked for images"],
    );
    says(
        &["compare", "recall", "--models", "dense,retreever"],
        &["retreever is for retrieval"],
    );
    says(
        &["compare", "recall", "--models", "dense,dense"],
        &["--models: dense is given twice"],
    );
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let place = place();
    for (setting, words) in [
        ("data.pairs=0", "data.pairs: expected 1"),
        (
            "data.length=6",
            "data.curriculum: expected lengths from 3 to 6, got 8",
        ),
        ("data.keys=3", "data.keys: expected 4"),
        (
            "architecture.n_heads=3",
            "architecture.n_heads: expected a divisor of 8",
        ),
        (
            "architecture.n_kv_heads=0",
            "architecture.n_kv_heads: expected 1",
        ),
        (
            "architecture.dense_layers=3",
            "architecture.dense_layers: expected at most 2",
        ),
        (
            "architecture.dropout=1",
            "architecture.dropout: expected 0 to below 1",
        ),
        (
            "trees.rate=-1",
            "trees.rate: expected a number of at least 0",
        ),
        (
            "attention.tree_fine.router.branching=[2,1]",
            "attention.tree_fine.router.branching: expected factors of at least 2, got [2, 1]",
        ),
        (
            "attention.tree_fine.router.branching=[512,512]",
            "attention.tree_fine.router.branching: expected at most 65536 leaves, got those of [512, 512]",
        ),
        (
            "attention.tree_fine.router.surrogate.temperature=0",
            "attention.tree_fine.router.surrogate.temperature: expected a positive number",
        ),
        (
            "attention.big_bird.window=2",
            "attention.big_bird.window: expected an odd number",
        ),
        (
            "attention.big_bird.random=99999999999",
            "attention.big_bird.random: expected 0 to",
        ),
        (
            "attention.big_bird.global=65537",
            "attention.big_bird.global: expected 0 to 65536, got 65537",
        ),
        ("attention.tree_fin.x=1", "did you mean attention.tree_fine"),
        ("task=needle", "data: expected those of task needle"),
        ("test_items=0", "test_items: expected 1"),
    ] {
        let line = refused_training(&place, &["--set", setting]);
        assert!(line.contains(words), "{setting}: {line}");
    }
    let wide = [
        "--model",
        "tree-fine",
        "--set",
        "attention.tree_fine.router.scope=per-layer",
        "--set",
        "architecture.n_kv_heads=1",
    ];
    let line = refused_training(&place, &wide);
    assert!(
        line.contains(
            "attention.tree_fine.router.sharing: expected separate with one tree per layer"
        ),
        "{line}"
    );
    // The relaxation has no dropout: the layer would panic in the first step.
    let soft = [
        "--model",
        "tree-fine",
        "--set",
        r#"attention.tree_fine.router.surrogate={"kind":"soft","temperature":1}"#,
        "--set",
        "attention.tree_fine.dropout=0.1",
    ];
    let line = refused_training(&place, &soft);
    assert!(
        line.contains("attention.tree_fine.dropout: expected 0 with the soft surrogate, got 0.1"),
        "{line}"
    );
    let short = ["--set", "data.curriculum=[]", "--set", "data.length=8"];
    assert!(refused_training(&place, &short).contains("data.length: expected 9 to"));
}

#[test]
fn inspect_shows_what_met_nobody_in_the_leaves_of_each_layer() {
    let place = place();
    train(&place, &["--model", "tree-fine", "--out", "out"]);
    let seen = parse(&place.succeed(&["inspect", "out", "--json"]));
    let layers = seen["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    let evaluated = parse(&place.succeed(&["eval", "out", "--json"]));
    assert!(
        evaluated.to_string().contains("keys_without_query_percent"),
        "{evaluated}"
    );
    for layer in layers {
        let sum = |name: &str| -> f64 {
            let counts = layer[name].as_array().unwrap();
            counts.iter().map(|count| count.as_f64().unwrap()).sum()
        };
        // Two heads of 16 tokens, the mean over trees.
        assert!((sum("leaf_queries") - 16.0).abs() < 1e-3, "{layer}");
        assert!((sum("leaf_keys") - 16.0).abs() < 1e-3, "{layer}");
        let share = layer["queries_without_key_percent"].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&share), "{layer}");
    }
    let text = place.succeed(&["inspect", "out", "--out", "seen"]);
    assert!(
        text.contains("of queries have no key in their leaf"),
        "{text}"
    );
    assert!(place.path("seen/curves.svg").is_file());
    // Without trees there are the curves.
    train(&place, &["--model", "dense", "--out", "dense"]);
    let text = place.succeed(&["inspect", "dense"]);
    assert!(text.contains("dense has no trees"), "{text}");
}
