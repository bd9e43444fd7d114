//! Bad input: one clear line, exit code 2, and no file made, changed or lost.
//!
//! All of it goes through `Place::refuse`, which compares every file before and after.
#![cfg(feature = "flex")]

mod common;

use common::{IMAGES, Place, SIZE, idx, parse, stderr};
use image::GrayImage;
use serde_json::{Value, json};
use std::fs;

const RESUME: [&str; 5] = ["train", "images", "--out", "out", "--resume"];

fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    // The cause of a cause is often quoted by it.
    let parts: Vec<&str> = message.split(": ").collect();
    let repeated = parts.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(repeated, None, "{message}");
}

fn refuse_setting(place: &Place, setting: &str, words: &[&str]) {
    assert_says(&place.refuse_training(&["--set", setting]), words);
}

/// A finished run in `out`.
fn trained() -> Place {
    let place = Place::new();
    place.train(&["--out", "out"]);
    place
}

/// Changes a JSON file.
fn edit(place: &Place, file: &str, change: impl FnOnce(&mut Value)) {
    let mut value = place.json(file);
    change(&mut value);
    fs::write(place.path(file), value.to_string()).unwrap();
}

#[test]
fn damaged_idx_files_are_refused() {
    let whole = idx([IMAGES[0], SIZE[0], SIZE[1]]);
    let with = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    };
    let gzip = [&[0x1f, 0x8b, 8, 0][..], &[0x5a; 40]].concat();
    let cases: [(Vec<u8>, &[&str]); 11] = [
        (whole[..100].to_vec(), &["expected 376 bytes", "got 100"]),
        (whole[..3].to_vec(), &["got 3"]),
        (Vec::new(), &["got 0"]),
        (
            [&whole[..], &[0]].concat(),
            &["expected 376 bytes", "got 377"],
        ),
        (with(2, 0x0d), &["element type 0x08", "got 0x0d"]),
        (
            with(3, 1),
            &["expected 3 axes (count, height, width)", "got 1"],
        ),
        (with(4, 0xff), &["got 376"]),
        (idx([0, SIZE[0], SIZE[1]]), &["axis count has length 0"]),
        (idx([IMAGES[0], SIZE[0], 0]), &["axis width has length 0"]),
        (
            b"\x89PNG\r\n\x1a\n".to_vec(),
            &["not an IDX file", "89 50 4e 47"],
        ),
        (gzip, &["gzip stream is damaged"]),
    ];
    for file in ["train.idx", "test.idx"] {
        for (bytes, words) in &cases {
            let place = Place::new();
            fs::write(place.path(file), bytes).unwrap();
            let message = place.refuse_training(&[]);
            assert_says(&message, words);
            assert!(message.contains(&format!("{file}: ")), "{message}");
        }
    }
}

#[test]
fn missing_files_and_folders_are_refused() {
    let place = Place::new();
    fs::remove_file(place.path("test.idx")).unwrap();
    let missing = "cannot be read: No such file or directory";
    assert_says(&place.refuse_training(&[]), &["test.idx", missing]);
    let folder = r#"data={"kind":"folder","path":"none","held_out":1}"#;
    refuse_setting(&place, folder, &["none", missing]);
    let folder = r#"data={"kind":"folder","path":"tiny.json","held_out":1}"#;
    refuse_setting(&place, folder, &["tiny.json", "cannot be read"]);
    let folder = r#"data={"kind":"idx","train":".","test":"."}"#;
    refuse_setting(&place, folder, &["cannot be read"]);
}

#[test]
fn images_of_different_sizes_are_refused() {
    let place = Place::new();
    fs::write(place.path("test.idx"), idx([8, SIZE[1], SIZE[0]])).unwrap();
    let message = place.refuse_training(&[]);
    assert_says(
        &message,
        &["test images", "expected [6, 5, 1]", "got [5, 6, 1]"],
    );
}

