//! From the numbers of single runs to a table, a page and JSON.

mod columns;

use super::grid::Cases;
use super::plan::{Place, Run};
use super::store::{Entry, remove};
use super::wins::{ABOUT, Wins};
use super::{Column, Experiment, Line, Metric, Plain, words};
use crate::statistic::Statistic;
use crate::table::{table, thousands};
use columns::{is_accuracy, scale_of, scientific};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Everything behind a table.
pub struct Results<'a> {
    pub experiment: &'a Experiment,
    /// Trees and texts, where they are varied.
    pub cases: Option<&'a Cases>,
    pub runs: Vec<Shown>,
    /// The run at each place of the table.
    pub at: BTreeMap<Place, usize>,
    /// What the rows chose their learning rates from.
    pub tried: Vec<Shown>,
    /// The learning rate of each row, where it chose one.
    pub rates: Vec<Option<f64>>,
    pub columns: Vec<Column>,
    /// The command that makes the table.
    pub command: String,
    /// What this was run on.
    pub machine: String,
}

/// A run of a table.
pub struct Shown {
    pub run: Run,
    pub settings: Value,
    /// Numbers that follow from settings and data alone.
    pub static_metrics: BTreeMap<String, f64>,
    /// `None` where it is open.
    pub entry: Option<Entry>,
    /// With the same weights walking at random.
    pub at_random: Option<Entry>,
    /// `None` where its folder is not here.
    pub times: Option<Times>,
}

/// What depends on the machine that a run was trained on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// Of all steps, without evaluations.
    pub training_seconds: f64,
    /// Of a forward pass, by its queries.
    pub seconds_per_query: Option<f64>,
    /// Of the steps up to each of the accuracies that the experiment asks for, where they were reached.
    pub reached: Vec<Option<f64>>,
}

impl Shown {
    /// A number; `None` where it was not measured, or the run diverged or is open.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.entry.as_ref()?.metric(name)
    }
}

impl<'a> Results<'a> {
    /// The runs of a row in a case, in the order of their seeds.
    pub fn runs_of(&self, row: usize, case: usize) -> impl Iterator<Item = &Shown> {
        let seeds = self.experiment.seeds_of(&self.experiment.rows[row]);
        let run = move |&seed: &u64| Some(&self.runs[*self.at.get(&Place { row, case, seed })?]);
        seeds.iter().filter_map(run)
    }

    /// The entries of a line in a case, in the order of their seeds.
    fn entries(&self, line: &Line, case: usize) -> Vec<&Entry> {
        let at_random = line.at_random;
        let runs = self.runs_of(line.row, case);
        runs.filter_map(|run| {
            if at_random {
                run.at_random.as_ref()
            } else {
                run.entry.as_ref()
            }
        })
        .collect()
    }

    pub fn statistic(&self, line: &Line, case: usize, metric: &str) -> Option<Statistic> {
        let entries = self.entries(line, case).into_iter();
        Statistic::of(entries.filter_map(|entry| entry.metric(metric)))
    }

    fn all_entries(&self) -> impl Iterator<Item = &Entry> {
        let runs = self.runs.iter();
        runs.flat_map(|run| run.entry.iter().chain(&run.at_random))
    }

    /// The folders of runs that are not finished, and of runs whose numbers ended.
    pub fn open(&self) -> [Vec<&str>; 2] {
        let [mut open, mut diverged] = [Vec::new(), Vec::new()];
        for run in &self.runs {
            let walks = self.experiment.rows[run.run.row].at_random.is_some();
            if run.entry.is_none() || walks && run.at_random.is_none() {
                open.push(run.run.name.as_str());
            }
            if run.entry.as_ref().is_some_and(|one| one.metrics.is_none()) {
                diverged.push(run.run.name.as_str());
            }
        }
        for tried in self.tried.iter().filter(|tried| tried.entry.is_none()) {
            if !open.contains(&tried.run.name.as_str()) {
                open.push(&tried.run.name);
            }
        }
        [open, diverged]
    }

    /// The tables, for a person at a terminal.
    pub fn text(&self) -> String {
        let tables = self.tables().into_iter().map(|(_, table)| table);
        let mut text = tables.collect::<Vec<_>>().join("\n");
        for part in [self.remarks(), self.legend()] {
            text += &format!("\n{part}");
        }
        if let Some((published, remark)) = self.published() {
            text += &format!("\nPublished:\n{published}{remark}\n");
        }
        text.trim_end().to_owned()
    }

