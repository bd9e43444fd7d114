//! The part of the shared suite that runs whole commands: runs are trained on flex and used on the backend under
//! test, which `BURN_DEVICE` names.
#![cfg(feature = "flex")]

mod common;

use arbora::models::tree_coder::GREEDY_EPSILON;
use common::{Place, parse};
use serde_json::{Value, json};
use std::fs;

fn backend() -> String {
    std::env::var("BURN_DEVICE").unwrap_or_else(|_| "flex".into())
}

/// A place with the run `out`: a tree of three nodes that knows a few sentences.
fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("texts")).unwrap();
    for (name, sentence) in [
        ("whales", "The white whale swims far below the ship. "),
        ("cats", "A small grey cat sleeps on the warm stone wall. "),
    ] {
        fs::write(place.path(format!("texts/{name}.txt")), sentence.repeat(12)).unwrap();
    }
    let settings = json!({
        "data": {
            "source": "texts", "tokenizer": { "kind": "bytes" }, "window": 32, "validation": 0.25,
        },
        "batch_size": 8,
        "eval_batch_size": 4,
        "eval_items": 8,
        "architecture": {
            "d_model": 16, "n_heads": 2, "n_kv_heads": 2, "height": 1, "d_ff": [32],
            "route_on": { "kind": "first-n", "tokens": 4 },
        },
        "trainer": { "steps": 120, "eval_every": 120, "warmup_steps": 0 },
    });
    fs::write(place.path("language.json"), settings.to_string()).unwrap();
    place.succeed(&["train", "lm", "--config", "language.json", "--out", "out"]);
    place
}

#[test]
fn greedy_text_of_a_saved_run_is_that_of_flex_wherever_margins_exceed_the_epsilon() {
    let place = place();
    let prompts = ["The white", "A small", "whale swims", "on the warm stone"];
    let mut args = vec![
        "generate",
        "out",
        "--json",
        "--temperature",
        "0",
        "--tokens",
        "14",
    ];
    args.extend(prompts.iter().flat_map(|prompt| ["--prompt", *prompt]));
    let continued = |backend: &str| -> Vec<Value> {
        let found = parse(&place.succeed(&[&args[..], &["--backend", backend]].concat()));
        assert_eq!(found["backend"], backend);
        found["continuations"].as_array().unwrap().clone()
    };
    let (expected, found) = (continued("flex"), continued(&backend()));
    assert_eq!(
        (expected.len(), found.len()),
        (prompts.len(), prompts.len())
    );
    let mut compared = 0;
    for (expected, found) in expected.iter().zip(&found) {
        let margins = ["smallest_margin", "smallest_route_margin"];
        let margins = margins.map(|name| expected[name].as_f64().unwrap());
        if margins.iter().all(|margin| *margin > GREEDY_EPSILON) {
            assert_eq!(found["tokens"], expected["tokens"]);
            assert_eq!(found["leaves"], expected["leaves"]);
            compared += 1;
        }
    }
    assert!(compared >= 2, "{expected:?}");
}

#[test]
fn a_saved_run_is_measured_as_on_flex() {
    let place = place();
    let expected = &place.eval("out", &[])["metrics"];
    let found = &place.eval("out", &["--backend", &backend()])["metrics"];
    for name in ["loss", "bits_per_byte", "leaf_share_min"] {
        let (found, expected) = (found[name].as_f64(), expected[name].as_f64());
        let difference = found.unwrap() - expected.unwrap();
        assert!(
            difference.abs() < 1e-4,
            "{name}: {found:?} for {expected:?}"
        );
    }
}
