//! Trains, measures and remembers the runs of an experiment.

mod logs;
mod measure;
mod planning;

use super::grid::Cases;
use super::page;
use super::plan::{self, Place, Plan};
use super::results::{Results, Shown, Times};
use super::store::{self, Entry, Measured, Origin, Reached, Store};
use super::{AT_RANDOM, Asked, Column, Experiment};
use crate::families::{About, Family, FamilyModel as _, Finished, named};
use crate::folder_lock::with_folder_lock;
use crate::message::tell;
use crate::run::{CONFIG, Made, Run, State, Trained, first_free, made, make_new, measured};
use crate::{atomic_file, backend, cli, settings};
use anyhow::{Context as _, Result, ensure};
use arbora::rl::train::{Checkpoint, Claim, TrainError, has_any, is_folder};
use burn::module::Module as _;
use burn::tensor::Device;
use logs::{begun, first_reached, last_evaluation, refuse_older, training_seconds, written};
use planning::cases;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

/// Test batches whose forward pass is timed, at most.
pub const TIMED_BATCHES: usize = 64;

/// What folders of comparisons are called.
const COMPARE: &str = "compare";
/// The table, in the experiment's folder.
const TABLE: &str = "compare.md";
/// The numbers behind it.
const NUMBERS: &str = "compare.json";
/// Is there, empty, while runs are repeated: as old as what asked for it.
const AGAIN: &str = "again";

/// What the runs of an experiment share.
struct Engine<'a, F: Family> {
    experiment: &'a Experiment,
    asked: &'a Asked,
    /// Trees and texts, where they are varied.
    cases: Option<Cases>,
    out: PathBuf,
    backend: String,
    device: Device,
    /// What runs are trained on, by the settings that decide it.
    data: Vec<(Value, F::Data)>,
    /// The numbers of finished runs.
    known: Store,
    /// Runs begun before are trained again, until none of them is open, in this call or in one that goes on with it.
    since: Option<SystemTime>,
    commit: String,
    started: Instant,
}

/// A run that is planned, with all that decides its numbers.
struct Planned<F: Family> {
    plan: plan::Run,
    run: Run<F>,
    settings: Value,
    /// Which data it is trained on.
    data: usize,
    about: About,
    /// The run that it starts from, by its place in the plan.
    source: Option<usize>,
    /// Of its entry.
    fingerprint: String,
    /// Of the entry of the same weights walking at random, where there is to be one.
    at_random: Option<String>,
}

/// The runs of an experiment, and the one at each place of its table.
type Runs<F> = (Vec<Planned<F>>, BTreeMap<Place, usize>);

/// How a model is measured.
const LEARNED: &str = "learned";
const RANDOM: &str = "random";
/// While its learning rate is chosen, on what trainings evaluate with.
const TRIED: &str = "tried";

/// Runs an experiment as far as it is asked, and writes what it comes to. Mistakes are refused before the first run.
pub fn run<F: Family>(experiment: &Experiment, asked: &Asked) -> Result<ExitCode> {
    for (at, row) in experiment.rows.iter().enumerate() {
        named::<F::ModelKind>(&row.model).with_context(|| format!("rows[{at}].model"))?;
    }
    let mut experiment = experiment.clone();
    let cases = cases::<F>(&mut experiment, asked)?;
    for row in &mut experiment.rows {
        // They win over the row's own.
        row.settings.extend(asked.all_settings());
    }
    let experiment = &experiment;
    let (backend, device) = backend::open(asked.backend.as_deref())?;
    let out = asked
        .out
        .clone()
        .unwrap_or_else(|| first_free(&experiment.task, COMPARE));
    is_folder(&out)?;
    let mut known = Store::new();
    if let Some(page) = &asked.page {
        page::open(page, &start(experiment), &asked.made_by)?;
        known = store::read(&page.with_extension("json"))?;
    }
    let since = written(&out.join(AGAIN))?;
    if since.is_some() || asked.again {
        known.clear();
    }
    Engine::<F> {
        experiment,
        asked,
        cases,
        out,
        backend,
        device,
        data: Vec::new(),
        known,
        since,
        commit: store::commit(),
        started: Instant::now(),
    }
    .run()
}

