//! The grid of language models as a person or a program calls it.
#![cfg(feature = "flex")]

mod common;

use common::{Place, parse, snapshot};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;

/// Two trees with paths of four blocks.
const TREES: &str = "2:1:2:8,2:3:1:8";
const MODELS: [&str; 5] = [
    "tree-coder",
    "linear-active",
    "linear-total",
    "random-route",
    "hash-route",
];

/// A folder with the texts `sea` and `land.txt`, and settings of runs of three steps on 16 bytes.
fn place() -> Place {
    let place = Place::new();
    let settings = json!({
        "data": {
            "source": "sea", "tokenizer": { "kind": "bytes" }, "window": 16, "validation": 0.25,
        },
        "batch_size": 4,
        "eval_batch_size": 4,
        "eval_items": 4,
        "architecture": {
            "d_model": 8, "n_heads": 2, "n_kv_heads": 2, "d_ff": [8],
            "route_on": { "kind": "first-n", "tokens": 4 },
        },
        "trainer": { "steps": 3, "eval_every": 3, "checkpoint_every": 1, "warmup_steps": 0 },
    });
    fs::write(place.path("grid.json"), settings.to_string()).unwrap();
    let document = |subject: &str| -> String {
        let lines =
            (0..5).map(|line| format!("The {subject} of line {line} meets the {subject}.\n"));
        lines.collect()
    };
    fs::create_dir(place.path("sea")).unwrap();
    for subject in ["whale", "ship", "sailor", "wave"] {
        fs::write(place.path(format!("sea/{subject}.txt")), document(subject)).unwrap();
    }
    let land = ["horse", "wagon", "rider"].map(document).join("\u{c}");
    fs::write(place.path("land.txt"), land).unwrap();
    place
}

const GRID: [&str; 4] = ["compare", "lm", "--config", "grid.json"];

fn grid(place: &Place, args: &[&str]) -> Value {
    let json = ["--json", "--out", "out"];
    parse(&place.succeed(&[&GRID[..], &json, args].concat()))
}

fn refuse(place: &Place, args: &[&str]) -> String {
    place.refuse(&[&GRID[..], &["--out", "out"], args].concat())
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("expected a number, got {value}"))
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

/// The line of a model in a case.
fn line<'a>(numbers: &'a Value, case: &Value, model: &str) -> &'a Value {
    let mut lines = list(&numbers["summary"]).iter();
    lines
        .find(|line| line["case"] == case["case"] && line["line"] == model)
        .unwrap_or_else(|| panic!("no {model} in {case}"))
}

/// The entry of the run of a model with a seed, by its place in the list.
fn entry<'a>(numbers: &'a Value, case: &Value, model: &str, seed: usize) -> &'a Value {
    let name = line(numbers, case, model)["runs"][seed].as_str().unwrap();
    let mut runs = list(&numbers["runs"]).iter();
    runs.find(|run| name == format!("{}-seed{}", run["case"].as_str().unwrap(), run["seed"]))
        .unwrap_or_else(|| panic!("no run {name}"))
}

fn loss(numbers: &Value, case: &Value, model: &str, seed: usize) -> f64 {
    number(&entry(numbers, case, model, seed)["metrics"]["loss"])
}

fn mean_loss(numbers: &Value, case: &Value, model: &str) -> f64 {
    (loss(numbers, case, model, 0) + loss(numbers, case, model, 1)) / 2.0
}

