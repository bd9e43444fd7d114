//! That what is wrong is seen, counted, and seen again.

use serde_json::Value;
use std::process::{Command, Output};

fn torture(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torture"));
    command.arg("itself").args(arguments);
    command.output().expect("the program starts")
}

/// What a target comes to in a few tries, of which none takes long that does not hang.
fn counted(target: &str) -> Value {
    let arguments = ["--target", target, "--count", "8", "--longest", "4"];
    let output = torture(&arguments);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("it is text");
    let counts: Value = serde_json::from_str(&text).expect("it is JSON");
    counts[0].clone()
}

#[test]
fn every_kind_of_failure_is_counted_and_tries_go_on_after_it() {
    for (target, reason) in [
        ("refuses", "no reason"),
        (
            "panics",
            "panics: number N (crates/arbora-torture/src/itself.rs",
        ),
        ("dies", "dies of signal 6"),
        ("takes", "takes over 1 GiB"),
        ("hangs", "hangs: took over 4 s"),
    ] {
        let counts = counted(target);
        assert_eq!(counts["tried"], 8, "{counts}");
        let failures = counts["failures"].as_array().expect("they are told");
        assert!(!failures.is_empty(), "{counts}");
        assert_eq!(counts["failed"], failures.len(), "{counts}");
        for failure in failures {
            let told = failure["reason"].as_str().expect("it has a reason");
            assert!(told.starts_with(reason), "{target}: {told}");
        }
    }
}

#[test]
fn what_is_as_it_should_be_is_counted_apart() {
    let good = counted("good");
    assert_eq!([&good["tried"], &good["failed"]], [8, 0], "{good}");
    let contained = counted("contains");
    assert_eq!(contained["failed"], 0, "{contained}");
    let panics = contained["contained"].as_object().expect("it has panics");
    let (message, times) = panics.iter().next().expect("there is one");
    assert!(message.starts_with("number N ("), "{contained}");
    assert!(times.as_u64() > Some(0), "{contained}");
}

#[test]
fn a_list_is_tried_once_to_its_end() {
    let listed = counted("listed");
    assert_eq!([&listed["tried"], &listed["failed"]], [3, 1], "{listed}");
    assert_eq!(listed["failures"][0]["reason"], "2 is even", "{listed}");
    let beyond = torture(&["--target", "listed", "--index", "3"]);
    let told = String::from_utf8_lossy(&beyond.stderr).into_owned();
    assert!(told.contains("--index: expected one below 3"), "{told}");
}

#[test]
fn a_failure_is_seen_again_by_its_index() {
    let counts = counted("refuses");
    let index = counts["failures"][0]["index"].to_string();
    let again = torture(&["--target", "refuses", "--index", &index]);
    let told = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        !again.status.success() && told.contains("no reason"),
        "{again:?}"
    );
    let other = torture(&["--target", "nothing"]);
    let told = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(told.contains("expected one of good, refuses"), "{told}");
}
