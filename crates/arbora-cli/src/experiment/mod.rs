//! One experiment engine: which runs, trained as far as they are missing, measured once, in one table.
//!
//! An [`Experiment`] is data, read from a file or made from the arguments of `arbora compare`. [`plan`] says which runs it
//! is made of and where they lie, [`store`] which of their numbers are known, [`engine`] trains and measures the others,
//! and [`results`] puts all of them into a table, a page and JSON.

mod engine;
mod grid;
mod page;
mod plan;
mod results;
pub(crate) mod store;
mod wins;
mod words;

pub use engine::run;
pub use grid::{GridArgs, TREE_CODER};
pub use plan::quoted;

use crate::families::Preset;
use crate::settings;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use plan::Shard;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A table and the runs behind it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    pub name: String,
    /// The heading of its page.
    pub title: String,
    /// The first paragraphs of its page.
    #[serde(default)]
    pub about: String,
    /// What `arbora train` trains.
    pub task: String,
    /// Where settings start.
    #[serde(default)]
    pub preset: Preset,
    /// Settings of every run, as `arbora train --set` takes them.
    #[serde(default)]
    pub settings: Vec<String>,
    /// One run of each row per seed.
    pub seeds: Vec<u64>,
    /// Learning rates that each row chooses from on its first seed.
    #[serde(default)]
    pub rates: Vec<f64>,
    pub rows: Vec<Row>,
    /// The columns of the table, after the title of the row. None: what the family of the task shows.
    #[serde(default)]
    pub columns: Vec<Column>,
    /// How the rows are compared in words.
    pub reading: Option<Reading>,
    /// What others report.
    pub published: Option<Published>,
    /// Whether the README shows the table.
    #[serde(default)]
    pub readme: bool,
    /// For lm: every row is trained in every tree and on every text.
    pub grid: Option<Grid>,
}

/// The runs of one row, one per seed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What its runs' folders are called.
    pub name: String,
    pub title: String,
    pub model: String,
    /// Where its settings start, where that is not the preset of the experiment.
    pub preset: Option<Preset>,
    /// Settings of this row's runs; they win over those of the experiment.
    #[serde(default)]
    pub settings: Vec<String>,
    /// Its own seeds.
    pub seeds: Option<Vec<u64>>,
    /// An earlier row whose run with the same seed this one starts from.
    pub from: Option<String>,
    /// The title of a second line of the table: the same weights walking at random.
    pub at_random: Option<String>,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected {metric, title, digits}, {reached}, parameters, steps, training_seconds or seconds_per_query"
)]
pub enum Column {
    /// What is not measured on test items.
    Plain(Plain),
    /// Step of training at which the held-out accuracy first was this high.
    Reached { reached: f64 },
    /// A number that `arbora eval` measures, times `scale`.
    Metric(Metric),
}

/// A column of a number that is not measured on test items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plain {
    Parameters,
    Steps,
    TrainingSeconds,
    SecondsPerQuery,
}

/// A column of a measurement.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    pub metric: String,
    pub title: String,
    #[serde(default = "one")]
    pub scale: f64,
    pub digits: usize,
}

/// What the sentences under a table compare, seed by seed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// What is compared: a metric, times `scale`.
    pub metric: String,
    #[serde(default = "one")]
    pub scale: f64,
    pub digits: usize,
    pub name: String,
    pub unit: String,
    /// What tokens are, in the plural.
    pub tokens: String,
    /// The line that is compared with the others.
    pub learned: String,
    /// The line that reads every token.
    pub dense: String,
    /// The others, and what they are in a sentence.
    pub others: Vec<(String, String)>,
}

/// Numbers of others, to stand beside ours.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Which of our metrics they compare with.
    pub metric: String,
    /// What the numbers are, with their unit.
    pub quality: String,
    /// What was learned, one column each.
    pub columns: Vec<String>,
    pub rows: Vec<PublishedRow>,
    /// What the marks of the sources say, and what else a reader has to know.
    pub remark: String,
}

/// The published numbers of a model, each with the mark of its source.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedRow {
    pub title: String,
    /// Our row that it stands beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<String>,
    pub numbers: Vec<String>,
}

/// What an experiment on language varies besides its rows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Branching, height, blocks and width of each tree [default: that of the settings].
    #[serde(default)]
    pub trees: Vec<grid::Tree>,
    /// Texts [default: that of the settings].
    #[serde(default)]
    pub corpora: Vec<PathBuf>,
}

