//! `arbora compare` as a person or a program calls it.
#![cfg(feature = "flex")]

mod common;

use common::{Place, parse, snapshot, stderr};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const MODELS: &str = "retreever,cross-attention,random-route";

/// Compares the tiny models on images; standard output.
fn compare(place: &Place, args: &[&str]) -> String {
    place.succeed(&[&["compare", "images", "--config", "tiny.json"], args].concat())
}

/// The refusal of a comparison of tiny models in the folder `out`.
fn refuse(place: &Place, args: &[&str]) -> String {
    let fixed = ["compare", "images", "--config", "tiny.json", "--out", "out"];
    place.refuse(&[&fixed, args].concat())
}

/// The lines of the table.
fn models(numbers: &Value) -> Vec<&Value> {
    numbers["summary"].as_array().unwrap().iter().collect()
}

/// What a run came to.
fn run<'a>(numbers: &'a Value, line: &str, seed: u64) -> &'a Value {
    let mut runs = numbers["runs"].as_array().unwrap().iter();
    runs.find(|run| run["line"] == line && run["seed"] == seed)
        .unwrap_or_else(|| panic!("no run of {line} with seed {seed}: {numbers}"))
}

/// The names of everything in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Settings for tasks whose preset is no tiny one.
fn small_settings(place: &Place) {
    let settings = json!({
        "batch_size": 2, "eval_batch_size": 2, "eval_items": 2, "test_items": 6,
        "architecture": {
            "d_model": 8, "d_ff": 8, "n_heads": 2, "embedding_depth": 1, "encoder_layers": 0,
        },
        "trainer": { "steps": 4, "eval_every": 2, "checkpoint_every": 2, "warmup_steps": 0 },
    });
    fs::write(place.path("small.json"), settings.to_string()).unwrap();
}

#[test]
fn every_model_and_seed_is_a_run_and_the_table_has_their_means() {
    let place = Place::new();
    let args = ["--models", MODELS, "--seeds", "3,4", "--out", "out"];
    let text = compare(&place, &args);
    let numbers = place.json("out/compare.json");
    let page = fs::read_to_string(place.path("out/compare.md")).unwrap();
    for (model, name) in models(&numbers).into_iter().zip(MODELS.split(',')) {
        assert_eq!(
            (&model["line"], &model["seeds"]),
            (&json!(name), &json!([3, 4]))
        );
        let mut log_likelihoods = Vec::new();
        for (at, seed) in [3, 4].into_iter().enumerate() {
            assert_eq!(model["runs"][at], format!("{name}-seed{seed}"));
            let folder = format!("out/{name}-seed{seed}");
            let config = place.json(format!("{folder}/config.json"));
            assert_eq!(
                (&config["model"], &config["trainer"]["seed"]),
                (&json!(name), &json!(seed))
            );
            let run = run(&numbers, name, seed);
            let evaluated = place.eval(&folder, &[]);
            assert_eq!(evaluated["metrics"], run["metrics"], "{folder}");
            assert_eq!(evaluated["parameters"], model["parameters"]);
            log_likelihoods.push(run["metrics"]["log_likelihood"].as_f64().unwrap());
            let times = numbers["times"]["runs"].as_array().unwrap().iter();
            let mut times = times.filter(|times| times["run"] == format!("{name}-seed{seed}"));
            let times = times.next().unwrap();
            for seconds in ["seconds_per_query", "training_seconds"] {
                assert!(times[seconds].as_f64().unwrap() > 0.0, "{seconds}");
                assert!(run.get(seconds).is_none(), "times are in no entry");
            }
        }
        let [a, b] = log_likelihoods[..] else {
            panic!("expected two runs of {name}, got {log_likelihoods:?}")
        };
        let statistic = &model["metrics"]["log_likelihood"];
        let close = |key: &str, expected: f64| {
            let got = statistic[key].as_f64().unwrap();
            assert!((got - expected).abs() < 1e-9, "{key}: {got} for {expected}");
        };
        close("mean", (a + b) / 2.0);
        close("sd", (a - b).abs() / 2f64.sqrt());
        let cell = format!("{:.3} ± {:.3}", (a + b) / 2.0, (a - b).abs() / 2f64.sqrt());
        for shown in [&text, &page] {
            let mut lines = shown.lines();
            let row = lines.find(|line| line.starts_with(&format!("| {name} ")));
            assert!(row.unwrap().contains(&cell), "{cell} is not in\n{shown}");
        }
    }
    // The publication's images are others, and the table says so.
    assert!(page.contains("1.41 ± 0.00 [B]") && page.contains("Other data than ours"));
    assert!(!page.contains("NaN"), "{page}");
}

