//! `arbora train` and `arbora eval` as a person or a program calls them.
#![cfg(feature = "flex")]

mod common;

use common::{IMAGES, Place, SIZE, parse, stderr};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};
use std::fs;
use std::io::Cursor;

/// All numbers of a JSON value are finite, and there is at least one: NaN is written as `null`.
fn assert_finite(numbers: &Value) {
    let numbers = numbers.as_object().unwrap();
    assert!(!numbers.is_empty());
    for (name, number) in numbers {
        assert!(
            number.as_f64().is_some_and(f64::is_finite),
            "{name}: {number}"
        );
    }
}

#[test]
fn a_run_of_before_is_measured_and_resumed() {
    let place = Place::new();
    place.train(&["--out", "out"]);
    let measured = place.eval("out", &[]);
    // It named a second model, and not what had trained it.
    let mut config = place.json("out/config.json");
    config["compare_with"] = "cross-attention".into();
    let architecture = config["architecture"].as_object_mut().unwrap();
    let heads = architecture.remove("n_heads").unwrap();
    architecture.insert("heads".into(), heads);
    fs::write(place.path("out/config.json"), config.to_string()).unwrap();
    fs::remove_file(place.path("out/made.json")).unwrap();
    assert_eq!(place.eval("out", &[])["metrics"], measured["metrics"]);
    place.succeed(&["train", "images", "--out", "out", "--resume"]);
    assert!(
        !place.path("out/made.json").try_exists().unwrap(),
        "nothing is known"
    );
}

#[test]
fn what_trains_a_part_of_a_run_is_named_in_its_folder() {
    let place = Place::new();
    place.train(&["--out", "out"]);
    let elsewhere = json!({ "version": 1, "backend": "cuda" });
    fs::write(place.path("out/made.json"), json!([elsewhere]).to_string()).unwrap();
    let resume = || place.succeed(&["train", "images", "--out", "out", "--resume"]);
    // Where no step is left, nothing is trained.
    resume();
    assert_eq!(place.json("out/made.json"), json!([elsewhere]));
    fs::remove_dir_all(place.path("out/checkpoints/step-00000006")).unwrap();
    resume();
    let here = json!({ "version": 1, "backend": "flex" });
    assert_eq!(place.json("out/made.json"), json!([elsewhere, here]));
}

