//! What an experiment on language varies besides its rows: trees and texts.

use super::{Grid, refuse_doubled};
use crate::families::language::TextSource;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What `arbora compare lm` varies.
#[derive(Clone, Debug, Default, Args)]
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
}

impl GridArgs {
    /// Refuses options of a grid where there is none.
    pub fn refuse(&self, what: &str) -> Result<()> {
        for (option, count) in [
            ("--branching", self.branching.len()),
            ("--heights", self.heights.len()),
            ("--blocks", self.blocks.len()),
            ("--widths", self.widths.len()),
            ("--trees", self.trees.len()),
            ("--corpora", self.corpora.len()),
        ] {
            ensure!(count == 0, "{option}: only for lm, not for {what}");
        }
        Ok(())
    }

    /// The trees that the options name, over settings, and the texts. Settings that name numbers for single levels, which
    /// fit one height alone, are refused.
    pub fn grid(&self, settings: &Value) -> Result<Grid> {
        let own = Tree::of(settings)?;
        let or = |given: &[usize], setting: usize| match given {
            [] => vec![setting],
            given => given.to_vec(),
        };
        let mut trees = self.trees.clone();
        if trees.is_empty() {
            for width in or(&self.widths, own.width) {
                for blocks in or(&self.blocks, own.blocks) {
                    for branching in or(&self.branching, own.branching) {
                        for height in or(&self.heights, own.height) {
                            trees.push(Tree::from([branching, height, blocks, width]));
                        }
                    }
                }
            }
        }
        Ok(Grid {
            trees,
            corpora: self.corpora.clone(),
        })
    }
}

/// A tree of a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Tree {
    pub branching: usize,
    pub height: usize,
    /// Transformer blocks of a node.
    pub blocks: usize,
    /// Width of tokens.
    pub width: usize,
}

impl From<[usize; 4]> for Tree {
    fn from([branching, height, blocks, width]: [usize; 4]) -> Self {
        Self {
            branching,
            height,
            blocks,
            width,
        }
    }
}

impl FromStr for Tree {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<usize>, _> = text.split(':').map(str::parse).collect();
        let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
        numbers
            .map(|numbers: [usize; 4]| Self::from(numbers))
            .ok_or_else(|| "expected branching:height:blocks:width, such as 2:2:1:64".into())
    }
}

impl TryFrom<String> for Tree {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [branching, height, blocks, width] = self.numbers();
        write!(f, "{branching}:{height}:{blocks}:{width}")
    }
}

impl Tree {
    /// The one of settings on language.
    fn of(settings: &Value) -> Result<Self> {
        let single = |key: &str| match settings["architecture"][key].as_array().map(Vec::as_slice) {
            Some([number]) => Ok(number.clone()),
            _ => bail!("architecture.{key}: a grid takes one number for all levels"),
        };
        let number = |value: &Value| value.as_u64().unwrap_or(0) as usize;
        single("d_ff")?;
        let own = &settings["architecture"];
        let blocks = single("blocks")?;
        Ok(
            [&own["branching"], &own["height"], &blocks, &own["d_model"]]
                .map(number)
                .into(),
        )
    }

    pub fn numbers(&self) -> [usize; 4] {
        [self.branching, self.height, self.blocks, self.width]
    }

    /// Blocks from the root to a leaf.
    fn path(&self) -> usize {
        self.blocks.saturating_mul(self.height.saturating_add(1))
    }
}

/// The trees on all texts, text by text.
#[derive(Clone, Debug)]
pub struct Cases {
    trees: Vec<Tree>,
    /// Each with the name of the folder of its runs.
    corpora: Vec<(String, TextSource)>,
    /// The width inside of MLPs by that of tokens.
    inside: f64,
}

/// The model that the others are compared with.
pub const TREE_CODER: &str = "tree-coder";

impl Cases {
    /// The cases of a grid over settings.
    pub fn new(grid: &Grid, settings: &Value) -> Result<Self> {
        let own = Tree::of(settings)?;
        let trees = match grid.trees.as_slice() {
            [] => vec![own],
            trees => trees.to_vec(),
        };
        refuse_doubled("--trees", &trees)?;
        if let Some(tree) = trees.iter().find(|tree| tree.height == 0) {
            bail!(
                "--heights: tree {tree} (branching:height:blocks:width) is linear; expected heights of at least 1"
            );
        }
        let inside = settings["architecture"]["d_ff"][0].as_f64().unwrap_or(0.0);
        Ok(Self {
            trees,
            corpora: corpora(&grid.corpora, settings)?,
            inside: inside / own.width.max(1) as f64,
        })
    }

    pub fn count(&self) -> usize {
        self.trees.len() * self.corpora.len()
    }

    pub fn tree(&self, case: usize) -> Tree {
        self.trees[case % self.trees.len()]
    }

    /// The text of a case, numbered as given.
    pub fn corpus(&self, case: usize) -> usize {
        case / self.trees.len()
    }

