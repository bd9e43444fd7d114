//! Which runs an experiment has.

use super::*;
use store::by_fingerprint;

impl<F: Family> Engine<'_, F> {
    /// The runs of all places, with all that decides their numbers.
    pub(super) fn plan(&mut self, rates: &[Option<f64>]) -> Result<Runs<F>> {
        let plan = Plan::new(self.experiment, self.cases.as_ref(), rates);
        let mut runs = Vec::new();
        for run in plan.runs {
            let planned = self.planned(run, &runs, LEARNED)?;
            runs.push(planned);
        }
        Ok((runs, plan.at))
    }

    /// A run with its settings, data and fingerprints; what is wrong with any of them, or with its folder, is told.
    pub(super) fn planned(
        &mut self,
        run: plan::Run,
        others: &[Planned<F>],
        route: &str,
    ) -> Result<Planned<F>> {
        let experiment = self.experiment;
        let row = &experiment.rows[run.row];
        let folder = self.out.join(&run.name);
        let place_of = |name: &String| others.iter().position(|other| other.plan.name == *name);
        let source = run.from.as_ref().and_then(place_of);
        let folder_of = |source: usize| &others[source].run.folder;
        let from = source.map(folder_of).or(self.asked.from.as_ref());
        let from = from.map(std::path::absolute).transpose();
        let from = from.context("cannot read the working directory")?;
        let base = F::preset(&experiment.task, run.preset, from.as_deref())?;
        let mut layered = settings::layered(&base, self.asked.config.as_deref(), &run.settings);
        if let Some(cases) = &self.cases {
            let tree = cases.tree(run.case);
            layered =
                layered.with_context(|| format!("tree {tree} (branching:height:blocks:width)"));
        }
        let config: F = layered?;
        let task = config.common().task;
        ensure!(
            task == experiment.task,
            "the settings are for task {task}, asked for {}",
            experiment.task
        );
        // Through text like what folders hold: numbers of many digits need not survive it unchanged.
        let settings: Value = serde_json::from_str(&serde_json::to_string(&config)?)?;
        let data = self.data(&config, &settings)?;
        // A run that starts from one which is not trained yet is checked as one from fresh weights.
        let is_there = |from: &PathBuf| Checkpoint::newest(from).is_ok();
        let mut checked = config.clone();
        if source.is_some() && !from.as_ref().is_some_and(is_there) {
            let mut fresh = settings.clone();
            fresh["from"] = Value::Null;
            checked = serde_json::from_value(fresh)?;
        }
        let about = checked.about(&self.data[data].1)?;
        let run_folder = Run { config, folder };
        let is_outdated = self.is_outdated(&run_folder.folder)?;
        if !is_outdated {
            run_folder.state(&about)?;
        }
        let has_begun = begun(&run_folder.folder)?.is_some();
        if let (Some(source), true, false) = (source, has_begun, is_outdated) {
            refuse_older(&others[source].run.folder, &run_folder.folder)?;
        }
        let from = match (source, &from) {
            (Some(source), _) => Some(others[source].fingerprint.clone()),
            (None, Some(from)) => Some(Checkpoint::newest(from)?.0.model_digest()),
            (None, None) => None,
        };
        let origin = |route| Origin {
            family: F::NAME,
            version: F::VERSION,
            backend: &self.backend,
            settings: &settings,
            digest: about.digest.as_deref(),
            route,
            from: from.as_deref(),
        };
        let walks = row.at_random.is_some() && route == LEARNED;
        let at_random = walks.then(|| origin(RANDOM).fingerprint());
        let fingerprint = origin(route).fingerprint();
        if !is_outdated && let Some(measured) = store::measured(&run_folder.folder)? {
            self.known.extend(by_fingerprint(measured.entries));
        }
        Ok(Planned {
            plan: run,
            run: run_folder,
            settings,
            data,
            about,
            source,
            fingerprint,
            at_random,
        })
    }

    /// The number of the data that settings name, which are loaded where they are not.
    pub(super) fn data(&mut self, config: &F, settings: &Value) -> Result<usize> {
        let mut key = settings.clone();
        match self.experiment.task.as_str() {
            // A text takes seconds to read, and is decided by its own settings alone.
            "lm" => key = settings["data"].clone(),
            _ => ["model", "from", "trainer"]
                .iter()
                .for_each(|name| store::remove(&mut key, name)),
        }
        if let Some(at) = self.data.iter().position(|(other, _)| *other == key) {
            return Ok(at);
        }
        let mut data = config.load(None);
        if self.cases.is_some() {
            let text = settings["data"]["source"].as_str().unwrap_or_default();
            data = data.with_context(|| format!("text {text}"));
        }
        self.data.push((key, data?));
        Ok(self.data.len() - 1)
    }
}

/// The trees and texts of a grid.
pub(super) fn cases<F: Family>(
    experiment: &mut Experiment,
    asked: &Asked,
) -> Result<Option<Cases>> {
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