    /// The generated part of a page.
    pub fn page(&self) -> String {
        let mut parts = vec![
            format!("```sh\n{}\n```", self.command),
            self.measured(),
            self.remarks(),
        ];
        for (title, table) in self.tables() {
            parts.push(match title {
                "" => table,
                "Wins" => format!("## {title}\n\n{ABOUT}\n\n{table}"),
                _ => format!("## {title}\n\n{table}"),
            });
        }
        parts.push(self.legend());
        let lines = self.experiment.lines();
        let line = |name: &str| lines.iter().find(|line| line.name == name);
        if let Some(reading) = &self.experiment.reading {
            let said = words::words(reading, |name| {
                line(name).map_or(Vec::new(), |line| self.entries(line, 0))
            });
            if !said.is_empty() {
                parts.push(format!("## What is seen\n\n{said}"));
            }
        }
        if !self.tried.is_empty() {
            parts.push(format!(
                "## Learning rates\n\nEvery row takes the rate whose run on its first seed has the highest \
                 log-likelihood on the items that the training evaluates with. They are among the test items.\n\n{}",
                table(&self.tried_rows(), 1)
            ));
        }
        let several = |line: &Line| self.entries(line, 0).len() > 1;
        if self.cases.is_none() && lines.iter().any(several) {
            let single = table(&self.single_rows(), 1);
            parts.push(format!("## Single runs\n\n{single}"));
        }
        if let Some((published, remark)) = self.published() {
            parts.push(format!("## Published numbers\n\n{published}\n{remark}"));
        }
        for (rows, settings) in self.settings() {
            let rows = rows.map_or("all runs".into(), |rows| rows.join(", "));
            parts.push(format!(
                "## Settings of {rows}\n\n```json\n{settings:#}\n```"
            ));
        }
        let parts = parts.iter().map(|part| part.trim());
        let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
        parts.join("\n\n") + "\n"
    }

    /// The README's table.
    ///
    /// - page: where the others are
    pub fn readme(&self, page: &str) -> String {
        let mut seeds = self.experiment.lines().into_iter();
        let seeds = seeds.next().map_or(0, |line| self.entries(&line, 0).len());
        let seeds = match seeds {
            1 => "1 seed".to_owned(),
            seeds => format!("{seeds} seeds (mean ± standard deviation)"),
        };
        let steps = self.common_steps().map(thousands);
        let steps = steps.map_or(String::new(), |steps| format!("{steps} training steps, "));
        let (items, of) = self.items();
        format!(
            "{}\n{steps}{seeds}, {} {of} of the bundled sample. Made by `{}`; single runs and settings: [{page}]({page}).\n",
            table(&self.rows(), 1),
            thousands(items),
            self.command
        )
    }

    /// The steps of a run, where all have as many.
    fn common_steps(&self) -> Option<u64> {
        let steps = self.all_entries().next()?.steps;
        let mut entries = self.all_entries();
        let is_common = entries.all(|entry| entry.steps == steps);
        is_common.then_some(steps)
    }

    fn items(&self) -> (u64, &str) {
        let first = self.all_entries().next();
        first.map_or((0, ""), |entry| (entry.items, entry.of.as_str()))
    }

    fn distinct(&self, name: fn(&Entry) -> &str) -> Vec<&str> {
        let names: BTreeSet<&str> = self.all_entries().map(name).collect();
        names.into_iter().collect()
    }

    /// How much was trained and measured, and on what.
    fn measured(&self) -> String {
        let steps = match self.common_steps() {
            Some(steps) => format!("{} steps per run, measured", thousands(steps)),
            None => "Measured".to_owned(),
        };
        let (items, what) = self.items();
        let seeds: BTreeSet<u64> = self.all_entries().map(|entry| entry.seed).collect();
        let several = if seeds.len() > 1 { "s" } else { "" };
        let numbers: Vec<String> = seeds.iter().map(u64::to_string).collect();
        let commits = self.distinct(|entry| &entry.commit);
        let mut text = format!(
            "{steps} on {} {what}, seed{several} {}, backend {}. Commit{} {}.",
            thousands(items),
            numbers.join(", "),
            self.distinct(|entry| &entry.backend).join(", "),
            if commits.len() > 1 { "s" } else { "" },
            commits.join(", ")
        );
        if seeds.len() > 1 {
            text += " Means over seeds with the sample standard deviation.";
        }
        if self.cases.is_some() {
            text += " Losses are in nats per token. k is the branching factor, h the height. Active parameters are \
                     those that one sequence meets.";
        }
        if self.shows_times() {
            text += &format!(
                " Times are those of the runs that lie on this machine, {}.",
                self.machine
            );
        }
        text
    }