/// The start of a page that is not there yet.
fn start(experiment: &Experiment) -> String {
    format!("# {}\n\n{}\n", experiment.title, experiment.about)
}

impl<F: Family> Engine<'_, F> {
    fn run(mut self) -> Result<ExitCode> {
        // All mistakes before the first hour of training: with any rate the other runs are like these.
        let first = self.experiment.rates.first().copied();
        let mut rates = vec![first; self.experiment.rows.len()];
        let (tries, mut runs, mut at) = loop {
            let tries = Plan::tries(self.experiment, self.cases.as_ref()).into_iter();
            let tries = tries.map(|run| self.planned(run, &[], TRIED));
            let tries = tries.collect::<Result<Vec<_>>>()?;
            let (runs, at) = self.plan(&rates)?;
            for planned in &runs {
                let config = &planned.run.config;
                settings::refuse_within_data(config, &self.out, "--out")?;
                if let Some(page) = &self.asked.page {
                    settings::refuse_within_data(config, page, "--page")?;
                }
            }
            if self.asked.plan {
                return self.tell(&tries, &runs);
            }
            if self.asked.out.is_some() || make_new(&self.out)? {
                break (tries, runs, at);
            }
            // Another process was faster.
            self.out = first_free(&self.experiment.task, COMPARE);
        };
        if self.asked.again && self.since.is_none() {
            std::fs::create_dir_all(&self.out)
                .with_context(|| format!("cannot make {}", self.out.display()))?;
            atomic_file::write(&self.out.join(AGAIN), "")?;
            self.since = written(&self.out.join(AGAIN))?;
        }
        let own = |at: usize| match self.asked.shard {
            Some(shard) => shard.has(at),
            None => !self.asked.only_table,
        };
        let rows = self.experiment.rows.iter();
        let names: Vec<&str> = rows.map(|row| row.name.as_str()).collect();
        tell!(
            "{}: {} on {}, {} runs, folder {}",
            self.experiment.task,
            names.join(", "),
            self.backend,
            runs.len(),
            self.out.display()
        );
        let summaries: BTreeSet<_> = runs.iter().map(|run| &run.about.data_summary).collect();
        for summary in summaries.into_iter().flatten() {
            tell!("{summary}");
        }
        let mut stopped = None;
        for (at, planned) in tries.iter().enumerate() {
            if own(at) && stopped.is_none() {
                stopped = self.finish(planned, &[], (at, tries.len()), true)?;
            }
        }
        if !self.experiment.rates.is_empty() {
            for (row, rate) in rates.iter_mut().enumerate() {
                *rate = self.choose(row, &tries)?;
            }
            (runs, at) = self.plan(&rates)?;
        }
        for (at, planned) in runs.iter().enumerate() {
            // A run and the one that it starts from are one process's.
            if own(planned.source.unwrap_or(at)) && stopped.is_none() {
                stopped = self.finish(planned, &runs, (at, runs.len()), false)?;
            }
        }
        if stopped == Some(Stop::Asked) {
            return cli::interrupted(&format!(
                "stopped; continue with the same command and --out {}",
                self.out.display()
            ));
        }
        self.conclude(&tries, &runs, at, rates, stopped)
    }

    /// Whether all numbers of a run are known.
    fn is_known(&self, planned: &Planned<F>) -> bool {
        let is_known = |name: &String| self.known.contains_key(name);
        self.known.get(&planned.fingerprint).is_some_and(|entry| {
            // Weights that are none walk nowhere.
            entry.metrics.is_none() || planned.at_random.iter().all(is_known)
        })
    }

    /// Whether the run in a folder does not have the numbers that are asked for: it is to be repeated, or another
    /// version or another backend trained it.
    fn is_outdated(&self, folder: &Path) -> Result<bool> {
        let Some(begun) = begun(folder)? else {
            return Ok(false);
        };
        let is_older = self.since.map_or(self.asked.again, |since| begun < since);
        let now = Made {
            version: F::VERSION,
            backend: self.backend.clone(),
        };
        Ok(is_older || made(folder)?.iter().any(|made| *made != now))
    }

    /// Makes room for a run that is trained again. What is there is kept, beside it.
    fn set_aside_outdated(&self, planned: &Planned<F>) -> Result<()> {
        let folder = &planned.run.folder;
        if !self.is_outdated(folder)? {
            return Ok(());
        }
        // It is nobody's to write into.
        drop(Claim::resume(folder)?);
        let mut number = 1;
        let kept = loop {
            let name = format!("{}-before-{number}", planned.plan.name);
            if !has_any(&self.out, &[&name])? {
                break self.out.join(name);
            }
            number += 1;
        };
        std::fs::rename(folder, &kept)
            .with_context(|| format!("cannot rename {}", folder.display()))?;
        tell!(
            "{}: trained again; what was there is {}",
            folder.display(),
            kept.display()
        );
        Ok(())
    }

    /// Prints how far all runs are, and the commands that train them.
    fn tell(&self, tries: &[Planned<F>], runs: &[Planned<F>]) -> Result<ExitCode> {
        let mut lines = Vec::new();
        let mut list = Vec::new();
        for planned in tries.iter().chain(runs) {
            let folder = &planned.run.folder;
            let is_current = !self.is_outdated(folder)?;
            let state = is_current.then(|| planned.run.state(&planned.about));
            let state = state.transpose()?;
            let told = match state {
                _ if self.is_known(planned) => "finished",
                Some(State::Finished) => "trained",
                Some(State::Unfinished) => "not finished",
                Some(State::Absent) => "not begun",
                None => "to be trained again",
            };
            let resume = state == Some(State::Unfinished);
            let task = &self.experiment.task;
            let command = planned.plan.command(task, &self.out, resume);
            lines.push(format!("{}: {told}", folder.display()));
            if !["finished", "trained"].contains(&told) {
                lines.push(format!("  {command}"));
            }
            list.push(json!({
                "run": planned.plan.name, "line": self.experiment.rows[planned.plan.row].name, "seed": planned.plan.seed,
                "state": told, "fingerprint": planned.fingerprint, "at_random": planned.at_random,
                "case": self.case_of(planned), "settings": planned.settings, "command": command, "version": F::VERSION,
            }));
        }
        cli::show(&if self.asked.json {
            Value::from(list).to_string()
        } else {
            lines.join("\n")
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// What the run of a grid is of: as much of tree and text as its model depends on.
    fn case_of(&self, planned: &Planned<F>) -> Option<String> {
        self.cases.as_ref()?;
        let end = format!("-seed{}", planned.plan.seed);
        planned.plan.name.strip_suffix(&end).map(str::to_owned)
    }

    /// The learning rate whose run has the highest log-likelihood on what a training evaluates with; `None` while one
    /// is open.
    fn choose(&self, row: usize, tries: &[Planned<F>]) -> Result<Option<f64>> {
        let name = &self.experiment.rows[row].name;
        let rates = &self.experiment.rates;
        let count = rates.len();
        let mut best = None;
        let own = tries.iter().filter(|planned| planned.plan.row == row);
        for (rate, planned) in rates.iter().zip(own) {
            let Some(entry) = self.known.get(&planned.fingerprint) else {
                return Ok(None);
            };
            if let Some(number) = entry.metric("log_likelihood")
                && best.is_none_or(|(highest, _)| number > highest)
            {
                best = Some((number, *rate));
            }
        }
        let (number, rate) =
            best.with_context(|| format!("{name}: training diverged at every learning rate"))?;
        tell!("{name}: learning rate {rate:e} of {count}, held-out log-likelihood {number:.4}");
        Ok(Some(rate))
    }

    /// Writes what the experiment comes to.
    fn conclude(
        &mut self,
        tries: &[Planned<F>],
        runs: &[Planned<F>],
        at: BTreeMap<Place, usize>,
        rates: Vec<Option<f64>>,
        stopped: Option<Stop>,
    ) -> Result<ExitCode> {
        let shown = |planned: &Planned<F>| -> Result<Shown> {
            let at_random = planned.at_random.as_ref();
            Ok(Shown {
                run: planned.plan.clone(),
                settings: planned.settings.clone(),
                static_metrics: planned.about.static_metrics.clone(),
                entry: self.known.get(&planned.fingerprint).cloned(),
                at_random: at_random.and_then(|name| self.known.get(name).cloned()),
                times: self.times(planned)?,
            })
        };
        let tried = tries.iter().map(shown).collect::<Result<_>>()?;
        let shown = runs.iter().map(shown).collect::<Result<Vec<_>>>()?;
        let columns = match self.experiment.columns.as_slice() {
            [] => {
                let entries = shown.iter().filter_map(|run| run.entry.as_ref());
                Column::automatic(entries, F::COLUMNS)
            }
            columns => columns.to_vec(),
        };
        let results = Results {
            experiment: self.experiment,
            cases: self.cases.as_ref(),
            runs: shown,
            at,
            tried,
            rates,
            columns,
            command: self.asked.command.clone(),
            machine: machine(),
        };
        let [open, _] = results.open();
        let mut json = results.json();
        let written = match &self.asked.page {
            Some(page) => {
                let folder = atomic_file::folder_of(page);
                let is_part = self.asked.is_part || !open.is_empty();
                with_folder_lock(folder, || {
                    self.write_page(page, &results, is_part, &mut json)
                })?;
                if let (true, true, Some(readme)) =
                    (self.experiment.readme, open.is_empty(), &self.asked.readme)
                {
                    let text = results.readme(&page.to_string_lossy());
                    with_folder_lock(atomic_file::folder_of(readme), || {
                        page::update(readme, "", &self.asked.made_by, &text)
                    })?;
                }
                format!("page: {}", page.display())
            }
            None => {
                std::fs::create_dir_all(&self.out)
                    .with_context(|| format!("cannot make {}", self.out.display()))?;
                let text = format!("{}\n{}", start(self.experiment), results.page());
                with_folder_lock(&self.out, || {
                    atomic_file::write(&self.out.join(TABLE), text)?;
                    let numbers = serde_json::to_string_pretty(&json)? + "\n";
                    atomic_file::write(&self.out.join(NUMBERS), numbers)
                })?;
                if self.cases.is_none() {
                    self.draw(runs)?;
                }
                format!(
                    "folder with the runs, {TABLE} and {NUMBERS}: {}",
                    self.out.display()
                )
            }
        };
        if self.asked.out.is_none() {
            // Where all numbers were known nothing is in it.
            let _ = std::fs::remove_dir(&self.out);
        }
        cli::show(&if self.asked.json {
            json.to_string()
        } else {
            format!("{}\n{written}", results.text())
        })?;
        if self.since.is_some() && open.is_empty() {
            let path = self.out.join(AGAIN);
            match std::fs::remove_file(&path) {
                // Another process has seen the last run too.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed.with_context(|| format!("cannot remove {}", path.display()))?,
            }
        }
        match stopped {
            None => Ok(ExitCode::SUCCESS),
            Some(_) => cli::interrupted(&format!(
                "stopped after {} hours; open: {}; continue with the same command and --out {}",
                self.asked.hours.unwrap_or_default(),
                open.join(", "),
                self.out.display()
            )),
        }
    }

    /// Writes the page, and the numbers beside it.
    ///
    /// - is_part: whether the table leaves out runs of the experiment
    /// - json: the numbers of this table, to which those are added that others have stored
    fn write_page(
        &self,
        page: &Path,
        results: &Results,
        is_part: bool,
        json: &mut Value,
    ) -> Result<()> {
        let (start, command) = (start(self.experiment), &self.asked.made_by);
        page::update(page, &start, command, &results.page())?;
        let numbers = page.with_extension("json");
        // With what other processes have stored since, what this table leaves out, and what is of other backends.
        let mut others = store::read(&numbers)?;
        others.retain(|_, entry| {
            entry.version == F::VERSION && (is_part || entry.backend != self.backend)
        });
        if !others.is_empty() {
            let runs = json["runs"].as_array_mut().context("no runs")?;
            for run in runs.iter() {
                others.remove(run["fingerprint"].as_str().unwrap_or_default());
            }
            runs.extend(others.into_values().map(|entry| json!(entry)));
        }
        atomic_file::write(&numbers, serde_json::to_string_pretty(json)? + "\n")
    }

    /// Draws the runs of the first seed that are here, where all of them have the same data.
    fn draw(&self, runs: &[Planned<F>]) -> Result<()> {
        let Some(first) = runs.first() else {
            return Ok(());
        };
        if runs.iter().any(|planned| planned.data != first.data) {
            return Ok(());
        }
        let data = &self.data[first.data].1;
        let mut models = Vec::new();
        for planned in runs.iter().filter(|run| run.plan.seed == first.plan.seed) {
            let Run { config, folder } = &planned.run;
            let is_outdated = self.is_outdated(folder)?;
            if !is_outdated && planned.run.state(&planned.about)? == State::Finished {
                let (checkpoint, _) = Checkpoint::newest(folder)?;
                let model = checkpoint.load_model(config.untrained(data, &self.device))?;
                models.push((planned, model));
            }
        }
        if models.is_empty() {
            return Ok(());
        }
        let finished = models.iter().map(|(planned, model)| Finished {
            name: &self.experiment.rows[planned.plan.row].name,
            folder: &planned.run.folder,
            config: &planned.run.config,
            model: Some(model),
        });
        let finished: Vec<Finished<'_, F>> = finished.collect();
        F::draw(&finished, data, &self.device, &self.out)
    }
}

/// Why no further run was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// By Ctrl-C.
    Asked,
    /// By the clock.
    Hours,
}

/// Whether a training ended because its numbers did.
fn diverged(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(TrainError::NonFinite { .. }))
}

