//! `arbora compare` as a person or a program calls it.
#![cfg(feature = "flex")]

mod common;

use common::{Place, parse, snapshot, stderr};
use serde_json::{Value, json};
use std::fs;

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

fn models(numbers: &Value) -> Vec<&Value> {
    numbers["models"].as_array().unwrap().iter().collect()
}

/// Settings for tasks whose preset is no tiny one.
fn small_settings(place: &Place) {
    let settings = json!({
        "batch_size": 2, "eval_batch_size": 2, "eval_items": 2, "test_items": 6,
        "architecture": {
            "d_model": 8, "d_ff": 8, "heads": 2, "embedding_depth": 1, "encoder_layers": 0,
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
    assert_eq!(numbers["seeds"], json!([3, 4]));
    let page = fs::read_to_string(place.path("out/compare.md")).unwrap();
    for (model, name) in models(&numbers).into_iter().zip(MODELS.split(',')) {
        assert_eq!(model["model"], name);
        let runs = model["runs"].as_array().unwrap();
        let mut log_likelihoods = Vec::new();
        for (run, seed) in runs.iter().zip([3, 4]) {
            let folder = format!("out/{name}-seed{seed}");
            assert_eq!(run["run"], folder.as_str());
            let config = place.json(format!("{folder}/config.json"));
            assert_eq!(
                (&config["model"], &config["trainer"]["seed"]),
                (&json!(name), &json!(seed))
            );
            let evaluated = place.eval(&folder, &[]);
            assert_eq!(evaluated["metrics"], run["metrics"], "{folder}");
            assert_eq!(evaluated["parameters"], model["parameters"]);
            log_likelihoods.push(run["metrics"]["log_likelihood"].as_f64().unwrap());
            for seconds in ["seconds_per_query", "training_seconds"] {
                assert!(run[seconds].as_f64().unwrap() > 0.0, "{seconds}");
            }
        }
        let [a, b] = log_likelihoods[..] else {
            panic!("expected two runs of {name}, got {runs:?}")
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
    let second = parse(&compare(&place, &args));
    assert!(last.is_dir());
    assert_eq!(place.metrics("out/retreever-seed0"), log);
    assert!(before == snapshot(&place.path("out/perceiver-seed0")));
    for (first, second) in models(&first).into_iter().zip(models(&second)) {
        assert_eq!(first["metrics"], second["metrics"]);
    }
    // What was printed is what was written.
    assert_eq!(place.json("out/compare.json"), second);
    let left: Vec<_> = fs::read_dir(place.path("out")).unwrap().collect();
    assert_eq!(left.len(), 4, "{left:?}");
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
    assert!(before == snapshot(&place.path(run)));
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
        let name = model["model"].as_str().unwrap();
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
            assert_eq!(run["run"], format!("out/{name}-seed{seed}-rate{chosen}"));
        }
        // The choice is made on the evaluation of the training, which its log has too.
        let log = place.metrics(&format!("out/{name}-seed0-rate{chosen}"));
        let last = parse(log.lines().last().unwrap());
        assert_eq!(last["log_likelihood"], best["log_likelihood"]);
        // The other seed has the chosen rate alone.
        for rate in rates {
            let there = place.path(format!("out/{name}-seed1-rate{rate}")).exists();
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
    assert!(published.starts_with("| perceiver "), "{copy}");
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
            "of another task",
        ),
    ];
    for (args, words) in cases {
        let message = refuse(&place, args);
        assert!(message.contains(words), "{words:?} is not in: {message}");
    }
    assert!(refuse(&place, &[]).contains("--models"));
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
        assert!(!place.path("out/compare.json").exists());
        let resumed = parse(&place.succeed(&args("out")));
        for (whole, resumed) in models(&whole).into_iter().zip(models(&resumed)) {
            assert_eq!(whole["metrics"], resumed["metrics"]);
        }
        return;
    }
    panic!("the comparison ended before it was stopped, 5 times");
}