    fn shows_times(&self) -> bool {
        use Plain::{SecondsPerQuery, TrainingSeconds};
        let is_time = |column: &Column| {
            let is_reached = matches!(column, Column::Reached { .. });
            is_reached || matches!(column, Column::Plain(TrainingSeconds | SecondsPerQuery))
        };
        self.columns.iter().any(is_time) && self.runs.iter().any(|run| run.times.is_some())
    }

    /// What cannot be seen in the tables: what is open, what diverged, and what won all.
    fn remarks(&self) -> String {
        let [open, diverged] = self.open();
        let all = self.runs.len();
        let mut text = match open.len() {
            0 => format!("All {all} runs are finished.\n"),
            count => format!(
                "{count} of {all} runs are open, and not in this table: {}.\n",
                open.join(", ")
            ),
        };
        if !diverged.is_empty() {
            text += &format!(
                "Runs that diverged (their loss was no longer a number): {}. They lose every comparison, and where \
                 both sides diverged the tree has not won. Means and differences of losses are without them.\n",
                diverged.join(", ")
            );
        }
        if let Some(wins) = Wins::new(self)
            && self.experiment.rows.len() > 1
        {
            let wins = wins.of_all().text();
            text += &format!("tree-coder has the lowest loss of all models in {wins} cases.\n");
        }
        text
    }

    /// What columns mean where their titles do not say it.
    fn legend(&self) -> String {
        let mut text = String::new();
        let has = |wanted: fn(&Column) -> bool| self.columns.iter().any(wanted);
        if has(|column| matches!(column, Column::Reached { .. })) {
            text += "A step says when a run first had the accuracy in one of its evaluations (every \
                     `trainer.eval_every` steps on `eval_items` items, in each run's settings). Minutes are those of \
                     the training steps alone, where the run lies on this machine; other work on it is in them.\n";
        }
        let automatic = self.experiment.columns.is_empty() && self.cases.is_none();
        let leaves = has(
            |column| matches!(column, Column::Metric(metric) if metric.metric == "effective_leaves"),
        );
        if automatic && leaves {
            text += "Effective leaves: 1 / cost ratio, the share of all pairs of a query and a key that are in one leaf. \
                     tree-coarse forms no pairs: there it says how evenly tokens spread.\n";
        }
        if has(|column| *column == Column::Plain(Plain::SecondsPerQuery)) {
            text += &format!(
                "Time per query: wall clock of the forward pass over test batches on this machine, context included, \
                 by the number of queries; the median over at most {} batches. Training: wall clock of the steps, \
                 without evaluations. Whatever else the machine did is in both.\n",
                super::engine::TIMED_BATCHES
            );
        }
        text
    }

