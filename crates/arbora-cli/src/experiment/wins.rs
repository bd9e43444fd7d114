//! Trees beside their controls: who has the lower loss, how often, and by how much.

use super::grid::{Cases, TREE_CODER};
use super::results::{Results, Shown};
use crate::statistic::Statistic;
use crate::table::{table, thousands};
use serde_json::{Map, Value, json};

/// The mean loss over the held-out text in nats per token, by which models are compared.
const LOSS: &str = "loss";
const BITS_PER_BYTE: &str = "bits_per_byte";
/// The share of sequences at the leaf with the fewest, relative to a fair share.
const SMALLEST_LEAF: &str = "leaf_share_min";

/// What the table of wins counts.
pub const ABOUT: &str = "A case is a tree and a text. It is won where the mean loss over seeds is lower, and a run where its \
loss is lower than that of the control with the same seed. Differences are those of the tree less the control, with the \
sample standard deviation over cases: below zero the tree is better. The share of runs won is that of each seed, with the \
sample standard deviation over seeds. Only open runs are left out. Cases are not independent: trees of one text share it, \
and those with paths of as many blocks of one width share the runs of linear-active.";

/// How often the tree has the lower loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Count {
    won: usize,
    of: usize,
}

impl Count {
    /// - lower: whether the tree is, one by one
    fn new(lower: impl IntoIterator<Item = bool>) -> Self {
        let lower = Vec::from_iter(lower);
        Self {
            won: lower.iter().filter(|lower| **lower).count(),
            of: lower.len(),
        }
    }

    /// Of losses of a tree and a control. One that diverged is infinite, and lower than none.
    fn of(pairs: Vec<(f64, f64)>) -> Self {
        Self::new(pairs.into_iter().map(|(tree, control)| tree < control))
    }

    fn share(self) -> Option<f64> {
        (self.of > 0).then(|| self.won as f64 / self.of as f64)
    }

    pub fn text(self) -> String {
        let share = self
            .share()
            .map(|share| format!(" ({:.0} %)", 100.0 * share));
        format!("{} of {}{}", self.won, self.of, share.unwrap_or_default())
    }

    pub fn json(self) -> Value {
        json!({ "won": self.won, "of": self.of, "share": self.share() })
    }
}

/// The losses of the tree beside those of a control. Open runs, and cases with one, are left out.
struct Beside {
    /// By means over seeds.
    cases: Count,
    /// Seed by seed.
    runs: Count,
    by_seed: Vec<Count>,
    /// The mean over seeds of the share of runs that the tree won.
    share_of_runs: Option<Statistic>,
    /// The tree's mean loss less that of the control, over cases where no run diverged.
    difference: Option<Statistic>,
}

/// The losses of a grid.
pub struct Wins<'a> {
    results: &'a Results<'a>,
    cases: &'a Cases,
    tree_coder: usize,
}

impl<'a> Wins<'a> {
    /// `None` where there is no grid, or no tree in it.
    pub fn new(results: &'a Results<'a>) -> Option<Self> {
        let mut rows = results.experiment.rows.iter();
        Some(Self {
            results,
            cases: results.cases?,
            tree_coder: rows.position(|row| row.model == TREE_CODER)?,
        })
    }

    fn controls(&self) -> impl Iterator<Item = usize> {
        (0..self.results.experiment.rows.len()).filter(|row| *row != self.tree_coder)
    }

    fn name(&self, row: usize) -> &str {
        &self.results.experiment.rows[row].name
    }

    /// The losses of a row by seed; infinite where a run diverged, `None` where it is open.
    fn losses(&self, row: usize, case: usize) -> Vec<Option<f64>> {
        let loss = |run: &Shown| Some(run.entry.as_ref()?.metric(LOSS).unwrap_or(f64::INFINITY));
        self.results.runs_of(row, case).map(loss).collect()
    }

    /// The mean loss of a row over all seeds; infinite where a run diverged, `None` where one is open.
    fn mean_loss(&self, row: usize, case: usize) -> Option<f64> {
        let losses: Option<Vec<f64>> = self.losses(row, case).into_iter().collect();
        Some(Statistic::of(losses?)?.mean)
    }

