//! Runs that are killed or interrupted go on as if nothing had happened.
#![cfg(all(feature = "flex", unix))]

mod common;

use arbora::rl::train::Claim;
use common::{Place, parse, snapshot, stderr};
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const STEPS: u64 = 120;
/// A test that asks for a moment inside a run may come too late on a busy machine: it asks again.
const ATTEMPTS: usize = 5;

/// A longer run with everything that a checkpoint has to carry.
fn long(out: &str) -> Vec<String> {
    called(&["train", "images"], out)
}

/// Such a run of each of two models.
fn two(out: &str) -> Vec<String> {
    let models = "retreever,cross-attention";
    called(&["compare", "images", "--models", models], out)
}

fn called(command: &[&str], out: &str) -> Vec<String> {
    let settings = [
        format!("trainer.steps={STEPS}"),
        "trainer.eval_every=7".into(),
        "trainer.warmup_steps=10".into(),
        r#"trainer.policy_gradient={"baseline":{"kind":"moving_average","decay":0.9},"entropy_weight":0.01}"#.into(),
        "points.ragged=true".into(),
        // Runs whose settings are compared: the interval of checkpoints changes no number.
        format!("trainer.checkpoint_every={}", 2 + random(4)),
    ];
    let fixed = ["--config", "tiny.json", "--out", out, "--json"];
    let settings = settings
        .into_iter()
        .flat_map(|setting| ["--set".into(), setting]);
    let fixed = command.iter().copied().chain(fixed).map(String::from);
    fixed.chain(settings).collect()
}

const RESUME: [&str; 6] = ["train", "images", "--out", "out", "--resume", "--json"];

/// The run of the second of two models.
const SECOND: &str = "out/cross-attention-seed0";

