//! `arbora compare lm`: trees and their controls over a grid of configurations, corpora and seeds.

mod cells;
mod table;

use super::{Setting, configure, diverged, interrupted};
use super::{training_seconds, write};
use crate::backend;
use crate::cli::CompareArgs;
use crate::families::Family as _;
use crate::families::language::{LanguageConfig, LanguageModelKind, TextSource, TokenizerSource};
use crate::run::{CONFIG, first_free};
use crate::whole;
use anyhow::{Context as _, Result, bail};
use arbora::rl::train::TrainError;
use burn::tensor::Device;
use cells::{Cell, Cells, Tree};
use clap::{Args, ValueEnum as _};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use table::{Corpus, Table};

/// What `arbora compare lm` varies.
#[derive(Debug, Args)]
#[command(next_help_heading = "For lm: a grid of trees and texts")]
pub struct GridArgs {
    /// Children of a node [default: the setting architecture.branching; likewise below].
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    branching: Vec<usize>,
    /// Decisions from the root to a leaf.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    heights: Vec<usize>,
    /// Transformer blocks of a node.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    blocks: Vec<usize>,
    /// Widths of tokens. The widths inside MLPs grow in proportion.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    widths: Vec<usize>,
    /// The trees one by one, where they are no product: branching, height, blocks and width of each.
    #[arg(
        long,
        value_name = "K:H:B:D",
        value_delimiter = ',',
        conflicts_with_all = ["branching", "heights", "blocks", "widths"]
    )]
    trees: Vec<Tree>,
    /// Texts: moby-dick, text files and folders [default: the setting data.source].
    #[arg(long, value_name = "TEXTS", value_delimiter = ',')]
    corpora: Vec<PathBuf>,
    /// Train every N-th run alone, beginning with the I-th: N processes share a grid. The table has what is
    /// finished, and says what is missing.
    #[arg(long, value_name = "I/N", requires = "out")]
    shard: Option<Shard>,
    /// Train nothing: write the table of what is finished.
    #[arg(long, conflicts_with = "shard", requires = "out")]
    only_table: bool,
}

impl GridArgs {
    /// Refuses options of a grid for a task that has none.
    pub(super) fn refuse(&self, task: &str) -> Result<()> {
        let given = [
            ("--branching", !self.branching.is_empty()),
            ("--heights", !self.heights.is_empty()),
            ("--blocks", !self.blocks.is_empty()),
            ("--widths", !self.widths.is_empty()),
            ("--trees", !self.trees.is_empty()),
            ("--corpora", !self.corpora.is_empty()),
            ("--shard", self.shard.is_some()),
            ("--only-table", self.only_table),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((option, _)) => bail!("{option}: is for lm; {task} has no grid"),
            None => Ok(()),
        }
    }
}

/// Which runs of a grid a process trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shard {
    /// From 1.
    number: usize,
    of: usize,
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

/// The numbers of a finished run over the validation text, in its folder. All are finite.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Measured {
    /// [`RULE`] when it was measured.
    #[serde(default)]
    rule: u32,
    step: u64,
    backend: String,
    /// With a loss; `None` where the run diverged: its training ended because its numbers did, or what it came to
    /// has no loss.
    #[serde(deserialize_with = "read_finite")]
    metrics: Option<BTreeMap<String, f64>>,
    training_seconds: f64,
}

/// Numbers that are some; `None` where the loss is none.
fn finite(mut metrics: BTreeMap<String, f64>) -> Option<BTreeMap<String, f64>> {
    metrics.retain(|_, number| number.is_finite());
    metrics.contains_key(table::LOSS).then_some(metrics)
}

/// JSON has `null` for numbers that are none.
fn read_finite<'a, D: Deserializer<'a>>(
    from: D,
) -> Result<Option<BTreeMap<String, f64>>, D::Error> {
    let metrics = Option::<BTreeMap<String, Option<f64>>>::deserialize(from)?;
    let numbers = |metrics: BTreeMap<String, Option<f64>>| {
        let numbers = metrics.into_iter();
        numbers
            .filter_map(|(name, number)| Some((name, number?)))
            .collect()
    };
    Ok(metrics.and_then(|metrics| finite(numbers(metrics))))
}

/// Which sequences are measured, and how their numbers are put together. To be raised when that changes: runs are
/// then measured anew.
const RULE: u32 = 1;

/// Where [`Measured`] is kept, so that no process measures the runs of others.
const MEASURED: &str = "measured.json";