/// What a call asks of an experiment.
#[derive(Clone, Debug, Args)]
pub struct Asked {
    /// A JSON file with any part of the settings.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Training steps of every run: the setting trainer.steps.
    #[arg(long)]
    steps: Option<u64>,
    /// One setting of all runs, by its path in config.json. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// For recall and needle: every run starts from the weights of the trained run in this folder.
    #[arg(long, value_name = "RUN")]
    pub from: Option<PathBuf>,
    /// Where to compute: a backend compiled in, or ws://HOST:PORT where `arbora serve` listens.
    #[arg(long)]
    pub backend: Option<String>,
    /// Train every N-th run alone, beginning with the I-th: N processes share an experiment. The table has what is
    /// finished, and says what is open.
    #[arg(long, value_name = "I/N", requires = "out")]
    pub shard: Option<Shard>,
    /// Begin no run after so many hours. The table has what is finished; the same command goes on.
    #[arg(long, value_name = "H", value_parser = hours)]
    pub hours: Option<f64>,
    /// Train nothing: write the table of what is finished.
    #[arg(long, conflicts_with_all = ["shard", "hours", "again"], requires = "out")]
    pub only_table: bool,
    /// Train and write nothing: print how far each run is, and the command that trains it.
    #[arg(long, conflicts_with = "only_table")]
    pub plan: bool,
    /// Train all runs again; old folders are renamed NAME-before-N. Where it is stopped, the next command goes on, with
    /// or without --again, as long as the file `again` is in --out.
    #[arg(long)]
    pub again: bool,
    #[command(flatten)]
    pub grid: GridArgs,
    /// The folder of the runs and the table [default: runs/TASK-compare-N with the first free N].
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Write the table between the marker lines of this Markdown file, and the numbers into the JSON file beside it.
    /// Numbers that are there are not measured again, even where the folders of their runs are gone.
    #[arg(long, value_name = "FILE")]
    pub page: Option<PathBuf>,
    /// Write the table between marker lines of this file too, where the experiment is one for it and nothing is open.
    #[arg(long, value_name = "FILE", requires = "page", hide = true)]
    pub readme: Option<PathBuf>,
    /// What the marker lines name.
    #[arg(
        long,
        value_name = "COMMAND",
        hide = true,
        default_value = "arbora compare"
    )]
    pub made_by: String,
    /// Print the numbers as JSON on standard output.
    #[arg(long)]
    pub json: bool,
    /// The command that makes the table.
    #[arg(skip)]
    pub command: String,
    /// Whether options make a grid, in place of the experiment.
    #[arg(skip)]
    pub is_grid: bool,
    /// Whether this is less than the experiment: other numbers are kept in the store.
    #[arg(skip)]
    pub is_part: bool,
}

impl Asked {
    /// The settings of every run that win over those of the experiment.
    fn all_settings(&self) -> Vec<String> {
        let steps = self.steps.map(|steps| format!("trainer.steps={steps}"));
        let settings = self.settings.iter().cloned();
        steps.into_iter().chain(settings).collect()
    }

    /// Whether settings are given.
    pub fn has_settings(&self) -> bool {
        self.config.is_some() || !self.all_settings().is_empty()
    }
}

fn one() -> f64 {
    1.0
}

/// What the name of a line with the same weights walking at random ends with.
const AT_RANDOM: &str = "-walking-at-random";

/// A line of a table: a row, or its weights walking at random.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    pub name: String,
    pub title: &'a str,
    /// The row, numbered as given.
    pub row: usize,
    pub at_random: bool,
}

/// The experiments behind the pages of `docs/results`, by their names.
pub(crate) const BUNDLED: &[(&str, &str)] = &[
    ("images", include_str!("../../experiments/images.json")),
    ("orders", include_str!("../../experiments/orders.json")),
    ("series", include_str!("../../experiments/series.json")),
    ("gp", include_str!("../../experiments/gp.json")),
    ("copy", include_str!("../../experiments/copy.json")),
    (
        "copy-ablation",
        include_str!("../../experiments/copy-ablation.json"),
    ),
    ("recall", include_str!("../../experiments/recall.json")),
    ("needle", include_str!("../../experiments/needle.json")),
    (
        "recall-ablation",
        include_str!("../../experiments/recall-ablation.json"),
    ),
    (
        "lm-balance",
        include_str!("../../experiments/lm-balance.json"),
    ),
    ("lm", include_str!("../../experiments/lm.json")),
];

impl Row {
    /// A row of one model with nothing else about it.
    pub fn of_model(name: &str) -> Self {
        Self {
            name: name.into(),
            title: name.into(),
            model: name.into(),
            ..Self::default()
        }
    }
}

impl Experiment {
    /// The one of this name that is a part of the program.
    pub fn bundled(name: &str) -> Result<Option<Self>> {
        let found = BUNDLED.iter().find(|(other, _)| *other == name);
        found.map(|(_, text)| Self::parse(text)).transpose()
    }

