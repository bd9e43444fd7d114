//! Runs on language: a tree and its controls on a small folder of texts, measured, resumed, and what is refused.
#![cfg(feature = "flex")]

mod common;

use common::{Place, parse, stderr};
use serde_json::{Value, json};
use std::fs;

/// Settings of a run of four steps on sequences of 16 bytes.
fn tiny() -> Value {
    json!({
        "data": {
            "source": "texts", "tokenizer": { "kind": "bytes" }, "window": 16, "validation": 0.25,
        },
        "batch_size": 4,
        "eval_batch_size": 4,
        "eval_items": 8,
        "architecture": {
            "d_model": 8, "n_heads": 2, "n_kv_heads": 2, "branching": 2, "height": 2, "blocks": [1], "d_ff": [8],
            "route_on": { "kind": "first-n", "tokens": 4 },
        },
        "trainer": { "steps": 4, "eval_every": 2, "checkpoint_every": 1, "warmup_steps": 0 },
    })
}

/// Sentences with a subject of their own, as long as some windows.
fn document(number: usize) -> String {
    let subject = ["whale", "ship", "sea", "captain"][number % 4];
    (0..6)
        .map(|line| format!("The {subject} of line {line} meets the {subject}.\n"))
        .collect()
}

fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("texts")).unwrap();
    for number in 0..4 {
        fs::write(place.path(format!("texts/{number}.txt")), document(number)).unwrap();
    }
    fs::write(place.path("language.json"), tiny().to_string()).unwrap();
    place
}

const TRAIN: [&str; 4] = ["train", "lm", "--config", "language.json"];

fn train(place: &Place, args: &[&str]) -> String {
    place.succeed(&[&TRAIN, args].concat())
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("expected a number, got {value}"))
}

fn near(found: f64, expected: f64) {
    let bound = 1e-6 * expected.abs().max(1.0);
    assert!((found - expected).abs() < bound, "{found} for {expected}");
}

#[test]
fn every_model_leaves_numbers_curves_and_a_run_that_eval_measures_again() {
    let place = place();
    for model in [
        "tree-coder",
        "linear-active",
        "linear-total",
        "random-route",
        "hash-route",
    ] {
        let args = ["--model", model, "--out", model, "--json"];
        let trained = parse(&train(&place, &args));
        let numbers = &trained["models"][model];
        let loss = number(&numbers["loss"]);
        near(number(&numbers["perplexity"]), loss.exp());
        near(number(&numbers["log_likelihood"]), -loss);
        let has_tree = !model.starts_with("linear");
        assert_eq!(numbers["leaf_share_min"].is_f64(), has_tree, "{numbers}");
        if has_tree {
            let shares = (0..4).map(|leaf| number(&numbers[format!("leaf_share.{leaf}")]));
            let shares: Vec<f64> = shares.collect();
            near(shares.iter().sum::<f64>(), 4.0);
            let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
            near(number(&numbers["leaf_share_min"]), least);
            let most = shares.iter().copied().fold(0.0, f64::max);
            near(number(&numbers["leaf_share_max"]), most);
            // Shares of all text, without those of leaves that got none.
            let used = shares.iter().map(|share| share / 4.0);
            let entropy = used
                .filter(|share| *share > 0.0)
                .map(|share| -share * share.ln());
            near(
                number(&numbers["effective_leaves"]),
                entropy.sum::<f64>().exp(),
            );
        }
        let learns = model == "tree-coder";
        assert_eq!(numbers["route_entropy.1"].is_f64(), learns, "{numbers}");
        let evaluated = place.eval(model, &[]);
        assert_eq!(evaluated["model"], model);
        assert_eq!(evaluated["step"], 4);
        for name in ["loss", "perplexity", "bits_per_byte"] {
            near(number(&evaluated["metrics"][name]), number(&numbers[name]));
        }
        for file in ["curves.svg", "curves.png", "tokenizer.json"] {
            assert!(place.path(model).join(file).is_file(), "{model}: {file}");
        }
    }
    let text = place.succeed(&["eval", "tree-coder"]);
    assert!(text.contains("sequences of held-out text"), "{text}");
    assert!(text.contains("\nperplexity"), "{text}");
}

