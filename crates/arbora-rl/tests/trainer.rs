//! The trainer: learning, exact resume, damaged and foreign checkpoints, bad paths and settings.
#![cfg(all(feature = "flex", feature = "train"))]

#[path = "../examples/contextual_bandit.rs"]
#[allow(dead_code, reason = "the example's own main is not called here")]
mod bandit;

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use arbora_rl::train::{
    Checkpoint, Claim, EvaluationReport, Measurement, OptimizerConfig, ParameterGroup, Progress,
    StepOutput, StepReport, TrainError, TrainReport, TrainableModel, Trainer, TrainerConfig,
    load_model, no_evaluation,
};
use arbora_rl::{BaselineConfig, PolicyGradientConfig};
use bandit::{Bandit, contexts, held_out};
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::tensor::{Device, Tensor, TensorData};
use burn::train::Interrupter;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn device() -> Device {
    Device::flex()
}

/// Twelve steps that use everything a checkpoint must carry.
fn short() -> TrainerConfig {
    TrainerConfig {
        steps: 12,
        eval_every: 4,
        checkpoint_every: 5,
        seed: 3,
        learning_rate: 0.01,
        warmup_steps: 2,
        policy_gradient: PolicyGradientConfig {
            baseline: BaselineConfig::MovingAverage { decay: 0.9 },
            entropy_weight: 0.01,
        },
        ..TrainerConfig::default()
    }
}

fn trainer(config: &TrainerConfig, run: &Path) -> Trainer {
    Trainer::new(config.clone(), run, "bandit-8")
}

fn fit(trainer: Trainer, model_seed: u64) -> Result<TrainReport<Bandit>, TrainError> {
    trainer.fit(
        Bandit::new(8, model_seed, &device()),
        contexts,
        (4, held_out),
        &device(),
    )
}

/// The bits of every parameter.
fn bits<M: Module>(model: &M) -> Vec<u32> {
    struct Bits(Vec<u32>);
    impl ModuleVisitor for Bits {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0
                .extend(param.val().into_data().iter::<f32>().map(f32::to_bits));
        }
    }
    let mut visitor = Bits(Vec::new());
    model.visit(&mut visitor);
    visitor.0
}

fn metrics(run: &Path) -> String {
    fs::read_to_string(run.join("metrics.jsonl")).unwrap()
}

fn folder(run: &Path, step: u64) -> PathBuf {
    run.join("checkpoints").join(format!("step-{step:08}"))
}

