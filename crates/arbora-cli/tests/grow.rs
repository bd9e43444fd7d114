//! `arbora grow`: loops on contexts that grow, end to end.
#![cfg(feature = "flex")]

mod common;

use common::{Place, parse, snapshot};
use serde_json::{Value, json};
use std::fs;

/// Trains a network so small that four steps take no time, into `out`.
fn trained(task: &str, more: Value) -> Place {
    let place = Place::new();
    let data = match task {
        "bandit" => json!({ "kind": "bandit", "max_context": 24, "target_contexts": 2 }),
        _ => json!({ "kind": "gp", "max_points": 20 }),
    };
    let mut settings = json!({
        "data": data, "batch_size": 2, "eval_batch_size": 2, "eval_items": 2, "test_items": 2,
        "architecture": {
            "d_model": 8, "d_ff": 8, "n_heads": 2, "embedding_depth": 1, "encoder_layers": 0,
        },
        "trainer": { "steps": 4, "eval_every": 4, "checkpoint_every": 4, "warmup_steps": 0 },
    });
    for (key, value) in more.as_object().unwrap() {
        match value.as_object() {
            Some(inner) => inner.iter().for_each(|(name, value)| {
                settings[key][name] = value.clone();
            }),
            None => settings[key] = value.clone(),
        }
    }
    fs::write(place.path("loop.json"), settings.to_string()).unwrap();
    place.succeed(&["train", task, "--config", "loop.json", "--out", "out"]);
    place
}

/// `grow --json` for a few rounds.
fn grow(place: &Place, args: &[&str]) -> Value {
    let short = ["grow", "out", "--json", "--rounds", "12", "--repeats", "2"];
    parse(&place.succeed(&[&short[..], args].concat()))
}

/// The same numbers without times.
fn without_times(mut numbers: Value) -> Value {
    for method in numbers["methods"].as_array_mut().unwrap() {
        if let Some(cost) = method.get_mut("cost") {
            cost.as_object_mut()
                .unwrap()
                .remove("milliseconds_per_round");
        }
    }
    numbers
}

fn views(numbers: &Value) -> Vec<&str> {
    let methods = numbers["methods"].as_array().unwrap().iter();
    methods
        .map(|method| method["view"].as_str().unwrap())
        .collect()
}

/// What a method achieved: means in the order of the output.
fn means<'a>(method: &'a Value, key: &str) -> Vec<f64> {
    let regrets: &'a Vec<Value> = method["regret"].as_array().unwrap();
    regrets
        .iter()
        .map(|regret| regret[key]["mean"].as_f64().unwrap())
        .collect()
}

#[test]
fn a_bandit_run_chooses_arms_on_trees_that_grow() {
    let place = trained("bandit", json!({}));
    let numbers = grow(&place, &["--seed", "3"]);
    assert_eq!(numbers["loop"], "bandit");
    assert_eq!(numbers["streamed"], true);
    assert_eq!(numbers["encoded_anew_because"], Value::Null);
    assert_eq!(views(&numbers), ["learned", "random", "all-leaves"]);
    for method in numbers["methods"].as_array().unwrap() {
        let regrets = means(method, "percent_of_uniform");
        assert_eq!(regrets.len(), 5);
        // Outside of the core the best arm pays 50 and a uniform choice 10.84 on average.
        let worst = 100.0 * 49.0 / 39.0 + 1.0;
        let in_range = |regret: &f64| (0.0..worst).contains(regret);
        assert!(regrets[..2].iter().all(in_range), "{regrets:?}");
        let read = method["cost"]["nodes_read"].as_f64().unwrap();
        assert!((1.0..=11.0).contains(&read), "{read} of 11 tokens");
    }
    let leaves = &numbers["methods"][2]["cost"]["nodes_read"];
    assert_eq!(leaves.as_f64(), Some(11.0), "tokens before the last round");
    for file in ["grow-bandit.png", "grow-bandit.svg"] {
        assert!(place.path("out").join(file).metadata().unwrap().len() > 1000);
    }
}

#[test]
fn loops_repeat_themselves_with_the_same_seed_alone() {
    for task in ["bandit", "gp"] {
        let place = trained(task, json!({}));
        let numbers = |args: &[&str]| without_times(grow(&place, args));
        let first = numbers(&["--seed", "3"]);
        assert_eq!(first, numbers(&["--seed", "3"]));
        let other = numbers(&["--seed", "4"]);
        assert_ne!(first["methods"], other["methods"]);
        let ucb = numbers(&["--seed", "3", "--choice", "ucb"]);
        assert_ne!(first["methods"], ucb["methods"]);
    }
}