#[test]
fn every_tree_is_compared_with_its_controls_and_wins_are_counted() {
    let place = place();
    let args = [
        "--trees",
        TREES,
        "--corpora",
        "sea,land.txt",
        "--seeds",
        "3,7",
    ];
    let numbers = grid(&place, &args);
    assert_eq!(place.json("out/compare.json"), numbers);
    let cases = list(&numbers["cases"]);
    assert_eq!(cases.len(), 4);
    assert_eq!(numbers["open"], json!([]));
    // Per text and seed: both trees with four models of their own, and one that they share.
    assert_eq!(numbers["count"], 2 * 2 * (2 * 4 + 1));

    for case in cases {
        for model in MODELS {
            let found = line(&numbers, case, model);
            for (run, seed) in list(&found["runs"]).iter().zip([3, 7]) {
                let config = place.json(format!("out/{}/config.json", run.as_str().unwrap()));
                assert_eq!(
                    (&config["model"], &config["trainer"]["seed"]),
                    (&json!(model), &json!(seed))
                );
            }
            let loss = |seed| loss(&numbers, case, model, seed);
            let statistic = &found["metrics"]["loss"];
            assert!((number(&statistic["mean"]) - (loss(0) + loss(1)) / 2.0).abs() < 1e-9);
            let deviation = (loss(0) - loss(1)).abs() / 2f64.sqrt();
            assert!((number(&statistic["sd"]) - deviation).abs() < 1e-9);
        }
        let mean = |model: &str| mean_loss(&numbers, case, model);
        let lowest = MODELS
            .into_iter()
            .min_by(|one, other| mean(one).total_cmp(&mean(other)));
        assert_eq!(case["lowest"], lowest.unwrap());
        let count = |model: &str, which: &str| {
            let entry = entry(&numbers, case, model, 0);
            number(&entry["metrics"][format!("{which}_parameters")])
        };
        assert!(count("tree-coder", "active") < count("tree-coder", "total"));
        assert!(count("linear-active", "total") < count("tree-coder", "active"));
        let ratio = count("linear-total", "total") / count("tree-coder", "total");
        assert!((ratio - 1.0).abs() < 0.05, "{ratio}");
    }
    for control in &MODELS[1..] {
        let wins = &numbers["wins"][control];
        let won = |lower: &dyn Fn(&Value) -> usize| cases.iter().map(lower).sum::<usize>();
        let by_case = won(&|case| {
            usize::from(
                mean_loss(&numbers, case, "tree-coder") < mean_loss(&numbers, case, control),
            )
        });
        let by_run = won(&|case| {
            let lower = |seed: &usize| {
                loss(&numbers, case, "tree-coder", *seed) < loss(&numbers, case, control, *seed)
            };
            (0..2).filter(lower).count()
        });
        assert_eq!(
            (&wins["cases"]["won"], &wins["cases"]["of"]),
            (&json!(by_case), &json!(4))
        );
        assert_eq!(
            (&wins["runs"]["won"], &wins["runs"]["of"]),
            (&json!(by_run), &json!(8))
        );
        let corpora = ["sea", "land"].map(|text| &wins["corpora"][text]["runs"]);
        assert_eq!(corpora.map(|runs| &runs["of"]), [&json!(4); 2]);
        let sum: f64 = corpora.iter().map(|runs| number(&runs["won"])).sum();
        assert_eq!(sum, by_run as f64);
    }

    // A run of the grid is a run like any other.
    let run = "out/land/tree-coder-k2-h3-b1-d8-seed7";
    let evaluated = place.eval(run, &[])["metrics"].clone();
    let metrics = &entry(&numbers, &cases[3], "tree-coder", 1)["metrics"];
    let metrics = metrics.as_object().unwrap();
    assert!(metrics.contains_key("loss"));
    for (name, value) in metrics {
        let difference = number(value) - number(&evaluated[name]);
        assert!(difference.abs() < 1e-9, "{name}: {difference}");
    }
    let page = fs::read_to_string(place.path("out/compare.md")).unwrap();
    let cell = format!("{:.3} ± ", mean_loss(&numbers, &cases[0], "hash-route"));
    for words in [
        "All 36 runs are finished",
        cell.as_str(),
        "| tree-coder against",
    ] {
        assert!(page.contains(words), "{words} is not in\n{page}");
    }
    assert!(!page.contains("NaN"), "{page}");
}

