//! The runs of a grid: which there are, where they lie, and which cases share them.

use super::super::{Plan, refuse_doubled};
use super::GridArgs;
use crate::families::language::{
    LanguageArchitecture, LanguageConfig, LanguageModelKind, TextSource,
};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// A tree of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    pub branching: usize,
    pub height: usize,
    /// Transformer blocks of a node.
    pub blocks: usize,
    /// Width of tokens.
    pub width: usize,
}

impl FromStr for Tree {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<usize>, _> = text.split(':').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[branching, height, blocks, width]) => Ok(Self {
                branching,
                height,
                blocks,
                width,
            }),
            _ => Err("expected branching:height:blocks:width, such as 2:2:1:64".into()),
        }
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            branching,
            height,
            blocks,
            width,
        } = self;
        write!(f, "{branching}:{height}:{blocks}:{width}")
    }
}

/// The trees that the options name, over the settings.
///
/// # Errors
/// If a tree is named twice, has no level below the root or is out of range, or the settings name numbers for single
/// levels, which fit one height alone.
pub fn trees(args: &GridArgs, base: &LanguageConfig) -> Result<Vec<Tree>> {
    let a = &base.architecture;
    let &[blocks] = a.blocks.as_slice() else {
        bail!("architecture.blocks: a grid takes one number for all levels");
    };
    if a.d_ff.len() != 1 {
        bail!("architecture.d_ff: a grid takes one number for all levels");
    }
    let or = |given: &[usize], setting: usize| match given.is_empty() {
        true => vec![setting],
        false => given.to_vec(),
    };
    let mut trees = args.trees.clone();
    if trees.is_empty() {
        for width in or(&args.widths, a.d_model) {
            for blocks in or(&args.blocks, blocks) {
                for branching in or(&args.branching, a.branching) {
                    for height in or(&args.heights, a.height) {
                        trees.push(Tree {
                            branching,
                            height,
                            blocks,
                            width,
                        });
                    }
                }
            }
        }
    }
    refuse_doubled("--trees", &trees)?;
    if let Some(tree) = trees.iter().find(|tree| tree.height == 0) {
        bail!(
            "--heights: tree {tree} (branching:height:blocks:width) is linear; expected heights of at least 1"
        );
    }
    for tree in &trees {
        // Before anything is computed of its numbers.
        tree.config(base, LanguageModelKind::TreeCoder)
            .check()
            .with_context(|| format!("tree {tree} (branching:height:blocks:width)"))?;
    }
    Ok(trees)
}

impl Tree {
    /// The architecture with this tree. The width inside of MLPs keeps its proportion to that of tokens.
    fn architecture(&self, base: &LanguageArchitecture) -> LanguageArchitecture {
        let inside = base.d_ff[0] as f64 * self.width as f64 / base.d_model.max(1) as f64;
        LanguageArchitecture {
            branching: self.branching,
            height: self.height,
            blocks: vec![self.blocks],
            d_model: self.width,
            d_ff: vec![inside.round() as usize],
            ..base.clone()
        }
    }

    /// The settings of a model in a case of this tree. Those that the model does not depend on are the same for
    /// all trees, so that equal models are one run.
    pub fn config(&self, base: &LanguageConfig, model: LanguageModelKind) -> LanguageConfig {
        let mut config = LanguageConfig {
            model,
            architecture: self.architecture(&base.architecture),
            ..base.clone()
        };
        if model == LanguageModelKind::LinearActive {
            // Of the tree, the number of blocks on a path is all that is left.
            let a = &mut config.architecture;
            a.blocks = vec![self.blocks * (self.height + 1)];
            (a.branching, a.height) = (2, 0);
        }
        config
    }

    /// The folder of a model's runs in cases of this tree, less the seed: as much of the tree as the model depends
    /// on.
    fn folder(&self, model: LanguageModelKind) -> String {
        let Self {
            branching,
            height,
            blocks,
            width,
        } = self;
        let name = model.name();
        match model {
            LanguageModelKind::LinearActive => {
                format!("{name}-b{}-d{width}", blocks * (height + 1))
            }
            _ => format!("{name}-k{branching}-h{height}-b{blocks}-d{width}"),
        }
    }
}

/// A run of the grid.
pub struct Cell {
    pub plan: Plan<LanguageConfig>,
    /// The text, numbered as given.
    pub corpus: usize,
}

/// Where a run is in the grid. All are numbered as given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub tree: usize,
    pub corpus: usize,
    pub model: usize,
    pub seed: usize,
}