/// What this runs on.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let cpu = cpu.unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH));
    format!("{cpu} with {threads} threads")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn training_time_leaves_out_evaluations() {
        let log = [
            json!({"step": 1, "split": "train", "seconds": 0.5}),
            json!({"step": 1, "split": "valid", "seconds": 9}),
            json!({"step": 2, "split": "train", "seconds": 0.25}),
        ];
        assert_eq!(training_seconds(&log, u64::MAX), 0.75);
        assert_eq!(training_seconds(&log, 1), 0.5);
    }

    #[test]
    fn an_accuracy_is_reached_at_the_first_evaluation_that_measured_it() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = [
            r#"{"step":1,"split":"train","accuracy":1.0}"#,
            r#"{"step":1,"split":"valid","accuracy":0.5}"#,
            r#"{"step":2,"split":"valid","accuracy":0.995}"#,
            r#"{"step":3,"split":"valid","accuracy":0.9}"#,
            r#"{"step":4,"split":"valid","accuracy":0.997,"log_likelihood":-0.25}"#,
        ];
        fs::write(folder.path().join("metrics.jsonl"), metrics.join("\n")).unwrap();
        let reached = |accuracy| first_reached(folder.path(), accuracy);
        assert_eq!(reached(0.99), Some(2));
        assert_eq!(reached(0.4), Some(1));
        assert_eq!(reached(0.999), None);
        assert_eq!(
            last_evaluation(folder.path()).unwrap()["log_likelihood"],
            -0.25
        );
    }

    #[test]
    fn a_run_from_other_weights_than_its_source_has_now_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let [source, run] = ["dense-seed1", "tree-seed1"].map(|name| place.path().join(name));
        fs::create_dir(&run).unwrap();
        fs::write(run.join(CONFIG), "{}").unwrap();
        // The source is not there, then older than the run, then trained again.
        refuse_older(&source, &run).unwrap();
        fs::create_dir(&source).unwrap();
        let begun = fs::metadata(run.join(CONFIG)).unwrap().modified().unwrap();
        let hour = std::time::Duration::from_secs(3600);
        let begin_source = |time| {
            let file = fs::File::create(source.join(CONFIG)).unwrap();
            file.set_modified(time).unwrap();
        };
        begin_source(begun - hour);
        refuse_older(&source, &run).unwrap();
        begin_source(begun + hour);
        let text = refuse_older(&source, &run).unwrap_err().to_string();
        assert!(
            text.contains("was trained again after this run started"),
            "{text}"
        );
    }
}
