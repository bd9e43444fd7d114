//! The data of a run: others are refused, and the same may lie elsewhere.
#![cfg(feature = "flex")]

mod common;

use common::{Place, SIZE, idx};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use std::fs;

/// A picture in the folder `pictures`.
fn picture(place: &Place, name: &str, shade: u8) {
    let [height, width] = SIZE;
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([shade, 20 * x as u8, 30 * y as u8])
    })
    .save(place.path("pictures").join(name))
    .unwrap();
}

/// A run `out` on six pictures.
fn run_on_pictures() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("pictures")).unwrap();
    for shade in 0..6 {
        picture(&place, &format!("{shade}.png"), 30 * shade);
    }
    let data = json!({ "kind": "folder", "path": "pictures", "held_out": 2 });
    place.train(&["--set", &format!("data={data}"), "--out", "out"]);
    place
}

const RESUME: [&str; 5] = ["train", "images", "--out", "out", "--resume"];

#[test]
fn what_an_editor_saved_with_a_byte_order_mark_is_read() {
    let place = run_on_pictures();
    let before = place.eval("out", &[])["metrics"].clone();
    for name in ["config.json", "data.json", "made.json"] {
        let path = place.path("out").join(name);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("\u{feff}{text}")).unwrap();
    }
    assert_eq!(place.eval("out", &[])["metrics"], before);
    place.succeed(&RESUME);
}

/// Every command that reads the data of the run `out` refuses with a line that has this.
fn all_refuse(place: &Place, expected: &str) {
    let commands: [&[&str]; 4] = [
        &RESUME,
        &["eval", "out"],
        &["eval", "out", "--search", "greedy"],
        &["inspect", "out"],
    ];
    for command in commands {
        let message = place.refuse(command);
        assert!(message.contains(expected), "{command:?}: {message}");
    }
}

#[test]
fn a_picture_more_in_a_folder_is_refused_by_name() {
    let place = run_on_pictures();
    let before = place.eval("out", &[])["metrics"].clone();
    picture(&place, "00.png", 200);
    all_refuse(
        &place,
        "out: its data have changed: had 4 items to train on and 2 to measure on with SHA-256 ",
    );
    fs::remove_file(place.path("pictures/00.png")).unwrap();
    assert_eq!(place.eval("out", &[])["metrics"], before);
    // As many, and one of them another.
    picture(&place, "3.png", 200);
    all_refuse(&place, "out: its data have changed");
    // Runs of before do not say which they had: they are believed.
    fs::remove_file(place.path("out/data.json")).unwrap();
    place.eval("out", &[]);
    fs::write(place.path("out/data.json"), "{").unwrap();
    all_refuse(&place, "data.json: not the description of data");
}