#[test]
fn one_byte_is_one_token_so_bits_per_byte_are_the_loss_in_bits() {
    let place = place();
    fs::write(place.path("held.txt"), document(0)).unwrap();
    let held = ["--set", "data.validation_source=held.txt"];
    let trained = parse(&train(
        &place,
        &[&held[..], &["--out", "out", "--json"]].concat(),
    ));
    let numbers = &trained["models"]["tree-coder"];
    let bits = number(&numbers["loss"]) / 2f64.ln();
    // All bytes but the first are targets, and so is the end of the document, which has no bytes. The first three of
    // a window choose its route.
    let all = document(0).len();
    let windows = (0..all).step_by(16).map(|start| 16.min(all - start));
    let targets: usize = windows.map(|count| count.saturating_sub(3)).sum();
    assert!(all % 16 > 3, "the end is asked for");
    let bytes = (targets - 1) as f64;
    near(
        number(&numbers["bits_per_byte"]),
        bits * targets as f64 / bytes,
    );
    let mixed = [
        "--set",
        "data.mix_documents=true",
        "--out",
        "mixed",
        "--json",
    ];
    let trained = parse(&train(&place, &mixed));
    assert!(trained["models"]["tree-coder"]["loss"].is_f64());
}

#[test]
fn perplexity_is_that_of_the_whole_evaluation_whatever_its_batches() {
    let place = place();
    train(&place, &["--out", "out"]);
    let whole = place.eval("out", &[])["metrics"].clone();
    let mut config = place.json("out/config.json");
    config["eval_batch_size"] = json!(1);
    fs::write(place.path("out/config.json"), config.to_string()).unwrap();
    let single = place.eval("out", &[])["metrics"].clone();
    for name in ["loss", "perplexity", "bits_per_byte", "leaf_share_min"] {
        let (found, expected) = (number(&single[name]), number(&whole[name]));
        // Sums of other batches are rounded in another way.
        assert!(
            (found - expected).abs() < 1e-4 * expected.abs().max(1.0),
            "{name}: {found} for {expected}"
        );
    }
}

#[test]
fn a_resumed_run_continues_the_same_numbers() {
    let place = place();
    for (name, settings) in [
        ("learned", vec![]),
        ("random", vec!["--model", "random-route"]),
        (
            "sampled",
            vec![
                "--set",
                "selector.gradient.kind=reinforce",
                "--set",
                "selector.balance.kind=none",
            ],
        ),
    ] {
        let [whole, cut] = ["whole", "cut"].map(|part| format!("{name}-{part}"));
        for out in [&whole, &cut] {
            train(&place, &[&settings[..], &["--out", out]].concat());
        }
        let expected = place.metrics(&whole);
        assert_eq!(place.metrics(&cut), expected, "{name}");
        // As if it had been stopped after its third step.
        fs::remove_dir_all(place.path(&cut).join("checkpoints/step-00000004")).unwrap();
        place.succeed(&["train", "lm", "--out", &cut, "--resume"]);
        assert_eq!(place.metrics(&cut), expected, "{name}");
    }
    assert!(place.metrics("sampled-whole").contains("\"reward\""));
}