#[test]
fn a_second_call_keeps_what_is_finished_and_resumes_what_is_not() {
    let place = Place::new();
    let args = ["--models", "retreever,perceiver", "--out", "out", "--json"];
    let first = parse(&compare(&place, &args));
    let before = snapshot(&place.path("out/perceiver-seed0"));
    let log = place.metrics("out/retreever-seed0");
    // As if it had been killed after its checkpoint of step 4.
    let last = place.path("out/retreever-seed0/checkpoints/step-00000006");
    fs::remove_dir_all(&last).unwrap();
    fs::remove_file(place.path("out/retreever-seed0/measured.json")).unwrap();
    let second = parse(&compare(&place, &args));
    assert!(last.is_dir());
    assert_eq!(place.metrics("out/retreever-seed0"), log);
    assert!(before == snapshot(&place.path("out/perceiver-seed0")));
    for (first, second) in models(&first).into_iter().zip(models(&second)) {
        assert_eq!(first["metrics"], second["metrics"]);
    }
    // What was printed is what was written.
    assert_eq!(place.json("out/compare.json"), second);
    let mut left = names(&place.path("out"));
    left.retain(|name| !name.ends_with(".png") && !name.ends_with(".svg"));
    assert_eq!(
        left,
        [
            "compare.json",
            "compare.md",
            "perceiver-seed0",
            "retreever-seed0"
        ]
    );
}

#[test]
fn a_run_that_was_trained_alone_is_taken_as_it_is() {
    let place = Place::new();
    let run = "out/cross-attention-seed5";
    place.train(&["--model", "cross-attention", "--seed", "5", "--out", run]);
    let before = snapshot(&place.path(run));
    let args = [
        "--models",
        "cross-attention",
        "--seeds",
        "5",
        "--out",
        "out",
    ];
    compare(&place, &args);
    let mut after = snapshot(&place.path(run));
    // What it came to is kept beside it.
    assert!(
        after
            .remove(&place.path("out/cross-attention-seed5/measured.json"))
            .is_some()
    );
    assert!(before == after);
}

#[test]
fn every_model_takes_the_learning_rate_with_the_highest_log_likelihood() {
    let place = Place::new();
    let rates = ["1e-2", "1e-4", "1e20"];
    let numbers = parse(&compare(
        &place,
        &[
            "--models",
            "retreever,cross-attention",
            "--rates",
            &rates.join(","),
            "--seeds",
            "0,1",
            "--out",
            "out",
            "--json",
        ],
    ));
    let page = fs::read_to_string(place.path("out/compare.md")).unwrap();
    for model in models(&numbers) {
        let name = model["line"].as_str().unwrap();
        let tried = model["learning_rates_tried"].as_array().unwrap();
        assert_eq!(tried.len(), 3);
        let of = |tried: &Value| {
            tried["log_likelihood"]
                .as_f64()
                .unwrap_or(f64::NEG_INFINITY)
        };
        let best = tried.iter().max_by(|a, b| of(a).total_cmp(&of(b))).unwrap();
        assert_eq!(model["learning_rate"], best["learning_rate"]);
        assert!(
            of(best) > of(&tried[2]),
            "no rate that high can win: {tried:?}"
        );
        let chosen = format!("{:e}", best["learning_rate"].as_f64().unwrap());
        for (seed, run) in model["runs"].as_array().unwrap().iter().enumerate() {
            assert_eq!(*run, format!("{name}-seed{seed}-rate{chosen}"));
        }
        // The choice is made on the evaluation of the training, which its log has too.
        let log = place.metrics(&format!("out/{name}-seed0-rate{chosen}"));
        let last = parse(log.lines().last().unwrap());
        assert_eq!(last["log_likelihood"], best["log_likelihood"]);
        // The other seed has the chosen rate alone.
        for rate in rates {
            let there = place
                .path(format!("out/{name}-seed1-rate{rate}"))
                .try_exists()
                .unwrap();
            assert_eq!(there, rate == chosen, "{name} {rate}");
        }
        assert!(page.contains(&chosen), "{page}");
    }
}