/// Another number below `end` at every call, from the clock: a killed run must resume from anywhere.
fn random(end: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    // Clocks with coarse ticks leave the low digits at zero: the multiplication spreads the others.
    let mixed = (now.as_nanos() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    mixed % end
}

/// What a command printed that succeeded.
fn printed(place: &Place, args: &[String]) -> Value {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    parse(&place.succeed(&args))
}

/// An uninterrupted run in `whole`; what it printed.
fn uninterrupted(place: &Place) -> Value {
    printed(place, &long("whole"))
}

/// Waits until the log of a run has more than `lines` lines. `false` if the process ended before.
fn reaches(place: &Place, child: &mut Child, run: &str, lines: usize) -> bool {
    let started = Instant::now();
    let path = place.path(run).join("metrics.jsonl");
    while child.try_wait().unwrap().is_none() {
        let log = fs::read(&path).unwrap_or_default();
        if log.iter().filter(|byte| **byte == b'\n').count() > lines {
            return true;
        }
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "{run} does not get on"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Starts a run in `out` and kills it with its log at a random length.
fn kill(place: &Place) {
    kill_in(place, &long("out"), "out", 0);
}

/// Starts a command in `out` and kills it with the log of `run` at a random length from `least` on.
fn kill_in(place: &Place, args: &[String], run: &str, least: u64) {
    for _ in 0..ATTEMPTS {
        let _ = fs::remove_dir_all(place.path("out"));
        let mut child = place.command(args).spawn().unwrap();
        let lines = least + random(STEPS / 2 - least);
        if kill_after(place, &mut child, run, lines as usize) {
            return;
        }
    }
    panic!("the run ended before it was killed, {ATTEMPTS} times");
}

fn kill_after(place: &Place, child: &mut Child, run: &str, lines: usize) -> bool {
    let reached = reaches(place, child, run, lines);
    // SIGKILL: the process can do nothing about it.
    child.kill().unwrap();
    let killed = child.wait().unwrap().signal() == Some(9);
    println!("killed {run} after {lines} lines: {}", reached && killed);
    reached && killed
}

/// The run in `out` has the numbers of the one in `whole`, bit by bit.
fn assert_continued(place: &Place, whole: &Value, resumed: &Value) {
    assert_same(place, &[""]);
    let [a, b] = [whole, resumed].map(|printed| {
        let mut numbers = printed["models"]["retreever"].clone();
        numbers["seconds"].take();
        numbers
    });
    assert_eq!(a, b);
}

/// The same of the runs of two models.
fn assert_both_continued(place: &Place, whole: &Value, resumed: &Value) {
    assert_same(place, &["/retreever-seed0", "/cross-attention-seed0"]);
    for (a, b) in [0, 1].map(|row| (&whole["summary"][row], &resumed["summary"][row])) {
        assert!(
            a["metrics"].is_object() && a["metrics"] == b["metrics"],
            "{a} and {b}"
        );
    }
}

fn assert_same(place: &Place, runs: &[&str]) {
    for run in runs {
        let [a, b] = ["whole", "out"].map(|out| place.metrics(&format!("{out}{run}")));
        assert!(a == b, "metrics differ:\n{a}\n{b}");
        let [a, b] = ["whole", "out"].map(|out| place.eval(&format!("{out}{run}"), &[]));
        assert_eq!(a["metrics"], b["metrics"]);
    }
    for file in ["curves.svg", "completion.png"] {
        let [a, b] = ["whole", "out"].map(|out| fs::read(place.path(out).join(file)).unwrap());
        assert!(a == b, "{file} differs");
    }
}

#[test]
fn a_killed_run_continues_with_the_same_numbers() {
    let place = Place::new();
    let whole = uninterrupted(&place);
    kill(&place);
    // The worst that a kill may leave behind: half a line.
    let log = OpenOptions::new()
        .append(true)
        .open(place.path("out/metrics.jsonl"));
    log.unwrap().write_all(b"{\"step\":").unwrap();
    let resumed = parse(&place.succeed(&RESUME));
    assert_continued(&place, &whole, &resumed);
}

#[test]
fn a_run_killed_again_and_again_continues_with_the_same_numbers() {
    let place = Place::new();
    let whole = uninterrupted(&place);
    kill(&place);
    for _ in 0..3 {
        let lines = place.metrics("out").lines().count() + random(15) as usize;
        let mut child = place.command(RESUME).spawn().unwrap();
        kill_after(&place, &mut child, "out", lines);
    }
    let resumed = parse(&place.succeed(&RESUME));
    assert_continued(&place, &whole, &resumed);
}

#[test]
fn a_run_killed_in_its_second_model_continues_with_the_same_numbers() {
    let place = Place::new();
    let (whole, args) = (printed(&place, &two("whole")), two("out"));
    kill_in(&place, &args, SECOND, 0);
    let resumed = printed(&place, &args);
    assert_both_continued(&place, &whole, &resumed);
}

#[test]
fn a_run_killed_between_its_models_continues_with_the_same_numbers() {
    let place = Place::new();
    let (whole, args) = (printed(&place, &two("whole")), two("out"));
    kill_in(&place, &args, SECOND, 0);
    // As if the folder had been made and its settings had been half written.
    let inner = place.path(SECOND);
    fs::remove_dir_all(&inner).unwrap();
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("config.json.unfinished"), "{\"task\"").unwrap();
    let resumed = printed(&place, &args);
    assert_both_continued(&place, &whole, &resumed);
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over_with_a_notice() {
    let place = Place::new();
    let whole = uninterrupted(&place);
    // Late enough for two checkpoints: one is damaged, one is read.
    kill_in(&place, &long("out"), "out", 15);
    let mut checkpoints = place.checkpoints("out");
    // A kill while one is written leaves it beside, under another name.
    checkpoints.retain(|name| name.starts_with("step-"));
    let newest = checkpoints.pop().unwrap();
    let model = place.path("out/checkpoints").join(newest).join("model.bpk");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();

    let evaluated = place.run(&["eval", "out", "--json"]);
    assert_eq!(evaluated.status.code(), Some(0));
    assert!(stderr(&evaluated).contains("corrupt checkpoint"));

    let resumed = place.run(&RESUME);
    assert_eq!(resumed.status.code(), Some(0), "{}", stderr(&resumed));
    assert!(stderr(&resumed).contains("differs from its checksum"));
    let resumed = parse(&String::from_utf8(resumed.stdout).unwrap());
    assert_continued(&place, &whole, &resumed);
}

#[test]
fn ctrl_c_saves_first_and_the_run_continues_with_the_same_numbers() {
    let place = Place::new();
    let whole = uninterrupted(&place);
    let stderr = interrupt_in(&place, &long("out"), "out", &["-INT"]);
    let log = place.metrics("out");
    let step = parse(log.lines().last().unwrap())["step"].as_u64().unwrap();
    assert_eq!(
        stderr.lines().last().unwrap(),
        format!("stopped at step {step}; continue with --out out --resume")
    );
    let resumed = parse(&place.succeed(&RESUME));
    assert_continued(&place, &whole, &resumed);

    let (whole, args) = (printed(&place, &two("whole-two")), two("out"));
    fs::remove_dir_all(place.path("whole")).unwrap();
    fs::rename(place.path("whole-two"), place.path("whole")).unwrap();
    let stderr = interrupt_in(&place, &args, SECOND, &["-INT"]);
    assert_eq!(
        stderr.lines().last().unwrap(),
        "stopped; continue with the same command and --out out"
    );
    let resumed = printed(&place, &args);
    assert_both_continued(&place, &whole, &resumed);
}

#[test]
fn schedulers_and_closed_terminals_stop_a_run_as_ctrl_c_does() {
    let place = Place::new();
    let whole = uninterrupted(&place);
    // A closed terminal may send one signal twice, and a scheduler several.
    for signals in [&["-TERM"][..], &["-HUP", "-HUP", "-TERM"]] {
        interrupt_in(&place, &long("out"), "out", signals);
        let resumed = parse(&place.succeed(&RESUME));
        assert_continued(&place, &whole, &resumed);
    }
}

#[test]
fn a_second_ctrl_c_ends_a_run_at_once() {
    let place = Place::new();
    // Steps so long that the second one comes within the same: longer ones on a machine that is busy.
    let at_once = |attempt: usize| {
        let slow = format!("batch_size={}", 4096 << attempt.min(2));
        let slow = [long("out"), vec!["--set".to_owned(), slow]].concat();
        let _ = fs::remove_dir_all(place.path("out"));
        let mut child = place.command(&slow).spawn().unwrap();
        reaches(&place, &mut child, "out", 1);
        while child.try_wait().unwrap().is_none() {
            send(&child, "-INT");
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        // Else the step was over before the second one came.
        !stderr(&output).contains("stopped")
    };
    assert!((0..ATTEMPTS).any(at_once));
    place.succeed(&["eval", "out"]);
}

#[test]
fn a_file_over_the_limit_of_the_process_ends_a_run_in_one_line() {
    let place = Place::new();
    let whole = uninterrupted(&place);
    let mut command = within(&place, "ulimit -f 8");
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with("error: ") && last.contains("File too large"),
        "{said}"
    );
    assert_continued(&place, &whole, &parse(&place.succeed(&RESUME)));
}

/// The command of a run in `out` from a shell that did `before`.
fn within(place: &Place, before: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{before}; exec \"$@\""), "sh"]);
    let called = place.command(long("out"));
    command.arg(called.get_program()).args(called.get_args());
    command.current_dir(place.path("")).stdout(Stdio::piped());
    command.env_remove("BURN_DEVICE");
    command
}