    /// The table of an experiment without cases.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let rows = &self.experiment.rows;
        // Rows of one model: their titles say what is varied.
        let models = rows.iter().all(|row| row.model == row.name);
        let mut head = vec![if models { "model" } else { "" }.to_owned()];
        let rates = !self.tried.is_empty();
        head.extend(rates.then(|| "learning rate".into()));
        head.extend(self.columns.iter().map(Column::title));
        let mut table = vec![head];
        for line in self.experiment.lines() {
            let entries = self.entries(&line, 0);
            if entries.is_empty() {
                continue;
            }
            let mut row = vec![line.title.to_owned()];
            if rates {
                row.push(scientific(self.rates[line.row]));
            }
            let cell = |column| self.cell(column, &line, &entries);
            row.extend(self.columns.iter().map(cell));
            // What no number shows.
            let diverged = entries.iter().filter(|entry| entry.metrics.is_none());
            match diverged.count() {
                0 => {}
                count => row[0] += &format!(" ({count} diverged)"),
            }
            table.push(row);
        }
        table
    }

    fn cell(&self, column: &Column, line: &Line, entries: &[&Entry]) -> String {
        let text = |numbers: Option<Statistic>, scale, digits| {
            numbers.map_or(String::new(), |all| all.scaled(scale).text(digits))
        };
        let times = |number: fn(&Times) -> Option<f64>, scale, digits| {
            let runs = self.runs_of(line.row, 0).filter(|_| !line.at_random);
            let numbers = runs.filter_map(|run| number(run.times.as_ref()?));
            text(Statistic::of(numbers), scale, digits)
        };
        match column {
            Column::Metric(metric) => {
                let numbers = self.statistic(line, 0, &metric.metric);
                text(numbers, metric.scale, metric.digits)
            }
            Column::Plain(Plain::Parameters) => {
                let first = entries.first();
                first.map_or(String::new(), |entry| thousands(entry.parameters))
            }
            Column::Plain(Plain::Steps) => {
                let steps: BTreeSet<u64> = entries.iter().map(|entry| entry.steps).collect();
                let steps: Vec<String> = steps.into_iter().map(thousands).collect();
                steps.join("; ")
            }
            Column::Plain(Plain::TrainingSeconds) => {
                times(|times| Some(times.training_seconds), 1.0, 1)
            }
            Column::Plain(Plain::SecondsPerQuery) => times(|times| times.seconds_per_query, 1e6, 1),
            Column::Reached { reached } => {
                let runs = self.runs_of(line.row, 0).filter(|_| !line.at_random);
                let cells = runs.filter_map(|run| self.reached(run, *reached));
                cells.collect::<Vec<_>>().join("; ")
            }
        }
    }

    fn reached(&self, run: &Shown, accuracy: f64) -> Option<String> {
        let entry = run.entry.as_ref()?;
        let mut asked = entry.reached.iter();
        let at = asked.position(|reached| reached.accuracy == accuracy)?;
        let minutes = run.times.as_ref().and_then(|times| *times.reached.get(at)?);
        let minutes = minutes.map_or(String::new(), |seconds| {
            format!(", {:.1} min", seconds / 60.0)
        });
        Some(match entry.reached[at].step {
            Some(step) => format!("step {}{minutes}", thousands(step)),
            None => format!("not within {} steps", thousands(entry.steps)),
        })
    }

    /// A row per run, with one digit more.
    fn single_rows(&self) -> Vec<Vec<String>> {
        let metrics = self.columns.iter().filter_map(|column| match column {
            Column::Metric(metric) => Some(metric),
            _ => None,
        });
        let metrics: Vec<&Metric> = metrics.collect();
        let mut head = vec![String::new(), "seed".into()];
        head.extend(metrics.iter().map(|metric| metric.title.clone()));
        let mut rows = vec![head];
        for line in self.experiment.lines() {
            for entry in self.entries(&line, 0) {
                let mut row = vec![line.title.to_owned(), entry.seed.to_string()];
                row.extend(metrics.iter().map(|metric| {
                    let number = entry.metric(&metric.metric);
                    number.map_or(String::new(), |number| {
                        format!("{:.*}", metric.digits + 1, metric.scale * number)
                    })
                }));
                rows.push(row);
            }
        }
        rows
    }

    fn tried_rows(&self) -> Vec<Vec<String>> {
        let head = ["model", "learning rate", "log-lik"].map(String::from);
        let mut rows = vec![head.to_vec()];
        for tried in &self.tried {
            let title = self.experiment.rows[tried.run.row].title.clone();
            let quality = match (tried.metric("log_likelihood"), &tried.entry) {
                (Some(number), _) => format!("{number:.4}"),
                (None, Some(_)) => "diverged".into(),
                (None, None) => "open".into(),
            };
            rows.push(vec![title, scientific(tried.run.rate), quality]);
        }
        rows
    }

    /// Published numbers beside ours, and what to know about them.
    fn published(&self) -> Option<(String, &str)> {
        let published = self.experiment.published.as_ref()?;
        let lines = self.experiment.lines();
        let digits = if is_accuracy(&published.metric) { 2 } else { 3 };
        let ours = published.rows.iter().map(|row| {
            let is_its = |line: &&Line| Some(&line.name) == row.row.as_ref();
            let line = lines.iter().find(is_its)?;
            let ours = self.statistic(line, 0, &published.metric)?;
            Some(ours.scaled(scale_of(&published.metric)).text(digits))
        });
        let ours: Vec<Option<String>> = ours.collect();
        let has_ours = ours.iter().any(Option::is_some);
        let mut head = vec![published.quality.clone()];
        head.extend(has_ours.then(|| "ours".into()));
        head.extend(published.columns.iter().cloned());
        let mut rows = vec![head];
        for (row, ours) in published.rows.iter().zip(ours) {
            let mut cells = vec![row.title.clone()];
            cells.extend(has_ours.then(|| ours.unwrap_or_default()));
            cells.extend(row.numbers.iter().cloned());
            rows.push(cells);
        }
        Some((table(&rows, 1), &published.remark))
    }

    /// The settings that all runs of a preset have in common, which is all but what is varied; with the rows, where
    /// there are several presets.
    pub fn settings(&self) -> Vec<(Option<Vec<&str>>, Value)> {
        let mut groups: Vec<(_, Vec<&str>, Value)> = Vec::new();
        for shown in &self.runs {
            let row = &self.experiment.rows[shown.run.row];
            // A preset has other settings for runs that start from trained weights.
            let start = (shown.run.preset, shown.run.from.is_some());
            match groups.iter_mut().find(|group| group.0 == start) {
                Some((_, rows, settings)) => {
                    keep_common(settings, &shown.settings);
                    if !rows.contains(&row.name.as_str()) {
                        rows.push(&row.name);
                    }
                }
                None => groups.push((start, vec![&row.name], shown.settings.clone())),
            }
        }
        let several = groups.len() > 1;
        let groups = groups.into_iter().map(|(_, rows, mut settings)| {
            for key in ["model", "from", "trainer.seed"] {
                remove(&mut settings, key);
            }
            (several.then_some(rows), settings)
        });
        groups.collect()
    }

    /// The numbers, for a program: the entries of a store, and what follows from them.
    pub fn json(&self) -> Value {
        let [open, diverged] = self.open();
        let lines = self.experiment.lines();
        let mut summary = Vec::new();
        for case in 0..self.cases.map_or(1, Cases::count) {
            summary.extend(lines.iter().map(|line| self.summary(line, case)));
        }
        let backends = self.distinct(|entry| &entry.backend);
        let times = self.runs.iter().filter_map(|run| {
            let times = run.times.as_ref()?;
            Some(json!({
                "run": run.run.name, "training_seconds": times.training_seconds,
                "seconds_per_query": times.seconds_per_query,
            }))
        });
        let mut json = json!({
            "name": self.experiment.name, "task": self.experiment.task, "command": self.command,
            "backends": backends, "count": self.runs.len(), "open": open, "diverged": diverged, "summary": summary,
            "settings": self.settings().into_iter().map(|(rows, settings)| {
                json!({ "rows": rows, "settings": settings })
            }).collect::<Vec<_>>(),
            "published": self.experiment.published,
            "runs": self.all_entries().collect::<Vec<_>>(),
        });
        let times: Vec<Value> = times.collect();
        if !times.is_empty() {
            json["times"] = json!({ "machine": self.machine, "runs": times });
        }
        if let Some(wins) = Wins::new(self) {
            json["wins"] = wins.json();
            json["cases"] = wins.cases_json();
            json["lowest_of_all"] = wins.of_all().json();
        }
        json
    }

    fn summary(&self, line: &Line, case: usize) -> Value {
        let entries = self.entries(line, case);
        let names = entries.iter().filter_map(|entry| entry.metrics.as_ref());
        let names: BTreeSet<&String> = names.flat_map(BTreeMap::keys).collect();
        let metrics = names
            .into_iter()
            .map(|name| (name.clone(), json!(self.statistic(line, case, name))));
        let mut summary = json!({
            "line": line.name, "title": line.title, "seeds": entries.iter().map(|entry| entry.seed).collect::<Vec<_>>(),
            "parameters": entries.first().map(|entry| entry.parameters),
            "metrics": metrics.collect::<Map<_, _>>(),
        });
        let runs = self.runs_of(line.row, case);
        summary["runs"] = runs.map(|run| run.run.name.as_str()).collect();
        if let Some(cases) = self.cases {
            summary["case"] = cases.case(case).into();
        }
        if let Some(rate) = self.rates[line.row] {
            let tried = self.tried.iter().filter(|tried| tried.run.row == line.row);
            let tried = tried.map(|tried| {
                json!({ "learning_rate": tried.run.rate, "log_likelihood": tried.metric("log_likelihood") })
            });
            summary["learning_rate"] = json!(rate);
            summary["learning_rates_tried"] = tried.collect();
        }
        summary
    }
}

