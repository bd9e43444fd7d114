//! From the runs of a grid to one table: who has the lowest loss, and how often.

use super::super::table::{Statistic, number_text, table};
use super::Measured;
use super::cells::{Cell, Cells, Place, Tree};
use crate::families::Family as _;
use crate::families::language::{BITS_PER_BYTE, LanguageConfig, LanguageModelKind};
use arbora::models::tree_coder::ParameterCounts;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The mean loss over the validation text in nats per token, by which models are compared.
pub const LOSS: &str = "loss";
/// The share of sequences at the leaf with the fewest, relative to a fair share.
const SMALLEST_LEAF: &str = "leaf_share_min";

/// A text.
pub struct Corpus {
    pub name: String,
    /// Sequences of its validation part.
    pub windows: usize,
    /// Different tokens.
    pub vocabulary: usize,
}

/// Everything behind a table.
pub struct Table<'a> {
    pub base: &'a LanguageConfig,
    pub trees: &'a [Tree],
    pub corpora: Vec<Corpus>,
    /// With tree-coder among them.
    pub models: &'a [LanguageModelKind],
    pub seeds: &'a [u64],
    pub cells: &'a Cells,
    /// Of each cell; `None` where it is not finished.
    pub measured: Vec<Option<Measured>>,
    pub out: &'a Path,
}

/// How often the tree has the lower loss, and by how much.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Wins {
    won: usize,
    of: usize,
}

impl Wins {
    /// - lower: whether the tree is, one by one
    fn count(lower: impl IntoIterator<Item = bool>) -> Self {
        lower.into_iter().fold(Self::default(), |wins, lower| Self {
            won: wins.won + usize::from(lower),
            of: wins.of + 1,
        })
    }

    /// Of losses of a tree and a control. One that diverged is infinite, and lower than none.
    fn of(pairs: Vec<(f64, f64)>) -> Self {
        Self::count(pairs.into_iter().map(|(tree, control)| tree < control))
    }

    fn sum(wins: &[Self]) -> Self {
        wins.iter().fold(Self::default(), |sum, wins| Self {
            won: sum.won + wins.won,
            of: sum.of + wins.of,
        })
    }

    /// The mean of the shares, of seeds that have some.
    fn mean_share(wins: &[Self]) -> Option<Statistic> {
        Statistic::of(wins.iter().filter_map(|wins| wins.share()))
    }

    fn share(self) -> Option<f64> {
        (self.of > 0).then(|| self.won as f64 / self.of as f64)
    }

    fn text(self) -> String {
        let share = self
            .share()
            .map(|share| format!(" ({:.0} %)", 100.0 * share));
        format!("{} of {}{}", self.won, self.of, share.unwrap_or_default())
    }

    fn json(self) -> Value {
        json!({ "won": self.won, "of": self.of, "share": self.share() })
    }
}