#[test]
fn damaged_pictures_are_refused() {
    let place = Place::new();
    let folder = place.path("pictures");
    fs::create_dir(&folder).unwrap();
    let data = r#"data={"kind":"folder","path":"pictures","held_out":1}"#;
    refuse_setting(&place, data, &["pictures", "found none"]);

    for name in ["a", "b", "c"] {
        let picture = GrayImage::from_fn(8, 8, |x, y| image::Luma([(31 * x + 7 * y) as u8]));
        picture.save(folder.join(format!("{name}.png"))).unwrap();
    }
    let whole = fs::read(folder.join("b.png")).unwrap();
    let mut corrupt = whole.clone();
    let middle = corrupt.len() / 2;
    corrupt[middle] ^= 0xff;
    let cases = [
        &whole[..whole.len() / 2],
        &whole[..10],
        &[],
        &corrupt,
        b"not a picture at all",
        &idx([1, 2, 2]),
    ];
    for bytes in cases {
        fs::write(folder.join("b.png"), bytes).unwrap();
        refuse_setting(&place, data, &["b.png", "not a readable PNG or JPEG image"]);
    }

    GrayImage::new(8, 9).save(folder.join("b.png")).unwrap();
    refuse_setting(
        &place,
        data,
        &["b.png", "expected 8x8", "got 9x8", "give a size"],
    );
    fs::write(folder.join("b.png"), &whole).unwrap();
    for (held_out, size, words) in [
        (0, [8, 8], "data.held_out: expected between 1"),
        (3, [8, 8], "data.held_out: expected between 1"),
        (1, [0, 8], "data.size: expected 1 to"),
    ] {
        let data =
            json!({ "kind": "folder", "path": "pictures", "held_out": held_out, "size": size });
        refuse_setting(&place, &format!("data={data}"), &[words]);
    }
}