#[test]
fn a_run_that_is_to_outlive_its_terminal_does() {
    let place = Place::new();
    let whole = uninterrupted(&place);
    // As `nohup` does.
    let mut child = within(&place, "trap '' HUP").spawn().unwrap();
    reaches(&place, &mut child, "out", 5);
    send(&child, "-HUP");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let printed = parse(&String::from_utf8(output.stdout).unwrap());
    assert_continued(&place, &whole, &printed);
}

#[test]
fn a_folder_that_another_process_trains_in_is_refused_in_one_line() {
    let place = Place::new();
    let whole = uninterrupted(&place);
    kill(&place);
    let refused = |args: &[&str], folder: &str| {
        let message = place.refuse(args);
        assert_eq!(
            message,
            format!("{folder}: another process trains this run")
        );
    };
    let other = Claim::resume(place.path("out")).unwrap();
    refused(&RESUME, "out");
    let new = Claim::begin(place.path("new")).unwrap();
    refused(
        &["train", "images", "--config", "tiny.json", "--out", "new"],
        "new",
    );
    drop((other, new));
    let resumed = parse(&place.succeed(&RESUME));
    assert_continued(&place, &whole, &resumed);

    // Nor is it renamed to make room.
    let args = two("two");
    printed(&place, &args);
    let _other = Claim::resume(place.path("two/retreever-seed0")).unwrap();
    let again = args.iter().map(String::as_str).chain(["--again"]);
    let refused = place.run(&again.collect::<Vec<_>>());
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(
        stderr(&refused).lines().last().unwrap(),
        "error: two/retreever-seed0: another process trains this run"
    );
    assert!(
        !place
            .path("two/retreever-seed0-before-1")
            .try_exists()
            .unwrap()
    );
}

