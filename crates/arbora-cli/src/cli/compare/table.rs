//! From the numbers of single runs to a table.

use super::published::{self, SOURCES};
use crate::families::Column;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The numbers of one run.
pub struct Run {
    pub seed: u64,
    pub folder: PathBuf,
    pub parameters: usize,
    /// Over the test items, by name.
    pub metrics: BTreeMap<String, f64>,
    pub query_seconds: f64,
    pub training_seconds: f64,
}

/// A learning rate that was tried.
pub struct Tried {
    pub learning_rate: f64,
    /// On the problems that a training evaluates with; `None` if the training diverged.
    pub log_likelihood: Option<f64>,
}

/// A model over all seeds.
pub struct ModelResults {
    pub model: &'static str,
    /// The one of its runs.
    pub learning_rate: f64,
    /// What it was chosen from; empty where there was no choice.
    pub tried: Vec<Tried>,
    pub runs: Vec<Run>,
}

/// Everything behind a table.
pub struct Comparison {
    pub task: &'static str,
    /// Items per training step.
    pub batch: usize,
    /// Test items that were measured.
    pub measured: usize,
    /// Training steps of a run.
    pub steps: u64,
    /// What all runs share; model, seed and learning rate are those of the runs.
    pub settings: Value,
    /// What stands beside the qualities.
    pub columns: &'static [Column],
    /// What a test item is, in the plural.
    pub items: &'static str,
    /// Test items that there are, `None` where they are drawn.
    pub count: Option<usize>,
    pub backend: String,
    pub threads: usize,
    pub seeds: Vec<u64>,
    pub models: Vec<ModelResults>,
}

/// A mean over seeds with the sample standard deviation, which one seed alone does not have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistic {
    mean: f64,
    sd: Option<f64>,
}

impl Statistic {
    /// `None` of no numbers.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let numbers: Vec<f64> = numbers.into_iter().collect();
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
        (!numbers.is_empty()).then(|| Self {
            mean,
            sd: (numbers.len() > 1).then(|| (squares / (count - 1.0)).sqrt()),
        })
    }

    pub fn text(&self, digits: usize) -> String {
        match self.sd {
            Some(sd) => format!("{:.digits$} ± {sd:.digits$}", self.mean),
            None => format!("{:.digits$}", self.mean),
        }
    }

    /// With the sign of the mean, also above zero.
    pub fn signed(&self, digits: usize) -> String {
        match self.sd {
            Some(sd) => format!("{:+.digits$} ± {sd:.digits$}", self.mean),
            None => format!("{:+.digits$}", self.mean),
        }
    }

    pub fn json(&self) -> Value {
        json!({ "mean": self.mean, "sd": self.sd })
    }
}

impl ModelResults {
    fn over(&self, number: impl Fn(&Run) -> Option<f64>) -> Option<Statistic> {
        Statistic::of(self.runs.iter().filter_map(number))
    }

    fn metric(&self, name: &str) -> Option<Statistic> {
        self.over(|run| run.metrics.get(name).copied())
    }

    /// A metric as a table shows it: accuracies in percent.
    fn cell(&self, name: &str, digits: usize) -> String {
        let scale = if is_accuracy(name) { 100.0 } else { 1.0 };
        self.over(|run| Some(scale * run.metrics.get(name)?))
            .map(|statistic| statistic.text(digits))
            .unwrap_or_default()
    }

    fn quality(&self, name: &str) -> String {
        self.cell(name, if is_accuracy(name) { 2 } else { 3 })
    }

    fn names(&self) -> BTreeSet<&str> {
        let runs = self.runs.iter();
        runs.flat_map(|run| run.metrics.keys().map(String::as_str))
            .collect()
    }

    fn json(&self) -> Value {
        let metrics: BTreeMap<&str, Value> = self
            .names()
            .into_iter()
            .filter_map(|name| Some((name, self.metric(name)?.json())))
            .collect();
        let number = |number: fn(&Run) -> f64| {
            let statistic = self.over(|run| Some(number(run)));
            statistic.as_ref().map(Statistic::json)
        };
        let tried = |tried: &Tried| {
            json!({
                "learning_rate": tried.learning_rate,
                "log_likelihood": tried.log_likelihood,
            })
        };
        let run = |run: &Run| {
            json!({
                "seed": run.seed,
                "run": run.folder.to_string_lossy(),
                "metrics": run.metrics,
                "seconds_per_query": run.query_seconds,
                "training_seconds": run.training_seconds,
            })
        };
        json!({
            "model": self.model,
            "learning_rate": self.learning_rate,
            "learning_rates_tried": self.tried.iter().map(tried).collect::<Vec<_>>(),
            "parameters": self.runs.first().map(|run| run.parameters),
            "metrics": metrics,
            "seconds_per_query": number(|run| run.query_seconds),
            "training_seconds": number(|run| run.training_seconds),
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
        })
    }
}