#[test]
fn a_run_keeps_its_tokenizer() {
    let place = place();
    let bpe = r#"data.tokenizer={"kind":"bpe","vocabulary":280}"#;
    train(&place, &["--set", bpe, "--out", "trained"]);
    fs::copy(
        place.path("trained/tokenizer.json"),
        place.path("mine.json"),
    )
    .unwrap();
    let file = r#"data.tokenizer={"kind":"file","path":"mine.json"}"#;
    train(&place, &["--set", file, "--out", "read"]);
    fs::remove_file(place.path("mine.json")).unwrap();
    // The same tokenizer, so the same numbers, although its file is gone.
    let metrics = |run: &str| place.eval(run, &[])["metrics"].clone();
    assert_eq!(metrics("read"), metrics("trained"));
    fs::remove_dir_all(place.path("read/checkpoints/step-00000004")).unwrap();
    place.succeed(&["train", "lm", "--out", "read", "--resume"]);
    assert_eq!(metrics("read"), metrics("trained"));

    let kept = fs::read(place.path("read/tokenizer.json")).unwrap();
    let says = |words: &[&str]| {
        for args in [
            &["eval", "read"][..],
            &["train", "lm", "--out", "read", "--resume"],
        ] {
            let line = place.refuse(args);
            assert!(words.iter().all(|word| line.contains(word)), "{line}");
        }
    };
    fs::write(place.path("read/tokenizer.json"), &kept[..kept.len() / 2]).unwrap();
    says(&["read/tokenizer.json", "not a tokenizer"]);
    fs::write(place.path("read/tokenizer.json"), r#"{"kind":"bytes"}"#).unwrap();
    says(&["checkpoint of another model", "tokenizer"]);
    fs::remove_file(place.path("read/tokenizer.json")).unwrap();
    says(&["read/tokenizer.json", "cannot be read"]);
}

#[test]
fn a_tree_can_be_walked_at_random() {
    let place = place();
    train(&place, &["--out", "out"]);
    let learned = place.eval("out", &[])["metrics"].clone();
    let random = place.eval("out", &["--random-route"])["metrics"].clone();
    assert_ne!(random["loss"], learned["loss"]);
    let soft = [
        "--set",
        "selector.gradient.kind=soft",
        "--set",
        "selector.balance.kind=none",
    ];
    train(&place, &[&soft[..], &["--out", "soft"]].concat());
    train(&place, &["--model", "linear-active", "--out", "linear"]);
    for (run, words) in [
        ("linear", "linear-active has no tree"),
        ("soft", "soft selectors go to all leaves"),
    ] {
        let line = place.refuse(&["eval", run, "--random-route"]);
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn leaves_are_measured_in_large_trees() {
    let place = place();
    let args = [
        "--model",
        "hash-route",
        "--set",
        "architecture.height=7",
        "--set",
        r#"architecture.route_on={"kind":"previous-chunk","tokens":6}"#,
        "--set",
        "trainer.steps=1",
        "--out",
        "out",
    ];
    train(&place, &args);
    let log = place.metrics("out");
    let mut steps = log
        .lines()
        .filter(|line| line.contains(r#""split":"train""#));
    assert!(
        !steps.next().unwrap().contains("leaf_share"),
        "too many for a log"
    );
    let metrics = place.eval("out", &[])["metrics"].clone();
    let shares = (0..128).map(|leaf| number(&metrics[format!("leaf_share.{leaf}")]));
    near(shares.sum::<f64>(), 128.0);
    assert_eq!(metrics["leaf_share_min"], 0.0);
    let (most, used) = (&metrics["leaf_share_max"], &metrics["effective_leaves"]);
    assert!(number(most) > 1.0 && (1.0..128.0).contains(&number(used)));
}

#[test]
fn chunks_have_routes_of_their_own() {
    let place = place();
    let chunks = r#"architecture.route_on={"kind":"previous-chunk","tokens":6}"#;
    for gradient in ["scaled-delta", "reinforce"] {
        let gradient = format!("selector.gradient.kind={gradient}");
        let args = [
            "--set",
            chunks,
            "--set",
            &gradient,
            "--set",
            "selector.balance.kind=none",
            "--out",
            &gradient,
            "--json",
        ];
        let trained = parse(&train(&place, &args));
        assert!(trained["models"]["tree-coder"]["loss"].is_f64());
    }
}

/// A refusal of training with one setting.
fn refused(place: &Place, args: &[&str]) -> String {
    place.refuse(&[&TRAIN[..], &["--out", "new"], args].concat())
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let place = place();
    for (setting, words) in [
        (
            "architecture.branching=1",
            "architecture.branching: expected at least 2, got 1",
        ),
        (
            "architecture.branching=0",
            "architecture.branching: expected at least 2, got 0",
        ),
        (
            "architecture.height=40",
            "architecture.height: expected a tree of at most",
        ),
        (
            "architecture.blocks=[1,2]",
            "architecture.blocks: expected one number, or one for each of the height + 1 levels",
        ),
        ("architecture.d_ff=[0]", "architecture.d_ff: expected 1 to"),
        (
            "architecture.n_heads=3",
            "architecture.n_heads: expected a divisor of 8, got 3",
        ),
        (
            "architecture.n_kv_heads=0",
            "architecture.n_kv_heads: expected 1 to",
        ),
        (
            "architecture.dropout=1",
            "architecture.dropout: expected 0 to below 1",
        ),
        (
            "architecture.route_on.tokens=16",
            "architecture.route_on.tokens: expected 1 to below data.window = 16, got 16",
        ),
        (
            "architecture.route_on.tokens=0",
            "architecture.route_on.tokens: expected 1",
        ),
        (
            r#"architecture.route_on={"kind":"previous-chunk","tokens":17}"#,
            "architecture.route_on.tokens: expected 1 to data.window = 16, got 17",
        ),
        (
            r#"architecture.route_on={"kind":"last-token"}"#,
            "last-token reads tokens that a language model must predict",
        ),
        (
            r#"architecture.route_on={"kind":"mean-all"}"#,
            "mean-all reads tokens that a language model must predict",
        ),
        (
            r#"architecture.attention={"kind":"linformer","max_tokens":16}"#,
            "architecture.attention: expected a kind that supports causal masks, got linformer",
        ),
        (
            r#"selector.gradient={"kind":"gumbel-straight-through","temperature":0}"#,
            "selector.gradient.temperature: expected a positive number, got 0",
        ),
        (
            r#"selector.balance={"kind":"switch-loss","weight":-1}"#,
            "selector.balance.weight: expected a positive number, got -1",
        ),
        ("selector.hidden=0", "selector.hidden: expected at least 1"),
        (
            "selector.gradient.kind=reinforce",
            "selector.balance: expected none or switch-loss with reinforce",
        ),
        ("data.window=1", "data.window: expected 2 to"),
        ("data.validation=0", "data.validation"),
        ("data.validation=1", "data.validation"),
        (
            r#"data.tokenizer={"kind":"bpe","vocabulary":256}"#,
            "data.tokenizer.vocabulary: expected 257 to",
        ),
        ("data.tokenizer.kind=words", "words"),
        ("batch_size=0", "batch_size: expected 1 to"),
        ("lambda_attention=-1", "lambda_attention: expected"),
        (
            "selector.rate=-1",
            "selector.rate: expected a number of at least 0",
        ),
        ("architecture.widht=3", "unknown key architecture.widht"),
        ("trainer.learning_rate=-1", "trainer.learning_rate"),
    ] {
        let line = refused(&place, &["--set", setting]);
        assert!(line.contains(words), "{setting}: {line}");
    }
    let sampled = [
        "--set",
        "selector.gradient.kind=reinforce",
        "--set",
        "selector.balance.kind=none",
        "--set",
        "trainer.policy_gradient.baseline.kind=self_critical",
    ];
    let line = refused(&place, &sampled);
    assert!(
        line.contains("trainer.policy_gradient.baseline: needs"),
        "{line}"
    );
}

#[test]
fn a_byte_order_mark_makes_no_difference_anywhere() {
    let place = place();
    let tokenizer = r#"data.tokenizer={"kind":"bpe","vocabulary":280}"#;
    train(&place, &["--set", tokenizer, "--out", "first"]);
    let kept = fs::read_to_string(place.path("first/tokenizer.json")).unwrap();
    fs::write(place.path("mine.json"), kept).unwrap();
    let mine = r#"data.tokenizer={"kind":"file","path":"mine.json"}"#;
    train(&place, &["--set", mine, "--out", "plain"]);

    let mark = |name: &str| {
        let bytes = fs::read(place.path(name)).unwrap();
        fs::write(place.path(name), [b"\xef\xbb\xbf", &bytes[..]].concat()).unwrap();
    };
    (0..4).for_each(|number| mark(&format!("texts/{number}.txt")));
    ["language.json", "mine.json"].into_iter().for_each(mark);
    train(&place, &["--set", mine, "--out", "marked"]);
    assert_eq!(place.metrics("marked"), place.metrics("plain"));
    for name in ["text.json", "tokenizer.json"] {
        let [plain, marked] = ["plain", "marked"].map(|run| fs::read(place.path(run).join(name)));
        assert_eq!(plain.unwrap(), marked.unwrap(), "{name}");
    }
    // People edit the settings of a run, too.
    mark("marked/config.json");
    place.eval("marked", &[]);
}

#[test]
fn text_that_cannot_be_read_is_refused() {
    let place = place();
    fs::write(place.path("empty.txt"), "").unwrap();
    fs::write(place.path("latin.txt"), b"caf\xe9 and more").unwrap();
    fs::create_dir(place.path("nothing")).unwrap();
    fs::write(place.path("nothing/picture.png"), "text").unwrap();
    for (source, words) in [
        ("nowhere.txt", vec!["nowhere.txt", "cannot be read"]),
        ("empty.txt", vec!["empty.txt", "expected text"]),
        ("latin.txt", vec!["latin.txt", "UTF-8", "position 3"]),
        ("nothing", vec!["nothing", "found none"]),
    ] {
        let source = format!("data.source={source}");
        let line = refused(&place, &["--set", &source]);
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }
    fs::write(place.path("damaged.json"), "{\"model\": 3}").unwrap();
    for (path, words) in [
        ("damaged.json", "not a tokenizer"),
        ("nowhere.json", "cannot be read"),
    ] {
        let tokenizer = format!(r#"data.tokenizer={{"kind":"file","path":"{path}"}}"#);
        let line = refused(&place, &["--set", &tokenizer]);
        assert!(line.contains(path) && line.contains(words), "{line}");
    }
}

#[test]
fn models_runs_and_commands_of_other_families_are_refused() {
    let place = place();
    train(&place, &["--out", "out"]);
    let says = |args: &[&str], words: &[&str]| {
        let line = place.refuse(args);
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    };
    says(
        &["train", "lm", "--model", "dense"],
        &["dense is for sequences", "tree-coder, linear-active"],
    );
    says(
        &["train", "recall", "--model", "tree-coder"],
        &["tree-coder is for language"],
    );
    says(
        &["train", "lm", "--preset", "published"],
        &["no published settings"],
    );
    says(
        &["train", "lm", "--from", "out"],
        &["--from: lm starts from fresh weights"],
    );
    says(
        &["eval", "out", "--search", "beam=2"],
        &["tree-coder searches no token tree"],
    );
    says(
        &["grow", "out"],
        &["task lm", "grow needs a run of retrieval"],
    );
    says(
        &["train", "images", "--out", "out", "--resume"],
        &["for task lm, asked for images"],
    );
    says(
        &["train", "recall", "--out", "out", "--resume"],
        &["for task lm, asked for recall"],
    );
    let resume = ["train", "lm", "--out", "out", "--resume", "--set"];
    says(
        &[&resume[..], &["architecture.branching=3"]].concat(),
        &["architecture.branching is 2, asked for 3"],
    );
    // Settings that were changed behind the run's back.
    let mut config = place.json("out/config.json");
    config["architecture"]["branching"] = json!(3);
    fs::write(place.path("out/config.json"), config.to_string()).unwrap();
    for args in [
        &["eval", "out"][..],
        &["train", "lm", "--out", "out", "--resume"],
    ] {
        says(args, &["checkpoint of another model"]);
    }
}

/// Refusals of one line for the same words.
fn all_refuse(place: &Place, commands: &[&[&str]], words: &[&str]) {
    for args in commands {
        let line = place.refuse(args);
        assert!(
            words.iter().all(|word| line.contains(word)),
            "{args:?}: {line}"
        );
    }
}

#[test]
fn a_text_of_prompts_alone_is_refused_before_the_folder_is_made() {
    let place = place();
    fs::create_dir(place.path("short")).unwrap();
    // Four bytes and an end: the last token of a prompt of 4 predicts the end of the document, and one of 6 nothing.
    for number in 0..10 {
        fs::write(place.path(format!("short/{number}.txt")), "abcd").unwrap();
    }
    let short = ["--set", "data.source=short"];
    let prompt = ["--set", "architecture.route_on.tokens=6"];
    let both = [&short[..], &prompt].concat();
    let compare = ["compare", "lm", "--config", "language.json", "--out", "new"];
    let words = ["training text has no token after the first 6 of a sequence"];
    all_refuse(
        &place,
        &[
            &[&TRAIN[..], &["--out", "new"], &both].concat(),
            &[&compare[..], &both].concat(),
        ],
        &words,
    );
    fs::write(place.path("short/0.txt"), document(0)).unwrap();
    let words = ["held-out text has no token after the first 6 of a sequence"];
    all_refuse(
        &place,
        &[&[&TRAIN[..], &["--out", "new"], &both].concat()],
        &words,
    );
    train(&place, &[&short[..], &["--out", "new"]].concat());
}

#[test]
fn sequences_to_measure_that_are_prompts_alone_are_refused_before_the_folder_is_made() {
    let place = place();
    fs::create_dir(place.path("held")).unwrap();
    for number in 0..9 {
        fs::write(place.path(format!("held/{number}.txt")), "abcd").unwrap();
    }
    fs::write(place.path("held/long.txt"), document(0)).unwrap();
    let settings = [
        "data.validation_source=held",
        "architecture.route_on.tokens=6",
        "test_items=3",
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|one| ["--set", one]).collect();
    let line = place.refuse(&[&TRAIN[..], &["--out", "new"], &settings].concat());
    let words = "test_items: the 4 sequences that are measured have no token after the first 6";
    assert!(line.contains(words), "{line}");
}

#[test]
fn whole_batches_are_measured_and_counted() {
    let place = place();
    train(&place, &["--set", "test_items=5", "--out", "out"]);
    assert_eq!(place.eval("out", &[])["items"], 8);
    assert_eq!(
        place.eval("out", &[])["parameters"],
        place.eval("out", &[])["metrics"]["total_parameters"]
            .as_f64()
            .unwrap() as u64
    );
}

#[test]
fn files_of_the_user_in_the_folder_of_a_new_run_are_not_written_over() {
    let place = place();
    let bpe = r#"data.tokenizer={"kind":"bpe","vocabulary":280}"#;
    train(&place, &["--set", bpe, "--out", "first"]);
    let kept = fs::read_to_string(place.path("first/tokenizer.json")).unwrap();
    let cut =
        r#""truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0}"#;
    fs::create_dir(place.path("tok")).unwrap();
    fs::write(
        place.path("tok/tokenizer.json"),
        kept.replace(r#""truncation":null"#, cut),
    )
    .unwrap();
    let file = r#"data.tokenizer={"kind":"file","path":"tok/tokenizer.json"}"#;
    let line = place.refuse(&[&TRAIN[..], &["--set", file, "--out", "tok"]].concat());
    assert!(line.contains("tok/tokenizer.json: exists"), "{line}");
    // What a start that was cut short has left is no obstacle.
    fs::write(place.path("tok/tokenizer.json"), kept).unwrap();
    train(&place, &["--set", file, "--out", "tok"]);
}

#[test]
fn tokenizers_with_gaps_or_faults_say_no_more_than_one_line() {
    let place = place();
    let words = |vocabulary: Value, pre_tokenizer: Value| {
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
        })
        .to_string()
    };
    let spaces = json!({ "type": "Whitespace" });
    let file = r#"data.tokenizer={"kind":"file","path":"mine.json"}"#;
    let gaps = words(json!({ "[UNK]": 0, "line": 90 }), spaces.clone());
    fs::write(place.path("mine.json"), gaps).unwrap();
    // Standard output is JSON and no more.
    let trained = parse(&train(&place, &["--set", file, "--out", "gaps", "--json"]));
    let loss = number(&trained["models"]["tree-coder"]["loss"]);
    near(number(&place.eval("gaps", &[])["metrics"]["loss"]), loss);
    let nothing = json!({ "type": "FixedLength", "length": 0 });
    for (tokenizer, problem) in [
        (
            words(json!({ "[UNK]": 0, "line": 1, "meets": 1 }), spaces.clone()),
            "the same number 1",
        ),
        (
            words(json!({ "[UNK]": 0, "line": 4_000_000_000u32 }), spaces),
            "below 1048576",
        ),
        (
            words(json!({ "[UNK]": 0, "line": 1 }), nothing),
            "its library fails",
        ),
    ] {
        fs::write(place.path("mine.json"), tokenizer).unwrap();
        let output = place.run(&[&TRAIN[..], &["--set", file, "--out", "new"]].concat());
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.lines().count() == 1 && stderr.contains(problem),
            "{stderr}"
        );
        assert!(!place.path("new").try_exists().unwrap());
    }
}

#[test]
fn a_run_is_neither_measured_nor_resumed_on_a_text_that_has_changed() {
    let place = place();
    train(&place, &["--out", "out"]);
    let kept = place.json("out/text.json");
    assert_eq!(kept["training"]["documents"], 4);
    let parts = ["training", "validation"].map(|part| number(&kept[part]["bytes"]));
    let bytes: usize = (0..4).map(|one| document(one).len()).sum();
    assert_eq!(parts.iter().sum::<f64>(), bytes as f64);
    let commands: [&[&str]; 3] = [
        &["eval", "out"],
        &["inspect", "out"],
        &["train", "lm", "--out", "out", "--resume"],
    ];
    let path = place.path("texts/0.txt");
    let text = fs::read_to_string(&path).unwrap();
    let changed = |from: usize, part: &str| {
        let at = from + text[from..].find("whale").unwrap();
        let mut other = text.clone();
        other.replace_range(at..at + 5, "WHALE");
        fs::write(&path, other).unwrap();
        all_refuse(&place, &commands, &["out: its text has changed", part]);
    };
    changed(0, "the training part had");
    changed(text.len() * 4 / 5, "the held-out part had");
    fs::write(&path, &text).unwrap();
    place.eval("out", &[]);
    fs::write(place.path("out/text.json"), "{}").unwrap();
    all_refuse(
        &place,
        &commands,
        &["out/text.json: not the description of a text"],
    );
    // A run of before there was such a file.
    fs::remove_file(place.path("out/text.json")).unwrap();
    place.eval("out", &[]);
}

#[test]
fn held_out_text_may_come_from_a_place_of_its_own_and_sizes_are_told() {
    let place = place();
    let held_out = document(1);
    fs::write(place.path("held-out.txt"), &held_out).unwrap();
    let args = [
        &TRAIN[..],
        &[
            "--set",
            "data.validation_source=held-out.txt",
            "--out",
            "out",
        ],
    ];
    let output = place.run(&args.concat());
    let said = common::stderr(&output);
    let bytes: usize = (0..4).map(|one| document(one).len()).sum();
    // Of each sequence of 16 bytes and their targets, the first 3 targets are of the prompt. A document has as many
    // targets as bytes: its end is one.
    let [whole, rest] = [held_out.len() / 16, held_out.len() % 16];
    let targets = held_out.len() - 3 * whole - rest.min(3);
    for words in [
        format!("text: training {bytes} bytes in 4 documents"),
        format!(
            "held out {} bytes in 1 documents, {targets} targets",
            held_out.len()
        ),
    ] {
        assert!(said.contains(&words), "{words} is not in {said}");
    }
    let kept = place.json("out/text.json");
    assert_eq!(number(&kept["validation"]["bytes"]), held_out.len() as f64);
    let line = refused(&place, &["--set", "data.validation_source=nowhere.txt"]);
    assert!(line.contains("nowhere.txt"), "{line}");
}

#[test]
fn a_text_without_spaces_is_learned_with_words_of_bounded_length() {
    let place = place();
    let mut state = 1_u32;
    let letters = (0..40_000).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ['A', 'C', 'G', 'T'][(state >> 30) as usize]
    });
    fs::write(place.path("genes.txt"), letters.collect::<String>()).unwrap();
    let bpe = r#"data.tokenizer={"kind":"bpe","vocabulary":300}"#;
    train(
        &place,
        &[
            "--set",
            "data.source=genes.txt",
            "--set",
            bpe,
            "--out",
            "genes",
        ],
    );
    let kept = place.json("genes/tokenizer.json");
    assert_eq!(
        kept["pre_tokenizer"]["pretokenizers"][1]["pattern"]["Regex"],
        ".{1,1024}"
    );
    assert_eq!(kept["model"]["merges"].as_array().unwrap().len(), 43);
    let text = place.succeed(&["generate", "genes", "--prompt", "GATTACA", "--tokens", "4"]);
    assert!(text.starts_with("GATTACA"), "{text}");
    place.eval("genes", &[]);
}