#[test]
fn pictures_cut_short_or_too_large_are_refused() {
    let place = Place::new();
    let folder = place.path("pictures");
    fs::create_dir(&folder).unwrap();
    let data = r#"data={"kind":"folder","path":"pictures","held_out":1}"#;
    for name in ["a.png", "b.jpg", "c.jpg"] {
        let picture = GrayImage::from_fn(32, 32, |x, y| image::Luma([(31 * x + 7 * y) as u8]));
        picture.save(folder.join(name)).unwrap();
    }
    for (name, behind) in [("b.jpg", 2), ("b.jpg", 300), ("a.png", 8), ("a.png", 60)] {
        let whole = fs::read(folder.join(name)).unwrap();
        fs::write(folder.join(name), &whole[..whole.len() - behind]).unwrap();
        let words = [
            name,
            "not a readable PNG or JPEG image",
            "ends before the picture",
        ];
        refuse_setting(&place, data, &words);
        fs::write(folder.join(name), whole).unwrap();
    }
    // The header alone says that it is 65,535 pixels wide and high.
    let mut jpeg = fs::read(folder.join("b.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    fs::write(folder.join("b.jpg"), jpeg).unwrap();
    refuse_setting(&place, data, &["b.jpg", "at most", "65535x65535 pixels"]);

    fs::remove_file(folder.join("b.jpg")).unwrap();
    let channels = r#"data={"kind":"folder","path":"pictures","held_out":1,"channels":2}"#;
    refuse_setting(&place, channels, &["data.channels: expected 1 or 3, got 2"]);
}

#[test]
fn hidden_pictures_and_texts_alone_are_none() {
    let place = Place::new();
    fs::create_dir(place.path("hidden")).unwrap();
    for name in ["._a.png", "._a.txt"] {
        fs::write(place.path("hidden").join(name), b"\0\x05\x16\x07").unwrap();
    }
    let data = r#"data={"kind":"folder","path":"hidden","held_out":1}"#;
    refuse_setting(
        &place,
        data,
        &["hidden: expected PNG or JPEG files", "found none"],
    );
    let lm = ["train", "lm", "--out", "out", "--set", "data.source=hidden"];
    assert_says(
        &place.refuse(&lm),
        &["hidden: expected files that end with .txt"],
    );
}

#[test]
fn utf_16_is_refused_as_what_it_is() {
    let place = Place::new();
    let wide = |text: &str| -> Vec<u8> {
        let units = text.encode_utf16().flat_map(u16::to_le_bytes);
        [0xff, 0xfe].into_iter().chain(units).collect()
    };
    for (name, text) in [
        ("wide.json", "{}"),
        ("wide.txt", "some text"),
        ("wide.ts", &ts("1,2,3:4,5,6:up")),
    ] {
        fs::write(place.path(name), wide(text)).unwrap();
    }
    let series = r#"data={"kind":"series","train":"wide.ts","test":"wide.ts"}"#;
    let tokenizer = r#"data.tokenizer={"kind":"file","path":"wide.json"}"#;
    for (name, args) in [
        (
            "wide.json",
            &["train", "images", "--config", "wide.json"][..],
        ),
        ("wide.json", &["train", "lm", "--placement", "wide.json"]),
        ("wide.json", &["train", "lm", "--set", tokenizer]),
        ("wide.json", &["compare", "wide.json"]),
        (
            "wide.txt",
            &["train", "lm", "--set", "data.source=wide.txt"],
        ),
        ("wide.ts", &["train", "series", "--set", series]),
    ] {
        let message = place.refuse(&[args, &["--out", "out"]].concat());
        assert_says(&message, &[name, "expected UTF-8 text, got UTF-16"]);
    }
}

/// A `.ts` file of two channels with its rows from line 5 on.
fn ts(rows: &str) -> String {
    format!("@problemName toy\n@dimensions 2\n@classLabel true up down\n@data\n{rows}\n")
}

/// The refusal of training on time series.
fn refuse_series(place: &Place, more: &[&str]) -> String {
    let data =
        r#"data={"kind":"series","train":"train.ts","test":"test.ts","window":3,"stride":3}"#;
    let args = ["train", "series", "--out", "out", "--set", data];
    place.refuse(&[&args[..], more].concat())
}

#[test]
fn damaged_time_series_are_refused_with_file_and_line() {
    let whole = "1,2,3:4,5,6:up\n6,5,4:3,2,1:down";
    let cases: [(&str, &[&str]); 6] = [
        (
            "1,?,3:4,5,6:up",
            &[":5: ", "channel 0, step 1", "missing", "`?`"],
        ),
        (
            "1,2,3:4,5,6:up\n1,2,3:4,NaN,6:up",
            &[":6: ", "channel 1, step 1", "missing"],
        ),
        (
            "1,2,3:4,5:up",
            &[":5: ", "channel 1: expected 3 steps", "got 2"],
        ),
        (
            "1,2,3:4,5,6:left",
            &[":5: ", "expected one of the classes up, down", "`left`"],
        ),
        ("1,2,3:up", &[":5: ", "expected 2 channels", "got 1"]),
        ("", &["there are no series"]),
    ];
    for file in ["train.ts", "test.ts"] {
        for (rows, words) in &cases {
            let place = Place::new();
            fs::write(place.path("train.ts"), ts(whole)).unwrap();
            fs::write(place.path("test.ts"), ts(whole)).unwrap();
            fs::write(place.path(file), ts(rows)).unwrap();
            let message = refuse_series(&place, &[]);
            assert_says(&message, &[file]);
            assert_says(&message, words);
        }
    }
}

#[test]
fn time_series_that_do_not_fit_are_refused() {
    let place = Place::new();
    let whole = "1,2,3:4,5,6:up\n6,5,4:3,2,1:down";
    fs::write(place.path("train.ts"), ts(whole)).unwrap();
    assert_says(
        &refuse_series(&place, &[]),
        &["test.ts", "No such file or directory"],
    );
    // Lengths may differ, but each series must give a window.
    fs::write(
        place.path("test.ts"),
        ts("1,2,3,4:4,5,6,7:up\n6,5:3,2:down"),
    )
    .unwrap();
    assert_says(
        &refuse_series(&place, &[]),
        &[
            "test.ts",
            "series 1 of the test set",
            "at least 3 steps",
            "got 2",
        ],
    );
    let other = ts(&whole.replace(":down", ":left")).replace("up down", "up down left");
    fs::write(place.path("test.ts"), other).unwrap();
    assert_says(
        &refuse_series(&place, &[]),
        &["test.ts", "classes of the test set", "up, down", "got left"],
    );
    fs::write(place.path("test.ts"), ts(whole)).unwrap();
    for (setting, words) in [
        ("data.window=0", "data.window: expected at least 1, got 0"),
        ("data.stride=0", "data.stride: expected at least 1, got 0"),
        ("data.window=4", "at least 4 steps, the window, got 3"),
        ("data.windw=4", "did you mean data.window?"),
        ("reward=negative-mse", "negative-mse needs values"),
        ("model=oracle-route", "does not know which token answers"),
    ] {
        assert_says(&refuse_series(&place, &["--set", setting]), &[words]);
    }
}

#[test]
fn bandits_without_context_or_beyond_measure_are_refused() {
    let place = Place::new();
    for (setting, words) in [
        ("data.min_context=0", "data.min_context = 0"),
        ("data.target_contexts=0", "data.target_contexts = 0"),
        ("data.max_context=0", "data.max_context: expected at least"),
        (
            "data.max_context=999999",
            "data.max_context: expected at most 65536",
        ),
        ("reward=accuracy", "accuracy needs classes"),
        (
            r#"data={"kind":"copy"}"#,
            "data: expected those of task bandit",
        ),
    ] {
        let args = ["train", "bandit", "--out", "out", "--set", setting];
        assert_says(&place.refuse(&args), &[words]);
    }
}

#[test]
fn problems_without_context_targets_or_room_are_refused() {
    let place = Place::new();
    let cases: [(&str, &[&str]); 6] = [
        (
            "points.min_context=0",
            &["points.min_context = 0", "the context is empty"],
        ),
        (
            "points.min_targets=0",
            &["points.min_targets = 0", "no targets"],
        ),
        (
            "points.max_points=31",
            &["points.max_points: expected at most 30", "6x5", "got 31"],
        ),
        (
            "points.max_points=18446744073709551615",
            &["points.max_points"],
        ),
        (
            "points.max_points=6",
            &["points.max_points: expected more than", "= 6"],
        ),
        (
            "points.min_context=18446744073709551615",
            &["points.max_points"],
        ),
    ];
    for (setting, words) in cases {
        refuse_setting(&place, setting, words);
    }
}

#[test]
fn values_that_are_no_numbers_or_out_of_range_are_refused_by_name() {
    let place = Place::new();
    for key in [
        "trainer.learning_rate",
        "trainer.final_learning_rate",
        "trainer.lambda_rl",
        "trainer.clip_norm",
        "trainer.optimizer.beta_1",
        "trainer.optimizer.weight_decay",
        "trainer.policy_gradient.entropy_weight",
        "lambda_ca",
        "architecture.dropout",
    ] {
        for value in ["NaN", "inf", "1e999", "-1", "[]", "true"] {
            let setting = format!("{key}={value}");
            let message = place.refuse_training(&["--set", &setting]);
            // Once where the range is wrong, and again where the type is.
            assert_says(&message, &[key]);
        }
    }
    for key in [
        "batch_size",
        "eval_batch_size",
        "samples",
        "architecture.d_model",
        "architecture.d_ff",
        "architecture.n_heads",
        "architecture.embedding_depth",
        "architecture.branching",
        "trainer.keep_checkpoints",
    ] {
        for value in ["0", "-1", "1.5", "many", "99999999999999999999999"] {
            let setting = format!("{key}={value}");
            assert_says(&place.refuse_training(&["--set", &setting]), &[key]);
        }
    }
    let large: [(&str, &[&str]); 4] = [
        (
            "batch_size=9999999999999",
            &["batch_size: expected 1 to 65536"],
        ),
        (
            "architecture.encoder_layers=9999999999999",
            &["expected 0 to 65536"],
        ),
        (
            "architecture.n_heads=3",
            &["expected a divisor of 8, got 3"],
        ),
        ("trainer.seed=-1", &["trainer.seed"]),
    ];
    for (setting, words) in large {
        refuse_setting(&place, setting, words);
    }
    // A sequence embedding takes sines and cosines by turns.
    let odd = ["architecture.d_model=9", "architecture.n_heads=3"];
    let odd = odd.map(|setting| ["--set", setting]).concat();
    let refused = place.refuse(&[&["train", "copy", "--out", "odd"][..], &odd].concat());
    assert_says(&refused, &["architecture.d_model: expected an even number"]);
}

#[test]
fn data_of_another_task_and_settings_that_do_not_fit_the_data_are_refused() {
    let place = Place::new();
    let cases: [(&str, &[&str]); 4] = [
        (
            r#"data={"kind":"copy"}"#,
            &["data: expected those of task images"],
        ),
        (
            r#"architecture.order={"axis":2}"#,
            &["positions have 2 coordinates"],
        ),
        ("reward=accuracy", &["reward: accuracy needs classes"]),
        (
            r#"trainer.policy_gradient.baseline={"kind":"leave_one_out"}"#,
            &["samples", "needs at least 2"],
        ),
    ];
    for (setting, words) in cases {
        refuse_setting(&place, setting, words);
    }
}

#[test]
fn unknown_keys_and_choices_name_what_is_known() {
    let place = Place::new();
    let cases: [(&str, &[&str]); 9] = [
        (
            "trainer.stepz=3",
            &["unknown key trainer.stepz", "did you mean trainer.steps?"],
        ),
        (
            "bach_size=3",
            &["unknown key bach_size", "did you mean batch_size?"],
        ),
        ("points.min_contxt=3", &["did you mean points.min_context?"]),
        ("trainer.steps.more=3", &["trainer.steps"]),
        ("batch_size", &["expected key=value"]),
        ("=3", &["unknown key"]),
        (
            "architecture.order=mortn",
            &["architecture.order", "mortn", "morton"],
        ),
        ("model=rnn", &["model", "rnn", "cross-attention"]),
        (
            r#"data={"kind":"idx","train":"a","tst":"b"}"#,
            &["data", "tst", "test"],
        ),
    ];
    for (setting, words) in cases {
        refuse_setting(&place, setting, words);
    }
}

#[test]
fn configuration_files_are_refused_by_name() {
    let place = Place::new();
    let cases: [(&str, &[&str]); 7] = [
        ("", &["is not JSON"]),
        ("{\"batch_size\": 2", &["is not JSON", "line 1"]),
        ("steps = 3", &["is not JSON"]),
        ("[1, 2]", &["expected a JSON object"]),
        (
            r#"{"trainer": {"learning_rat": 1}}"#,
            &[
                "unknown key trainer.learning_rat",
                "did you mean trainer.learning_rate?",
            ],
        ),
        (
            r#"{"trainer": {"steps": 3, "seed": "x"}}"#,
            &["trainer.seed", "invalid type"],
        ),
        (
            r#"{"trainer": {"learning_rate": 1e999}}"#,
            &["is not JSON", "out of range"],
        ),
    ];
    for (text, words) in cases {
        fs::write(place.path("settings.json"), text).unwrap();
        let message = place.refuse(&["train", "images", "--config", "settings.json"]);
        assert_says(&message, words);
        assert_says(&message, &["settings.json"]);
    }
    let message = place.refuse(&["train", "images", "--config", "none.json"]);
    assert_says(&message, &["cannot read none.json", "No such file"]);
}

#[test]
fn unknown_words_on_the_command_line_end_with_code_2() {
    let place = Place::new();
    for args in [
        &["train", "imagez"][..],
        &["train", "images", "--model", "retreiver"],
        &["train", "images", "--preset", "tiny"],
        &["train", "images", "--seed", "-1"],
        &["train", "images", "--resume"],
        &["train"],
        &["evaluate", "out"],
    ] {
        let output = place.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).starts_with("error: "), "{args:?}");
        assert!(!place.path("runs").try_exists().unwrap());
    }
}