    /// The tree beside a control, in the cases of some corpora.
    fn beside(&self, control: usize, corpora: &[usize]) -> Beside {
        let mut cases = Vec::new();
        let mut by_seed = vec![Vec::new(); self.results.experiment.seeds.len()];
        let all = 0..self.cases.count();
        for case in all.filter(|case| corpora.contains(&self.cases.corpus(*case))) {
            let means = [self.tree_coder, control].map(|row| self.mean_loss(row, case));
            if let [Some(tree), Some(control)] = means {
                cases.push((tree, control));
            }
            let both = self.losses(self.tree_coder, case).into_iter();
            let both = both.zip(self.losses(control, case));
            for (pairs, both) in by_seed.iter_mut().zip(both) {
                if let (Some(tree), Some(control)) = both {
                    pairs.push((tree, control));
                }
            }
        }
        let differences = cases.iter().map(|(tree, control)| tree - control);
        let difference = Statistic::of(differences.filter(|difference| difference.is_finite()));
        let by_seed: Vec<Count> = by_seed.into_iter().map(Count::of).collect();
        Beside {
            cases: Count::of(cases),
            runs: Count {
                won: by_seed.iter().map(|count| count.won).sum(),
                of: by_seed.iter().map(|count| count.of).sum(),
            },
            share_of_runs: Statistic::of(by_seed.iter().filter_map(|count| count.share())),
            by_seed,
            difference,
        }
    }

    /// Cases in which the tree is lower than every control, and all that are complete.
    pub fn of_all(&self) -> Count {
        let complete = (0..self.cases.count()).filter(|case| self.mean_losses(*case).is_some());
        Count::new(complete.map(|case| self.best(case) == Some(self.tree_coder)))
    }

    /// The mean losses of all rows; `None` where a run of any is open.
    fn mean_losses(&self, case: usize) -> Option<Vec<f64>> {
        let rows = 0..self.results.experiment.rows.len();
        rows.map(|row| self.mean_loss(row, case)).collect()
    }

    /// The row with the lowest mean loss; `None` where a run of any is open, or one of each diverged.
    fn best(&self, case: usize) -> Option<usize> {
        let losses = self.mean_losses(case)?;
        let rows = (0..losses.len()).filter(|row| losses[*row].is_finite());
        rows.min_by(|one, other| losses[*one].total_cmp(&losses[*other]))
    }

    fn all_corpora(&self) -> Vec<usize> {
        (0..self.cases.corpora().len()).collect()
    }

    /// One row per control: how often the tree has the lower loss, in all and by corpus.
    fn rows(&self) -> Vec<Vec<String>> {
        let (all, names) = (self.all_corpora(), self.cases.corpora());
        let mut head = [
            "tree-coder against",
            "cases won",
            "runs won, seed by seed",
            "share of runs won, mean over seeds",
            "difference of loss, over cases",
        ]
        .map(String::from)
        .to_vec();
        let single = all.iter().filter(|_| all.len() > 1);
        for corpus in single.clone() {
            head.push(format!("cases, {}", names[*corpus]));
            head.push(format!("runs, {}", names[*corpus]));
        }
        let mut rows = vec![head];
        for control in self.controls() {
            let beside = self.beside(control, &all);
            let mut row = vec![
                self.name(control).to_owned(),
                beside.cases.text(),
                beside.runs.text(),
                beside
                    .share_of_runs
                    .map_or(String::new(), |share| share.text(2)),
                beside
                    .difference
                    .map_or(String::new(), |less| less.signed(3)),
            ];
            for corpus in single.clone() {
                let beside = self.beside(control, &[*corpus]);
                row.extend([beside.cases.text(), beside.runs.text()]);
            }
            rows.push(row);
        }
        rows
    }

    /// The numbers, for a program.
    pub fn json(&self) -> Value {
        let wins = |control: usize, corpora: &[usize]| {
            let beside = self.beside(control, corpora);
            json!({
                "cases": beside.cases.json(),
                "runs": beside.runs.json(),
                "runs_by_seed": beside.by_seed.iter().map(|count| count.json()).collect::<Vec<_>>(),
                "share_of_runs": beside.share_of_runs,
                "difference": beside.difference,
            })
        };
        let of_control = |control: usize| {
            let corpora = self.cases.corpora().into_iter().enumerate();
            let corpora = corpora.map(|(at, name)| (name.to_owned(), wins(control, &[at])));
            let mut of_control = wins(control, &self.all_corpora());
            of_control["corpora"] = Value::Object(corpora.collect());
            (self.name(control).to_owned(), of_control)
        };
        self.controls()
            .map(of_control)
            .collect::<Map<_, _>>()
            .into()
    }