#[test]
fn classes_have_accuracies_and_kinds_have_columns_of_their_own() {
    let place = Place::new();
    small_settings(&place);
    let run = |task: &str, models: &str| {
        let args = [
            "compare",
            task,
            "--config",
            "small.json",
            "--models",
            models,
            "--out",
            task,
        ];
        place.succeed(&args)
    };
    let copy = run("copy", "retreever,oracle-route");
    let titles = copy.lines().next().unwrap();
    assert!(
        titles.contains("accuracy, %") && titles.contains("log-lik"),
        "{copy}"
    );
    assert!(copy.contains("| oracle-route "), "{copy}");
    // Published numbers stand beside ours, each with its source.
    let published = copy.lines().find(|line| line.contains("15.2 [2]")).unwrap();
    assert!(published.starts_with("| Perceiver IO"), "{copy}");
    assert!(copy.contains("[2] secondary source"), "{copy}");

    let gp = run("gp", "cross-attention");
    let titles = gp.lines().next().unwrap();
    for title in ["log-lik ", "log-lik, matern", "log-lik, periodic"] {
        assert!(titles.contains(title), "{title} is not in\n{gp}");
    }
    assert!(!titles.contains("accuracy"), "{gp}");
}

#[test]
fn comparisons_without_a_folder_are_numbered() {
    let place = Place::new();
    for number in 1..=2 {
        compare(&place, &["--models", "cross-attention"]);
        let folder = format!("runs/images-compare-{number}");
        assert!(place.path(folder).join("compare.md").is_file());
    }
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    let place = Place::new();
    let cases: [(&[&str], &str); 8] = [
        (&["--models", "retreever,abacus"], "invalid value 'abacus'"),
        (
            &["--models", "perceiver,perceiver"],
            "perceiver is given twice",
        ),
        (
            &["--models", "perceiver", "--seeds", "1,1"],
            "--seeds: 1 is given twice",
        ),
        (
            &["--models", "perceiver", "--rates", "1e-3,0.001"],
            "--rates: 0.001 is given twice",
        ),
        (
            &["--models", "perceiver", "--rates", "1e-3,-1"],
            "trainer.learning_rate",
        ),
        (
            &["--models", "retreever,oracle-route"],
            "does not know which token answers",
        ),
        (
            &["--models", "perceiver", "--set", "batch_size=0"],
            "batch_size: expected 1",
        ),
        (
            &["--models", "perceiver", "--set", "task=gp"],
            "expected those of task gp",
        ),
    ];
    for (args, words) in cases {
        let message = refuse(&place, args);
        assert!(message.contains(words), "{words:?} is not in: {message}");
    }
    let message = place.refuse(&["compare", "copy", "--out", "out"]);
    assert!(message.contains("--models"), "{message}");
}

#[test]
fn folders_with_something_else_are_refused_before_the_first_step() {
    let place = Place::new();
    let both = ["--models", "cross-attention,retreever"];
    compare(&place, &["--models", "retreever", "--out", "out"]);
    // The model that comes first would have trained for hours.
    let message = refuse(&place, &[&both[..], &["--set", "trainer.steps=7"]].concat());
    assert!(
        message.contains("out/retreever-seed0: holds a run with other settings")
            && message.contains("trainer.steps is 6, asked for 7"),
        "{message}"
    );
    fs::remove_file(place.path("out/retreever-seed0/config.json")).unwrap();
    assert!(refuse(&place, &both).contains("already holds a run"));
    fs::remove_dir_all(place.path("out")).unwrap();
    fs::write(place.path("out"), "a file").unwrap();
    assert!(refuse(&place, &both).contains("expected a folder"));
}