#[test]
fn backends_that_are_unknown_or_not_compiled_in_are_refused() {
    let place = trained();
    let message = place.refuse(&["train", "images", "--backend", "abacus"]);
    assert_says(&message, &["unknown backend abacus", "flex", "wgpu"]);
    let message = place.refuse(&["eval", "out", "--backend", "abacus"]);
    assert_says(&message, &["unknown backend abacus"]);
    if !cfg!(feature = "rocm") {
        let message = place.refuse(&["eval", "out", "--backend", "rocm"]);
        assert_says(&message, &["rocm is not compiled in", "--features rocm"]);
    }
}

#[test]
fn output_paths_that_are_taken_are_refused() {
    let place = trained();
    fs::write(place.path("file"), "kept").unwrap();
    let train = ["train", "images", "--config", "tiny.json", "--out"];
    let refuse = |out: &str, more: &[&str]| place.refuse(&[&train[..], &[out], more].concat());
    assert_says(
        &refuse("file", &[]),
        &["file: expected a folder for the run"],
    );
    assert_says(&refuse("file/run", &[]), &["file/run"]);
    assert_says(
        &refuse("file", &["--resume"]),
        &["file: expected a folder for the run"],
    );
    assert_says(&refuse("out", &[]), &["out: already holds a run"]);

    // A folder with parts of a run.
    for inside in ["metrics.jsonl", "checkpoints/step-00000001/state.json"] {
        let path = place.path("part").join(inside);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "{}").unwrap();
        assert_says(&refuse("part", &[]), &["part", "already holds a run"]);
        fs::remove_dir_all(place.path("part")).unwrap();
    }
}