#[test]
fn a_run_leaves_its_settings_numbers_checkpoints_and_pictures() {
    let place = Place::new();
    let table = place.train(&["--out", "out"]);
    assert!(table.contains("\nlog_likelihood "), "{table}");
    assert!(
        table.lines().any(|line| line.starts_with("retreever ")),
        "{table}"
    );
    assert!(!table.contains("NaN"), "{table}");

    let config = place.json("out/config.json");
    assert_eq!(config["trainer"]["steps"], 6);
    assert_eq!(config["model"], "retreever");
    let made = place.json("out/made.json");
    assert_eq!(made, json!([{ "version": 1, "backend": "flex" }]));
    assert_eq!(
        place.checkpoints("out"),
        ["step-00000004", "step-00000006"],
        "the two newest are kept"
    );

    let log: Vec<Value> = place.metrics("out").lines().map(parse).collect();
    let steps = |split: &str| {
        let lines = log.iter().filter(|line| line["split"] == split);
        lines
            .map(|line| line["step"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(steps("train"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(steps("valid"), [3, 6]);
    for key in [
        "loss",
        "log_likelihood",
        "tokens_percent",
        "reward",
        "entropy",
    ] {
        assert!(log[0][key].is_f64(), "{key} in {}", log[0]);
    }

    for name in ["curves.png", "completion.png"] {
        let picture = image::open(place.path("out").join(name)).unwrap().to_rgb8();
        let first = *picture.get_pixel(0, 0);
        assert!(
            picture.pixels().any(|pixel| *pixel != first),
            "{name} is blank"
        );
    }
    let curves = fs::read_to_string(place.path("out/curves.svg")).unwrap();
    assert!(curves.contains("<svg") && curves.contains("retreever"));
}

#[test]
fn eval_repeats_the_numbers_that_training_ended_with() {
    let place = Place::new();
    // All test images during training too, so that the log has the same numbers a third time.
    let args = ["--out", "out", "--json", "--set", "eval_items=0"];
    let trained = parse(&place.train(&args));
    assert_eq!(trained["run"], "out");
    let trained = &trained["models"]["retreever"];
    assert_finite(trained);

    let evaluated = place.eval("out", &[]);
    assert_eq!(evaluated["step"], 6);
    assert_eq!(evaluated["items"], IMAGES[1]);
    assert_eq!(evaluated["backend"], "flex");
    assert_finite(&evaluated["metrics"]);
    let log = place.metrics("out");
    let logged = parse(log.lines().last().unwrap());
    for key in ["log_likelihood", "tokens_percent", "nodes_read"] {
        assert_eq!(evaluated["metrics"][key], trained[key], "{key}");
        assert_eq!(evaluated["metrics"][key], logged[key], "{key}");
    }

    let text = place.succeed(&["eval", "out"]);
    assert!(
        text.starts_with("retreever at step 6, 8 test images"),
        "{text}"
    );
    assert!(text.contains("log_likelihood"), "{text}");
}

#[test]
fn searches_are_compared_in_one_table() {
    let place = Place::new();
    place.train(&["--out", "out"]);
    let search = "greedy,samples=4,beam=2";
    let numbers = place.eval("out", &["--search", search, "--temperature", "0.5"]);
    let searches = numbers["searches"].as_array().unwrap();
    let names = [
        "greedy",
        "samples=4, temperature 0.5",
        "beam=2, temperature 0.5",
    ];
    for (search, name) in searches.iter().zip(names) {
        assert_eq!(search["search"], name);
        assert_finite(&search["metrics"]);
    }
    assert_eq!(searches.len(), names.len());
    let greedy = place.eval("out", &[]);
    let likelihood = |numbers: &Value| numbers["metrics"]["log_likelihood"].clone();
    assert_eq!(likelihood(&searches[0]), likelihood(&greedy));
    let args = ["eval", "out", "--search", search, "--markdown", "page.md"];
    let table = place.succeed(&args);
    assert_eq!(table.lines().count(), 5, "{table}");
    let page = fs::read_to_string(place.path("page.md")).unwrap();
    assert!(page.contains(&format!(
        "arbora eval out --search {search} --markdown FILE"
    )));
}

#[test]
fn the_final_numbers_are_over_all_test_images() {
    let place = Place::new();
    let trained = parse(&place.train(&["--out", "out", "--json"]));
    let evaluated = place.eval("out", &[]);
    let key = "log_likelihood";
    assert_eq!(
        trained["models"]["retreever"][key],
        evaluated["metrics"][key]
    );
    let logged = parse(place.metrics("out").lines().last().unwrap());
    assert_ne!(
        logged[key], evaluated["metrics"][key],
        "the log is over 4 of 8 images"
    );
}

#[test]
fn every_model_trains_and_evaluates() {
    let place = Place::new();
    for model in ["retreever", "random-route", "cross-attention"] {
        let trained = parse(&place.train(&["--model", model, "--out", model, "--json"]));
        let models = trained["models"].as_object().unwrap();
        assert_eq!(models.keys().collect::<Vec<_>>(), [model]);
        let evaluated = place.eval(model, &[]);
        assert_eq!(evaluated["model"], model);
        let tokens = evaluated["metrics"]["tokens_percent"].as_f64().unwrap();
        match model {
            "cross-attention" => assert_eq!(tokens, 100.0),
            _ => assert!(tokens < 100.0, "{model}: {tokens} %"),
        }
    }
    // A learned route and a random walk on the same weights read different nodes.
    let learned = place.eval("retreever", &[]);
    let random = place.eval("retreever", &["--random-route"]);
    assert_eq!(
        (&learned["route"], &random["route"]),
        (&"learned".into(), &"random".into())
    );
    let key = "log_likelihood";
    assert_ne!(learned["metrics"][key], random["metrics"][key]);
    assert_eq!(place.eval("random-route", &[])["route"], "random");
    assert_eq!(place.eval("cross-attention", &[])["route"], "none");
}

#[test]
fn settings_layer_from_preset_to_file_to_single_settings_to_options() {
    let place = Place::new();
    place.train(&[
        "--set",
        "trainer.steps=2",
        "--set",
        "trainer.steps=3",
        "--set",
        "architecture.order=morton",
        "--set",
        r#"trainer.policy_gradient.baseline={"kind":"moving_average","decay":0.5}"#,
        "--set",
        "model=cross-attention",
        "--model",
        "random-route",
        "--seed",
        "17",
        "--out",
        "out",
    ]);
    let config = place.json("out/config.json");
    assert_eq!(config["trainer"]["steps"], 3, "the last --set wins");
    assert_eq!(config["architecture"]["order"], "morton");
    assert_eq!(
        config["trainer"]["policy_gradient"]["baseline"]["decay"],
        0.5
    );
    assert_eq!(config["model"], "random-route", "an option beats --set");
    assert_eq!(config["trainer"]["seed"], 17);
    assert_eq!(config["architecture"]["d_model"], 8, "from the file");
    assert_eq!(config["architecture"]["branching"], 2, "from the preset");
    assert_eq!(config["trainer"]["learning_rate"], 1e-3, "from the preset");
    assert_eq!(place.metrics("out").matches("train").count(), 3);
}

#[test]
fn settings_with_forms_of_their_own_are_replaced_whole() {
    let place = Place::new();
    place.train(&[
        "--set",
        "trainer.steps=0",
        "--set",
        r#"architecture.order={"random":{"seed":4}}"#,
        "--set",
        r#"data={"kind":"sample"}"#,
        "--set",
        r#"trainer.policy_gradient.baseline={"kind":"constant","value":-1.5}"#,
        "--set",
        "reward=negative-mse",
        "--set",
        "test_items=4",
        "--out",
        "out",
    ]);
    let config = place.json("out/config.json");
    let order = json!({ "random": { "seed": 4 } });
    assert_eq!(config["architecture"]["order"], order);
    assert_eq!(config["data"], json!({ "kind": "sample" }));
    let baseline = &config["trainer"]["policy_gradient"]["baseline"];
    assert_eq!(*baseline, json!({ "kind": "constant", "value": -1.5 }));
}

#[test]
fn the_seed_decides_every_number() {
    let place = Place::new();
    for (out, seed) in [("a", "1"), ("b", "1"), ("c", "2")] {
        place.train(&["--seed", seed, "--out", out]);
    }
    assert_eq!(place.metrics("a"), place.metrics("b"));
    assert_ne!(place.metrics("a"), place.metrics("c"));
}

#[test]
fn runs_without_a_folder_are_numbered() {
    let place = Place::new();
    for number in 1..=2 {
        let printed = parse(&place.train(&["--json", "--set", "trainer.steps=1"]));
        let run = format!("runs/images-retreever-{number}");
        assert_eq!(printed["run"], run.as_str());
        assert!(place.path(run).join("completion.png").is_file());
    }
    place.train(&["--model", "cross-attention", "--set", "trainer.steps=1"]);
    assert!(
        place
            .path("runs/images-cross-attention-1/config.json")
            .is_file()
    );
}

#[test]
fn the_model_compared_with_is_a_run_of_its_own_inside() {
    let place = Place::new();
    let compared = parse(&place.succeed(&[
        "compare",
        "images",
        "--models",
        "retreever,cross-attention",
        "--config",
        "tiny.json",
        "--out",
        "out",
        "--json",
    ]));
    let inner = place.json("out/cross-attention-seed0/config.json");
    assert_eq!(inner["model"], "cross-attention");
    let outer = place.json("out/retreever-seed0/config.json");
    assert_eq!(inner["trainer"], outer["trainer"]);
    for (at, model) in ["retreever", "cross-attention"].into_iter().enumerate() {
        let run = format!("out/{model}-seed0");
        assert_eq!(
            place.metrics(&run).matches("\"train\"").count(),
            6,
            "one budget"
        );
        let evaluated = place.eval(&run, &[]);
        assert_eq!(evaluated["model"], model);
        assert_eq!(
            evaluated["metrics"]["log_likelihood"],
            compared["summary"][at]["metrics"]["log_likelihood"]["mean"]
        );
    }
    let curves = fs::read_to_string(place.path("out/curves.svg")).unwrap();
    assert!(curves.contains("retreever") && curves.contains("cross-attention"));
    assert!(place.path("out/completion.png").is_file());

    // Alone it is the same run: nothing leaks from one model into the other.
    place.train(&["--model", "cross-attention", "--out", "alone"]);
    assert_eq!(
        place.metrics("alone"),
        place.metrics("out/cross-attention-seed0")
    );
}

/// Six pictures in the folder `pictures`.
fn pictures(place: &Place) {
    fs::create_dir(place.path("pictures")).unwrap();
    for picture in 0..6u8 {
        RgbImage::from_fn(9, 7, |x, y| Rgb([30 * picture, 20 * x as u8, 30 * y as u8]))
            .save(place.path(format!("pictures/{picture}.png")))
            .unwrap();
    }
}

#[test]
fn a_folder_of_colour_pictures_is_a_data_set() {
    let place = Place::new();
    pictures(&place);
    let data =
        format!(r#"data={{"kind":"folder","path":"pictures","size":{SIZE:?},"held_out":2}}"#);
    let trained = parse(&place.train(&["--set", &data, "--out", "out", "--json"]));
    assert_finite(&trained["models"]["retreever"]);
    let evaluated = place.eval("out", &[]);
    assert_eq!(evaluated["items"], 2);
}

#[test]
fn fingerprints_tell_architectures_apart_and_ignore_the_schedule() {
    let place = Place::new();
    pictures(&place);
    let print = |run: &str, setting: &str| {
        let one = ["--set", "trainer.steps=1", "--set", setting, "--out", run];
        place.train(&one);
        let state = place.json(format!("{run}/checkpoints/step-00000001/state.json"));
        state["fingerprint"].as_str().unwrap().to_owned()
    };
    let base = print("base", "trainer.seed=1");
    // Checkpoints from before settings were renamed have it.
    assert_eq!(base, "retreever-dab213bc4302b568");
    assert_eq!(base, print("schedule", "trainer.learning_rate=1e-4"));
    let colour =
        format!(r#"data={{"kind":"folder","path":"pictures","size":{SIZE:?},"held_out":2}}"#);
    assert_ne!(base, print("colour", &colour));
    assert_ne!(base, print("branching", "architecture.branching=3"));
    assert_ne!(base, print("random", "model=random-route"));
}

#[test]
fn single_settings_of_a_choice_already_made_can_be_changed_alone() {
    let place = Place::new();
    pictures(&place);
    place.train(&[
        "--set",
        r#"data={"kind":"folder","path":"pictures","held_out":2}"#,
        "--set",
        "data.held_out=3",
        "--set",
        "data.channels=1",
        "--set",
        "trainer.steps=0",
        "--out",
        "out",
    ]);
    let data = &place.json("out/config.json")["data"];
    assert_eq!(
        (&data["held_out"], &data["channels"]),
        (&json!(3), &json!(1))
    );
    let line = place.refuse_training(&["--set", "data.held_out=5"]);
    assert!(line.contains("unknown key data.held_out"), "{line}");
}

#[test]
fn the_bundled_sample_needs_no_file() {
    let place = Place::new();
    let data = r#"data={"kind":"sample"}"#;
    let trained = parse(&place.train(&["--set", data, "--out", "out", "--json"]));
    assert_finite(&trained["models"]["retreever"]);
    assert!(place.eval("out", &[])["items"].as_u64().unwrap() >= 1000);
}

#[test]
fn a_run_without_steps_measures_the_untrained_model() {
    let place = Place::new();
    let trained = parse(&place.train(&["--set", "trainer.steps=0", "--out", "out", "--json"]));
    assert_finite(&trained["models"]["retreever"]);
    assert_eq!(place.eval("out", &[])["step"], 0);
}

#[test]
fn the_environment_names_the_backend_unless_an_option_does() {
    let place = Place::new();
    place.train(&["--out", "out"]);
    let eval = |option: &[&str]| {
        let args = [&["eval", "out", "--json"], option].concat();
        let mut command = place.command(args);
        command.env("BURN_DEVICE", "abacus").output().unwrap()
    };
    let refused = eval(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(common::stderr(&refused).contains("unknown backend abacus"));
    let asked = eval(&["--backend", "flex"]);
    assert_eq!(asked.status.code(), Some(0));
    assert_eq!(
        parse(&String::from_utf8(asked.stdout).unwrap())["backend"],
        "flex"
    );
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let place = Place::new();
    place.train(&["--out", "out"]);
    let mut child = place.command(["eval", "out", "--json"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", common::stderr(&output));
}

#[test]
fn windows_of_time_series_are_classified() {
    let place = Place::new();
    // Two classes that one look at any step tells apart.
    let row = |value: i32, class: &str| {
        let channel = |value: i32| vec![value.to_string(); 6].join(",");
        format!("{}:{}:{class}\n", channel(value), channel(-value))
    };
    let rows = row(1, "up") + &row(-1, "down");
    let header = "@dimensions 2\n@classLabel true up down\n@data\n";
    for name in ["train.ts", "test.ts"] {
        fs::write(place.path(name), format!("{header}{}", rows.repeat(4))).unwrap();
    }
    let data = json!({
        "kind": "series", "train": "train.ts", "test": "test.ts", "window": 4, "stride": 2,
    });
    let settings = json!({
        "data": data, "batch_size": 8,
        "architecture": {
            "d_model": 8, "d_ff": 8, "n_heads": 2, "embedding_depth": 1, "encoder_layers": 1,
        },
        "trainer": { "steps": 60, "eval_every": 30, "learning_rate": 0.02, "warmup_steps": 0 },
    });
    fs::write(place.path("series.json"), settings.to_string()).unwrap();
    let args = ["--config", "series.json", "--out", "out", "--json"];
    let out = place.succeed(&[&["train", "series"], &args[..]].concat());
    assert_eq!(parse(&out)["models"]["retreever"]["accuracy"], 1.0, "{out}");
    let measured = place.eval("out", &[]);
    assert_eq!(measured["items"], 16, "two windows of each of eight series");
    assert_eq!(measured["of"], "test windows");
    assert_eq!(measured["metrics"]["context_tokens"], 4.0);

    // The classes of test series go by their names: the header may list them in another order, or fewer. A byte order
    // mark is no part of it.
    let other = format!("\u{feff}{}", header.replace("up down", "down up"));
    let fewer = header.replace("up down", "down");
    for (header, rows) in [(other, rows), (fewer, row(-1, "down"))] {
        fs::write(place.path("test.ts"), format!("{header}{}", rows.repeat(4))).unwrap();
        let args = ["--config", "series.json", "--out", "again", "--json"];
        let out = place.succeed(&[&["train", "series"], &args[..]].concat());
        assert_eq!(parse(&out)["models"]["retreever"]["accuracy"], 1.0, "{out}");
        fs::remove_dir_all(place.path("again")).unwrap();
    }
}

/// EXIF data that say only that a picture is to be turned by a quarter to the right.
const TURN: &[u8] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";

#[test]
fn pictures_are_learned_as_viewers_show_them() {
    let place = Place::new();
    let sideways = |at: u8| {
        RgbImage::from_fn(8, 6, |x, y| {
            let value = |factor: u32| (x * 20 + y * factor + u32::from(at) * 9) as u8;
            Rgb([value(10), value(20), value(30)])
        })
    };
    for name in ["shown", "raw"] {
        fs::create_dir(place.path(name)).unwrap();
    }
    for at in 0..6u8 {
        let name = format!("{at}.png");
        let upright = image::imageops::rotate90(&sideways(at));
        upright.save(place.path("shown").join(&name)).unwrap();
        // The same for a viewer: turned by its EXIF data, of 16 bits, and opaque.
        let deep = DynamicImage::from(sideways(at)).into_rgba16();
        let path = place.path("raw").join(&name);
        deep.save(&path).unwrap();
        let png = fs::read(&path).unwrap();
        let chunk = [b"eXIf", TURN].concat();
        let mut sum = flate2::Crc::new();
        sum.update(&chunk);
        let (length, sum) = (TURN.len() as u32, sum.sum());
        let (head, rest) = png.split_at(33);
        let parts = [
            head,
            &length.to_be_bytes(),
            &chunk,
            &sum.to_be_bytes(),
            rest,
        ];
        fs::write(&path, parts.concat()).unwrap();
        // What a Mac leaves beside it.
        fs::write(
            place.path("raw").join(format!("._{name}")),
            b"\0\x05\x16\x07",
        )
        .unwrap();
    }
    let train = |folder: &str, more: &str| {
        let data = format!(r#"data={{"kind":"folder","path":"{folder}","held_out":2{more}}}"#);
        let out = format!("out-{folder}");
        let args = [
            "train",
            "images",
            "--config",
            "tiny.json",
            "--set",
            &data,
            "--out",
            &out,
        ];
        let output = place.run(&args);
        let said = common::stderr(&output);
        assert!(output.status.success(), "{said}");
        (place.metrics(&out), said)
    };
    let (shown, said) = train("shown", "");
    assert!(said.contains("; 6 pictures\n"), "{said}");
    let (raw, said) = train("raw", "");
    assert_eq!(raw, shown);
    let changed = "6 turned as their EXIF data say, 6 rounded from 16 bits to 8";
    assert!(
        said.contains(&format!("; 6 pictures, of them {changed}\n")),
        "{said}"
    );

    // A photograph beside them has the same size once it is turned, and the number of channels is a setting.
    let mut jpeg = Cursor::new(Vec::new());
    sideways(6).write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
    let jpeg = jpeg.into_inner();
    let data = [b"Exif\0\0", TURN].concat();
    let length = (data.len() as u16 + 2).to_be_bytes();
    let parts = [&jpeg[..2], &[0xff, 0xe1], &length, &data, &jpeg[2..]];
    fs::write(place.path("shown/6.jpg"), parts.concat()).unwrap();
    fs::remove_dir_all(place.path("out-shown")).unwrap();
    let (_, said) = train("shown", r#","channels":1"#);
    let changed = "1 turned as their EXIF data say, 7 made grey";
    assert!(
        said.contains(&format!("; 7 pictures, of them {changed}\n")),
        "{said}"
    );
    assert_eq!(place.json("out-shown/config.json")["data"]["channels"], 1);
}

#[test]
fn parameters_that_the_last_update_lost_are_no_success() {
    let place = Place::new();
    let train = ["train", "images", "--config", "tiny.json", "--out", "out"];
    let settings = [
        "learning_rate=1e308",
        "warmup_steps=0",
        "steps=1",
        "eval_every=1",
    ];
    let settings = settings.map(|setting| format!("trainer.{setting}"));
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let output = place.run(&train.into_iter().chain(settings).collect::<Vec<_>>());
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: step 1: the held-out "), "{stderr}");
    assert_eq!(place.checkpoints("out"), ["step-00000000"]);
}
