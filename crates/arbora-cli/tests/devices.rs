//! `arbora devices`: what is compiled in, and what a run would take.
#![cfg(feature = "flex")]

mod common;

use common::{Place, parse, stderr};
use serde_json::{Value, json};

/// The list as JSON, with `BURN_DEVICE` set.
fn devices(device: Option<&str>, threads: &str) -> Value {
    let place = Place::new();
    let mut command = place.command(["devices", "--json"]);
    command.env("RAYON_NUM_THREADS", threads);
    // Without it a driver writes about it on standard error.
    command.env("XDG_RUNTIME_DIR", place.path("."));
    if let Some(device) = device {
        command.env("BURN_DEVICE", device);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    parse(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn flex_runs_and_is_taken() {
    let answer = devices(None, "3");
    assert_eq!(answer["taken"], "flex");
    assert_eq!(answer["refused"], Value::Null);
    let flex =
        json!({ "name": "flex", "runs": true, "reason": null, "adapter": null, "driver": null });
    assert_eq!(answer["backends"][0], flex);
    assert_eq!(answer["cpu"]["threads"], 3);
    let instructions = answer["cpu"]["instructions"].as_str().unwrap();
    assert!(["AVX-512", "AVX2", "portable"].contains(&instructions));
    assert_eq!(devices(Some("flex"), "1")["taken"], "flex");
}

#[test]
fn every_backend_says_in_one_line_whether_it_runs() {
    for backend in devices(None, "1")["backends"].as_array().unwrap() {
        match backend["reason"].as_str() {
            None => assert_eq!(backend["runs"], true),
            Some(reason) => {
                assert_eq!(backend["runs"], false);
                assert_eq!(reason.lines().count(), 1, "{reason}");
                assert!(!reason.contains("panicked"), "{reason}");
            }
        }
    }
}

#[test]
fn a_device_that_no_run_can_take_is_part_of_the_answer() {
    let answer = devices(Some("abacus"), "1");
    assert_eq!(answer["taken"], Value::Null);
    let refused = answer["refused"].as_str().unwrap();
    assert!(refused.starts_with("unknown backend abacus; known: flex"));
    assert_eq!(answer["backends"][0]["name"], "flex");
    #[cfg(not(feature = "rocm"))]
    {
        let refused = devices(Some("rocm"), "1")["refused"].to_string();
        assert!(
            refused.contains("backend rocm is not compiled in"),
            "{refused}"
        );
    }
}

#[test]
fn the_text_says_the_same_and_takes_no_other_arguments() {
    let place = Place::new();
    let text = place.succeed(&["devices"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "without --backend: flex");
    assert_eq!(lines[1], "flex     runs");
    assert!(lines.last().unwrap().starts_with("kernels on the CPU: "));
    assert!(place.refuse(&["devices", "flex"]).contains("'flex'"));
}
