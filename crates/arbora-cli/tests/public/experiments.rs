//! The experiments behind the pages of `docs/results`, as their files have them.

use arbora_cli::testing;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn texts() -> impl Iterator<Item = String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
    let files = fs::read_dir(folder).unwrap();
    files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
}

fn all() -> impl Iterator<Item = Value> {
    texts().map(|text| serde_json::from_str(&text).unwrap())
}

fn named(name: &str) -> Value {
    all().find(|experiment| experiment["name"] == name).unwrap()
}

fn words(list: &Value) -> Vec<&str> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|word| word.as_str().unwrap()).collect()
}

/// Why an experiment is refused, if it is.
fn refusal(experiment: &Value) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("experiment.json");
    fs::write(&file, experiment.to_string()).unwrap();
    let refused = testing::read_experiment(&file).err();
    refused.map(|error| format!("{error:#}"))
}

#[test]
fn every_table_and_the_grid_can_be_named() {
    let bundled: BTreeSet<String> = testing::experiments().map(str::to_owned).collect();
    assert_eq!(texts().collect::<BTreeSet<_>>(), bundled);
    assert!(named("lm")["grid"].is_object());
}

#[test]
fn no_two_rows_share_a_folder_and_readings_name_lines_that_there_are() {
    for mut experiment in all() {
        let name = experiment["name"].clone();
        assert_eq!(refusal(&experiment), None, "{name}");
        if experiment["reading"].is_object() {
            let mut other = experiment.clone();
            other["reading"]["dense"] = json!("abacus");
            let refused = refusal(&other).unwrap();
            assert!(refused.contains("reading.dense: expected"), "{refused}");
        }
        let rows = experiment["rows"].as_array_mut().unwrap();
        rows.push(rows[0].clone());
        let refused = refusal(&experiment).unwrap();
        assert!(refused.contains("named twice"), "{refused}");
    }
}

#[test]
fn every_published_number_has_its_column_and_a_source() {
    let mut count = 0;
    for experiment in all() {
        let published = &experiment["published"];
        for row in published["rows"].as_array().unwrap_or(&Vec::new()) {
            let numbers = words(&row["numbers"]);
            assert_eq!(numbers.len(), words(&published["columns"]).len(), "{row}");
            for number in numbers.into_iter().filter(|number| !number.is_empty()) {
                let mut marks = ["[B]", "[2]", "[D]"].into_iter();
                let mark = marks.find(|mark| number.ends_with(mark));
                let mark = mark.unwrap_or_else(|| panic!("{number}"));
                let remark = published["remark"].as_str().unwrap();
                assert!(remark.contains(mark), "{number}");
                count += 1;
            }
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn sampled_decisions_are_balanced_by_no_bias() {
    let experiment = named("lm-balance");
    let rows = experiment["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 11);
    let mut sampled = Vec::new();
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let settings = words(&row["settings"]).concat();
        let is_both = settings.contains("reinforce") && settings.contains("loss-free");
        assert!(!is_both, "{name}");
        sampled.extend(Some(name).filter(|name| name.starts_with("reinforce")));
    }
    assert_eq!(sampled, ["reinforce-unbalanced", "reinforce-loss"]);
}

#[test]
fn runs_are_those_of_the_grid_but_for_their_gradients_and_balance() {
    let [grid, balance] = ["lm", "lm-balance"].map(named);
    let own = words(&balance["settings"]);
    for setting in words(&grid["settings"]) {
        assert!(own.contains(&setting), "{setting}");
    }
}