/// Leaves in settings what others say too.
fn keep_common(settings: &mut Value, others: &Value) {
    let (Value::Object(own), Value::Object(others)) = (settings, others) else {
        return;
    };
    own.retain(|key, value| match others.get(key) {
        Some(other) if value.is_object() && other.is_object() => {
            keep_common(value, other);
            // An object in which nothing is common says nothing.
            !value.as_object().is_some_and(Map::is_empty)
        }
        other => other == Some(value),
    });
}

#[cfg(test)]
pub mod tests {
    use super::super::plan::Plan;
    use super::super::store::tests::entry;
    use super::super::store::{Reached, finite};
    use super::columns::title;
    use super::*;

    /// The entry of an image model.
    pub fn run(line: &str, seed: u64, log_likelihood: f64) -> Entry {
        let metrics = [
            ("log_likelihood", log_likelihood),
            ("accuracy", 0.995),
            ("tokens_percent", 10.0),
            ("nodes_selected", 8.0),
            ("nodes_read", 13.0),
            ("context_tokens", 80.0),
        ];
        entry(line, seed, &metrics)
    }

    const AT_RANDOM: &str = "retreever-walking-at-random";

    pub fn runs() -> Vec<Entry> {
        vec![
            run("retreever", 0, 0.5),
            run("cross-attention", 0, 0.75),
            run(AT_RANDOM, 0, 0.25),
            run("retreever", 1, 1.0),
            run("cross-attention", 1, 1.5),
            run(AT_RANDOM, 1, 1.25),
        ]
    }