#[test]
fn runs_that_begin_together_have_folders_of_their_own() {
    let place = Place::new();
    let mut begun: Vec<Child> = (0..6)
        .map(|seed: u64| {
            let seed = seed.to_string();
            let args = ["train", "images", "--config", "tiny.json", "--seed", &seed];
            place.command(args).spawn().unwrap()
        })
        .collect();
    for child in &mut begun {
        assert!(child.wait().unwrap().success());
    }
    let mut seeds: Vec<u64> = (1..=6)
        .map(|number| {
            let run = format!("runs/images-retreever-{number}");
            let newest = place.checkpoints(&run).pop().unwrap();
            let state = place.json(format!("{run}/checkpoints/{newest}/state.json"));
            let config = place.json(format!("{run}/config.json"));
            assert_eq!(config["trainer"]["seed"], state["seed"]);
            state["seed"].as_u64().unwrap()
        })
        .collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn comparisons_that_begin_together_have_folders_of_their_own() {
    let place = Place::new();
    let models = ["cross-attention", "perceiver"];
    let args = |model| {
        [
            "compare",
            "images",
            "--models",
            model,
            "--config",
            "tiny.json",
        ]
    };
    let mut begun = models.map(|model| place.command(args(model)).spawn().unwrap());
    for child in &mut begun {
        assert!(child.wait().unwrap().success());
    }
    let runs = |number| {
        let found = fs::read_dir(place.path(format!("runs/images-compare-{number}"))).unwrap();
        let folders = found.filter(|entry| entry.as_ref().unwrap().path().is_dir());
        folders.count()
    };
    assert_eq!([runs(1), runs(2)], [1, 1]);
}

#[test]
fn a_run_goes_on_when_nobody_reads_its_messages_any_more() {
    let place = Place::new();
    for (args, run) in [
        (long("out"), "out"),
        (two("out-two"), "out-two/retreever-seed0"),
    ] {
        let mut child = place.command(args).spawn().unwrap();
        drop(child.stderr.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{run}");
        let newest = place.checkpoints(run).pop();
        assert_eq!(newest, Some(format!("step-{STEPS:08}")));
    }
    // Nor does an error become another one.
    let mut child = place.command(["eval", "nowhere"]).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

/// Sends a signal to a process. Whether it was there.
fn send(child: &Child, signal: &str) -> bool {
    let process = child.id().to_string();
    let sent = Command::new("kill").args([signal, &process]).status();
    sent.unwrap().success()
}

/// Starts a command in `out` and stops it with signals, Ctrl-C for instance, while it trains the model in `run`; what it
/// says.
fn interrupt_in(place: &Place, args: &[String], run: &str, signals: &[&str]) -> String {
    for _ in 0..ATTEMPTS {
        let _ = fs::remove_dir_all(place.path("out"));
        let mut child = place.command(args).spawn().unwrap();
        reaches(place, &mut child, run, random(STEPS / 2) as usize);
        let sent = signals.iter().all(|signal| send(&child, signal));
        let output = child.wait_with_output().unwrap();
        if !sent || output.status.code() == Some(0) {
            continue;
        }
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        assert!(output.stdout.is_empty());
        let log = place.metrics(run);
        let step = parse(log.lines().last().unwrap())["step"].as_u64().unwrap();
        let newest = place.checkpoints(run).pop().unwrap();
        assert_eq!(newest, format!("step-{step:08}"));
        return stderr;
    }
    panic!("the run ended before it was stopped, {ATTEMPTS} times");
}

#[test]
fn resuming_a_finished_run_changes_nothing_and_reports_the_same_numbers() {
    let place = Place::new();
    let mut first = parse(&place.train(&["--out", "out", "--json"]));
    let before = snapshot(&place.path("out"));
    let mut again = parse(&place.succeed(&RESUME));
    for printed in [&mut first, &mut again] {
        assert!(printed["models"]["retreever"]["seconds"].take().is_f64());
    }
    assert_eq!(first, again);
    assert!(before == snapshot(&place.path("out")), "files changed");
}

#[test]
fn a_run_that_ended_before_its_first_checkpoint_starts_again() {
    let place = Place::new();
    place.train(&["--out", "whole"]);
    fs::create_dir(place.path("out")).unwrap();
    fs::copy(
        place.path("whole/config.json"),
        place.path("out/config.json"),
    )
    .unwrap();
    place.succeed(&RESUME);
    assert_eq!(place.metrics("whole"), place.metrics("out"));
}

/// What names a network must not change with the code: checkpoints of before would be refused.
#[test]
fn networks_keep_the_names_that_their_checkpoints_have() {
    let place = Place::new();
    let short = "trainer.steps=1 eval_items=2 test_items=2 batch_size=2 eval_batch_size=2";
    for (task, model, expected) in [
        ("gp", "retreever", "retreever-84bf18a9b06c03bd"),
        ("recall", "tree-fine", "tree-fine-eb8b91583e20c32a"),
        ("recall", "linformer", "linformer-756da62caa9ee3e9"),
        ("lm", "tree-coder", "tree-coder-eccf4d462d335756"),
    ] {
        let mut args = vec!["train", task, "--model", model, "--out", model];
        args.extend(short.split(' ').flat_map(|setting| ["--set", setting]));
        place.succeed(&args);
        let newest = place.checkpoints(model).pop().unwrap();
        let state = place.json(format!("{model}/checkpoints/{newest}/state.json"));
        let fingerprint = state["fingerprint"].as_str().unwrap();
        assert!(fingerprint.starts_with(expected), "{fingerprint}");
    }
}