#[test]
fn runs_that_are_not_there_are_refused() {
    let place = Place::new();
    assert_says(&place.refuse(&RESUME), &["out: no run to resume here"]);
    assert_says(
        &place.refuse(&["eval", "out"]),
        &["out: expected a run folder"],
    );
    assert_says(
        &place.refuse(&["eval", "tiny.json"]),
        &["tiny.json: expected a folder for the run"],
    );
    fs::create_dir(place.path("out")).unwrap();
    assert_says(&place.refuse(&RESUME), &["cannot read out/config.json"]);
    assert_says(
        &place.refuse(&["eval", "out"]),
        &["cannot read out/config.json"],
    );
    // A walk at random needs a tree.
    let place = Place::new();
    place.train(&["--model", "cross-attention", "--out", "out"]);
    let message = place.refuse(&["eval", "out", "--random-route"]);
    assert_says(&message, &["--random-route", "no tree"]);
    // Settings alone: nothing to measure yet.
    let place = trained();
    fs::remove_dir_all(place.path("out/checkpoints")).unwrap();
    assert_says(
        &place.refuse(&["eval", "out"]),
        &["out: no checkpoint here"],
    );
}

#[test]
fn resuming_with_other_settings_is_refused() {
    let place = trained();
    for more in [
        &["--set", "trainer.steps=100"][..],
        &["--set", "batch_size=3"],
        &["--seed", "9"],
        &["--model", "cross-attention"],
    ] {
        let message = place.refuse(&[&RESUME[..], more].concat());
        assert_says(
            &message,
            &["--resume continues a run with its own settings"],
        );
    }
    let message = place.refuse(&[&RESUME[..], &["--set", "trainer.stepz=1"]].concat());
    assert_says(&message, &["did you mean trainer.steps?"]);
    // The same settings are no others.
    place.succeed(&[&RESUME[..], &["--set", "trainer.steps=6"]].concat());
}