/// The runs of a grid, in the order in which they are trained.
pub struct Cells {
    pub all: Vec<Cell>,
    /// The run at each place. Several places may share one.
    at: BTreeMap<Place, usize>,
}

impl Cells {
    /// Seed by seed, and case by case: what is finished at any time is fair to every model.
    pub fn new(
        base: &LanguageConfig,
        trees: &[Tree],
        corpora: &[(String, TextSource)],
        models: &[LanguageModelKind],
        seeds: &[u64],
        out: &Path,
    ) -> Self {
        let mut cells = Self {
            all: Vec::new(),
            at: BTreeMap::new(),
        };
        let mut known = BTreeMap::new();
        for (seed, number) in seeds.iter().enumerate() {
            for (corpus, (name, source)) in corpora.iter().enumerate() {
                for (tree, shape) in trees.iter().enumerate() {
                    for (model, kind) in models.iter().enumerate() {
                        let mut config = shape.config(base, *kind);
                        config.data.source = source.clone();
                        config.trainer.seed = *number;
                        let folder = format!("{}-seed{number}", shape.folder(*kind));
                        let folder = out.join(name).join(folder);
                        let cell = *known.entry(folder.clone()).or_insert_with(|| {
                            let plan = Plan { config, folder };
                            cells.all.push(Cell { plan, corpus });
                            cells.all.len() - 1
                        });
                        let place = Place {
                            tree,
                            corpus,
                            model,
                            seed,
                        };
                        cells.at.insert(place, cell);
                    }
                }
            }
        }
        cells
    }

    /// The number of the run at a place of the grid.
    pub fn at(&self, place: Place) -> usize {
        self.at[&place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::Preset;
    use crate::families::language::LanguageTask;

    fn tree(text: &str) -> Tree {
        text.parse().unwrap()
    }

    fn base() -> LanguageConfig {
        LanguageConfig::of_task(LanguageTask::Lm, Preset::Small).unwrap()
    }

    #[test]
    fn trees_are_read_as_they_are_written() {
        assert_eq!(tree("3:2:1:48").to_string(), "3:2:1:48");
        for text in ["2:2:1", "2:2:1:64:1", "2:2:one:64", "2:-1:1:64", ""] {
            assert!(text.parse::<Tree>().is_err(), "{text}");
        }
    }

    #[test]
    fn equal_models_of_several_trees_are_one_run_and_others_are_not() {
        // Paths of 4 blocks, but for the last tree.
        let trees = ["2:3:1:32", "3:3:1:32", "2:1:2:32", "2:3:1:48", "2:2:1:32"].map(tree);
        let models = [
            LanguageModelKind::TreeCoder,
            LanguageModelKind::LinearActive,
        ];
        let corpora = [("moby-dick".into(), TextSource::MobyDick)];
        let cells = Cells::new(
            &base(),
            &trees,
            &corpora,
            &models,
            &[0, 5],
            Path::new("out"),
        );
        let folder = |tree, model, seed| {
            let place = Place {
                tree,
                corpus: 0,
                model,
                seed,
            };
            let folder = &cells.all[cells.at(place)].plan.folder;
            folder.display().to_string()
        };
        for (tree, name) in ["b4-d32", "b4-d32", "b4-d32", "b4-d48", "b3-d32"]
            .into_iter()
            .enumerate()
        {
            let expected = format!("out/moby-dick/linear-active-{name}-seed5");
            assert_eq!(folder(tree, 1, 1), expected);
        }
        assert_eq!(
            folder(2, 0, 0),
            "out/moby-dick/tree-coder-k2-h1-b2-d32-seed0"
        );
        // Per seed: 5 trees, and 3 linear transformers.
        assert_eq!(cells.all.len(), 2 * (5 + 3));
    }

    #[test]
    fn a_shared_linear_model_is_the_one_of_each_tree() {
        for text in ["2:3:1:32", "3:1:2:32", "4:2:3:16"] {
            let tree = tree(text);
            let shared = tree.config(&base(), LanguageModelKind::LinearActive);
            shared.check().unwrap();
            let own = tree.config(&base(), LanguageModelKind::TreeCoder);
            let own = LanguageConfig {
                model: LanguageModelKind::LinearActive,
                ..own
            };
            let [shared, own] = [shared, own].map(|config| config.tree_coder(300));
            assert_eq!(shared.parameters(), own.parameters(), "{text}");
            assert_eq!(
                (shared.height, shared.blocks, shared.d_ff, shared.d_model),
                (own.height, own.blocks, own.d_ff, own.d_model),
                "{text}"
            );
        }
    }
}
