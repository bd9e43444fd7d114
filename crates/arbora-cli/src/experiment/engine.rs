//! Trains, measures and remembers the runs of an experiment.

use super::grid::Cases;
use super::page;
use super::plan::{self, Place, Plan, Planning};
use super::results::{Results, Shown, Times, Tried};
use super::store::{self, Entry, Measured, Origin, Reached, Store};
use super::{AT_RANDOM, Asked, Column, Experiment};
use crate::families::{About, Family, FamilyModel as _, Finished, named};
use crate::run::{CONFIG, Run, State, first_free, measured};
use crate::{backend, cli, settings, whole};
use anyhow::{Context as _, Result, bail, ensure};
use arbora::rl::train::{Checkpoint, TrainError};
use burn::module::Module as _;
use burn::tensor::Device;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Test batches whose forward pass is timed, at most.
pub const TIMED_BATCHES: usize = 64;

/// The table, in the experiment's folder.
const TABLE: &str = "compare.md";
/// The numbers behind it.
const NUMBERS: &str = "compare.json";

/// What the runs of an experiment share.
struct Engine<'a, F: Family> {
    experiment: &'a Experiment,
    asked: &'a Asked,
    planning: Planning,
    out: PathBuf,
    backend: String,
    device: Device,
    /// What runs are trained on, by the settings that decide it.
    data: Vec<(Value, F::Data)>,
    /// The numbers of finished runs.
    known: Store,
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
    /// Of its entry, and of that of the same weights walking at random.
    fingerprints: [Option<String>; 2],
}

/// The runs of an experiment, and the one at each place of its table.
type Runs<F> = (Vec<Planned<F>>, BTreeMap<Place, usize>);

/// How a model is measured.
const LEARNED: &str = "learned";
const RANDOM: &str = "random";
/// While its learning rate is chosen, on what trainings evaluate with.
const TRIED: &str = "tried";

/// Runs an experiment as far as it is asked, and writes what it comes to.
///
/// # Errors
/// With the first mistake, before the first run; when a run fails or a file cannot be written.
pub fn run<F: Family>(experiment: &Experiment, asked: &Asked) -> Result<ExitCode> {
    for (at, row) in experiment.rows.iter().enumerate() {
        named::<F::ModelKind>(&row.model).with_context(|| format!("rows[{at}].model"))?;
    }
    let mut experiment = experiment.clone();
    let cases = cases::<F>(&mut experiment, asked)?;
    let experiment = &experiment;
    let (backend, device) = backend::open(asked.backend.as_deref())?;
    let out = asked
        .out
        .clone()
        .unwrap_or_else(|| first_free(&experiment.task, "compare"));
    if out.exists() && !out.is_dir() {
        return Err(TrainError::NotAFolder { path: out }.into());
    }
    let mut known = Store::new();
    if let Some(cases) = &cases {
        cases.refuse_within(&out)?;
    }
    if let Some(page) = &asked.page {
        page::open(page, &start(experiment), &asked.made_by)?;
        known = store::read(&page.with_extension("json"))?;
    }
    if asked.again {
        known.clear();
    }
    Engine::<F> {
        experiment,
        asked,
        planning: Planning {
            settings: asked.all_settings(),
            cases,
        },
        out,
        backend,
        device,
        data: Vec::new(),
        known,
        commit: store::commit(),
        started: Instant::now(),
    }
    .run()
}

/// The trees and texts of a grid.
fn cases<F: Family>(experiment: &mut Experiment, asked: &Asked) -> Result<Option<Cases>> {
    if !asked.is_grid && experiment.grid.is_none() {
        return Ok(None);
    }
    let base = F::preset(&experiment.task, experiment.preset, None)?;
    let mut layers = experiment.settings.clone();
    layers.extend(asked.all_settings());
    let base = settings::layered(&base, asked.config.as_deref(), &layers)?;
    let base = serde_json::to_value(base)?;
    if asked.is_grid {
        experiment.grid = Some(asked.grid.grid(&base)?);
    }
    let cases = experiment.grid.as_ref().map(|grid| Cases::new(grid, &base));
    cases.transpose()
}

/// The start of a page that is not there yet.
fn start(experiment: &Experiment) -> String {
    format!("# {}\n\n{}\n", experiment.title, experiment.about)
}