#[test]
fn an_image_file_that_changes_is_refused() {
    let place = Place::new();
    place.train(&["--out", "out"]);
    let mut bytes = fs::read(place.path("test.idx")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(place.path("test.idx"), bytes).unwrap();
    all_refuse(&place, "out: its data have changed");
    fs::write(place.path("test.idx"), idx([3, SIZE[0], SIZE[1]])).unwrap();
    all_refuse(&place, "now 12 items to train on and 3 to measure on");
}

#[test]
fn series_that_change_are_refused() {
    let place = Place::new();
    let header = "@dimensions 1\n@classLabel true up down\n@data\n";
    let series = |up: i32| format!("{header}{up},2,3,4:up\n4,3,2,1:down\n");
    for name in ["train.ts", "test.ts"] {
        fs::write(place.path(name), series(1)).unwrap();
    }
    let settings = json!({
        "data": {"kind": "series", "train": "train.ts", "test": "test.ts", "whole": true},
        "batch_size": 2,
        "architecture": {
            "d_model": 8, "d_ff": 8, "n_heads": 2, "embedding_depth": 1, "encoder_layers": 1,
        },
        "trainer": { "steps": 2, "eval_every": 2, "warmup_steps": 0 },
    });
    fs::write(place.path("series.json"), settings.to_string()).unwrap();
    place.succeed(&["train", "series", "--config", "series.json", "--out", "out"]);
    fs::write(place.path("train.ts"), series(2)).unwrap();
    for command in [
        &["train", "series", "--out", "out", "--resume"][..],
        &["eval", "out"],
    ] {
        let message = place.refuse(command);
        assert!(message.contains("out: its data have changed"), "{message}");
    }
}

#[test]
fn data_that_moved_are_named_anew_if_they_are_the_same() {
    let place = run_on_pictures();
    let before = place.eval("out", &[])["metrics"].clone();
    fs::rename(place.path("pictures"), place.path("moved")).unwrap();
    all_refuse(&place, "pictures");
    let moved = ["--set", "data.path=moved"];
    let begun = fs::metadata(place.path("out/config.json"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(place.eval("out", &moved)["metrics"], before);
    // That was for once.
    all_refuse(&place, "pictures");
    place.succeed(&[&RESUME[..], &moved].concat());
    let path = |config: Value| config["data"]["path"].as_str().unwrap().to_owned();
    assert!(path(place.json("out/config.json")).ends_with("moved"));
    let age = || {
        fs::metadata(place.path("out/config.json"))
            .unwrap()
            .modified()
            .unwrap()
    };
    assert_eq!(age(), begun, "comparisons ask when a run began");
    assert_eq!(place.eval("out", &[])["metrics"], before);
    // So may the run itself.
    fs::rename(place.path("out"), place.path("elsewhere")).unwrap();
    assert_eq!(place.eval("elsewhere", &[])["metrics"], before);
    fs::rename(place.path("elsewhere"), place.path("out")).unwrap();

    fs::create_dir(place.path("pictures")).unwrap();
    for shade in 0..6 {
        picture(&place, &format!("{shade}.png"), 20 * shade);
    }
    let others = ["--set", "data.path=pictures"];
    for command in [&["eval", "out"][..], &RESUME] {
        let message = place.refuse(&[command, &others].concat());
        assert!(message.contains("out: its data have changed"), "{message}");
    }
    let message = place.refuse(&["eval", "out", "--set", "data.held_out=3"]);
    assert!(
        message.contains("data.held_out: only the paths of the data of a saved run can be changed"),
        "{message}"
    );
    // Where nothing says which data they were, nothing says that these are the same.
    fs::remove_file(place.path("out/data.json")).unwrap();
    let message = place.refuse(&[&["eval", "out"], &others[..]].concat());
    assert!(
        message.contains("out: has no digest of its data"),
        "{message}"
    );
}

#[test]
fn text_that_moved_is_named_anew_if_it_is_the_same() {
    let place = Place::new();
    let text = "Call me Ishmael. ".repeat(200);
    fs::write(place.path("text.txt"), &text).unwrap();
    let settings = json!({
        "data": {"source": "text.txt", "tokenizer": {"kind": "bytes"}, "window": 16, "validation": 0.25},
        "batch_size": 4, "eval_batch_size": 4, "eval_items": 8, "test_items": 8,
        "architecture": {
            "d_model": 8, "n_heads": 2, "n_kv_heads": 2, "branching": 2, "height": 2, "blocks": [1], "d_ff": [8],
            "route_on": {"kind": "first-n", "tokens": 4},
        },
        "trainer": {"steps": 2, "eval_every": 2, "warmup_steps": 0},
    });
    fs::write(place.path("lm.json"), settings.to_string()).unwrap();
    place.succeed(&["train", "lm", "--config", "lm.json", "--out", "out"]);
    let before = place.eval("out", &[])["metrics"].clone();
    fs::rename(place.path("text.txt"), place.path("moved.txt")).unwrap();
    place.refuse(&["eval", "out"]);
    let moved = ["--set", "data.source=moved.txt"];
    assert_eq!(place.eval("out", &moved)["metrics"], before);
    fs::write(place.path("moved.txt"), text.to_uppercase()).unwrap();
    let message = place.refuse(&[&["eval", "out"], &moved[..]].concat());
    assert!(message.contains("out: its text has changed"), "{message}");
}