pub fn run(args: CompareArgs) -> Result<ExitCode> {
    if !args.rates.is_empty() {
        bail!("--rates: a grid has one learning rate; give it by --set trainer.learning_rate=RATE");
    }
    let models = match args.models.is_empty() {
        true => LanguageModelKind::value_variants().to_vec(),
        false => args
            .models
            .iter()
            .map(|model| crate::families::named(model.of::<LanguageConfig>()?))
            .collect::<Result<_>>()?,
    };
    if !models.contains(&LanguageModelKind::TreeCoder) {
        bail!("--models: a grid compares others with tree-coder, which is not named");
    }
    let base: LanguageConfig = configure(&args)?;
    let trees = cells::trees(&args.grid, &base)?;
    let corpora = corpora(&args.grid.corpora, &base)?;
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| first_free("lm", "compare"));
    if out.exists() && !out.is_dir() {
        return Err(TrainError::NotAFolder { path: out }.into());
    }
    refuse_within(&out, &corpora)?;
    let cells = Cells::new(&base, &trees, &corpora, &models, &args.seeds, &out);
    for cell in &cells.all {
        cell.plan.config.check()?;
    }
    let settings = load(&base, &corpora, &device, &out)?;
    // All mistakes before the first hour of training.
    for cell in &cells.all {
        let about = cell.plan.config.about(&settings[cell.corpus].data)?;
        cell.plan.state(&about)?;
        cell.measured()?;
    }
    let mine = |at: usize| match args.grid.shard {
        Some(Shard { number, of }) => at % of == number - 1,
        None => !args.grid.only_table,
    };
    eprintln!(
        "{} trees, {} texts, {} seeds: {} runs, {} of them here, on {backend}, folder {}",
        trees.len(),
        corpora.len(),
        args.seeds.len(),
        cells.all.len(),
        (0..cells.all.len()).filter(|at| mine(*at)).count(),
        out.display()
    );
    for (at, cell) in cells.all.iter().enumerate().filter(|(at, _)| mine(*at)) {
        eprint!("[{}/{}] ", at + 1, cells.all.len());
        if finish(cell, &settings[cell.corpus], &backend)?.is_none() {
            return interrupted(&out);
        }
    }

    let measured = cells.all.iter().map(Cell::measured);
    let measured = measured.collect::<Result<_>>()?;
    let texts = corpora
        .iter()
        .zip(&settings)
        .map(|((name, _), setting)| Corpus {
            name: name.clone(),
            windows: setting.data.text.validation_windows(),
            vocabulary: setting.data.text.tokenizer().vocabulary(),
        });
    let table = Table {
        base: &base,
        trees: &trees,
        corpora: texts.collect(),
        models: &models,
        seeds: &args.seeds,
        cells: &cells,
        measured,
        out: &out,
    };
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    write(&out, &table.page(), &table.json())?;
    crate::cli::show(&match args.json {
        true => table.json().to_string(),
        false => format!(
            "{}\nfolder with the runs, {} and {}: {}",
            table.text(),
            super::TABLE,
            super::NUMBERS,
            out.display()
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The texts, each with the name of the folder of its runs.
fn corpora(given: &[PathBuf], base: &LanguageConfig) -> Result<Vec<(String, TextSource)>> {
    if given.is_empty() {
        return Ok(vec![(name(&base.data.source)?, base.data.source.clone())]);
    }
    if base.data.validation_source.is_some() {
        bail!("data.validation_source: is held-out text of one text; --corpora names several");
    }
    let mut corpora: Vec<(String, TextSource)> = Vec::new();
    for path in given {
        let mut source = TextSource::from(path.clone());
        if let TextSource::Path(path) = &mut source {
            *path = std::path::absolute(&path).context("cannot read the working directory")?;
        }
        let name = name(&source)?;
        if let Some(other) = corpora.iter().position(|(other, _)| *other == name) {
            bail!(
                "--corpora: {name} is given twice: {} and {}",
                given[other].display(),
                path.display()
            );
        }
        corpora.push((name, source));
    }
    Ok(corpora)
}

/// Refuses a folder within that of a text: the table would become a document of it.
fn refuse_within(out: &Path, corpora: &[(String, TextSource)]) -> Result<()> {
    let out = std::path::absolute(out).context("cannot read the working directory")?;
    for (_, source) in corpora {
        if let TextSource::Path(path) = source
            && out.starts_with(
                std::path::absolute(path).context("cannot read the working directory")?,
            )
        {
            bail!(
                "--out: {} is within the text {}, and would become a part of it",
                out.display(),
                path.display()
            );
        }
    }
    Ok(())
}

/// The last part of a path without its ending: a folder below that of the grid.
///
/// # Errors
/// If there is none, or a path that ends with `..` cannot be followed.
fn name(source: &TextSource) -> Result<String> {
    let given = PathBuf::from(source.clone());
    // A file `...txt` would be called `..`.
    let stem = |path: &Path| {
        let stem = path.file_stem()?.to_string_lossy().into_owned();
        (!stem.trim_start_matches('.').is_empty()).then_some(stem)
    };
    if let Some(stem) = stem(&given) {
        return Ok(stem);
    }
    let path = given
        .canonicalize()
        .with_context(|| format!("cannot read {}", given.display()))?;
    stem(&path).with_context(|| {
        format!(
            "{}: a text of a grid needs a name, which the folder of its runs gets",
            given.display()
        )
    })
}

/// The texts as sequences, each of them and its tokenizer once for all its runs.
fn load(
    base: &LanguageConfig,
    corpora: &[(String, TextSource)],
    device: &Device,
    out: &Path,
) -> Result<Vec<Setting<LanguageConfig>>> {
    let load = |(name, source): &(String, TextSource)| {
        let mut base = base.clone();
        base.data.source = source.clone();
        let data = base
            .load(None)
            .with_context(|| match &base.data.tokenizer {
                TokenizerSource::File { .. } => format!("text {name} and its tokenizer"),
                _ => format!("text {name}"),
            })?;
        Ok(Setting {
            about: base.about(&data)?,
            base,
            data,
            device: device.clone(),
            out: out.to_path_buf(),
        })
    };
    corpora.iter().map(load).collect()
}

impl Cell {
    /// What was measured when the run was finished, if it was.
    ///
    /// # Errors
    /// If there is something that cannot be read.
    fn measured(&self) -> Result<Option<Measured>> {
        let path = self.plan.folder.join(MEASURED);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let measured: Measured = serde_json::from_str(&text).with_context(|| {
            format!(
                "{}: not the numbers of a run; without this file they are measured anew",
                path.display()
            )
        })?;
        let last = self.plan.config.trainer.steps;
        let is_whole = measured.step == last || measured.metrics.is_none();
        Ok((is_whole && measured.rule == RULE).then_some(measured))
    }
}

/// Trains and measures what a run lacks. `None` after Ctrl-C.
fn finish(
    cell: &Cell,
    setting: &Setting<LanguageConfig>,
    backend: &str,
) -> Result<Option<Measured>> {
    let plan = &cell.plan;
    if plan.folder.join(CONFIG).exists()
        && let Some(measured) = cell.measured()?
    {
        eprintln!("{}: finished before", plan.folder.display());
        return Ok(Some(measured));
    }
    let trainer = &plan.config.trainer;
    let mut measured = Measured {
        rule: RULE,
        step: trainer.steps,
        backend: backend.into(),
        metrics: None,
        training_seconds: 0.0,
    };
    let mut is_stopped = false;
    match setting.trained(plan) {
        Ok(None) => return Ok(None),
        Ok(Some(trained)) => {
            let items = plan.config.test_items;
            let means = super::measured(
                &plan.config,
                &trained.0,
                items,
                &setting.data,
                &setting.device,
            )?;
            measured.metrics = finite(means);
            is_stopped = trained.1;
            if measured.metrics.is_none() {
                eprintln!("{}: the loss is not finite", plan.folder.display());
            }
        }
        // The model has lost, and the others are still to be compared.
        Err(error) if diverged(&error) => eprintln!("{}: {error}", plan.folder.display()),
        Err(error) => return Err(error),
    }
    measured.training_seconds = training_seconds(&plan.folder)?;
    let text = serde_json::to_string_pretty(&measured)? + "\n";
    whole::write(&plan.folder.join(MEASURED), &text)?;
    Ok((!is_stopped).then_some(measured))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_are_left_out_and_a_loss_that_is_none_is_no_result() {
        let read = |metrics: &str| {
            let text = format!(
                r#"{{"step": 3, "backend": "flex", "metrics": {metrics}, "training_seconds": 1.0}}"#
            );
            serde_json::from_str::<Measured>(&text).unwrap().metrics
        };
        let some = read(r#"{"loss": 2.0, "perplexity": null}"#).unwrap();
        assert_eq!(some, [("loss".to_owned(), 2.0)].into());
        assert_eq!(read(r#"{"loss": null, "perplexity": 1.0}"#), None);
        assert_eq!(read("null"), None);
        let measured = |loss: f64| {
            let numbers = [("loss", loss), ("perplexity", f64::INFINITY)];
            finite(
                numbers
                    .map(|(name, number)| (name.to_owned(), number))
                    .into(),
            )
        };
        assert_eq!(measured(800.0).unwrap().len(), 1);
        assert_eq!(measured(f64::NAN), None);
    }

    #[test]
    fn a_text_is_named_by_the_end_of_its_path_which_is_never_a_way_up() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("sea/below")).unwrap();
        let named = |path: &str| name(&TextSource::from(folder.path().join(path)));
        for path in ["sea", "sea/.", "sea/below/..", "sea.txt", "above/sea.md"] {
            assert_eq!(named(path).unwrap(), "sea", "{path}");
        }
        assert!(named("nowhere/..").is_err());
        std::fs::write(folder.path().join("...txt"), "text").unwrap();
        assert!(named("...txt").is_err());
        let root = name(&TextSource::Path("/".into())).unwrap_err().to_string();
        assert!(root.contains("needs a name"), "{root}");
        assert_eq!(name(&TextSource::MobyDick).unwrap(), "moby-dick");
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