impl<F: Family> Engine<'_, F> {
    fn run(mut self) -> Result<ExitCode> {
        let mut tries = Vec::new();
        for (rate, run) in Plan::tries(self.experiment, &self.planning) {
            tries.push((rate, self.planned(run, &[], TRIED)?));
        }
        // All mistakes before the first hour of training: with any rate the other runs are like these.
        let mut rates = match self.experiment.rates.as_slice() {
            [] => vec![None; self.experiment.rows.len()],
            [first, ..] => vec![Some(*first); self.experiment.rows.len()],
        };
        let (mut runs, mut at) = self.plan(&rates)?;
        if self.asked.plan {
            return self.tell(&tries, &runs);
        }
        let own = |at: usize| match self.asked.shard {
            Some(shard) => shard.has(at),
            None => !self.asked.only_table,
        };
        let names: Vec<&str> = self
            .experiment
            .rows
            .iter()
            .map(|row| row.name.as_str())
            .collect();
        eprintln!(
            "{}: {} on {}, {} runs, folder {}",
            self.experiment.task,
            names.join(", "),
            self.backend,
            runs.len(),
            self.out.display()
        );
        let mut stopped = None;
        for (at, (_, planned)) in tries.iter().enumerate() {
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

    /// The runs of all places, with all that decides their numbers.
    fn plan(&mut self, rates: &[Option<f64>]) -> Result<Runs<F>> {
        let plan = Plan::new(self.experiment, &self.planning, rates);
        let mut runs = Vec::new();
        for run in plan.runs {
            let planned = self.planned(run, &runs, LEARNED)?;
            runs.push(planned);
        }
        Ok((runs, plan.at))
    }

    /// A run with its settings, data and fingerprints; what is wrong with any of them, or with its folder, is told.
    fn planned(
        &mut self,
        run: plan::Run,
        others: &[Planned<F>],
        route: &str,
    ) -> Result<Planned<F>> {
        let experiment = self.experiment;
        let row = &experiment.rows[run.row];
        let absolute =
            |path: &Path| std::path::absolute(path).context("cannot read the working directory");
        let folder = self.out.join(&run.name);
        let source = run
            .from
            .as_ref()
            .and_then(|from| others.iter().position(|other| other.plan.name == *from));
        let from = match (source, &self.asked.from) {
            (Some(source), _) => Some(absolute(&others[source].run.folder)?),
            (None, Some(from)) => Some(absolute(from)?),
            (None, None) => None,
        };
        let layered = || {
            let base = F::preset(&experiment.task, run.preset, from.as_deref())?;
            settings::layered(&base, self.asked.config.as_deref(), &run.settings)
        };
        let config: F = match &self.planning.cases {
            Some(cases) => layered().with_context(|| {
                format!(
                    "tree {} (branching:height:blocks:width)",
                    cases.tree(run.case)
                )
            })?,
            None => layered()?,
        };
        let task = config.common().task;
        if task != experiment.task {
            bail!(
                "the settings are for task {task}, asked for {}",
                experiment.task
            );
        }
        // Through text like what folders hold: numbers of many digits need not survive it unchanged.
        let settings: Value = serde_json::from_str(&serde_json::to_string(&config)?)?;
        let data = self.data(&config, &settings)?;
        // A run that starts from one which is not trained yet is checked as one from fresh weights.
        let is_there = |from: &PathBuf| Checkpoint::newest(from).is_ok();
        let fresh: F = match source.is_some() && !from.as_ref().is_some_and(is_there) {
            true => {
                let mut fresh = settings.clone();
                fresh["from"] = Value::Null;
                serde_json::from_value(fresh)?
            }
            false => config.clone(),
        };
        let about = fresh.about(&self.data[data].1)?;
        let run_folder = Run { config, folder };
        run_folder.state(&about)?;
        if let (Some(source), true) = (source, run_folder.folder.join(CONFIG).exists()) {
            refuse_older(&others[source].run.folder, &run_folder.folder)?;
        }
        let from = match (source, &from) {
            (Some(source), _) => others[source].fingerprints[0].clone(),
            (None, Some(from)) => Some(external::<F>(from)?),
            (None, None) => None,
        };
        let fingerprint = |route: &str| {
            Origin {
                family: F::NAME,
                version: F::VERSION,
                backend: &self.backend,
                settings: &settings,
                digest: about.digest.as_deref(),
                route,
                from: from.as_deref(),
            }
            .fingerprint()
        };
        let at_random = row.at_random.as_ref().filter(|_| route == LEARNED);
        let fingerprints = [
            Some(fingerprint(route)),
            at_random.map(|_| fingerprint(RANDOM)),
        ];
        if !self.asked.again
            && let Some(Measured { entries, .. }) = store::measured(&run_folder.folder)?
        {
            let entries = entries.into_iter();
            self.known
                .extend(entries.map(|entry| (entry.fingerprint.clone(), entry)));
        }
        Ok(Planned {
            plan: run,
            run: run_folder,
            settings,
            data,
            about,
            source,
            fingerprints,
        })
    }

    /// The number of the data that settings name, which are loaded where they are not.
    fn data(&mut self, config: &F, settings: &Value) -> Result<usize> {
        let mut key = settings.clone();
        match &self.planning.cases {
            // A text takes seconds to read, and is decided by its own settings alone.
            _ if self.experiment.task == "lm" => key = settings["data"].clone(),
            _ => ["model", "from", "trainer"]
                .iter()
                .for_each(|name| store::remove(&mut key, name)),
        }
        if let Some(at) = self.data.iter().position(|(other, _)| *other == key) {
            return Ok(at);
        }
        let data = match &self.planning.cases {
            Some(_) => config.load(None).with_context(|| {
                format!(
                    "text {}",
                    settings["data"]["source"].as_str().unwrap_or_default()
                )
            })?,
            None => config.load(None)?,
        };
        self.data.push((key, data));
        Ok(self.data.len() - 1)
    }

    /// Whether all numbers of a run are known.
    fn is_known(&self, planned: &Planned<F>) -> bool {
        let mut fingerprints = planned.fingerprints.iter().flatten();
        let has_diverged = |name: &String| {
            self.known
                .get(name)
                .is_some_and(|entry| entry.metrics.is_none())
        };
        // Weights that are none walk nowhere.
        planned.fingerprints[0].as_ref().is_some_and(has_diverged)
            || fingerprints.all(|name| self.known.contains_key(name))
    }

    /// Prints how far all runs are, and the commands that train them.
    fn tell(&self, tries: &[(f64, Planned<F>)], runs: &[Planned<F>]) -> Result<ExitCode> {
        let mut lines = Vec::new();
        let mut list = Vec::new();
        for planned in tries.iter().map(|(_, planned)| planned).chain(runs) {
            let state = planned.run.state(&planned.about)?;
            let folder = planned.run.folder.display().to_string();
            let told = match (self.is_known(planned), state) {
                (true, _) => "finished",
                (false, State::Finished) => "trained",
                (false, State::Unfinished) => "not finished",
                (false, State::Absent) => "not begun",
            };
            let command =
                planned
                    .plan
                    .command(&self.experiment.task, &self.out, state == State::Unfinished);
            lines.push(format!("{folder}: {told}"));
            if !["finished", "trained"].contains(&told) {
                lines.push(format!("  {command}"));
            }
            list.push(json!({
                "run": planned.plan.name, "line": self.experiment.rows[planned.plan.row].name, "seed": planned.plan.seed,
                "state": told, "fingerprint": planned.fingerprints[0], "at_random": planned.fingerprints[1],
                "case": self.case_of(planned), "settings": planned.settings, "command": command, "version": F::VERSION,
            }));
        }
        cli::show(&match self.asked.json {
            true => Value::from(list).to_string(),
            false => lines.join("\n"),
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// What the run of a grid is of: as much of tree and text as its model depends on.
    fn case_of(&self, planned: &Planned<F>) -> Option<String> {
        self.planning.cases.as_ref()?;
        let name = planned
            .plan
            .name
            .strip_suffix(&format!("-seed{}", planned.plan.seed));
        name.map(str::to_owned)
    }

    /// The learning rate whose run has the highest log-likelihood on what a training evaluates with; `None` while one
    /// is open.
    fn choose(&self, row: usize, tries: &[(f64, Planned<F>)]) -> Result<Option<f64>> {
        let name = &self.experiment.rows[row].name;
        let mut best = None;
        let own = tries.iter().filter(|(_, planned)| planned.plan.row == row);
        let count = own.clone().count();
        for (rate, planned) in own {
            let Some(entry) = planned.fingerprints[0]
                .as_ref()
                .and_then(|name| self.known.get(name))
            else {
                return Ok(None);
            };
            let metrics = entry.metrics.as_ref();
            let Some(number) = metrics
                .and_then(|metrics| metrics.get("log_likelihood"))
                .copied()
            else {
                continue;
            };
            if best.is_none_or(|(highest, _)| number > highest) {
                best = Some((number, *rate));
            }
        }
        let Some((number, rate)) = best else {
            bail!("{name}: training diverged at every learning rate");
        };
        eprintln!("{name}: learning rate {rate:e} of {count}, held-out log-likelihood {number:.4}");
        Ok(Some(rate))
    }

    /// Trains and measures what a run lacks. Whether it was stopped.
    ///
    /// - tried: whether it is trained to choose a learning rate
    fn finish(
        &mut self,
        planned: &Planned<F>,
        others: &[Planned<F>],
        (at, count): (usize, usize),
        tried: bool,
    ) -> Result<Option<Stop>> {
        let folder = planned.run.folder.display();
        if self.is_known(planned) {
            eprintln!("[{}/{count}] {folder}: finished before", at + 1);
            return Ok(None);
        }
        if let Some(hours) = self.asked.hours
            && self.started.elapsed().as_secs_f64() >= 3600.0 * hours
        {
            return Ok(Some(Stop::Hours));
        }
        let state = planned.run.state(&planned.about)?;
        if let (Some(source), State::Absent) = (planned.source, state) {
            let source = &others[source];
            // Its numbers may be known and its weights gone.
            if source.run.state(&source.about)? != State::Finished {
                eprintln!(
                    "[{}/{count}] {}: training for its weights",
                    at + 1,
                    source.run.folder.display()
                );
                if self
                    .trained(source)?
                    .is_none_or(|trained| trained.is_stopped())
                {
                    return Ok(Some(Stop::Asked));
                }
            }
        }
        let told = match state {
            State::Finished => "measuring",
            State::Unfinished => "resuming",
            State::Absent => "training",
        };
        eprintln!("[{}/{count}] {folder}: {told}", at + 1);
        let name = &self.experiment.rows[planned.plan.row].name;
        let mut numbers = Measured {
            entries: Vec::new(),
            seconds_per_query: None,
        };
        let mut is_stopped = false;
        match self.trained(planned) {
            Ok(None) => return Ok(Some(Stop::Asked)),
            Ok(Some(trained)) if tried => {
                is_stopped = trained.is_stopped();
                let metrics = last_evaluation(&planned.run.folder)?;
                let model = &trained.model;
                numbers.entries.push(self.entry(
                    planned,
                    name,
                    0,
                    store::finite(metrics),
                    model.num_params(),
                ));
            }
            Ok(Some(trained)) => {
                let config = &planned.run.config;
                let data = &self.data[planned.data].1;
                let items = config.common().test_items;
                let measure = |model: &F::Model| measured(config, model, items, data, &self.device);
                let mut metrics = measure(&trained.model)?;
                metrics.extend(planned.about.facts.clone());
                let metrics = store::finite(metrics);
                if metrics.is_none() {
                    eprintln!("{folder}: the loss is not finite");
                }
                numbers.seconds_per_query = self.seconds_per_query(config, data, &trained.model)?;
                is_stopped = trained.is_stopped();
                let parameters = trained.model.num_params();
                let is_lost = metrics.is_none();
                numbers
                    .entries
                    .push(self.entry(planned, name, 0, metrics, parameters));
                if planned.fingerprints[1].is_some() && !is_lost {
                    let walking = trained.model.walking_at_random()?;
                    let mut metrics = measure(&walking)?;
                    metrics.extend(planned.about.facts.clone());
                    let line = format!("{name}{AT_RANDOM}");
                    numbers.entries.push(self.entry(
                        planned,
                        &line,
                        1,
                        store::finite(metrics),
                        parameters,
                    ));
                }
            }
            // The model has lost, and the others are still to be compared.
            Err(error) if diverged(&error) => {
                eprintln!("{folder}: {error}");
                let model = planned
                    .run
                    .config
                    .blank(&self.data[planned.data].1, &self.device);
                numbers
                    .entries
                    .push(self.entry(planned, name, 0, None, model.num_params()));
            }
            Err(error) => return Err(error),
        }
        for entry in &numbers.entries {
            self.known.insert(entry.fingerprint.clone(), entry.clone());
        }
        // With what the same training came to when its learning rate was chosen, or the other way round.
        if let Some(earlier) = store::measured(&planned.run.folder)? {
            let kept = |entry: &Entry| {
                numbers
                    .entries
                    .iter()
                    .all(|new| new.fingerprint != entry.fingerprint)
            };
            let earlier: Vec<Entry> = earlier.entries.into_iter().filter(kept).collect();
            numbers.entries.extend(earlier);
        }
        let text = serde_json::to_string_pretty(&numbers)? + "\n";
        whole::write(&planned.run.folder.join(store::MEASURED), &text)?;
        Ok(is_stopped.then_some(Stop::Asked))
    }

    fn entry(
        &self,
        planned: &Planned<F>,
        line: &str,
        which: usize,
        metrics: Option<BTreeMap<String, f64>>,
        parameters: usize,
    ) -> Entry {
        let common = planned.run.config.common();
        // Where they are counted, what is no parameter is left out: biases of balance, for instance.
        let counted = planned
            .about
            .facts
            .get("total_parameters")
            .map(|count| *count as u64);
        let accuracies = self.accuracies();
        let reached = accuracies
            .iter()
            .filter(|_| which == 0)
            .map(|accuracy| Reached {
                accuracy: *accuracy,
                step: first_reached(&planned.run.folder, *accuracy),
            });
        Entry {
            fingerprint: planned.fingerprints[which].clone().unwrap_or_default(),
            line: line.to_owned(),
            seed: planned.plan.seed,
            case: self.case_of(planned),
            commit: self.commit.clone(),
            backend: self.backend.clone(),
            version: F::VERSION,
            steps: common.trainer.steps,
            items: common.measured(common.test_items, planned.about.count) as u64,
            of: planned.about.items.to_owned(),
            parameters: counted.unwrap_or(parameters as u64),
            metrics,
            reached: reached.collect(),
        }
    }

    /// The accuracies whose steps the experiment asks for.
    fn accuracies(&self) -> Vec<f64> {
        let columns = self.experiment.columns.iter();
        columns
            .filter_map(|column| match column {
                Column::Reached { reached } => Some(*reached),
                _ => None,
            })
            .collect()
    }

    /// The trained model of a run: from its folder where it is finished, else after training what is missing. `None`
    /// after Ctrl-C.
    fn trained(&self, planned: &Planned<F>) -> Result<Option<Model<F>>> {
        let (run, data) = (&planned.run, &self.data[planned.data].1);
        let state = run.state(&planned.about)?;
        if state == State::Finished {
            let (checkpoint, _) = Checkpoint::newest(&run.folder)?;
            let model = run.config.blank(data, &self.device);
            return Ok(Some(Model {
                model: checkpoint.load_model(model)?,
                trained: None,
            }));
        }
        let model = run.model(data, &self.device)?;
        let trainer = run.trainer(&planned.about, state == State::Unfinished)?;
        let interrupter = trainer.interrupter();
        let trained = run.train(trainer, model, data, &self.device)?;
        Ok((!trained.is_stopped()).then(|| Model {
            model: trained.model,
            trained: Some(interrupter),
        }))
    }

    /// Wall-clock time of a forward pass (from features to predictions) by the number of its queries, the median over
    /// batches.
    fn seconds_per_query(
        &self,
        config: &F,
        data: &F::Data,
        model: &F::Model,
    ) -> Result<Option<f64>> {
        let batches = config.evaluation(data, config.common().test_items, &self.device)?;
        let mut times = Vec::new();
        // The first batch twice: what starts up at a first call is no part of a query.
        let first = batches.iter().take(1);
        for batch in first.chain(&batches).take(1 + TIMED_BATCHES) {
            let mut numbers = arbora::rl::seed::step_rng(0, 0);
            self.device.sync().context("the device gave up")?;
            let started = Instant::now();
            let queries = model.answer(batch, &mut numbers);
            self.device.sync().context("the device gave up")?;
            times.push(started.elapsed().as_secs_f64() / queries as f64);
        }
        let times = times.get_mut(1..).unwrap_or_default();
        times.sort_by(f64::total_cmp);
        Ok(times.get(times.len() / 2).copied())
    }

    /// What depends on the machine, of a run whose folder is here.
    fn times(&self, planned: &Planned<F>) -> Result<Option<Times>> {
        let folder = &planned.run.folder;
        let path = folder.join("timing.jsonl");
        if !path.exists() {
            return Ok(None);
        }
        let log = read(&path)?;
        let accuracies = self.accuracies().into_iter();
        let measured = store::measured(folder)?;
        Ok(Some(Times {
            training_seconds: training_seconds(&log, u64::MAX),
            seconds_per_query: measured.and_then(|measured| measured.seconds_per_query),
            reached: accuracies
                .map(|accuracy| Some(training_seconds(&log, first_reached(folder, accuracy)?)))
                .collect(),
        }))
    }

    /// Writes what the experiment comes to.
    fn conclude(
        &mut self,
        tries: &[(f64, Planned<F>)],
        runs: &[Planned<F>],
        at: BTreeMap<Place, usize>,
        rates: Vec<Option<f64>>,
        stopped: Option<Stop>,
    ) -> Result<ExitCode> {
        let entry = |fingerprint: &Option<String>| self.known.get(fingerprint.as_ref()?).cloned();
        let mut shown = Vec::new();
        for planned in runs {
            shown.push(Shown {
                run: planned.plan.clone(),
                settings: planned.settings.clone(),
                facts: planned.about.facts.clone(),
                entry: entry(&planned.fingerprints[0]),
                at_random: entry(&planned.fingerprints[1]),
                times: self.times(planned)?,
            });
        }
        let tried = tries.iter().map(|(rate, planned)| Tried {
            row: planned.plan.row,
            rate: *rate,
            entry: entry(&planned.fingerprints[0]),
            name: planned.plan.name.clone(),
        });
        let columns = match self.experiment.columns.as_slice() {
            [] => Column::automatic(
                shown.iter().filter_map(|run| run.entry.as_ref()),
                F::COLUMNS,
            ),
            columns => columns.to_vec(),
        };
        let results = Results {
            experiment: self.experiment,
            cases: self.planning.cases.as_ref(),
            runs: shown,
            at,
            tried: tried.collect(),
            rates,
            columns,
            command: self.asked.command.clone(),
            machine: machine(),
        };
        let [open, _] = results.open();
        let mut json = results.json();
        let written = match &self.asked.page {
            Some(page) => {
                page::update(
                    page,
                    &start(self.experiment),
                    &self.asked.made_by,
                    &results.page(),
                )?;
                let numbers = page.with_extension("json");
                // With what other processes have stored since, and what this table leaves out.
                if self.asked.is_part || !open.is_empty() {
                    let mut others = store::read(&numbers)?;
                    others.retain(|_, entry| entry.version == F::VERSION);
                    let runs = json["runs"].as_array_mut().context("no runs")?;
                    for run in runs.iter() {
                        others.remove(run["fingerprint"].as_str().unwrap_or_default());
                    }
                    runs.extend(others.into_values().map(|entry| json!(entry)));
                }
                whole::write(&numbers, serde_json::to_string_pretty(&json)? + "\n")?;
                if let (true, true, Some(readme)) =
                    (self.experiment.readme, open.is_empty(), &self.asked.readme)
                {
                    let text = results.readme(&page.to_string_lossy());
                    page::update(readme, "", &self.asked.made_by, &text)?;
                }
                format!("page: {}", page.display())
            }
            None => {
                std::fs::create_dir_all(&self.out)
                    .with_context(|| format!("cannot make {}", self.out.display()))?;
                let text = format!("{}\n{}", start(self.experiment), results.page());
                whole::write(&self.out.join(TABLE), text)?;
                whole::write(
                    &self.out.join(NUMBERS),
                    serde_json::to_string_pretty(&json)? + "\n",
                )?;
                if self.planning.cases.is_none() {
                    self.draw(runs)?;
                }
                format!(
                    "folder with the runs, {TABLE} and {NUMBERS}: {}",
                    self.out.display()
                )
            }
        };
        cli::show(&match self.asked.json {
            true => json.to_string(),
            false => format!("{}\n{written}", results.text()),
        })?;
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
        for planned in runs
            .iter()
            .filter(|planned| planned.plan.seed == first.plan.seed)
        {
            if planned.run.state(&planned.about)? == State::Finished {
                let (checkpoint, _) = Checkpoint::newest(&planned.run.folder)?;
                let model = planned.run.config.blank(data, &self.device);
                models.push((planned, checkpoint.load_model(model)?));
            }
        }
        let finished: Vec<Finished<'_, F>> = models
            .iter()
            .map(|(planned, model)| Finished {
                name: &self.experiment.rows[planned.plan.row].name,
                folder: &planned.run.folder,
                config: &planned.run.config,
                model: Some(model),
            })
            .collect();
        match finished.is_empty() {
            true => Ok(()),
            false => F::draw(&finished, data, &self.device, &self.out),
        }
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

/// A model at the end of its training.
struct Model<F: Family> {
    model: F::Model,
    /// Of the training, where there was one: Ctrl-C goes on being told to it while the model is measured.
    trained: Option<burn::train::Interrupter>,
}

impl<F: Family> Model<F> {
    fn is_stopped(&self) -> bool {
        self.trained
            .as_ref()
            .is_some_and(|interrupter| interrupter.should_stop())
    }
}

/// Whether a training ended because its numbers did.
fn diverged(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<TrainError>(),
        Some(TrainError::NonFinite { .. })
    )
}

/// What tells the run in a folder from others, for runs that start from it.
fn external<F: Family>(folder: &Path) -> Result<String> {
    let config: F = crate::run::config_of(folder)?;
    let settings: Value = serde_json::from_str(&serde_json::to_string(&config)?)?;
    let origin = Origin {
        family: F::NAME,
        version: F::VERSION,
        backend: "",
        settings: &settings,
        digest: None,
        route: LEARNED,
        from: None,
    };
    Ok(origin.fingerprint())
}

/// Refuses a run from other weights than its source has now: a run writes its settings once, when it begins.
fn refuse_older(source: &Path, folder: &Path) -> Result<()> {
    let begun = |folder: &Path| {
        let path = folder.join(CONFIG);
        let time = std::fs::metadata(&path).and_then(|file| file.modified());
        time.with_context(|| format!("cannot read {}", path.display()))
    };
    if source.join(CONFIG).exists() {
        ensure!(
            begun(source)? <= begun(folder)?,
            "{}: from: {} was trained anew after this run began; move it away to train anew",
            folder.display(),
            source.display()
        );
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The lines of a log of one kind.
fn lines<'a>(log: &'a str, split: &'a str) -> impl Iterator<Item = Value> + 'a {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(move |line| line["split"] == split)
}

/// The measurements of the last evaluation of a training.
fn last_evaluation(folder: &Path) -> Result<BTreeMap<String, f64>> {
    let log = read(&folder.join("metrics.jsonl"))?;
    let last = lines(&log, "valid").last().unwrap_or_default();
    let number = last["log_likelihood"].as_f64().unwrap_or(f64::NAN);
    Ok([("log_likelihood".to_owned(), number)].into())
}

/// The step of the first evaluation of a training whose accuracy was at least this high.
fn first_reached(folder: &Path, accuracy: f64) -> Option<u64> {
    let log = read(&folder.join("metrics.jsonl")).ok()?;
    let mut lines = lines(&log, "valid");
    let first = lines.find(|line| {
        line["accuracy"]
            .as_f64()
            .is_some_and(|found| found >= accuracy)
    });
    first?["step"].as_u64()
}

/// Wall-clock seconds of the training steps in a timing log up to the step `last`.
fn training_seconds(log: &str, last: u64) -> f64 {
    lines(log, "train")
        .filter(|line| line["step"].as_u64().is_some_and(|step| step <= last))
        .filter_map(|line| line["seconds"].as_f64())
        .sum()
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
        let log = "{\"step\":1,\"split\":\"train\",\"seconds\":0.5}\n\
                   {\"step\":1,\"split\":\"valid\",\"seconds\":9}\n\
                   {\"step\":2,\"split\":\"train\",\"seconds\":0.25}\n";
        assert_eq!(training_seconds(log, u64::MAX), 0.75);
        assert_eq!(training_seconds(log, 1), 0.5);
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
        // The source is not there, then older than the run, then trained anew.
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
            text.contains("was trained anew after this run began"),
            "{text}"
        );
    }
}