    /// The results of an experiment of which these runs are finished.
    fn results(experiment: &Experiment, entries: Vec<Entry>) -> Results<'_> {
        let rates = vec![None; experiment.rows.len()];
        let plan = Plan::new(experiment, None, &rates);
        let find = |line: String, seed| {
            let mut found = entries.iter();
            found
                .find(|entry| entry.line == line && entry.seed == seed)
                .cloned()
        };
        let shown = plan.runs.into_iter().map(|run| {
            let row = &experiment.rows[run.row];
            Shown {
                settings: json!({"order": row.name, "heads": 4, "trainer": {"steps": 10, "seed": run.seed}}),
                static_metrics: BTreeMap::new(),
                entry: find(row.name.clone(), run.seed),
                at_random: find(format!("{}{}", row.name, super::super::AT_RANDOM), run.seed),
                times: (row.name == "retreever" || row.name == "ours-64").then(|| Times {
                    training_seconds: 60.0 + run.seed as f64,
                    seconds_per_query: None,
                    reached: vec![Some(75.0), None],
                }),
                run,
            }
        });
        Results {
            experiment,
            cases: None,
            runs: shown.collect(),
            at: plan.at,
            tried: Vec::new(),
            rates,
            columns: experiment.columns.clone(),
            command: "cargo xtask reproduce images".into(),
            machine: "some CPU with 2 threads".into(),
        }
    }

    fn bundled(name: &str) -> Experiment {
        Experiment::bundled(name).unwrap().unwrap()
    }

    /// All rows of every table have as many cells.
    fn assert_even(text: &str) {
        let mut expected = None;
        for line in text.lines() {
            let cells = line.matches('|').count();
            match (line.starts_with('|'), expected) {
                (false, _) => expected = None,
                (true, None) => expected = Some(cells),
                (true, Some(expected)) => assert_eq!(cells, expected, "{line}"),
            }
        }
    }

    /// Less the spaces that make columns line up.
    fn packed(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn summaries_group_by_line_in_the_order_of_the_table() {
        let experiment = bundled("images");
        let json = results(&experiment, runs()).json();
        let summary = json["summary"].as_array().unwrap();
        let lines: Vec<_> = summary
            .iter()
            .map(|line| line["line"].as_str().unwrap())
            .collect();
        assert_eq!(lines[..3], ["cross-attention", "retreever", AT_RANDOM]);
        assert_eq!(summary[0]["metrics"]["log_likelihood"]["mean"], 1.125);
        assert_eq!(summary[1]["metrics"]["log_likelihood"]["mean"], 0.75);
        assert_eq!(summary[1]["seeds"], json!([0, 1]));
        // Times are beside the entries and in none of them.
        assert!(
            json["times"]["runs"][0]["training_seconds"]
                .as_f64()
                .unwrap()
                >= 60.0
        );
        assert!(json["runs"][0].get("training_seconds").is_none());
    }

    #[test]
    fn tables_have_as_many_cells_in_every_row() {
        let experiment = bundled("images");
        let results = results(&experiment, runs());
        for text in [
            results.page(),
            results.readme("docs/results/images.md"),
            results.text(),
        ] {
            assert_even(&text);
            assert!(text.contains("1,234,567"), "{text}");
        }
        let readme = results.readme("docs/results/images.md");
        assert!(
            readme.contains("2 seeds (mean ± standard deviation)"),
            "{readme}"
        );
    }

    #[test]
    fn runs_of_classes_say_when_they_were_how_good() {
        let experiment = bundled("copy");
        let reached = |accuracy, step| Reached { accuracy, step };
        let mut quick = run("ours-64", 0, -0.01);
        quick.reached = vec![reached(0.99, Some(5)), reached(0.999, None)];
        let mut slow = run("published-64", 0, -0.02);
        slow.steps = 1000;
        slow.reached = vec![reached(0.99, None), reached(0.999, None)];
        let results = results(&experiment, vec![quick, slow]);
        let text = results.page();
        assert_even(&text);
        assert!(
            !text.contains("steps per run"),
            "the rows have different steps"
        );
        assert!(
            !text.contains("## Single runs"),
            "the table has them already"
        );
        let text = packed(&text);
        for part in [
            "| | steps | held-out accuracy, % |",
            "99 % accuracy at | 99.9 % accuracy at |",
            "| 99.50 |",
            "| step 5, 1.2 min | not within 10 steps |",
            "| not within 1,000 steps | not within 1,000 steps |",
            "5 of 7 runs are open, and not in this table: ours-128-seed0, ",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn unfinished_runs_are_named() {
        let experiment = bundled("copy");
        let done = [
            "ours-64",
            "ours-256",
            "ours-512",
            "published-64",
            "published-128",
        ];
        let mut entries: Vec<Entry> = done.iter().map(|line| run(line, 0, 0.5)).collect();
        entries[3].metrics = finite([("log_likelihood".to_owned(), f64::NAN)].into());
        let results = results(&experiment, entries);
        let [open, diverged] = results.open();
        assert_eq!(open, ["ours-128-seed0", "published-256-seed0"]);
        assert_eq!(diverged, ["published-64-seed0"]);
    }

    #[test]
    fn one_table_takes_runs_that_differ_in_what_it_compares_alone() {
        let experiment = bundled("orders");
        let results = results(&experiment, Vec::new());
        // What every run has is said once; what rows vary is in their titles.
        assert_eq!(
            results.settings(),
            [(None, json!({"heads": 4, "trainer": {"steps": 10}}))]
        );
        let mut other = results;
        other.runs[1].settings["trainer"]["steps"] = json!(20);
        assert_eq!(
            other.settings(),
            [(None, json!({"heads": 4, "trainer": {}}))]
        );
    }

    #[test]
    fn the_page_takes_the_table_without_its_heading() {
        let experiment = bundled("orders");
        let text = results(&experiment, vec![run("axis", 0, 0.5)]).page();
        assert!(
            text.starts_with("```sh\ncargo xtask reproduce images\n```\n\n10 steps per run"),
            "{text}"
        );
        assert!(!text.lines().any(|line| line.starts_with("# ")), "{text}");
        assert!(text.ends_with("```\n"), "{text}");
    }

    #[test]
    fn kinds_of_items_have_columns_of_their_own() {
        assert_eq!(title("accuracy"), "accuracy, %");
        assert_eq!(title("log_likelihood"), "log-lik");
        assert_eq!(title("log_likelihood_matern"), "log-lik, matern");
    }
}