#[cfg(unix)]
#[test]
fn a_comparison_stopped_by_ctrl_c_goes_on_as_if_nothing_had_happened() {
    use std::process::Command;
    use std::time::{Duration, Instant};

    let place = Place::new();
    let args = |out: &'static str| {
        let fixed = [
            "compare",
            "images",
            "--config",
            "tiny.json",
            "--json",
            "--models",
        ];
        let more = [
            "cross-attention,retreever",
            "--set",
            "trainer.steps=150",
            "--out",
            out,
        ];
        [&fixed[..], &more].concat()
    };
    let whole = parse(&place.succeed(&args("whole")));
    // Too late on a machine that is fast at the wrong moment: again.
    for _ in 0..5 {
        let _ = fs::remove_dir_all(place.path("out"));
        let child = place.command(args("out")).spawn().unwrap();
        let log = place.path("out/cross-attention-seed0/metrics.jsonl");
        let started = Instant::now();
        while fs::read_to_string(&log).map_or(0, |log| log.lines().count()) < 20 {
            assert!(
                started.elapsed() < Duration::from_secs(120),
                "no step in two minutes"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
        assert!(sent.success());
        let output = child.wait_with_output().unwrap();
        if output.status.code() == Some(0) {
            continue;
        }
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert!(stderr(&output).contains("--out out"), "{}", stderr(&output));
        assert!(!place.path("out/compare.json").try_exists().unwrap());
        let resumed = parse(&place.succeed(&args("out")));
        for (whole, resumed) in models(&whole).into_iter().zip(models(&resumed)) {
            assert_eq!(whole["metrics"], resumed["metrics"]);
        }
        return;
    }
    panic!("the comparison ended before it was stopped, 5 times");
}

#[test]
fn images_without_models_are_the_first_command_of_the_readme() {
    let place = Place::new();
    let text = compare(&place, &["--out", "out"]);
    for part in [
        "| retreever ",
        "| cross-attention ",
        "All 2 runs are finished",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    for picture in ["curves.png", "completion.png"] {
        assert!(place.path("out").join(picture).is_file(), "{picture}");
    }
    // The words of the experiment of this name.
    let page = fs::read_to_string(place.path("out/compare.md")).unwrap();
    assert!(
        page.starts_with("# Image completion on the bundled sample\n"),
        "{page}"
    );
    assert!(
        page.contains("that of dense attention with the same encoder, on the one seed"),
        "{page}"
    );
}

/// An experiment of two rows on the tiny images, in `tiny-experiment.json`.
fn experiment(place: &Place) {
    let experiment = json!({
        "name": "tiny", "title": "Tiny models", "about": "As small as they come.", "task": "images",
        "seeds": [0, 1],
        "rows": [
            {"name": "dense", "title": "dense attention", "model": "cross-attention"},
            {"name": "tree", "title": "a tree", "model": "retreever", "at_random": "at random",
             "settings": ["architecture.order=morton"]},
        ],
        "columns": [
            {"metric": "log_likelihood", "title": "log-lik", "digits": 3}, "parameters", "training_seconds",
        ],
    });
    fs::write(place.path("tiny-experiment.json"), experiment.to_string()).unwrap();
}

const FILE: [&str; 8] = [
    "compare",
    "tiny-experiment.json",
    "--config",
    "tiny.json",
    "--page",
    "page.md",
    "--out",
    "out",
];

fn of_file(args: &[&str]) -> Vec<String> {
    let all = [&FILE[..], args].concat();
    all.into_iter().map(String::from).collect()
}

/// Runs the experiment of the file; its output.
fn run_file(place: &Place, args: &[&str]) -> std::process::Output {
    let args = of_file(args);
    place.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn page(place: &Place) -> String {
    fs::read_to_string(place.path("page.md")).unwrap()
}

/// A row of the page's first table.
fn row(page: &str, title: &str) -> String {
    let mut rows = page
        .lines()
        .filter(|line| line.starts_with(&format!("| {title} ")));
    let row = rows
        .next()
        .unwrap_or_else(|| panic!("no row {title} in\n{page}"));
    row.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn stored_numbers_are_not_trained_again_when_the_folder_is_gone() {
    let place = Place::new();
    experiment(&place);
    assert_eq!(run_file(&place, &[]).status.code(), Some(0));
    let (first, stored) = (page(&place), place.json("page.json"));
    assert!(first.starts_with(
        "# Tiny models\n\nAs small as they come.\n\n<!-- begin: made by `arbora compare` -->"
    ));
    let runs = stored["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2 * 3, "with the same weights at random");
    for run in runs {
        for key in ["fingerprint", "commit", "backend"] {
            assert!(
                run[key].as_str().is_some_and(|text| !text.is_empty()),
                "{key}: {run}"
            );
        }
        assert_eq!(run["fingerprint"].as_str().unwrap().len(), 64);
    }
    fs::remove_dir_all(place.path("out")).unwrap();
    for args in [&[][..], &["--only-table"]] {
        let output = run_file(&place, args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(
            !place.path("out").try_exists().unwrap(),
            "nothing is trained"
        );
    }
    let again = page(&place);
    for title in ["dense attention", "a tree", "at random"] {
        let [first, again] = [&first, &again].map(|page| row(page, title));
        // All but the time, which is that of this machine's runs and of no store.
        let less = |row: &str| {
            let cells: Vec<&str> = row.split('|').collect();
            (
                cells[..cells.len() - 2].join("|"),
                cells[cells.len() - 2].trim().to_owned(),
            )
        };
        assert_eq!(less(&first).0, less(&again).0);
        assert_eq!(less(&again).1, "", "{again}");
        assert_eq!(less(&first).1.is_empty(), title == "at random", "{first}");
    }
    assert_eq!(place.json("page.json")["runs"], stored["runs"]);
    assert!(place.json("page.json").get("times").is_none());

    // --again repeats them, and repeats what it has made.
    for folders in [
        &["dense-seed1", "tree-seed1"][..],
        &[
            "dense-seed1",
            "dense-seed1-before-1",
            "tree-seed1",
            "tree-seed1-before-1",
        ],
    ] {
        let output = run_file(&place, &["--again", "--seeds", "1"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(names(&place.path("out")), folders);
    }
    // Those of the other seed stay where they are.
    assert_eq!(place.json("page.json")["runs"].as_array().unwrap().len(), 6);
}

#[test]
fn a_repetition_that_is_stopped_goes_on_where_it_was() {
    let place = Place::new();
    experiment(&place);
    let run = |args: &[&str]| {
        let output = run_file(&place, args);
        (output.status.code(), stderr(&output))
    };
    assert_eq!(run(&["--seeds", "0"]).0, Some(0));
    let stored = || {
        let mut runs = place.json("page.json")["runs"].as_array().unwrap().clone();
        runs.sort_by_key(|run| run["fingerprint"].to_string());
        runs
    };
    let first = stored();
    let (code, told) = run(&["--seeds", "0", "--again", "--hours", "0"]);
    assert_eq!(code, Some(130), "{told}");
    // What is stored stays until there is something in its place.
    assert_eq!(stored(), first);
    let plan = |args: &[&str]| {
        let args = of_file(&[&["--seeds", "0", "--plan"], args].concat());
        let text = place.succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
        text.matches("to be trained again").count()
    };
    assert_eq!(plan(&[]), 2);
    // One line alone, then the other, then nothing.
    let shard = |shard: &str| run(&["--seeds", "0", "--shard", shard]);
    let (code, told) = shard("1/2");
    assert_eq!((code, plan(&[])), (Some(0), 1), "{told}");
    let (code, told) = run(&["--seeds", "0", "--again"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("dense-seed0: finished before"), "{told}");
    assert!(
        told.contains("tree-seed0: trained again; what was there is out/tree-seed0-before-1"),
        "{told}"
    );
    assert_eq!(plan(&[]), 0);
    assert_eq!(stored(), first);
    assert_eq!(plan(&["--again"]), 2);
}

#[test]
fn what_another_version_or_another_backend_trained_is_kept_and_trained_anew() {
    let place = Place::new();
    experiment(&place);
    let run = || {
        let output = run_file(&place, &["--seeds", "0"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stderr(&output)
    };
    run();
    let made = "out/dense-seed0/made.json";
    assert_eq!(place.json(made), json!([{"version": 1, "backend": "flex"}]));
    for other in [
        json!([{"version": 0, "backend": "flex"}]),
        // It was resumed elsewhere.
        json!([{"version": 1, "backend": "flex"}, {"version": 1, "backend": "cuda"}]),
    ] {
        fs::write(place.path(made), other.to_string()).unwrap();
        // The numbers here are stored, whatever became of the folder.
        assert!(run().contains("dense-seed0: finished before"));
        fs::write(place.path("page.json"), r#"{"runs": []}"#).unwrap();
        let told = run();
        assert!(told.contains("dense-seed0: trained again"), "{told}");
        assert_eq!(place.json(made), json!([{"version": 1, "backend": "flex"}]));
    }
    let kept = place.json("out/dense-seed0-before-1/made.json");
    assert_eq!(kept, json!([{"version": 0, "backend": "flex"}]));
    // What trained a run of before is not known.
    fs::remove_file(place.path(made)).unwrap();
    fs::write(place.path("page.json"), r#"{"runs": []}"#).unwrap();
    assert!(run().contains("dense-seed0: finished before"));
}

#[test]
fn numbers_of_other_backends_stay_beside_those_of_a_whole_experiment() {
    let place = Place::new();
    experiment(&place);
    // Settings that the file has are part of the experiment; those of the command make less than all of it.
    let mut all = place.json("tiny-experiment.json");
    let mut settings = Vec::new();
    for (key, value) in place.json("tiny.json").as_object().unwrap() {
        match value.as_object().filter(|_| key != "data") {
            Some(group) => {
                let own = group
                    .iter()
                    .map(|(name, value)| format!("{key}.{name}={value}"));
                settings.extend(own);
            }
            None => settings.push(format!("{key}={value}")),
        }
    }
    all["settings"] = json!(settings);
    fs::write(place.path("tiny-experiment.json"), all.to_string()).unwrap();
    let run = |more: &[&str]| {
        let fixed = [
            "compare",
            "tiny-experiment.json",
            "--page",
            "page.md",
            "--out",
            "out",
        ];
        place.succeed(&[&fixed[..], more].concat());
        place.json("page.json")["runs"].as_array().unwrap().clone()
    };
    let mut runs = run(&[]);
    let own = runs.len();
    for (digit, key, value) in [
        ("1", "backend", json!("cuda")),
        ("2", "version", json!(0)),
        ("3", "line", json!("of settings that are no more")),
    ] {
        let mut other = runs[0].clone();
        other["fingerprint"] = json!(digit.repeat(64));
        other[key] = value;
        runs.push(other);
    }
    fs::write(place.path("page.json"), json!({ "runs": runs }).to_string()).unwrap();
    // Less than all of it forgets nothing but what another version made, and all of it keeps the other backend's.
    assert_eq!(run(&["--seeds", "0"]).len(), own + 2);
    let runs = run(&[]);
    assert_eq!(runs.len(), own + 1);
    assert!(runs.iter().any(|run| run["backend"] == "cuda"));
}

#[test]
fn numbers_of_other_settings_versions_and_backends_are_not_those_of_a_run() {
    let place = Place::new();
    experiment(&place);
    let only = ["--seeds", "0"];
    assert_eq!(run_file(&place, &only).status.code(), Some(0));
    fs::remove_dir_all(place.path("out")).unwrap();
    let open = |args: &[&str]| {
        let args = of_file(&[&["--seeds", "0", "--plan", "--json"], args].concat());
        let text = place.succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let list = parse(&text);
        let states = list.as_array().unwrap().iter();
        states.filter(|run| run["state"] == "not begun").count()
    };
    assert_eq!(open(&[]), 0);
    // How much is kept of a run changes no number.
    assert_eq!(open(&["--set", "trainer.checkpoint_every=3"]), 0);
    assert_eq!(open(&["--steps", "7"]), 2);
    assert_eq!(open(&["--set", "trainer.learning_rate=0.5"]), 2);
    // As if an earlier version had measured it, or another backend: the fingerprint is another.
    let mut stored = place.json("page.json");
    stored["runs"][0]["fingerprint"] = json!("0".repeat(64));
    fs::write(place.path("page.json"), stored.to_string()).unwrap();
    assert_eq!(open(&[]), 1);
    // Another file behind the same settings.
    let mut images = fs::read(place.path("train.idx")).unwrap();
    *images.last_mut().unwrap() ^= 1;
    fs::write(place.path("train.idx"), images).unwrap();
    assert_eq!(open(&[]), 2);
}

#[test]
fn hours_stop_between_runs_and_the_same_command_goes_on() {
    let place = Place::new();
    experiment(&place);
    let output = run_file(&place, &["--hours", "0"]);
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let told = stderr(&output);
    assert!(
        told.contains("open: dense-seed0, tree-seed0, dense-seed1, tree-seed1")
            && told.contains("--out out"),
        "{told}"
    );
    assert!(page(&place).contains("4 of 4 runs are open, and not in this table: dense-seed0"));
    assert!(!place.path("out").try_exists().unwrap());
    let output = run_file(&place, &["--hours", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(page(&place).contains("All 4 runs are finished."));
}

#[test]
fn shards_share_an_experiment_and_its_folder_may_lie_anywhere() {
    let place = Place::new();
    experiment(&place);
    let elsewhere = tempfile::tempdir().unwrap();
    let out = elsewhere.path().join("runs");
    let run = |shard: &str| {
        let args = [
            "compare",
            "tiny-experiment.json",
            "--config",
            "tiny.json",
            "--page",
            "page.md",
            "--shard",
            shard,
            "--json",
            "--out",
            out.to_str().unwrap(),
        ];
        parse(&place.succeed(&args))
    };
    let first = run("1/2");
    assert_eq!(first["open"], json!(["tree-seed0", "tree-seed1"]));
    assert_eq!(names(&out), ["dense-seed0", "dense-seed1"]);
    let second = run("2/2");
    assert_eq!(second["open"], json!([]));
    assert_eq!(names(&out).len(), 4);
    assert!(!place.path("runs").try_exists().unwrap());
    // As one process would have it.
    assert_eq!(run_file(&place, &["--only-table"]).status.code(), Some(0));
    assert_eq!(place.json("page.json")["summary"], second["summary"]);
}

#[test]
fn a_row_starts_from_the_weights_of_another_which_are_made_again_where_they_are_gone() {
    let place = Place::new();
    let experiment = json!({
        "name": "tuned", "title": "Tuned", "task": "recall", "seeds": [0],
        "settings": [
            "data.length=32", "data.pairs=4", "data.keys=8", "data.values=8", "data.curriculum=[]", "batch_size=2",
            "eval_batch_size=2", "eval_items=2", "test_items=2", "architecture.d_model=8", "architecture.d_ff=8",
            "trainer.steps=3", "trainer.eval_every=3", "trainer.checkpoint_every=3", "trainer.warmup_steps=0",
            "attention.tree_fine.router.branching=[2]",
        ],
        "rows": [
            {"name": "dense", "title": "dense", "model": "dense"},
            {"name": "tree", "title": "tree", "model": "tree-fine", "from": "dense"},
        ],
    });
    fs::write(place.path("tiny-experiment.json"), experiment.to_string()).unwrap();
    let run = |args: &[&str]| {
        let fixed = [
            "compare",
            "tiny-experiment.json",
            "--page",
            "page.md",
            "--out",
            "out",
        ];
        place.run(&[&fixed[..], args].concat())
    };
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let config = place.json("out/tree-seed0/config.json");
    assert!(
        config["from"]
            .as_str()
            .unwrap()
            .ends_with("out/dense-seed0")
    );
    let stored = place.json("page.json");
    // The numbers of the tree alone are missing, and all folders.
    fs::remove_dir_all(place.path("out")).unwrap();
    let mut less = stored.clone();
    less["runs"]
        .as_array_mut()
        .unwrap()
        .retain(|run| run["line"] == "dense");
    fs::write(place.path("page.json"), less.to_string()).unwrap();
    let output = run(&[]);
    assert!(
        stderr(&output).contains("training for its weights"),
        "{}",
        stderr(&output)
    );
    assert_eq!(place.json("page.json")["runs"], stored["runs"]);
}

#[test]
fn a_folder_with_other_settings_is_refused_by_key() {
    let place = Place::new();
    experiment(&place);
    let dense = ["--seeds", "1"];
    assert_eq!(run_file(&place, &dense).status.code(), Some(0));
    let args = of_file(&["--steps", "7"]);
    let message = place.refuse(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        message.contains(
            "out/dense-seed1: holds a run with other settings: trainer.steps is 6, asked for 7"
        ),
        "{message}"
    );
}

#[test]
fn a_run_is_finished_when_its_last_checkpoint_is_there() {
    let place = Place::new();
    experiment(&place);
    let state = || {
        let args = of_file(&["--seeds", "0", "--plan"]);
        let text = place.succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("out/dense-seed0: "));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert_eq!(state(), "not begun");
    place.train(&["--model", "cross-attention", "--out", "out/dense-seed0"]);
    assert_eq!(state(), "trained");
    fs::remove_dir_all(place.path("out/dense-seed0/checkpoints/step-00000006")).unwrap();
    assert_eq!(state(), "not finished");
}

#[test]
fn a_bad_experiment_file_is_refused_in_one_line_that_names_the_key() {
    let place = Place::new();
    let good = || {
        experiment(&place);
        place.json("tiny-experiment.json")
    };
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 9] = [
        (
            |file| file["rows"][1]["modle"] = json!("x"),
            "rows[1].modle: unknown field `modle`",
        ),
        (
            |file| file["seeds"] = json!([0, "one"]),
            "seeds[1]: invalid type",
        ),
        (
            |file| file["columns"][0]["digits"] = json!("three"),
            "columns[0]: expected {metric, title, digits}",
        ),
        (
            |file| file["task"] = json!("tasks"),
            "task: expected one of images",
        ),
        (
            |file| file["rows"][0]["model"] = json!("dense"),
            "rows[0].model: expected one of retreever",
        ),
        (
            |file| file["rows"][1]["from"] = json!("abacus"),
            "rows[1].from: expected the name of an earlier row",
        ),
        (
            |file| file["rows"][1]["name"] = json!("dense"),
            "rows: dense is named twice",
        ),
        (
            |file| file["rows"][1]["settings"][0] = json!("architecture.ordre=axis"),
            "unknown key architecture.ordre",
        ),
        (
            |file| file["rows"] = json!([]),
            "rows: expected at least one",
        ),
    ];
    for (change, words) in cases {
        let mut file = good();
        change(&mut file);
        fs::write(place.path("tiny-experiment.json"), file.to_string()).unwrap();
        let message = place.refuse(&[
            "compare",
            "tiny-experiment.json",
            "--config",
            "tiny.json",
            "--out",
            "out",
        ]);
        assert!(message.contains(words), "{words:?} is not in: {message}");
    }
    fs::write(place.path("tiny-experiment.json"), "{").unwrap();
    assert!(
        place
            .refuse(&["compare", "tiny-experiment.json"])
            .contains("tiny-experiment.json")
    );
    let message = place.refuse(&["compare", "nothing"]);
    assert!(
        message.contains("expected one of images, copy"),
        "{message}"
    );
    // A page without room for the table.
    good();
    fs::write(place.path("page.md"), "# Mine\n").unwrap();
    let args = of_file(&[]);
    let message = place.refuse(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        message.contains("in page.md: no line <!-- begin: made by"),
        "{message}"
    );
}

#[test]
fn runs_from_other_weights_are_other_runs_whatever_their_settings() {
    let place = Place::new();
    let tiny = json!({
        "data": {"length": 32, "pairs": 4, "keys": 8, "values": 8, "curriculum": []},
        "batch_size": 2, "eval_batch_size": 2, "eval_items": 2, "test_items": 2,
        "architecture": {"d_model": 8, "d_ff": 8},
        "trainer": {"steps": 3, "eval_every": 3, "checkpoint_every": 3, "warmup_steps": 0},
    });
    fs::write(place.path("recall.json"), tiny.to_string()).unwrap();
    for (out, seed) in [("one", "1"), ("two", "2")] {
        let args = [
            "train",
            "recall",
            "--config",
            "recall.json",
            "--out",
            out,
            "--seed",
            seed,
        ];
        place.succeed(&args);
    }
    // As if both were of one seed, and had come to other weights all the same.
    fs::copy(place.path("one/config.json"), place.path("two/config.json")).unwrap();
    let run = |from: &str| {
        let out = format!("from-{from}");
        let args = [
            "compare",
            "recall",
            "--models",
            "dense",
            "--config",
            "recall.json",
            "--page",
            "page.md",
            "--from",
            from,
            "--out",
            &out,
        ];
        let output = place.run(&args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stderr(&output)
    };
    for from in ["one", "two"] {
        assert!(run(from).contains("dense-seed0: training"), "{from}");
    }
    // Both are stored.
    assert_eq!(place.json("page.json")["runs"].as_array().unwrap().len(), 2);
    fs::remove_dir_all(place.path("from-one")).unwrap();
    assert!(run("one").contains("dense-seed0: finished before"));
}