fn steps_on_disk(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An uninterrupted run: its log and its final parameters.
fn uninterrupted() -> (String, Vec<u32>) {
    let folder = TempDir::new().unwrap();
    let report = fit(trainer(&short(), folder.path()), 1).unwrap();
    assert_eq!(
        (report.step, report.interrupted, report.resumed_from),
        (12, false, None)
    );
    (metrics(folder.path()), bits(&report.model))
}

#[test]
fn the_bandit_beats_the_uniform_policy_and_comes_close_to_the_best() {
    let run = TempDir::new().unwrap();
    let report = Trainer::new(bandit::config(), run.path(), "bandit-16")
        .fit(
            Bandit::new(16, 0, &device()),
            contexts,
            (4, held_out),
            &device(),
        )
        .unwrap();
    let evaluation = report.evaluation.unwrap();
    let [greedy, best, uniform] =
        ["greedy", "best", "uniform"].map(|name| evaluation.metric(name).unwrap());
    assert!(
        best > uniform + 0.3,
        "the task must leave something to learn: {evaluation:?}"
    );
    assert!(greedy > uniform + 0.9 * (best - uniform), "{evaluation:?}");
}

#[test]
fn every_baseline_trains_the_bandit() {
    for baseline in [
        BaselineConfig::None,
        BaselineConfig::Constant { value: 0.1 },
        BaselineConfig::BatchMean,
        BaselineConfig::SelfCritical,
    ] {
        let run = TempDir::new().unwrap();
        let mut config = bandit::config();
        config.policy_gradient.baseline = baseline;
        let report = fit(trainer(&config, run.path()), 1).unwrap();
        let evaluation = report.evaluation.unwrap();
        let [greedy, best, uniform] =
            ["greedy", "best", "uniform"].map(|name| evaluation.metric(name).unwrap());
        assert!(
            greedy > uniform + 0.7 * (best - uniform),
            "{baseline:?}: {evaluation:?}"
        );
    }
}

#[test]
fn two_runs_with_one_seed_write_the_same_bytes_and_another_seed_does_not() {
    let (log, parameters) = uninterrupted();
    assert_eq!(uninterrupted(), (log.clone(), parameters));
    let other = TempDir::new().unwrap();
    fit(
        trainer(&TrainerConfig { seed: 4, ..short() }, other.path()),
        1,
    )
    .unwrap();
    assert_ne!(metrics(other.path()), log);
}

#[test]
fn resumed_run_continues_the_same_numbers() {
    let (log, parameters) = uninterrupted();
    for stop in [1, 5, 7, 11] {
        let run = TempDir::new().unwrap();
        let report = fit(trainer(&short(), run.path()).stop_after(Some(stop)), 1).unwrap();
        assert_eq!((report.step, report.interrupted), (stop, true));
        assert!(log.starts_with(&metrics(run.path())));

        // The checkpoint brings the parameters: the model handed in has others.
        let report = fit(trainer(&short(), run.path()).resume(true), 77).unwrap();
        assert_eq!(report.resumed_from, Some(stop));
        assert_eq!((report.step, report.interrupted), (12, false));
        assert_eq!(metrics(run.path()), log, "stopped after {stop}");
        assert_eq!(bits(&report.model), parameters, "stopped after {stop}");
    }
}

#[test]
fn lines_after_the_checkpoint_and_a_torn_line_are_written_again() {
    let (log, parameters) = uninterrupted();
    let run = TempDir::new().unwrap();
    fit(trainer(&short(), run.path()).stop_after(Some(7)), 1).unwrap();
    // As a kill between checkpoints leaves it: lines 6 and 7, half of 8, no checkpoint after 5.
    fs::remove_dir_all(folder(run.path(), 7)).unwrap();
    fs::create_dir(run.path().join("checkpoints/unfinished-00000010")).unwrap();
    let torn = metrics(run.path()) + "{\"step\":8,\"split\":\"tr";
    fs::write(run.path().join("metrics.jsonl"), torn).unwrap();

    let report = fit(trainer(&short(), run.path()).resume(true), 77).unwrap();
    assert_eq!(report.resumed_from, Some(5));
    assert_eq!(metrics(run.path()), log);
    assert_eq!(bits(&report.model), parameters);
}

#[test]
fn a_log_that_ends_before_the_checkpoint_is_refused_and_kept() {
    let run = TempDir::new().unwrap();
    fit(trainer(&short(), run.path()).stop_after(Some(7)), 1).unwrap();
    let log = run.path().join("metrics.jsonl");
    // One byte of the third line is damaged.
    let damaged = metrics(run.path()).replacen("\"step\":3", "\"step\"!3", 1);
    fs::write(&log, &damaged).unwrap();
    let error = fit(trainer(&short(), run.path()).resume(true), 1).unwrap_err();
    let expected = TrainError::ShortLog {
        path: log,
        found: 2,
        step: 7,
    };
    assert_eq!(error.to_string(), expected.to_string());
    assert_eq!(metrics(run.path()), damaged);
}

#[test]
fn a_run_killed_before_its_first_step_starts_again() {
    let (log, parameters) = uninterrupted();
    let run = TempDir::new().unwrap();
    let report = fit(trainer(&short(), run.path()).resume(true), 1).unwrap();
    assert_eq!(report.resumed_from, None);
    assert_eq!(
        (metrics(run.path()), bits(&report.model)),
        (log, parameters)
    );
}

#[test]
fn a_finished_run_resumes_to_itself() {
    let run = TempDir::new().unwrap();
    let first = fit(trainer(&short(), run.path()), 1).unwrap();
    let log = metrics(run.path());
    let again = fit(trainer(&short(), run.path()).resume(true), 1).unwrap();
    assert_eq!((again.step, again.interrupted), (12, false));
    assert_eq!(bits(&again.model), bits(&first.model));
    assert_eq!(metrics(run.path()), log);
}

/// Stops the run at a step, as Ctrl-C does.
struct StopAt(u64, Interrupter);

impl Progress for StopAt {
    fn on_step(&mut self, report: &StepReport) {
        if report.step == self.0 {
            self.1.stop(Some("Ctrl-C"));
        }
    }
}

#[test]
fn an_interrupted_run_saves_first_and_then_resumes_to_the_same_numbers() {
    let (log, parameters) = uninterrupted();
    let run = TempDir::new().unwrap();
    let trainer_at_work = trainer(&short(), run.path());
    let interrupter = trainer_at_work.interrupter();
    let report = fit(trainer_at_work.progress(StopAt(6, interrupter)), 1).unwrap();
    assert_eq!((report.step, report.interrupted), (6, true));
    assert!(
        folder(run.path(), 6)
            .join("state.json")
            .try_exists()
            .unwrap()
    );
    let report = fit(trainer(&short(), run.path()).resume(true), 77).unwrap();
    assert_eq!(report.resumed_from, Some(6));
    assert_eq!(
        (metrics(run.path()), bits(&report.model)),
        (log, parameters)
    );
}

#[test]
fn the_log_has_a_line_per_step_and_per_evaluation_and_no_wall_clock() {
    let (log, _) = uninterrupted();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let steps: Vec<(u64, &str)> = lines
        .iter()
        .map(|line| {
            (
                line["step"].as_u64().unwrap(),
                line["split"].as_str().unwrap(),
            )
        })
        .collect();
    let mut expected: Vec<(u64, &str)> = Vec::new();
    for step in 1..=12 {
        expected.push((step, "train"));
        if step % 4 == 0 {
            expected.push((step, "valid"));
        }
    }
    assert_eq!(steps, expected);
    for line in lines.iter().filter(|line| line["split"] == "train") {
        for name in [
            "loss",
            "task_loss",
            "policy_loss",
            "reward",
            "entropy",
            "gradient_norm",
        ] {
            assert!(line[name].is_f64(), "{name} in {line}");
        }
        let step = line["step"].as_u64().unwrap() - 1;
        let rate = line["learning_rate"].as_f64().unwrap();
        assert!((rate - short().schedule().rate(step)).abs() < 1e-12);
    }
    assert!(!log.contains("seconds"));
}

#[test]
fn the_run_folder_holds_what_is_documented_and_nothing_else() {
    let run = TempDir::new().unwrap();
    fit(trainer(&short(), run.path()), 1).unwrap();
    let mut names: Vec<String> = fs::read_dir(run.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = ["checkpoints", "lock", "metrics.jsonl", "timing.jsonl"];
    assert_eq!(names, expected);
    // Of 0, 5, 10 and 12 the newest two are kept.
    assert_eq!(
        steps_on_disk(run.path()),
        ["step-00000010", "step-00000012"]
    );
}

#[test]
fn evaluation_means_are_exact_over_batches_of_different_sizes() {
    let run = TempDir::new().unwrap();
    let report = fit(trainer(&short(), run.path()), 1).unwrap();
    let all = Tensor::cat(
        (0..4)
            .map(|index| held_out(index, &device()).unwrap())
            .collect(),
        0,
    );
    assert_eq!(all.dims()[0], 330);
    let at_once = report
        .model
        .evaluate(all, &mut arbora_rl::seed::step_rng(0, 0));
    for Measurement { name, sum, weight } in at_once {
        let mean = report.evaluation.as_ref().unwrap().metric(&name).unwrap();
        assert!((mean - sum / weight).abs() < 1e-5, "{name}: {mean}");
    }
}

/// A run whose only checkpoints are damaged by `damage`, which gets the folder of the newest.
fn damaged(damage: impl Fn(&Path)) -> (TempDir, TrainError) {
    let run = TempDir::new().unwrap();
    let config = TrainerConfig {
        keep_checkpoints: 1,
        ..short()
    };
    fit(trainer(&config, run.path()).stop_after(Some(5)), 1).unwrap();
    let log = metrics(run.path());
    damage(&folder(run.path(), 5));
    let error = fit(trainer(&config, run.path()).resume(true), 1).unwrap_err();
    assert_eq!(
        metrics(run.path()),
        log,
        "a failed resume must not touch the log"
    );
    let loaded = load_model(run.path(), Bandit::new(8, 1, &device()), "bandit-8").unwrap_err();
    assert_eq!(loaded.to_string(), error.to_string());
    (run, error)
}

fn truncate(path: PathBuf) {
    let bytes = fs::read(&path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn damaged_checkpoints_are_errors_that_name_the_file() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 8] = [
        ("model.bpk", |at| truncate(at.join("model.bpk"))),
        ("optimizer.bpk", |at| {
            let path = at.join("optimizer.bpk");
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("state.json", |at| truncate(at.join("state.json"))),
        ("state.json", |at| {
            fs::write(at.join("state.json"), "no json").unwrap()
        }),
        ("state.json", |at| {
            let path = at.join("state.json");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, text.replace("\"step\": 5", "\"step\": 6")).unwrap();
        }),
        ("model.bpk", |at| {
            fs::remove_file(at.join("model.bpk")).unwrap()
        }),
        ("SHA256SUMS", |at| {
            fs::remove_file(at.join("SHA256SUMS")).unwrap()
        }),
        ("SHA256SUMS", |at| {
            fs::write(at.join("SHA256SUMS"), "").unwrap()
        }),
    ];
    for (file, damage) in cases {
        let (_run, error) = damaged(damage);
        assert!(
            matches!(error, TrainError::Corrupt { .. }),
            "{file}: {error:?}"
        );
        assert!(error.to_string().contains(file), "{file}: {error}");
    }
}

/// Another word in a file of a checkpoint, which its checksums agree with.
fn forge(checkpoint: &Path, file: &str, from: &str, to: &str) {
    let path = checkpoint.join(file);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes
        .windows(from.len())
        .position(|part| part == from.as_bytes());
    let at = at.expect("the word is in the file");
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    fs::write(&path, &bytes).unwrap();
    let sum: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let sums = fs::read_to_string(checkpoint.join("SHA256SUMS")).unwrap();
    let lines = sums.lines().map(|line| {
        if line.ends_with(file) {
            format!("{sum}  {file}\n")
        } else {
            format!("{line}\n")
        }
    });
    fs::write(checkpoint.join("SHA256SUMS"), lines.collect::<String>()).unwrap();
}

#[test]
fn a_record_that_burn_panics_over_is_an_error_that_names_the_checkpoint() {
    let run = TempDir::new().unwrap();
    fit(trainer(&short(), run.path()).stop_after(Some(5)), 1).unwrap();
    let newest = folder(run.path(), 5);
    forge(&newest, "optimizer.bpk", "param_id", "param_ix");
    let error = fit(trainer(&short(), run.path()).resume(true), 1).unwrap_err();
    assert!(
        matches!(error, TrainError::Incompatible { .. }),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(text.contains("step-00000005"), "{text}");
}

/// Puts another run into the place of its own after a step.
struct Replaces(PathBuf);

impl Progress for Replaces {
    fn on_step(&mut self, report: &StepReport) {
        if report.step == 6 {
            fs::rename(self.0.join("run"), self.0.join("moved")).unwrap();
            let other = fit(trainer(&short(), &self.0.join("run")), 3);
            assert_eq!(other.unwrap().step, 12);
        }
    }
}

#[test]
fn a_run_whose_folder_was_moved_writes_into_no_other() {
    let place = TempDir::new().unwrap();
    let run = place.path().join("run");
    let trainer_at_work = trainer(&short(), &run).progress(Replaces(place.path().into()));
    let error = fit(trainer_at_work, 1).unwrap_err();
    assert!(
        matches!(&error, TrainError::Replaced { path } if *path == run),
        "{error:?}"
    );
    // The other is whole, and the moved one goes on where it was.
    let (log, parameters) = uninterrupted();
    let whole = fit(trainer(&short(), &run).resume(true), 77).unwrap();
    assert_eq!(whole.resumed_from, Some(12));
    let moved = place.path().join("moved");
    let report = fit(trainer(&short(), &moved).resume(true), 77).unwrap();
    assert_eq!(report.resumed_from, Some(5));
    assert_eq!((metrics(&moved), bits(&report.model)), (log, parameters));
}

/// Keeps what it is told.
#[derive(Clone, Default)]
struct Heard(Rc<RefCell<Vec<String>>>);

impl Progress for Heard {
    fn on_evaluation(&mut self, report: &EvaluationReport) {
        self.0
            .borrow_mut()
            .push(format!("evaluation {}", report.step));
    }

    fn on_checkpoint(&mut self, step: u64) {
        self.0.borrow_mut().push(format!("checkpoint {step}"));
    }

    fn on_notice(&mut self, text: &str) {
        self.0.borrow_mut().push(text.into());
    }
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over_with_a_notice() {
    let (log, parameters) = uninterrupted();
    let run = TempDir::new().unwrap();
    fit(trainer(&short(), run.path()).stop_after(Some(7)), 1).unwrap();
    truncate(folder(run.path(), 7).join("model.bpk"));
    let heard = Heard::default();
    let resumed = trainer(&short(), run.path())
        .resume(true)
        .progress(heard.clone());
    let report = fit(resumed, 77).unwrap();
    assert_eq!(report.resumed_from, Some(5));
    assert_eq!(
        (metrics(run.path()), bits(&report.model)),
        (log, parameters)
    );
    let heard = heard.0.borrow();
    assert!(
        heard[0].contains("step-00000007: corrupt checkpoint: model.bpk"),
        "{heard:?}"
    );
    assert!(heard[0].contains("resuming from step 5"), "{heard:?}");
    let rest = [
        "evaluation 8",
        "checkpoint 10",
        "evaluation 12",
        "checkpoint 12",
    ];
    assert_eq!(heard[1..], rest);
}

#[test]
fn a_checkpoint_of_another_model_is_refused_and_both_are_named() {
    let run = TempDir::new().unwrap();
    fit(trainer(&short(), run.path()).stop_after(Some(5)), 1).unwrap();
    let other = Trainer::new(short(), run.path(), "bandit-9").resume(true);
    let error = fit(other, 1).unwrap_err();
    assert!(matches!(error, TrainError::OtherModel { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("saved from bandit-8, asked for bandit-9"),
        "{error}"
    );
    let loaded = load_model(run.path(), Bandit::new(8, 1, &device()), "bandit-9").unwrap_err();
    assert!(
        matches!(loaded, TrainError::OtherModel { .. }),
        "{loaded:?}"
    );
}

#[test]
fn parameters_that_do_not_fit_under_the_same_fingerprint_are_an_error() {
    let run = TempDir::new().unwrap();
    fit(trainer(&short(), run.path()).stop_after(Some(1)), 1).unwrap();
    let error = load_model(run.path(), Bandit::new(9, 1, &device()), "bandit-8").unwrap_err();
    assert!(
        matches!(error, TrainError::Incompatible { .. }),
        "{error:?}"
    );
}

#[test]
fn a_newer_checkpoint_format_is_refused_and_no_older_one_taken_instead() {
    let run = TempDir::new().unwrap();
    fit(trainer(&short(), run.path()).stop_after(Some(7)), 1).unwrap();
    let path = folder(run.path(), 7).join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        path,
        text.replace("\"format_version\": 1", "\"format_version\": 2"),
    )
    .unwrap();
    let error = fit(trainer(&short(), run.path()).resume(true), 1).unwrap_err();
    assert!(
        matches!(
            error,
            TrainError::NewerFormat {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_run_path_that_is_a_file_is_refused_and_the_file_stays() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("run");
    fs::write(&file, "precious").unwrap();
    for resume in [false, true] {
        let error = fit(trainer(&short(), &file).resume(resume), 1).unwrap_err();
        assert!(matches!(error, TrainError::NotAFolder { .. }), "{error:?}");
    }
    let loaded = load_model(&file, Bandit::new(8, 1, &device()), "bandit-8").unwrap_err();
    assert!(
        matches!(loaded, TrainError::NotAFolder { .. }),
        "{loaded:?}"
    );
    let below = fit(trainer(&short(), &file.join("below")), 1).unwrap_err();
    assert!(matches!(below, TrainError::Io { .. }), "{below:?}");
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
}

#[test]
fn a_new_run_does_not_overwrite_an_old_one() {
    let run = TempDir::new().unwrap();
    fit(trainer(&short(), run.path()).stop_after(Some(1)), 1).unwrap();
    let log = metrics(run.path());
    let error = fit(trainer(&short(), run.path()), 1).unwrap_err();
    assert!(matches!(error, TrainError::RunExists { .. }), "{error:?}");
    assert_eq!(metrics(run.path()), log);
}

#[test]
fn a_run_is_trained_once_at_a_time() {
    let run = TempDir::new().unwrap();
    let claim = Claim::begin(run.path()).unwrap();
    let error = fit(trainer(&short(), run.path()), 1).unwrap_err();
    assert!(matches!(error, TrainError::InUse { .. }), "{error:?}");
    let claimed = trainer(&short(), run.path()).claimed(claim);
    fit(claimed.stop_after(Some(1)), 1).unwrap();
    let log = metrics(run.path());
    let claim = Claim::resume(run.path()).unwrap();
    let error = fit(trainer(&short(), run.path()).resume(true), 1).unwrap_err();
    assert!(matches!(error, TrainError::InUse { .. }), "{error:?}");
    assert_eq!(metrics(run.path()), log);
    drop(claim);
    fit(trainer(&short(), run.path()).resume(true), 1).unwrap();
}

#[test]
fn a_run_is_read_while_it_is_trained() {
    let place = TempDir::new().unwrap();
    let run = place.path().join("run");
    let config = TrainerConfig {
        steps: 300,
        checkpoint_every: 1,
        keep_checkpoints: 1,
        ..short()
    };
    let folder = run.clone();
    let training = std::thread::spawn(move || fit(trainer(&config, &folder), 1).map(drop));
    let (mut read, mut last) = (0, 0);
    while !training.is_finished() {
        match Checkpoint::newest(&run) {
            Ok((checkpoint, passed_over)) => {
                assert!(passed_over.is_empty(), "{passed_over:?}");
                assert!(checkpoint.state().step >= last);
                last = checkpoint.state().step;
                read += 1;
            }
            Err(TrainError::Missing { .. }) => assert_eq!(last, 0, "it was there"),
            Err(error) => panic!("{error}"),
        }
    }
    training.join().unwrap().unwrap();
    assert!(read > 0 && Checkpoint::newest(&run).unwrap().0.state().step == 300);
}

#[test]
#[should_panic(expected = "Trainer::claimed: folder")]
fn a_claim_of_another_folder_is_a_callers_bug() {
    let place = TempDir::new().unwrap();
    let claim = Claim::begin(place.path().join("one")).unwrap();
    drop(trainer(&short(), &place.path().join("other")).claimed(claim));
}

#[test]
fn what_is_not_there_is_missing() {
    let folder = TempDir::new().unwrap();
    let error = fit(
        trainer(&short(), &folder.path().join("none")).resume(true),
        1,
    )
    .unwrap_err();
    assert!(
        matches!(error, TrainError::Missing { what: "run", .. }),
        "{error:?}"
    );
    assert!(!folder.path().join("none").try_exists().unwrap());
    let loaded = load_model(folder.path(), Bandit::new(8, 1, &device()), "").unwrap_err();
    assert!(
        matches!(
            loaded,
            TrainError::Missing {
                what: "checkpoint",
                ..
            }
        ),
        "{loaded:?}"
    );
}

#[test]
fn settings_that_change_the_numbers_are_refused_at_resume_and_others_are_not() {
    let run = TempDir::new().unwrap();
    fit(trainer(&short(), run.path()).stop_after(Some(5)), 1).unwrap();
    let mut changed = [short(), short(), short(), short()];
    changed[0].seed = 9;
    changed[1].steps = 13;
    changed[2].optimizer.beta_1 = 0.1;
    changed[3].policy_gradient.entropy_weight = 0.5;
    for (config, setting) in changed
        .iter()
        .zip(["seed", "steps", "optimizer", "policy_gradient"])
    {
        let error = fit(trainer(config, run.path()).resume(true), 1).unwrap_err();
        match error {
            TrainError::OtherSettings { setting: named, .. } => assert_eq!(named, setting),
            other => panic!("{setting}: {other:?}"),
        }
    }
    let config = TrainerConfig {
        eval_every: 0,
        checkpoint_every: 1,
        keep_checkpoints: 9,
        ..short()
    };
    assert_eq!(
        fit(trainer(&config, run.path()).resume(true), 1)
            .unwrap()
            .step,
        12
    );
}

#[test]
fn a_checkpoint_gives_back_the_trained_parameters_and_its_state() {
    let run = TempDir::new().unwrap();
    let report = fit(trainer(&short(), run.path()), 1).unwrap();
    let newest = load_model(run.path(), Bandit::new(8, 5, &device()), "bandit-8").unwrap();
    assert_eq!(bits(&newest), bits(&report.model));
    let older = load_model(
        folder(run.path(), 10),
        Bandit::new(8, 5, &device()),
        "bandit-8",
    );
    assert_ne!(bits(&older.unwrap()), bits(&report.model));
    let (checkpoint, passed_over) = Checkpoint::newest(run.path()).unwrap();
    assert!(passed_over.is_empty());
    assert_eq!(checkpoint.state().step, 12);
    assert_eq!(checkpoint.state().seed, 3);
    assert_ne!(checkpoint.state().baseline.weight_bits, 0);
}

/// A bandit whose loss is no number where a context is out of its range.
#[derive(Module, Debug)]
struct Poisoned {
    bandit: Bandit,
}

impl TrainableModel for Poisoned {
    type Batch = Tensor<2>;

    fn training_step(&self, contexts: Tensor<2>, rng: &mut ChaCha8Rng) -> StepOutput {
        let is_out = contexts.clone().abs().max().into_scalar::<f32>() > 5.0;
        let mut output = self.bandit.training_step(contexts, rng);
        if is_out {
            output.task_loss = output.task_loss * f32::NAN;
        }
        output
    }

    fn evaluate(&self, contexts: Tensor<2>, rng: &mut ChaCha8Rng) -> Vec<Measurement> {
        self.bandit.evaluate(contexts, rng)
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_before_it_reaches_the_parameters() {
    let run = TempDir::new().unwrap();
    let poisoned = |seed, step, device: &Device| {
        let contexts = contexts(seed, step, device)?;
        Ok::<_, std::io::Error>(if step == 6 { contexts + 10.0 } else { contexts })
    };
    let model = |seed| Poisoned {
        bandit: Bandit::new(8, seed, &device()),
    };
    let error = trainer(&short(), run.path())
        .fit(model(1), poisoned, (4, held_out), &device())
        .unwrap_err();
    assert!(
        matches!(
            error,
            TrainError::NonFinite {
                step: 7,
                what: "loss",
                ..
            }
        ),
        "{error:?}"
    );
    let (log, parameters) = uninterrupted();
    assert!(log.starts_with(&metrics(run.path())));
    assert_eq!(
        metrics(run.path())
            .lines()
            .filter(|line| line.contains("train"))
            .count(),
        6
    );
    // The run goes on from its last checkpoint once the data is repaired.
    let report = trainer(&short(), run.path())
        .resume(true)
        .fit(model(77), contexts, (4, held_out), &device())
        .unwrap();
    assert_eq!(report.resumed_from, Some(5));
    assert_eq!(
        (metrics(run.path()), bits(&report.model)),
        (log, parameters)
    );
}

#[test]
fn parameters_that_an_update_lost_are_not_saved() {
    let run = TempDir::new().unwrap();
    let mut config = short();
    // Infinite in single precision.
    config.learning_rate = 1e39;
    config.checkpoint_every = 1;
    let error = fit(trainer(&config, run.path()), 1).unwrap_err();
    let text = "step 1: a parameter is ";
    assert!(error.to_string().starts_with(text), "{error}");
    assert_eq!(Checkpoint::newest(run.path()).unwrap().0.state().step, 0);
}

#[test]
fn a_batch_that_cannot_be_made_ends_the_run_with_the_sources_own_words() {
    let broken = |seed, step, device: &Device| match step {
        2 => Err(std::io::Error::other("the disk is on fire")),
        _ => contexts(seed, step, device),
    };
    let run = TempDir::new().unwrap();
    let error = trainer(&short(), run.path())
        .fit(
            Bandit::new(8, 1, &device()),
            broken,
            (4, held_out),
            &device(),
        )
        .unwrap_err();
    let text = "cannot make the training batch of step 3: the disk is on fire";
    assert_eq!(error.to_string(), text);

    let broken = |_: u64, _: &Device| Err::<Tensor<2>, _>(std::io::Error::other("no such file"));
    let run = TempDir::new().unwrap();
    let error = trainer(&short(), run.path())
        .fit(
            Bandit::new(8, 1, &device()),
            contexts,
            (1, broken),
            &device(),
        )
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot make evaluation batch 0: no such file"
    );
}

#[test]
fn settings_out_of_range_are_named_before_anything_is_written() {
    let folder = TempDir::new().unwrap();
    let run = folder.path().join("run");
    let cases = [
        (
            TrainerConfig {
                learning_rate: f64::NAN,
                ..short()
            },
            "learning_rate",
        ),
        (
            TrainerConfig {
                clip_norm: Some(0.0),
                ..short()
            },
            "clip_norm",
        ),
        (
            TrainerConfig {
                keep_checkpoints: 0,
                ..short()
            },
            "keep_checkpoints",
        ),
        (
            TrainerConfig {
                lambda_rl: -1.0,
                ..short()
            },
            "lambda_rl",
        ),
        (
            TrainerConfig {
                optimizer: OptimizerConfig {
                    beta_2: 1.0,
                    ..Default::default()
                },
                ..short()
            },
            "optimizer.beta_2",
        ),
    ];
    for (config, setting) in cases {
        let error = fit(trainer(&config, &run), 1).unwrap_err();
        assert!(error.to_string().starts_with(setting), "{setting}: {error}");
        assert!(!run.try_exists().unwrap());
    }
    let unknown = serde_json::from_str::<TrainerConfig>(r#"{"learning_rat": 1}"#).unwrap_err();
    assert!(unknown.to_string().contains("learning_rat"), "{unknown}");
}

/// A model that decides nothing: one slope, fitted by least squares.
#[derive(Module, Debug)]
struct Slope {
    value: Param<Tensor<1>>,
}

impl TrainableModel for Slope {
    type Batch = Tensor<1>;

    fn training_step(&self, x: Tensor<1>, _rng: &mut ChaCha8Rng) -> StepOutput {
        let error = x.clone() * self.value.val() - x * 3.0;
        StepOutput::new(error.square().mean()).with_metric("slope", self.value.val())
    }

    fn evaluate(&self, _batch: Tensor<1>, _rng: &mut ChaCha8Rng) -> Vec<Measurement> {
        Vec::new()
    }
}

#[test]
fn a_model_without_decisions_trains_on_its_task_loss() {
    let run = TempDir::new().unwrap();
    let config = TrainerConfig {
        steps: 400,
        learning_rate: 0.05,
        ..Default::default()
    };
    let data = |_: u64, step: u64, device: &Device| {
        let x = [1.0, 0.5 + (step % 3) as f32];
        Ok::<_, std::io::Error>(Tensor::<1>::from_data(x, device))
    };
    let slope = Slope {
        value: Param::from_data(TensorData::from([0.0f32]), &device()),
    };
    let report = Trainer::new(config, run.path(), "slope")
        .fit(slope, data, no_evaluation(), &device())
        .unwrap();
    let learned = report.model.value.val().into_scalar::<f32>();
    assert!((learned - 3.0).abs() < 0.01, "{learned}");
    assert!(report.evaluation.is_none());
    let log = metrics(run.path());
    assert!(log.contains("\"slope\"") && !log.contains("policy_loss"));
}

#[test]
fn weight_decay_pulls_parameters_towards_zero() {
    let decayed = |weight_decay| {
        let run = TempDir::new().unwrap();
        let config = TrainerConfig {
            optimizer: OptimizerConfig {
                weight_decay,
                ..Default::default()
            },
            ..short()
        };
        let report = fit(trainer(&config, run.path()), 1).unwrap();
        bits(&report.model)
            .into_iter()
            .map(|b| f32::from_bits(b).powi(2))
            .sum::<f32>()
    };
    assert!(decayed(5.0) < decayed(0.0));
}

/// Three numbers of which the loss sees nothing: every gradient is 0, and there. The first two have a
/// treatment of their own.
#[derive(Module, Debug)]
struct Indifferent {
    undecayed: Param<Tensor<1>>,
    slow: Param<Tensor<1>>,
    other: Param<Tensor<1>>,
    /// How much the loss grows with every number.
    #[module(skip)]
    slope: f64,
}

impl Indifferent {
    fn new(slope: f64) -> Self {
        let one = || Param::from_tensor(Tensor::from_floats([1.0], &device()));
        Self {
            undecayed: one(),
            slow: one(),
            other: one(),
            slope,
        }
    }

    fn numbers(&self) -> [f32; 3] {
        [&self.undecayed, &self.slow, &self.other].map(|number| number.val().into_scalar())
    }
}

impl TrainableModel for Indifferent {
    type Batch = ();

    fn training_step(&self, (): (), _: &mut ChaCha8Rng) -> StepOutput {
        let sum = self.undecayed.val() + self.slow.val() + self.other.val();
        StepOutput::new(sum * self.slope)
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        // By ids, which a checkpoint replaces: a resumed run must be asked after it has read one.
        let group = |number: &Param<Tensor<1>>, decays, rate| ParameterGroup {
            parameters: ParamGroup::ids_from_module(number.clone()),
            decays,
            rate,
        };
        vec![
            group(&self.undecayed, false, 1.0),
            group(&self.slow, true, 0.25),
        ]
    }

    fn evaluate(&self, (): (), _: &mut ChaCha8Rng) -> Vec<Measurement> {
        Vec::new()
    }
}

fn fit_indifferent(slope: f64, weight_decay: f32) -> [f32; 3] {
    let run = TempDir::new().unwrap();
    let config = TrainerConfig {
        steps: 4,
        learning_rate: 0.1,
        final_learning_rate: 0.1,
        clip_norm: None,
        optimizer: OptimizerConfig {
            weight_decay,
            ..OptimizerConfig::default()
        },
        ..TrainerConfig::default()
    };
    let batches = |_: u64, _: u64, _: &Device| Ok::<_, std::convert::Infallible>(());
    // Half of the steps in a second process's place: groups hold for parameters read from disk.
    let trainer = || Trainer::new(config.clone(), run.path(), "indifferent");
    trainer()
        .stop_after(Some(2))
        .fit(Indifferent::new(slope), batches, no_evaluation(), &device())
        .unwrap();
    let report = trainer()
        .resume(true)
        .fit(Indifferent::new(slope), batches, no_evaluation(), &device())
        .unwrap();
    report.model.numbers()
}

#[test]
fn weight_decay_spares_the_parameters_that_a_model_exempts() {
    let [undecayed, slow, other] = fit_indifferent(0.0, 5.0);
    assert_eq!(undecayed, 1.0);
    // Every step takes the rate times the decay of what is left.
    assert!((other - 0.5f32.powi(4)).abs() < 1e-6, "{other}");
    assert!((slow - 0.875f32.powi(4)).abs() < 1e-6, "{slow}");
}

#[test]
fn a_group_of_parameters_learns_at_a_rate_of_its_own() {
    for decay in [0.0, 1e-9] {
        let [one, slow, other] = fit_indifferent(1.0, decay);
        // Adam takes the whole rate on a constant slope.
        assert!(
            (one - 0.6).abs() < 1e-4 && (other - 0.6).abs() < 1e-4,
            "{one} {other}"
        );
        assert!((slow - 0.9).abs() < 1e-4, "{slow}");
    }
}