    /// One of models with nothing else about them, with the words and the published numbers of another.
    pub fn of_models(
        task: &str,
        preset: Preset,
        seeds: Vec<u64>,
        rows: Vec<Row>,
        rates: Vec<f64>,
        like: Option<Self>,
    ) -> Self {
        let like = like.unwrap_or_else(|| Self {
            title: task.into(),
            ..Self::default()
        });
        let named = |line: &str| rows.iter().any(|row| row.name == line);
        let has_lines = |reading: &Reading| named(&reading.learned) && named(&reading.dense);
        Self {
            name: task.into(),
            title: like.title,
            about: like.about,
            task: task.into(),
            preset,
            seeds,
            rates,
            reading: like.reading.filter(has_lines),
            published: like.published,
            rows,
            ..Self::default()
        }
    }

    /// The one that a file holds; of a file that holds none, the key that is wrong is named.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&settings::read_text(path)?).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let experiment: Self =
            serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text))?;
        experiment.check()?;
        Ok(experiment)
    }

    /// Checks that every setting is in its range and goes with the others.
    fn check(&self) -> Result<()> {
        ensure!(!self.rows.is_empty(), "rows: expected at least one");
        for (at, row) in self.rows.iter().enumerate() {
            let (name, seeds) = (&row.name, self.seeds_of(row));
            ensure!(
                !(name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.')),
                "rows[{at}].name: expected the name of a folder, got {name:?}"
            );
            refuse_doubled(&format!("rows[{at}].seeds"), seeds)?;
            ensure!(!seeds.is_empty(), "rows[{at}].seeds: expected at least one");
            let Some(from) = &row.from else {
                continue;
            };
            let Some(earlier) = self.rows[..at].iter().find(|row| row.name == *from) else {
                bail!("rows[{at}].from: expected the name of an earlier row, got {from}");
            };
            let known = self.seeds_of(earlier);
            if let Some(seed) = seeds.iter().find(|seed| !known.contains(seed)) {
                bail!("rows[{at}].from: {from} has no run with seed {seed}");
            }
        }
        let lines = self.lines();
        let mut names = BTreeSet::new();
        for line in &lines {
            let name = line.name.as_str();
            ensure!(names.insert(name), "rows: {name} is named twice");
        }
        if let Some(reading) = &self.reading {
            for (key, line) in [("learned", &reading.learned), ("dense", &reading.dense)] {
                ensure!(
                    names.contains(line.as_str()),
                    "reading.{key}: expected the name of a row, got {line}"
                );
            }
        }
        if let Some(published) = &self.published {
            let expected = published.columns.len();
            for (at, row) in published.rows.iter().enumerate() {
                let got = row.numbers.len();
                ensure!(
                    got == expected,
                    "published.rows[{at}].numbers: expected {expected}, got {got}"
                );
            }
        }
        Ok(())
    }

    /// The seeds of a row.
    pub fn seeds_of<'a>(&'a self, row: &'a Row) -> &'a [u64] {
        row.seeds.as_deref().unwrap_or(&self.seeds)
    }

    /// All lines of the table, in its order.
    pub fn lines(&self) -> Vec<Line<'_>> {
        let mut lines = Vec::new();
        for (row, given) in self.rows.iter().enumerate() {
            let walking = given.at_random.as_ref().map(|title| (title, true));
            for (title, at_random) in [(&given.title, false)].into_iter().chain(walking) {
                let end = if at_random { AT_RANDOM } else { "" };
                lines.push(Line {
                    name: format!("{}{end}", given.name),
                    title,
                    row,
                    at_random,
                });
            }
        }
        lines
    }
}

/// Refuses a list that names something twice.
pub fn refuse_doubled<T: ToString>(
    option: &str,
    values: impl IntoIterator<Item = T>,
) -> Result<()> {
    let mut seen = BTreeSet::new();
    for value in values {
        let value = value.to_string();
        ensure!(!seen.contains(&value), "{option}: {value} is given twice");
        seen.insert(value);
    }
    Ok(())
}

fn hours(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(hours) if hours >= 0.0 => Ok(hours),
        Ok(hours) => Err(format!("expected a number from 0, got {hours}")),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::AnyTask;
    use clap::ValueEnum as _;

    #[test]
    fn experiments_are_called_what_the_command_line_calls_them() {
        for (name, text) in BUNDLED {
            let experiment = Experiment::parse(text).unwrap();
            assert_eq!(experiment.name, *name);
            assert!(AnyTask::from_str(&experiment.task, false).is_ok(), "{name}");
        }
    }
}