    /// All cases, and which row has the lowest loss.
    pub fn cases_json(&self) -> Value {
        let cases = (0..self.cases.count()).map(|case| {
            let mut json = self.cases.json(case);
            json["lowest"] = json!(self.best(case).map(|row| self.name(row)));
            json
        });
        cases.collect()
    }
}

impl Results<'_> {
    /// The tables: those of a grid, each with its title, or the one without.
    pub fn tables(&self) -> Vec<(&'static str, String)> {
        let wins = match Wins::new(self) {
            Some(wins) => wins,
            None if self.cases.is_some() => return Vec::new(),
            None => return vec![("", table(&self.rows(), 1))],
        };
        let mut tables = vec![("Losses", table(&wins.loss_rows(), 1))];
        if self.experiment.rows.len() > 1 {
            tables.push(("Wins", table(&wins.rows(), 1)));
        }
        tables.push(("Leaves and bits per byte", table(&wins.use_rows(), 1)));
        tables
    }
}

impl Wins<'_> {
    fn statistic(&self, row: usize, case: usize, metric: &str, digits: usize) -> String {
        let runs = self.results.runs_of(row, case);
        Statistic::of(runs.filter_map(|run| run.metric(metric)))
            .map_or(String::new(), |all| all.text(digits))
    }

    /// One row per case: text and tree, and what else there is to say.
    fn by_case(
        &self,
        titles: Vec<String>,
        cells: impl Fn(usize) -> Vec<String>,
    ) -> Vec<Vec<String>> {
        let head = ["text", "k", "h", "blocks", "width"].map(String::from);
        let mut rows = vec![[head.to_vec(), titles].concat()];
        rows.extend((0..self.cases.count()).map(|case| {
            let corpus = self.cases.corpora()[self.cases.corpus(case)].to_owned();
            let numbers = self.cases.tree(case).numbers();
            let numbers = numbers.map(|number| number.to_string()).to_vec();
            [vec![corpus], numbers, cells(case)].concat()
        }));
        rows
    }

    /// The parameters of the tree, and the losses of all rows.
    fn loss_rows(&self) -> Vec<Vec<String>> {
        let all = 0..self.results.experiment.rows.len();
        let mut titles = vec!["active".to_owned(), "total".into()];
        titles.extend(all.clone().map(|row| self.name(row).to_owned()));
        titles.push("lowest".into());
        self.by_case(titles, |case| {
            let tree = self.results.runs_of(self.tree_coder, case).next();
            let count = |name: &str| tree.and_then(|run| run.static_metrics.get(name));
            let counts = ["active_parameters", "total_parameters"].map(count);
            let counts =
                counts.map(|count| count.map_or(String::new(), |count| thousands(*count as u64)));
            let mut row = counts.to_vec();
            row.extend(all.clone().map(|row| {
                let text = self.statistic(row, case, LOSS, 3);
                let losses = self.losses(row, case).into_iter().flatten();
                match losses.filter(|loss| loss.is_infinite()).count() {
                    0 => text,
                    count if text.is_empty() => format!("{count} diverged"),
                    count => format!("{text}, {count} diverged"),
                }
            }));
            row.push(self.best(case).map_or("", |row| self.name(row)).to_owned());
            row
        })
    }

    /// How full the leaves are, and bits per byte of all rows.
    fn use_rows(&self) -> Vec<Vec<String>> {
        let all = 0..self.results.experiment.rows.len();
        let mut titles = vec!["smallest leaf, of its fair share".to_owned()];
        titles.extend(
            all.clone()
                .map(|row| format!("bits per byte, {}", self.name(row))),
        );
        self.by_case(titles, |case| {
            let bits = |row| self.statistic(row, case, BITS_PER_BYTE, 3);
            let mut row = vec![self.statistic(self.tree_coder, case, SMALLEST_LEAF, 2)];
            row.extend(all.clone().map(bits));
            row
        })
    }
}