#[test]
fn models_that_are_equal_in_several_cases_are_one_run() {
    let place = place();
    let models = "tree-coder,linear-active";
    let numbers = grid(&place, &["--trees", TREES, "--models", models]);
    let folders: BTreeSet<String> = fs::read_dir(place.path("out/sea"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected = [
        "linear-active-b4-d8-seed0",
        "tree-coder-k2-h1-b2-d8-seed0",
        "tree-coder-k2-h3-b1-d8-seed0",
    ];
    assert_eq!(folders, expected.map(String::from).into());
    let [one, other] =
        [0, 1].map(|case| &line(&numbers, &numbers["cases"][case], "linear-active")["metrics"]);
    assert_eq!(one, other);
}

#[test]
fn options_that_list_numbers_make_their_product() {
    let place = place();
    let args = [
        "--branching",
        "2,3",
        "--heights",
        "1",
        "--blocks",
        "1,2",
        "--widths",
        "8,12",
        "--models",
        "tree-coder",
        "--set",
        "trainer.steps=1",
    ];
    let numbers = grid(&place, &args);
    let trees: BTreeSet<[u64; 4]> = list(&numbers["cases"])
        .iter()
        .map(|case| {
            ["branching", "height", "blocks", "width"].map(|key| case[key].as_u64().unwrap())
        })
        .collect();
    assert_eq!(trees.len(), 8);
    assert!(trees.contains(&[3, 1, 2, 12]) && trees.contains(&[2, 1, 1, 8]));
    // The width inside of MLPs keeps its proportion.
    let config = place.json("out/sea/tree-coder-k3-h1-b2-d12-seed0/config.json");
    assert_eq!(config["architecture"]["d_ff"], json!([12]));
}

#[test]
fn a_second_call_keeps_what_is_finished_and_resumes_what_is_not() {
    let place = place();
    let args = ["--trees", "2:1:1:8", "--models", "tree-coder,linear-active"];
    let first = grid(&place, &args);
    let other = place.path("out/sea/linear-active-b2-d8-seed0");
    let before = snapshot(&other);
    let run = "out/sea/tree-coder-k2-h1-b1-d8-seed0";
    let log = place.metrics(run);
    // As if it had been killed after its checkpoint of step 2.
    let last = place.path(run).join("checkpoints/step-00000003");
    fs::remove_dir_all(&last).unwrap();
    fs::remove_file(place.path(run).join("measured.json")).unwrap();
    let partial = grid(&place, &[&args[..], &["--only-table"]].concat());
    assert_eq!(partial["open"], json!(["sea/tree-coder-k2-h1-b1-d8-seed0"]));
    assert!(
        !last.try_exists().unwrap(),
        "nothing is trained for a table"
    );
    let second = grid(&place, &args);
    assert!(last.is_dir() && before == snapshot(&other));
    assert_eq!(place.metrics(run), log);
    let metrics = |numbers: &Value| {
        let case = &numbers["cases"][0];
        ["tree-coder", "linear-active"]
            .map(|model| entry(numbers, case, model, 0)["metrics"].clone())
    };
    assert_eq!(metrics(&first), metrics(&second));
    // Another call has nothing to do and says the same.
    assert_eq!(grid(&place, &args), second);
    let left: Vec<_> = fs::read_dir(place.path("out")).unwrap().collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn shards_make_the_whole_grid_and_the_table_says_what_is_missing() {
    let whole = place();
    let args = [
        "--trees",
        "2:1:1:8,3:1:1:8",
        "--models",
        "tree-coder,hash-route",
    ];
    let expected = grid(&whole, &args);
    let place = place();
    let part = |shard: &str| grid(&place, &[&args[..], &["--shard", shard]].concat());
    let first = part("2/3");
    assert_eq!(list(&first["open"]).len(), 3);
    assert_eq!(first["cases"][0]["lowest"], Value::Null);
    assert_eq!(first["wins"]["hash-route"]["cases"]["of"], 0);
    let page = fs::read_to_string(place.path("out/compare.md")).unwrap();
    assert!(
        page.contains(
            "3 of 4 runs are open, and not in this table: sea/tree-coder-k2-h1-b1-d8-seed0"
        ),
        "{page}"
    );
    assert_eq!(list(&part("3/3")["open"]).len(), 2);
    let last = part("1/3");
    assert_eq!(last["open"], json!([]));
    assert_eq!(last["wins"], expected["wins"]);
    for case in 0..2 {
        let lowest = |numbers: &Value| numbers["cases"][case]["lowest"].clone();
        assert_eq!(lowest(&last), lowest(&expected));
    }
}

#[test]
fn a_grid_within_its_text_is_refused_since_the_table_would_become_text() {
    let place = place();
    for out in ["sea", "sea/grid"] {
        let line = place.refuse(&[&GRID[..], &["--out", out]].concat());
        assert!(line.contains("is within the data"), "{line}");
    }
}

#[test]
fn what_was_measured_by_an_earlier_rule_is_measured_anew() {
    let place = place();
    let args = ["--trees", "2:1:1:8", "--models", "tree-coder"];
    let first = grid(&place, &args);
    let file = "out/sea/tree-coder-k2-h1-b1-d8-seed0/measured.json";
    let mut measured = place.json(file);
    // Another version of the family makes another fingerprint.
    assert_eq!(
        measured["entries"][0]["fingerprint"]
            .as_str()
            .unwrap()
            .len(),
        64
    );
    measured["entries"][0]["fingerprint"] = json!("0".repeat(64));
    measured["entries"][0]["metrics"]["loss"] = json!(0.5);
    fs::write(place.path(file), measured.to_string()).unwrap();
    assert_eq!(grid(&place, &args)["summary"], first["summary"]);
}

#[test]
fn grids_that_make_no_sense_are_refused_in_one_line() {
    let place = place();
    let cases: [(&[&str], &str); 20] = [
        (
            &["--trees", "2:1:8"],
            "expected branching:height:blocks:width",
        ),
        (
            &["--trees", "2:1:1:8", "--heights", "1"],
            "cannot be used with",
        ),
        (
            &["--trees", "2:1:1:8,2:1:1:8"],
            "--trees: 2:1:1:8 is given twice",
        ),
        (
            &["--heights", "1,0"],
            "tree 2:0:1:8 (branching:height:blocks:width) is linear",
        ),
        (
            &["--branching", "1"],
            "architecture.branching: expected at least 2, got 1",
        ),
        (
            &["--widths", "9"],
            "architecture.n_heads: expected a divisor of 9",
        ),
        (&["--corpora", "sea,nowhere.txt"], "nowhere.txt"),
        (
            &["--corpora", "sea,./sea"],
            "--corpora: sea is given twice: sea and ./sea",
        ),
        (&["--corpora", "/"], "/: a text of a grid needs a name"),
        (&["--corpora", "sea/nowhere/.."], "cannot read"),
        (
            &["--blocks", "18446744073709551615"],
            "architecture.blocks: expected 1 to",
        ),
        (
            &["--trees", "2:18446744073709551615:1:8"],
            "architecture.height: expected a tree of at most",
        ),
        (
            &["--models", "hash-route"],
            "expected tree-coder among the models of a grid",
        ),
        (&["--models", "tree-coder,dense"], "dense is for sequences"),
        (
            &["--rates", "1e-3"],
            "--rates: a grid has one learning rate",
        ),
        (&["--from", "sea"], "--from: lm starts from fresh weights"),
        (&["--shard", "0/2"], "expected I/N with I from 1 to N"),
        (&["--shard", "1/2", "--only-table"], "cannot be used with"),
        (&["--seeds", "1,1"], "--seeds: 1 is given twice"),
        (
            &["--set", "architecture.blocks=[1,1,2]"],
            "architecture.blocks: a grid takes one number",
        ),
    ];
    for (args, words) in cases {
        let line = refuse(&place, args);
        assert!(line.contains(words), "{words:?} is not in: {line}");
    }
    for alone in [&["--shard", "1/2"][..], &["--only-table"]] {
        let line = place.refuse(&[&GRID[..], alone].concat());
        assert!(line.contains("--out <FOLDER>"), "{line}");
    }
    let split = [
        "--set",
        "data.validation_source=land.txt",
        "--corpora",
        "sea",
    ];
    let line = refuse(&place, &split);
    assert!(
        line.contains("data.validation_source: is held-out"),
        "{line}"
    );
    let line = place.refuse(&["compare", "copy", "--models", "retreever", "--heights", "2"]);
    assert!(
        line.contains("--heights: only for lm, not for copy"),
        "{line}"
    );
}

#[test]
fn runs_with_other_settings_are_refused_before_the_first_step() {
    let place = place();
    let args = ["--trees", "2:1:1:8", "--models", "tree-coder"];
    grid(&place, &args);
    let both = ["--trees", "3:1:1:8,2:1:1:8", "--models", "tree-coder"];
    let line = refuse(&place, &[&both[..], &["--set", "batch_size=5"]].concat());
    assert!(
        line.contains("out/sea/tree-coder-k2-h1-b1-d8-seed0: holds a run with other settings")
            && line.contains("batch_size is 4, asked for 5"),
        "{line}"
    );
    // Another tokenizer.
    let learned = ["--set", r#"data.tokenizer={"kind":"bpe","vocabulary":270}"#];
    let line = refuse(&place, &[&args[..], &learned].concat());
    assert!(line.contains("data.tokenizer"), "{line}");
    // Another text behind the same settings.
    let path = place.path("sea/whale.txt");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("whale", "shark", 1)).unwrap();
    let line = refuse(&place, &args);
    assert!(
        line.contains("tree-coder-k2-h1-b1-d8-seed0: its text has changed: the training part"),
        "{line}"
    );
}

#[test]
fn a_run_that_diverged_loses_and_one_that_is_missing_takes_no_part() {
    let place = place();
    let args = [
        "--trees",
        "2:1:1:8,3:1:1:8",
        "--models",
        "tree-coder,hash-route",
        "--seeds",
        "0,1,2",
        "--set",
        "trainer.steps=1",
    ];
    grid(&place, &args);
    let path = |model: &str, tree: &str, seed: usize| {
        place.path(format!(
            "out/sea/{model}-{tree}-b1-d8-seed{seed}/measured.json"
        ))
    };
    let write = |model: &str, tree: &str, seed: usize, backend: &str, loss: Value| {
        let metrics = match loss {
            Value::Null => Value::Null,
            loss => json!({ "loss": loss, "perplexity": null }),
        };
        let file = path(model, tree, seed);
        let mut measured = place.json(&file);
        measured["entries"][0]["metrics"] = metrics;
        measured["entries"][0]["backend"] = json!(backend);
        fs::write(file, measured.to_string()).unwrap();
    };
    // One tree wins two seeds of three and loses its case by a run that diverged; of the other, both sides diverged
    // with seed 0, a control is missing with seed 1, and the tree is lower with seed 2.
    for (tree, seed, losses) in [
        ("k2-h1", 0, [json!(2.0), json!(3.0)]),
        ("k2-h1", 1, [Value::Null, json!(9.0)]),
        ("k2-h1", 2, [json!(1.0), json!(1.5)]),
        ("k3-h1", 0, [Value::Null, Value::Null]),
        ("k3-h1", 1, [json!(1.0), json!(2.0)]),
        ("k3-h1", 2, [json!(1.0), json!(4.0)]),
    ] {
        for (model, loss) in ["tree-coder", "hash-route"].into_iter().zip(losses) {
            let backend = ["flex", "cuda"][usize::from(seed == 2)];
            write(model, tree, seed, backend, loss);
        }
    }
    fs::remove_file(path("hash-route", "k3-h1", 1)).unwrap();
    let table = || grid(&place, &[&args[..], &["--only-table"]].concat());
    let numbers = table();
    let wins = &numbers["wins"]["hash-route"];
    let won = |wins: &Value| (number(&wins["won"]), number(&wins["of"]));
    assert_eq!(won(&wins["cases"]), (0.0, 1.0));
    assert_eq!(won(&wins["runs"]), (3.0, 5.0));
    let by_seed: Vec<_> = list(&wins["runs_by_seed"]).iter().map(won).collect();
    assert_eq!(by_seed, [(1.0, 2.0), (0.0, 1.0), (2.0, 2.0)]);
    assert!((number(&wins["share_of_runs"]["mean"]) - 0.5).abs() < 1e-9);
    assert!((number(&wins["share_of_runs"]["sd"]) - 0.5).abs() < 1e-9);
    assert_eq!(wins["difference"], Value::Null);
    assert_eq!(numbers["cases"][0]["lowest"], "hash-route");
    assert_eq!(list(&numbers["diverged"]).len(), 3);
    assert_eq!(list(&numbers["open"]).len(), 1);
    assert_eq!(numbers["backends"], json!(["cuda", "flex"]));
    let page = fs::read_to_string(place.path("out/compare.md")).unwrap();
    for words in [
        "backend cuda, flex",
        "1.500 ± 0.707, 1 diverged",
        "They lose every comparison",
        "share the runs of linear-active",
        "0.50 ± 0.50",
    ] {
        assert!(page.contains(words), "{words} is not in\n{page}");
    }

    fs::write(path("tree-coder", "k2-h1", 0), "{").unwrap();
    let line = refuse(&place, &[&args[..], &["--only-table"]].concat());
    assert!(
        line.contains("measured.json: not the numbers of a run"),
        "{line}"
    );
}