fn is_accuracy(name: &str) -> bool {
    name.starts_with("accuracy")
}

/// The title of a quality's column: what is measured, and on which kind of items.
fn title(name: &str) -> String {
    for (metric, text) in [("accuracy", "accuracy, %"), ("log_likelihood", "log-lik")] {
        if let Some(kind) = name.strip_prefix(metric) {
            return match kind.strip_prefix('_') {
                Some(kind) => format!("{text}, {kind}"),
                None => text.into(),
            };
        }
    }
    name.into()
}

impl Comparison {
    /// What models are judged by, accuracies first, as far as any of them has it.
    fn qualities(&self) -> Vec<&str> {
        let names: BTreeSet<&str> = self.models.iter().flat_map(ModelResults::names).collect();
        let named = |metric| {
            let names = names.iter().copied();
            names.filter(move |name: &&str| name.starts_with(metric))
        };
        named("accuracy").chain(named("log_likelihood")).collect()
    }

    /// The numbers, for a program.
    pub fn json(&self) -> Value {
        json!({
            "task": self.task,
            "seeds": self.seeds,
            "backend": self.backend,
            "threads": self.threads,
            "models": self.models.iter().map(ModelResults::json).collect::<Vec<_>>(),
            "published": self.published_json(),
            "settings": self.shared_settings(),
        })
    }

    /// The tables, for a person at a terminal.
    pub fn text(&self) -> String {
        let mut text = table(&self.rows());
        if let Some(legend) = self.legend() {
            text += &format!("\n{legend}\n");
        }
        if let Some((published, remark)) = self.published() {
            text += &format!("\nPublished:\n{}{remark}\n", table(&published));
        }
        text.trim_end().to_owned()
    }

    /// The tables and all that they stand on, for a reader.
    pub fn page(&self) -> String {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let measured = self.measured;
        let items = match self.count == Some(measured) {
            true => format!("all {measured} {}", self.items),
            false => format!("{measured} {}", self.items),
        };
        let mut page = format!(
            "# {}: models with one budget\n\n{} training steps of {} items each, seeds {}, backend \
             {}, {} threads. Measured on {items}. Means over seeds{}.\n\n{}\n\
             Time per query: wall clock of the forward pass over test batches on this machine, \
             context included, by the number of queries; the median over at most {} batches. \
             Training: wall clock of the steps, without evaluations. Whatever else the machine did \
             is in both.\n",
            self.task,
            self.steps,
            self.batch,
            seeds.join(", "),
            self.backend,
            self.threads,
            match self.seeds.len() {
                1 => "",
                _ => " with the sample standard deviation",
            },
            table(&self.rows()),
            super::TIMED_BATCHES
        );
        if let Some(legend) = self.legend() {
            page += &format!("\n{legend}\n");
        }
        if self.models.iter().any(|model| !model.tried.is_empty()) {
            page += &format!(
                "\n## Learning rates\n\nEvery model takes the rate whose run on seed {} has the \
                 highest log-likelihood on the items that the training evaluates with. They are \
                 among the test items.\n\n{}",
                self.seeds[0],
                table(&self.tried())
            );
        }
        if let Some((published, remark)) = self.published() {
            page += &format!("\n## Published\n\n{}\n{remark}\n", table(&published));
        }
        page + &format!(
            "\n## Settings of all runs\n\n```json\n{:#}\n```\n",
            self.shared_settings()
        )
    }