    pub fn corpora(&self) -> Vec<&str> {
        self.corpora.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// What a case is called.
    pub fn case(&self, case: usize) -> String {
        format!("{} {}", self.corpora[self.corpus(case)].0, self.tree(case))
    }

    /// What a case says of itself.
    pub fn json(&self, case: usize) -> Value {
        let [branching, height, blocks, width] = self.tree(case).numbers();
        json!({
            "case": self.case(case), "text": self.corpora[self.corpus(case)].0,
            "branching": branching, "height": height, "blocks": blocks, "width": width,
        })
    }

    /// The settings of a model in a case. Those that the model does not depend on are the same for all trees, so that
    /// equal models are one run. The width inside of MLPs keeps its proportion to that of tokens.
    pub fn settings(&self, case: usize, model: &str) -> Vec<String> {
        let tree = self.tree(case);
        let source = PathBuf::from(self.corpora[self.corpus(case)].1.clone());
        // Of the tree, the number of blocks on a path is all that is left of a model without one.
        let (branching, height, blocks) = match model {
            "linear-active" => (2, 0, tree.path()),
            _ => (tree.branching, tree.height, tree.blocks),
        };
        let inside = (self.inside * tree.width as f64).round();
        vec![
            format!("data.source={}", json!(source.to_string_lossy())),
            format!("architecture.branching={branching}"),
            format!("architecture.height={height}"),
            format!("architecture.blocks=[{blocks}]"),
            format!("architecture.d_model={}", tree.width),
            format!("architecture.d_ff=[{inside:.0}]"),
        ]
    }

    /// The folder of a row's runs in a case, less the seed: as much of the tree as the model depends on.
    pub fn folder(&self, case: usize, row: &str, model: &str) -> String {
        let tree = self.tree(case);
        let [branching, height, blocks, width] = tree.numbers();
        let corpus = &self.corpora[self.corpus(case)].0;
        match model {
            "linear-active" => format!("{corpus}/{row}-b{}-d{width}", tree.path()),
            _ => format!("{corpus}/{row}-k{branching}-h{height}-b{blocks}-d{width}"),
        }
    }
}

/// The texts, each with the name of the folder of its runs.
fn corpora(given: &[PathBuf], settings: &Value) -> Result<Vec<(String, TextSource)>> {
    if given.is_empty() {
        let source = settings["data"]["source"].as_str().unwrap_or_default();
        let source = TextSource::from(PathBuf::from(source));
        return Ok(vec![(name(&source)?, source)]);
    }
    if !settings["data"]["validation_source"].is_null() {
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

/// The last part of a path without its ending: a folder below that of the grid.
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

#[cfg(test)]
mod tests {
    use super::super::Experiment;
    use super::super::plan::{Place, Plan};
    use super::*;
    use crate::families::language::LanguageConfig;
    use crate::families::{Family as _, Preset};
    use crate::settings;

    fn tree(text: &str) -> Tree {
        text.parse().unwrap()
    }

    fn base() -> LanguageConfig {
        LanguageConfig::preset("lm", Preset::Small, None).unwrap()
    }

    fn cases(trees: &[&str]) -> Cases {
        let grid = Grid {
            trees: trees.iter().map(|text| tree(text)).collect(),
            corpora: Vec::new(),
        };
        Cases::new(&grid, &serde_json::to_value(base()).unwrap()).unwrap()
    }

    #[test]
    fn trees_are_read_as_they_are_written() {
        assert_eq!(tree("3:2:1:48").to_string(), "3:2:1:48");
        for text in ["2:2:1", "2:2:1:64:1", "2:2:one:64", "2:-1:1:64", ""] {
            assert!(text.parse::<Tree>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_grid_has_no_tree_twice_and_its_settings_are_some() {
        let experiment = Experiment::bundled("lm").unwrap().unwrap();
        let grid = experiment.grid.as_ref().unwrap();
        let base = settings::layered(&base(), None, &experiment.settings).unwrap();
        let cases = Cases::new(grid, &serde_json::to_value(base).unwrap()).unwrap();
        assert_eq!((cases.trees.len(), cases.count()), (12, 24));
    }

    #[test]
    fn equal_models_of_several_trees_are_one_run_and_others_are_not() {
        let mut experiment = Experiment::bundled("lm").unwrap().unwrap();
        experiment
            .rows
            .retain(|row| [TREE_CODER, "linear-active"].contains(&row.model.as_str()));
        experiment.seeds = vec![0, 5];
        // Paths of 4 blocks, but for the last tree.
        let trees = ["2:3:1:32", "3:3:1:32", "2:1:2:32", "2:3:1:48", "2:2:1:32"];
        let plan = Plan::new(&experiment, Some(&cases(&trees)), &[None, None]);
        let folder = |case, row, seed| {
            let place = Place { row, case, seed };
            plan.runs[plan.at[&place]].name.as_str()
        };
        for (case, name) in ["b4-d32", "b4-d32", "b4-d32", "b4-d48", "b3-d32"]
            .into_iter()
            .enumerate()
        {
            let expected = format!("moby-dick/linear-active-{name}-seed5");
            assert_eq!(folder(case, 1, 5), expected);
        }
        assert_eq!(folder(2, 0, 0), "moby-dick/tree-coder-k2-h1-b2-d32-seed0");
        // Per seed: 5 trees, and 3 linear transformers.
        assert_eq!(plan.runs.len(), 2 * (5 + 3));
    }

    #[test]
    fn a_shared_linear_model_is_the_one_of_each_tree() {
        let trees = ["2:3:1:32", "3:1:2:32", "4:2:3:16"];
        let cases = cases(&trees);
        for (case, text) in trees.iter().enumerate() {
            let of = |varied: &str| {
                let mut layers = cases.settings(case, varied);
                layers.push("model=linear-active".into());
                let config = settings::layered(&base(), None, &layers).unwrap();
                config.tree_coder(300)
            };
            let [shared, own] = ["linear-active", TREE_CODER].map(of);
            assert_eq!(shared.parameters(), own.parameters(), "{text}");
            assert_eq!(
                (shared.height, shared.blocks, shared.d_ff, shared.d_model),
                (own.height, own.blocks, own.d_ff, own.d_model),
                "{text}"
            );
        }
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
}