#[test]
fn checkpoints_of_another_model_are_refused() {
    let place = trained();
    edit(&place, "out/config.json", |config| {
        config["architecture"]["d_model"] = 16.into();
    });
    for args in [&["eval", "out"][..], &RESUME] {
        let message = place.refuse(args);
        assert_says(&message, &["checkpoint of another model", "step-00000006"]);
    }
    // The settings of another run.
    let place = trained();
    place.train(&["--set", "architecture.d_ff=16", "--out", "wide"]);
    let fingerprint = |run: &str| {
        let state = place.json(format!("{run}/checkpoints/step-00000006/state.json"));
        state["fingerprint"].as_str().unwrap().to_owned()
    };
    let names = [fingerprint("out"), fingerprint("wide")];
    assert_ne!(names[0], names[1]);
    let config = fs::read(place.path("out/config.json")).unwrap();
    fs::copy(
        place.path("wide/config.json"),
        place.path("out/config.json"),
    )
    .unwrap();
    assert_says(
        &place.refuse(&["eval", "out"]),
        &[&names[0], &names[1], "another model"],
    );

    // The weights of another run, under the right name and with sums that agree.
    fs::write(place.path("out/config.json"), config).unwrap();
    let checkpoint = |run: &str| place.path(run).join("checkpoints/step-00000006");
    let sums = |run: &str| fs::read_to_string(checkpoint(run).join("SHA256SUMS")).unwrap();
    let line = |run: &str| {
        let sums = sums(run);
        let mut lines = sums.lines();
        lines
            .find(|line| line.ends_with("model.bpk"))
            .unwrap()
            .to_owned()
    };
    let forged = sums("out").replace(&line("out"), &line("wide"));
    fs::write(checkpoint("out").join("SHA256SUMS"), forged).unwrap();
    fs::copy(
        checkpoint("wide").join("model.bpk"),
        checkpoint("out").join("model.bpk"),
    )
    .unwrap();
    assert_says(
        &place.refuse(&["eval", "out"]),
        &["step-00000006", "does not fit the model"],
    );
}

#[test]
fn a_foreign_second_model_is_refused_before_the_first_one_continues() {
    let place = Place::new();
    let models = "retreever,cross-attention";
    let compare = [
        "compare",
        "images",
        "--models",
        models,
        "--config",
        "tiny.json",
        "--out",
        "out",
    ];
    place.succeed(&compare);
    // The first model would have steps to do.
    fs::remove_dir_all(place.path("out/retreever-seed0/checkpoints")).unwrap();
    let state = "out/cross-attention-seed0/checkpoints/step-00000006/state.json";
    edit(&place, state, |state| state["format_version"] = 99.into());
    assert_says(&place.refuse(&compare), &["checkpoint format 99 is newer"]);
}

#[test]
fn checkpoints_of_a_newer_format_are_refused() {
    let place = trained();
    let state = "out/checkpoints/step-00000006/state.json";
    edit(&place, state, |state| state["format_version"] = 2.into());
    for args in [&["eval", "out"][..], &RESUME] {
        // Not passed over for the older one: going on from there would lose steps.
        let message = place.refuse(args);
        assert_says(
            &message,
            &["step-00000006", "checkpoint format 2 is newer than 1"],
        );
    }
}