#[test]
fn a_gp_run_looks_for_maxima_and_random_search_is_beside_it() {
    let place = trained("gp", json!({ "architecture": { "encoder_layers": 0 } }));
    let numbers = grow(&place, &["--loop", "optimisation", "--out", "pictures"]);
    assert_eq!(numbers["streamed"], true);
    let expected = ["learned", "random", "all-leaves", "random-search"];
    assert_eq!(views(&numbers), expected);
    for method in numbers["methods"].as_array().unwrap() {
        let regrets = means(method, "simple_regret");
        assert_eq!(regrets.len(), 3, "after 5, 10 and 12 rounds");
        assert!(regrets.windows(2).all(|pair| pair[0] >= pair[1]));
        assert!(regrets[2] >= 0.0);
    }
    assert!(
        place
            .path("pictures/grow-optimisation.svg")
            .try_exists()
            .unwrap()
    );
    assert!(
        !place
            .path("out/grow-optimisation.svg")
            .try_exists()
            .unwrap()
    );
}

#[test]
fn a_quadratic_encoder_encodes_anew_and_says_why() {
    let place = trained("gp", json!({ "architecture": { "encoder_layers": 1 } }));
    let numbers = grow(&place, &[]);
    assert_eq!(numbers["streamed"], false);
    let reason = numbers["encoded_anew_because"].as_str().unwrap();
    assert!(reason.contains("encoder_layers = 1"), "{reason}");
    let args = ["grow", "out", "--rounds", "6", "--repeats", "1"];
    let text = place.succeed(&args);
    assert!(text.contains(reason), "{text}");
    assert!(text.contains("random search"), "{text}");
    // One function gives no standard error.
    assert!(!text.contains("NaN") && !text.contains(" ± "), "{text}");
}

#[test]
fn models_without_a_tree_play_on_their_whole_context() {
    for model in ["cross-attention", "perceiver"] {
        let place = trained("bandit", json!({ "model": model }));
        let numbers = grow(&place, &[]);
        assert_eq!(views(&numbers), ["whole"]);
        assert_eq!(numbers["streamed"], false);
        let reason = numbers["encoded_anew_because"].as_str().unwrap();
        assert!(reason.contains("no tree"), "{reason}");
        assert_eq!(means(&numbers["methods"][0], "percent_of_uniform").len(), 5);
    }
    let place = trained("bandit", json!({ "model": "random-route" }));
    assert_eq!(views(&grow(&place, &[])), ["random", "all-leaves"]);
}

#[test]
fn streamed_and_whole_contexts_lead_to_the_same_choices() {
    // Sorted leaves cannot be streamed. Attention to all leaves does not see in what order they lie, so
    // weights that hardly moved must choose alike.
    let run = |order: Value| {
        let still = json!({ "learning_rate": 1e-12, "final_learning_rate": 1e-12 });
        let settings = json!({ "architecture": { "order": order }, "trainer": still });
        grow(&trained("gp", settings), &["--seed", "1"])
    };
    let (streamed, anew) = (run(json!("given")), run(json!({ "axis": 0 })));
    assert_eq!(streamed["streamed"], true);
    assert_eq!(anew["streamed"], false);
    let reason = anew["encoded_anew_because"].as_str().unwrap();
    assert!(reason.contains("given order"), "{reason}");
    let all_leaves = |numbers: &Value| numbers["methods"][2]["regret"].clone();
    assert_eq!(views(&streamed)[2], "all-leaves");
    assert_eq!(all_leaves(&streamed), all_leaves(&anew));
}

#[test]
fn loops_that_do_not_fit_the_run_are_refused() {
    let place = trained("bandit", json!({}));
    place.train(&["--out", "images"]);
    let before = snapshot(&place.path("out"));
    let cases: [(&[&str], &str); 7] = [
        (
            &["out", "--loop", "optimisation"],
            "needs a run of the task gp, this one is of bandit",
        ),
        (
            &["images", "--loop", "bandit"],
            "needs a run of the task bandit, this one is of images",
        ),
        (
            &["images"],
            "loops need a run of the task bandit or gp, this one is of images",
        ),
        (&["out", "--rounds", "0"], "--rounds"),
        (&["out", "--repeats", "99999"], "--repeats"),
        (
            &["out", "--out", "loop.json"],
            "loop.json: expected a folder",
        ),
        (&["nowhere"], "nowhere: expected a run folder"),
    ];
    for (args, words) in cases {
        let message = place.refuse(&[&["grow"], args].concat());
        assert!(message.contains(words), "{message}");
    }
    assert!(before == snapshot(&place.path("out")));
}
