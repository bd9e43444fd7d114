//! What is measured of a run once it is trained.

use super::*;
use crate::families::curves::read_lines;

impl<F: Family> Engine<'_, F> {
    /// Trains and measures what a run lacks. Whether it was stopped.
    ///
    /// - tried: whether it is trained to choose a learning rate
    pub(super) fn finish(
        &mut self,
        planned: &Planned<F>,
        others: &[Planned<F>],
        (at, count): (usize, usize),
        tried: bool,
    ) -> Result<Option<Stop>> {
        let folder = planned.run.folder.display();
        let told = |what: &str| tell!("[{}/{count}] {folder}: {what}", at + 1);
        if self.is_known(planned) {
            told("finished before");
            return Ok(None);
        }
        if let Some(hours) = self.asked.hours
            && self.started.elapsed().as_secs_f64() >= 3600.0 * hours
        {
            return Ok(Some(Stop::Hours));
        }
        self.set_aside_outdated(planned)?;
        let state = planned.run.state(&planned.about)?;
        if let (Some(source), State::Absent) = (planned.source, state) {
            let source = &others[source];
            self.set_aside_outdated(source)?;
            // Its numbers may be known and its weights gone.
            if source.run.state(&source.about)? != State::Finished {
                tell!(
                    "[{}/{count}] {}: training for its weights",
                    at + 1,
                    source.run.folder.display()
                );
                let trained = self.trained(source)?;
                if trained.is_none_or(|trained| trained.is_stopped()) {
                    return Ok(Some(Stop::Asked));
                }
            }
        }
        let what = match state {
            State::Finished => "measuring",
            State::Unfinished => "resuming",
            State::Absent => "training",
        };
        told(what);
        let (config, data) = (&planned.run.config, &self.data[planned.data].1);
        let mut entries = Vec::new();
        let mut seconds_per_query = None;
        let mut is_stopped = false;
        match self.trained(planned) {
            Ok(None) => return Ok(Some(Stop::Asked)),
            Ok(Some(trained)) if tried => {
                is_stopped = trained.is_stopped();
                let metrics = last_evaluation(&planned.run.folder)?;
                let metrics = store::finite(metrics);
                entries.push(self.entry(planned, None, metrics, &trained.model));
            }
            Ok(Some(trained)) => {
                let items = config.common().test_items;
                let measure = |model: &F::Model| -> Result<_> {
                    let mut metrics = measured(config, model, items, data, &self.device)?;
                    metrics.extend(planned.about.static_metrics.clone());
                    Ok(store::finite(metrics))
                };
                let metrics = measure(&trained.model)?;
                let is_lost = metrics.is_none();
                if is_lost {
                    tell!("{folder}: the loss is not finite");
                }
                seconds_per_query = self.seconds_per_query(config, data, &trained.model)?;
                is_stopped = trained.is_stopped();
                entries.push(self.entry(planned, None, metrics, &trained.model));
                if let (Some(at_random), false) = (&planned.at_random, is_lost) {
                    let walking = trained.model.walking_at_random()?;
                    let metrics = measure(&walking)?;
                    entries.push(self.entry(planned, Some(at_random), metrics, &walking));
                }
            }
            // The model has lost, and the others are still to be compared.
            Err(error) if diverged(&error) => {
                tell!("{folder}: {error}");
                let model = config.untrained(data, &self.device);
                entries.push(self.entry(planned, None, None, &model));
            }
            Err(error) => return Err(error),
        }
        // With what the same training came to when its learning rate was chosen, or the other way round.
        let earlier = store::measured(&planned.run.folder)?;
        let earlier = earlier.map_or(Vec::new(), |earlier| earlier.entries);
        let new = store::by_fingerprint(entries.clone());
        let is_other = |entry: &Entry| !new.contains_key(&entry.fingerprint);
        entries.extend(earlier.into_iter().filter(is_other));
        self.known.extend(new);
        let numbers = Measured {
            entries,
            seconds_per_query,
        };
        let text = serde_json::to_string_pretty(&numbers)? + "\n";
        atomic_file::write(&planned.run.folder.join(store::MEASURED), &text)?;
        Ok(is_stopped.then_some(Stop::Asked))
    }

    /// What a model came to.
    ///
    /// - at_random: the fingerprint of the entry, where the weights walked at random
    pub(super) fn entry(
        &self,
        planned: &Planned<F>,
        at_random: Option<&String>,
        metrics: Option<BTreeMap<String, f64>>,
        model: &F::Model,
    ) -> Entry {
        let common = planned.run.config.common();
        let name = &self.experiment.rows[planned.plan.row].name;
        let end = at_random.map_or("", |_| AT_RANDOM);
        // Where they are counted, what is no parameter is left out: biases of balance, for instance.
        let counted = planned.about.static_metrics.get("total_parameters");
        let accuracies = self.accuracies().filter(|_| at_random.is_none());
        let reached = accuracies.map(|accuracy| Reached {
            accuracy,
            step: first_reached(&planned.run.folder, accuracy),
        });
        Entry {
            fingerprint: at_random.unwrap_or(&planned.fingerprint).clone(),
            line: format!("{name}{end}"),
            seed: planned.plan.seed,
            case: self.case_of(planned),
            commit: self.commit.clone(),
            backend: self.backend.clone(),
            version: F::VERSION,
            steps: common.trainer.steps,
            items: common.measured(common.test_items, planned.about.count) as u64,
            of: planned.about.items.to_owned(),
            parameters: counted.map_or(model.num_params() as u64, |count| *count as u64),
            metrics,
            reached: reached.collect(),
        }
    }

    /// The accuracies whose steps the experiment asks for.
    pub(super) fn accuracies(&self) -> impl Iterator<Item = f64> {
        let columns = self.experiment.columns.iter();
        columns.filter_map(|column| match column {
            Column::Reached { reached } => Some(*reached),
            _ => None,
        })
    }

    /// The trained model of a run: from its folder where it is finished, else after training what is missing. `None`
    /// after Ctrl-C.
    pub(super) fn trained(&self, planned: &Planned<F>) -> Result<Option<Trained<F::Model>>> {
        let (run, data) = (&planned.run, &self.data[planned.data].1);
        let state = run.state(&planned.about)?;
        if state == State::Finished {
            let (checkpoint, _) = Checkpoint::newest(&run.folder)?;
            let model = checkpoint.load_model(run.config.untrained(data, &self.device))?;
            return Ok(Some(Trained::before(model, checkpoint.state().step)));
        }
        let model = run.model(data, &self.device)?;
        let trainer = run.trainer(&planned.about, &self.backend, state)?;
        let trained = run.train(trainer, model, data, &self.device)?;
        Ok(Some(trained).filter(|trained| !trained.is_stopped()))
    }

    /// Wall-clock time of a forward pass (from features to predictions) by the number of its queries, the median over
    /// batches.
    pub(super) fn seconds_per_query(
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
            let queries = model.timed_forward(batch, &mut numbers);
            self.device.sync().context("the device gave up")?;
            times.push(started.elapsed().as_secs_f64() / queries as f64);
        }
        let times = times.get_mut(1..).unwrap_or_default();
        times.sort_by(f64::total_cmp);
        Ok(times.get(times.len() / 2).copied())
    }

    /// What depends on the machine, of a run whose folder is here.
    pub(super) fn times(&self, planned: &Planned<F>) -> Result<Option<Times>> {
        let folder = &planned.run.folder;
        let timing = "timing.jsonl";
        if !has_any(folder, &[timing])? || self.is_outdated(folder)? {
            return Ok(None);
        }
        let log = read_lines(&folder.join(timing))?;
        let measured = store::measured(folder)?;
        Ok(Some(Times {
            training_seconds: training_seconds(&log, u64::MAX),
            seconds_per_query: measured.and_then(|measured| measured.seconds_per_query),
            reached: self
                .accuracies()
                .map(|accuracy| Some(training_seconds(&log, first_reached(folder, accuracy)?)))
                .collect(),
        }))
    }
}