    /// What a column means where its title does not say it.
    fn legend(&self) -> Option<&'static str> {
        let mut columns = self.columns.iter();
        columns
            .any(|column| column.metric == "effective_leaves")
            .then_some(
                "Effective leaves: 1 / cost ratio, the share of all pairs of a query and a key that are in one \
                 leaf. tree-coarse forms no pairs: there it says how evenly tokens spread.",
            )
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let qualities = self.qualities();
        let rates = self.models.iter().any(|model| !model.tried.is_empty());
        let mut head = vec!["model".to_owned()];
        if rates {
            head.push("learning rate".into());
        }
        head.extend(qualities.iter().map(|name| title(name)));
        head.extend(self.columns.iter().map(|column| column.title.to_owned()));
        head.extend(["µs per query", "parameters", "training, s"].map(String::from));
        let mut rows = vec![head];
        for model in &self.models {
            let mut row = vec![model.model.to_owned()];
            if rates {
                row.push(format!("{:e}", model.learning_rate));
            }
            row.extend(qualities.iter().map(|name| model.quality(name)));
            let columns = self.columns.iter();
            row.extend(columns.map(|column| model.cell(column.metric, column.digits)));
            let number = |number: fn(&Run) -> f64, digits| {
                let statistic = model.over(|run| Some(number(run)));
                statistic.map_or(String::new(), |statistic| statistic.text(digits))
            };
            row.push(number(|run| 1e6 * run.query_seconds, 1));
            row.push(number_text(model.runs.first().map(|run| run.parameters)));
            row.push(number(|run| run.training_seconds, 1));
            rows.push(row);
        }
        rows
    }

    fn tried(&self) -> Vec<Vec<String>> {
        let mut rows = vec![vec![
            "model".to_owned(),
            "learning rate".into(),
            "log-lik".into(),
        ]];
        for model in &self.models {
            for tried in &model.tried {
                let number = tried.log_likelihood;
                rows.push(vec![
                    model.model.into(),
                    format!("{:e}", tried.learning_rate),
                    number.map_or("diverged".into(), |number| format!("{number:.4}")),
                ]);
            }
        }
        rows
    }

    /// Published numbers beside ours, and what to know about them.
    fn published(&self) -> Option<(Vec<Vec<String>>, String)> {
        let published = published::of(self.task)?;
        let mut head = vec!["model".to_owned(), format!("ours, {}", published.quality)];
        head.extend(published.columns.iter().map(ToString::to_string));
        let mut rows = vec![head];
        for (kind, numbers) in published.rows {
            let ours = self.models.iter().find(|model| model.model == kind.name());
            let ours = ours.map_or(String::new(), |model| model.quality(published.metric));
            let mut row = vec![kind.name().to_owned(), ours];
            row.extend(numbers.iter().map(ToString::to_string));
            rows.push(row);
        }
        let remark = format!("{} {SOURCES}", published.remark);
        Some((rows, remark.trim().to_owned()))
    }

    fn published_json(&self) -> Option<Value> {
        let published = published::of(self.task)?;
        let mut models = BTreeMap::new();
        for (kind, numbers) in published.rows {
            let numbers = published.columns.iter().zip(*numbers);
            let numbers = numbers.filter(|(_, number)| !number.is_empty());
            models.insert(kind.name(), numbers.collect::<BTreeMap<_, _>>());
        }
        Some(json!({ "quality": published.quality, "models": models, "sources": SOURCES }))
    }

    /// The settings, less what the comparison varies.
    fn shared_settings(&self) -> Value {
        let mut settings = self.settings.clone();
        for key in ["model"] {
            settings.as_object_mut().map(|all| all.remove(key));
        }
        let mut varied = vec!["seed"];
        if self.models.iter().any(|model| !model.tried.is_empty()) {
            varied.push("learning_rate");
        }
        for key in varied {
            let trainer = settings["trainer"].as_object_mut();
            trainer.map(|trainer| trainer.remove(key));
        }
        settings
    }
}

/// A whole number with a comma between groups of three digits.
pub fn number_text(number: Option<usize>) -> String {
    let digits = number.map_or(String::new(), |number| number.to_string());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Rows, the first being the titles, as a table that reads well as text and as Markdown. All rows
/// have as many cells.
pub fn table(rows: &[Vec<String>]) -> String {
    let count = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            // The line under the titles needs room for its colon.
            cells.max().unwrap_or(0).max(3)
        })
        .collect();
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("| {cell:<width$} |"),
                _ => format!(" {cell:>width$} |"),
            };
        }
        text.push('\n');
        if at == 0 {
            for (column, width) in widths.iter().enumerate() {
                text += &match column {
                    0 => format!("|{}|", "-".repeat(width + 2)),
                    _ => format!("{}:|", "-".repeat(width + 1)),
                };
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_that_of_a_sample_and_needs_two_seeds() {
        let two = Statistic::of([1.0, 3.0]).unwrap();
        assert_eq!((two.mean, two.sd), (2.0, Some(2f64.sqrt())));
        assert_eq!(two.text(2), "2.00 ± 1.41");
        assert_eq!(Statistic::of([1.5]).unwrap().text(1), "1.5");
        assert_eq!(Statistic::of([]), None);
    }

    #[test]
    fn kinds_of_items_have_columns_of_their_own() {
        assert_eq!(title("accuracy"), "accuracy, %");
        assert_eq!(title("log_likelihood"), "log-lik");
        assert_eq!(title("log_likelihood_matern"), "log-lik, matern");
    }

    #[test]
    fn tables_line_up_whatever_their_cells_hold() {
        let rows = [
            ["model", "µs"].map(String::from).to_vec(),
            ["a", "1.00 ± 0.25"].map(String::from).to_vec(),
            ["a longer name", ""].map(String::from).to_vec(),
        ];
        let text = table(&rows);
        let widths: BTreeSet<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!((text.lines().count(), widths.len()), (4, 1), "{text}");
        assert!(text.lines().nth(1).unwrap().ends_with("-:|"), "{text}");
    }

    #[test]
    fn digits_come_in_threes() {
        assert_eq!(number_text(Some(1_234_567)), "1,234,567");
        assert_eq!(number_text(Some(12)), "12");
    }
}
