//! Which runs an experiment is made of, and where they lie below its folder.

use super::Experiment;
use super::grid::Cases;
use crate::families::Preset;
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

/// A run that a table needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The row, numbered as given.
    pub row: usize,
    /// The first case that it is of, likewise.
    pub case: usize,
    pub seed: u64,
    /// Its folder below that of the experiment.
    pub name: String,
    pub preset: Preset,
    /// Settings over the preset, as `arbora train --set` takes them; later ones win.
    pub settings: Vec<String>,
    /// The run of an earlier row that it starts from, by its folder likewise.
    pub from: Option<String>,
    /// Its learning rate, where rows choose theirs.
    pub rate: Option<f64>,
}

/// Where a number stands in a table. All are numbered as given but the seed, which is itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub row: usize,
    pub case: usize,
    pub seed: u64,
}

/// The runs of an experiment, in the order in which they are trained.
#[derive(Debug, Default)]
pub struct Plan {
    pub runs: Vec<Run>,
    /// The run at each place. Several places may share one.
    pub at: BTreeMap<Place, usize>,
}

impl Plan {
    /// Seed by seed, and case by case: what is finished at any time is fair to every row.
    ///
    /// - cases: the trees and texts of an experiment that varies them
    /// - rates: the learning rate of each row where it has chosen one; a row without one has no runs yet where the
    ///   experiment has rates
    pub fn new(experiment: &Experiment, cases: Option<&Cases>, rates: &[Option<f64>]) -> Self {
        let rows = &experiment.rows;
        let mut seeds: Vec<u64> = Vec::new();
        for seed in rows.iter().flat_map(|row| experiment.seeds_of(row)) {
            if !seeds.contains(seed) {
                seeds.push(*seed);
            }
        }
        let mut plan = Self::default();
        for seed in seeds {
            for case in 0..cases.map_or(1, Cases::count) {
                for (row, given) in rows.iter().enumerate() {
                    let waits = !experiment.rates.is_empty() && rates[row].is_none();
                    if waits || !experiment.seeds_of(given).contains(&seed) {
                        continue;
                    }
                    let place = Place { row, case, seed };
                    let run = Run::new(experiment, cases, place, rates[row]);
                    // Models that are equal in several cases are one run.
                    let known = plan.runs.iter().position(|other| other.name == run.name);
                    plan.at.insert(place, known.unwrap_or(plan.runs.len()));
                    if known.is_none() {
                        plan.runs.push(run);
                    }
                }
            }
        }
        plan
    }

    /// The runs that rows choose their learning rates by: each of them with every rate on its first seed.
    pub fn tries(experiment: &Experiment, cases: Option<&Cases>) -> Vec<Run> {
        let mut tries = Vec::new();
        for (row, given) in experiment.rows.iter().enumerate() {
            let seed = experiment.seeds_of(given)[0];
            let place = Place { row, case: 0, seed };
            let run = |rate: &f64| Run::new(experiment, cases, place, Some(*rate));
            tries.extend(experiment.rates.iter().map(run));
        }
        tries
    }
}

impl Run {
    fn new(
        experiment: &Experiment,
        cases: Option<&Cases>,
        place: Place,
        rate: Option<f64>,
    ) -> Self {
        let Place { row, case, seed } = place;
        let given = &experiment.rows[row];
        let mut settings = experiment.settings.clone();
        settings.extend(given.settings.iter().cloned());
        let mut name = given.name.clone();
        if let Some(cases) = cases {
            name = cases.folder(case, &name, &given.model);
            settings.extend(cases.settings(case, &given.model));
        }
        settings.push(format!("model={}", given.model));
        settings.push(format!("trainer.seed={seed}"));
        settings.extend(rate.map(|rate| format!("trainer.learning_rate={rate:?}")));
        let end = rate.map_or(String::new(), |rate| format!("-rate{rate:e}"));
        let from = given.from.as_ref();
        Self {
            row,
            case,
            seed,
            name: format!("{name}-seed{seed}{end}"),
            preset: given.preset.unwrap_or(experiment.preset),
            settings,
            from: from.map(|from| format!("{from}-seed{seed}{end}")),
            rate,
        }
    }