#[test]
fn corrupt_checkpoints_are_refused() {
    type Damage = fn(Vec<u8>) -> Option<Vec<u8>>;
    let damages: [(&str, Damage, &str); 5] = [
        (
            "model.bpk",
            |bytes| Some(bytes[..bytes.len() / 2].to_vec()),
            "differs from its checksum",
        ),
        (
            "optimizer.bpk",
            |mut bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                Some(bytes)
            },
            "differs from its checksum",
        ),
        (
            "state.json",
            |_| Some(b"{".to_vec()),
            "state.json cannot be read",
        ),
        ("SHA256SUMS", |_| Some(Vec::new()), "has no line for"),
        ("model.bpk", |_| None, "model.bpk is missing"),
    ];
    for (file, damage, words) in damages {
        let place = trained();
        for checkpoint in place.checkpoints("out") {
            let path = place.path("out/checkpoints").join(checkpoint).join(file);
            match damage(fs::read(&path).unwrap()) {
                Some(bytes) => fs::write(path, bytes).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
        }
        for args in [&["eval", "out"][..], &RESUME] {
            assert_says(&place.refuse(args), &["corrupt checkpoint", words]);
        }
    }
}

#[test]
fn damaged_settings_of_a_run_are_refused() {
    let place = trained();
    let whole = place.json("out/config.json");
    let cases: [(String, &[&str]); 4] = [
        ("{".into(), &["not a configuration of this version"]),
        ("{}".into(), &["missing field"]),
        (
            {
                let mut newer = whole.clone();
                newer["warp"] = true.into();
                newer.to_string()
            },
            &["warp"],
        ),
        (
            {
                let mut wrong = whole.clone();
                wrong["batch_size"] = 0.into();
                wrong.to_string()
            },
            &["batch_size: expected 1 to"],
        ),
    ];
    for (text, words) in cases {
        fs::write(place.path("out/config.json"), text).unwrap();
        for args in [&["eval", "out"][..], &RESUME] {
            let message = place.refuse(args);
            assert_says(&message, words);
            assert_says(&message, &["out/config.json"]);
        }
    }
}

#[test]
fn data_that_changed_under_a_run_are_refused() {
    let place = trained();
    fs::write(place.path("test.idx"), "gone").unwrap();
    for args in [&["eval", "out"][..], &RESUME] {
        assert_says(&place.refuse(args), &["test.idx", "not an IDX file"]);
    }
}

#[test]
fn a_loss_that_explodes_stops_the_run_and_keeps_its_checkpoints() {
    let place = Place::new();
    let settings = ["trainer.learning_rate=1e30", "trainer.checkpoint_every=1"];
    let output = place.run(&[
        "train",
        "images",
        "--config",
        "tiny.json",
        "--out",
        "out",
        "--set",
        settings[0],
        "--set",
        settings[1],
    ]);
    assert_eq!(output.status.code(), Some(1), "no fault of the input");
    let stderr = stderr(&output);
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("error: step "), "{stderr}");
    let step = last["error: step ".len()..].split(':').next().unwrap();
    let done = step.parse::<u64>().unwrap() - 1;
    let newest = place.checkpoints("out").pop().unwrap();
    assert_eq!(newest, format!("step-{done:08}"));
    let log = place.metrics("out");
    assert_eq!(parse(log.lines().last().unwrap())["step"], done);
}

#[test]
fn a_system_without_threads_is_named_before_anything_is_made() {
    let place = Place::new();
    let mut command = place.command(["train", "images", "--config", "tiny.json", "--out", "out"]);
    // A stack that no machine has room for.
    let output = command.env("RUST_MIN_STACK", (1_u64 << 60).to_string());
    let output = output.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "error: cannot start threads: the system gives 0, and 9 are needed\n"
    );
    assert!(!place.path("out").try_exists().unwrap());
}

#[test]
fn a_mistyped_argument_is_refused_with_what_it_may_have_been() {
    let place = Place::new();
    for (args, words) in [
        (
            &["generate", "out", "--promt", "x"][..],
            &["unexpected argument '--promt' found; a similar argument exists: '--prompt'"][..],
        ),
        (
            &["trian"],
            &["unrecognized subcommand 'trian'; ", "'train'"],
        ),
        (
            &["train", "image"],
            &[
                "invalid value 'image' for '<TASK>' [possible values: ",
                "; a similar value exists: 'images'",
            ],
        ),
        (
            &["train", "images", "--out"],
            &["a value is required for '--out <FOLDER>' but none was supplied"],
        ),
        (
            &["train"],
            &["the following required arguments were not provided: <TASK>"],
        ),
        (
            &["train", "images", "--seed", "-1"],
            &["invalid value '-1' for '--seed <SEED>'"],
        ),
        (
            &["eval", "out", "--search", "greedy", "--temperature", "-x"],
            &["unexpected argument '-x' found"],
        ),
        (
            &["grow", "out", "--rounds", "-1"],
            &["invalid value '-1' for '--rounds <ROUNDS>'"],
        ),
        (
            &["grow", "out", "--repeats", "-1"],
            &["invalid value '-1' for '--repeats <REPEATS>'"],
        ),
        (
            &["grow", "out", "--seed", "-1"],
            &["invalid value '-1' for '--seed <SEED>'"],
        ),
        (
            &["inspect", "out", "--item", "-1"],
            &["invalid value '-1' for '--item <ITEM>'"],
        ),
        (
            &["inspect", "out", "--query", "-1"],
            &["invalid value '-1' for '--query <QUERY>'"],
        ),
        (
            &["serve", "--devices", "-1"],
            &["invalid value '-1' for '--devices <DEVICES>'"],
        ),
        (
            &["compare", "images", "--seeds", "-1"],
            &["invalid value '-1' for '--seeds <SEEDS>'"],
        ),
    ] {
        assert_says(&place.refuse(args), words);
    }
}