impl Table<'_> {
    /// All cases, corpus by corpus.
    fn cases(&self) -> impl Iterator<Item = (usize, usize)> {
        let trees = self.trees.len();
        (0..self.corpora.len()).flat_map(move |corpus| (0..trees).map(move |tree| (tree, corpus)))
    }

    fn cell(&self, tree: usize, corpus: usize, model: usize, seed: usize) -> usize {
        self.cells.at(Place {
            tree,
            corpus,
            model,
            seed,
        })
    }

    /// A number of a finished run.
    fn number(&self, cell: usize, metric: &str) -> Option<f64> {
        let metrics = self.measured[cell].as_ref()?.metrics.as_ref()?;
        metrics
            .get(metric)
            .copied()
            .filter(|number| number.is_finite())
    }

    /// A number by seed, `None` where the run is not finished.
    fn by_seed(&self, tree: usize, corpus: usize, model: usize, metric: &str) -> Vec<Option<f64>> {
        (0..self.seeds.len())
            .map(|seed| self.number(self.cell(tree, corpus, model, seed), metric))
            .collect()
    }

    fn statistic(
        &self,
        tree: usize,
        corpus: usize,
        model: usize,
        metric: &str,
    ) -> Option<Statistic> {
        Statistic::of(
            self.by_seed(tree, corpus, model, metric)
                .into_iter()
                .flatten(),
        )
    }

    /// The loss of a run; infinite where it diverged, `None` where it is missing.
    fn loss(&self, tree: usize, corpus: usize, model: usize, seed: usize) -> Option<f64> {
        let cell = self.cell(tree, corpus, model, seed);
        self.measured[cell].as_ref()?;
        Some(self.number(cell, LOSS).unwrap_or(f64::INFINITY))
    }

    /// The mean loss of a model over all seeds; infinite where a run diverged, `None` where one is missing.
    fn mean_loss(&self, tree: usize, corpus: usize, model: usize) -> Option<f64> {
        let losses: Option<Vec<f64>> = (0..self.seeds.len())
            .map(|seed| self.loss(tree, corpus, model, seed))
            .collect();
        Some(losses?.iter().sum::<f64>() / self.seeds.len() as f64)
    }

    /// Runs of a model in a case that diverged.
    fn diverged(&self, tree: usize, corpus: usize, model: usize) -> usize {
        let losses = (0..self.seeds.len()).map(|seed| self.loss(tree, corpus, model, seed));
        losses.flatten().filter(|loss| loss.is_infinite()).count()
    }

    fn tree_coder(&self) -> usize {
        let mut models = self.models.iter();
        models
            .position(|model| *model == LanguageModelKind::TreeCoder)
            .expect("checked before the first run")
    }

    fn controls(&self) -> impl Iterator<Item = usize> {
        let tree_coder = self.tree_coder();
        (0..self.models.len()).filter(move |model| *model != tree_coder)
    }

    /// The mean losses of the tree and a control, of each case of some corpora where no run of them is missing.
    fn pairs(&self, control: usize, corpora: &[usize]) -> Vec<(f64, f64)> {
        let cases = self.cases().filter(|(_, corpus)| corpora.contains(corpus));
        cases
            .filter_map(|(tree, corpus)| {
                let of = |model| self.mean_loss(tree, corpus, model);
                Some((of(self.tree_coder())?, of(control)?))
            })
            .collect()
    }

    /// The same of single runs with one seed.
    fn pairs_of_seed(&self, control: usize, corpora: &[usize], seed: usize) -> Vec<(f64, f64)> {
        let cases = self.cases().filter(|(_, corpus)| corpora.contains(corpus));
        cases
            .filter_map(|(tree, corpus)| {
                let of = |model| self.loss(tree, corpus, model, seed);
                Some((of(self.tree_coder())?, of(control)?))
            })
            .collect()
    }

    /// The tree's mean loss less that of a control, of cases where no run diverged.
    fn difference(&self, control: usize, corpora: &[usize]) -> Option<Statistic> {
        let pairs = self.pairs(control, corpora).into_iter();
        let differences = pairs.map(|(tree, control)| tree - control);
        Statistic::of(differences.filter(|difference| difference.is_finite()))
    }

    /// Wins in cases.
    fn wins(&self, control: usize, corpora: &[usize]) -> Wins {
        Wins::of(self.pairs(control, corpora))
    }

    /// Wins in single runs, seed by seed.
    fn wins_by_seed(&self, control: usize, corpora: &[usize]) -> Vec<Wins> {
        (0..self.seeds.len())
            .map(|seed| Wins::of(self.pairs_of_seed(control, corpora, seed)))
            .collect()
    }

    /// Cases in which the tree is lower than every control, and all that are complete.
    fn wins_of_all(&self) -> Wins {
        let complete = self
            .cases()
            .filter(|(tree, corpus)| self.mean_losses(*tree, *corpus).is_some());
        Wins::count(
            complete.map(|(tree, corpus)| self.best(tree, corpus) == Some(self.tree_coder())),
        )
    }

    /// The mean losses of all models; `None` where a run of any is missing.
    fn mean_losses(&self, tree: usize, corpus: usize) -> Option<Vec<f64>> {
        (0..self.models.len())
            .map(|model| self.mean_loss(tree, corpus, model))
            .collect()
    }

    /// The model with the lowest mean loss; `None` where a run of any is missing, or one of each diverged.
    fn best(&self, tree: usize, corpus: usize) -> Option<usize> {
        let losses = self.mean_losses(tree, corpus)?;
        (0..losses.len())
            .filter(|model| losses[*model].is_finite())
            .min_by(|one, other| losses[*one].total_cmp(&losses[*other]))
    }

    /// The backends that runs were measured on.
    fn backends(&self) -> BTreeSet<&str> {
        let measured = self.measured.iter().flatten();
        measured.map(|measured| measured.backend.as_str()).collect()
    }

    fn parameters(&self, tree: usize, corpus: usize, model: usize) -> ParameterCounts {
        let config = self.trees[tree].config(self.base, self.models[model]);
        config
            .tree_coder(self.corpora[corpus].vocabulary)
            .parameters()
    }

    /// The folders of runs that are not finished, and of runs whose numbers ended.
    fn missing(&self) -> [Vec<String>; 2] {
        let folders = |is: fn(&Option<Measured>) -> bool| {
            let cells = self.cells.all.iter().zip(&self.measured);
            let cells = cells.filter(|(_, measured)| is(measured));
            cells.map(|(cell, _)| self.below(cell)).collect()
        };
        let diverged = |measured: &Option<Measured>| {
            measured
                .as_ref()
                .is_some_and(|measured| measured.metrics.is_none())
        };
        [folders(Option::is_none), folders(diverged)]
    }

    fn below(&self, cell: &Cell) -> String {
        let folder = &cell.plan.folder;
        let below = folder.strip_prefix(self.out).unwrap_or(folder);
        below.to_string_lossy().into_owned()
    }

    /// One row per case: the tree, its parameters, and the losses of all models.
    fn losses(&self) -> Vec<Vec<String>> {
        let mut head = ["text", "k", "h", "blocks", "width", "active", "total"]
            .map(String::from)
            .to_vec();
        head.extend(self.models.iter().map(|model| model.name().to_owned()));
        head.push("lowest".into());
        let mut rows = vec![head];
        for (tree, corpus) in self.cases() {
            let mut row = self.case(tree, corpus);
            let counts = self.parameters(tree, corpus, self.tree_coder());
            row.extend([counts.active, counts.total].map(|count| number_text(Some(count))));
            row.extend((0..self.models.len()).map(|model| {
                let statistic = self.statistic(tree, corpus, model, LOSS);
                let text = statistic.map(|statistic| statistic.text(3));
                let diverged = match self.diverged(tree, corpus, model) {
                    0 => None,
                    count => Some(format!("{count} diverged")),
                };
                let parts = text.into_iter().chain(diverged);
                parts.collect::<Vec<_>>().join(", ")
            }));
            let best = self.best(tree, corpus);
            row.push(best.map_or(String::new(), |model| self.models[model].name().to_owned()));
            rows.push(row);
        }
        rows
    }

    fn case(&self, tree: usize, corpus: usize) -> Vec<String> {
        let Tree {
            branching,
            height,
            blocks,
            width,
        } = self.trees[tree];
        let numbers = [branching, height, blocks, width].map(|number| number.to_string());
        [vec![self.corpora[corpus].name.clone()], numbers.to_vec()].concat()
    }

    /// One row per control: how often the tree has the lower loss, in all and by corpus.
    fn win_rows(&self) -> Vec<Vec<String>> {
        let all: Vec<usize> = (0..self.corpora.len()).collect();
        let mut head = vec![
            "tree-coder against".to_owned(),
            "cases won".into(),
            "runs won, seed by seed".into(),
            "share of runs won, mean over seeds".into(),
            "difference of loss, over cases".into(),
        ];
        let several = self.corpora.len() > 1;
        if several {
            for corpus in &self.corpora {
                head.push(format!("cases, {}", corpus.name));
                head.push(format!("runs, {}", corpus.name));
            }
        }
        let mut rows = vec![head];
        for control in self.controls() {
            let mut row = vec![self.models[control].name().to_owned()];
            let by_seed = self.wins_by_seed(control, &all);
            row.push(self.wins(control, &all).text());
            row.push(Wins::sum(&by_seed).text());
            let share = Wins::mean_share(&by_seed);
            row.push(share.map_or(String::new(), |share| share.text(2)));
            let difference = self.difference(control, &all);
            row.push(difference.map_or(String::new(), |difference| difference.signed(3)));
            for corpus in all.iter().filter(|_| several) {
                row.push(self.wins(control, &[*corpus]).text());
                row.push(Wins::sum(&self.wins_by_seed(control, &[*corpus])).text());
            }
            rows.push(row);
        }
        rows
    }

    /// One row per case: how full the leaves are, and bits per byte of all models.
    fn uses(&self) -> Vec<Vec<String>> {
        let mut head = ["text", "k", "h", "blocks", "width"]
            .map(String::from)
            .to_vec();
        head.push("smallest leaf, of its fair share".into());
        let names = self.models.iter().map(|model| model.name());
        head.extend(names.map(|name| format!("bits per byte, {name}")));
        let mut rows = vec![head];
        for (tree, corpus) in self.cases() {
            let mut row = self.case(tree, corpus);
            let text = |model, metric, digits| {
                let statistic = self.statistic(tree, corpus, model, metric);
                statistic.map_or(String::new(), |statistic| statistic.text(digits))
            };
            row.push(text(self.tree_coder(), SMALLEST_LEAF, 2));
            row.extend((0..self.models.len()).map(|model| text(model, BITS_PER_BYTE, 3)));
            rows.push(row);
        }
        rows
    }

    /// What cannot be seen in the tables: what is missing, what won all, and what the columns mean.
    fn remarks(&self) -> String {
        let [missing, diverged] = self.missing();
        let all = self.cells.all.len();
        let mut text = match missing.len() {
            0 => format!("All {all} runs are finished.\n"),
            count => format!(
                "{count} of {all} runs are missing: {}.\n",
                missing.join(", ")
            ),
        };
        if !diverged.is_empty() {
            text += &format!(
                "Runs that diverged (their loss was no longer a number): {}. They lose every comparison, and where \
                 both sides diverged the tree has not won. Means and differences of losses are without them.\n",
                diverged.join(", ")
            );
        }
        if self.models.len() > 1 {
            let wins = self.wins_of_all().text();
            text += &format!("tree-coder has the lowest loss of all models in {wins} cases.\n");
        }
        text
    }

    /// The tables, for a person at a terminal.
    pub fn text(&self) -> String {
        let mut text = table(&self.losses());
        if self.models.len() > 1 {
            text += &format!("\n{}", table(&self.win_rows()));
        }
        text + &format!("\n{}\n{}", table(&self.uses()), self.remarks().trim_end())
    }

    /// The tables and all that they stand on, for a reader.
    pub fn page(&self) -> String {
        let base = self.base;
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let measured: Vec<String> = self
            .corpora
            .iter()
            .map(|corpus| {
                let measured = base
                    .common()
                    .measured(base.test_items, Some(corpus.windows));
                let all = match measured == corpus.windows {
                    true => "all ",
                    false => "",
                };
                format!("{all}{} of {}", number_text(Some(measured)), corpus.name)
            })
            .collect();
        let mut page = format!(
            "# Trees and their controls\n\n{} training steps of {} sequences of {} tokens each, seeds {}, \
             backend {}. Measured on held-out sequences: {}. Losses are in nats per token, means over seeds{}. \
             k is the branching factor, h the height. Active parameters are those that one sequence meets.\n\n\
             {}\n\n## Losses\n\n{}",
            base.trainer.steps,
            base.batch_size,
            base.data.window,
            seeds.join(", "),
            self.backends().into_iter().collect::<Vec<_>>().join(", "),
            measured.join(", "),
            match self.seeds.len() {
                1 => "",
                _ => " with the sample standard deviation",
            },
            self.remarks().trim_end(),
            table(&self.losses())
        );
        if self.models.len() > 1 {
            page += &format!(
                "\n## Wins\n\nA case is a tree and a text. It is won where the mean loss over seeds is lower, and a \
                 run where its loss is lower than that of the control with the same seed. Differences are those of \
                 the tree less the control, with the sample standard deviation over cases: below zero the tree is \
                 better. The share of runs won is that of each seed, with the sample standard deviation over seeds. \
                 Only missing runs are left out. Cases are not independent: trees of one text share it, and those \
                 with paths of as many blocks of one width share the runs of linear-active.\n\n{}",
                table(&self.win_rows())
            );
        }
        page += &format!("\n## Leaves and bits per byte\n\n{}", table(&self.uses()));
        page + &format!(
            "\n## Settings of all runs\n\n```json\n{:#}\n```\n",
            self.settings()
        )
    }

    /// The numbers, for a program.
    pub fn json(&self) -> Value {
        let [missing, diverged] = self.missing();
        let all: Vec<usize> = (0..self.corpora.len()).collect();
        let wins = |control: usize, corpora: &[usize]| {
            let by_seed = self.wins_by_seed(control, corpora);
            let share = Wins::mean_share(&by_seed);
            let difference = self.difference(control, corpora);
            json!({
                "cases": self.wins(control, corpora).json(),
                "runs": Wins::sum(&by_seed).json(),
                "runs_by_seed": by_seed.iter().map(|wins| wins.json()).collect::<Vec<_>>(),
                "share_of_runs": share.as_ref().map(Statistic::json),
                "difference": difference.as_ref().map(Statistic::json),
            })
        };
        let of_control = |control: usize| {
            let corpora = all.iter().map(|corpus| {
                let name = self.corpora[*corpus].name.clone();
                (name, wins(control, &[*corpus]))
            });
            let mut of_control = wins(control, &all);
            of_control["corpora"] = Value::Object(corpora.collect());
            (self.models[control].name().to_owned(), of_control)
        };
        json!({
            "task": self.base.task.name(),
            "seeds": self.seeds,
            "backends": self.backends(),
            "runs": self.cells.all.len(),
            "missing": missing,
            "diverged": diverged,
            "cases": self.cases().map(|(tree, corpus)| self.case_json(tree, corpus)).collect::<Vec<_>>(),
            "wins": self.controls().map(of_control).collect::<Map<_, _>>(),
            "lowest_of_all": self.wins_of_all().json(),
            "settings": self.settings(),
        })
    }

    fn case_json(&self, tree: usize, corpus: usize) -> Value {
        let Tree {
            branching,
            height,
            blocks,
            width,
        } = self.trees[tree];
        let models = (0..self.models.len()).map(|model| {
            let name = self.models[model].name().to_owned();
            (name, self.model_json(tree, corpus, model))
        });
        let best = self.best(tree, corpus);
        json!({
            "text": self.corpora[corpus].name,
            "branching": branching, "height": height, "blocks": blocks, "width": width,
            "models": models.collect::<Map<_, _>>(),
            "lowest": best.map(|model| self.models[model].name()),
        })
    }

    fn model_json(&self, tree: usize, corpus: usize, model: usize) -> Value {
        let counts = self.parameters(tree, corpus, model);
        let runs = (0..self.seeds.len()).filter_map(|seed| {
            let cell = self.cell(tree, corpus, model, seed);
            let measured = self.measured[cell].as_ref()?;
            Some(json!({
                "seed": self.seeds[seed],
                "run": self.below(&self.cells.all[cell]),
                "backend": measured.backend,
                "metrics": measured.metrics,
                "training_seconds": measured.training_seconds,
            }))
        });
        let means: BTreeMap<&str, Option<Value>> = [LOSS, BITS_PER_BYTE, SMALLEST_LEAF]
            .into_iter()
            .map(|metric| {
                let statistic = self.statistic(tree, corpus, model, metric);
                (metric, statistic.as_ref().map(Statistic::json))
            })
            .collect();
        json!({
            "parameters": { "active": counts.active, "total": counts.total },
            "means": means,
            "runs": runs.collect::<Vec<_>>(),
        })
    }

    /// The settings, less what the grid varies.
    fn settings(&self) -> Value {
        let mut settings = serde_json::to_value(self.base).unwrap_or_default();
        let varied = [
            ("", "model"),
            ("/data", "source"),
            ("/trainer", "seed"),
            ("/architecture", "branching"),
            ("/architecture", "height"),
            ("/architecture", "blocks"),
            ("/architecture", "d_model"),
            ("/architecture", "d_ff"),
        ];
        for (group, key) in varied {
            let group = settings.pointer_mut(group).and_then(Value::as_object_mut);
            group.map(|group| group.remove(key));
        }
        let a = &self.base.architecture;
        settings["architecture"]["d_ff_per_width"] = json!(a.d_ff[0] as f64 / a.d_model as f64);
        settings
    }
}