    /// The command that trains this run alone, or the rest of it.
    ///
    /// - out: the folder of the experiment
    pub fn command(&self, task: &str, out: &Path, begun: bool) -> String {
        let path = |name: &str| quoted(&out.join(name).to_string_lossy());
        let mut command = format!("arbora train {task}");
        if begun {
            command += " --resume";
        } else {
            if self.preset != Preset::default() {
                command += " --preset published";
            }
            if let Some(from) = &self.from {
                command += &format!(" --from {}", path(from));
            }
            for setting in &self.settings {
                command += &format!(" --set {}", quoted(setting));
            }
        }
        command + &format!(" --out {}", path(&self.name))
    }
}

/// A word as a shell takes it, in quotes where it would not take it as it is.
pub fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_=+.,:/@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Which runs of an experiment a process trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    number: usize,
    of: usize,
}

impl Shard {
    /// Whether the run with this number, from 0, is one of them.
    pub fn has(self, at: usize) -> bool {
        at % self.of == self.number - 1
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = |(number, of): (&str, &str)| Some((number.parse().ok()?, of.parse().ok()?));
        match text.split_once('/').and_then(read) {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err("expected I/N with I from 1 to N, such as 1/2".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiment(name: &str) -> Experiment {
        Experiment::bundled(name).unwrap().unwrap()
    }

    fn plan(experiment: &Experiment) -> Plan {
        let none = vec![None; experiment.rows.len()];
        Plan::new(experiment, None, &none)
    }

    fn named<'a>(plan: &'a Plan, name: &str) -> Option<&'a Run> {
        plan.runs.iter().find(|run| run.name == name)
    }

    #[test]
    fn runs_are_planned_seed_by_seed_with_the_seeds_of_their_rows() {
        let names = |seeds: &[u64]| {
            let mut orders = experiment("orders");
            orders.seeds = seeds.to_vec();
            let runs = plan(&orders).runs.into_iter();
            runs.map(|run| run.name).collect::<Vec<_>>()
        };
        let orders = names(&[0, 1]);
        assert_eq!(orders.len(), 12);
        assert_eq!(orders[0], "random-seed0");
        assert_eq!(orders[6], "random-seed1");
        let mut own = experiment("orders");
        own.rows[2].seeds = Some(vec![7]);
        let own = plan(&own);
        assert_eq!(own.runs.last().unwrap().name, "k-d-seed7");
        assert_eq!(own.runs.len(), 6);
    }

    #[test]
    fn later_settings_win_and_a_resumed_run_gets_none() {
        let mut experiment = experiment("copy-ablation");
        for row in &mut experiment.rows {
            row.settings.push("trainer.steps=7".into());
        }
        let plan = plan(&experiment);
        let run = named(&plan, "guide-seed0").unwrap();
        for (key, last) in [("lambda_guide=", "1"), ("trainer.steps=", "7")] {
            let mut found = run.settings.iter().rev();
            let found = found.find_map(|setting| setting.strip_prefix(key));
            assert_eq!(found, Some(last), "{key}");
        }
        let told = |begun| run.command("copy", Path::new("my runs"), begun);
        assert!(
            told(false).ends_with(
                "--set trainer.steps=7 --set model=retreever --set trainer.seed=0 --out 'my runs/guide-seed0'"
            ),
            "{}",
            told(false)
        );
        assert_eq!(
            told(true),
            "arbora train copy --resume --out 'my runs/guide-seed0'"
        );
    }

    #[test]
    fn runs_that_start_from_a_row_name_its_run_with_their_seed() {
        let recall = plan(&experiment("recall"));
        let run = named(&recall, "linformer-seed2").unwrap();
        assert_eq!(run.from.as_deref(), Some("dense-seed2"));
        assert!(named(&recall, "dense-seed2").is_some());
    }

    #[test]
    fn shards_are_numbered_from_one() {
        let read = |text: &str| text.parse::<Shard>().ok();
        assert_eq!(read("1/1"), Some(Shard { number: 1, of: 1 }));
        assert_eq!(read("2/3"), Some(Shard { number: 2, of: 3 }));
        for text in ["0/2", "3/2", "1", "1/0", "a/2", "1/2/3", "-1/2"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