#[test]
fn searches_of_no_such_form_are_refused() {
    let place = Place::new();
    for wrong in [
        "beam",
        "beam=",
        "beam=0",
        "beam=-1",
        "samples=65537",
        "widest=3",
        "greedy=2",
    ] {
        let message = place.refuse(&["eval", "out", "--search", wrong]);
        assert_says(&message, &["--search", "expected", wrong]);
    }
}

#[test]
fn temperatures_that_are_not_positive_are_refused() {
    let place = Place::new();
    for wrong in ["0", "-1", "NaN", "inf", "warm"] {
        let eval = ["eval", "out", "--search", "greedy", "--temperature", wrong];
        assert_says(&place.refuse(&eval), &["expected a finite number above 0"]);
    }
}

#[test]
fn without_a_command_the_commands_are_shown() {
    let place = Place::new();
    let output = place.run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let shown = stderr(&output);
    let asked = place.succeed(&["help"]);
    for command in [
        "train", "compare", "eval", "generate", "inspect", "grow", "serve", "devices",
    ] {
        assert!(shown.contains(&format!("\n  {command} ")), "{shown}");
    }
    assert!(
        asked.contains("Usage: arbora") && shown.contains("Usage: arbora"),
        "{shown}"
    );
}

#[test]
fn pages_that_cannot_be_written_are_refused_before_a_training() {
    let place = Place::new();
    let compare = [
        "compare",
        "images",
        "--config",
        "tiny.json",
        "--models",
        "retreever",
        "--out",
        "out",
    ];
    for (page, words) in [
        ("nowhere/page.md", ["nowhere/page.md", "no folder nowhere"]),
        ("page.json", ["page.json", "expected a page"]),
    ] {
        let message = place.refuse(&[&compare[..], &["--page", page]].concat());
        assert_says(&message, &words);
    }
    for hours in ["-1", "nan", "soon"] {
        let message = place.refuse(&[&compare[..], &["--hours", hours]].concat());
        assert_says(&message, &["--hours", hours]);
    }
}

#[test]
fn runs_and_pages_within_their_data_are_refused() {
    let place = Place::new();
    fs::create_dir(place.path("faces")).unwrap();
    for at in 0..6 {
        let picture = GrayImage::from_pixel(5, 6, image::Luma([40 * at]));
        picture.save(place.path(format!("faces/{at}.png"))).unwrap();
    }
    let data = r#"data={"kind":"folder","path":"faces","held_out":2}"#;
    let train = [
        "train",
        "images",
        "--config",
        "tiny.json",
        "--set",
        data,
        "--out",
    ];
    let compare = [
        "compare",
        "images",
        "--config",
        "tiny.json",
        "--models",
        "retreever",
        "--set",
        data,
    ];
    #[cfg(unix)]
    std::os::unix::fs::symlink("faces", place.path("link")).unwrap();
    for out in ["faces", "faces/run", "./faces/../faces/run", "link/run"] {
        for args in [
            &[&train[..], &[out]].concat(),
            &[&compare[..], &["--out", out]].concat(),
        ] {
            assert_says(&place.refuse(args), &["--out", "is within the data"]);
        }
    }
    let page = [&compare[..], &["--out", "out", "--page", "faces/page.md"]].concat();
    assert_says(&place.refuse(&page), &["--page", "is within the data"]);

    place.run(&[&train[..], &["run"]].concat());
    let inspect = ["inspect", "run", "--out", "link/looked"];
    assert_says(&place.refuse(&inspect), &["--out", "is within the data"]);
}
